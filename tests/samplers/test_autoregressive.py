"""Autoregressive sampling against exact laws: what is kept of the past, what is drawn, and what may not matter."""

from functools import partial

import builders
import pytest
import torch
from builders import tiny_network
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    Lookup,
    OracleDenoiser,
    all_sequences,
    index_of,
    proposal_log_prob,
    random_marginals,
    sir,
    total_variation,
)
from scipy import integrate, stats
from strategies import masks, seeds, unit_floats
from tensordict import TensorDict
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import edlm
from edlm import contracts
from edlm.models import autoregressive as causal
from edlm.models import energies
from edlm.nn import attention
from edlm.nn.networks import Transformer
from edlm.process import schedules
from edlm.samplers import autoregressive

SYMBOLS, LENGTH = 3, 4
MASK, BOS = SYMBOLS, SYMBOLS + 1
AR = {"vocab_size": SYMBOLS + 2, "max_length": LENGTH, "conditioning_size": 0, "causal": True, "num_layers": 2}
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-11)
fronts = pytest.mark.parametrize("bos_id", [BOS, MASK, None])


def ar_network(seed: int = 0, **changes: object) -> Transformer:
    return tiny_network(seed, **(AR | changes))


NETWORK = ar_network()
SMALL = ar_network(1, vocab_size=SYMBOLS + 1)  # no bos of its own, so that its texts can be enumerated
with torch.no_grad():
    SMALL.head.weight.mul_(0.5)  # every text likely enough to be counted
    SMALL.head.bias.mul_(0.5)
SEQUENCES = all_sequences(SYMBOLS, LENGTH)


@torch.no_grad()
def log_prob(tokens: Tensor, bos_id: int | None, network: Transformer = NETWORK, temperature: float = 1.0) -> Tensor:
    """`log p_AR(x_i | x_<i)` from one pass over whole texts: (n, l), zero at a first token that is given."""
    read = tokens[:, :-1] if bos_id is None else torch.cat([torch.full_like(tokens[:, :1], bos_id), tokens[:, :-1]], 1)
    logits = network.head(network(read)) / temperature
    logits[..., MASK] = -torch.inf
    wanted = tokens[:, 1:] if bos_id is None else tokens
    found = logits.log_softmax(-1).gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
    return torch.nn.functional.pad(found, (tokens.shape[1] - wanted.shape[1], 0))


# ---- What is kept of the past


@torch.no_grad()
@given(seed=st.integers(0, 50), b=st.integers(1, 3), length=st.integers(1, 8), room=st.integers(0, 3))
def test_a_step_is_the_forward_pass_at_that_position(seed, b, length, room):
    network = ar_network(seed % 5, num_heads=[1, 2, 4][seed % 3], max_length=12)
    tokens = torch.randint(SYMBOLS + 2, (b, length), generator=torch.Generator().manual_seed(seed))
    whole, past = network(tokens), network.empty_cache(b, length + room)
    for i in range(length):
        hidden, own = network.step(tokens[:, i], torch.tensor(i), past)
        close(hidden, whole[:, i])
        past = attention.Cache(*(kept.clone() for kept in past))
        past.keys[:, :, :, i], past.values[:, :, :, i] = own
        past.keys[:, :, :, i + 1 :] = past.values[:, :, :, i + 1 :] = 1e6  # what is not read yet cannot matter


def test_a_step_writes_into_nothing():
    past = NETWORK.empty_cache(2, 3)
    before = [kept.clone() for kept in past]
    NETWORK.step(torch.tensor([0, 1]), torch.tensor(1), past)
    assert all(torch.equal(kept, old) for kept, old in zip(past, before, strict=True))


def test_half_precision_steps_are_the_forward_pass_too():
    network = ar_network().bfloat16()
    tokens = SEQUENCES[::5]
    whole, past = network(tokens), network.empty_cache(*tokens.shape)
    for i in range(LENGTH):
        hidden, own = network.step(tokens[:, i], torch.tensor(i), past)
        torch.testing.assert_close(hidden, whole[:, i], rtol=0.05, atol=0.05)
        past.keys[:, :, :, i], past.values[:, :, :, i] = own


# ---- What is drawn


