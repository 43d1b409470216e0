"""One network with two heads: its training, its sampler, and what it owes to two networks that do the same."""

import itertools
from pathlib import Path

import builders
import pytest
import torch
from builders import SELECTIONS, assert_whole_graphs, at, randomise, tiny_network, wave_energy, wave_marginals
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    EnergyFn,
    Lookup,
    MarginalsFn,
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
from specifications import Spec, prompts, specs
from tensordict import TensorDict
from torch import Tensor, nn

import edlm
from edlm import contracts, samplers
from edlm.data import vocabulary
from edlm.likelihood import estimates
from edlm.models import denoisers, joint
from edlm.nn import folding, starts
from edlm.nn.networks import JointNetwork
from edlm.objectives import joint as joint_objectives
from edlm.objectives import losses
from edlm.process import schedules
from edlm.process.schedules import Schedule
from edlm.samplers import pipelines
from edlm.samplers.pipelines import Pipeline
from edlm.weights import checkpoints

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
        assert torch.allclose(expected[there], self(x_t, None, positions[there]))
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
    whole = {contracts.NUM_ROWS: len(x_0), contracts.NUM_TOKENS: x_0.numel()}
    numbers = {contracts.SEED: seed, contracts.STEP: step, **whole}
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
    starts.start_joint_from(network, denoiser)
    tokens, positions = torch.randint(0, 5, (3, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([1, 9])
    assert torch.equal(network(tokens), denoiser(tokens))
    assert torch.equal(network(tokens, None, positions), denoiser(tokens, None, positions))
    assert torch.equal(network.head(network(tokens)), denoiser.head(denoiser(tokens)))
    assert not network.scalars(network(tokens), network(tokens, None, positions), positions).any()
    with pytest.raises(ValueError, match=r"(?s)the joint network cannot start from the denoiser: .*size mismatch"):
        starts.start_joint_from(JointNetwork(5, 8, **{**SIZES, "hidden_size": 32}), denoiser)


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


# ---- Sampling


def two_networks(spec: Spec) -> Pipeline:
    """The denoiser and the energy of the spec, each with passes of its own."""
    return spec._replace(proposes="revealed").pipeline()


def one_network(spec: Spec, read: list[int] | None = None) -> Pipeline:
    """The same law and energy in one network, whose passes are noted down by their number of rows."""
    marginals, energy = wave_marginals(spec.seed, spec.symbols, spec.length), wave_energy(spec.seed, spec.length)
    network = TableJoint(marginals, energy, spec.mask_id, spec.length)
    if read is not None:
        network.register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0])) if len(inputs) == 1 else None)
    kernel = builders.two_heads(
        spec.schedule,
        denoisers.subs(network, spec.mask_id),
        spec.num_particles,
        spec.temperature,
        SELECTIONS[spec.selection],
    )
    twin = two_networks(spec)
    return pipelines.pipeline(kernel.replace(plan=twin.sampler.plan, window=twin.sampler.window), twin.length)


@settings(max_examples=40)
@given(specs(("sir", "imh", "greedy")), st.integers(1, 5), st.integers(0, 2**62), st.data())
def test_it_gives_the_tokens_of_two_networks_one_for_one(spec: Spec, b: int, seed: int, data: st.DataObject):
    """Rows of several lengths, prompts, windows: `TableJoint` sees to it that the right states are carried."""
    prompt = data.draw(prompts(spec, b))
    ours, theirs = (
        edlm.sample(pipeline, b, seed=seed, prompt=prompt) for pipeline in (one_network(spec), two_networks(spec))
    )
    assert torch.equal(ours["tokens"], theirs["tokens"])
    for key in ("t", "corrected", "particles", "energy_passes"):
        assert torch.equal(ours["info", key], theirs["info", key])
    torch.testing.assert_close(ours["info", "ess"], theirs["info", "ess"], equal_nan=True)
    alone = edlm.sample(one_network(spec), 1, seed=seed, first_row=b - 1, prompt=_last(prompt))
    assert torch.equal(alone["tokens"], ours["tokens"][-1:])


