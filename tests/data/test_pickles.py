"""What another process is given pickles: schedules, vocabularies, corpora, data sets, and rows that lie on disk."""

import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from edlm.data import datasets, pieces, vocabulary
from edlm.process import schedules

BPE = vocabulary.train_bpe(["a text of words, and more words"] * 3, 270)
SCHEDULES = ("log_linear", "cosine", "cosine_squared", "linear", "geometric", "polynomial")


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_pickles(name: str) -> None:
    schedule = getattr(schedules, name)()
    again = pickle.loads(pickle.dumps(schedule))
    times = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    for one, other in zip(schedule, again, strict=True):
        assert torch.equal(one(times), other(times))


def files(folder: Path, kind: str) -> datasets.DataSet:
    cache = folder / "cache"
    if kind == "named":
        for split in ("train", "valid", "test"):
            (folder / f"ptb.{split}.txt").write_text("it was n't $ N billion\nno\n" * 9)
        return datasets.named("ptb", folder, cache=cache)
    if kind == "whole":
        (folder / "text8").write_text("abcdefghij " * 90)
        return datasets.named("text8", folder / "text8", cache=cache)
    (folder / "a.txt").write_text("\n\n".join(f"document {number} of many" for number in range(40)))
    return datasets.files(folder / "a.txt", cache=cache, normalised=kind == "normalised")


@pytest.mark.parametrize("kind", ["named", "whole", "files", "normalised"])
def test_a_data_set_and_its_rows_pickle_by_where_they_lie(tmp_path: Path, kind: str) -> None:
    found = files(tmp_path, kind)
    again = pickle.loads(pickle.dumps(found))
    assert (again.fingerprint, again.valid) == (found.fingerprint, found.valid)
    rows = found.blocks(BPE, 8).train
    content = pickle.dumps(rows)
    assert torch.equal(pickle.loads(content)[:], rows[:])
    assert len(content) < 5_000, "not the tokens themselves"


def test_padded_rows_pickle(tmp_path: Path) -> None:
    ids = vocabulary.characters(specials=["bos", "eos", "pad"])
    (tmp_path / "a.txt").write_text("one\n\ntwo and more\n\nthree\n\nfour")
    rows = datasets.files(tmp_path / "a.txt", cache=tmp_path / "cache", layout="padded").blocks(ids, 5).train
    assert torch.equal(pickle.loads(pickle.dumps(rows))[:], rows[:])


@pytest.mark.slow
def test_workers_that_are_spawned_read_the_same_blocks(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"document {number} of many" for number in range(40)))
    rows = datasets.files(tmp_path / "a.txt", cache=tmp_path / "cache").blocks(BPE, 8).train
    singly = Singly(rows)
    loader = DataLoader(singly, batch_size=4, num_workers=1, multiprocessing_context="spawn")  # type: ignore[arg-type]
    assert torch.equal(torch.cat(list(loader)), rows[:])


class Singly:
    """Rows one by one, as a loader asks for them."""

    def __init__(self, rows: pieces.Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.rows[number : number + 1][0]
