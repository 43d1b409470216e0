"""Training of a denoiser to do several steps of another one at once (SDTT, Deschenaux and Gulcehre, arXiv 2410.21035).

The student sees x_t. The teacher takes m ancestral steps from x_t. The target of a mask is the teacher's law in the
step that reveals it, or in the last step. So the student learns to predict in one pass what the teacher predicts after
it has written other tokens.
"""

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edlm import contracts
from edlm.contracts import Denoiser
from edlm.declaration import sequence, stage
from edlm.objectives.contrastive import Frozen
from edlm.objectives.denoising import corruption
from edlm.process import categorical, noise
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule

Divergence = Callable[[Tensor, Tensor], Tensor]  # log-probabilities of student and teacher (n, v) to (n,)


def distillation(
    student: Denoiser,
    teacher: Denoiser,
    schedule: Schedule,
    num_steps: float,
    at_once: int = 2,
    divergence: str = "kl",
    time_low: float = 1e-3,
    pad_id: int | None = None,
) -> TensorDictSequential:
    """Build the training pipeline of a student: `{x_0, seed, row, step, num_rows} -> {loss, ...}`.

    The loss is the sum over the masks of x_t of a divergence of the student's law to the target's, in nats per row but
    for `mse` and `tvd`. The teacher is frozen: no gradient, and in eval mode. Vocabulary work is on the masks alone.

    Args:
        student: the denoiser that is trained.
        teacher: the denoiser that takes the steps.
        schedule: of the masking process.
        num_steps: of the teacher's sampler. Its steps have the length `1 / num_steps`, and never go below time 0.
        at_once: m, the number of teacher steps that the student learns to do at once.
        divergence: a name of `DIVERGENCES`.
        time_low: the smallest time of x_t.
        pad_id: never masked, so it never counts.

    Returns:
        The pipeline.

    Raises:
        ValueError: unless 1 <= at_once <= num_steps and 0 <= time_low < 1, and for an unknown divergence.
    """
    if not 1 <= at_once <= num_steps:
        raise ValueError(f"at_once = {at_once} must lie in 1..{num_steps:g}, the steps of the teacher's sampler")
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence = {divergence!r} must be one of {', '.join(DIVERGENCES)}")
    teach = _Teach(teacher, schedule, 1.0 / num_steps, at_once)
    return sequence(
        {
            "corrupt": corruption(student.mask_id, schedule, time_low, pad_id),
            "teach": Frozen(stage("x_t, t, positions, seed, row, step -> target", teach)),
            "denoise": student,  # type: ignore[dict-item]
            "objective": stage(
                "hidden, target, positions, x_t -> loss", _Compare(student, teacher, DIVERGENCES[divergence])
            ),
        }
    )


class _Teach(nn.Module):
    """The teacher's hidden states (n, h) from which the law of each mask of x_t is taken, in one of its m steps."""

    def __init__(self, teacher: Denoiser, schedule: Schedule, length: float, at_once: int) -> None:
        super().__init__()
        self.teacher, self.schedule, self.length, self.at_once = teacher, schedule, length, at_once

    def forward(self, x_t: Tensor, t: Tensor, positions: Tensor, seed: Tensor, row: Tensor, step: Tensor) -> Tensor:
        l, m = x_t.shape[1], self.at_once
        owner, x = positions // l, x_t.flatten()
        keys = (seed, row[owner], step)
        moves, words = (
            noise.uniforms(*keys, stream, positions % l, count=m) for stream in (Stream.REVEAL, Stream.PROPOSAL)
        )
        left = torch.arange(len(positions), device=x.device)  # of the masks, those that are still there
        target = self._states(x.view_as(x_t), t, positions)
        hidden = target
        for number in range(m - 1):
            after = (t - self.length).clamp(min=0.0)
            now = moves[left, number] < self._revealed(t, after)[owner[left]]
            drawn = self._draw(hidden[now], words[left[now], number : number + 1])
            x = x.index_copy(0, positions[left[now]], drawn)
            left, t = left[~now], after
            if not len(left):
                break
            hidden = self._states(x.view_as(x_t), t, positions[left])
            target = target.index_copy(0, left, hidden)
        return target

    def _states(self, x_t: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        asked = {contracts.X_T: x_t, contracts.T: t, contracts.POSITIONS: positions}
        return self.teacher(TensorDict(asked))[contracts.HIDDEN]

    def _revealed(self, t: Tensor, s: Tensor) -> Tensor:
        """The share of masks that the step from t to s reveals: (b,); all of them where it is the last."""
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        return torch.where(s > 0.0, (alpha_s - alpha_t) / (1.0 - alpha_t), 1.0)

    def _draw(self, hidden: Tensor, uniforms: Tensor) -> Tensor:
        rows = categorical.rows_at_once(self.teacher.vocab_size, hidden.device)
        tiles = zip(hidden.split(rows), uniforms.split(rows), strict=True)
        return torch.cat([categorical.inverse_cdf(self.teacher.logits(h), u).tokens.squeeze(-1) for h, u in tiles])


class _Compare(nn.Module):
    """The divergence of every mask, summed over a row: (b,). Logits come in tiles, and again in the backward pass."""

    def __init__(self, student: Denoiser, teacher: Denoiser, divergence: Divergence) -> None:
        super().__init__()
        self.student, self.divergence = student, divergence
        self.target_logits = teacher.logits  # no module of this stage: the teacher is that of `teach`, and stays frozen

    def forward(self, hidden: Tensor, target: Tensor, positions: Tensor, x_t: Tensor) -> Tensor:
        rows = categorical.rows_at_once(self.student.vocab_size, hidden.device)
        tiles = list(zip(hidden.split(rows), target.split(rows), strict=True))
        run = self._tile if len(tiles) == 1 else partial(checkpoint, self._tile, use_reentrant=False)
        found = torch.cat([run(*tile) for tile in tiles])
        return found.new_zeros(len(x_t)).index_add(0, positions // x_t.shape[1], found)

    def _tile(self, hidden: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._log_law(self.target_logits(target))
        return self.divergence(self._log_law(self.student.logits(hidden)), wanted)

    def _log_law(self, logits: Tensor) -> Tensor:
        """Log-probabilities of all ids but the mask's, (n, v - 1), float32 or better."""
        mask_id = self.student.mask_id
        kept = torch.cat([logits[:, :mask_id], logits[:, mask_id + 1 :]], dim=1)
        return (kept if kept.dtype == torch.float64 else kept.float()).log_softmax(-1)


def _reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.exp() * (student - teacher)).sum(-1)


def _forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return (teacher.exp() * (teacher - student)).sum(-1)


def _squares(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.exp() - teacher.exp()).square().sum(-1)


def _total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    return 0.5 * (student.exp() - teacher.exp()).abs().sum(-1)


# Of the student's law to the target's: KL(student || target), which seeks modes; KL(target || student), whose best
# student is the mean of the targets; the sum of squared differences; total variation.
DIVERGENCES: dict[str, Divergence] = {
    "kl": _reverse_kl,
    "kl-fwd": _forward_kl,
    "mse": _squares,
    "tvd": _total_variation,
}
