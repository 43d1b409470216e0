"""The energy that a denoiser has in itself: a law in order, what it owes to a pass per token, and its sampler."""

import math
from functools import partial
from pathlib import Path

import builders
import pytest
import torch
from builders import assert_whole_graphs, of_transitions
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_sequences, empirical_law, total_variation
from revealing import LENGTH, MASK, Step, denoiser, sharp, steps
from tensordict import TensorDict
from torch import Tensor

import edlm
from edlm import contracts, samplers
from edlm.contracts import Denoiser
from edlm.likelihood import hidden_markov
from edlm.models import chain_rule, denoisers, energies
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import networks
from edlm.objectives import transition
from edlm.process import schedules
from edlm.samplers import execution, pipelines
from edlm.samplers.sampler import Sampler

LINEAR = schedules.log_linear()
TOLD = schedules.log_linear(1e-3)
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-11)


# ---- The energy


def product_of_laws(own: SubsDenoiser, energy: TensorDict, x_t: Tensor, new: list[int]) -> Tensor:
    """`p_theta(x^S | x_t) exp(-E)` for every x^S, (symbols,) * |S| flat."""
    step = Step(0, 1, 1)
    step.x_t, step.new = x_t, torch.zeros_like(x_t, dtype=torch.bool)
    step.new[0, new] = True
    step.positions = torch.tensor(new)
    words = all_sequences(own.mask_id, len(new))
    step.candidates = x_t.repeat(len(words), 1).unsqueeze(0)
    step.candidates[0, :, new] = words
    state = step.state(own)
    log_p = state[contracts.LOG_P_CANDIDATES].sum(-1)
    return (log_p - energy(state)[contracts.ENERGY]).exp().squeeze(0).detach()


@settings(max_examples=25)
@given(st.integers(0, 2**62), st.integers(1, 3), st.integers(1, 3), st.sampled_from([None, TOLD]))
def test_it_is_normalised_whatever_the_weights(
    seed: int, num_layers: int, size: int, schedule: schedules.Schedule | None
) -> None:
    """Z = 1, for any network, any state and any set."""
    own = denoiser(num_layers, seed % 1000, schedule)
    x_t = Step(seed, 1, 1).x_t
    masked = (x_t[0] == MASK).nonzero().squeeze(-1).tolist()
    law = product_of_laws(own, chain_rule.energy(own), x_t, masked[:size])
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-9)


@given(steps, st.sampled_from([None, TOLD]))
def test_of_one_layer_it_is_that_of_a_pass_per_token(step: Step, schedule: schedules.Schedule | None) -> None:
    own = denoiser(1, 0, schedule)
    state = step.state(own)
    found, wanted = (build(own)(state)[contracts.ENERGY] for build in (chain_rule.energy, chain_rule.exact_energy))
    assert found.shape == step.candidates.shape[:2]
    close(found, wanted)


@given(steps)
def test_where_one_token_is_new_it_is_zero(step: Step) -> None:
    """In a row beside others as in a batch of such rows."""
    own = denoiser()
    alone = step.new.sum(1) == 1
    found = chain_rule.energy(own)(step.state(own))[contracts.ENERGY]
    assert (found[alone] == 0.0).all()
    assert (found[~alone] != 0.0).all()


def test_a_network_that_cannot_be_read_in_order_is_an_error() -> None:
    joint = networks.JointNetwork(5, LENGTH, hidden_size=16, num_layers=1, num_heads=2)
    for build in (chain_rule.energy, lambda own: builders.in_order(LINEAR, own, 2)):
        with pytest.raises(ValueError, match="class JointNetwork cannot be read in order, as a Transformer can"):
            build(denoisers.subs(joint, MASK))


# ---- Token by token


SOURCE = hidden_markov.random_markov(0, 3, 2.5)
EXACT = hidden_markov.denoiser(SOURCE, 5)


