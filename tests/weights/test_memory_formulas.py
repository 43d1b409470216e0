"""Every term of the memory plan by hand, for networks of a few numbers."""

from typing import Any

import pytest
import torch
from torch import nn

from edlm.process import categorical
from edlm.weights import memory

H, V, FORWARD, HEADS = 4, 7, 16, 5


class Large(nn.Module):
    """A network of a head and nothing else, which says how wide its blocks are."""

    def __init__(self, width: int = H, ids: int = V, rows: int | None = None, half: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(width, ids, bias=False, dtype=torch.bfloat16 if half else torch.float32)
        self.register_buffer("table", torch.zeros(3))
        self.again = self.head  # a shared weight is counted once
        self.widths, self.rows_at_once = (FORWARD, HEADS), rows


def plan(energy: Any, denoiser: Any = None, logits_at_once: int = 35, **more: Any) -> memory.MemoryPlan:
    """Of two texts of five tokens, three candidates each."""
    return memory.memory_plan(Large() if denoiser is None else denoiser, energy, 2, 3, 5, logits_at_once, **more)


BLOCK = (3 * FORWARD + 2 * H) * 4 + 2 * H * 4  # bytes of a token: a feed-forward layer, and copies of a norm
WEIGHTS = H * V * 4 + 3 * 4


def test_without_an_energy_a_text_is_its_one_candidate() -> None:
    found = plan(None, trained=100)
    tile = 35 // V
    drawn = V * (2 * 4 + 4 * 4) + 1 * V * (4 + 8 + 8)
    expected = memory.MemoryPlan(
        weights=WEIGHTS + 100,
        drafts=2 * 5 * (8 + 8 + 8 + 4 + 4),
        denoise=2 * 5 * BLOCK,
        propose=tile * drawn + 2 * 5 * H * 4,
        weigh=0,
    )
    assert found == expected
    assert found.peak == found.weights + found.drafts + max(found.denoise, found.propose)
    assert plan(None, logits_at_once=3).propose == drawn + 2 * 5 * H * 4, "a tile has a row at least"
    assert plan(None, logits_at_once=10**6).propose == 2 * 5 * (drawn + H * 4), "and no more than there are"


@pytest.mark.parametrize(("rows", "run"), [(None, 6), (2, 2), (9, 6)])
def test_another_model_weighs_all_candidates(rows: int | None, run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    energy = Large(width=6, ids=11, rows=rows, half=True)
    found = plan(energy, trained=100)
    drawn = V * (2 * 4 + 4 * 4) + V * (4 + 8 + 8)
    block = (max(3 * FORWARD, 8 * HEADS) + 2 * 6) * 2 + 2 * 6 * 4
    assert found.weights == WEIGHTS + 6 * 11 * 2 + 3 * 4, "what is trained is of an energy over the denoiser alone"
    assert found.drafts == 2 * 3 * 5 * 32
    assert found.propose == 5 * drawn + 2 * 5 * H * 4
    assert found.weigh == 2 * (6 * 5 * 6 * 2) + max(run * 5 * block, 35 * 3 * 4)
    assert plan(energy, logits_at_once=10**6).weigh == 2 * (6 * 5 * 6 * 2) + max(run * 5 * block, 6 * 5 * 11 * 12)
    monkeypatch.setattr(categorical, "BLOCK", 4)
    in_blocks = V * (2 * 4 + 4 * 4) + 3 * 4 * (4 + 8 + 8)
    assert plan(energy).propose == 35 // V * in_blocks + 2 * 5 * H * 4, "every candidate has a block of its own"


def test_an_energy_over_the_denoisers_network_shares_its_weights_and_has_no_logits() -> None:
    denoiser = Large(rows=1)
    found = plan(denoiser, denoiser, trained=100)
    assert found.weights == WEIGHTS + 100
    assert found.weigh == 2 * 3 * 5 * 4 * 4 * H + 2 * (6 * 5 * H * 4) + 5 * BLOCK


def test_attention_may_be_the_widest_moment_of_a_block() -> None:
    wide = Large()
    wide.widths = (FORWARD, 7)
    assert plan(None, wide).denoise == 2 * 5 * ((8 * 7 + 2 * H) * 4 + 2 * H * 4)
    many = Large(ids=300)
    assert plan(None, many, logits_at_once=300).propose == 300 * 24 + 256 * 20 + 2 * 5 * H * 4


def test_the_peak_is_what_stays_and_the_largest_of_the_rest() -> None:
    for largest in range(3):
        rest = [7, 7, 7]
        rest[largest] = 50
        assert memory.MemoryPlan(100, 10, *rest).peak == 160
