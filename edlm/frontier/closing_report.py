"""The end of an energy's training on paper: a table and what it says, texts of each way, a picture, what to do next."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edlm.evaluation import verdicts
from edlm.frontier import curve, curve_findings, curve_plot
from edlm.frontier.closing import ENERGY, IN_ORDER, ONE, PLAIN, Closing, Way
from edlm.likelihood.estimates import Estimate
from edlm.runs import files, processes, tables

PICTURE, TABLE = "report.png", "report.md"
_HEAD = ("", "bits/character", "judged bits/character", "passes/text", "seconds/text")
_SHOWN = 2  # texts of each way
_WIDTH, _INDENT = 112, "    "
_LABELS = {"ranked margin": "surest first"}
_OWN_TEXT = "python -m pydoc argparse > my.txt && "


def rows(closing: Closing) -> list[tuple[str, ...]]:
    """Lay out the table, its head first and the held-out text last."""
    body = [
        (
            each.name if each.name == ONE else f"{each.name}, {each.point.together:.3g} a pass",
            f"{'' if each.point.is_exact else '<= '}{_amount(each.point.bits)}",
            _amount(each.judged),
            f"{each.passes.mean:.1f}",
            f"{each.seconds:.3f}",
        )
        for each in closing.ways
    ]
    return [_HEAD, *body, ("held-out text", "-", _amount(closing.held_out), "-", "-")]


def remark(closing: Closing, settings: Mapping[str, Any]) -> str:
    """Say what the figures are of."""
    texts, drawn = closing.texts, len(closing.ways[0].texts)
    left_out = "".join(f"; {name} is left out: {reason}" for name, reason in closing.left_out.items())
    return (
        f"bits of {len(texts.excerpts)} texts of the test split ({texts.characters:,} characters), exact, or a bound "
        f"where <= stands; a law of single tokens has {closing.single:.3f}; judged: {drawn} texts drawn in each way, "
        f"by counts of 5 characters in the training text; a pass reads a text once; "
        f"{settings['samples']['num_particles']} candidates of the energy; seed "
        f"{settings['samples']['seed']}; ± is one standard error over texts{left_out}"
    )


def sentences(closing: Closing) -> list[str]:
    """Say what was found: of the energy, of writing in order, and of what many tokens a pass cost."""
    by_name = {each.name: each for each in closing.ways}
    said = [_against(closing, by_name[name], by_name[PLAIN]) for name in (ENERGY, IN_ORDER) if name in by_name]
    best = IN_ORDER if IN_ORDER in by_name else PLAIN
    return [*said, _against(closing, by_name[best], by_name[ONE])]


def next_commands(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give three commands with what each is for."""
    denoiser, energy = settings["denoiser"], settings["output_dir"]
    return [
        (
            "go on from words of yours, in order",
            f"edlm run generate denoiser={denoiser} energy=chain_rule selection=speculative num_steps=8 window=[0,1] "
            "prompt='the value of'",
        ),
        (
            "the same on your own text (here a page of Python's)",
            f"{_OWN_TEXT}edlm run edlm_nce corpus._component_=edlm.corpora.text_files corpus.path=my.txt "
            f"corpus.normalised=true denoiser=runs/mine/denoiser output_dir=runs/mine/energy",
        ),
        (
            "every likelihood on held-out text",
            f"edlm run evaluate denoiser={denoiser} energy={energy} num_steps=8 window=[0,1]",
        ),
    ]


def conclude(folder: Path, closing: Closing, settings: Mapping[str, Any]) -> None:
    """Write the table, the picture and all texts to a run's folder, and print them with what to do next."""
    _write(folder, closing, settings)
    _show(folder, closing, settings)


def _write(folder: Path, closing: Closing, settings: Mapping[str, Any]) -> None:
    said, noted = sentences(closing), remark(closing, settings)
    files.write_text(folder / TABLE, "\n\n".join([tables.markdown(rows(closing)), *said, noted]) + "\n")
    if processes.is_first():
        found = curve_findings.comparisons(closing.points, closing.records, closing.texts.characters)
        title = curve_findings.title(closing.points, found, _LABELS)
        curve_plot.draw(folder / PICTURE, closing.points, [], _LABELS, title, noted)
    seed = settings["samples"]["seed"]
    texts = [
        {"row": row, "seed": seed, "way": each.name, "text": text}
        for each in closing.ways
        for row, text in enumerate(each.texts)
    ]
    files.write_jsonl(folder / "samples.jsonl", texts)


def _show(folder: Path, closing: Closing, settings: Mapping[str, Any]) -> None:
    for each in closing.ways:
        print(f"\n  {each.name}:")
        for text in each.texts[:_SHOWN]:
            print(textwrap.fill(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT))
    print(f"\n{tables.columns(rows(closing))}\n")
    for said in (remark(closing, settings), *sentences(closing)):
        print(tables.sentence(said))
    print(f"\n  the picture: {folder / PICTURE}; the table: {folder / TABLE}; all texts: {folder / 'samples.jsonl'}")
    print("\n  what next:")
    for purpose, command in next_commands(settings):
        print(f"\n  # {purpose}\n  {command}")


def report(closing: Closing) -> dict[str, Any]:
    """Give all figures as plain values."""
    return {
        each.name: {
            "bits_per_character": each.point.bits._asdict(),
            "figure": each.point.figure,
            "judged": each.judged._asdict(),
            "passes": each.passes._asdict(),
            "seconds": each.seconds,
        }
        for each in closing.ways
    }


def _against(closing: Closing, own: Way, other: Way) -> str:
    """Compare two ways on the same texts: the difference is paired, and is told only where its error allows."""
    records = closing.records
    less = curve.difference(records[other.point.name], records[own.point.name], closing.texts.characters)
    amount = tables.amount(abs(less.mean), less.standard_error)
    passes = f"in {own.passes.mean:.1f} passes instead of {other.passes.mean:.1f}"
    if few := verdicts.too_few(less.n):
        return f"{own.name} beside {other.name}: {few}"
    if verdicts.told_apart(less):
        said = f"{amount} bits a character {'fewer' if less.mean > 0.0 else 'more'} than {other.name}"
    else:
        said = f"not told apart from {other.name} ({_signed(less)} bits a character)"
    return f"{own.name}: {said}, {passes}; {_judged(own, other)}"


def _judged(own: Way, other: Way) -> str:
    """Compare what the judge says of the texts of two ways; they are other texts, so nothing is paired."""
    error = math.hypot(own.judged.standard_error, other.judged.standard_error)
    worse = Estimate(own.judged.mean - other.judged.mean, error, min(own.judged.n, other.judged.n))
    if not verdicts.told_apart(worse):
        return "the judge does not tell their texts apart"
    return f"its texts are judged {tables.amount(abs(worse.mean), error)} {'worse' if worse.mean > 0.0 else 'better'}"


def _signed(less: Estimate) -> str:
    return f"{-less.mean:+.3f} ± {less.standard_error:.3f}"


def _amount(value: Estimate) -> str:
    return f"{value.mean:.3f} ± {value.standard_error:.3f}"
