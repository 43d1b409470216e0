"""The card of a sweep, with all that its lines depend on, and the remarks above its tables."""

import platform
from collections.abc import Mapping
from typing import Any

import torch

import edlm
from edlm.contracts import Denoiser
from edlm.frontier import table
from edlm.frontier.draws import Drawing
from edlm.frontier.exact import Beside
from edlm.frontier.grid import Entry
from edlm.runs import processes
from edlm.samplers.sampler import Sampler
from edlm.weights.named import Models


def card(settings: Mapping[str, Any], device: torch.device, **more: Any) -> dict[str, Any]:
    """Record everything that a line depends on, and what repeats it; more: what a recipe has beside it."""
    return {
        "settings": dict(settings),
        **more,
        "versions": {"edlm": edlm.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device_used": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads_used": torch.get_num_threads(),
        **({"processes_used": processes.world()} if processes.world() > 1 else {}),
    }


def judged(drawing: Drawing, models: Models, judge: str, judged_by: Mapping[str, Any]) -> list[str]:
    """Say what stands above a frontier: whether the judge judges itself, and what was drawn."""
    weights = judged_by.get("weights_sha256")
    own = models.records.get("ar", {}).get("weights_sha256")
    drawn = (
        f"{drawing.num_samples} texts of {drawing.length} tokens per setting, {drawing.batch_size} at once, seed "
        f"{drawing.seed}, {drawing.device}, {drawing.execution}, {torch.get_num_threads()} threads; judge {judge}"
    )
    return [*([table.WARNING] if weights is not None and weights == own else []), drawn]


def beside(
    source: Mapping[str, Any], compared: Beside, drawing: Drawing, grid: Mapping[str, Entry], exact: Denoiser
) -> list[str]:
    """Say what stands above an oracle's table: the source as its config names it, and what was drawn."""
    described = " ".join(
        str(value).rpartition(".")[2] if key == "_component_" else f"{key}={value}" for key, value in source.items()
    )
    return [
        f"{described}, {compared.length} tokens, entropy {compared.entropy.mean:.4f} ± "
        f"{compared.entropy.standard_error:.1g} nats per token; exact denoiser{_others(grid, exact)}",
        f"{drawing.num_samples} texts per setting, {drawing.batch_size} at once, seed {drawing.seed}, "
        f"{torch.get_num_threads()} threads; bounds on {len(compared.bounded)} texts of the source",
    ]


def _others(grid: Mapping[str, Entry], exact: Denoiser) -> str:
    """Name the corrections that stand over another denoiser than the source's."""
    samplers = [setting for setting, role, _ in grid.values() if isinstance(setting, Sampler) and not role]
    found = [each.correction.name for each in samplers if each.correction and each.denoiser is not exact]
    return f", but for {' and '.join(dict.fromkeys(found))}, whose denoiser is learned" if found else ""
