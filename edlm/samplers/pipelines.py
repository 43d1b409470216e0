"""Parts put together: a sampling pipeline, and the loop that runs it.

A pipeline is a value. The loop draws the reveal plan first and reads its counts on the host once; every later shape
follows from them, so nothing inside the loop waits for the device, and a row that is finished is worked on no more.
A plan that reads the pass has a loop of its own, `looping`.
"""

import html
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.process import absorbing, arguments, finite, noise, schedules
from edlm.process.absorbing import RevealPlan
from edlm.process.noise import Stream
from edlm.samplers import caching, looping, planning, records, rewriting, watching
from edlm.samplers import sampler as samplers
from edlm.samplers.caching import Places
from edlm.samplers.kernel import Kernel, check_evaluating, device_of
from edlm.samplers.looping import Padding, Pass
from edlm.samplers.sampler import Sampler
from edlm.samplers.watching import Callback


class Pipeline(NamedTuple):
    """Everything `sample` needs but the number of samples and the seed: a sampler and a length; see `pipeline`.

    kernel: what takes the sampler's steps, in whatever execution mode; pad_rows, pad_positions, pad_new: the numbers of
    rows, of positions and of a row's new tokens a step is padded to, more than needed only where an execution mode
    wants few distinct shapes.
    """

    sampler: Sampler
    length: int
    kernel: Kernel
    pad_rows: Callable[[int], int] = lambda count: count
    pad_positions: Callable[[int], int] = lambda count: count
    pad_new: Callable[[int], int] = lambda count: count

    @property
    def device(self) -> torch.device:
        """The device of the kernel's parameters and buffers; the CPU if it has none."""
        return device_of(self.kernel.step)

    def __repr__(self) -> str:
        """The algorithm: what it is called, and what a step reads and writes."""
        lines = samplers.describe(self.sampler, self.kernel.cache is not None).splitlines()
        return "\n".join([f"{self.sampler}, {self.length} tokens", *(f"  {line}" for line in lines)])

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return f"<pre>{html.escape(repr(self))}</pre>"


def pipeline(sampler: Sampler, length: int, cached: bool = True) -> Pipeline:
    """Compose a sampler and a length into a pipeline.

    Args:
        sampler: how texts are drawn.
        length: tokens of a text.
        cached: keep keys and values of finished blocks where the sampler can, so that a pass reads its own block alone.
            The tokens are the same without a cache.

    Returns:
        What `sample` and `extend` run; its `repr` is the algorithm.

    Raises:
        ValueError: for a length outside 1..max_length of the network.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> edlm.pipelines.pipeline(edlm.samplers.Sampler(denoiser, edlm.plans.Grid(4)), length=8)
        plain, T=4, 8 tokens
          denoise  x_t, positions -> hidden
          propose  hidden, x_t, positions, proposal_noise -> candidates, log_p_candidates, log_ratio
          reveal   x_t, candidates, reveal -> x_s
          count    x_t -> denoiser_tokens, energy_tokens, calls, rounds
    """
    arguments.require_kind("sampler", sampler, isinstance(sampler, Sampler), "one, as samplers.Sampler(denoiser) is")
    arguments.require_integers(length=length)
    max_length = sampler.denoiser.max_length
    if not 1 <= length <= max_length:
        raise ValueError(f"length = {length} must lie in 1..{max_length}, the longest the denoiser was built for")
    return Pipeline(sampler, length, samplers.kernel_of(sampler, cached and samplers.can_cache(sampler)))


