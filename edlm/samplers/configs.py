"""The config form of a sampler: a section with an entry for each axis, one and the same in all recipes.

    plan: {name: grid, num_steps: 8}
    proposal: {temperature: 1.0, nucleus: 1.0}
    correction: {name: energy, called: ar, temperature: 1.0}
    candidates: 8 # or {ess: 4.0, at_most: 8, first: 2}
    selection: sir
    remasking: null # or {name: cap, eta: 0.008}
    window: [0.0, 1.0]

Where a name stands a `_component_` can stand: the dotted path of a class or a function of one's own, its arguments
beside it. A recipe's short keys, as `num_steps=16`, are expanded into the section by `of_short_keys` alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from edlm.contracts import Denoiser, Energy
from edlm.process import particles
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import blocks, corrections, planning, plans, remasking, selections
from edlm.samplers.corrections import Correction, OfEnergy
from edlm.samplers.plans import Grid, TokensPerPass
from edlm.samplers.rounds import UntilEss
from edlm.samplers.sampler import Proposal, Sampler

TOGETHER = TokensPerPass.name  # its short key is called as the plan is
# What a factory that takes it is given, where its section does not say it.
OFFERED = ("num_steps", TOGETHER, "temperature", "vocabulary", "denoiser", "schedule", "mask_id")
COMPONENT = schemas.component(offered=OFFERED)
_WITHIN = "within"  # a plan inside of another
_PLAIN: dict[str, Any] = {"candidates": 1, "selection": selections.SIR.name, "window": [0.0, 1.0]}


def section(key: str, value: Any) -> None:
    """Accept a section of a sampler's axes, each of which may be left out."""
    schemas.section(SECTION)(key, value)


def config(sampler: Sampler) -> dict[str, Any]:
    """Give the axes of a sampler as plain values, as `from_config` reads them; networks are named, not held.

    Args:
        sampler: any sampler.

    Returns:
        The values by axis.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> edlm.samplers.config(edlm.samplers.Sampler(denoiser, edlm.plans.Grid(4)))["plan"]
        {'grid': {'num_steps': 4, 'spacing': 'uniform'}}
    """
    correction, candidates, chosen = sampler.correction, sampler.candidates, sampler.chooses
    known = selections.SELECTIONS.get(chosen.name) == chosen
    return {
        "plan": _written(sampler.plan, planning.PLANS),
        "proposal": sampler.proposal._asdict(),
        "correction": None if correction is None else _written(correction, corrections.CORRECTIONS),
        "candidates": candidates if isinstance(candidates, int) else _fields(candidates),
        "selection": chosen.name if known else _written(chosen, {}),
        **({} if sampler.remasking is None else {"remasking": _written(sampler.remasking, remasking.RULES)}),
        "window": list(sampler.window),
    }


def from_config(
    values: Mapping[str, Any],
    denoiser: Denoiser,
    energies: Mapping[str, Energy] | None = None,
    offered: Mapping[str, Any] | None = None,
    where: str = "sampler.",
) -> Sampler:
    """Build a sampler from what `config` gives. Raises ValueError that names the axis for a value that it has not.

    Args:
        values: the values by axis; axes that are left out have their plain ones.
        denoiser: what proposes.
        energies: those that a correction can name.
        offered: of `OFFERED`, what a component can take.
        where: in front of the keys in messages.

    Returns:
        The sampler.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> print(edlm.samplers.from_config({"plan": {"grid": {"num_steps": 4}}}, denoiser))
        plain, T=4
    """
    return Sampler(denoiser, **_axes(values, denoiser, energies or {}, offered or {}, where))


