"""The checks of a config: every key of a recipe with its type and range, before anything is built.

torchtune accepts a misspelt key silently; here an unknown one is an error that names the key and the nearest known.
"""

import hashlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import OmegaConf

from edlm.runs.hints import unknown

_INT32 = 2**31 - 1
_SHOWN = 200  # characters of a value in a message

# What is asked of each thing that a config names by a `_component_`.
_KINDS = {
    "corpus": ("blocks", "fingerprint"),
    "texts": ("test",),
    "vocabulary": ("encode_documents", "mask_id", "size"),
    "network": ("head", "max_length"),
    "schedule": ("alpha", "alpha_slope", "inverse"),
    "source": ("num_symbols",),
    "plan": ("draw",),
    "rule": ("choose", "expected"),  # a plan that reads the pass
    "correction": ("parts", "temperature"),
    "selection": ("choose", "in_order"),
    "energy": ("in_keys", "out_keys"),
    "optimizer": ("param_groups", "step", "state_dict"),
}

Check = Callable[[str, Any], None]
Schema = Mapping[str, Check]

_PLAIN_TYPES: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    str: (str,),
    bool: (bool,),
    type(None): (type(None),),
}


# What can be said of a check without a value: that it takes a text, and the keys that its section has.
_TEXTS: dict[Check, bool] = {}  # whether a section may stand in the place of the text
_SECTIONS: dict[Check, Schema] = {}
_COMPONENTS: set[Check] = set()
_OMISSIBLE: set[Check] = set()


def check(schema: Schema, values: Mapping[str, Any], where: str = "") -> None:
    """Raise ValueError for an unknown or missing key, or a value of the wrong type or range."""
    for key in values:
        if key not in schema:
            raise ValueError(unknown(where + str(key), schema, values))
    for key, check_value in schema.items():
        if key not in values and check_value in _OMISSIBLE:
            continue
        if key not in values:
            raise ValueError(f"{where}{key}: missing from the config")
        check_value(where + key, values[key])


def is_text(schema: Schema, key: str, value: str) -> bool:
    """Check whether a key, with dots between sections, takes a value as it is written."""
    name, _, rest = key.partition(".")
    known = schema.get(name)
    if rest:
        return known in _SECTIONS and is_text(_SECTIONS[known], rest, value)
    return known in _TEXTS and not (_TEXTS[known] and value.startswith("{"))


def tree(schema: Schema) -> dict[str, Any]:
    """Return the keys of a schema: those of its sections below them, None for one that is no section.

    A component is an empty section, since what it takes is up to its factory.
    """
    return {key: _below(each) for key, each in schema.items()}


def _below(known: Check) -> dict[str, Any] | None:
    if known in _SECTIONS:
        return tree(_SECTIONS[known])
    return {} if known in _COMPONENTS else None


def integer(low: int, high: int | None = None) -> Check:
    """Accept a whole number of at least `low` and at most `high`, which is what an int32 holds unless it is given."""
    most = _INT32 if high is None else high

    def check_value(key: str, value: Any) -> None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        told = high is not None or (whole and value > most)
        wanted = f"a whole number of at least {low}" + (f" and at most {most}" if told else "")
        _require(whole and low <= value <= most, key, value, wanted)

    return check_value


seed = integer(0, 2**63 - 1)  # noise is keyed by an int64
threads = integer(1, 256)


def number(low: float, high: float = float("inf"), above: bool = False) -> Check:
    """Accept a number in [low, high], or (low, high] if `above`."""

    def check_value(key: str, value: Any) -> None:
        wanted = f"a number {'above' if above else 'of at least'} {low:g}"
        wanted += "" if high >= sys.float_info.max else f" and at most {high:g}"
        _require(isinstance(value, int | float) and not isinstance(value, bool), key, value, wanted)
        _require((value > low if above else value >= low) and value <= high, key, value, wanted)

    return check_value


def temperature(coldest: float = 0.0) -> Check:
    """Accept a finite number above 0, and of at least the coldest one that can be divided by."""
    most = sys.float_info.max
    return number(coldest, most) if coldest else number(0, most, above=True)


def choice(*names: str) -> Check:
    """Accept one of the given names."""

    def check_value(key: str, value: Any) -> None:
        _require(isinstance(value, str) and value in names, key, value, f"one of {', '.join(names)}")

    return check_value


def text(key: str, value: Any) -> None:
    """Accept a string that is not empty."""
    _require(isinstance(value, str) and bool(value), key, value, "a text")


_TEXTS[text] = False


def flag(key: str, value: Any) -> None:
    """Accept `true` or `false`."""
    _require(isinstance(value, bool), key, value, "true or false")


