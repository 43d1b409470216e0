"""What is differentiated, from log-probabilities and energies that are already there. Every value is in nats."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nelbo(log_prob: Tensor, weight: Tensor) -> Tensor:
    """`w(t) sum_{i masked} -log p_i(x_0^i | x_t)`, the continuous NELBO of each row (Sahoo et al. 2024, section 3).

    log_prob: (b, l), zero where nothing is to be predicted; weight: (b,), `-alpha'(t) / (1 - alpha(t))`. Returns (b,);
    its mean over t uniform in [0, 1] is an upper bound of `-log p(x_0)`.
    """
    return weight.to(log_prob.dtype) * -log_prob.sum(-1)


def nce(energy_positive: Tensor, energy_negative: Tensor) -> Tensor:
    """Binary noise contrastive estimation: `softplus(E_+) + mean_n softplus(-E_-)` (Xu et al. 2025).

    energy_positive (b,) of the data, energy_negative (b, n) of drafts of the denoiser. Returns (b,), minimal when
    `exp(-E)` is the ratio of data to denoiser, whatever n; an energy that knows nothing scores 2 log 2.
    """
    return F.softplus(energy_positive) + F.softplus(-energy_negative).mean(-1)


def info_nce(energy_positive: Tensor, energy_negative: Tensor) -> Tensor:
    """Ranking NCE: `-log( exp(-E_+) / (exp(-E_+) + sum_n exp(-E_-)) )`, (b,) and (b, n) to (b,).

    Minimal when `exp(-E)` is the ratio of data to denoiser up to a factor that may depend on `x_t`; an energy that
    knows nothing scores log(1 + n).
    """
    scores = -torch.cat([energy_positive.unsqueeze(-1), energy_negative], dim=-1)
    return -scores.log_softmax(-1)[..., 0]


def nce_accuracy(energy_positive: Tensor, energy_negative: Tensor) -> Tensor:
    """Share of (data, draft) pairs that the energy orders rightly, ties counting half: (b,) and (b, n) to (b,)."""
    gap = energy_negative - energy_positive.unsqueeze(-1)
    return ((gap > 0).float() + 0.5 * (gap == 0).float()).mean(-1)
