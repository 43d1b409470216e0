"""Figures of an energy on held-out text, also by noise level, and a warning if they are bad."""

import itertools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from tqdm import tqdm

from edlm import contracts
from edlm.evaluation import calibration as calibrations
from edlm.evaluation.calibration import CalibrationError
from edlm.evaluation.draws import Draws
from edlm.likelihood.estimates import Estimate, estimate
from edlm.objectives import losses
from edlm.objectives.batches import HELD_OUT_STEP, training_batch
from edlm.process import particles
from edlm.runs import processes, tables

FIGURES = ("loss", "accuracy", "gap", "ess", "log_weight_std")  # per row
ENERGIES = "energies"  # (n, 1 + k): the data's and its drafts', from which calibration is measured
NUM_LEVELS = 5
CHANCE_MARGIN = 0.01  # an accuracy this close to one half means that the energy orders nothing
CONSTANT = 1e-6  # nats: less than this between any two texts is no difference

PREDICTIONS = {"nce": calibrations.of_pairs, "info_nce": calibrations.of_choices}


def calibration_error(per_row: Mapping[str, Tensor], objective: str, num_negatives: int) -> CalibrationError:
    """Measure the calibration of the classifier that is trained: of all pairs, or of choices as in its training."""
    energies = per_row[ENERGIES]
    drafts = energies[:, 1:] if objective == "nce" else energies[:, 1 : 1 + num_negatives]
    return calibrations.expected_calibration_error(PREDICTIONS[objective](energies[:, 0], drafts))


def by_noise_level(per_row: Mapping[str, Tensor], objective: str, num_negatives: int) -> list[dict[str, Any]]:
    """Give means of the figures over fifths of the time, from data to masks; None where no row lies."""
    edges = [step / NUM_LEVELS for step in range(NUM_LEVELS + 1)]
    levels = []
    for low, high in itertools.pairwise(edges):
        last = high == 1.0  # a step of a sampler may start at t = 1
        inside = (per_row["t"] >= low) & ((per_row["t"] < high) | last)
        found = {name: values[inside] for name, values in per_row.items()}
        count = int(inside.sum())
        means: dict[str, float | None] = {
            name: float(found[name].double().mean()) if count else None for name in FIGURES
        }
        error = calibration_error(found, objective, num_negatives).error if count else None
        levels.append(
            {"t": f"[{low:.1f}, {high:.1f}{']' if last else ')'}", "n": count, **means, "calibration_error": error}
        )
    return levels


def metrics(per_row: Mapping[str, Tensor], objective: str, num_negatives: int) -> dict[str, float]:
    """Give what a validation logs, the loss first: means over all times, then by noise level where there are rows."""
    found = {name: estimate(per_row[name]).mean for name in FIGURES}
    found["calibration_error"] = calibration_error(per_row, objective, num_negatives).error
    for level in by_noise_level(per_row, objective, num_negatives):
        where = level["t"].strip("[])").replace(", ", "-")
        figures = {name: value for name, value in level.items() if name not in ("t", "n") and value is not None}
        found |= {f"{name}_t{where}": value for name, value in figures.items()}
    return found


def warning(per_row: Mapping[str, Tensor]) -> str | None:
    """Say what is wrong with an energy that is constant, of the wrong sign or orders nothing; None if nothing is."""
    energies, gap, accuracy = per_row[ENERGIES], estimate(per_row["gap"]), estimate(per_row["accuracy"])
    figures = f"mean gap {_plus_minus(gap)} nats, accuracy {_plus_minus(accuracy)}, n = {gap.n}"
    if float(energies.max() - energies.min()) < CONSTANT:
        return f"warning: the energy is constant, it does not tell data from draws ({figures})"
    if gap.mean < -2.0 * gap.standard_error or accuracy.mean < 0.5 - CHANCE_MARGIN - 2.0 * accuracy.standard_error:
        return f"warning: the energy is higher on data than on draws, its sign is wrong ({figures})"
    if accuracy.mean < 0.5 + CHANCE_MARGIN or gap.mean <= 0:
        return f"warning: the energy does not tell data from draws ({figures})"
    return None


def levels_table(levels: list[dict[str, Any]], k: int) -> str:
    """Lay out accuracy, evenness of weights and calibration by noise level."""
    rows = [
        (
            f"t in {level['t']}",
            f"{level['accuracy']:.3f}",
            f"{level['ess']:.2f} of {k}, {level['log_weight_std']:.2f}, {level['calibration_error']:.3f}",
        )
        for level in levels
        if level["n"]
    ]
    return tables.table([("by noise level", "accuracy", "ESS, s.d. of log-weights, calibration error"), *rows])


