"""Energy-based diffusion language models: masked diffusion corrected by an energy over the whole sequence.

`edlm.sample(pipeline)` draws texts; the modules are the parts that pipelines are made of, in their import order.
"""

from edlm import (
    absorbing,
    categorical,
    contracts,
    denoisers,
    energies,
    execution,
    likelihoods,
    networks,
    noise,
    objectives,
    particles,
    pipelines,
    samplers,
    schedules,
)
from edlm.execution import accelerate
from edlm.pipelines import Pipeline, sample

__all__ = [
    "Pipeline",
    "absorbing",
    "accelerate",
    "categorical",
    "contracts",
    "denoisers",
    "energies",
    "execution",
    "likelihoods",
    "networks",
    "noise",
    "objectives",
    "particles",
    "pipelines",
    "sample",
    "samplers",
    "schedules",
]
