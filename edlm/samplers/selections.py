"""The candidate of a step that is kept, or that what many of them tend to is drawn: a family of values.

A selection knows how it chooses, the law of what it keeps of k draws where that is known, and which bound it has. A new
one is a value here or in a file of its own, and `register` gives it a name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edlm import contracts
from edlm.process import particles
from edlm.samplers import registries

_QUADRATURE_STEP, _TAIL = 0.25, 40.0  # in log s, and how far to go beyond the largest and the smallest weight

Law = Callable[[Tensor, Tensor, int], Tensor]  # log q, log w of d candidates (b, d) and k -> law of the kept one


@dataclass(frozen=True)
class Selection:
    """One way to keep a candidate.

    choose: log-weights (b, k) and uniforms (b, k) to an index (b,), see `contracts.Selection`; None draws the new
    tokens in order from the law to which candidates tend, and weighs none.
    law: the law of the candidate that is kept of k independent draws; None where it is not known.
    bound: "candidates" for that of SIR, "limit" for the law itself, None where there is none.
    """

    name: str
    choose: contracts.Selection | None
    law: Law | None = None
    bound: Literal["candidates", "limit"] | None = None

    @property
    def in_order(self) -> bool:
        """Whether new tokens are drawn in order, with no candidate weighed."""
        return self.choose is None


def sir_law(log_q: Tensor, log_w: Tensor, num_particles: int) -> Tensor:
    """Return the law of the candidate that SIR keeps of k independent draws, (b, d), by quadrature to about 1e-9.

    `k q w E[1 / (w + sum_{j=2..k} w_j)] = k q w int_0^inf e^(-s w) (E e^(-s w_j))^(k - 1) ds`; where every weight is
    zero the first is kept.
    """
    if num_particles == 1:
        return log_q.exp()
    possible = torch.where(log_q > -torch.inf, log_w, -torch.inf)
    log_w = possible - possible.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    w, kept = log_w.exp(), torch.zeros_like(log_w)
    smallest = float(log_w[w > 0.0].min()) if (w > 0.0).any() else 0.0
    for log_s in torch.arange(-_TAIL, _TAIL - smallest, _QUADRATURE_STEP, dtype=torch.float64):
        s = log_s.exp()
        decay = (-s * w).exp()
        others = (log_q.exp() * decay).sum(-1, keepdim=True) ** (num_particles - 1)
        kept = kept + s * decay * others
    nothing = (log_q.exp() * (w == 0.0)).sum(-1, keepdim=True) ** (num_particles - 1)
    return log_q.exp() * (num_particles * w * _QUADRATURE_STEP * kept + (w == 0.0) * nothing)


def imh_law(log_q: Tensor, log_w: Tensor, num_particles: int) -> Tensor:
    """Return the law of an independent Metropolis-Hastings chain from one draw that is offered k - 1 more, (b, d)."""
    q, law = log_q.exp(), log_q.exp()
    rise = log_w.unsqueeze(1) - log_w.unsqueeze(2)  # (b, from, to)
    accepted = torch.where(rise.isnan(), 0.0, rise.clamp(max=0.0).exp()) * q.unsqueeze(1)
    for _ in range(num_particles - 1):
        law = law * (1.0 - accepted.sum(2)) + (law.unsqueeze(1) @ accepted).squeeze(1)
    return law


def limit_law(log_q: Tensor, log_w: Tensor, num_particles: int) -> Tensor:
    """Return the law that SIR and IMH tend to with more and more candidates, (b, d): `q w` over its sum, k not read."""
    return (log_q + log_w).softmax(-1)


SELECTIONS: dict[str, Selection] = {}


def register(selection: Selection) -> Selection:
    """Give a selection its name in configs. Raises ValueError for a name that another one has."""
    return registries.put(SELECTIONS, "selection", selection.name, selection)


def of(value: "str | Selection") -> Selection:
    """Find the selection of a name, or return the one that is given. Raises ValueError for a name that there is not."""
    if isinstance(value, Selection):
        return value
    if value not in SELECTIONS:
        raise ValueError(f"selection = {value!r} must be one of {', '.join(SELECTIONS)}")
    return SELECTIONS[value]


SIR = register(Selection("sir", particles.sir, sir_law, "candidates"))
IMH = register(Selection("imh", particles.imh, imh_law))
GREEDY = register(Selection("greedy", particles.greedy))
SPECULATIVE = register(Selection("speculative", None, limit_law, "limit"))
