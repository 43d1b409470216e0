"""What a network gives is a number, or one line says which network gave what and in which pass; temperatures too."""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from builders import SELECTIONS, of_transitions, randomise, tiny_denoiser, tiny_energy, tiny_network, wave_energy
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import OracleEnergy
from specifications import Spec
from tensordict.nn import TensorDictModule
from tiny_runs import no_picture, tiny_run
from torch import Tensor, nn

import edlm
from edlm.data import pieces, vocabulary
from edlm.evaluation import figures, judges, scores
from edlm.likelihood import baselines as baseline_bounds
from edlm.likelihood import nelbo
from edlm.models import denoisers, energies
from edlm.nn import networks
from edlm.process import categorical, particles, schedules
from edlm.samplers import autoregressive, baselines, pipelines
from edlm.samplers.sampler import Sampler
from edlm.weights import named

__all__ = ["no_picture"]  # a fixture

LINEAR, MASK, LENGTH = schedules.log_linear(), 4, 6
few = settings(max_examples=15, deadline=None)


class From(nn.Module):
    """The energy of a wave that becomes another number from its n-th call on, for one candidate of one row."""

    def __init__(self, value: float, call: int = 0, row: int = 0) -> None:
        super().__init__()
        self.value, self.call, self.row, self.calls = value, call, row, 0

    def forward(self, candidates: Tensor, x_t: Tensor) -> Tensor:
        energy = wave_energy(0, LENGTH)(candidates, x_t)
        if self.calls >= self.call and self.row < len(energy):
            energy[self.row, -1] = self.value
        self.calls += 1
        return energy


def energy_of(module: nn.Module) -> TensorDictModule:
    return TensorDictModule(module, in_keys=["candidates", "x_t"], out_keys=["energy"])


def pipeline_of(sampler: Sampler, num_steps: int | None = 3, **options: Any) -> pipelines.Pipeline:
    return builders.sampling(sampler, LENGTH, num_steps, **options)


BUILDS: dict[str, Callable[..., Sampler]] = {
    "drafts": builders.importance,
    "transitions": of_transitions,
    "in_rounds": lambda *parts, **options: builders.in_rounds(builders.importance(*parts, **options), 1.9, 2),
}


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize(("value", "said"), [(math.nan, "nan"), (-math.inf, "-inf")])
def test_an_energy_that_is_no_number_is_named_with_its_pass(
    build: str, selection: str, value: float, said: str
) -> None:
    own = tiny_denoiser(), energy_of(From(value))
    kernel = BUILDS[build](LINEAR, *own, num_particles=4, selection=SELECTIONS[selection])
    with pytest.raises(ValueError, match=rf"^the energy is {said} in pass 0 of text \d+, at t = 1$"):
        edlm.sample(pipeline_of(kernel), 3, seed=1)


@few
@given(st.integers(0, 4), st.integers(0, 2), st.integers(0, 2**40))
def test_the_first_pass_and_the_text_are_the_right_ones(call: int, row: int, seed: int) -> None:
    """In the order in which rows are worked on, those with the most passes first; and as many calls as passes."""
    module = From(math.nan, call, row)
    pipeline = pipeline_of(builders.importance(LINEAR, tiny_denoiser(), energy_of(module), 3), 6)
    plain = edlm.sample(pipeline_of(builders.ancestral(LINEAR, tiny_denoiser()), 6), 3, seed=seed, first_row=10)
    passes = plain["info", "denoiser_passes"]
    order = passes.argsort(descending=True, stable=True)
    running = int((passes > call).sum())
    if row >= running:
        return
    text, time = int(order[row]), float(plain["info", "t"][order[row], call])
    with pytest.raises(ValueError, match=re.escape(f"in pass {call} of text {10 + text}, at t = {time:.6g}")):
        edlm.sample(pipeline, 3, seed=seed, first_row=10)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_impossible_candidates_keep_their_meaning(selection: str) -> None:
    """+inf is a number: such a candidate is never kept while there is another, and of none but such the first is."""
    kernel = builders.importance(LINEAR, tiny_denoiser(), energy_of(From(math.inf)), 4, selection=SELECTIONS[selection])
    assert (edlm.sample(pipeline_of(kernel), 3)["tokens"] < MASK).all()

    class Impossible(nn.Module):
        def forward(self, candidates: Tensor, x_t: Tensor) -> Tensor:
            return torch.full(candidates.shape[:2], math.inf, dtype=torch.float64)

    options = {"num_particles": 4, "selection": SELECTIONS[selection]}
    first = builders.importance(LINEAR, tiny_denoiser(), energy_of(Impossible()), **options)
    plain = builders.ancestral(LINEAR, tiny_denoiser())
    found, wanted = (edlm.sample(pipeline_of(kernel), 3)["tokens"] for kernel in (first, plain))
    assert torch.equal(found, wanted)


