"""Which functions of the package each test enters: a test that never enters a changed function cannot notice it.

A test counts as known when it passed without entering a changed function. What it shares with other tests counts for
each of them: fixtures of a wider scope for those that ask for them; cached functions, module bodies and whatever
collecting enters for all. A test that starts a process counts as entering everything.
"""

import ast
import json
import sys
import threading
from collections.abc import Iterator
from functools import _lru_cache_wrapper
from hashlib import sha256
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

_STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")  # audit events
NO_TIME = "no time is left"
Entered = dict[int, CodeType]  # by id, since to hash a code takes long


def function_at(source: str, line: int, column: int) -> str | None:
    """The qualified name of the function whose body holds a place, None where the place is run on import."""
    node: ast.AST = ast.parse(source)
    prefix, found = "", None
    while True:
        inside = [child for child in ast.iter_child_nodes(node) if _holds(child, line, column)]
        if not inside:
            return found
        node = inside[-1]
        if isinstance(node, ast.ClassDef):
            prefix += f"{node.name}."
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not any(_holds(child, line, column) for child in node.body):
                return found  # its defaults and decorators
            found = prefix + node.name
            prefix = f"{found}.<locals>."


def _holds(node: ast.AST, line: int, column: int) -> bool:
    """Whether a node, or what it consists of where it has no place, holds a place."""
    start, end = getattr(node, "lineno", None), getattr(node, "end_lineno", None)
    if start is None or end is None:
        return any(_holds(child, line, column) for child in ast.iter_child_nodes(node))
    return (start, node.col_offset) <= (line, column) < (end, node.end_col_offset)  # type: ignore[attr-defined]


class Known:
    """What is known of tests, kept in a file, and forgotten when the package or what tests share has changed."""

    def __init__(self, file: Path, root: Path) -> None:
        self.file, self.root = file, root
        self.state = _hash(path for path in root.rglob("*.py") if not path.name.startswith("test_"))
        content = json.loads(file.read_text("utf-8")) if file.exists() else {}
        fresh = content.get("state") == self.state
        self.names: list[str] = content["names"] if fresh else []
        self.shared: set[str] = set(content["shared"]) if fresh else set()
        self.files: dict[str, dict[str, Any]] = content["files"] if fresh else {}
        self.index = {name: number for number, name in enumerate(self.names)}

    def of(self, file: str) -> dict[str, Any]:
        """What is known of a test file: its tests with the functions that they enter, and all that it collects."""
        state = _hash([self.root / file])
        if self.files.get(file, {}).get("state") != state:
            self.files[file] = {"state": state, "tests": {}, "all": None}
        return self.files[file]

    def may_notice(self, file: str, test: str, function: str) -> bool:
        """Whether a test enters a function, as far as is known."""
        entered = self.of(file)["tests"].get(test)
        return entered is None or entered == "all" or self.index.get(function) in entered

    def is_worth_running(self, file: str, function: str | None) -> bool:
        """Whether any test of a file may enter a function."""
        tests = self.of(file)["all"]
        everywhere = function is None or function in self.shared or tests is None
        return everywhere or any(self.may_notice(file, test, function or "") for test in tests)

    def entering(self, function: str) -> list[str]:
        """List the test files of which a test is known to enter a function."""
        number = self.index.get(function)
        return [
            file
            for file, known in sorted(self.files.items())
            if any(number in entered for entered in known["tests"].values() if entered != "all")
        ]

    def tests_entering(self, function: str) -> list[str]:
        """List the tests that are known to enter a function themselves, whatever they share with others."""
        number = self.index.get(function)
        found = [known["tests"] for known in self.files.values()]
        return [test for tests in found for test, entered in tests.items() if entered != "all" and number in entered]

    def learn(self, found: dict[str, Any]) -> None:
        """Add what a child has found."""
        self.shared |= set(found["shared"])
        for file, tests in found["collected"].items():
            self.of(file)["all"] = tests
        for file, test, entered in found["tests"]:
            self.of(file)["tests"][test] = entered if entered == "all" else [self._number(name) for name in entered]
        content = {"state": self.state, "names": self.names, "shared": sorted(self.shared), "files": self.files}
        self.file.write_text(json.dumps(content), "utf-8")

    def _number(self, name: str) -> int:
        if name not in self.index:
            self.index[name] = len(self.names)
            self.names.append(name)
        return self.index[name]


