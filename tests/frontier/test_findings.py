"""What a frontier says: wins with their errors, ties, losses, duller text, few texts, and no plain to compare with."""

import math

import builders
import pytest

from edlm.frontier import findings, table
from edlm.frontier import points as frontier_points
from edlm.frontier.points import Point, Resampled
from edlm.likelihood.estimates import Estimate
from edlm.models import energies
from edlm.samplers.corrections import ChainRule, OfEnergy
from edlm.samplers.plans import Grid, TokensPerPass
from edlm.samplers.sampler import Proposal, Sampler

DENOISER = builders.tiny_denoiser(0, 4, vocab_size=5)
PLAIN = Sampler(DENOISER, Grid(4))
ORDERED = Sampler(DENOISER, Grid(4), correction=ChainRule(), selection="speculative")
SIR = Sampler(DENOISER, Grid(4), correction=OfEnergy(energies.zero(), called="learned"), candidates=3)
N = 12
WAVES = [[math.sin(2.0 + (3 + which) * number**2) for number in range(N)] for which in range(6)]


def drawn(
    setting: Sampler | None, bits: float, seconds: float | None, spread: float = 0.0, entropy: float = 3.0, **options
) -> tuple[Point, Resampled]:
    """A setting whose texts differ by so much, each setting in its own way; costs in proportion to the seconds."""
    n, role, which = options.get("n", N), options.get("role", ""), options.get("which", 0)
    steps = 1.0 if seconds is None else 100 * seconds
    record = {
        "nll": [(bits + spread * WAVES[which][number]) * math.log(2) * 5 for number in range(n)],
        "characters": [5] * n,
        "judged_tokens": [5] * n,
        "entropy": [entropy + 0.01 * WAVES[which][number] for number in range(n)],
        "divergences": {},
        "denoiser_passes": [steps] * n,
        "passes": [2 * steps] * n if setting is not None and setting.correction else [steps] * n,
        "calls": [steps] * n,
        "seconds": seconds,
    }
    name = "held-out text" if setting is None else str(setting)
    return frontier_points.point(name, setting, role, record, 0, 200)


def told(*some: tuple[Point, Resampled], judged_by_itself: bool = False) -> tuple[str, str]:
    points = frontier_points.with_comparisons(some)
    found = findings.verdicts_of(points, judged_by_itself)
    return findings.title(points, found), findings.sentence(points, found)


def curve(spread: float = 0.0, n: int = N) -> list[tuple[Point, Resampled]]:
    """Plain in 2, 8 and 32 steps: 9, 7 and 5 bits."""
    return [
        drawn(PLAIN.replace(plan=Grid(steps)), 10 - math.log2(steps), steps / 100, spread, n=n, which=number)
        for number, steps in enumerate((2, 8, 32))
    ]


def test_a_win_says_at_how_many_steps_plain_is_as_good_and_how_much_faster_it_is() -> None:
    title, said = told(*curve(), drawn(ORDERED, 6.0, 0.04))
    assert title == "in order, T=4: as good as plain at 16 steps, 4 times as fast"
    assert said == ("in order, T=4: as good as plain at 16 steps, 4 times as fast, entropy equal within the error")


def test_tokens_a_pass_are_told_as_steps_too() -> None:
    _, said = told(*curve(), drawn(ORDERED.replace(plan=TokensPerPass(8)), 6.0, 0.04))
    assert said.startswith("in order, 8 a pass (4 steps): as good as plain at 16 steps, 4 times as fast")


def test_better_than_all_of_plain_is_claimed_only_beyond_the_error() -> None:
    for bits, words in ((4.0, "better than plain at every number of steps tried, at least 8 times as fast"),):
        assert words in told(*curve(), drawn(ORDERED, bits, 0.04))[1]
    within = told(*curve(0.3), drawn(ORDERED, 4.95, 0.04, 0.3, which=4))[1]
    assert "as good as plain at 32 steps, the most tried, at least 8" in within
    assert "better" not in within


