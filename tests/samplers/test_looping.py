"""Samplers whose plan reads the pass: the same texts as slow loops write, whatever the batch."""

from functools import partial

import builders
import pytest
import specifications
import torch
from builders import tiny_denoiser, tiny_energy
from choosing import RULES, slow_sample, slowly, time_of, varied
from hypothesis import given, settings
from hypothesis import strategies as st
from revealing import LENGTH, MASK
from specifications import Spec
from tensordict import TensorDict
from torch import Tensor

import edlm
from edlm import contracts
from edlm.declaration import stage
from edlm.models.denoisers import SubsDenoiser
from edlm.process import categorical, noise, schedules
from edlm.process.noise import Stream
from edlm.samplers import corrections, execution, pipelines, plans
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.rounds import UntilEss
from edlm.samplers.sampler import Sampler

CHOSEN = [plans.EntropyBound(1.0), plans.EntropyBound(2.0, most=3, by="margin"), plans.Confidence(0.6), plans.Ranked(3)]
PROMPT = torch.tensor([4, 2, 4, 4, 1])


def joint() -> SubsDenoiser:
    network = edlm.networks.JointNetwork(5, max_length=LENGTH, hidden_size=16, num_layers=1, num_heads=2)
    return edlm.denoisers.subs(builders.randomise(network.eval(), 0), mask_id=MASK)


def with_corrections(plan: plans.Plan) -> dict[str, Sampler]:
    """The plan in every kind of sampler."""
    plain = Sampler(varied(), plan)
    draft, transition = (builders.scoped(tiny_energy(), scope) for scope in ("draft", "transition"))
    ordered = plain.replace(correction=corrections.ChainRule())
    return {
        "plain": plain,
        "hot, nucleus": plain.replace(proposal=edlm.samplers.Proposal(1.5, 0.8)),
        "draft": plain.replace(correction=corrections.OfEnergy(draft, "draft"), candidates=3),
        "transition": plain.replace(
            correction=corrections.OfEnergy(transition, "transition"), candidates=3, window=(0.3, 0.8)
        ),
        "until": plain.replace(correction=corrections.OfEnergy(draft, "draft", 0.3), candidates=UntilEss(2.0, 6)),
        "chain_rule": ordered.replace(candidates=3),
        "in order": ordered.replace(selection="speculative"),
        "joint": Sampler(joint(), plan, correction=corrections.Joint(), candidates=3),
        "joint, window": Sampler(joint(), plan, correction=corrections.Joint(), candidates=3, window=(0.2, 0.7)),
    }


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(RULES),
    specifications.specs().flatmap(lambda spec: st.tuples(st.just(spec), specifications.prompts(spec, 3))),
    st.integers(0, 2**40),
)
def test_it_writes_what_a_slow_loop_writes(
    plan: plans.Rule, spec_and_prompt: tuple[Spec, Tensor | None], seed: int
) -> None:
    """Of every rule, energy, selection, window and schedule; prompts stay, and no mask is left."""
    spec, prompt = spec_and_prompt
    where = {} if spec.selection is None else {"window": spec.window}
    sampler = spec.sampler().replace(plan=plan, **where)
    out = edlm.sample(pipelines.pipeline(sampler, spec.length), 3, seed=seed, prompt=prompt)
    start = specifications.filled_up(prompt, spec, 3)
    for row in range(3):
        *told, text = slow_sample(plan, spec, seed, row, start[row].tolist())
        assert out["tokens"][row].tolist() == text
        counts = [len(revealed) for revealed in told]
        assert out["info", "revealed"][row].tolist()[: len(counts)] == counts
        assert not out["info", "revealed"][row, len(counts) :].any()
    assert (out["tokens"] != spec.mask_id).all()
    assert torch.equal(out["tokens"][start != spec.mask_id], start[start != spec.mask_id])


