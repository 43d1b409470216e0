"""The keys that the recipes know, read without torch: a misspelt one is refused at once.

`keys.json` holds them; `python tests/config_keys.py` writes it from the checks that the recipes have.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from edlm.runs import hints, words

FILE = "keys.json"


def require_known(recipe: str, config: Path, given: Sequence[str], is_ours: bool) -> None:
    """Raise ValueError for a word that is no setting, and for a key that a recipe of ours does not know.

    What a component takes is known of the library's own. is_ours: the config comes with the recipe, and its keys are
    known.
    """
    known = _known()["recipes"][recipe]
    if is_ours:
        known = _tree(OmegaConf.to_container(words.load(str(config))), known)
    found = words.read(["--config", str(config), *given], lambda *word: _is_plain(known, *word))
    _require(known, OmegaConf.to_container(found), "")


@cache
def _known() -> dict[str, Any]:
    return json.loads(resources.files("edlm.cli").joinpath(FILE).read_text("utf-8"))


def _tree(values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Join the known keys with those of a config; one that is told to be no section stays none."""
    own = {key: value for key, value in values.items() if isinstance(value, Mapping) and known.get(key, {}) is not None}
    sections = {key: {} if "_component_" in value else _tree(value, known.get(key, {})) for key, value in own.items()}
    return {**dict.fromkeys(values), **known, **sections}


def _is_plain(known: Mapping[str, Any], key: str, value: str) -> bool:
    """Whether no key stands below one: its value is none of this module's business then."""
    name, _, rest = key.partition(".")
    below = known.get(name)
    return below is None or (bool(rest and below) and _is_plain(below, rest, value))


def _require(known: Mapping[str, Any], values: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for a key that is not known here; one that is no section has no keys below it."""
    for key, value in values.items():
        if key not in known:
            raise ValueError(hints.unknown(f"{where}{key}", known, values))
        if isinstance(value, Mapping) and known[key] is not None:
            if "_component_" in value:
                _require_parameters(f"{where}{key}", value)
            else:
                _require(known[key], value, f"{where}{key}.")


def _require_parameters(key: str, component: Mapping[str, Any]) -> None:
    taken = _known()["components"].get(str(component["_component_"]))  # what is no text is refused by the recipe
    for name in component:
        if taken is not None and name not in ("_component_", *taken):
            raise ValueError(hints.unknown(f"{key}.{name}", taken))
