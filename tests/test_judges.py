"""Judged log-probabilities are those of the judge, piece by piece, in the judge's own tokens."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders import tiny_network
from large_folders import random_weights, write
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor

from edlm import checkpoints, decoders, energies, judges, large, vocabulary
from edlm.likelihoods import Estimate
from edlm.recipes import _quality

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
            expected = sum(-energies.ar_log_prob(network, p.unsqueeze(0), abc.mask_id, bos_id).sum() for p in pieces)
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


# ---- A stand-in for transformers


class Counting(torch.nn.Module):
    """Next-token logits that favour the token one higher; an id is a character's code."""

    config = SimpleNamespace(max_position_embeddings=3)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=2.0 * torch.nn.functional.one_hot((input_ids + 1) % 128, 128).double())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    calls: list[dict] = []

    def loader(what):
        def from_pretrained(name: str, **options: object):
            calls.append({"name": name, **options})
            if name == "missing":
                raise OSError("no such model")
            return what

        return SimpleNamespace(from_pretrained=from_pretrained)

    def tokenizer(text: str, add_special_tokens: bool):
        assert not add_special_tokens
        return {"input_ids": list(map(ord, text))}

    stand_in = SimpleNamespace(AutoTokenizer=loader(tokenizer), AutoModelForCausalLM=loader(Counting()))
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    return calls


def test_a_causal_lm_judges_all_but_the_first_token_of_each_piece(asked: list[dict]) -> None:
    judged, what = judges.load("some-model", torch.device("cpu"))
    result = judged(["abc", "abcde", "ac"])
    log_total = torch.logsumexp(torch.cat([torch.tensor([2.0]), torch.zeros(127)]), 0).item()
    # abc: 2 hits. abcde in pieces abc, de: 3 hits. ac: a miss.
    assert result.tokens.tolist() == [2, 3, 1]
    expected = torch.tensor([2 * (log_total - 2), 3 * (log_total - 2), log_total], dtype=torch.float64)
    torch.testing.assert_close(result.nll, expected, atol=1e-5, rtol=1e-5)
    assert what["kind"] == "causal_lm"
    assert all(call["trust_remote_code"] is False for call in asked), "no code of the model's folder is run"
    assert asked[1]["use_safetensors"] is True, "no pickle is read"


def test_a_model_that_cannot_be_loaded_is_named(asked: list[dict]) -> None:
    with pytest.raises(ValueError, match="judge = 'missing' cannot be loaded: no such model"):
        judges.causal_lm("missing", torch.device("cpu"))


def test_without_the_extra_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"judge = 'gpt2' holds no AR model .* pip install 'edlm-torch\[judge\]'"):
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
    assert what == {"path": str(tmp_path), "kind": "torchtune", "context": 5}
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


def test_pieces_are_no_longer_than_those_of_the_published_evaluations(
    asked: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "config", SimpleNamespace(max_position_embeddings=100_000))
    monkeypatch.setattr(judges, "_CONTEXT", 4)
    assert judges.causal_lm("some-model", torch.device("cpu"))(["abcdefgh"]).tokens.tolist() == [6]


# ---- MAUVE, with a stand-in of the interface of mauve-text 0.4.0


def test_mauve_is_the_mean_over_clusterings_with_their_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict] = []

    def compute_mauve(**arguments: object) -> SimpleNamespace:
        calls.append(arguments)
        return SimpleNamespace(mauve=0.5 + 0.1 * float(str(arguments["seed"])))

    monkeypatch.setitem(sys.modules, "mauve", SimpleNamespace(compute_mauve=compute_mauve))
    found = judges.mauve("gpt2-large", torch.device("cpu"))(["a", "b", "c"], ["d", "e"])
    assert found.mean == pytest.approx(0.7)
    assert found.standard_error == pytest.approx(statistics.stdev([0.5, 0.6, 0.7, 0.8, 0.9]))
    assert found.n == 3
    assert [call["seed"] for call in calls] == [0, 1, 2, 3, 4]
    assert {key: calls[0][key] for key in ("p_text", "q_text", "featurize_model_name", "device_id")} == {
        "p_text": ["d", "e"],
        "q_text": ["a", "b", "c"],
        "featurize_model_name": "gpt2-large",
        "device_id": -1,
    }
    with pytest.raises(ValueError, match="needs at least 2 texts"):
        judges.mauve("gpt2-large", torch.device("cpu"))(["a"], ["d", "e"])


def test_mauve_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ValueError, match=r"mauve = 'gpt2' needs the extra package: pip install 'edlm-torch\[mauve\]'"):
        judges.mauve("gpt2", torch.device("cpu"))


def test_mauve_stands_beside_what_real_text_reaches() -> None:
    def likeness(samples: Sequence[str], real: Sequence[str]) -> Estimate:
        return Estimate(float(len(set(samples) & set(real))), 0.1, len(samples))

    def texts(*words: str) -> _quality.Texts:
        return _quality.Texts([torch.tensor([ord(letter) for letter in word]) for word in words], list(words))

    samples, real, other = texts("abcde", "abcdf"), texts("abcde", "vwxyz"), texts("abcde", "vwxyz")
    (row,) = [r for r in _quality.rows(samples, (real, other), [1], None, 0, 3, likeness) if r.name == "MAUVE"]
    assert (row.samples.mean, row.held_out and row.held_out.mean) == (1.0, 2.0)
