"""One setting of a frontier drawn, judged and timed: a record of plain values, per text, from which figures follow."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm.contracts import Energy, Scope
from edlm.evaluation import quality
from edlm.evaluation.judges import Judge
from edlm.evaluation.samples import Texts
from edlm.frontier.grid import ENERGIES, FLIPPED, ZERO_JOINT, ZEROS, Setting
from edlm.models import energies
from edlm.runs import processes, timing
from edlm.samplers import autoregressive, corrections, execution, pipelines, plans
from edlm.samplers.corrections import Correction
from edlm.samplers.execution import Mode
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Proposal, Sampler
from edlm.weights.named import Diffusion, Models

PER_TEXT = ("denoiser_passes", "energy_passes", "passes", "calls", "ess", "log_weight_std")
_Batch = tuple[Tensor, Mapping[str, list[Any]]]  # tokens, and what each text cost


class Drawing(NamedTuple):
    """What all settings share: the length of a text, how many of them, how many at once, the seed, and how they run."""

    length: int
    num_samples: int
    batch_size: int
    seed: int
    device: torch.device
    execution: Mode = "eager"


class Reference(NamedTuple):
    """What texts are compared with: a judge, real text of which n-gram divergences are taken, and their errors."""

    judge: Judge
    real: Texts
    ngrams: Sequence[int]
    seed: int
    replicates: int


def pipeline(setting: Setting, models: Models, length: int) -> Pipeline:
    """The sampler of a setting with a denoiser, and its length."""
    return pipelines.pipeline(sampler(setting, models), length)


def sampler(setting: Setting, models: Models) -> Sampler:
    """The sampler of a setting with a denoiser."""
    plan = plans.TokensPerPass(1) if setting.num_steps is None else plans.Grid(setting.num_steps)
    plain = Sampler(denoising(setting, models).denoiser, plan, Proposal(setting.temperature))
    if setting.energy is None:
        return plain
    return plain.replace(
        correction=_correction(setting, models),
        candidates=setting.num_particles,
        selection=setting.method,
        window=setting.window,
    )


def _correction(setting: Setting, models: Models) -> Correction:
    """What corrects the denoiser; as controls its energy times zero, or minus one."""
    assert setting.energy is not None
    factor = 0.0 if setting.energy == ZERO_JOINT else -1.0 if setting.energy.startswith(FLIPPED) else 1.0
    if setting.of_joint:
        return corrections.Joint(factor=factor)
    if setting.of_chain_rule and setting.has_network:
        return corrections.ChainRule(factor=factor)
    scope: Scope = "transition" if setting.of_transitions else "draft"
    return corrections.OfEnergy(energy(setting, models), scope, called=setting.energy)


def denoising(setting: Setting, models: Models) -> Diffusion:
    """The denoiser of a setting with its energies: a joint network's, one that is read in order, or the other one."""
    found = models.diffusion
    if setting.of_joint:
        found = models.joint
    elif setting.of_chain_rule and models.learned is not None:
        found = models.learned
    assert found is not None
    return found


def energy(setting: Setting, models: Models) -> Energy:
    """The energy of a setting that has one, for any kernel or bound: zero, a loaded one, or its negative."""
    assert setting.energy is not None
    if setting.energy in ZEROS:
        return energies.zero()
    loaded = denoising(setting, models).energies[ENERGIES[setting.energy.removeprefix(FLIPPED)].loaded]
    return energies.scaled(loaded, -1.0) if setting.energy.startswith(FLIPPED) else loaded


def draw(setting: Setting, models: Models, drawing: Drawing) -> tuple[Tensor, dict[str, Any]]:
    """Texts (n, l) and what they cost: seconds per text, and passes and weights of each text.

    A pass reads a text once, and passes over part of a text count by their tokens; an AR model with its cache reads
    one, in as many calls as it has tokens. Text i of the seed has the same noise in every setting. `ess` and
    `log_weight_std` are means over a text's corrected passes. Several processes share the batches, and the seconds are
    those until the last one is done. Where steps are compiled or captured, all is drawn once before the clock starts.
    """
    batch = _autoregressive(setting, models, drawing) if setting.method == "ar" else _sampler(setting, models, drawing)
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


def warm_up(settings: Sequence[Setting], models: Models, drawing: Drawing) -> None:
    """One step with each method and energy, so that no setting pays for what happens only once."""
    short = drawing._replace(num_samples=min(drawing.num_samples, drawing.batch_size), execution="eager")
    for setting in {setting.family: setting for setting in settings}.values():
        if setting.method == "ar":
            draw(setting, models, short._replace(length=1))
        elif setting.is_speculative:  # one step for all of a text is the dearest there is
            draw(setting, models, short._replace(num_samples=1))
        else:
            draw(setting._replace(num_steps=1, num_particles=1, window=(0.0, 1.0)), models, short)


def describe(texts: Texts, reference: Reference) -> dict[str, Any]:
    """What is said of texts: nats under the judge, entropy and length of each, divergences of all with their errors.

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


def _autoregressive(setting: Setting, models: Models, drawing: Drawing) -> Callable[[int, int], _Batch]:
    """So many texts of the AR model from a number on, run eagerly in every mode."""
    assert models.ar is not None
    network, bos_id = models.ar
    fixed = {**dict.fromkeys(PER_TEXT), "denoiser_passes": 0, "energy_passes": 0, "passes": 1, "calls": drawing.length}

    def batch(count: int, first: int) -> _Batch:
        found = autoregressive.sample(
            network,
            count,
            drawing.length,
            models.vocabulary.mask_id,
            bos_id,
            seed=drawing.seed,
            first_row=first,
            temperature=setting.temperature,
        )
        return found.tokens.cpu(), {name: [value] * count for name, value in fixed.items()}

    return batch


def _sampler(setting: Setting, models: Models, drawing: Drawing) -> Callable[[int, int], _Batch]:
    """So many texts of a sampler with a denoiser from a number on."""
    fast = execution.accelerate(pipeline(setting, models, drawing.length), drawing.execution)

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