def _last(prompt: Tensor | None) -> Tensor | None:
    return prompt if prompt is None or prompt.ndim == 1 else prompt[-1:]


@settings(max_examples=40)
@given(specs(("sir",)), st.integers(1, 4), st.integers(0, 2**62))
def test_with_one_particle_or_outside_the_window_it_is_the_plain_sampler(spec: Spec, b: int, seed: int):
    plain = edlm.sample(spec.plain(), b, seed=seed)["tokens"]
    single = one_network(spec._replace(num_particles=1, window=(0.0, 1.0)))
    assert torch.equal(edlm.sample(single, b, seed=seed)["tokens"], plain)
    never = one_network(spec)
    never = never._replace(kernel=never.kernel.outside)
    assert torch.equal(edlm.sample(never, b, seed=seed)["tokens"], plain)


@settings(max_examples=40)
@given(specs(("sir",)), st.integers(1, 5), st.integers(0, 2**62))
def test_every_step_takes_one_pass_of_its_candidates_and_the_first_one_more(spec: Spec, b: int, seed: int):
    """Of the network, over all rows that still run; outside the window a pass of the denoiser instead."""
    read: list[int] = []
    info = edlm.sample(one_network(spec, read), b, seed=seed)["info"]
    passes = (info["t"] > 0).sum(1)
    expected, before = [], False
    for p in range(info["t"].shape[1]):
        running, corrected = int((passes > p).sum()), bool(info["corrected"][:, p].any())
        if corrected:
            expected += [running] * (not before) + [running * spec.num_particles]
        before = corrected
    assert read == expected


@settings(max_examples=40)
@given(specs(("sir",)), st.integers(2, 5), st.integers(0, 2**62))
def test_the_passes_of_a_text_are_those_it_takes_alone_whatever_is_beside_it(spec: Spec, b: int, seed: int):
    together = edlm.sample(one_network(spec), b, seed=seed)["info"]
    for row in range(b):
        read: list[int] = []
        info = edlm.sample(one_network(spec, read), 1, seed=seed, first_row=row)["info"]
        outside = int((~info["corrected"] & (info["t"] > 0)).sum())  # plain passes, of another kernel than is counted
        assert sum(read) + outside == int(info["denoiser_passes"] + info["energy_passes"])
        for key in ("denoiser_passes", "energy_passes"):
            assert torch.equal(together[key][row], info[key][0])


def test_a_text_of_t_steps_costs_one_pass_of_the_denoiser_and_one_of_k_candidates_per_step():
    network, read = joint_network(), []
    network.denoiser.register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0])))
    kernel = builders.two_heads(schedules.log_linear(), denoisers.subs(network, 4), num_particles=3)
    out = edlm.sample(builders.sampling(kernel, 8, num_steps=None, tokens_per_pass=2), 1)
    assert read == [1, 3, 3, 3, 3]
    assert int(out["info", "denoiser_passes"]) == 1
    assert int(out["info", "energy_passes"]) == 12


def test_one_set_of_weights_is_all_that_a_kernel_holds():
    network = joint_network()
    kernel = builders.two_heads(schedules.log_linear(), denoisers.subs(network, 4), num_particles=3)
    own = {id(each) for each in network.parameters()}
    built = samplers.kernel_of(kernel)
    for each in (built, samplers.kernel_of(builders.in_rounds(kernel, 2.0)), built.outside):
        held = {id(weight) for weight in each.step.parameters()}
        assert held
        assert held <= own
    assert {id(weight) for weight in built.step.parameters()} == own


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.4, 0.8), (0.0, 0.5)])
def test_a_network_of_ours_gives_the_tokens_of_its_two_heads_taken_apart(window: tuple[float, float]):
    denoiser, schedule = denoisers.subs(joint_network(), 4), schedules.log_linear()
    energy = joint.energy(denoiser.network)
    shared = builders.two_heads(schedule, denoiser, 4)
    apart = builders.of_transitions(schedule, denoiser, energy, 4)
    prompt = torch.tensor([4, 2, 4, 4, 1])
    ours, theirs, plain = (
        edlm.sample(builders.sampling(kernel, 8, 5, window), 6, prompt=prompt)
        for kernel in (shared, apart, builders.ancestral(schedule, denoiser))
    )
    assert torch.equal(ours["tokens"], theirs["tokens"])
    assert not torch.equal(ours["tokens"], plain["tokens"])
    torch.testing.assert_close(ours["info", "ess"], theirs["info", "ess"], equal_nan=True)
    longer = [edlm.extend(builders.sampling(kernel, 8, 5, window), 13, 4, 3) for kernel in (shared, apart)]
    assert torch.equal(longer[0]["tokens"], longer[1]["tokens"])
    assert (longer[0]["info", "denoiser_passes"] < longer[1]["info", "denoiser_passes"]).all()