@fronts
@given(data=st.data(), temperature=st.sampled_from([1.0, 0.5, 2.0]))
def test_every_token_is_where_its_uniform_falls_in_the_law_given_all_before(bos_id, data, temperature):
    """The uncached law decides: the drawn token's interval of the running sum holds the uniform, for any masks."""
    b = data.draw(st.integers(1, 3))
    given_ = torch.tensor(data.draw(st.lists(st.integers(0, SYMBOLS - 1), min_size=b * LENGTH, max_size=b * LENGTH)))
    masked = data.draw(masks(b, LENGTH)).clone()
    masked[:, 0] &= bos_id is not None
    tokens = torch.where(masked, MASK, given_.view(b, LENGTH))
    u = torch.tensor(data.draw(st.lists(unit_floats(), min_size=b * LENGTH, max_size=b * LENGTH))).double()
    u = u.view(b, LENGTH)
    drawn = autoregressive.complete(NETWORK, tokens, u, MASK, bos_id, temperature)
    assert torch.equal(drawn.tokens[~masked], tokens[~masked])
    assert not (drawn.tokens == MASK).any()
    expected = torch.where(masked, log_prob(drawn.tokens, bos_id, temperature=temperature), 0.0)
    close(drawn.log_prob, expected, atol=1e-9)
    below = torch.zeros_like(u)
    symbols = torch.tensor([0, 1, 2, 4])  # in the order of ids, the mask left out
    here = torch.eye(LENGTH, dtype=torch.bool)
    other = torch.where(here[:, None], symbols[:, None, None, None], drawn.tokens)  # (symbols, place, b, l)
    p = log_prob(other.flatten(0, 2), bos_id, temperature=temperature).exp().view(other.shape)
    for symbol, chance in zip(symbols.tolist(), p.diagonal(dim1=1, dim2=3), strict=True):
        below += torch.where(symbol < drawn.tokens, chance, 0.0)
    inside = (below <= u + 1e-9) & (u <= below + expected.exp() + 1e-9)
    assert inside[masked].all()


@pytest.mark.parametrize("changes", [{"conditioning_size": 8}, {"dropout": 0.5}, {"num_heads": 4, "num_layers": 3}])
def test_any_causal_network_is_sampled_as_in_eval_mode(changes):
    network = ar_network(2, **changes).train()
    drawn = autoregressive.sample(network, 5, LENGTH, MASK, BOS, seed=4)
    close(drawn.log_prob, log_prob(drawn.tokens, BOS, network.eval()), atol=1e-9)


def test_the_work_ends_with_the_last_mask_and_the_head_runs_where_a_token_is_drawn(monkeypatch):
    steps, draws = [], []
    step, logits = Transformer.step, causal.ar_logits
    monkeypatch.setattr(Transformer, "step", lambda *a: steps.append(int(a[2])) or step(*a))
    monkeypatch.setattr(causal, "ar_logits", lambda *a: draws.append(len(a[1])) or logits(*a))
    prompt = torch.tensor([[0, MASK, 1, 2], [MASK, 0, 1, 2]])
    autoregressive.sample(NETWORK, 2, LENGTH, MASK, BOS, prompt=prompt)
    assert (steps, draws) == ([0, 1], [2, 2])
    assert torch.equal(autoregressive.sample(NETWORK, 1, 2, MASK, BOS, prompt=prompt[0, 2:]).tokens, prompt[:1, 2:])
    assert (steps, draws) == ([0, 1], [2, 2]), "nothing to fill in costs nothing"