def test_energies_outside_the_window_do_not_count() -> None:
    """A pass in which one row is corrected weighs the others too, whose energies change nothing."""
    seen: list[Tensor] = []

    class Early(nn.Module):
        def forward(self, candidates: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
            seen.append(t)
            return torch.where(t.unsqueeze(1) > 0.6, torch.nan, wave_energy(0, LENGTH)(candidates, x_t))

    energy = TensorDictModule(Early(), in_keys=["candidates", "x_t", "t"], out_keys=["energy"])
    late = pipeline_of(builders.importance(LINEAR, tiny_denoiser(), energy, 3), None, window=(0.0, 0.6))
    assert (edlm.sample(late, 6, seed=2)["tokens"] < MASK).all()
    assert any(len((t > 0.6).unique()) == 2 for t in seen), "some rows of a pass inside and some outside"


# ---- Denoisers


def broken(network: nn.Module, value: float, part: str = "head") -> nn.Module:
    with torch.no_grad():
        next(network.get_submodule(part).parameters()).fill_(value)
    return network


def samplers_of(network: nn.Module) -> Iterator[tuple[str, pipelines.Pipeline]]:
    denoiser = denoisers.subs(network, MASK)
    yield "plain", pipeline_of(builders.ancestral(LINEAR, denoiser))
    yield "cooled", pipeline_of(builders.ancestral(LINEAR, denoiser, 0.7, 0.9))
    yield "drafts", pipeline_of(builders.importance(LINEAR, denoiser, tiny_energy(), 3))
    yield "in rounds", pipeline_of(BUILDS["in_rounds"](LINEAR, denoiser, tiny_energy(), num_particles=4))
    yield "in order", pipeline_of(builders.in_order(LINEAR, denoiser, 3))
    yield "speculative", pipeline_of(builders.speculative(LINEAR, denoiser))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["head", "embedding"])
def test_a_denoiser_without_a_law_is_named_whatever_the_sampler(value: float, part: str) -> None:
    for _, pipeline in samplers_of(broken(tiny_network(), value, part)):
        with pytest.raises(ValueError, match=r"^the denoiser's logits are not finite in pass 0 of text 0, at t = 1$"):
            edlm.sample(pipeline, 2)


@pytest.mark.slow
def test_compiled_steps_hand_on_what_they_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and not translated, which is what takes the time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    energy = energies.scaled(tiny_energy(), math.nan)
    of_energy = [BUILDS[name](LINEAR, tiny_denoiser(), energy, num_particles=4) for name in ("drafts", "in_rounds")]
    faulty = [(pipeline_of(kernel), "the energy is nan") for kernel in of_energy]
    of_denoiser = dict(samplers_of(broken(tiny_network(), math.nan)))
    faulty += [(of_denoiser[name], "the denoiser's logits are not finite") for name in ("plain", "speculative")]
    for pipeline, said in faulty:
        with pytest.raises(ValueError, match=rf"^{said} in pass 0 of text 0, at t = 1$"):
            edlm.sample(edlm.accelerate(pipeline, "compile"), 3)


