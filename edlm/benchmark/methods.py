"""The methods that a benchmark compares on one case: the textbook sampler, and ours in every mode, same weights."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
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
from edlm.samplers import configs, corrections, execution, pipelines
from edlm.samplers.kernel import Looped
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Sampler
from edlm.weights import loading, pairs, sources
from edlm.weights.sources import How, Source

BOS_ID = 0
_WARM_UP_STEPS = 2
T = TypeVar("T", bound=nn.Module)


METHODS = ("plain", "posterior", "carry_over")


class Case(NamedTuple):
    """One sampling task.

    method: the textbook sampler, without an energy or with an AR model's in either form; num_particles is 1 without.
    textbook_steps: how many of its steps are timed, None: all. sampler: what of ours is not as the method has it, a
    section of `samplers.configs`.
    """

    method: str
    vocab_size: int
    length: int
    rows: int
    num_steps: int
    num_particles: int
    repeats: int
    textbook_steps: int | None
    sampler: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        particles = f" k={self.num_particles}" if self.corrects else ""
        own = f" {configs.short(self.sampler)}" if self.sampler else ""
        return f"{self.method} v={self.vocab_size} l={self.length} b={self.rows} T={self.num_steps}{particles}{own}"

    @property
    def corrects(self) -> bool:
        """Whether candidates are weighed."""
        return self.method != METHODS[0] or configs.names_correction((self.sampler or {}).get("correction"))

    @property
    def key(self) -> str:
        """The name by which its pipeline is held apart from that of another case; it serves every number of steps."""
        return json.dumps(self._replace(num_steps=0)._asdict())


class Networks(NamedTuple):
    """The networks of a vocabulary: the denoiser's as trained and folded, and the energy's, if there is one."""

    denoiser: Any
    folded: Any
    ar: Any
    mask_id: int
    bos_id: int | None


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
    """Build untrained networks whose weights are all seeded random numbers: laws are neither flat nor certain."""
    denoiser = Transformer(vocab_size, max_length, **sizes)
    ar = Transformer(vocab_size, max_length, **{**sizes, "conditioning_size": 0}, causal=True)
    for index, network in enumerate((denoiser, ar)):
        _randomise(network, seed + index).to(device, dtype).eval().requires_grad_(False)
    return Networks(denoiser, folding.fold_conditioning(denoiser), ar, vocab_size - 1, BOS_ID)


def load_networks(
    denoiser: str, ar: Source | None, vocab_size: int, max_length: int, device: torch.device, dtype: torch.dtype
) -> Networks:
    """Load the denoiser of a folder, and an AR model beside it: what `generate` takes, ours or large ones.

    The textbook reads the same network, conditioning folded.
    Raises ValueError for another vocabulary than a case has, and for texts that are too long.
    """
    found = loading.denoiser(denoiser, device, max_length)
    size, longest = found.vocabulary.size, found.denoiser.max_length
    if vocab_size != size:
        raise ValueError(f"vocab_size = {vocab_size} of a case must be {size}, that of denoiser = {denoiser!r}")
    if max_length > longest:
        raise ValueError(f"length = {max_length} of a case must be at most {longest}, that of denoiser = {denoiser!r}")
    beside = None if ar is None else pairs.autoregressive(ar, found, device, How(max_length), window=max_length)
    bos_id = None if beside is None else beside.bos_id
    if ar is not None and bos_id is None:
        raise ValueError(f"ar = {sources.said(ar)} names no bos, which the textbook reads in front of a text")
    networks = [None if each is None else each.network.to(device, dtype).eval() for each in (found, beside)]
    return Networks(networks[0], networks[0], networks[1], found.vocabulary.mask_id, bos_id)


def textbook(case: Case, networks: Networks, seed: int, device: torch.device) -> Method:
    """Make a method of the textbook's sampler on the unfolded network; it has no execution mode but eager."""
    mask_id, shape = networks.mask_id, (case.rows, case.length)
    run: Callable[..., Tensor]
    if case.method == METHODS[0]:
        run = partial(textbook_samplers.ancestral, networks.denoiser, mask_id, shape, case.num_steps)
    else:
        bos_id = _require_ar(case, networks)
        energy = textbook_samplers.residual_ar(networks.ar, mask_id, bos_id, case.method == "carry_over")
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
    """Make a method of the library's sampler, in the mode the pipeline is put in; see `build_pipeline`."""
    pipeline = _with_steps(pipeline, case, case.num_steps)
    short = _with_steps(pipeline, case, min(_WARM_UP_STEPS, case.num_steps))

    def observe(clock: Clock) -> object:
        kernel = pipeline.kernel._replace(draw=clock.timed(pipeline.kernel.draw, "noise"))
        with ExitStack() as stack:
            stack.enter_context(clock.watching(_parts(networks.folded, networks.ar), timing.operations))
            stack.enter_context(clock.watching({**_stages(kernel.look), **_stages(kernel.step)}))
            return pipelines.sample(pipeline._replace(kernel=kernel), case.rows, seed=seed)

    return Method(
        run=lambda: pipelines.sample(pipeline, case.rows, seed=seed),
        warm_up=lambda: pipelines.sample(short, case.rows, seed=seed),
        observe=observe,
        scale=1.0,
    )


