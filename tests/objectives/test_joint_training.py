"""The training of a joint network: its loss in expectation, its negatives, and that both heads learn."""

import itertools

import pytest
import torch
from builders import tiny_network
from joint_networks import TableJoint, joint_network
from oracles import (
    Lookup,
    all_masked_states,
    all_sequences,
    expectation,
    index_of,
    marginal_table,
    random_joint,
    random_marginals,
    random_markov,
    residual_energy,
    sampler_law,
    sir_by_quadrature,
    t_step_nelbo,
    total_variation,
    zero_energy,
)
from scipy import stats
from tensordict import TensorDict
from torch import Tensor, nn

from edlm import contracts
from edlm.likelihood import estimates
from edlm.models import denoisers, joint
from edlm.nn.networks import JointNetwork
from edlm.objectives import joint as joint_objectives
from edlm.objectives import losses
from edlm.process import schedules
from edlm.process.schedules import Schedule

SYMBOLS, LENGTH = 2, 3


def keyed(x_0: Tensor, seed: int = 0, step: int = 0) -> TensorDict:
    whole = {contracts.NUM_ROWS: len(x_0), contracts.NUM_TOKENS: x_0.numel()}
    numbers = {contracts.SEED: seed, contracts.STEP: step, **whole}
    keys = {name: torch.tensor(value) for name, value in numbers.items()}
    return TensorDict({contracts.X_0: x_0, contracts.ROW: torch.arange(len(x_0)), **keys})


def texts(n: int, symbols: int = SYMBOLS, length: int = LENGTH, seed: int = 0) -> Tensor:
    law = random_joint(seed, symbols, length, 1.5).flatten()
    chosen = torch.multinomial(law, n, True, generator=torch.Generator().manual_seed(seed))
    return all_sequences(symbols, length)[chosen]


def stages(network: nn.Module, num_steps: tuple[int, int], schedule: Schedule, **options: object):
    return joint_objectives.contrastive(
        denoisers.subs(network, network.head.out_features - 1), schedule, num_steps, **options
    )


SCHEDULES = [schedules.log_linear(), schedules.cosine(), schedules.log_linear(0.2), schedules.linear(0.5, 3.0)]


def masked_share(num_steps: int, schedule: Schedule) -> Tensor:
    """Of the sampler's T + 1 states: it starts with all masked, and ends with none."""
    left = (1 - schedule.alpha(schedules.uniform_grid(num_steps))) / (1 - schedule.alpha(torch.ones(1).double()))
    return torch.cat([left[:-1], left.new_zeros(1)])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_denoisers_part_of_the_loss_has_the_t_step_nelbo_as_its_mean(schedule: Schedule, num_steps: int):
    """Within five standard errors, at a fixed seed; 5 % off is rejected."""
    table, x_0 = random_marginals(1, SYMBOLS, LENGTH), texts(24_000)
    out = stages(TableJoint(Lookup(table), zero_energy, SYMBOLS, LENGTH), (num_steps, num_steps), schedule)(keyed(x_0))
    exact = float(t_step_nelbo(table, 1 - masked_share(num_steps, schedule), x_0).mean())
    mean, error, _ = estimates.estimate(losses.nelbo(out[contracts.LOG_PROB], out[contracts.WEIGHT]))
    assert abs(mean - exact) < 5 * error < 0.05 * exact


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_state_of_the_grid_is_as_likely_and_what_led_to_it_is_new(schedule: Schedule):
    """A chi-square test at a rate of false alarms of 1e-4."""
    num_steps, x_0 = 3, torch.zeros(20_000, LENGTH, dtype=torch.int64)
    network = TableJoint(Lookup(random_marginals(1, SYMBOLS, LENGTH)), zero_energy, SYMBOLS, LENGTH)
    out = stages(network, (num_steps, num_steps), schedule)(keyed(x_0))
    kind = (out[contracts.X_T] == SYMBOLS).long() + (out[contracts.X_S] == SYMBOLS)
    counts = torch.bincount(index_of(kind, 3), minlength=27).double()
    kinds, law = all_sequences(3, 3), torch.zeros(27, dtype=torch.float64)
    law[-1] = 1 / (num_steps + 1)  # before the first step
    for before, after in itertools.pairwise(masked_share(num_steps, schedule).tolist()):
        chance = torch.tensor([1 - before, before - after, after], dtype=torch.float64)
        law += chance[kinds].prod(1) / (num_steps + 1)
    expected, possible = law * len(x_0), law > 0
    assert not counts[~possible].any()
    distance = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    assert distance < stats.chi2.isf(1e-4, int(possible.sum()) - 1)
    starts = (num_steps * out[contracts.T]).round()
    for steps_done, share in enumerate(masked_share(num_steps, schedule)[:-1].tolist()):
        masked = (out[contracts.X_T] == SYMBOLS)[starts == num_steps - steps_done].double()
        assert abs(float(masked.mean()) - share) <= 5 * (share * (1 - share) / masked.numel()) ** 0.5, "told its time"
    assert torch.equal(out[contracts.CANDIDATES][:, 0], out[contracts.X_S])
    draws = out[contracts.CANDIDATES][:, 1]
    assert torch.equal(draws[kind != 1], out[contracts.X_S][kind != 1])
    assert set(draws[kind == 1].tolist()) == {0, 1}


