"""What is asked of each model: functions that score a batch of texts, with the work they did."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import baselines, bounds, contracts, energies, finite, likelihoods, schedules
from edlm.baselines import Reverse
from edlm.contracts import Energy
from edlm.denoisers import SeddDenoiser
from edlm.recipes._models import CHAIN_RULE, SPECULATIVE, Autoregressive, Diffusion, Models


class Scores(NamedTuple):
    """Of a batch: nats per scored token (b,) by figure, texts read by network, and, per row, how even weights were.

    Part of a text that is read counts by its tokens.
    """

    nats: dict[str, Tensor]
    passes: Mapping[str, float]
    ess: Tensor | None = None
    log_weight_std: Tensor | None = None
    excess: Tensor | None = None  # what the energy adds to the plain bound of the same passes

    def cpu(self) -> "Scores":
        """The same off the device, so that another process can read it."""
        rows = [None if rows is None else rows.cpu() for rows in (self.ess, self.log_weight_std, self.excess)]
        return Scores({name: nats.cpu() for name, nats in self.nats.items()}, self.passes, *rows)


Score = Callable[[Tensor, Tensor, Tensor, Tensor], Scores]  # tokens, scored, seed, row


def scorers(models: Models, settings: Mapping[str, Any]) -> Iterator[tuple[str, Score]]:
    """Each model with its figures, in the order in which they are shown.

    Raises ValueError for a D3PM without a number of steps: no other bound of it is known.
    """
    if models.baseline is not None:
        if isinstance(models.baseline.denoiser, SeddDenoiser):
            yield "denoiser", score_entropy(models.baseline, models.baseline.denoiser)
        elif settings["num_steps"] is None:
            raise ValueError(f"num_steps is null: {settings['denoiser']!r} holds d3pm, whose bound is one of a number")
        if settings["num_steps"] is not None:
            yield "denoiser", baseline_t_step(models.baseline, settings["num_steps"])
    if models.diffusion is not None:
        yield "denoiser", continuous(models.diffusion)
        yield "denoiser", t_step(models.diffusion, settings)
        for name, energy in models.diffusion.energies.items():
            if name == "transition":
                yield name, transitions(models.diffusion, energy, settings)
            elif name == CHAIN_RULE:
                yield name, in_order(models.diffusion, energy, settings)
                if settings["energy_temperature"] == 1.0:  # at another one there is nothing that it tends to
                    yield SPECULATIVE, in_order(models.diffusion, energy, {**settings, "num_particles": None})
            else:
                yield name, sampler(models.diffusion, energy, settings)
                yield name, paper(models.diffusion, energy, settings)
    if models.joint is not None:
        yield "joint", continuous(models.joint)
        yield "joint", t_step(models.joint, settings)
        yield "joint", transitions(models.joint, models.joint.energies["joint"], settings)
    if models.ar is not None:
        yield "ar", exact(models.ar, models.vocabulary.mask_id)


def continuous(diffusion: Diffusion) -> Score:
    """Build the continuous NELBO of the denoiser."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        nats = likelihoods.nelbo(diffusion.denoiser, diffusion.schedule, x_0, seed, row, scored)
        return Scores({"nelbo": nats}, {"denoiser": len(row)})

    return score


def score_entropy(baseline: Reverse, denoiser: SeddDenoiser) -> Score:
    """Build the continuous bound of SEDD."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        nats = baselines.score_entropy(denoiser, baseline.schedule, x_0, seed, row, scored)
        return Scores({"score_entropy": nats}, {"denoiser": len(row)})

    return score


def baseline_t_step(baseline: Reverse, num_steps: int) -> Score:
    """Build the T-step bound of a baseline's own sampler."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        nats = baselines.t_step_nelbo(baseline, x_0, seed, row, num_steps, scored)
        return Scores({"t_step_nelbo": nats}, {"denoiser": len(row)})

    return score


