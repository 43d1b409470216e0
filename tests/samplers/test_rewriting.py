"""Steps that mask tokens again: against a loop without tensors, and what users rely on."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import strategies
import torch
from builders import assert_whole_graphs, tiny_denoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from remasked import LENGTH, MASK, every_rule, pipeline
from scipy.stats import chi2
from torch import Tensor

import edlm
from edlm import contracts, samplers
from edlm.likelihood import bounds, hidden_markov
from edlm.process import noise, schedules
from edlm.process.noise import Stream
from edlm.samplers import plans, remasking, rewriting
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.remasking import Cap, Confidence, ForwardBackward, Loop, Remasking, Rescale
from edlm.samplers.sampler import Proposal, Sampler

# ---- Steps


def slow_sigma(rule: Remasking, alpha_t: float, alpha_s: float, psi: list[float | None]) -> list[float]:
    """The published chances, in plain numbers; psi: None where nothing was written."""
    highest = 1.0 if alpha_t == 0.0 else min(1.0, (1.0 - alpha_s) / alpha_t)
    if isinstance(rule, Confidence):
        total = sum(math.exp(-each) for each in psi if each is not None)
        return [0.0 if each is None else highest * math.exp(-each) / total for each in psi]
    chances = {
        Cap: lambda: min(rule.eta, highest),
        Rescale: lambda: rule.eta * highest,
        Loop: lambda: min(rule.eta, highest) if alpha_t == alpha_s else 0.0,
        ForwardBackward: lambda: highest if alpha_t == 0.0 else min((alpha_s - alpha_t) / alpha_t, highest),
    }
    return [chances[type(rule)]()] * len(psi)


def slow_sample(drawn: Pipeline, seed: int, row: int, start: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """A text and, of every step, how many tokens it revealed and masked again: one position after another."""
    sampler, x, psi = drawn.sampler, list(start), [None] * len(start)
    times, alphas = (
        each.tolist() for each in remasking.path(sampler.remasking, sampler.plan, sampler.denoiser.schedule)
    )
    moves = []
    for number, (t, alpha_t, alpha_s) in enumerate(zip(times, alphas, alphas[1:], strict=False)):
        asked = {
            contracts.X_T: torch.tensor([x]),
            contracts.T: torch.tensor([t], dtype=torch.float64),
            contracts.POSITIONS: torch.arange(len(x)),
        }
        logits = sampler.denoiser.logits(sampler.denoiser(contracts.TensorDict(asked))[contracts.HIDDEN])
        p = (logits.double() / sampler.proposal.temperature).softmax(-1).tolist()
        own = logits.double().softmax(-1).tolist()
        sigma, before, counted = slow_sigma(sampler.remasking, alpha_t, alpha_s, psi), list(x), [0, 0]
        numbers = (
            noise.grid(seed, torch.tensor([row]), number, stream, len(x))[0].tolist()
            for stream in (Stream.REVEAL, Stream.PROPOSAL)
        )
        for i, (token, u, v) in enumerate(zip(before, *numbers, strict=True)):
            if token == MASK and (alpha_t == 1.0 or u < (alpha_s - (1.0 - sigma[i]) * alpha_t) / (1.0 - alpha_t)):
                x[i] = next(y for y in range(len(p[i])) if v < sum(p[i][: y + 1]))
                psi[i], counted[0] = own[i][x[i]], counted[0] + 1
            elif token != MASK and psi[i] is not None and u < sigma[i]:
                x[i], psi[i], counted[1] = MASK, None, counted[1] + 1
        moves.append((counted[0], counted[1]))
    return x, moves


@every_rule
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_text_is_what_a_loop_over_its_positions_writes(rule: Remasking, temperature: float) -> None:
    """Tokens and counts, of texts with a prompt; the denoiser is told the time."""
    drawn = pipeline(rule, proposal=Proposal(temperature))
    prompt = torch.tensor([MASK, 2, MASK, MASK, MASK, MASK])
    out = edlm.sample(drawn, 8, seed=3, prompt=prompt)
    for row in range(8):
        tokens, moves = slow_sample(drawn, 3, row, prompt.tolist())
        assert out["tokens"][row].tolist() == tokens
        assert list(zip(*(out["info", key][row].tolist() for key in ("revealed", "remasked")), strict=True)) == moves
    assert out["info", "remasked"].sum() > 0


def psi_law(p: Tensor, visible: int | None, alpha_t: float, alpha_s: float, sigma: float) -> Tensor:
    """The law (m + 1,) of what stands at s, the mask last, by Psi-samplers: posterior and forward process mixed.

    kappa post(x_s | x_t) + (1 - kappa) forward_{alpha_s}(post(x_0 | x_t)), kappa = 1 - sigma / (1 - alpha_s).
    """
    kappa = 1.0 - sigma / (1.0 - alpha_s) if alpha_s < 1.0 else 1.0
    clean = p if visible is None else torch.eye(len(p), dtype=torch.float64)[visible]
    stays = (1.0 - alpha_s) / (1.0 - alpha_t) if visible is None else 0.0
    posterior = torch.cat([(1.0 - stays) * clean, torch.tensor([stays], dtype=torch.float64)])
    forward = torch.cat([alpha_s * clean, torch.tensor([1.0 - alpha_s], dtype=torch.float64)])
    return kappa * posterior + (1.0 - kappa) * forward


@given(
    st.floats(0.0, 0.95), st.floats(0.01, 1.0), strategies.unit_floats(), strategies.uniforms(2), st.integers(0, 2**32)
)
@settings(max_examples=60)
def test_psi_samplers_are_the_same_law_and_the_same_tokens(
    alpha_t: float, part: float, share: float, numbers: Tensor, seed: int
) -> None:
    """Of a mask and of a visible token, at any sigma there may be, with the same two uniforms."""
    alpha_s = alpha_t + part * (1.0 - alpha_t) * 0.999
    a_t, a_s = (torch.tensor(each, dtype=torch.float64) for each in (alpha_t, alpha_s))
    sigma = share * remasking.most(a_t, a_s)
    p = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)
    reveal = remasking.revealing(a_t, a_s, sigma)
    u, v = numbers.tolist()
    for visible in (None, 1):
        own = torch.cat([reveal * p, (1.0 - reveal).view(1)])
        if visible is not None:
            own = torch.zeros(4, dtype=torch.float64)
            own[visible], own[3] = 1.0 - sigma, sigma
        wanted = psi_law(p, visible, alpha_t, alpha_s, float(sigma))
        torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-12)
        moves = [float(1.0 - law[3]) if visible is None else float(law[3]) for law in (own, wanted)]
        if abs(u - moves[0]) > 1e-9:
            assert (u < moves[0]) == (u < moves[1])
        words = [(law[:3] / law[:3].sum()).cumsum(0) for law in (own, wanted)]
        if visible is None and float((words[0] - v).abs().min()) > 1e-9:
            assert [int((word <= v).sum()) for word in words] == [int((p.cumsum(0) <= v).sum())] * 2


@pytest.mark.parametrize("rule", [Cap(0.0), Rescale(0.0)], ids=str)
def test_without_a_chance_it_is_ancestral_sampling_token_for_token(rule: Remasking) -> None:
    """The textbook's: in each step a mask is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t)."""
    drawn = pipeline(rule)
    out, (_, alphas) = (
        edlm.sample(drawn, 16, seed=5),
        remasking.path(rule, plans.Grid(8), drawn.sampler.denoiser.schedule),
    )
    row, masked = torch.arange(16), torch.ones(16, LENGTH, dtype=torch.bool)
    for number, (alpha_t, alpha_s) in enumerate(itertools.pairwise(alphas)):
        u = noise.grid(5, row, number, Stream.REVEAL, LENGTH)
        now = masked & (u < (alpha_s - alpha_t) / (1.0 - alpha_t))
        assert torch.equal(out["info", "revealed"][:, number], now.sum(1))
        masked &= ~now
    assert not out["info", "remasked"].any()


