"""Energies of transitions: their sampler and their training, against enumeration."""

import itertools
import math
from collections.abc import Callable

import builders
import pytest
import torch
from builders import of_transitions, tiny_denoiser, tiny_energy
from oracles import (
    SIR_PAIR,
    Choose,
    EnergyFn,
    Lookup,
    OracleDenoiser,
    OracleEnergy,
    all_masked_states,
    all_sequences,
    empirical_law,
    first_hitting_law,
    imh,
    index_of,
    marginal_table,
    markov,
    random_markov,
    residual_energy,
    reveal_law,
    sampler_law,
    sir,
    sir_by_quadrature,
    total_variation,
    zero_energy,
)
from scipy import stats
from small_law import JOINT, LENGTH, SYMBOLS, TABLES, alphas, every_table
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor

import edlm
from edlm import contracts
from edlm.contracts import Positions
from edlm.models import energies
from edlm.nn import networks
from edlm.objectives import losses, transition
from edlm.process import particles, schedules
from edlm.process.schedules import Schedule


def exactly(log_p: Tensor, log_w: Tensor) -> Tensor:
    """What SIR chooses of infinitely many particles: `p w / Z`."""
    return (log_p + log_w).softmax(-1)


def law(table: Tensor, joint: Tensor, num_steps: int, choose: Choose) -> Tensor:
    return sampler_law(table, alphas(num_steps), residual_energy(joint, table), choose, "revealed")


# ---- The exact energy


@every_table
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
def test_with_enough_particles_the_law_is_that_of_the_data_at_any_number_of_steps(table: Tensor, num_steps: int):
    torch.testing.assert_close(law(table, JOINT, num_steps, exactly), JOINT.flatten())
    distances = [float(total_variation(law(table, JOINT, num_steps, sir(k)), JOINT)) for k in (1, 2, 3, 4)]
    assert all(later < 0.8 * earlier for earlier, later in itertools.pairwise(distances))
    assert total_variation(law(table, JOINT, num_steps, imh(200)), JOINT) < 1e-4


def test_a_perfect_draw_of_one_token_is_left_alone_and_drafts_spoil_it():
    """One position at a time under exact marginals: a draft's weight brings the noise of tokens that are not kept."""
    table, energy = TABLES["exact"], residual_energy(JOINT)
    for k in (1, 3):
        torch.testing.assert_close(first_hitting_law(table, energy, sir(k), "revealed"), JOINT.flatten())
    assert total_variation(first_hitting_law(table, energy, sir(3), "masked"), JOINT) > 0.01


@pytest.mark.slow
def test_many_particles_of_the_library_draw_the_law_of_the_data():
    """Among 40,000 samples the total variation to their own law is below 0.0202 with probability 1 - 1e-6.

    Its mean is at most `sqrt(8 / n) / 2`, and one sample changes it by 1 / n (McDiarmid).
    """
    table, samples, k = TABLES["exact"], 40_000, 24
    kernel = of_transitions(
        schedules.log_linear(),
        OracleDenoiser(Lookup(table), SYMBOLS),
        OracleEnergy(residual_energy(JOINT, table)),
        num_particles=k,
        selection=particles.imh,
    )
    for num_steps in (1, 2):
        tokens = edlm.sample(builders.sampling(kernel, LENGTH, num_steps), samples)["tokens"]
        assert total_variation(law(table, JOINT, num_steps, imh(k)), JOINT) < 1e-3
        assert total_variation(empirical_law(tokens, SYMBOLS), JOINT) < 0.0202 + 1e-3
        assert total_variation(law(table, JOINT, num_steps, imh(2)), JOINT) > 0.05


# Total variation to the data at 2, 4 and 6 steps, each with 2, 4 and 8 particles: `docs/explanation/transition.md`.
PLAIN = (0.354, 0.184, 0.125)
TABLE = {
    ("sir", "masked"): ((0.252, 0.175, 0.115), (0.111, 0.075, 0.074), (0.064, 0.065, 0.071)),
    ("imh", "masked"): ((0.240, 0.160, 0.099), (0.100, 0.073, 0.075), (0.059, 0.066, 0.074)),
    ("sir", "revealed"): ((0.209, 0.111, 0.055), (0.088, 0.037, 0.018), (0.055, 0.021, 0.011)),
}


