"""A text from left to right by the law of a causal network, in fewer of its passes than there are tokens.

The law is `q(x^S) = prod_i p_AR(x_i | x_<i)`. It is the limit of drafts that a residual energy weighs, with the visible
tokens carried over. A drafter writes the next few tokens, `a_i ~ p_i`, where p_i may depend on all tokens before it
(`samplers.drafters`). One pass of the causal network over the drafts gives its law at each, given the ones before it:

    x_i = a_i if u_i p_i(a_i) < p_AR(a_i | x_<i), else drawn by u'_i from (p_AR - p_i)_+, normalised,

so a token has the law `p_AR(x_i | x_<i)` for any drafter (Leviathan et al. 2023, arXiv 2211.17192). Final tokens stay
in the network's cache, so a pass reads only the drafts and the last token before them. The pass also gives the law of
the token after the drafts. If all drafts are accepted, this token is drawn at once. A position keeps its uniforms until
it is final. They decide nothing at earlier positions, so drafts may be drawn again with the same uniforms.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from edlm import contracts
from edlm.contracts import Causal
from edlm.declaration import sequence, stage
from edlm.models import autoregressive
from edlm.nn import folding
from edlm.nn.attention import Cache
from edlm.nn.networks import Transformer
from edlm.process import absorbing, arguments, categorical, finite
from edlm.samplers import kernel, passes
from edlm.samplers.drafters import Drafter, OfDenoiser
from edlm.samplers.kernel import Looped
from edlm.samplers.stages import Law
from edlm.samplers.workspace import Texts


def step(
    drafter: Drafter,
    network: Causal,
    mask_id: int,
    bos_id: int | None,
    anew: bool = True,
    temperature: float = 1.0,
    nucleus: float = 1.0,
) -> "Ahead":
    """Build the step that draws from `prod_i p_AR(x_i | x_<i)`, i every mask up to the last of S, and keeps S.

    anew: whether the tokens after a refused draft are drafted again, or kept and verified once more. temperature,
    nucleus: of the law, token by token. The host waits in every round for what was accepted.
    Raises ValueError for a drafter whose drafts cannot be kept.
    """
    if not anew and not drafter.keeps:
        raise ValueError("anew = False keeps drafts, and these drafts depend on the ones before them: give anew = True")
    wanted = Law(autoregressive.Law(network, mask_id), temperature, nucleus)  # type: ignore[arg-type]
    settle = sequence({"settle": stage(_SETTLE, _Settle(drafter.law, wanted))})
    return Ahead(drafter, network, mask_id, bos_id, anew, settle)


class Drafted(NamedTuple):
    """Texts (b, l), and what each took, (b,): rounds, calls of a network, and tokens read to draft and to verify."""

    tokens: Tensor
    rounds: Tensor
    calls: Tensor
    draft_tokens: Tensor
    ar_tokens: Tensor


@torch.no_grad()
def sample(
    network: Causal,
    drafter: Drafter,
    num_samples: int,
    length: int,
    mask_id: int,
    bos_id: int | None,
    *,
    seed: int = 0,
    prompt: Tensor | None = None,
    first_row: int = 0,
) -> Drafted:
    """Draw texts by the law of a causal network, as `autoregressive.sample` does, in rounds of drafts.

    Args:
        network: the causal network whose law texts have, at the drafter's temperature and nucleus.
        drafter: what writes the next tokens for it to verify.
        num_samples: b.
        length: l, at most what the network reads.
        mask_id: the id of the mask.
        bos_id: stands in front of a text; None: the prompt gives the first token.
        seed: of the noise. Other noise decides here than in `autoregressive.sample`, so texts differ and laws do not.
        prompt: tokens with masks, (l,) or (b, l), filled up with masks on the right.
        first_row: row i is sample number `first_row + i` of the seed, whatever else is in the batch.

    Returns:
        The texts and what they took.

    Raises:
        ValueError: for a length or a prompt that does not fit, a network that looks ahead or is read without a cache,
            and a drafter of another vocabulary.

    Example:
        >>> import edlm
        >>> sizes = dict(hidden_size=16, num_layers=1, num_heads=2, conditioning_size=0)
        >>> ar = edlm.networks.Transformer(5, max_length=8, causal=True, **sizes).eval()
        >>> sample(ar, drafters.OfMasks(ar, mask_id=4, ahead=3), 2, length=8, mask_id=4, bos_id=4).tokens.shape
        torch.Size([2, 8])
    """
    arguments.require_draw(num_samples, seed, first_row)
    if not isinstance(network, Causal):
        raise ValueError(f"a {type(network).__name__} is not read with a cache, as a Transformer is")
    autoregressive.check_ar(network, mask_id, bos_id)  # type: ignore[arg-type]
    network = folding.fold_conditioning(network) if isinstance(network, Transformer) else network
    known = int(network.get_submodule("head").out_features)  # type: ignore[arg-type, union-attr]
    if drafter.law.of.vocab_size != known:
        raise ValueError(f"the drafter knows {drafter.law.of.vocab_size} ids, and the network {known}")
    law, device = drafter.law, network.get_submodule("head").weight.device  # type: ignore[attr-defined, union-attr]
    x_t = absorbing.starting_tokens(num_samples, length, mask_id, law.of.vocab_size, prompt, device)  # type: ignore[arg-type]
    row = torch.arange(first_row, first_row + num_samples, device=device)  # type: ignore[arg-type]
    positions = torch.arange(x_t.numel(), device=x_t.device)
    drawn = kernel.draw(3, torch.tensor(seed, device=x_t.device), row, torch.zeros_like(row[0]), positions, length)
    state = {contracts.X_T: x_t, contracts.POSITIONS: positions, contracts.REVEAL: x_t == mask_id}
    made = step(drafter, network, mask_id, bos_id, temperature=law.temperature, nucleus=law.nucleus)
    kernel.check_evaluating(network)  # type: ignore[arg-type]
    out = made(TensorDict({**state, contracts.PROPOSAL_NOISE: drawn[contracts.PROPOSAL_NOISE]}))
    finite.require_rows(out[contracts.LOG_RATIO].squeeze(-1))
    counts = contracts.ROUNDS, contracts.CALLS, contracts.DENOISER_TOKENS, contracts.ENERGY_TOKENS
    return Drafted(out[contracts.X_S], *(out[key] for key in counts))


class _Settle(nn.Module):
    """The token of each place, (n,), whether it is the draft, and whether there was no law, bool (n,) each.

    in_order, hidden: states (n, h) of the network and of the drafter. Where nothing was drafted, which log_p says as
    +inf, p = 0 and the token is a draw of the network's law.
    """

    def __init__(self, proposal: Law, wanted: Law) -> None:
        super().__init__()
        self.proposal, self.wanted = proposal, wanted

    def forward(
        self, in_order: Tensor, hidden: Tensor, proposed: Tensor, log_p: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        tiles = self.wanted.tiles(in_order, hidden, proposed, log_p, uniforms)
        written, accepted, no_law = (torch.cat(parts) for parts in zip(*(self._tile(*t) for t in tiles), strict=True))
        return written, accepted, no_law

    def _tile(
        self, in_order: Tensor, hidden: Tensor, proposed: Tensor, log_p: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted, nothing = self.wanted(in_order), log_p == torch.inf
        log_q = categorical.token_log_prob(wanted, proposed.unsqueeze(-1)).squeeze(-1)
        accepted = uniforms[:, 1].log() + log_p < log_q
        no_law = log_q.isnan() | log_p.isnan()
        if torch.compiler.is_compiling():  # a graph has as many rows whatever is accepted
            again = self._again(wanted, hidden, nothing, uniforms)
            return torch.where(accepted, proposed, again), accepted, no_law
        (refused,) = torch.where(~accepted)
        again = self._again(*(each[refused] for each in (wanted, hidden, nothing, uniforms)))
        return proposed.index_copy(0, refused, again), accepted, no_law

    def _again(self, wanted: Tensor, hidden: Tensor, nothing: Tensor, uniforms: Tensor) -> Tensor:
        """Draw the tokens of refused drafts (n,); where nothing was drafted the law of a draft counts as zero."""
        proposal = self.proposal(hidden).masked_fill(nothing.unsqueeze(-1), torch.nan)
        return categorical.residual(wanted, proposal, uniforms[:, 2])


_SETTLE = "in_order, hidden, proposed, log_p_proposed, proposal_noise -> proposed, accepted, no_law"


class Ahead(Looped):
    """The step: in rounds, for rows that are not finished, tokens are drafted and the causal network verifies them."""

    repeated = (0, 1)

    def __init__(
        self,
        drafter: Drafter,
        network: Causal,
        mask_id: int,
        bos_id: int | None,
        anew: bool,
        settle: TensorDictModuleBase,
        pad: Callable[[int], int] = lambda count: count,
    ) -> None:
        super().__init__()
        self.drafter, self.settle = drafter, settle
        self.parts = (settle,)
        if isinstance(drafter, OfDenoiser):
            self.draft, self.parts = drafter.part, (drafter.part, settle)
        self.network, self.mask_id, self.bos_id, self.anew, self.pad = network, mask_id, bos_id, anew, pad
        self.bos = 0 if bos_id is None else 1
        self.in_keys = [contracts.X_T, contracts.POSITIONS, contracts.REVEAL, contracts.PROPOSAL_NOISE]
        self.out_keys = [contracts.X_S, contracts.LOG_RATIO, *passes.KEYS]

    def with_parts(
        self, wrap: Callable[[TensorDictModuleBase], TensorDictModuleBase], pad: Callable[[int], int]
    ) -> "Ahead":
        """Wrap the parts of the step; the reading of the cache, which grows with the text, is none of them."""
        drafter = self.drafter
        if isinstance(drafter, OfDenoiser):
            drafter = drafter.with_part(wrap(drafter.part), pad)
        return Ahead(drafter, self.network, self.mask_id, self.bos_id, self.anew, wrap(self.settle), pad)

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Take the step. Raises ValueError for a text that the network is too short for, or cannot begin."""
        x_t, reveal = tensordict[contracts.X_T], tensordict[contracts.REVEAL]
        texts = self._texts(tensordict)
        (rows,) = torch.where(texts.end > 0)
        calls, cache = self._begun(texts, rows)
        while len(rows):
            self.drafter.draft(texts, rows if self.anew else rows[texts.drafted[rows] <= texts.done[rows]], cache)
            self._round(texts, rows, cache)
            going_on = texts.done[rows] < texts.end[rows]
            if not bool(going_on.all()):
                rows, cache = rows[going_on], Cache(*(kept[:, going_on] for kept in cache))
        tokens = texts.known.view(len(x_t), -1)[:, : x_t.shape[1]]
        counts = (
            texts.drafts * self.drafter.width(x_t.shape[1]),
            texts.read,
            calls + texts.drafts + texts.rounds,
            texts.rounds,
        )
        ratio = torch.where(texts.no_law > 0, torch.nan, 0.0).unsqueeze(-1)  # for `finite`: nothing is weighed here
        written = {contracts.X_S: absorbing.reveal(x_t, tokens, reveal), contracts.LOG_RATIO: ratio}
        return TensorDict({**written, **dict(zip(passes.KEYS, counts, strict=True))})

    def _texts(self, tensordict: TensorDict) -> Texts:
        x_t, noise = tensordict[contracts.X_T], tensordict[contracts.PROPOSAL_NOISE]
        (b, l), masks = x_t.shape, x_t == self.mask_id
        if l > self.network.max_length:
            raise ValueError(f"length = {l} must be at most {self.network.max_length}, that of the AR network")
        if self.bos_id is None and bool((masks[:, 0] & tensordict[contracts.REVEAL].any(1)).any()):
            raise ValueError("without a bos_id the first token has no law of its own: give it in the prompt")
        number, room = torch.arange(1, l + 1, device=x_t.device), self.drafter.ahead + 2
        done = torch.where(masks, number, l + 1).amin(1) - 1
        spread = noise.new_zeros(b * l + 1, noise.shape[1]).index_copy(0, tensordict[contracts.POSITIONS], noise)
        nothing, flat = torch.zeros_like(done), x_t.new_zeros(b * (l + room))
        line = F.pad(torch.where(masks, 0, x_t), (self.bos, room - self.bos), value=self.bos_id or 0)
        return Texts(
            length=l,
            size=l + room,
            bos=self.bos,
            known=F.pad(x_t, (0, room)).flatten(),
            line=line.flatten(),
            masks=F.pad(masks, (0, room)).flatten(),
            uniforms=F.pad(spread[:-1].view(b, l, -1), (0, 0, 0, room)).flatten(0, 1),
            hidden=noise.new_zeros(0),
            proposed=flat,
            log_p=torch.full_like(flat, torch.inf, dtype=torch.float64),
            done=done,
            drafted=done.clone(),
            end=torch.where(tensordict[contracts.REVEAL], number, 0).amax(1),
            drafts=nothing,
            rounds=nothing.clone(),
            read=nothing.clone(),
            no_law=nothing.clone(),
        )

    def _begun(self, texts: Texts, rows: Tensor) -> tuple[Tensor, Cache]:
        """Read what stands before each row's first mask but for its last token, which a round reads; calls (b,)."""
        cache: Cache = self.network.empty_cache(len(rows), texts.size)
        count = torch.zeros_like(texts.done).index_copy(0, rows, texts.done[rows] + self.bos - 1)
        most = int(count.amax())
        if most > 0:
            _, flat = texts.places(rows, torch.zeros_like(rows), most)
            self._reading(cache, texts.line[flat], torch.zeros_like(rows), 0)
        texts.read += count
        return (count > 0).long(), cache

    def _reading(self, cache: Cache, tokens: Tensor, start: Tensor, longest: int) -> Tensor:
        """Read tokens (r, m) from `start` (r,) on: states (r, m, h); the loop's own cache keeps them."""
        states, own = self.network.follow(tokens, start, Cache(*(kept[:, :, :, :longest] for kept in cache)))
        at = start.unsqueeze(-1) + torch.arange(tokens.shape[1], device=start.device)
        for kept, new in zip(cache, own, strict=True):
            kept.scatter_(3, at[None, :, None, :, None].expand_as(new), new)
        return states

    def _round(self, texts: Texts, rows: Tensor, cache: Cache) -> None:
        """Verify the drafts of some rows; up to the first place that changes, and there, tokens are final."""
        done, end = texts.done[rows], texts.end[rows]
        width = torch.minimum(texts.drafted[rows] + 1, end) - done
        most, longest = int(width.amax()), int(done.amax()) + self.bos - 1
        at, flat = texts.places(rows, done, most)
        states = self._reading(cache, texts.line[flat + (self.bos - 1)], done + (self.bos - 1), longest)
        guesses = texts.line[flat + self.bos]
        (own,) = torch.where((texts.masks[flat] & (at < (done + width).unsqueeze(-1))).flatten())
        written, refused = self._settled(texts, states.flatten(0, 1), own, flat, guesses)
        changed = refused if self.anew else written != guesses
        stay = (changed.long().cumsum(1) == 0).sum(1)
        texts.done[rows] = final = done + torch.minimum(stay + 1, width)
        texts.line[flat + self.bos] = written
        texts.known[flat] = torch.where(at < final.unsqueeze(-1), written, texts.known[flat])
        texts.read[rows] += width
        texts.rounds[rows] += 1

    def _settled(
        self, texts: Texts, states: Tensor, own: Tensor, flat: Tensor, guesses: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Settle the places (r, m) of guesses, given these: tokens, and which drafts are refused, bool (r, m).

        own: which of them are drawn (n,). A place without a draft counts as refused.
        """
        written, refused = guesses.flatten(), torch.zeros_like(guesses, dtype=torch.bool).flatten()
        if len(own):
            some = kernel.padded(own, self.pad, 0)
            at = flat.flatten()[some]
            given = {
                contracts.IN_ORDER: states[some],
                contracts.HIDDEN: texts.hidden[at],
                contracts.PROPOSED: texts.proposed[at],
                contracts.LOG_P_PROPOSED: texts.log_p[at],
                contracts.PROPOSAL_NOISE: texts.uniforms[at],
            }
            found = self.settle(TensorDict(given))
            keys = contracts.PROPOSED, contracts.ACCEPTED, contracts.NO_LAW
            tokens, accepted, no_law = (found[key][: len(own)] for key in keys)
            written, refused = written.index_copy(0, own, tokens), refused.index_copy(0, own, ~accepted)
            texts.no_law.index_add_(0, at[: len(own)] // texts.size, no_law.long())
        return written.view_as(guesses), refused.view_as(guesses)
