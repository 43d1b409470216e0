"""The law of single tokens: what is counted, and that it is a law."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edlm.likelihood import unigram


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(0, 5))
def test_it_is_a_law_of_all_tokens_but_the_mask(seen: list[int], mask_id: int) -> None:
    law = unigram.log_law(torch.tensor(seen, dtype=torch.int64), 6, mask_id).exp()
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-12)
    assert [number for number, chance in enumerate(law.tolist()) if chance == 0.0] == [mask_id]


def test_each_token_counts_once_more_than_it_occurs() -> None:
    law = unigram.log_law(torch.tensor([0, 0, 2, 0]), 4, 3).exp()
    torch.testing.assert_close(law, torch.tensor([4.0, 1.0, 2.0, 0.0], dtype=torch.float64) / 7.0, rtol=0.0, atol=1e-15)
