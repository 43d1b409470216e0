"""Energies of a transition: weigh only what a step reveals, not whole drafts.

A candidate is `x_s = (x_t with the revealed set S filled in)`, masks elsewhere. With `Z(x_t, S)` that makes it a law,

    p(x^S | x_t) = prod_{i in S} p_theta(x_i | x_t) exp(-E(x_s, x_t)) / Z,
    E = -log [ q(x^S | x_t) / prod_{i in S} p_theta(x_i | x_t) ]  at its best, and then Z = 1.

The weight holds the tokens that are kept and no others, so it varies less than that of a draft. An energy of drafts is
no energy of transitions: what is masked in x_s is unknown, not improbable.
"""

from edlm import particles, samplers
from edlm.contracts import Denoiser, Energy, Selection
from edlm.samplers import Kernel
from edlm.schedules import Schedule


def importance(
    schedule: Schedule,
    denoiser: Denoiser,
    energy: Energy,
    num_particles: int,
    temperature: float = 1.0,
    selection: Selection = particles.sir,
    proposal_temperature: float = 1.0,
    nucleus: float = 1.0,
) -> Kernel:
    """Draw k candidates for the tokens a step reveals, weigh them by `exp(-E(x_s, x_t) / temperature)`, keep one.

    Stages and arguments are those of `samplers.importance`; tokens are drawn at the revealed positions alone, so the
    vocabulary head costs what it costs in plain sampling. With one particle, or outside the window, it gives the tokens
    of `samplers.ancestral` one for one. As k grows the law of a step tends to `p(x^S | x_t)`.
    Raises ValueError as `samplers.importance` does.
    """
    drafts = samplers.importance(
        schedule, denoiser, energy, num_particles, temperature, selection, proposal_temperature, nucleus
    )
    return drafts._replace(proposes="revealed")
