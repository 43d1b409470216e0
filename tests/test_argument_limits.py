"""The limits of the library's arguments: what lies on a limit is taken, what lies beyond is refused with its name."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from tensordict.nn import TensorDictModule

from edlm import contracts
from edlm.evaluation import calibration, quality
from edlm.likelihood import bounds, conditional, estimates, hidden_markov, paper_nelbo
from edlm.models import autoregressive, denoisers, drafts, energies
from edlm.nn import sizes
from edlm.nn.networks import EnergyNetwork, Transformer
from edlm.objectives import baselines as baseline_objectives
from edlm.objectives import contrastive, denoising, transition
from edlm.process import absorbing, categorical, particles, schedules
from edlm.samplers import autoregressive as in_order
from edlm.samplers import baselines, corrections, pipelines, plans, stages
from edlm.samplers.sampler import Proposal, Sampler, UntilEss

LENGTH, SYMBOLS = 4, 3
MASK, VOCAB = SYMBOLS, SYMBOLS + 1
SIZES = {"hidden_size": 4, "num_layers": 1, "num_heads": 1, "dropout": 0.0}
TEXTS = torch.tensor([[0, 1, 2, 1], [2, 0, 1, 1]])
ROW, SEED, CPU = torch.arange(2), torch.tensor(0), torch.device("cpu")

source = hidden_markov.random_markov(0, SYMBOLS)
exact = hidden_markov.denoiser(source, LENGTH)
schedule, finite = schedules.log_linear(), schedules.log_linear(eps=1e-3)
network = Transformer(VOCAB, LENGTH, conditioning_size=4, **SIZES).eval()
causal = Transformer(VOCAB + 1, LENGTH, conditioning_size=0, causal=True, **SIZES).eval()
learned = energies.learned(EnergyNetwork(VOCAB, LENGTH, conditioning_size=4, **SIZES))
flat = TensorDictModule(
    lambda candidates: torch.zeros(candidates.shape[:2]), in_keys=[contracts.CANDIDATES], out_keys=[contracts.ENERGY]
)
plain = Sampler(exact, plans.Grid(2))
pipeline = pipelines.pipeline(plain, LENGTH)


class Limit(NamedTuple):
    """An argument: a call with a value of it, values on its limits, values beyond, and what the refusal begins with."""

    call: Callable[[Any], Any]
    accepted: Sequence[Any]
    refused: Sequence[Any]
    said: str = ""


def at_least(low: int, call: Callable[[Any], Any], said: str = "") -> Limit:
    return Limit(call, [low, low + 1], [low - 1], said)


def of_many(call: Callable[[int], Any]) -> Limit:
    """An estimate with an error, which two texts are enough for."""
    return at_least(2, call, " needs at least 2 ")


def within(low: int, high: int, call: Callable[[Any], Any], said: str = "") -> Limit:
    return Limit(call, [low, high], [low - 1, high + 1], said)


SHARE = ([5e-324, 1.0], [0.0, 1.0 + 1e-9])
INF = float("inf")
WARM = ([5e-324, 1e300], [0.0, -1.0, INF, float("nan")])
STEPS = ([(1, 1), (1, 2), (2, 2)], [(0, 1), (2, 1)])
LIMITS = {
    "nn.sizes dropout": Limit(
        lambda value: sizes.require_sizes({**network.arguments, "dropout": value}), [0.0, 0.999], [-1e-9, 1.0]
    ),
    "nn.sizes pad_id": within(0, VOCAB - 1, lambda value: Transformer(VOCAB, LENGTH, **SIZES, pad_id=value)),
    "nn.networks num_layers": at_least(1, lambda value: Transformer(VOCAB, LENGTH, **{**SIZES, "num_layers": value})),
    "likelihood.conditional num_draws": at_least(
        1, lambda n: conditional.bound(exact, TEXTS, torch.ones_like(TEXTS).bool(), SEED, ROW, num_draws=n), "num_draws"
    ),
    "process.particles log_z_bounds": at_least(2, lambda n: particles.log_z_bounds(torch.zeros(1, n)), "leave-one-out"),
    "process.categorical nucleus": Limit(lambda value: categorical.nucleus(torch.zeros(1, 3), value), *SHARE),
    "process.categorical temperature": Limit(lambda value: categorical.cooled(torch.zeros(1, 3), value), *WARM),
    "process.particles temperature": Limit(
        lambda value: particles.log_weights(torch.zeros(1, 3), value), [particles.COLDEST, 1e300], [0.0, 1e-101, INF]
    ),
    "samplers.stages temperature": Limit(lambda value: stages.propose(exact, value), *WARM),
    "samplers.autoregressive temperature": Limit(
        lambda value: in_order.sample(causal, 1, 2, MASK, VOCAB, temperature=value), *WARM
    ),
    "samplers.corrections temperature": Limit(
        lambda value: [
            corrections.OfEnergy(flat, "draft", value),
            corrections.ChainRule(value),
            corrections.Joint(value),
            corrections.Autoregressive(causal, temperature=value),
        ],
        [particles.COLDEST, 1e300],
        [0.0, 1e-101, INF],
    ),
    "process.absorbing num_samples": at_least(
        1, lambda value: absorbing.starting_tokens(value, LENGTH, MASK, VOCAB, None, CPU)
    ),
    "process.absorbing prompt": Limit(
        lambda shape: absorbing.starting_tokens(2, LENGTH, MASK, VOCAB, torch.zeros(shape, dtype=torch.int64), CPU),
        [LENGTH, 0, (2, LENGTH), (2, 1)],
        [LENGTH + 1, (2, LENGTH + 1), (1, LENGTH), (3, LENGTH), (2, 1, LENGTH)],
    ),
    "process.absorbing prompt token": within(
        0,
        VOCAB - 1,
        lambda token: absorbing.starting_tokens(1, LENGTH, MASK, VOCAB, torch.tensor([1, token]), CPU),
        "prompt holds token id ",
    ),
    "process.schedules window": Limit(
        schedules.check_window, [(0, 1), (0, 0), (1, 1), (0.5, 0.5)], [(-1e-9, 1), (0, 1 + 1e-9), (0.6, 0.5)]
    ),
    "samplers.stages nucleus": Limit(lambda value: stages.propose(exact, 1.0, value), *SHARE),
    "samplers.sampler nucleus": Limit(
        lambda value: Sampler(exact, proposal=Proposal(nucleus=value)), *SHARE, "proposal.nucleus"
    ),
    "samplers.sampler candidates": at_least(
        1, lambda value: plain.replace(correction=corrections.OfEnergy(flat, "draft"), candidates=value)
    ),
    "samplers.plans tokens_per_pass": at_least(1, plans.TokensPerPass),
    "samplers.plans num_steps": at_least(1, plans.Grid),
    "samplers.rounds first": within(1, 3, lambda value: UntilEss(2.0, 3, value)),
    "samplers.rounds target_ess": Limit(lambda value: UntilEss(value, 3), [5e-324, 9.0], [0.0, -1.0, float("nan")]),
    "samplers.pipelines length": within(1, LENGTH, lambda value: pipelines.pipeline(plain, value)),
    "samplers.pipelines num_samples": at_least(1, lambda value: pipelines.sample(pipeline, value)),
    "samplers.pipelines seed": within(0, 2**63 - 1, lambda value: pipelines.sample(pipeline, 1, seed=value), "seed ="),
    "samplers.pipelines first_row": at_least(
        0, lambda value: pipelines.sample(pipeline, 1, first_row=value), "first_row ="
    ),
    "samplers.rounds at_most": at_least(2, lambda value: UntilEss(2.0, value), "first ="),
    "samplers.pipelines stride": within(1, LENGTH - 1, lambda value: pipelines.extend(pipeline, LENGTH + 3, value)),
    "samplers.pipelines extended length": at_least(
        LENGTH, lambda value: pipelines.extend(pipeline, value, 2), "length ="
    ),
    "samplers.autoregressive length": within(1, LENGTH, lambda value: in_order.sample(causal, 2, value, MASK, VOCAB)),
    "samplers.baselines length": within(
        1,
        LENGTH,
        lambda value: baselines.sample(baselines.analytic(denoisers.sedd(network, MASK, finite), finite), value, 2),
    ),
    "models.denoisers mask_id": within(0, VOCAB - 1, lambda value: denoisers.subs(network, mask_id=value)),
    "models.drafts mask_id": within(0, VOCAB - 1, lambda value: drafts.drafts(VOCAB, value)),
    "models.autoregressive bos_id": within(0, VOCAB, lambda value: autoregressive.check_ar(causal, MASK, value)),
    "models.autoregressive mask_id": within(0, VOCAB, lambda value: autoregressive.check_ar(causal, value, None)),
    "models.autoregressive pad_id": within(0, VOCAB, lambda value: autoregressive.check_ar(causal, MASK, None, value)),
    "objectives.denoising time_low": Limit(
        lambda value: denoising.corruption(MASK, schedule, value), [0.0, 1.0 - 1e-9], [-1e-9, 1.0]
    ),
    "objectives.contrastive num_negatives": at_least(
        1, lambda value: contrastive.contrastive(exact, learned, schedule, num_negatives=value)
    ),
    "objectives.transition num_steps": Limit(lambda value: transition.before_step(MASK, schedule, value), *STEPS),
    "objectives.baselines num_steps": at_least(
        1, lambda value: baseline_objectives.d3pm(denoisers.d3pm(network, MASK), schedule, value)
    ),
    "likelihood.estimates values": of_many(lambda n: estimates.estimate(torch.arange(n).double())),
    "likelihood.bounds num_completions": at_least(
        1, lambda value: bounds.of_sampler(plain, TEXTS, SEED, ROW, num_completions=value)
    ),
    "likelihood.bounds num_passes": at_least(
        1, lambda value: bounds.of_sampler(plain, TEXTS, SEED, ROW, num_passes=value)
    ),
    "likelihood.paper_nelbo num_particles": at_least(
        2, lambda value: paper_nelbo.figure(exact, flat, schedule, TEXTS, SEED, ROW, num_particles=value)
    ),
    "likelihood.hidden_markov symbols": at_least(
        2, lambda value: hidden_markov.random_hidden_markov(0, hidden=1, symbols=value)
    ),
    "likelihood.hidden_markov hidden": at_least(
        1, lambda value: hidden_markov.random_hidden_markov(0, hidden=value, symbols=2)
    ),
    "evaluation.calibration num_bins": at_least(
        1,
        lambda value: calibration.expected_calibration_error(calibration.of_pairs(ROW.double(), TEXTS.double()), value),
    ),
    "evaluation.quality bootstrap": of_many(
        lambda n: quality.bootstrap(lambda first, second: first.sum() + second.sum(), [3, n], 0)
    ),
    "evaluation.quality replicate_weights": of_many(lambda n: quality.replicate_weights(n, 0)),
    "evaluation.quality half_sampling": of_many(lambda n: quality.half_sampling(lambda weight: weight.sum(), n, 0)),
    "evaluation.quality grams": Limit(
        lambda length: quality.grams([torch.arange(length), torch.arange(1)], 3), [3, 4], [2], "n-grams of n = 3 need"
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_what_lies_on_a_limit_is_taken_and_what_lies_beyond_is_refused_by_name(name: str) -> None:
    call, accepted, refused, said = LIMITS[name]
    for value in accepted:
        call(value)
    for value in refused:
        with pytest.raises(ValueError, match=said or rf"\b{name.rsplit(' ', maxsplit=1)[-1]}\b") as error:
            call(value)
        assert len(str(error.value).splitlines()) == 1
