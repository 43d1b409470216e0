"""The kernel that takes a step: a value of pure functions, whose step is a TensorDict pipeline of named stages.

Printing the stages of a step prints the algorithm. Noise is an input of the step, and so is what the step reveals; a
kernel keeps no state and draws no number itself. `samplers.kernel_of` builds one from a sampler.
"""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import NamedTuple

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from edlm import contracts
from edlm.contracts import Cached, Denoiser, Positions
from edlm.process import noise
from edlm.process.noise import Stream


class Moves(NamedTuple):
    """The stages around a step whose positions no plan has fixed, run for all rows, one that reveals nothing too.

    decide: `{x_t, ..., move_noise} -> {reveal, remask}`; finish: `{x_s, ..., remask} -> {x_s, ...}`.
    """

    decide: TensorDictModuleBase
    finish: TensorDictModuleBase


class Kernel(NamedTuple):
    """One way to take a step.

    init: tokens with masks (b, l) to the state of the first step: `{x_t}`, and what else a kernel carries along.
    draw: `(seed, row, pass, positions, length)` to the uniforms of one step.
    step: `{x_t, t, positions, reveal, corrected, proposal_noise, selection_noise} -> {x_s, ...diagnostics}`, most often
        a sequence of the stages; what else the state holds it reads and writes.
    proposes: whether tokens are drawn at the positions revealed now or at all masked ones.
    num_particles: most candidates per row.
    outside: the kernel for passes in which no row is corrected, None if there is no correction. A pass that corrects
        some rows is taken by this one, which keeps the first candidate of the others.
    look: what comes before the rest of a step where the plan reads the pass, `{x_t, t, positions} -> {hidden, reveal}`
        at all masks; the step then begins with what it wrote, at the positions it needs. None for a drawn plan.
    moves: the stages around the step, where tokens that were written may be masked again; None where a plan says all.
    cache: the network whose keys and values of finished blocks the state holds, see `caching`; None: each pass reads
        the whole text.
    Laws: given tokens never change; the masks after a step are those before it less `reveal`; the mask is never
    drawn; rows do not see each other; a step is a pure function of its input, and writes what it has read.
    """

    denoiser: Denoiser
    init: Callable[[Tensor], TensorDict]
    draw: Callable[..., TensorDict]
    step: TensorDictModuleBase
    proposes: Positions
    num_particles: int
    outside: "Kernel | None" = None
    look: TensorDictModuleBase | None = None
    moves: Moves | None = None
    cache: Cached | None = None

    def begins(self, tokens: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state of its first step after another kernel's, which knows the tokens and what is finished."""
        return {**dict(self.init(tokens).items()), **(kept(state) if self.cache is not None else {})}


class Looped(TensorDictModuleBase):
    """A step with a loop of its own, whose end depends on what is drawn: the host has its say between its parts."""

    parts: tuple[TensorDictModuleBase, ...]  # in the order in which they are first run
    repeated: tuple[int, ...]  # which of them the loop repeats

    def with_parts(
        self, wrap: Callable[[TensorDictModuleBase], TensorDictModuleBase], pad: Callable[[int], int]
    ) -> "Looped":
        """Wrap the parts of the step, as an execution mode does; pad: numbers of positions, rounded up."""
        raise NotImplementedError


def init(tokens: Tensor) -> TensorDict:
    """Return the state of a kernel that remembers nothing but its tokens."""
    return TensorDict({contracts.X_T: tokens})


def draw(k: int, seed: Tensor, row: Tensor, step: Tensor, positions: Tensor, length: int) -> TensorDict:
    """Draw the uniforms of one step, proposal (n, k) and selection (b, k), keyed by the row's number and its own pass.

    row: int64 (b,); step: int64 (); positions: int64 (n,), where `b * length` is padding.
    """
    owner = row[(positions // length).clamp(max=row.shape[0] - 1)]
    proposal = noise.uniforms(seed, owner, step, Stream.PROPOSAL, positions % length, count=k)
    selection = noise.uniforms(seed, row, step, Stream.SELECTION, count=k)
    return TensorDict({contracts.PROPOSAL_NOISE: proposal, contracts.SELECTION_NOISE: selection})


def part_of(
    state: TensorDict, keys: list[str], rows: Tensor, taken: Tensor, particles: slice | None = None
) -> dict[str, Tensor]:
    """Return the entries of some rows, positions and particles, by their declared shapes.

    rows: int64 (r,); taken: which of the flat positions are theirs (n',); particles: None for all of them.
    """
    found = {}
    for key in keys:
        axes, value = contracts.SHAPES.get(key, "b").split(), state[key]
        if axes and axes[0] in "bn":
            value = value[rows if axes[0] == "b" else taken]
        if particles is not None and "k" in axes:
            value = value[(slice(None),) * axes.index("k") + (particles,)]
        found[key] = value
    return found


def kept(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a state holds of finished blocks, which a step hands on whatever else it does."""
    return {contracts.CACHE: state[contracts.CACHE]} if contracts.CACHE in state else {}


def at_positions(state: Mapping[str, Tensor], wanted: Tensor, count: int) -> dict[str, Tensor]:
    """Return the entries of a state that have positions, at those that are wanted alone, padded to `count` of them.

    wanted: bool (b, l), among the positions of the state. The host does not wait.
    """
    positions, outside = state[contracts.POSITIONS], wanted.numel()
    found = torch.cat([wanted.flatten(), wanted.new_zeros(1)])[positions]
    taken = torch.nonzero_static(found, size=count, fill_value=len(positions)).squeeze(-1)
    place = taken.clamp(max=len(positions) - 1)
    kept = {key: value[place] for key, value in state.items() if contracts.SHAPES.get(key, "").split(" ")[0] == "n"}
    return {**kept, contracts.POSITIONS: torch.where(taken < len(positions), kept[contracts.POSITIONS], outside)}


def of_rows(positions: Tensor, rows: Tensor, b: int, l: int) -> tuple[Tensor, Tensor]:
    """Find which flat positions (n,) of (b, l) are those of some rows, and what they are among these alone: (n',) each.

    rows: int64 (r,), ascending; padded positions belong to none. The host waits for their number.
    """
    place = torch.full((b + 1,), -1, device=positions.device)  # where a row stands among the wanted ones
    place[rows] = torch.arange(len(rows), device=positions.device)
    owner = place[positions // l]
    (taken,) = torch.where(owner >= 0)
    return taken, owner[taken] * l + positions[taken] % l


def padded(indices: Tensor, pad: Callable[[int], int], fill: int) -> Tensor:
    """Fill indices (n,) up to as many as `pad` wants."""
    return torch.cat([indices, indices.new_full((pad(len(indices)) - len(indices),), fill)])


def device_of(step: nn.Module) -> torch.device:
    """Return where the parameters and buffers are; the CPU if there are none."""
    return next((each.device for each in chain(step.parameters(), step.buffers())), torch.device("cpu"))


def check_evaluating(step: nn.Module) -> None:
    """Raise ValueError naming the first dropout that is on."""
    for name, module in step.named_modules():
        if isinstance(module, nn.Dropout) and module.training and module.p > 0.0:
            raise ValueError(f"dropout is on at {name}: call .eval() on the networks before sampling")
