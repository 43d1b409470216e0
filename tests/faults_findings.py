"""Faults of what sentences and pictures say: claims inside the error, picked winners, outliers, names that overlap."""

from fault import Fault

_CURVE, _FRONTIER, _VERDICTS, _STYLE = (
    f"tests/{name}::"
    for name in (
        "frontier/test_curve_findings.py",
        "frontier/test_findings.py",
        "evaluation/test_verdicts.py",
        "runs/test_plot_style.py",
    )
)

FAULTS = [
    Fault(
        "the best of many settings judged as if it were the only one",
        "evaluation/verdicts.py",
        "(2 * comparisons)",
        "2",
        f"{_VERDICTS}test_one_set_in_twenty_without_a_difference_is_told_apart_however_many_are_compared",
    ),
    Fault(
        "a verdict from a few texts",
        "evaluation/verdicts.py",
        "if difference.n < FEWEST or",
        "if",
        f"{_CURVE}test_few_texts_win_nothing",
    ),
    Fault(
        "a win that may be a loss, of the likelihoods",
        "frontier/curve_findings.py",
        "if verdicts.told_apart(self.less, self.comparisons) else 0",
        "if self.less.n else 0",
        f"{_CURVE}test_a_tie_is_no_win",
    ),
    Fault(
        "a frontier won by duller text",
        "frontier/findings.py",
        "faster and not _is_duller(entropy)",
        "faster",
        f"{_FRONTIER}test_duller_text_wins_nothing_and_livelier_text_says_so",
    ),
    Fault(
        "better than all of plain, where some replicates of plain are as good",
        "frontier/findings.py",
        "each.saved.inside <= _RARELY",
        "each.saved.inside <= 1.0",
        f"{_FRONTIER}test_better_than_all_of_plain_is_claimed_only_beyond_the_error",
    ),
    Fault(
        "an AR model's energy that wins under the AR model as its judge",
        "frontier/findings.py",
        "if not (judged_by_itself and",
        "if not (not judged_by_itself and",
        f"{_FRONTIER}test_a_judge_that_judges_itself_is_no_measure_of_what_is_made_with_it",
    ),
    Fault(
        "names beside lines that lie on each other",
        "runs/plot_labels.py",
        "found[number] = level + offset",
        "found[number] = places[number]",
        f"{_STYLE}test_labels_keep_apart_and_in_order_and_move_no_more_than_they_must",
    ),
    Fault(
        "an axis that one outlier flattens",
        "runs/plots.py",
        "ascending[number] > fence and apart > gap",
        "ascending[number] > fence and apart < gap",
        f"{_STYLE}test_an_outlier_does_not_make_the_axis",
    ),
]
