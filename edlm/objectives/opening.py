"""Attention that opens while a causal network is trained to be a denoiser (DiffuLLaMA, Gong et al. 2024)."""

import torch
from torch import Tensor, nn

from edlm.contracts import Denoiser
from edlm.declaration import Stages, stage
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import attention
from edlm.process import arguments, noise
from edlm.process.noise import Stream


def opened(denoiser: Denoiser, steps: int) -> Stages:
    """Build the stages of a denoiser whose attention opens: `{x_t, positions, seed, step} -> {attention, hidden}`.

    At step s a position reads all before it, and each later one with probability `s / steps`: causal at first, as the
    network was trained before, and full from `steps` on. One draw serves all rows of a step (arXiv 2410.17891).
    Raises ValueError unless steps >= 1, and for a denoiser that is told the time, which a causal network never was.
    """
    arguments.require_whole("steps", steps)
    if not isinstance(denoiser, SubsDenoiser) or denoiser.told is not None:
        raise ValueError("attention opens in a network that is told no time: `denoisers.subs(network, mask_id)`")
    return {
        "open": stage("x_t, seed, step -> attention", _Opening(denoiser.network, steps)),
        "denoise": stage("x_t, positions, attention -> hidden", _Through(denoiser.network)),
    }


class _Opening(nn.Module):
    """Draws which positions read which at a step, bool (l, l), with a bos in front where the network reads one."""

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.front = 0 if getattr(network, "bos_id", None) is None else 1
        self.steps = steps

    def forward(self, x_t: Tensor, seed: Tensor, step: Tensor) -> Tensor:
        length = x_t.shape[1] + self.front
        row = torch.arange(length, device=x_t.device)
        return attention.opening(noise.grid(seed, row, step, Stream.ATTENTION, length), step / self.steps)


class _Through(nn.Module):
    """Hidden states of the wanted positions: x_t (b, l), positions (n,), attention (l, l) to (n, h)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, positions: Tensor, attention: Tensor) -> Tensor:
        return self.network(x_t, None, positions, attention=attention)
