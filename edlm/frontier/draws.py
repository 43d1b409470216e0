"""One setting of a frontier drawn, judged and timed: a record of plain values, per text, from which figures follow."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm.evaluation import quality
from edlm.evaluation.judges import Judge
from edlm.evaluation.samples import Texts
from edlm.frontier import grid
from edlm.frontier.grid import Alone, Setting
from edlm.runs import processes, timing
from edlm.samplers import autoregressive, blocks, execution, pipelines, plans
from edlm.samplers.execution import Mode
from edlm.samplers.sampler import Sampler

PER_TEXT = ("denoiser_passes", "energy_passes", "passes", "calls", "ess", "log_weight_std")
_Batch = tuple[Tensor, Mapping[str, list[Any]]]  # tokens, and what each text cost


class Drawing(NamedTuple):
    """The length of a text, how many texts, how many at once, the seed, and how they run, for all settings."""

    length: int
    num_samples: int
    batch_size: int
    seed: int
    device: torch.device
    execution: Mode = "eager"


class Reference(NamedTuple):
    """The reference for texts: a judge, real text of which n-gram divergences are taken, and their errors."""

    judge: Judge
    real: Texts
    ngrams: Sequence[int]
    seed: int
    replicates: int


def draw(setting: Setting, drawing: Drawing) -> tuple[Tensor, dict[str, Any]]:
    """Draw texts (n, l), and measure what they cost: seconds per text, and passes and weights of each text.

    A pass reads a text once, and passes over part of a text count by their tokens; an AR model with its cache reads
    one, in as many calls as it has tokens. Text i of the seed has the same noise in every setting. `ess` and
    `log_weight_std` are means over a text's corrected passes. Several processes share the batches, and the seconds are
    those until the last one is done. Where steps are compiled or captured, all is drawn once before the clock starts.
    """
    batch = _autoregressive(setting, drawing) if isinstance(setting, Alone) else _sampler(setting, drawing)
    total, size = drawing.num_samples, drawing.batch_size
    batches = [(min(size, total - first), first) for first in range(0, total, size)]
    drawn: list[_Batch] = []

    def run() -> None:
        drawn[:] = processes.spread(lambda each: batch(*each), batches)

    if drawing.execution != "eager":
        run()
    seconds = timing.seconds(run, drawing.device) / total
    costs = {name: [value for _, cost in drawn for value in cost[name]] for name in PER_TEXT}
    return torch.cat([tokens for tokens, _ in drawn]).cpu(), {"seconds": seconds, **costs}


def warm_up(settings: Sequence[Setting], drawing: Drawing) -> None:
    """Run one step of each family of settings, so that no setting pays for what happens only once."""
    short = drawing._replace(num_samples=min(drawing.num_samples, drawing.batch_size), execution="eager")
    for setting in {grid.family(setting): setting for setting in settings}.values():
        if isinstance(setting, Alone):
            draw(setting, short._replace(length=1))
        elif setting.chooses.in_order:  # one step for all of a text is the dearest there is
            draw(setting, short._replace(num_samples=1))
        else:
            once = blocks.like(setting.plan, plans.Grid(1))
            draw(setting.replace(plan=once, candidates=1, window=(0.0, 1.0)), short)


def describe(texts: Texts, reference: Reference) -> dict[str, Any]:
    """Describe texts: nats under the judge, entropy and length of each, divergences of all with their errors.

    The error of a divergence is bootstrapped over the texts and over the real ones.
    """
    judgement = reference.judge(texts.spelled)
    divergences = {}
    for n in reference.ngrams:
        found = quality.grams([*texts.tokens, *reference.real.tokens], n)
        sizes = [len(texts.tokens), len(reference.real.tokens)]
        value = quality.bootstrap(quality.divergence(found), sizes, reference.seed, reference.replicates)
        divergences[str(n)] = [value.mean, value.standard_error]
    return {
        "nll": judgement.nll.tolist(),
        "judged_tokens": judgement.tokens.tolist(),
        "characters": [len(text) for text in texts.spelled],
        "entropy": quality.unigram_entropy(texts.tokens).tolist(),
        "divergences": divergences,
        "texts": texts.spelled,
    }


def _autoregressive(setting: Alone, drawing: Drawing) -> Callable[[int, int], _Batch]:
    """So many texts of the AR model from a number on, run eagerly in every mode."""
    network, bos_id = setting.model
    fixed = {**dict.fromkeys(PER_TEXT), "denoiser_passes": 0, "energy_passes": 0, "passes": 1, "calls": drawing.length}

    def batch(count: int, first: int) -> _Batch:
        found = autoregressive.sample(
            network,
            count,
            drawing.length,
            setting.mask_id,
            bos_id,
            seed=drawing.seed,
            first_row=first,
            temperature=setting.temperature,
        )
        return found.tokens.cpu(), {name: [value] * count for name, value in fixed.items()}

    return batch


def _sampler(setting: Sampler, drawing: Drawing) -> Callable[[int, int], _Batch]:
    """So many texts of a sampler with a denoiser from a number on."""
    fast = execution.accelerate(pipelines.pipeline(setting, drawing.length), drawing.execution)

    def batch(count: int, first: int) -> _Batch:
        out = pipelines.sample(fast, count, seed=drawing.seed, first_row=first)
        info = out["info"].cpu()
        return out["tokens"].cpu(), {
            "denoiser_passes": info["denoiser_passes"].tolist(),
            "energy_passes": info["energy_passes"].tolist(),
            "passes": (info["denoiser_passes"] + info["energy_passes"]).tolist(),
            "calls": info["calls"].sum(-1).tolist(),
            "ess": _means(info["ess"]),
            "log_weight_std": _means(info["log_weight_std"]),
        }

    return batch


def _means(values: Tensor) -> list[float | None]:
    """Mean over the passes of a text that an energy corrected, None where there was none."""
    return [None if math.isnan(value) else value for value in values.nanmean(-1).tolist()]
