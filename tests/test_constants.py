"""Constants on which figures, texts or exit statuses depend: whoever changes one changes results, and must mean to."""

from importlib import import_module
from typing import Any

import pytest

CONSTANTS: dict[str, dict[str, Any]] = {
    "edlm.nn.blocks": {"_NOISE_FREQUENCIES": 256, "_MLP_RATIO": 4},
    "edlm.process.noise": {"_ROUNDS": 10, "_LANES_PER_BLOCK": 2, "_BLOCKS_PER_STREAM": 1 << 24},
    "edlm.process.particles": {"COLDEST": 1e-100},
    "edlm.process.categorical": {"_COLD": 1e-3, "_HOT": 1e3},
    "edlm.process.schedules": {"_TIME_ROUNDING": 1e-9, "_NO_TOKEN_LEFT": 1e-12},
    "edlm.data.corpora": {"_FRACTIONS": (0.9, 0.05, 0.05), "_LARGEST_HELD_OUT": 0.02},
    "edlm.data.datasets": {"_FRACTIONS": (0.9, 0.05, 0.05), "_TEXT8": 100_000_000},
    "edlm.data.token_cache": {"_SMALL": 1 << 16, "CHECKED_PAGES": 64, "PAGE_BYTES": 1 << 22},
    "edlm.samplers.selections": {"_QUADRATURE_STEP": 0.25, "_TAIL": 40.0},
    "edlm.likelihood.enumeration": {"MOST_TRANSITIONS": 1 << 20},
    "edlm.likelihood.paper_nelbo": {"RELIABLE_STD": 3.0},
    "edlm.likelihood.hidden_markov": {"_SUM_TOLERANCE": 1e-9},
    "edlm.weights.exchange": {"DEFAULT_HEADS": 12, "DEFAULT_LENGTH": 1024},
    "edlm.weights.foreign": {"_SCHEDULE": {"_component_": "edlm.schedules.log_linear", "eps": 1e-3}},
    "edlm.weights.loading": {"LONGEST": 2048},
    "edlm.evaluation.samples": {"REPEATED": 4},
    "edlm.evaluation.continuations": {"COLDEST": 1e-30, "_REPEATS": 1 << 16},
    "edlm.evaluation.contrast": {"NUM_LEVELS": 5, "CHANCE_MARGIN": 0.01, "CONSTANT": 1e-6},
    "edlm.evaluation.judges": {"_CONTEXT": 1024, "_CLUSTERINGS": 5},
    "edlm.training.texts": {"_NUM_TEXTS": 2, "_NUM_STEPS": 64},
    "edlm.training.stopping": {"_IMPATIENT": 1.0},
    "edlm.frontier.controls": {"_MOST_STEPS": 16},
    "edlm.frontier.learning": {"_TEXTS": 4, "_HELD_OUT": 5},
    "edlm.frontier.exact_report": {"_NOTHING": 1e-9},
    "edlm.benchmark.textbook_training": {"TIME_LOW": 1e-3},
    "edlm.runs.exits": {"USAGE_ERROR": 2, "FAULT": 70, "INTERRUPTED": 130},
    "edlm.recipes.oracle": {"_SAMPLED": 1, "_COMPARED": 2, "_BOUNDED": 3},
    "edlm.recipes.pretrain_denoiser": {"NOISE_LEVELS": (0.1, 0.3, 0.5, 0.7, 0.9)},
}


@pytest.mark.parametrize("module", CONSTANTS)
def test_a_constant_that_results_depend_on_is_as_it_was(module: str) -> None:
    found = vars(import_module(module))
    assert {name: found[name] for name in CONSTANTS[module]} == CONSTANTS[module]
