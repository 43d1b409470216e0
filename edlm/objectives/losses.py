"""The losses that are differentiated, from log-probabilities and energies already there. Every value is in nats."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nelbo(log_prob: Tensor, weight: Tensor) -> Tensor:
    """Compute `w(t) sum_{i masked} -log p_i(x_0^i | x_t)`, each row's continuous NELBO (Sahoo et al. 2024, section 3).

    log_prob: (b, l), zero where nothing is to be predicted; weight: (b,), `-alpha'(t) / (1 - alpha(t))`. Returns (b,);
    its mean over t uniform in [0, 1] is an upper bound of `-log p(x_0)`.
    """
    return weight.to(log_prob.dtype) * -log_prob.sum(-1)


def nelbo_of_blocks(log_prob: Tensor, weights: Tensor) -> Tensor:
    """Compute `sum_b w(t_b) sum_{i in b masked} -log p_i(x_0^i | x_t^b, x_0^{<b})`, each row's NELBO over its blocks.

    log_prob: (b, l), zero where nothing is to be predicted; weights: (b, l), `nelbo`'s at the time of each position's
    block (Arriola et al. 2025, arXiv 2503.09573). Returns (b,).
    """
    return -(weights.to(log_prob.dtype) * log_prob).sum(-1)


def t_step(log_prob: Tensor, alpha_t: Tensor, alpha_s: Tensor, num_steps: int) -> Tensor:
    """Compute `T (alpha_s - alpha_t) / (1 - alpha_t) sum_{i masked} -log p_i(x_0^i | x_t)`, each row's T-step NELBO.

    log_prob: (b, l), zero where nothing is to be predicted; alpha_t < alpha_s: (b,), the ends of one of the grid's T
    steps, chosen uniformly. Returns (b,), finite for every step, the last one (alpha_s = 1) included; its mean over
    steps is an upper bound of `-log p(x_0)` of the plain T-step sampler.
    """
    return nelbo(log_prob, num_steps * _reveal_probability(alpha_t, alpha_s))


def next_token(log_prob: Tensor) -> Tensor:
    """Compute `sum_i -log p(x_i | x_<i)`, exact negative log-likelihood of an autoregressive model: (b, l) to (b,)."""
    return -log_prob.sum(-1)


def next_token_and_drafts(log_prob: Tensor, log_prob_drafted: Tensor) -> Tensor:
    """Compute `sum_i -log p(x_i | x_<i) - log p(x_i | x_<s(i))` of rows (b, l): nats (b,).

    s(i) < i is where the run of masks of i begins. The first term is the exact negative log-likelihood; the second is
    zero in rows that draft nothing.
    """
    return -log_prob.sum(-1) - log_prob_drafted.sum(-1)


def d3pm(
    log_prob: Tensor, log_prob_mask: Tensor, masked: Tensor, alpha_t: Tensor, alpha_s: Tensor, num_steps: int
) -> Tensor:
    """Compute `T sum_{i masked} KL( q(x_s | x_t, x_0) || p_theta(x_s | x_t) )` of D3PM (Austin et al. 2021), (b,).

    The network may predict the mask. log_prob, log_prob_mask (b, l): `log p_i(x_0^i | x_t)` and `log p_i(mask | x_t)`;
    masked: bool (b, l); alpha_t < alpha_s: (b,), the ends of one of the grid's T steps, chosen uniformly. Finite for
    every step; with `log_prob_mask = -inf` it is `t_step`. A visible token contributes nothing: `q(x_s | x_t, x_0)`
    keeps it whatever x_0 is predicted, and so does the sampler `baselines.d3pm`, of whose `-log p(x_0)` the mean over
    steps is an upper bound. Where x_0 is drawn from the network at the end, `-log p(x_0 | x_0)` comes on top.
    """
    reveal = _reveal_probability(alpha_t, alpha_s).unsqueeze(-1)
    # float64, for T times the difference of two nearly equal logarithms.
    mask_t, mask_s = (_log_mask_ratio(log_prob_mask.double(), alpha.double()) for alpha in (alpha_t, alpha_s))
    divergence = mask_t - (1.0 - reveal) * mask_s - reveal * log_prob
    return num_steps * torch.where(masked, divergence, 0.0).sum(-1).to(log_prob.dtype)


def sedd(log_score: Tensor, x_0: Tensor, alpha: Tensor, alpha_slope: Tensor, mask_id: int) -> Tensor:
    """Compute the score entropy of absorbing SEDD at masks (Lou et al. 2023): nats (n,), zero at its minimum.

    `sigma' [ sum_{y != mask} s_y - r log s_{x_0} + r (log r - 1) ]` with `r = alpha / (1 - alpha) = 1 / expm1(sigma)`,
    the true ratio, and `sigma' = -alpha' / alpha`. log_score (n, v): `log s`, ratios of the law of x_t with the mask
    replaced by y to that of x_t; x_0 (n,); alpha, alpha_slope (n,): the schedule at each position's time, alpha in
    (0, 1).
    """
    columns = torch.arange(log_score.shape[-1], device=log_score.device)
    total = log_score.masked_fill(columns == mask_id, -torch.inf).logsumexp(-1).exp()
    log_ratio = alpha.logit()
    ratio = log_ratio.exp()
    wanted = log_score.gather(-1, x_0.unsqueeze(-1)).squeeze(-1)
    entropy = total - (ratio * (wanted - log_ratio + 1.0)).to(total.dtype)
    return (-alpha_slope / alpha).to(total.dtype) * entropy


def nce(energy_positive: Tensor, energy_negative: Tensor) -> Tensor:
    """Contrast by pairs, binary NCE: `softplus(E_+) + mean_n softplus(-E_-)` (Xu et al. 2025).

    energy_positive (b,) of the data, energy_negative (b, n) of drafts of the denoiser. Returns (b,), minimal when
    `exp(-E)` is the ratio of data to denoiser, whatever n; an energy that knows nothing scores 2 log 2.
    """
    return F.softplus(energy_positive) + F.softplus(-energy_negative).mean(-1)


def info_nce(energy_positive: Tensor, energy_negative: Tensor) -> Tensor:
    """Contrast by ranking, InfoNCE: `-log( exp(-E_+) / (exp(-E_+) + sum_n exp(-E_-)) )`, (b,) and (b, n) to (b,).

    Minimal when `exp(-E)` is the ratio of data to denoiser up to a factor that may depend on `x_t`; an energy that
    knows nothing scores log(1 + n).
    """
    scores = -torch.cat([energy_positive.unsqueeze(-1), energy_negative], dim=-1)
    return -scores.log_softmax(-1)[..., 0]


def nce_accuracy(energy_positive: Tensor, energy_negative: Tensor) -> Tensor:
    """Measure the share of pairs (data, draft) that the energy orders rightly, ties as half: (b,), (b, n) to (b,)."""
    gap = energy_negative - energy_positive.unsqueeze(-1)
    return ((gap > 0).float() + 0.5 * (gap == 0).float()).mean(-1)


def _reveal_probability(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """`(alpha_s - alpha_t) / (1 - alpha_t)`, and zero where alpha_t = 1 has left no mask to reveal."""
    possible = alpha_t < 1.0
    return torch.where(possible, (alpha_s - alpha_t) / torch.where(possible, 1.0 - alpha_t, 1.0), 0.0)


def _log_mask_ratio(log_prob_mask: Tensor, alpha: Tensor) -> Tensor:
    """`log(1 + p(mask) alpha / (1 - alpha))`, how much likelier p(mask) makes a mask: (b, l) and (b,) to (b, l).

    Finite at alpha = 1 too, where a factor of zero follows and any number does.
    """
    log_odds = torch.where(alpha < 1.0, alpha, 0.5).logit().unsqueeze(-1)
    return torch.logaddexp(log_prob_mask + log_odds, torch.zeros_like(log_odds))
