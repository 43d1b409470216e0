"""Large models wherever ours are taken: alone with a cache, scored exactly, beside each other; what does not fit."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_folder import hub_model, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st
from large_folders import close, random_weights, tokens_of, write
from smallest import settings_of, words_of

from edlm.data import vocabulary
from edlm.evaluation import scores
from edlm.models import autoregressive
from edlm.nn import decoders
from edlm.nn.decoders import DecoderNetwork
from edlm.nn.networks import Transformer
from edlm.recipes import evaluate, frontier, generate
from edlm.recipes.adapt import main as adapt
from edlm.samplers import autoregressive as alone
from edlm.weights import checkpoints, large, loading, named, resolve, sources

CPU = torch.device("cpu")
MASK, BOS, LENGTH = 40, 3, 8
TRAINING = {"steps": 1, "batch_size": 2, "valid_every": 1, "valid_rows": 2, "save_every": 1, "log_every": 1}
every_family = pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("qwen2", False)])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hub`, an AR model; `run`, a denoiser made of it; `ours`, a causal network of ours over 28 characters.

    One of these stands for an id without a token, which a random denoiser may draw.
    """
    folder = tmp_path_factory.mktemp("models")
    hub_model(folder / "hub", tied=True)
    begun = {"start_from": folder / "hub", "output_dir": folder / "run", "shifted": True, "length": 12, "threads": 1}
    adapt(settings_of("adapt", *words_of({**begun, **TRAINING})))
    network = Transformer(29, 16, hidden_size=16, num_layers=1, num_heads=2, conditioning_size=0, causal=True)
    words = vocabulary.characters(string.ascii_lowercase + " \N{REPLACEMENT CHARACTER}")
    checkpoints.save_network(folder / "ours", network, words, {"bos_id": 28})
    return folder


def causal(folder: Path, family: str = "llama", tied: bool = False) -> DecoderNetwork:
    weights_of(folder, family, tied)
    return decoders.load(large.read_autoregressive(folder, LENGTH, vocab_size=MASK + 1))


# ---- One position at a time


@every_family
def test_a_step_is_the_forward_pass_at_that_position(family: str, tied: bool, tmp_path: Path) -> None:
    """With room in the cache behind the text, which holds what must not be read; nothing is written to it."""
    network, x = causal(tmp_path / "ar", family, tied), tokens_of()[:, :LENGTH]
    cache = network.empty_cache(len(x), LENGTH + 2)
    for each in cache:
        each.fill_(9.0)
    with torch.no_grad():
        expected = network(x)
        for i in range(LENGTH):
            before = [each.clone() for each in cache]
            hidden, own = network.step(x[:, i], torch.tensor(i), cache)
            close(hidden, expected[:, i])
            for each, was, new in zip(cache, before, own, strict=True):
                assert torch.equal(each, was)
                each[:, :, :, i] = new


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.sampled_from([0.7, 1.0]))
def test_texts_have_the_log_probability_that_the_model_gives_them(
    tmp_path_factory: pytest.TempPathFactory, seed: int, b: int, temperature: float
) -> None:
    network = causal(tmp_path_factory.mktemp("ar") / "ar")
    draws = alone.sample(network, b, LENGTH, MASK, BOS, seed=seed, temperature=temperature)
    assert int(draws.tokens.max()) < MASK
    if temperature == 1.0:
        with torch.no_grad():
            exact = autoregressive.ar_log_prob(network, draws.tokens, MASK, BOS)
        close(draws.log_prob.float(), exact, 1e-4)


def test_blocks_of_another_kind_are_not_read_one_at_a_time(tmp_path: Path) -> None:
    network = causal(tmp_path / "ar")
    network.layers[0].attn = torch.nn.Identity()
    with pytest.raises(ValueError, match="a Identity is not read one position at a time"):
        network.empty_cache(1, 4)


def test_generate_draws_an_ar_model_of_the_hub_alone(models: Path, tmp_path: Path) -> None:
    asked = {"denoiser": None, "energy": None, "ar": models / "hub", "output": tmp_path / "alone.jsonl"}
    generate.main(settings_of("generate", *words_of({**asked, "num_samples": 2, "length": LENGTH, "threads": 1})))
    records = [json.loads(line) for line in (tmp_path / "alone.jsonl").read_text("utf-8").splitlines()]
    found = loading.autoregressive(str(models / "hub"), CPU, sources.How(LENGTH))
    tokens = torch.tensor([record["tokens"] for record in records])
    with torch.no_grad():
        exact = autoregressive.ar_log_prob(found.network, tokens, found.vocabulary.mask_id, BOS).sum(1)
    assert [record["log_prob"] for record in records] == pytest.approx(exact.tolist(), rel=1e-4)


# ---- Figures


