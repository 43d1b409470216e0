"""The model class of `edlm harness` without `lm_eval`: what it hands on, what it keeps, and what it says of itself."""

import importlib
import importlib.util
import math
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from builders import tiny_denoiser
from torch import nn

from edlm.cli import commands
from edlm.data import vocabulary
from edlm.evaluation import continuations
from edlm.evaluation.continuations import Answer, Reading, Wanted
from edlm.weights import hub

MODULE = "edlm.evaluation.harness"
LETTERS = vocabulary.characters("abcd")


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module over a stand-in for `lm_eval`, which notes what is registered and when its command line is run."""
    parts: dict[str, Any] = {name: ModuleType(f"lm_eval{name}") for name in ("", ".__main__", ".api")}
    parts |= {name: ModuleType(f"lm_eval{name}") for name in (".api.model", ".api.registry")}
    registered: dict[str, type] = {}

    class LM:
        def __init__(self) -> None:
            self.cache_hook = SimpleNamespace(kept=[], add_partial=lambda *kept: self.cache_hook.kept.append(kept))

    parts[""].__main__, parts[".__main__"].cli_evaluate = parts[".__main__"], lambda: registered.update(ran=LM)
    parts[".api.model"].LM = LM
    parts[".api.registry"].register_model = lambda name: lambda cls: registered.setdefault(name, cls)
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, f"lm_eval{name}", module)
    before = sys.modules.pop(MODULE, None)
    found: Any = importlib.import_module(MODULE)
    found.registered = registered
    yield found
    del sys.modules[MODULE]
    if before is not None:
        sys.modules[MODULE] = before


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The folders that are loaded: one that is called `ar` holds an AR model, any other a denoiser."""
    loaded: list[Any] = []

    def load(path: str, **how: Any) -> Any:
        loaded.append((path, how))
        kind, found = ("ar" if path == "ar" else "subs"), SimpleNamespace(weights="0a1b")
        both = {"vocabulary": LETTERS, "network": nn.Linear(3, 4), "found": found, "kind": kind}
        return SimpleNamespace(**both, autoregressive=None, denoiser=tiny_denoiser())

    monkeypatch.setattr(hub, "from_pretrained", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return loaded


def requests(*every: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each) for each in every]


def test_it_is_registered_and_run_by_its_name(harness: Any) -> None:
    assert harness.NAME == "edlm"
    assert harness.registered == {"edlm": harness.Edlm}
    harness.run()
    assert "ran" in harness.registered


