"""The rule by which tokens that a sampler wrote are masked again: a family of values (ReMDM, arXiv 2503.00307).

A step goes from t to s, and `alpha_t <= alpha_s` are the shares of visible tokens. A token that the sampler wrote is
masked with probability sigma, and a mask is revealed with probability

    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t),

so that the share is alpha_s afterwards, for any sigma in [0, sigma_max]; `sigma_max = min(1, (1 - alpha_s) / alpha_t)`.
sigma = 0 is ancestral sampling. A rule gives sigma. A new rule is a class that is passed to `register`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor

from edlm import contracts
from edlm.declaration import stage
from edlm.process import absorbing, arguments
from edlm.process.schedules import Schedule
from edlm.samplers import plans, registries
from edlm.samplers.kernel import Moves
from edlm.samplers.planning import Expected, Plan


class Remasking(Protocol):
    """The chance that a token is masked again. `str` is what it is called in tables.

    by_token: whether the chance of a token depends on what was written; then it is not the same at every position.
    Laws: sigma lies in [0, sigma_max]; it is zero where nothing was written; rows do not see each other.
    """

    name: ClassVar[str]
    by_token: ClassVar[bool] = False

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, p_written: Tensor) -> Tensor:
        """Compute the chances of a step, () or (b, l).

        p_written: the probability that each token had when it was written, inf where none was, float64 (b, l).
        """
        ...

    def times(self, grid: Tensor, schedule: Schedule) -> Tensor:
        """Map the times of a plan's steps to those of the masking process, (T + 1,) both: they never rise."""
        return grid


@dataclass(frozen=True)
class Cap(Remasking):
    """The same probability in every step, but never above the highest: `sigma = min(eta, sigma_max)`.

    Args:
        eta: the probability; the default is the paper's for OpenWebText.

    Raises:
        ValueError: unless 0 <= eta <= 1.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> print(edlm.samplers.Sampler(denoiser, edlm.plans.Grid(16), remasking=edlm.samplers.remasking.Cap(0.1)))
        plain, T=16, cap 0.1
    """

    eta: float = 0.008
    name: ClassVar[str] = "cap"

    def __post_init__(self) -> None:
        _require_share("eta", self.eta)

    def __str__(self) -> str:
        return f"{self.name} {self.eta:g}"

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, p_written: Tensor) -> Tensor:
        """See `Remasking`."""
        return most(alpha_t, alpha_s).clamp(max=self.eta)


@dataclass(frozen=True)
class Rescale(Remasking):
    """The same share of the highest probability in every step: `sigma = eta sigma_max`.

    Args:
        eta: the share; the default is the paper's for OpenWebText.

    Raises:
        ValueError: unless 0 <= eta <= 1.

    Example:
        >>> import edlm
        >>> print(edlm.samplers.remasking.Rescale(0.1))
        rescale 0.1
    """

    eta: float = 0.015
    name: ClassVar[str] = "rescale"

    def __post_init__(self) -> None:
        _require_share("eta", self.eta)

    def __str__(self) -> str:
        return f"{self.name} {self.eta:g}"

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, p_written: Tensor) -> Tensor:
        """See `Remasking`."""
        return self.eta * most(alpha_t, alpha_s)


@dataclass(frozen=True)
class Confidence(Remasking):
    """About one token of a text in a step, at most: `sigma_i = sigma_max softmax_i(-psi)`.

    psi is the probability that the token had under the denoiser when it was written. A mask has none and its sigma is
    zero, as published, so the share of visible tokens stays a little below that of the schedule.

    Example:
        >>> import edlm
        >>> print(edlm.samplers.remasking.Confidence())
        confidence
    """

    name: ClassVar[str] = "confidence"
    by_token: ClassVar[bool] = True

    def __str__(self) -> str:
        return self.name

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, p_written: Tensor) -> Tensor:
        """See `Remasking`."""
        share = (-p_written).softmax(-1)
        return most(alpha_t, alpha_s) * torch.where(p_written.isfinite(), share, 0.0)


