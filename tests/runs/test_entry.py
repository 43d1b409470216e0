"""The way into the commands: whatever is written on a command line or in a config is one line, never a traceback."""

import contextlib
import logging
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import frontier_folder
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import Runner

from edlm.cli import commands
from edlm.recipes import pretrain_denoiser
from edlm.runs import entry, exits
from edlm.runs import settings as schemas
from edlm.weights import exchange

OWN = '''"""A recipe of one's own."""
from edlm.runs import entry, settings
SETTINGS = {"recipe": settings.text, "seed": settings.seed}
if __name__ == "__main__":
    entry.enter(print, SETTINGS)
'''


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and our line of standard error."""
    status = 0
    try:
        commands.main(list(arguments))
    except SystemExit as stop:
        status = int(stop.code or 0)
    return status, "\n".join(line for line in capsys.readouterr().err.splitlines() if line.startswith("edlm"))


# ---- Values


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("network.num_heads=0", r"num_heads ?= ?0"),
        ("network.hidden_size=0", r"hidden_size ?= ?0"),
        ("network.conditioning_size=-1", r"conditioning_size ?= ?-1"),
        ("optimizer.lr={a: 1}", r"optimizer: torch.optim.AdamW\(lr=\{'a': 1\}"),
        ("optimizer.betas=3", r"optimizer: torch.optim.AdamW\(.*betas=3"),
        ("optimizer.weight_decay=[1]", r"optimizer: torch.optim.AdamW\(.*weight_decay=\[1\]"),
        ("steps=!!timestamp 2020", r"steps = '!!timestamp 2020' must be YAML"),
        ("steps=!!bool x", r"steps = '!!bool x' must be YAML"),
        ("steps=!!int x", r"steps = '!!int x' must be YAML"),
        ("steps=!!float x", r"steps = '!!float x' must be YAML"),
        ("steps=!!set {a}", r"steps = '!!set \{a\}' must be YAML"),
        ("steps=!!omap [a: 1]", r"steps = "),
        ("steps=!!python/name:os.system", r"steps = '!!python/name:os.system' must be YAML"),
        ("steps=2020-01-01", r"steps = "),
        ("steps=&a [*a]", r"steps = '&a \[\*a\]' must be YAML"),
        (f"steps={'[' * 3000}", r"steps = '\[+' must be YAML"),
        (f"steps={'9' * 5000}", r"steps = '9+' must be YAML"),
        ("steps=${oc.env:NOWHERE_AT_ALL}", r"NOWHERE_AT_ALL"),
        ("steps=${nothing}", r"nothing"),
        ("steps=100000000000000000000", r"steps = 100000000000000000000 must be .* at most 2147483647"),
        ("threads=10000000", r"threads = 10000000 must be .* at most 256"),
        ("objective=[1]", r"objective = \[1\] must be one of"),
        ("network.1=2", r"network.1: unknown key"),
        ("~seed.x", r"~seed.x: the config has no such key"),
        ("~nothing", r"~nothing: the config has no such key"),
        ("corpus=edlm.schedules.cosine", r"edlm.schedules.cosine: makes no corpus, but something of type Schedule"),
        (
            "schedule=edlm.corpora.embedded",
            r"edlm.corpora.embedded. is not executed: it must be one of edlm.sche",
        ),
        (
            "schedule=builtins.object",
            r"schedule._component_ = |builtins.object. is not executed: it must be",
        ),
        ("corpus=builtins.dict", r"corpus._component_ = 'builtins.dict' must be a function or a class that says what"),
        ("network=edlm.schedules.cosine", r"network.hidden_size: unknown key"),
        ("corpus=edlm", r"corpus._component_ = 'edlm' must be the dotted path"),
        ("corpus=antigravity.nothing..x", r"corpus._component_ = 'antigravity.nothing..x' must be the dotted path"),
    ],
)
def test_a_value_that_cannot_be_is_named(run: Runner, tmp_path: Path, override: str, said: str) -> None:
    published = "optimizer._component_=torch.optim.AdamW"
    status, _, error = run("pretrain_denoiser", f"output_dir={tmp_path / 'run'}", published, override)
    assert status == exits.USAGE_ERROR, error
    assert re.search(said, error), error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam"])
def test_an_optimizer_that_cannot_take_a_step_is_refused_before_anything_is_trained(name: str) -> None:
    value = {"_component_": f"torch.optim.{name}", "lr": 0.1}
    with pytest.raises(ValueError, match=r"optimizer: .*(closure|dense)"):
        schemas.check({"optimizer": pretrain_denoiser.SETTINGS["optimizer"]}, {"optimizer": value})


@pytest.mark.parametrize("factory", ["math.pow", "operator.truediv", "os.getcwdb", "json.loads"])
def test_whatever_a_factory_raises_is_told_with_its_name(factory: str) -> None:
    with pytest.raises(ValueError, match=factory):
        schemas.build({"_component_": factory, "x": 0}, "corpus")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(
        [*pretrain_denoiser.SETTINGS, "network.num_heads", "optimizer.lr", "corpus.path", "a..b", "[0]"]
    ),
    value=st.text("!&*[]{}:,-?|>'\"%@`#~$019.ex nul\t\u00e9\ud800", max_size=12) | st.text(max_size=5),
)
def test_no_value_ends_in_a_fault(capsys: pytest.CaptureFixture[str], key: str, value: str) -> None:
    status, error = command(capsys, "validate", "pretrain_denoiser/tiny", f"{key}={value}")
    assert status in (0, exits.USAGE_ERROR), error
    assert "fault of edlm" not in error
    assert len(error.splitlines()) == (status != 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- recipe: generate\nrecipe: generate\n", "must be YAML"),
        ("recipe: generate\n? [1, 2]\n: 3\n", "must be YAML"),
        ("recipe: generate\nseed: !!timestamp 2020\n", "must be YAML"),
        ("recipe: generate\nseed: !!bool x\n", "must be YAML"),
        ("recipe: generate\nseed: &a [*a]\n", "must be YAML"),
        ("recipe: generate\n1: 2\n", "the key 1 must be a text"),
        ("recipe: generate\nnull: 3\n", "must be YAML"),
        ("recipe: generate\nconfig: 3\n", "config: unknown key"),
        ("[1,\nrecipe: generate\n]\n", "must be keys with their values, not a list"),
    ],
)
@pytest.mark.parametrize("first", ["validate", "run"])
def test_a_config_of_any_yaml_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, first: str, content: str, said: str
) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(content)
    words = [str(path)] if first == "validate" else ["generate", "--config", str(path)]
    status, error = command(capsys, first, *words)
    assert status == exits.USAGE_ERROR
    assert error.startswith(f"edlm: {path}")
    assert said in error
    assert len(error.splitlines()) == 1


# ---- Recipes of one's own


def own(folder: Path, recipe: str, config: str = "recipe: {}\nseed: 1\n") -> str:
    (folder / "own.py").write_text(recipe)
    (folder / "own.yaml").write_text(config.format(folder / "own.py"))
    return str(folder / "own.yaml")


def test_validate_checks_the_config_of_a_recipe_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = own(tmp_path, OWN)
    with pytest.raises(SystemExit) as stop:
        commands.main(["validate", config])
    assert not stop.value.code
    assert "a valid config of own" in capsys.readouterr().out
    assert command(capsys, "validate", config, "sed=2") == (2, "edlm: sed: unknown key; did you mean 'seed'?")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("", "has no SETTINGS"),
        ("SETTINGS = 3\n", "has no SETTINGS"),
        ("def\n", "SyntaxError"),
        ("raise KeyError('x')\n", "KeyError: 'x'"),
        ("import nothing_at_all\n", "No module named 'nothing_at_all'"),
        ("\x00", "null bytes"),
    ],
)
@pytest.mark.parametrize("first", ["validate", "run", "help"])
def test_a_broken_recipe_of_ones_own_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, first: str, recipe: str, said: str
) -> None:
    config = own(tmp_path, recipe)
    file = str(tmp_path / "own.py")
    words = {"validate": ["validate", config], "run": ["run", file, "--config", config], "help": ["run", file, "-h"]}
    status, error = command(capsys, *words[first])
    if status == 0:  # nothing to do, or nothing to say
        assert first != "validate"
        return
    assert status == exits.USAGE_ERROR
    assert error.startswith(f"edlm: {file}")
    assert said in error
    assert len(error.splitlines()) == 1


# ---- The last resort


FORESEEN_BY_NOBODY = [KeyError("x"), RuntimeError("a\nb"), ZeroDivisionError(), RecursionError(), AssertionError()]


@pytest.mark.parametrize("error", FORESEEN_BY_NOBODY, ids=repr)
@pytest.mark.parametrize("place", ["command", "recipe"])
def test_what_nobody_has_foreseen_is_one_line_and_a_status_of_its_own(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: Runner, place: str, error: Exception
) -> None:
    def fails(*arguments: Any) -> None:
        raise error

    monkeypatch.delenv("EDLM_DEBUG", raising=False)
    monkeypatch.setattr(exchange, "convert", fails)
    monkeypatch.setattr(import_module("edlm.recipes.generate"), "main", fails)
    if place == "command":
        status, said = command(capfd, "convert", "x", "y")
    else:
        status, _, said = run("generate")
        assert "Traceback" not in run.error
    assert status == exits.FAULT == 70
    assert said.startswith(f"edlm: this is a fault of edlm, or of a part of your own ({type(error).__name__}")
    assert said.endswith("EDLM_DEBUG=1 shows where")
    assert len(said.splitlines()) == 1
    monkeypatch.setenv("EDLM_DEBUG", "1")
    with pytest.raises(type(error)):
        commands.main(["convert", "x", "y"]) if place == "command" else run("generate")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
    ids=repr,
)
def test_too_little_memory_is_no_fault_of_ours(error: Exception) -> None:
    message, status = exits.explained(error)
    assert status == exits.USAGE_ERROR
    assert message.startswith("not enough memory for what was asked")


def test_ctrl_c_in_a_command_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exchange, "convert", stopped)
    assert command(capsys, "convert", "x", "y") == (130, "edlm: stopped by Ctrl-C")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["edlm_nce", "edlm_joint"])
def test_a_network_that_tells_no_step_can_be_started_from(recipe: str, run: Runner, tmp_path: Path) -> None:
    frontier_folder.write(tmp_path)
    status, _, error = run(
        recipe,
        *(f"output_dir={tmp_path / 'out'}", f"denoiser={tmp_path / 'denoiser'}", "corpus=edlm.corpora.text_files"),
        *(f"corpus.path={tmp_path / 'text'}", "steps=1", "batch_size=2", "valid_rows=8", "threads=1"),
        *("samples.num_samples=1", "samples.num_steps=2", "report_particles=2") * (recipe == "edlm_nce"),
        *("samples.num_samples=1", "samples.num_steps=2") * (recipe == "edlm_joint"),
    )
    assert status == 0, error


def test_what_torchao_says_of_its_kernels_is_not_heard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("torchao")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setattr(sys, "argv", ["recipe", "steps=3"])
    with pytest.raises(SystemExit):
        entry.enter(print, {})
    assert logger.level == logging.ERROR
    assert capsys.readouterr().err.startswith("edlm: --config FILE is missing")


@pytest.mark.parametrize("writes", [True, False])
def test_an_output_is_locked_where_a_recipe_writes_it(
    writes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    (tmp_path / "own.yaml").write_text("output_dir: out\nseed: 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["recipe", "--config", "own.yaml", "seed=4"])
    monkeypatch.setattr(entry.locks, "outputs", lambda settings: held.append(settings) or contextlib.nullcontext())
    schema = {"output_dir": schemas.text, "seed": schemas.seed}
    with pytest.raises(SystemExit) as stop:
        entry.enter(lambda settings: held.append(("ran", settings)), schema, **({} if writes else {"writes": False}))
    assert stop.value.code is None
    given = {"output_dir": "out", "seed": 4}
    assert held == [given if writes else {}, ("ran", given)]