class HostReads(TorchDispatchMode):
    """How often the host waits for the device, or would on one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "equal")
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("as_on_a_device")
def test_the_number_of_tokens_does_not_change_what_the_host_reads():
    counts = []
    for length in (1, 4):
        with HostReads() as reads:
            int(torch.ones(()))  # the spy does see something
            autoregressive.sample(NETWORK, 2, length, MASK, BOS)
        counts.append(reads.count)
    assert counts == [1, 1]


# ---- The law of whole texts


def law(bos_id: int | None, start: Tensor, temperature: float = 1.0) -> Tensor:
    """`prod_{i masked} p(x_i | x_<i)` of every text that has the given tokens, (m^l,)."""
    terms = torch.where(start == MASK, log_prob(SEQUENCES, bos_id, SMALL, temperature), 0.0)
    agrees = ((start == SEQUENCES) | (start == MASK)).all(-1)
    return torch.where(agrees, terms.sum(-1).exp(), 0.0)


STARTS = {
    "nothing": torch.tensor([MASK, MASK, MASK, MASK]),
    "prefix": torch.tensor([1, 2, MASK, MASK]),
    "infilling": torch.tensor([2, MASK, 0, MASK]),
    "suffix": torch.tensor([0, MASK, MASK, 1]),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_the_law_of_what_is_filled_in_sums_to_one(start):
    close(law(MASK, start).sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize(("name", "bos_id"), [*((name, MASK) for name in STARTS), ("prefix", None), ("suffix", None)])
def test_samples_have_the_enumerated_law(name, bos_id, temperature):
    """Chi-square over all texts of 40,000 samples: false alarms 1e-4 for each of 12; a temperature 15 % off fails."""
    start, n = STARTS[name], 40_000
    drawn = autoregressive.sample(SMALL, n, LENGTH, MASK, bos_id, seed=3, prompt=start, temperature=temperature).tokens
    counts = torch.bincount(index_of(drawn, SYMBOLS), minlength=len(SEQUENCES))
    expected = law(bos_id, start, temperature)
    possible = expected > 0
    assert (n * expected[possible]).min() > 5
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], n * expected[possible]).pvalue > 1e-4
    twin = law(bos_id, start, 1.15 * temperature)[possible]
    assert stats.chisquare(counts[possible], n * twin).pvalue < 1e-4


# ---- The target of the carry-over energy


def sir_law(p: Tensor, w: Tensor, k: int) -> Tensor:
    """Law of the draft that SIR keeps of k, exact at any k: p, w (d,) to (d,).

    `k p w E[1 / (w + S)]` with S the weight of the other k - 1, and `1 / (w + S) = int_0^inf exp(-u (w + S)) du`.
    """

    def integrand(u: float) -> Tensor:
        return ((p * (-u * w).exp()).sum() ** (k - 1) * (-u * w).exp()).numpy()

    return k * p * w * torch.from_numpy(integrate.quad_vec(integrand, 0, float("inf"), epsabs=1e-12)[0])


def one_step(name: str, carry_over: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The denoiser's law of the completions of a start, and their weights under the library's energy: (d,) each."""
    start, table = STARTS[name], random_marginals(5, SYMBOLS, LENGTH)
    drafts = SEQUENCES[((start == SEQUENCES) | (start == MASK)).all(-1)].unsqueeze(0)
    log_p = table[tuple(start.tolist())].expand(1, *drafts.shape[1:], -1).gather(-1, drafts.unsqueeze(-1)).squeeze(-1)
    log_p = torch.where(start == MASK, log_p, 0.0)
    masked = (start == MASK).nonzero().squeeze(-1)
    state = {contracts.CANDIDATES: drafts, contracts.X_T: start.unsqueeze(0), contracts.LOG_P_CANDIDATES: log_p}
    state[contracts.POSITIONS] = masked
    energy = energies.residual_ar(SMALL, MASK, MASK, carry_over)(TensorDict(state))[contracts.ENERGY][0].detach()
    close(log_p.sum(-1), proposal_log_prob(table, drafts, start.unsqueeze(0)))
    return log_p.sum(-1).exp()[0], (-energy).exp(), drafts[0]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_law_of_sir_by_quadrature_is_the_enumerated_one(k):
    p, w, _ = one_step("infilling", carry_over=True)
    close(sir_law(p, w, k), sir(k)(p.log().unsqueeze(0), w.log().unsqueeze(0))[0], atol=1e-9)


@pytest.mark.parametrize("name", ["infilling", "suffix", "nothing"])
def test_one_step_of_many_drafts_under_the_carry_over_energy_approaches_it(name):
    """Exact, no sampling: the distance falls like 1 / k to zero, and that of the posterior form stops elsewhere."""
    distance = {}
    for carry_over in (True, False):
        p, w, drafts = one_step(name, carry_over)
        target = law(MASK, STARTS[name])[index_of(drafts, SYMBOLS)]
        w = w / (p * w).sum()  # a constant in the energy changes nothing, and the integral is better behaved
        distance[carry_over] = [float(total_variation(sir_law(p, w, k), target)) for k in (1, 100, 1000, 10_000)]
    far, near, nearer, nearest = distance[True]
    assert far > 0.3
    assert 0.08 < nearer / near < 0.12
    assert 0.09 < nearest / nearer < 0.11
    if name == "nothing":
        assert distance[False] == pytest.approx(distance[True])
    else:
        assert distance[False][-1] > 50 * nearest


