"""A denoiser of ours beside an AR model of the hub, and the other way round: their laws, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import gpt2_folder
import mixed_pairs
import pytest
import torch
from mixed_pairs import BOS, LENGTH, LETTERS, N, hidden, law_of_denoiser, law_of_hub, ours, texts
from oracles import all_sequences
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.data import vocabulary
from edlm.evaluation import scores
from edlm.likelihood import enumeration
from edlm.models import autoregressive
from edlm.nn import known_ids
from edlm.nn.decoders import DecoderNetwork
from edlm.samplers import corrections, pipelines, plans
from edlm.samplers.sampler import Sampler
from edlm.weights import checkpoints, hub, large, loading, named, pairs, shards, tensors

transformers = pytest.importorskip("transformers", reason="needs pip install 'edlm-torch[families]'")
CPU = torch.device("cpu")
WORDS = vocabulary.characters(LETTERS)
# Fewer ids than the denoiser, as many, and more, of which some stand where the denoiser has its own.
every_ar = pytest.mark.parametrize(("kind", "size"), [("llama", N), ("gpt2", N), ("llama", N + 4), ("gpt2", N + 4)])


def load(denoiser: Path, ar: Path, **more: Any) -> named.Models:
    return named.load({"denoiser": str(denoiser), "ar": str(ar), "length": LENGTH}, CPU, **more)


def weighed(models: named.Models, form: str, x: Tensor, x_t: Tensor, log_p: Tensor) -> Tensor:
    """The energies of texts as candidates for x_t, (b,)."""
    assert models.diffusion is not None
    masked = x_t == models.vocabulary.mask_id
    chosen = torch.where(masked, log_p.gather(-1, x.unsqueeze(-1)).squeeze(-1), 0.0)
    state = {contracts.CANDIDATES: x.unsqueeze(1), contracts.X_T: x_t, contracts.LOG_P_CANDIDATES: chosen.unsqueeze(1)}
    places = masked.flatten().nonzero().squeeze(-1)
    with torch.no_grad():
        found = models.diffusion.energies[f"ar, {form}"](TensorDict({**state, contracts.POSITIONS: places}))
    return found[contracts.ENERGY].squeeze(1)


# ---- A denoiser of ours, an AR model of the hub


@every_ar
def test_residual_energies_are_those_of_transformers_by_plain_loops(kind: str, size: int, tmp_path: Path) -> None:
    ours(tmp_path / "own", WORDS)
    folder = mixed_pairs.hub(tmp_path / "hub", transformers, kind, vocab_size=size)
    models, x = load(tmp_path / "own", folder), texts()
    x_t = hidden(x, WORDS.mask_id)
    log_p, log_ar = law_of_denoiser(tmp_path / "own", x_t, WORDS.mask_id), law_of_hub(folder, transformers, x)
    for form in ("posterior", "carry_over"):
        expected = torch.zeros(len(x), dtype=torch.float64)
        for row in range(len(x)):
            for place in range(LENGTH):
                masked = bool(x_t[row, place] == WORDS.mask_id)
                if masked or form == "posterior":
                    expected[row] -= log_ar[row, place]
                if masked:
                    expected[row] += log_p[row, place, x[row, place]]
        torch.testing.assert_close(weighed(models, form, x, x_t, log_p), expected, atol=1e-4, rtol=0.0)


@every_ar
def test_the_exact_likelihood_is_that_of_transformers(kind: str, size: int, tmp_path: Path) -> None:
    folder, x = mixed_pairs.hub(tmp_path / "hub", transformers, kind, vocab_size=size), texts()
    models = load(ours(tmp_path / "own", WORDS), folder)
    assert models.ar is not None
    found = scores.autoregressive_nll(models.ar, WORDS.mask_id)(
        x, torch.ones_like(x, dtype=torch.bool), torch.tensor(0), torch.arange(len(x))
    )
    expected = -law_of_hub(folder, transformers, x).mean(-1)
    torch.testing.assert_close(found.nats["exact_nll"], expected, atol=1e-4, rtol=0.0)
    if size == N:  # it is then the AR model's alone
        alone = named.load({"denoiser": None, "ar": str(folder), "length": LENGTH}, CPU)
        score = scores.autoregressive_nll(alone.ar, alone.vocabulary.mask_id)  # type: ignore[arg-type]
        own = score(x, torch.ones_like(x, dtype=torch.bool), torch.tensor(0), torch.arange(len(x)))
        torch.testing.assert_close(found.nats["exact_nll"], own.nats["exact_nll"])


@pytest.mark.slow
@every_ar
def test_the_law_of_texts_that_the_denoiser_drafts_is_that_of_the_ar_model(
    kind: str, size: int, tmp_path: Path
) -> None:
    folder, length = mixed_pairs.hub(tmp_path / "hub", transformers, kind, vocab_size=size), 3
    models = load(ours(tmp_path / "own", WORDS), folder)
    assert models.diffusion is not None
    assert models.ar is not None
    law = corrections.Autoregressive(models.ar.network, models.ar.bos_id, ahead=2)
    made = Sampler(models.diffusion.denoiser, plans.Grid(1), correction=law, selection="speculative")
    every = all_sequences(N, length)
    expected = law_of_hub(folder, transformers, every).sum(-1).exp()
    torch.testing.assert_close(enumeration.law(made, length).flatten(), expected, atol=1e-5, rtol=0.0)
    drawn = pipelines.sample(pipelines.pipeline(made, length), 4000, seed=1)["tokens"]
    counts = torch.bincount((drawn * torch.tensor([N**2, N, 1])).sum(1), minlength=N**length)
    spread = (4000 * expected * (1 - expected)).sqrt()
    assert bool(((counts - 4000 * expected).abs() < 4.5 * spread + 1).all())


def test_the_carry_over_form_has_z_one_though_the_ar_model_knows_more(tmp_path: Path) -> None:
    folder = mixed_pairs.hub(tmp_path / "hub", transformers, vocab_size=N + 4)
    models = load(ours(tmp_path / "own", WORDS), folder)
    every = all_sequences(N, 3)
    x_t = torch.full_like(every, WORDS.mask_id)
    log_p = law_of_denoiser(tmp_path / "own", x_t, WORDS.mask_id)
    drafts = log_p.gather(-1, every.unsqueeze(-1)).squeeze(-1).sum(-1)
    z = (drafts - weighed(models, "carry_over", every, x_t, log_p)).exp().sum()
    torch.testing.assert_close(z, torch.ones_like(z), atol=1e-6, rtol=0.0)


def test_an_id_of_the_denoiser_alone_is_impossible_and_read_as_no_token(tmp_path: Path) -> None:
    """The end by which a text ends, for which the AR model has a row that means something else."""
    words = vocabulary.characters(LETTERS, ["pad"]).ending_by_pad()
    folder = mixed_pairs.hub(tmp_path / "hub", transformers, vocab_size=N + 4)
    found = loading.denoiser(str(ours(tmp_path / "own", words)), CPU)
    beside = pairs.autoregressive(str(folder), found, CPU)
    x = texts(2)
    x[0, 2], end = words.end_id, words.end_id
    with torch.no_grad():
        log_p = autoregressive.ar_log_prob(beside.network, x, words.mask_id, beside.bos_id)
        states = beside.network(x)
        rows = beside.network.embedding(torch.tensor([[0, end, words.mask_id]]))
    assert log_p[0, 2] == -torch.inf
    assert bool(log_p[1].isfinite().all())
    assert rows[0, 0].abs().sum() > 0
    assert rows[0, 1:].abs().sum() == 0
    assert isinstance(beside.network, DecoderNetwork)
    assert bool(states.isfinite().all())
    assert found.pad_id is None


def test_padding_of_ours_counts_in_neither_part(tmp_path: Path) -> None:
    words = vocabulary.characters(LETTERS, ["pad"])
    folder = mixed_pairs.hub(tmp_path / "hub", transformers, vocab_size=N + 4)
    models, x = load(ours(tmp_path / "own", words), folder), texts()
    x[:, -2:] = words.pad_id
    x_t = torch.where(x == words.pad_id, x, hidden(x, words.mask_id))
    log_p = law_of_denoiser(tmp_path / "own", x_t, words.mask_id)
    log_ar = law_of_hub(folder, transformers, x[:, :-2])
    masked = (x_t == words.mask_id)[:, :-2]
    chosen = torch.where(masked, log_p.gather(-1, x.unsqueeze(-1)).squeeze(-1)[:, :-2], 0.0)
    expected = (chosen - log_ar).sum(-1)
    torch.testing.assert_close(weighed(models, "posterior", x, x_t, log_p), expected, atol=1e-4, rtol=0.0)


# ---- What opens a text


def test_the_models_own_bos_opens_a_text_whatever_the_vocabulary_calls_so(tmp_path: Path) -> None:
    words = vocabulary.characters(LETTERS, ["bos", "eos"])
    folder = mixed_pairs.hub(tmp_path / "hub", transformers)
    found = loading.denoiser(str(ours(tmp_path / "own", words)), CPU)
    assert (pairs.autoregressive(str(folder), found, CPU).bos_id, words.bos_id) == (BOS, N)


@pytest.mark.parametrize("size", [N, N + 4])
def test_without_a_bos_that_it_knows_the_first_token_is_given(size: int, tmp_path: Path) -> None:
    words = vocabulary.characters(LETTERS, ["bos"])
    folder = mixed_pairs.hub(tmp_path / "hub", transformers, vocab_size=size, bos_token_id=None)
    found = loading.denoiser(str(ours(tmp_path / "own", words)), CPU)
    assert pairs.autoregressive(str(folder), found, CPU).bos_id is None
    models, x = load(tmp_path / "own", folder), texts()
    x_t = hidden(x, words.mask_id)
    log_p, log_ar = law_of_denoiser(tmp_path / "own", x_t, words.mask_id), law_of_hub(folder, transformers, x, None)
    masked = x_t == words.mask_id
    chosen = torch.where(masked, log_p.gather(-1, x.unsqueeze(-1)).squeeze(-1), 0.0)
    expected = (chosen - log_ar)[:, 1:].sum(-1)
    torch.testing.assert_close(weighed(models, "posterior", x, x_t, log_p), expected, atol=1e-4, rtol=0.0)


def test_a_bos_of_the_tokenizer_serves_a_model_that_names_none(tmp_path: Path) -> None:
    words = vocabulary.Vocabulary(WORDS.tokenizer, N + 1, N, bos_id=0)
    folder = mixed_pairs.hub(tmp_path / "hub", transformers, bos_token_id=None)
    found = loading.denoiser(str(ours(tmp_path / "own", words)), CPU)
    assert pairs.autoregressive(str(folder), found, CPU).bos_id == 0


def test_of_wrapped_texts_the_bos_in_their_first_place_is_the_models(tmp_path: Path) -> None:
    words = vocabulary.Vocabulary(WORDS.tokenizer, N + 1, N, bos_id=BOS, eos_id=2)
    folder = mixed_pairs.hub(tmp_path / "hub", transformers)
    found = loading.denoiser(str(ours(tmp_path / "own", words, wrapped=True)), CPU)
    beside = pairs.autoregressive(str(folder), found, CPU)
    assert (beside.bos_id, beside.opened, beside.front) == (BOS, True, None)
    assert pairs.autoregressive(str(folder), found, CPU, wrapped=False).front == BOS
    drawn = load(tmp_path / "own", folder)
    assert drawn.ar is not None
    assert drawn.ar.bos_id == BOS, "its own texts do not begin with one"
    assert drawn.diffusion is not None
    assert drawn.diffusion.energies["ar, posterior"].module.bos_id is None
    scored = load(tmp_path / "own", folder, wrapped=True)
    assert scored.ar is not None
    assert scored.ar.bos_id is None


def test_wrapped_texts_whose_bos_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    words = vocabulary.characters(LETTERS, ["bos", "eos"])
    folder = mixed_pairs.hub(tmp_path / "hub", transformers)
    ours(tmp_path / "own", words, wrapped=True)
    with pytest.raises(ValueError, match=r"does not know bos = 3 and eos = 4, between which texts of denoiser = "):
        load(tmp_path / "own", folder)


def test_a_bos_behind_the_tokenizer_that_both_name_is_known(tmp_path: Path) -> None:
    words = vocabulary.characters(LETTERS, ["bos", "eos"])
    folder = mixed_pairs.hub(tmp_path / "hub", transformers, vocab_size=N + 2, bos_token_id=N, eos_token_id=N + 1)
    found = loading.denoiser(str(ours(tmp_path / "own", words, wrapped=True)), CPU)
    beside = pairs.autoregressive(str(folder), found, CPU)
    assert (beside.bos_id, beside.opened) == (N, True)
    with torch.no_grad():
        log_p = autoregressive.ar_log_prob(beside.network, torch.tensor([[N, 0, N + 1]]), words.mask_id, None)
    assert bool(log_p.isfinite().all())


# ---- A denoiser of the hub, an AR model of ours


def adapted(folder: Path, **changes: Any) -> Path:
    """A denoiser that was made of a causal model, with a mask behind its ids."""
    mixed_pairs.hub(folder, transformers, vocab_size=N + 3, mask_token_id=N + 2, **changes)
    config = json.loads((folder / "config.json").read_text())
    own = {"adapted": {"shifted": True, "bos_id": BOS}}
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": False, "edlm": own}))
    return folder


def hashed(folder: Path) -> Path:
    """Write down the hashes of the weights, as an adaptation does."""
    config = json.loads((folder / "config.json").read_text())
    config["edlm"]["sha256"] = {file.name: tensors.sha256(file) for file in shards.files(folder)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_ar_model_of_ours_beside_a_denoiser_of_the_hub_keeps_its_law(tmp_path: Path) -> None:
    """It has another mask than the denoiser, whose id is no token of its own, and begins with that mask."""
    denoiser, folder = hashed(adapted(tmp_path / "denoiser")), ours(tmp_path / "ar", WORDS, causal=True)
    models, x = load(denoiser, folder), texts()
    assert models.ar is not None
    assert (models.vocabulary.mask_id, models.ar.bos_id) == (N + 2, N)
    own = loading.autoregressive(str(folder), CPU).network
    with torch.no_grad():
        expected = autoregressive.ar_log_prob(own, x, N, N)
        found = autoregressive.ar_log_prob(models.ar.network, x, N + 2, N)
        x[0, 1] = N + 1  # a token of the denoiser alone
        impossible = autoregressive.ar_log_prob(models.ar.network, x, N + 2, N)
    torch.testing.assert_close(found, expected)
    assert impossible[0, 1] == -torch.inf
    assert models.diffusion is not None
    energy = models.diffusion.energies["ar, posterior"].module
    assert (energy.bos_id, energy.pad_id) == (N, None)


def test_an_ar_model_that_never_read_how_a_text_ends_is_refused(tmp_path: Path) -> None:
    denoiser = hashed(adapted(tmp_path / "denoiser"))
    words = vocabulary.Vocabulary(WORDS.tokenizer, N + 1, N, pad_id=2)
    folder = ours(tmp_path / "ar", words, causal=True)
    load(denoiser, folder)  # no block of it was filled up
    network: Any = checkpoints.load_network(folder)
    network.pad_id = network.arguments["pad_id"] = 2
    checkpoints.save_network(tmp_path / "padded", network, words, {"bos_id": N})
    with pytest.raises(ValueError, match=r"has learned no law of id 2, by which denoiser = .* ends a text"):
        load(denoiser, tmp_path / "padded")


def test_models_in_python_are_combined_by_the_same_rule(tmp_path: Path) -> None:
    folder = mixed_pairs.hub(tmp_path / "hub", transformers, vocab_size=N + 4)
    denoiser = hub.from_pretrained(ours(tmp_path / "own", WORDS))
    energy = hub.from_pretrained(folder).energy(denoiser, carry_over=True)
    assert (energy.module.bos_id, energy.module.network.head.out_features) == (BOS, WORDS.size)


# ---- Tokenizers


def test_gpt2s_two_files_and_its_one_file_give_the_same_ids(tmp_path: Path) -> None:
    gpt2_folder.write(tmp_path, transformers)
    words = vocabulary.byte_level_bpe(tmp_path / "vocab.json", tmp_path / "merges.txt")
    large.require_same_tokens(words, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["end_of_word_suffix"] = "</w>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="another tokenizer"):
        large.require_same_tokens(words, tmp_path)


@pytest.mark.parametrize("text", ["<|endoftext|>", "the<|endoftext|> name", " of  the rose\n", "é"])
def test_text_that_spells_a_special_token_has_the_same_ids_either_way(text: str, tmp_path: Path) -> None:
    gpt2_folder.write(tmp_path, transformers)
    one = vocabulary.from_tokenizer_json(tmp_path / "tokenizer.json")
    other = large.load_vocabulary(tmp_path, add_mask=True)
    two_files = vocabulary.byte_level_bpe(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert one.encode(text).tolist() == other.encode(text).tolist() == two_files.encode(text).tolist()
    assert (one.size, one.mask_id) == (other.size, other.mask_id) == (two_files.size, two_files.mask_id)


def test_what_does_not_go_together_is_said_in_one_line(tmp_path: Path) -> None:
    folder = mixed_pairs.hub(tmp_path / "hub", transformers, letters="cab")
    own, ar = ours(tmp_path / "own", WORDS), ours(tmp_path / "ar", WORDS, causal=True)
    denoiser = hashed(adapted(tmp_path / "denoiser", letters="cab"))
    characters = "whose ids are single characters: a token means another text to each"
    for asked, said in (
        ((own, folder), f"ar = '{folder}' has another tokenizer than denoiser = '{own}', {characters}"),
        ((denoiser, ar), f"ar = '{ar}' has another tokenizer than denoiser = '{denoiser}', {characters}"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)) as refusal:
            load(*asked)
        assert "\n" not in str(refusal.value)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing, so nothing says that its ids are those of"):
        load(own, folder)
    with pytest.raises(ValueError, match="holds a large model, which shares no vocabulary with"):
        named.load({"denoiser": str(denoiser), "joint": str(own), "ar": None}, CPU)
    short = mixed_pairs.hub(tmp_path / "short", transformers, max_position_embeddings=4)
    found = loading.denoiser(str(own), CPU)
    with pytest.raises(ValueError, match="reads 4 tokens, and a text has 6: give length="):
        pairs.autoregressive(str(short), found, CPU, window=LENGTH)
    assert load(own, short).max_length == 4


def test_a_network_that_fits_is_left_as_it_is() -> None:
    network: Any = checkpoints.networks.Transformer(4, 8, hidden_size=16, num_layers=1, num_heads=2, causal=True)
    head = network.head
    assert known_ids.over(network, 4, known=3, mask_id=3, bos_id=None).head is head
    assert known_ids.over(network, 4, known=2, mask_id=3, bos_id=3).head is not head
    assert network.embedding(torch.tensor([[2, 3]])).abs().sum(-1).bool().tolist() == [[False, True]]
