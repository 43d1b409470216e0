"""Constants on which figures, texts or exit statuses depend: whoever changes one changes results, and must mean to."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CONSTANTS: dict[str, dict[str, Any]] = {
    "edlm.nn.blocks": {"_NOISE_FREQUENCIES": 256, "_MLP_RATIO": 4},
    "edlm.process.noise": {
        "_ROUNDS": 10,
        "_LANES_PER_BLOCK": 2,
        "_BLOCKS_PER_STREAM": 1 << 24,
        "_LOW_32": (1 << 32) - 1,
        "_MULTIPLIERS": (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32),  # of Philox 4x32
        "_KEY_INCREMENTS": (0x9E3779B9, 0xBB67AE85),
    },
    "edlm.process.particles": {"COLDEST": 1e-100},
    "edlm.process.categorical": {"_COLD": 1e-3, "_HOT": 1e3, "_NO_WEIGHT": -1e4, "BLOCK": 256},
    "edlm.process.training_times": {"_BEND": 0.8, "_BISECTIONS": 50},
    "edlm.process.schedules": {"_TIME_ROUNDING": 1e-9, "_NO_TOKEN_LEFT": 1e-12},
    "edlm.data.corpora": {"_FRACTIONS": (0.9, 0.05, 0.05), "_LARGEST_HELD_OUT": 0.02},
    "edlm.data.datasets": {"_FRACTIONS": (0.9, 0.05, 0.05), "_TEXT8": 100_000_000, "_RULES": 2},
    "edlm.data.columns": {"_DICTIONARY_BATCH": 2, "_RECORD_BATCH": 3, "_PARQUET_END": 8, "_NESTED": 16},
    "edlm.data.tokenizer_kinds": {"NUM_BYTES": 256},
    "edlm.data.token_cache": {"_SMALL": 1 << 16, "CHECKED_PAGES": 64, "PAGE_BYTES": 1 << 22, "_VERSION": 1},
    "edlm.samplers.selections": {"_QUADRATURE_STEP": 0.25, "_TAIL": 40.0},
    "edlm.samplers.choices": {"_TIES": 2.0**20, "_LAST": 1e300},
    "edlm.samplers.expectation": {"_VERIFICATIONS": 2},
    "edlm.samplers.speculative": {"NUMBERS": 3},
    "edlm.likelihood.enumeration": {"MOST_TRANSITIONS": 1 << 20, "_SOME_TIMES": (0.25, 1.0), "_ROUNDING": 1e-6},
    "edlm.likelihood.bounds": {"_SOME_MASKS": 64},
    "edlm.likelihood.orders": {"RELIABLE_SHARE": 0.5},
    "edlm.objectives.batches": {"HELD_OUT_STEP": (1 << 32) - 1},
    "edlm.likelihood.paper_nelbo": {"RELIABLE_STD": 3.0},
    "edlm.likelihood.hidden_markov": {"_SUM_TOLERANCE": 1e-9},
    "edlm.weights.exchange": {"DEFAULT_HEADS": 12, "DEFAULT_LENGTH": 1024},
    "edlm.weights.foreign": {"_SCHEDULE": {"_component_": "edlm.schedules.log_linear", "eps": 1e-3}, "_NESTED": 8},
    "edlm.weights.gguf_files": {"_HEADER_BYTES": 24},
    "edlm.weights.gguf_tokens": {"_CONTROL": 3, "_OF_USER": 4},
    "edlm.weights.own": {"_TRIED": 3},
    "edlm.weights.tensors": {"_LENGTH_BYTES": 8},
    "edlm.weights.families": {"_THETA": 10000.0},
    "edlm.weights.llada2": {
        **{"_THETA": 10000.0, "_ROTARY_SHARE": 0.5},
        "_DEFAULTS": {
            **{"max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "routed_scaling_factor": 2.5},
            **{"num_experts_per_tok": 2, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 0},
        },
    },
    "edlm.weights.sources": {"LONGEST": 2048},
    "edlm.evaluation.samples": {"REPEATED": 4},
    "edlm.evaluation.figures": {"MOST_UNRELIABLE": 0.05},
    "edlm.evaluation.verdicts": {"FEWEST": 8, "_ERROR_RATE": 0.05},
    "edlm.evaluation.contrast": {"NUM_LEVELS": 5, "CHANCE_MARGIN": 0.01, "CONSTANT": 1e-6},
    "edlm.evaluation.judges": {"_CONTEXT": 1024, "_CLUSTERINGS": 5},
    "edlm.training.report": {"NOISE_LEVELS": (0.1, 0.3, 0.5, 0.7, 0.9)},
    "edlm.training.texts": {"_NUM_TEXTS": 2, "_NUM_STEPS": 64},
    "edlm.training.stopping": {"_IMPATIENT": 1.0, "_STDERR": 2},
    "edlm.training.forecast": {"_ROWS": 2, "_MORE_ROWS": 16, "_TRIES": 3, "_PATIENCE": 5.0, "_AT_ONCE": 0.25},
    "edlm.training.muon": {"_COEFFICIENTS": (3.4445, -4.7750, 2.0315), "_ITERATIONS": 5, "_SMALL": 1e-7},
    "edlm.models.counts": {"_NONE": -1, "_LARGEST": 2**63 - 1},
    "edlm.evaluation.card": {"_COUNTED": 1 << 20},
    "edlm.evaluation.continuations": {"COLDEST": 1e-30},
    "edlm.evaluation.drafted": {"ORDER": 6, "TOKENS": 2_000_000},
    "edlm.frontier.closing": {"_COUNTED": 2**21},
    "edlm.frontier.findings": {"_RARELY": 0.025, "_FEW_STEPS": 1.5},
    "edlm.frontier.controls": {"_MOST_STEPS": 16},
    "edlm.frontier.learning": {"_TEXTS": 4, "_HELD_OUT": 5},
    "edlm.frontier.curve": {"_ONE": 1.0 + 1e-9},
    "edlm.benchmark.methods": {"BOS_ID": 0, "_WARM_UP_STEPS": 2},
    "edlm.benchmark.training_cases": {"_WARM_UP_STEPS": 3, "_BLOCKS": 4096, "_LOADS": 20},
    "edlm.cli.commands": {"_UNFIT": 1},
    "edlm.process.arguments": {"_LAST_SEED": 2**63 - 1},
    "edlm.cli.doctor": {"_TEXTS": 3, "_LENGTH": 32, "_STEPS": 8},
    "edlm.runs.settings": {"_INT32": 2**31 - 1},
    "edlm.runs.entry": {"_HEAD_START": 30.0},
    "edlm.frontier.exact_report": {"NOTHING": 1e-9},
    "edlm.frontier.curve_findings": {"_AS_MANY": 0.95},
    "edlm.benchmark.textbook_training": {"TIME_LOW": 1e-3},
    "edlm.runs.plots": {"_FENCE": 1.5, "_GAP_OF_ALL": 0.75},
    "edlm.runs.exits": {"USAGE_ERROR": 2, "FAULT": 70, "INTERRUPTED": 130},
    "edlm.testing": {"_SMALLEST": 2.0**-53, "_LARGEST": 1.0 - 2.0**-53},
    "edlm.recipes.oracle": {"_SAMPLED": 1, "_COMPARED": 2, "_BOUNDED": 3},
}
# On these only time and memory depend, the looks of a picture, or how much of a long text is shown.
FREE: dict[str, set[str]] = {
    "edlm.training.adaptation": {"_ROWS"},
    "edlm.data.columns": {"_ROWS_AT_ONCE", "_BYTES_AT_ONCE", "_BYTES_PER_VALUE", "_SHOWN_COLUMNS"},
    "edlm.data.datasets": {"_ROWS_AT_ONCE"},
    "edlm.data.formats": {"_BLOCK"},
    "edlm.data.token_cache": {"_BATCH_DOCUMENTS", "_BATCH_CHARACTERS"},
    "edlm.data.tokenizer_kinds": {"_SHOWN_ALPHABET"},
    "edlm.evaluation.continuations": {"_REPEATS"},
    "edlm.evaluation.figures": {"_SHORT"},
    "edlm.evaluation.quality": {"_TOGETHER"},
    "edlm.frontier.closing_report": {"_SHOWN", "_WIDTH"},
    "edlm.frontier.curve": {"_SHORT"},
    "edlm.frontier.exact": {"_TOKENS"},
    "edlm.frontier.exact_report": {"SCREEN"},
    "edlm.frontier.table": {"SCREEN"},
    "edlm.runs.tables": {"_ROUNDING", "_TERMINAL"},
    "edlm.data.vocabulary": {"_DOCUMENTS_PER_CALL", "_PIECES_PER_CALL"},
    "edlm.likelihood.chances": {"_STATES_AT_ONCE"},
    "edlm.nn.attention": {"_TOGETHER"},
    "edlm.nn.head": {"_ROUNDING"},
    "edlm.nn.sizes": {"_SHOWN"},
    "edlm.process.arguments": {"_SHOWN"},
    "edlm.process.categorical": {"_LOGITS_AT_ONCE_UNROLLED"},
    "edlm.runs.exits": {"_LONGEST", "_SHOWN"},
    "edlm.runs.locks": {"_TRIES"},
    "edlm.runs.processes": {"_BUCKET"},
    "edlm.runs.settings": {"_SHOWN"},
    "edlm.runs.words": {"_SHOWN"},
    "edlm.progress": {"_SECONDS"},
    "edlm.training.report": {"_MOST"},
    "edlm.samplers.drafters": {"_KEPT"},
    "edlm.samplers.execution": {"_SMALLEST_GRAPH", "_FEWEST_NEW"},
    "edlm.training.log": {"_WIDTH", "_HEIGHT", "_PER_ROW", "_SHOWN"},
}
ELSEWHERE = {"edlm.limits"}  # in `test_documented_limits.py`


@pytest.mark.parametrize("module", CONSTANTS)
def test_a_constant_that_results_depend_on_is_as_it_was(module: str) -> None:
    found = vars(import_module(module))
    assert {name: found[name] for name in CONSTANTS[module]} == CONSTANTS[module]


def test_every_number_that_a_module_names_stands_in_one_of_the_tables() -> None:
    for path in sorted([*(ROOT / "edlm").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts if parts[0] == "edlm" else ["edlm", *parts])  # an installed package has its recipes
        if module not in ELSEWHERE and "plot" not in path.stem:  # how a picture looks is no promise
            told = CONSTANTS.get(module, {}).keys() | FREE.get(module, set())
            assert set(named(ast.parse(path.read_text("utf-8")))) <= told, module


def named(module: ast.Module) -> Iterator[str]:
    """Yield the names that a module gives to numbers, or to tuples of them."""
    for node in module.body:
        if isinstance(node, ast.Assign) and is_number(node.value):
            yield from (name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))


def is_number(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    return isinstance(node, ast.UnaryOp | ast.BinOp | ast.Tuple) and all(
        is_number(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)
    )