def test_the_exact_figure_of_a_folder_is_the_sum_of_its_log_probabilities(models: Path) -> None:
    loaded = named.load({"denoiser": None, "ar": str(models / "hub"), "length": LENGTH}, CPU)
    assert loaded.ar is not None
    assert loaded.max_length == LENGTH
    x_0 = tokens_of()[:, :LENGTH]
    scored = torch.ones_like(x_0, dtype=torch.bool)
    score = scores.autoregressive_nll(loaded.ar, loaded.vocabulary.mask_id)
    found = score(x_0, scored, torch.tensor(0), torch.arange(3)).nats["exact_nll"]
    plain = decoders.load(large.read_autoregressive(models / "hub"))
    with torch.no_grad():
        read = torch.nn.functional.pad(x_0[:, :-1], (1, 0), value=BOS)
        law = plain.head(plain(read)).log_softmax(-1)
    close(found.float(), -law.gather(-1, x_0.unsqueeze(-1)).squeeze(-1).mean(1))


def test_evaluate_takes_a_denoiser_and_an_ar_model_of_the_hub_together(models: Path, tmp_path: Path) -> None:
    asked = {"denoiser": models / "run", "ar": models / "hub", "energy": None, "output_dir": tmp_path / "card"}
    small = {"length": LENGTH, "rows": 2, "num_steps": 3, "num_passes": 2, "num_particles": 2, "num_completions": 1}
    evaluate.main(settings_of("evaluate", *words_of({**asked, **small, "log_z_particles": 2, "threads": 1})))
    card = json.loads((tmp_path / "card" / "metric_card.json").read_text("utf-8"))
    found = {(figure["model"], figure["figure"]) for figure in card["figures"]}
    assert {("denoiser", "nelbo"), ("ar", "exact_nll")} <= found
    assert {"ar, posterior", "ar, carry_over"} <= {model for model, _ in found}
    assert all(record["weights_sha256"] for record in card["networks"].values())


@pytest.mark.slow
def test_frontier_takes_them_too_and_judges_them_by_another_vocabulary(models: Path, tmp_path: Path) -> None:
    asked = {"denoiser": models / "run", "ar": models / "hub", "energy": None, "judge": models / "ours"}
    sweeps = "[{plan: {name: grid, num_steps: 2}}, {ar: {temperature: 1.0}}]"
    small = {"length": LENGTH, "num_samples": 2, "batch_size": 2, "sweeps": sweeps, "threads": 1, "ngrams": "[1]"}
    frontier.main(settings_of("frontier", *words_of({**asked, "output_dir": tmp_path / "out", **small})))
    assert "ar" in (tmp_path / "out" / "frontier.md").read_text("utf-8")


def test_samples_are_judged_beside_an_ar_model_of_the_hub_alone(models: Path, tmp_path: Path) -> None:
    texts = [{"text": text} for text in ("the cat sat", "a dog ran off")]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    asked = {"denoiser": None, "ar": models / "hub", "energy": None, "output_dir": tmp_path / "card", "split": None}
    more = {"samples": tmp_path / "texts.jsonl", "judge": models / "ours", "threads": 1, "replicates": 2}
    evaluate.main(settings_of("evaluate", *words_of({**asked, **more, "length": LENGTH})))
    card = json.loads((tmp_path / "card" / "metric_card.json").read_text("utf-8"))
    assert "generative perplexity" in {row["figure"] for row in card["quality"]}


def test_a_shifted_model_that_opens_no_text_reads_its_bos_in_front(tmp_path: Path) -> None:
    """Dream, whose texts begin with a bos: the same laws one place on, so that every token of a text has one."""
    folder = write(tmp_path / "dream", "dream", random_weights("dream"))
    (folder / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
    opened = loading.large_denoiser(str(folder), LENGTH, None, None, CPU)
    found = loading.denoiser(str(folder), CPU, LENGTH)
    assert (opened.opening, found.opening) == ((BOS,), ())
    assert found.network.max_length == LENGTH, "a bos in front takes no place of a text"
    assert loading.denoiser(str(folder), CPU, 100).network.max_length == 63
    x = tokens_of()[:, : LENGTH - 1]
    with torch.no_grad():
        close(found.network(x), opened.network(torch.nn.functional.pad(x, (1, 0), value=BOS))[:, 1:])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"denoiser": "run", "joint": "ours", "ar": None}, "holds a large model, which shares no vocabulary with"),
        ({"denoiser": "run", "ar": "other"}, "another tokenizer than the denoiser's"),
        ({"denoiser": None, "ar": "run"}, "holds a denoiser made of an autoregressive model"),
        ({"denoiser": "hub", "ar": None}, "model_type = 'llama' must be one of llada, Dream"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(asked: dict[str, Any], said: str, models: Path) -> None:
    if not (models / "other").is_dir():
        hub_model(models / "other")
        (models / "other" / "tokenizer.json").write_text(vocabulary.characters("abc").tokenizer.to_str())
    folders = {key: None if name is None else str(models / name) for key, name in asked.items()}
    with pytest.raises(ValueError, match=said) as refusal:
        named.load({**folders, "length": LENGTH}, CPU)
    assert "\n" not in str(refusal.value)


def test_texts_of_a_run_that_goes_on_are_those_of_another_checkpoint(models: Path, tmp_path: Path) -> None:
    plain = {"denoiser": str(models / "run"), "energy": None, "ar": str(models / "hub")}
    assert resolve.weights_of(plain) == {"denoiser": "step_00000001"}
