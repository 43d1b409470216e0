"""Which modules of the package import which: read, not run."""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


def name_of(file: str) -> str:
    """The name that a file of the package is imported by."""
    return f"edlm.{file.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")


@cache
def parts() -> dict[str, set[str]]:
    """All modules of the package, each with itself and all that is imported when it is imported."""
    paths = [(path, path.relative_to(ROOT / "edlm")) for path in (ROOT / "edlm").rglob("*.py")]
    paths += [(path, path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.py")]
    read = {name_of(place.as_posix()): ast.parse(path.read_text("utf-8")) for path, place in paths}
    found = {name: {*_with_packages(name), *_imported(tree)} & read.keys() for name, tree in read.items()}
    while True:
        wider = {name: set().union(*(found[other] for other in others)) for name, others in found.items()}
        if wider == found:
            return found
        found = wider


def _with_packages(name: str) -> list[str]:
    return [name.rsplit(".", count)[0] for count in range(name.count(".") + 1)]


def _imported(node: ast.AST) -> Iterator[str]:
    """Modules, and packages that they are in, which are imported outside of functions."""
    for child in ast.iter_child_nodes(node):
        names = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            names = [f"{child.module}.{alias.name}" for alias in child.names]
        for name in names:
            yield from _with_packages(name)
        if not isinstance(child, ast.FunctionDef) and not _is_for_types(child):
            yield from _imported(child)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def without(faulty: set[str]) -> list[str]:
    """All modules that none of these is a part of."""
    return [name for name, others in parts().items() if not others & faulty]


def most_used_first(files: Iterable[str]) -> list[str]:
    """Files of the package, each before those that import it."""
    used = {file: sum(name_of(file) in others for others in parts().values()) for file in files}
    return sorted(used, key=lambda file: (-used[file], file))
