"""How many texts may be in memory at once: one token more is refused by the key that asks for them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import frontier_folder
import pytest
import torch
from running import Runner
from smallest import settings_of
from tiny_runs import LENGTH, tiny_run
from torch import Tensor

from edlm import limits
from edlm.data.pieces import Blocks
from edlm.evaluation import scores
from edlm.evaluation.draws import Draws
from edlm.frontier import exact
from edlm.frontier.exact import Beside
from edlm.likelihood import bounds, hidden_markov
from edlm.likelihood.estimates import Estimate, estimate
from edlm.recipes import edlm_joint, edlm_nce, evaluate, generate, likelihoods, oracle
from edlm.samplers import corrections
from edlm.samplers.plans import TokensPerPass
from edlm.samplers.sampler import Sampler
from edlm.training import energy

CPU = torch.device("cpu")


@pytest.fixture
def at_most(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many tokens are allowed."""
    monkeypatch.delenv("EDLM_LIMITS", raising=False)
    return lambda tokens: monkeypatch.setattr(limits, "TEXT_TOKENS", tokens)


def test_one_token_more_is_refused_with_what_allows_it(at_most: Callable[[int], None]) -> None:
    at_most(60)
    limits.require_texts("rows", 12, 5)
    limits.require_texts("rows", 4, 5, each_of=3)
    with pytest.raises(limits.TooLarge) as error:
        limits.require_texts("rows", 61, 1)
    told = "rows = 61 texts of 1 tokens: tokens = 61 must be at most 60; EDLM_LIMITS=2 (limits= of a recipe) allows it"
    assert str(error.value) == told
    with pytest.raises(limits.TooLarge, match=r"^rows = 4 texts of 5 tokens for each of 4: tokens = 80 must be at"):
        limits.require_texts("rows", 4, 5, each_of=4)


@pytest.mark.parametrize("key", ["batch_size", "valid_rows"])
def test_texts_of_a_training_are_as_many_as_are_allowed(
    key: str, tmp_path: Path, at_most: Callable[[int], None]
) -> None:
    at_most(5 * LENGTH)
    tiny_run(tmp_path / "five", **{key: 5})
    with pytest.raises(limits.TooLarge, match=rf"^{key} = 6 texts of {LENGTH} tokens: tokens = {6 * LENGTH} must"):
        tiny_run(tmp_path / "six", **{key: 6})


@pytest.mark.parametrize("key", ["num_samples", "bounded_texts", "entropy_texts"])
def test_texts_of_a_source_are_as_many_as_are_allowed(key: str, tmp_path: Path, at_most: Callable[[int], None]) -> None:
    fewer = {"num_samples": 4, "bounded_texts": 4, "entropy_texts": 4, "length": 4, "distances": [1]}
    settings = {**settings_of("oracle"), "output_dir": str(tmp_path / "out"), **fewer}
    at_most(20)
    oracle.Oracle({**settings, key: 5})
    with pytest.raises(limits.TooLarge, match=rf"^{key} = 6 texts of 4 tokens: tokens = 24 must be at most 20"):
        oracle.Oracle({**settings, key: 6})


SAMPLES = {"num_samples": 2, "num_particles": 1}
SAMPLER = "{correction: {name: chain_rule}, candidates: 3, plan: {name: grid, num_steps: 2}}"
CLOSING = {"num_samples": 2, "num_completions": 1}


@pytest.mark.parametrize(
    ("section", "key", "times"),
    [
        ("samples", "num_particles", 3),
        ("closing", "num_samples", 1),
        ("closing", "num_completions", 3),
    ],
)
def test_texts_at_the_end_of_a_training_are_as_many_as_are_allowed(
    section: str, key: str, times: int, at_most: Callable[[int], None]
) -> None:
    settings = {"num_negatives": 1, "report_particles": 1, "batch_size": 3, "samples": SAMPLES, "closing": CLOSING}
    most = 12 // times
    at_most(12 * 5)
    energy.require_room({**settings, section: {**settings[section], key: most}}, length=5)
    of = "" if times == 1 else f" for each of {times}"
    with pytest.raises(limits.TooLarge, match=rf"^{section}\.{key} = {most + 1} texts of 5 tokens{of}: tokens = "):
        energy.require_room({**settings, section: {**settings[section], key: most + 1}}, length=5)
    more = {**settings, "samples": {"num_samples": 4, "num_particles": 4}}  # more texts than rows of a batch
    with pytest.raises(limits.TooLarge, match=r"^samples\.num_particles = 4 texts of 5 tokens for each of 4: tokens"):
        energy.require_room(more, length=5)


SCORED = {
    evaluate.Evaluate: ("num_particles", "num_completions", "num_passes", "log_z_particles"),
    likelihoods.Likelihoods: ("num_completions", "num_passes"),
}


