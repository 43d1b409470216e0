"""The loop of a sampler whose plan reads the pass: what a pass reveals is known only in its middle.

So the host waits once a pass, to learn how many positions of each row are revealed. It counts the masks that each row
has left. Times, corrected rows and all shapes follow from these counts. A row without masks takes no more work. Each
row has its own passes, so a text does not depend on its batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.process import absorbing, finite, schedules
from edlm.process.absorbing import RevealPlan
from edlm.samplers import caching
from edlm.samplers import kernel as kernels
from edlm.samplers.caching import Places
from edlm.samplers.kernel import Kernel


class Padding(NamedTuple):
    """The numbers that an execution mode rounds up: of rows, of positions, and of a row's new tokens."""

    rows: Callable[[int], int]
    positions: Callable[[int], int]
    new: Callable[[int], int]


class Pass(NamedTuple):
    """One pass of a batch, finished rows included.

    tokens, reveal: after it, and what it revealed, (b, l); t, corrected, running: (b,), the last two bool, where t is
    the time at which the schedule expects as many masks as the row has, 0 without any; out: what the step wrote of
    rows, (b,) each; flags: see `finite.of_pass`.
    """

    tokens: Tensor
    reveal: Tensor
    t: Tensor
    corrected: Tensor
    running: Tensor
    out: dict[str, Tensor]
    flags: Tensor


class _Rows(NamedTuple):
    """The rows at work: their places in the batch (r,), on the host and on the device, and what a kernel carries.

    stored: how much of each is in the cache of a kernel that has one, (r,) on the host.
    """

    places: Tensor
    at: Tensor
    state: dict[str, Tensor]
    stored: Tensor


class _Known(NamedTuple):
    """The state of every row before a pass, (b,) each, on the host: masks left, time, and whether it is corrected."""

    left: Tensor
    t: Tensor
    corrected: Tensor


def passes(
    kernel: Kernel,
    window: tuple[float, float],
    padding: Padding,
    tokens: Tensor,
    seed: Tensor,
    row: Tensor,
    first_pass: int = 0,
) -> Iterator[Pass]:
    """Take passes until no mask of the tokens (b, l) is left; noise is keyed by `row` (b,) and `first_pass` + the pass.

    Raises ValueError if a plan reveals no mask of a row that has masks.
    """
    left = (tokens == kernel.denoiser.mask_id).sum(1).cpu()
    each = torch.arange(len(tokens))
    rows = _Rows(each, each.to(tokens.device), {}, torch.zeros_like(each))
    before: Kernel | None = None
    for number in range(first_pass, first_pass + int(left.amax())):  # a pass reveals something of every row at work
        running = left > 0
        if not running.any():
            return
        rows = _at_work(rows, running, padding)
        known = _known(kernel, window, left, tokens.shape[1])
        active = kernel if known.corrected.any() or kernel.outside is None else kernel.outside
        if active is not before:  # another kernel knows nothing of this one's state but its tokens
            rows = rows._replace(state=active.begins(tokens[rows.at], rows.state))
        rows, block = _in_their_blocks(active, rows)
        given, revealed = _ahead(active, rows, block, known, padding)
        draws = active.draw(
            seed,
            row[rows.at],
            torch.full((), number, device=row.device),
            given[contracts.POSITIONS],
            tokens.shape[1],
        )
        out = dict(active.step(TensorDict({**given, **draws})).items())
        carried = {key: out.get(key, given[key]) for key in rows.state if key != contracts.X_T}
        rows = rows._replace(state={contracts.X_T: out[contracts.X_S], **carried})
        left, before = left.index_add(0, rows.places, -revealed), active
        tokens = tokens.index_copy(0, rows.at, out[contracts.X_S])
        yield _pass(tokens, known, running, rows, given, out)
    assert not left.any()


def plan_of(order: Tensor, taken: Sequence[Pass]) -> RevealPlan:
    """Return the plan that a run turned out to have: order (b, l), the pass of each position, -1 where it was given."""
    t = torch.stack([each.t for each in taken], 1) if taken else order[:, :0].double()
    return RevealPlan(order, t, order.amax(1) + 1)