def build_pipeline(case: Case, networks: Networks, mode: execution.Mode) -> Pipeline:
    """Build the library's sampler of a case in an execution mode, good for every number of steps."""
    return execution.accelerate(pipelines.pipeline(_sampler(case, networks), case.length), mode)


def _sampler(case: Case, networks: Networks) -> Sampler:
    """The library's sampler of a case: that of its method, but for the axes that its section names."""
    mask_id, known = networks.mask_id, {}
    if networks.ar is not None:
        ar = networks.ar, mask_id, networks.bos_id
        known = {form: energies.residual_ar(*ar, form == "carry_over") for form in METHODS[1:]}
    loaded = corrections.OfEnergy(known[case.method]) if case.method in known else None
    denoiser = denoisers.subs(networks.folded, mask_id)
    return configs.sampler_of(_short_keys(case), denoiser, loaded, known)[0]


def _require_ar(case: Case, networks: Networks) -> int:
    """Give the bos of the AR model. Raises ValueError for a case that needs one where there is none."""
    if networks.ar is None or networks.bos_id is None:
        raise ValueError(f"method = {case.method!r} weighs by an AR model: give ar= a folder")
    return networks.bos_id


def _short_keys(case: Case) -> dict[str, Any]:
    return {"num_steps": case.num_steps, "num_particles": case.num_particles, "sampler": case.sampler or {}}


def _with_steps(pipeline: Pipeline, case: Case, num_steps: int) -> Pipeline:
    """The same, with what is compiled of it, in another number of steps."""
    alone = {"plan": case.sampler["plan"]} if case.sampler and "plan" in case.sampler else {}
    settings = {**_short_keys(case), "num_steps": num_steps, "sampler": alone}
    plan = configs.sampler_of(settings, pipeline.sampler.denoiser)[0].plan
    return pipeline._replace(sampler=pipeline.sampler.replace(plan=plan))


def _stages(step: Any) -> dict[str, nn.Module]:
    """The stages of a step by name, those of a loop's parts too; none of no step."""
    parts = step.parts if isinstance(step, Looped) else () if step is None else (step,)
    return {name: stage for part in parts for name, stage in part.module.items()}


class Bench:
    """The networks and pipelines of many cases, each built once."""

    def __init__(
        self,
        sizes: Mapping[str, Any],
        longest: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        folders: tuple[str | None, Source | None] = (None, None),
    ) -> None:
        self.seed, self.device = seed, device
        shared: dict[str, Any] = {"max_length": longest, "device": device, "dtype": dtype}
        denoiser, ar = folders
        if denoiser is None and ar is not None:
            raise ValueError(f"ar = {ar!r} stands beside a denoiser: give denoiser= a folder")
        self._build: Callable[..., Networks] = (
            partial(build_networks, sizes, seed=seed, **shared)
            if denoiser is None
            else partial(load_networks, denoiser, ar, **shared)
        )
        self._networks: dict[int, Networks] = {}
        self._pipelines: dict[tuple[str, str], Pipeline] = {}

    def methods(self, case: Case, modes: Sequence[Any], first: str) -> dict[str, Method]:
        """Collect the methods by name: the textbook, under the name of `first`, and the library in each mode."""
        if case.vocab_size not in self._networks:
            self._networks[case.vocab_size] = self._build(vocab_size=case.vocab_size)
        networks = self._networks[case.vocab_size]
        found = {first: textbook(case, networks, self.seed, self.device)}
        for mode in modes:
            key = (case.key, mode)
            if key not in self._pipelines:
                self._pipelines[key] = build_pipeline(case, networks, mode)
            method = ours(case, networks, self._pipelines[key], self.seed)
            found[mode] = method if mode == "eager" else method._replace(observe=None)
        return found

    def forget(self) -> None:
        """Drop the pipelines, and with them what was compiled; a sweep keeps its own for all of its cases."""
        self._pipelines.clear()


def missing_for(mode: str, device: torch.device) -> str | None:
    """Say which thing an execution mode needs and this machine lacks; None if it can be run."""
    if mode == "eager":
        return None
    if mode == "cudagraph" and device.type != "cuda":
        return "a CUDA device"
    compiler = execution.missing_compiler(torch.device("cpu"))  # for a GPU's kernels too, around which C++ is compiled
    if compiler:
        return f"a C++ compiler, {compiler}"
    return "triton" if device.type == "cuda" and find_spec("triton") is None else None


def _parts(denoiser: Any, ar: Any) -> dict[str, nn.Module]:
    found = {"denoiser": denoiser, "denoiser head": denoiser.head}
    return found if ar is None else {**found, "energy": ar, "energy head": ar.head}


def _randomise(network: T, seed: int) -> T:
    """Normal numbers, scaled so that a layer's output is about as large as its input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 1.0 / math.sqrt(parameter.shape[-1]) if parameter.ndim == 2 else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network