def test_the_loss_is_the_weighted_sum_of_its_two_parts():
    network, x_0 = joint_network(), torch.randint(0, 4, (7, 8), generator=torch.Generator().manual_seed(1))
    grids, schedule = (2, 5), schedules.log_linear()
    out = stages(network, grids, schedule, num_negatives=3)(keyed(x_0))
    energy = out[contracts.ENERGY]
    nelbo = losses.nelbo(out[contracts.LOG_PROB], out[contracts.WEIGHT]) / 8
    contrast = losses.nce(energy[:, 0], energy[:, 1:])
    torch.testing.assert_close(out[contracts.LOSS], nelbo + contrast)
    options = {"nelbo_weight": 0.5, "energy_weight": 2.0, "objective": losses.info_nce, "num_negatives": 3}
    weighted = stages(network, grids, schedule, **options)(keyed(x_0))[contracts.LOSS]
    torch.testing.assert_close(weighted, 0.5 * nelbo + 2.0 * losses.info_nce(energy[:, 0], energy[:, 1:]))
    # The energies are those of the network alone, and the law that of the denoiser, each by passes of its own.
    positions = (out[contracts.X_T] != out[contracts.X_S]).flatten().nonzero().squeeze(-1)
    inputs = {key: out[key] for key in (contracts.CANDIDATES, contracts.X_T)}
    alone = joint.energy(network)(TensorDict({**inputs, contracts.POSITIONS: positions}))[contracts.ENERGY]
    torch.testing.assert_close(energy, alone)
    x_s, denoiser = out[contracts.X_S], denoisers.subs(network, 4)
    log_p = denoiser.logits(network(x_s).flatten(0, 1)).log_softmax(-1).view(7, 8, 5)
    wanted = log_p.gather(-1, x_0.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(out[contracts.LOG_PROB], torch.where(x_s == 4, wanted, 0.0))


def test_the_negatives_are_the_networks_own_without_dropout_and_with_the_weights_of_the_moment():
    network, x_0 = joint_network(dropout=0.5), torch.randint(0, 4, (7, 8), generator=torch.Generator().manual_seed(1))
    pipeline = stages(network, (2, 5), schedules.log_linear()).train()
    drawn = pipeline(keyed(x_0))
    assert all(module.training for module in network.modules())
    drawn[contracts.LOSS].sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    for _ in range(20):  # no dropout in there: one pass with it may draw the same tokens
        assert torch.equal(drawn[contracts.CANDIDATES], pipeline(keyed(x_0))[contracts.CANDIDATES])
    assert not torch.equal(drawn[contracts.LOSS], pipeline(keyed(x_0))[contracts.LOSS])
    with torch.no_grad():
        network.head.bias[:2] += 100.0
    changed = pipeline(keyed(x_0))[contracts.CANDIDATES][:, 1:]
    new = (drawn[contracts.X_T] != drawn[contracts.X_S]).unsqueeze(1)
    assert (changed[new] < 2).all()
    assert not (drawn[contracts.CANDIDATES][:, 1:][new] < 2).all()


def test_one_pass_reads_the_text_and_its_negatives():
    network, x_0 = joint_network(), torch.randint(0, 4, (7, 8), generator=torch.Generator().manual_seed(1))
    pipeline, read = stages(network, (2, 5), schedules.log_linear(), num_negatives=3), []
    network.denoiser.register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0])))
    pipeline(keyed(x_0))
    assert read == [7, 4 * 7]  # the proposal, and the one pass


