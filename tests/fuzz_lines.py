"""Command lines at random: every command and every recipe, with keys, values and words that nobody meant."""

import random
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import fuzz_damage
import fuzz_folder
import yaml

from edlm.runs import settings as schemas

HUGE = (10**7, 10**9)
ARGUMENTS = (
    *("--help", "--config", "--nproc_per_node", "--nproc_per_node=0", "--nproc_per_node=x", "--nproc_per_node=1.5"),
    *("--nnodes=x", "--to", "--to=hf", "--tokenizer=text8", "--tokenizer=nothing", "--part=energy", "--num-heads=0"),
    *(
        "--num-heads=-3",
        "--num-heads=5",
        "--num-heads=99999999999",
        "--length=0",
        "--length=-1",
        "--length=99999999999",
    ),
    *(
        "--raw",
        "--unknown",
        "-x",
        "-",
        "--",
        "",
        "é",
        "\ud800",
        "=",
        "=1",
        "a=",
        "a=b=c",
        "~",
        "~seed",
        "~~",
        "~x=1",
        "~=",
    ),
    *(
        "models",
        "models/denoiser",
        "models/text",
        "published/mdlm.ckpt",
        "published/hf",
        "configs/generate.yaml",
        "out",
    ),
    *(
        "texts/text.txt",
        "texts/text.zip",
        "nothing",
        "x.py",
        "own.py",
        "own.yaml",
        "generate",
        "generate/tiny",
        "/",
        ".",
    ),
    *(
        "edlm_nce/x",
        "x/tiny",
        "generate/../generate/tiny",
        "seed=1",
        "steps=!!timestamp 2020",
        "network=1",
        "[",
        "{",
        "*",
    ),
)
OWN = (  # recipes of one's own
    "",
    '"""A recipe."""\nSETTINGS = {}\n',
    "SETTINGS = 3\n",
    "import nothing\n",
    "def\n",
    "raise KeyError('x')\n",
    "from edlm.runs import entry, settings\nSETTINGS = {'recipe': settings.text, 'seed': settings.seed}\n"
    "if __name__ == '__main__':\n    entry.enter(print, SETTINGS)\n",
    "\x00",
    "é = 1\n",
)
OWN_CONFIGS = (
    "recipe: ./own.py\nseed: 0\n",
    "recipe: own.py\nseed: 0\n",
    "recipe: own\n",
    "recipe: generate\n",
    "recipe:\n",
    "recipe: [1]\n",
    "seed: 1\nrecipe: &a generate\nx: *a\n",
    "recipe: generate\n\tseed: 1\n",
    "- recipe\n- generate\n",
    "recipe: !!python/object/apply:os.system ['touch executed']\n",
    "recipe: generate\nrecipe: evaluate\n",
    "recipe: generate\n? [1, 2]\n: 3\n",
    "recipe: generate\nseed: !!timestamp 2020\n",
    "recipe: generate\nseed: &a [*a]\n",
    "recipe: generate\n1: 2\nnull: 3\n",
    "recipe: generate\nseed: 2020-01-01\n",
    "recipe: generate\nseed: !!set {a}\n",
    "recipe: generate\n--- \nseed: 1\n",
    "",
    "recipe: generate",
    "\ufeffrecipe: generate\n",
)


@cache
def _keys(recipe: str) -> tuple[tuple[str, Any], ...]:
    """Every dotted key of a recipe's smallest config, sections too, with its value."""
    loaded = yaml.safe_load(Path("configs", f"{recipe}.yaml").read_text("utf-8"))
    return tuple(_flat(loaded, ""))


def _flat(values: dict[str, Any], prefix: str) -> Any:
    for key, value in values.items():
        yield prefix + key, value
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


def words(rng: random.Random) -> tuple[list[str], bool]:
    """A command line, and whether it must be refused."""
    kind = rng.random()
    if kind < 0.75:
        return _recipe(rng)
    if kind < 0.85:
        Path("own.py").write_text(rng.choice(OWN))
        Path("own.yaml").write_text(rng.choice(OWN_CONFIGS))
        first = rng.choice((["validate", "own.yaml"], ["run", "own.py", "--config", "own.yaml"]))
        return [*first, *rng.choices(ARGUMENTS, k=rng.choice((0, 0, 0, 1)))], False
    command = rng.choice(("run", "ls", "cp", "validate", "convert", "convert", "doctor", "x", ""))
    return [command, *rng.choices(ARGUMENTS, k=rng.randrange(1 if command == "doctor" else 5))], False


def _may_be_left_out(recipe: str, key: str) -> bool:
    return import_module(f"edlm.recipes.{recipe}").SETTINGS.get(key) in schemas._OMISSIBLE


def _recipe(rng: random.Random) -> tuple[list[str], bool]:
    recipe = rng.choice(list(fuzz_folder.settings()))
    config = f"configs/{recipe}.yaml"
    first = ["validate", config] if rng.random() < 0.3 else ["run", recipe, "--config", config]
    key, value = rng.choice(_keys(recipe))
    kind = rng.choice(("value",) * 6 + ("misspelt", "left out", "component", "odd key", "two"))
    if kind == "misspelt":
        at = rng.randrange(len(key))
        return [*first, f"{key[:at]}{rng.choice('xyq')}{key[at:]}=1"], True
    if kind == "left out":
        return [*first, f"~{key}"], ("." not in key or value is None) and not _may_be_left_out(recipe, key)
    if kind == "component":
        sections = [key for key, value in _keys(recipe) if isinstance(value, dict) and "_component_" in value]
        if sections:
            name = rng.choice(fuzz_damage.COMPONENTS)
            return [*first, f"{rng.choice(sections)}._component_={name}"], False
    if kind == "odd key":
        key = rng.choice(
            (f"{key}.", f".{key}", f"{key}..x", f"{key}.x", f"{key}[0]", f"{key}[x]", "[]", "..", f"{key} ")
        )
    if kind == "two":
        other, _ = rng.choice(_keys(recipe))
        return [*first, f"{key}={rng.choice(fuzz_damage.VALUES)}", f"{other}={rng.choice(fuzz_damage.VALUES)}"], False
    given = rng.choice(fuzz_damage.VALUES)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return [*first, f"{key}={given}"], number and kind == "value" and given in (
        "[1,2]",
        "{a: 1}",
        "x",
        "true",
        "2020-01-01",
    )


@cache
def huge(configs: Path) -> list[list[str]]:
    """Every whole number of every recipe's config, made huge: command lines, one after the other."""
    found = []
    for config in sorted(configs.glob("*.yaml")):
        for key in _whole_numbers(yaml.safe_load(config.read_text("utf-8"))):
            found += [["run", config.stem, "--config", str(config), f"{key}={size}"] for size in HUGE]
    return found


def _whole_numbers(values: Any, above: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and key != "pretrain":  # the denoiser is there
            yield from _whole_numbers(value, f"{above}{key}.")
        elif type(value) is int and key not in ("seed", "threads"):
            yield f"{above}{key}"
