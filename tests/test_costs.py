"""What a reading costs in tokens, and what several readings cost together."""

from types import SimpleNamespace

import pytest
import torch

from edlm import costs
from edlm.contracts import Reads


@pytest.mark.parametrize(
    ("reads", "tokens"),
    [
        (Reads(), 3 * 10),
        (Reads(texts=2, candidates=0), 2 * 10),
        (Reads(candidates=2), 3 * 2 * 10),
        (Reads(candidates=0, new=2), 3 * 2 * 4),
        (Reads(candidates=0, in_turn=2), 3 * 2 * 4 * 10),
        (Reads(7, 2, 3, 5), 7 * 10 + 3 * (2 * 10 + 3 * 4 + 5 * 4 * 10)),
        (costs.NOTHING, 0),
    ],
    ids=str,
)
def test_three_candidates_of_five_new_tokens_in_a_text_of_ten_read_so_many(reads: Reads, tokens: int) -> None:
    assert costs.tokens(reads, 3, 5, 10) == tokens


def test_readings_add_up_and_so_do_their_calls() -> None:
    assert costs.together(Reads(1, 2, 3, 4, 5), Reads(10, 20, 30, 40, 50)) == Reads(11, 22, 33, 44, 55)
    assert Reads(texts=0, candidates=0, new=0, in_turn=0, calls=0) == costs.NOTHING


def test_an_energy_says_what_it_reads_or_reads_every_candidate_once() -> None:
    assert costs.of_energy(SimpleNamespace(reads=Reads(3))) == Reads(3)
    assert costs.of_energy(SimpleNamespace()) == Reads(candidates=1)


def test_a_whole_text_is_read_once_in_every_row() -> None:
    assert costs.whole(torch.zeros(2, 5, dtype=torch.int64)).tolist() == [5, 5]
