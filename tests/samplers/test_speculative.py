"""What a step reveals, written in order: the same as one token after the other, with the law of the chain rule."""

import math
from typing import NamedTuple

import builders
import pytest
import torch
from builders import assert_whole_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_sequences, empirical_law, total_variation
from revealing import LENGTH, MASK, denoiser, sharp, state_of
from torch import Tensor

import edlm
from edlm import contracts
from edlm.models import chain_rule, denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import networks
from edlm.process import absorbing, categorical, noise, schedules
from edlm.process.noise import Stream
from edlm.samplers import execution, pipelines

LINEAR = schedules.log_linear()
TOLD = schedules.log_linear(1e-3)
PROMPTS = [None, torch.tensor([4, 2, 4, 4, 1]), torch.tensor([0, 1, 2, 3, 0, 1, 2, 4])]


# ---- Kept or replaced


@given(st.integers(0, 2**62), st.integers(2, 6), st.sampled_from([0.3, 1.0, 5.0]))
def test_a_draw_that_is_kept_or_replaced_has_the_wanted_law(seed: int, v: int, scale: float) -> None:
    """`min(p, q) + P(refused) (q - p)_+ / sum`, the draws counted on a grid of so many uniforms."""
    generator, n = torch.Generator().manual_seed(seed), 4000
    p, q = (scale * torch.randn(1, v, generator=generator, dtype=torch.float64) for _ in range(2))
    if v > 3:
        p[0, 0], q[0, 1] = -torch.inf, -torch.inf  # what only one of them can say
    uniforms = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn = categorical.residual(q.expand(n, v), p.expand(n, v), uniforms)
    replaced = torch.bincount(drawn, minlength=v).double() / n
    p, q = p.softmax(-1)[0], q.softmax(-1)[0]
    kept = torch.minimum(p, q)
    assert (kept + (1.0 - kept.sum()) * replaced - q).abs().max() <= 1.0 / n + 1e-12


@given(st.integers(0, 2**62), st.integers(2, 300))
def test_where_both_laws_are_one_it_is_drawn_from(seed: int, v: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, v, generator=generator)
    logits[:, 0] = -torch.inf
    uniforms = torch.rand(5, generator=generator, dtype=torch.float64)
    wanted = categorical.inverse_cdf(logits, uniforms.unsqueeze(-1)).tokens.squeeze(-1)
    assert torch.equal(categorical.residual(logits, logits.clone(), uniforms), wanted)


# ---- One after the other


def strict(num_layers: int = 2, seed: int = 0, schedule: schedules.Schedule | None = None) -> SubsDenoiser:
    """Laws far enough from even that a token before another one matters."""
    own = denoiser(num_layers, seed, schedule)
    with torch.no_grad():
        own.network.embedding.weight.mul_(4.0)
        own.network.head.weight.mul_(12.0)
    return own


class Sampler(NamedTuple):
    """A sampler and how its laws are changed."""

    own: SubsDenoiser
    num_steps: int | None
    window: tuple[float, float]
    temperature: float
    nucleus: float

    @property
    def pipeline(self) -> pipelines.Pipeline:
        schedule = self.own.module.schedule or LINEAR
        kernel = builders.speculative(schedule, self.own, self.temperature, self.nucleus)
        group = 1 if self.num_steps else 3
        return builders.sampling(kernel, LENGTH, self.num_steps, self.window, tokens_per_pass=group)

    def law(self, hidden: Tensor) -> Tensor:
        """Probabilities (1, v) of a state (1, h)."""
        return categorical.nucleus(self.own.logits(hidden) / self.temperature, self.nucleus).softmax(-1)