def correction_of(
    key: str, values: Mapping[str, Any], energies: Mapping[str, Energy], offered: Mapping[str, Any]
) -> Correction:
    """Build a correction by its name, or from a component that makes one, or that makes an energy."""
    options = dict(values)
    if isinstance(options.get("energy"), Mapping):
        own = schemas.call(f"{key}.energy", options["energy"], offered, "energy")
        options.setdefault("called", called(options.pop("energy")))
        energies = {**energies, options["called"]: own}
    known = {name: partial(build, energies) for name, build in corrections.CORRECTIONS.items()}
    found = _built(key, options, known, offered, "correction", "energy")
    if hasattr(found, "parts"):
        return found  # type: ignore[no-any-return]
    return OfEnergy(found, temperature=offered.get("temperature", 1.0), called=called(options))


def called(values: Mapping[str, Any]) -> str:
    """Name a component for tables by the last part of its path, and the numbers and words beside it."""
    path = str(values["_component_"]).replace(":", ".").rpartition(".")[2]
    beside = [
        f"{key}={value}" for key, value in values.items() if key[0] != "_" and isinstance(value, int | float | str)
    ]
    return " ".join([path, *beside])


def short(values: Mapping[str, Any]) -> str:
    """Say a section in a few words, for tables."""
    said = []
    for axis, value in values.items():
        options = dict(value) if isinstance(value, Mapping) else {axis: value}
        if "_component_" in options:
            said.append(called(options))
            continue
        rest = [f"{key}={each}" for key, each in options.items() if key != "name"]
        said.append(" ".join([str(options.get("name", "")), *rest]).strip())
    return ", ".join(said)


def of_short_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Expand the short keys of a recipe into a section; an axis of its section `sampler` takes the place of its keys.

    The correction has no name where the section names none: it is what the recipe's networks are.
    """
    own, steps = settings.get("sampler", {}), settings["num_steps"]
    most, least_ess = settings.get("num_particles", 1), settings.get("target_ess")
    together = settings.get(TOGETHER, 1)
    if steps is not None and together > 1 and "plan" not in own:
        raise ValueError(f"{TOGETHER} = {together} needs num_steps = null, not {steps}")
    grid = {"name": Grid.name, "num_steps": steps}
    short: dict[str, Any] = {
        "plan": {"name": TokensPerPass.name, "count": together} if steps is None else grid,
        "proposal": {"temperature": settings.get("temperature", 1.0), "nucleus": settings.get("nucleus", 1.0)},
        "correction": {"temperature": settings.get("energy_temperature", 1.0)},
        "candidates": most if least_ess is None else {"ess": least_ess, "at_most": most, "first": min(2, most)},
        "selection": settings.get("selection", _PLAIN["selection"]),
        "window": settings.get("window", _PLAIN["window"]),
    }
    found = {**short, **own}
    found["proposal"] = {**short["proposal"], **own.get("proposal", {})}
    if found["correction"] is not None and "_component_" not in found["correction"]:
        plain = names_correction(found["correction"]) and short["correction"] == {"temperature": 1.0}
        found["correction"] = {**({} if plain else short["correction"]), **found["correction"]}
    if isinstance(found["candidates"], Mapping):
        found["candidates"] = {"at_most": most, "first": min(2, most), **found["candidates"]}
    return found


def offers(settings: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """Collect what a component can take of a recipe's short keys, and of what else the recipe has."""
    keys = {"num_steps": "num_steps", TOGETHER: TOGETHER, "temperature": "energy_temperature"}
    told = {name: settings.get(key) for name, key in keys.items()}
    return {name: value for name, value in {**told, **others}.items() if value is not None}


def names_correction(values: Mapping[str, Any] | None) -> bool:
    """Check whether a section's correction says which one it is, and not only with what options."""
    return values is not None and bool({"name", "_component_", "energy"} & set(values))


