"""The needs of every picture: titles that fit, and numbers without powers of ten."""

import textwrap
from typing import Any


def wrapped(text: str, width: int) -> str:
    """Split a title into lines, none longer than so many characters, so that it leaves the legend its place."""
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def plain_numbers(axis: Any) -> None:
    """Write 0.1, 0.2, 0.5, 1 on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
