"""The way into every recipe: parse with torchtune, check every key, run, and turn a user's mistake into one line."""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from edlm import limits, tensors
from edlm.recipes import _locks, _processes, _settings
from edlm.recipes._settings import Schema, check

USAGE_ERROR = 2
INTERRUPTED = 130  # the shell's status of Ctrl-C
_HEAD_START = 30.0  # seconds
_GENERAL: Schema = {"verify": _settings.flag, "limits": _settings.number(0, above=True)}


class Interrupted(Exception):
    """A run was asked to stop and has saved a checkpoint; carries the exit status of the signal."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def enter(main: Callable[[dict[str, Any]], None], schema: Schema, writes: bool = True) -> None:
    """Run a recipe on the config and overrides of the command line, and exit.

    writes: whether it writes what `output_dir` or `output` names, on which a lock is held then.

    A mistake of the user's (ValueError), and a file system that refuses (OSError), is printed in one line and exits
    with 2; with EDLM_DEBUG set it is raised.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it reports at import that it has no kernels for this torch
    from torchtune import config

    def checked(values: DictConfig) -> None:
        plain = OmegaConf.to_container(values, resolve=True)
        _take_in_general(plain)
        check(schema, plain)
        with _processes.joined(plain.get("device", "cpu")), _locks.outputs(plain if writes else {}):
            main(plain)

    try:
        _require_pairs(sys.argv[1:])
        config.parse(checked)()
    except Interrupted as stop:  # in all processes after the same step: the first one speaks, then all of them end
        message, status = str(stop), stop.status
        _processes.from_first(lambda: _say(message))
        sys.exit(status)
    except KeyboardInterrupt:
        if os.environ.get("EDLM_DEBUG"):
            raise
        if _speaks():  # each process had the signal, and none waits for another
            _say("stopped by Ctrl-C")
        sys.exit(INTERRUPTED)
    except (yaml.YAMLError, TypeError):
        unreadable = _unreadable(sys.argv[1:])
        if unreadable is None or os.environ.get("EDLM_DEBUG"):
            raise
        _exit(unreadable, USAGE_ERROR)
    except (ValueError, OSError, OmegaConfBaseException, config._errors.InstantiationError) as error:
        if os.environ.get("EDLM_DEBUG"):
            raise
        _exit(str(error), USAGE_ERROR)


def _take_in_general(values: dict[str, Any]) -> None:
    """Take out the keys that every recipe knows and no config has to hold: `verify` and `limits`, for this process."""
    for key, check_value in _GENERAL.items():
        if key in values:
            check_value(key, values[key])
    if values.pop("verify", True) is False:
        os.environ[tensors.UNVERIFIED] = "1"
    if "limits" in values:
        os.environ[limits.FACTOR] = str(values.pop("limits"))


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


def _unreadable(words: Sequence[str]) -> str | None:
    """Which override, or config, cannot be read; None where all can be."""
    if "--config" not in words[:-1]:
        return None
    path = words[words.index("--config") + 1]
    try:
        base = OmegaConf.load(path)
    except yaml.YAMLError as error:
        return f"{path} must be YAML ({error})"
    for word in words:
        key, _, value = word.partition("=")
        try:
            OmegaConf.merge(base, OmegaConf.from_dotlist([word]))
        except yaml.YAMLError as error:
            return f"{key} = {value!r} must be YAML, with a space after each colon ({error})"
        except TypeError:
            return f"{key} = {value!r} must be what the config has there: a list, or a section with keys of its own"
    return None


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
