"""The loop of a sampler that masks tokens again: all steps of its plan, in each of which the host learns what is new.

With remasking, it is not known before the first pass which tokens are visible. So the host waits once a step, to learn
how many masks it reveals and in how many rows. The network runs for these alone, and not at all if there are none.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.process import finite, noise
from edlm.process.noise import Stream
from edlm.samplers import passes, remasking
from edlm.samplers.kernel import Kernel
from edlm.samplers.sampler import Sampler

Callback = Callable[[TensorDict, TensorDict], None]
Pads = tuple[Callable[[int], int], Callable[[int], int]]  # of rows, of positions


def run(
    sampler: Sampler,
    kernel: Kernel,
    tokens: Tensor,
    seed: Tensor,
    row: Tensor,
    first_pass: int,
    pads: Pads,
    callback: Callback | None,
) -> TensorDict:
    """Fill the masks of the tokens (b, l), in every step of the plan, and rewrite what was filled.

    Noise is keyed by the row's number and the step's, which are counted on from window to window; first_pass: the
    number of a window times its length. Returns what `pipelines.sample` does, and in `info` what was `remasked` (b, p).
    """
    assert sampler.remasking is not None
    assert kernel.moves is not None
    times, alphas = remasking.path(sampler.remasking, sampler.plan, kernel.denoiser.schedule)
    num_steps = len(times) - 1
    first = first_pass // tokens.shape[1] * num_steps  # a window has more steps than positions, or fewer
    state, record, flags = kernel.init(tokens), [], []
    for p, (alpha_t, alpha_s) in enumerate(pairwise(alphas.to(tokens.device))):
        number = torch.full((), first + p, device=row.device)
        uniforms = noise.grid(seed, row, number, Stream.REVEAL, tokens.shape[1])
        told = {contracts.ALPHA_T: alpha_t, contracts.ALPHA_S: alpha_s, contracts.MOVE_NOISE: uniforms}
        decided = kernel.moves.decide(TensorDict({**state, **told}))
        reveal, remask = decided[contracts.REVEAL], decided[contracts.REMASK]
        written, read, wrong = _write(kernel, state, reveal, float(times[p]), seed, row, number, pads)
        finished = kernel.moves.finish(TensorDict({**written, contracts.REMASK: remask}))
        state = TensorDict({contracts.X_T: finished[contracts.X_S], contracts.P_WRITTEN: finished[contracts.P_WRITTEN]})
        flags.append(wrong)
        record.append(_of_step(float(times[p]), reveal, remask, read))
        if callback is not None:
            callback(state.select(contracts.X_T), TensorDict(record[-1], batch_size=[len(row)]))
    told_of = {key: torch.stack([each[key] for each in record], dim=1) for key in record[0]}
    finite.require(flags, told_of["t"], row)
    for name, key in (("denoiser_passes", contracts.DENOISER_TOKENS), ("energy_passes", contracts.ENERGY_TOKENS)):
        told_of[name] = told_of[key].sum(-1).double() / tokens.shape[1]
    info = TensorDict(told_of, batch_size=[len(row)])
    return TensorDict({"tokens": state[contracts.X_T], "info": info}, batch_size=[len(row)])


def _write(
    kernel: Kernel, state: TensorDict, reveal: Tensor, t: float, seed: Tensor, row: Tensor, number: Tensor, pads: Pads
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Reveal masks where there are any: x_s and confidences (b, l), what was read of each row, and flags of faults."""
    (b, length), (pad_rows, pad_positions) = reveal.shape, pads
    x_s, p_written = state[contracts.X_T], state[contracts.P_WRITTEN]
    read = dict.fromkeys(passes.KEYS, torch.zeros_like(row))
    wrong = finite.of_pass({}, torch.zeros(b, dtype=torch.bool, device=row.device))
    busy = reveal.any(1)
    running, count = torch.stack([busy.sum(), reveal.sum()]).tolist()  # the host waits here
    if not running:
        return {contracts.X_S: x_s, contracts.P_WRITTEN: p_written}, read, wrong
    taken = busy.argsort(descending=True, stable=True)[: min(b, pad_rows(running))]
    inputs = {key: value[taken] for key, value in {**state, contracts.REVEAL: reveal}.items()}
    flat = inputs[contracts.REVEAL].flatten()
    positions = torch.nonzero_static(flat, size=pad_positions(count), fill_value=flat.numel()).squeeze(-1)
    draws = kernel.draw(seed, row[taken], number, positions, length)
    asked = {contracts.T: torch.full((len(taken),), t, dtype=torch.float64, device=row.device)}
    out = dict(kernel.step(TensorDict({**inputs, **asked, contracts.POSITIONS: positions, **draws})).items())
    counts = busy[taken]
    read = {key: value.index_copy(0, taken, torch.where(counts, out[key], 0)) for key, value in read.items()}
    found = {
        contracts.X_S: x_s.index_copy(0, taken, out[contracts.X_S]),
        contracts.P_WRITTEN: p_written.index_copy(0, taken, out[contracts.P_WRITTEN]),
    }
    return found, read, wrong.index_copy(0, taken, finite.of_pass(out, torch.zeros_like(counts)))


def _of_step(t: float, reveal: Tensor, remask: Tensor, read: dict[str, Tensor]) -> dict[str, Tensor]:
    """Record what a step did to each row, (b,) each, under the names of any sampler: nothing is weighed."""
    nothing = torch.zeros_like(reveal[:, 0], dtype=torch.float64)
    return {
        "t": torch.full_like(nothing, t),
        "revealed": reveal.sum(1),
        "remasked": remask.sum(1),
        "corrected": torch.zeros_like(reveal[:, 0]),
        contracts.PARTICLES: nothing.long(),
        contracts.ESS: torch.full_like(nothing, torch.nan),
        contracts.LOG_WEIGHT_STD: torch.full_like(nothing, torch.nan),
        **read,
    }