def test_of_an_exact_denoiser_the_chain_rule_is_the_exact_energy() -> None:
    """Of the text's tokens and of draws, with different numbers of new tokens in a batch."""
    x_0, row = hidden_markov.texts(SOURCE, 64, 5, seed=7), torch.arange(64)
    keys = {contracts.SEED: 0, contracts.STEP: 0, contracts.NUM_ROWS: 64}
    keyed = TensorDict({contracts.X_0: x_0, contracts.ROW: row, **{k: torch.tensor(v) for k, v in keys.items()}})
    state = transition.contrastive(EXACT, energies.zero(), LINEAR, (1, 4), 6)(keyed)
    candidates, x_t = state[contracts.CANDIDATES], state[contracts.X_T]
    new = candidates != x_t.unsqueeze(1)
    assert new.sum(-1).unique().numel() > 2
    law = (hidden_markov.state_law(SOURCE, x_t) @ SOURCE.emission).log().unsqueeze(1).expand(*candidates.shape, -1)
    log_p = torch.where(new, law.gather(-1, candidates.clamp(max=2).unsqueeze(-1)).squeeze(-1), 0.0)
    state[contracts.LOG_P_CANDIDATES] = log_p
    found = chain_rule.exact_energy(EXACT)(state)[contracts.ENERGY]
    wanted = log_p.sum(-1) - hidden_markov.log_conditional(SOURCE, candidates, x_t)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_token_by_token_it_asks_for_what_is_still_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And has read those of S left of it: each new token is asked for once, the first with nothing new before it."""
    asked, hidden = [], chain_rule._hidden

    def note(own: Denoiser, x_t: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        asked.append((x_t.flatten()[positions], (x_t != 3).sum(-1)))
        return hidden(own, x_t, t, positions)

    monkeypatch.setattr(chain_rule, "_hidden", note)
    x_t = torch.full((2, 5), 3)
    candidates = torch.zeros(2, 3, 5, dtype=torch.long)
    candidates[1, :, 2:] = 3  # two new tokens beside five
    log_p = torch.zeros(2, 3, 5, dtype=torch.float64)
    state = {contracts.CANDIDATES: candidates, contracts.X_T: x_t, contracts.LOG_P_CANDIDATES: log_p}
    chain_rule.exact_energy(EXACT)(TensorDict({**state, contracts.T: torch.ones(2)}))
    assert all((tokens == 3).all() for tokens, _ in asked)
    assert [visible.tolist() for _, visible in asked] == [[0] * 6, [1] * 6, [2] * 3, [3] * 3, [4] * 3]


# ---- Sampling


def apart(num_particles: int, own: SubsDenoiser, **options: object) -> Sampler:
    return of_transitions(own.module.schedule or LINEAR, own, chain_rule.energy(own), num_particles, **options)


@settings(max_examples=25)
@given(
    st.integers(0, 2**62),
    st.integers(1, 5),
    st.none() | st.integers(1, 5),
    st.sampled_from([(0.0, 1.0), (0.4, 0.8), (0.0, 0.5)]),
    st.sampled_from([None, torch.tensor([4, 2, 4, 4, 1]), torch.tensor([0, 1, 2, 3, 0, 1, 2, 4])]),
    st.sampled_from([None, TOLD]),
)
def test_it_gives_the_tokens_of_the_energy_as_one_of_its_own(
    seed: int,
    b: int,
    num_steps: int | None,
    window: tuple[float, float],
    prompt: Tensor | None,
    schedule: schedules.Schedule | None,
) -> None:
    """Rows that reveal different numbers of tokens, that end earlier, that are in the window and out of it at once."""
    own, group = denoiser(schedule=schedule), 1 if num_steps else 2
    kernels = builders.in_order(schedule or LINEAR, own, 3), apart(3, own)
    ours, theirs = (
        edlm.sample(
            builders.sampling(each, LENGTH, num_steps, window, tokens_per_pass=group), b, seed=seed, prompt=prompt
        )
        for each in kernels
    )
    assert torch.equal(ours["tokens"], theirs["tokens"])
    for key in ("t", "revealed", "corrected", "particles", "denoiser_passes"):
        assert torch.equal(ours["info", key], theirs["info", key])
    again = ours["info", "corrected"].sum(-1)  # by itself the energy reads x_t once more
    torch.testing.assert_close(ours["info", "energy_passes"] + again, theirs["info", "energy_passes"])
    torch.testing.assert_close(ours["info", "ess"], theirs["info", "ess"], equal_nan=True)
    in_rounds = [builders.in_rounds(each, 2.5) for each in kernels]
    ours, theirs = (
        edlm.sample(
            builders.sampling(each, LENGTH, num_steps, window, tokens_per_pass=group), b, seed=seed, prompt=prompt
        )
        for each in in_rounds
    )
    assert torch.equal(ours["tokens"], theirs["tokens"])
    assert torch.equal(ours["info", "particles"], theirs["info", "particles"])


def test_windows_that_move_on_and_one_particle() -> None:
    own = denoiser()
    longer = [
        edlm.extend(builders.sampling(each, LENGTH, 3), 13, 4, 3)
        for each in (builders.in_order(LINEAR, own, 4), apart(4, own))
    ]
    assert torch.equal(longer[0]["tokens"], longer[1]["tokens"])
    single, plain = (
        edlm.sample(builders.sampling(each, LENGTH, 3), 5)["tokens"]
        for each in (builders.in_order(LINEAR, own, 1), builders.ancestral(LINEAR, own))
    )
    assert torch.equal(single, plain)


def test_a_pass_reveals_what_is_masked_and_no_more() -> None:
    """`info`: as many tokens as the prompt leaves, some in every pass of a row, none in those it does not take."""
    prompt = torch.tensor([4, 2, 4, 4, 1])
    info = edlm.sample(builders.sampling(builders.ancestral(LINEAR, denoiser()), LENGTH, 4), 20, prompt=prompt)["info"]
    assert (info["revealed"].sum(1) == 6).all()
    assert torch.equal(info["revealed"] > 0, info["t"] > 0)


def test_a_text_is_read_once_per_step_and_two_rows_per_candidate_and_later_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the vocabulary head runs on what is drawn, and on that once per candidate."""
    own, k, read, asked = denoiser(), 3, [], []
    first = own.network.trunk.blocks[0].attention.qkv
    first.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[:-1].numel()))
    own.network.head.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
    out = edlm.sample(builders.sampling(builders.in_order(LINEAR, own, k), LENGTH, 3), 1, seed=1)
    revealed = out["info", "revealed"][0].tolist()
    assert max(revealed) > 1
    wanted = [[LENGTH, *([2 * k * (count - 1)] if count > 1 else [])] for count in revealed]
    assert read == [rows for step in wanted for rows in step]
    wanted = [[count, *([k * count] if count > 1 else [])] for count in revealed]
    assert asked == [rows for step in wanted for rows in step]