@pytest.mark.slow
def test_weighing_what_is_revealed_beats_weighing_drafts_at_every_number_of_steps_and_particles():
    """3 symbols, length 6, a Markov chain with strong dependence; all by enumeration, nothing is drawn."""
    logits = 3.0 * torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    joint = markov(torch.full((3,), 1 / 3, dtype=torch.float64), logits.softmax(-1), 6)
    table, energy = marginal_table(joint), residual_energy(joint)

    def distances(choose: Choose, where: Positions) -> list[float]:
        reveal = reveal_law(table, energy, choose, where)
        return [float(total_variation(_after_steps(reveal, 3, 6, num_steps), joint)) for num_steps in (2, 4, 6)]

    assert distances(sir(1), "masked") == pytest.approx(PLAIN, abs=1e-3)
    kinds = {"sir": sir_by_quadrature, "imh": imh}
    found = {(kind, where): [distances(kinds[kind](k), where) for k in (2, 4, 8)] for kind, where in TABLE}
    for key, expected in TABLE.items():
        torch.testing.assert_close(torch.tensor(found[key]).T, torch.tensor(expected), rtol=0.0, atol=1e-3)
    for drafts in (found["sir", "masked"], found["imh", "masked"]):
        assert (torch.tensor(found["sir", "revealed"]) < torch.tensor(drafts)).all()


def _after_steps(reveal: Tensor, symbols: int, length: int, num_steps: int) -> Tensor:
    """Law of what is sampled with a reveal law on the uniform grid, (m^l,)."""
    mass = torch.zeros(len(reveal), dtype=torch.float64)
    mass[-1] = 1.0  # the last state is all masks
    masks = (all_masked_states(symbols, length) == symbols).sum(1).double()
    for left in range(num_steps, 0, -1):  # of n masks n - m are revealed: p^(n - m) (1 - p)^m, with p = 1 / left
        mass = ((1 / left) ** masks * mass) @ reveal * (left - 1.0) ** masks
    return mass[index_of(all_sequences(symbols, length), symbols + 1)]


# ---- The kernel


def test_no_energy_is_plain_sampling_in_law():
    for num_steps in (1, 2, 4):
        plain = sampler_law(TABLES["wrong"], alphas(num_steps))
        corrected = sampler_law(TABLES["wrong"], alphas(num_steps), zero_energy, SIR_PAIR, "revealed")
        torch.testing.assert_close(corrected, plain)


def test_the_energy_sees_the_new_tokens_and_masks_elsewhere():
    mask, seen = 4, []

    def energy(candidates: Tensor, x_t: Tensor) -> Tensor:
        seen.append((candidates, x_t))
        return zero_energy(candidates, x_t)

    kernel = of_transitions(schedules.log_linear(), tiny_denoiser(), OracleEnergy(energy), num_particles=3)
    states = []
    edlm.sample(builders.sampling(kernel, 8, 3), 4, callback=lambda state, _: states.append(state[contracts.X_T]))
    for candidates, x_t in seen:
        given_tokens = (x_t != mask).unsqueeze(1).expand_as(candidates)
        assert torch.equal(candidates[given_tokens], x_t.unsqueeze(1).expand_as(candidates)[given_tokens])
        new = (candidates != mask) & (x_t == mask).unsqueeze(1)
        assert torch.equal(new, new[:, :1].expand_as(new))  # the same positions in every particle
        assert new.flatten(1).any(1).all()
    assert any((candidates == mask).any() for candidates, _ in seen[:-1])
    assert not (states[-1] == mask).any()


def test_the_vocabulary_head_runs_on_revealed_positions_only():
    denoiser, rows = tiny_denoiser(), []
    denoiser.network.head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    kernel = of_transitions(schedules.log_linear(), denoiser, tiny_energy(), num_particles=7)
    info = edlm.sample(builders.sampling(kernel, 8, 3), 5)["info"]
    assert sum(rows) == 5 * 8
    assert torch.equal(info["energy_passes"], 7 * info["denoiser_passes"])


