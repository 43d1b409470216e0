"""Writes the keys that the recipes know, for the command line, which reads them without torch.

PYTHONPATH=tests python tests/config_keys.py
"""

import inspect
import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from edlm.cli import commands, keys
from edlm.runs import entry, settings

FILE = Path(keys.__file__).with_name(keys.FILE)
FACTORIES = (
    "corpora",
    "datasets",
    "energies",
    "networks",
    "schedules",
    "vocabulary",
)  # of the face, whose parts a config names


def recipes() -> dict[str, Any]:
    """The keys of every recipe, and those that all of them know."""
    found = {name: import_module(f"edlm.recipes.{name}").SETTINGS for name in commands.recipes()}
    return {name: settings.tree({**schema, **entry._GENERAL}) for name, schema in found.items()}


def components() -> dict[str, list[str]]:
    """What every factory of the library takes that a config may name; none that takes whatever it is given."""
    found = {path: list(settings._signature("", path, settings._locate("", path))[0].values()) for path in paths()}
    open_ = {path for path, taken in found.items() if any(each.kind is each.VAR_KEYWORD for each in taken)}
    return {path: [each.name for each in taken] for path, taken in sorted(found.items()) if path not in open_}


def paths() -> set[str]:
    """The factories of the face, and those that the configs name."""
    of_face = set()
    for name in FACTORIES:
        module = import_module(import_module("edlm")._MODULES[name])
        own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        public = {
            key for key, value in own.items() if key[0] != "_" and (inspect.isroutine(value) or inspect.isclass(value))
        }
        of_face |= {f"edlm.{name}.{key}" for key in public}
    files = [path for name in commands.recipes() for path in commands.configs(name).values()]
    named = {path for file in files for path in _named(OmegaConf.to_container(OmegaConf.load(file)))}
    return of_face | {path for path in named if path.startswith("edlm.")}


def written() -> str:
    return json.dumps({"recipes": recipes(), "components": components()}, indent=1) + "\n"


def _named(values: Any) -> Iterator[str]:
    """Every path of a component among values."""
    if isinstance(values, Mapping):
        yield from (str(value) for key, value in values.items() if key == "_component_")
        for value in values.values():
            yield from _named(value)
    elif isinstance(values, list):
        for value in values:
            yield from _named(value)


if __name__ == "__main__":
    FILE.write_text(written(), "utf-8")
