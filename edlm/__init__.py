"""Energy-based diffusion language models: masked diffusion corrected by an energy over the whole sequence.

`edlm.sample(pipeline)` draws texts; the domain names are the parts that pipelines are made of.
Names are imported when they are first used, so that the command line answers without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edlm import samplers, testing
    from edlm.data import corpora, datasets, vocabulary
    from edlm.likelihood import bounds, enumeration, exact
    from edlm.models import denoisers, energies
    from edlm.nn import networks
    from edlm.process import schedules
    from edlm.samplers import pipelines, plans
    from edlm.samplers.execution import accelerate
    from edlm.samplers.pipelines import Pipeline, extend, sample
    from edlm.weights import checkpoints, large
    from edlm.weights.hub import from_pretrained

__version__ = "0.1.0"

_MODULES = {
    "bounds": "edlm.likelihood.bounds",
    "checkpoints": "edlm.weights.checkpoints",
    "corpora": "edlm.data.corpora",
    "datasets": "edlm.data.datasets",
    "denoisers": "edlm.models.denoisers",
    "energies": "edlm.models.energies",
    "enumeration": "edlm.likelihood.enumeration",
    "exact": "edlm.likelihood.exact",
    "large": "edlm.weights.large",
    "networks": "edlm.nn.networks",
    "pipelines": "edlm.samplers.pipelines",
    "plans": "edlm.samplers.plans",
    "samplers": "edlm.samplers",
    "schedules": "edlm.process.schedules",
    "testing": "edlm.testing",
    "vocabulary": "edlm.data.vocabulary",
}
_FUNCTIONS = {
    "Pipeline": "edlm.samplers.pipelines",
    "accelerate": "edlm.samplers.execution",
    "extend": "edlm.samplers.pipelines",
    "from_pretrained": "edlm.weights.hub",
    "sample": "edlm.samplers.pipelines",
}

__all__ = [
    "Pipeline",
    "accelerate",
    "bounds",
    "checkpoints",
    "corpora",
    "datasets",
    "denoisers",
    "energies",
    "enumeration",
    "exact",
    "extend",
    "from_pretrained",
    "large",
    "networks",
    "pipelines",
    "plans",
    "sample",
    "samplers",
    "schedules",
    "testing",
    "vocabulary",
]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    if name in _MODULES:
        return import_module(_MODULES[name])
    raise AttributeError(f"module 'edlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
