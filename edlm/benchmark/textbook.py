"""Masked-diffusion samplers as they are usually written in research code: what the library is measured against.

Logits at every position, one random number per entry of `(b, l, v)`, a cache that holds while no token has moved, and
particles by repetition of the batch. They are slow, not wrong: energies are low where a text is likely, particles of a
row stay together, the grid ends at alpha = 1, so their law is the library's. The noise has the type of the logits, as
is usual, and float32 truncates its tail a little.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from edlm.contracts import Network

Energy = Callable[[Tensor, Tensor, Tensor], Tensor]  # drafts (n, l), x_t (n, l), log p (n, l, v) -> nats (n,)


@torch.no_grad()
def ancestral(
    network: Network,
    mask_id: int,
    shape: tuple[int, int],
    num_steps: int,
    generator: Generator,
    only_steps: int | None = None,
) -> Tensor:
    """Draw `x_s ~ q(x_s | x_t, x_0 ~ p_theta)` over tokens and mask at every position, T times: tokens (b, l).

    `alpha(t) = 1 - t` on a uniform grid; the network is told no time but zero. only_steps stops early, for timing.
    """
    x_t = torch.full(shape, mask_id, device=generator.device)
    law = None
    for alpha_t, alpha_s in _steps(num_steps, only_steps):
        if law is None:
            law = subs(network.head(hidden(network, x_t)), x_t, mask_id).exp()
        weights = law * (alpha_s - alpha_t)
        weights[..., mask_id] = 1.0 - alpha_s
        x_s = torch.where(x_t == mask_id, race(weights, generator), x_t)
        if not torch.equal(x_s, x_t):
            law = None
        x_t = x_s
    return x_t


@torch.no_grad()
def importance(
    network: Network,
    energy: Energy,
    mask_id: int,
    shape: tuple[int, int],
    num_steps: int,
    num_particles: int,
    generator: Generator,
    only_steps: int | None = None,
) -> Tensor:
    """Draw k drafts of every row at every step, keep one by `softmax(-E)`, reveal part of it: tokens (b, l).

    A mask is revealed with probability `(alpha_s - alpha_t) / (1 - alpha_t)`. Else as `ancestral`.
    """
    b, k = shape[0], num_particles
    x_t = torch.full(shape, mask_id, device=generator.device)
    rows = torch.arange(b, device=generator.device)
    log_p = None
    for alpha_t, alpha_s in _steps(num_steps, only_steps):
        if log_p is None:
            log_p = subs(network.head(hidden(network, x_t)), x_t, mask_id)
        repeated, states = log_p.repeat_interleave(k, dim=0), x_t.repeat_interleave(k, dim=0)
        drafts = torch.where(states == mask_id, race(repeated.exp(), generator), states)
        weights = (-energy(drafts, states, repeated)).view(b, k).softmax(-1)
        x_0 = drafts.view(b, k, -1)[rows, race(weights, generator)]
        revealed = torch.rand(shape, generator=generator, device=x_t.device) < (alpha_s - alpha_t) / (1.0 - alpha_t)
        x_s = torch.where((x_t == mask_id) & revealed, x_0, x_t)
        if not torch.equal(x_s, x_t):
            log_p = None
        x_t = x_s
    return x_t


def residual_ar(network: Network, mask_id: int, bos_id: int, carry_over: bool) -> Energy:
    """Build `E = -log p_AR(x_0) + log p_theta(x_0 | x_t)`, over all positions, or over the masked ones alone."""

    def energy(drafts: Tensor, x_t: Tensor, log_p: Tensor) -> Tensor:
        logits = network.head(network(F.pad(drafts[:, :-1], (1, 0), value=bos_id)))
        logits[..., mask_id] = -torch.inf
        log_ar = logits.log_softmax(-1).gather(-1, drafts.unsqueeze(-1)).squeeze(-1)
        log_ratio = log_ar - log_p.gather(-1, drafts.unsqueeze(-1)).squeeze(-1)
        if carry_over:
            log_ratio = torch.where(x_t == mask_id, log_ratio, 0.0)
        return -log_ratio.sum(-1)

    return energy


def hidden(network: Network, x_t: Tensor) -> Tensor:
    """Compute hidden states at every position (b, l, h); every row is given noise level zero, as published."""
    return network(x_t, torch.zeros(len(x_t), device=x_t.device))


def subs(logits: Tensor, x_t: Tensor, mask_id: int) -> Tensor:
    """Compute `log p(x_0 | x_t)`, (b, l, v): the mask has probability zero, a revealed position keeps its token."""
    logits[..., mask_id] = -torch.inf
    log_p = logits.log_softmax(-1)
    revealed = x_t != mask_id
    log_p[revealed] = -torch.inf
    log_p[revealed, x_t[revealed]] = 0.0
    return log_p


def race(weights: Tensor, generator: Generator) -> Tensor:
    """Draw from unnormalised laws (..., v): the first of v exponential clocks, `argmax w / -log u`."""
    uniforms = torch.rand(weights.shape, dtype=weights.dtype, device=weights.device, generator=generator)
    return (weights / -uniforms.log()).argmax(-1)


def _steps(num_steps: int, only_steps: int | None) -> Iterator[tuple[float, float]]:
    """The pairs `(alpha_t, alpha_s)` of a uniform grid, the last of which ends at 1 exactly."""
    alphas = (1.0 - torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)).tolist()
    return zip(alphas[:only_steps], alphas[1:][:only_steps], strict=False)
