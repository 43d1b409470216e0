"""One network with two heads: its training, its sampler, and what it owes to two networks that do the same."""

import itertools

import pytest
import torch
from builders import at, randomise, tiny_network
from oracles import (
    EnergyFn,
    Lookup,
    MarginalsFn,
    all_sequences,
    index_of,
    random_joint,
    random_marginals,
    t_step_nelbo,
    zero_energy,
)
from scipy import stats
from tensordict import TensorDict
from torch import Tensor, nn

from edlm import (
    checkpoints,
    contracts,
    denoisers,
    folding,
    joint,
    likelihoods,
    networks,
    objectives,
    schedules,
    vocabulary,
)
from edlm.networks import JointNetwork
from edlm.schedules import Schedule

SYMBOLS, LENGTH = 2, 3
SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "conditioning_size": 8}


def joint_network(seed: int = 0, vocab_size: int = 5, max_length: int = 8, **changes: object) -> JointNetwork:
    """Random weights, float64, and an energy that is felt."""
    network = randomise(JointNetwork(vocab_size, max_length, **(SIZES | changes)), seed).double()
    with torch.no_grad():
        network.scalar.weight.mul_(3.0)
    return network


class TableJoint(nn.Module):
    """A joint network that is a formula: its states are log-probabilities (b, l, v) and the text that it read.

    It insists that what it is told of x_t are the states of x_t.
    """

    def __init__(self, marginals: MarginalsFn, energy: EnergyFn, mask_id: int, max_length: int) -> None:
        super().__init__()
        self.marginals, self.energy, self.mask_id, self.max_length = marginals, energy, mask_id, max_length
        self.head = TableHead(mask_id + 1)

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        read = tokens.unsqueeze(1).expand(-1, tokens.shape[1], -1)
        return at(torch.cat([self.marginals(tokens), read], dim=-1), positions)

    def scalars(self, states: Tensor, expected: Tensor, positions: Tensor) -> Tensor:
        x_s = states[:, 0, self.mask_id + 1 :].long()
        (there,) = torch.where(positions < x_s.numel())
        new = torch.zeros(x_s.numel(), dtype=torch.bool)
        new[positions[there]] = True
        new = new.view_as(x_s)
        x_t = torch.where(new, self.mask_id, x_s)
        assert torch.equal(expected[there], self(x_t, None, positions[there]))
        share = self.energy(x_s.unsqueeze(1), x_t).squeeze(1) / new.sum(1).clamp(min=1)
        return states.new_zeros(len(positions)).index_copy(0, there, share[positions[there] // x_s.shape[1]])


class TableHead(nn.Module):
    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        logits = hidden[..., : self.out_features].clone()  # the denoiser writes to them
        return logits if columns is None else logits[..., columns]


def keyed(x_0: Tensor, seed: int = 0, step: int = 0) -> TensorDict:
    numbers = {contracts.SEED: seed, contracts.STEP: step, contracts.NUM_ROWS: len(x_0)}
    keys = {name: torch.tensor(value) for name, value in numbers.items()}
    return TensorDict({contracts.X_0: x_0, contracts.ROW: torch.arange(len(x_0)), **keys})


def texts(n: int, symbols: int = SYMBOLS, length: int = LENGTH, seed: int = 0) -> Tensor:
    law = random_joint(seed, symbols, length, 1.5).flatten()
    chosen = torch.multinomial(law, n, True, generator=torch.Generator().manual_seed(seed))
    return all_sequences(symbols, length)[chosen]


# ---- The network


def test_it_starts_as_the_denoiser_it_is_given_and_with_no_energy():
    denoiser = tiny_network(num_layers=2)
    network = JointNetwork(5, 8, **SIZES).double().eval()
    networks.start_joint_from(network, denoiser)
    tokens, positions = torch.randint(0, 5, (3, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([1, 9])
    assert torch.equal(network(tokens), denoiser(tokens))
    assert torch.equal(network(tokens, None, positions), denoiser(tokens, None, positions))
    assert torch.equal(network.head(network(tokens)), denoiser.head(denoiser(tokens)))
    assert not network.scalars(network(tokens), network(tokens, None, positions), positions).any()
    with pytest.raises(ValueError, match=r"(?s)the joint network cannot start from the denoiser: .*size mismatch"):
        networks.start_joint_from(JointNetwork(5, 8, **{**SIZES, "hidden_size": 32}), denoiser)


def test_the_energy_knows_what_is_new_and_padded_positions_are_zero():
    """The same tokens with another set of new ones are another transition; the denoiser's law does not see which."""
    network, tokens = joint_network(), torch.tensor([[0, 1, 4, 2], [3, 4, 1, 1]])
    states = network(tokens)
    found = {}
    for new in ([0], [0, 1], [0, 1, 6]):
        positions = torch.tensor([*new, 8, 8])
        expected = torch.randn(len(positions), 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        scalars = network.scalars(states, expected, positions)
        torch.testing.assert_close(scalars[: len(new)], network.scalars(states, expected[: len(new)], positions[:-2]))
        assert not scalars[len(new) :].any()
        found[len(new)] = scalars
    assert found[1][0] != found[2][0]
    torch.testing.assert_close(found[3][:2], found[2][:2])  # a position of another row
    other = network.scalars(states, expected + 1.0, positions)
    assert (other[:3] != found[3][:3]).all()


def test_a_joint_network_is_saved_loaded_and_folded_with_both_heads(tmp_path):
    network, ids = joint_network(vocab_size=28).float(), vocabulary.characters()
    checkpoints.save_network(tmp_path / "joint", network, ids, {})
    loaded = checkpoints.load_as(JointNetwork, tmp_path / "joint", ids)
    folded = folding.fold_conditioning(loaded)
    assert not any("modulation" in name for name, _ in folded.named_parameters())
    tokens, positions = torch.randint(0, 28, (2, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([1, 9])
    for each in (loaded, folded):
        torch.testing.assert_close(each(tokens), network(tokens), rtol=1e-4, atol=1e-4)
        scalars = [n.scalars(n(tokens), n(tokens, None, positions), positions) for n in (each, network)]
        torch.testing.assert_close(*scalars, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="num_energy_layers = 0 must be at least 1"):
        JointNetwork(5, 8, num_energy_layers=0)


# ---- Training


def stages(network: nn.Module, num_steps: tuple[int, int], schedule: Schedule, **options: object):
    return joint.contrastive(denoisers.subs(network, network.head.out_features - 1), schedule, num_steps, **options)


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
    mean, error, _ = likelihoods.estimate(objectives.nelbo(out[contracts.LOG_PROB], out[contracts.WEIGHT]))
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
    assert torch.equal(out[contracts.CANDIDATES][:, 0], out[contracts.X_S])
    draws = out[contracts.CANDIDATES][:, 1]
    assert torch.equal(draws[kind != 1], out[contracts.X_S][kind != 1])
    assert set(draws[kind == 1].tolist()) == {0, 1}


def test_the_loss_is_the_weighted_sum_of_its_two_parts():
    network, x_0 = joint_network(), torch.randint(0, 4, (7, 8), generator=torch.Generator().manual_seed(1))
    grids, schedule = (2, 5), schedules.log_linear()
    out = stages(network, grids, schedule, num_negatives=3)(keyed(x_0))
    energy = out[contracts.ENERGY]
    nelbo = objectives.nelbo(out[contracts.LOG_PROB], out[contracts.WEIGHT]) / 8
    contrast = objectives.nce(energy[:, 0], energy[:, 1:])
    torch.testing.assert_close(out[contracts.LOSS], nelbo + contrast)
    options = {"nelbo_weight": 0.5, "energy_weight": 2.0, "objective": objectives.info_nce, "num_negatives": 3}
    weighted = stages(network, grids, schedule, **options)(keyed(x_0))[contracts.LOSS]
    torch.testing.assert_close(weighted, 0.5 * nelbo + 2.0 * objectives.info_nce(energy[:, 0], energy[:, 1:]))
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
    proposal = pipeline["draft"].stage["denoise"].module.network
    assert network.training
    assert not any(module.training for module in proposal.modules())
    assert all(own is other for own, other in zip(network.parameters(), proposal.parameters(), strict=True))
    drawn = pipeline(keyed(x_0))
    assert torch.equal(drawn[contracts.CANDIDATES], pipeline(keyed(x_0))[contracts.CANDIDATES])  # no dropout in there
    assert not torch.equal(drawn[contracts.LOSS], pipeline(keyed(x_0))[contracts.LOSS])
    with torch.no_grad():
        network.head.bias[:2] += 100.0
    changed = pipeline(keyed(x_0))[contracts.CANDIDATES][:, 1:]
    new = (drawn[contracts.X_T] != drawn[contracts.X_S]).unsqueeze(1)
    assert (changed[new] < 2).all()
    assert not (drawn[contracts.CANDIDATES][:, 1:][new] < 2).all()
    drawn[contracts.LOSS].sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_one_pass_reads_the_text_and_its_negatives():
    network, x_0 = joint_network(), torch.randint(0, 4, (7, 8), generator=torch.Generator().manual_seed(1))
    pipeline, read = stages(network, (2, 5), schedules.log_linear(), num_negatives=3), []
    for each in (network, pipeline["draft"].stage["denoise"].module.network):
        each.denoiser.register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0])))
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
        joint.contrastive(denoisers.subs(tiny_network(), 4), schedules.log_linear(), (2, 3))
    told = schedules.log_linear(1e-3)
    with pytest.raises(ValueError, match="told no time"):
        joint.contrastive(denoisers.subs(network, 4, told), told, (2, 3))
