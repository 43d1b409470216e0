"""A network that is read in order: what its new tokens see, and that one layer of it is as good as a pass for each."""

from functools import partial

import pytest
import torch
from builders import tiny_network
from hypothesis import given
from hypothesis import strategies as st
from revealing import LENGTH, MASK, Step, steps

from edlm.nn import networks

close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-11)


def network(num_layers: int = 2, seed: int = 0, **changes: object) -> networks.Transformer:
    return tiny_network(seed, num_layers=num_layers, **changes)


@given(steps, st.sampled_from([{}, {"conditioning_size": 0}, {"norm_bias": True}, {"qk_norm": True}]))
def test_a_pass_that_keeps_its_context_gives_the_states_of_one_that_does_not(
    step: Step, changes: dict[str, object]
) -> None:
    net, sigma = network(**changes), torch.linspace(0.1, 1.0, len(step.x_t), dtype=torch.float64)
    for told in (None, sigma):
        for positions in (None, step.positions):
            states, context = net(step.x_t, told, positions, keep=True)
            assert torch.equal(states, net(step.x_t, told, positions))
            assert context.shape == (len(step.x_t), 2, 2, 2, LENGTH, 8)


@given(steps, st.sampled_from([{}, {"conditioning_size": 0}, {"qk_norm": True}]), st.booleans())
def test_one_layer_read_in_order_is_as_many_passes(step: Step, changes: dict[str, object], told: bool) -> None:
    """One layer reads tokens alone and no states, so nothing of x_t is out of date: equal to a pass for each token."""
    net = network(1, **changes)
    sigma = torch.linspace(0.1, 1.0, len(step.x_t), dtype=torch.float64) if told else None
    states = net.in_order(step.tokens(step.where), step.where, MASK, net(step.x_t, sigma, keep=True)[1], sigma)
    for row, places in enumerate(step.where.tolist()):
        for candidate in range(step.candidates.shape[1]):
            text = step.x_t[row].clone()
            for number, place in enumerate(p for p in places if p < LENGTH):
                if number:
                    alone = net(text.unsqueeze(0), None if sigma is None else sigma[row : row + 1])[0, place]
                    close(states[row, candidate, number - 1], alone)
                text[place] = step.candidates[row, candidate, place]


@given(steps, st.integers(0, 2**62), st.data())
def test_a_token_changes_what_comes_after_it_and_nothing_else(step: Step, seed: int, data: st.DataObject) -> None:
    """Not the law of its own place, not those before it, no other candidate and no other row."""
    net = network(2, seed)
    context = net(step.x_t, keep=True)[1]
    tokens = step.tokens(step.where)
    row, candidate = (data.draw(st.integers(0, size - 1)) for size in tokens.shape[:2])
    number = data.draw(st.integers(0, int(step.new[row].sum()) - 1))
    changed = tokens.clone()
    changed[row, candidate, number] = (changed[row, candidate, number] + 1) % MASK
    before, after = (net.in_order(each, step.where, MASK, context) for each in (tokens, changed))
    moved = (before - after).abs().amax(-1) > 1e-12
    expected = torch.zeros_like(moved)
    expected[row, candidate, number : int(step.new[row].sum()) - 1] = True
    assert not (moved & ~expected & (step.where[:, 1:] < LENGTH).unsqueeze(1)).any()
    assert (moved | ~expected).all()


@pytest.mark.parametrize("count", [3, 4, 5, 9])
def test_candidates_are_read_together_as_each_alone(count: int) -> None:
    """In one group that shares an attention, in a group that is not full, and in several."""
    step, net = Step(1, 3, count), network()
    context, tokens = net(step.x_t, keep=True)[1], step.tokens(step.where)
    together = net.in_order(tokens, step.where, MASK, context)
    for candidate in range(count):
        alone = net.in_order(tokens[:, candidate : candidate + 1], step.where, MASK, context)
        close(together[:, candidate : candidate + 1], alone)


@given(steps, st.integers(1, 3))
def test_rows_padded_with_no_place_change_nothing(step: Step, extra: int) -> None:
    net = network()
    context = net(step.x_t, keep=True)[1]
    wider = torch.cat([step.where, step.where.new_full((len(step.where), extra), LENGTH)], dim=1)
    narrow, wide = (net.in_order(step.tokens(each), each, MASK, context) for each in (step.where, wider))
    close(wide[:, :, : narrow.shape[2]], narrow)


@given(steps)
def test_places_are_ascending_and_filled_up_with_none(step: Step) -> None:
    for row, places in enumerate(step.where.tolist()):
        there = step.new[row].nonzero().squeeze(-1).tolist()
        assert places == there + [LENGTH] * (step.most - len(there))
