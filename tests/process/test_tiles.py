"""How many logits exist at once, by device, and how a vocabulary is cut: what memory a step takes follows from it."""

import pytest
import torch

from edlm.process import categorical


@pytest.mark.parametrize(
    ("device", "unrolled", "logits"),
    [("cpu", False, 1 << 22), ("cpu", True, 1 << 23), ("cuda", False, 1 << 27), ("cuda", True, 1 << 27)],
)
def test_so_many_logits_exist_at_once(device: str, unrolled: bool, logits: int) -> None:
    for vocab_size in (1, 1000, logits - 1, logits):
        assert categorical.rows_at_once(vocab_size, torch.device(device), unrolled) == logits // vocab_size
    assert categorical.rows_at_once(logits + 1, torch.device(device), unrolled) == 1


def test_a_device_that_nobody_knows_has_those_of_an_unrolled_loop() -> None:
    for unrolled in (False, True):
        assert categorical.rows_at_once(1 << 10, torch.device("meta"), unrolled) == 1 << 13


@pytest.mark.parametrize(
    ("vocab_size", "device", "columns"), [(100, "cpu", 100), (5000, "cpu", 2048), (5000, "cuda", 5000)]
)
def test_a_head_computes_all_columns_but_of_a_large_vocabulary_on_a_cpu(
    vocab_size: int, device: str, columns: int
) -> None:
    assert categorical.columns_at_once(vocab_size, torch.device(device)) == columns


def test_the_last_slice_of_a_vocabulary_may_be_shorter() -> None:
    assert categorical.slices(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert categorical.slices(6, 3) == [slice(0, 3), slice(3, 6)]
    assert categorical.slices(2, 3) == [slice(0, 2)]
