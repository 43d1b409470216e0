"""What is trained, as pipelines: from data and the keys of its noise to a loss per row.

Every batch is `{x_0, seed, row, step, num_rows}`: its noise is a function of these, so a loss depends neither on how a
batch is split nor on what was drawn before.
"""

from collections.abc import Callable
from typing import Self

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from edlm import contracts
from edlm.contracts import Denoiser, Energy
from edlm.models import denoisers, energies
from edlm.models.denoisers import D3pmDenoiser, SeddDenoiser
from edlm.objectives import losses
from edlm.process import absorbing, categorical, noise, schedules, stages
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule


def denoising(
    denoiser: Denoiser, schedule: Schedule, time_low: float = 1e-3, pad_id: int | None = None
) -> TensorDictSequential:
    """Build the training pipeline of a denoiser: `{x_0, seed, row, step, num_rows} -> {loss, ...}`.

    The loss is one NELBO in nats per row. Times are stratified over the batch in (time_low, 1); the vocabulary head
    runs on masked positions only. Padding is never masked, so it never counts.
    Raises ValueError unless 0 <= time_low < 1.
    """
    return TensorDictSequential(
        {
            "corrupt": _corrupt(denoiser.mask_id, schedule, time_low, pad_id),
            "denoise": denoiser,
            "score": score(denoiser, weight=contracts.WEIGHT),
            "objective": TensorDictModule(
                losses.nelbo, in_keys=[contracts.LOG_PROB, contracts.WEIGHT], out_keys=[contracts.LOSS]
            ),
        },
        inplace=False,
    )


