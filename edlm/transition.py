"""Energies of a transition: weigh only what a step reveals, not whole drafts.

A candidate is `x_s = (x_t with the revealed set S filled in)`, masks elsewhere. With `Z(x_t, S)` that makes it a law,

    p(x^S | x_t) = prod_{i in S} p_theta(x_i | x_t) exp(-E(x_s, x_t)) / Z,
    E = -log [ q(x^S | x_t) / prod_{i in S} p_theta(x_i | x_t) ]  at its best, and then Z = 1.

At its best the weight is the mean of a draft's weight given x^S, so it varies less. An energy of drafts is no energy of
transitions: what is masked in x_s is unknown, not improbable.
"""

from collections.abc import Callable

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn

from edlm import absorbing, categorical, contracts, noise, objectives, particles, samplers, schedules, training
from edlm.contracts import Denoiser, Energy
from edlm.noise import Stream
from edlm.samplers import Kernel
from edlm.schedules import Schedule


def of_transitions(kernel: Kernel) -> Kernel:
    """The kernel of `samplers.importance` or `adaptive.importance`, over candidates for what a step reveals.

    k candidates for the revealed tokens are weighed by `exp(-E(x_s, x_t) / temperature)` and one is kept. Tokens are
    drawn at the revealed positions alone, so the vocabulary head costs what it costs in plain sampling. With one
    particle, or outside the window, it gives the tokens of `samplers.ancestral` one for one. As k grows the law of a
    step tends to `p(x^S | x_t)`.
    """
    return kernel._replace(proposes="revealed")


def contrastive(
    denoiser: Denoiser,
    energy: Energy,
    schedule: Schedule,
    num_steps: tuple[int, int],
    num_negatives: int = 1,
    objective: Callable[[Tensor, Tensor], Tensor] = objectives.nce,
    pad_id: int | None = None,
) -> TensorDictSequential:
    """Build the training pipeline of an energy of transitions: `{x_0, seed, row, step, num_rows} -> {loss, ...}`.

    A text is put before a step `t -> s` of a uniform grid. Candidate 0 is the text's own x_s, the others hold
    `num_negatives` draws of the denoiser at the revealed positions; one pass of the energy weighs all. The step is that
    which reveals a random position, so it reveals something, and the more the likelier it is to be seen.
    num_steps: fewest and most steps of the grids to train for; their logarithm is uniform between them.
    Minimal where `exp(-E) = q(x^S | x_t) / prod_{i in S} p_theta(x_i | x_t)`, whatever the grids.
    Raises ValueError unless 1 <= fewest <= most, and as `training.contrastive` does.
    """
    corrupt = before_step(denoiser.mask_id, schedule, num_steps, pad_id)
    return training.against_draws(corrupt, denoiser, energy, num_negatives, objective, contracts.X_S)


def before_step(
    mask_id: int, schedule: Schedule, num_steps: tuple[int, int], pad_id: int | None = None
) -> TensorDictModule:
    """Build the stage that puts texts before a step: `{x_0, seed, ...} -> {x_t, t, x_s, positions}`; see `contrastive`.

    Raises ValueError unless 1 <= fewest <= most.
    """
    fewest, most = num_steps
    if not 1 <= fewest <= most:
        raise ValueError(f"num_steps = ({fewest}, {most}) must be the fewest and the most steps, 1 <= fewest <= most")
    return TensorDictModule(
        _BeforeStep(mask_id, schedule, fewest, most, pad_id),
        in_keys=[contracts.X_0, contracts.SEED, contracts.ROW, contracts.STEP, contracts.NUM_ROWS],
        out_keys=[contracts.X_T, contracts.T, contracts.X_S, contracts.POSITIONS],
    )