@pytest.mark.parametrize(("plan", "prompt"), list(zip(CHOSEN, [None, PROMPT] * 2, strict=True)), ids=str)
def test_a_text_does_not_depend_on_its_batch(plan: plans.Plan, prompt: Tensor | None) -> None:
    """Nor does its record: in every kind of sampler, rows that finish early beside others."""
    for number, (kind, sampler) in enumerate(with_corrections(plan).items()):
        pipeline, row = pipelines.pipeline(sampler, LENGTH), 7 * (number % 2)
        together = edlm.sample(pipeline, 8, seed=1, prompt=prompt)
        alone = edlm.sample(pipeline, 1, seed=1, first_row=row, prompt=prompt)
        assert torch.equal(alone["tokens"][0], together["tokens"][row]), kind
        passes = alone["info", "t"].shape[1]
        for key, value in alone["info"].items():
            own = together["info", key][row]
            torch.testing.assert_close(value[0], own[:passes] if own.ndim else own, equal_nan=True)


@pytest.mark.parametrize("plan", [plans.EntropyBound(1.0), plans.Ranked(3), plans.Confidence(0.5)], ids=str)
@pytest.mark.parametrize(
    "schedule", [None, pytest.param(schedules.log_linear(1e-3), marks=pytest.mark.slow)], ids=["", "told"]
)
def test_what_is_chosen_is_written_in_order(plan: plans.Rule, schedule: schedules.Schedule | None) -> None:
    """The plan chooses the positions and speculation writes them: as a slow loop does, one after the other."""
    own = tiny_denoiser(0, MASK, schedule, num_layers=2)
    with torch.no_grad():  # a token before another one matters
        own.network.embedding.weight.mul_(4.0)
        own.network.head.weight.mul_(12.0)
    sampler = Sampler(own, plan, correction=corrections.ChainRule(), selection="speculative")
    out = edlm.sample(pipelines.pipeline(sampler, LENGTH), 16, seed=0)
    plain = edlm.sample(pipelines.pipeline(Sampler(own, plan), LENGTH), 16, seed=0)
    assert not torch.equal(out["tokens"], plain["tokens"])
    with torch.no_grad():
        assert out["tokens"].tolist() == [_in_order(own, plan, row) for row in range(16)]


def _in_order(own: SubsDenoiser, plan: plans.Rule, row: int) -> list[int]:
    text, key = torch.full((1, LENGTH), MASK), torch.tensor(row)
    number = 0
    while (text == MASK).any():
        masked = (text == MASK)[0]
        t = torch.tensor([time_of(float(masked.double().mean()), own.schedule)], dtype=torch.float64)
        sigma = None if own.told is None else schedules.sigma(own.schedule, t)
        states, context = own.network(text, sigma, keep=True)
        laws = own.logits(states[0]).double().softmax(-1)
        places = torch.tensor(sorted(slowly(plan, laws.tolist(), masked.tolist())))
        uniforms = noise.uniforms(0, key, number, Stream.PROPOSAL, torch.arange(LENGTH), count=3)
        for index, place in enumerate(places.tolist()):
            p = laws[place]
            token = int(categorical.inverse_cdf(p.log()[None], uniforms[place : place + 1, :1]).tokens)
            if index:
                tokens = torch.where(text == MASK, 0, text)[:, places[: index + 1]]
                before = text.clone()
                before[0, places] = MASK
                asked = own.network.in_order(tokens[:, None], places[None, : index + 1], MASK, context, sigma)
                q = own.logits(asked[0, 0, -1:]).double().softmax(-1)[0]
                if uniforms[place, 1] * p[token] >= q[token]:
                    missing = (q - p).clamp(min=0.0).cumsum(-1)
                    token = int((missing <= uniforms[place, 2] * missing[-1]).sum())
            text[0, place] = token
        number += 1
    return text[0].tolist()


def test_a_bound_of_zero_writes_one_position_at_a_time_in_the_order_of_entropy() -> None:
    found = [
        edlm.sample(pipelines.pipeline(Sampler(varied(), plan), LENGTH), 20, seed=4)
        for plan in (plans.EntropyBound(0.0), plans.Ranked(1, by="entropy"))
    ]
    assert torch.equal(found[0]["tokens"], found[1]["tokens"])
    assert (found[0]["info", "revealed"] == 1).all()


