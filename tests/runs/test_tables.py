"""Rows become a table for the terminal, for Markdown and for programs."""

import csv
import io

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edlm.runs import tables

TEXT = st.text(st.characters(exclude_characters="\r"), min_size=1)
WORD = st.text(st.characters(exclude_categories=("C", "Z")), max_size=8)
CELL = st.none() | st.floats() | st.integers() | TEXT


@given(st.lists(st.tuples(WORD, WORD, WORD), min_size=1, max_size=5))
def test_columns_are_aligned(rows: list[tuple[str, str, str]]) -> None:
    """The first on its left, the others on their right, but for a remark."""
    one, two, three = (max(map(len, column)) for column in zip(*rows, strict=True))
    for line, (a, b, c) in zip(tables.columns(rows).split("\n"), rows, strict=True):
        assert line == f"  {a.ljust(one)}  {b.rjust(two)}  {c.rjust(three)}".rstrip()
    for line, (what, value, remark) in zip(tables.table(rows).split("\n"), rows, strict=True):
        assert line == f"  {what.ljust(one)}  {value.rjust(two)}  {remark}".rstrip()


@given(st.lists(st.tuples(TEXT, CELL, CELL), max_size=5))
def test_csv_is_read_back_as_what_was_written(rows: list[tuple[object, ...]]) -> None:
    read = csv.reader(io.StringIO(tables.to_csv(rows), newline=""))
    for found, row in zip(read, rows, strict=True):
        assert found == ["" if x is None else f"{x:.6g}" if isinstance(x, float) else str(x) for x in row]


@pytest.mark.parametrize(
    ("cell", "written"), [("plain", "plain"), ("", ""), ("a | b", "a \\| b"), ("||", "\\|\\|"), ("a\nb", "a b")]
)
def test_no_text_breaks_a_table_of_markdown(cell: str, written: str) -> None:
    assert tables.markdown([("name", "bits"), (cell, "2")]).split("\n") == [
        "| name | bits |",
        "|---|---|",
        f"| {written} | 2 |",
    ]


@given(st.floats(-1e3, 1e3), st.floats(1e-6, 10.0))
def test_a_number_is_written_to_the_second_digit_of_its_error(value: float, error: float) -> None:
    assume(error > 1e-8 * abs(value))
    shown, said = tables.amount(value, error).split(" ± ")
    assert abs(float(said) - error) <= 0.051 * error if error < 9.5 else abs(float(said) - error) <= 0.51
    assert abs(float(shown) - value) <= 0.051 * error + 1e-9 if error < 9.5 else True
    assert tables.amount(value, 0.0) == f"{value:.4g}"


def test_a_finding_fits_a_terminal_and_is_a_sentence() -> None:
    assert tables.sentence("in order: 2.81 bits") == "  In order: 2.81 bits."
    lines = tables.sentence("word " * 60).split("\n")
    assert len(lines) > 2
    assert all(line.startswith("  ") and len(line) <= 100 for line in lines)


def test_rows_of_several_lengths_are_no_table() -> None:
    for rows in ([("a", "b"), ("c",)], [("a",), ("b", "c")]):
        with pytest.raises(ValueError, match="zip"):
            tables.columns(rows)
