"""The limits of every number in a config: what lies on them is accepted, what lies beyond is refused with its key."""

import copy
import math
import re
from importlib import import_module
from typing import Any

import pytest
from smallest import settings_of

from edlm.process import particles
from edlm.runs import settings as schemas

Limits = tuple[list[Any], list[Any]]  # values that are accepted, values that are not


def at_least(low: int) -> Limits:
    return [low, low + 1], [low - 1, low + 0.5, str(low), True]


def above_zero(most: float = math.inf) -> Limits:
    over = [] if most == math.inf else [most + 1e-9]
    return [5e-324, min(most, 1e300)], [0, -1e-9, *over, "1", True]


def from_coldest() -> Limits:
    coldest = particles.COLDEST
    return [coldest, 1e300], [0, coldest / 2, -coldest, math.inf, math.nan, "1", True]


def between(low: float, high: float) -> Limits:
    return [low, (low + high) / 2, high], [low - 1e-9, high + 1e-9, None, False]


def or_null(limits: Limits) -> Limits:
    accepted, refused = limits
    return [None, *accepted], [value for value in refused if value is not None]


FROM_ZERO: Limits = [0, 0.0, 1e300], [-1e-9, "0", True]
SEEDS: Limits = [0, 2**63 - 1], [-1, 2**63, 0.5, False]
WINDOWS: Limits = [[0, 1], [0.5, 0.5], [0, 0], [1.0, 1.0]], [[-1e-9, 1], [0.6, 0.5], [0, 1 + 1e-9], [0], [0, 1, 1], 1]
SPANS: Limits = [[1, 1], [1, 9]], [[0, 1], [2, 1], [1], [1, 2, 3], [1, 2.0], [True, 2], 1]
STEPS_OF_LOSS: Limits = [None, 1, [1, 1]], [0, 1.0, [0, 1], [2, 1]]
LISTS_OF_SEEDS: Limits = [[0], [0, 2**63 - 1]], [[], [-1], 0, None]
LISTS_ABOVE_ZERO: Limits = [[], [5e-324, 3]], [[0], [-1.0], 3, None]
LISTS: Limits = [[1], [1, 2]], [[], [0], 1, None, ["1"]]
NUMBERS: Limits = [None, [0], [0, 1]], [[], [-1], 0]
LOGGERS: Limits = [[], ["wandb"], ["tensorboard", "wandb"]], [["disk"], "wandb", None]
PLACES = {"seed": SEEDS, "threads": or_null(at_least(1))}
UPDATES = {
    **{key: at_least(1) for key in ("steps", "batch_size", "accumulate", "log_every", "valid_every", "save_every")},
    "keep_last": at_least(1),
    "warmup_steps": at_least(0),
    "valid_rows": at_least(2),
    "clip_norm": above_zero(),
    "ema_decay": between(0, 1),
    "patience": or_null(at_least(1)),
    "sample_every": or_null(at_least(1)),
    "log_to": LOGGERS,
    **PLACES,
}
DENOISER = {
    **{"length": at_least(1), "time_low": between(0, 0.5), "loss_steps": STEPS_OF_LOSS},
    **{"block": or_null(at_least(1)), "time_high": ([1e-9, 1], [0, 1.1, "1", True])},
}
ENERGY = {
    **{f"pretrain.{key}": limits for key, limits in {**UPDATES, **DENOISER}.items() if key not in PLACES},
    **{f"samples.{key}": at_least(1) for key in ("num_samples", "num_steps", "num_particles")},
    **{"samples.window": WINDOWS, "samples.seed": SEEDS},
    **{"dropout": between(0, 0.9), "transition_steps": SPANS},
    **{"num_negatives": at_least(1), "report_particles": at_least(2)},
}
SIZES = {key: at_least(1) for key in ("length", "rows", "num_steps", "num_particles")} | {"vocab_size": at_least(3)}
TARGETS = {key: or_null(above_zero()) for key in ("target", "memory_target")}
LIMITS: dict[str, dict[str, Limits]] = {
    "pretrain_denoiser": {**UPDATES, **DENOISER},
    "pretrain_ar": {**UPDATES, "length": at_least(1)},
    "adapt": {
        **{**UPDATES, "length": at_least(1), "opening_steps": or_null(at_least(1))},
        **{"lora.rank": at_least(1), "lora.alpha": above_zero()},
    },
    "edlm_nce": {
        **{**UPDATES, **ENERGY, "time_low": between(0, 0.5), "length": or_null(at_least(1))},
        **{"lora.rank": at_least(1), "lora.alpha": above_zero()},
    },
    "edlm_joint": {
        **{**UPDATES, **ENERGY, "valid_rows": at_least(8), "num_energy_layers": at_least(1)},
        **dict.fromkeys(("denoiser_rate", "nelbo_weight", "energy_weight"), FROM_ZERO),
    },
    "speedrun": {
        **{f"base.{key}": limits for key, limits in UPDATES.items() if key not in PLACES},
        **{"base.length": at_least(1), "base.time_low": between(0, 0.5), "base.loss_steps": STEPS_OF_LOSS},
        **{"threads": PLACES["threads"], "seeds": LISTS_OF_SEEDS, "targets": LISTS_ABOVE_ZERO},
    },
    "distill": {
        **{**UPDATES, "time_low": between(0, 0.5)},
        **dict.fromkeys(("rounds", "num_steps", "at_once"), at_least(1)),
    },
    "generate": {
        **{key: at_least(1) for key in ("num_samples", "batch_size", "tokens_per_pass", "num_particles")},
        **{key: or_null(at_least(1)) for key in ("energy_rows", "length", "stride", "num_steps")},
        **{"temperature": above_zero(), "energy_temperature": from_coldest()},
        **{"target_ess": or_null(above_zero()), "nucleus": above_zero(1), "window": WINDOWS},
        **PLACES,
    },
    "evaluate": {
        **{key: at_least(1) for key in ("batch_size", "num_particles", "num_completions", "num_orders")},
        **{key: or_null(at_least(1)) for key in ("length", "num_steps", "num_passes")},
        **{"context": at_least(0), "rows": or_null(at_least(2)), "log_z_particles": at_least(2)},
        **{"replicates": at_least(2), "ngrams": LISTS, "window": WINDOWS, "energy_temperature": from_coldest()},
        **PLACES,
    },
    "frontier": {
        **{"num_samples": at_least(2), "batch_size": at_least(1), "replicates": at_least(2), "ngrams": LISTS},
        "length": or_null(at_least(1)),
        **PLACES,
    },
    "likelihoods": {
        **{key: at_least(1) for key in ("batch_size", "num_completions", "num_orders", "nelbo_draws")},
        **{key: or_null(at_least(1)) for key in ("length", "num_passes")},
        "rows": or_null(at_least(2)),
        **PLACES,
    },
    "oracle": {
        **{key: at_least(2) for key in ("length", "num_samples", "bounded_texts", "entropy_texts", "replicates")},
        **{"batch_size": at_least(1), "distances": LISTS},
        **PLACES,
    },
    "benchmark": {
        **{f"network.{key}": at_least(1) for key in ("num_layers", "num_heads")},
        **{"network.hidden_size": at_least(2), "network.conditioning_size": at_least(0)},
        **{f"cases.0.{key}": limits for key, limits in {**SIZES, **TARGETS, "repeats": at_least(1)}.items()},
        "cases.0.textbook_steps": or_null(at_least(1)),
        "cases.0.machinery_target": or_null(between(0, 1)),
        **{f"growth.0.{key}": limits for key, limits in {**SIZES, "repeats": at_least(1)}.items()},
        **{"growth.0.num_steps": ([1, [1, 2]], [0, [1], [], [0, 1]]), "growth.0.rows": ([1, [1, 2]], [0, [1], [0, 1]])},
        "growth.0.last_over_previous": or_null(above_zero()),
        **{f"training.0.{key}": at_least(1) for key in ("length", "rows", "repeats")},
        **{f"training.0.{key}": limits for key, limits in TARGETS.items()},
        **{"training.0.vocab_size": at_least(3), "training.0.utilisation_target": or_null(between(0, 1))},
        **{"only": NUMBERS, "only_training": NUMBERS, "peak_flops": or_null(above_zero())},
        **PLACES,
    },
}
ROWS = [(recipe, key) for recipe, limits in LIMITS.items() for key in limits]