def _hash(paths: Any) -> str:
    return sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()


class Reach:
    """A pytest plugin: it leaves out tests that never enter the changed function, and learns what the others enter."""

    def __init__(self, known: Known, folder: Path, told: Path, function: str | None) -> None:
        self.known, self.folder, self.told, self.function = known, f"{folder}/", told, function
        self.found: dict[str, Any] = {"shared": [], "collected": {}, "tests": []}
        self.shared, self.now = Entered(), Entered()
        self.fixtures: dict[Any, Entered] = {}  # what those of a wider scope than a test enter
        self.asked: list[Any] = []
        self.cached: set[int] = set()
        self.modules = self.depth = 0
        self.starts = self.fails = False

    def pytest_sessionstart(self) -> None:
        """Count what collecting enters as shared."""
        sys.addaudithook(self._hear)
        self.now = self.shared
        _trace(self._enter)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what cannot notice the change."""
        _trace(None)
        for item in items:
            self.found["collected"].setdefault(self._file(item), []).append(item.nodeid)
        function = self.function
        if function is None or function in self.known.shared | self._names(self.shared):
            return
        kept = [item for item in items if self.known.may_notice(self._file(item), item.nodeid, function)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[object]:
        """Keep what a fixture that several tests share enters apart."""
        if fixturedef.scope == "function":
            return (yield)
        before, tracer = self.now, sys.gettrace()
        self.now = self.fixtures.setdefault(fixturedef, Entered())
        _trace(self._enter)
        try:
            return (yield)
        finally:
            _trace(tracer)
            self.now = before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[object]:
        """Trace a test of which nothing is known; learn nothing where it fails or enters what is changed."""
        if item.nodeid in self.known.of(self._file(item))["tests"]:
            return (yield)
        self.now, self.asked, self.starts, self.fails = Entered(), [], False, False
        self._find_cached()
        _trace(self._enter)
        try:
            return (yield)
        finally:
            _trace(None)
            names = frozenset().union(*map(self._names, [self.now, *(self.fixtures.get(f, {}) for f in self.asked)]))
            if not self.fails and (self.function is None or self.function not in names):
                self.found["tests"].append((self._file(item), item.nodeid, "all" if self.starts else sorted(names)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that fails or has no time."""
        self.fails |= report.outcome == "failed" or NO_TIME in str(report.longrepr)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Note the fixtures that a test has asked for, also while it ran."""
        self.asked = list(item._request._fixture_defs.values())  # type: ignore[attr-defined]

    def pytest_sessionfinish(self) -> None:
        """Tell what was found."""
        self.found["shared"] = sorted(self._names(self.shared))
        self.told.write_text(json.dumps(self.found), "utf-8")

    def _file(self, item: pytest.Item) -> str:
        return str(item.path.relative_to(self.known.root))

    def _names(self, entered: Entered) -> frozenset[str]:
        codes = [code for code in list(entered.values()) if code.co_filename.startswith(self.folder)]
        return frozenset(f"{code.co_filename.removeprefix(self.folder)}::{code.co_qualname}" for code in codes)

    def _find_cached(self) -> None:
        """Look for functions that keep their results, if there are new modules."""
        if self.modules == len(sys.modules):
            return
        self.modules = len(sys.modules)
        places = (self.folder, f"{self.known.root}/")
        for module in [each for each in sys.modules.values() if str(getattr(each, "__file__", "")).startswith(places)]:
            for value in list(vars(module).values()):
                inside = list(vars(value).values()) if isinstance(value, type) else []
                kept = [each for each in (value, *inside) if isinstance(each, _lru_cache_wrapper)]
                self.cached |= {id(each.__wrapped__.__code__) for each in kept}

    def _enter(self, frame: FrameType, event: str, value: object) -> Any:
        code = frame.f_code
        self.now[id(code)] = code
        is_shared = id(code) in self.cached or code.co_name == "<module>"
        if self.depth or is_shared:
            self.shared[id(code)] = code
        if not is_shared:
            return None
        self.depth += 1
        frame.f_trace_lines = False
        return self._leave

    def _leave(self, frame: FrameType, event: str, value: object) -> Any:
        self.depth -= event == "return"
        return self._leave

    def _hear(self, event: str, values: object) -> None:
        self.starts |= event in _STARTS


def _trace(function: Any) -> None:
    threading.settrace(function)
    sys.settrace(function)