@settings(max_examples=30)
@given(specs(("sir", "imh", "greedy")), st.integers(1, 4), st.integers(0, 2**62), st.floats(0.5, 4.0))
def test_in_rounds_it_gives_the_tokens_of_two_networks_and_carries_the_winners_states(
    spec: Spec, b: int, seed: int, target_ess: float
):
    """Each row draws as many particles as it takes, and no pass of the denoiser is made for any of them."""
    shared, apart = one_network(spec), two_networks(spec)
    first = min(2, spec.num_particles)
    ours, theirs = (
        edlm.sample(builders.with_rounds(each, target_ess, first), b, seed=seed) for each in (shared, apart)
    )
    assert torch.equal(ours["tokens"], theirs["tokens"])
    for key in ("particles", "energy_passes"):
        assert torch.equal(ours["info", key], theirs["info", key])
    single = edlm.sample(shared, b, seed=seed)["info"]
    assert torch.equal(ours["info", "denoiser_passes"], single["denoiser_passes"])
    assert (ours["info", "energy_passes"] <= single["energy_passes"]).all()


def test_dropout_left_on_in_a_joint_network_is_an_error():
    network = joint_network(dropout=0.1).train()
    kernel = builders.two_heads(schedules.log_linear(), denoisers.subs(network, 4), 2)
    with pytest.raises(ValueError, match="dropout is on at "):
        edlm.sample(builders.sampling(kernel, 8, 2))


def test_a_step_is_printed_as_the_documents_show_it():
    kernel = builders.two_heads(schedules.log_linear(), denoisers.subs(joint_network(), 4), 2)
    document = Path(__file__).parents[2] / "docs" / "explanation" / "transition.md"
    assert samplers.describe(kernel) in document.read_text("utf-8")


def in_and_out_of_its_window() -> Pipeline:
    """Rows that are in the window and out of it at the same pass, and leave it at different ones."""
    kernel = builders.two_heads(schedules.log_linear(), denoisers.subs(joint_network(), 4), 3)
    return builders.sampling(kernel, 8, None, (0.3, 0.8))


@pytest.mark.parametrize("in_rounds", [False, True])
@pytest.mark.parametrize("b", [1, 2, 5])
def test_what_is_wrapped_around_a_step_changes_no_token(b: int, in_rounds: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    slow = in_and_out_of_its_window()
    if in_rounds:
        slow = builders.with_rounds(slow, 2.0)
    for prompt in (None, torch.tensor([4, 2, 4, 1, 0, 3, 2, 4])):
        ours, expected = (edlm.sample(each, b, prompt=prompt) for each in (edlm.accelerate(slow, "compile"), slow))
        assert torch.equal(ours["tokens"], expected["tokens"])
        assert torch.equal(ours["info", "denoiser_passes"], expected["info", "denoiser_passes"])


@pytest.mark.slow
def test_a_step_is_one_graph_for_any_batch_size(fresh_compiler: None, monkeypatch: pytest.MonkeyPatch):
    assert_whole_graphs(in_and_out_of_its_window(), monkeypatch)