@torch.no_grad()
def sample(
    pipeline: Pipeline,
    num_samples: int = 1,
    *,
    seed: int = 0,
    prompt: Tensor | None = None,
    first_row: int = 0,
    callback: Callback | None = None,
    progress: bool = False,
) -> TensorDict:
    """Draw texts: a function of the arguments alone.

    Args:
        pipeline: a sampler and a length.
        num_samples: how many texts, b.
        seed: of the noise, together with the number of each row.
        prompt: tokens with masks, (l,) or (b, l), filled up with masks on the right. What it gives never changes, so a
            prefix, a suffix and an infilling are one thing. `vocabulary.encode_prompt("the ____ sat")` makes one of a
            text.
        first_row: row i of the result is sample number `first_row + i` of the seed, whatever else is in the batch.
        callback: called after each pass with the state `{x_t}` and the pass's info; `edlm.samplers.live(vocabulary)`
            shows the texts.
        progress: whether a bar is shown, which has the host wait once a pass.

    Returns:
        A TensorDict with `tokens` (b, l) and `info`. It holds, per row, `denoiser_passes` and `energy_passes` (b,),
        parts of a text counted by their tokens, and per pass `t`, how many tokens it `revealed`, `corrected`,
        `particles`, `ess` and `log_weight_std` (b, p), the last two NaN where no candidates were weighed, and what was
        read for the row: `denoiser_tokens`, `energy_tokens`, `calls` of a network one after the other, and `rounds`
        (b, p); with remasking also how many it `remasked`. All of it is what a text takes alone.

    Raises:
        ValueError: naming the argument that cannot be, num_samples < 1 and a negative seed among them, for a prompt
            that does not fit, dropout left on (call `.eval()`), and, when the texts are there, for logits or energies
            that are no numbers, with the pass and the text: see `finite`.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> pipeline = edlm.pipelines.pipeline(edlm.samplers.Sampler(denoiser, edlm.plans.Grid(4)), length=8)
        >>> out = edlm.sample(pipeline, 2, seed=0)
        >>> out["tokens"].shape, out["info", "revealed"].sum(1).tolist()
        (torch.Size([2, 8]), [8, 8])
    """
    _check(pipeline, num_samples, seed, first_row, callback)
    kernel = pipeline.kernel
    tokens = starting_tokens(pipeline, num_samples, prompt)
    row = torch.arange(first_row, first_row + num_samples, device=tokens.device)
    with watching.watched(tokens, kernel.denoiser.mask_id, progress, callback) as shown:
        return _run(pipeline, tokens, torch.tensor(seed, device=tokens.device), row, 0, shown)


def extend(
    pipeline: Pipeline,
    length: int,
    stride: int,
    num_samples: int = 1,
    *,
    seed: int = 0,
    prompt: Tensor | None = None,
    first_row: int = 0,
    callback: Callback | None = None,
    progress: bool = False,
) -> TensorDict:
    """Draw texts of any length: a window as long as the pipeline moves on by `stride` tokens until the end is reached.

    What the window has filled and still covers is given in its next place, so a new token sees the
    `pipeline.length - stride` tokens before its part. Up to `pipeline.length` tokens it is `sample` itself.

    Args:
        pipeline: a sampler and the length of the window.
        length: tokens of a text, at least those of the window.
        stride: tokens by which the window moves on.
        num_samples: how many texts; this and the other arguments are those of `sample`.
        seed: see `sample`.
        prompt: see `sample`.
        first_row: see `sample`.
        callback: see `sample`; it is shown the whole text.
        progress: see `sample`.

    Returns:
        What `sample` returns, the passes of all windows in a row.

    Raises:
        ValueError: unless 1 <= stride < pipeline.length <= length, and as `sample` does.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> pipeline = edlm.pipelines.pipeline(edlm.samplers.Sampler(denoiser, edlm.plans.Grid(4)), length=8)
        >>> edlm.extend(pipeline, length=20, stride=4, num_samples=2)["tokens"].shape
        torch.Size([2, 20])
    """
    _check(pipeline, num_samples, seed, first_row, callback)
    arguments.require_integers(length=length, stride=stride)
    window = pipeline.length
    if not 1 <= stride < window:
        raise ValueError(f"stride = {stride} must lie in 1..{window - 1}: a window has {window} tokens")
    if length < window:
        raise ValueError(f"length = {length} must be at least that of the pipeline, {window}")
    tokens = starting_tokens(pipeline._replace(length=length), num_samples, prompt)
    row = torch.arange(first_row, first_row + num_samples, device=tokens.device)
    seed_ = torch.tensor(seed, device=tokens.device)
    infos, mask_id = [], pipeline.kernel.denoiser.mask_id
    with watching.watched(tokens, mask_id, progress, callback) as watch:
        for number, start in enumerate([*range(0, length - window, stride), length - window]):
            before, after = tokens[:, :start], tokens[:, start + window :]
            shown = None if watch is None else partial(_show_whole, watch, before, after)
            out = _run(pipeline, tokens[:, start : start + window], seed_, row, number * window, shown)
            tokens = torch.cat([before, out["tokens"], after], dim=1)
            infos.append(out["info"])
    return TensorDict({"tokens": tokens, "info": records.in_a_row(infos)}, batch_size=[num_samples])