def one_after_the_other(sampler: Sampler, seed: int, row: int, prompt: Tensor | None) -> list[int]:
    """A text by a slow loop: every token when those before it in its step are there."""
    network = sampler.own.network
    schedule = sampler.own.module.schedule
    text = torch.full((1, LENGTH), MASK)
    if prompt is not None:
        text[0, : len(prompt)] = prompt
    grid = None if sampler.num_steps is None else schedules.uniform_grid(sampler.num_steps)
    key, group = torch.tensor([row]), 1 if sampler.num_steps else 3
    reveal_noise = noise.grid(seed, key, 0, Stream.REVEAL, LENGTH)
    plan = absorbing.reveal_plan(reveal_noise, text == MASK, schedule or LINEAR, grid, group)
    for number in range(int(plan.passes)):
        t = plan.t[:, number]
        sigma = None if schedule is None else schedules.sigma(schedule, t)
        uniforms = noise.uniforms(seed, key[0], number, Stream.PROPOSAL, torch.arange(LENGTH), count=3)
        places = (plan.order[0] == number).nonzero().squeeze(-1)
        states, context = network(text, sigma, keep=True)
        in_window = bool(schedules.inside(t, sampler.window))
        before = text.clone()
        for index, place in enumerate(places.tolist()):
            p = sampler.law(states[0, place : place + 1])
            token = int(categorical.inverse_cdf(p.log(), uniforms[place : place + 1, :1]).tokens)
            if index and in_window:
                q = sampler.law(ask(network, before, text, places[: index + 1], context, sigma))
                if uniforms[place, 1] * p[0, token] >= q[0, token]:
                    missing = (q - p).clamp(min=0.0).cumsum(-1)[0]
                    token = int((missing <= uniforms[place, 2] * missing[-1]).sum())
            text[0, place] = token
    return text[0].tolist()


def ask(
    network: networks.Transformer, before: Tensor, text: Tensor, places: Tensor, context: Tensor, sigma: Tensor | None
) -> Tensor:
    """The state (1, h) that predicts the last of some places from those before it, which the text has."""
    tokens = torch.where(text == MASK, 0, text)[:, places]  # its own token is not read
    return network.in_order(tokens.unsqueeze(1), places.unsqueeze(0), MASK, context, sigma)[0, 0, -1:]


samplers_of_all_kinds = st.builds(
    lambda layers, seed, schedule, *how: Sampler(strict(layers, seed, schedule), *how),
    st.integers(1, 2),
    st.integers(0, 50),
    st.sampled_from([None, TOLD]),
    st.none() | st.integers(1, 5),
    st.sampled_from([(0.0, 1.0), (0.4, 0.8), (0.0, 0.5)]),
    st.sampled_from([1.0, 0.6, 1.5]),
    st.sampled_from([1.0, 0.7]),
)


@settings(max_examples=40)
@given(samplers_of_all_kinds, st.integers(0, 2**62), st.integers(1, 4), st.sampled_from(PROMPTS))
def test_it_writes_what_one_after_the_other_would(sampler: Sampler, seed: int, b: int, prompt: Tensor | None) -> None:
    """Rows that reveal different numbers of tokens, settle at different rounds, are in the window and out of it."""
    with torch.no_grad():
        found = edlm.sample(sampler.pipeline, b, seed=seed, prompt=prompt)["tokens"].tolist()
        assert found == [one_after_the_other(sampler, seed, row, prompt) for row in range(b)]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_it_does_so_where_guesses_are_changed_again_and_again(temperature: float) -> None:
    """Cooler, few tokens are left to replace a guess by, and checks are many; hotter, it is the other way round."""
    sampler = Sampler(strict(), 1, (0.0, 1.0), temperature, 1.0)
    out = edlm.sample(sampler.pipeline, 50, seed=0)
    plain = builders.ancestral(LINEAR, sampler.own, temperature)
    guessed = edlm.sample(builders.sampling(plain, LENGTH, 1), 50, seed=0)["tokens"]
    assert (out["tokens"] != guessed).sum() > 15
    assert out["info", "rounds"].max() >= 2
    with torch.no_grad():
        assert out["tokens"].tolist() == [one_after_the_other(sampler, 0, row, None) for row in range(50)]


def test_rows_out_of_the_window_are_left_alone_beside_those_that_are_in_it() -> None:
    sampler = Sampler(strict(), None, (0.3, 0.7), 1.0, 1.0)
    out = edlm.sample(sampler.pipeline, 60, seed=0)
    assert (out["info", "corrected"].any(0) & ~out["info", "corrected"].all(0)).any(), "both in one pass"
    with torch.no_grad():
        assert out["tokens"].tolist() == [one_after_the_other(sampler, 0, row, None) for row in range(60)]


def test_a_change_of_the_last_token_is_not_checked_again() -> None:
    """Nothing comes after it: two new tokens take one round, whatever the rows beside them take."""
    info = edlm.sample(Sampler(strict(), 3, (0.0, 1.0), 1.0, 1.0).pipeline, 1000, seed=0)["info"]
    assert info["rounds"].max() > 1
    assert (info["rounds"][info["revealed"] == 2] == 1).all()


