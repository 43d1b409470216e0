"""The way into every recipe: read the words, check every key, run, and turn a user's mistake into one line."""

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from edlm import limits
from edlm.runs import environment, exits, locks, processes, settings, words
from edlm.runs.settings import Schema, check

_HEAD_START = 30.0  # seconds
_GENERAL: Schema = {
    "verify": settings.flag,
    "limits": settings.number(0, above=True),
    "components": settings.items(settings.text),
}


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
    given = sys.argv[1:]
    try:
        plain = words.resolved(words.read(given, lambda *word: settings.is_text(schema, *word)))
        _take_in_general(plain)
        settings.find_beside(words.config_among(given))
        check(schema, plain)
        with processes.joined(plain.get("device", "cpu")), locks.outputs(plain if writes else {}):
            main(plain)
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
    except Exception as error:
        if os.environ.get("EDLM_DEBUG"):
            raise
        _exit(*exits.explained(error))
    sys.exit()


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
