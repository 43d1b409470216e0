"""The execution of a pipeline: eager, compiled, or replayed as a CUDA graph. Speed is a wrapper applied last.

The only file that names `torch.compile` or a CUDA graph. Every mode gives the same tokens; only rounding of logits
differs.
"""

import os
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict
from tensordict.nn import CudaGraphModule, TensorDictModuleBase
from torch import Tensor, nn

from edlm.contracts import NEW, POSITIONS, PROPOSAL_NOISE, SHAPES, X_T
from edlm.nn import networks
from edlm.nn.attention import Cache, Mask
from edlm.nn.blocks import Block
from edlm.process import arguments, categorical
from edlm.samplers import sampler as samplers
from edlm.samplers.kernel import Kernel, Looped
from edlm.samplers.pipelines import Pipeline

Mode = Literal["eager", "compile", "cudagraph"]
_SMALLEST_GRAPH = 16
_ASKED = ((False, False), (False, True), (True, False))  # in training: whether a block reads a cache, and keeps one
_FEWEST_NEW = 3  # one less are read in order, and a single one is a size of its own to the compiler


def accelerate(pipeline: Pipeline, mode: Mode = "compile") -> Pipeline:
    """Return the same pipeline with every step run in the given mode; the first samples pay for the compilation.

    eager: as written. compile: each step one graph without a break, for any number of rows and positions; where logits
    have to come in tiles, one for each power of two of them. cudagraph: these graphs captured and replayed, rows and
    positions padded to powers of two so that few captures are needed. The rounds of an adaptive kernel are graphs of
    their own, in both modes, and so is what a plan reads before it chooses. Both read the whole text in every pass: a
    cache of finished blocks has another shape for each of them. On a CPU without a C++ compiler, compile warns and
    stays eager.

    Args:
        pipeline: what is to be run faster.
        mode: `"eager"`, `"compile"` or `"cudagraph"`.

    Returns:
        A pipeline that draws the same texts.

    Raises:
        ValueError: as `check_mode` does.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> pipeline = edlm.pipelines.pipeline(edlm.samplers.Sampler(denoiser), length=8)
        >>> edlm.accelerate(pipeline, "eager") is pipeline
        True
    """
    is_one = isinstance(pipeline, Pipeline)
    arguments.require_kind("pipeline", pipeline, is_one, "one, as pipelines.pipeline(sampler, length) is")
    check_mode(mode, pipeline.device)
    if mode == "eager":
        return pipeline
    if pipeline.kernel.cache is not None:
        pipeline = pipeline._replace(kernel=samplers.kernel_of(pipeline.sampler))
    if mode == "compile":
        missing = missing_compiler(pipeline.device)
        if missing:
            warnings.warn(f"mode = 'compile' needs a C++ compiler and found no {missing}: running eager", stacklevel=2)
            return pipeline
        one_tile = _one_tile(pipeline.kernel, pipeline.device)
        return pipeline._replace(
            kernel=_over(pipeline.kernel, partial(_compiled, one_tile=one_tile)),
            pad_rows=partial(_power_of_two, smallest=2),
            pad_positions=partial(_whole_tiles, one_tile=one_tile),
            pad_new=partial(max, _FEWEST_NEW),
        )
    return pipeline._replace(
        kernel=_over(pipeline.kernel, partial(_graphed, one_tile=_one_tile(pipeline.kernel, pipeline.device))),
        pad_rows=partial(_power_of_two, smallest=2),
        pad_positions=partial(_power_of_two, smallest=_SMALLEST_GRAPH),
        pad_new=partial(_power_of_two, smallest=_FEWEST_NEW),
    )


def check_mode(mode: Mode, device: torch.device) -> None:
    """Raise ValueError for a mode that there is not, or for cudagraph where the device is no CUDA device."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode = {mode!r} must be one of {', '.join(get_args(Mode))}")
    if mode == "cudagraph" and device.type != "cuda":
        raise ValueError(f"mode = 'cudagraph' needs a pipeline on a CUDA device, and this one is on {device}")


def compile_blocks(network: nn.Module) -> None:
    """Have the blocks of a network compiled, in place, one by one and for any number of rows, for training.

    Parameters, names and checkpoints stay what they are, gradients up to rounding. The first step pays for it. Where
    there is no C++ compiler for the CPU, it warns and leaves the network as it is. Raises ValueError for a network
    without any.
    """
    blocks = networks.blocks(network)
    if not blocks:
        raise ValueError(f"{type(network).__name__} has no blocks to compile")
    missing = missing_compiler(next(network.parameters()).device)
    if missing:
        warnings.warn(f"compile needs a C++ compiler and found no {missing}: running eager", stacklevel=2)
        return
    apart = {asked: _with_own_graphs(Block.forward) for asked in _ASKED}
    for block in blocks:
        runs = {asked: torch.compile(MethodType(forward, block)) for asked, forward in apart.items()}
        block.forward = partial(_as_asked, runs)  # type: ignore[method-assign]


def one_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Trace the function as one graph, run by torch's own operations: it raises where compilation would break."""
    return torch.compile(_with_own_graphs(function), fullgraph=True, backend="eager")


