"""Commands as documents show them, taken apart."""

import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from edlm.cli import commands
from edlm.runs import entry, settings


class Run(NamedTuple):
    """`edlm run`: the recipe, the name of its config, and the overrides."""

    recipe: str
    config: str
    overrides: list[str]

    def settings(self) -> dict[str, Any]:
        """What the recipe would be given, `tiny` for a config of one's own. Raises ValueError as the recipe would."""
        known = commands.configs(self.recipe)
        loaded = _loaded(known.get(self.config, known["tiny"]))
        values = OmegaConf.to_container(OmegaConf.merge(loaded, OmegaConf.from_dotlist(self.overrides)), resolve=True)
        values = {key: value for key, value in values.items() if key not in entry._GENERAL}
        settings.check(import_module(f"edlm.recipes.{self.recipe}").SETTINGS, values)
        return values


@cache
def _loaded(file: Path) -> DictConfig:
    return OmegaConf.load(file)


def in_markdown(text: str) -> Iterator[list[str]]:
    """Every command of the bash blocks, as words; variables of a block are filled in, comments left out."""
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        variables: dict[str, str] = {}
        for line in _logical_lines(block):
            words = shlex.split(_filled_in(line, variables), comments=True)
            if words and re.fullmatch(r"\w+=.*", words[0]):
                name, _, variables[name] = words[0].partition("=")
                continue
            yield from _between(words, "&&")


def in_prose(text: str) -> Iterator[list[str]]:
    """Every line of a docstring or of comments that is an `edlm run`, as words, with the lines that continue it."""
    lines = iter(line.lstrip("# ") for line in text.splitlines())
    for line in lines:
        if line.startswith("edlm run "):
            whole = line
            while whole.endswith("\\"):
                whole = whole.removesuffix("\\") + next(lines)
            yield shlex.split(whole, comments=True)


def run_of(words: list[str]) -> Run | None:
    """The run that a command is, None for another command and for `--help`."""
    if words[:2] != ["edlm", "run"] or "--help" in words:
        return None
    rest, config, plain = iter(words[2:]), "tiny", []
    for word in rest:
        if word.startswith("--"):
            value = next(rest)
            config = value if word == "--config" else config
        else:
            plain.append(word)
    return Run(plain[0], config, plain[1:])


def _logical_lines(block: str) -> Iterator[str]:
    """Lines, those put together that a backslash or an open quotation mark continues."""
    line = ""
    for part in block.splitlines():
        line += part.removesuffix("\\") if part.endswith("\\") else f"{part}\n"
        if not part.endswith("\\") and line.partition("  #")[0].count("'") % 2 == 0:
            yield line
            line = ""


def _filled_in(line: str, variables: Mapping[str, str]) -> str:
    for name, value in variables.items():
        line = line.replace(f"${name}", value)
    return line


def _between(words: list[str], separator: str) -> Iterator[list[str]]:
    while separator in words:
        place = words.index(separator)
        yield words[:place]
        words = words[place + 1 :]
    yield words
