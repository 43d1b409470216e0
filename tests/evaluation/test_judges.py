"""Judged log-probabilities are those of the judge, piece by piece, in the judge's own tokens."""

import json
import shutil
import statistics
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders import tiny_network
from gpt2_folder import CONTEXT as PIECE
from gpt2_folder import WORDS
from large_folders import random_weights, reference, write
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split, WhitespaceSplit

from edlm.data import vocabulary
from edlm.evaluation import judges
from edlm.evaluation import samples as sample_figures
from edlm.likelihood.estimates import Estimate
from edlm.models import autoregressive
from edlm.nn import decoders
from edlm.weights import checkpoints, large

TEXTS = ["abcab", "b", "cabbacabba"]
CONTEXT = 4


def judge(bos_id: int | None, batch_size: int = 16) -> tuple[judges.Judge, torch.nn.Module, vocabulary.Vocabulary]:
    abc = vocabulary.characters("abc")
    network = tiny_network(vocab_size=abc.size, max_length=CONTEXT, causal=True, conditioning_size=0)
    return judges.autoregressive(network, abc, bos_id, batch_size), network, abc


@pytest.mark.parametrize("bos_id", [3, None])
def test_a_text_is_judged_in_pieces_of_the_context(bos_id: int | None) -> None:
    judged, network, abc = judge(bos_id)
    result = judged(TEXTS)
    behind = 0 if bos_id is not None else 1
    for text, nll, tokens in zip(TEXTS, result.nll, result.tokens, strict=True):
        pieces = [piece for piece in abc.encode(text).split(CONTEXT) if len(piece) > behind]
        with torch.no_grad():
            expected = sum(
                -autoregressive.ar_log_prob(network, p.unsqueeze(0), abc.mask_id, bos_id).sum() for p in pieces
            )
        assert nll.item() == pytest.approx(float(expected))
        assert tokens == sum(len(piece) - behind for piece in pieces)


def test_the_batch_size_changes_nothing() -> None:
    one, many = judge(3, batch_size=1)[0](TEXTS), judge(3)[0](TEXTS)
    torch.testing.assert_close(one.nll, many.nll)
    assert torch.equal(one.tokens, many.tokens)
    alone = judge(3)[0](TEXTS[2:])
    torch.testing.assert_close(alone.nll, many.nll[2:])


def test_a_text_that_the_judge_cannot_spell_is_named() -> None:
    with pytest.raises(ValueError, match="character 'x' at offset 1 is not in the vocabulary"):
        judge(3)[0](["axc"])


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(ValueError, match="no text to judge"):
        judge(3)[0](["", ""])


def test_a_network_folder_is_a_judge_and_a_denoiser_is_not(tmp_path: Path) -> None:
    _, network, abc = judge(3)
    checkpoints.save_network(tmp_path / "ar", network.float(), abc, {"bos_id": 3})
    loaded, what = judges.load(str(tmp_path / "ar"), torch.device("cpu"))
    torch.testing.assert_close(loaded(TEXTS).nll, judge(3)[0](TEXTS).nll, atol=1e-3, rtol=1e-3)
    assert what == {"path": str(tmp_path / "ar"), "kind": "autoregressive", "vocabulary": abc.fingerprint}
    checkpoints.save_network(tmp_path / "denoiser", tiny_network(vocab_size=4), abc, {})
    with pytest.raises(ValueError, match="holds a network that is not causal"):
        judges.load(str(tmp_path / "denoiser"), torch.device("cpu"))


# ---- A causal model in Hugging Face's format


def changed(folder: Path, target: Path, **config: object) -> Path:
    """A copy of a folder, some of its config changed."""
    shutil.copytree(folder, target)
    file = target / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | config), encoding="utf-8")
    return target


