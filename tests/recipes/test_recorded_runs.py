"""Small runs of every recipe print and write what is on record: see `recorded.py`."""

import json
from pathlib import Path

import frontier_folder
import pytest
import recorded
from running import Runner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("recorded")
    frontier_folder.write(found / "models")
    return found


@pytest.mark.parametrize("name", recorded.RUNS)
def test_a_run_prints_and_writes_what_is_on_record(
    name: str, folder: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = recorded.record(name, run, monkeypatch)
    kept = recorded.FOLDER / f"{name}.json"
    if recorded.ANEW:
        kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
    wanted = json.loads(kept.read_text("utf-8"))
    assert list(found) == list(wanted)
    told = {part: recorded.differences(text, wanted[part]) for part, text in found.items()}
    assert not any(told.values()), told


LINE = 'plain, T=2   2.0669 ± 0.0230 bits, n = 48 {"mean": 1.2e-05, "texts": ["ab"]}'


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (LINE, True),
        (LINE.replace("2.0669", "2.0670"), True),  # the last digit that is printed
        (LINE.replace("2.0669", "2.0800"), True),
        (LINE.replace("2.0669", "2.1000"), False),
        (LINE.replace("2.0669", "12.0669"), False),
        (LINE.replace("2.0669", "-2.0669"), False),
        (LINE.replace("   2.0669", "2.0669"), False),  # no gap is left
        (LINE.replace("   2.0669", "  2.0669"), True),  # one column is wider
        (LINE.replace("0.0230", "0.0240"), False),
        (LINE.replace("48", "49"), False),
        (LINE.replace("T=2", "T=3"), False),
        (LINE.replace("1.2e-05", "1.3e-05"), True),  # nothing beside the sums that it is a difference of
        (LINE.replace("1.2e-05", "1.8e-05"), False),
        (LINE.replace("bits", "nats"), False),
        (LINE.replace('"ab"', '"ba"'), False),
        (f"{LINE}\n", True),
        (f"{LINE}\n{LINE}", False),
    ],
)
def test_another_word_or_number_is_a_difference(other: str, is_same: bool) -> None:
    assert (recorded.differences(other, LINE) == []) is is_same


def test_what_a_machine_decides_is_not_on_record() -> None:
    given = '{"sha256": "01417016f954", "sum": "6830039770c82902", "torch": "2.13.0", "error": 6938893903907228e-18} '
    kept = '{"sha256": "hash", "sum": "hash", machine, "error": 6938893903907228e-18} machine'
    assert recorded.plain(f"{given}cpu, x86_64") == kept
