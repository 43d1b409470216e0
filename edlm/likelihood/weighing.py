"""Energies of a text beside draws of the denoiser, from one pass of it: what a text's bounds are made of."""

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.contracts import Denoiser, Energy
from edlm.process import categorical, finite, noise
from edlm.process.noise import Stream


def flat(chosen: Tensor, count: int) -> Tensor:
    """Return flat indices of the chosen positions, of which there are `count`: bool (b, l) to (count,)."""
    return torch.nonzero_static(chosen.flatten(), size=count).squeeze(-1)


def weigh(
    denoiser: Denoiser,
    energy: Energy,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    drawn: Tensor,
    count: int,
    held: Tensor,
    free: int,
    holding: int,
    seed: Tensor,
    row: Tensor,
    step: Tensor | int,
) -> tuple[Tensor, Tensor]:
    """Weigh candidates: energies (b, free + holding), those of the second kind with the data where it is `held` (b, l).

    First the log-probability of the data wherever a candidate is `drawn`, float64 (b, l); these are `count` positions.
    """
    b, l = x_0.shape
    positions = flat(drawn, count)
    owner = positions // l
    number = step[owner] if isinstance(step, Tensor) else step
    uniforms = noise.uniforms(seed, row[owner], number, Stream.EVALUATION, positions % l, free + holding)
    state = TensorDict({contracts.X_T: x_t, contracts.T: t, contracts.POSITIONS: positions})
    hidden = denoiser(state)[contracts.HIDDEN]
    data, pinned = x_0.flatten()[positions], held.flatten()[positions]
    rows = categorical.rows_at_once(denoiser.vocab_size, x_0.device)
    tiles = [
        _draw(denoiser, *tile, free)
        for tile in zip(hidden.split(rows), uniforms.split(rows), data.split(rows), pinned.split(rows), strict=True)
    ]
    tokens, log_p, data_log_p = (torch.cat(parts) for parts in zip(*tiles, strict=True))
    kept = x_t.unsqueeze(-1).repeat(1, 1, free + holding)
    state[contracts.CANDIDATES] = _onto(kept, positions, tokens).transpose(1, 2)
    nothing = log_p.new_zeros(kept.shape)
    state[contracts.LOG_P_CANDIDATES] = _onto(nothing, positions, log_p).transpose(1, 2)
    of_data = _onto(log_p.new_zeros(b, l, 1), positions, data_log_p).squeeze(-1)
    weighed = energy(state)[contracts.ENERGY]
    finite.require_log_prob(data_log_p)
    finite.require_energy(weighed)
    return of_data.double(), weighed


def _draw(
    denoiser: Denoiser, hidden: Tensor, uniforms: Tensor, data: Tensor, pinned: Tensor, free: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (n, c) and their log-probabilities, the data where it is held, and those of the data (n, 1)."""
    logits = denoiser.logits(hidden)
    drawn = categorical.inverse_cdf(logits, uniforms)
    data_log_p = categorical.token_log_prob(logits, data.unsqueeze(-1))
    holds = pinned.unsqueeze(-1) & (torch.arange(uniforms.shape[-1], device=data.device) >= free)
    tokens = torch.where(holds, data.unsqueeze(-1), drawn.tokens)
    return tokens, torch.where(holds, data_log_p, drawn.log_prob), data_log_p


def _onto(target: Tensor, positions: Tensor, values: Tensor) -> Tensor:
    """Write values (n, c) at flat positions (n,) of a copy of (b, l, c)."""
    flat = target.flatten(0, 1).index_copy(0, positions, values.to(target))
    return flat.view(target.shape)
