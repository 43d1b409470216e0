"""Sources whose every law is known: hidden Markov models, and Markov chains among them, of any length.

Beside them a sampler is compared with the law of the data itself, and a learned energy with the exact one. A source of
m symbols has the ids 0..m-1, and the mask is m, so `v = m + 1`. A mask is summed out wherever it stands, by the
forward-backward algorithm (Rabiner 1989), so all of it is exact at every length; everything is float64 and on the CPU.

Convention: given visible tokens of probability zero, every completion is equally likely.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from edlm import contracts, limits
from edlm.declaration import stage
from edlm.models import energies
from edlm.process import categorical, noise, schedules
from edlm.process.noise import Stream

_SUM_TOLERANCE = 1e-9

_WEIGHED = "candidates, x_t, log_p_candidates -> energy"


class Source(NamedTuple):
    """A hidden Markov model: initial (h,), transition (h, h), emission (h, m), float64; rows sum to one."""

    initial: Tensor
    transition: Tensor
    emission: Tensor

    @property
    def num_symbols(self) -> int:
        """The m symbols; the mask's id is m."""
        return self.emission.shape[1]


def hidden_markov(transition: Tensor, emission: Tensor, initial: Tensor | None = None) -> Source:
    """Build a hidden Markov model; without an initial law (h,) it starts in its stationary one, the same everywhere.

    transition: (h, h), emission: (h, m). Raises ValueError for a table that does not hold laws, or for shapes that do
    not fit.
    """
    tables = {"transition": transition, "emission": emission, **({} if initial is None else {"initial": initial})}
    states = transition.shape[-1]
    shapes = {"transition": (states, states), "emission": (states, emission.shape[-1]), "initial": (states,)}
    for name, table in tables.items():
        if table.shape != shapes[name]:
            raise ValueError(f"{name} has the shape {tuple(table.shape)}, and {shapes[name]} is right")
        if not ((table >= 0.0).all() and ((table.double().sum(-1) - 1.0).abs() < _SUM_TOLERANCE).all()):
            raise ValueError(f"{name} must hold laws: numbers that are not negative, with rows that sum to 1")
    transition, emission = transition.double(), emission.double()
    return Source(_stationary(transition) if initial is None else initial.double(), transition, emission)


def markov(transition: Tensor, initial: Tensor | None = None) -> Source:
    """Build a Markov chain: the hidden Markov model that shows its state; the rest as of `hidden_markov`."""
    return hidden_markov(transition, torch.eye(len(transition), dtype=torch.float64), initial)


def random_hidden_markov(seed: int, hidden: int, symbols: int, strength: float = 2.0) -> Source:
    """Build a random stationary hidden Markov model: log-probabilities are `strength` times independent normal numbers.

    Every text has positive probability; a larger strength makes it less noisy. Raises ValueError unless hidden >= 1 and
    symbols >= 2.
    """
    _require_sizes(hidden, symbols)
    return hidden_markov(*(_random_laws(seed, part, hidden, n, strength) for part, n in enumerate((hidden, symbols))))


def random_markov(seed: int, symbols: int, strength: float = 2.0) -> Source:
    """Build a random Markov chain, stationary and positive; transitions and errors are as of `random_hidden_markov`."""
    _require_sizes(symbols, symbols)
    return markov(_random_laws(seed, 0, symbols, symbols, strength))


def sample(source: Source, uniforms: Tensor) -> Tensor:
    """Draw texts from the source, each token from its law given those before it: uniforms (b, l) to int64 (b, l)."""
    seen, law, tokens = _evidence(source), source.initial.expand(len(uniforms), -1), []
    for uniform in uniforms.split(1, dim=1):
        tokens.append(categorical.inverse_cdf((law @ source.emission).log(), uniform).tokens)
        law = _observed(law, seen[tokens[-1].squeeze(1)])[0] @ source.transition
    return torch.cat(tokens, dim=1)


