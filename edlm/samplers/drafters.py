"""Drafts of the next tokens of a text, which a causal network verifies: by a denoiser, by its own masks, by counts.

Whatever drafts, texts have the law of the network that verifies (`samplers.ahead`). What differs is how many drafts
that accepts, and what a draft costs.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from edlm import contracts
from edlm.contracts import Denoiser
from edlm.declaration import sequence, stage
from edlm.models import autoregressive
from edlm.models.counts import Counts
from edlm.nn import drafting, folding
from edlm.nn.attention import Cache
from edlm.nn.networks import Transformer
from edlm.process import arguments
from edlm.samplers import kernel
from edlm.samplers.speculative import Propose
from edlm.samplers.stages import Law
from edlm.samplers.workspace import Texts

_KEPT = 1 << 24  # numbers of a table of laws
Pad = Callable[[int], int]  # of a number of positions, as an execution mode wants it


def _as_many(count: int) -> int:
    return count


class Manner(NamedTuple):
    """The way in which a denoiser drafts; the law of a text does not depend on it.

    ahead: tokens that are drafted at once. context: tokens that the denoiser reads to draft, the drafts included; None:
    the whole text. anew: whether the tokens after a refused draft are drafted again, or kept and verified once more.
    """

    ahead: int = 4
    context: int | None = 32
    anew: bool = True


class Drafter(Protocol):
    """A writer of the next tokens of texts, for a network to verify.

    ahead: how many at once. law: of a draft at its state. keeps: whether a draft stays one of the same law when a token
    before it changes.
    """

    ahead: int
    law: Law
    keeps: bool

    def width(self, l: int) -> int:
        """Count the tokens that a network reads for the drafts of a text of l."""
        ...

    def draft(self, texts: Texts, rows: Tensor, cache: Cache) -> None:
        """Write the next tokens of some rows (r,); cache: of the verifying network, of these rows if none is kept."""
        ...


class OfDenoiser:
    """Drafts that a denoiser draws independently, from as many tokens as its context has."""

    keeps = True

    def __init__(self, denoiser: Denoiser, manner: Manner, temperature: float = 1.0, nucleus: float = 1.0) -> None:
        self.denoiser, self.ahead, self.context = denoiser, manner.ahead, manner.context
        self.pad: Pad = _as_many
        self.law = Law(denoiser, temperature, nucleus)
        propose = stage("hidden, proposal_noise -> proposed, log_p_proposed", Propose(self.law))
        self.part: TensorDictModuleBase = sequence({"denoise": denoiser, "propose": propose})  # type: ignore[dict-item]

    def with_part(self, part: TensorDictModuleBase, pad: Pad) -> "OfDenoiser":
        """Return the same drafter with its part wrapped."""
        made = OfDenoiser(self.denoiser, Manner(self.ahead, self.context), self.law.temperature, self.law.nucleus)
        made.part, made.pad = part, pad
        return made

    def width(self, l: int) -> int:
        """Count the tokens of the context."""
        return l if self.context is None else min(max(self.context, self.ahead), l)

    def draft(self, texts: Texts, rows: Tensor, cache: Cache) -> None:
        """Write the next tokens of some rows in one pass."""
        done, l, width = texts.done[rows], texts.length, self.width(texts.length)
        until = texts.until(rows, self.ahead)
        at, flat = texts.places(rows, (done + self.ahead - width).clamp(0, l - width), width)
        view = texts.known[flat]
        asked = texts.masks[flat] & (at >= done.unsqueeze(-1)) & (at < until.unsqueeze(-1))
        (own,) = torch.where(asked.flatten())
        if not len(own):  # given tokens alone
            return
        flat, known = flat.flatten()[own], (view != self.denoiser.mask_id).double().mean(1)
        given = {
            contracts.X_T: view,
            contracts.T: self.denoiser.schedule.inverse(known).clamp(0.0, 1.0),
            contracts.POSITIONS: kernel.padded(own, self.pad, view.numel()),
            contracts.PROPOSAL_NOISE: texts.uniforms[kernel.padded(flat, self.pad, 0)],
        }
        found = self.part(TensorDict(given))
        keys = contracts.HIDDEN, contracts.PROPOSED, contracts.LOG_P_PROPOSED
        texts.write(flat, *(found[key][: len(own)] for key in keys))
        texts.drafts[rows] += asked.any(1)


class OfMasks:
    """Drafts of the verifying network itself, by masks behind what it knows: see `nn.drafting`.

    The first draft is a draw of the network's own law. A network drafts well that was trained to, by
    `objectives.drafting`.
    """

    keeps = False

    def __init__(
        self, network: Transformer, mask_id: int, ahead: int = 4, temperature: float = 1.0, nucleus: float = 1.0
    ) -> None:
        arguments.require_whole("ahead", ahead)
        network = folding.fold_conditioning(network)
        self.network, self.mask_id, self.ahead = network, mask_id, ahead
        self.law = Law(autoregressive.Law(network, mask_id), temperature, nucleus)  # type: ignore[arg-type]
        self.propose = Propose(self.law)

    def width(self, l: int) -> int:
        """Count the last known token and the masks behind it."""
        return self.ahead

    def draft(self, texts: Texts, rows: Tensor, cache: Cache) -> None:
        """Write the next tokens of some rows in one pass beside the cache."""
        done, until = texts.done[rows], texts.until(rows, self.ahead)
        at, flat = texts.places(rows, done, self.ahead)
        asked = texts.masks[flat] & (at < until.unsqueeze(-1))
        (own,) = torch.where(asked.flatten())
        if not len(own):  # given tokens alone
            return
        last, start = texts.line[flat[:, :1] + (texts.bos - 1)], done + (texts.bos - 1)
        before = Cache(*(kept[:, :, :, : int(start.amax())] for kept in cache))
        states = drafting.after(self.network, last, self.ahead - 1, self.mask_id, start, before)
        flat, hidden = flat.flatten()[own], states.flatten(0, 1)[own]
        texts.write(flat, hidden, *self.propose(hidden, texts.uniforms[flat]))
        texts.drafts[rows] += asked.any(1)


class OfCounts:
    """Drafts of an n-gram model, one after the other, each given the drafts before it: no network is asked.

    Where the contexts and the vocabulary are few, all laws and states stand in tables.
    """

    keeps = False

    def __init__(self, counts: Counts, ahead: int = 4, temperature: float = 1.0, nucleus: float = 1.0) -> None:
        arguments.require_whole("ahead", ahead)
        arguments.require_kind("counts", counts, isinstance(counts, Counts), "models.counts.Counts of a text")
        self.counts, self.ahead = counts, ahead
        self.law = Law(counts, temperature, nucleus)
        self.laws, self.following = None, None
        if counts.num_states * counts.vocab_size <= _KEPT:
            every, ids = (torch.arange(n, device=counts.codes.device) for n in (counts.num_states, counts.vocab_size))
            self.laws = self._computed(every)
            self.following = torch.stack([counts.follow(every, token.expand_as(every)) for token in ids], dim=1)

    def width(self, l: int) -> int:
        """Count no token: nothing is read by a network."""
        return 0

    def draft(self, texts: Texts, rows: Tensor, cache: Cache) -> None:
        """Write the next tokens of some rows by the tokens before each."""
        done, until = texts.done[rows], texts.until(rows, self.ahead)
        at, flat = texts.places(rows, done, self.ahead)
        asked, given = texts.masks[flat] & (at < until.unsqueeze(-1)), texts.line[flat + texts.bos]
        uniforms, state = texts.uniforms[flat, 0], self._state(texts, rows, done)
        states, tokens, log_p = [], [], []
        for j in range(self.ahead):
            states.append(state)
            law, sums = self._laws(state)
            drawn = (sums <= uniforms[:, j, None] * sums[:, -1:]).sum(1)
            tokens.append(torch.where(asked[:, j], drawn, given[:, j]))
            log_p.append(law.gather(1, tokens[-1].unsqueeze(-1)).squeeze(-1))
            state = self._after(state, tokens[-1])
        own, written, log_p_own = (torch.stack(each, dim=1)[asked] for each in (states, tokens, log_p))
        texts.write(flat[asked], own.unsqueeze(-1), written, log_p_own)

    def _computed(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the law of a draft at states (n,) and its sums from the first id on: (n, v) each."""
        log_p = torch.cat([self.law(rows).log_softmax(-1) for (rows,) in self.law.tiles(states.unsqueeze(-1))])
        return log_p, log_p.double().exp().cumsum(-1)

    def _laws(self, states: Tensor) -> tuple[Tensor, Tensor]:
        if self.laws is None:
            return self._computed(states)
        log_p, sums = self.laws
        return log_p[states], sums[states]

    def _after(self, states: Tensor, tokens: Tensor) -> Tensor:
        return self.counts.follow(states, tokens) if self.following is None else self.following[states, tokens]

    def _state(self, texts: Texts, rows: Tensor, done: Tensor) -> Tensor:
        """Find the state of the n-gram model after what is known of some rows, (r,)."""
        before = torch.arange(1 - self.counts.order, 0, device=rows.device)
        place, first = done.unsqueeze(-1) + before, (rows * texts.size + texts.bos).unsqueeze(-1)
        tokens = texts.line[first + place.clamp(min=0)]
        state = torch.full_like(done, self.counts.nothing)
        for each, there in zip(tokens.unbind(1), (place >= 0).unbind(1), strict=True):
            state = torch.where(there, self._after(state, each), state)
        return state
