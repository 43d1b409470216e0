"""Which checkpoints of a run are removed and which stay, and what is said where the file that names one is lost."""

import json
import re
from pathlib import Path

import pytest

from edlm.weights import pointers


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir()
        (root / name / "network.json").write_text("{}")
    return root


def there(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


STEPS = tuple(f"step_{number:08d}" for number in (1, 2, 3, 4, 5))


@pytest.mark.parametrize(
    ("newest", "keep_last", "best", "kept"),
    [
        (5, 1, None, [5]),
        (5, 2, None, [4, 5]),
        (5, 9, None, [1, 2, 3, 4, 5]),
        (3, 2, None, [2, 3]),  # what is later is of a run that went on from here
        (3, 1, 1, [1, 3]),
        (5, 2, 4, [4, 5]),
        (3, 1, 5, [3, 5]),
    ],
)
def test_the_last_ones_up_to_the_newest_stay_and_the_best(
    newest: int, keep_last: int, best: int | None, kept: list[int], tmp_path: Path
) -> None:
    folders(tmp_path, *STEPS, ".step_00000002.partial", ".step_00000009.partial")
    if best is not None:
        (tmp_path / pointers.BEST).write_text(json.dumps({"folder": STEPS[best - 1]}))
    pointers.remove_old(tmp_path, STEPS[newest - 1], keep_last)
    assert [name for name in there(tmp_path) if name != pointers.BEST] == [STEPS[number - 1] for number in kept]


def test_steps_of_nine_digits_come_after_those_of_eight_and_other_folders_stay(tmp_path: Path) -> None:
    folders(tmp_path, "step_99999998", "step_99999999", "step_100000000", "step_99999999_mine", "step_x")
    pointers.remove_old(tmp_path, "step_100000000", 2)
    assert there(tmp_path) == ["step_100000000", "step_99999999", "step_99999999_mine", "step_x"]
    pointers.remove_old(tmp_path, "step_99999999", 2)
    assert there(tmp_path) == ["step_99999999", "step_99999999_mine", "step_x"]


@pytest.mark.parametrize(
    ("name", "which"),
    [(pointers.LAST, "to go on from the last of those there"), (pointers.BEST, "or the best of those there")],
)
def test_a_lost_file_is_named_with_the_last_three_checkpoints(name: str, which: str, tmp_path: Path) -> None:
    pointer = folders(tmp_path, *STEPS[:4]) / name
    said = (
        f': write {{"folder": "step_00000004"}} into {name} {which} (step_00000002, step_00000003, step_00000004), or '
        "use another output_dir; nothing was removed"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(f'{pointer} is missing, and 4 checkpoints are there{said}')}$"):
        pointers.refuse_lost(pointer)
    pointer.write_text('{"folder": "step_00000009"}')
    gone = f"{pointer} names step_00000009, which is not there{said}"
    with pytest.raises(ValueError, match=f"^{re.escape(gone)}$"):
        pointers.pointed(pointer)
    for wrong in ("step_1", "../step_00000001", 3, None):
        pointer.write_text(json.dumps({"folder": wrong}))
        refused = f"{pointer}: folder = {wrong!r} must be the name of a checkpoint{said}"
        with pytest.raises(ValueError, match=f"^{re.escape(refused)}$"):
            pointers.pointed(pointer)
    pointer.write_text('{"folder": "step_00000002"}')
    assert pointers.pointed(pointer) == tmp_path / "step_00000002"


def test_without_checkpoints_nothing_is_lost_and_a_first_save_that_was_cut_off_is_known(tmp_path: Path) -> None:
    pointer = tmp_path / pointers.LAST
    pointers.refuse_lost(pointer)
    assert pointers.pointed(pointer) is None
    folders(tmp_path, STEPS[0])
    pointers.write_first(tmp_path / pointers.FIRST, tmp_path / STEPS[0])
    pointers.refuse_lost(pointer)
    folders(tmp_path, STEPS[1])
    with pytest.raises(ValueError, match=r"last\.json is missing, and 2 checkpoints are there"):
        pointers.refuse_lost(pointer)
