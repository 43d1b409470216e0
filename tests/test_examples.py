"""The examples of the face: every `>>>` of its modules is run, and what the face builds with says how it is used."""

import doctest
import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import edlm
from edlm import samplers, testing
from edlm.likelihood import bounds, conditional, enumeration
from edlm.models import denoisers, energies
from edlm.samplers import corrections, pipelines, plans, remasking

# What a text is drawn with, and what says how good it is: each shows how it is called.
SHOWN = [
    edlm.accelerate,
    edlm.extend,
    edlm.sample,
    samplers.Sampler,
    pipelines.pipeline,
    bounds.of_sampler,
    enumeration.law,
    *(conditional.bound, conditional.greedy, conditional.in_order, edlm.from_pretrained),
    denoisers.subs,
    energies.learned,
    energies.product,
    energies.scaled,
    energies.residual_ar,
    *(plans.Grid, plans.Times, plans.TokensPerPass, plans.first_hitting),
    *(corrections.OfEnergy, corrections.ChainRule, corrections.Joint),
    *(remasking.Cap, remasking.Rescale, remasking.Confidence, remasking.Loop, remasking.ForwardBackward),
    *(testing.check_denoiser, testing.check_energy, testing.check_one_graph, testing.check_selection, testing.drafts),
]


@pytest.fixture(autouse=True)
def place_of_examples(large_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They read large models, and write small files, in the working folder."""
    monkeypatch.chdir(large_models)


def modules() -> list[ModuleType]:
    """The modules of the face, and those that what it shows is defined in."""
    face = [getattr(edlm, name) for name in edlm.__all__]
    named = [each.__name__ if isinstance(each, ModuleType) else each.__module__ for each in face]
    return [import_module(name) for name in dict.fromkeys([*named, *(each.__module__ for each in SHOWN)])]


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for module in modules() for test in finder.find(module) if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_gives_what_it_shows(example: doctest.DocTest) -> None:
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: f"{shown.__module__}.{shown.__name__}")
def test_what_the_face_builds_with_names_its_arguments_and_shows_a_call(shown: Callable[..., Any]) -> None:
    text = inspect.getdoc(shown) or ""
    assert ">>> import edlm" in text
    arguments = list(inspect.signature(shown).parameters)
    sections = text.split("\n\nArgs:\n")[-1] if arguments else ""
    missing = [name for name in arguments if f"    {name}:" not in f"\n{sections}"]
    assert not missing
    source = inspect.getsource(shown)
    if "raise ValueError" in source:
        assert "\nRaises:\n    ValueError: " in text
