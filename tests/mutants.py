"""A campaign of small mutations: how many changes of the source does a test notice?

    python tests/mutants.py runs/mutants.jsonl --seed 1 --number 100     # plants them; stopped, it goes on where it was
    python tests/mutants.py runs/mutants.jsonl --seed 1 --number 100 --again 20   # survivors, with 20 files of tests
    python tests/mutants.py runs/mutants.jsonl --report                  # figures, and the diffs of what survived

Each mutant is one change of one module, planted in a copy of the package. Tests of the module run against it: the file
of its name, the runs on record, and files that import it, the nearest first (`tests_of`). A line of the results says
what became of it: `killed`, with the test; `survived`; or `hung` (stopped by the limit, in which the tests pass without
it; counted as killed). What survived is judged by hand in the file: `"judged": "equivalent"` (no result changes) or
`"gap"` (a test is missing).
"""

import argparse
import ast
import difflib
import json
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mutations
import torch
import trials
from planting import ROOT

TESTS = ROOT / "tests"
TABLES = (
    "test_argument_limits.py",
    "test_constants.py",
    "test_defaults.py",
    "test_edges.py",
    "test_wrong_kinds.py",
    "recipes/test_setting_edges.py",
    "recipes/test_setting_limits.py",
)  # of many modules; they name each of them once, and are quick
OF_RECIPES = "recipes/test_entries.py", "recipes/test_setting_words.py"  # of every recipe; they import none by name
ON_RECORD = "tests/recipes/test_recorded_runs.py"  # enters most of the library
NEAREST = 4  # files of tests for one mutant, beside the runs on record
Record = dict[str, Any]


class Mutant(NamedTuple):
    """A mutation and the file that it is made in, from the root of the repository."""

    file: str
    mutation: mutations.Mutation

    @property
    def name(self) -> str:
        """Say which one it is, and what the line is that it changes."""
        m = self.mutation
        return f"{self.file}:{m.line}:{m.column} {m.kind}: {m.old} -> {m.new}"

    @property
    def installed(self) -> str:
        """Where the file is in an installed package, whose recipes are inside of it."""
        return self.file if self.file.startswith("edlm/") else f"edlm/{self.file}"

    def diff(self) -> str:
        """The change as a person reads it."""
        source = (ROOT / self.file).read_text("utf-8")
        lines = source.splitlines(), self.mutation.applied(source).splitlines()
        return "\n".join(difflib.unified_diff(*lines, self.file, self.file, n=2, lineterm=""))


def modules() -> list[str]:
    """Every source file of the library and of the recipes, from the root of the repository."""
    found = [path for part in ("edlm", "recipes") for path in sorted((ROOT / part).rglob("*.py"))]
    return [str(path.relative_to(ROOT)) for path in found if path.stem != "__init__"]


def plan(files: Sequence[str], seed: int, number: int) -> list[Mutant]:
    """Choose mutants: one of each module in turn, its kind and then its place by lot."""
    lot = random.Random(seed)
    files = lot.sample(list(files), len(files))
    left = {file: mutations.of((ROOT / file).read_text("utf-8")) for file in files}
    chosen: list[Mutant] = []
    while any(left.values()) and len(chosen) < number:
        for file in [file for file in files if left[file]][: number - len(chosen)]:
            kind = lot.choice(sorted({mutation.kind for mutation in left[file]}))
            mutation = lot.choice([mutation for mutation in left[file] if mutation.kind == kind])
            left[file].remove(mutation)
            chosen.append(Mutant(file, mutation))
    return chosen


def dotted(file: str) -> str:
    """The name that a source file is imported by."""
    path = file if file.startswith("edlm/") else f"edlm/{file}"
    return path.removesuffix(".py").replace("/", ".")


