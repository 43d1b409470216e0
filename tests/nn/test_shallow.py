"""A denoiser that is read in order by one block: the laws of `contracts.Ordered`, and what a round costs."""

from functools import partial

import pytest
import torch
from forgetting import forgetting
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_sequences
from revealing import Step, state_of
from tensordict import TensorDict
from torch import Tensor, nn

import edlm
from edlm import contracts
from edlm.data import vocabulary
from edlm.likelihood import bounds, enumeration, hidden_markov
from edlm.models import chain_rule, denoisers
from edlm.nn import folding, networks, shallow
from edlm.nn.shallow import ShallowNetwork
from edlm.objectives import chain_rule as objectives
from edlm.process import schedules
from edlm.samplers import corrections, pipelines, plans
from edlm.weights import checkpoints

MASK, LENGTH = 4, 8
SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2}
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-10)


def network(seed: int = 0, vocab_size: int = MASK + 1, max_length: int = LENGTH, **changes: object) -> ShallowNetwork:
    """One that was moved away from its start, so that nothing in it is zero."""
    torch.manual_seed(seed)
    made = ShallowNetwork(vocab_size, max_length, **{**SIZES, "conditioning_size": 0, **changes}).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return made


def denoiser(seed: int = 0, **changes: object) -> denoisers.SubsDenoiser:
    made = network(seed, **changes)
    return denoisers.subs(made, made.head.out_features - 1)


def written_in_order(own: denoisers.SubsDenoiser, num_steps: int) -> edlm.samplers.Sampler:
    plan, law = plans.Grid(num_steps), corrections.ChainRule()
    return edlm.samplers.Sampler(own, plan, correction=law, selection="speculative")


# ---- The laws of a network that is read in order


@torch.no_grad()
def test_without_its_block_it_is_the_transformer() -> None:
    own = network()
    plain = networks.Transformer(MASK + 1, LENGTH, **SIZES, conditioning_size=0).double().eval()
    plain.load_state_dict({k: v for k, v in own.state_dict().items() if k.split(".")[0] not in ("ordered", "written")})
    tokens, positions = torch.randint(MASK + 1, (3, LENGTH)), torch.tensor([1, 9, 20])
    close(own(tokens), plain(tokens))
    close(own(tokens, None, positions), plain(tokens, None, positions))
    states, context = own(tokens, None, positions, keep=True)
    close(states, plain(tokens, None, positions))
    assert context.shape == (3, 3, LENGTH, SIZES["hidden_size"])


def test_it_is_a_network_that_is_read_in_order() -> None:
    assert isinstance(network(), contracts.Ordered)


@torch.no_grad()
def test_before_it_is_trained_every_new_token_has_the_law_it_had_alone() -> None:
    made = ShallowNetwork(MASK + 1, LENGTH, **SIZES, conditioning_size=0).double().eval()
    step = Step(0)
    states, context = made(step.x_t, None, step.positions, keep=True)
    found = made.in_order(step.tokens(step.where), step.where, MASK, context)
    for row in range(len(step.x_t)):
        places = step.new[row].nonzero().squeeze(-1)
        own = states[step.positions // LENGTH == row]
        close(found[row, :, : len(places) - 1], own[1:].expand(2, -1, -1))


@torch.no_grad()
@given(st.integers(0, 2**62), st.integers(1, 6))
@settings(max_examples=25)
def test_a_token_hears_of_those_before_it_alone(seed: int, k: int) -> None:
    """Changing a token changes the states of later ones of its candidate, and nothing else."""
    step, own = Step(seed, k=k), network(seed % 3)
    if step.most < 3:
        return
    _, context = own(step.x_t, keep=True)
    tokens, row = step.tokens(step.where), int(step.new.sum(1).argmax())
    number = seed % (step.most - 1)
    other = tokens.clone()
    other[row, k - 1, number] = (other[row, k - 1, number] + 1) % MASK
    before, after = (own.in_order(each, step.where, MASK, context) for each in (tokens, other))
    same = (before - after).abs().amax(-1) < 1e-12
    wanted = torch.ones_like(same)
    wanted[row, k - 1, number:] = False  # state j predicts token j + 1
    assert torch.equal(
        same[step.where[:, 1:].unsqueeze(1).expand_as(same) < LENGTH],
        wanted[step.where[:, 1:].unsqueeze(1).expand_as(same) < LENGTH],
    )


@torch.no_grad()
def test_padding_is_not_read() -> None:
    own, step = network(pad_id=0), Step(3)
    longer = torch.cat([step.x_t.clamp(min=1), torch.zeros(3, 2, dtype=torch.int64)], dim=1)
    _, short = own(longer[:, :LENGTH], keep=True)
    _, long = own(longer, keep=True)
    tokens = step.tokens(step.where)
    later = torch.where(step.where == LENGTH, LENGTH + 2, step.where)
    found = [
        own.in_order(tokens, where, MASK, context, None, text)
        for where, context, text in ((step.where, short, longer[:, :LENGTH]), (later, long, longer))
    ]
    there = (step.where[:, 1:] < LENGTH).unsqueeze(1).expand(-1, 2, -1)
    close(found[0][there], found[1][there])


@torch.no_grad()
def test_folding_the_conditioning_changes_no_state() -> None:
    own, step = network(conditioning_size=8), Step(1)
    folded = folding.fold_conditioning(own)
    for each in (own, folded):
        assert isinstance(each, ShallowNetwork)
    contexts = [each(step.x_t, keep=True) for each in (own, folded)]
    tokens = step.tokens(step.where)
    found = [
        each.in_order(tokens, step.where, MASK, pair[1]) for each, pair in zip((own, folded), contexts, strict=True)
    ]
    close(contexts[0][0], contexts[1][0], atol=1e-7)
    close(found[0], found[1], atol=1e-7)


# ---- Its own law


def in_order(own: denoisers.SubsDenoiser, words: Tensor) -> Tensor:
    """`q(x)` of whole texts where all is masked."""
    state = state_of(own, torch.full((1, words.shape[1]), own.mask_id), torch.ones(1).double(), words.unsqueeze(0))
    log_p = state[contracts.LOG_P_CANDIDATES].sum(-1)
    return (log_p - chain_rule.energy(own)(state)[contracts.ENERGY]).exp().squeeze(0).detach()


@pytest.mark.parametrize("seed", range(3))
def test_its_law_sums_to_one_whatever_the_weights_are(seed: int) -> None:
    own, words = denoiser(seed, vocab_size=4, max_length=4), all_sequences(3, 4)
    law = in_order(own, words)
    close(law.sum(), torch.ones((), dtype=torch.float64))
    made = written_in_order(own, 1)
    close(enumeration.law(made, 4).flatten(), law)
    found = bounds.of_sampler(made, words, torch.tensor(0), torch.arange(len(words)))
    close(4 * found.nats, -law.log())
    assert float((law - alone(own, words)).abs().sum()) > 1e-3, "the block does something"


def alone(own: denoisers.SubsDenoiser, words: Tensor) -> Tensor:
    """`prod_i p_i(x_i)` of the denoiser without its block."""
    state = state_of(own, torch.full((1, words.shape[1]), own.mask_id), torch.ones(1).double(), words.unsqueeze(0))
    return state[contracts.LOG_P_CANDIDATES].sum(-1).exp().squeeze(0).detach()


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [1, 3])
def test_texts_are_those_of_one_token_after_the_other(num_steps: int) -> None:
    """Prefix speculation, which throws away what follows a refusal, writes the same texts, token for token."""
    own = denoiser(1)
    made = edlm.samplers.Sampler(
        own, plans.Grid(num_steps), correction=corrections.ChainRule(), selection="speculative"
    )
    pipeline = pipelines.pipeline(made, LENGTH)
    found = edlm.sample(pipeline, 20, seed=3)
    prefix = edlm.sample(forgetting(pipeline), 20, seed=3)
    assert torch.equal(found["tokens"], prefix["tokens"])


