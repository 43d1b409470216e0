"""The end of a recipe of an energy: texts with it off and on, and the bound that it lowers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edlm.contracts import Denoiser
from edlm.data.pieces import Rows
from edlm.data.vocabulary import Vocabulary
from edlm.evaluation import draws
from edlm.likelihood import bounds
from edlm.likelihood.estimates import Estimate, estimate
from edlm.likelihood.nelbo import not_padding
from edlm.models.denoisers import SubsDenoiser
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import blocks as block_plans
from edlm.samplers import pipelines, plans
from edlm.samplers.corrections import Correction
from edlm.samplers.planning import Plan
from edlm.samplers.sampler import Sampler

SAMPLES: Schema = {
    "num_samples": schemas.integer(1),
    "num_steps": schemas.integer(1),
    "num_particles": schemas.integer(1),
    "window": schemas.window,
    "seed": schemas.seed,
}


def texts(
    denoiser: Denoiser, correction: Correction, wanted: Mapping[str, Any], vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """Draw a few samples with and without a correction at equal seeds, as `samples` of a config wants them."""
    off, drawn = Sampler(denoiser, _plan(denoiser, wanted)), {}
    on = off.replace(correction=correction, candidates=wanted["num_particles"], window=tuple(wanted["window"]))
    for name, sampler in (("off", off), ("on", on)):
        pipeline = pipelines.pipeline(sampler, denoiser.max_length)
        tokens = pipelines.sample(pipeline, wanted["num_samples"], seed=wanted["seed"])["tokens"]
        drawn[name] = vocabulary.decode(tokens.cpu())
    return [
        {"row": row, "seed": wanted["seed"], "energy": name, "text": drawn[name][row]}
        for row in range(wanted["num_samples"])
        for name in ("off", "on")
    ]


def _plan(denoiser: Denoiser, wanted: Mapping[str, Any]) -> Plan:
    return block_plans.of_denoiser(plans.Grid(wanted["num_steps"]), denoiser)


def transition_bounds(
    denoiser: SubsDenoiser,
    correction: Correction,
    blocks: Rows,
    settings: Mapping[str, Any],
    pad_id: int | None = None,
) -> dict[str, Estimate]:
    """Estimate nats per token of the sampler of `texts` without a window: plain, corrected, and the gain row by row.

    Padding is neither scored nor masked, and a row counts by its tokens.
    """
    wanted, device = settings["samples"], next(denoiser.parameters()).device
    sampler = Sampler(denoiser, _plan(denoiser, wanted))
    sampler = sampler.replace(correction=correction, candidates=wanted["num_particles"])
    seed = torch.tensor(settings["seed"], device=device)

    def score(row: Tensor, x_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scored = not_padding(x_0, pad_id)
        bound = bounds.of_sampler(sampler, x_0, seed, row, scored=scored)
        return bound.nats.cpu(), bound.excess.cpu(), scored.sum(1).cpu()

    drawn = draws.of_settings(blocks, settings["valid_rows"], settings, device)
    found = drawn.spread(score, "bound of the sampler")
    nats, excess, counts = (torch.cat(values) for values in zip(*found, strict=True))
    per_row = {"plain_bound": nats - excess, "bound": nats, "gain": -excess}
    return {name: estimate(values, counts) for name, values in per_row.items()}


def bits_lines(found: Mapping[str, Estimate], unit: str, remarks: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Lay out bounds in bits as lines of a table, each with its remark."""
    return [
        (name.replace("_", " "), f"{value.bits:.4f} ± {value.bits_error:.4f}", f"bits/{unit}, {remarks[name]}")
        for name, value in found.items()
    ]


def remarks(wanted: Mapping[str, Any]) -> dict[str, str]:
    """Say what each of `transition_bounds` is of."""
    steps = f"{wanted['num_steps']} steps"
    with_energy = f"{steps}, {wanted['num_particles']} particles"
    return {"plain_bound": f"{steps}, no energy", "bound": with_energy, "gain": "their difference, text by text"}
