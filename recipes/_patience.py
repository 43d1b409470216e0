"""Early stopping: how long the held-out loss has not improved, and the network that was best."""

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edlm import checkpoints


class Patience:
    """Counts validations without improvement up to a limit and keeps the best network in a folder; None: does neither.

    What it has counted is a part of the state of training, so a resumed run stops where the uninterrupted one does.
    """

    def __init__(self, folder: Path, limit: int | None) -> None:
        self.folder = folder
        self.limit = limit
        self.least, self.step, self.waited = math.inf, 0, 0

    @property
    def exhausted(self) -> bool:
        """Whether the limit is reached."""
        return self.limit is not None and self.waited >= self.limit

    def note(self, step: int, loss: float, save: Callable[[Path], None]) -> None:
        """Take the loss of a validation; `save` writes the network of an improvement to the folder that it is given."""
        if self.limit is None:
            return
        if not loss < self.least:
            self.waited += 1
            return
        self.least, self.step, self.waited = loss, step, 0
        shutil.rmtree(self._best(), ignore_errors=True)  # of a run that was cut off after it
        save(self._best())
        for other in self.folder.glob("step_*"):
            if other != self._best():
                shutil.rmtree(other)

    def restore(self, network: nn.Module) -> None:
        """Give a network the best one's weights, and say where that is."""
        if self.limit is not None and self.step:
            network.load_state_dict(checkpoints.load_network(self._best()).state_dict())
            print(f"held-out loss was least at step {self.step}: {self.least:.5f}; that network is {self._best()}")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {} if self.limit is None else {"least": self.least, "step": self.step, "waited": self.waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept, from the beginning if it kept nothing."""
        if self.limit is not None and state:
            self.least, self.step, self.waited = state["least"], state["step"], state["waited"]

    def _best(self) -> Path:
        return self.folder / f"step_{self.step:08d}"