def test_an_energy_of_drafts_leaves_a_candidate_with_masks_no_weight():
    """`residual_ar` gives a mask probability zero, in both of its forms: it is no energy of transitions."""
    network = edlm.networks.Transformer(
        5, 8, hidden_size=16, num_layers=1, num_heads=2, conditioning_size=0, causal=True
    )
    for carry_over in (False, True):
        energy = energies.residual_ar(network.eval(), mask_id=4, bos_id=3, carry_over=carry_over)
        kernel = of_transitions(schedules.log_linear(), tiny_denoiser(), energy, num_particles=2)
        info = edlm.sample(builders.sampling(kernel, 8, tokens_per_pass=4), 3)["info"]
        assert (info["ess"][:, 0] == 0).all()
        assert (info["ess"][:, 1] > 0).all()  # nothing is masked after the last pass


@pytest.mark.parametrize("num_particles", [0, -1])
def test_no_particles_is_an_error(num_particles: int):
    with pytest.raises(ValueError, match=f"candidates = {num_particles} must be at least 1"):
        of_transitions(schedules.log_linear(), tiny_denoiser(), tiny_energy(), num_particles)


# ---- Training


def keyed(x_0: Tensor, seed: int = 0, step: int = 0) -> TensorDict:
    numbers = {contracts.SEED: seed, contracts.STEP: step, contracts.NUM_ROWS: len(x_0)}
    keys = {name: torch.tensor(value) for name, value in numbers.items()}
    return TensorDict({contracts.X_0: x_0, contracts.ROW: torch.arange(len(x_0)), **keys})


def pairs(num_steps: tuple[int, int], schedule: Schedule, x_0: Tensor, **options: object) -> TensorDict:
    """What is weighed in training, with a denoiser that is wrong and no energy."""
    denoiser = OracleDenoiser(Lookup(TABLES["wrong"]), SYMBOLS)
    return transition.contrastive(denoiser, energies.zero(), schedule, num_steps, **options)(keyed(x_0))


def law_of_steps(num_steps: int, schedule: Schedule) -> Tensor:
    """Of t and what each of 3 positions is there: visible, revealed or still masked; (num_steps, 27).

    A position is revealed in any step with its own chance, and the step is that of a random position.
    """
    masked = (1 - schedule.alpha(schedules.uniform_grid(num_steps))) / (1 - schedule.alpha(torch.ones(1).double()))
    states = all_sequences(3, 3)
    rows = []
    for before, after in itertools.pairwise(masked.tolist()):
        chance = torch.tensor([1 - before, before - after, after], dtype=torch.float64)
        rows.append(chance[states].prod(1) * (states == 1).sum(1) / 3)
    return torch.stack(rows)


@pytest.mark.parametrize("schedule", [schedules.log_linear(), schedules.cosine(), schedules.log_linear(0.2)])
@pytest.mark.parametrize("num_steps", [2, 3])
def test_pairs_are_those_of_a_step_that_reveals_a_random_position(schedule: Schedule, num_steps: int):
    """A chi-square test at a rate of false alarms of 1e-4; sampling without the bias to large steps is rejected."""
    x_0 = torch.zeros(20_000, LENGTH, dtype=torch.int64)
    out = pairs((num_steps, num_steps), schedule, x_0)
    x_t, x_s = out[contracts.X_T], out[contracts.X_S]
    kind = (x_t == SYMBOLS).long() + (x_s == SYMBOLS)
    step = ((1 - out[contracts.T]) * num_steps).round().long()
    counts = torch.bincount(step * 27 + index_of(kind, 3), minlength=27 * num_steps).double()
    sizes = (all_sequences(3, 3) == 1).sum(1)
    law_of_all = law_of_steps(num_steps, schedule)
    possible = law_of_all > 0
    assert not counts[~possible.flatten()].any()
    unbiased = law_of_all / sizes.clamp(min=1)
    assert _chi_square(counts[possible.flatten()], law_of_all[possible])
    assert not _chi_square(counts[possible.flatten()], unbiased[possible] / unbiased.sum())


def _chi_square(counts: Tensor, chances: Tensor) -> bool:
    expected = chances * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum()) < stats.chi2.isf(1e-4, len(counts) - 1)