@settings(max_examples=25)
@given(samplers_of_all_kinds, st.integers(0, 2**62), st.sampled_from(PROMPTS))
def test_as_many_rounds_as_later_tokens_are_the_most_there_are(
    sampler: Sampler, seed: int, prompt: Tensor | None
) -> None:
    """One at least where two tokens are new and the energy corrects, none elsewhere."""
    info = edlm.sample(sampler.pipeline, 6, seed=seed, prompt=prompt)["info"]
    several = info["corrected"] & (info["revealed"] > 1)
    assert (info["rounds"] <= (info["revealed"] - 1).clamp(min=0)).all()
    assert torch.equal(info["rounds"] > 0, several)
    read = 2 * info["rounds"] * (info["revealed"] - 1).clamp(min=0)
    assert torch.equal(info["energy_tokens"], read)
    torch.testing.assert_close(info["energy_passes"], read.sum(1).double() / LENGTH)
    assert not info["particles"].any()
    assert info["ess"].isnan().all()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_token_at_a_time_it_is_plain_sampling(prompt: Tensor | None) -> None:
    own = denoiser()
    ours, plain = (
        edlm.sample(builders.sampling(build(LINEAR, own), LENGTH), 9, prompt=prompt)
        for build in (builders.speculative, builders.ancestral)
    )
    assert torch.equal(ours["tokens"], plain["tokens"])
    assert (ours["info", "rounds"] == 0).all()


def test_outside_the_window_it_is_plain_sampling_and_inside_it_is_not() -> None:
    own = denoiser()
    plain = edlm.sample(builders.sampling(builders.ancestral(LINEAR, own), LENGTH, 2), 50)["tokens"]
    for window, same in (((0.6, 0.9), True), ((0.0, 1.0), False)):
        ours = edlm.sample(builders.sampling(builders.speculative(LINEAR, own), LENGTH, 2, window), 50)["tokens"]
        assert torch.equal(ours, plain) == same


@settings(max_examples=25)
@given(samplers_of_all_kinds, st.integers(0, 2**62), st.integers(2, 6))
def test_a_text_does_not_depend_on_those_beside_it(sampler: Sampler, seed: int, b: int) -> None:
    together = edlm.sample(sampler.pipeline, b, seed=seed)["tokens"]
    alone = edlm.sample(sampler.pipeline, 1, seed=seed, first_row=b - 1)["tokens"]
    assert torch.equal(together[-1:], alone)


def test_a_round_reads_two_rows_per_later_token_of_the_rows_that_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the head runs on what is guessed, on that once per round, and twice on what is refused."""
    own, read, asked = strict(), [], []
    first = own.network.trunk.blocks[0].attention.qkv
    first.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[:-1].numel()))
    own.network.head.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
    refused: list[int] = []
    residual = categorical.residual
    monkeypatch.setattr(categorical, "residual", lambda q, p, u: refused.append(len(u)) or residual(q, p, u))
    out = edlm.sample(builders.sampling(builders.speculative(LINEAR, own), LENGTH, 2), 1, seed=2)
    revealed, rounds = (out["info", key][0].tolist() for key in ("revealed", "rounds"))
    assert max(rounds) > 1
    assert read == [
        n for count, times in zip(revealed, rounds, strict=True) for n in (LENGTH, *[2 * (count - 1)] * times)
    ]
    guessed = sum(count * (1 + times) for count, times in zip(revealed, rounds, strict=True))
    assert sum(asked) == guessed + 2 * sum(refused)
    assert refused


# ---- The law


def in_order(own: SubsDenoiser, words: Tensor) -> Tensor:
    """`q(x^S | x_t)` of whole texts where all is masked: the denoiser's law less the energy of its chain rule."""
    state = state_of(own, torch.full((1, words.shape[1]), own.mask_id), torch.ones(1).double(), words.unsqueeze(0))
    log_p = state[contracts.LOG_P_CANDIDATES].sum(-1)
    return (log_p - chain_rule.energy(own)(state)[contracts.ENERGY]).exp().squeeze(0).detach()