@dataclass(frozen=True)
class Loop(Remasking):
    """First plain steps to a share of visible tokens, then rewriting at this share, then plain steps to the end.

    The steps that start before `t_on` lead to `alpha_on`; between `t_on` and `t_off` the process stands still and
    `sigma = min(eta, sigma_max)`; after that it goes on to the end.

    Args:
        t_on: the time at which rewriting begins.
        t_off: the time at which rewriting ends.
        alpha_on: the share of visible tokens while the sampler rewrites.
        eta: the probability that a step masks a token.

    Raises:
        ValueError: unless 0 < t_off < t_on < 1, 0 < alpha_on < 1 and 0 <= eta <= 1.

    Example:
        >>> import edlm
        >>> print(edlm.samplers.remasking.Loop())
        loop 0.02 at 0.9, t in [0.05, 0.55]
    """

    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9
    eta: float = 0.02
    name: ClassVar[str] = "loop"

    def __post_init__(self) -> None:
        _require_share("eta", self.eta)
        arguments.require_numbers(t_on=self.t_on, t_off=self.t_off, alpha_on=self.alpha_on)
        if not 0.0 < self.t_off < self.t_on < 1.0:
            raise ValueError(f"t_off = {self.t_off} and t_on = {self.t_on} must satisfy 0 < t_off < t_on < 1")
        if not 0.0 < self.alpha_on < 1.0:
            raise ValueError(f"alpha_on = {self.alpha_on} must lie in (0, 1)")

    def __str__(self) -> str:
        return f"{self.name} {self.eta:g} at {self.alpha_on:g}, t in [{self.t_off:g}, {self.t_on:g}]"

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, p_written: Tensor) -> Tensor:
        """See `Remasking`; while the process stands still, both shares are the same number."""
        return torch.where(alpha_s > alpha_t, 0.0, most(alpha_t, alpha_s).clamp(max=self.eta))

    def times(self, grid: Tensor, schedule: Schedule) -> Tensor:
        """Map times linearly to that of `alpha_on`, and on from it to the end, with a stop between."""
        at_one = schedule.alpha(torch.ones((), dtype=torch.float64))
        still = schedule.inverse(at_one + (1.0 - at_one) * self.alpha_on).clamp(0.0, 1.0)
        before = 1.0 - (1.0 - still) * (1.0 - grid) / (1.0 - self.t_on)
        return torch.where(grid > self.t_on, before, torch.where(grid < self.t_off, still * grid / self.t_off, still))


@dataclass(frozen=True)
class ForwardBackward(Remasking):
    """Two steps back and one forth: `sigma = min((alpha_s - alpha_t) / alpha_t, sigma_max)`.

    Example:
        >>> import edlm
        >>> print(edlm.samplers.remasking.ForwardBackward())
        forward_backward
    """

    name: ClassVar[str] = "forward_backward"

    def __str__(self) -> str:
        return self.name

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, p_written: Tensor) -> Tensor:
        """See `Remasking`."""
        highest = most(alpha_t, alpha_s)
        return torch.where(alpha_t > 0.0, torch.minimum((alpha_s - alpha_t) / alpha_t, highest), highest)


RULES: dict[str, Callable[..., Remasking]] = {}


def register(rule: Any) -> None:
    """Give a class of rules its own `name` in configs; the same class again takes its place.

    Args:
        rule: the class.

    Raises:
        ValueError: for a name that another one has.

    Example:
        >>> import edlm
        >>> edlm.samplers.remasking.register(edlm.samplers.remasking.Cap)
        >>> sorted(edlm.samplers.remasking.RULES)
        ['cap', 'confidence', 'forward_backward', 'loop', 'rescale']
    """
    registries.put(RULES, "remasking", rule.name, rule)


for _rule in (Cap, Rescale, Confidence, Loop, ForwardBackward):
    register(_rule)


