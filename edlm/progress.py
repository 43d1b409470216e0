"""Progress while something runs: a bar in a terminal or a notebook, elsewhere a line a minute, which a log can hold."""

import sys
from importlib import import_module
from typing import Any

from tqdm import auto

_tqdm: Any = auto.tqdm
_SECONDS = 60.0  # between two lines of a log
_CLEAR_SCREEN = "\x1b[H\x1b[2J"


class _Lines:
    """A file on which stands line below line what overwrites itself in a terminal."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Do nothing: a line is written when it is there."""


def bar(*arguments: Any, leave: bool = True, **settings: Any) -> Any:
    """Build a progress bar of tqdm's, which takes the same arguments.

    leave: whether its end stays to be seen. Off a terminal it is a line a minute, the first one after a minute.
    """
    if is_seen():
        return _tqdm(*arguments, leave=leave, **settings)
    own: dict[str, Any] = {"file": _Lines(), "mininterval": _SECONDS, "maxinterval": _SECONDS, "ascii": True}
    own |= {"delay": _SECONDS, "bar_format": None, "ncols": 0, "leave": leave}
    return _tqdm(*arguments, **{**settings, **own})


def say(text: str) -> None:
    """Write a line to standard error, and a bar that is there anew below it."""
    _tqdm.write(text, file=sys.stderr)


def redraw(text: str) -> None:
    """Show a text in the place of the one before it: in a notebook and in a terminal; elsewhere below it."""
    if in_notebook():
        import_module("IPython.display").clear_output(wait=True)
        print(text)
        return
    say(_CLEAR_SCREEN + text if is_seen() else text)


def is_seen() -> bool:
    """Check whether somebody looks at standard error while it is written."""
    return in_notebook() or sys.stderr.isatty()


def in_notebook() -> bool:
    """Check whether this is a notebook."""
    return "ipykernel" in sys.modules
