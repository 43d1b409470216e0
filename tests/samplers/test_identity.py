"""Samplers, bounds and losses are those of 0.1.0 at a06d986, bit for bit, whatever they are built from.

`identity.safetensors` holds what that code gave on fixed seeds for every combination of correction, candidates,
selection and plan; `identity_parts` builds them. Networks are float64, so that another CPU's rounding changes the last
bits of a float and no token. Of networks that are told the time 28 values were recorded anew, at most 2e-9 away: the
float32 exponential in their embedding had been that of one processor.
"""

from collections.abc import Iterator
from pathlib import Path

import identity_parts
import pytest
import torch
from covering import covering
from identity_parts import LENGTH, MASK, ROWS, SEED, Case
from safetensors.torch import load_file
from torch import Tensor

import edlm

RECORD = Path(__file__).with_name("identity.safetensors")
PER_PASS = ("t", "revealed", "corrected", "particles", "ess", "log_weight_std")
CASES = identity_parts.cases()
EXTENDED = [each for each in CASES if each.plan == "grid" and not each.changed and not each.told]
BOUNDED = [each for each in CASES if each.selection in ("sir", "speculative") and each.candidates is not None]
DRAFTS = [each for each in CASES if each.correction in ("draft", "posterior", "carry_over")]
PAPER = [each for each in DRAFTS if each.candidates == 3 and each.selection == "sir" and each.plan == "grid"]
TEXTS = torch.arange(5 * LENGTH).view(5, LENGTH).mul(7).add(3) % 11 % MASK


def drawn(case: Case) -> dict[str, Tensor]:
    prompt = torch.tensor([MASK, 2, MASK, MASK, 1]) if case.changed else None
    out = edlm.sample(identity_parts.pipeline_of(case), ROWS, seed=SEED, prompt=prompt, first_row=4)
    return parts(out["tokens"], identity_parts.info_of(case, out["info"]))


def extended(case: Case) -> dict[str, Tensor]:
    out = edlm.extend(identity_parts.pipeline_of(case), 2 * LENGTH + 1, 4, ROWS, seed=SEED)
    return parts(out["tokens"], identity_parts.info_of(case, out["info"]))


def parts(tokens: Tensor, info: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "tokens": tokens.to(torch.uint8),
        "passes": info["denoiser_passes"].to(torch.uint8),
        "info": torch.stack([info[key].double() for key in PER_PASS]),
    }


def bounded(case: Case) -> dict[str, Tensor]:
    found = [identity_parts.bound_of(case, TEXTS, num_passes) for num_passes in (None, 2)]
    return {"info": torch.stack([torch.stack(each[:4]).double() for each in found])}


def papers(case: Case) -> dict[str, Tensor]:
    return {"info": torch.stack(identity_parts.paper_of(case, TEXTS))}


def losses() -> dict[str, Tensor]:
    return identity_parts.losses_of(TEXTS)


def everything() -> Iterator[tuple[str, Tensor]]:
    """What is recorded, by name."""
    for name, function, cases in KINDS:
        for case in cases:
            yield from ((f"{name}, {case}, {part}", value) for part, value in function(case).items())
    yield from ((f"loss, {name}", value) for name, value in losses().items())


KINDS = [
    ("drawn", drawn, CASES),
    ("extended", extended, EXTENDED),
    ("bound", bounded, BOUNDED),
    ("paper", papers, PAPER),
]


@pytest.fixture(scope="module")
def record() -> dict[str, Tensor]:
    return load_file(RECORD)


def require_same(name: str, found: dict[str, Tensor], record: dict[str, Tensor]) -> None:
    for part, value in found.items():
        wanted = record[f"{name}, {part}"]
        if value.dtype.is_floating_point:
            torch.testing.assert_close(value, wanted, rtol=1e-11, atol=1e-11, equal_nan=True)
        else:
            assert torch.equal(value, wanted), part


@pytest.mark.parametrize("case", covering(CASES), ids=str)
def test_texts_and_what_is_said_of_them_are_as_before(case: Case, record: dict[str, Tensor]) -> None:
    require_same(f"drawn, {case}", drawn(case), record)


@pytest.mark.parametrize("case", covering(EXTENDED), ids=str)
def test_longer_texts_are_as_before(case: Case, record: dict[str, Tensor]) -> None:
    require_same(f"extended, {case}", extended(case), record)


@pytest.mark.parametrize("case", covering(BOUNDED), ids=str)
def test_bounds_are_as_before(case: Case, record: dict[str, Tensor]) -> None:
    require_same(f"bound, {case}", bounded(case), record)


@pytest.mark.parametrize("case", covering(PAPER), ids=str)
def test_the_figure_of_the_paper_is_as_before(case: Case, record: dict[str, Tensor]) -> None:
    require_same(f"paper, {case}", papers(case), record)


def test_losses_are_as_before(record: dict[str, Tensor]) -> None:
    require_same("loss", losses(), record)


def test_nothing_recorded_is_left_out(record: dict[str, Tensor]) -> None:
    named = {f"{kind}, {case}" for kind, _, cases in KINDS for case in cases}
    assert {name.rpartition(", ")[0] for name in record} == named | {"loss"}
