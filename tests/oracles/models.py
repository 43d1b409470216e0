"""The ideal denoiser and the ideal autoregressive model of a law, and denoisers that are not ideal."""

import torch
import torch.nn.functional as F
from torch import Tensor

from oracles.laws import agree, all_masked_states, all_sequences, at, with_masks


def posterior_marginals(joint: Tensor, x_t: Tensor) -> Tensor:
    """`log p(x_0^i | visible tokens of x_t)`: (..., l) to (..., l, v), all mass on a visible token itself."""
    symbols, length = joint.shape[0], joint.ndim
    seen = with_masks(joint, length)
    tokens = torch.arange(symbols + 1, device=x_t.device)
    own = torch.eye(length, dtype=torch.bool, device=x_t.device).unsqueeze(1)  # (l, 1, l)
    filled = torch.where(own, tokens[:symbols].unsqueeze(-1), x_t[..., None, None, :])  # (..., l, m, l)
    evidence = at(seen, x_t)[..., None, None]
    masked_law = torch.where(evidence > 0, at(seen, filled) / evidence, 1 / symbols)
    visible_law = (x_t.unsqueeze(-1) == tokens).to(joint.dtype)
    masked = (x_t == symbols).unsqueeze(-1)
    return torch.where(masked, F.pad(masked_law, (0, 1)), visible_law).log()


def marginal_table(joint: Tensor) -> Tensor:
    """`posterior_marginals` of every state: (v,) * l + (l, v), indexed by the l tokens of `x_t`."""
    states = all_masked_states(joint.shape[0], joint.ndim)
    return posterior_marginals(joint, states).unflatten(0, (joint.shape[0] + 1,) * joint.ndim)


def random_marginals(seed: int, symbols: int, length: int, strength: float = 1.0) -> Tensor:
    """An imperfect denoiser, as a table like `marginal_table`: random, consistent with no joint law."""
    generator = torch.Generator().manual_seed(seed)
    states = all_masked_states(symbols, length)
    logits = strength * torch.randn(*states.shape, symbols, generator=generator, dtype=torch.float64)
    visible_law = (states.unsqueeze(-1) == torch.arange(symbols + 1)).to(torch.float64)
    law = torch.where((states == symbols).unsqueeze(-1), F.pad(logits.softmax(-1), (0, 1)), visible_law)
    return law.log().unflatten(0, (symbols + 1,) * length)


def joint_posterior(joint: Tensor, x_t: Tensor) -> Tensor:
    """`log q(x_0 | x_t)` of every sequence: (b, l) to (b, m^l)."""
    agrees = agree(all_sequences(joint.shape[0], joint.ndim), x_t.unsqueeze(-2), joint.shape[0])
    mass = agrees * joint.flatten()
    mass = torch.where(mass.sum(-1, keepdim=True) > 0, mass, agrees.to(joint.dtype))
    return (mass / mass.sum(-1, keepdim=True)).log()


def ar_log_prob(joint: Tensor, x: Tensor) -> Tensor:
    """`log p(x_i | x_<i)` at each position: (..., l) to (..., l). Its sum over l is the log of the joint law."""
    symbols, length = joint.shape[0], joint.ndim
    given = torch.ones(length + 1, length, dtype=torch.bool, device=x.device).tril(-1)
    prefixes = torch.where(given, x.unsqueeze(-2), symbols)  # (..., l + 1, l)
    seen = at(with_masks(joint, length), prefixes)
    return torch.where(seen[..., :-1] > 0, seen[..., 1:] / seen[..., :-1], 1 / symbols).log()