def test_everything_at_once_is_one_step_of_plain_sampling() -> None:
    plain = Sampler(tiny_denoiser(), plans.Grid(1))
    expected = edlm.sample(pipelines.pipeline(plain, LENGTH), 6)["tokens"]
    for plan in (plans.EntropyBound(1e9), plans.Confidence(0.0), plans.Ranked(LENGTH)):
        assert torch.equal(edlm.sample(pipelines.pipeline(plain.replace(plan=plan), LENGTH), 6)["tokens"], expected)


def test_left_to_right_is_the_same_drawn_and_chosen() -> None:
    """What needs no pass to be known is planned first, and gives the same texts and records as if it were not."""
    plan = plans.LeftToRight(3)
    hidden = _Rule(plan)
    for kind, sampler in with_corrections(plan).items():
        drawn, chosen = (
            edlm.sample(pipelines.pipeline(sampler.replace(plan=each), LENGTH), 5, prompt=PROMPT)
            for each in (plan, hidden)
        )
        assert torch.equal(drawn["tokens"], chosen["tokens"]), kind
        torch.testing.assert_close(drawn["info"].to_dict(), chosen["info"].to_dict(), equal_nan=True)


class _Rule:
    """The rule of a drawn plan alone."""

    name = "rule"

    def __init__(self, of: plans.LeftToRight) -> None:
        self.choose, self.expected = of.choose, of.expected


def test_a_row_without_masks_is_worked_on_no_more_and_noise_is_drawn_for_what_is_revealed() -> None:
    pipeline = pipelines.pipeline(Sampler(varied(), plans.EntropyBound(1.0)), LENGTH)
    rows, numbers = list[int](), list[int]()
    pipeline.kernel.look.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0]["x_t"])))
    draw = pipeline.kernel.draw

    def counted(seed: Tensor, row: Tensor, step: Tensor, positions: Tensor, length: int) -> object:
        numbers.append(len(positions))
        return draw(seed, row, step, positions, length)

    info = edlm.sample(pipeline._replace(kernel=pipeline.kernel._replace(draw=counted)), 9)["info"]
    assert rows == (info["t"] > 0).sum(0).tolist()
    assert len(set(rows)) > 1
    assert numbers == info["revealed"].sum(0).tolist()


def test_the_time_is_when_the_schedule_expects_the_masks_that_are_left() -> None:
    """Of all positions, given ones too; the window acts on it."""
    schedule = schedules.cosine()
    own = builders.on(tiny_denoiser(), schedule)
    energy = corrections.OfEnergy(builders.scoped(tiny_energy(), "transition"))
    sampler = Sampler(own, plans.Ranked(2), correction=energy, candidates=2, window=(0.3, 0.7))
    info = edlm.sample(pipelines.pipeline(sampler, LENGTH), 2, prompt=torch.tensor([1, 2]))["info"]
    wanted = [time_of(left / LENGTH, schedule) for left in (6, 4, 2)]
    torch.testing.assert_close(info["t"], torch.tensor([wanted, wanted], dtype=torch.float64))
    assert info["corrected"].tolist() == [[0.3 <= t <= 0.7 for t in wanted]] * 2


def test_a_row_without_masks_is_corrected_no_more() -> None:
    """In a window that reaches down to time 0, at which it is."""
    sampler = with_corrections(plans.Confidence(0.6))["draft"]
    info = edlm.sample(pipelines.pipeline(sampler, LENGTH), 8, seed=1)["info"]
    runs = info["revealed"] > 0
    assert not runs.all()
    assert torch.equal(info["corrected"], runs)
    assert torch.equal(info["ess"].isnan(), ~runs)


