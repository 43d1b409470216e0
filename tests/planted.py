"""A program that plants faults, one after the other, in one copy of the package, and runs the test of each in a child.

It reads lines of json, each a list of (file, text, tests): a file of the package, what it holds instead of what it has,
and the tests. Each line is answered by a line: exit status and output of all of them. A file that is None is no fault.

The tests of a fault run in a fork of a process that has everything imported already but the faulty module, those that
import it, and test files. So nothing is imported twice, nor from another text than the one that is there.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TextIO

import heavy  # noqa: F401
import importing
import planting
import pytest
import torch

Planted = tuple[str | None, str, list[str]]


class Planter:
    """A pytest plugin: the configured process runs no tests itself, a fork of it does for every fault."""

    def __init__(self, folder: Path, questions: Iterable[str], answers: TextIO) -> None:
        self.folder, self.questions, self.answers = folder, questions, answers
        self.asked: set[Path] = set()
        self.several = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int | None:
        if self.asked:
            return None  # in a fork: pytest goes on
        for line in self.questions:
            results, output = planting.in_child(partial(self.results, config, json.loads(line)))
            print(json.dumps(results if isinstance(results, list) else output), file=self.answers, flush=True)
        return 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Leave out at once what nobody asked for."""
        return None if collection_path in self.asked else True

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Of several tests that are asked for, run the first case of each."""
        if self.several:
            items[:] = {item.nodeid.partition("[")[0]: item for item in reversed(items)}.values()

    def results(self, config: pytest.Config, work: Sequence[Planted]) -> list[tuple[int, str]]:
        """Exit status and output of the tests of each fault."""
        results = []
        for number, (file, text, names) in enumerate(work):
            self.preload({importing.name_of(later) for later, _, _ in work[number:] if later})
            path = self.folder / "edlm" / (file or "__init__.py")
            before = path.read_text("utf-8")
            try:
                path.write_text(text if file else before, encoding="utf-8")
                results.append(planting.in_child(partial(self.run, config, names)))
            finally:
                path.write_text(before, encoding="utf-8")
        return results

    def preload(self, faulty: set[str]) -> None:
        """Import everything that none of these modules is a part of."""
        for name in importing.without(faulty):
            with suppress(ModuleNotFoundError):  # what an extra of the package brings
                import_module(name)
        assert not (known := faulty & sys.modules.keys()), known

    def run(self, config: pytest.Config, names: list[str]) -> int:
        """Exit status of pytest with these tests."""
        files = {Path(name.partition("::")[0]) for name in names}
        self.asked = files.union(*(file.parents for file in files))
        self.several = len(names) > 1
        config.args = names
        return int(config.hook.pytest_cmdline_main(config=config))


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed is no answer
    folder = planting.compiled()
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)  # for the processes a test starts itself
    os.chdir(folder)
    planter = Planter(folder, questions, answers)
    pytest.main([*planting.OPTIONS, "-m", "not slow", str(planting.ROOT / "tests")], plugins=[planter])


if __name__ == "__main__":
    main()
