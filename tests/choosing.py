"""Plans that are rules, each by its definition in plain Python, and texts that are written by them in slow loops."""

import math

import torch
from builders import tiny_denoiser, wave_marginals
from specifications import Spec, slow_draft

from edlm.models.denoisers import SubsDenoiser
from edlm.process import schedules
from edlm.samplers import plans

RULES = [
    plans.EntropyBound(0.0),
    plans.EntropyBound(0.3),
    plans.EntropyBound(1.0, most=2),
    plans.EntropyBound(0.5, by="confidence"),
    plans.EntropyBound(0.5, by="margin"),
    plans.Confidence(0.7),
    plans.Confidence(1.0),
    plans.Ranked(1),
    plans.Ranked(2, by="margin"),
    plans.Ranked(3, by="entropy"),
    plans.LeftToRight(1),
    plans.LeftToRight(3),
]


def slowly(plan: plans.Rule, law: list[list[float]], masked: list[bool]) -> set[int]:
    """The positions of one row, by the definition of each rule."""
    entropy = [sum(-p * math.log(p) for p in each if p > 0.0) for each in law]
    best = [sorted(each, reverse=True) for each in law]
    keys = {
        "entropy": entropy,
        "confidence": [-each[0] for each in best],
        "margin": [each[1] - each[0] for each in best],
    }
    left = [i for i, is_mask in enumerate(masked) if is_mask]
    if not left:
        return set()
    if isinstance(plan, plans.LeftToRight):
        return set(left[: plan.count])
    by = getattr(plan, "by", "confidence")
    order = sorted(left, key=lambda i: (round(keys[by][i] * 2**20), i))
    if isinstance(plan, plans.Ranked):
        return set(order[: plan.count])
    if isinstance(plan, plans.Confidence):
        return {i for i in left if best[i][0] > plan.threshold} or {order[0]}
    assert isinstance(plan, plans.EntropyBound)
    sizes = [k for k in range(1, len(order) + 1) if k <= (plan.most or len(order))]
    budget = {k: sum(sorted(entropy[i] for i in order[:k])[:-1]) for k in sizes}  # all but the largest
    return set(order[: max([k for k in sizes if budget[k] <= plan.gamma], default=1)])


def slow_sample(plan: plans.Rule, spec: Spec, seed: int, row: int, start: list[int]) -> list[set[int] | list[int]]:
    """Sample one row: what each pass reveals, and at last the text; see `specifications.slow_sample`."""
    x, told = list(start), list[set[int] | list[int]]()
    while spec.mask_id in x:
        masked = [token == spec.mask_id for token in x]
        heat = 1.0 if spec.selection is not None else spec.temperature
        law = (wave_marginals(spec.seed, spec.symbols, spec.length)(torch.tensor([x]))[0] / heat).softmax(-1)
        revealed = slowly(plan, law.tolist(), masked)
        t = time_of(sum(masked) / len(x), spec.schedule)
        inside = spec.window[0] - 1e-9 <= t <= spec.window[1] + 1e-9
        draft = slow_draft(spec, seed, row, len(told), x, spec.selection is not None and inside, revealed)
        x = [draft[i] if i in revealed else token for i, token in enumerate(x)]
        told.append(revealed)
    return [*told, x]


def varied(seed: int = 2, schedule: schedules.Schedule | None = None, **sizes: int) -> SubsDenoiser:
    """Laws of which some are sharp and some are not, by the tokens beside them, so that rules differ."""
    own = tiny_denoiser(seed, sizes.get("vocab_size", 5) - 1, schedule, num_layers=2, **sizes)
    with torch.no_grad():
        for name, weight in own.network.named_parameters():
            if weight.ndim == 2 and "embedding" not in name:
                weight.mul_(3.0)
    return own


def time_of(share: float, schedule: schedules.Schedule) -> float:
    """The time at which so large a share is masked, by bisection."""
    low, high = 0.0, 1.0
    still = 1.0 - float(schedule.alpha(torch.ones((), dtype=torch.float64)))
    for _ in range(60):
        t = (low + high) / 2
        below = (1.0 - float(schedule.alpha(torch.tensor(t, dtype=torch.float64)))) / still < share
        low, high = (t, high) if below else (low, t)
    return high