def sampler_of(
    settings: Mapping[str, Any],
    denoiser: Denoiser,
    loaded: Correction | None = None,
    energies: Mapping[str, Energy] | None = None,
    offered: Mapping[str, Any] | None = None,
) -> tuple[Sampler, list[str]]:
    """Build the sampler of a recipe's settings, and a line for each of them that does nothing.

    loaded: the correction that the recipe's networks are, for a section that names none; energies: those that it can
    name; offered: of `OFFERED`, what a component can take besides short keys.
    """
    values, given = of_short_keys(settings), offers(settings, **(offered or {}))
    named = names_correction(values["correction"])
    if not named:
        loaded = loaded if values.pop("correction") is not None else None
    axes = _axes(values, denoiser, energies or {}, given, "sampler.")
    correction = axes.setdefault("correction", loaded)
    unused, reason = list(_PLAIN), "nothing corrects the denoiser"
    if correction is not None:
        in_order = selections.of(axes["selection"]).in_order
        unused, reason = ["candidates"] if in_order else [], f"selection = {values['selection']!r} weighs none"
    told = []
    for axis in unused:
        found = axes.pop(axis)
        if values[axis] != _PLAIN[axis]:
            told.append(f"{axis} = {found} is not used: {reason}")
    return Sampler(denoiser, **axes), told


