"""Every name in the files of a run stands on the reference's page of metrics."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smallest import LENGTH, NETWORK, UPDATES, train, words_of

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text("utf-8")
DOCUMENTED = set(re.findall(r"`(\w+)`", PAGE))
FREE = {"settings", "setting", "networks", "passes", "ways"}  # whose names are those of configs, networks and ways
SHORT = {**UPDATES, "steps": 3, "threads": 1}
CHEAP = {"energy": "null", "threads": 1}


def undocumented(record: Any) -> set[str]:
    """The names in a record that the page does not have."""
    return {name for name in names(record) if not {name, name.removesuffix("_error")} & DOCUMENTED}


def names(record: Any) -> Iterator[str]:
    if isinstance(record, list):
        for each in record:
            yield from names(each)
    elif isinstance(record, dict):
        for name, value in record.items():
            if not re.fullmatch(r"[\d.]+", name):  # a noise level, the n of n-grams
                yield re.sub(r"_t[\d.]+-[\d.]+$", "", name)
            yield from () if name in FREE else names(value)


def records(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every record below a folder, checkpoints left out, with the name of its file."""
    for file in sorted(folder.rglob("*.json*")):
        if "checkpoints" not in file.parts:
            lines = file.read_text("utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_text("utf-8")]
            yield from ((str(file.relative_to(folder)), json.loads(line)) for line in lines)


@pytest.mark.slow
def test_every_name_in_the_files_of_a_run_stands_on_the_page(trained_ar: Path, tmp_path: Path) -> None:
    denoiser, ar = trained_ar / "denoiser", trained_ar / "ar"
    known = {"denoiser": denoiser, "pretrain": "null", "report_particles": 4, "samples.num_steps": 2}

    def leave(recipe: str, name: str, **values: Any) -> None:
        words = {key.replace("__", "."): value for key, value in values.items()}
        train(recipe, *words_of({"output_dir": tmp_path / name, **words}))

    leave("pretrain_denoiser", "denoiser", **SHORT, length=LENGTH, **{f"network__{k}": v for k, v in NETWORK.items()})
    leave("edlm_nce", "energy", **known, **SHORT)
    leave("edlm_joint", "joint", **known, **SHORT)
    base = {**UPDATES, "length": LENGTH, **{f"network.{k}": v for k, v in NETWORK.items()}}
    leave("speedrun", "speedrun", threads=1, seeds=[0], **{f"base.{key}": value for key, value in base.items()})
    leave("distill", "distilled", denoiser=denoiser, **SHORT)
    leave("adapt", "adapted", start_from=ar, length=LENGTH, **SHORT)
    drawn = tmp_path / "samples.jsonl"
    train("generate", *words_of({"denoiser": denoiser, "num_samples": 4, "num_steps": 2, "output": drawn, **CHEAP}))
    in_rounds = {"denoiser": "null", "ar": ar, "drafts": "{ahead: 2}", "length": 8, "output": tmp_path / "rounds.jsonl"}
    train("generate", *words_of({**in_rounds, "num_samples": 1, **CHEAP}))
    scored = {"denoiser": denoiser, "ar": ar, "num_orders": 2, "samples": drawn, "judge": ar, "rows": 4}
    leave("evaluate", "scored", **scored, num_steps=2, num_particles=2, **CHEAP)
    sweeps = "[{plan: {name: grid, num_steps: [1, 2]}}, {plan: {name: left_to_right, count: 8}}]"
    drawing = {"num_samples": 4, "replicates": 5, "sweeps": sweeps}
    leave("frontier", "frontier", denoiser=denoiser, judge=ar, ar="null", **drawing, **CHEAP)
    leave("likelihoods", "likelihoods", denoiser=denoiser, rows=2, sweeps=sweeps, **CHEAP)
    few = {"batch_size": 20, "bounded_texts": 10, "entropy_texts": 50, "threads": 1}
    leave("oracle", "oracle", **{**drawing, "num_samples": 20}, **few)
    found = list(records(tmp_path))
    assert len({Path(file).parts[0] for file, _ in found}) == 12
    assert {(file, name) for file, record in found for name in undocumented(record)} == set()


def test_a_name_that_the_page_does_not_have_is_found() -> None:
    assert (
        undocumented({"step": 3, "valid_loss_t0.0-0.2": 1.0, "bits_error": 0.1, "masked_nll": {"0.1": {"n": 2}}})
        == set()
    )
    assert undocumented([{"settings": {"any": 1}, "elegance": 2}]) == {"elegance"}