def window(key: str, value: Any) -> None:
    """Accept two times `[low, high]` with 0 <= low <= high <= 1."""
    wanted = "two times [low, high] with 0 <= low <= high <= 1"
    numbers = isinstance(value, list) and len(value) == 2 and all(isinstance(time, int | float) for time in value)
    _require(numbers and 0 <= value[0] <= value[1] <= 1, key, value, wanted)


def span(key: str, value: Any) -> None:
    """Accept two whole numbers `[fewest, most]` with 1 <= fewest <= most."""
    wanted = "two whole numbers [fewest, most] with 1 <= fewest <= most"
    numbers = isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
    _require(numbers and 1 <= value[0] <= value[1], key, value, wanted)


def optional(check_value: Check) -> Check:
    """Accept null, or what another check accepts."""

    def check_or_none(key: str, value: Any) -> None:
        if value is not None:
            check_value(key, value)

    return _told_as(check_value, check_or_none)


def omissible(check_value: Check) -> Check:
    """Accept what another check accepts, under a key that a config need not have."""

    def check_there(key: str, value: Any) -> None:
        check_value(key, value)

    _OMISSIBLE.add(check_there)
    return _told_as(check_value, check_there)


def either(check_one: Check, check_other: Check) -> Check:
    """Accept what one of two checks accepts, a section the second and anything else the first."""

    def check_either(key: str, value: Any) -> None:
        (check_other if isinstance(value, dict) else check_one)(key, value)

    if check_one in _TEXTS:
        _TEXTS[check_either] = True
    return check_either


def _told_as(inner: Check, outer: Check) -> Check:
    """The outer check, of which is told what is told of the one inside."""
    if inner in _TEXTS:
        _TEXTS[outer] = _TEXTS[inner]
    if inner in _SECTIONS:
        _SECTIONS[outer] = _SECTIONS[inner]
    if inner in _COMPONENTS:
        _COMPONENTS.add(outer)
    return outer


def section(schema: Schema) -> Check:
    """Accept a mapping with keys of its own."""

    def check_section(key: str, value: Any) -> None:
        _require(isinstance(value, dict), key, value, "a section with keys of its own")
        check(schema, value, where=f"{key}.")

    _SECTIONS[check_section] = schema
    return check_section


def items(check_value: Check, least: int = 0) -> Check:
    """Accept a list of at least `least` values, each of which another check accepts."""

    def check_items(key: str, value: Any) -> None:
        wanted = f"a list of at least {least} values" if least else "a list"
        _require(isinstance(value, list) and len(value) >= least, key, value, wanted)
        for index, each in enumerate(value):
            check_value(f"{key}[{index}]", each)

    return check_items


def component(*supplied: str, offered: Sequence[str] = ()) -> Check:
    """Accept a factory named by `_component_`, its arguments beside it.

    supplied: those that the recipe passes itself; offered: those that it passes to a factory that takes them, if the
    config does not.
    """

    def check_component(key: str, value: Any) -> None:
        _require(isinstance(value, dict) and "_component_" in value, key, value, "a section with a _component_")
        path = value["_component_"]
        factory = _locate(f"{key}._component_", path)
        arguments = {str(name): given for name, given in value.items() if name != "_component_"}
        check_arguments(key, factory, arguments, path, supplied, offered)

    _COMPONENTS.add(check_component)
    return check_component


def check_arguments(
    key: str,
    factory: Callable[..., Any],
    arguments: Mapping[str, Any],
    called: Any,
    supplied: Sequence[str] = (),
    offered: Sequence[str] = (),
) -> None:
    """Raise ValueError unless a factory, which messages name as `called`, takes these arguments and needs no others."""
    parameters, hints = _signature(f"{key}._component_", called, factory)
    for name, given in arguments.items():
        if name not in parameters or name in supplied:
            raise ValueError(unknown(f"{key}.{name}", [p for p in parameters if p not in supplied]))
        _check_type(f"{key}.{name}", given, hints.get(name))
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in supplied:
        _require(takes_all or name in parameters, f"{key}._component_", called, f"a factory that takes {name}")
    needed = needed_by(factory) - {*arguments, *supplied, *offered}
    for name in parameters:
        if name in needed:
            raise ValueError(f"{key}.{name}: missing from the config ({called} needs it)")