def test_the_data_stand_against_draws_of_the_denoiser_with_masks_where_nothing_is_revealed():
    x_0 = texts(4000)
    out = pairs((1, 4), schedules.log_linear(), x_0, num_negatives=3)
    candidates, x_t, x_s = out[contracts.CANDIDATES], out[contracts.X_T], out[contracts.X_S]
    revealed = (x_t == SYMBOLS) & (x_s != SYMBOLS)
    assert revealed.any(1).all()
    assert (revealed.sum(1) < (x_t == SYMBOLS).sum(1)).any()
    assert torch.equal(x_s[revealed], x_0[revealed])
    assert torch.equal(candidates[:, 0], x_s)
    elsewhere = ~revealed.unsqueeze(1).expand_as(candidates)
    assert torch.equal(candidates[elsewhere], x_s.unsqueeze(1).expand_as(candidates)[elsewhere])
    assert (candidates[~elsewhere] < SYMBOLS).all()
    # Frequencies of symbol 1 at a revealed position against the denoiser's: 5 standard errors, and far from the data's.
    chance = TABLES["wrong"][x_t.unbind(-1)][..., 1].exp()
    where = revealed.unsqueeze(1).expand(-1, 3, -1)
    draws, expected = candidates[:, 1:][where].double(), chance.unsqueeze(1).expand(-1, 3, -1)[where]
    error = float((expected * (1 - expected)).sum().sqrt()) / len(expected)
    assert abs(float(draws.mean() - expected.mean())) < 5 * error
    assert abs(float(x_0[revealed].double().mean() - expected.mean())) > 10 * error


def test_grids_of_all_wanted_numbers_of_steps_are_seen_with_a_uniform_logarithm():
    x_0 = torch.zeros(8000, LENGTH, dtype=torch.int64)
    t = pairs((2, 7), schedules.log_linear(), x_0)[contracts.T]
    fits = torch.stack([((t * n).round() - t * n).abs() < 1e-9 for n in range(2, 8)])
    assert fits.any(0).all()
    only = {n: int((((t * n).round() - t * n).abs() < 1e-9).sum()) for n in (5, 7)}  # t = 1 is in every grid
    starts = int((t == 1).sum())
    for n, count in only.items():
        # P(T = n) = log((n + 1) / n) / log(8 / 2), and of n steps all but the first start before 1.
        chance = math.log((n + 1) / n) / math.log(4) * (n - 1) / n
        assert abs(count - starts - 8000 * chance) < 5 * math.sqrt(8000 * chance)


def test_padding_is_never_masked_and_never_picked():
    x_0 = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]]).repeat(50, 1)
    out = pairs((1, 3), schedules.log_linear(), x_0, pad_id=0)
    padding, x_t, x_s = x_0 == 0, out[contracts.X_T], out[contracts.X_S]
    assert torch.equal(x_t[padding], x_0[padding])
    revealed = x_t != x_s
    assert torch.equal(revealed.any(1), (x_0 != 0).any(1))  # a text of padding alone has nothing to reveal
    assert not (revealed & padding).any()


@pytest.mark.parametrize("num_steps", [(0, 4), (3, 2), (-1, -1)])
def test_grids_that_are_none_are_an_error(num_steps: tuple[int, int]):
    with pytest.raises(ValueError, match=rf"num_steps = \({num_steps[0]}, {num_steps[1]}\) must be the fewest"):
        transition.contrastive(tiny_denoiser(), tiny_energy(), schedules.log_linear(), num_steps)


