"""What a limit allows: as much as it says, times what the user sets, and not one more."""

from pathlib import Path

import pytest

from edlm import limits


@pytest.mark.parametrize(("given", "factor"), [(None, 1.0), ("2", 2.0), ("0.5", 0.5), ("1e3", 1000.0)])
def test_all_limits_are_multiplied(given: str | None, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDLM_LIMITS", raising=False)
    if given is not None:
        monkeypatch.setenv("EDLM_LIMITS", given)
    assert limits.factor() == factor
    assert limits.allowed(10) == 10 * factor


@pytest.mark.parametrize("given", ["0", "-1", "nan", "many", ""])
def test_what_multiplies_them_is_a_number_above_zero(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDLM_LIMITS", given)
    with pytest.raises(ValueError, match=rf"^EDLM_LIMITS = {given!r} must be a number above 0, which multiplies every"):
        limits.require("a", "tensors", 1, 10)


@pytest.mark.parametrize(("found", "raised"), [(11, 2), (20, 2), (21, 3), (100, 10)])
def test_one_more_is_refused_with_what_allows_it(found: int, raised: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDLM_LIMITS", raising=False)
    limits.require("a", "tensors", 10, 10)
    with pytest.raises(limits.TooLarge) as error:
        limits.require("a", "tensors", found, 10)
    told = f"a: tensors = {found} must be at most 10; EDLM_LIMITS={raised} (limits= of a recipe) allows it"
    assert str(error.value) == told
    monkeypatch.setenv("EDLM_LIMITS", str(raised))
    limits.require("a", "tensors", found, 10)


def test_what_unpacks_to_little_may_unpack_as_it_will(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDLM_LIMITS", raising=False)
    monkeypatch.setattr(limits, "UNPACKED_BYTES", 1000)
    monkeypatch.setattr(limits, "INFLATION", 10)
    for unpacked, stored in ((1000, 0), (1000, 1), (1010, 101), (2000, 200)):
        limits.require_inflation("a", unpacked, stored)
    for unpacked, stored, times in ((1001, 100, 11), (1001, 0, 1001), (2001, 200, 11)):
        told = f"^a: {stored:,} bytes unpack to {unpacked:,} or more: times their size = {times} must be at most 10; "
        with pytest.raises(limits.TooLarge, match=told):
            limits.require_inflation("a", unpacked, stored)


def test_a_file_is_as_small_as_its_limit(tmp_path: Path) -> None:
    limits.require_small(tmp_path / "lost", 0)
    (tmp_path / "a").write_bytes(b"abc")
    limits.require_small(tmp_path / "a", 3)
    with pytest.raises(limits.TooLarge, match=r"a: bytes = 3 must be at most 2; EDLM_LIMITS=2 "):
        limits.require_small(tmp_path / "a", 2)
    with pytest.raises(ValueError, match=r"no regular file$"):
        limits.require_small(tmp_path, 2)
