"""Padding that is never read: what a text says does not depend on the length of its block, in whatever reads it."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from builders import randomise, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from revealing import LENGTH, MASK, Step, state_of, steps
from torch import Tensor, nn

from edlm import chain_rule, contracts, denoisers, energies, folding, joint, networks, vocabulary

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


def test_a_vocabulary_with_an_end_is_another_one_and_is_kept(tmp_path) -> None:
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
