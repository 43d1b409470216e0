"""What a sampler is expected to read, worked out by hand: ten masks in five passes, three of them inside the window."""

from types import SimpleNamespace
from typing import Any

import pytest

from edlm.contracts import Reads
from edlm.samplers import expectation
from edlm.samplers.planning import Expected

LENGTH, PLAN = 10, Expected(passes=5.0, corrected=3.0, revealed=0.5, entered=0.25)
READS = Reads(texts=1, candidates=2, new=3, in_turn=1)


def of(plan: Expected | None = PLAN, in_order: bool = False, **parts: Any) -> float | None:
    """The passes of four candidates, of a correction of such parts."""
    given = {"reads": READS, "scope": "transition", "carries": False, **parts}
    sampler: Any = SimpleNamespace(
        denoiser=SimpleNamespace(schedule=None),
        plan=SimpleNamespace(expected=lambda *_: plan),
        parts=SimpleNamespace(**given) if parts.get("there", True) else None,
        chooses=SimpleNamespace(in_order=in_order),
        **{"remasking": None, "window": (0.0, 1.0), "most": 4},
    )
    return expectation.expected_passes(sampler, LENGTH)


@pytest.mark.parametrize(
    ("parts", "tokens"),
    [
        ({}, 3 * (10 + 4 * 20) + 4 * (3 * 2 + 10 * 2)),  # five are new in three passes: two beside the first of each
        ({"in_order": True}, 3 * (10 + 2 * 20) + 2 * (3 * 2 + 10 * 2)),
        ({"scope": "draft"}, 3 * (10 + 4 * 20) + 4 * (3 + 10) * (3 * 5.5 - 3)),  # 5.5 masks on average
        ({"reads": Reads()}, 3 * 4 * 10),
        ({"reads": Reads(texts=1, candidates=0)}, 3 * 10),
    ],
)
def test_a_correction_reads_texts_candidates_and_what_is_new(parts: dict[str, Any], tokens: float) -> None:
    assert of(**parts) == pytest.approx(5 + tokens / LENGTH)


def test_a_network_whose_states_are_carried_on_reads_once_before_its_first_corrected_pass() -> None:
    assert of(carries=True, reads=Reads()) == pytest.approx(5 - 3 + 0.25 + 3 * 4 * 10 / LENGTH)


def test_without_a_correction_there_are_the_passes_of_the_plan_where_they_are_known() -> None:
    assert of(there=False) == 5.0
    assert of(None, there=False) is of(None) is None