def _at_work(rows: _Rows, running: Tensor, padding: Padding) -> _Rows:
    """Leave out rows that are finished, but for as many as pad the others."""
    count = min(len(rows.places), padding.rows(int(running.sum())))
    if count == len(rows.places):
        return rows
    kept = running[rows.places].int().argsort(descending=True, stable=True)[:count]
    on_device = kept.to(rows.at.device)
    state = {key: value[on_device] for key, value in rows.state.items()}
    return _Rows(rows.places[kept], rows.at[on_device], state, rows.stored[kept])


def _in_their_blocks(active: Kernel, rows: _Rows) -> tuple[_Rows, dict[str, Tensor]]:
    """Say what a pass reads beside the cache, and what is stored after it; nothing of a kernel without one."""
    if active.cache is None:
        return rows, {}
    masked = rows.state[contracts.X_T] == active.denoiser.mask_id
    start = caching.start_of(masked, active.cache)
    state, block = caching.before_pass(active.cache, TensorDict(rows.state), Places(rows.stored, start))
    return rows._replace(state=dict(state.items()), stored=start), block


def _known(kernel: Kernel, window: tuple[float, float], left: Tensor, length: int) -> _Known:
    t = absorbing.time_of_share(left.double() / length, kernel.denoiser.schedule)
    corrected = schedules.inside(t, window) & (left > 0) & (kernel.outside is not None)
    return _Known(left, t, corrected)


def _ahead(
    active: Kernel, rows: _Rows, block: dict[str, Tensor], known: _Known, padding: Padding
) -> tuple[dict[str, Tensor], Tensor]:
    """Look at all masks and choose; what the step is given, at the positions it needs, and how many it reveals (r,)."""
    assert active.look is not None
    x_t, device = rows.state[contracts.X_T], rows.at.device
    left, corrected = known.left[rows.places], known.corrected[rows.places]
    masked = x_t == active.denoiser.mask_id
    looked, count = masked, int(left.sum())
    if active.cache is not None:  # later blocks have no states
        looked = caching.within(masked, block[contracts.BLOCK])
        count = int(looked.sum())
    given: dict[str, Tensor] = {
        **rows.state,
        **block,
        contracts.T: known.t[rows.places].to(device),
        contracts.CORRECTED: corrected.to(device),
        contracts.POSITIONS: torch.nonzero_static(
            looked.flatten(), size=padding.positions(count), fill_value=x_t.numel()
        ).squeeze(-1),
    }
    given.update(active.look(TensorDict(given)).items())
    reveal = given[contracts.REVEAL]
    revealed = reveal.sum(1).cpu()  # the host waits here
    if (idle := (left > 0) & (revealed == 0)).any():
        raise ValueError(
            f"a plan must reveal a mask of every text that has masks, and reveals none of {int(idle.sum())}"
        )
    drafted = corrected & (active.proposes == "masked")
    wanted = torch.where(drafted.to(device).unsqueeze(-1), masked, reveal)
    count = int(torch.where(drafted, left, revealed).sum())
    given |= kernels.at_positions(given, wanted, padding.positions(count))
    if contracts.NEW in active.step.in_keys:
        most = padding.new(int(revealed.max()))
        given[contracts.NEW] = absorbing.places(reveal, min(x_t.shape[1], most))
    return given, revealed


def _pass(
    tokens: Tensor, known: _Known, running: Tensor, rows: _Rows, given: dict[str, Tensor], out: dict[str, Tensor]
) -> Pass:
    """Put what was written of the rows at work in their places in the batch."""

    def whole(value: Tensor) -> Tensor:
        return value.new_zeros(len(tokens), *value.shape[1:]).index_copy(0, rows.at, value)

    return Pass(
        tokens,
        whole(given[contracts.REVEAL]),
        known.t.to(tokens.device),
        known.corrected.to(tokens.device),
        running.to(tokens.device),
        {key: whole(value) for key, value in out.items() if contracts.SHAPES.get(key) == "b"},
        whole(finite.of_pass(out, given[contracts.CORRECTED])),
    )
