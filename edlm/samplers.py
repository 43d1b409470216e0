"""Sampling kernels: how one step turns `x_t` into `x_s`. A kernel is a value, its step a TensorDict pipeline.

Printing `kernel.step` prints the algorithm: the stages denoise, propose, weigh, select, reveal, in their order.
Noise is an input of the step, and so is what the step reveals; the kernel keeps no state and draws no number itself.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from edlm import absorbing, categorical, contracts, finite, noise, particles
from edlm.contracts import Denoiser, Energy, Positions, Selection
from edlm.noise import Stream
from edlm.schedules import Schedule


class Kernel(NamedTuple):
    """One way to take a step.

    init: tokens with masks (b, l) to the state of the first step: `{x_t}`, and what else a kernel carries along.
    draw: `(seed, row, pass, positions, length)` to the uniforms of one step.
    step: `{x_t, t, positions, reveal, corrected, proposal_noise, selection_noise} -> {x_s, ...diagnostics}`, most often
        a sequence of the stages; what else the state holds it reads and writes.
    proposes: whether tokens are drawn at the positions revealed now or at all masked ones.
    num_particles: most candidates per row; a step takes one pass of the denoiser and as many of the energy, or as few
        as its diagnostics say.
    outside: the kernel for passes in which no row is corrected, None if there is no energy. A pass that corrects some
        rows is taken by this one, which keeps the first candidate of the others.
    carries_states: the denoiser's one pass is in init; a step makes the states of the next by weighing its candidates.
    Laws: given tokens never change; the masks after a step are those before it less `reveal`; the mask is never
    drawn; rows do not see each other; a step is a pure function of its input.
    """

    schedule: Schedule
    denoiser: Denoiser
    init: Callable[[Tensor], TensorDict]
    draw: Callable[..., TensorDict]
    step: TensorDictModuleBase
    proposes: Positions
    num_particles: int
    outside: "Kernel | None" = None
    carries_states: bool = False


class Looped(TensorDictModuleBase):
    """A step with a loop of its own, whose end depends on what is drawn: the host has its say between its parts."""

    def with_parts(
        self, wrap: Callable[[TensorDictModuleBase], TensorDictModuleBase], pad: Callable[[int], int]
    ) -> "Looped":
        """The same step with its parts wrapped, as an execution mode does; pad: numbers of positions, rounded up."""
        raise NotImplementedError


def of_rows(positions: Tensor, rows: Tensor, b: int, l: int) -> tuple[Tensor, Tensor]:
    """Which flat positions (n,) of (b, l) are those of some rows, and what they are among these rows alone: (n',) each.

    rows: int64 (r,), ascending; padded positions belong to none. The host waits for their number.
    """
    place = torch.full((b + 1,), -1, device=positions.device)  # where a row stands among the wanted ones
    place[rows] = torch.arange(len(rows), device=positions.device)
    owner = place[positions // l]
    (taken,) = torch.where(owner >= 0)
    return taken, owner[taken] * l + positions[taken] % l


def padded(indices: Tensor, pad: Callable[[int], int], fill: int) -> Tensor:
    """Indices (n,) filled up to as many as `pad` wants."""
    return torch.cat([indices, indices.new_full((pad(len(indices)) - len(indices),), fill)])


def ancestral(schedule: Schedule, denoiser: Denoiser, temperature: float = 1.0, nucleus: float = 1.0) -> Kernel:
    """Plain sampling: draw the revealed positions from `p_theta(x_0 | x_t)`, each from its own law.

    A temperature other than 1 draws from `p_theta^(1 / temperature)`, a nucleus below 1 from the fewest most likely
    tokens that hold that much probability. Raises ValueError unless temperature > 0 and 0 < nucleus <= 1.
    """
    step = TensorDictSequential(
        {"denoise": denoiser, "propose": propose(denoiser, temperature, nucleus), "reveal": _reveal_only()},
        inplace=False,
    )
    return Kernel(schedule, denoiser, init, partial(draw, 1), step, "revealed", num_particles=1)


def importance(
    schedule: Schedule,
    denoiser: Denoiser,
    energy: Energy,
    num_particles: int,
    temperature: float = 1.0,
    selection: Selection = particles.sir,
    proposal_temperature: float = 1.0,
    nucleus: float = 1.0,
) -> Kernel:
    """Draw k whole drafts from the denoiser, weigh them by `exp(-E / temperature)`, keep one (Xu et al. 2025, alg. 1).

    Only the kept draft's tokens at this step's positions are revealed. With one particle, or outside the window, it
    gives the tokens of `ancestral` one for one. Drafts may be proposed by another law `q` than `p_theta`, sharper or
    cut to a nucleus: the weight is then `p_theta / q exp(-E / temperature)`, and the target stays what it was, on the
    nucleus. Raises ValueError unless num_particles >= 1, both temperatures > 0 and 0 < nucleus <= 1.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles = {num_particles} must be at least 1")
    finite.require_temperature("proposal_temperature", proposal_temperature)
    step = TensorDictSequential(
        {
            "denoise": denoiser,
            "propose": propose(denoiser, proposal_temperature, nucleus),
            "weigh": energy,
            "select": _select(selection, temperature),
            "reveal": reveal_chosen(),
        },
        inplace=False,
    )
    outside = ancestral(schedule, denoiser, proposal_temperature, nucleus)
    return Kernel(schedule, denoiser, init, partial(draw, num_particles), step, "masked", num_particles, outside)


def propose(denoiser: Denoiser, temperature: float = 1.0, nucleus: float = 1.0) -> TensorDictModule:
    """Build the stage that draws k drafts: `{hidden, x_t, positions, proposal_noise} -> {candidates, ...}`.

    k is the width of the noise, and one pass over the logits serves all k.
    Raises ValueError unless temperature > 0 and 0 < nucleus <= 1.
    """
    finite.require_temperature("temperature", temperature)
    if not 0.0 < nucleus <= 1.0:
        raise ValueError(f"nucleus = {nucleus} must lie in (0, 1]")
    return TensorDictModule(
        _Propose(denoiser, temperature, nucleus),
        in_keys=[contracts.HIDDEN, contracts.X_T, contracts.POSITIONS, contracts.PROPOSAL_NOISE],
        out_keys=[contracts.CANDIDATES, contracts.LOG_P_CANDIDATES, contracts.LOG_RATIO],
    )


def init(tokens: Tensor) -> TensorDict:
    """The state of a kernel that remembers nothing but its tokens."""
    return TensorDict({contracts.X_T: tokens})


def draw(k: int, seed: Tensor, row: Tensor, step: Tensor, positions: Tensor, length: int) -> TensorDict:
    """Uniforms of one step, proposal (n, k) and selection (b, k), keyed by the row's number and its own pass.

    row: int64 (b,); step: int64 (); positions: int64 (n,), where `b * length` is padding.
    """
    owner = row[(positions // length).clamp(max=row.shape[0] - 1)]
    proposal = noise.uniforms(seed, owner, step, Stream.PROPOSAL, positions % length, count=k)
    selection = noise.uniforms(seed, row, step, Stream.SELECTION, count=k)
    return TensorDict({contracts.PROPOSAL_NOISE: proposal, contracts.SELECTION_NOISE: selection})


class _Propose(nn.Module):
    """k drafts of every row from one pass over the logits: candidates, their log p_theta, and its ratio to q."""

    def __init__(self, denoiser: Denoiser, temperature: float, nucleus: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.temperature = temperature
        self.nucleus = nucleus

    def forward(
        self, hidden: Tensor, x_t: Tensor, positions: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        vocab_size = self.denoiser.vocab_size
        rows = categorical.rows_at_once(vocab_size, hidden.device, torch.compiler.is_compiling())
        tiles = [self._draw(*tile) for tile in zip(hidden.split(rows), uniforms.split(rows), strict=True)]
        drawn, log_p, log_q = (torch.cat(parts) for parts in zip(*tiles, strict=True))
        # Contiguous before it is written to: torch.compile writes into an expanded tensor as if k were 1.
        tokens = x_t.unsqueeze(-1).expand(-1, -1, uniforms.shape[-1]).contiguous()
        ratio = (log_p - log_q).to(torch.float64)
        return (
            _spread(drawn, tokens, positions).transpose(1, 2),
            _spread(log_p, log_p.new_zeros(tokens.shape), positions).transpose(1, 2),
            _spread(ratio, ratio.new_zeros(tokens.shape), positions).sum(1),
        )

    def _draw(self, hidden: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (n, k) from q with their log-probabilities under p_theta and under q."""
        logits = self.denoiser.logits(hidden)
        if self.temperature == 1.0 and self.nucleus == 1.0:
            drawn = categorical.inverse_cdf(logits, uniforms)
            return drawn.tokens, drawn.log_prob, drawn.log_prob
        law = categorical.nucleus(categorical.cooled(logits, self.temperature), self.nucleus)
        drawn = categorical.inverse_cdf(law, uniforms)
        return drawn.tokens, categorical.token_log_prob(logits, drawn.tokens), drawn.log_prob


def _spread(values: Tensor, onto: Tensor, positions: Tensor) -> Tensor:
    """Write values (n, k) at flat positions (n,) of (b, l, k); padded positions write into a row that is cut off."""
    b, l, k = onto.shape
    longer = torch.cat([onto.view(b * l, k), onto.new_zeros(1, k)])
    return longer.index_copy(0, positions, values)[:-1].view(b, l, k)


class _Select(nn.Module):
    """Which candidate is kept, and how even the weights were: outside the window always the first."""

    def __init__(self, selection: Selection, temperature: float) -> None:
        super().__init__()
        self.selection = selection
        self.temperature = temperature

    def forward(
        self, energy: Tensor, log_ratio: Tensor, uniforms: Tensor, corrected: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log_weights = particles.log_weights(energy, self.temperature) + log_ratio
        chosen = torch.where(corrected, self.selection(log_weights, uniforms), 0)
        count = torch.full_like(chosen, energy.shape[1])
        return chosen, count, particles.ess(log_weights), particles.log_weight_std(log_weights)


def _select(selection: Selection, temperature: float) -> TensorDictModule:
    finite.require_temperature("temperature", temperature, particles.COLDEST)
    return TensorDictModule(
        _Select(selection, temperature),
        in_keys=[contracts.ENERGY, contracts.LOG_RATIO, contracts.SELECTION_NOISE, contracts.CORRECTED],
        out_keys=[contracts.CHOSEN, contracts.PARTICLES, contracts.ESS, contracts.LOG_WEIGHT_STD],
    )


def _reveal_only() -> TensorDictModule:
    return TensorDictModule(
        lambda x_t, candidates, positions: absorbing.reveal(x_t, candidates[:, 0], positions),
        in_keys=[contracts.X_T, contracts.CANDIDATES, contracts.REVEAL],
        out_keys=[contracts.X_S],
    )


def reveal_chosen() -> TensorDictModule:
    """Build the stage that reveals the kept draft's tokens: `{x_t, candidates, chosen, reveal} -> {x_s}`."""
    return TensorDictModule(
        lambda x_t, candidates, chosen, positions: absorbing.reveal(x_t, _keep(candidates, chosen), positions),
        in_keys=[contracts.X_T, contracts.CANDIDATES, contracts.CHOSEN, contracts.REVEAL],
        out_keys=[contracts.X_S],
    )


def _keep(candidates: Tensor, chosen: Tensor) -> Tensor:
    """The chosen particle of each row: (b, k, l) and (b,) to (b, l)."""
    index = chosen[:, None, None].expand(-1, 1, candidates.shape[-1])
    return candidates.gather(1, index).squeeze(1)
