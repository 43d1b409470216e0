"""Of a folder that `datasets` has saved what it names is read; links lead nowhere twice; shards are of one saving."""

import json
from pathlib import Path

import pyarrow
import pytest

from edlm.data import datasets, documents


def write_arrow(file: Path, *texts: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"text": list(texts)})
    with pyarrow.OSFile(str(file), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)


def saved(folder: Path, *texts: str) -> None:
    """A data set as `save_to_disk` leaves it, over an older one of two shards, with what `map` has kept beside."""
    write_arrow(folder / "data-00000-of-00001.arrow", *texts)
    write_arrow(folder / "data-00000-of-00002.arrow", "old")
    write_arrow(folder / "cache-0123456789abcdef.arrow", "cached", "too")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


def read(folder: Path) -> dict[str, list[str]]:
    return {
        split: [text for file in files for text in documents.read(file)]
        for split, files in documents.find(folder).items()
    }


def test_a_saved_set_is_the_files_that_its_state_names(tmp_path: Path) -> None:
    saved(tmp_path, *"abcd")
    assert read(tmp_path) == {"": [*"abcd"]}
    assert sum(map(len, (datasets.files(tmp_path).train, datasets.files(tmp_path).valid))) == 3


def test_a_saved_set_of_splits_is_the_folders_that_it_names(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        saved(tmp_path / split, split)
    saved(tmp_path / "dev", "of an older saving")
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    assert read(tmp_path) == {"train": ["train"], "valid": ["validation"], "test": ["test"]}


def test_where_datasets_keeps_what_it_has_loaded_the_splits_are_read(tmp_path: Path) -> None:
    write_arrow(tmp_path / "json-train-00000-of-00002.arrow", "one")
    write_arrow(tmp_path / "json-train-00001-of-00002.arrow", "two")
    write_arrow(tmp_path / "json-test.arrow", "three")
    write_arrow(tmp_path / "cache-train.arrow.arrow", "cached")
    write_arrow(tmp_path / "cache-0123.arrow", "cached")
    about = {"splits": {"train": {"shard_lengths": [1, 1]}, "test": {"shard_lengths": None}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(about))
    assert read(tmp_path) == {"train": ["one", "two"], "test": ["three"]}
    (tmp_path / "json-test.arrow").unlink()
    with pytest.raises(ValueError, match=r"dataset_info\.json: names the split 'test', and there is no \*-test\.arrow"):
        documents.find(tmp_path)


@pytest.mark.slow
def test_a_set_saved_twice_by_datasets_is_read_once(tmp_path: Path) -> None:
    hub = pytest.importorskip("datasets")
    hub.Dataset.from_dict({"text": [*"abcdefgh"]}).save_to_disk(tmp_path / "set", num_shards=2)
    held = hub.load_from_disk(str(tmp_path / "set")).map(lambda row: {"text": row["text"] + "!"})
    assert len(held) == 8
    hub.Dataset.from_dict({"text": [*"wxyz"]}).save_to_disk(tmp_path / "other", num_shards=1)
    for file in (tmp_path / "other").iterdir():
        file.replace(tmp_path / "set" / file.name)
    assert len(list((tmp_path / "set").glob("*.arrow"))) > 2
    assert read(tmp_path / "set") == {"": [*"wxyz"]}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"_data_files": [{"filename": "gone.arrow"}]}, "'gone.arrow' is not there"),
        ({"_data_files": [{"filename": "../data-00000-of-00001.arrow"}]}, "is not there"),
        ({"_data_files": []}, "_data_files must name what lies beside it"),
        ({}, "_data_files must name what lies beside it"),
        ([], "must be a JSON object"),
        ({"_data_files": 5}, "_data_files must name what lies beside it"),
        ({"_indices_data_files": [1]}, "save the data set anew"),
    ],
)
def test_a_state_that_does_not_fit_its_folder_is_said(tmp_path: Path, state: object, said: str) -> None:
    saved(tmp_path, "a")
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=rf"state\.json: .*{said}"):
        documents.find(tmp_path)


def test_shards_of_two_savings_are_refused(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "valid-00000-of-00001.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    assert set(documents.find(tmp_path)) == {"train", "valid"}
    (tmp_path / "train-00000-of-00001.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"of another saving than train-00000-of-00001\.jsonl beside it"):
        documents.find(tmp_path)


def test_folders_behind_links_are_read_and_notes_are_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("a")
    (tmp_path / "set" / "train").symlink_to(tmp_path / "elsewhere")
    for note in ("LICENSE", "README.txt", "readme.MD", "CHANGELOG"):
        (tmp_path / "set" / note).write_text("a note")
    assert documents.find(tmp_path / "set") == {"train": [tmp_path / "set" / "train" / "a.txt"]}


def test_a_file_that_names_no_split_beside_those_that_do_is_not_left_out_silently(tmp_path: Path) -> None:
    for name in ("train", "valid", "test", "more"):
        (tmp_path / f"{name}.txt").write_text("a text")
    with pytest.raises(ValueError, match=r"more\.txt needs train, valid or test in its name"):
        datasets.files(tmp_path)
