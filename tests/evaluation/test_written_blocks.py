"""What a model is asked for block by block: how much is given, how much is wanted, and with which noise."""

import zlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import tiny_denoiser
from torch import Tensor

from edlm.data import vocabulary
from edlm.evaluation import continuations
from edlm.evaluation.continuations import Reading, Wanted
from edlm.samplers import autoregressive, pipelines

LETTERS = vocabulary.characters("abcd", specials=["pad"])
LENGTH = 8


def reading(kind: str = "subs", length: int = LENGTH, **more: Any) -> Reading:
    """A model of texts of eight tokens, or of so many."""
    model: Any = SimpleNamespace(
        vocabulary=LETTERS,
        kind=kind,
        bos_id=None,
        denoiser=tiny_denoiser(vocab_size=6, mask_id=5, max_length=length),
        autoregressive=SimpleNamespace(max_length=length),
        network=torch.nn.Linear(1, 1),
    )
    return Reading(model, **more)


@pytest.mark.parametrize(
    ("most", "block_length", "counts", "given"),
    [
        (5, 3, [3, 2], [4, 6]),  # the context is cut on its left where it and the block are too long
        (6, 3, [3, 3], [4, 5]),
        (2, 3, [2], [4]),
        (9, 32, [7, 2], [1, 6]),  # a block leaves room for a token that is given
        (3, 1, [1, 1, 1], [4, 5, 6]),
    ],
)
def test_blocks_are_as_long_as_what_is_still_wanted(
    most: int, block_length: int, counts: list[int], given: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int, int]] = []

    def block(read: Reading, before: Tensor, count: int, wanted: Wanted, seed: int, row: int) -> Tensor:
        asked.append((len(before), count, seed, row))
        return torch.full((count,), len(asked) - 1)

    monkeypatch.setattr(continuations, "_block", block)
    found = continuations.complete(reading(block_length=block_length), "abcd", Wanted(most=most), repetition=2)
    assert found == "".join(letter * count for letter, count in zip("abcd", counts, strict=False))
    key = continuations._key(reading(), LETTERS.encode("abcd"))
    expected = [(each, count, key, 2 * 65536 + n) for n, (each, count) in enumerate(zip(given, counts, strict=True))]
    assert asked == expected


def test_a_pad_ends_a_text_and_a_stop_the_first_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuations, "_block", lambda *_: torch.tensor([0, 1, 2, 4, 3]))
    read = reading(block_length=5)
    assert continuations.complete(read, "a", Wanted(most=50)) == "abc"
    for stops, text in (((), "abc"), (("c", "b"), "a"), (("",), "abc"), (("d",), "abc"), (("bc",), "a")):
        assert continuations.complete(read, "a", Wanted(stops, 50)) == text


def test_a_key_is_of_the_tokens_and_of_the_last_32_bits_of_the_seed() -> None:
    tokens = torch.tensor([1, 2, 3])
    crc = zlib.crc32(tokens.numpy().tobytes())
    assert continuations._key(reading(seed=7), tokens) == (crc // 2) * 2**32 + 7
    assert continuations._key(reading(seed=2**32 + 7), tokens) == (crc // 2) * 2**32 + 7


@pytest.mark.parametrize(("heat", "used"), [(0.5, 0.5), (0.0, 1e-30)])
def test_a_block_is_drawn_as_it_is_wanted(heat: float, used: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tokens of what is drawn are the block."""
    calls: list[Any] = []
    drawn = torch.arange(8).unsqueeze(0)
    monkeypatch.setattr(pipelines, "pipeline", lambda sampler, length: (sampler.proposal, length))
    monkeypatch.setattr(pipelines, "sample", lambda *given, **how: calls.append((given, how)) or {"tokens": drawn})
    monkeypatch.setattr(
        autoregressive, "sample", lambda *given, **how: calls.append((given, how)) or SimpleNamespace(tokens=drawn)
    )
    given = torch.tensor([3, 1, 2])
    how = {"seed": 5, "prompt": given, "first_row": 9}
    by_denoiser = continuations._block(reading(), given, 4, Wanted(temperature=heat, nucleus=0.75), 5, 9)
    ar = reading("ar")
    by_ar = continuations._block(ar, given, 4, Wanted(temperature=heat), 5, 9)
    assert by_denoiser.tolist() == by_ar.tolist() == [4, 5, 6, 7]
    (((proposal, length), number), first), (asked, second) = calls
    assert (tuple(proposal)[:2], length, number, first) == ((used, 0.75), 7, 1, how)
    assert asked == (ar.network, 1, 7, LETTERS.mask_id, None)
    assert second == {**how, "temperature": used}


def test_a_whole_text_is_cut_with_the_token_before_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(read: Reading, excerpts: Any, keys: Any, decoded: bool) -> list[continuations.Answer]:
        assert [key.tolist() for key in keys] == [each.tokens.tolist() for each in excerpts]
        assert decoded is False
        seen.extend((len(each.tokens), each.given) for each in excerpts)
        errors = (0.3, 0.4, 0.0)
        return [continuations.Answer(-len(each.scored), errors[n], n == 0) for n, each in enumerate(excerpts)]

    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(continuations, "_answers", answers)
    found = continuations.score_whole(reading(), "abcd" * 3)
    assert seen == [(8, 0), (8, 4)]
    assert found == (-12.0, pytest.approx(0.5), False)
    seen.clear()
    assert continuations.score_whole(reading(length=1), "abc").log_prob == -3.0
    assert seen == [(1, 0)] * 3, "a model of one token is given none before it"
