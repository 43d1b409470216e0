"""The cache of finished blocks: states, tokens and costs beside those of passes over the whole text."""

from functools import partial

import pytest
import torch
from block_networks import MASK, denoiser, network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import edlm
from edlm import contracts
from edlm.declaration import stage
from edlm.models import energies
from edlm.samplers import caching, corrections, pipelines, planning, plans
from edlm.samplers.planning import Plan
from edlm.samplers.rounds import UntilEss
from edlm.samplers.sampler import Proposal, Sampler, can_cache

close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-11)
LENGTH = 11
MODELS = {size: denoiser(size, max_length=LENGTH) for size in (1, 2, 3, 4)}
CHAIN, IN_ORDER = corrections.ChainRule(), {"correction": corrections.ChainRule(), "selection": "speculative"}


def of_transitions(x: Tensor, x_t: Tensor) -> Tensor:
    """An energy of x_s that reads the whole of it."""
    slope = torch.arange(1.0, x.shape[-1] + 1).double()
    return torch.sin(x.double() @ slope) + 0.1 * x_t.double().sum(-1, keepdim=True)


def own_energy() -> contracts.Energy:
    return energies.declare(stage("candidates, x_t -> energy", of_transitions), ("transition",))


KINDS = {
    "plain": {},
    "nucleus": {"proposal": Proposal(0.8, 0.9)},
    "chain rule": {"correction": CHAIN, "candidates": 3},
    "chain rule in a window": {"correction": CHAIN, "candidates": 3, "window": (0.3, 0.7)},
    "imh": {"correction": CHAIN, "candidates": 3, "selection": "imh"},
    "until ess": {"correction": CHAIN, "candidates": UntilEss(1.7, 4)},
    "in order": IN_ORDER,
    "in order in a window": {**IN_ORDER, "window": (0.5, 1.0)},
    "energy": {"correction": corrections.OfEnergy(own_energy()), "candidates": 3},
    "energy in a window": {"correction": corrections.OfEnergy(own_energy()), "candidates": 3, "window": (0.6, 1.0)},
}
WITHIN = [
    plans.Grid(2),
    plans.Grid(4),
    plans.first_hitting(),
    plans.TokensPerPass(2),
    plans.LeftToRight(2),
    plans.Ranked(2),
    plans.EntropyBound(0.5),
]


def both(sampler: Sampler, length: int = LENGTH) -> list[pipelines.Pipeline]:
    found = [pipelines.pipeline(sampler, length, cached) for cached in (True, False)]
    assert [each.kernel.cache is not None for each in found] == [True, False]
    return found