def texts(source: Source, num_texts: int, length: int, seed: int, first_row: int = 0) -> Tensor:
    """Draw texts number `first_row` on of a seed, int64 (n, l): text i is a function of the seed and i alone."""
    row = torch.arange(first_row, first_row + num_texts)
    return sample(source, noise.grid(torch.tensor(seed), row, 0, Stream.AUTOREGRESSIVE, length))


def log_prob(source: Source, x: Tensor) -> Tensor:
    """Compute `log q(visible tokens)`, masks summed out: (..., l) to nats (...); `-inf` where it is zero."""
    return log_next(source, x).sum(-1)


def log_next(source: Source, x: Tensor) -> Tensor:
    """Compute `log q(x_i | x_<i)`, zero at a mask: (..., l) to nats (..., l); `-inf` where it is zero and after."""
    seen, law, found = _evidence(source), source.initial.expand(*x.shape[:-1], -1), []
    for tokens in x.unbind(-1):
        law, mass = _observed(law, seen[tokens])
        found.append(mass.log())
        law = law @ source.transition
    return torch.stack(found, -1)


def log_conditional(source: Source, candidates: Tensor, x_t: Tensor) -> Tensor:
    """Compute `log q(x^C | x_t)` of what candidates (b, k, l) fill in, (b, k): of drafts, or of what a step reveals.

    Masks that a candidate leaves are summed out. Candidates must keep the visible tokens of x_t (b, l).
    """
    filled = (candidates != x_t.unsqueeze(1)).sum(-1)
    given = log_prob(source, x_t).unsqueeze(1)
    found = log_prob(source, candidates) - given
    return torch.where(given > -torch.inf, found, -math.log(source.num_symbols) * filled.double())


def state_law(source: Source, x_t: Tensor) -> Tensor:
    """Compute `q(h_i | visible tokens other than i)`, the law of every hidden state: (..., l) to (..., l, h)."""
    seen, law = _evidence(source), source.initial.expand(*x_t.shape[:-1], -1)
    message, before, after = torch.ones_like(law), [], []
    for tokens in x_t.unbind(-1):
        before.append(law)
        law = _observed(law, seen[tokens])[0] @ source.transition
    for tokens in x_t.flip(-1).unbind(-1):
        after.append(message)
        message = _normalised(message * seen[tokens])[0] @ source.transition.T
    return _normalised(torch.stack(before, -2) * torch.stack(after[::-1], -2))[0]


def pair_law(source: Source, length: int, distance: int = 1) -> Tensor:
    """Return the law of two tokens so far apart, averaged over positions: (m, m). Needs 1 <= distance < length."""
    law, mean = source.initial, torch.zeros_like(source.initial)
    for _ in range(length - distance):
        mean = mean + law / (length - distance)
        law = law @ source.transition
    later = torch.linalg.matrix_power(source.transition, distance)
    return source.emission.T @ (mean.unsqueeze(-1) * later) @ source.emission


class SourceDenoiser(TensorDictModule):
    """The exact denoiser of a source; see `denoiser`."""

    def __init__(self, source: Source, max_length: int) -> None:
        super().__init__(_StateLawAt(source), in_keys=[contracts.X_T, contracts.POSITIONS], out_keys=[contracts.HIDDEN])
        self.source = source
        self.mask_id = source.num_symbols
        self.vocab_size = source.num_symbols + 1
        self.max_length = max_length
        self.schedule = schedules.log_linear()

    def logits(self, hidden: Tensor) -> Tensor:
        """Map laws of the hidden state (n, h) to log-probabilities of the token (n, v), `-inf` at the mask."""
        law = hidden @ self.source.emission
        return F.pad(torch.where(law.sum(-1, keepdim=True) > 0.0, law, 1.0).log(), (0, 1), value=-torch.inf)


def denoiser(source: Source, max_length: int) -> SourceDenoiser:
    """Build the factorised law `prod_i q(x_i | x_t)` with exact factors: all that a perfect denoiser can know.

    What the network of a learned one would give as hidden states are here the laws of the source's hidden state.
    """
    return SourceDenoiser(source, max_length)