@cache
def tests_of(file: str) -> list[str]:
    """Test files of a module, the nearest first: those of its name, those that import it, those of what imports it.

    Who runs a recipe by its name imports it too.
    """
    module, stem = dotted(file), Path(file).stem.strip("_")
    assert all((TESTS / name).is_file() for name in (*TABLES, *OF_RECIPES))
    named = [path for path in sorted(TESTS.rglob("test_*.py")) if path.stem in (f"test_{stem}", f"test_{stem}s")]
    named.sort(key=lambda path: path.parent.name != Path(file).parent.name)  # its own package's first
    near = [path for path in _users({module}) if path not in named]
    above = {dotted(other) for other in modules() if module in imported(ROOT / other)}
    far = [path for path in _users(above) if path not in (*named, *near)]
    first, rest = [*named, *near, *far][:2], [*named, *near, *far][2:]
    tables = [path for path in map(TESTS.joinpath, TABLES) if path in [*near, *far]]
    tables += [TESTS / name for name in OF_RECIPES if file.startswith("recipes/")]
    files = dict.fromkeys([*first, *tables, *rest])
    return [str(path.relative_to(ROOT)) for path in files]


def _users(names: set[str]) -> list[Path]:
    """Test files that import one of the modules or run it as a recipe, those first that name it most often."""
    words = [name.rsplit(".", 1)[-1] for name in names]
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        used = imported(path)
        if used & names or any(word in used for name, word in zip(names, words, strict=True) if ".recipes." in name):
            found[path] = sum(len(re.findall(rf"\b{word}\b", path.read_text("utf-8"))) for word in words)
    return sorted(found, key=lambda path: -found[path])


@cache
def imported(path: Path) -> set[str]:
    """Dotted names of what a file imports or reads as attributes, and its strings that name a recipe or module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_name(node.value):
            names.add(node.value)
    return names


def _is_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def judge(mutant: Mutant, files: int, words: str, limit: float) -> Record:
    """Plant it, run the runs on record and so many files of its tests, and say what became of it."""
    begin, work = time.perf_counter(), trials.worked()
    changed = {mutant.installed: mutant.mutation.applied((ROOT / mutant.file).read_text("utf-8"))}
    near = tests_of(mutant.file)[:files]
    verdict, output = trials.try_out([*near[:1], ON_RECORD, *near[1:]], changed, words, limit)
    by = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, flags=re.MULTILINE)
    record: dict[str, Any] = {"name": mutant.name, "file": mutant.file, "verdict": verdict, "by": by[:1]}
    record |= {"seconds": round(time.perf_counter() - begin, 1), "work": round(trials.worked() - work, 1)}
    return record | ({"judged": "", "diff": mutant.diff()} if verdict == "survived" else {})


def read(results: Path) -> dict[str, Record]:
    """The last record of each mutant, by its name."""
    lines = results.read_text("utf-8").splitlines() if results.exists() else []
    return {record["name"]: record for record in map(json.loads, lines)}


def figures(records: Sequence[Record]) -> Iterator[str]:
    """Yield a line for the library and one for the recipes: how many of those that change a result were killed."""
    for part in ("edlm", "recipes"):
        of_part = [record for record in records if record["file"].startswith(f"{part}/")]
        counts = {
            word: sum(word in (record["verdict"], record.get("judged")) for record in of_part)
            for word in ("killed", "hung", "survived", "equivalent", "gap", "unknown")
        }
        changing = len(of_part) - counts["equivalent"] - counts["unknown"]
        share = (counts["killed"] + counts["hung"]) / changing if changing else float("nan")
        yield f"{part}: {len(of_part)} mutants, {counts}, noticed {share:.1%} of {changing} that may change a result"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, go on with, or report a campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a file of json lines, which grows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, default=100, help="of mutants in the whole campaign")
    parser.add_argument("--only", nargs="*", default=None, help="source files, all by default")
    parser.add_argument("--words", default="not slow", help='marks of the tests that run, "" for all')
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for the tests of one mutant")
    parser.add_argument("--again", type=int, metavar="FILES", help="run survivors with so many files of tests")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    done = read(options.results)
    chosen = [] if options.report else plan(options.only or modules(), options.seed, options.number)
    for mutant in chosen:
        before = done.get(mutant.name)
        if before and (not options.again or before["verdict"] != "survived" or before["judged"] == "equivalent"):
            continue
        record = judge(mutant, options.again or NEAREST, options.words, options.limit)
        if before and record["verdict"] == "survived":
            record["judged"] = before["judged"]
        done[mutant.name] = record
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(record["verdict"], record["seconds"], record["work"], mutant.name, *record["by"], flush=True)
    for record in done.values():
        if record["verdict"] == "survived" and options.report:
            print(f"\n{record['judged'] or 'not judged'}: {record['name']}\n{record['diff']}")
    print(*figures(list(done.values())), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
