"""What commands print, where they write, and what they hand to whoever does the work."""

import importlib
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from edlm.cli import commands, doctor
from edlm.runs import exits


@pytest.mark.parametrize(
    ("width", "sentence", "lines"),
    [
        (None, "a sentence of some words by me", ["a sentence of some words by me"]),
        (60, "a sentence of words by me", ["a sentence of words by me"]),
        (45, "a sentence of words by me", ["a sentence of words by", "me"]),
        (8, "a sentence of words", ["a sentence of words"]),  # 40 letters with what stands before it
        (8, "a sentence of a word", ["a sentence of a", "word"]),
    ],
)
def test_an_entry_is_wrapped_below_its_sentence(
    width: int | None, sentence: str, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    commands._print_entry("tiny", sentence, width)
    first, *others = capsys.readouterr().out.splitlines()
    assert [first, *others] == [f"tiny{' ' * 17}{lines[0]}", *(f"{' ' * 21}{line}" for line in lines[1:])]


def test_ls_is_as_wide_as_the_terminal_and_one_line_each_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "recipes", lambda: dict(list(recipes.items())[:2]))
    recipes = {path.stem: path for path in sorted(commands.recipes_folder().glob("[!_]*.py"))}
    wide = SimpleNamespace(get_terminal_size=lambda: SimpleNamespace(columns=70))
    monkeypatch.setattr(commands, "shutil", wide)  # of pytest itself it stays what it is
    commands.main(["ls"])
    whole = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    commands.main(["ls"])
    wrapped = capsys.readouterr().out.splitlines()
    assert max(map(len, wrapped)) <= 70 < max(map(len, whole))
    assert "".join(line if line[21:22].strip() and line[:21].strip() else line[20:] for line in wrapped) == "".join(
        whole
    )


def test_help_of_a_recipe_is_its_docstring_its_configs_and_its_default_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.main(["run", "oracle", "--help"])
    file, known = commands.recipes()["oracle"], commands.configs("oracle")
    said = capsys.readouterr().out
    heading = "The default config, tiny. Any key can be given as key=value or section.key=value:"
    assert said == (
        f"{commands._description(file)}\n\nconfigs: {', '.join(known)}\n\n{heading}\n\n{known['tiny'].read_text()}\n"
    )
    own = tmp_path / "own.py"
    for written, expected in (("x = 1\n", f"{own}: no description\n"), ('"""Mine."""\n', "Mine.\n")):
        own.write_text(written)
        commands.main(["run", str(own), "--help"])
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize("given", ["there", "there/own.yaml", "new/deep/own.yaml"])
def test_a_config_is_copied_into_a_folder_or_to_a_file(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    commands.main(["cp", "oracle/markov", given])
    target = "there/oracle_markov.yaml" if given == "there" else given
    assert Path(target).read_text() == commands.configs("oracle")["markov"].read_text()
    assert capsys.readouterr().out == f"wrote {target}; run it with: edlm run oracle --config {target}\n"


@pytest.mark.parametrize("name", ["oracles/tiny", "edlm_ncee/tiny", "a/b"])
def test_a_config_of_no_recipe_is_no_recipe_either(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        commands.main(["run", name])
    assert stop.value.code == exits.USAGE_ERROR
    near = {"oracles/tiny": "; did you mean 'oracle'?", "edlm_ncee/tiny": "; did you mean 'edlm_nce'?", "a/b": ""}[name]
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"edlm: recipe {name!r} is not one of adapt, ")
    assert said.endswith(f"nor a path that ends in .py{near}")


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        (["--nproc_per_node", "1"], ["--nproc_per_node", "1"]),
        (["--nproc_per_node", "auto"], ["--nproc_per_node", "auto"]),
        (["--nproc_per_node", "cpu"], ["--nproc_per_node", "cpu"]),
        (["--nproc_per_node", "gpu"], ["--nproc_per_node", "gpu"]),
        (["--node_rank", "1", "--nnodes", "2"], ["--nnodes", "2", "--node_rank", "1"]),
        (["--master_addr", "a", "--master_port", "9"], ["--master_addr", "a", "--master_port", "9"]),
        (["--rdzv_endpoint", "a:9", "--rdzv_backend", "c"], ["--rdzv_backend", "c", "--rdzv_endpoint", "a:9"]),
    ],
)
def test_options_of_torchrun_are_handed_over(
    words: list[str], processes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(commands, "_launch", lambda *given: seen.append(given))
    monkeypatch.setattr(commands.keys, "require_known", lambda *_: None)
    commands.main(["run", *words, "oracle", "seed=3"])
    config = str(commands.configs("oracle")["tiny"])
    assert seen == [(processes, commands.recipes()["oracle"], ["--config", config, "seed=3"])]


def failed(status: int) -> ChildFailedError:
    error = ChildFailedError.__new__(ChildFailedError)
    error.get_first_failure = lambda: (1, SimpleNamespace(exitcode=status))  # type: ignore[method-assign, return-value]
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, None),
        (failed(2), 2),
        (failed(70), 70),
        (failed(-15), 143),
        (SignalException("stop", signal.SIGINT), 130),
    ],
)
def test_a_launch_ends_as_the_first_process_that_fails(
    error: Exception | None, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(words: list[str]) -> None:
        seen.append(words)
        if error is not None:
            raise error

    seen: list[list[str]] = []
    monkeypatch.setattr(torchrun, "parse_args", list)
    monkeypatch.setattr(torchrun, "run", run)
    ours, own = commands.recipes()["oracle"], Path("own.py")
    for words, file in ((["--nproc_per_node", "2"], ours), (["--nnodes", "2"], own)):
        if status is None:
            commands._launch(words, file, ["seed=3"])
        else:
            with pytest.raises(SystemExit) as stop:
                commands._launch(words, file, ["seed=3"])
            assert stop.value.code == status
    assert seen == [
        ["--standalone", "--nproc_per_node", "2", "-m", "edlm.recipes.oracle", "seed=3"],
        ["--nnodes", "2", "own.py", "seed=3"],
    ]


def test_each_conversion_gets_its_own_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(name: str) -> Any:
        return lambda *given: seen.append((name, *given)) or [("kind", name), ("a longer name", "b")]

    seen: list[Any] = []
    exchange = SimpleNamespace(convert=rows("convert"), export=rows("export"))
    modules = {"edlm.weights.exchange": exchange, "edlm.weights.gguf_files": SimpleNamespace(convert=rows("gguf"))}
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)
    more = "--tokenizer t --part energy --num-heads 3 --length 9 --raw --bos b --order o --wrapped"
    for words in (f"a b {more}", "a b", "a b --to hf", "a.gguf b"):
        commands.main(["convert", *words.split()])
    a, b = Path("a"), Path("b")
    assert seen == [
        ("convert", a, b, "t", "energy", 3, 9, True, "b", "o", True),
        ("convert", a, b, None, None, None, None, False, None, None, False),
        ("export", a, b),
        ("gguf", Path("a.gguf"), b),
    ]
    assert capsys.readouterr().out.startswith("kind               convert\na longer name      b\nwrote b\n")