def test_options_reach_the_loader_and_the_reading(harness: Any, asked: list[Any]) -> None:
    plain = harness.Edlm("folder").reading
    more = {"length": 7, "revision": "main", "max_batch_size": 64}
    read = harness.Edlm("folder", "4", "cuda:1", **more, num_draws=3, seed=9, block_length=5).reading
    assert asked == [
        ("folder", {"device": "cpu", "length": None, "revision": None}),
        ("folder", {"device": "cpu", "length": 7, "revision": "main"}),
    ]
    assert plain == Reading(plain.model)
    assert read == Reading(read.model, batch_size=4, num_draws=3, seed=9, block_length=5)
    known = "pretrained, length, revision, plan, tokens_per_pass, num_draws, block_length, seed"
    with pytest.raises(ValueError, match=f"^model_args: a, num_draw is not known; known are {known}$"):
        harness.Edlm("folder", num_draw=3, a=1)
    with pytest.raises(ValueError, match=r"^batch_size = 'auto' must be a whole number of at least 1$"):
        harness.Edlm("folder", batch_size="auto")


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_is_taken_only_where_one_is(harness: Any, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    found = [harness._there(name) for name in (None, "cpu", "mps", "cuda", "cuda:1")]
    assert found == ["cpu", "cpu", "mps", *(["cuda", "cuda:1"] if there else ["cpu", "cpu"])]


def test_likelihoods_are_asked_in_batches_and_kept(
    harness: Any, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def score(reading: Reading, pairs: list[Any]) -> list[Answer]:
        sizes.append(len(pairs))
        assert reading.batch_size == 2
        return [Answer(-float(len(given) + 10 * len(text)), 0.5, len(text) == 1) for given, text in pairs]

    monkeypatch.setattr(continuations, "score", score)
    model = harness.Edlm("folder", batch_size=2)
    pairs = [("ab", "c"), ("", "dd"), ("abc", "ab"), ("d", "a"), ("a", "abc")]
    expected = [(-12.0, True), (-20.0, False), (-23.0, False), (-11.0, True), (-31.0, False)]
    assert model.loglikelihood(requests(*pairs), disable_tqdm=True) == expected
    assert sizes == [2, 2, 1]
    kept = [("loglikelihood", pair, answer) for pair, answer in zip(pairs, expected, strict=True)]
    assert model.cache_hook.kept == kept
    assert model._errors == [0.5] * 5


def test_bars_are_shown_unless_they_are_not_wanted(
    harness: Any, asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Answer(-1.0, 0.0, greedy=True)
    monkeypatch.setattr(continuations, "score", lambda reading, pairs: [answer] * len(pairs))
    monkeypatch.setattr(continuations, "score_whole", lambda *_: answer)
    monkeypatch.setattr(continuations, "complete", lambda *_: "a")
    model = harness.Edlm("folder", batch_size=2)
    for name, arguments in (
        ("loglikelihood", ("a", "b")),
        ("loglikelihood_rolling", ("a",)),
        ("generate_until", ("a", {})),
    ):
        getattr(model, name)(requests(*[arguments] * 3), disable_tqdm=True)
        assert capsys.readouterr().err == ""
        getattr(model, name)(requests(*[arguments] * 3))
        assert "3/3" in capsys.readouterr().err


def test_whole_texts_and_what_follows_a_context_are_asked_one_by_one(
    harness: Any, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuations, "score_whole", lambda _, text: Answer(-float(len(text)), 0.25, greedy=False))
    monkeypatch.setattr(continuations, "complete", lambda _, *given: given)
    model = harness.Edlm("folder")
    assert model.loglikelihood_rolling(requests(("abc",), ("d",)), disable_tqdm=True) == [-3.0, -1.0]
    kept = [("loglikelihood_rolling", ("abc",), -3.0), ("loglikelihood_rolling", ("d",), -1.0)]
    assert (model.cache_hook.kept, model._errors) == (kept, [0.25, 0.25])
    options = {"until": ["\n"], "max_tokens": 3}
    cold = Wanted(("\n",), 3, 0.0)
    found = model.generate_until(requests(*((context, options) for context in "aba")), disable_tqdm=True)
    assert found == [("a", cold, 0), ("b", cold, 0), ("a", cold, 1)], "a request that is repeated has noise of its own"
    assert model.cache_hook.kept[2:] == [
        ("generate_until", (context, options), text) for context, text in zip("aba", found, strict=True)
    ]


def test_it_says_what_it_is_and_how_sure_its_bounds_are(harness: Any, asked: list[Any]) -> None:
    denoiser, ar = harness.Edlm("folder", num_draws=5, seed=3), harness.Edlm("ar", seed=3)
    both = {"model_sha256": "0a1b", "model_num_parameters": 16, "noise_seed": 3}
    bound = "a lower bound, the negative NELBO of the denoiser, a mean of 5 draws"
    told = {**both, "model_kind": "subs", "likelihood": bound, "likelihood_is_exact": False, "num_draws": 5}
    assert denoiser.get_model_info() == told
    for error in (0.5, math.inf, 1.0, math.nan):
        for model in (denoiser, ar):
            assert model._noted(Answer(-1.0, error, greedy=True)).log_prob == -1.0
    assert denoiser.get_model_info() == {**told, "likelihood_mean_error_nats": 0.75}
    exact = {"likelihood": "exact, of an autoregressive model", "likelihood_is_exact": True, "num_draws": None}
    assert ar.get_model_info() == {**both, **exact, "model_kind": "ar"}
    assert ar.tokenizer_name == LETTERS.fingerprint


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, Wanted((), 256, 0.0, 1.0)),
        ({"until": "ab"}, Wanted(("ab",), 256, 0.0)),
        ({"until": ["a", "b"], "max_gen_toks": 4}, Wanted(("a", "b"), 4, 0.0)),
        ({"until": None, "max_new_tokens": "5"}, Wanted((), 5, 0.0)),
        ({"max_gen_toks": None, "max_tokens": 6}, Wanted((), 6, 0.0)),
        ({"max_gen_toks": 4, "max_tokens": 6}, Wanted((), 4, 0.0)),
        ({"do_sample": True}, Wanted((), 256, 1.0)),
        ({"temperature": 0.5}, Wanted((), 256, 0.5)),
        ({"do_sample": False, "temperature": 0.5}, Wanted((), 256, 0.0)),
        ({"do_sample": True, "temperature": 0.5, "top_p": 0.9}, Wanted((), 256, 0.5, 0.9)),
    ],
)
def test_what_a_task_asks_of_a_text(harness: Any, options: dict[str, Any], wanted: Wanted) -> None:
    assert harness.wanted(options) == wanted
    known = "until, temperature, top_p, do_sample, max_gen_toks, max_new_tokens, max_tokens"
    with pytest.raises(ValueError, match=f"^generation_kwargs: best_of, top_k is not known; known are {known}$"):
        harness.wanted({**options, "top_k": 3, "best_of": 2})


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["--tasks", "a"], []),
        (["--model_args", "b", "--tasks", "a"], ["--model", "edlm"]),
        (["-a", "b"], ["--model", "edlm"]),
        (["-a", "b", "--model", "hf"], []),
        (["-a", "b", "-M", "hf"], []),
    ],
)
def test_the_command_names_the_model_where_nobody_has(
    words: list[str], added: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    module = SimpleNamespace(NAME="edlm", run=lambda: seen.append(sys.argv))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "lm_eval" or None)
    monkeypatch.setattr(importlib, "import_module", lambda name: {MODULE: module}[name])
    monkeypatch.setattr(sys, "argv", ["edlm"])
    commands.main(["harness", *words])
    assert seen == [["lm_eval", *words, *added]]
