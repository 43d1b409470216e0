"""Count what a tree of this repository is made of: `python tests/count_tree.py [COMMIT]`, the working tree without one.

A room is a package of the library, a module beside them, or the recipes; an arrow says that one room imports another;
floors are the longest way down. Rooms that import each other share a floor.
"""

import ast
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
RECIPES = "recipes"


def main(words: list[str]) -> None:
    """Print the counts of the working tree, or of a commit."""
    if not words:
        print(shown(ROOT))
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", words[0]], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        print(shown(Path(folder)))


def shown(tree: Path) -> str:
    """One line a count."""
    return "\n".join(f"{name:<36} {value}" for name, value in counts(tree).items())


def counts(tree: Path) -> dict[str, object]:
    """Every count of a tree by its name."""
    files = {path: path.read_text("utf-8") for path in sources(tree)}
    lengths = {path: len(text.splitlines()) for path, text in files.items()}
    trees = {path: ast.parse(text) for path, text in files.items()}
    functions = [length for each in trees.values() for length in function_lengths(each)]
    longest = max(lengths, key=lambda path: lengths[path])
    modules = {name_of(path, tree) for path in trees}
    between = {(name_of(path, tree), other) for path, each in trees.items() for other in imports(each, modules)}
    arrows = {(room(one), room(other)) for one, other in between if room(one) != room(other)}
    rooms = {room(name) for name in modules}
    return {
        "files": len(files),
        "lines": sum(lengths.values()),
        "lines of the longest file": f"{lengths[longest]} ({longest.relative_to(tree)})",
        "lines of a file (median)": round(median(lengths.values())),
        "lines of a function (median)": round(median(functions)),
        "rooms": len(rooms),
        "floors": floors(rooms, arrows),
        "arrows between rooms": len(arrows),
        "imports between modules": len(between),
    }


def sources(tree: Path) -> list[Path]:
    """The files of the library and of the recipes that hold more than a docstring, without the face."""
    found = [*(tree / "edlm").glob("*/**/*.py"), *(tree / "edlm").glob("[!_]*.py"), *(tree / RECIPES).glob("*.py")]
    return sorted(path for path in found if len(ast.parse(path.read_text("utf-8")).body) > 1)


def name_of(path: Path, tree: Path) -> str:
    """The module that a file is."""
    parts = path.relative_to(tree).with_suffix("").parts
    parts = ("edlm", *parts) if parts[0] == RECIPES else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, modules: set[str]) -> set[str]:
    """Those of the modules that a module imports; of a package only what it shows itself."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found & modules


def room(module: str) -> str:
    """The room that a module is in."""
    return ".".join(module.split(".")[:2])


def floors(rooms: set[str], arrows: set[tuple[str, str]]) -> int:
    """The most rooms that stand above each other, those that reach each other as one."""
    below = {each: {other for one, other in arrows if one == each} for each in rooms}
    reach = {each: set(below[each]) for each in rooms}
    for middle in rooms:
        for each in rooms:
            reach[each] |= reach[middle] if middle in reach[each] else set()
    ways = {each: {other for other in reach[each] if other in rooms and each not in reach[other]} for each in rooms}
    height: dict[str, int] = {}
    for each in sorted(rooms, key=lambda each: len(ways[each])):
        height[each] = 1 + max((height[other] for other in ways[each]), default=0)
    return max(height.values())


def function_lengths(tree: ast.Module) -> Iterator[int]:
    """Lines of every function and method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield node.end_lineno - node.lineno + 1


if __name__ == "__main__":
    main(sys.argv[1:])