def prompts(b: int, length: int, seed: int) -> Tensor:
    """Rows with nothing given, a prefix, a suffix, holes, whole blocks in the middle, and everything."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, (b, length), generator=generator)
    given = torch.rand(b, length, generator=generator) < torch.rand(b, 1, generator=generator)
    place = torch.arange(length)
    given[0], given[1], given[2] = False, place < seed % length, place >= seed % length
    given[3] = (place > 1) & (place < length - 3)
    return torch.where(given, tokens, MASK)


# ---- States


@given(st.sampled_from([1, 2, 3, 4]), st.integers(1, LENGTH), st.data())
@settings(max_examples=60, deadline=None)
def test_rows_after_a_cache_have_the_states_of_the_whole_text(size: int, length: int, data: st.DataObject):
    """Rows of a batch anywhere, each with as much stored as stands before it."""
    net, b = MODELS[size].network, 3
    blocks = -(-length // size)
    first = [data.draw(st.integers(0, blocks - 1)) for _ in range(b)]
    count = data.draw(st.integers(1, blocks))
    text = torch.randint(4, (b, length), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    states, context = net(text, keep=True)
    start = torch.tensor(first).unsqueeze(1) * size
    places = start + torch.arange(count * size)
    places = torch.where(places < length, places, length)
    cache = torch.full_like(context, 1e3)  # what is not stored must not matter
    for row in range(b):
        cache[row, ..., : int(start[row]), :] = context[row, ..., : int(start[row]), :]
    found, own = net.after(text, places, cache[..., : int(start.max()), :])
    for row in range(b):
        n = int((places[row] < length).sum())
        part = slice(int(start[row]), int(start[row]) + n)
        close(found[row, :n], states[row, part])
        close(own[row, ..., :n, :], context[row, ..., part, :])


def test_padding_that_is_never_read_is_not_read_from_a_cache_either():
    net = network(2, max_length=6, pad_id=2)
    text = torch.tensor([[0, 2, 1, 1, MASK, 2]])
    states, context = net(text, keep=True)
    found, _ = net.after(text, torch.tensor([[4, 5]]), context[..., :4, :])
    close(found, states[:, 4:])
    other = text.clone()
    assert torch.equal(net.after(other, torch.tensor([[4, 5]]), context[..., :4, :])[0], found)


# ---- Tokens


EVERY_OTHER = [
    pytest.param(kind, within, id=f"{kind}-{within}", marks=[pytest.mark.slow] if (i + j) % 2 else [])
    for i, kind in enumerate(KINDS)
    for j, within in enumerate(WITHIN)
]


@pytest.mark.parametrize(("kind", "within"), EVERY_OTHER)
def test_the_tokens_are_those_of_whole_passes(kind: str, within: Plan):
    if "window" in kind and not planning.is_drawn(within):
        within = plans.TokensPerPass(3)  # of what is chosen the time is that of the whole text
    cached, whole = both(Sampler(MODELS[3], plans.blocks(3, within), **KINDS[kind]))
    ours, theirs = (edlm.sample(each, 5, seed=4, prompt=prompts(5, LENGTH, 5)) for each in (cached, whole))
    assert torch.equal(ours["tokens"], theirs["tokens"])
    for key in ("t", "revealed", "corrected", "particles", "rounds", "calls", "energy_tokens"):
        assert torch.equal(ours["info", key], theirs["info", key]), key


@given(st.integers(0, 2**40), st.sampled_from([1, 2, 3, 4]), st.sampled_from(WITHIN), st.integers(1, LENGTH))
@settings(max_examples=30, deadline=None)
def test_the_tokens_are_those_of_whole_passes_whatever_is_given(seed: int, size: int, within: Plan, length: int):
    if size >= length:
        length = size + 1
    cached, whole = both(Sampler(MODELS[size], plans.blocks(size, within)), length)
    prompt = prompts(7, length, seed % 1000)
    ours, theirs = (edlm.sample(each, 7, seed=seed, prompt=prompt)["tokens"] for each in (cached, whole))
    assert torch.equal(ours, theirs)


def test_a_text_does_not_depend_on_its_batch():
    sampler = Sampler(MODELS[3], plans.blocks(3, plans.Grid(3)), correction=CHAIN, candidates=2)
    pipeline, prompt = pipelines.pipeline(sampler, LENGTH), prompts(5, LENGTH, 4)
    together = edlm.sample(pipeline, 5, seed=1, prompt=prompt)
    for row in range(5):
        alone = edlm.sample(pipeline, 1, seed=1, prompt=prompt[row], first_row=row)
        assert torch.equal(alone["tokens"][0], together["tokens"][row])
        passes = alone["info", "t"].shape[1]
        for key in ("denoiser_tokens", "calls", "energy_tokens"):
            assert torch.equal(alone["info", key][0], together["info", key][row, :passes])


def test_plans_of_finer_blocks_than_the_networks_are_cached_too():
    cached, whole = both(Sampler(MODELS[4], plans.blocks(2, plans.first_hitting())))
    assert torch.equal(*(edlm.sample(each, 8, seed=2)["tokens"] for each in (cached, whole)))


def test_a_longer_text_is_written_window_by_window_with_the_same_tokens():
    cached, whole = both(Sampler(MODELS[2], plans.blocks(2)), 6)
    assert torch.equal(*(edlm.extend(each, 15, 4, 3, seed=2)["tokens"] for each in (cached, whole)))


# ---- Costs


def test_a_pass_reads_its_block_and_the_first_one_of_a_block_the_block_before_it_too():
    out = edlm.sample(pipelines.pipeline(Sampler(MODELS[4], plans.blocks(4)), LENGTH), 2, seed=0)["info"]
    assert out["denoiser_tokens"].tolist() == [[4, 4, 4, 4, 8, 4, 4, 4, 7, 3, 3]] * 2
    assert out["calls"].sum(1).tolist() == [LENGTH] * 2
    torch.testing.assert_close(out["denoiser_passes"], torch.full((2,), 49 / LENGTH, dtype=torch.float64))


def test_a_prompt_is_read_once_in_the_first_pass():
    pipeline = pipelines.pipeline(Sampler(MODELS[2], plans.blocks(2)), LENGTH)
    prompt = torch.zeros(7, dtype=torch.int64)
    assert edlm.sample(pipeline, 1, prompt=prompt)["info", "denoiser_tokens"].tolist() == [[8, 4, 2, 3]]


def test_what_is_counted_is_what_is_read(monkeypatch: pytest.MonkeyPatch):
    """Of one text alone; in a batch another row's first pass is never paid for, unless shapes must agree."""
    read: list[tuple[int, int]] = []
    net = MODELS[2].network
    after = type(net).after

    def counting(self: object, text: Tensor, places: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        read.append((places.numel(), len(places)))
        return after(self, text, places, *rest)

    monkeypatch.setattr(type(net), "after", counting)
    pipeline = pipelines.pipeline(Sampler(MODELS[2], plans.blocks(2, plans.Grid(2))), 10)
    alone = edlm.sample(pipeline, 1, seed=3)["info", "denoiser_tokens"]
    assert int(alone.sum()) == sum(tokens for tokens, _ in read)
    assert len(read) == alone.shape[1]
    read.clear()
    together = edlm.sample(pipeline, 16, seed=3)["info", "denoiser_tokens"]
    assert int(together.sum()) == sum(tokens for tokens, _ in read)
    assert len(read) > together.shape[1]  # rows that begin a block by themselves


def test_the_head_runs_on_what_is_new_and_in_its_block_alone(monkeypatch: pytest.MonkeyPatch):
    rows: list[int] = []
    model = MODELS[4]
    logits = type(model).logits

    def counting(self: object, hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(type(model), "logits", counting)
    edlm.sample(pipelines.pipeline(Sampler(model, plans.blocks(4)), 8), 1, seed=3)
    assert rows == [1] * 8
    rows.clear()
    edlm.sample(pipelines.pipeline(Sampler(model, plans.blocks(4, plans.Ranked(1))), 8), 1, seed=3)
    assert max(rows) == 4


# ---- Where it is used


def test_it_is_used_where_the_denoiser_has_blocks_and_is_read_by_itself():
    assert can_cache(Sampler(MODELS[2], plans.blocks(2)))
    assert not can_cache(Sampler(denoiser(None), plans.blocks(2)))
    assert not can_cache(Sampler(denoiser(4), plans.blocks(4)))  # one block is the whole text
    told = type(MODELS[2])(MODELS[2].network, MASK, edlm.schedules.log_linear(1e-3))
    assert not can_cache(Sampler(told, plans.blocks(2)))


def test_the_printed_algorithm_says_what_is_kept():
    shown = repr(pipelines.pipeline(Sampler(MODELS[2], plans.blocks(2)), 4))
    assert "denoise  x_t, positions, finished, block, cache -> hidden, cache" in shown


def test_accelerated_pipelines_read_whole_texts():
    pipeline = pipelines.pipeline(Sampler(MODELS[2], plans.blocks(2)), 4)
    assert edlm.accelerate(pipeline, "eager").kernel.cache is not None
    assert caching.can(MODELS[2])


def test_drafts_of_whole_texts_are_refused():
    energy = energies.declare(edlm.energies.zero(), ("draft",))
    with pytest.raises(ValueError, match="give it an energy of transitions"):
        Sampler(MODELS[2], plans.blocks(2), correction=corrections.OfEnergy(energy), candidates=2)