def test_windows_of_long_texts_go_on_with_their_own_noise() -> None:
    pipeline = pipelines.pipeline(Sampler(varied(), plans.EntropyBound(1.0)), LENGTH)
    out = edlm.extend(pipeline, length=14, stride=3, num_samples=3, prompt=torch.tensor([1, 3]))
    assert (out["tokens"] != MASK).all()
    assert (out["tokens"][:, :2] == torch.tensor([1, 3])).all()
    assert out["info", "revealed"].sum(1).tolist() == [12, 12, 12]
    alone = edlm.extend(pipeline, length=14, stride=3, first_row=2, prompt=torch.tensor([1, 3]))
    assert torch.equal(alone["tokens"][0], out["tokens"][2])
    first = edlm.sample(pipeline, 3, prompt=torch.tensor([1, 3]))["tokens"]
    assert torch.equal(out["tokens"][:, :LENGTH], first)


def test_a_callback_sees_every_pass() -> None:
    shown = list[tuple[Tensor, dict[str, Tensor]]]()
    sampler = with_corrections(plans.EntropyBound(1.0))["draft"]
    out = edlm.sample(
        pipelines.pipeline(sampler, LENGTH),
        4,
        first_row=3,
        callback=lambda state, info: shown.append((state[contracts.X_T], info.to_dict())),
    )
    assert len(shown) == out["info", "t"].shape[1]
    assert torch.equal(shown[-1][0], out["tokens"])
    for p, (_, info) in enumerate(shown):
        for key in ("particles", "ess", "calls"):
            torch.testing.assert_close(info[key], out["info", key][:, p], equal_nan=True)


def test_a_text_that_is_given_takes_no_pass() -> None:
    pipeline = pipelines.pipeline(Sampler(varied(), plans.EntropyBound(1.0)), LENGTH)
    whole = torch.arange(LENGTH) % MASK
    out = edlm.sample(pipeline, 2, prompt=whole)
    assert (out["tokens"] == whole).all()
    assert out["info", "t"].shape == (2, 0)
    some = torch.stack([whole, torch.full((LENGTH,), MASK)])
    out = edlm.sample(pipeline, 2, prompt=some)
    assert not out["info", "t"][0].any()
    assert out["info", "denoiser_passes"][0] == 0.0


class Nothing:
    """A plan that never reveals anything."""

    name = "nothing"

    def choose(self, seen: object, masked: Tensor) -> Tensor:
        """Choose nothing."""
        return torch.zeros_like(masked)

    def expected(self, *_: object) -> None:
        """Say nothing."""


class Greedy(Nothing):
    """A plan that wants what is given, too."""

    def choose(self, seen: object, masked: Tensor) -> Tensor:
        """Choose everything."""
        return torch.ones_like(masked)


def test_a_plan_that_breaks_a_law_ends_no_loop_and_changes_no_prompt() -> None:
    def of(plan: plans.Plan) -> Pipeline:
        return pipelines.pipeline(Sampler(tiny_denoiser(), plan), LENGTH)

    with pytest.raises(ValueError, match="must reveal a mask of every text that has masks, and reveals none of 2"):
        edlm.sample(of(Nothing()), 2)
    out = edlm.sample(of(Greedy()), 2, prompt=torch.tensor([3, 1]))
    assert (out["tokens"][:, :2] == torch.tensor([3, 1])).all()
    assert out["info", "revealed"].tolist() == 2 * [[LENGTH - 2]], "what is given is revealed by no pass"


@pytest.mark.parametrize("proposal", [edlm.samplers.Proposal(0.25, 1.0), edlm.samplers.Proposal(1.0, 0.4)], ids=str)
def test_a_rule_sees_the_law_that_tokens_are_drawn_from(proposal: edlm.samplers.Proposal) -> None:
    """Cooled and cut: another number of positions is sure enough in the first pass."""
    denoiser, plan = varied(), plans.EntropyBound(1.0)
    asked = {
        contracts.X_T: torch.full((1, LENGTH), MASK),
        contracts.T: torch.ones(1, dtype=torch.float64),
        contracts.POSITIONS: torch.arange(LENGTH),
    }
    logits = denoiser.logits(denoiser(TensorDict(asked))[contracts.HIDDEN]).double()
    own = categorical.nucleus(categorical.cooled(logits, proposal.temperature), proposal.nucleus)
    chosen, whole = (slowly(plan, law.softmax(-1).tolist(), [True] * LENGTH) for law in (own, logits))
    out = edlm.sample(pipelines.pipeline(Sampler(denoiser, plan, proposal), LENGTH), 1)
    assert out["info", "revealed"][0, 0] == len(chosen)
    assert len(chosen) != len(whole), "else this would show nothing"


