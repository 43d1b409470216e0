"""The card of a model on the hub: what it is, how it is loaded, and what was measured of exactly these weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from edlm.runs import files, tables
from edlm.weights import kinds, whole
from edlm.weights.loading import Found

METRICS = "metric_card.json"  # that `edlm run evaluate` writes
_KINDS = {
    kinds.SUBS: "a masked diffusion denoiser",
    "d3pm": "an absorbing D3PM, a baseline",
    "sedd": "a SEDD with an absorbing process, a baseline",
    "ar": "an autoregressive model",
    "draft": "an energy of drafts, which corrects a denoiser",
    "transition": "an energy of what a step reveals, which corrects a denoiser",
}
_CLAIMS = {kinds.SUBS: "NELBO, an upper bound", "d3pm": "an upper bound", "sedd": "an upper bound", "ar": "exact NLL"}


class Row(NamedTuple):
    """One figure: on which texts, of what, what it is called, nats per token with their error, bits, and texts."""

    texts: str
    model: str
    figure: str
    nats: float
    nats_error: float
    bits_per_character: float | None
    n: int


def of(found: Found, weights: str, metrics: str | Path | None = None) -> ModelCard:
    """Write the card of a model, with the figures of a metric card and of the report of its run.

    weights: the hash of those that are written. metrics: the file of the metric card; None: that in the model's folder,
    if there is one. Figures of other weights are left out.
    Raises ValueError, naming the file, for a metric card that is none or says nothing of these weights.
    """
    rows, warnings = _measured(found, weights, metrics)
    results = [_result(row) for row in rows if row.bits_per_character is not None]
    data = ModelCardData(
        library_name="edlm",
        tags=["edlm", "masked-diffusion"],
        model_name=_KINDS[found.kind] if results else None,
        eval_results=results or None,
    )
    parts = [
        _heading(found),
        _loading(found),
        _figures(rows, warnings),
        _reported(found, weights),
        _facts(found, weights),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n")


def _heading(found: Found) -> str:
    parameters = sum(each.numel() for each in found.network.parameters())
    ids = found.vocabulary
    size = f"{parameters:,} parameters, {ids.size:,} ids ({ids.unit}s)"
    return f"# edlm: {_KINDS[found.kind]}\n\n{size}."


def _loading(found: Found) -> str:
    get = {"ar": "autoregressive", **dict.fromkeys(kinds.BASELINES, "baseline")}
    part = "energy(of=denoiser)" if found.kind in kinds.ENERGIES else get.get(found.kind, "denoiser")
    return (
        f'```python\nimport edlm\n\nmodel = edlm.from_pretrained("NAME OR FOLDER")\nmodel.{part}, model.vocabulary\n```'
    )


def _figures(rows: list[Row], warnings: list[str]) -> str:
    if not rows:
        return ""
    head = ("texts", "model", "figure", "nats a token", "bits a character", "n")
    lines = [
        (
            row.texts,
            row.model,
            row.figure,
            f"{row.nats:.4f} ± {row.nats_error:.4f}",
            "-" if row.bits_per_character is None else f"{row.bits_per_character:.4f}",
            str(row.n),
        )
        for row in rows
    ]
    said = (
        "Measured by `edlm run evaluate`; the metric card has all that repeats it. Errors are of the mean over texts."
    )
    return "\n\n".join(["## Figures", tables.markdown([head, *lines]), said, *warnings])


def _reported(found: Found, weights: str) -> str:
    """Say what the report of the run says, if it is of these weights."""
    file, step = Path(found.path) / files.REPORT, found.description.get("step")
    if found.kind not in _CLAIMS or not file.is_file() or weights != found.weights:
        return ""
    report = whole.read_json(file)
    if step is None or report.get("step") != step or not {"mean", "standard_error", "n"} <= report.keys():
        return ""
    value = f"{report['mean']:.4f} ± {report['standard_error']:.4f} nats a token"
    return (
        f"At the end of training (step {step:,}), on held-out text: {value}, {_CLAIMS[found.kind]}, n = {report['n']}."
    )


def _facts(found: Found, weights: str) -> str:
    kept = ("class", "arguments", "step", "corpus", "weights", "schedule", "time_conditioning", "bos_id")
    known = [(key, str(found.description[key])) for key in kept if found.description.get(key) is not None]
    rows = [*known, ("vocabulary", found.vocabulary.fingerprint), ("sha256 of the weights", weights)]
    return "## What it is\n\n" + tables.markdown([("key", "value"), *rows])


def _measured(found: Found, weights: str, metrics: str | Path | None) -> tuple[list[Row], list[str]]:
    """Read the figures of a metric card that names these weights, and the warnings beside them."""
    file = Path(metrics or Path(found.path) / METRICS)
    if metrics is None and not file.is_file():
        return [], []
    card = whole.read_json(file)
    networks, figures = card.get("networks"), card.get("figures")
    if not isinstance(networks, dict) or not isinstance(figures, list):
        raise ValueError(f"{file} is no metric card: `edlm run evaluate` writes one")
    if weights not in {each.get("weights_sha256") for each in networks.values()}:
        if metrics is None:
            return [], []
        raise ValueError(f"{file} says nothing of the weights of {found.path}: evaluate them first")
    return list(_rows(figures)), list(dict.fromkeys(each["warning"] for each in figures if "warning" in each))


def _rows(figures: list[Mapping[str, Any]]) -> Iterator[Row]:
    for each in figures:
        if each["nats_per_token"] is not None:
            numbers = each["nats_per_token"], each["nats_error"], each["bits_per_character"], each["n"]
            yield Row(each["texts"], each["model"], each["figure"], *numbers)


def _result(row: Row) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=row.texts,
        dataset_name=row.texts,
        metric_type="bits_per_character",
        metric_name=f"{row.model}: {row.figure}",
        metric_value=row.bits_per_character,
    )
