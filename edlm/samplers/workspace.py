"""The workspace of texts that are written in rounds of drafts, which a causal network verifies."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Texts:
    """The rows of a step while they are written: the workspace of one call, of `size` flat places a row.

    length: tokens of a text. bos: how many tokens stand in front of it. known: what is final, masks elsewhere. line:
    what the network reads, the bos, if there is one, and the tokens with guesses. masks: what is to be drawn. uniforms,
    hidden, proposed, log_p: of drafts. done, drafted, end (b,): how many tokens are final, up to where there are
    drafts, and where a row is finished. drafts, rounds, read (b,): passes of a network to draft, rounds, and tokens
    that the network has read. no_law (b,): how often there was none.
    """

    length: int
    size: int
    bos: int
    known: Tensor
    line: Tensor
    masks: Tensor
    uniforms: Tensor
    hidden: Tensor
    proposed: Tensor
    log_p: Tensor
    done: Tensor
    drafted: Tensor
    end: Tensor
    drafts: Tensor
    rounds: Tensor
    read: Tensor
    no_law: Tensor

    def places(self, rows: Tensor, first: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """List so many places of some rows from the first on, in the row and flat: (r, count) each."""
        at = first.unsqueeze(-1) + torch.arange(count, device=rows.device)
        return at, rows.unsqueeze(-1) * self.size + at

    def until(self, rows: Tensor, ahead: int) -> Tensor:
        """Mark the next tokens of some rows as drafted, and return up to where, (r,)."""
        self.drafted[rows] = until = torch.minimum(self.done[rows] + ahead, self.end[rows])
        return until

    def write(self, flat: Tensor, hidden: Tensor, proposed: Tensor, log_p: Tensor) -> None:
        """Write drafts (n,) at flat places (n,), and the states (n, h) of their law."""
        if not self.hidden.numel():
            self.hidden = hidden.new_zeros(len(self.proposed), hidden.shape[-1])
        self.hidden[flat], self.proposed[flat], self.log_p[flat] = hidden, proposed, log_p.double()
        self.line[flat + self.bos] = proposed
