"""The optimizer of a config: one of torch's is tried on a weight by the check, and one of your own is not called."""

import sys
from typing import Any

import pytest
import torch

from edlm.training import settings


class Mine(torch.optim.SGD):
    """An optimizer whose name torch does not have."""

    def __init__(self, params: Any, lr: float) -> None:
        raise AssertionError("a check of a config called it")


class SGD(Mine):
    """One whose name torch has."""


@pytest.mark.parametrize("name", ["Mine", "SGD"])
def test_an_optimizer_of_your_own_is_not_called(name: str) -> None:
    value = {"_component_": f"{__name__}.{name}", "lr": -1.0}
    assert __name__ in sys.modules
    settings.SETTINGS["optimizer"]("optimizer", value)


def test_one_of_torch_is_tried() -> None:
    settings.SETTINGS["optimizer"]("optimizer", {"_component_": "torch.optim.SGD", "lr": 0.1})
    with pytest.raises(ValueError, match=r"^optimizer: .*-1\.0"):
        settings.SETTINGS["optimizer"]("optimizer", {"_component_": "torch.optim.SGD", "lr": -1.0})
