"""Claims about a model: estimates of likelihood bounds, each with its error and its number of rows."""

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.contracts import Denoiser
from edlm.models import denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.process import absorbing, categorical, finite, noise
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule


def not_padding(x_0: Tensor, pad_id: int | None) -> Tensor:
    """Return the positions of texts (b, l) that count, bool (b, l): all where nothing is padding."""
    return torch.ones_like(x_0, dtype=torch.bool) if pad_id is None else x_0 != pad_id


@torch.no_grad()
def nelbo(
    denoiser: Denoiser, schedule: Schedule, x_0: Tensor, seed: Tensor, row: Tensor, scored: Tensor | None = None
) -> Tensor:
    """Draw one unbiased value per row of the continuous-time NELBO, in nats per scored token: x_0 (b, l) to (b,).

    A text is revealed one position at a time in the order of its reveal times, so the bound is a sum over l passes;
    a pass r is drawn uniformly, and given the state before it each of its m masked positions is equally likely to be
    next: `l * (1/m) sum_{i masked} -log p_i(x_0^i | x_t) / l`. No time is truncated, and unlike the weight 1/t this
    has a finite variance. Passes are stratified over the rows of the call. Equal in expectation to section 3 of
    Sahoo et al. 2024 for every schedule that runs from alpha = 1 to 0.
    Of a denoiser of blocks it is the sum of this over the blocks, each given the clean ones before it, with a random
    pass of each block, all read in one pass over [x_t ; x_0].
    scored: bool (b, l), the positions that count, at least one of a row; the others are given. None: all.
    Raises ValueError for a row without a scored position.
    """
    x_t, t, masked = before_random_passes(schedule, x_0, denoiser.mask_id, seed, row, scored, block_size(denoiser))
    log_p = data_log_prob(denoiser, x_0, x_t, t[:, 0], _flat(masked), after_clean=True)
    wanted, size = _wanted(x_0, scored), block_size(denoiser) or x_0.shape[1]
    of_blocks, masks, counts = (_in_blocks(each, size).sum(2) for each in (log_p, masked, wanted))
    return -(of_blocks / masks.clamp(min=1) * counts).sum(1) / counts.sum(1)


@torch.no_grad()
def masked_nll(
    denoiser: Denoiser,
    schedule: Schedule,
    x_0: Tensor,
    t: Tensor,
    seed: Tensor,
    row: Tensor,
    scored: Tensor | None = None,
) -> Tensor:
    """Average `-log p_i(x_0^i | x_t)` over the masks of `x_t ~ q(x_t | x_0)`: x_0 (b, l), t (b,) to nats (b,).

    What is left to learn at one noise level; NaN for a row that got no mask. Blocks are read after clean ones.
    scored: bool (b, l), the positions that may be masked. None: all.
    """
    uniforms = noise.grid(seed, row, 0, Stream.EVALUATION, x_0.shape[1])
    kept = None if scored is None else ~scored
    x_t = absorbing.corrupt(x_0, schedule.alpha(t), uniforms, denoiser.mask_id, keep=kept)
    masked = x_t == denoiser.mask_id
    return -data_log_prob(denoiser, x_0, x_t, t, _flat(masked), after_clean=True).sum(1) / masked.sum(1)


def data_log_prob(
    denoiser: Denoiser, x_0: Tensor, x_t: Tensor, t: Tensor, positions: Tensor, after_clean: bool = False
) -> Tensor:
    """Compute `log p_i(x_0^i | x_t)` at the flat positions (n,), zero elsewhere: nats, float64 (b, l).

    The head runs on these positions alone, on no more of them at once than `categorical.rows_at_once` says.
    after_clean: a denoiser of blocks reads each block of x_t after the blocks of x_0 before it.
    Raises ValueError for what is nan.
    """
    read = denoisers.beside_clean(denoiser) if after_clean and isinstance(denoiser, SubsDenoiser) else denoiser
    state = {contracts.X_T: x_t, contracts.X_0: x_0, contracts.T: t, contracts.POSITIONS: positions}
    hidden = read(TensorDict(state))[contracts.HIDDEN]
    wanted = x_0.flatten()[positions].unsqueeze(-1)
    rows = categorical.rows_at_once(denoiser.vocab_size, x_0.device)
    tiles = [
        categorical.token_log_prob(denoiser.logits(states), tokens)
        for states, tokens in zip(hidden.split(rows), wanted.split(rows), strict=True)
    ]
    finite.require_log_prob(torch.cat(tiles))
    spread = torch.zeros(x_0.numel(), dtype=torch.float64, device=x_0.device)
    return spread.index_copy(0, positions, torch.cat(tiles).squeeze(-1).double()).view_as(x_0)


