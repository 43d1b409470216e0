"""How a pipeline is executed: eager, compiled, or replayed as a CUDA graph. Speed is a wrapper applied last.

The only file that names `torch.compile` or a CUDA graph. Every mode gives the same tokens; only rounding of logits
differs.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict
from tensordict.nn import CudaGraphModule, TensorDictModuleBase
from torch import Tensor, nn

from edlm.contracts import POSITIONS, PROPOSAL_NOISE, X_T
from edlm.pipelines import Pipeline
from edlm.samplers import Kernel

Mode = Literal["eager", "compile", "cudagraph"]
_SMALLEST_GRAPH = 16


def accelerate(pipeline: Pipeline, mode: Mode = "compile") -> Pipeline:
    """Return the same pipeline with every step run in the given mode; the first samples pay for the compilation.

    eager: as written. compile: each step one graph, no break, dynamic in the number of positions. cudagraph: compiled
    steps captured and replayed, positions padded to powers of two so that few graphs are needed.
    Raises ValueError for another mode, or for cudagraph where the pipeline is not on a CUDA device.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode = {mode!r} must be one of {', '.join(get_args(Mode))}")
    if mode == "eager":
        return pipeline
    if mode == "compile":
        return pipeline._replace(kernel=_over(pipeline.kernel, _compiled), round_up=_at_least_two)
    if pipeline.device.type != "cuda":
        raise ValueError(f"mode = 'cudagraph' needs a pipeline on a CUDA device, and this one is on {pipeline.device}")
    return pipeline._replace(kernel=_over(pipeline.kernel, _graphed), round_up=_power_of_two)


def _over(kernel: Kernel, wrap: Callable[[Kernel], Kernel]) -> Kernel:
    """Wrap a kernel and the one it falls back to outside the window."""
    outside = None if kernel.outside is None else wrap(kernel.outside)
    return wrap(kernel)._replace(outside=outside)


def _compiled(kernel: Kernel) -> Kernel:
    return kernel._replace(step=_CompiledStep(kernel.step), draw=_CompiledDraw(kernel.draw))


def _graphed(kernel: Kernel) -> Kernel:
    return kernel._replace(step=_GraphedStep(kernel.step), draw=_CompiledDraw(kernel.draw))


class _CompiledStep(nn.Module):
    """A step as one graph, dynamic in the number of positions and in nothing else."""

    def __init__(self, step: TensorDictModuleBase) -> None:
        super().__init__()
        self.step = step
        self._run = torch.compile(_with_own_graphs(step), fullgraph=True)

    def forward(self, tensordict: TensorDict) -> TensorDict:
        inputs = tensordict.select(*self.step.in_keys)  # another key set would be another graph
        for key in (POSITIONS, PROPOSAL_NOISE):
            torch._dynamo.mark_dynamic(inputs[key], 0)
        return self._run(inputs)


class _CompiledDraw:
    """The noise of a step as one graph."""

    def __init__(self, draw: Callable[..., TensorDict]) -> None:
        self._run = torch.compile(_with_own_graphs(draw), fullgraph=True)

    def __call__(self, seed: Tensor, row: Tensor, step: Tensor, positions: Tensor, length: int) -> TensorDict:
        torch._dynamo.mark_dynamic(positions, 0)
        return self._run(seed, row, step, positions, length)


class _GraphedStep(nn.Module):
    """A compiled step captured once per number of rows and positions and replayed."""

    def __init__(self, step: TensorDictModuleBase) -> None:
        super().__init__()
        self.step = step
        self._graphs: dict[tuple[int, ...], CudaGraphModule] = {}

    def forward(self, tensordict: TensorDict) -> TensorDict:
        inputs = tensordict.select(*self.step.in_keys)
        shape = (*inputs[X_T].shape, *inputs[POSITIONS].shape)
        if shape not in self._graphs:
            run = torch.compile(_with_own_graphs(self.step), fullgraph=True, dynamic=False)
            self._graphs[shape] = CudaGraphModule(run, in_keys=self.step.in_keys, out_keys=self.step.out_keys)
        return self._graphs[shape](inputs).clone()  # the graph's own output is overwritten by its next replay


def _with_own_graphs(function: Callable[..., TensorDict]) -> Callable[..., TensorDict]:
    """The same function with a code object of its own, for which the compiler allows 8 graphs."""

    def run(*arguments: Any) -> TensorDict:
        return function(*arguments)

    run.__code__ = run.__code__.replace()
    return run


def _at_least_two(count: int) -> int:
    """Sizes 0 and 1 are compiled apart from the dynamic size; padding to 2 keeps one graph."""
    return max(2, count)


def _power_of_two(count: int) -> int:
    return max(_SMALLEST_GRAPH, 1 << (count - 1).bit_length())