@pytest.mark.parametrize(
    ("bits", "seconds", "spread"),
    [(6.0, 0.5, 0.0), (9.5, 0.04, 0.0), (6.9, 0.06, 3.0)],
    ids=["slower", "worse", "within the error"],
)
def test_what_is_no_win_is_said_to_be_none(bits: float, seconds: float, spread: float) -> None:
    title, said = told(*curve(spread), drawn(SIR, bits, seconds, spread, which=4))
    assert title == "no setting of learned is as good as plain in less time, within the error"
    assert said.startswith("no setting of learned is as good as plain in less time within the error (closest: learned")


def test_duller_text_wins_nothing_and_livelier_text_says_so() -> None:
    said = told(*curve(), drawn(ORDERED, 6.0, 0.04, entropy=2.5))[1]
    assert said.startswith("no setting of in order is as good as plain")
    assert said.endswith("times as fast, but of lower entropy)")
    assert told(*curve(), drawn(ORDERED, 6.0, 0.04, entropy=3.5))[1].endswith("nats above plain's")


def test_every_method_is_named_and_controls_are_not() -> None:
    wins, loses = drawn(ORDERED, 6.0, 0.04), drawn(SIR, 9.5, 0.04)
    control = drawn(SIR.replace(candidates=5), 4.0, 0.01, role="zero of x")
    _, said = told(*curve(), loses, wins, control)
    assert said.startswith("in order, T=4: as good as plain at 16 steps")
    assert "; no setting of learned is as good as plain in less time" in said
    assert "k=5" not in said


def test_a_judge_that_judges_itself_is_no_measure_of_what_is_made_with_it() -> None:
    for called in ("carry_over", "posterior", "autoregressive"):
        own = SIR.replace(correction=OfEnergy(energies.zero(), called=called))
        some = [*curve(), drawn(own, 4.0, 0.02)]
        assert told(*some)[1].startswith(f"{called.replace('_', ' ')}, T=4, k=3")
        assert told(*some, judged_by_itself=True)[1].startswith("plain, T=32: 5 bits per character under the judge")


def test_entropy_is_compared_with_the_plain_setting_of_the_nearest_bits() -> None:
    """Of plain at 9, 7 and 5 bits, whose entropies are 4, 3 and 1."""
    plain = [
        drawn(PLAIN.replace(plan=Grid(steps)), 10 - math.log2(steps), steps / 100, entropy=entropy)
        for steps, entropy in ((2, 4.0), (8, 3.0), (32, 1.0))
    ]
    for bits, entropy, above in ((6.5, 3.5, 0.5), (5.5, 1.25, 0.25)):
        points = frontier_points.with_comparisons([*plain, drawn(ORDERED, bits, 0.01, entropy=entropy)])
        [found] = findings.verdicts_of(points, judged_by_itself=False)
        assert found.entropy.mean == pytest.approx(above, abs=0.01)
        assert found.wins


def test_a_colder_plain_setting_is_no_plain_setting_to_compare_with() -> None:
    cold = drawn(PLAIN.replace(proposal=Proposal(0.5)), 1.0, 0.01)
    assert told(cold, *curve())[1].startswith("plain, T=32: 5 bits per character")
    assert told(cold)[1] == "no plain setting to compare with"
    assert told(*curve(), cold, drawn(ORDERED, 6.0, 0.04))[0].endswith("as good as plain at 16 steps, 4 times as fast")


@pytest.mark.parametrize(("passes", "said"), [(1.0, ""), (1.4, ""), (1.5, " (2 steps)"), (4.0, " (4 steps)")])
def test_one_pass_of_a_denoiser_counts_no_steps(passes: float, said: str) -> None:
    own, _ = drawn(ORDERED.replace(plan=TokensPerPass(8)), 6.0, passes / 100)
    assert findings._called(own) == f"in order, 8 a pass{said}"
    assert findings._called(own._replace(name="speculative, chain_rule, T=4")) == "in order, T=4"