def call(key: str, values: Mapping[str, Any], offered: Mapping[str, Any], *kinds: str) -> Any:
    """Call the factory of a component section with its arguments, and with those of `offered` that it takes.

    kinds: of `_KINDS`, what it may make. Raises ValueError that names the component for something of another kind, and
    for whatever the factory raises of its arguments.
    """
    path = values["_component_"]
    factory = _locate(f"{key}._component_", path)
    parameters, _ = _signature(f"{key}._component_", path, factory)
    given = {name: value for name, value in offered.items() if name in parameters}
    given |= {str(name): value for name, value in values.items() if name != "_component_"}
    try:
        built = factory(**given)
        _require_kind(built, *kinds)
        return built
    except (MemoryError, OSError):
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{key}: {path}: {reason}") from error


def parameters_of(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return what a factory takes, by name."""
    return inspect.signature(factory).parameters


def needed_by(factory: Callable[..., Any]) -> set[str]:
    """Find the names of what a factory takes and has no default for."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return {name for name, each in parameters_of(factory).items() if each.default is each.empty and each.kind is kind}


def sources(values: Any) -> dict[str, str]:
    """Hash the file of every component among values, by its path, so that a change of its code is seen."""
    if not isinstance(values, Mapping):
        return {}
    found = {name: code for each in values.values() for name, code in sources(each).items()}
    path = values.get("_component_")
    file = None if path is None else inspect.getsourcefile(_locate("_component_", path))
    return found if file is None else {**found, str(path): hashlib.sha256(Path(file).read_bytes()).hexdigest()}


def find_beside(config: str | None) -> None:
    """Have components be found in the working folder and beside a config, after everything that is installed."""
    for folder in (Path.cwd(), *([] if config is None else [Path(config).resolve().parent])):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def build(values: Mapping[str, Any], kind: str | None = None, **supplied: Any) -> Any:
    """Call the factory of a component section, through torchtune's `instantiate`.

    kind: one of `_KINDS`, what it must make. Raises ValueError that tells its name, for something of another kind, and
    for whatever the factory raises of the values that it is given.
    """
    from torchtune import config

    try:
        built = config.instantiate(OmegaConf.create(dict(values)), **supplied)
        if kind is not None:
            _require_kind(built, kind)
        return built
    except ValueError as error:
        raise ValueError(f"{values['_component_']}: {error}") from error
    except (MemoryError, OSError):
        raise
    except Exception as error:  # a value that the factory itself finds it cannot use
        given = ", ".join(f"{name}={value!r}" for name, value in values.items() if name != "_component_")
        raise ValueError(f"{values['_component_']}({given}): {type(error).__name__}: {error}") from error


def _require_kind(built: Any, *kinds: str) -> None:
    """Raise ValueError unless something has all that is asked of one of the kinds."""
    # Of the type first: a property of a data set would read all of it.
    lacking = [
        [name for name in _KINDS[kind] if not (hasattr(type(built), name) or hasattr(built, name))] for kind in kinds
    ]
    if all(lacking):
        told = f"something of type {type(built).__name__} without {lacking[0][0]!r}"
        raise ValueError(f"makes no {' and no '.join(kinds)}, but {told}")


def _signature(
    key: str, path: Any, factory: Callable[..., Any]
) -> tuple[Mapping[str, inspect.Parameter], dict[str, Any]]:
    """Parameters and type hints of a factory. Raises ValueError for one that does not say what it takes."""
    try:
        return inspect.signature(factory).parameters, get_type_hints(
            factory.__init__ if inspect.isclass(factory) else factory
        )
    except (ValueError, TypeError, NameError, AttributeError) as error:
        wanted = f"a function or a class that says what it takes ({error})"
        raise ValueError(f"{key} = {path!r} must be {wanted}") from error


def _check_type(key: str, given: Any, hint: Any) -> None:
    """Check a value against a hint's plain types (int, float, str, bool, None); others are left to the factory."""
    wanted = [member for member in (get_args(hint) or (hint,)) if member in _PLAIN_TYPES]
    if not wanted or isinstance(given, list | dict):
        return
    accepted = tuple(plain for member in wanted for plain in _PLAIN_TYPES[member])
    right = isinstance(given, accepted) and (bool in accepted or not isinstance(given, bool))
    _require(right, key, given, "of type " + " or ".join(member.__name__ for member in wanted))


def _locate(key: str, path: Any) -> Callable[..., Any]:
    wanted = "the dotted path of something that can be imported and called"
    try:
        found = pkgutil.resolve_name(str(path))
    except Exception as error:  # a module of the user's own raises what it likes
        raise ValueError(f"{key} = {path!r} must be {wanted} ({error})") from error
    _require(callable(found), key, path, wanted)
    return found


def _require(condition: bool, key: str, value: Any, wanted: str) -> None:
    if not condition:
        shown = repr(value)
        raise ValueError(f"{key} = {shown if len(shown) <= _SHOWN else f'{shown[:_SHOWN]}...'} must be {wanted}")