def figure_lines(
    found: Mapping[str, Estimate], calibration: CalibrationError | None, k: int, objective: str, num_negatives: int
) -> list[tuple[str, str, str]]:
    """Lay out the figures over all times as lines of a table, each with that of an energy that knows nothing."""
    nothing = torch.zeros(1)
    naive = float(getattr(losses, objective)(nothing, nothing.expand(1, num_negatives)))
    calibrated = (
        []
        if calibration is None
        else [("calibration error", f"{calibration.error:.4f}", f"by chance, if calibrated: {calibration.floor:.4f}")]
    )
    return [
        (
            f"{objective} loss",
            _plus_minus(found["loss"]),
            f"nats, n = {found['loss'].n}; knows nothing: {naive:.3f}",
        ),
        ("accuracy", _plus_minus(found["accuracy"]), "data below draw; chance: 0.5"),
        ("energy gap", _plus_minus(found["gap"]), "nats, draws above data; 0 if it knows nothing"),
        *calibrated,
        (f"ESS of {k} draws", _plus_minus(found["ess"]), f"of {k}"),
        ("s.d. of log-weights", _plus_minus(found["log_weight_std"]), "nats"),
    ]


def of_batch(energies: Tensor, t: Tensor, k: int, objective: str, num_negatives: int) -> dict[str, Tensor]:
    """Measure per row (b,): time, figures, weights over k drafts; energies (b, 1 + n), the data's and its drafts'."""
    positive, negative = energies[:, 0], energies[:, 1:]
    log_weights = particles.log_weights(negative[:, :k])
    return {
        "t": t,
        ENERGIES: energies,
        "loss": getattr(losses, objective)(positive, negative[:, :num_negatives]),
        "accuracy": losses.nce_accuracy(positive, negative),
        "gap": negative.mean(-1) - positive,
        "ess": particles.ess(log_weights),
        "log_weight_std": particles.log_weight_std(log_weights),
    }


@torch.no_grad()
def held_out(
    stages: Callable[[TensorDict], TensorDictBase], drawn: Draws, settings: Mapping[str, Any], only_new: bool = False
) -> dict[str, Tensor]:
    """Measure an energy by its training pipeline: what `of_batch` gives, of all draws (n, ...).

    only_new: rows in which a step revealed nothing are left out.
    """
    how = settings["report_particles"], settings["objective"], settings["num_negatives"]

    def measure(row: Tensor, x_0: Tensor) -> dict[str, Tensor]:
        out = stages(training_batch(x_0, settings["seed"], row, HELD_OUT_STEP, drawn.num_rows))
        energies, t = out[contracts.ENERGY], out[contracts.T]
        if only_new:
            energies, t = energies[_has_new(out)], t[_has_new(out)]
        return {name: values.cpu() for name, values in of_batch(energies, t, *how).items()}

    found = drawn.spread(measure, "held-out text")
    return {name: torch.cat([batch[name] for batch in found]) for name in found[0]}


def require_new(
    corrupt: Callable[[TensorDict], TensorDictBase], split: str, drawn: Draws, settings: Mapping[str, Any]
) -> None:
    """Raise ValueError unless two rows of a split have anything new in a step, which the noise alone decides.

    corrupt: the stage that puts texts before and after a step.
    """
    rows, found = drawn.num_rows, 0
    for row, x_0 in drawn.batches():
        out = corrupt(training_batch(x_0, settings["seed"], row, HELD_OUT_STEP, rows))
        found += int(_has_new(out).sum())
    if found < 2:
        raise ValueError(
            f"valid_rows = {settings['valid_rows']}: in {found} of {rows} draws of the {split} split a step reveals "
            f"anything, and an error bar needs 2: raise valid_rows, or lower transition_steps = "
            f"{settings['transition_steps']}"
        )


def figures(per_row: Mapping[str, Tensor]) -> dict[str, Estimate]:
    """Estimate the mean of every figure."""
    return {name: estimate(per_row[name]) for name in FIGURES}


def warn(per_row: Mapping[str, Tensor], step: int) -> None:
    """Say on standard error what is wrong with an energy, if anything is; see `warning`."""
    said = warning(per_row)
    if said is not None and processes.is_first():
        tqdm.write(f"step {step}: {said}", file=sys.stderr)


def _has_new(out: TensorDictBase) -> Tensor:
    """Tell whether a step reveals anything in a row (b,)."""
    return (out[contracts.X_T] != out[contracts.X_S]).any(1)


def _plus_minus(value: Estimate) -> str:
    return f"{value.mean:.4f} ± {value.standard_error:.4f}"
