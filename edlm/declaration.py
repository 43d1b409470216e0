"""Stages of a pipeline, each declared by what it reads and writes.

`stage("x_t, candidates, chosen, reveal -> x_s", function)` names the keys of `contracts`, whose shapes are known there.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential

from edlm import contracts

Stages = Mapping[str, TensorDictModuleBase]


def stage(keys: str, function: Callable[..., Any]) -> TensorDictModule:
    """Declare a stage: `"a, b -> c"` names what the function takes, in its order, and what it returns.

    A function that needs weights is a module, so that they are found. Raises ValueError for a key that `contracts` has
    no shape of.
    """
    read, written = ([key.strip() for key in side.split(",")] for side in keys.split("->"))
    unknown = [key for key in (*read, *written) if key not in contracts.SHAPES]
    if unknown:
        raise ValueError(f"stage {keys!r}: {', '.join(unknown)} must be among the keys of edlm.contracts.SHAPES")
    return TensorDictModule(function, in_keys=read, out_keys=written)


def sequence(stages: Stages) -> TensorDictSequential:
    """Build a pipeline of stages one after the other, which edit nothing they are given."""
    return TensorDictSequential(dict(stages), inplace=False)


def algorithm(stages: TensorDictSequential) -> str:
    """Print a pipeline as the algorithm it is: one line per stage, what it reads and what it writes."""
    named = stages.module.items()
    width = max((len(name) for name, _ in named), default=0)
    return "\n".join(f"{name:<{width}}  {', '.join(m.in_keys)} -> {', '.join(m.out_keys)}" for name, m in named)
