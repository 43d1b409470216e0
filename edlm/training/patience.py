"""The least held-out loss of a run, and for how long there has been no lower one."""

import math
from collections.abc import Mapping
from typing import Any


class Patience:
    """Counts validations without improvement up to a limit; None: counts, and never has enough.

    What it has counted is a part of the state of training, so a resumed run stops where the uninterrupted one does.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.least, self.step, self.waited = math.inf, 0, 0

    @property
    def exhausted(self) -> bool:
        """Whether the limit is reached."""
        return self.limit is not None and self.waited >= self.limit

    @property
    def best(self) -> dict[str, float] | None:
        """The step of the least loss so far, and that loss; None before there is one."""
        return {"step": self.step, "loss": self.least} if self.step else None

    def note(self, step: int, loss: float) -> bool:
        """Take the loss of a validation, and tell whether it is the least so far. One that is not a number is not."""
        if not loss < self.least:
            self.waited += 1
            return False
        self.least, self.step, self.waited = loss, step, 0
        return True

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint keeps."""
        counted = {"step": self.step, "loss": self.least, "waited": self.waited}
        return counted if self.step or self.waited else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept, from the beginning if it kept nothing."""
        if state:
            self.least, self.step, self.waited = state["loss"], state["step"], state["waited"]
