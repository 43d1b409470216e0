"""Whole runs of recipes whose every word and number is on record: what they print, and the text files that they write.

EDLM_RECORD=1 pytest tests/recipes/test_recorded_runs.py     writes them anew; then read the difference

The clock of the library is one that moves an eighth of a second whenever it is read, so seconds are on record too. What
a machine decides (versions, free memory, hashes of weights) is not.
"""

import itertools
import os
import re
import time
from pathlib import Path
from typing import Any

import fuzz_folder
import pytest
from running import Runner
from smallest import words_of

from edlm.training import forecast

FOLDER = Path(__file__).parent / "recipes" / "recorded"
ANEW = "EDLM_RECORD" in os.environ
MODELS = {name: f"models/{name}" for name in ("denoiser", "energy", "transition", "joint", "ar", "judge")}
SMALL = {**fuzz_folder.TEXTS, **fuzz_folder.MACHINE, "seed": 3}
TRAINED = {"steps": 4, "batch_size": 3, "valid_every": 2, "save_every": 2, "log_every": 2, "warmup_steps": 1}
TRAINED |= {"decay": "cosine", "valid_rows": 12, "optimizer._component_": "torch.optim.AdamW", "optimizer.lr": 0.004}
AS_PUBLISHED = {"loss_weights": "nelbo", "noise_levels": "by_time"}
MUON = {"optimizer._component_": "edlm.training.muon.Muon", "optimizer.lr": 0.004}
DENOISER = {**fuzz_folder.settings()["pretrain_denoiser"], **TRAINED, **SMALL}
AR = {**fuzz_folder.settings()["pretrain_ar"], **TRAINED, **SMALL, "sample_every": 2}
CLOSED = {"closing.rows": 4, "closing.num_samples": 3, "closing.counts": "[2, 4]", "report_particles": 3}
ENERGY = {**TRAINED, **SMALL, **CLOSED, "denoiser": MODELS["denoiser"], "pretrain": None}
ENERGY |= {"samples.num_samples": 2, "samples.num_steps": 2, "samples.num_particles": 3}
JOINT = {key: value for key, value in ENERGY.items() if not key.startswith("closing")}
DRAWN = {**fuzz_folder.MACHINE, "seed": 3, "denoiser": MODELS["denoiser"], "output": "OUT/texts.jsonl"}
DRAWN |= {"num_samples": 3, "batch_size": 2, "num_steps": 3, "num_particles": 2, "window": "[0.0, 1.0]"}
OF_AR = {**DRAWN, "denoiser": None, "energy": None, "ar": MODELS["ar"]}
COMPARED = {**SMALL, **MODELS, "ngrams": "[1, 2]", "replicates": 5, "batch_size": 2}
LAWS = {key: value for key, value in COMPARED.items() if key not in ("judge", "ngrams", "replicates")}
EVALUATED = {**COMPARED, "rows": 4, "num_steps": 2, "num_particles": 2, "num_completions": 2, "log_z_particles": 2}
EVALUATED |= {"joint": None, "ar": None, "judge": None, "transition": None}
WAYS = """[{plan: [{name: tokens_per_pass, count: [2, 4]}, {name: ranked, by: margin, count: 4}]},
    {plan: {name: tokens_per_pass, count: 4}, correction: {name: chain_rule}, selection: speculative},
    {plan: {name: grid, num_steps: 3}, correction: {name: energy, called: [learned, transition]}, candidates: 2}]"""
CORRECTED = """[{plan: {name: grid, num_steps: 3}, candidates: 2, correction: [{name: joint}, {name: chain_rule},
    {name: energy, called: [learned, transition, posterior, carry_over]}]}, {ar: {temperature: 0.9}},
    {plan: {name: grid, num_steps: 2}, correction: {name: energy, called: learned}, candidates: 2,
    controls: [one_particle, zero, flipped, equal_passes]}, {plan: {name: grid, num_steps: [2, 4]}}]"""
EXACT = """[{plan: {name: grid, num_steps: 2}}, {plan: {name: grid, num_steps: 2}, candidates: 3,
    correction: {name: energy, called: [exact, exact_transition]}},
    {plan: {name: tokens_per_pass, count: 2}}]"""
