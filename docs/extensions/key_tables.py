"""Every key of every recipe, from the commented configs and from what a recipe checks: a page of the reference."""

import ast
import copy
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

import edlm
from edlm.cli import commands
from edlm.runs import entry, settings

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = "reference/configs"
COMMON = Path(__file__).parents[1] / "reference" / "common_keys.yaml"
_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:#(?P<comment>.*))?$")
_WRONG = object()
_LARGEST = 2**63 - 1  # of an int64


class Key(NamedTuple):
    """A key: its dotted path, its value in the first config that has it, the values it takes, what it says."""

    path: str
    value: Any
    accepts: str
    says: str


def keys(recipe: str) -> list[Key]:
    """List the keys of a recipe, those of `tiny` first. A component is one key; its arguments are its own."""
    common = yaml.safe_load(COMMON.read_text("utf-8"))
    files = commands.configs(recipe)
    found: dict[str, Key] = {}
    for file in (files["tiny"], *files.values()):
        loaded = yaml.safe_load(file.read_text("utf-8"))
        said = comments(file.read_text("utf-8"))
        for path, value in leaves(loaded):
            known = found.get(path) or Key(path, value, accepts(recipe, loaded, path), "")
            found[path] = known._replace(says=known.says or said.get(path) or common.get(path.split(".")[-1], ""))
    return [key for key in found.values() if key.path not in {"recipe", *entry._GENERAL}]


def leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Go through the keys of a config in order; a section is gone into, unless it names a component."""
    for name, value in values.items():
        names = value if isinstance(value, dict) and "_component_" not in value else ()
        if names and all(name.isidentifier() for name in names):
            yield from leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def comments(text: str) -> dict[str, str]:
    """Find what a config says of its keys: behind one on its line, or in the lines above it."""
    said: dict[str, str] = {}
    above: list[str] = []
    sections: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.strip().startswith("#"):
            above.append(line.strip("# "))
        elif found := _LINE.match(line):
            indent = len(found["indent"])
            sections = [(depth, name) for depth, name in sections if depth < indent] + [(indent, found["key"])]
            path = ".".join(name for _, name in sections)
            said[path] = " ".join([*above, (found["comment"] or "").strip()]).strip()
            above = []
        elif not line.strip():
            above = []
    return said


def accepts(recipe: str, config: Mapping[str, Any], path: str) -> str:
    """Say which values a key takes, in the words in which the recipe refuses others."""
    *sections, last = path.split(".")
    first = path.partition(".")[0]
    words = []
    for value in (_WRONG, None):
        changed = copy.deepcopy({first: config[first]})  # each key is checked by itself
        holder = changed
        for name in sections:
            holder = holder[name]
        holder[last] = value
        words.append(refusal(recipe, changed, path))
    wanted = words[0].partition(" must be ")[2]
    wanted = wanted.removesuffix(f" and at most {_LARGEST}")
    return f"{wanted}, or null" if wanted and not words[1] else wanted


def refusal(recipe: str, config: Mapping[str, Any], path: str) -> str:
    """Return what a recipe says of some keys of a config that it refuses for one, "" if it refuses them for none."""
    schema = import_module(f"edlm.recipes.{recipe}").SETTINGS
    try:
        settings.check({key: schema[key] for key in config if key in schema}, config)
    except ValueError as error:
        return str(error) if str(error).startswith(path) else ""
    return ""


def page() -> str:
    """Write the page's sections, one for each recipe."""
    return "\n".join(section(recipe, file) for recipe, file in commands.recipes().items())


def section(recipe: str, file: Path) -> str:
    """Write what a recipe is for, its configs, and the table of its keys."""
    purpose = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]
    rows = [f"| `{key.path}` | {shown(key.value)} | {sentence(key)} |" for key in keys(recipe)]
    configs = ", ".join(f"`{name}`" for name in commands.configs(recipe))
    head = [f"## {recipe}", "", purpose, "", f"Configs: {configs}.", ""]
    return "\n".join([*head, "| key | in `tiny` | what |", "|---|---|---|", *rows, ""])


def sentence(key: Key) -> str:
    """Write what a key says and takes."""
    return cell(f"{key.says.removesuffix('.')}. *Takes {key.accepts}.*")


def shown(value: Any) -> str:
    """Write a value as a config does, and of a long list only that it is one."""
    if isinstance(value, dict) and "_component_" in value:
        return component(value["_component_"])
    written = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    return f"`{written}`" if len(written) <= 40 else "a list"


def component(path: str) -> str:
    """Link a factory of ours by the name that a config gives it, and show another's."""
    if not path.startswith("edlm."):
        return f"`{path}`"
    factory = attrgetter(path.removeprefix("edlm."))(edlm)
    return f"{{py:obj}}`{path} <{factory.__module__}.{factory.__qualname__}>`"


def cell(words: str) -> str:
    """Write words so that a table holds them."""
    return words.replace("|", "\\|")


def append(app: "Sphinx", docname: str, source: list[str]) -> None:
    """Put the tables behind what the page says itself."""
    if docname == PAGE:
        source[0] += "\n" + page()


def setup(app: "Sphinx") -> dict[str, Any]:
    """Fill the page when it is read."""
    app.connect("source-read", append)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
