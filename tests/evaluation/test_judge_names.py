"""A judge that is given by a name of the hub and not by a folder: found in the cache, told by its commit."""

import shutil
from pathlib import Path

import pytest
import torch
from gpt2_folder import CONTEXT, WORDS

from edlm.evaluation import judges, samples

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny-gpt2"


@pytest.fixture
def named(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A name whose files lie in the hub's cache, and nothing of that name in the working folder."""
    constants = pytest.importorskip("huggingface_hub.constants")
    root = tmp_path / "cache" / "models--someone--tiny-gpt2"
    shutil.copytree(gpt2, root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return NAME


def test_it_judges_as_its_folder_does_and_is_told_by_its_commit(named: str, gpt2: Path) -> None:
    judged, what = judges.load(named, CPU)
    by_folder, of_folder = judges.load(str(gpt2), CPU)
    texts = [WORDS, "the rose"]
    assert torch.equal(judged(texts).nll, by_folder(texts).nll)
    assert torch.equal(judged(texts).tokens, by_folder(texts).tokens)
    assert what == {**of_folder, "path": NAME, "revision": COMMIT}
    assert (what["kind"], what["context"], of_folder["revision"]) == ("causal_lm", CONTEXT, None)


def test_a_report_has_its_commit_and_a_folder_the_hashes_of_its_files(named: str, gpt2: Path) -> None:
    judged, what = samples.load_judge(named, CPU)
    assert what["files_sha256"] == {}
    assert what["revision"] == COMMIT
    assert judged([WORDS]).tokens > 0
    of_folder = samples.load_judge(str(gpt2), CPU)[1]["files_sha256"]
    assert {"config.json", "model.safetensors"} <= of_folder.keys()
    assert {name: len(value) for name, value in of_folder.items()} == dict.fromkeys(of_folder, 64)


def test_a_name_that_nobody_has_is_refused_with_the_name(named: str) -> None:
    with pytest.raises(ValueError, match="judge = 'someone/other' cannot be loaded: ") as error:
        judges.load("someone/other", CPU)
    assert "someone/other" in str(error.value)
