"""The changed inputs that `edlm.testing` gives to an energy."""

import torch

from edlm.models import drafts as changed
from edlm.testing import drafts

VOCAB, MASK = 6, 5


def test_half_is_filled_in_and_the_rest_are_masks_of_no_probability() -> None:
    inputs = drafts(VOCAB, MASK)
    before, positions = inputs.clone(), inputs["positions"]
    half = changed.fill_half(inputs, MASK)
    assert torch.equal(half["positions"], positions[::2])
    x_t = inputs["x_t"]
    filled = torch.zeros(x_t.numel(), dtype=torch.bool).index_fill(0, positions[::2], True).view_as(x_t)
    masked = (x_t == MASK) & ~filled
    assert filled.any()
    assert masked.any()
    for row in range(len(masked)):
        assert (half["candidates"][row][:, masked[row]] == MASK).all()
        assert (half["log_p_candidates"][row][:, masked[row]] == 0.0).all()
        kept = ~masked[row]
        assert torch.equal(half["candidates"][row][:, kept], before["candidates"][row][:, kept])
        assert torch.equal(half["log_p_candidates"][row][:, kept], before["log_p_candidates"][row][:, kept])
    assert bool((inputs == before).all())


def test_padding_stands_behind_all_positions() -> None:
    inputs = drafts(VOCAB, MASK)
    padded = changed.pad_positions(inputs)["positions"]
    assert torch.equal(padded[:-3], inputs["positions"])
    assert padded[-3:].tolist() == [inputs["x_t"].numel()] * 3
