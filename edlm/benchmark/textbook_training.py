"""Training losses as they are usually written in research code: what a step of the library is measured against.

Logits at every position, the whole law `log p(x_0 | x_t)` as a `(b, l, v)` tensor, drafts by one random number per
entry of it, data and drafts through the energy one after the other. Slow, not wrong: the losses are the library's.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from edlm.benchmark import textbook
from edlm.contracts import Network
from edlm.nn.networks import EnergyNetwork

TIME_LOW = 1e-3


def corrupt(x_0: Tensor, mask_id: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Mask each token with its row's probability t, stratified over the batch: x_t (b, l) and t (b,)."""
    b, device = len(x_0), x_0.device
    t = (torch.rand(b, generator=generator, device=device) + torch.arange(b, device=device)) / b
    t = t * (1.0 - TIME_LOW) + TIME_LOW
    masked = torch.rand(x_0.shape, generator=generator, device=device) < t.unsqueeze(-1)
    return torch.where(masked, mask_id, x_0), t


def denoising(network: Network, x_0: Tensor, x_t: Tensor, t: Tensor, mask_id: int) -> Tensor:
    """Compute `1/t sum_i -log p_i(x_0^i | x_t)` of each row under the log-linear schedule, from the whole law."""
    log_p = subs(network.head(textbook.hidden(network, x_t)), x_t, mask_id)
    return -log_p.gather(-1, x_0.unsqueeze(-1)).squeeze(-1).sum(-1) / t


def contrast(network: EnergyNetwork, x_0: Tensor, drafts: Tensor, x_t: Tensor) -> Tensor:
    """Compute `softplus(E(x_0)) + softplus(-E(draft))` of each row, one pass of the energy for each of the two."""
    return F.softplus(energy(network, x_t, x_0)) + F.softplus(-energy(network, x_t, drafts))


def energy(network: EnergyNetwork, x_t: Tensor, x_0: Tensor) -> Tensor:
    """Compute the network's scalar of each row (b,), layer by layer over all positions, at noise level zero."""
    x = network.combine(torch.cat([network.embedding(x_t), network.embedding(x_0)], dim=-1))
    states, _ = network.trunk(x, sigma=torch.zeros(len(x_t), device=x_t.device))
    x = network.project(states)
    return network.scalar(F.relu(network.hidden(x.mean(1)))).squeeze(-1)


@torch.no_grad()
def drafts_of(network: Network, x_t: Tensor, mask_id: int, generator: Generator) -> Tensor:
    """Draw from `p(x_0 | x_t)`: a race over all tokens at every position, visible ones kept."""
    log_p = subs(network.head(textbook.hidden(network, x_t)), x_t, mask_id)
    return torch.where(x_t == mask_id, textbook.race(log_p.exp(), generator), x_t)


def subs(logits: Tensor, x_t: Tensor, mask_id: int) -> Tensor:
    """Compute `log p(x_0 | x_t)`, (b, l, v), so that gradients can be taken: see `textbook.subs`."""
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    logits[..., mask_id] = -torch.inf
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    revealed = x_t != mask_id
    log_p[revealed] = -torch.inf
    log_p[revealed, x_t[revealed]] = 0.0
    return log_p