def t_step(diffusion: Diffusion, settings: Mapping[str, Any]) -> Score:
    """Build the T-step NELBO of the denoiser."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        keys = diffusion.schedule, _grid(settings), x_0, seed, row
        bound = bounds.t_step_nelbo(diffusion.denoiser, *keys, num_passes=settings["num_passes"], scored=scored)
        return Scores({"t_step_nelbo": bound.nats}, {"denoiser": int(bound.denoiser_passes.sum())})

    return score


def sampler(diffusion: Diffusion, energy: Energy, settings: Mapping[str, Any]) -> Score:
    """Build the bound of the sampler with an energy."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        bound = bounds.sampler_nelbo(
            diffusion.denoiser,
            energy,
            diffusion.schedule,
            _grid(settings),
            x_0,
            seed,
            row,
            num_particles=settings["num_particles"],
            num_completions=settings["num_completions"],
            window=tuple(settings["window"]),
            temperature=settings["energy_temperature"],
            num_passes=settings["num_passes"],
            scored=scored,
        )
        passes = {"denoiser": int(bound.denoiser_passes.sum()), "energy": int(bound.energy_passes.sum())}
        return Scores({"sampler_nelbo": bound.nats}, passes, bound.ess, bound.log_weight_std, bound.excess)

    return score


def transitions(diffusion: Diffusion, energy: Energy, settings: Mapping[str, Any]) -> Score:
    """Build the bound of the sampler with an energy of transitions."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        keys = diffusion.schedule, _grid(settings), x_0, seed, row
        bound = bounds.transition_nelbo(
            diffusion.denoiser,
            energy,
            *keys,
            num_particles=settings["num_particles"],
            window=tuple(settings["window"]),
            temperature=settings["energy_temperature"],
            num_passes=settings["num_passes"],
            scored=scored,
        )
        passes = {"denoiser": int(bound.denoiser_passes.sum()), "energy": int(bound.energy_passes.sum())}
        return Scores({"transition_nelbo": bound.nats}, passes, bound.ess, bound.log_weight_std, bound.excess)

    return score


def in_order(diffusion: Diffusion, energy: Energy, settings: Mapping[str, Any]) -> Score:
    """Build the bound of the sampler with the energy that the denoiser has in itself; no particles: speculative."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        counted = _InOrder(energy)
        found = transitions(diffusion, counted, settings)(x_0, scored, seed, row)
        return found._replace(passes={**found.passes, "energy": counted.passes})

    return score


class _InOrder:
    """An energy that reads x_t, and a candidate at its new tokens but the first alone, twice: and how much that was."""

    def __init__(self, energy: Energy) -> None:
        self.energy, self.in_keys, self.passes = energy, energy.in_keys, 0.0

    def __call__(self, tensordict: TensorDict) -> TensorDict:
        """Write the energies (b, k)."""
        b, k, l = tensordict[contracts.CANDIDATES].shape
        self.passes += b + 2 * k * (len(tensordict[contracts.POSITIONS]) - b) / l  # each row has a first one
        return self.energy(tensordict)


def paper(diffusion: Diffusion, energy: Energy, settings: Mapping[str, Any]) -> Score:
    """Build the paper's figure, both ends of it."""
    n = settings["log_z_particles"]

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        found = bounds.paper_nelbo(
            diffusion.denoiser, energy, diffusion.schedule, x_0, seed, row, num_particles=n, scored=scored
        )
        nats = {"paper_nelbo, log Z low": found.lower, "paper_nelbo, log Z high": found.upper}
        return Scores(nats, {"denoiser": len(row), "energy": len(row) * (n + 1)}, found.ess, found.log_weight_std)

    return score


def exact(ar: Autoregressive, mask_id: int) -> Score:
    """Build the likelihood of the AR model."""

    @torch.no_grad()
    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        log_p = energies.ar_log_prob(ar.network, x_0, mask_id, ar.bos_id)
        finite.require_log_prob(log_p, "the autoregressive model")
        nats = -torch.where(scored, log_p.double(), 0.0).sum(-1) / scored.sum(-1)
        return Scores({"exact_nll": nats}, {"ar": len(row)})

    return score


def _grid(settings: Mapping[str, Any]) -> Tensor | None:
    return None if settings["num_steps"] is None else schedules.uniform_grid(settings["num_steps"])