def test_the_sampler_with_that_energy_has_that_law():
    """Chi-square of 8,000 samples against the exact law of 8 drafts: false alarms 1e-4, and that of 9 drafts fails."""
    start, n = STARTS["infilling"], 8_000
    denoiser = OracleDenoiser(Lookup(random_marginals(5, SYMBOLS, LENGTH)), MASK, LENGTH)
    energy = energies.residual_ar(SMALL, MASK, MASK, carry_over=True)
    kernel = builders.importance(schedules.log_linear(), denoiser, energy, num_particles=8)
    drawn = edlm.sample(builders.sampling(kernel, LENGTH, num_steps=1), n, seed=1, prompt=start)["tokens"]
    p, w, drafts = one_step("infilling", carry_over=True)
    counts = torch.bincount(index_of(drawn, SYMBOLS), minlength=len(SEQUENCES))[index_of(drafts, SYMBOLS)]
    assert counts.sum() == n
    assert stats.chisquare(counts, n * sir_law(p, w, 8)).pvalue > 1e-4
    assert stats.chisquare(counts, n * sir_law(p, w, 9)).pvalue < 1e-4


# ---- Rows, prompts, mistakes


@given(seeds(), st.integers(1, 6), st.integers(0, 6), st.integers(0, 2**31))
def test_a_text_does_not_depend_on_its_batch(seed, b, cut, first_row):
    draw = partial(autoregressive.sample, NETWORK, length=LENGTH, mask_id=MASK, bos_id=BOS, seed=seed)
    whole, cut = draw(b, first_row=first_row).tokens, min(cut, b)
    parts = [draw(size, first_row=first_row + start).tokens for start, size in ((0, cut), (cut, b - cut)) if size]
    assert torch.equal(torch.cat(parts), whole)


def test_seeds_rows_and_positions_have_numbers_of_their_own():
    drawn = [autoregressive.sample(NETWORK, 64, LENGTH, MASK, BOS, seed=seed).tokens for seed in (0, 1)]
    assert not torch.equal(*drawn)
    assert len(drawn[0].unique(dim=0)) > 15


def test_every_row_has_its_own_prompt_filled_up_on_the_right():
    prompt = torch.tensor([[0, MASK], [MASK, 1], [2, 2]])
    drawn = autoregressive.sample(NETWORK, 3, LENGTH, MASK, BOS, prompt=prompt).tokens
    assert torch.equal(drawn[:, :2][prompt != MASK], prompt[prompt != MASK])
    assert not (drawn == MASK).any()
    alone = autoregressive.sample(NETWORK, 1, LENGTH, MASK, BOS, prompt=prompt[1], first_row=1).tokens
    assert torch.equal(alone[0], drawn[1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"length": 0}, "length = 0 must lie in 1..4"),
        ({"length": 5}, "length = 5 must lie in 1..4"),
        ({"num_samples": 0}, "num_samples = 0 must be at least 1"),
        ({"temperature": 0.0}, "temperature = 0.0 must be positive"),
        ({"bos_id": None}, "without a bos_id the first token has no law of its own: give it in the prompt"),
        ({"bos_id": 9}, "bos_id = 9 is outside the network's vocabulary of 5"),
        ({"mask_id": 5}, "mask_id = 5 is outside the network's vocabulary of 5"),
        ({"prompt": torch.tensor([7])}, "prompt holds token id 7, outside the vocabulary 0..4"),
        ({"prompt": torch.zeros(5, dtype=torch.int64)}, "does not fit: it must be (l,) or (2, l), l at most 4"),
        ({"network": ar_network(causal=False)}, "an autoregressive model needs a causal network"),
    ],
)
def test_a_mistake_is_named(changes, said):
    arguments = {"network": NETWORK, "num_samples": 2, "length": LENGTH, "mask_id": MASK, "bos_id": BOS}
    with pytest.raises(ValueError, match=said.replace("(", "\\(").replace(")", "\\)")):
        autoregressive.sample(**arguments | changes)


def test_a_text_that_is_too_long_is_refused_also_where_it_is_completed():
    """It would be read on, with no place of its own for what is beyond the end."""
    tokens = torch.full((1, LENGTH + 1), MASK)
    with pytest.raises(ValueError, match=r"length = 5 must lie in 1\.\.4"):
        autoregressive.complete(NETWORK, tokens, torch.rand(1, LENGTH + 1, dtype=torch.float64), MASK, BOS)
