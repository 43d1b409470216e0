"""Judged log-probabilities are those of the judge, piece by piece, in the judge's own tokens."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders import tiny_network
from torch import Tensor

from edlm import checkpoints, energies, judges, vocabulary

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
    with pytest.raises(ValueError, match=r"judge = 'gpt2' needs the extra package: pip install 'edlm-torch\[judge\]'"):
        judges.load("gpt2", torch.device("cpu"))
