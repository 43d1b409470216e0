"""Energy-based diffusion language models: masked diffusion corrected by an energy over the whole sequence.

`edlm.sample(pipeline)` draws texts; the modules are the parts that pipelines are made of, by name.
Names are imported when they are first used, so that the command line answers without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edlm import (
        absorbing,
        adaptive,
        attention,
        autoregressive,
        baselines,
        bounds,
        calibration,
        catalogue,
        categorical,
        chain_rule,
        checkpoints,
        contracts,
        corpora,
        cross_entropy,
        datasets,
        decoders,
        denoisers,
        detokenizers,
        doctor,
        documents,
        energies,
        enumeration,
        exchange,
        execution,
        finite,
        folding,
        foreign,
        inert,
        joint,
        judges,
        large,
        layers,
        layouts,
        likelihoods,
        memory,
        networks,
        noise,
        objectives,
        particles,
        pipelines,
        published,
        quality,
        rope,
        samplers,
        schedules,
        sources,
        speculative,
        testing,
        token_cache,
        training,
        transition,
        vocabulary,
    )
    from edlm.execution import accelerate
    from edlm.pipelines import Pipeline, extend, sample

__version__ = "0.1.0"

_FACE = {"accelerate": "execution", "Pipeline": "pipelines", "extend": "pipelines", "sample": "pipelines"}

__all__ = [
    "Pipeline",
    "absorbing",
    "accelerate",
    "adaptive",
    "attention",
    "autoregressive",
    "baselines",
    "bounds",
    "calibration",
    "catalogue",
    "categorical",
    "chain_rule",
    "checkpoints",
    "contracts",
    "corpora",
    "cross_entropy",
    "datasets",
    "decoders",
    "denoisers",
    "detokenizers",
    "doctor",
    "documents",
    "energies",
    "enumeration",
    "exchange",
    "execution",
    "extend",
    "finite",
    "folding",
    "foreign",
    "inert",
    "joint",
    "judges",
    "large",
    "layers",
    "layouts",
    "likelihoods",
    "memory",
    "networks",
    "noise",
    "objectives",
    "particles",
    "pipelines",
    "published",
    "quality",
    "rope",
    "sample",
    "samplers",
    "schedules",
    "sources",
    "speculative",
    "testing",
    "token_cache",
    "training",
    "transition",
    "vocabulary",
]


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return getattr(import_module(f"edlm.{_FACE[name]}"), name)
    if name in __all__:
        return import_module(f"edlm.{name}")
    raise AttributeError(f"module 'edlm' has no attribute {name!r}")