def most(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """Compute `sigma_max = min(1, (1 - alpha_s) / alpha_t)`, 1 where nothing is visible yet."""
    return torch.where(alpha_t > 0.0, (1.0 - alpha_s) / alpha_t, 1.0).clamp(max=1.0)


def revealing(alpha_t: Tensor, alpha_s: Tensor, sigma: Tensor) -> Tensor:
    """Compute the chance that a mask is revealed, 1 where none should be left."""
    return torch.where(alpha_t < 1.0, (alpha_s - (1.0 - sigma) * alpha_t) / (1.0 - alpha_t), 1.0)


def missing(plan: Plan) -> str:
    """Say why a plan has no steps that could be taken with remasking; an empty text if it has."""
    if getattr(plan, "times", None) is not None:
        return ""
    return f"it needs steps between given times, as plans.Grid has, and {str(plan)!r} has none"


def path(rule: Remasking, plan: Plan, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return the times of the masking process at the ends of all steps, and the shares of visible tokens: (T + 1,)."""
    times = rule.times(plan.times, schedule)  # type: ignore[union-attr]
    return times, plans.revealed_before(schedule, times)


def expected(rule: Remasking, plan: Plan, schedule: Schedule, length: int) -> Expected:
    """Work out the passes that reveal something: exact, but about for a rule by token.

    `revealed` is how often a position is written.
    """
    _, alphas = path(rule, plan, schedule)
    shares, masked = [], 1.0
    for alpha_t, alpha_s in pairwise(alphas):
        again = rule.sigma(alpha_t, alpha_s, _as_if_written(length, masked))
        at_masks = again[..., -1] if rule.by_token else again
        shares.append(masked * float(revealing(alpha_t, alpha_s, at_masks)))
        masked += float(again.sum() / length if rule.by_token else (1.0 - masked) * again) - shares[-1]
    written = torch.tensor(shares, dtype=torch.float64)
    busy = float((1.0 - (1.0 - written).clamp(min=0.0) ** length).sum())
    return Expected(busy, busy, float(written.sum()), 1.0)


def moves(rule: Remasking, mask_id: int) -> Moves:
    """Build the stages around a step: what it reveals and masks again, decided before it, and the masks after it."""
    decide = stage("x_t, p_written, alpha_t, alpha_s, move_noise -> reveal, remask", partial(_decide, rule, mask_id))
    return Moves(decide, stage("x_s, p_written, remask -> x_s, p_written", partial(_mask_again, mask_id)))


def remember() -> TensorDictModule:
    """Build the stage that keeps the probability with which a step drew each token."""
    return stage("log_p_candidates, reveal, p_written -> p_written", _remember)


def init(tokens: Tensor) -> TensorDict:
    """Return the first state: what is given is no token that the sampler wrote, and is never masked."""
    nothing = torch.full(tokens.shape, torch.inf, dtype=torch.float64, device=tokens.device)
    return TensorDict({contracts.X_T: tokens, contracts.P_WRITTEN: nothing})


def _decide(
    rule: Remasking, mask_id: int, x_t: Tensor, p_written: Tensor, alpha_t: Tensor, alpha_s: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """The positions that are revealed, and those that are masked again, bool (b, l) each."""
    sigma = rule.sigma(alpha_t, alpha_s, p_written)
    reveal = (x_t == mask_id) & (uniforms < revealing(alpha_t, alpha_s, sigma))
    return reveal, p_written.isfinite() & (uniforms < sigma)


def _remember(log_p: Tensor, reveal: Tensor, p_written: Tensor) -> Tensor:
    return torch.where(reveal, log_p[:, 0].double().exp(), p_written)


def _mask_again(mask_id: int, x_s: Tensor, p_written: Tensor, remask: Tensor) -> tuple[Tensor, Tensor]:
    return absorbing.reveal(x_s, torch.full_like(x_s, mask_id), remask), p_written.masked_fill(remask, torch.inf)


def _as_if_written(length: int, masked: float) -> Tensor:
    """Confidences (1, l) of a text with this share of masks, at its end, rounded; at least one mask."""
    written = min(round((1.0 - masked) * length), length - 1)
    return torch.where(torch.arange(length) < written, 0.5, torch.inf).double().unsqueeze(0)


def _require_share(name: str, value: float) -> None:
    arguments.require_numbers(**{name: value})
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} = {value} must lie in [0, 1]")
