"""Padding that is never read: what a text says does not depend on the length of its block, in whatever reads it."""

import json
from functools import partial
from pathlib import Path

import builders
import pytest
import torch
import torch.nn.functional as F
from builders import randomise, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from revealing import LENGTH, MASK, Step, state_of, steps
from torch import Tensor, nn

import edlm
from edlm import contracts
from edlm.data import vocabulary
from edlm.likelihood import bounds, nelbo
from edlm.models import chain_rule, denoisers, energies, joint
from edlm.nn import folding, networks
from edlm.process import schedules
from edlm.samplers.sampler import Sampler
from edlm.weights import checkpoints, exchange

PAD, LONGEST = 5, LENGTH + 30
SIZES = {"hidden_size": 16, "num_heads": 2, "conditioning_size": 8}
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-12)
pads = st.integers(1, LONGEST - LENGTH)
few = settings(max_examples=20, deadline=None)


def network(**changes: object) -> networks.Transformer:
    return tiny_network(vocab_size=6, max_length=LONGEST, **{"num_layers": 2, "pad_id": PAD, **changes})


def longer(tokens: Tensor, count: int) -> Tensor:
    """The same texts in blocks that are longer by so many pads."""
    return F.pad(tokens, (0, count), value=PAD)


def moved(positions: Tensor, count: int) -> Tensor:
    """Flat positions in blocks of `LENGTH` as those of the longer blocks."""
    return positions // LENGTH * (LENGTH + count) + positions % LENGTH


@few
@given(steps, pads, st.sampled_from([{}, {"conditioning_size": 0}, {"causal": True, "conditioning_size": 0}]))
def test_the_states_of_a_text_are_those_of_the_text_alone(step: Step, count: int, changes: dict[str, object]) -> None:
    net, x_t = network(**changes), step.x_t
    wanted = net(x_t)
    close(net(longer(x_t, count))[:, :LENGTH], wanted)
    close(net(longer(x_t, count), None, moved(step.positions, count)), wanted.flatten(0, 1)[step.positions])
    states, context = net(longer(x_t, count), keep=True)
    close(states[:, :LENGTH], wanted)
    close(context[..., :LENGTH, :], net(x_t, keep=True)[1])
    if not net.arguments["causal"]:
        folded = folding.fold_conditioning(net)
        close(folded(longer(x_t, count))[:, :LENGTH], wanted)
        reading = network(**changes, pad_id=None)(longer(x_t, count))[:, :LENGTH]
        assert (reading - wanted).abs().amax() > 1e-3, "pads that are read do change what is said of the text"


@few
@given(steps, pads)
def test_energies_of_transitions_are_those_of_the_texts_alone(step: Step, count: int) -> None:
    """By the chain rule, of a joint network, and learned over drafts and over transitions."""
    denoiser = denoisers.subs(network(), MASK)
    of_pairs = randomise(networks.EnergyNetwork(6, LONGEST, num_layers=2, **SIZES), 1).double()
    two_heads = randomise(networks.JointNetwork(6, LONGEST, num_layers=2, pad_id=PAD, **SIZES), 2).double()
    weighed = [
        chain_rule.energy(denoiser),
        chain_rule.exact_energy(denoiser),
        joint.energy(two_heads),
        energies.learned(of_pairs, pad_id=PAD),
        energies.learned_transition(of_pairs, pad_id=PAD),
    ]
    short = state_of(denoiser, step.x_t, step.t, step.candidates)
    long = state_of(denoiser, longer(step.x_t, count), step.t, longer(step.candidates, count))
    assert torch.equal(long[contracts.POSITIONS], moved(short[contracts.POSITIONS], count))
    for energy in weighed:
        wanted = energy(short.select(*energy.in_keys))[contracts.ENERGY]
        close(energy(long.select(*energy.in_keys))[contracts.ENERGY], wanted)
        assert step.most == 1 or wanted.abs().amax() > 1e-4, "one new token has no energy by the chain rule"


