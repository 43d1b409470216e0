"""The exact law of a sampler that masks tokens again, on a small space: every state with masks, step by step.

Given x_t every position moves independently: a visible token is masked with probability sigma, and a mask is revealed
as a token of its own law. So a step is a product of small tables, one for each set of masks.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from edlm.samplers import remasking
from edlm.samplers.sampler import Sampler

Laws = Sequence[tuple[tuple[int, ...], Tensor]]  # masked positions, and the law of each, (texts of the others, n, m)


def law(sampler: Sampler, laws: Laws, length: int) -> Tensor:
    """Return the law of texts after all steps of a sampler's plan, from all masks: float64 (m,) * l.

    laws: for every set of masked positions the laws (b, n, m) from which tokens are drawn, b the words of the others,
    the last position fastest.
    """
    return states(sampler, laws, length)[-1][(slice(sampler.denoiser.mask_id),) * length]


def states(sampler: Sampler, laws: Laws, length: int) -> list[Tensor]:
    """Return the law of x_t at the start and after every step: float64 (m + 1,) * l each, the mask last."""
    rule, symbols = sampler.remasking, sampler.denoiser.mask_id
    assert rule is not None
    mass = torch.zeros((symbols + 1,) * length, dtype=torch.float64)
    mass[(symbols,) * length] = 1.0
    found, nothing = [mass], torch.full((1, length), torch.inf, dtype=torch.float64)
    for alpha_t, alpha_s in pairwise(remasking.path(rule, sampler.plan, sampler.denoiser.schedule)[1]):
        sigma = rule.sigma(alpha_t, alpha_s, nothing)
        found.append(step(found[-1], laws, float(sigma), float(remasking.revealing(alpha_t, alpha_s, sigma))))
    return found


def step(mass: Tensor, laws: Laws, sigma: float, reveal: float) -> Tensor:
    """Take a step from the law of x_t to that of x_s: float64 (m + 1,) * l each."""
    symbols, length = mass.shape[0] - 1, mass.ndim
    after = torch.zeros_like(mass)
    for masked, p in laws:
        visible = [i for i in range(length) if i not in masked]
        flow = mass[tuple(symbols if i in masked else slice(symbols) for i in range(length))].reshape(-1, 1)
        for each in p.unbind(1):
            moved = torch.cat([reveal * each, torch.full_like(each[:, :1], 1.0 - reveal)], dim=1)
            flow = (flow.unsqueeze(-1) * moved.unsqueeze(1)).flatten(1)
        flow = flow.view(*(symbols,) * len(visible), *(symbols + 1,) * len(masked))
        for axis in range(len(visible)):
            flow = torch.cat([(1.0 - sigma) * flow, sigma * flow.sum(axis, keepdim=True)], dim=axis)
        after += flow.permute([[*visible, *masked].index(i) for i in range(length)])
    return after