@torch.no_grad()
def test_a_round_runs_one_block_whatever_the_depth_is() -> None:
    own = denoiser(1, num_layers=4)
    calls = {"trunk": 0, "ordered": 0}
    own.network.trunk.blocks[0].register_forward_hook(lambda *_: calls.update(trunk=calls["trunk"] + 1))
    own.network.ordered.register_forward_hook(lambda *_: calls.update(ordered=calls["ordered"] + 1))
    info = edlm.sample(pipelines.pipeline(written_in_order(own, 2), LENGTH), 1, seed=0)["info"]
    assert calls == {"trunk": int((info["revealed"] > 0).sum()), "ordered": int(info["rounds"].sum())}


# ---- Training


def test_a_frozen_denoiser_stays_as_it_is_and_its_law_in_order_gets_better() -> None:
    """A Markov source of three symbols: in 60 steps of the objective the bound of one step falls, the NELBO stays."""
    source = hidden_markov.random_markov(0, 3, strength=3.0)
    torch.manual_seed(0)
    plain = networks.Transformer(4, 4, **SIZES, conditioning_size=0)
    nn.init.normal_(plain.head.weight)
    made = ShallowNetwork(4, 4, **SIZES, conditioning_size=0)
    shallow.start_from(made, plain)
    kept = {name: value.clone() for name, value in plain.state_dict().items()}
    own, schedule = denoisers.subs(made, 3), schedules.log_linear()
    stages = objectives.denoising(own, schedule, (1, 4))
    wanted = [each for each in made.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(wanted, lr=1e-2)
    sampler = written_in_order(own, 1)
    words = hidden_markov.texts(source, 64, 4, seed=9)
    nats = []
    for step in range(61):
        if step in (0, 60):
            nats.append(bounds.of_sampler(sampler, words, torch.tensor(0), torch.arange(64)).nats.mean())
        batch = {"x_0": hidden_markov.texts(source, 32, 4, seed=0, first_row=32 * step)}
        keys = {"seed": torch.tensor(0), "row": torch.arange(32), "step": torch.tensor(step)}
        counted = {"num_rows": torch.tensor(32)}
        optimiser.zero_grad()
        stages(TensorDict({**batch, **keys, **counted}))["loss"].mean().backward()
        optimiser.step()
    assert nats[1] < nats[0] - 0.1
    assert all(torch.equal(made.state_dict()[name], value) for name, value in kept.items())


def test_a_denoiser_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot start from the denoiser"):
        shallow.start_from(network(), networks.Transformer(MASK + 1, LENGTH, **{**SIZES, "num_layers": 1}))


def test_it_is_saved_and_loaded(tmp_path) -> None:
    own = ShallowNetwork(3, LENGTH, **SIZES)
    checkpoints.save_network(tmp_path / "network", own, vocabulary.characters("ab"), {})
    found = checkpoints.load_network(tmp_path / "network")
    assert isinstance(found, ShallowNetwork)
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in found.state_dict().items())
