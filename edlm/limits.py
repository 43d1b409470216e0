"""Limits on what a file, a corpus or a config may cost, known before memory is taken, and what raises them all.

`EDLM_LIMITS=10`, or `limits=10` on the command line of a recipe, multiplies every limit of this table by ten.
"""

import math
import os
from pathlib import Path

FACTOR = "EDLM_LIMITS"  # the environment variable

PARAMETERS = 400_000_000  # of a network that is built: 1.6 GB in float32
LAYERS = 1_000
LENGTH = 1 << 17  # the longest text of a network
TEXT_TOKENS = 1 << 24  # of texts that are in memory at once, such as a batch
SOURCE_SIZE = 1 << 12  # symbols or hidden states of a random source, whose tables hold its square
SIZE = 1 << 24  # of any other size that the config of a large model names, such as a width
TENSORS = 20_000  # in one file of weights or of training state
HEADER_BYTES = 16 << 20  # of a safetensors file: names and shapes
JSON_BYTES = 8 << 20
TOKENIZER_BYTES = 64 << 20  # of a tokenizer.json, of which the largest published have half
IDS = 1 << 24  # of a vocabulary, sixteen times the largest published; a network has a row for every id
PICKLE_BYTES = 6 << 20  # of a file of torch.save, beside its tensors
PICKLE_STEPS = 1_000_000  # by which what stands beside its tensors is put together
GGUF_ENTRIES = 1 << 21  # of one list of a GGUF file; the largest published vocabularies have a fourth, with merges
CORPUS_BYTES = 256 << 20  # of a text that is read whole
DOCUMENT_BYTES = 128 << 20  # of one document of a data set
RECORD_BYTES = 32 << 20  # of one record of JSON or CSV, which takes many times its size
INFLATION = 100  # times its own size that a file may unpack to, if that is more than the next
UNPACKED_BYTES = 16 << 20  # that any file may unpack to


class TooLarge(ValueError):
    """More than a limit allows; the message says what raises it."""


def factor() -> float:
    """Read what all limits are multiplied by, 1 unless it is set. Raises ValueError for what is no number above 0."""
    given = os.environ.get(FACTOR, "1")
    try:
        found = float(given)
    except ValueError:
        found = math.nan
    if not found > 0:
        raise ValueError(f"{FACTOR} = {given!r} must be a number above 0, which multiplies every limit")
    return found


def require(where: str | Path, what: str, found: int, limit: int) -> None:
    """Raise TooLarge, naming both numbers and what raises the limit, if more is found than the limit allows."""
    most = allowed(limit)
    if found > most:
        raise TooLarge(
            f"{where}: {what} = {found} must be at most {most:.0f}; {FACTOR}={-(-found // limit)} (limits= of a "
            "recipe) allows it"
        )


def require_texts(key: str, count: int, length: int, each_of: int = 1) -> None:
    """Raise TooLarge, naming the key, for more texts of this length than may be in memory at once.

    each_of: how many texts of a batch have so many each.
    """
    of = "" if each_of == 1 else f" for each of {each_of}"
    require(f"{key} = {count} texts of {length} tokens{of}", "tokens", count * length * each_of, TEXT_TOKENS)


def allowed(limit: int) -> float:
    """Say how much a limit allows, raised or not."""
    return limit * factor()


def require_inflation(where: str | Path, unpacked: int, stored: int) -> None:
    """Raise TooLarge if so many bytes in memory, or more, are too many for those that are stored."""
    if unpacked > allowed(UNPACKED_BYTES):
        times = -(-unpacked // max(stored, 1))
        require(f"{where}: {stored:,} bytes unpack to {unpacked:,} or more", "times their size", times, INFLATION)


def require_small(file: Path, limit: int) -> None:
    """Raise TooLarge for a file of more bytes than the limit, ValueError for what is no regular file.

    A file that is missing is let by.
    """
    if file.exists() and not file.is_file():
        raise ValueError(f"{file}: no regular file")
    if file.is_file():
        require(file, "bytes", file.stat().st_size, limit)