def test_a_pad_that_a_step_writes_is_no_mask_before_it_is_written() -> None:
    """It may be drawn like any token: until then its place is a mask, in whichever candidate the text is looked up."""
    step, net = Step(3), network()
    context, tokens = net(step.x_t, keep=True)[1], step.tokens(step.where)
    texts = step.candidates[:, 0], torch.where(step.new, PAD, step.x_t), step.x_t
    one, *others = (net.in_order(tokens, step.where, MASK, context, None, text) for text in texts)
    for other in others:
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [networks.Transformer, networks.JointNetwork])
def test_a_network_without_a_pad_id_is_not_asked_to_leave_anything_out(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[object] = []
    attend = F.scaled_dot_product_attention

    def noted(*tensors: Tensor, attn_mask: Tensor | None = None, **options: object) -> Tensor:
        masks.append(attn_mask)
        return attend(*tensors, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    kind(6, LONGEST, num_layers=1, **SIZES)(torch.full((2, LENGTH), PAD))
    network(causal=True, conditioning_size=0)(torch.full((2, LENGTH), PAD))
    assert masks == [None, None, None]


def test_a_network_that_leaves_pads_out_is_one_graph_for_any_text() -> None:
    net, compiled = network().float(), torch.compile(network().float(), backend="eager", fullgraph=True)
    for seed in range(3):
        text = longer(Step(seed).x_t, 5)
        with torch._dynamo.config.patch(error_on_recompile=seed > 0):
            torch.testing.assert_close(compiled(text), net(text))


def test_a_pad_id_outside_the_vocabulary_is_an_error() -> None:
    for kind in (networks.Transformer, networks.JointNetwork):
        for pad_id in (-1, 6):
            with pytest.raises(ValueError, match=f"pad_id = {pad_id} is outside the network's vocabulary of 6"):
                kind(6, LONGEST, pad_id=pad_id, **SIZES)


def kernels() -> dict[str, Sampler]:
    """Samplers of every kind, whose networks never read a pad."""
    denoiser, linear = denoisers.subs(network(), MASK), schedules.log_linear()
    of_pairs = randomise(networks.EnergyNetwork(6, LONGEST, num_layers=2, **SIZES), 1).double()
    two_heads = randomise(networks.JointNetwork(6, LONGEST, num_layers=2, pad_id=PAD, **SIZES), 2).double()
    ar = tiny_network(3, 6, LONGEST, causal=True, conditioning_size=0)
    drafts = builders.importance(linear, denoiser, energies.learned(of_pairs, pad_id=PAD), 3)
    residual = energies.residual_ar(ar, MASK, MASK, carry_over=False, pad_id=PAD)
    return {
        "plain": builders.ancestral(linear, denoiser),
        "drafts": drafts,
        "in rounds": builders.in_rounds(drafts, 2.0),
        "residual": builders.importance(linear, denoiser, residual, 3),
        "in order": builders.in_order(linear, denoiser, 3),
        "speculative": builders.speculative(linear, denoiser),
        "joint": builders.two_heads(linear, denoisers.subs(two_heads, MASK), 3),
    }


@pytest.mark.parametrize("num_steps", [3, None])
@pytest.mark.parametrize("kind", list(kernels()))
def test_a_prompt_that_ends_in_pads_is_a_shorter_text(kind: str, num_steps: int | None) -> None:
    kernel = kernels()[kind]
    for count in (1, 7):
        prompt = longer(torch.full((LENGTH,), MASK).unsqueeze(0), count)[0]
        short, long = (
            edlm.sample(builders.sampling(kernel, length, num_steps), 3, seed=4, prompt=given)
            for length, given in ((LENGTH, None), (LENGTH + count, prompt))
        )
        assert torch.equal(long["tokens"], longer(short["tokens"], count))
        assert torch.equal(long["info", "denoiser_passes"], short["info", "denoiser_passes"])


@few
@given(st.integers(0, 2**40), pads)
def test_the_bounds_of_a_text_are_those_of_the_text_alone(seed: int, count: int) -> None:
    denoiser, linear, grid = denoisers.subs(network(), MASK), schedules.log_linear(), schedules.uniform_grid(3)
    text = torch.randint(0, MASK, (2, LENGTH), generator=torch.Generator().manual_seed(seed))
    keys = torch.tensor(seed), torch.arange(2)
    of_pairs = randomise(networks.EnergyNetwork(6, LONGEST, num_layers=1, **SIZES), 1).double()
    energy = energies.learned(of_pairs, pad_id=PAD)
    scores = [
        lambda x_0, scored: nelbo.nelbo(denoiser, linear, x_0, *keys, scored),
        lambda x_0, scored: bounds.t_step_nelbo(denoiser, linear, grid, x_0, *keys, scored=scored).nats,
        lambda x_0, scored: (
            bounds.sampler_nelbo(denoiser, energy, linear, grid, x_0, *keys, num_particles=2, scored=scored).nats
        ),
        lambda x_0, scored: (
            bounds.transition_nelbo(
                denoiser, chain_rule.energy(denoiser), linear, grid, x_0, *keys, num_particles=2, scored=scored
            ).nats
        ),
    ]
    long = longer(text, count)
    for score in scores:
        close(score(long, nelbo.not_padding(long, PAD)), score(text, None), atol=1e-10)


# ---- Padding that is learned


@given(st.text("ab", max_size=5), st.text("ab", max_size=5), st.integers(1, 3))
def test_a_text_is_cut_where_it_ends(text: str, after: str, count: int) -> None:
    ids = vocabulary.characters("ab", specials=["pad"])
    ending = ids.ending_by_pad()
    tokens = torch.cat([ids.encode(text), torch.full((count,), ids.pad_id), ids.encode(after)])
    assert ending.decode(tokens) == text
    assert ids.decode(tokens) == text + after
    assert ending.decode(tokens, show_specials=True) == text + count * "<end>" + after
    assert ending.decode(ids.encode(text)) == text


def test_a_vocabulary_with_an_end_is_another_one_and_is_kept(tmp_path: Path) -> None:
    ids = vocabulary.characters("ab", specials=["bos", "pad"])
    ending = ids.ending_by_pad()
    assert (ending.pad_id, ending.end_id, ending.filler_id, ids.filler_id) == (None, 3, 3, 3)
    assert ending.fingerprint != ids.fingerprint
    ending.save(tmp_path)
    loaded = vocabulary.load_vocabulary(tmp_path)
    assert (loaded.end_id, loaded.pad_id, loaded.fingerprint) == (3, None, ending.fingerprint)
    ids.save(tmp_path)
    assert "end_id" not in (tmp_path / "vocabulary.json").read_text("utf-8"), "as it was before there was one"
    with pytest.raises(ValueError, match="without a pad id has nothing by which a text could end"):
        vocabulary.characters("ab").ending_by_pad()
    with pytest.raises(ValueError, match="end_id = 9 must lie in"):
        vocabulary.Vocabulary(ids.tokenizer, ids.size, ids.mask_id, end_id=9)


def test_a_network_that_never_reads_padding_has_no_published_form(tmp_path: Path) -> None:
    ids = vocabulary.characters("abcd", specials=["pad"])
    checkpoints.save_network(tmp_path / "own", tiny_network(vocab_size=6, pad_id=ids.pad_id), ids, {})
    with pytest.raises(ValueError, match=r"published networks read their padding, and this one never does"):
        exchange.export(tmp_path / "own", tmp_path / "published")
    assert checkpoints.load_network(tmp_path / "own").pad_id == ids.pad_id


def test_a_network_older_than_the_choice_reads_its_padding(tmp_path: Path) -> None:
    """Its folder says nothing of padding: the same network, bit for bit, and texts are not cut."""
    ids, net = vocabulary.characters("abcd", specials=["pad"]), tiny_network(vocab_size=6)
    checkpoints.save_network(tmp_path / "old", net, ids, {})
    description = json.loads((tmp_path / "old" / "network.json").read_text("utf-8"))
    del description["arguments"]["pad_id"], description["sha256"]
    (tmp_path / "old" / "network.json").write_text(json.dumps(description), encoding="utf-8")
    loaded = checkpoints.load_network(tmp_path / "old")
    text = torch.tensor([[1, 2, MASK + 1, ids.pad_id]])
    assert loaded.pad_id is None
    assert torch.equal(loaded(text), net.to(loaded.embedding.weight.dtype)(text))
    assert checkpoints.load_vocabulary_of(tmp_path / "old").decode(torch.tensor([0, ids.pad_id, 1])) == "ab"
