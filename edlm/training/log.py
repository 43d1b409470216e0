"""A run that can be followed: figures on disk and in other loggers, texts drawn on the way, a picture of all of it."""

import contextlib
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import nn
from tqdm import tqdm

from edlm.runs import files, processes, settings
from edlm.runs.settings import Schema
from edlm.training import curve_plot

SETTINGS: Schema = {
    "log_to": settings.items(settings.choice("tensorboard", "wandb")),
    "sample_every": settings.optional(settings.integer(1)),
}
METRICS, SAMPLES, CURVES = "metrics.jsonl", "training_samples.jsonl", "curves.png"
_SHOWN = 160  # characters of a text in the terminal
_LEVEL = re.compile(r"_t[\d.]+-[\d.]+$")  # a figure over some times alone

Texts = list[dict[str, Any]]  # records with a `text`, as `files.write_jsonl` writes them
Sample = Callable[[nn.Module], Texts]


class Log:
    """The log of a run's figures: a line of `metrics.jsonl` each, and whatever `log_to` names.

    As a context it is open; of several processes the first one writes. Raises ValueError, on entering, for a logger
    whose package is not installed.
    """

    def __init__(self, folder: Path, log_to: Sequence[str]) -> None:
        self.folder, self.log_to = folder, log_to

    def __enter__(self) -> Self:
        first = processes.is_first()
        self.loggers = [_logger(name, self.folder) for name in self.log_to] if first else []
        path = self.folder / METRICS if first else Path(os.devnull)
        self.file = path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # of a line that could not be written, which has been said
            self.file.close()
        for logger in self.loggers:
            logger.close()

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Add the figures of a step, if there are any. Raises ValueError naming the file if it cannot be written."""
        if record:
            with files.writing(self.folder / METRICS):
                self.file.write(json.dumps({"step": step, **record}) + "\n")
            for logger in self.loggers:
                logger.log_dict(dict(record), step)

    def flush(self) -> None:
        """Have all that was written on the disk. Raises ValueError naming the file if it cannot be."""
        if processes.is_first():
            with files.writing(self.folder / METRICS):
                os.fsync(self.file.fileno())

    def show(self, step: int, texts: Texts) -> None:
        """Add texts drawn after a step to `training_samples.jsonl`, and show the last of them."""
        if not texts:
            return
        files.append_jsonl(self.folder / SAMPLES, [{"step": step, **text} for text in texts])
        if processes.is_first():
            tqdm.write(f"step {step}: {' '.join(texts[-1]['text'].split())[:_SHOWN]}")


def read(folder: Path) -> list[dict[str, Any]]:
    """Read the figures of a run's folder, a record for each step that has any; half a last line is left out."""
    path = folder / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def curves_are_drawn(folder: Path) -> bool:
    """Check whether there is a picture, and no figure that is newer."""
    log, picture = folder / METRICS, folder / CURVES
    return not log.is_file() or (picture.is_file() and picture.stat().st_mtime_ns >= log.stat().st_mtime_ns)


def draw_curves(folder: Path) -> None:
    """Draw what `metrics.jsonl` holds as `curves.png`, whole or not at all: loss, rate, and each held-out figure.

    The loss of training and what is held out of the same kind share a panel, with one standard error where it is known.
    A picture that cannot be written is said to be so, and no error.
    """
    records = read(folder)
    panels = curves(records)
    if not panels:
        return
    try:
        curve_plot.draw(folder / CURVES, records, panels)
    except OSError as error:  # a run that ends on a full disk has something else to say
        tqdm.write(f"cannot write {folder / CURVES}: {error.strerror}", file=sys.stderr)


def curves(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Name the panels of a picture and the figures that share each: losses, rate, any other figure with its levels."""
    names = list(dict.fromkeys(name for record in records for name in record if name != "step"))
    losses = [name for name in names if name == "loss" or name in ("valid_loss", "valid_nelbo", "valid_nll")]
    alone = [name for name in names if name not in losses and not name.endswith("_error")]
    panels: dict[str, list[str]] = {"loss, nats": losses} if losses else {}
    for name in alone:
        panels.setdefault(_LEVEL.sub("", name), []).append(name)
    return panels


def _logger(name: str, folder: Path) -> Any:
    """Build one of torchtune's loggers. Raises ValueError naming the extra if its package is not installed."""
    from torchtune.training import metric_logging

    try:
        importlib.import_module({"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}[name])
        if name == "tensorboard":
            return metric_logging.TensorBoardLogger(str(folder / "tensorboard"), organize_logs=False)
        return metric_logging.WandBLogger(project="edlm", log_dir=str(folder), name=folder.name)
    except ImportError as error:
        raise ValueError(f"log_to = '{name}' needs the extra package: pip install 'edlm-torch[{name}]'") from error
