"""The key that was meant by one that nobody knows. Nothing here loads torch."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any


def unknown(key: str, known: Collection[str], values: Mapping[str, Any] | None = None) -> str:
    """Say that a key is unknown, and which was meant: one of its section's, or of its name in another section.

    key: with its section. values: those beside it, in whose sections its name is looked for.
    """
    section, dot, name = key.rpartition(".")
    elsewhere = [] if values is None else list(_places(name, values, section + dot))
    near = [" or ".join(map(repr, elsewhere))] if elsewhere else list(map(repr, difflib.get_close_matches(name, known)))
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known) or 'none'}"
    return f"{key}: unknown key; {hint}"


def _places(name: str, values: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Every key below others that ends in a name."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from (f"{where}{key}.{own}" for own in value if own == name)
            yield from _places(name, value, f"{where}{key}.")