@pytest.mark.parametrize(("recipe", "key"), [(recipe, key) for recipe, keys in SCORED.items() for key in keys])
def test_what_scoring_draws_is_as_much_as_is_allowed(recipe: Any, key: str, at_most: Callable[[int], None]) -> None:
    """Before the texts are read: there are none here. A key that is null has no limit."""
    at_most(3 * 4 * 5)
    settings = {**dict.fromkeys(SCORED[recipe], 4), "num_passes": None, "batch_size": 3, "length": None}
    scores.require_room(settings, length=5)
    found = object.__new__(recipe)
    found.settings = {**settings, key: 5}
    found.models = SimpleNamespace(max_length=5)
    with pytest.raises(limits.TooLarge, match=rf"^{key} = 5 texts of 5 tokens for each of 3: tokens = 75 must be"):
        found.setup()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("num_particles", ["num_particles=3", "energy=chain_rule"]),
        (
            "sampler.candidates",
            [f"sampler={SAMPLER}"],
        ),
    ],
)
def test_candidates_of_generated_texts_are_as_many_as_are_allowed(
    key: str, words: list[str], tmp_path: Path, run: Runner, at_most: Callable[[int], None]
) -> None:
    frontier_folder.write(tmp_path)
    own = [f"denoiser={tmp_path / 'denoiser'}", f"output={tmp_path / 'texts.jsonl'}", "num_samples=2", "num_steps=2"]
    at_most(2 * 3 * frontier_folder.LENGTH)
    assert run("generate", "energy=null", *own, *words, "overwrite=true").status == 0
    at_most(2 * 3 * frontier_folder.LENGTH - 1)
    ran = run("generate", "energy=null", *own, *words, "overwrite=true")
    told = f"edlm: {key} = 3 texts of {frontier_folder.LENGTH} tokens for each of 2: tokens = "
    assert ran.status == 2
    assert ran.said.startswith(told)


@pytest.mark.parametrize("key", ["num_negatives", "report_particles"])
@pytest.mark.parametrize("recipe", [edlm_nce.EnergyByNCE, edlm_joint.JointTraining])
def test_drafts_of_a_batch_are_as_many_as_are_allowed(recipe: Any, key: str, at_most: Callable[[int], None]) -> None:
    """Before the corpus is read: there is none here."""
    at_most(3 * 4 * 5)
    settings = {"num_negatives": 1, "report_particles": 1, "batch_size": 3, "samples": SAMPLES}
    energy.require_room({**settings, key: 4}, length=5)
    found = object.__new__(recipe)
    found.settings = {**settings, key: 5}
    found.denoiser = found.start = SimpleNamespace(max_length=5)
    told = rf"^{key} = 5 texts of 5 tokens for each of 3: tokens = 75 must be at most 60"
    with pytest.raises(limits.TooLarge, match=told):
        found.setup()


def test_held_out_draws_take_no_memory_before_they_are_scored() -> None:
    """A million million draws in batches of two: only those that are asked for are made."""
    texts = torch.arange(12).view(3, 4)
    many = Draws(Blocks(texts, texts, texts).test, 10**12 + 1, 2, 0, CPU)
    row, x_0 = next(iter(many.batches()))
    assert (row.tolist(), x_0.tolist()) == ([0, 1], texts[:2].tolist())
    seen: list[int] = []

    def stop_at_the_third(row: Tensor, x_0: Tensor) -> None:
        seen.extend(row.tolist())
        if len(seen) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        many.spread(stop_at_the_third)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_batches_that_are_generated_take_no_memory_before_their_turn(tmp_path: Path) -> None:
    found = object.__new__(generate.Generate)
    found.settings = {"batch_size": 3, "num_samples": 10**12, "seed": 0}
    found.output, found.fingerprint = tmp_path / "texts.jsonl", "0"
    asked: list[tuple[int, int]] = []

    def draw(count: int, first: int) -> list[Any]:
        asked.append((count, first))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return [{"row": first + number} for number in range(count)]

    found.drawn = draw
    with pytest.raises(KeyboardInterrupt):
        found.generate()
    assert asked == [(3, 0), (3, 3), (3, 6)]
    assert len(found.output.read_text("utf-8").splitlines()) == 6


def test_texts_bounded_a_few_at_a_time_have_the_figures_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = hidden_markov.random_hidden_markov(0, 2, 3)
    texts = hidden_markov.texts(source, 11, 4, seed=1)
    beside = Beside(source, 4, Estimate(0.5, 0.0, 2), texts, [1], 7, 4)
    weighed = corrections.OfEnergy(hidden_markov.energy(source), called="exact")
    sampler = Sampler(hidden_markov.denoiser(source, 4), TokensPerPass(2), correction=weighed, candidates=2)
    nats = bounds.of_sampler(sampler, texts, torch.tensor(7), torch.arange(11)).nats
    whole = estimate(nats + hidden_markov.log_prob(source, texts) / 4)[:2]
    asked: list[list[int]] = []
    of_sampler = exact.bounds.of_sampler

    def noted(sampler: Sampler, x_0: Tensor, seed: Tensor, row: Tensor) -> Any:
        asked.append(row.tolist())
        return of_sampler(sampler, x_0, seed, row)

    monkeypatch.setattr(exact.bounds, "of_sampler", noted)
    monkeypatch.setattr(exact, "_TOKENS", 17)  # four texts of four tokens
    assert exact.of_sampler(sampler, beside)["kl_bound"] == pytest.approx(whole, rel=1e-12)
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    monkeypatch.setattr(exact, "_TOKENS", 3)  # not even one
    assert exact.of_sampler(sampler, beside)["kl_bound"] == pytest.approx(whole, rel=1e-12)


def test_a_random_source_has_as_many_symbols_and_states_as_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDLM_LIMITS", raising=False)
    monkeypatch.setattr(limits, "SOURCE_SIZE", 4)
    assert hidden_markov.random_hidden_markov(0, hidden=4, symbols=4).emission.shape == (4, 4)
    for hidden, symbols, told in ((4, 5, "symbols = 5"), (5, 4, "hidden = 5")):
        with pytest.raises(limits.TooLarge, match=rf"^source: {told} must be at most 4; EDLM_LIMITS=2 "):
            hidden_markov.random_hidden_markov(0, hidden=hidden, symbols=symbols)
    with pytest.raises(limits.TooLarge, match=r"^source: symbols = 5 must be at most 4"):
        hidden_markov.random_markov(0, symbols=5)
