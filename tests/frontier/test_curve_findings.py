"""What likelihoods say: a win, a loss, a tie, no plain to compare with, one setting, and few texts."""

import math

import pytest
import torch

from edlm.frontier import curve, curve_findings
from edlm.frontier.curve import IN_ORDER, PLAIN, Point
from edlm.likelihood.estimates import Estimate

Told = tuple[str, str, float, float, bool]  # rule, way, bits per character, tokens a pass, whether it is exact
N, TOKENS = 16, 10
COMMON = [0.3 * math.sin(5.0 * number) for number in range(N)]  # what texts add to every setting
OWN = [0.1 * math.cos(7.0 * number * number) for number in range(N)]  # what they add to in order alone
NAMES = {"ranked margin": "margin", "tokens per pass": "random order"}


def told(*settings: Told, n: int = N) -> tuple[str, str]:
    """The title and the sentence of made-up settings on n texts of ten characters."""
    records, points = {}, []
    for number, (rule, way, bits, together, exact) in enumerate(settings):
        spread = [common + (0.0 if way == PLAIN else own) for common, own in zip(COMMON[:n], OWN[:n], strict=True)]
        middle = sum(spread) / n
        nats = [(bits + each - middle) * math.log(2) for each in spread]
        figure = "exact_nll" if exact else "t_step_nelbo"
        records[str(number)] = {"nats": {figure: nats}, "tokens": [TOKENS] * n}
        error = float(torch.tensor(spread).std()) / math.sqrt(n)
        points.append(Point(str(number), rule, way, figure, Estimate(bits, error, n), None, together, None, 1.0))
    found = curve_findings.comparisons(points, records, TOKENS * n)
    return curve_findings.title(points, found, NAMES), curve_findings.sentence(points, found, NAMES)


PLAIN_CURVE: list[Told] = [
    ("ranked margin", PLAIN, 2.75, 1.0, True),
    ("ranked margin", PLAIN, 3.27, 32.0, True),
    ("tokens per pass", PLAIN, 2.95, 32.0, False),
]


def test_a_win_is_over_the_best_plain_setting_and_says_that_this_is_a_bound() -> None:
    title, said = told(*PLAIN_CURVE, ("ranked margin", IN_ORDER, 2.81, 31.9, True))
    assert title == (
        "in order at 31.9 tokens a pass: 2.81 bits per character, plain 3.27 in the same order and at most 2.95 in its "
        "best, random order"
    )
    assert said == (
        "in order at 31.9 tokens a pass: 2.810 bits per character (margin), 0.140 ± 0.018 less than the bound of plain "
        "(random order, at most 2.950)"
    )


def test_a_tie_is_no_win() -> None:
    title, said = told(*PLAIN_CURVE, ("ranked margin", IN_ORDER, 2.93, 32.0, True))
    assert title == "in order at 32 tokens a pass: 2.93 bits per character, plain at most 2.95: within the error"
    assert said.startswith("no setting of in order is told apart from plain at 32 tokens a pass within the error: 2.93")
    assert "less" not in said


def test_what_is_picked_from_many_must_be_further_apart() -> None:
    """2.6 errors are told apart alone, and not as the best of twelve."""
    own = ("ranked margin", IN_ORDER, 2.95 - 2.6 * 0.0177, 32.0, True)
    assert told(PLAIN_CURVE[2], own)[1].startswith("in order at 32 tokens a pass")
    many = [("tokens per pass", PLAIN, 3.3 + number, 32.0, True) for number in range(12)]
    assert told(PLAIN_CURVE[2], own, *many)[1].startswith("no setting of in order is told apart")


@pytest.mark.parametrize(("exact", "shown"), [(True, "as good as"), (False, "shown to be as good as")])
def test_a_loss_is_said_and_of_a_bound_no_more_than_it_shows(exact: bool, shown: str) -> None:
    title, said = told(*PLAIN_CURVE, ("tokens per pass", "chain_rule, k=8", 3.5, 32.0, exact))
    assert title.endswith("bits per character, plain at most 2.95: no better")
    assert said.startswith(f"no setting of chain rule, k=8 is {shown} plain at 32 tokens a pass: ")
    assert said.endswith("more than the bound of plain (random order, at most 2.950)")


def test_the_best_way_comes_first_and_the_others_briefly() -> None:
    loses = ("tokens per pass", "carry_over, k=8", 3.5, 32.0, False)
    _, said = told(*PLAIN_CURVE, loses, ("ranked margin", IN_ORDER, 2.81, 32.0, True))
    assert said.startswith("in order at 32 tokens a pass: 2.810 bits")
    assert said.endswith("; carry over, k=8 at 32 tokens a pass: at most 3.500, 0.550 ± 0.018 more")


def test_of_a_way_what_is_exact_comes_before_a_lower_bound() -> None:
    own = [("ranked margin", IN_ORDER, 2.85, 32.0, True), ("tokens per pass", IN_ORDER, 2.5, 32.0, False)]
    assert told(*PLAIN_CURVE, *own)[1].startswith("in order at 32 tokens a pass: 2.850 bits per character (margin), ")
    assert told(*PLAIN_CURVE, *own[1:])[1].startswith("in order at 32 tokens a pass: at most 2.500 bits per character")


def test_only_settings_of_as_many_tokens_a_pass_are_compared() -> None:
    """Within 5 %: at 30.5 tokens plain still stands beside 32, at 30 it does not."""
    own = ("ranked margin", IN_ORDER, 2.81, 32.0, True)
    for together, beside in ((30.5, True), (30.3, False)):
        said = told(("tokens per pass", PLAIN, 2.95, together, True), own)[1]
        assert ("stands beside in order" not in said) == beside


def test_each_is_compared_at_the_most_tokens_that_plain_has_too() -> None:
    _, said = told(PLAIN_CURVE[0], ("ranked margin", IN_ORDER, 2.5, 1.0, True), ("ranked margin", IN_ORDER, 9, 8, True))
    assert said.startswith("in order at one token a pass: 2.500 bits per character (margin), 0.250")


def test_without_plain_there_is_no_verdict() -> None:
    title, said = told(("ranked margin", IN_ORDER, 2.81, 32.0, True))
    assert title == "in order: 2.81 bits per character at 32 tokens a pass (margin)"
    assert said.endswith("; no plain setting with as many tokens a pass stands beside in order")


def test_plain_alone_says_its_two_ends() -> None:
    title, said = told(*PLAIN_CURVE)
    assert said == (
        "plain: 2.75 bits per character at one token a pass (margin) and 3.27 bits per character at 32 tokens a pass "
        "(margin)"
    )
    assert title == said
    assert told(PLAIN_CURVE[0])[1] == "plain: 2.75 bits per character at one token a pass (margin)"
    assert told()[1] == "no sampler was scored"


def test_few_texts_win_nothing() -> None:
    _, said = told(*PLAIN_CURVE, ("ranked margin", IN_ORDER, 1.0, 32.0, True), n=4)
    assert said.startswith("no setting of in order is told apart")
    assert said.endswith("; 4 texts are too few for a verdict")


def test_the_difference_is_paired() -> None:
    """Texts differ by 0.3 bits and more, settings on the same text by nothing: no error is left."""
    records = [{"nats": {"exact_nll": [each + add for each in COMMON]}, "tokens": [1] * N} for add in (0.0, 0.5)]
    less = curve.difference(records[1], records[0], N)
    assert less == (pytest.approx(0.5 / math.log(2)), pytest.approx(0.0, abs=1e-9), N)
