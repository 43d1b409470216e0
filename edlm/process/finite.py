"""What networks give has to be numbers: who gave something else, in which pass, said in one line.

An energy of +inf is one: its candidate is impossible. Logits may be -inf, but not all of a law. What a pass gave is
kept on the device as flags of each row, and the host looks at all of them once, when the texts are there.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edlm import contracts

_FAULTS = (
    "the denoiser's logits are not finite",
    "the energy is nan",
    "the energy is -inf",
)


def of_pass(out: Mapping[str, Tensor], corrected: Tensor) -> Tensor:
    """Flags of what a pass gave its rows, bool (b, 3), in the order of what `require` says.

    out: what a step wrote, for some or all of the rows; corrected: bool (b,), the rows whose energies count. Nothing is
    waited for. The log-probability of a drawn token less itself tells of its logits, nan where they had no law.
    """
    flags = torch.zeros(len(corrected), len(_FAULTS), dtype=torch.bool, device=corrected.device)
    if contracts.LOG_RATIO in out:
        ratio = out[contracts.LOG_RATIO]
        flags[: len(ratio), 0] = ~ratio.isfinite().all(-1)
    if contracts.ENERGY in out:
        energy = out[contracts.ENERGY]
        counts = corrected[: len(energy)]
        flags[: len(energy), 1] = energy.isnan().any(-1) & counts
        flags[: len(energy), 2] = (energy == -torch.inf).any(-1) & counts
    return flags


def require(flags: Sequence[Tensor], t: Tensor, row: Tensor) -> None:
    """Raise ValueError naming the network, its first pass that gave what is no number, and the text; the host waits.

    flags: of every pass, bool (b, 3); t: the times at which the passes start (b, p); row: the texts' numbers (b,).
    """
    if not flags:
        return
    found = torch.stack(list(flags))  # (p, b, 3)
    if True not in found.flatten(1).any(1).tolist():
        return
    number, index, fault = found.nonzero()[0].tolist()
    raise ValueError(
        f"{_FAULTS[fault]} in pass {number} of text {int(row[index])}, at t = {float(t[index, number]):.6g}"
    )


def require_energy(energy: Tensor) -> None:
    """Raise ValueError for an energy that is nan or -inf; the host waits."""
    for fault, wrong in ((1, energy.isnan()), (2, energy == -torch.inf)):
        if bool(wrong.any()):
            raise ValueError(f"{_FAULTS[fault]} for {int(wrong.sum())} of {wrong.numel()} candidates")


def require_log_prob(log_prob: Tensor, whose: str = "the denoiser") -> None:
    """Raise ValueError, naming who, for log-probabilities or losses that are nan; -inf and inf are. The host waits."""
    wrong = log_prob.isnan()
    if bool(wrong.any()):
        raise ValueError(
            f"{whose} gives nan for {int(wrong.sum())} of {wrong.numel()} tokens: its logits are not finite"
        )


def require_temperature(name: str, value: float, smallest: float = 0.0) -> None:
    """Raise ValueError unless a temperature is positive, finite, and at least the smallest that can be divided by."""
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} = {value} must be positive and finite (greedy selection has a rule of its own)")
    if value < smallest:
        raise ValueError(f"{name} = {value} must be at least {smallest:g}: what is divided by it would overflow")


def require_drawn(log_prob: Tensor) -> None:
    """Raise ValueError naming the text and the token whose law an autoregressive network did not give; the host waits.

    log_prob: (b, l), of drawn tokens, zero where nothing was drawn.
    """
    wrong = ~log_prob.isfinite()
    of_tokens = wrong.any(0).tolist()
    if True in of_tokens:
        position = of_tokens.index(True)
        row = int(wrong[:, position].nonzero()[0])
        raise ValueError(f"the autoregressive network's logits are not finite at token {position} of row {row}")
