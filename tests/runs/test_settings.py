"""Checks of settings: each accepts what it says, refuses the next value by its key, and says what would be right."""

import hashlib
import math
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from edlm.runs import settings
from edlm.runs.settings import Check

INTEGER, SMALL = settings.integer(2), settings.integer(2, 5)
AT_LEAST, ABOVE = settings.number(0.5, 2), settings.number(0.5, 2, above=True)
TWO_TIMES = "two times [low, high] with 0 <= low <= high <= 1"
TWO_NUMBERS = "two whole numbers [fewest, most] with 1 <= fewest <= most"
SECTION = "a section with keys of its own"


def needs(a: int, b: float = 0.5, c: str | None = None, d: bool = False, e: Any = None) -> dict[str, Any]:
    """A factory to be named by its path."""
    return {"a": a, "b": b, "c": c, "d": d, "e": e}


def takes_all(**given: Any) -> dict[str, Any]:
    return given


def fails(a: int) -> None:
    raise {1: ValueError("no one"), 2: KeyError("two"), 3: OSError("three"), 4: MemoryError("four")}[a]


class Plan:
    """What a plan must have, and nothing else."""

    def __init__(self, a: int) -> None:
        self.a = a

    def draw(self) -> None: ...


OWN = f"{__name__}."
COMPONENT = settings.component("supplied", offered=("offered",))


def named(name: str, **values: Any) -> dict[str, Any]:
    return {"_component_": f"{OWN}{name}", **values}


ACCEPTED: list[tuple[Check, list[Any]]] = [
    (INTEGER, [2, 2**31 - 1]),
    (SMALL, [2, 5]),
    (settings.integer(0, 2**40), [2**40]),
    (settings.seed, [0, 2**63 - 1]),
    (settings.threads, [1, 256]),
    (AT_LEAST, [0.5, 1, 2]),
    (ABOVE, [0.5 + 1e-9, 2.0]),
    (settings.number(0), [0, 1e300, math.inf]),
    (settings.temperature(), [5e-324, sys.float_info.max]),
    (settings.temperature(0.5), [0.5, sys.float_info.max]),
    (settings.choice("a", "b"), ["a", "b"]),
    (settings.text, ["a"]),
    (settings.flag, [True, False]),
    (settings.window, [[0, 1], [0.5, 0.5], [0, 0], [1, 1.0]]),
    (settings.span, [[1, 1], [1, 9]]),
    (settings.optional(INTEGER), [None, 2]),
    (settings.omissible(INTEGER), [2]),
    (settings.either(INTEGER, settings.section({"a": INTEGER})), [2, {"a": 2}]),
    (settings.section({}), [{}]),
    (settings.section({"a": INTEGER, "b": settings.omissible(INTEGER)}), [{"a": 2}, {"a": 2, "b": 3}]),
    (settings.items(INTEGER), [[], [2, 3]]),
    (settings.items(INTEGER, least=2), [[2, 3]]),
    (settings.component(), [named("needs", a=1), named("needs", a=1, b=2, c=None, d=True, e={"f": 1})]),
    (settings.component("a"), [named("needs"), named("needs", c="x")]),
    (settings.component(offered=("a",)), [named("needs"), named("needs", a=4)]),
]


@pytest.mark.parametrize("number", range(len(ACCEPTED)))
def test_it_accepts_what_it_says(number: int) -> None:
    check, values = ACCEPTED[number]
    for value in values:
        check("key", value)