@torch.no_grad()
def nelbo(
    denoiser: Denoiser,
    energy: Energy,
    schedule: Schedule,
    grid: Tensor,
    num_particles: int,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """One unbiased draw per row of a bound of what SIR on transitions does, in nats per token: x_0 (b, l) to (b,).

    For the T steps of a drawn reveal plan, x_s of the text with k - 1 draws beside it and `w = exp(-E / temperature)`,

        sum_steps -log p_theta(x^S | x_t) + log( (w(x_s) + sum_{j=2..k} w_j) / (k w(x_s)) ).

    Its mean is at least `-log p(x_0)` of what samples with `particles.sir`, this k and grid, and no window: SIR has the
    density `E[ k p w / (w + sum_{j=2..k} w_j) ]` (Cremer et al. 2017, arXiv 1704.02916), and no token has to be
    completed here. With one particle it is the plain T-step NELBO; under the exact energy it falls as k grows.
    Infinite if a text has no weight; float64. Costs what sampling the texts costs.
    Raises ValueError unless num_particles >= 1 and temperature > 0.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles = {num_particles} must be at least 1")
    length = x_0.shape[1]
    plan_noise = noise.grid(seed, row, 0, Stream.EVALUATION, length)
    plan = absorbing.reveal_plan(plan_noise, torch.ones_like(x_0, dtype=torch.bool), schedule, grid)
    total = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
    for p in range(plan.t.shape[1]):
        (running,) = torch.where(plan.passes > p)
        order, text = plan.order[running], x_0[running]
        x_t, x_s = (torch.where(masked, denoiser.mask_id, text) for masked in (order >= p, order > p))
        log_p, candidates = _beside_draws(denoiser, x_t, x_s, plan.t[running, p], seed, row[running], p, num_particles)
        log_weights = particles.log_weights(energy(candidates)[contracts.ENERGY], temperature)
        total[running] += _minus_log_sir(log_weights) - log_p
    return total / length


def _beside_draws(
    denoiser: Denoiser, x_t: Tensor, x_s: Tensor, t: Tensor, seed: Tensor, row: Tensor, p: int, num_particles: int
) -> tuple[Tensor, TensorDict]:
    """`log p_theta(x^S | x_t)`, float64 (b,), and what an energy reads of x_s with k - 1 draws behind it."""
    b, length = x_t.shape
    positions = (x_t != x_s).flatten().nonzero().squeeze(-1)
    state = {contracts.X_T: x_t, contracts.T: t, contracts.POSITIONS: positions}
    hidden = denoiser(TensorDict(state))[contracts.HIDDEN]
    owner, count = row[positions // length], num_particles - 1
    uniforms = noise.uniforms(seed, owner, p + 1, Stream.EVALUATION, positions % length, count)
    noisy = {**state, contracts.HIDDEN: hidden, contracts.PROPOSAL_NOISE: uniforms}
    drawn = samplers.propose(denoiser)(TensorDict(noisy))
    wanted = x_s.flatten()[positions].unsqueeze(-1)
    log_p = categorical.token_log_prob(denoiser.logits(hidden), wanted).squeeze(-1)
    own = log_p.new_zeros(b * length).index_copy(0, positions, log_p).view(b, 1, length)
    both = {contracts.CANDIDATES: x_s.unsqueeze(1), contracts.LOG_P_CANDIDATES: own}
    candidates = {key: torch.cat([first, drawn[key]], dim=1) for key, first in both.items()}
    return own.double().sum((1, 2)), TensorDict({**state, **candidates})


def _minus_log_sir(log_weights: Tensor) -> Tensor:
    """`log( sum w / (k w_0) )`: (b, k) to (b,). Zero if nothing has any weight: SIR then keeps a draw as it is."""
    log_mean = particles.log_mean_weight(log_weights)
    return torch.where(log_mean == -torch.inf, 0.0, log_mean - log_weights[:, 0])


class _BeforeStep(nn.Module):
    """Texts before and after a step of a random grid: x_t (b, l), t (b,), x_s (b, l), revealed flat positions (n,)."""

    def __init__(self, mask_id: int, schedule: Schedule, fewest: int, most: int, pad_id: int | None) -> None:
        super().__init__()
        self.mask_id = mask_id
        self.schedule = schedule
        self.fewest = fewest
        self.most = most
        self.pad_id = pad_id

    def forward(
        self, x_0: Tensor, seed: Tensor, row: Tensor, step: Tensor, num_rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        when, how_many, which = noise.uniforms(seed, row, step, Stream.TIME, count=3).unbind(-1)
        num_steps = (self.fewest * ((self.most + 1) / self.fewest) ** how_many).floor().clamp(max=self.most)
        maskable = torch.ones_like(x_0, dtype=torch.bool) if self.pad_id is None else x_0 != self.pad_id
        picked = _nth(maskable, which)
        reveal_noise = noise.grid(seed, row, step, Stream.CORRUPTION, x_0.shape[1])
        reveal_noise = reveal_noise.scatter(1, picked, schedules.stratified_times(when, row, num_rows).unsqueeze(-1))
        # Counted from the end of the grid: the steps that a position is still masked for, 1..num_steps.
        masked_for = (absorbing.reveal_times(reveal_noise, self.schedule) * num_steps.unsqueeze(-1)).ceil().clamp(min=1)
        now = masked_for.gather(1, picked)
        x_t = torch.where(maskable & (masked_for <= now), self.mask_id, x_0)
        x_s = torch.where(maskable & (masked_for < now), self.mask_id, x_0)
        positions = (x_t != x_s).flatten().nonzero().squeeze(-1)
        return x_t, now.squeeze(1) / num_steps, x_s, positions


def _nth(wanted: Tensor, share: Tensor) -> Tensor:
    """The place of one of the wanted, bool (b, l), at a share (b,) in (0, 1) of their number; int64 (b, 1)."""
    number = (share * wanted.sum(1)).floor().unsqueeze(-1)
    return (wanted.cumsum(1) <= number).sum(1, keepdim=True).clamp(max=wanted.shape[1] - 1)
