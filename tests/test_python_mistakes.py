"""Every mistake of the table gets a ValueError with its sentence, in one line."""

from pathlib import Path
from typing import Any

import mistakes
import pytest


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return mistakes.prepared(tmp_path_factory.mktemp("mistakes"))


@pytest.mark.parametrize("call", mistakes.CALLS)
def test_a_mistake_in_python_gets_its_sentence(
    names: dict[str, Any], call: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:  # noqa: PT011  the whole of it is compared
        eval(call, names)
    assert str(error.value) == mistakes.CALLS[call]
    assert len(mistakes.CALLS[call].splitlines()) == 1