def _axes(
    values: Mapping[str, Any],
    denoiser: Denoiser,
    energies: Mapping[str, Energy],
    offered: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    """The values of a section's axes."""
    schemas.check(SECTION, values, where)
    given = {"denoiser": denoiser, "schedule": denoiser.schedule, "mask_id": denoiser.mask_id, **offered}
    found = dict(values)
    if "plan" in found:
        plan = _built(f"{where}plan", found["plan"], planning.PLANS, given, "plan", "rule")
        found["plan"] = blocks.of_denoiser(plan, denoiser)
    elif getattr(denoiser, "block_size", None) is not None:
        found["plan"] = blocks.of_denoiser(plans.first_hitting(), denoiser)
    if "proposal" in found:
        found["proposal"] = Proposal(**found["proposal"])
    if found.get("correction") is not None:
        found["correction"] = correction_of(f"{where}correction", found["correction"], energies, given)
    if isinstance(found.get("candidates"), Mapping):
        key = f"{where}candidates"
        if "at_most" not in found["candidates"]:
            raise ValueError(f"{key}.at_most: missing from the config")
        found["candidates"] = _raising(key, UntilEss, found["candidates"])
    if isinstance(found.get("selection"), Mapping):
        found["selection"] = schemas.call(f"{where}selection", found["selection"], given, "selection")
    if found.get("remasking") is not None:
        found["remasking"] = _built(f"{where}remasking", found["remasking"], remasking.RULES, given, "rule")
    if "window" in found:
        found["window"] = tuple(found["window"])
    return found


def _built(
    key: str,
    values: Mapping[str, Any],
    known: Mapping[str, Callable[..., Any]],
    offered: Mapping[str, Any],
    *kinds: str,
) -> Any:
    """Build what a component makes, or what a known name stands for, of the arguments beside it."""
    if "_component_" in values:
        return schemas.call(key, values, offered, *kinds)
    options = {name: tuple(given) if isinstance(given, list) else given for name, given in values.items()}
    name = options.pop("name", None)
    schemas.choice(*known)(f"{key}.name", name)
    if isinstance(values.get(_WITHIN), Mapping):
        options[_WITHIN] = _built(f"{key}.{_WITHIN}", values[_WITHIN], known, offered, *kinds)
    factory = known[str(name)]
    taken = {each: offered[each] for each in schemas.parameters_of(factory) if each in offered}
    return _raising(f"{key} {name!r}", factory, {**taken, **options})


def _raising(key: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a factory. Raises ValueError with the key in front for arguments that it cannot use."""
    try:
        return factory(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from error


def _written(value: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """A value of an axis by its name, or as a component, with its arguments."""
    name = getattr(value, "name", None)
    made_by = type(value)
    found = {"name": name} if name in known else {"_component_": f"{made_by.__module__}.{made_by.__qualname__}"}
    within = {_WITHIN: _written(value.within, known)} if hasattr(value, _WITHIN) else {}
    return {**found, **_fields(value), **within}


def _fields(value: Any) -> dict[str, Any]:
    """The plain values of a value of an axis."""
    if not is_dataclass(value):
        return {}
    named = {each.name: getattr(value, each.name) for each in fields(value) if each.repr}
    return {key: found for key, found in named.items() if key != "name"}


def _check_named(known: Mapping[str, Callable[..., Any]], key: str, value: Any) -> None:
    """Accept a component, or a name with its options; what is complete is built at once."""
    if isinstance(value, dict) and "_component_" in value:
        COMPONENT(key, value)
        return
    name, options = _name_and_options(key, value, known)
    schemas.check_arguments(key, known[name], options, name, offered=OFFERED)
    if _WITHIN in options:
        _check_named(known, f"{key}.{_WITHIN}", options[_WITHIN])
    if not schemas.needed_by(known[name]) - set(options):
        _built(key, value, known, {})


def _check_correction(key: str, value: Any) -> None:
    """Accept a name or a component, or options of the correction that the recipe's networks are."""
    if isinstance(value, dict) and "_component_" in value:
        COMPONENT(key, value)
        return
    _, options = _name_and_options(key, value, corrections.CORRECTIONS, needed=False)
    if isinstance(options.get("energy"), dict):
        COMPONENT(f"{key}.energy", options["energy"])
    if "temperature" in options:
        schemas.temperature(particles.COLDEST)(f"{key}.temperature", options["temperature"])


def _check_selection(key: str, value: Any) -> None:
    schemas.either(_check_selection_name, COMPONENT)(key, value)


def _check_selection_name(key: str, value: Any) -> None:
    schemas.choice(*selections.SELECTIONS)(key, value)  # asked anew: more may have been registered


def _name_and_options(
    key: str, value: Any, known: Mapping[str, Any], needed: bool = True
) -> tuple[str, dict[str, Any]]:
    """The name in a section and what stands beside it. Raises ValueError for another name than a known one."""
    schemas.section(dict.fromkeys(value, _anything) if isinstance(value, dict) else {})(key, value)
    options = dict(value)
    if needed or "name" in options:
        schemas.choice(*known)(f"{key}.name", options.get("name"))
    return str(options.pop("name", None)), options


def _anything(key: str, value: Any) -> None:
    """Accept whatever the axis makes of it."""


_omissible = schemas.omissible
SECTION: Schema = {
    "plan": _omissible(partial(_check_named, planning.PLANS)),
    "proposal": _omissible(
        schemas.section(
            {
                "temperature": _omissible(schemas.temperature()),
                "nucleus": _omissible(schemas.number(0, 1, above=True)),
            }
        )
    ),
    "correction": _omissible(schemas.optional(_check_correction)),
    "candidates": _omissible(
        schemas.either(
            schemas.integer(1),
            schemas.section(
                {
                    "ess": schemas.number(0, above=True),
                    "at_most": _omissible(schemas.integer(1)),
                    "first": _omissible(schemas.integer(1)),
                }
            ),
        )
    ),
    "selection": _omissible(_check_selection),
    "remasking": _omissible(schemas.optional(partial(_check_named, remasking.RULES))),
    "window": _omissible(schemas.window),
}
# What a recipe that draws has as short keys; one that only bounds has fewer.
SHORT_KEYS: Schema = {
    "sampler": _omissible(section),
    "num_steps": schemas.optional(schemas.integer(1)),
    TOGETHER: schemas.integer(1),
    "num_particles": schemas.integer(1),
    "window": schemas.window,
    "target_ess": schemas.optional(schemas.number(0, above=True)),
    "selection": _check_selection_name,
    "energy_temperature": schemas.temperature(particles.COLDEST),
    "temperature": schemas.temperature(),
    "nucleus": schemas.number(0, 1, above=True),
}
