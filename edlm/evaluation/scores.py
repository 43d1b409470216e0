"""The scores of each model: functions that score a batch of texts, with the work they did."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm import limits
from edlm.contracts import Energy
from edlm.likelihood import baselines as baseline_bounds
from edlm.likelihood import bounds, nelbo, orders, paper_nelbo
from edlm.likelihood import exact as exact_likelihoods
from edlm.likelihood.bounds import Bound
from edlm.likelihood.exact import Exact
from edlm.likelihood.orders import Orders
from edlm.models import autoregressive
from edlm.models.denoisers import SeddDenoiser
from edlm.process import finite
from edlm.runs import settings as schemas
from edlm.samplers import configs, corrections, selections
from edlm.samplers.baselines import Reverse
from edlm.samplers.corrections import Correction, OfEnergy
from edlm.samplers.sampler import Sampler
from edlm.weights.named import Autoregressive, Diffusion, Models

TUBE = "tube_lower"  # the end of an interval that is below the likelihood in expectation


class Scores(NamedTuple):
    """Of a batch: nats per scored token (b,) by figure, texts read by network, and, per row, how even weights were.

    Part of a text that is read counts by its tokens. unreliable: which rows are known to be badly estimated (b,);
    steps: passes by which the sampler writes them (b,).
    """

    nats: dict[str, Tensor]
    passes: Mapping[str, float]
    ess: Tensor | None = None
    log_weight_std: Tensor | None = None
    excess: Tensor | None = None  # what the energy adds to the plain bound of the same passes
    unreliable: Tensor | None = None
    steps: Tensor | None = None

    @property
    def of_rows(self) -> list[Tensor | None]:
        """All else that is a value of each row."""
        return [self.ess, self.log_weight_std, self.excess, self.unreliable, self.steps]

    def cpu(self) -> "Scores":
        """Move the scores off the device, so that another process can read them."""
        rows = [None if rows is None else rows.cpu() for rows in self.of_rows]
        return Scores({name: nats.cpu() for name, nats in self.nats.items()}, self.passes, *rows)


Score = Callable[[Tensor, Tensor, Tensor, Tensor], Scores]  # tokens, scored, seed, row


def require_room(settings: Mapping[str, Any], length: int) -> None:
    """Raise ValueError for more drafts or passes of a batch than may be in memory at once."""
    for key in ("num_particles", "num_completions", "num_passes", "log_z_particles"):
        if settings.get(key) is not None:
            limits.require_texts(key, settings[key], length, each_of=settings["batch_size"])


def scorers(models: Models, settings: Mapping[str, Any]) -> Iterator[tuple[str, Score]]:
    """Yield each model with its figures, in the order in which they are shown.

    Raises ValueError for a D3PM without a number of steps: no other bound of it is known.
    """
    if models.baseline is not None:
        if isinstance(models.baseline.denoiser, SeddDenoiser):
            yield "denoiser", score_entropy(models.baseline, models.baseline.denoiser)
        elif settings["num_steps"] is None:
            raise ValueError(f"num_steps is null: {settings['denoiser']!r} holds d3pm, whose bound is one of a number")
        if settings["num_steps"] is not None:
            yield "denoiser", baseline_t_step(models.baseline, settings["num_steps"])
    named: list[str] = []
    for own, diffusion in (("denoiser", models.diffusion), ("joint", models.joint)):
        if diffusion is None:
            continue
        yield own, continuous(diffusion)
        yield from ((own, score) for score in of_sampler(plain(models, diffusion, settings), settings))
        for name, drawn in samplers(models, diffusion, settings):
            yield from ((name, score) for score in of_sampler(drawn, settings))
            if name in diffusion.energies and drawn.parts is not None and drawn.parts.scope == "draft":
                yield name, paper(diffusion, diffusion.energies[name], settings)
            for limit in _limits(drawn):
                named.append(limit.chooses.name)
                again = f"{named[-1]}, {name}" if named.count(named[-1]) > 1 else named[-1]
                yield from ((again, score) for score in of_sampler(limit, settings))
    if models.ar is not None:
        yield "ar", autoregressive_nll(models.ar, models.vocabulary.mask_id)


def plain(models: Models, diffusion: Diffusion, settings: Mapping[str, Any]) -> Sampler:
    """Build the sampler of the denoiser alone, by the plan of the settings."""
    alone = {**settings, "sampler": {**settings.get("sampler", {}), "correction": None}}
    return _sampler(models, diffusion, alone, None)


def samplers(models: Models, diffusion: Diffusion, settings: Mapping[str, Any]) -> Iterator[tuple[str, Sampler]]:
    """Yield the samplers whose bounds are asked for, by name: the correction that the settings name, or else all there
    are.

    Those are the loaded energies, each as the correction of its name if one is registered, and every other registered
    correction that a denoiser has in itself.
    """
    asked = configs.of_short_keys(settings)["correction"]
    if asked is None:
        return
    if configs.names_correction(asked):
        drawn = _sampler(models, diffusion, settings, None)
        named = drawn.correction
        yield str(getattr(named, "called", None) or getattr(named, "name", "own")), drawn
        return
    for name, correction in corrections_of(diffusion, asked["temperature"], inner=diffusion is models.diffusion):
        yield name, _sampler(models, diffusion, settings, correction)


def corrections_of(diffusion: Diffusion, temperature: float, inner: bool) -> Iterator[tuple[str, Correction]]:
    """Yield every correction there is of a denoiser, by name; inner: also those in itself that nobody loaded."""
    options = {} if temperature == 1.0 else {"temperature": temperature}
    for name, energy in diffusion.energies.items():
        build = corrections.CORRECTIONS.get(name, corrections.CORRECTIONS[OfEnergy.name])
        called = {"called": name} if "called" in schemas.parameters_of(build) else {}
        yield name, build({name: energy}, **called, **options)
    for name, build in corrections.CORRECTIONS.items():
        if inner and name not in diffusion.energies and "called" not in schemas.parameters_of(build):
            try:
                found = build({}, **options)
                found.parts(diffusion.denoiser)
            except (TypeError, ValueError):  # it needs options, or another network
                continue
            yield name, found


def _limits(drawn: Sampler) -> Iterator[Sampler]:
    """Yield what many candidates of a sampler tend to, by each selection that draws it from a correction's law."""
    for selection in selections.SELECTIONS.values():
        if selection.in_order and not drawn.chooses.in_order:
            try:
                yield drawn.replace(candidates=1, selection=selection.name)
            except ValueError:  # which says why not
                continue


