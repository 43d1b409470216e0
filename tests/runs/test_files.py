"""Files of results and of networks: whole or not at all, readable as they stand, and refused by their names."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edlm.runs import files, processes
from edlm.weights import pointers, whole

FULL = OSError(errno.ENOSPC, "No space left on device")
CONTENT = {"b": [1, 2], "a": "ü"}
WRITERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "json": (lambda path: files.write_json(path, CONTENT), json.dumps(CONTENT, indent=2) + "\n"),
    "jsonl": (lambda path: files.write_jsonl(path, [CONTENT, {}]), json.dumps(CONTENT) + "\n{}\n"),
    "text": (lambda path: files.write_text(path, "ü\n"), "ü\n"),
    "json of a network": (lambda path: whole.write_json(path, CONTENT), json.dumps(CONTENT, indent=2) + "\n"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_there_as_it_is_read(kind: str, tmp_path: Path) -> None:
    write, content = WRITERS[kind]
    (tmp_path / "a").write_text("old")
    write(tmp_path / "a")
    assert (tmp_path / "a").read_text("utf-8") == content
    assert os.listdir(tmp_path) == ["a"]


def test_lines_are_added_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "of" / "a" / "run.jsonl"
    files.append_jsonl(path, [CONTENT])
    files.append_jsonl(path, [{}, {"c": 1}])
    assert path.read_text("utf-8") == json.dumps(CONTENT) + '\n{}\n{"c": 1}\n'


def test_of_several_processes_the_first_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "is_first", lambda: False)
    files.write_json(tmp_path / "a", CONTENT)
    files.write_jsonl(tmp_path / "b", [CONTENT])
    files.append_jsonl(tmp_path / "c", [CONTENT])
    assert not os.listdir(tmp_path)


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("old")

    def fails(*_: Any, **__: Any) -> None:
        raise FULL

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(ValueError, match=rf"^cannot write {tmp_path}/a: No space left on device$"):
        files.write_json(tmp_path / "a", CONTENT)
    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(ValueError, match=rf"^output = '{tmp_path}/a' cannot be written: No space left on device$"):
        files.append_jsonl(tmp_path / "a", [CONTENT])
    monkeypatch.undo()
    assert (tmp_path / "a").read_text() == "old"


def test_a_fingerprint_differs_with_every_value_and_not_with_the_order() -> None:
    known = files.fingerprint({"a": 1, "b": [2]})
    assert known == files.fingerprint({"b": [2], "a": 1})
    assert len({known, files.fingerprint({"a": 2, "b": [2]}), files.fingerprint({"a": 1, "b": 2})}) == 3
    assert len(known) == 16
    assert set(known) <= set("0123456789abcdef")


def test_a_folder_is_filled_flushed_and_renamed_or_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(whole, "_flush", lambda path: flushed.append(path.name))
    (tmp_path / "a" / ".b.partial").mkdir(parents=True)
    (tmp_path / "a" / ".b.partial" / "left").write_text("behind")
    whole.write_folder(tmp_path / "a" / "b", lambda target: (target / "c").write_text("d") and None)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["a", "a/b", "a/b/c"]
    assert flushed == ["c", ".b.partial", "a"]

    def fails(target: Path) -> None:
        (target / "c").write_text("d")
        raise FULL

    for kept, said in ((None, ""), (tmp_path / "x", f"; the last good checkpoint is {tmp_path}/x")):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            whole.write_folder(tmp_path / "new" / "e", fails, kept)
        assert str(error.value) == f"cannot write {tmp_path}/new/e: {FULL}{said}"
        assert not os.listdir(tmp_path / "new")


def test_what_is_written_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: done.append("renamed") or replace(old, new))
    whole.write_json(tmp_path / "a.json", CONTENT)
    assert done == [f"{tmp_path}/.a.json.partial", "renamed", str(tmp_path)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"a\.json: cannot be read \(No such file or directory\)$"),
        ("{", r"a\.json: not valid json \("),
        ("[" * 100_000, r"a\.json: not valid json \("),
        ("[1]", r"a\.json: not a json object$"),
        ('{"a": 1}' + " " * 20, r"a\.json: bytes = 28 must be at most 20; "),
    ],
)
def test_json_that_is_none_is_named(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        whole.read_json(tmp_path / "a.json", 20 if " " in (content or "") else 1 << 20)


@pytest.mark.parametrize(
    ("name", "there", "said"),
    [
        ("last.json", ("00000004", "00000012", "00000008", "100000000"), "to go on from the last of those there"),
        ("best.json", ("00000004", "00000012", "00000008", "100000000"), "or the best of those there"),
        ("last.json", (), None),
    ],
)
def test_a_pointer_that_is_lost_or_damaged_is_told_with_what_to_write(
    name: str, there: tuple[str, ...], said: str | None, tmp_path: Path
) -> None:
    for step in (*there, "7"):
        (tmp_path / f"step_{step}").mkdir()
    remedy = (
        ""
        if said is None
        else (
            f': write {{"folder": "step_100000000"}} into {name} {said} '
            "(step_00000008, step_00000012, step_100000000), or use another output_dir; nothing was removed"
        )
    )
    pointer = tmp_path / name
    assert pointers.pointed(pointer) is None
    for folder, problem in (
        ("step_00000099", f"{pointer} names step_00000099, which is not there"),
        ("step_7", f"{pointer}: folder = 'step_7' must be the name of a checkpoint"),
        (None, f"{pointer}: folder = None must be the name of a checkpoint"),
    ):
        whole.write_json(pointer, {"folder": folder})
        with pytest.raises(ValueError) as error:  # noqa: PT011
            pointers.pointed(pointer)
        assert str(error.value) == problem + remedy
    if there:
        whole.write_json(pointer, {"folder": "step_00000004"})
        assert pointers.pointed(pointer) == tmp_path / "step_00000004"
