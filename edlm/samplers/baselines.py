"""Baselines of the paper's tables, sampled and scored as what they are: absorbing D3PM and SEDD.

Their networks say themselves whether a mask is revealed, so there is no reveal plan: every step costs a pass of the
network for each text that still has a mask, and the loop reads the number of masks on the host. A kernel is one law per
masked position, that of its token at time s, in which the mask's entry is the probability of staying masked.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import Tensor

from edlm import contracts
from edlm.declaration import sequence, stage
from edlm.models.denoisers import D3pmDenoiser, SeddDenoiser
from edlm.process import absorbing, arguments, categorical, finite, noise, schedules
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule
from edlm.samplers.kernel import check_evaluating, device_of
from edlm.samplers.watching import Callback

LogLaw = Callable[[Tensor, Tensor, Tensor], Tensor]


class Reverse(NamedTuple):
    """The way of a baseline back from time t to s, every masked position by itself.

    log_law: hidden states (n, h) of masked positions at t and `alpha_t < alpha_s` (n,) to the log-probabilities (n, v)
        of what stands there at s, float64; the mask's column is that of staying masked.
    step: `{x_t, t, s, positions, proposal_noise} -> {x_s, ...}`, a sequence of the stages denoise and move.
    Laws: a law sums to one; where `alpha_s = 1` the mask has probability zero; visible tokens never change; rows do not
    see each other; a step is a pure function of its input.
    """

    schedule: Schedule
    denoiser: D3pmDenoiser | SeddDenoiser
    log_law: LogLaw
    step: TensorDictSequential


def d3pm(denoiser: D3pmDenoiser, schedule: Schedule) -> Reverse:
    """Build the ancestral step of D3PM, `p(x_s | x_t) ~ sum_x q(x_s, x_t | x) p(x | x_t)` (Austin et al. 2021).

    Their equation 4. From a mask: a token y with weight `(alpha_s - alpha_t) p_y`, the mask with
    `(1 - alpha_s) (1 - p_mask) + p_mask`, divided by their sum. The last step draws among tokens.
    """
    return _reverse(denoiser, schedule, partial(_d3pm_law, denoiser))


def analytic(denoiser: SeddDenoiser, schedule: Schedule) -> Reverse:
    """Build the analytic sampler of absorbing SEDD, Tweedie tau-leaping (Lou et al. 2023, theorem 4.2).

    With `dsigma = sigma_t - sigma_s` and scores s: a token y with probability `(e^dsigma - 1) s_y`, which is
    `(alpha_s - alpha_t) / alpha_t s_y`, the mask with what is left. Scores so large that nothing is left are divided by
    their sum. The last step draws among tokens in proportion to their scores. With exact scores it is the step of
    `samplers.ancestral` with the exact denoiser.
    """
    return _reverse(denoiser, schedule, partial(_analytic_law, denoiser))


@torch.no_grad()
def sample(
    kernel: Reverse,
    length: int,
    num_steps: int,
    num_samples: int = 1,
    *,
    seed: int = 0,
    prompt: Tensor | None = None,
    first_row: int = 0,
    callback: Callback | None = None,
) -> TensorDict:
    """Draw texts in equal steps of time: a TensorDict with `tokens` (b, l) and `info`, holding `denoiser_passes` (b,).

    Row i of the result is sample number `first_row + i` of the seed, whatever else is in the batch; a prompt and a
    callback are those of `pipelines.sample`. A text without masks is worked on no more.
    Raises ValueError for a length outside 1..max_length of the network, num_steps or num_samples below 1, a prompt that
    does not fit, or dropout left on.
    """
    denoiser = kernel.denoiser
    arguments.require_draw(num_samples, seed, first_row)
    if not 1 <= length <= denoiser.max_length:
        raise ValueError(
            f"length = {length} must lie in 1..{denoiser.max_length}, the longest the network was built for"
        )
    check_evaluating(kernel.step)
    device = device_of(kernel.step)
    tokens = absorbing.starting_tokens(num_samples, length, denoiser.mask_id, denoiser.vocab_size, prompt, device)
    row = torch.arange(first_row, first_row + num_samples, device=device)
    passes = torch.zeros_like(row)
    grid = schedules.uniform_grid(num_steps).to(device)
    for number, (t, s) in enumerate(pairwise(grid)):
        running = (tokens == denoiser.mask_id).any(1).nonzero().squeeze(-1)
        if not len(running):
            break
        state = _state(tokens[running], row[running], t, s, seed, number, denoiser.mask_id)
        out = kernel.step(state)
        finite.require_log_prob(out[contracts.LOG_P_PROPOSED], f"the denoiser, in pass {number} at t = {float(t):.6g},")
        tokens = tokens.index_copy(0, running, out[contracts.X_S])
        passes = passes.index_add(0, running, torch.ones_like(running))
        if callback is not None:
            callback(TensorDict({contracts.X_T: tokens}), TensorDict({}))
    info = TensorDict({"denoiser_passes": passes}, batch_size=[num_samples])
    return TensorDict({"tokens": tokens, "info": info}, batch_size=[num_samples])


def _d3pm_law(denoiser: D3pmDenoiser, hidden: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    log_p = denoiser.log_prob(hidden).double()
    log_mask = log_p[:, denoiser.mask_id]
    tokens = without_mask(log_p, denoiser.mask_id)
    stay = torch.logaddexp((1.0 - alpha_s).log() + tokens.logsumexp(-1), log_mask)
    weights = tokens + (alpha_s - alpha_t).log().unsqueeze(-1)
    return _with_mask(weights, denoiser.mask_id, torch.where(alpha_s < 1.0, stay, -torch.inf)).log_softmax(-1)


def _analytic_law(denoiser: SeddDenoiser, hidden: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    log_score = without_mask(denoiser.log_score(hidden, alpha_t).double(), denoiser.mask_id)
    tokens = log_score + ((alpha_s - alpha_t) / alpha_t).log().unsqueeze(-1)
    left = (1.0 - tokens.logsumexp(-1).exp()).clamp(min=0.0)
    return _with_mask(tokens, denoiser.mask_id, torch.where(alpha_s < 1.0, left.log(), -torch.inf)).log_softmax(-1)


def _move(
    log_law: LogLaw,
    schedule: Schedule,
    hidden: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    positions: Tensor,
    uniforms: Tensor,
) -> tuple[Tensor, Tensor]:
    """Draw what stands at the masked positions at s, one uniform each: tokens (b, l), and log-probabilities (n,)."""
    owner = positions // x_t.shape[1]
    alphas = schedule.alpha(t)[owner], alpha_after(schedule, s)[owner]
    drawn = categorical.inverse_cdf(log_law(hidden, *alphas), uniforms)
    moved = x_t.flatten().index_copy(0, positions, drawn.tokens.squeeze(-1)).view_as(x_t)
    return moved, drawn.log_prob.squeeze(-1)


def _reverse(denoiser: D3pmDenoiser | SeddDenoiser, schedule: Schedule, log_law: LogLaw) -> Reverse:
    move = stage(
        "hidden, x_t, t, s, positions, proposal_noise -> x_s, log_p_proposed", partial(_move, log_law, schedule)
    )
    return Reverse(schedule, denoiser, log_law, sequence({"denoise": denoiser, "move": move}))


def _state(x_t: Tensor, row: Tensor, t: Tensor, s: Tensor, seed: int, number: int, mask_id: int) -> TensorDict:
    """Collect what a step reads: the tokens of the rows that have masks, their time and their noise."""
    positions, owner = masks_of(x_t, mask_id)
    uniforms = noise.uniforms(seed, row[owner], number, Stream.PROPOSAL, positions % x_t.shape[1])
    ends = {contracts.S: s.expand(len(row)), contracts.PROPOSAL_NOISE: uniforms}
    return asked(x_t, t.expand(len(row)), positions).update(ends)


def asked(x_t: Tensor, t: Tensor, positions: Tensor) -> TensorDict:
    """Return what a denoiser is given: tokens (b, l), times (b,) and flat positions (n,)."""
    return TensorDict({contracts.X_T: x_t, contracts.T: t, contracts.POSITIONS: positions})


def masks_of(x_t: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """Return flat positions (n,) of the masks and the row of each."""
    positions = (x_t == mask_id).flatten().nonzero().squeeze(-1)
    return positions, positions // x_t.shape[1]


def visible_share(schedule: Schedule, t: Tensor) -> Tensor:
    """Return the share of visible tokens at t on the way from all masks: `1 - (1 - alpha(t)) / (1 - alpha(1))`."""
    return 1.0 - (1.0 - schedule.alpha(t)) / (1.0 - schedule.alpha(torch.ones_like(t)))


def alpha_after(schedule: Schedule, s: Tensor) -> Tensor:
    """Compute `alpha(s)`, and exactly 1 at s = 0: the last step leaves no mask, whatever the schedule."""
    return torch.where(s > 0.0, schedule.alpha(s), 1.0)


def without_mask(log_p: Tensor, mask_id: int) -> Tensor:
    """Return log-probabilities (n, v) with no chance of the mask."""
    return log_p.index_fill(-1, torch.tensor([mask_id], device=log_p.device), -torch.inf)


def _with_mask(log_p: Tensor, mask_id: int, value: Tensor) -> Tensor:
    return log_p.index_copy(-1, torch.tensor([mask_id], device=log_p.device), value.unsqueeze(-1))


def sum_of_rows(values: Tensor, owner: Tensor, b: int) -> Tensor:
    """Sum values (n,) over the rows that own them: (b,)."""
    return values.new_zeros(b).index_add(0, owner, values)
