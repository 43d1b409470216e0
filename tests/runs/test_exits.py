"""What a command says of an error, and its exit status."""

import pytest

from edlm.runs import exits

LESS = "not enough memory for what was asked; smaller sizes or batches need less"
OURS = "this is a fault of edlm, or of a part of your own"


@pytest.mark.parametrize(
    ("error", "said", "status"),
    [
        (ValueError("steps = 0"), "steps = 0", 2),
        (OSError("no room"), "no room", 2),
        (ValueError("a" * 1000), "a" * 1000, 2),
        (ValueError(f"key = {'a' * 994}b{'c' * 500}"), f"key = {'a' * 494} ... {'c' * 500}", 2),
        (FileNotFoundError(2, "No such file", "a"), "[Errno 2] No such file: 'a'", 2),
        (MemoryError(), f"{LESS} (MemoryError: )", 2),
        (MemoryError("a\n  b"), f"{LESS} (MemoryError: a b)", 2),
        (RuntimeError("CUDA out of memory. Tried"), f"{LESS} (RuntimeError: CUDA out of memory. Tried)", 2),
        (RuntimeError("x: can't allocate memory"), f"{LESS} (RuntimeError: x: can't allocate memory)", 2),
        (RuntimeError("x: not enough memory"), f"{LESS} (RuntimeError: x: not enough memory)", 2),
        (KeyError("lost"), f"{OURS} (KeyError: 'lost'); EDLM_DEBUG=1 shows where", 70),
        (RuntimeError("a\nb " + "c" * 300), f"{OURS} (RuntimeError: a b {'c' * 296}); EDLM_DEBUG=1 shows where", 70),
    ],
)
def test_an_error_is_one_line_and_a_status(error: Exception, said: str, status: int) -> None:
    assert exits.explained(error) == (said, status)