@pytest.mark.parametrize("path", ["a.gguf", "a --to hf"])
@pytest.mark.parametrize(
    "option",
    ["tokenizer=t", "part=energy", "num-heads=3", "length=9", "raw", "bos=b", "order=o", "wrapped"],
)
def test_words_of_published_weights_are_for_them_alone(
    path: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        commands.main(["convert", *path.split(), "b", f"--{option}"])
    where = "for a GGUF file" if path == "a.gguf" else "with --to hf"
    name = option.partition("=")[0]
    assert capsys.readouterr().err == f"edlm: --{name} is for published weights: leave it out {where}\n"


def test_findings_stand_in_columns_and_what_does_not_do_is_marked() -> None:
    found = [doctor.Finding("torch", "2.13"), doctor.Finding("a cache", "no", "not there", suffices=False)]
    assert doctor.table(found).split("\n") == ["  torch    2.13", "! a cache  no    not there"]


def test_a_long_error_is_cut() -> None:
    def look() -> doctor.Finding:
        raise ValueError("a " * 300)

    found = doctor._survived("sampling", look)
    assert found == doctor.Finding("sampling", "failed", ("ValueError: " + "a " * 300)[:200], suffices=False)


@pytest.mark.parametrize(
    ("version", "suffices"), [("2.12.0a0", True), ("2.11", True), ("2.14.0", False), ("2.10.9", False), (None, False)]
)
def test_a_version_does_if_it_lies_between_the_ends_and_one_before_its_release_too(
    version: str | None, suffices: bool
) -> None:
    found = doctor._compared("torch", version, SpecifierSet("<2.14,>=2.11"))
    assert found == doctor.Finding("torch", version or "not installed", "needs >=2.11,<2.14", suffices)


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["--model_args", "pretrained=x", "--tasks", "y"], True),
        (["-a", "pretrained=x", "--tasks", "y"], True),
        (["--model", "hf", "--model_args", "pretrained=x"], False),
        (["-M", "hf", "-a", "pretrained=x"], False),
        (["ls", "tasks"], False),
    ],
)
def test_the_harness_is_told_our_model_where_one_is_asked_for_and_none_is_named(
    words: list[str], added: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(commands.importlib, "import_module", lambda _: SimpleNamespace(NAME="edlm", run=lambda: None))
    monkeypatch.setattr(sys, "argv", [])
    commands._harness(words)
    assert sys.argv == ["lm_eval", *words, *(["--model", "edlm"] if added else [])]