def test_the_best_of_a_method_is_what_wins_and_then_what_saves_most_beyond_its_error() -> None:
    """Winners first, and the one that saves more first of these."""
    found = findings.verdicts_of(
        frontier_points.with_comparisons(
            [*curve(), drawn(SIR, 6.0, 0.08), drawn(SIR.replace(candidates=5), 6.0, 0.04), drawn(ORDERED, 6.0, 0.02)]
        ),
        judged_by_itself=False,
    )
    assert [(each.method, each.cost, each.wins) for each in found] == [
        ("in order", "seconds", True),
        ("learned", "seconds", True),
    ]
    assert [each.saved.ratio for each in found] == pytest.approx([8.0, 4.0])


def test_without_a_clock_passes_are_compared() -> None:
    untimed = [(own._replace(seconds=None), replicates) for own, replicates in [*curve(), drawn(ORDERED, 6.0, 0.04)]]
    assert "2 times as few passes" in told(*untimed)[1]


@pytest.mark.parametrize(
    ("known", "cost", "less", "times"),
    [
        ({"seconds", "passes"}, "seconds", "in less time", "times as fast"),
        ({"passes"}, "passes", "with fewer passes", "times as few passes"),
        (set(), "calls", "with fewer calls in a row", "times as few calls"),
    ],
)
def test_of_no_win_it_is_said_by_which_cost_it_is_none(known: set[str], cost: str, less: str, times: str) -> None:
    """By the first that all settings have of seconds, passes, and calls in a row."""
    unknown = Estimate(math.nan, math.nan, N)

    def known_of(own: Point) -> Point:
        figures = own.figures if "passes" in known else {**own.figures, "passes": unknown}
        return own._replace(figures=figures, seconds=own.seconds if "seconds" in known else None)

    points = frontier_points.with_comparisons(
        [(known_of(own), replicates) for own, replicates in [*curve(), drawn(SIR, 9.5, 0.04)]]
    )
    found = findings.verdicts_of(points, judged_by_itself=False)
    assert [each.cost for each in found] == [cost]
    assert findings.title(points, found) == f"no setting of learned is as good as plain {less}, within the error"
    said = findings.sentence(points, found)
    assert said.startswith(f"no setting of learned is as good as plain {less} within the error (closest: learned")
    assert said.endswith(f"{times})")


def test_without_plain_or_without_anything_else_there_is_no_verdict() -> None:
    assert told(drawn(ORDERED, 6.0, 0.04))[1] == "no plain setting to compare with"
    assert told(drawn(None, 2.0, None), *curve())[1] == (
        "plain, T=32: 5 bits per character under the judge, with nothing beside it to compare"
    )


def test_few_texts_win_nothing() -> None:
    _, said = told(*curve(n=4), drawn(ORDERED, 6.0, 0.04, n=4))
    assert said.startswith("no setting of in order is as good as plain")
    assert said.endswith("; 4 texts are too few for a verdict")


def test_a_terminal_shows_all_of_few_settings_and_of_many_the_best() -> None:
    points = frontier_points.with_comparisons([drawn(None, 2.0, None), *curve(), drawn(SIR, 9.5, 0.04)])
    assert [row[0] for row in table.short(points)[1:]] == [own.name for own in points]
    kept = [row[0] for row in table.short(points, most=3)[1:]]
    assert kept == ["held-out text", "plain, T=2", "plain, T=8", "plain, T=32", "sir, learned, T=4, k=3"]
    more = [drawn(SIR.replace(candidates=k), 9.6 + k, 0.9) for k in (4, 5)]
    points = frontier_points.with_comparisons([drawn(SIR, 9.5, 0.04), *curve(), *more])
    assert [row[0] for row in table.short(points, most=3)[1:]][-1] == "plain, T=32"