def test_padding_is_never_masked_in_joint_training():
    x_0 = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0]]).repeat(20, 1)
    out = stages(joint_network(vocab_size=3, max_length=LENGTH), (1, 3), schedules.log_linear(), pad_id=0)(keyed(x_0))
    for key in (contracts.X_T, contracts.X_S):
        assert torch.equal(out[key][x_0 == 0], x_0[x_0 == 0])


def test_what_joint_training_cannot_use_is_an_error():
    network = joint_network()
    with pytest.raises(ValueError, match=r"num_steps = \(3, 2\) must be the fewest"):
        stages(network, (3, 2), schedules.log_linear())
    with pytest.raises(ValueError, match="num_negatives = 0 must be at least 1"):
        stages(network, (2, 3), schedules.log_linear(), num_negatives=0)
    with pytest.raises(ValueError, match="class Transformer has no energy"):
        joint_objectives.contrastive(denoisers.subs(tiny_network(), 4), schedules.log_linear(), (2, 3))
    told = schedules.log_linear(1e-3)
    with pytest.raises(ValueError, match="given no time"):
        joint_objectives.contrastive(denoisers.subs(network, 4, told), told, (2, 3))


MARKOV = random_markov(2, 3, 4, 2.0)


@pytest.mark.slow
def test_both_heads_learn_what_they_are_for():
    """From nothing, on a Markov source of 3 symbols and length 4: the denoiser its law, the energy the log-ratio."""
    torch.manual_seed(0)
    network = JointNetwork(4, 4, hidden_size=32, num_layers=2, num_heads=2, conditioning_size=0)
    pipeline = stages(network, (1, 4), schedules.log_linear(), num_negatives=3)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, 400, pct_start=0.15)
    draws = torch.multinomial(MARKOV.flatten(), 401 * 128, True, generator=torch.Generator().manual_seed(0))
    *x_0, held_out = all_sequences(3, 4)[draws].view(401, 128, 4)
    for step, text in enumerate(x_0):
        optimizer.zero_grad()
        pipeline(keyed(text, step=step))[contracts.LOSS].mean().backward()
        optimizer.step()
        rate.step()
    table = table_of(network.eval())
    alphas = torch.linspace(0, 1, 3, dtype=torch.float64)
    best, own = (t_step_nelbo(each, alphas, all_sequences(3, 4)) for each in (marginal_table(MARKOV), table))
    assert float(expectation(MARKOV, own - best)) < 0.25  # of 3.07 nats per text; that knows nothing: 1.32

    with torch.no_grad():
        out = pipeline.eval()(keyed(held_out.repeat(20, 1), step=1 << 20))
    new = (out[contracts.X_T] != out[contracts.X_S]).any(1)
    exact = -residual_energy(MARKOV, table)(out[contracts.CANDIDATES][new], out[contracts.X_T][new])
    learned = -out[contracts.ENERGY][new].double()
    together = torch.cov(torch.stack([exact.flatten(), learned.flatten()]))
    assert 0.7 < together[0, 1] / together[0, 0] < 1.1
    assert together[0, 1] / together.diagonal().prod().sqrt() > 0.9

    def energy(candidates: Tensor, x_t: Tensor) -> Tensor:
        positions = (candidates[:, 0] != x_t).flatten().nonzero().squeeze(-1)
        with torch.no_grad():
            return joint.energy(network).module(candidates, x_t, positions).double()

    plain = sampler_law(table, alphas)
    corrected = sampler_law(table, alphas, energy, sir_by_quadrature(8), "revealed")
    assert total_variation(corrected, MARKOV) < 0.5 * total_variation(plain, MARKOV)


@torch.no_grad()
def table_of(network: JointNetwork) -> Tensor:
    """What the network predicts for every state, as a table like `marginal_table`."""
    states = all_masked_states(3, 4)
    law = denoisers.subs(network, 3).logits(network(states).flatten(0, 1)).double().softmax(-1).view(*states.shape, 4)
    visible = (states.unsqueeze(-1) == torch.arange(4)).double()
    return torch.where((states == 3).unsqueeze(-1), law, visible).log().unflatten(0, (4,) * 4)
