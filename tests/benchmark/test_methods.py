"""The methods of a benchmark: what a case is called, what is run before the clock starts, what a machine lacks."""

from typing import Any

import pytest
import torch
from small_benchmarks import BLOCK, CPU, SIZES, VOCAB, small_networks

from edlm.benchmark import methods, textbook
from edlm.benchmark.methods import Bench, Case
from edlm.samplers import execution, pipelines

PLAIN = Case("plain", VOCAB, BLOCK, rows=3, num_steps=4, num_particles=1, repeats=2, textbook_steps=None)
WEIGHED = PLAIN._replace(method="posterior", num_particles=2)


@pytest.mark.parametrize(
    ("case", "corrects", "name"),
    [
        (PLAIN, False, "plain v=11 l=6 b=3 T=4"),
        (WEIGHED, True, "posterior v=11 l=6 b=3 T=4 k=2"),
        (PLAIN._replace(sampler={"plan": {"name": "grid"}}), False, "plain v=11 l=6 b=3 T=4 grid"),
        (
            PLAIN._replace(sampler={"correction": {"name": "chain_rule"}}, num_particles=5),
            True,
            "plain v=11 l=6 b=3 T=4 k=5 chain_rule",
        ),
    ],
)
def test_a_case_is_called_by_its_sizes_and_its_own_sampler(case: Case, corrects: bool, name: str) -> None:
    assert (case.corrects, str(case)) == (corrects, name)


def test_a_pipeline_serves_every_number_of_steps_and_no_other_case() -> None:
    assert PLAIN.key == PLAIN._replace(num_steps=9).key
    others = [PLAIN._replace(**{name: 9}) for name in ("vocab_size", "length", "rows", "num_particles")]
    assert len({PLAIN.key, *(each.key for each in others)}) == 5


@pytest.mark.parametrize(("num_steps", "warmed"), [(1, 1), (2, 2), (6, 2)])
def test_two_steps_at_most_are_run_before_the_clock_starts(
    num_steps: int, warmed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those of the case when it runs, or as many of the textbook's as the case says."""
    case, networks, steps = PLAIN._replace(num_steps=num_steps, textbook_steps=num_steps), small_networks(), []
    sample, pairs = pipelines.sample, textbook._steps

    def counted(pipeline: Any, *given: Any, **how: Any) -> Any:
        steps.append(pipeline.sampler.plan.num_steps)
        return sample(pipeline, *given, **how)

    monkeypatch.setattr(pipelines, "sample", counted)
    monkeypatch.setattr(textbook, "_steps", lambda total, only: steps.append((total, only)) or pairs(total, only))
    ours = methods.ours(case, networks, methods.build_pipeline(case, networks, "eager"), 0)
    theirs = methods.textbook(case, networks, 0, CPU)
    for run in (ours.warm_up, ours.run, theirs.warm_up, theirs.run):
        run()
    assert steps == [warmed, num_steps, (num_steps, warmed), (num_steps, num_steps)]


def test_a_run_draws_the_texts_of_its_seed() -> None:
    networks = small_networks()
    pipeline = methods.build_pipeline(PLAIN, networks, "eager")
    runs: list[Any] = [methods.ours(PLAIN, networks, pipeline, seed).run() for seed in (3, 4)]
    assert torch.equal(runs[0]["tokens"], pipelines.sample(pipeline, 3, seed=3)["tokens"])
    assert not torch.equal(runs[0]["tokens"], runs[1]["tokens"])
    theirs: list[Any] = [methods.textbook(PLAIN, networks, seed, CPU).run() for seed in (3, 3, 4)]
    assert torch.equal(theirs[0], theirs[1])
    assert not torch.equal(theirs[0], theirs[2])


def test_networks_are_built_once_for_a_vocabulary_and_pipelines_until_they_are_forgotten() -> None:
    bench = Bench(SIZES, BLOCK, 0, CPU, torch.float64)
    found = bench.methods(PLAIN, ["eager"], "theirs")
    assert list(found) == ["theirs", "eager"]
    [built], [pipeline] = bench._networks.values(), bench._pipelines.values()
    bench.methods(PLAIN._replace(num_steps=2), ["eager"], "theirs")
    assert list(bench._pipelines.values()) == [pipeline]
    bench.forget()
    assert not bench._pipelines
    bench.methods(WEIGHED, ["eager"], "theirs")
    assert list(bench._networks.values()) == [built]
    assert (built.mask_id, built.bos_id) == (VOCAB - 1, 0)


def test_the_two_networks_have_other_weights_and_those_of_a_seed_are_the_same() -> None:
    one, again = (small_networks().denoiser.state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    other = small_networks().ar.state_dict()
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"])
    vectors = [value for name, value in one.items() if value.ndim == 1 and name.endswith("weight")]
    assert torch.stack(vectors).std() == pytest.approx(0.5, rel=0.2)
    assert one["embedding.weight"].std() == pytest.approx(16**-0.5, rel=0.2)


def test_the_second_network_has_the_weights_of_the_next_seed() -> None:
    first, second = (methods.build_networks(SIZES, VOCAB, BLOCK, seed, CPU, torch.float64) for seed in (3, 4))
    assert torch.equal(first.ar.state_dict()["embedding.weight"], second.denoiser.state_dict()["embedding.weight"])


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("mode", "device", "compiler", "triton", "missing"),
    [
        ("eager", CPU, "g++", None, None),
        ("cudagraph", CPU, "", "triton", "a CUDA device"),
        ("compile", CPU, "", None, None),
        ("compile", CPU, "g++", "triton", "a C++ compiler, g++"),
        ("compile", CUDA, "g++", "triton", "a C++ compiler, g++"),
        ("compile", CUDA, "", None, "triton"),
        ("cudagraph", CUDA, "", None, "triton"),
        ("cudagraph", CUDA, "", "triton", None),
    ],
)
def test_what_a_mode_lacks_is_named(
    mode: str, device: torch.device, compiler: str, triton: Any, missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "missing_compiler", lambda of: compiler if of.type == "cpu" else "")
    monkeypatch.setattr(methods, "find_spec", lambda name: triton if name == "triton" else "there")
    assert methods.missing_for(mode, device) == missing
