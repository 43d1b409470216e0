"""Whether a difference is more than its error, and what an evaluation says in one sentence."""

import math
from typing import Any

import pytest
import torch

from edlm.evaluation import samples, verdicts
from edlm.evaluation.figures import Figure
from edlm.evaluation.samples import Row
from edlm.likelihood import estimates
from edlm.likelihood.estimates import Estimate
from edlm.process import noise
from edlm.process.noise import Stream


@pytest.mark.parametrize(
    ("n", "comparisons", "quantile"),
    [(8, 1, 2.3646), (11, 1, 2.2281), (32, 1, 2.0395), (32, 10, 3.0221), (10_000, 1, 1.9602)],
)
def test_the_quantile_is_that_of_student_s_t(n: int, comparisons: int, quantile: float) -> None:
    for mean in (quantile + 0.004, -quantile - 0.004):
        assert verdicts.told_apart(Estimate(mean, 1.0, n), comparisons)
    for mean in (quantile - 0.004, 0.004 - quantile):
        assert not verdicts.told_apart(Estimate(mean, 1.0, n), comparisons)


def test_one_set_in_twenty_without_a_difference_is_told_apart_however_many_are_compared() -> None:
    """Of 4,000 sets of five differences of ten texts, 200 at most in the mean; six deviations above it are 283.

    The largest of five is picked. Without the correction some 900 would be told apart.
    """
    sets, each, n = 4_000, 5, 10
    normal = torch.special.ndtri(noise.grid(0, torch.arange(sets * each), 0, Stream.EVALUATION, n)).view(sets, each, n)
    found = 0
    for some in normal:
        every = [estimates.estimate(values) for values in some]
        best = max(every, key=lambda own: abs(own.mean) / own.standard_error)
        found += verdicts.told_apart(best, each)
    assert 100 < found < 283


@pytest.mark.parametrize(
    "difference",
    [Estimate(9.0, 0.1, 7), Estimate(9.0, math.nan, 20), Estimate(math.inf, 1.0, 20), Estimate(0.0, 0.0, 20)],
    ids=["few texts", "no error", "not finite", "nothing"],
)
def test_what_is_not_known_is_not_told_apart(difference: Estimate) -> None:
    assert not verdicts.told_apart(difference)


def figure(model: str, name: str, nats: float, excess: tuple[float, float] | None = None, n: int = 32) -> Figure:
    beside: Any = None if excess is None else Estimate(*excess, n)
    return Figure("test", model, name, Estimate(nats * math.log(2), 0.02, n), 1.0, 1.0, {}, None, None, beside, None)


PLAIN = [figure("denoiser", "nelbo", 2.8), figure("denoiser", "t_step_nelbo", 2.85)]


def test_a_win_a_loss_and_a_tie() -> None:
    won = [*PLAIN, figure("energy", "sampler_nelbo", 2.75, (-0.07, 0.01)), figure("other", "x", 2.9, (0.1, 0.01))]
    assert verdicts.of_figures(won, "character") == (
        "on test: energy is better than plain by 0.070 ± 0.010 nats per character, at most 2.750 ± 0.029 bits per "
        "character"
    )
    lost = [*PLAIN, figure("energy", "sampler_nelbo", 3.0, (0.07, 0.01))]
    assert verdicts.of_figures(lost, "token").startswith(
        "on test: no correction is as good as plain: the best, energy, loses 0.070 ± 0.010 nats per token"
    )
    tied = [*PLAIN, figure("energy", "sampler_nelbo", 2.84, (-0.019, 0.01))]
    assert verdicts.of_figures(tied, "token").startswith(
        "on test: no correction is told apart from plain within the error; energy has at most 2.840"
    )


def test_the_paper_s_figure_and_lower_ends_are_no_result() -> None:
    beside = [figure("energy", "paper_nelbo, log Z low", 0.1, (-3.0, 0.01)), figure("denoiser", "tube_lower, K=3", 0.1)]
    assert verdicts.of_figures([*PLAIN, *beside], "token") == verdicts.of_figures(PLAIN, "token")
    assert verdicts.of_figures(beside, "token") == ""


def test_what_has_nothing_beside_it_is_said_alone() -> None:
    assert verdicts.of_figures(PLAIN[:1], "token") == (
        "on test: denoiser has at most 2.800 ± 0.029 bits per character, with nothing beside it to compare"
    )
    assert verdicts.of_figures(PLAIN, "token") == (
        "on test: the lowest figure is nelbo of denoiser, at most 2.800 ± 0.029 bits per character"
    )
    alone = [figure("ar", "exact_nll", 1.8)]
    assert verdicts.of_figures(alone, "token").startswith(
        "on test: ar has 1.800 ± 0.029 bits per character, with nothing"
    )
    assert verdicts.of_figures([*PLAIN, *alone], "token").endswith(
        "; the AR model has 1.800 ± 0.029 bits per character"
    )


def test_eight_texts_are_enough_for_a_verdict() -> None:
    assert verdicts.too_few(7) == "7 texts are too few for a verdict"
    assert verdicts.too_few(8) == ""
    assert not verdicts.told_apart(Estimate(1.0, 0.01, 7))
    assert verdicts.told_apart(Estimate(1.0, 0.01, 8))


def test_few_texts_win_nothing() -> None:
    few = [figure("denoiser", "nelbo", 2.8, n=5), figure("energy", "sampler_nelbo", 1.0, (-1.8, 0.01), n=5)]
    said = verdicts.of_figures(few, "token")
    assert "told apart from plain within the error" in said
    assert said.endswith("; 5 texts are too few for a verdict")


def row(name: str, own: tuple[float, float], real: tuple[float, float] | None, n: int = 32) -> Row:
    return Row(name, Estimate(*own, n), None if real is None else Estimate(*real, n))


def test_samples_are_compared_with_held_out_text() -> None:
    rows = [
        row(samples.ENTROPY, (2.70, 0.01), (2.81, 0.01)),
        row("distinct-2", (0.1, 0.01), (0.9, 0.01)),
        row(samples.PERPLEXITY, (20.0, 1.0), (17.0, 1.2)),
    ]
    assert verdicts.of_samples("s.jsonl", rows) == (
        "the texts of s.jsonl: unigram entropy 2.700 ± 0.010, below held-out text 2.810 ± 0.010; generative perplexity "
        "20.0 ± 1.0, not told apart from held-out text 17.0 ± 1.2"
    )
    above = [row(samples.PERPLEXITY, (25.0, 1.0), (17.0, 1.2))]
    assert verdicts.of_samples("s.jsonl", above).endswith("25.0 ± 1.0, above held-out text 17.0 ± 1.2")
    alone = [row(samples.ENTROPY, (2.7, 0.01), None, n=4)]
    assert verdicts.of_samples("s.jsonl", alone) == (
        "the texts of s.jsonl: unigram entropy 2.700 ± 0.010, with no held-out text to compare; 4 texts are too few "
        "for a verdict"
    )
    assert verdicts.of_samples("s.jsonl", []) == ""