def block_size(denoiser: Denoiser) -> int | None:
    """Return how many tokens a block of a denoiser has; None for one without blocks."""
    found: int | None = getattr(denoiser, "block_size", None)
    return found


def check_texts(denoiser: Denoiser, x_0: Tensor, scored: Tensor | None, row: Tensor | None = None) -> None:
    """Raise ValueError, naming the argument, unless these are texts of a denoiser, with scored positions and keys."""
    if not isinstance(x_0, Tensor) or x_0.dtype != torch.int64 or x_0.ndim != 2:
        raise ValueError(f"x_0 must be token ids, int64 (b, l), not {_told(x_0)}")
    if x_0.numel() and not (int(x_0.min()) >= 0 and int(x_0.max()) < denoiser.vocab_size):
        ends = f"{int(x_0.min())}..{int(x_0.max())}"
        raise ValueError(f"x_0 holds token ids in {ends}, and the denoiser's lie in 0..{denoiser.vocab_size - 1}")
    if scored is not None and (scored.dtype != torch.bool or scored.shape != x_0.shape):
        raise ValueError(f"scored must be bool {tuple(x_0.shape)}, as x_0 is, or None, not {_told(scored)}")
    if row is not None and row.shape != x_0.shape[:1]:
        raise ValueError(f"row must be a key of each of the {len(x_0)} texts, not {_told(row)}")
    check_scored(scored)


def _told(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def check_scored(scored: Tensor | None) -> None:
    """Raise ValueError naming the first row (b, l) that has no scored position; None scores all."""
    if scored is not None and not bool(scored.any(-1).all()):
        empty = int((~scored.any(-1)).nonzero()[0])
        raise ValueError(f"row {empty} has no scored position")


def strata(seed: Tensor, row: Tensor) -> Tensor:
    """Draw a uniform per row, one in each of b strata that are shifted together, so none belongs to a row: (b,)."""
    return _strata(seed, row, 1).squeeze(1)


def before_random_pass(
    schedule: Schedule, x_0: Tensor, mask_id: int, seed: Tensor, row: Tensor, scored: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the state x_t before a random one of a row's passes, its time, and its masks: (b, l), (b,), bool (b, l).

    One scored position is revealed in each pass. For any f of a state with m masks, the mean of `f / m` times the
    number of scored positions is `int w(t) E[f(x_t)] dt`, with the weight of the continuous NELBO.
    Raises ValueError for a row without a scored position.
    """
    x_t, t, masked = before_random_passes(schedule, x_0, mask_id, seed, row, scored, None)
    return x_t, t.squeeze(1), masked


def before_random_passes(
    schedule: Schedule,
    x_0: Tensor,
    mask_id: int,
    seed: Tensor,
    row: Tensor,
    scored: Tensor | None,
    block_size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of every block, with a pass of its own; None: one block is all. The times are (b, blocks).

    A block without a scored position has no mask. Raises ValueError for a row without one.
    """
    check_scored(scored)
    b, l = x_0.shape
    size = block_size or l
    uniforms = noise.grid(seed, row, 0, Stream.EVALUATION, l)
    blocks = [_in_blocks(each, size).flatten(0, 1) for each in (uniforms, _wanted(x_0, scored))]
    plan = absorbing.reveal_plan(blocks[0], blocks[1], schedule)
    drawn = _strata(seed, row, -(-l // size))
    chosen = (drawn.flatten() * plan.passes).long().minimum(plan.passes - 1).clamp(min=0).unsqueeze(-1)
    masked = (plan.order >= chosen).view(b, -1)[:, :l]
    return torch.where(masked, mask_id, x_0), plan.t.gather(1, chosen).view_as(drawn), masked


def _strata(seed: Tensor, row: Tensor, count: int) -> Tensor:
    """Draw uniforms (b, count), each column in strata of its own; block j of a row has the stratum of row + j."""
    number = torch.arange(count, device=row.device)
    jitter = noise.uniforms(seed, row.unsqueeze(-1), 0, Stream.TIME, number).squeeze(-1)
    shift = noise.uniforms(seed, row[:1], 1, Stream.TIME).squeeze(-1)
    place = torch.arange(row.shape[0], device=row.device).unsqueeze(-1) + number
    return ((jitter + place) / row.shape[0] + shift) % 1.0


def _in_blocks(values: Tensor, size: int) -> Tensor:
    """Cut (b, l) into blocks (b, blocks, size), the last one filled up with zeros."""
    return F.pad(values, (0, -values.shape[1] % size)).unflatten(1, (-1, size))


def _wanted(x_0: Tensor, scored: Tensor | None) -> Tensor:
    return torch.ones_like(x_0, dtype=torch.bool) if scored is None else scored


def _flat(masked: Tensor) -> Tensor:
    return masked.flatten().nonzero().squeeze(-1)