def test_a_causal_lm_judges_all_but_the_first_token_of_each_piece(gpt2: Path) -> None:
    """The nats of each piece are those that `transformers` itself computes as the model's loss on it."""
    transformers = pytest.importorskip("transformers")
    judged, what = judges.load(str(gpt2), torch.device("cpu"))
    texts = [WORDS, "the", "a rose is a rose is a rose", ""]
    result = judged(texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2)
    model = transformers.AutoModelForCausalLM.from_pretrained(gpt2).eval()
    for text, nll, tokens in zip(texts, result.nll, result.tokens, strict=True):
        ids = torch.tensor(tokenizer(text)["input_ids"], dtype=torch.int64)
        pieces = [piece[None] for piece in ids.split(PIECE) if len(piece) > 1]
        with torch.no_grad():
            losses = [float(model(input_ids=p, labels=p).loss) * (p.shape[1] - 1) for p in pieces]
        assert nll.item() == pytest.approx(sum(losses), rel=1e-5)
        assert tokens == sum(piece.shape[1] - 1 for piece in pieces)
    assert result.tokens[0] > PIECE, "several pieces"
    assert result.tokens[1] == 0, "a first token is given"
    version = transformers.__version__
    parts = {"context": PIECE, "precision": "float32", "revision": None, "transformers": version}
    assert what == {"path": str(gpt2), "kind": "causal_lm", **parts}