def _check(pipeline: Any, num_samples: Any, seed: Any, first_row: Any, callback: Any) -> None:
    """Raise ValueError for the first argument of a call that cannot be, and for dropout left on."""
    is_one = isinstance(pipeline, Pipeline)
    arguments.require_kind("pipeline", pipeline, is_one, "one, as pipelines.pipeline(sampler, length) is")
    arguments.require_draw(num_samples, seed, first_row)
    fits = callback is None or callable(callback)
    arguments.require_kind("callback", callback, fits, "a function of the state and of the pass's info")
    check_evaluating(pipeline.kernel.step)


def _show(
    callback: Callback, tokens: Tensor, out: dict[str, Tensor], corrected: Tensor, running: Tensor, order: Tensor
) -> None:
    """Show what one pass did, the rows in this order."""
    of_pass = records.measured([out], corrected.unsqueeze(-1), running.unsqueeze(-1))
    diagnostics = TensorDict({key: value[order, 0] for key, value in of_pass.items()}, batch_size=[len(tokens)])
    callback(TensorDict({contracts.X_T: tokens[order]}), diagnostics)


def _show_whole(callback: Callback, before: Tensor, after: Tensor, state: TensorDict, info: TensorDict) -> None:
    callback(TensorDict({contracts.X_T: torch.cat([before, state[contracts.X_T], after], dim=1)}), info)


def _run(
    pipeline: Pipeline, tokens: Tensor, seed: Tensor, row: Tensor, first_pass: int, callback: Callback | None
) -> TensorDict:
    """Fill the masks of the tokens (b, l); noise is keyed by the row's number and by `first_pass` + its own pass."""
    kernel, b, length = pipeline.kernel, *tokens.shape
    if kernel.moves is not None:
        pads = (pipeline.pad_rows, pipeline.pad_positions)
        return rewriting.run(pipeline.sampler, kernel, tokens, seed, row, first_pass, pads, callback)
    masked = tokens == kernel.denoiser.mask_id
    reveal_noise = noise.grid(seed, row, first_pass, Stream.REVEAL, length)
    if not planning.is_drawn(pipeline.sampler.plan):
        return _run_chosen(pipeline, tokens, seed, row, first_pass, callback)
    plan = pipeline.sampler.plan.draw(reveal_noise, masked, kernel.denoiser.schedule)
    # Rows with the most passes first: those that still run are then always the first ones.
    order = plan.passes.argsort(descending=True, stable=True)
    original = order.argsort()
    row, plan = row[order], RevealPlan(*(part[order] for part in plan))
    corrected = _corrected(pipeline, plan)
    drafted = corrected if kernel.proposes == "masked" else torch.zeros_like(corrected)
    revealed = records.revealed(plan)
    passes = _passes(revealed, corrected, drafted)

    tokens = tokens[order]
    starts = caching.starts_of(plan, kernel.cache)
    before: Kernel | None = None
    state = TensorDict({})
    written: list[dict[str, Tensor]] = []
    flags: list[Tensor] = []
    for p, (running, count, most, any_corrected) in enumerate(passes):
        active = kernel if any_corrected or kernel.outside is None else kernel.outside
        rows = min(b, pipeline.pad_rows(running))
        begins = active is not before  # another kernel knows nothing of this one's state but its tokens
        state = _take(state, slice(rows))
        state = TensorDict(active.begins(tokens[:rows], state)) if begins else state
        inputs = _step_inputs(plan, corrected[:, p], drafted[:, p], p, rows, pipeline.pad_positions(count))
        if active.cache is not None:
            state, block = caching.before_pass(active.cache, state, Places(*starts[:rows, p : p + 2].unbind(1)))
            inputs |= block
        if contracts.NEW in active.step.in_keys:
            inputs[contracts.NEW] = absorbing.places(inputs[contracts.REVEAL], min(length, pipeline.pad_new(most)))
        number = torch.full((), first_pass + p, device=row.device)
        draws = active.draw(seed, row[:rows], number, inputs[contracts.POSITIONS], length)
        out = dict(active.step(TensorDict({**state, **inputs, **draws})).items())
        tokens = torch.cat([out[contracts.X_S], tokens[rows:]])
        carried = {key: out[key] for key, _ in state.items() if key != contracts.X_T}
        state = TensorDict({contracts.X_T: out[contracts.X_S], **carried})
        before = active
        written.append({key: out[key] for key in records.KEYS if key in out})
        flags.append(finite.of_pass(out, corrected[:, p]))
        if callback is not None:
            _show(callback, tokens, written[-1], corrected[:, p], plan.passes > p, original)
    finite.require(flags, plan.t, row)
    info = records.of_run(plan, revealed, corrected, written, length)
    return TensorDict({"tokens": tokens, "info": info}, batch_size=[b])[original]


