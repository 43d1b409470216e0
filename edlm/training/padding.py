"""The rest of a block after its text: never read, learned as the end of the text, or read alone."""

from typing import Any

from torch import Tensor

from edlm.data.pieces import Blocks, Rows
from edlm.data.vocabulary import Vocabulary
from edlm.runs import settings

check = settings.choice("ignored", "learned", "read")


def vocabulary(padding: str, own: Vocabulary) -> Vocabulary:
    """Give the vocabulary that a run trains with; where padding is learned, the pad id is the end of a text.

    Raises ValueError for padding that is to be learned and a vocabulary without a pad id.
    """
    if padding != "learned":
        return own
    if own.pad_id is None:
        raise ValueError("padding = 'learned' needs a vocabulary with a pad id, for texts to end by")
    return own.ending_by_pad()


def of_network(padding: str, blocks: Blocks, pad_id: int | None) -> dict[str, Any]:
    """Give what a network is told of it: the id that it never reads; nothing where no block is filled up."""
    told = padding == "ignored" and pad_id is not None and any(_padded(rows, pad_id) for rows in blocks)
    return {"pad_id": pad_id} if told else {}


def notes(padding: str, blocks: Blocks, filler_id: int | None) -> dict[str, str]:
    """Say what a checkpoint keeps of it; nothing where no block is filled up, and of networks older than the choice."""
    padded = filler_id is not None and any(_padded(rows, filler_id) for rows in blocks)
    return {"padding": padding} if padded and padding != "read" else {}


def _padded(rows: Rows, filler_id: int) -> bool:
    """Tell whether any block of a split may be filled up; of rows that do not say so, that is taken to be."""
    if isinstance(rows, Tensor):
        return bool((rows == filler_id).any())
    return bool(getattr(rows, "padded", True))
