"""Checks that networks hold and give numbers. A failed check is one line that names the network and the pass.

An energy of +inf is allowed: its candidate is impossible. Logits may be -inf, but not all of a law. The result of a
pass is kept on the device as flags of each row. The host looks at all flags once, when the texts are there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from edlm import contracts
from edlm.process import arguments

WEIGHTS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # what a weight may be
_FAULTS = (
    "the denoiser's logits are not finite",
    "the energy is nan",
    "the energy is -inf",
)


def of_pass(out: Mapping[str, Tensor], corrected: Tensor) -> Tensor:
    """Flag the faults in what a pass gave each row, bool (b, 3), in the order of the faults that `require` names.

    out: what a step wrote, for some or all of the rows; corrected: bool (b,), the rows whose energies count. The host
    does not wait. A drawn token's log-probability minus itself is nan where its logits had no law.
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
    """Raise ValueError naming the network, the first pass that gave no number, and the text. The host waits.

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
    """Raise ValueError for an energy that is nan or -inf. The host waits."""
    for fault, wrong in ((1, energy.isnan()), (2, energy == -torch.inf)):
        if bool(wrong.any()):
            raise ValueError(f"{_FAULTS[fault]} for {int(wrong.sum())} of {wrong.numel()} candidates")


def require_one_each(energy: Tensor, log_ratio: Tensor) -> None:
    """Raise ValueError unless there is one energy for each candidate, shaped as their log-ratios (b, k).

    The host does not wait.
    """
    if energy.shape != log_ratio.shape or energy.dtype == torch.bool:
        of = "" if energy.shape != log_ratio.shape else f" of {energy.dtype}"
        wanted = f"(b, k) = {tuple(log_ratio.shape)}, one number for each candidate"
        raise ValueError(f"energy{of} of shape {tuple(energy.shape)} must be of shape {wanted}")


def require_log_prob(log_prob: Tensor, whose: str = "the denoiser") -> None:
    """Raise ValueError, naming the network, if a log-probability or loss is nan; -inf and inf pass. The host waits."""
    wrong = log_prob.isnan()
    if bool(wrong.any()):
        raise ValueError(
            f"{whose} gives nan for {int(wrong.sum())} of {wrong.numel()} tokens: its logits are not finite"
        )


def require_temperature(name: str, value: float, smallest: float = 0.0) -> None:
    """Raise ValueError unless a temperature is finite, positive and no smaller than `smallest`."""
    arguments.require_numbers(**{name: value})
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} = {value} must be positive and finite (greedy selection has a rule of its own)")
    if value < smallest:
        raise ValueError(f"{name} = {value} must be at least {smallest:g}: what is divided by it would overflow")


def require_drawn(log_prob: Tensor) -> None:
    """Raise ValueError naming text and token where an autoregressive network's logits had no law. The host waits.

    log_prob: (b, l), of drawn tokens, zero where nothing was drawn.
    """
    wrong = ~log_prob.isfinite()
    of_tokens = wrong.any(0).tolist()
    if True in of_tokens:
        position = of_tokens.index(True)
        row = int(wrong[:, position].nonzero()[0])
        raise ValueError(f"the autoregressive network's logits are not finite at token {position} of row {row}")


def require_weights(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise ValueError, naming the first one, unless all tensors are finite floats that float32 can hold."""
    largest = torch.finfo(torch.float32).max
    for name, value in tensors.items():
        if value.dtype not in WEIGHTS or value.layout is not torch.strided or value.is_meta:
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in WEIGHTS)
            kind = str(value.dtype).removeprefix("torch.")
            raise ValueError(f"{where}: {name} holds {kind}, and weights are dense and one of {kinds}")
        if not value.numel():
            continue
        low, high = (float(end) for end in torch.aminmax(value.detach()))
        if not (-largest <= low and high <= largest):  # NaN too
            raise ValueError(f"{where}: {name} holds values that are not finite, between {low} and {high}")


def require_rows(log_ratio: Tensor) -> None:
    """Raise ValueError naming the row (b,) where an autoregressive network's logits had no law. The host waits."""
    wrong = (~log_ratio.isfinite()).tolist()
    if True in wrong:
        raise ValueError(f"the autoregressive network's logits are not finite in row {wrong.index(True)}")
