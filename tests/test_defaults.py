"""The value of an argument that is left out: a promise to all who leave it out, changed on purpose or not at all."""

import ast
import inspect
import math
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "edlm"
NETWORK = {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "conditioning_size": 128, "dropout": 0.0}
FROM_ZERO = {"seed": 0, "first_row": 0}
BLOCKS = {"cache": "data/cache", "layout": "packed", "wrapped": False, "normalised": False}
MOSTLY_TRAINED = (0.9, 0.05, 0.05)
PUBLISHED = {"max_length": 1024, "dropout": 0.0}
KEEPS_NOTHING = {"keep": False}
UNPROMISED = {"plots", "plot_labels", "harness"}  # how a picture looks; what another library calls with all it has
PARTS = {"length": 8, "num_rows": 3, "seed": 0}
PLAIN = {"temperature": 1.0, "nucleus": 1.0}


def each(names: Sequence[str], defaults: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Functions with the same arguments."""
    return dict.fromkeys(names, defaults)


DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "edlm.contracts": {
        "Reads": {"texts": 0, "candidates": 1, "new": 0, "in_turn": 0, "calls": 1},
    },
    "edlm.process.arguments": {"require_whole": {"least": 1, "also": ""}},
    "edlm.process.absorbing": each(("reveal_plan", "ordered_plan"), {"tokens_per_pass": 1}),
    "edlm.process.categorical": {"rows_at_once": {"unrolled": False}},
    "edlm.process.finite": {
        "require_log_prob": {"whose": "the denoiser"},
        "require_temperature": {"smallest": 0.0},
    },
    "edlm.process.noise": {"uniforms": {"position": 0, "count": 1}},
    "edlm.process.particles": {"log_weights": {"temperature": 1.0}},
    "edlm.process.schedules": {
        **each(("log_linear", "cosine", "cosine_squared"), {"eps": 0.0}),
        "linear": {"sigma_min": 0.001, "sigma_max": 7.0},
        "geometric": {"sigma_min": 0.0001, "sigma_max": 20.0},
        "polynomial": {"power": 2.0},
    },
    "edlm.process.training_times": {
        "stratified_times": {"low": 0.0, "high": 1.0},
        "of_blocks": {"low": 0.0, "high": 1.0},
        "importance_times": {"low": 0.001},
        "importance_weight": {"low": 0.001},
    },
    "edlm.nn.attention": {"Attention.forward": KEEPS_NOTHING, "following": {"together": 0}},
    "edlm.nn.blocks": each(("Block.forward", "Trunk.forward"), KEEPS_NOTHING),
    "edlm.nn.energy_network": {"EnergyNetwork": {**NETWORK, "norm_bias": False, "qk_norm": False}},
    "edlm.nn.pretrained": {"PretrainedNetwork": {"shifted": False}, "VocabularyHead": {"never": ()}},
    "edlm.nn.pretrained_decoder": {"PretrainedDecoder.forward": KEEPS_NOTHING},
    "edlm.nn.trunk_energy": {
        "TrunkEnergy": {"dropout": 0.0},
        "TrunkEnergy.train": {"mode": True},
        "over": {"trunk": "frozen", "dropout": 0.0},
    },
    "edlm.nn.shallow": {
        "ShallowNetwork": {**NETWORK, "norm_bias": False, "qk_norm": False},
        "ShallowNetwork.forward": KEEPS_NOTHING,
    },
    "edlm.nn.networks": {
        "Transformer.forward": KEEPS_NOTHING,
        "Transformer.follow": {"together": 0},
        "Transformer": {**NETWORK, "causal": False, "norm_bias": False, "qk_norm": False},
        "JointNetwork": {**NETWORK, "norm_bias": False, "num_energy_layers": 1, "qk_norm": False},
    },
    "edlm.nn.decoders": {"DecoderNetwork": {"shifted": False}, "DecoderNetwork.forward": KEEPS_NOTHING},
    "edlm.data.catalogue": {
        "Part": {"all_but_last": 0, "last": 0},
        "Published": {"columns": ("text",), "unit": "line", "whole": False, "beside": ()},
    },
    "edlm.data.corpora": {
        "text_files": {"normalised": False, "fractions": MOSTLY_TRAINED},
        "read_documents": {"normalised": False},
    },
    "edlm.data.datasets": {
        "named": {**BLOCKS, "streaming": False},
        "files": {**BLOCKS, "column": "text", "documents_are": "paragraphs", "fractions": MOSTLY_TRAINED},
    },
    "edlm.data.documents": {"read": {"columns": ("text",), "unit": "paragraphs"}},
    "edlm.data.pieces": {"Excerpt": {"given_after": 0}, "excerpts": {"joined": True, "context": 0}},
    "edlm.data.vocabulary": {
        "train_bpe": {"size": 768},
        "Vocabulary.encode": {"continued": False},
        "Vocabulary.decode": {"show_specials": False},
        "characters": {"alphabet": "abcdefghijklmnopqrstuvwxyz ", "specials": ()},
        "byte_level_bpe": {"pad": False},
    },
    "edlm.models.drafts": {"drafts": {**PARTS, "num_particles": 4, "device": "cpu"}},
    "edlm.objectives.baselines": {"score_entropy": {"time_low": 0.001}},
    "edlm.objectives.contrastive": {
        "contrastive": {"num_negatives": 1, "time_low": 0.001},
        "Frozen.train": {"mode": True},
    },
    "edlm.objectives.blocks": {
        "denoising": {"times": (0.001, 1.0), "noise_levels": "by_time", "loss_weights": "nelbo"},
    },
    "edlm.objectives.denoising": {
        "denoising": {"time_low": 0.001, "noise_levels": "by_time", "loss_weights": "nelbo"},
    },
    "edlm.objectives.distillation": {"distillation": {"at_once": 2, "divergence": "kl", "time_low": 0.001}},
    "edlm.objectives.drafting": {"next_token": {"every": 1}},
    "edlm.objectives.joint": {"contrastive": {"num_negatives": 1, "nelbo_weight": 1.0, "energy_weight": 1.0}},
    "edlm.objectives.transition": {"contrastive": {"num_negatives": 1}},
    "edlm.samplers.ahead": {"sample": FROM_ZERO, "step": {**PLAIN, "anew": True}},
    "edlm.samplers.drafters": {
        "Manner": {"ahead": 4, "context": 32, "anew": True},
        "OfDenoiser": PLAIN,
        **each(("OfMasks", "OfCounts"), {"ahead": 4, **PLAIN}),
    },
    "edlm.samplers.autoregressive": {"sample": {**FROM_ZERO, "temperature": 1.0}, "complete": {"temperature": 1.0}},
    "edlm.samplers.baselines": {"sample": {**FROM_ZERO, "num_samples": 1}},
    "edlm.samplers.choices": {
        "EntropyBound": {"gamma": 0.1, "by": "entropy"},
        "Confidence": {"threshold": 0.9},
        "Ranked": {"count": 1, "by": "confidence"},
    },
    "edlm.samplers.configs": {"from_config": {"where": "sampler."}},
    "edlm.samplers.corrections": {
        "Parts": {"carries": False},
        "OfEnergy": {"temperature": 1.0, "called": "own"},
        "ChainRule": {"temperature": 1.0, "factor": 1.0},
        "Joint": {"temperature": 1.0, "factor": 1.0},
        "Autoregressive": {"temperature": 1.0},
    },
    "edlm.samplers.execution": {"accelerate": {"mode": "compile"}},
    "edlm.samplers.looping": {"passes": {"first_pass": 0}},
    "edlm.samplers.passes": each(("plain", "weighed"), {"cached": False}),
    "edlm.progress": {"bar": {"leave": True}},
    "edlm.samplers.watching": {"live": {"rows": 4}},
    "edlm.samplers.pipelines": {
        **each(("sample", "extend"), {**FROM_ZERO, "num_samples": 1, "progress": False}),
        "pipeline": {"cached": True},
    },
    "edlm.samplers.remasking": {
        "Cap": {"eta": 0.008},
        "Rescale": {"eta": 0.015},
        "Loop": {"t_on": 0.55, "t_off": 0.05, "alpha_on": 0.9, "eta": 0.02},
    },
    "edlm.samplers.plans": {"Grid": {"spacing": "uniform"}, **each(("TokensPerPass", "LeftToRight"), {"count": 1})},
    "edlm.samplers.rounds": {"UntilEss": {"first": 2}},
    "edlm.samplers.sampler": {
        "Proposal": PLAIN,
        "Sampler": {"candidates": 1, "window": (0.0, 1.0)},
        **each(("kernel_of", "describe"), {"cached": False}),
    },
    "edlm.samplers.speculative": {"step": PLAIN},
    "edlm.samplers.stages": {"propose": PLAIN},
    "edlm.limits": {"require_texts": {"each_of": 1}},
    "edlm.likelihood.bounds": {"of_sampler": {"num_completions": 1}},
    "edlm.likelihood.enumeration": {"transitions": {"proposal_temperature": 1.0}},
    "edlm.likelihood.hidden_markov": {
        **each(("random_hidden_markov", "random_markov"), {"strength": 2.0}),
        "texts": {"first_row": 0},
        "pair_law": {"distance": 1},
    },
    "edlm.likelihood.nelbo": {"data_log_prob": {"after_clean": False}},
    "edlm.weights.checkpoints": {
        **each(("load_network", "load_as", "load_vocabulary_of", "load_state"), {"verify": True}),
        "load_network": {"verify": True, "components": ()},
        "save_checkpoint": {"keep_last": 2},
    },
    "edlm.weights.exchange": {"convert": {"raw": False, "wrapped": False}, "build": {"raw": False}},
    "edlm.weights.large": {
        **each(("load_diffusion", "read_diffusion", "read_autoregressive"), {"max_length": 2048}),
        "load_vocabulary": {"add_mask": False},
    },
    "edlm.weights.adaptation": {"Start": {"made": False}, "start_causal": {"key": "ar"}},
    "edlm.weights.loading": {"_network": {"fold": True}, "Found": {"opening": ()}},
    "edlm.weights.memory": {"memory_plan": {"trained": 0}},
    "edlm.weights.own": {"find": {"components": ()}},
    "edlm.weights.pretrained": {"causal": {"both_ways": False}, "Blocks": {"shifted": False}},
    "edlm.weights.resolve": {"Sources": {"opening": ()}},
    "edlm.weights.tensors": {"require_held": {"copies": 1}},
    "edlm.weights.published": each(("load", "load_denoiser", "load_autoregressive", "load_energy"), PUBLISHED),
    "edlm.evaluation.calibration": {"expected_calibration_error": {"num_bins": 10}},
    "edlm.evaluation.continuations": {
        "Reading": {
            **{"plan": "tokens_per_pass", "tokens_per_pass": 1, "num_draws": 64, "block_length": 32, "seed": 0},
            "batch_size": 8,
        },
        "Wanted": {"stops": (), "most": 256, **PLAIN},
        "complete": {"repetition": 0},
    },
    "edlm.evaluation.contrast": {"held_out": {"only_new": False}},
    "edlm.evaluation.judges": {
        "autoregressive": {"batch_size": 16},
        **each(("causal_lm", "torchtune_decoder"), {"batch_size": 4}),
    },
    "edlm.evaluation.ngrams": {"judge": {"order": 5}},
    "edlm.evaluation.verdicts": {"told_apart": {"comparisons": 1}},
    "edlm.evaluation.samples": {"Row": {"remark": ""}},
    "edlm.evaluation.quality": each(("bootstrap", "replicate_weights", "half_sampling"), {"replicates": 200}),
    "edlm.benchmark.comparison": {"measure": {"detailed": True}},
    "edlm.training.forecast": {"table": {"step": 0}},
    "edlm.training.loop": {"TrainingRun": {"per_token": False}},
    "edlm.training.muon": {
        "Muon": {"lr": 0.005, "adamw_lr": 0.002, "momentum": 0.95, "betas": (0.9, 0.999), "weight_decay": 0.01},
    },
    "edlm.frontier.grid": {"Alone": {"temperature": 1.0}},
    "edlm.frontier.draws": {"Drawing": {"execution": "eager"}},
    "edlm.runs.entry": {"enter": {"writes": True}},
    "edlm.runs.settings": {
        "number": {"high": math.inf, "above": False},
        "items": {"least": 0},
        "check": {"where": ""},
        "temperature": {"coldest": 0.0},
        "component": {"offered": ()},
        "check_arguments": {"supplied": (), "offered": ()},
    },
    "edlm.runs.timing": {"Part": {"calls": 0, "rows": 0, "seconds": 0.0, "flops": 0.0}},
    "edlm.cli.doctor": {"Finding": {"remark": "", "suffices": True}},
    "edlm.training.energy": {"conclude": {"texts": ()}},
    "edlm.weights.hub": {
        "Model.energy": {"carry_over": False},
        "from_pretrained": {"device": "cpu", "local_files_only": False, "force_download": False},
    },
    "edlm.testing": {
        "check_energy": {**PARTS, "num_particles": 4, "tolerance": 0.0001},
        "check_denoiser": {**PARTS, "tolerance": 0.0001},
        "check_rule": {**PARTS, "num_rows": 32},
        "check_selection": {"num_particles": 4, "num_rows": 64, "seed": 0},
        "check_one_graph": {"tolerance": 0.0001},
    },
}


@pytest.mark.parametrize("module", DEFAULTS)
def test_an_argument_that_is_left_out_has_the_value_that_it_always_had(module: str) -> None:
    for name, wanted in DEFAULTS[module].items():
        function: Any = import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        parameters = inspect.signature(function).parameters
        found = {key: parameters[key].default for key in wanted}
        assert found == wanted, f"{module}.{name}"
        assert [type(value) for value in found.values()] == [type(value) for value in wanted.values()]


def written(module: Path) -> Iterator[tuple[str, str]]:
    """Yield the public functions and classes of a module, with each of their arguments that has a plain default."""
    for node in ast.parse(module.read_text("utf-8")).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        inside = node.body if isinstance(node, ast.ClassDef) else []
        for field in [each for each in inside if isinstance(each, ast.AnnAssign) and each.value]:
            if "ClassVar" not in ast.unparse(field.annotation) and is_plain(field.value):
                yield node.name, ast.unparse(field.target)
        for each in [node, *inside]:
            if isinstance(each, ast.FunctionDef) and (each.name == "__init__" or not each.name.startswith("_")):
                name = node.name if each.name in (node.name, "__init__") else f"{node.name}.{each.name}"
                yield from ((name, argument) for argument in with_defaults(each.args))


def with_defaults(arguments: ast.arguments) -> Iterator[str]:
    given = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(reversed(given), reversed(arguments.defaults), strict=False)]
    pairs += [(name, value) for name, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value]
    return (name.arg for name, value in pairs if is_plain(value))


def is_plain(node: ast.AST | None) -> bool:
    """Whether it is a truth, a number, a text or a tuple of them, and not None or what stands under another name."""
    if isinstance(node, ast.Tuple):
        return all(map(is_plain, node.elts))
    return isinstance(node, ast.Constant) and node.value is not None


@pytest.mark.parametrize(
    "module",
    [str(path) for path in sorted(PACKAGE.rglob("*.py")) if path.stem not in UNPROMISED],
    ids=lambda path: Path(path).stem,
)
def test_every_default_of_a_public_function_stands_in_the_table(module: str) -> None:
    name = ".".join(["edlm", *Path(module).relative_to(PACKAGE).with_suffix("").parts])
    told = {(function, argument) for function, values in DEFAULTS.get(name, {}).items() for argument in values}
    assert set(written(Path(module))) <= told
