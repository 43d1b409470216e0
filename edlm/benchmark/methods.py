"""What a benchmark compares on one case: the textbook sampler, and ours in every mode, with the same weights."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from edlm.benchmark import textbook as textbook_samplers
from edlm.models import denoisers, energies
from edlm.nn import folding
from edlm.nn.networks import Transformer
from edlm.runs import timing
from edlm.runs.timing import Clock
from edlm.samplers import corrections, execution, pipelines, plans
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Sampler

BOS_ID = 0
_WARM_UP_STEPS = 2
T = TypeVar("T", bound=nn.Module)


class Case(NamedTuple):
    """One sampling task; num_particles is 1 for `plain`. textbook_steps: how many of its steps are timed, None: all."""

    method: str
    vocab_size: int
    length: int
    rows: int
    num_steps: int
    num_particles: int
    repeats: int
    textbook_steps: int | None

    def __str__(self) -> str:
        particles = f" k={self.num_particles}" if self.method != "plain" else ""
        return f"{self.method} v={self.vocab_size} l={self.length} b={self.rows} T={self.num_steps}{particles}"


class Networks(NamedTuple):
    """The networks of a vocabulary: the denoiser's as trained and folded, and the energy's."""

    denoiser: Transformer
    folded: Transformer
    ar: Transformer


class Method(NamedTuple):
    """One way to do a case.

    run: all that is timed; warm_up: a call that leaves nothing to be done for the first time; observe: a run whose
    parts a clock takes, None where hooks would change what is run; scale: cost of the whole case per cost of `run`.
    """

    run: Callable[[], object]
    warm_up: Callable[[], object]
    observe: Callable[[Clock], object] | None
    scale: float


def build_networks(
    sizes: Mapping[str, Any], vocab_size: int, max_length: int, seed: int, device: torch.device, dtype: torch.dtype
) -> Networks:
    """Untrained networks whose every weight is a seeded random number, so that laws are neither flat nor certain."""
    denoiser = Transformer(vocab_size, max_length, **sizes)
    ar = Transformer(vocab_size, max_length, **{**sizes, "conditioning_size": 0}, causal=True)
    for index, network in enumerate((denoiser, ar)):
        _randomise(network, seed + index).to(device, dtype).eval().requires_grad_(False)
    return Networks(denoiser, folding.fold_conditioning(denoiser), ar)


def textbook(case: Case, networks: Networks, seed: int, device: torch.device) -> Method:
    """The sampler of `benchmark.textbook` on the unfolded network; it has no execution mode but eager."""
    mask_id, shape = case.vocab_size - 1, (case.rows, case.length)
    run: Callable[..., Tensor]
    if case.method == "plain":
        run = partial(textbook_samplers.ancestral, networks.denoiser, mask_id, shape, case.num_steps)
    else:
        energy = textbook_samplers.residual_ar(networks.ar, mask_id, BOS_ID, case.method == "carry_over")
        run = partial(
            textbook_samplers.importance, networks.denoiser, energy, mask_id, shape, case.num_steps, case.num_particles
        )

    def steps(only: int | None) -> object:
        return run(torch.Generator(device).manual_seed(seed), only)

    def observe(clock: Clock) -> object:
        with clock.watching(_parts(networks.denoiser, networks.ar), timing.operations):
            return steps(case.textbook_steps)

    return Method(
        run=lambda: steps(case.textbook_steps),
        warm_up=lambda: steps(min(_WARM_UP_STEPS, case.num_steps)),
        observe=observe,
        scale=case.num_steps / (case.textbook_steps or case.num_steps),
    )


def ours(case: Case, networks: Networks, pipeline: Pipeline, seed: int) -> Method:
    """The library's sampler, in the mode the pipeline is put in; see `build_pipeline`."""
    pipeline = _with_steps(pipeline, case.num_steps)
    short = _with_steps(pipeline, min(_WARM_UP_STEPS, case.num_steps))

    def observe(clock: Clock) -> object:
        kernel = pipeline.kernel._replace(draw=clock.timed(pipeline.kernel.draw, "noise"))
        with ExitStack() as stack:
            stack.enter_context(clock.watching(_parts(networks.folded, networks.ar), timing.operations))
            stack.enter_context(clock.watching(dict(kernel.step.module.items())))
            return pipelines.sample(pipeline._replace(kernel=kernel), case.rows, seed=seed)

    return Method(
        run=lambda: pipelines.sample(pipeline, case.rows, seed=seed),
        warm_up=lambda: pipelines.sample(short, case.rows, seed=seed),
        observe=observe,
        scale=1.0,
    )


def build_pipeline(case: Case, networks: Networks, mode: execution.Mode) -> Pipeline:
    """The library's sampler of a case in an execution mode, good for every number of steps."""
    mask_id = case.vocab_size - 1
    sampler = Sampler(denoisers.subs(networks.folded, mask_id), plans.Grid(case.num_steps))
    if case.method != "plain":
        energy = energies.residual_ar(networks.ar, mask_id, BOS_ID, case.method == "carry_over")
        sampler = sampler.replace(correction=corrections.OfEnergy(energy), candidates=case.num_particles)
    return execution.accelerate(pipelines.pipeline(sampler, case.length), mode)


def _with_steps(pipeline: Pipeline, num_steps: int) -> Pipeline:
    """The same, with what is compiled of it, in another number of steps."""
    return pipeline._replace(sampler=pipeline.sampler.replace(plan=plans.Grid(num_steps)))


def missing_for(mode: str, device: torch.device) -> str | None:
    """What an execution mode needs and this machine has not; None if it can be run."""
    if mode == "eager":
        return None
    if mode == "cudagraph" and device.type != "cuda":
        return "a CUDA device"
    compiler = execution.missing_compiler(torch.device("cpu"))  # for a GPU's kernels too, around which C++ is compiled
    if compiler:
        return f"a C++ compiler, {compiler}"
    return "triton" if device.type == "cuda" and find_spec("triton") is None else None


def _parts(denoiser: Transformer, ar: Transformer) -> dict[str, nn.Module]:
    found: dict[str, Any] = {"denoiser": denoiser, "denoiser head": denoiser.head, "energy": ar, "energy head": ar.head}
    return found


def _randomise(network: T, seed: int) -> T:
    """Normal numbers, scaled so that a layer's output is about as large as its input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 1.0 / math.sqrt(parameter.shape[-1]) if parameter.ndim == 2 else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network