def d3pm(denoiser: D3pmDenoiser, schedule: Schedule, num_steps: int, pad_id: int | None = None) -> TensorDictSequential:
    """Build the training pipeline of absorbing D3PM: `{x_0, seed, row, step, num_rows} -> {loss, ...}`.

    The loss is one T-step bound in nats per row, `losses.d3pm` at one of the `num_steps` equal steps of time,
    stratified over the batch; see `denoising` for the rest. Raises ValueError unless num_steps >= 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps} must be at least 1")
    return TensorDictSequential(
        {
            "corrupt": TensorDictModule(
                _CorruptOnGrid(denoiser.mask_id, schedule, num_steps, pad_id),
                in_keys=[contracts.X_0, contracts.SEED, contracts.ROW, contracts.STEP, contracts.NUM_ROWS],
                out_keys=[contracts.X_T, contracts.T, contracts.S, contracts.POSITIONS],
            ),
            "denoise": denoiser,
            "objective": TensorDictModule(
                _D3pmLoss(denoiser, schedule, num_steps),
                in_keys=[contracts.HIDDEN, contracts.POSITIONS, contracts.X_0, contracts.T, contracts.S],
                out_keys=[contracts.LOSS],
            ),
        },
        inplace=False,
    )


def score_entropy(
    denoiser: SeddDenoiser, schedule: Schedule, time_low: float = 1e-3, pad_id: int | None = None
) -> TensorDictSequential:
    """Build the training pipeline of absorbing SEDD: `{x_0, seed, row, step, num_rows} -> {loss, ...}`.

    The loss is `losses.sedd` summed over the masks of a row, in nats; see `denoising` for the rest.
    Raises ValueError unless 0 <= time_low < 1.
    """
    return TensorDictSequential(
        {
            "corrupt": _corrupt(denoiser.mask_id, schedule, time_low, pad_id),
            "denoise": denoiser,
            "objective": TensorDictModule(
                _SeddLoss(denoiser, schedule),
                in_keys=[contracts.HIDDEN, contracts.POSITIONS, contracts.X_0, contracts.T],
                out_keys=[contracts.LOSS],
            ),
        },
        inplace=False,
    )


def contrastive(
    denoiser: Denoiser,
    energy: Energy,
    schedule: Schedule,
    num_negatives: int = 1,
    time_low: float = 1e-3,
    objective: Callable[[Tensor, Tensor], Tensor] = losses.nce,
    pad_id: int | None = None,
) -> TensorDictSequential:
    """Build the training pipeline of an energy: `{x_0, seed, row, step, num_rows} -> {loss, energy, ...}`.

    The data is candidate 0, `num_negatives` drafts of the denoiser follow, and one pass of the energy weighs all. The
    denoiser is frozen: no gradient, and in eval mode whatever mode the pipeline is put in.
    Raises ValueError unless num_negatives >= 1 and 0 <= time_low < 1, and for an energy that reads the drafts'
    log-probabilities: it is fixed by them, and there are none of the data here.
    """
    corrupt = _corrupt(denoiser.mask_id, schedule, time_low, pad_id)
    return against_draws(corrupt, denoiser, energy, num_negatives, objective, contracts.X_0)


def against_draws(
    corrupt: TensorDictModuleBase,
    denoiser: Denoiser,
    energy: Energy,
    num_negatives: int,
    objective: Callable[[Tensor, Tensor], Tensor],
    positive: str,
) -> TensorDictSequential:
    """Build the training pipeline of an energy from the stage that makes its states: see `contrastive`.

    corrupt: a stage that writes x_t, t and the positions at which the denoiser draws. positive: the key of what stands
    against the draws, the data at these positions. Raises ValueError as `contrastive` does.
    """
    if num_negatives < 1:
        raise ValueError(f"num_negatives = {num_negatives} must be at least 1")
    if contracts.LOG_P_CANDIDATES in energy.in_keys:
        raise ValueError(f"an energy that reads {contracts.LOG_P_CANDIDATES} cannot be trained by contrast")
    draft = TensorDictSequential(
        {
            "denoise": denoiser,
            "draw": negative_noise(num_negatives),
            "propose": stages.propose(denoiser),
        },
        inplace=False,
    )
    return TensorDictSequential(
        {
            "corrupt": corrupt,
            "draft": Frozen(draft),
            "pair": TensorDictModule(
                lambda data, drawn: torch.cat([data.unsqueeze(1), drawn], dim=1),
                in_keys=[positive, contracts.CANDIDATES],
                out_keys=[contracts.CANDIDATES],
            ),
            "weigh": energy,
            "objective": TensorDictModule(
                lambda energies: objective(_at_least_float32(energies[:, 0]), _at_least_float32(energies[:, 1:])),
                in_keys=[contracts.ENERGY],
                out_keys=[contracts.LOSS],
            ),
        },
        inplace=False,
    )


def next_token(network: nn.Module, mask_id: int, bos_id: int | None, pad_id: int | None = None) -> TensorDictSequential:
    """Build the training pipeline of an autoregressive model: `{x_0} -> {log_prob, loss}`.

    The loss is `-log p(x_0)` in nats per row, exact. `bos_id` stands in front of the text, so that every position
    counts; with None the first token is given and does not. Padding never counts.
    """
    return TensorDictSequential(
        {
            "score": TensorDictModule(
                _ArScore(network, mask_id, bos_id, pad_id), in_keys=[contracts.X_0], out_keys=[contracts.LOG_PROB]
            ),
            "objective": TensorDictModule(losses.next_token, in_keys=[contracts.LOG_PROB], out_keys=[contracts.LOSS]),
        },
        inplace=False,
    )


def score(denoiser: Denoiser, weight: str | None = None) -> TensorDictModule:
    """Build the stage that reads the data's log-probability: `{hidden, positions, x_0} -> {log_prob}`.

    weight: the key of what the objective will multiply a row's log-probabilities with, (b,). Told before, the
    vocabulary head is run once and not twice; the gradients are those of any objective all the same.
    """
    in_keys = [contracts.HIDDEN, contracts.POSITIONS, contracts.X_0, *([] if weight is None else [weight])]
    return TensorDictModule(_Score(denoiser), in_keys=in_keys, out_keys=[contracts.LOG_PROB])


def negative_noise(num_negatives: int) -> TensorDictModule:
    """Build the stage that draws the uniforms of negatives: `{x_0, positions, seed, row, step} -> {proposal_noise}`."""
    return TensorDictModule(
        _NegativeNoise(num_negatives),
        in_keys=[contracts.X_0, contracts.POSITIONS, contracts.SEED, contracts.ROW, contracts.STEP],
        out_keys=[contracts.PROPOSAL_NOISE],
    )


class Frozen(TensorDictModuleBase):
    """A stage that takes no gradient and stays in eval mode, so a frozen proposal never has its dropout on."""

    def __init__(self, stage: TensorDictModuleBase) -> None:
        super().__init__()
        self.in_keys, self.out_keys = list(stage.in_keys), list(stage.out_keys)
        self.stage = stage.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever is asked."""
        super().train(False)
        return self

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Run the stage without gradients."""
        with torch.no_grad():
            return tensordict.copy().update(self.stage(tensordict))


class _Corrupt(nn.Module):
    """Times, masks and NELBO weights of a training batch, from its noise keys."""

    def __init__(self, mask_id: int, schedule: Schedule, time_low: float, pad_id: int | None) -> None:
        super().__init__()
        self.mask_id = mask_id
        self.pad_id = pad_id
        self.schedule = schedule
        self.time_low = time_low

    def forward(self, x_0: Tensor, seed: Tensor, row: Tensor, step: Tensor, num_rows: Tensor) -> tuple[Tensor, ...]:
        time_noise = noise.uniforms(seed, row, step, Stream.TIME).squeeze(-1)
        t = schedules.stratified_times(time_noise, row, num_rows, self.time_low)
        mask_noise = noise.grid(seed, row, step, Stream.CORRUPTION, x_0.shape[1])
        padding = None if self.pad_id is None else x_0 == self.pad_id
        x_t = absorbing.corrupt(x_0, self.schedule.alpha(t), mask_noise, self.mask_id, keep=padding)
        positions = (x_t == self.mask_id).flatten().nonzero().squeeze(-1)
        return x_t, t, schedules.nelbo_weight(self.schedule, t), positions


class _CorruptOnGrid(nn.Module):
    """Masks of a training batch at the start t of one of T equal steps, chosen uniformly: x_t, t, s and positions."""

    def __init__(self, mask_id: int, schedule: Schedule, num_steps: int, pad_id: int | None) -> None:
        super().__init__()
        self.mask_id = mask_id
        self.pad_id = pad_id
        self.schedule = schedule
        self.num_steps = num_steps

    def forward(self, x_0: Tensor, seed: Tensor, row: Tensor, step: Tensor, num_rows: Tensor) -> tuple[Tensor, ...]:
        time_noise = noise.uniforms(seed, row, step, Stream.TIME).squeeze(-1)
        before = (schedules.stratified_times(time_noise, row, num_rows) * self.num_steps).floor()
        t, s = (before + 1.0) / self.num_steps, before / self.num_steps
        mask_noise = noise.grid(seed, row, step, Stream.CORRUPTION, x_0.shape[1])
        padding = None if self.pad_id is None else x_0 == self.pad_id
        x_t = absorbing.corrupt(x_0, self.schedule.alpha(t), mask_noise, self.mask_id, keep=padding)
        return x_t, t, s, (x_t == self.mask_id).flatten().nonzero().squeeze(-1)


class _D3pmLoss(nn.Module):
    """`losses.d3pm` of the masked positions, per row (b,); the last step ends at alpha = 1."""

    def __init__(self, denoiser: D3pmDenoiser, schedule: Schedule, num_steps: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule = schedule
        self.num_steps = num_steps

    def forward(self, hidden: Tensor, positions: Tensor, x_0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        log_p = self.denoiser.log_prob(hidden)
        log_prob = log_p.gather(-1, x_0.flatten()[positions].unsqueeze(-1)).squeeze(-1)
        spread = [
            log_p.new_zeros(x_0.numel()).index_copy(0, positions, values).view_as(x_0)
            for values in (log_prob, log_p[:, self.denoiser.mask_id])
        ]
        masked = torch.zeros_like(x_0.flatten(), dtype=torch.bool).index_fill(0, positions, True).view_as(x_0)
        alpha_s = torch.where(s > 0.0, self.schedule.alpha(s), 1.0)
        return losses.d3pm(spread[0], spread[1], masked, self.schedule.alpha(t), alpha_s, self.num_steps)


class _SeddLoss(nn.Module):
    """`losses.sedd` of the masked positions, summed per row (b,)."""

    def __init__(self, denoiser: SeddDenoiser, schedule: Schedule) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule = schedule

    def forward(self, hidden: Tensor, positions: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        owner = positions // x_0.shape[1]
        alpha = self.schedule.alpha(t)[owner]
        log_score, token = self.denoiser.log_score(hidden, alpha), x_0.flatten()[positions]
        entropy = losses.sedd(log_score, token, alpha, self.schedule.alpha_slope(t)[owner], self.denoiser.mask_id)
        return entropy.new_zeros(len(x_0)).index_add(0, owner, entropy)


class _NegativeNoise(nn.Module):
    """Uniforms (n, num_negatives) for the drafts of a training step."""

    def __init__(self, num_negatives: int) -> None:
        super().__init__()
        self.num_negatives = num_negatives

    def forward(self, x_0: Tensor, positions: Tensor, seed: Tensor, row: Tensor, step: Tensor) -> Tensor:
        length = x_0.shape[1]
        owner = row[positions // length]
        return noise.uniforms(seed, owner, step, Stream.NEGATIVES, positions % length, self.num_negatives)


class _Score(nn.Module):
    """Log-probability of the data at the positions, spread over (b, l) with zeros elsewhere."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, hidden: Tensor, positions: Tensor, x_0: Tensor, weight: Tensor | None = None) -> Tensor:
        wanted = x_0.flatten()[positions]
        if isinstance(self.denoiser, denoisers.SubsDenoiser):
            expected = None if weight is None else weight[positions // x_0.shape[1]]
            log_prob = self.denoiser.token_log_prob(hidden, wanted, expected)
        else:
            log_prob = categorical.token_log_prob(self.denoiser.logits(hidden), wanted.unsqueeze(-1)).squeeze(-1)
        return log_prob.new_zeros(x_0.numel()).index_copy(0, positions, log_prob).view_as(x_0)


class _ArScore(nn.Module):
    """Log-probability of every token of the data given those before it: (b, l) to (b, l), zero at padding."""

    def __init__(self, network: nn.Module, mask_id: int, bos_id: int | None, pad_id: int | None) -> None:
        super().__init__()
        self.network = network
        self.mask_id = mask_id
        self.bos_id = bos_id
        self.pad_id = pad_id

    def forward(self, x_0: Tensor) -> Tensor:
        counts = None if self.pad_id is None else (x_0 != self.pad_id).flatten().nonzero().squeeze(-1)
        return energies.ar_log_prob(self.network, x_0, self.mask_id, self.bos_id, counts)


def _corrupt(mask_id: int, schedule: Schedule, time_low: float, pad_id: int | None) -> TensorDictModule:
    if not 0.0 <= time_low < 1.0:
        raise ValueError(f"time_low = {time_low} must lie in [0, 1)")
    return TensorDictModule(
        _Corrupt(mask_id, schedule, time_low, pad_id),
        in_keys=[contracts.X_0, contracts.SEED, contracts.ROW, contracts.STEP, contracts.NUM_ROWS],
        out_keys=[contracts.X_T, contracts.T, contracts.WEIGHT, contracts.POSITIONS],
    )


def _at_least_float32(energies: Tensor) -> Tensor:
    return energies.to(torch.promote_types(energies.dtype, torch.float32))
