"""The value of an argument that is left out: a promise to all who leave it out, changed on purpose or not at all."""

import inspect
import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest

NETWORK = {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "conditioning_size": 128, "dropout": 0.0}
FROM_ZERO = {"seed": 0, "first_row": 0}
BLOCKS = {"cache": "data/cache", "layout": "packed", "wrapped": False, "normalised": False}
MOSTLY_TRAINED = (0.9, 0.05, 0.05)
PUBLISHED = {"max_length": 1024, "dropout": 0.0}
PARTS = {"length": 8, "num_rows": 3, "seed": 0}
PLAIN = {"temperature": 1.0, "nucleus": 1.0}


def each(names: Sequence[str], defaults: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Functions with the same arguments."""
    return dict.fromkeys(names, defaults)


DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "edlm.contracts": {"Reads": {"texts": 0, "candidates": 1, "new": 0, "in_turn": 0, "calls": 1}},
    "edlm.process.absorbing": {"reveal_plan": {"tokens_per_pass": 1}},
    "edlm.process.noise": {"uniforms": {"position": 0, "count": 1}},
    "edlm.process.particles": {"log_weights": {"temperature": 1.0}},
    "edlm.process.schedules": {
        **each(("log_linear", "cosine", "cosine_squared"), {"eps": 0.0}),
        "linear": {"sigma_min": 0.001, "sigma_max": 7.0},
        "geometric": {"sigma_min": 0.0001, "sigma_max": 20.0},
        "polynomial": {"power": 2.0},
    },
    "edlm.process.training_times": {
        "stratified_times": {"low": 0.0},
        "importance_times": {"low": 0.001},
        "importance_weight": {"low": 0.001},
    },
    "edlm.nn.networks": {
        "Transformer": {**NETWORK, "causal": False, "norm_bias": False},
        "EnergyNetwork": {**NETWORK, "norm_bias": False},
        "JointNetwork": {**NETWORK, "norm_bias": False, "num_energy_layers": 1},
    },
    "edlm.nn.decoders": {"DecoderNetwork": {"shifted": False}},
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
        "Vocabulary.encode": {"continued": False},
        "Vocabulary.decode": {"show_specials": False},
        "characters": {"alphabet": "abcdefghijklmnopqrstuvwxyz ", "specials": ()},
        "byte_level_bpe": {"pad": False},
    },
    "edlm.models.drafts": {"drafts": {**PARTS, "num_particles": 4, "device": "cpu"}},
    "edlm.objectives.baselines": {"score_entropy": {"time_low": 0.001}},
    "edlm.objectives.contrastive": {"contrastive": {"num_negatives": 1, "time_low": 0.001}},
    "edlm.objectives.denoising": {"denoising": {"time_low": 0.001}},
    "edlm.objectives.joint": {"contrastive": {"num_negatives": 1, "nelbo_weight": 1.0, "energy_weight": 1.0}},
    "edlm.objectives.transition": {"contrastive": {"num_negatives": 1}},
    "edlm.samplers.autoregressive": {"sample": {**FROM_ZERO, "temperature": 1.0}, "complete": {"temperature": 1.0}},
    "edlm.samplers.baselines": {"sample": {**FROM_ZERO, "num_samples": 1}},
    "edlm.samplers.corrections": {
        "OfEnergy": {"temperature": 1.0},
        "ChainRule": {"temperature": 1.0, "factor": 1.0},
        "Joint": {"temperature": 1.0, "factor": 1.0},
    },
    "edlm.samplers.execution": {"accelerate": {"mode": "compile"}},
    "edlm.samplers.pipelines": each(("sample", "extend"), {**FROM_ZERO, "num_samples": 1}),
    "edlm.samplers.plans": {"Grid": {"spacing": "uniform"}, "TokensPerPass": {"count": 1}},
    "edlm.samplers.rounds": {"UntilEss": {"first": 2}},
    "edlm.samplers.sampler": {"Proposal": PLAIN, "Sampler": {"candidates": 1, "window": (0.0, 1.0)}},
    "edlm.samplers.speculative": {"step": PLAIN},
    "edlm.samplers.stages": {"propose": PLAIN},
    "edlm.likelihood.bounds": {"of_sampler": {"num_completions": 1}},
    "edlm.likelihood.enumeration": {"transitions": {"proposal_temperature": 1.0}},
    "edlm.likelihood.hidden_markov": {
        **each(("random_hidden_markov", "random_markov"), {"strength": 2.0}),
        "texts": {"first_row": 0},
        "pair_law": {"distance": 1},
    },
    "edlm.weights.checkpoints": {
        **each(("load_network", "load_as", "load_vocabulary_of", "load_state"), {"verify": True}),
        "save_checkpoint": {"keep_last": 2},
    },
    "edlm.weights.exchange": {"convert": {"raw": False}},
    "edlm.weights.large": each(("load_diffusion", "read_diffusion", "read_autoregressive"), {"max_length": 2048}),
    "edlm.weights.loading": {"_network": {"fold": True}},
    "edlm.weights.hub": {
        "from_pretrained": {"device": "cpu", "force_download": False, "local_files_only": False},
        "Model.energy": {"carry_over": False},
    },
    "edlm.weights.published": each(("load", "load_denoiser", "load_autoregressive", "load_energy"), PUBLISHED),
    "edlm.evaluation.calibration": {"expected_calibration_error": {"num_bins": 10}},
    "edlm.evaluation.continuations": {
        "Reading": {
            **{"plan": "tokens_per_pass", "tokens_per_pass": 1, "num_draws": 64, "block_length": 32, "seed": 0},
            "batch_size": 8,
        },
        "Wanted": {"stops": (), "most": 256, **PLAIN},
    },
    "edlm.evaluation.contrast": {"held_out": {"only_new": False}},
    "edlm.evaluation.judges": {
        "autoregressive": {"batch_size": 16},
        **each(("causal_lm", "torchtune_decoder"), {"batch_size": 4}),
    },
    "edlm.evaluation.quality": each(("bootstrap", "replicate_weights", "half_sampling"), {"replicates": 200}),
    "edlm.training.loop": {"TrainingRun": {"per_token": False}},
    "edlm.frontier.grid": {"Alone": {"temperature": 1.0}},
    "edlm.frontier.draws": {"Drawing": {"execution": "eager"}},
    "edlm.runs.settings": {"number": {"high": math.inf, "above": False}, "items": {"least": 0}},
    "edlm.cli.doctor": {"Finding": {"remark": "", "suffices": True}},
    "edlm.testing": {
        **each(("check_energy", "check_denoiser"), {**PARTS, "tolerance": 0.0001}),
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