def energy(source: Source) -> TensorDictModule:
    """Build the exact energy `E = -log [ q(x^C | x_t) / prod_{i in C} p_theta(x_i | x_t) ]` against any denoiser.

    C is what a candidate fills in: the same formula serves drafts and transitions, and Z = 1 for both. p_theta comes
    from `log_p_candidates`. Float64 (b, k); +inf where q is zero.
    """
    return energies.declare(stage(_WEIGHED, _Residual(source)), ("draft", "transition"))


def carry_over_energy(source: Source) -> TensorDictModule:
    """Build the energy of an exact autoregressive model in its carry-over form, of drafts (EDLM, Xu et al. 2025).

    `E = -sum_{i masked} [ log q(x_i | x_<i) - log p_theta(x_i | x_t) ]`; Z = 1 where q gives every text a chance. It is
    no posterior, for all that the model is exact: given tokens on the right of a mask do not count. Float64 (b, k);
    +inf where a factor of q is zero.
    """
    return energies.declare(stage(_WEIGHED, _CarryOver(source)), ("draft",))


class _StateLawAt(nn.Module):
    """x_t (b, l) and flat positions (n,) to laws of the hidden state (n, h); padding may read any position."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def forward(self, x_t: Tensor, positions: Tensor) -> Tensor:
        return state_law(self.source, x_t).flatten(0, 1)[positions.clamp(max=x_t.numel() - 1)]


class _Residual(nn.Module):
    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def forward(self, candidates: Tensor, x_t: Tensor, log_p_candidates: Tensor) -> Tensor:
        log_q = log_conditional(self.source, candidates, x_t)
        return torch.where(log_q == -torch.inf, torch.inf, log_p_candidates.double().sum(-1) - log_q)


class _CarryOver(nn.Module):
    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def forward(self, candidates: Tensor, x_t: Tensor, log_p_candidates: Tensor) -> Tensor:
        filled = candidates != x_t.unsqueeze(1)
        log_q = torch.where(filled, log_next(self.source, candidates), 0.0).sum(-1)
        return torch.where(log_q == -torch.inf, torch.inf, log_p_candidates.double().sum(-1) - log_q)


def _evidence(source: Source) -> Tensor:
    """`q(token | hidden state)` by token, 1 for the mask: (v, h)."""
    return F.pad(source.emission.T, (0, 0, 0, 1), value=1.0)


def _observed(law: Tensor, likelihood: Tensor) -> tuple[Tensor, Tensor]:
    """A law of the hidden state (..., h) given one more token, and the probability (...) of that token."""
    return _normalised(law * likelihood)


def _normalised(mass: Tensor) -> tuple[Tensor, Tensor]:
    """Mass (..., h) as a law, left at zero where there is none, and its sum (...)."""
    total = mass.sum(-1, keepdim=True)
    return torch.where(total > 0.0, mass / total, 0.0), total.squeeze(-1)


def _stationary(transition: Tensor) -> Tensor:
    """The law that a transition (h, h) leaves as it is: least squares of `p (P - 1) = 0, sum p = 1`."""
    states = len(transition)
    system = torch.cat([transition.T - torch.eye(states, dtype=torch.float64), torch.ones(1, states).double()])
    wanted = F.pad(torch.zeros(states, 1, dtype=torch.float64), (0, 0, 0, 1), value=1.0)
    found = torch.linalg.lstsq(system, wanted).solution.squeeze(-1).clamp(min=0.0)
    return found / found.sum()


def _require_sizes(hidden: int, symbols: int) -> None:
    for name, size, least in (("symbols", symbols, 2), ("hidden", hidden, 1)):
        if size < least:
            raise ValueError(f"{name} = {size} must be at least {least}")
        limits.require("source", name, size, limits.SOURCE_SIZE)


def _random_laws(seed: int, part: int, rows: int, columns: int, strength: float) -> Tensor:
    """Laws (rows, columns) whose logits are normal numbers of this scale, keyed by the seed and the part."""
    uniforms = noise.grid(torch.tensor(seed), torch.arange(rows), part, Stream.EVALUATION, columns)
    return (strength * torch.special.ndtri(uniforms)).softmax(-1)
