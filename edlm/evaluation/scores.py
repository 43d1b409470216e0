"""What is asked of each model: functions that score a batch of texts, with the work they did."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm.contracts import Denoiser, Energy
from edlm.likelihood import baselines as baseline_bounds
from edlm.likelihood import bounds, nelbo, paper_nelbo
from edlm.models import autoregressive
from edlm.models.denoisers import SeddDenoiser
from edlm.process import finite
from edlm.samplers import corrections, plans
from edlm.samplers.baselines import Reverse
from edlm.samplers.corrections import Correction
from edlm.samplers.sampler import Sampler
from edlm.weights.named import CHAIN_RULE, SPECULATIVE, Autoregressive, Diffusion, Models


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
    for diffusion in (models.diffusion, models.joint):
        if diffusion is None:
            continue
        own = "joint" if diffusion is models.joint else "denoiser"
        yield own, continuous(diffusion)
        yield own, sampler(_plain(diffusion.denoiser, settings), settings)
        for name in diffusion.energies:
            drawn = _corrected(diffusion, name, settings)
            yield name, sampler(drawn, settings)
            if drawn.parts is not None and drawn.parts.scope == "draft":
                yield name, paper(diffusion, diffusion.energies[name], settings)
            if name == CHAIN_RULE and settings["energy_temperature"] == 1.0:  # at another one it tends to nothing
                yield SPECULATIVE, sampler(drawn.replace(candidates=1, selection=SPECULATIVE), settings)
    if models.ar is not None:
        yield "ar", exact(models.ar, models.vocabulary.mask_id)


def continuous(diffusion: Diffusion) -> Score:
    """Build the continuous NELBO of the denoiser."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        nats = nelbo.nelbo(diffusion.denoiser, diffusion.schedule, x_0, seed, row, scored)
        return Scores({"nelbo": nats}, {"denoiser": len(row)})

    return score


def score_entropy(baseline: Reverse, denoiser: SeddDenoiser) -> Score:
    """Build the continuous bound of SEDD."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        nats = baseline_bounds.score_entropy(denoiser, baseline.schedule, x_0, seed, row, scored)
        return Scores({"score_entropy": nats}, {"denoiser": len(row)})

    return score


def baseline_t_step(baseline: Reverse, num_steps: int) -> Score:
    """Build the T-step bound of a baseline's own sampler."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        nats = baseline_bounds.t_step_nelbo(baseline, x_0, seed, row, num_steps, scored)
        return Scores({"t_step_nelbo": nats}, {"denoiser": len(row)})

    return score


def sampler(drawn: Sampler, settings: Mapping[str, Any]) -> Score:
    """Build the bound of a sampler, named after what it weighs."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        how = {"num_completions": settings["num_completions"], "num_passes": settings["num_passes"]}
        bound = bounds.of_sampler(drawn, x_0, seed, row, scored=scored, **how)
        nats = {bounds.name(drawn): bound.nats}
        if drawn.correction is None:
            return Scores(nats, {"denoiser": int(bound.denoiser_passes.sum())})
        passes = {"denoiser": int(bound.denoiser_passes.sum()), "energy": float(bound.energy_passes.sum())}
        return Scores(nats, passes, bound.ess, bound.log_weight_std, bound.excess)

    return score


def paper(diffusion: Diffusion, energy: Energy, settings: Mapping[str, Any]) -> Score:
    """Build the paper's figure, both ends of it."""
    n = settings["log_z_particles"]

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        found = paper_nelbo.figure(
            diffusion.denoiser, energy, diffusion.schedule, x_0, seed, row, num_particles=n, scored=scored
        )
        nats = {"paper_nelbo, log Z low": found.lower, "paper_nelbo, log Z high": found.upper}
        return Scores(nats, {"denoiser": len(row), "energy": len(row) * (n + 1)}, found.ess, found.log_weight_std)

    return score


def exact(ar: Autoregressive, mask_id: int) -> Score:
    """Build the likelihood of the AR model."""

    @torch.no_grad()
    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        log_p = autoregressive.ar_log_prob(ar.network, x_0, mask_id, ar.bos_id)
        finite.require_log_prob(log_p, "the autoregressive model")
        nats = -torch.where(scored, log_p.double(), 0.0).sum(-1) / scored.sum(-1)
        return Scores({"exact_nll": nats}, {"ar": len(row)})

    return score


def _plain(denoiser: Denoiser, settings: Mapping[str, Any]) -> Sampler:
    return Sampler(
        denoiser, plans.TokensPerPass(1) if settings["num_steps"] is None else plans.Grid(settings["num_steps"])
    )


def _corrected(diffusion: Diffusion, name: str, settings: Mapping[str, Any]) -> Sampler:
    """The sampler with an energy, which the denoiser may have in itself."""
    temperature = settings["energy_temperature"]
    correction: Correction = corrections.ChainRule(temperature)
    if name != CHAIN_RULE:
        correction = corrections.OfEnergy(diffusion.energies[name], temperature=temperature, called=name)
    k, window = settings["num_particles"], tuple(settings["window"])
    return _plain(diffusion.denoiser, settings).replace(correction=correction, candidates=k, window=window)
