"""Energies `E(x_0, x_t, t)` in nats, low = likely: `p(x_0 | x_t) ~ p_theta(x_0 | x_t) exp(-E)` (Xu et al. 2025).

An energy is a TensorDict module that reads `candidates` (b, k, l) and whichever of `x_t`, `t`, `log_p_candidates` it
needs, and writes `energy` (b, k). Particles and rows never see each other.
"""

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from edlm import contracts, schedules
from edlm.schedules import Schedule


def zero() -> TensorDictModule:
    """`E = 0`: importance sampling with it has the law of the plain sampler. A control for experiments."""
    return TensorDictModule(_Zero(), in_keys=[contracts.CANDIDATES], out_keys=[contracts.ENERGY])


def learned(network: nn.Module, schedule: Schedule | None = None, pad_id: int | None = None) -> TensorDictModule:
    """The energy of a network `(x_t, x_0, sigma) -> scalar`, trained by noise contrastive estimation.

    With a schedule the network is told `sigma(t)`, else zero. Positions that hold `pad_id` do not count.
    Raises ValueError if the schedule's sigma(1) is infinite.
    """
    if schedule is not None and not torch.isfinite(schedules.sigma(schedule, torch.ones(1, dtype=torch.float64))):
        raise ValueError("a time-conditioned energy needs a schedule with a finite sigma(1): log_linear(eps=1e-3)")
    return TensorDictModule(
        _Learned(network, schedule, pad_id),
        in_keys=[contracts.CANDIDATES, contracts.X_T, contracts.T],
        out_keys=[contracts.ENERGY],
    )


def scaled(energy: TensorDictModule, factor: float) -> TensorDictModule:
    """`factor * E`; `-1` flips the sign, the control that must make samples worse. Other keys are read as before."""
    return TensorDictModule(_Scaled(energy, factor), in_keys=list(energy.in_keys), out_keys=[contracts.ENERGY])


class _Zero(nn.Module):
    def forward(self, candidates: Tensor) -> Tensor:
        return torch.zeros(candidates.shape[:2], dtype=torch.float64, device=candidates.device)


class _Learned(nn.Module):
    def __init__(self, network: nn.Module, schedule: Schedule | None, pad_id: int | None) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.pad_id = pad_id

    def forward(self, candidates: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        b, k, l = candidates.shape
        x_0 = candidates.flatten(0, 1)  # (b k, l): the particles of a row stay together
        x_t = x_t.unsqueeze(1).expand(b, k, l).flatten(0, 1)
        noise_level = None
        if self.schedule is not None:
            noise_level = schedules.sigma(self.schedule, t).unsqueeze(1).expand(b, k).flatten()
        valid = None if self.pad_id is None else x_0 != self.pad_id
        return self.network(x_t, x_0, noise_level, valid).unflatten(0, (b, k))


class _Scaled(nn.Module):
    def __init__(self, energy: TensorDictModule, factor: float) -> None:
        super().__init__()
        self.energy = energy
        self.factor = factor

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.factor * self.energy.module(*inputs)
