"""The words that settings are chosen from, and which settings may be null: every schema, key by key."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from edlm import recipes

Check = Callable[[str, Any], None]
DEVICE = {"device": "auto, cpu, cuda"}
SPLIT = {"split": "train, valid, test"}
PADDING = {"padding": "ignored, learned, read"}
UPDATES = {
    "decay": "constant, cosine",
    "precision": "float32, bfloat16, pure_bfloat16",
    "parallel": "data, sharded",
}
CLASSIFIER = {"objective": "nce, info_nce"}
DENOISER = {
    **PADDING,
    "objective": "mdlm, chain_rule, blocks, d3pm, sedd",
    "noise_levels": "by_time, by_count, bell",
    "loss_weights": "nelbo, even",
}
ENERGY = {
    **CLASSIFIER,
    "start_from": "denoiser, scratch",
    "embedding": "own, shared",
    "scope": "draft, transition",
    "ar_form": "posterior, carry_over",
    "trunk": "trained, frozen",
}
EXECUTION = {"execution": "eager, compile, cudagraph"}
OF_RECIPES: dict[str, dict[str, str]] = {
    "adapt": {**DEVICE, **UPDATES},
    "benchmark": {**DEVICE, "dtype": "float32, bfloat16"},
    "distill": {**DEVICE, "divergence": "kl, kl-fwd, mse, tvd", **UPDATES},
    "edlm_joint": {**DEVICE, **CLASSIFIER, **UPDATES},
    "edlm_nce": {**DEVICE, **ENERGY, **UPDATES},
    "evaluate": {**DEVICE, **SPLIT, "documents": "joined, separate"},
    "frontier": {**DEVICE, **SPLIT, **EXECUTION},
    "generate": {
        **{**DEVICE, **EXECUTION, "ar_form": "posterior, carry_over", "precision": "float32, bfloat16"},
        "selection": "sir, imh, greedy, speculative",
    },
    "likelihoods": {**DEVICE, **SPLIT},
    "oracle": {},
    "pretrain_ar": {**DEVICE, **PADDING, **UPDATES},
    "pretrain_denoiser": {**DEVICE, **DENOISER, **UPDATES},
    "speedrun": DEVICE,
}
CHOICES: dict[str, dict[str, str]] = {
    **{f"edlm.recipes.{name}:SETTINGS": {"recipe": name, **own} for name, own in OF_RECIPES.items()},
    "edlm.training.denoiser:MODEL": {**DENOISER, **UPDATES},
    "edlm.training.settings:SETTINGS": UPDATES,
    "edlm.training.settings:WITHOUT_TIMES": UPDATES,
    "edlm.frontier.learning:SETTINGS": {
        **{"denoiser": "mdlm, chain_rule, blocks", "start_from": "denoiser, scratch"},
        **{**CLASSIFIER, **UPDATES},
    },
    "edlm.benchmark.cases:RUNS": {"method": "plain, posterior, carry_over"},
    "edlm.benchmark.training_cases:SCHEMA": {"objective": "denoising, contrast"},
}


def schema(where: str) -> Mapping[str, Check]:
    module, _, name = where.partition(":")
    found: Mapping[str, Check] = getattr(import_module(module), name)
    return found


def told(check: Check, value: Any) -> str | None:
    """What a check says of a value; None if it is accepted."""
    try:
        check("key", value)
    except ValueError as error:
        return str(error)
    return None


def test_every_recipe_has_its_table() -> None:
    assert set(OF_RECIPES) == {path.stem for path in Path(recipes.__path__[0]).glob("[!_]*.py")}


@pytest.mark.parametrize("where", CHOICES)
def test_a_setting_takes_its_own_words_and_no_other(where: str) -> None:
    for key, words in CHOICES[where].items():
        check = schema(where)[key]
        for word in words.split(", "):
            assert told(check, word) is None, f"{key} = {word}"
            assert told(check, f"{word}_") is not None
        assert (told(check, "no such word") or "").endswith(f"one of {words}"), key


@pytest.mark.parametrize("where", CHOICES)
def test_every_setting_that_is_chosen_stands_in_the_table(where: str) -> None:
    chosen = {key for key, check in schema(where).items() if "one of" in (told(check, "no such word") or "")}
    assert chosen == CHOICES[where].keys()