RACED = {
    **{f"base.{key}": value for key, value in DENOISER.items() if key.split(".")[0] not in ("corpus", "output_dir")}
}
RACED = {key: value for key, value in RACED.items() if key not in ("base.threads", "base.device", "base.seed")}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> recipe, and changes of its tiny config
    "denoiser": ("pretrain_denoiser", {**DENOISER, **AS_PUBLISHED}),
    "denoiser_muon": ("pretrain_denoiser", {**DENOISER, **MUON, "accumulate": 2, "network.qk_norm": True}),
    "blocks": ("pretrain_denoiser", {**DENOISER, "objective": "blocks", "block": 4, "noise_levels": "by_time"}),
    "in_order": ("pretrain_denoiser", {**DENOISER, "objective": "chain_rule", "loss_steps": "[1, 4]", **AS_PUBLISHED}),
    "ar": ("pretrain_ar", AR),
    "energy": ("edlm_nce", {**ENERGY, "scope": "draft", "sample_every": 2}),
    "transition": ("edlm_nce", {**ENERGY, "objective": "info_nce", "num_negatives": 2}),
    "joint": ("edlm_joint", {**JOINT, "denoiser_rate": 0.5}),
    "generate": ("generate", {**DRAWN, "energy": MODELS["energy"]}),
    "in_order_texts": ("generate", {**DRAWN, "energy": "chain_rule", "selection": "speculative", "prompt": "ab"}),
    "plain_texts": ("generate", {**DRAWN, "energy": None, "temperature": 0.8, "nucleus": 0.9}),
    "ar_texts": ("generate", {**OF_AR, "temperature": 0.9}),
    "drafted_texts": ("generate", {**OF_AR, "drafts": "{ahead: 2, counts: models/text, order: 2, tokens: 100}"}),
    "evaluate": ("evaluate", EVALUATED),
    "evaluate_transition": ("evaluate", {**EVALUATED, "energy": None, "transition": MODELS["transition"]}),
    "frontier": ("frontier", {**COMPARED, "sweeps": CORRECTED, "num_samples": 4}),
    "likelihoods": ("likelihoods", {**LAWS, "sweeps": WAYS, "labels": "{}", "rows": 3, "nelbo_draws": 2}),
    "oracle": ("oracle", {**fuzz_folder.settings()["oracle"], "sweeps": EXACT, "distances": "[1, 2]"}),
    "distill": (
        "distill",
        {**TRAINED, **SMALL, "optimizer.lr": 0.0005, "denoiser": MODELS["denoiser"], "rounds": 2, "num_steps": 8},
    ),
    "speedrun": ("speedrun", {**RACED, **fuzz_folder.TEXTS, **fuzz_folder.MACHINE, "only": "[published, Muon]"}),
}
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])", re.IGNORECASE)
# In quotes, or with two letters: the exponent of a number has one.
_HASH = re.compile(r'(?<=")[0-9a-f]{12,}(?=")|\b(?=(?:[0-9]*[a-f]){2})[0-9a-f]{12,}\b')
_OF_THE_MACHINE = re.compile(r'"(torch|python|edlm)": "[^"]*"|cpu, \w+')
_LEFT_OUT = ("tokenizer.json", "vocabulary.json", "training.json")
_CLOSE = 1e-2  # of a number: sums of float32 differ between processors, and training lets them grow
_NOTHING = 2e-6


def record(name: str, run: Runner, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Run it beside `models`: what it printed, and every text file that it wrote."""
    ticks = itertools.count(1000.0, 0.125)
    for read in ("monotonic", "perf_counter", "process_time"):
        monkeypatch.setattr(time, read, lambda: next(ticks))
    monkeypatch.setattr(forecast, "free_memory", lambda device: 8 << 30)
    recipe, changes = RUNS[name]
    folder = Path(f"out_{name}")
    place = [] if recipe == "generate" else [f"output_dir={folder}"]
    ran = run(recipe, *[word.replace("OUT", str(folder)) for word in words_of(changes)], *place)
    assert ran.status == 0, ran.said
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in (".json", ".jsonl", ".md", ".csv")]
    read = {str(file.relative_to(folder)): file.read_text("utf-8") for file in files if file.name not in _LEFT_OUT}
    return {part: plain(text) for part, text in {"printed": ran.out, **read}.items()}


def plain(text: str) -> str:
    """A text without what differs between machines."""
    return _OF_THE_MACHINE.sub("machine", _HASH.sub("hash", text))


def differences(found: str, wanted: str) -> list[str]:
    """The lines of a text that are not those on record: other words, or numbers that are not close."""
    ours, theirs = found.splitlines(), wanted.splitlines()
    if len(ours) != len(theirs):
        return [f"{len(ours)} lines, and {len(theirs)} on record:", *sorted(set(ours) ^ set(theirs))]
    return [f"{one}\n    on record: {other}" for one, other in zip(ours, theirs, strict=True) if not _same(one, other)]


def _same(one: str, other: str) -> bool:
    """Whether the words are the same, and the numbers close; columns may be wider by a digit."""
    ours, theirs = (" ".join(_NUMBER.sub("0", line).split()) for line in (one, other))
    numbers = zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=False)
    return ours == theirs and all(_close(left, right) for left, right in numbers)


def _close(one: str, other: str) -> bool:
    if one == other:
        return True
    if not any(mark in one + other for mark in ".e"):
        return False  # whole numbers
    decimals = min(len(each.partition(".")[2]) for each in (one, other)) if "e" not in one + other else 9
    allowed = _CLOSE * abs(float(other)) + max(_NOTHING, 1.01 * 10.0**-decimals if decimals < 6 else 0.0)
    return abs(float(one) - float(other)) <= allowed
