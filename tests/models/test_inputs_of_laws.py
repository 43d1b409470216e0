"""The changed inputs that `edlm.testing` gives to an energy."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edlm import testing
from edlm.models import drafts as changed
from edlm.process import particles
from edlm.samplers import plans
from edlm.samplers.planning import Seen
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


def test_rows_are_masked_by_shares_that_rise_to_all_and_their_times_are_these() -> None:
    inputs = drafts(VOCAB, MASK, length=200, num_rows=4, num_particles=2, seed=3)
    assert inputs["t"].tolist() == [0.25, 0.5, 0.75, 1.0]
    shares = (inputs["x_t"] == MASK).double().mean(1)
    assert shares.tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.1)
    few = drafts(VOCAB, MASK, length=3, num_rows=50)["x_t"] == MASK
    assert all(few[row, row % 3] for row in range(50)), "every row has a mask"
    tokens = inputs["candidates"][-1].flatten()
    assert set(tokens.tolist()) == set(range(VOCAB)) - {MASK}
    assert not torch.equal(inputs["candidates"], drafts(VOCAB, MASK, 200, 4, 2, seed=4)["candidates"])
    first, second = inputs["candidates"][-1]
    assert not torch.equal(first, second)


def test_one_particle_some_rows_and_a_row_among_others_are_parts_of_the_inputs() -> None:
    inputs, other = drafts(VOCAB, MASK), drafts(VOCAB, MASK, seed=1)
    alone = changed.only_particle(inputs, 2)
    assert torch.equal(alone["candidates"], inputs["candidates"][:, 2:3])
    assert torch.equal(alone["log_p_candidates"], inputs["log_p_candidates"][:, 2:3])
    assert torch.equal(alone["positions"], inputs["positions"])
    rows = changed.only_rows(inputs, [2, 0], MASK)
    masks = (inputs["x_t"][[2, 0]] == MASK).flatten().nonzero().squeeze(-1)
    assert torch.equal(rows["positions"], masks)
    assert torch.equal(rows["t"], inputs["t"][[2, 0]])
    mixed = changed.mix_rows(inputs, other, 1, MASK)
    for key in ("x_t", "candidates", "t", "log_p_candidates"):
        assert torch.equal(mixed[key][1], inputs[key][1])
        assert torch.equal(mixed[key][[0, 2]], other[key][[0, 2]])
    every = (mixed["x_t"] == MASK).flatten().nonzero().squeeze(-1)
    kept = [int(place) for number, place in enumerate(every) if place // 8 == 1 or number % 2 == 0]
    assert mixed["positions"].tolist() == kept


def test_a_selection_is_tried_at_the_ends_of_uniforms_at_equal_weights_and_at_none() -> None:
    given: list[tuple[Tensor, Tensor]] = []

    def choose(log_weights: Tensor, uniforms: Tensor) -> Tensor:
        given.append((log_weights.clone(), uniforms.clone()))
        return particles.sir(log_weights, uniforms)

    testing.check_selection(choose, num_particles=3, num_rows=64)
    (weights, uniforms), (shifted, again) = given[:2]
    assert uniforms.shape == weights.shape == (64, 3)
    extreme = {0: 2.0**-53, 1: 1.0 - 2.0**-53}
    for row in range(64):
        if row % 5 in extreme:
            assert (uniforms[row] == extreme[row % 5]).all()
        if row % 7 == 2:
            assert (weights[row] == 0.0).all()
    finite = weights[weights > -torch.inf]
    assert torch.equal(finite, finite.round())
    assert (float(finite.min()), float(finite.max())) == (0.0, 16.0)
    assert 0.2 < float((weights == -torch.inf).double().mean()) < 0.35
    by = (shifted - weights).nan_to_num(nan=torch.nan)
    for row in range(64):
        assert by[row][~by[row].isnan()].unique().tolist() in ([], [8.0 * (row % 9 - 4)])
    assert torch.equal(uniforms, again)
    assert [len(each) for each, _ in given[2:]] == [1] * 64 + [64]
    assert given[-1][0].shape == (64, 1)


def test_a_rule_is_tried_with_every_number_of_masks_and_with_laws_that_are_equal() -> None:
    given: list[tuple[Seen, Tensor]] = []

    class Recording:
        def choose(self, seen: Seen, masked: Tensor) -> Tensor:
            given.append((seen, masked.clone()))
            return plans.LeftToRight().choose(seen, masked)

    rule: Any = Recording()
    testing.check_rule(rule, length=40, num_rows=10)
    seen, masked = given[0]
    assert masked.shape == (10, 40)
    shares = masked.double().mean(1)
    assert shares.tolist() == pytest.approx([row / 10 for row in range(10)], abs=0.2)
    assert not masked[0].any()
    for row in range(10):
        several = [len(value[row].unique()) > 1 for value in seen]
        assert several == [row % 5 != 0] * 3
    assert float(seen.entropy.max()) > 1.0
    assert float(seen.confidence.max()) > 0.99
    other = given[12][0]  # after the same again, and each row alone
    for value, changed_to in zip(seen, other, strict=True):
        assert torch.equal(value[masked], changed_to[masked])
        assert torch.equal(1.0 - value[~masked], changed_to[~masked])


def test_of_many_rows_that_break_a_law_eight_are_named() -> None:
    with pytest.raises(AssertionError, match=r"; rows 0, 1, 2, 3, 4, 5, 6, 7 break it$"):
        testing._require_rows("a law", torch.zeros(20, dtype=torch.bool))
    with pytest.raises(AssertionError, match=r"^law broken: a law; rows 1, 3 break it$"):
        testing._require_rows("a law", torch.tensor([True, False, True, False]))


def test_a_token_that_is_there_has_probability_one_in_every_candidate() -> None:
    inputs = drafts(VOCAB, MASK)
    there = (inputs["x_t"] != MASK).unsqueeze(1).expand_as(inputs["log_p_candidates"])
    assert there.any()
    assert (inputs["log_p_candidates"][there] == 0.0).all()
    assert (inputs["log_p_candidates"][~there] < 0.0).all()
