"""Samples beside real text: which excerpts are taken, what each figure is of, and who judges how many."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from edlm.data import vocabulary
from edlm.evaluation import card, contrast, quality, samples
from edlm.evaluation.judges import Judgement
from edlm.evaluation.samples import Texts
from edlm.likelihood import unigram
from edlm.likelihood.estimates import Estimate
from edlm.runs import processes
from edlm.runs import settings as schemas

LETTERS = vocabulary.characters("abcdefghijklmnopqrstuvwxyz")
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("size", "number", "first", "second"),
    [
        (20, 2, ["ab", "kl"], ["ef", "op"]),
        (8, 2, ["ab", "ef"], ["cd", "gh"]),
        (8, 9, ["ab", "ef"], ["cd", "gh"]),
        (11, 9, ["ab", "ef"], ["cd", "gh"]),  # the last reaches back, and the one before it has no partner
        (24, 3, ["ab", "ij", "qr"], ["ef", "mn", "uv"]),
    ],
)
def test_real_text_is_taken_in_turns_evenly_spread(size: int, number: int, first: list[str], second: list[str]) -> None:
    found = samples.held_out([ALPHABET[:size]], LETTERS, 2, number)
    assert found is not None
    assert [each.spelled for each in found] == [first, second]
    assert [[LETTERS.decode(ids) for ids in each.tokens] for each in found] == [first, second]


def test_fewer_than_four_excerpts_are_no_real_text() -> None:
    assert samples.held_out([ALPHABET[:7]], LETTERS, 2, 2) is None
    drawn = Texts([torch.tensor([0, 1]), torch.tensor([0, 1, 2])], ["ab", "abc"])
    wide = card.real_text(drawn, {"test": [ALPHABET], "other": ["zz" * 99]}, LETTERS)
    assert wide is not None
    assert [each.spelled for each in wide] == [["abc", "mno"], ["ghi", "stu"]], (
        "as long as the longest, of the first set"
    )
    assert card.real_text(None, {"test": [ALPHABET]}, LETTERS) is None
    assert card.real_text(drawn, {}, LETTERS) is None


def texts(*rows: str) -> Texts:
    return Texts([LETTERS.encode(row) for row in rows], list(rows))


def test_each_figure_is_of_its_own_texts() -> None:
    """The divergence is from the first set of real text, and its floor that of the second."""
    own, real, other = (
        texts("abcab", "bbbba", "cabca"),
        texts("aabbc", "ccbba", "abcde"),
        texts("edcba", "aabba", "ccdda"),
    )

    def judge(spelled: Any) -> Judgement:
        nll = torch.tensor([float(ord(each[0])) for each in spelled]).double()
        return Judgement(nll, torch.tensor([len(each) for each in spelled]))

    def likeness(some: Any, beside: Any) -> Estimate:
        return Estimate(float(ord(some[0][0])), float(ord(beside[0][0])), 3)

    def spread(statistic: quality.Statistic, *sets: Texts) -> Estimate:
        return quality.bootstrap(statistic, [len(each.tokens) for each in sets], 5, 9)

    def both(build: Any) -> tuple[Estimate, Estimate]:
        return build(own), build(other)

    found = samples.rows(own, (real, other), [1, 2], judge, 5, 9, likeness)
    expected = {
        samples.ENTROPY: both(lambda each: spread(quality.mean(quality.unigram_entropy(each.tokens)), each)),
        "repetition-4": both(lambda each: spread(quality.mean(quality.repetition(each.tokens, 4)), each)),
    }
    for n in (1, 2):
        grams = {id(each): quality.grams(each.tokens, n) for each in (own, other)}
        expected[f"distinct-{n}"] = both(
            lambda each, grams=grams: quality.half_sampling(quality.distinct(grams[id(each)]), 3, 5, 9)
        )
    for n in (1, 2):
        expected[f"{n}-gram divergence, nats"] = both(
            lambda each, n=n: spread(quality.divergence(quality.grams([*each.tokens, *real.tokens], n)), each, real)
        )
    expected["MAUVE"] = Estimate(97.0, 97.0, 3), Estimate(101.0, 97.0, 3)
    tokens = torch.tensor([5, 5, 5])
    expected[samples.PERPLEXITY] = both(lambda each: spread(quality.perplexity(judge(each.spelled).nll, tokens), each))
    assert {row.name: (row.samples, row.held_out) for row in found} == expected
    alone = samples.rows(own, None, [1], None, 5, 9, likeness)
    assert [(row.name, row.held_out) for row in alone] == [
        (name, None) for name in (samples.ENTROPY, "repetition-4", "distinct-1")
    ]


@pytest.mark.parametrize(("world", "sizes"), [(1, [7]), (2, [4, 3]), (3, [3, 3, 1]), (9, [1] * 7)])
def test_processes_share_what_is_judged_in_its_order(
    world: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def judge(spelled: Any) -> Judgement:
        seen.append(len(spelled))
        return Judgement(torch.tensor([float(each) for each in spelled]), torch.ones(len(spelled)))

    monkeypatch.setattr(processes, "world", lambda: world)
    monkeypatch.setattr(processes, "spread", lambda work, items: [work(item) for item in items])
    found = samples._shared(judge)(list("0123456"))
    assert (seen, found.nll.tolist(), len(found.tokens)) == (sizes, [float(n) for n in range(7)], 7)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("said", [None, "warning: beware"])
def test_the_first_process_warns_of_an_energy_and_only_if_something_is_wrong(
    said: str | None, is_first: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contrast, "warning", lambda per_row: said)
    monkeypatch.setattr(processes, "is_first", lambda: is_first)
    contrast.warn({}, 7)
    assert capsys.readouterr() == ("", "step 7: warning: beware\n" if said and is_first else "")


def test_single_tokens_are_counted_in_the_training_text_up_to_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Corpus:
        def documents(self, split: str) -> Any:
            assert split == "train"
            for text in ("aab", "c", "dddd"):
                read.append(text)
                yield text

    given: dict[str, Any] = {"split": "test", "corpus": {"a": 1}}
    monkeypatch.setattr(schemas, "build", lambda *_: Corpus())
    monkeypatch.setattr(card, "_COUNTED", 4)

    def law(text: str) -> Tensor:
        return unigram.log_law(LETTERS.encode(text), LETTERS.size, LETTERS.mask_id)

    found = card.single_tokens(given, LETTERS)
    assert found is not None
    assert (torch.equal(found, law("aabc")), read) == (True, ["aab", "c"])
    monkeypatch.setattr(schemas, "build", lambda *_: SimpleNamespace(train=["ab", "b"]))
    found = card.single_tokens(given, LETTERS)
    assert found is not None
    assert torch.equal(found, law("abb"))
    monkeypatch.setattr(schemas, "build", lambda *_: SimpleNamespace(train=["é"]))
    assert card.single_tokens(given, LETTERS) is None
    assert card.single_tokens({**given, "split": None}, LETTERS) is None
