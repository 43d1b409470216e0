"""A chi-square test that accepts a law and rejects its twins, and what it errs by."""

import torch
from scipy import stats
from torch import Tensor

TESTS = 110  # at least as many as all files make that judge by it
FALSE_ALARM = 1e-3 / TESTS


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """`sum (counts - expected)^2 / expected`; infinite if something happened that cannot."""
    possible = expected > 0
    if counts[~possible].any():
        return float("inf")
    return float(((counts - expected)[possible] ** 2 / expected[possible]).sum())


def threshold(degrees: int) -> float:
    return float(stats.chi2.isf(FALSE_ALARM, degrees))


def fits(counts: Tensor, law: Tensor) -> bool:
    """Whether the counts (n,) may come from the law (n,)."""
    return chi_square(counts, law * counts.sum()) < threshold(int((law > 0).sum()) - 1)


def chance_to_miss(claimed: Tensor, true: Tensor, samples: int) -> float:
    """Probability that `samples` draws of the true law pass for draws of the claimed one."""
    noncentrality = samples * float(((true - claimed) ** 2 / claimed).sum())
    return float(stats.ncx2.cdf(threshold(len(claimed) - 1), len(claimed) - 1, noncentrality))


def judge(counts: Tensor, law: Tensor, twins: dict[str, Tensor]) -> None:
    """Accept the law and reject its twins, of which one is the law with 1 % of the mass in the wrong place."""
    law = law.flatten()
    assert (law * counts.sum()).min() > 5  # else its chi-square is no chi-square
    assert fits(counts, law)
    for name, twin in (twins | {"1 % misplaced": misplaced(law)}).items():
        assert chance_to_miss(twin.flatten(), law, int(counts.sum())) < 1e-3, f"{name}: too close to be told apart"
        assert not fits(counts, twin.flatten()), name


def misplaced(law: Tensor) -> Tensor:
    """The law with 0.01 moved from the likeliest outcome to the next: where chi-square sees it least."""
    order = law.argsort(descending=True)
    change = torch.zeros_like(law).scatter(0, order[:2], torch.tensor([-0.01, 0.01], dtype=law.dtype))
    return law + change