def test_a_joint_network_without_a_law_is_named() -> None:
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "conditioning_size": 8}
    network = randomise(networks.JointNetwork(5, 8, **sizes), 0).double()
    broken(network, math.nan, "scalar")
    with pytest.raises(ValueError, match=r"^the energy is nan in pass 0 of text 0, at t = 1$"):
        edlm.sample(pipeline_of(builders.two_heads(LINEAR, denoisers.subs(network, MASK), 3)), 2)
    broken(network, math.nan, "denoiser.head")
    with pytest.raises(ValueError, match=r"^the denoiser's logits are not finite in pass 0 of text 0, at t = 1$"):
        edlm.sample(pipeline_of(builders.two_heads(LINEAR, denoisers.subs(network, MASK), 3)), 2)


def test_a_law_that_fails_only_in_order_is_named() -> None:
    """Plain draws have a law and what is read after them has none."""
    network = tiny_network()

    def nothing(*arguments: Any) -> Tensor:
        return torch.full_like(type(network).in_order(network, *arguments), torch.nan)

    network.in_order = nothing
    for kernel in (
        builders.speculative(LINEAR, denoisers.subs(network, MASK)),
        builders.in_order(LINEAR, denoisers.subs(network, MASK), 2),
    ):
        with pytest.raises(
            ValueError, match=r"^the (denoiser's logits are not finite|energy is nan) in pass 0 of text"
        ):
            edlm.sample(pipeline_of(kernel, 1), 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_baselines_and_autoregressive_models_without_a_law_are_named(value: float) -> None:
    told = schedules.log_linear(1e-3)
    for kernel in (
        baselines.d3pm(denoisers.d3pm(broken(tiny_network(), value), MASK), LINEAR),
        baselines.analytic(denoisers.sedd(broken(tiny_network(), value), MASK, told), told),
    ):
        with pytest.raises(ValueError, match=r"^the denoiser, in pass 0 at t = 1, gives nan for \d+ of \d+ tokens"):
            baselines.sample(kernel, LENGTH, 3, 2)
    ar = broken(tiny_network(causal=True, conditioning_size=0), value)
    with pytest.raises(ValueError, match=r"^the autoregressive network's logits are not finite at token 0 of row 0$"):
        autoregressive.sample(ar, 2, LENGTH, MASK, MASK)


def test_figures_of_a_network_that_gives_no_numbers_are_refused() -> None:
    x_0, keys = torch.randint(0, MASK, (3, LENGTH)), (torch.tensor(0), torch.arange(3))
    wrong, right = denoisers.subs(broken(tiny_network(), math.nan), MASK), tiny_denoiser()
    grid, of_denoiser, of_energy = schedules.uniform_grid(3), "^the denoiser gives nan for", "^the energy is nan for"
    told = schedules.log_linear(1e-3)
    d3pm, sedd = (build(broken(tiny_network(), math.nan), MASK, told) for build in (denoisers.d3pm, denoisers.sedd))
    asked: list[tuple[Callable[[], object], str]] = [
        (partial(nelbo.nelbo, wrong, LINEAR, x_0, *keys), of_denoiser),
        (partial(nelbo.masked_nll, wrong, LINEAR, x_0, torch.full((3,), 0.7), *keys), of_denoiser),
        (partial(builders.plain_bound, wrong, LINEAR, grid, x_0, *keys), of_denoiser),
        (partial(baseline_bounds.t_step_nelbo, baselines.d3pm(d3pm, told), x_0, *keys, 3), of_denoiser),
        (partial(baseline_bounds.score_entropy, sedd, told, x_0, *keys), of_denoiser),
    ]
    for bound in (builders.draft_bound, builders.transition_bound):
        asked.append((partial(bound, wrong, tiny_energy(), LINEAR, grid, x_0, *keys, num_particles=2), of_denoiser))
        energy = energy_of(From(math.nan))
        asked.append((partial(bound, right, energy, LINEAR, grid, x_0, *keys, num_particles=2), of_energy))
    for work, said in asked:
        with pytest.raises(ValueError, match=said):
            work()


def test_a_bound_of_what_is_impossible_is_infinite_and_no_error() -> None:
    """A figure of inf says that a text cannot come out; it is nan that says nothing."""
    energy = OracleEnergy(lambda x, x_t: torch.where((x != MASK).all(-1), math.inf, 0.0).double())
    x_0, keys = torch.zeros(2, 4, dtype=torch.int64), (torch.tensor(0), torch.arange(2))
    found = builders.transition_bound(
        Spec().kernel().denoiser, energy, LINEAR, schedules.uniform_grid(1), x_0, *keys, num_particles=2
    )
    assert not found.nats.isnan().any()


# ---- Temperatures


@pytest.mark.parametrize("temperature", [math.inf, math.nan, 0.0, -1.0, -math.inf])
def test_a_temperature_is_positive_and_finite(temperature: float) -> None:
    denoiser, energy = tiny_denoiser(), tiny_energy()
    ar = tiny_network(causal=True, conditioning_size=0)
    parts = LINEAR, denoiser, energy, 2
    for name, work in (
        ("proposal.temperature", partial(builders.ancestral, LINEAR, denoiser, temperature)),
        ("temperature", partial(builders.importance, *parts, temperature)),
        ("proposal.temperature", partial(builders.importance, *parts, proposal_temperature=temperature)),
        ("proposal.temperature", partial(builders.speculative, LINEAR, denoiser, temperature)),
        ("temperature", partial(builders.in_order, LINEAR, denoiser, 2, temperature)),
        ("temperature", partial(autoregressive.sample, ar, 1, LENGTH, MASK, MASK, temperature=temperature)),
        ("temperature", partial(particles.log_weights, torch.zeros(1, 2), temperature)),
        ("temperature", partial(categorical.cooled, torch.zeros(1, 2), temperature)),
    ):
        with pytest.raises(ValueError, match=f"^{name} = {temperature} must be positive"):
            work()


@pytest.mark.parametrize("temperature", [1e-308, 5e-324])
def test_energies_are_not_divided_by_what_overflows(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"^temperature = {temperature} must be at least 1e-100"):
        builders.importance(LINEAR, tiny_denoiser(), tiny_energy(), 2, temperature)
    assert particles.log_weights(torch.tensor([[1e3, -1e3]]), particles.COLDEST).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@few
@given(st.integers(0, 2**40), st.sampled_from([5e-324, 1e-308, 1e-45, 1e-30, 1e-4]), st.floats(1e4, 1e308))
def test_the_coldest_law_is_its_likeliest_token_and_the_hottest_an_even_one(
    dtype: torch.dtype, seed: int, cold: float, hot: float
) -> None:
    logits = (10.0 * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)
    logits[:, 2] = -torch.inf
    highest = logits.amax(-1, keepdim=True)
    law = categorical.cooled(logits, cold).double().softmax(-1)
    wanted = (logits == highest).double()
    torch.testing.assert_close(law, wanted / wanted.sum(-1, keepdim=True), rtol=0.0, atol=1e-6)
    law = categorical.cooled(logits, hot).double().softmax(-1)
    assert (law[:, 2] == 0.0).all()
    torch.testing.assert_close(law[:, [0, 1, 3, 4, 5, 6]], torch.full((5, 6), 1 / 6).double(), rtol=0.0, atol=2e-3)


@pytest.mark.parametrize("temperature", [1e-308, 1e-20, 0.7, 1e20, 1e308])
def test_every_sampler_draws_at_any_temperature(temperature: float) -> None:
    denoiser, network = tiny_denoiser(), tiny_network(causal=True, conditioning_size=0).float()
    denoiser.network.float()
    for kernel in (
        builders.ancestral(LINEAR, denoiser, temperature),
        builders.importance(LINEAR, denoiser, tiny_energy(), 2, proposal_temperature=temperature),
        builders.speculative(LINEAR, denoiser, temperature),
    ):
        assert (edlm.sample(pipeline_of(kernel), 2)["tokens"] < MASK).all()
    drawn = autoregressive.sample(network, 2, LENGTH, MASK, MASK, temperature=temperature)
    assert (drawn.tokens < MASK).all()


@given(st.sampled_from([0.5, 0.7, 2.0, 1e-3, 1e3]), st.integers(0, 2**40))
@few
def test_ordinary_temperatures_divide_as_they_did(temperature: float, seed: int) -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(categorical.cooled(logits, temperature), logits / temperature)
    assert categorical.cooled(logits, 1.0) is logits


# ---- What no number does to a draw


@few
@given(st.integers(1, 600), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 2**40))
def test_a_draw_of_no_law_is_a_token_at_no_probability(v: int, value: float, seed: int) -> None:
    logits = torch.full((4, v), value)
    logits[0] = 0.0
    uniforms = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn = categorical.inverse_cdf(logits, uniforms)
    assert ((drawn.tokens >= 0) & (drawn.tokens < v)).all()
    assert drawn.log_prob[1:].isnan().all()
    assert drawn.log_prob[0].isfinite().all()
    for selection in SELECTIONS.values():
        chosen = selection(torch.tensor([[math.nan, 0.0], [0.0, math.nan], [math.inf, 0.0]]).double(), uniforms[:3, :2])
        assert ((chosen >= 0) & (chosen < 2)).all()


