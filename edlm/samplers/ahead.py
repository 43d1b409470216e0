"""A text from left to right by the law of a causal network, in fewer of its passes than there are tokens.

The law is `q(x^S) = prod_i p_AR(x_i | x_<i)`, to which drafts tend that are weighed by a residual energy with the
visible tokens carried over. The denoiser drafts the next few tokens at once, `a_i ~ p_i`, from what is known and masks
behind it. One pass of the causal network over them gives its law at each, given the drafts before it, and

    x_i = a_i if u_i p_i(a_i) < p_AR(a_i | x_<i), else drawn by u'_i from (p_AR - p_i)_+, normalised,

so a token has the law `p_AR(x_i | x_<i)` whatever the denoiser is (Leviathan et al. 2023, arXiv 2211.17192). What is
final stays in the network's cache, so a pass reads the drafts and the last token before them. It also gives the law of
the token after the drafts, which is drawn at once where all of them stay. A position keeps its uniforms until it is
final. None of them has then decided anything before it, so drafts may be drawn anew with the same ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from edlm import contracts
from edlm.contracts import Causal, Denoiser
from edlm.declaration import sequence, stage
from edlm.models import autoregressive
from edlm.nn.attention import Cache
from edlm.process import absorbing
from edlm.samplers import kernel, passes
from edlm.samplers.kernel import Looped
from edlm.samplers.speculative import Accept, Propose, Resample
from edlm.samplers.stages import Law


class Manner(NamedTuple):
    """The way in which tokens are drafted; the law of a text does not depend on it.

    ahead: tokens that are drafted at once. context: tokens that the denoiser reads for it, the drafts among them; None:
    the whole text. anew: whether what follows a refused draft is drafted again before the next pass, or kept and
    verified once more.
    """

    ahead: int = 4
    context: int | None = 32
    anew: bool = True


def step(
    denoiser: Denoiser,
    network: Causal,
    bos_id: int | None,
    manner: Manner,
    temperature: float = 1.0,
    nucleus: float = 1.0,
) -> "Ahead":
    """Build the step that draws from `prod_i p_AR(x_i | x_<i)`, i every mask up to the last of S, and keeps S.

    temperature, nucleus: of both laws, token by token. The host waits in every round for what was accepted.
    """
    own = Law(denoiser, temperature, nucleus)
    wanted = Law(autoregressive.Law(network, denoiser.mask_id), temperature, nucleus)  # type: ignore[arg-type]
    propose = stage("hidden, proposal_noise -> proposed, log_p_proposed", Propose(own))
    parts = (
        {"denoise": denoiser, "propose": propose},
        {"verify": stage("in_order, proposed, log_p_proposed, proposal_noise -> accepted, no_law", Accept(wanted))},
        {"resample": stage("hidden, in_order, proposal_noise -> proposed", Resample(own, wanted))},
        {"follow": stage("in_order, proposal_noise -> proposed, log_p_proposed", Propose(wanted))},
    )
    return Ahead(denoiser, network, bos_id, manner, tuple(map(sequence, parts)))  # type: ignore[arg-type]


@dataclass
class _Texts:
    """The rows of a step while they are written, each with room behind its l tokens: the workspace of one call.

    known: what is final, masks elsewhere. line: what the network reads, o = 1 bos, if there is one, and the tokens with
    guesses. masks: what is to be drawn. done, drafted, end (b,): how many tokens are final, up to where there are
    drafts, and where a row is finished. uniforms, hidden, proposed, log_p: of flat positions. read (b, 4): as
    `passes.KEYS`. no_law (b,).
    """

    known: Tensor
    line: Tensor
    masks: Tensor
    done: Tensor
    drafted: Tensor
    end: Tensor
    uniforms: Tensor
    hidden: Tensor
    proposed: Tensor
    log_p: Tensor
    read: Tensor
    no_law: Tensor

    def count(self, rows: Tensor, key: str, number: Tensor | int) -> None:
        """Add to what was read for some rows."""
        self.read[rows, passes.KEYS.index(key)] += number


class Ahead(Looped):
    """The step: in rounds, for the rows that are not finished, the denoiser drafts and the causal network verifies."""

    repeated = (0, 1, 2, 3)

    def __init__(
        self,
        denoiser: Denoiser,
        network: Causal,
        bos_id: int | None,
        manner: Manner,
        parts: tuple[TensorDictModuleBase, ...],
        pad: Callable[[int], int] = lambda count: count,
    ) -> None:
        super().__init__()
        self.draft, self.verify, self.resample, self.follow = self.parts = parts
        self.denoiser, self.network, self.bos_id, self.manner, self.pad = denoiser, network, bos_id, manner, pad
        self.bos = 0 if bos_id is None else 1
        self.in_keys = [contracts.X_T, contracts.POSITIONS, contracts.REVEAL, contracts.PROPOSAL_NOISE]
        self.out_keys = [contracts.X_S, contracts.LOG_RATIO, *passes.KEYS]

    def with_parts(
        self, wrap: Callable[[TensorDictModuleBase], TensorDictModuleBase], pad: Callable[[int], int]
    ) -> "Ahead":
        """Wrap the parts of the step; the reading of the cache, which grows with the text, is none of them."""
        parts = tuple(wrap(part) for part in self.parts)
        return Ahead(self.denoiser, self.network, self.bos_id, self.manner, parts, pad)

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Take the step. Raises ValueError for a text that the network is too short for, or cannot begin."""
        x_t, reveal = tensordict[contracts.X_T], tensordict[contracts.REVEAL]
        texts = self._texts(tensordict)
        (rows,) = torch.where(texts.end > 0)
        cache = self._read_known(texts, rows)
        while len(rows):
            self._draft(texts, rows if self.manner.anew else rows[texts.drafted[rows] <= texts.done[rows]])
            self._round(texts, rows, cache)
            going_on = texts.done[rows] < texts.end[rows]
            if not bool(going_on.all()):
                rows, cache = rows[going_on], Cache(*(kept[:, going_on] for kept in cache))
        x_s = absorbing.reveal(x_t, texts.known[:, : x_t.shape[1]], reveal)
        ratio = torch.where(texts.no_law > 0, torch.nan, 0.0).unsqueeze(-1)  # for `finite`: nothing is weighed here
        counted = dict(zip(passes.KEYS, texts.read.unbind(1), strict=True))
        return TensorDict({contracts.X_S: x_s, contracts.LOG_RATIO: ratio, **counted})

    def _texts(self, tensordict: TensorDict) -> _Texts:
        x_t, reveal, noise = (tensordict[key] for key in (contracts.X_T, contracts.REVEAL, contracts.PROPOSAL_NOISE))
        (b, l), masks = x_t.shape, x_t == self.denoiser.mask_id
        if l > self.network.max_length:
            raise ValueError(f"length = {l} must be at most {self.network.max_length}, that of the AR network")
        if self.bos_id is None and bool((masks[:, 0] & reveal.any(1)).any()):
            raise ValueError("without a bos_id the first token has no law of its own: give it in the prompt")
        places, room = torch.arange(1, l + 1, device=x_t.device), self.manner.ahead + 1
        done = torch.where(masks, places, l + 1).amin(1) - 1
        spread = noise.new_zeros(b * l + 1, noise.shape[1]).index_copy(0, tensordict[contracts.POSITIONS], noise)
        flat = x_t.new_zeros(b * (l + room))
        return _Texts(
            known=F.pad(x_t, (0, room)),
            line=F.pad(torch.where(masks, 0, x_t), (self.bos, room), value=self.bos_id or 0),
            masks=F.pad(masks, (0, room)),
            done=done,
            drafted=done.clone(),
            end=torch.where(reveal, places, 0).amax(1),
            uniforms=F.pad(spread[:-1].view(b, l, -1), (0, 0, 0, room)).flatten(0, 1),
            hidden=noise.new_zeros(0),
            proposed=flat,
            log_p=flat.double(),
            read=torch.zeros(b, len(passes.KEYS), dtype=torch.int64, device=x_t.device),
            no_law=torch.zeros(b, dtype=torch.int64, device=x_t.device),
        )

    def _read_known(self, texts: _Texts, rows: Tensor) -> Cache:
        """Read what stands before each row's first mask but for the last token of it, which a round reads."""
        cache: Cache = self.network.empty_cache(len(rows), texts.line.shape[1])
        count = texts.done[rows] + self.bos - 1
        most = int(count.amax()) if len(rows) else 0
        if most > 0:
            self._reading(cache, texts.line[rows, :most], torch.zeros_like(rows), 0)
        texts.count(rows, contracts.ENERGY_TOKENS, count)
        texts.count(rows, contracts.CALLS, (count > 0).long())
        return cache

    def _reading(self, cache: Cache, tokens: Tensor, start: Tensor, longest: int) -> Tensor:
        """Read tokens (r, m) from `start` (r,) on: states (r, m, h); the loop's own cache keeps them."""
        states, own = self.network.follow(tokens, start, Cache(*(kept[:, :, :, :longest] for kept in cache)))
        at = start.unsqueeze(-1) + torch.arange(tokens.shape[1], device=start.device)
        for kept, new in zip(cache, own, strict=True):
            kept.scatter_(3, at[None, :, None, :, None].expand_as(new), new)
        return states

    def _draft(self, texts: _Texts, rows: Tensor) -> None:
        """Draft the next tokens of some rows, from the text up to them, as long as the context is."""
        l = texts.known.shape[1] - self.manner.ahead - 1
        ahead, done = min(self.manner.ahead, l), texts.done[rows]
        width = l if self.manner.context is None else min(max(self.manner.context, ahead), l)
        texts.drafted[rows] = until = torch.minimum(done + ahead, texts.end[rows])
        at = (done + ahead - width).clamp(0, l - width).unsqueeze(-1) + torch.arange(width, device=rows.device)
        view = texts.known[rows.unsqueeze(-1), at]
        asked = texts.masks[rows.unsqueeze(-1), at] & (at >= done.unsqueeze(-1)) & (at < until.unsqueeze(-1))
        own, flat = _flat(texts, rows, at, asked)
        if not len(own):  # given tokens alone
            return
        known = (view != self.denoiser.mask_id).double().mean(1)
        given = {
            contracts.X_T: view,
            contracts.T: self.denoiser.schedule.inverse(known).clamp(0.0, 1.0),
            contracts.POSITIONS: kernel.padded(own, self.pad, view.numel()),
            contracts.PROPOSAL_NOISE: texts.uniforms[kernel.padded(flat, self.pad, 0)],
        }
        found = self.draft(TensorDict(given))
        hidden, proposed, log_p = (
            found[key][: len(own)] for key in (contracts.HIDDEN, contracts.PROPOSED, contracts.LOG_P_PROPOSED)
        )
        if not texts.hidden.numel():
            texts.hidden = hidden.new_zeros(len(texts.proposed), hidden.shape[-1])
        texts.hidden[flat], texts.proposed[flat], texts.log_p[flat] = hidden, proposed, log_p.double()
        row, place = flat // texts.known.shape[1], flat % texts.known.shape[1]
        texts.line[row, place + self.bos] = proposed
        texts.no_law.index_add_(0, row, (~log_p.isfinite()).long())
        busy = asked.any(1).long()
        texts.count(rows, contracts.DENOISER_TOKENS, width * busy)
        texts.count(rows, contracts.CALLS, busy)

    def _round(self, texts: _Texts, rows: Tensor, cache: Cache) -> None:
        """Verify the drafts of some rows, put the first or all that are refused right, and draw what follows them."""
        done, drafted, end = texts.done[rows], texts.drafted[rows], texts.end[rows]
        count, width = drafted - done, torch.minimum(drafted + 1, end) - done
        most, longest = torch.stack([width.amax(), done.amax() + self.bos - 1]).tolist()
        at = done.unsqueeze(-1) + torch.arange(most, device=rows.device)
        guesses = texts.line[rows.unsqueeze(-1), at + self.bos]
        read = texts.line[rows.unsqueeze(-1), at + self.bos - 1]
        states = self._reading(cache, read, done + self.bos - 1, longest).flatten(0, 1)
        own, flat = _flat(texts, rows, at, texts.masks[rows.unsqueeze(-1), at] & (at < drafted.unsqueeze(-1)))
        written, refused = self._verified(texts, states, own, flat, guesses)
        changed = refused if self.manner.anew else written != guesses
        stay = torch.minimum((changed.long().cumsum(1) == 0).sum(1), count)
        texts.line[rows.unsqueeze(-1), at + self.bos] = written
        (after,) = torch.where((stay == count) & (drafted < end) & texts.masks[rows, drafted])
        self._follow(texts, states[after * most + count[after]], rows[after], drafted[after])
        texts.done[rows] = final = done + torch.minimum(stay + 1, width)
        kept = texts.line[rows.unsqueeze(-1), at + self.bos]
        texts.known[rows.unsqueeze(-1), at] = torch.where(
            at < final.unsqueeze(-1), kept, texts.known[rows.unsqueeze(-1), at]
        )
        texts.count(rows, contracts.ENERGY_TOKENS, width)
        texts.count(rows, contracts.CALLS, 1)
        texts.count(rows, contracts.ROUNDS, 1)

    def _verified(
        self, texts: _Texts, states: Tensor, own: Tensor, flat: Tensor, guesses: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What should stand in the places (r, m) of guesses, given these, and which draft is refused, bool (r, m)."""
        written, refused = guesses.flatten().clone(), torch.zeros_like(guesses, dtype=torch.bool)
        if not len(own):
            return written.view_as(guesses), refused
        number = torch.arange(len(own), device=own.device)
        padded = kernel.padded(number, self.pad, 0)
        given = {
            contracts.IN_ORDER: states[own[padded]],
            contracts.PROPOSED: texts.proposed[flat[padded]],
            contracts.LOG_P_PROPOSED: texts.log_p[flat[padded]],
            contracts.PROPOSAL_NOISE: texts.uniforms[flat[padded]],
        }
        found = self.verify(TensorDict(given))
        texts.no_law.index_add_(0, flat // texts.known.shape[1], found[contracts.NO_LAW][: len(own)].long())
        written[own] = texts.proposed[flat]
        refused.view(-1)[own] = ~found[contracts.ACCEPTED][: len(own)]
        if self.manner.anew:
            refused &= refused.long().cumsum(1) == 1
        (wrong,) = torch.where(refused.flatten()[own])
        if len(wrong):
            some = kernel.padded(wrong, self.pad, 0)
            asked = {
                contracts.HIDDEN: texts.hidden[flat[some]],
                contracts.IN_ORDER: states[own[some]],
                contracts.PROPOSAL_NOISE: texts.uniforms[flat[some]],
            }
            written[own[wrong]] = self.resample(TensorDict(asked))[contracts.PROPOSED][: len(wrong)]
        return written.view_as(guesses), refused

    def _follow(self, texts: _Texts, states: Tensor, rows: Tensor, places: Tensor) -> None:
        """Draw the tokens after drafts that all stay from the network's own law: nothing was drafted there."""
        if not len(rows):
            return
        flat, some = rows * texts.known.shape[1] + places, kernel.padded(torch.arange(len(rows)), self.pad, 0)
        given = {contracts.IN_ORDER: states[some], contracts.PROPOSAL_NOISE: texts.uniforms[flat[some]]}
        found = self.follow(TensorDict(given))
        texts.line[rows, places + self.bos] = found[contracts.PROPOSED][: len(rows)]
        texts.no_law.index_add_(0, rows, (~found[contracts.LOG_P_PROPOSED][: len(rows)].isfinite()).long())


def _flat(texts: _Texts, rows: Tensor, at: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The wanted places among those (r, m) of some rows, and their flat positions in all rows: (n,) each."""
    (own,) = torch.where(wanted.flatten())
    return own, (rows.unsqueeze(-1) * texts.known.shape[1] + at).flatten()[own]
