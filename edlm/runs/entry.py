"""The way into every recipe: parse with torchtune, check every key, run, and turn a user's mistake into one line."""

import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from edlm import limits
from edlm.runs import environment, exits, locks, processes, settings
from edlm.runs.settings import Schema, check

_HEAD_START = 30.0  # seconds
_GENERAL: Schema = {
    "verify": settings.flag,
    "limits": settings.number(0, above=True),
    "components": settings.items(settings.text),
}
_SHOWN = 200  # characters of a value in a message


class Interrupted(Exception):
    """A run was asked to stop and has saved a checkpoint; carries the exit status of the signal."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def enter(main: Callable[[dict[str, Any]], None], schema: Schema, writes: bool = True) -> None:
    """Run a recipe on the config and overrides of the command line, and exit.

    writes: whether it writes what `output_dir` or `output` names, on which a lock is held then.

    A mistake of the user's (ValueError), and a file system that refuses (OSError), is printed in one line and exits
    with 2, any other error with 70, as a fault of ours; with EDLM_DEBUG set it is raised.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it reports at import that it has no kernels for this torch
    from torchtune import config

    def checked(values: DictConfig) -> None:
        plain = _resolved(values)
        _take_in_general(plain)
        settings.find_beside(_config_among(sys.argv[1:]))
        check(schema, plain)
        with processes.joined(plain.get("device", "cpu")), locks.outputs(plain if writes else {}):
            main(plain)

    try:
        _require_pairs(sys.argv[1:])
        _require_readable(sys.argv[1:])
        config.parse(checked)()
    except Interrupted as stop:  # in all processes after the same step: the first one speaks, then all of them end
        message, status = str(stop), stop.status
        processes.from_first(lambda: _say(message))
        sys.exit(status)
    except KeyboardInterrupt:
        if os.environ.get("EDLM_DEBUG"):
            raise
        if _speaks():  # each process had the signal, and none waits for another
            _say("stopped by Ctrl-C")
        sys.exit(exits.INTERRUPTED)
    except (OmegaConfBaseException, config._errors.InstantiationError) as error:
        if os.environ.get("EDLM_DEBUG"):
            raise
        _exit(str(error), exits.USAGE_ERROR)
    except Exception as error:
        if os.environ.get("EDLM_DEBUG"):
            raise
        _exit(*exits.explained(error))


def _take_in_general(values: dict[str, Any]) -> None:
    """Take out the keys that every recipe knows and no config has to hold: for this process, as they are named above.

    components: what a saved folder may name, to which a config's own network belongs.
    """
    for key, check_value in _GENERAL.items():
        if key in values:
            check_value(key, values[key])
    if values.pop("verify", True) is False:
        os.environ[environment.UNVERIFIED] = "1"
    if "limits" in values:
        os.environ[limits.FACTOR] = str(values.pop("limits"))
    networks = (section.get("network") for section in (values, values.get("pretrain")) if isinstance(section, dict))
    built = (network.get("_component_") for network in networks if isinstance(network, dict))
    named = [*values.pop("components", []), *filter(None, built)]
    if named:
        os.environ[environment.COMPONENTS] = ",".join(map(str, named))


def _require_pairs(words: Sequence[str]) -> None:
    """Raise ValueError for the first word beside `--config FILE` that is neither a flag, `~key` nor `key=value`."""
    before = ["", *words]
    for previous, word in zip(before, words, strict=False):
        key, equals, value = word.partition("=")
        if previous == "--config" or word.startswith(("-", "~")):
            continue
        if not (key and equals):
            raise ValueError(f"{word!r} must be key=value")
        if "=" in value:
            raise ValueError(
                f"{key} = {value!r} cannot be given here, for it holds a '=': write it into a config of your own "
                "(`edlm cp`)"
            )


def _require_readable(words: Sequence[str]) -> None:
    """Raise ValueError, naming it, for the config, or the first override, that torchtune could not read."""
    path = _config_among(words)
    if path is None:
        return  # which argparse says
    merged = _loaded(path)
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("~"):
            _require_key(OmegaConf.to_container(merged), key[1:])
        if word.startswith(("-", "~")) or not equals:
            continue
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([word]))
        except TypeError as error:
            wanted = "what the config has there: a list, or a section with keys of its own"
            raise ValueError(f"{key} = {value!r} must be {wanted}") from error
        except Exception as error:  # a YAML tag raises what it likes of a value
            wanted = f"YAML, with a space after each colon ({_reason(error)})"
            raise ValueError(f"{key} = {value[:_SHOWN]!r} must be {wanted}") from error


def _config_among(words: Sequence[str]) -> str | None:
    """The file after `--config`, or `--config=`."""
    for word, after in itertools.pairwise([*words, ""]):
        if word == "--config":
            return after or None
        if word.startswith("--config="):
            return word.partition("=")[2]
    return None


def _loaded(path: str) -> DictConfig:
    """The config at a path. Raises ValueError, naming it, unless it is YAML of keys that are texts."""
    try:
        found = OmegaConf.load(path)
    except OSError:
        raise
    except Exception as error:  # a YAML tag raises what it likes of a value
        raise ValueError(f"{path} must be YAML ({_reason(error)})") from error
    if not isinstance(found, DictConfig):
        raise ValueError(f"{path} must be keys with their values, not a list")
    for key in found:
        if not isinstance(key, str):
            raise ValueError(f"{path}: the key {key!r} must be a text")
    if "config" in found:
        raise ValueError(f"{path}: config: unknown key")
    return found


def _require_key(values: Any, dotted: str) -> None:
    """Raise ValueError unless there is such a key to be left out."""
    for key in dotted.split("."):
        if not (isinstance(values, dict) and key in values):
            raise ValueError(f"~{dotted}: the config has no such key to leave out")
        values = values[key]


def _resolved(values: DictConfig) -> dict[str, Any]:
    """The settings as plain values. Raises ValueError for what refers to something that is not there."""
    try:
        return OmegaConf.to_container(values, resolve=True)
    except Exception as error:  # a resolver raises what it likes
        raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    plain = isinstance(error, yaml.YAMLError | OmegaConfBaseException) and str(error)
    return plain or f"{type(error).__name__}: {error}"


def _exit(message: str, status: int) -> None:
    """Say why and exit. The first process speaks for all; another one only if that one has nothing to say."""
    if not _speaks():
        time.sleep(_HEAD_START)  # torchrun ends it meanwhile, where the first has stopped
    _say(message)
    sys.exit(status)


def _speaks() -> bool:
    """Whether this is the first process, or the only one; known before the processes have joined."""
    return os.environ.get("RANK", "0") == "0"


def _say(message: str) -> None:
    print(f"edlm: {' '.join(message.split())}", file=sys.stderr, flush=True)