@pytest.mark.slow
def test_the_texts_it_draws_have_the_enumerated_law() -> None:
    """k = 2, two layers, 20,000 texts of 3 symbols and length 3; wrong with probability 1e-6."""
    n, own = 20_000, sharp(2)
    grid = schedules.uniform_grid(1)
    law = builders.law_of(own, LINEAR, grid, 3, chain_rule.energy(own), 2, "sir", "revealed")
    drawn = edlm.sample(builders.sampling(builders.in_order(LINEAR, own, 2), 3, 1), n, seed=5)["tokens"]
    found, law = empirical_law(drawn, 3), law.flatten()
    # P(TV > mean + e) <= exp(-2 n e^2), and the mean is at most half of sum sqrt(p (1 - p) / n).
    bound = 0.5 * float((law * (1 - law) / n).sqrt().sum()) + math.sqrt(math.log(1e6) / (2 * n))
    plain = builders.law_of(own, LINEAR, grid, 3, None, 1, "sir", "revealed").flatten()
    assert total_variation(found, law) < bound < total_variation(law, plain)


def test_with_more_particles_a_step_tends_to_writing_from_left_to_right() -> None:
    """At one step and of one layer, whose law in order is that of a pass per token; distances by enumeration."""
    own = sharp(1)
    energy, words = chain_rule.energy(own), all_sequences(3, 3)
    told = torch.zeros(len(words), dtype=torch.float64)
    for place in range(3):
        text = torch.where(torch.arange(3) < place, words, 3)
        law = own.logits(own.network(text)[:, place]).log_softmax(-1)
        told += law.gather(-1, words[:, place : place + 1]).squeeze(-1)
    far = [
        total_variation(
            builders.law_of(own, LINEAR, schedules.uniform_grid(1), 3, energy, k, "sir", "revealed").flatten(),
            told.exp(),
        )
        for k in (1, 4, 64)
    ]
    assert far[0] > 2 * far[1] > 8 * far[2]
    assert far[2] < 0.01


