"""What a planted fault is."""

from typing import NamedTuple


class Fault(NamedTuple):
    """What goes wrong, where it is planted, and which test fails then.

    A fault is one replacement in one file, whose old text must be there exactly once.
    """

    name: str
    file: str
    old: str
    new: str
    caught_by: str