def _run_chosen(
    pipeline: Pipeline, tokens: Tensor, seed: Tensor, row: Tensor, first_pass: int, callback: Callback | None
) -> TensorDict:
    """Do the same where the plan reads the pass, and keep what it chose as the plan that it turned out to be."""
    order, taken = torch.full_like(tokens, -1), list[Pass]()
    padding = Padding(pipeline.pad_rows, pipeline.pad_positions, pipeline.pad_new)
    window, length = pipeline.sampler.window, tokens.shape[1]
    for each in looping.passes(pipeline.kernel, window, padding, tokens, seed, row, first_pass):
        tokens, order = each.tokens, torch.where(each.reveal, len(taken), order)
        taken.append(each._replace(tokens=tokens[:0], reveal=tokens[:0]))  # the last ones are enough
        if callback is not None:
            _show(callback, tokens, each.out, each.corrected, each.running, row - row[0])
    plan = looping.plan_of(order, taken)
    finite.require([each.flags for each in taken], plan.t, row)
    corrected = torch.stack([each.corrected for each in taken], 1) if taken else plan.t.bool()
    info = records.of_run(plan, records.revealed(plan), corrected, [each.out for each in taken], length)
    return TensorDict({"tokens": tokens, "info": info}, batch_size=[len(tokens)])


def starting_tokens(pipeline: Pipeline, num_samples: int, prompt: Tensor | None) -> Tensor:
    """Return what `sample` starts from, on the pipeline's device; see `absorbing.starting_tokens`.

    Args:
        pipeline: a sampler and a length, l.
        num_samples: how many texts, b.
        prompt: see `sample`.

    Returns:
        Tokens (b, l).

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> pipeline = edlm.pipelines.pipeline(edlm.samplers.Sampler(denoiser), length=4)
        >>> edlm.pipelines.starting_tokens(pipeline, 1, None).tolist()
        [[3, 3, 3, 3]]
    """
    denoiser = pipeline.kernel.denoiser
    return absorbing.starting_tokens(
        num_samples, pipeline.length, denoiser.mask_id, denoiser.vocab_size, prompt, pipeline.device
    )


def _corrected(pipeline: Pipeline, plan: RevealPlan) -> Tensor:
    """Whether each row's pass is corrected by the energy: bool (b, p)."""
    inside = schedules.inside(plan.t, pipeline.sampler.window) & records.running(plan)
    return inside if pipeline.kernel.outside is not None else torch.zeros_like(inside)


def _passes(revealed: Tensor, corrected: Tensor, drafted: Tensor) -> list[tuple[int, int, int, bool]]:
    """For each pass: rows that still run, positions that they need together, most new ones of a row, any corrected.

    revealed: int64 (b, p); corrected, drafted: bool (b, p); a drafted row needs all its masks, another one those that
    the pass reveals.
    """
    masked = revealed.flip(1).cumsum(1).flip(1)
    needed = torch.where(drafted, masked, revealed).sum(0)
    most = revealed.amax(0) if revealed.numel() else revealed.sum(0)
    host = torch.stack([(masked > 0).sum(0), needed, most, corrected.sum(0)], dim=1).tolist()
    return [(running, count, most, num_corrected > 0) for running, count, most, num_corrected in host]


def _step_inputs(
    plan: RevealPlan, corrected: Tensor, drafted: Tensor, p: int, rows: int, count: int
) -> dict[str, Tensor]:
    """Collect what pass p of the plan asks of its first rows; `count` is on the host, so no device is awaited."""
    order = plan.order[:rows]
    revealed = order == p
    wanted = torch.where(drafted[:rows].unsqueeze(-1), order >= p, revealed)
    positions = torch.nonzero_static(wanted.flatten(), size=count, fill_value=wanted.numel()).squeeze(-1)
    return {
        contracts.T: _contiguous(plan.t[:rows, p]),
        contracts.POSITIONS: positions,
        contracts.REVEAL: revealed,
        contracts.CORRECTED: _contiguous(corrected[:rows]),
    }


def _take(state: TensorDict, rows: slice | Tensor) -> TensorDict:
    """Some rows of every entry, or all of them in another order."""
    return TensorDict({key: value[rows] for key, value in state.items()})


def _contiguous(column: Tensor) -> Tensor:
    """The same values with stride 1: a stride that differs with the number of passes would be compiled anew."""
    return column.clone(memory_format=torch.contiguous_format)