@every_rule
def test_the_law_of_x_s_is_that_of_noising_where_the_shares_are_equal(rule: Remasking) -> None:
    """20,000 texts of a source, noised to alpha_t, one step with the exact denoiser: at one position of each x_s is

    q_s, masks and tokens. Chi-square, wrong with probability 1e-6. By confidence visible tokens and masks differ in
    their chance, so all positions are shown as equally confident, of which some are masks: there the share is less.
    """
    n, symbols = 20_000, 3
    source = hidden_markov.random_hidden_markov(1, 4, symbols, 3.0)
    denoiser = hidden_markov.denoiser(source, LENGTH)
    kernel = samplers.kernel_of(Sampler(denoiser, plans.Grid(8), remasking=rule))
    alpha_t = 0.5
    alpha_s = 0.5 if isinstance(rule, Loop) else 0.625
    x_0 = hidden_markov.texts(source, n, LENGTH, seed=1)
    generator = torch.Generator().manual_seed(0)
    x_t = torch.where(torch.rand(n, LENGTH, generator=generator) < alpha_t, x_0, symbols)
    told = {
        contracts.ALPHA_T: torch.tensor(alpha_t, dtype=torch.float64),
        contracts.ALPHA_S: torch.tensor(alpha_s, dtype=torch.float64),
        contracts.MOVE_NOISE: torch.rand(n, LENGTH, generator=generator, dtype=torch.float64),
    }
    state = {contracts.X_T: x_t, contracts.P_WRITTEN: torch.where(x_t < symbols, 0.5, math.inf).double()}
    moved = kernel.moves.decide(contracts.TensorDict({**state, **told}))
    seed, row, number = torch.tensor(2), torch.arange(n), torch.tensor(0)
    pads = (lambda count: count, lambda count: count)
    written, _, _ = rewriting._write(kernel, contracts.TensorDict(state), moved["reveal"], 0.5, seed, row, number, pads)
    x_s = kernel.moves.finish(contracts.TensorDict({**written, contracts.REMASK: moved["remask"]}))[contracts.X_S]
    place = torch.randint(LENGTH, (n, 1), generator=generator)
    found = torch.bincount(x_s.gather(1, place).squeeze(1), minlength=symbols + 1).double()
    share = alpha_s
    if rule.by_token:
        drawn = (x_t < symbols).sum(1).double()
        share = float((alpha_s - 0.5 * (drawn > 0).double() * min(1.0, 0.375 / 0.5) / LENGTH / 0.5).mean())
    letters = source.initial @ source.emission
    wanted = n * torch.cat([share * letters, torch.tensor([1.0 - share], dtype=torch.float64)])
    assert float(((found - wanted).square() / wanted).sum()) < chi2.isf(1e-6, symbols)