def missing_compiler(device: torch.device) -> str:
    """Name the C++ compiler that inductor will call for the CPU, if it is not there; else an empty text."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return "" if device.type != "cpu" or shutil.which(name) else name


def _as_asked(
    runs: dict[tuple[bool, bool], Callable[..., Any]],
    x: Tensor,
    rotary: tuple[Tensor, Tensor],
    conditioning: Tensor | None = None,
    mask: Mask | None = None,
    cache: Cache | None = None,
    positions: Tensor | None = None,
    keep: bool = False,
) -> Any:
    """Run a block by the graphs for whether it reads a cache and whether it keeps one: `Block.forward`."""
    return runs[cache is not None, keep](x, rotary, conditioning, mask, cache, positions, keep)


def _one_tile(kernel: Kernel, device: torch.device) -> int:
    """The largest number of positions whose logits, for every particle, come in one tile."""
    rows = categorical.rows_at_once(kernel.denoiser.vocab_size, device, unrolled=True)
    return max(2, rows // kernel.num_particles)


def _over(kernel: Kernel, wrap: Callable[[Kernel], Kernel]) -> Kernel:
    """Wrap a kernel and the one it falls back to outside the window."""
    outside = None if kernel.outside is None else wrap(kernel.outside)
    return wrap(kernel)._replace(outside=outside)


def _compiled(kernel: Kernel, one_tile: int) -> Kernel:
    step = kernel.step
    if isinstance(step, Looped):  # the host has its say between its parts
        fast: nn.Module = step.with_parts(
            partial(_CompiledStep, one_tile=one_tile), partial(_whole_tiles, one_tile=one_tile)
        )
    else:
        fast = _CompiledStep(step, one_tile)
    look = None if kernel.look is None else _CompiledStep(kernel.look, one_tile)
    return kernel._replace(step=fast, look=look, draw=_CompiledDraw(kernel.draw))


def _graphed(kernel: Kernel, one_tile: int) -> Kernel:
    if isinstance(kernel.step, Looped):
        return _compiled(kernel, one_tile)
    look = None if kernel.look is None else _GraphedStep(kernel.look, one_tile)
    step = _GraphedStep(kernel.step, one_tile)
    return kernel._replace(step=step, look=look, draw=_CompiledDraw(kernel.draw))


class _CompiledStep(nn.Module):
    """A step as one graph for any number of rows and up to `one_tile` positions, and one per larger size.

    A loop over tiles is unrolled by the compiler, so its length is part of the graph.
    """

    def __init__(self, step: TensorDictModuleBase, one_tile: int) -> None:
        super().__init__()
        self.step = step
        self.in_keys, self.out_keys = step.in_keys, step.out_keys
        self.one_tile = one_tile
        self._runs: dict[int, Callable[[TensorDict], TensorDict]] = {}

    def forward(self, tensordict: TensorDict) -> TensorDict:
        inputs = tensordict.select(*self.in_keys)  # another key set would be another graph
        count = inputs[PROPOSAL_NOISE if PROPOSAL_NOISE in inputs else POSITIONS].shape[0]
        size = 0 if count <= self.one_tile else count
        _mark_dynamic(inputs, "b" if size else "bn")
        if NEW in inputs and inputs[NEW].shape[1] >= _FEWEST_NEW:
            torch._dynamo.mark_dynamic(inputs[NEW], 1)
        if size not in self._runs:
            self._runs[size] = torch.compile(_with_own_graphs(self.step), fullgraph=True)
        return self._runs[size](inputs)


class _CompiledDraw:
    """The noise of a step as one graph. On a CPU it is drawn as it is: compiling it takes longer than it saves."""

    def __init__(self, draw: Callable[..., TensorDict]) -> None:
        self._draw = draw
        self._run = torch.compile(_with_own_graphs(draw), fullgraph=True)

    def __call__(self, seed: Tensor, row: Tensor, step: Tensor, positions: Tensor, length: int) -> TensorDict:
        if row.device.type == "cpu":
            return self._draw(seed, row, step, positions, length)
        for tensor in (row, positions):
            if tensor.shape[0] > 1:
                torch._dynamo.mark_dynamic(tensor, 0)
        return self._run(seed, row, step, positions, length)


class _GraphedStep(nn.Module):
    """A compiled step captured once per number of rows and positions and replayed."""

    def __init__(self, step: TensorDictModuleBase, one_tile: int) -> None:
        super().__init__()
        self.step = _CompiledStep(step, one_tile)
        self.in_keys, self.out_keys = step.in_keys, step.out_keys
        self._graphs: dict[tuple[int, ...], CudaGraphModule] = {}

    def forward(self, tensordict: TensorDict) -> TensorDict:
        inputs = tensordict.select(*self.in_keys)
        shape = tuple(size for key in (X_T, POSITIONS, NEW) if key in inputs for size in inputs[key].shape)
        if shape not in self._graphs:
            self._graphs[shape] = CudaGraphModule(self.step, in_keys=self.in_keys, out_keys=self.out_keys)
        return self._graphs[shape](inputs).clone()  # the graph's own output is overwritten by its next replay


def _mark_dynamic(inputs: TensorDict, axes: str) -> None:
    """Let the first size vary where it is one of these axes; a single row is a size of its own to the compiler."""
    for key, value in inputs.items():
        first = SHAPES.get(key, "").split(" ", 1)[0]
        if first and first in axes and value.shape[0] > 1:
            torch._dynamo.mark_dynamic(value, 0)


def _with_own_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with a code object of its own, for which the compiler allows 8 graphs."""

    def run(*arguments: Any) -> Any:
        return function(*arguments)

    run.__code__ = run.__code__.replace()
    return run


def _whole_tiles(count: int, one_tile: int) -> int:
    """Any number from 2 up to one tile, then a power of two of tiles."""
    return max(2, count) if count <= one_tile else one_tile * _power_of_two(-(-count // one_tile), smallest=2)


def _power_of_two(count: int, smallest: int) -> int:
    return max(smallest, 1 << (count - 1).bit_length())
