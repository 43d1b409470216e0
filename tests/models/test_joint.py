"""One network with two heads: its energy, its sampler, and what it owes to two networks that do the same."""

from pathlib import Path

import builders
import pytest
import torch
from builders import SELECTIONS, assert_whole_graphs, tiny_network, wave_energy, wave_marginals
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_networks import SIZES, TableJoint, joint_network
from specifications import Spec, prompts, specs
from torch import Tensor

import edlm
from edlm import samplers
from edlm.data import vocabulary
from edlm.models import denoisers, joint
from edlm.nn import folding, starts
from edlm.nn.networks import JointNetwork
from edlm.process import schedules
from edlm.samplers import pipelines
from edlm.samplers.pipelines import Pipeline
from edlm.weights import checkpoints

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


@settings(max_examples=25)
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


@settings(max_examples=25)
@given(specs(("sir",)), st.integers(1, 8), st.integers(0, 2**62))
def test_with_one_particle_or_outside_the_window_it_is_the_plain_sampler(spec: Spec, b: int, seed: int):
    plain = edlm.sample(spec.plain(), b, seed=seed)["tokens"]
    single = one_network(spec._replace(num_particles=1, window=(0.0, 1.0)))
    assert torch.equal(edlm.sample(single, b, seed=seed)["tokens"], plain)
    never = one_network(spec)
    never = never._replace(kernel=never.kernel.outside)
    assert torch.equal(edlm.sample(never, b, seed=seed)["tokens"], plain)


@settings(max_examples=25)
@given(specs(("sir",)), st.integers(1, 8), st.integers(0, 2**62))
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


@settings(max_examples=25)
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
