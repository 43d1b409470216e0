"""The settings that a run that goes on must share with the one that was stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edlm.training import log

# What may differ when a run is resumed: it changes no update, but for rounding.
FREE = {
    *("log_every", "valid_every", "valid_rows", "save_every", "keep_last", "keep_best", "resume", "steps"),
    *("accumulate", "parallel", "recompute", "compile", "processes", *log.SETTINGS),
}


class SettingsChanged(ValueError):
    """Says why a run cannot go on, and what to do about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what = what


def require_unchanged(folder: Path, state: Mapping[str, Any], settings: Mapping[str, Any], identity: Any) -> None:
    """Raise SettingsChanged for what decides updates and has changed since a state was saved; say what else has.

    settings, identity: of the run that goes on, beside those that the state holds. Steps may grow at any time where the
    rate is constant, and after the last one where it falls.
    """
    free = FREE - ({"steps"} if settings["decay"] == "cosine" and not _more_after_the_end(state, settings) else set())
    if settings["patience"] is not None:
        free -= {"valid_every", "valid_rows"}  # they decide when it stops
    before = {**state["settings"], **state["identity"]}
    now = {**settings, **identity}
    changed = {
        key: f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }
    refused = [said for key, said in changed.items() if key not in free]
    if refused:
        raise SettingsChanged(f"cannot resume {folder}: {'; '.join(refused)}", "use another output_dir")
    known = [said for key, said in changed.items() if key in before]
    if known:
        print(f"{folder} goes on at step {state['step']}: {'; '.join(known)}", flush=True)


def beginning(state: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    """Return the step at which the present rise and fall of the rate began.

    A finished run with more steps begins another rise and fall, from the warm-up on. A constant rate has no fall, and
    stays.
    """
    again = settings["decay"] == "cosine" and _more_after_the_end(state, settings)
    return int(state["step"] if again else state["began"])


def _more_after_the_end(state: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Tell whether a state is that of a run's last step, and the run is given more steps."""
    last = state["settings"].get("steps")
    return type(last) is int and state["step"] == last < settings["steps"]