@pytest.mark.slow
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_texts_it_draws_have_the_law_of_the_chain_rule(num_layers: int) -> None:
    """One step, 20,000 texts of 3 symbols and length 3; wrong with probability 1e-6 each."""
    n, own = 20_000, sharp(num_layers)
    law = in_order(own, all_sequences(3, 3))
    drawn = edlm.sample(builders.sampling(builders.speculative(LINEAR, own), 3, 1), n, seed=5)["tokens"]
    found = empirical_law(drawn, 3)
    # P(TV > mean + e) <= exp(-2 n e^2), and the mean is at most half of sum sqrt(p (1 - p) / n).
    bound = 0.5 * float((law * (1 - law) / n).sqrt().sum()) + math.sqrt(math.log(1e6) / (2 * n))
    plain = edlm.sample(builders.sampling(builders.ancestral(LINEAR, own), 3, 1), n, seed=5)["tokens"]
    assert total_variation(found, law) < bound < 0.5 * total_variation(law, empirical_law(plain, 3))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_its_bound_is_the_law_that_it_draws_from(num_layers: int) -> None:
    """At one step there is one plan, and nothing is left to bound."""
    own, words = sharp(num_layers), all_sequences(3, 3)
    keys = LINEAR, schedules.uniform_grid(1), words, torch.tensor(0), torch.arange(len(words))
    found = builders.transition_bound(own, chain_rule.energy(own), *keys, num_particles=None)
    torch.testing.assert_close(3 * found.nats, -in_order(own, words).log(), rtol=1e-9, atol=1e-9)


def test_windows_that_move_on_are_filled() -> None:
    found = edlm.extend(builders.sampling(builders.speculative(LINEAR, denoiser()), LENGTH, 3), 13, 4, 3)["tokens"]
    assert found.shape == (3, 13)
    assert (found != MASK).all()


# ---- Mistakes


def test_what_it_cannot_be_built_of_is_an_error() -> None:
    joint = networks.JointNetwork(5, LENGTH, hidden_size=16, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="class JointNetwork cannot be read in order, as a Transformer can"):
        builders.speculative(LINEAR, denoisers.subs(joint, MASK))
    with pytest.raises(ValueError, match=r"temperature = 0.0 must be positive"):
        builders.speculative(LINEAR, denoiser(), temperature=0.0)
    with pytest.raises(ValueError, match=r"nucleus = 0.0 must lie in \(0, 1\]"):
        builders.speculative(LINEAR, denoiser(), nucleus=0.0)


def test_dropout_left_on_is_an_error() -> None:
    net = networks.Transformer(5, LENGTH, hidden_size=16, num_layers=1, num_heads=2, dropout=0.1).train()
    with pytest.raises(ValueError, match="dropout is on at "):
        edlm.sample(builders.sampling(builders.speculative(LINEAR, denoisers.subs(net, MASK)), LENGTH, 2))


# ---- Execution


def in_and_out_of_its_window() -> pipelines.Pipeline:
    return builders.sampling(builders.speculative(LINEAR, denoiser()), LENGTH, None, (0.3, 1.0), tokens_per_pass=3)


@pytest.mark.parametrize("b", [1, 2, 5])
def test_what_is_wrapped_around_its_parts_changes_no_token(b: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: wrapped.append(function) or function)
    slow = in_and_out_of_its_window()
    fast = edlm.accelerate(slow, "compile")
    for prompt in PROMPTS:
        ours, expected = (edlm.sample(each, b, prompt=prompt) for each in (fast, slow))
        assert torch.equal(ours["tokens"], expected["tokens"])
        assert torch.equal(ours["info", "rounds"], expected["info", "rounds"])
    assert len(wrapped) >= 4  # two draws of noise, the guess, the check, and what is put in place


@pytest.mark.slow
def test_its_parts_are_graphs_for_any_number_of_rows(fresh_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_whole_graphs(in_and_out_of_its_window(), monkeypatch)


@pytest.mark.slow
@pytest.mark.skipif(bool(execution.missing_compiler(torch.device("cpu"))), reason="needs a C++ compiler")
def test_compiled_and_eager_give_the_same_tokens(fresh_compiler: None) -> None:
    slow = builders.sampling(builders.speculative(LINEAR, denoiser(1)), LENGTH, 2)
    ours, expected = (edlm.sample(each, 4, seed=4) for each in (edlm.accelerate(slow, "compile"), slow))
    assert torch.equal(ours["tokens"], expected["tokens"])
    assert torch.equal(ours["info", "rounds"], expected["info", "rounds"])