def test_the_bound_falls_by_what_the_denoiser_knows() -> None:
    """At one step, of the text that the denoiser itself writes from left to right: exact, over all texts."""
    own, words = sharp(1), all_sequences(3, 3)
    energy, grid = chain_rule.energy(own), schedules.uniform_grid(1)
    told = product_of_laws(own, energy, torch.full((1, 3), 3), [0, 1, 2])
    reps = 50  # draws of the rivals for each text
    texts, rows = words.repeat_interleave(reps, 0), torch.arange(len(words) * reps)
    found = builders.transition_bound(own, energy, LINEAR, grid, texts, torch.tensor(0), rows, num_particles=16)
    fall = (told * found.excess.view(-1, reps).mean(1)).sum() * 3
    law = builders.law_of(own, LINEAR, grid, 3, None, 1, "sir", "revealed").flatten()
    most = (told * (law.log() - told.log())).sum()  # the KL of the two laws
    assert float(most) < -0.03
    assert float(most) < float(fall) < 0.7 * float(most)


def test_dropout_left_on_is_an_error() -> None:
    net = networks.Transformer(5, LENGTH, hidden_size=16, num_layers=1, num_heads=2, dropout=0.1).train()
    kernel = builders.in_order(LINEAR, denoisers.subs(net, MASK), 2)
    with pytest.raises(ValueError, match="dropout is on at "):
        edlm.sample(builders.sampling(kernel, LENGTH, 2))


def test_a_step_is_printed_as_the_documents_show_it() -> None:
    document = Path(__file__).parents[2] / "docs" / "explanation" / "transition.md"
    assert samplers.describe(builders.in_order(LINEAR, denoiser(), 2)) in document.read_text("utf-8")


# ---- Execution


def in_and_out_of_its_window(in_rounds: bool = False) -> pipelines.Pipeline:
    kernel = builders.in_order(LINEAR, denoiser(), 3)
    kernel = builders.in_rounds(kernel, 2.5) if in_rounds else kernel
    return builders.sampling(kernel, LENGTH, None, (0.3, 1.0), tokens_per_pass=3)


@pytest.mark.parametrize("in_rounds", [False, True])
@pytest.mark.parametrize("b", [1, 2, 5])
def test_what_is_wrapped_around_a_step_changes_no_token(
    b: int, in_rounds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    slow = in_and_out_of_its_window(in_rounds)
    for prompt in (None, torch.tensor([4, 2, 4, 1, 0, 3, 2, 4])):
        ours, expected = (edlm.sample(each, b, prompt=prompt) for each in (edlm.accelerate(slow, "compile"), slow))
        assert torch.equal(ours["tokens"], expected["tokens"])


@pytest.mark.slow
def test_a_step_is_one_graph_for_any_batch_size(fresh_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any number of new tokens too."""
    assert_whole_graphs(in_and_out_of_its_window(), monkeypatch)


@pytest.mark.slow
def test_as_an_energy_of_its_own_it_is_one_graph_too(fresh_compiler: None) -> None:
    """There no number of new tokens is known beforehand: as many as there are positions."""
    own = denoiser()
    traced = execution.one_graph(chain_rule.energy(own))
    with torch.no_grad():
        state = Step(3, 3, 2).state(own)
        close(traced(state)[contracts.ENERGY], chain_rule.energy(own)(state)[contracts.ENERGY])


@pytest.mark.slow
@pytest.mark.skipif(bool(execution.missing_compiler(torch.device("cpu"))), reason="needs a C++ compiler")
def test_compiled_and_eager_give_the_same_tokens(fresh_compiler: None) -> None:
    slow = builders.sampling(builders.in_order(LINEAR, denoiser(1), 3), LENGTH, 2)
    fast = edlm.accelerate(slow, "compile")
    ours, expected = (edlm.sample(each, 4, seed=4) for each in (fast, slow))
    assert torch.equal(ours["tokens"], expected["tokens"])
    torch.testing.assert_close(ours["info", "ess"], expected["info", "ess"], equal_nan=True)