def texts(n: int, joint: Tensor = JOINT, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return all_sequences(joint.shape[0], joint.ndim)[torch.multinomial(joint.flatten(), n, True, generator=generator)]


@pytest.mark.parametrize("schedule", [None, schedules.log_linear(1e-3)])
def test_a_learned_energy_is_a_sum_of_scalars_over_the_new_positions(schedule: Schedule | None):
    network = tiny_energy().network
    x_t = torch.tensor([[4, 1, 4, 4], [4, 4, 2, 2]])
    x_s = torch.tensor([[[4, 1, 3, 0], [4, 1, 2, 2]], [[4, 4, 2, 2], [1, 0, 2, 2]]])
    t = torch.tensor([0.9, 0.3], dtype=torch.float64)
    energy = energies.learned_transition(network, schedule)
    found = energy(TensorDict({contracts.CANDIDATES: x_s, contracts.X_T: x_t, contracts.T: t}))[contracts.ENERGY]
    for row, particle, new in ((0, 0, [2, 3]), (0, 1, [2, 3]), (1, 0, []), (1, 1, [0, 1])):
        told = None if schedule is None else schedules.sigma(schedule, t[row : row + 1])
        scalars = network.per_position(x_t[row : row + 1], x_s[row, particle].unsqueeze(0), told)
        torch.testing.assert_close(found[row, particle], scalars[0, new].sum())
    assert found[0, 0] != found[0, 1]
    with pytest.raises(ValueError, match=r"finite sigma\(1\)"):
        energies.learned_transition(network, schedules.log_linear(0.0))


MARKOV = random_markov(2, 3, 4, 2.0)
MARKOV_TABLE = marginal_table(MARKOV)


def trained(objective: Callable[[Tensor, Tensor], Tensor], steps: int = 350, b: int = 128) -> TensorDictSequential:
    """The training pipeline of a small energy after some hundred steps on a Markov source."""
    torch.manual_seed(0)
    network = networks.EnergyNetwork(4, 4, hidden_size=32, num_layers=2, num_heads=2, conditioning_size=0)
    denoiser, energy = OracleDenoiser(Lookup(MARKOV_TABLE.float()), 3), energies.learned_transition(network)
    pipeline = transition.contrastive(denoiser, energy, schedules.log_linear(), (1, 4), 3, objective)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.15)
    x_0 = texts(steps * b, MARKOV).view(steps, b, 4)
    for step in range(steps):
        optimizer.zero_grad()
        pipeline(keyed(x_0[step], step=step))[contracts.LOSS].mean().backward()
        optimizer.step()
        rate.step()
    return pipeline.eval()


@pytest.mark.slow
@pytest.mark.parametrize("objective", [losses.nce, losses.info_nce], ids=["binary", "ranking"])
def test_what_is_learned_is_the_log_ratio_of_the_transition(objective: Callable[[Tensor, Tensor], Tensor]):
    pipeline = trained(objective)
    with torch.no_grad():
        out = pipeline(keyed(texts(4000, MARKOV, seed=1), step=1 << 20))
    exact = -residual_energy(MARKOV)(out[contracts.CANDIDATES], out[contracts.X_T])
    learned = -out[contracts.ENERGY].double()
    if objective is losses.info_nce:  # which leaves a constant free that may depend on x_t and the revealed set
        exact, learned = exact - exact.mean(1, keepdim=True), learned - learned.mean(1, keepdim=True)
    together = torch.cov(torch.stack([exact.flatten(), learned.flatten()]))
    assert 0.6 < together[0, 1] / together[0, 0] < 1.1
    assert together[0, 1] / together.diagonal().prod().sqrt() > 0.92
    loss, knows_nothing = float(out[contracts.LOSS].mean()), float(objective(torch.zeros(1), torch.zeros(1, 3)))
    least = float(objective(-exact[:, 0], -exact[:, 1:]).mean())
    assert least < loss + 0.01 < least + 0.2 * (knows_nothing - least)
    if objective is losses.nce:
        _check_calibration(learned)
    corrected, plain = (_distance(energy) for energy in (_as_function(pipeline["weigh"]), zero_energy))
    assert corrected < 0.5 * plain


def _check_calibration(learned: Tensor) -> None:
    """Of a datum and a draw with a log-ratio near r, the share of data is sigmoid(r); up to 0.05 in every fifth."""
    data, draws = learned[:, 0], learned[:, 1]
    every = torch.cat([data, draws])
    edges = every.quantile(torch.linspace(0, 1, 6, dtype=torch.float64))[1:-1]
    is_datum = torch.cat([torch.ones_like(data), torch.zeros_like(draws)])
    for part in range(5):
        inside = torch.bucketize(every, edges) == part
        assert abs(float(is_datum[inside].mean() - every[inside].sigmoid().mean())) < 0.05


def _as_function(energy: TensorDictModule) -> EnergyFn:
    @torch.no_grad()
    def function(candidates: Tensor, x_t: Tensor) -> Tensor:
        return energy.module(candidates, x_t, torch.ones(len(x_t))).double()

    return function


def _distance(energy: EnergyFn) -> float:
    """Total variation to the data after 2 steps of 8 particles, by enumeration."""
    return float(
        total_variation(sampler_law(MARKOV_TABLE, alphas(2), energy, sir_by_quadrature(8), "revealed"), MARKOV)
    )