def test_pieces_are_no_longer_than_those_of_the_published_evaluations(
    gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = judges.load(str(gpt2), torch.device("cpu"))[0]([WORDS]).tokens
    monkeypatch.setattr(judges, "_CONTEXT", 2)
    judged, what = judges.load(str(gpt2), torch.device("cpu"))
    assert what["context"] == 2
    assert judged([WORDS]).tokens < whole


def test_weights_of_less_precision_are_computed_with_in_float32(gpt2: Path, tmp_path: Path) -> None:
    """Whatever precision a version of `transformers` would choose: rounded weights change little, rounded sums more."""
    folder = changed(gpt2, tmp_path / "half", dtype="bfloat16", torch_dtype="bfloat16")
    weights = {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    half = judges.causal_lm(str(folder), torch.device("cpu"))([WORDS]).nll
    save_file({name: value.float() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    changed(folder, tmp_path / "single", dtype="float32", torch_dtype="float32")
    single = judges.causal_lm(str(tmp_path / "single"), torch.device("cpu"))([WORDS]).nll
    torch.testing.assert_close(half, single, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"n_layer": 3}, "lacks 12 of its model's weights: transformer.h.2.attn.c_attn.bias"),
        ({"n_embd": 8}, "cannot be loaded: "),
        ({"model_type": "t5"}, "cannot be loaded: "),
        ({"model_type": "none"}, "cannot be loaded: "),
    ],
)
def test_weights_that_are_not_the_models_are_refused(gpt2: Path, tmp_path: Path, config: dict, said: str) -> None:
    folder = changed(gpt2, tmp_path / "other", **config)
    with pytest.raises(ValueError, match=f"judge = '{folder}' {said}"):
        judges.load(str(folder), torch.device("cpu"))


def test_a_folder_whose_files_are_missing_cut_off_or_a_pickle_is_refused(gpt2: Path, tmp_path: Path) -> None:
    cut = changed(gpt2, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((gpt2 / "model.safetensors").read_bytes()[:500])
    pickled = changed(gpt2, tmp_path / "pickled")
    torch.save(load_file(gpt2 / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    mute = changed(gpt2, tmp_path / "mute")
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (mute / file).unlink()
    (tmp_path / "empty").mkdir()
    for folder, said in ((cut, "loaded"), (pickled, "loaded"), (mute, "loaded|spell"), (tmp_path / "empty", "loaded")):
        with pytest.raises(ValueError, match=f"judge = '{folder}' cannot be (?:{said})|cannot {said}"):
            judges.causal_lm(str(folder), torch.device("cpu"))([WORDS])


def test_a_text_that_a_tokenizer_has_no_word_for_is_an_error_and_one_too_large_for_its_network_too(
    gpt2: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = changed(gpt2, tmp_path / "words")
    for file in ("vocab.json", "merges.txt"):
        (folder / file).unlink()

    def use(words: list[str], **unknown: str) -> judges.Judge:
        tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, **unknown))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **unknown).save_pretrained(folder)
        return judges.causal_lm(str(folder), torch.device("cpu"))

    judged = use(["?", "the", "name"], unk_token="?")
    assert judged(["the name", "the ? name"]).tokens.tolist() == [1, 2]
    for unable in (judged, use(["the", "name"])):
        with pytest.raises(ValueError, match="cannot spell the text 'the rose'"):
            unable(["the name", "the rose"])
    with pytest.raises(ValueError, match="has a tokenizer of 281 tokens and a network of 280"):
        use(["?", *map(str, range(280))])


def test_no_code_of_the_models_folder_is_run(gpt2: Path, tmp_path: Path) -> None:
    folder = changed(gpt2, tmp_path / "code", auto_map={"AutoModelForCausalLM": "trap.Trap", "AutoConfig": "trap.Trap"})
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n", encoding="utf-8")
    judges.causal_lm(str(folder), torch.device("cpu"))([WORDS])
    assert not (tmp_path / "sprung").exists()


def test_without_the_extra_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"judge = 'gpt2' is no folder of .* pip install 'edlm-torch\[judge\]'"):
        judges.load("gpt2", torch.device("cpu"))


# ---- A torchtune model


def test_a_torchtune_folder_judges_by_its_own_log_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "qwen2", random_weights("qwen2"))
    letters = {letter: number for number, letter in enumerate("abcdefghij")}
    tokenizer = Tokenizer(WordLevel(letters, unk_token="a"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(judges, "_CONTEXT", 5)
    judged, what = judges.load(f"torchtune:{tmp_path}", torch.device("cpu"))
    assert what == {"path": str(tmp_path), "kind": "torchtune", "context": 5, "precision": "float32"}
    result = judged(["abc", "hgfedcb", "ja"])
    network = decoders.load(large.read_autoregressive(tmp_path))
    for text, nll, count in zip(["abc", "hgfedcb", "ja"], result.nll, result.tokens, strict=True):
        expected, counted = 0.0, 0
        for piece in torch.tensor([letters[letter] for letter in text]).split(5):
            with torch.no_grad():
                log_p = network.head(network(piece.unsqueeze(0))).log_softmax(-1)[0]
            expected -= sum(float(log_p[i, piece[i + 1]]) for i in range(len(piece) - 1))
            counted += len(piece) - 1
        assert nll.item() == pytest.approx(expected, rel=1e-4)
        assert count == counted


def test_a_torchtune_model_with_a_short_context_says_so_and_special_tokens_that_a_text_spells_are_text(
    tmp_path: Path,
) -> None:
    write(tmp_path, "qwen2", random_weights("qwen2"), max_position_embeddings=4)
    tokenizer = Tokenizer(WordLevel({letter: number for number, letter in enumerate("<end>")}, unk_token="e"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    judged, what = judges.load(f"torchtune:{tmp_path}", torch.device("cpu"))
    assert what["context"] == 4
    assert judged(["<end>nd"]).tokens.tolist() == [3 + 2], "seven letters in pieces of four and three"


@pytest.mark.parametrize("text", ["<end>nd", "d<end>", "<end><end>ne", "<|>end<end>", "nnd"])
def test_both_kinds_of_judge_read_a_special_token_that_a_text_spells_as_text(text: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write(tmp_path, "qwen2", random_weights("qwen2"), shards=1)
    letters = {letter: number for number, letter in enumerate("<end>|")}
    tokenizer = Tokenizer(WordLevel(letters | {"?": 9}, unk_token="?"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.add_special_tokens(["<end>", "<|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "unk_token": "?"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    device = torch.device("cpu")
    ours, theirs = judges.load(f"torchtune:{tmp_path}", device)[0], judges.load(str(tmp_path), device)[0]
    ids = torch.tensor([[letters[letter] for letter in text]])
    with torch.no_grad():
        log_p = reference("qwen2", random_weights("qwen2"), ids, causal=True)[0].log_softmax(-1)
    expected = -float(sum(log_p[i, ids[0, i + 1]] for i in range(len(text) - 1)))
    for judged in (ours([text]), theirs([text])):
        assert judged.tokens.tolist() == [len(text) - 1]
        assert judged.nll.item() == pytest.approx(expected, rel=1e-4)


# ---- MAUVE


def test_mauve_is_the_packages_own_figure_over_a_few_clusterings(gpt2: Path) -> None:
    """Features are taken once, and the package would take them again for every clustering: the figures are the same."""
    package = pytest.importorskip("mauve", reason="needs mauve-text: pip install 'edlm-torch[mauve]'")
    real = [" ".join(WORDS.split()[first:]) for first in range(10)]
    samples = [text.replace("rose", "name") for text in real]
    found = judges.mauve(str(gpt2), torch.device("cpu"))([*samples, ""], real)
    texts = {"p_text": real, "q_text": samples, "featurize_model_name": str(gpt2), "max_text_length": PIECE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it calls its model as `transformers` once wanted
        expected = [float(package.compute_mauve(**texts, seed=seed).mauve) for seed in range(5)]
    assert found.mean == pytest.approx(statistics.mean(expected), rel=1e-6)
    assert found.standard_error == pytest.approx(statistics.stdev(expected), rel=1e-6, abs=1e-9)
    assert found.n == 11
    assert judges.mauve(str(gpt2), torch.device("cpu"))(real, real).mean == pytest.approx(1.0)


def test_mauve_gives_the_package_the_states_after_each_text(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package: real text first, and clusterings 0 to 4."""
    calls: list[dict] = []

    def compute_mauve(**arguments: object) -> SimpleNamespace:
        calls.append(arguments)
        return SimpleNamespace(mauve=0.5 + 0.1 * float(str(arguments["seed"])))

    monkeypatch.setitem(sys.modules, "mauve", SimpleNamespace(compute_mauve=compute_mauve))
    likeness = judges.mauve(str(gpt2), torch.device("cpu"))
    found = likeness(["the", "name", "rose"], [WORDS, "old"])
    assert found.mean == pytest.approx(0.7)
    assert found.standard_error == pytest.approx(statistics.stdev([0.5, 0.6, 0.7, 0.8, 0.9]))
    assert found.n == 3
    assert [call["seed"] for call in calls] == [0, 1, 2, 3, 4]
    assert [calls[0][key].shape for key in ("p_features", "q_features")] == [(2, 16), (3, 16)]
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2)
    ids = torch.tensor(tokenizer(WORDS)["input_ids"][:PIECE])[None]
    with torch.no_grad():
        state = transformers.AutoModel.from_pretrained(gpt2).eval()(input_ids=ids).last_hidden_state[0, -1]
    torch.testing.assert_close(torch.from_numpy(calls[0]["p_features"][0]), state)
    with pytest.raises(ValueError, match="needs at least 2 texts"):
        likeness(["a", ""], [WORDS, "old"])


def test_mauve_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ValueError, match=r"mauve = 'gpt2' needs the extra package: pip install 'edlm-torch\[mauve\]'"):
        judges.mauve("gpt2", torch.device("cpu"))


def test_mauve_stands_beside_what_real_text_reaches() -> None:
    def likeness(samples: Sequence[str], real: Sequence[str]) -> Estimate:
        return Estimate(float(len(set(samples) & set(real))), 0.1, len(samples))

    def texts(*words: str) -> sample_figures.Texts:
        return sample_figures.Texts([torch.tensor([ord(letter) for letter in word]) for word in words], list(words))

    samples, real, other = texts("abcde", "abcdf"), texts("abcde", "vwxyz"), texts("abcde", "vwxyz")
    (row,) = [r for r in sample_figures.rows(samples, (real, other), [1], None, 0, 3, likeness) if r.name == "MAUVE"]
    assert (row.samples.mean, row.held_out and row.held_out.mean) == (1.0, 2.0)