def _sampler(models: Models, diffusion: Diffusion, settings: Mapping[str, Any], loaded: Correction | None) -> Sampler:
    offered = {"vocabulary": models.vocabulary}
    return configs.sampler_of(settings, diffusion.denoiser, loaded, diffusion.energies, offered)[0]


def continuous(diffusion: Diffusion) -> Score:
    """Build the continuous NELBO of the denoiser."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        nats = nelbo.nelbo(diffusion.denoiser, diffusion.schedule, x_0, seed, row, scored)
        return Scores({"nelbo": nats}, {"denoiser": len(row)})

    return score


def averaged(score: Score, draws: int) -> Score:
    """Average a score over so many draws of its noise, each of a seed of its own."""

    def averaged_score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        found = [score(x_0, scored, seed + number, row) for number in range(draws)]
        nats = {name: torch.stack([each.nats[name] for each in found]).mean(0) for name in found[0].nats}
        return Scores(nats, {name: sum(each.passes[name] for each in found) for name in found[0].passes})

    return averaged_score


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


def missing(drawn: Sampler) -> str:
    """Say why neither the likelihood of a sampler nor a bound of it is known; an empty text if one is."""
    return bounds.missing(drawn) if exact_likelihoods.missing(drawn) else ""


def of_sampler(drawn: Sampler, settings: Mapping[str, Any]) -> Iterator[Score]:
    """Yield what is known of a sampler's likelihood: it, where it is exact; or else a bound, and one of K orders."""
    if not exact_likelihoods.missing(drawn):
        yield exact(drawn)
        return
    yield sampler(drawn, settings)
    num_orders = settings.get("num_orders", 1)
    if num_orders > 1 and not orders.missing(drawn):
        yield k_orders(drawn, num_orders)


def exact(drawn: Sampler) -> Score:
    """Build the likelihood of a sampler whose plan is a rule."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        found = exact_likelihoods.of_sampler(drawn, x_0, scored)
        return Scores({"exact_nll": found.nats}, _read(drawn, found), steps=found.passes)

    return score


def k_orders(drawn: Sampler, num_orders: int) -> Score:
    """Build the bounds of K orders of a sampler whose plan is drawn, from either side."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        found = orders.bound(drawn, x_0, seed, row, num_orders=num_orders, scored=scored)
        nats = {f"k_order_bound, K={num_orders}": found.upper, f"{TUBE}, K={num_orders}": found.lower}
        return Scores(nats, _read(drawn, found), found.ess, unreliable=found.unreliable, steps=found.passes)

    return score


def sampler(drawn: Sampler, settings: Mapping[str, Any]) -> Score:
    """Build the bound of a sampler, named after what it weighs."""

    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        how = {"num_completions": settings["num_completions"], "num_passes": settings["num_passes"]}
        bound = bounds.of_sampler(drawn, x_0, seed, row, scored=scored, **how)
        nats = {bounds.name(drawn): bound.nats}
        if drawn.correction is None:
            return Scores(nats, _read(drawn, bound), steps=bound.passes)
        weighed = bound.ess, bound.log_weight_std, bound.excess
        return Scores(nats, _read(drawn, bound), *weighed, steps=bound.passes)

    return score


def _read(drawn: Sampler, found: Bound | Exact | Orders) -> dict[str, float]:
    """Count the texts that networks have read, parts of a text by their tokens."""
    read: dict[str, float] = {"denoiser": int(found.denoiser_passes.sum())}
    return read if drawn.correction is None else {**read, "energy": float(found.energy_passes.sum())}


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


def autoregressive_nll(ar: Autoregressive, mask_id: int) -> Score:
    """Build the likelihood of the AR model."""

    @torch.no_grad()
    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        log_p = autoregressive.ar_log_prob(ar.network, x_0, mask_id, ar.bos_id)
        finite.require_log_prob(log_p, "the autoregressive model")
        nats = -torch.where(scored, log_p.double(), 0.0).sum(-1) / scored.sum(-1)
        return Scores({"exact_nll": nats}, {"ar": len(row)})

    return score