def test_an_energy_of_drafts_is_shown_whole_drafts() -> None:
    """At all masks, whatever the rule reveals of them."""
    shown: list[bool] = []

    def energy(candidates: Tensor) -> Tensor:
        shown.append(bool((candidates == MASK).any()))
        return torch.zeros(candidates.shape[:2], dtype=torch.float64)

    weigh = builders.scoped(stage("candidates -> energy", energy), "draft")
    sampler = Sampler(varied(), plans.Ranked(2), correction=corrections.OfEnergy(weigh, "draft"), candidates=3)
    edlm.sample(pipelines.pipeline(sampler, LENGTH), 4)
    assert shown
    assert not any(shown)


def test_what_is_no_plan_is_refused() -> None:
    with pytest.raises(ValueError, match=r"drawn \(`draw`\) or from the pass \(`choose`\)"):
        Sampler(tiny_denoiser(), object())  # type: ignore[arg-type]


def test_what_is_no_number_is_named() -> None:
    own = tiny_denoiser()
    with torch.no_grad():
        own.network.head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"the denoiser's logits are not finite in pass 0 of text 0, at t = 1"):
        edlm.sample(pipelines.pipeline(Sampler(own, plans.EntropyBound()), LENGTH), 2)


@pytest.mark.parametrize("b", [1, 5])
def test_padded_steps_give_the_same_tokens(b: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As compilation asks for them, without the compiler."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for kind, sampler in with_corrections(plans.EntropyBound(1.0)).items():
        slow = pipelines.pipeline(sampler, LENGTH)
        fast = execution.accelerate(slow, "compile")
        found, expected = edlm.sample(fast, b, prompt=PROMPT), edlm.sample(slow, b, prompt=PROMPT)
        assert torch.equal(found["tokens"], expected["tokens"]), kind
        torch.testing.assert_close(found["info"].to_dict(), expected["info"].to_dict(), equal_nan=True)


@pytest.mark.slow
def test_looking_and_writing_are_one_graph_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced but not translated, which is what takes the time. How a plan looks does not depend on what is written."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    every = [(plans.EntropyBound(1.0, most=3), kind) for kind in ("plain", "draft", "chain_rule", "in order", "until")]
    for plan, kind in [*every, (plans.Confidence(0.9), "in order"), (plans.Ranked(2, by="margin"), "draft")]:
        torch._dynamo.reset()
        slow = pipelines.pipeline(with_corrections(plan)[kind], LENGTH)
        fast = execution.accelerate(slow, "compile")
        for seed in range(2):
            found, expected = edlm.sample(fast, 3, seed=seed), edlm.sample(slow, 3, seed=seed)
            assert torch.equal(found["tokens"], expected["tokens"]), kind
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_it_gives_the_same_tokens() -> None:
    torch._dynamo.reset()
    slow = pipelines.pipeline(with_corrections(plans.EntropyBound(1.0))["draft"], LENGTH)
    fast = execution.accelerate(slow, "compile")
    assert torch.equal(edlm.sample(fast, 5)["tokens"], edlm.sample(slow, 5)["tokens"])
    torch._dynamo.reset()


def test_the_algorithm_says_who_chooses() -> None:
    lines = edlm.samplers.describe(with_corrections(plans.EntropyBound(1.0))["chain_rule"]).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["denoise", "choose", "propose"]
    lines = edlm.samplers.describe(with_corrections(plans.EntropyBound(1.0))["until"]).splitlines()
    assert lines[1:3] == [
        "choose   hidden, x_t, positions -> reveal",
        "in rounds, at most 3, for the rows whose ESS is below 2:",
    ]