def checked(recipe: str, key: str, value: Any) -> None:
    """Check the entry of a recipe's smallest config that holds a value, which may lie in sections and lists, changed.

    The other entries are checked as they are in `test_the_config_around_the_values_is_accepted`.
    """
    *sections, last = key.split(".")
    entry = key.partition(".")[0]
    settings = {entry: copy.deepcopy(TINY[recipe][entry])}
    inner: Any = settings
    for part in sections:
        inner = inner[int(part)] if isinstance(inner, list) else inner[part]
    assert last in inner, key
    inner[last] = value
    schemas.check({entry: import_module(f"edlm.recipes.{recipe}").SETTINGS[entry]}, settings)


TINY = {recipe: settings_of(recipe) for recipe in LIMITS}
for of_denoiser in (TINY["pretrain_denoiser"], *(TINY[recipe]["pretrain"] for recipe in ("edlm_nce", "edlm_joint"))):
    of_denoiser |= {"block": None, "time_high": 1.0}  # may be left out
for recipe in ("edlm_nce", "adapt"):
    TINY[recipe]["lora"] = {"rank": 8, "alpha": 16}  # null in the config


@pytest.mark.parametrize(("recipe", "key"), ROWS)
def test_what_lies_on_a_limit_is_accepted_and_what_lies_beyond_is_refused_by_its_key(recipe: str, key: str) -> None:
    accepted, refused = LIMITS[recipe][key]
    for value in accepted:
        checked(recipe, key, value)
    shown = re.sub(r"\\\.(\d+)", r"\\[\1\\]", re.escape(key))
    for value in refused:
        with pytest.raises(ValueError, match=rf"^{shown}(\[\d\])? = .* must be ") as error:
            checked(recipe, key, value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("recipe", LIMITS)
def test_the_config_around_the_values_is_accepted(recipe: str) -> None:
    schemas.check(import_module(f"edlm.recipes.{recipe}").SETTINGS, TINY[recipe])


@pytest.mark.parametrize("recipe", LIMITS)
def test_every_setting_that_takes_a_number_has_its_limits_here(recipe: str) -> None:
    schema = import_module(f"edlm.recipes.{recipe}").SETTINGS
    for key in schema.keys() - LIMITS[recipe].keys():
        for number in (1, 0.5, [1]):
            with pytest.raises(ValueError, match=re.escape(key)):
                schema[key](key, number)
