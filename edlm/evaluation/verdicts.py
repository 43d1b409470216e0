"""Whether a difference is more than its error, and the sentence that says what an evaluation has found."""

import math
from collections.abc import Sequence
from statistics import NormalDist

from edlm.evaluation import samples
from edlm.evaluation.figures import Figure
from edlm.evaluation.samples import Row
from edlm.likelihood.estimates import Estimate
from edlm.runs import tables

FEWEST = 8  # texts of which an error is known well enough for a verdict
_ERROR_RATE = 0.05  # that any of several comparisons is called a difference where there is none


def told_apart(difference: Estimate, comparisons: int = 1) -> bool:
    """Check whether a difference is more than its error leaves open.

    Args:
        difference: The mean over n texts, with its standard error.
        comparisons: From how many differences this one was picked. The more there were, the larger it must be
            (Bonferroni), so that of all of them one in 20 sets is called a difference where there is none.

    Returns:
        Whether it is past that quantile of Student's t. Never with fewer than `FEWEST` texts, or an error that is no
        number.
    """
    if difference.n < FEWEST or not math.isfinite(difference.mean) or not difference.standard_error >= 0.0:
        return False
    return abs(difference.mean) > _quantile(difference.n - 1, comparisons) * difference.standard_error


def too_few(n: int) -> str:
    """Say that so many texts tell nothing apart; an empty text if they may."""
    return f"{n} texts are too few for a verdict" if n < FEWEST else ""


def of_figures(figures: Sequence[Figure], unit: str) -> str:
    """Say in one sentence what the bounds of one set of texts have found: which model is under plain, or that none is.

    Args:
        figures: Those of one set of texts, of all models.
        unit: What a token is: `character` or `token`.

    Returns:
        The sentence. An empty text if there is no figure of any likelihood.
    """
    known = [each for each in figures if not (each.is_paper_nelbo or each.is_tube)]
    if not known:
        return ""
    said = [_against_plain(known, unit) or _lowest(known)]
    said += [f"the AR model has {_bits(each)}" for each in known if each.model == "ar" and len(known) > 1]
    if few := too_few(known[0].value.n):
        said.append(few)
    return f"on {known[0].texts}: {'; '.join(said)}"


def of_samples(name: str, rows: Sequence[Row]) -> str:
    """Say in one sentence in what samples differ from held-out text by more than the error.

    Args:
        name: What was sampled, as a file.
        rows: Figures of the samples, with those of held-out text beside them.
    """
    wanted = [row for row in rows if row.name in (samples.PERPLEXITY, samples.ENTROPY)]
    said = [_beside(row, len(wanted)) for row in wanted]
    few = [note for row in wanted[:1] if (note := too_few(row.samples.n))]
    return f"the texts of {name}: {'; '.join([*said, *few])}" if said else ""


def _beside(row: Row, comparisons: int) -> str:
    """One figure of samples beside that of held-out text."""
    own, real = row.samples, row.held_out
    said = f"{row.name.partition(',')[0]} {tables.amount(own.mean, own.standard_error)}"
    if real is None:
        return f"{said}, with no held-out text to compare"
    error = math.hypot(own.standard_error, real.standard_error)
    difference = Estimate(own.mean - real.mean, error, min(own.n, real.n))
    beside = f"held-out text {tables.amount(real.mean, real.standard_error)}"
    if not told_apart(difference, comparisons):
        return f"{said}, not told apart from {beside}"
    return f"{said}, {'above' if difference.mean > 0.0 else 'below'} {beside}"


def _against_plain(known: Sequence[Figure], unit: str) -> str:
    """The best of what stands beside a plain bound of the same passes; empty if nothing does."""
    compared = [each for each in known if each.excess is not None]
    if not compared:
        return ""
    best = min(compared, key=_excess)
    excess = best.excess
    assert excess is not None
    difference = f"{tables.amount(abs(excess.mean), excess.standard_error)} nats per {unit}"
    if not told_apart(excess, len(compared)):
        return f"no correction is told apart from plain within the error; {best.model} has {_bits(best)}"
    if excess.mean > 0.0:
        return f"no correction is as good as plain: the best, {best.model}, loses {difference}, {_bits(best)}"
    return f"{best.model} is better than plain by {difference}, {_bits(best)}"


def _lowest(known: Sequence[Figure]) -> str:
    """The lowest figure by itself, where nothing says what plain has on the same passes."""
    own = [each for each in known if each.model != "ar"] or list(known)
    best = min(own, key=lambda each: each.value.mean)
    return (
        f"{best.model} has {_bits(best)}, with nothing beside it to compare"
        if len(own) == 1
        else (f"the lowest figure is {best.name} of {best.model}, {_bits(best)}")
    )


def _excess(figure: Figure) -> float:
    assert figure.excess is not None
    return figure.excess.mean


def _bits(figure: Figure) -> str:
    record = figure.record()
    if record["bits_per_character"] is None or record["bits_error"] is None:
        return f"{tables.amount(figure.value.mean, figure.value.standard_error)} nats per token"
    bound = "" if figure.name == "exact_nll" else "at most "
    return f"{bound}{tables.amount(record['bits_per_character'], record['bits_error'])} bits per character"


def _quantile(degrees: int, comparisons: int) -> float:
    """The two-sided quantile of Student's t, by Fisher's expansion in 1 / degrees; good to 0.001 from 7 on."""
    z = NormalDist().inv_cdf(1.0 - _ERROR_RATE / (2 * comparisons))
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
