"""A hidden Markov law, which is exact at any length."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from oracles.energies import EnergyFn
from oracles.laws import filled


class HiddenMarkov(NamedTuple):
    """A hidden Markov law, positive everywhere: initial (h,), transition (h, h), emission (h, m); rows sum to 1."""

    initial: Tensor
    transition: Tensor
    emission: Tensor


def random_hidden_markov(seed: int, hidden: int, symbols: int, strength: float = 2.0) -> HiddenMarkov:
    """A random hidden Markov law; a larger strength makes it less noisy."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(hidden, n, generator=generator, dtype=torch.float64) for n in (1, hidden, symbols)]
    return HiddenMarkov(
        logits[0].squeeze(-1).softmax(-1), (strength * logits[1]).softmax(-1), (strength * logits[2]).softmax(-1)
    )


def hmm_sample(hmm: HiddenMarkov, generator: torch.Generator, b: int, length: int) -> Tensor:
    """Draw b sequences: int64 (b, l)."""
    tokens = []
    law = hmm.initial.expand(b, -1)
    for _ in range(length):
        state = torch.multinomial(law, 1, generator=generator).squeeze(-1)
        tokens.append(torch.multinomial(hmm.emission[state], 1, generator=generator))
        law = hmm.transition[state]
    return torch.cat(tokens, dim=-1)


def _evidence(hmm: HiddenMarkov, x: Tensor) -> Tensor:
    """`p(token | hidden state)`, 1 at a mask: (..., l) to (..., l, h)."""
    return F.pad(hmm.emission, (0, 1), value=1.0).T[x]


def _forward(hmm: HiddenMarkov, evidence: Tensor) -> tuple[Tensor, Tensor]:
    """`p(h_i | visible tokens before i)`, (..., l, h), and the log-probability of all visible tokens, (...)."""
    predictions, log_norms = [], []
    law = hmm.initial.expand(evidence[..., 0, :].shape)
    for likelihood in evidence.unbind(-2):
        predictions.append(law)
        filtered = law * likelihood
        norm = filtered.sum(-1, keepdim=True)
        log_norms.append(norm.log())
        law = filtered / norm @ hmm.transition
    return torch.stack(predictions, -2), torch.cat(log_norms, -1).sum(-1)


def _backward(hmm: HiddenMarkov, evidence: Tensor) -> Tensor:
    """`p(visible tokens after i | h_i)`, up to a factor per position: (..., l, h)."""
    messages = [torch.ones_like(evidence[..., 0, :])]
    for likelihood in evidence[..., 1:, :].flip(-2).unbind(-2):
        message = (likelihood * messages[-1]) @ hmm.transition.T
        messages.append(message / message.sum(-1, keepdim=True))
    return torch.stack(messages[::-1], -2)


def hmm_log_prob(hmm: HiddenMarkov, x: Tensor) -> Tensor:
    """`log p(visible tokens)`, masks summed out: (..., l) to (...)."""
    return _forward(hmm, _evidence(hmm, x))[1]


def hmm_posterior_marginals(hmm: HiddenMarkov, x_t: Tensor) -> Tensor:
    """`posterior_marginals` of a hidden Markov law, by the forward-backward algorithm: (..., l) to (..., l, v)."""
    evidence = _evidence(hmm, x_t)
    smoothed = _forward(hmm, evidence)[0] * _backward(hmm, evidence)
    masked_law = smoothed / smoothed.sum(-1, keepdim=True) @ hmm.emission
    visible_law = (x_t.unsqueeze(-1) == torch.arange(hmm.emission.shape[1] + 1, device=x_t.device)).to(evidence.dtype)
    masked = (x_t == hmm.emission.shape[1]).unsqueeze(-1)
    return torch.where(masked, F.pad(masked_law, (0, 1)), visible_law).log()


def hmm_residual_energy(hmm: HiddenMarkov) -> EnergyFn:
    """`residual_energy` of a hidden Markov law against its exact marginals; a candidate may contain masks."""
    mask_id = hmm.emission.shape[1]

    def energy(candidates: Tensor, x_t: Tensor) -> Tensor:
        log_p = hmm_posterior_marginals(hmm, x_t).unsqueeze(1).expand(*candidates.shape, -1)
        log_p = log_p.gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
        log_p = torch.where(filled(candidates, x_t, mask_id), log_p, 0.0).sum(-1)
        return log_p - (hmm_log_prob(hmm, candidates) - hmm_log_prob(hmm, x_t).unsqueeze(-1))

    return energy