REFUSED: list[tuple[Check, Any, str]] = [
    (INTEGER, 1, "key = 1 must be a whole number of at least 2"),
    (INTEGER, 2.0, "key = 2.0 must be a whole number of at least 2"),
    (INTEGER, True, "key = True must be a whole number of at least 2"),
    (INTEGER, 2**31, f"key = {2**31} must be a whole number of at least 2 and at most {2**31 - 1}"),
    (SMALL, 6, "key = 6 must be a whole number of at least 2 and at most 5"),
    (SMALL, "2", "key = '2' must be a whole number of at least 2 and at most 5"),
    (settings.seed, -1, f"key = -1 must be a whole number of at least 0 and at most {2**63 - 1}"),
    (settings.threads, 257, "key = 257 must be a whole number of at least 1 and at most 256"),
    (AT_LEAST, 0.49, "key = 0.49 must be a number of at least 0.5 and at most 2"),
    (AT_LEAST, 2.01, "key = 2.01 must be a number of at least 0.5 and at most 2"),
    (AT_LEAST, True, "key = True must be a number of at least 0.5 and at most 2"),
    (ABOVE, 0.5, "key = 0.5 must be a number above 0.5 and at most 2"),
    (settings.number(0), -1, "key = -1 must be a number of at least 0"),
    (settings.number(0), math.nan, "key = nan must be a number of at least 0"),
    (settings.temperature(), 0, "key = 0 must be a number above 0"),
    (settings.temperature(), math.inf, "key = inf must be a number above 0"),
    (settings.temperature(0.5), 0.4, "key = 0.4 must be a number of at least 0.5"),
    (settings.choice("a", "b"), "c", "key = 'c' must be one of a, b"),
    (settings.choice("a", "b"), ["a"], "key = ['a'] must be one of a, b"),
    (settings.text, "", "key = '' must be a text"),
    (settings.text, 3, "key = 3 must be a text"),
    (settings.flag, 1, "key = 1 must be true or false"),
    *((settings.window, value, f"key = {value!r} must be {TWO_TIMES}") for value in ([0], [0.6, 0.5], [0, 1.1], 3)),
    *((settings.window, value, f"key = {value!r} must be {TWO_TIMES}") for value in ([-0.1, 1], [0, "1"], [0, 1, 1])),
    *((settings.span, value, f"key = {value!r} must be {TWO_NUMBERS}") for value in ([0, 1], [2, 1], [1], [1, 2.0])),
    *((settings.span, value, f"key = {value!r} must be {TWO_NUMBERS}") for value in ([True, 2], "12")),
    (settings.optional(INTEGER), 1, "key = 1 must be a whole number of at least 2"),
    (settings.omissible(INTEGER), None, "key = None must be a whole number of at least 2"),
    (settings.either(INTEGER, settings.section({})), {"a": 1}, "key.a: unknown key; known keys: none"),
    (settings.either(INTEGER, settings.section({})), None, "key = None must be a whole number of at least 2"),
    (settings.section({"steps": INTEGER}), 3, f"key = 3 must be {SECTION}"),
    (settings.section({"steps": INTEGER}), {}, "key.steps: missing from the config"),
    (settings.section({"steps": INTEGER}), {"step": 3}, "key.step: unknown key; did you mean 'steps'?"),
    (settings.section({"steps": INTEGER, "a": INTEGER}), {"zz": 3}, "key.zz: unknown key; known keys: steps, a"),
    (settings.section({"steps": INTEGER}), {"steps": 1}, "key.steps = 1 must be a whole number of at least 2"),
    (settings.items(INTEGER), 2, "key = 2 must be a list"),
    (settings.items(INTEGER, least=2), [2], "key = [2] must be a list of at least 2 values"),
    (settings.items(INTEGER), [2, 1], "key[1] = 1 must be a whole number of at least 2"),
    (settings.component(), {"a": 1}, "key = {'a': 1} must be a section with a _component_"),
    (settings.component(), named("needs"), f"key.a: missing from the config ({OWN}needs needs it)"),
    (settings.component(), named("needs", a="1"), "key.a = '1' must be of type int"),
    (settings.component(), named("needs", a=True), "key.a = True must be of type int"),
    (settings.component(), named("needs", a=1, b="x"), "key.b = 'x' must be of type float"),
    (settings.component(), named("needs", a=1, c=3), "key.c = 3 must be of type str or NoneType"),
    (settings.component(), named("needs", a=1, d=1), "key.d = 1 must be of type bool"),
    (settings.component(), named("needs", a=1, f=1), "key.f: unknown key; known keys: a, b, c, d, e"),
    (settings.component("a"), named("needs", a=1), "key.a: unknown key; known keys: b, c, d, e"),
    (COMPONENT, named("needs", a=1), f"key._component_ = '{OWN}needs' must be a factory that takes supplied"),
    (settings.section({"a": INTEGER}), "x" * 300, f"key = '{'x' * 199}... must be {SECTION}"),
    (settings.section({"a": INTEGER}), "x" * 198, f"key = '{'x' * 198}' must be {SECTION}"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_it_refuses_anything_else_by_its_key(number: int) -> None:
    check, value, said = REFUSED[number]
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check("key", value)
    assert str(error.value) == said


@pytest.mark.parametrize("path", [None, 3, "", "lost.module", f"{OWN}lost", "math.pi"])
def test_what_cannot_be_called_is_no_component(path: Any) -> None:
    wanted = "must be the dotted path of something that can be imported and called"
    with pytest.raises(ValueError) as error:  # noqa: PT011
        settings.component()("key", {"_component_": path})
    assert str(error.value).startswith(f"key._component_ = {path!r} {wanted}")


def test_a_factory_is_called_with_its_values_and_with_what_is_offered_that_it_takes() -> None:
    offered = {"a": 1, "lost": 3}
    assert settings.call("key", named("Plan"), offered, "plan").a == 1
    assert settings.call("key", named("Plan", a=2), offered, "plan").a == 2
    assert settings.needed_by(needs) == {"a"}
    assert settings.needed_by(takes_all) == set()
    assert list(settings.parameters_of(needs)) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(("value", "said"), [(1, "no one"), (2, "KeyError: 'two'")])
def test_what_a_factory_raises_names_it(value: int, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        settings.call("key", named("fails", a=value), {})
    assert str(error.value) == f"key: {OWN}fails: {said}"
    with pytest.raises(ValueError) as error:  # noqa: PT011
        settings.build(named("fails", a=value))
    given = "" if value == 1 else f"(a={value})"
    assert str(error.value) == f"{OWN}fails{given}: {said}"


@pytest.mark.parametrize(("value", "kind"), [(3, OSError), (4, MemoryError)])
def test_what_the_machine_lacks_is_raised_as_it_is(value: int, kind: type[Exception]) -> None:
    for call in (
        lambda: settings.call("key", named("fails", a=value), {}),
        lambda: settings.build(named("fails", a=value)),
    ):
        with pytest.raises(kind):
            call()


def test_a_factory_makes_what_is_asked_for() -> None:
    assert settings.call("key", named("Plan", a=1), {}, "plan").a == 1
    assert settings.call("key", named("Plan", a=1), {}, "rule", "plan").a == 1
    assert settings.build(named("Plan", a=1), "plan").a == 1
    lacks = "but something of type Plan without"
    with pytest.raises(ValueError) as error:  # noqa: PT011
        settings.build(named("Plan", a=1), "source")
    assert str(error.value) == f"{OWN}Plan: makes no source, {lacks} 'num_symbols'"
    with pytest.raises(ValueError) as error:  # noqa: PT011
        settings.call("key", named("Plan", a=1), {}, "rule", "energy")
    assert str(error.value) == f"key: {OWN}Plan: makes no rule and no energy, {lacks} 'choose'"


def test_what_a_recipe_asks_of_each_kind_is_this() -> None:
    assert {kind: set(names) for kind, names in settings._KINDS.items()}.items() >= {
        "network": {"head", "max_length"},
        "schedule": {"alpha", "alpha_slope", "inverse"},
        "source": {"num_symbols"},
        "plan": {"draw"},
        "rule": {"choose", "expected"},
        "correction": {"parts", "temperature"},
        "selection": {"choose", "in_order"},
        "energy": {"in_keys", "out_keys"},
        "optimizer": {"param_groups", "step", "state_dict"},
    }.items()


def test_the_code_of_every_component_is_hashed_wherever_it_stands() -> None:
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    values = {"a": named("needs", e={"b": named("takes_all")}), "c": [1]}
    assert settings.sources(values) == {f"{OWN}needs": code, f"{OWN}takes_all": code}
    assert settings.sources([named("needs")]) == {}
    assert settings.sources(OrderedDict(named("needs"))) == {f"{OWN}needs": code}


def test_components_are_found_beside_a_config_after_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", ["first"])
    settings.find_beside(None)
    settings.find_beside("../there/own.yaml")
    settings.find_beside("../there/own.yaml")
    assert sys.path == ["first", str(tmp_path / "here"), str(tmp_path / "there")]