# ---- What users rely on


@every_rule
@pytest.mark.parametrize("steps", [1, 3, 17])
def test_prompts_stay_and_no_mask_is_left(rule: Remasking, steps: int) -> None:
    drawn = pipeline(rule, steps, schedule=schedules.cosine(1e-3))
    prompt = torch.tensor([[MASK, 2, MASK, 0, MASK, 3], [1, MASK, MASK, MASK, MASK, MASK], [0, 1, 2, 3, 0, 1]])
    out = edlm.sample(drawn, 3, seed=1, prompt=prompt)
    tokens = out["tokens"]
    assert torch.equal(torch.where(prompt == MASK, prompt, tokens), prompt)
    assert not (tokens == MASK).any()
    assert out["info", "revealed"].shape == (3, steps)
    given_now = (prompt == MASK).sum(1)
    assert torch.equal(out["info", "revealed"].sum(1) - out["info", "remasked"].sum(1), given_now)
    assert out["info", "denoiser_passes"][2] == 0.0


@every_rule
def test_a_text_does_not_depend_on_its_batch(rule: Remasking) -> None:
    drawn = pipeline(rule)
    together = edlm.sample(drawn, 8, seed=2)
    for row in (0, 3, 7):
        alone = edlm.sample(drawn, 1, seed=2, first_row=row)
        assert torch.equal(alone["tokens"][0], together["tokens"][row])
        for key in ("revealed", "remasked", "denoiser_tokens", "calls", "denoiser_passes"):
            assert torch.equal(alone["info", key][0], together["info", key][row])
    assert len(together["tokens"].unique(dim=0)) > 4


@every_rule
def test_only_steps_that_reveal_something_run_the_network_and_a_callback_sees_all(rule: Remasking) -> None:
    drawn, asked, seen = pipeline(rule, 40), [], []
    drawn.kernel.denoiser.network.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    out = edlm.sample(drawn, 2, seed=4, callback=lambda state, info: seen.append((state, info)))
    busy = out["info", "revealed"] > 0
    assert asked == [count for count in busy.sum(0).tolist() if count]
    assert torch.equal(out["info", "denoiser_passes"], busy.sum(1).double())
    assert torch.equal(out["info", "calls"], busy.long())
    assert len(seen) == 40
    assert torch.equal(seen[-1][0][contracts.X_T], out["tokens"])
    assert torch.equal(torch.stack([info["remasked"] for _, info in seen], 1), out["info", "remasked"])
    shown = torch.stack([(state[contracts.X_T] == MASK).sum(1) for state, _ in seen], 1)
    assert torch.equal(LENGTH - (out["info", "revealed"] - out["info", "remasked"]).cumsum(1), shown)


@every_rule
@pytest.mark.parametrize("steps", [3, 24])
def test_expected_passes_are_means_of_the_passes_taken(rule: Remasking, steps: int) -> None:
    """2000 texts: within 5 standard errors; by confidence, where positions hang on each other, within 5 % besides."""
    drawn = pipeline(rule, steps)
    passes = edlm.sample(drawn, 2000, seed=6)["info", "denoiser_passes"]
    error = 5 * float(passes.std()) / math.sqrt(2000)
    wanted = samplers.expected(drawn.sampler, LENGTH)
    assert samplers.expected_passes(drawn.sampler, LENGTH) == wanted.passes
    assert abs(float(passes.mean()) - wanted.passes) < error + (0.05 * wanted.passes if rule.by_token else 1e-9)