# ---- Recipes


def test_a_figure_that_is_no_number_names_its_model_and_its_texts() -> None:
    texts = figures.TextSet("test", [pieces.Excerpt(torch.tensor([1, 2, 3]), 0)] * 2, 2, 6)
    wrong = denoisers.subs(broken(tiny_network(), math.nan), MASK)
    score = scores.continuous(named.Diffusion(wrong, LINEAR, {}))
    with pytest.raises(ValueError, match=r"^denoiser on test: the denoiser gives nan for \d+ of \d+ tokens"):
        figures.measure("denoiser", score, texts, 2, 0, torch.device("cpu"))
    ar = named.Autoregressive(broken(tiny_network(causal=True, conditioning_size=0), math.nan), MASK)
    with pytest.raises(ValueError, match=r"^ar on test: the autoregressive model gives nan for 6 of 6 tokens"):
        figures.measure("ar", scores.autoregressive_nll(ar, MASK), texts, 2, 0, torch.device("cpu"))


def test_a_judge_that_gives_no_numbers_is_named() -> None:
    network = broken(tiny_network(causal=True, conditioning_size=0), math.nan)
    judge = judges.autoregressive(network, vocabulary.characters("abcd"), MASK)
    with pytest.raises(ValueError, match=r"^the judge's logits are not finite for text 0$"):
        judge(["abc", "dcb"])


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    """An update may overflow though loss and gradient did not: what was saved before stays what it is."""
    run = tiny_run(tmp_path, save_every=1, steps=1)
    run.train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for value in (math.nan, math.inf):
        with torch.no_grad():
            run.weights.masters[0].view(-1)[3] = value
        with pytest.raises(
            ValueError, match=r"^weights that are not finite at step 1: stopped; the last good .* is .*1$"
        ):
            run.save_checkpoint()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        *(
            ("generate", key, value)
            for key in ("temperature", "energy_temperature")
            for value in (math.inf, math.nan, 0.0)
        ),
        ("generate", "energy_temperature", 1e-308),
        ("evaluate", "energy_temperature", math.inf),
        ("evaluate", "energy_temperature", 1e-308),
    ],
)
def test_a_temperature_of_a_config_is_named_by_its_key(recipe: str, key: str, value: float) -> None:
    schema = import_module(f"edlm.recipes.{recipe}").SETTINGS
    with pytest.raises(ValueError, match=rf"^{key} = {re.escape(repr(value))} must be a number"):
        schema[key](key, value)
    schema[key](key, 0.7)
