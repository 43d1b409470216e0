"""The words of a command line as settings: a config file, and `key=value`, `key=null` or `~key` for what differs.

A text is taken as it is written. Every other value is YAML, as it would stand in the file. Nothing here loads torch.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

IsText = Callable[[str, str], bool]
_SHOWN = 200  # characters of a value in a message
_NO_VALUE = ("", "null")
_EMPTY = ("", "~", "null", "Null", "NULL")  # YAML's own words for nothing
_QUOTED_OR_TAGGED = ("'", '"', "!", "&", "*", "[", "{", "|", ">")


class Override(NamedTuple):
    """A change of a config: the value of a key, as it is written; None leaves the key out."""

    key: str
    value: str | None


def read(words: Sequence[str], is_text: IsText) -> DictConfig:
    """Read the config after `--config`, with what the other words change.

    is_text: whether a key takes a value as it is written. Raises ValueError for a word that is no setting, a value that
    cannot be read, and a config that is missing or is none.
    """
    changes = list(overrides(words))
    path = config_among(words)
    if path is None:
        raise ValueError("--config FILE is missing: it names the config; `edlm ls` lists those that come with a recipe")
    merged = load(path)
    for key, value in changes:
        if value is None:
            merged = _without(merged, key)
        else:
            _change(merged, key, value, is_text)
    return merged


def overrides(words: Sequence[str]) -> Iterator[Override]:
    """Take apart every word beside `--config FILE`. Raises ValueError unless it is `key=value` or `~key`."""
    for place, word in enumerate(words):
        before, after = "" if place == 0 else words[place - 1], _value_after(words[place + 1 :])
        key, equals, value = word.partition("=")
        if before == "--config" or word == "--config" or word.startswith("--config="):
            continue
        if word in ("-h", "--help"):
            raise ValueError(f"{word}: `edlm run RECIPE --help` shows what a recipe does, and its keys")
        if word.startswith("~"):
            yield Override(word[1:], None)
        elif word.startswith("-"):
            raise ValueError(f"{word} is no option; a setting is given as {_as_pair(key.lstrip('-'), value, after)}")
        elif key.strip() and equals:
            yield Override(key, value)
        elif key.strip() and after is not None:
            raise ValueError(f"{word!r} must be key=value; a setting is given as {_as_pair(key, '', after)}")
        else:
            raise ValueError(f"{word!r} must be key=value")


def config_among(words: Sequence[str]) -> str | None:
    """Find the file after `--config`, or `--config=`."""
    for word, after in itertools.pairwise([*words, ""]):
        if word == "--config":
            return after or None
        if word.startswith("--config="):
            return word.partition("=")[2]
    return None


def load(path: str) -> DictConfig:
    """Load a config. Raises ValueError, naming the file, unless it is YAML of keys that are texts."""
    try:
        found = OmegaConf.load(path)
    except OSError:
        raise
    except Exception as error:  # a YAML tag raises what it likes of a value
        raise ValueError(f"{path} must be YAML ({reason(error)})") from error
    if not isinstance(found, DictConfig):
        raise ValueError(f"{path} must be keys with their values, not a list")
    for key in found:
        if not isinstance(key, str):
            raise ValueError(f"{path}: the key {key!r} must be a text")
    if "config" in found:
        raise ValueError(f"{path}: config: unknown key")
    return found


def resolved(values: DictConfig) -> dict[str, Any]:
    """Return the settings as plain values. Raises ValueError for what refers to something that is not there."""
    try:
        return OmegaConf.to_container(values, resolve=True)
    except Exception as error:  # a resolver raises what it likes
        raise ValueError(reason(error)) from error


def reason(error: Exception) -> str:
    """Say why a file or a value could not be read."""
    plain = isinstance(error, yaml.YAMLError | OmegaConfBaseException) and str(error)
    return plain or f"{type(error).__name__}: {error}"


def _value_after(words: Sequence[str]) -> str | None:
    """The value that somebody has set apart from its key by a space, or by spaces on both sides of the `=`."""
    first = next((word for word in words if word != "="), None)
    is_setting = first is None or first.startswith(("-", "~")) or "=" in first.strip("=")
    return None if is_setting else str(first).strip("=")


def _as_pair(key: str, value: str, after: str | None) -> str:
    """The setting that somebody meant who wrote a flag, or a space for the equals sign."""
    return f"{key}={value or after or 'true'}"


def _change(merged: DictConfig, key: str, value: str, is_text: IsText) -> None:
    """Change one value of a config, or add it. Raises ValueError, naming the key, for what it cannot hold."""
    try:
        own = OmegaConf.create({})
        if is_text(key, value):
            OmegaConf.update(own, key, None if value in _NO_VALUE else _literal(value))
        elif value == "None":  # Python's word, as torchtune takes it
            OmegaConf.update(own, key, None)
        else:
            path = f"{key}._component_" if _names_component(merged, key, value) else key
            own.merge_with_dotlist([f"{path}={value}"])
            if "${" not in value and _is_cut(value, OmegaConf.select(own, path)):
                OmegaConf.update(own, path, _literal(value))
        merged.merge_with(own)  # in place: `OmegaConf.merge` would copy the whole config for each word
    except TypeError as error:
        wanted = "what the config has there: a list, or a section with keys of its own"
        raise ValueError(f"{key} = {value!r} must be {wanted}") from error
    except Exception as error:  # a YAML tag raises what it likes of a value
        wanted = f"YAML, with a space after each colon ({reason(error)})"
        raise ValueError(f"{key} = {value[:_SHOWN]!r} must be {wanted}") from error


def _is_cut(value: str, found: Any) -> bool:
    """Whether YAML has taken a comment, or spaces, off a plain text."""
    if value.startswith(_QUOTED_OR_TAGGED):
        return False
    return isinstance(found, str) or (found is None and value.strip() not in _EMPTY)


def _names_component(merged: DictConfig, key: str, value: str) -> bool:
    """Whether a word stands for a whole section: `network=edlm.networks.Transformer` keeps the arguments beside it."""
    section = OmegaConf.select(merged, key)
    is_component = isinstance(section, DictConfig) and "_component_" in section
    return is_component and value not in _EMPTY and not value.lstrip().startswith("{")


def _literal(value: str) -> str:
    """A text that OmegaConf gives back as it is, whatever it would have read as a reference."""
    return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", value)


def _without(merged: DictConfig, key: str) -> DictConfig:
    """The config without a key. Raises ValueError unless there is such a key to be left out."""
    plain = OmegaConf.to_container(merged)
    names = key.split(".")
    home: Any = plain
    for name in names[:-1]:
        home = home.get(name) if isinstance(home, Mapping) else None
    if not (isinstance(home, dict) and names[-1] in home):
        raise ValueError(f"~{key}: the config has no such key to leave out")
    del home[names[-1]]
    return OmegaConf.create(plain)
