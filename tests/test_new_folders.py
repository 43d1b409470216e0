"""Whatever writes makes the folders above what it writes, and takes those that are there already."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edlm.benchmark import report
from edlm.cli import commands
from edlm.data import token_cache, vocabulary
from edlm.frontier.lines import Lines
from edlm.nn.networks import Transformer
from edlm.runs import files, locks
from edlm.weights import checkpoints, pointers, whole

LETTERS = vocabulary.characters()


def _network(folder: Path) -> None:
    network = Transformer(LETTERS.size, 4, hidden_size=4, num_layers=1, num_heads=1)
    checkpoints.save_network(folder / "network", network, LETTERS, {})


def _locked(folder: Path) -> None:
    with locks.alone("output", str(folder / "texts.jsonl")):
        files.append_jsonl(folder / "texts.jsonl", [{"text": ""}])


WRITERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "lines of json": (lambda folder: files.append_jsonl(folder / "a.jsonl", [{}]), "a.jsonl"),
    "a folder, whole": (
        lambda folder: whole.write_folder(folder / "whole", lambda inside: files.write_json(inside / "a", {})),
        "whole/a",
    ),
    "the mark of a first checkpoint": (lambda folder: pointers.write_first(folder / "first", folder), "first"),
    "a vocabulary": (LETTERS.save, "vocabulary.json"),
    "tokens": (lambda folder: token_cache.tokens(folder, "train", lambda: iter(["a text"]), LETTERS), "train.json"),
    "settings of a sweep": (lambda folder: Lines(folder, "sweep", {}), "sweep.json"),
    "a report": (lambda folder: report.Report(folder, {}, {}).add("cases", {"name": ""}, []), "benchmark.json"),
    "a config": (lambda folder: commands.main(["cp", "generate/tiny", str(folder / "own.yaml")]), "own.yaml"),
    "a network": (_network, "network/network.json"),
    "a locked output": (_locked, "texts.jsonl"),
}


@pytest.mark.parametrize("what", WRITERS)
def test_folders_are_made_however_many_are_missing(what: str, tmp_path: Path) -> None:
    write, name = WRITERS[what]
    there = tmp_path / "there"
    there.mkdir()
    for folder in (tmp_path / "one" / "two" / "three", there):
        write(folder)
        assert (folder / name).is_file()


@pytest.mark.parametrize("what", sorted(WRITERS.keys() - {"a folder, whole", "a network", "a config"}))
def test_what_is_there_is_written_to_again(what: str, tmp_path: Path) -> None:
    write, name = WRITERS[what]
    write(tmp_path / "one")
    write(tmp_path / "one")
    assert (tmp_path / "one" / name).is_file()


@pytest.mark.parametrize("what", WRITERS)
def test_where_nothing_can_be_written_one_line_says_so(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, _ = WRITERS[what]
    (tmp_path / "file").write_text("none of our folders")
    with pytest.raises((ValueError, SystemExit)) as error:
        write(tmp_path / "file" / "below")
    said = capsys.readouterr().err if isinstance(error.value, SystemExit) else str(error.value)
    assert str(tmp_path / "file") in said
    assert len(said.strip().splitlines()) == 1
    assert (tmp_path / "file").read_text() == "none of our folders"