@every_rule
@pytest.mark.parametrize("b", [1, 5])
def test_padded_steps_give_the_same_tokens_and_records(
    rule: Remasking, b: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As compilation asks for them, without the compiler."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    slow = pipeline(rule)
    found, expected = (edlm.sample(each, b, seed=2) for each in (edlm.accelerate(slow, "compile"), slow))
    assert torch.equal(found["tokens"], expected["tokens"])
    torch.testing.assert_close(found["info"].to_dict(), expected["info"].to_dict(), equal_nan=True)


def test_windows_of_a_long_text_share_no_noise_and_keep_what_is_written() -> None:
    """More steps than a window has tokens, and fewer."""
    for steps in (2, 9):
        drawn, numbers = pipeline(Cap(0.3), steps, length=4), []
        drawn.kernel.moves.decide.register_forward_pre_hook(
            lambda _, inputs, numbers=numbers: numbers.append(inputs[0]["move_noise"])
        )
        states: list[Tensor] = []
        out = edlm.extend(drawn, 10, 2, 2, callback=lambda state, _, states=states: states.append(state["x_t"]))
        every = torch.cat([each.flatten() for each in numbers])
        assert len(every.unique()) == len(every) == 2 * 4 * steps * 4
        assert not (out["tokens"] == MASK).any()
        assert torch.equal(states[steps - 1][:, :4], out["tokens"][:, :4])


def test_logits_that_are_no_numbers_are_named_with_the_step() -> None:
    drawn = pipeline(Cap(0.3))
    with torch.no_grad():
        drawn.sampler.denoiser.network.head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match=r"the denoiser's logits are not finite in pass \d of text \d, at t = "):
        edlm.sample(drawn, 2)


def test_no_bound_is_claimed() -> None:
    assert (
        bounds.missing(pipeline(Cap()).sampler) == "no bound is known of a sampler that masks tokens again: cap 0.008"
    )


@every_rule
def test_a_config_gives_the_same_sampler_back(rule: Remasking) -> None:
    sampler = pipeline(rule).sampler
    written = json.loads(json.dumps(samplers.config(sampler)))
    again = samplers.from_config(written, sampler.denoiser)
    assert again == sampler
    assert str(again) == f"plain, T=8, {rule}"
    short = samplers.from_config(
        {"plan": {"name": "grid", "num_steps": 4}, "remasking": {"name": "cap"}}, sampler.denoiser
    )
    assert short.remasking == Cap(0.008)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "cap", "eta": 2}, r"sampler\.remasking 'cap': eta = 2 must lie in \[0, 1\]"),
        (
            {"name": "best"},
            r"sampler\.remasking\.name = 'best' must be one of cap, rescale, confidence, loop, forward_",
        ),
        ({"name": "cap", "heat": 1}, r"sampler\.remasking\.heat: unknown key"),
    ],
)
def test_a_wrong_config_is_named(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        samplers.from_config({"remasking": value}, tiny_denoiser())


def test_the_algorithm_is_printed_with_what_stands_around_the_step() -> None:
    lines = repr(pipeline(Confidence())).splitlines()
    assert lines[1] == "  decide    x_t, p_written, alpha_t, alpha_s, move_noise -> reveal, remask"
    assert lines[-1] == "  remask    x_s, p_written, remask -> x_s, p_written"


def test_a_rule_of_one_s_own_is_a_value_like_any_other() -> None:
    class Never(Remasking):
        name = "never"

        def __str__(self) -> str:
            return "never"

        def sigma(self, alpha_t: Tensor, alpha_s: Tensor, p_written: Tensor) -> Tensor:
            return torch.zeros_like(alpha_t)

    assert torch.equal(edlm.sample(pipeline(Never()), 4)["tokens"], edlm.sample(pipeline(Cap(0.0)), 4)["tokens"])


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "remasking.md").read_text("utf-8")
    exec(compile(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0], "remasking.md", "exec"), {})
    revealed, again = re.findall(r"\[(.*?)\]", capsys.readouterr().out)
    assert [int(a) - int(b) for a, b in zip(revealed.split(","), again.split(","), strict=True)] == [8] * 4


@pytest.mark.slow
@every_rule
def test_a_traced_step_gives_the_same_tokens(
    rule: Remasking, monkeypatch: pytest.MonkeyPatch, fresh_compiler: None
) -> None:
    assert_whole_graphs(pipeline(rule), monkeypatch)


@pytest.mark.slow
def test_compiled_and_eager_give_the_same_tokens(fresh_compiler: None) -> None:
    slow = pipeline(Confidence())
    fast = edlm.accelerate(slow, "compile")
    for seed in range(3):
        assert torch.equal(edlm.sample(fast, 4, seed=seed)["tokens"], edlm.sample(slow, 4, seed=seed)["tokens"])
