"""Energies of transitions: their sampler against enumeration."""

import itertools

import pytest
import torch
from builders import tiny_denoiser, tiny_energy
from oracles import (
    SIR_PAIR,
    Choose,
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
    random_joint,
    random_marginals,
    residual_energy,
    reveal_law,
    sampler_law,
    sir,
    sir_by_quadrature,
    total_variation,
    zero_energy,
)
from torch import Tensor

import edlm
from edlm import contracts, particles, pipelines, schedules, transition
from edlm.contracts import Positions

SYMBOLS, LENGTH = 2, 3
JOINT = random_joint(0, SYMBOLS, LENGTH, 1.5)
TABLES = {"exact": marginal_table(JOINT), "wrong": random_marginals(1, SYMBOLS, LENGTH)}
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def alphas(num_steps: int) -> Tensor:
    """Of the uniform grid with alpha = 1 - t."""
    return torch.linspace(0.0, 1.0, num_steps + 1, dtype=torch.float64)


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


def test_many_particles_of_the_library_draw_the_law_of_the_data():
    """Among 40,000 samples the total variation to their own law is below 0.0202 with probability 1 - 1e-6.

    Its mean is at most `sqrt(8 / n) / 2`, and one sample changes it by 1 / n (McDiarmid).
    """
    table, samples, k = TABLES["exact"], 40_000, 24
    kernel = transition.importance(
        schedules.log_linear(),
        OracleDenoiser(Lookup(table), SYMBOLS),
        OracleEnergy(residual_energy(JOINT, table)),
        num_particles=k,
        selection=particles.imh,
    )
    for num_steps in (1, 2):
        tokens = edlm.sample(pipelines.sampling(kernel, LENGTH, num_steps), samples)["tokens"]
        assert total_variation(law(table, JOINT, num_steps, imh(k)), JOINT) < 1e-3
        assert total_variation(empirical_law(tokens, SYMBOLS), JOINT) < 0.0202 + 1e-3
        assert total_variation(law(table, JOINT, num_steps, imh(2)), JOINT) > 0.05


# Total variation to the data at 2, 4 and 6 steps, each with 2, 4 and 8 particles, as `docs/transition.md` shows it.
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

    kernel = transition.importance(schedules.log_linear(), tiny_denoiser(), OracleEnergy(energy), num_particles=3)
    states = []
    edlm.sample(pipelines.sampling(kernel, 8, 3), 4, callback=lambda state, _: states.append(state[contracts.X_T]))
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
    denoiser.module.network.head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    kernel = transition.importance(schedules.log_linear(), denoiser, tiny_energy(), num_particles=7)
    info = edlm.sample(pipelines.sampling(kernel, 8, 3), 5)["info"]
    assert sum(rows) == 5 * 8
    assert torch.equal(info["energy_passes"], 7 * info["denoiser_passes"])


def test_an_energy_of_drafts_leaves_a_candidate_with_masks_no_weight():
    """`residual_ar` gives a mask probability zero, in both of its forms: it is no energy of transitions."""
    network = edlm.networks.Transformer(
        5, 8, hidden_size=16, num_layers=1, num_heads=2, conditioning_size=0, causal=True
    )
    for carry_over in (False, True):
        energy = edlm.energies.residual_ar(network.eval(), mask_id=4, bos_id=3, carry_over=carry_over)
        kernel = transition.importance(schedules.log_linear(), tiny_denoiser(), energy, num_particles=2)
        info = edlm.sample(pipelines.sampling(kernel, 8, tokens_per_pass=4), 3)["info"]
        assert (info["ess"][:, 0] == 0).all()
        assert (info["ess"][:, 1] > 0).all()  # nothing is masked after the last pass


@pytest.mark.parametrize("num_particles", [0, -1])
def test_no_particles_is_an_error(num_particles: int):
    with pytest.raises(ValueError, match=f"num_particles = {num_particles} must be at least 1"):
        transition.importance(schedules.log_linear(), tiny_denoiser(), tiny_energy(), num_particles)
