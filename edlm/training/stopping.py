"""Signals that ask a run to stop: after the step, in all its processes, and at once for whoever asks again."""

import os
import signal
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, Self

from edlm.runs import processes

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TOLD = b"\nstopping at the end of this step, with a checkpoint; a second Ctrl-C stops at once, without one\n"
_STDERR = 2  # written to directly: the signal may have interrupted who holds the lock of `sys.stderr`
_IMPATIENT = 1.0  # seconds: a signal that comes twice within is one signal, sent to a process and to its group


class Stopping:
    """Notes the signals that come while it is entered.

    agreed: the signal on which all processes stop after this step, None to go on. A signal that comes again later
    raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.agreed: int | None = None
        self._asked: tuple[int, float] | None = None  # the signal that came, and when

    def __enter__(self) -> Self:
        self._previous: dict[int, Any] = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def votes(self) -> list[float]:
        """Give this process' vote for each signal, 1 for the one that came to it."""
        return [float(self._asked is not None and self._asked[0] == number) for number in _SIGNALS]

    def agree(self, votes: Sequence[float]) -> None:
        """Take the votes of all processes, one sum for each signal."""
        self.agreed = next((number for number, count in zip(_SIGNALS, votes, strict=True) if count), None)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is not None and now - self._asked[1] > _IMPATIENT:  # do not wait for the step to end
            raise KeyboardInterrupt
        if self._asked is None:
            self._asked = number, now
            if processes.rank() == 0:
                os.write(_STDERR, _TOLD)
