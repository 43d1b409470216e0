"""The record of a run: what was read and weighed for every row in every pass."""

from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from edlm import contracts
from edlm.process.absorbing import RevealPlan

_WEIGHED = (contracts.PARTICLES, contracts.ESS, contracts.LOG_WEIGHT_STD, contracts.ROUNDS)
_READ = (contracts.DENOISER_TOKENS, contracts.ENERGY_TOKENS, contracts.CALLS)
KEYS = (*_WEIGHED, *_READ)
_KINDS = {True: torch.float64, False: torch.int64}  # of what weights say, and of numbers


def measured(out: Sequence[Mapping[str, Tensor]], corrected: Tensor, running: Tensor) -> dict[str, Tensor]:
    """Collect what passes say of every row, (b, p) each: 0, and NaN of weights, where a row was not corrected or is
    finished.

    out: of each pass what was written of its first rows; corrected, running: bool (b, p).
    """
    b, found = len(corrected), {}
    for key in KEYS:
        of_weights = key in (contracts.ESS, contracts.LOG_WEIGHT_STD)
        absent = torch.full_like(corrected, torch.nan if of_weights else 0, dtype=_KINDS[of_weights])
        if any(key in each for each in out):
            nothing = absent[:0, 0]
            columns = pad_sequence([each.get(key, nothing) for each in out])  # of the rows that still ran
            columns = torch.cat([columns, absent[len(columns) : b]])
            absent = torch.where(corrected if key in _WEIGHED else running, columns, absent)
        found[key] = absent
    return found


def of_run(
    plan: RevealPlan, revealed: Tensor, corrected: Tensor, out: Sequence[Mapping[str, Tensor]], length: int
) -> TensorDict:
    """Put together the record of a run: a text's passes are what it takes alone, whatever else is in its batch."""
    found = measured(out, corrected, running(plan))
    return TensorDict(
        {
            "t": plan.t,
            "revealed": revealed,
            "corrected": corrected,
            **found,
            "denoiser_passes": found[contracts.DENOISER_TOKENS].sum(-1).double() / length,
            "energy_passes": found[contracts.ENERGY_TOKENS].sum(-1).double() / length,
        },
        batch_size=[len(corrected)],
    )


def in_a_row(infos: Sequence[TensorDict]) -> TensorDict:
    """Join the records of several runs: passes one after the other, their numbers added."""
    joined = {
        key: torch.cat([info[key] for info in infos], dim=1) if value.ndim > 1 else sum(info[key] for info in infos)
        for key, value in infos[0].items()
    }
    return TensorDict(joined, batch_size=infos[0].batch_size)


def running(plan: RevealPlan) -> Tensor:
    """Say whether each row takes each pass: bool (b, p)."""
    return torch.arange(plan.t.shape[1], device=plan.t.device) < plan.passes.unsqueeze(-1)


def revealed(plan: RevealPlan) -> Tensor:
    """Count the tokens each pass of each row reveals: int64 (b, p)."""
    b, num_passes = plan.t.shape
    given_last = torch.where(plan.order < 0, num_passes, plan.order)
    counts = torch.zeros(b, num_passes + 1, dtype=torch.int64, device=plan.t.device)
    return counts.scatter_add(1, given_last, torch.ones_like(plan.order))[:, :num_passes]
