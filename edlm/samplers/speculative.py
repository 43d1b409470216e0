"""The tokens that a step reveals, written one after another by the denoiser itself, in a few passes over them alone.

A denoiser that is read in order has a law of its own for what a step reveals, that of `edlm.models.chain_rule`,

    q(x^S | x_t) = prod_{i in S} q(x_i | x_t, x^{S<i}),

to which weighing candidates tends as their number grows. Here it is drawn from, exactly. What plain sampling draws,
`a_i ~ p_theta(x_i | x_t)`, is proposed, and with two numbers u_i, u'_i of its own token i follows from those before:

    x_i = a_i if u_i p_theta(a_i | x_t) < q(a_i | x_t, x^{S<i}), else drawn by u'_i from (q - p_theta)_+, normalised,

which has the law q(x_i | x_t, x^{S<i}) whatever came before (speculative sampling, Leviathan et al. 2023,
arXiv 2211.17192). All of them are worked out at once, each from the present tokens before it, and again until nothing
changes: what stands still is what writing one after the other would have written (parallel decoding as a fixed point,
Santilli et al. 2023, arXiv 2305.10427). Of m new tokens the first r + 1 are final after r rounds, so m - 1 suffice, and
where tokens hardly depend on each other one or two do. Masked models that check their own drafts: Guo and Ermon 2025
(arXiv 2504.20456), Campbell et al. 2025 (arXiv 2510.03929).
"""

from collections.abc import Callable

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from edlm import contracts
from edlm.contracts import Denoiser, Reads
from edlm.declaration import Stages, sequence, stage
from edlm.process import absorbing, categorical
from edlm.samplers import kernel, passes
from edlm.samplers.kernel import Looped
from edlm.samplers.stages import Law

NUMBERS = 3  # uniforms of a position: what is proposed, whether that is accepted, and what is resampled in its place


def step(
    denoiser: Denoiser,
    before: Stages,
    order: TensorDictModuleBase,
    reads: Reads,
    temperature: float = 1.0,
    nucleus: float = 1.0,
) -> "Speculation":
    """Build the step that draws from `prod_{i in S} q(x_i | x_t, x^{S<i})`, with no particle and no weight.

    before: the stages that end in hidden states; order: that which gives the states of q, of one candidate; reads: what
    it reads, in every round. Where one token is new, and outside the window, the tokens are those of plain sampling.
    temperature, nucleus: of every law, p_theta and q alike, so tokens are drawn as those of an autoregressive model
    would be. The host waits in every round for which rows go on.
    """
    law = Law(denoiser, temperature, nucleus)
    return Speculation(
        sequence({**before, "propose": stage("hidden, proposal_noise -> proposed, log_p_proposed", Propose(law))}),
        sequence({"order": order, "verify": stage(_VERIFY, _Verify(law))}),
        sequence({"resample": stage("hidden, in_order, proposal_noise -> proposed", _Resample(law))}),
        reads,
    )


class Speculation(Looped):
    """The step: what is new is proposed, then verified in rounds, for the rows where it still changes."""

    repeated = (1, 2)

    def __init__(
        self,
        propose: TensorDictModuleBase,
        verify: TensorDictModuleBase,
        resample: TensorDictModuleBase,
        reads: Reads,
        pad: Callable[[int], int] = lambda count: count,
    ) -> None:
        super().__init__()
        self.propose, self.verify, self.resample = propose, verify, resample
        self.parts = (propose, verify, resample)
        self.reads, self.pad = reads, pad
        self.in_keys = [
            *(contracts.X_T, contracts.T, contracts.POSITIONS, contracts.NEW, contracts.REVEAL, contracts.CORRECTED),
            contracts.PROPOSAL_NOISE,
        ]
        self.out_keys = [contracts.X_S, contracts.LOG_RATIO, *passes.KEYS]

    def with_parts(
        self, wrap: Callable[[TensorDictModuleBase], TensorDictModuleBase], pad: Callable[[int], int]
    ) -> "Speculation":
        """Wrap the parts of the step."""
        return Speculation(wrap(self.propose), wrap(self.verify), wrap(self.resample), self.reads, pad)

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Take the step; no candidate is weighed, and `rounds` says how many each row took."""
        x_t, positions = tensordict[contracts.X_T], tensordict[contracts.POSITIONS]
        state = TensorDict({**tensordict, **self.propose(tensordict)})
        row, number = absorbing.numbered(positions, x_t.shape[1])
        count = tensordict[contracts.REVEAL].sum(1)
        matters = number + 1 < torch.cat([count, count.new_zeros(1)])[row]  # others depend on it; not on padding
        tokens, rounds = state[contracts.PROPOSED], torch.zeros_like(count)
        no_law = _per_row(~state[contracts.LOG_P_PROPOSED].isfinite(), row, len(x_t))
        (going_on,) = torch.where(tensordict[contracts.CORRECTED] & (count > 1))
        for _ in range(tensordict[contracts.NEW].shape[1] - 1):
            if not len(going_on):
                break
            taken, found, wrong = self._round(state, going_on, _written(x_t, positions, tokens))
            no_law = no_law | _per_row(wrong, row[taken], len(x_t))
            rounds = rounds.index_add(0, going_on, torch.ones_like(going_on))
            changed = ((found != tokens[taken]) & matters[taken]).long()
            tokens = tokens.index_copy(0, taken, found)
            going_on = going_on[torch.zeros_like(count).index_add(0, row[taken], changed)[going_on] > 0]
        x_s = absorbing.reveal(x_t, _written(x_t, positions, tokens), tensordict[contracts.REVEAL])
        read = passes.verified(self.reads, x_t, count, rounds, state.get(contracts.READ))
        counted = dict(zip(passes.KEYS, (*read, rounds), strict=True)) | kernel.kept(state)
        ratio = torch.where(no_law, torch.nan, 0.0).unsqueeze(-1)  # for `finite`: nothing is weighed here
        return TensorDict({contracts.X_S: x_s, contracts.LOG_RATIO: ratio, **counted})

    def _round(self, state: TensorDict, rows: Tensor, written: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Verify some rows of what is written (b, l): which positions are theirs, and what should stand there.

        Last, bool, at which of them the network gave no law.
        """
        b, l = written.shape
        taken, own = kernel.of_rows(state[contracts.POSITIONS], rows, b, l)
        some = kernel.padded(taken, self.pad, 0)
        given = kernel.part_of(state, [key for key in self.verify.in_keys if key in state], rows, some)
        given[contracts.CANDIDATES] = written[rows].unsqueeze(1)
        given[contracts.POSITIONS] = kernel.padded(own, self.pad, len(rows) * l)
        verified = self.verify(TensorDict(given))
        proposed, wrong = state[contracts.PROPOSED][taken], verified[contracts.NO_LAW][: len(taken)]
        (refused,) = torch.where(~verified[contracts.ACCEPTED][: len(taken)])
        if not len(refused):
            return taken, proposed, wrong
        some = kernel.padded(refused, self.pad, 0)
        resampled = self.resample(
            TensorDict(
                {
                    contracts.HIDDEN: state[contracts.HIDDEN][taken[some]],
                    contracts.IN_ORDER: verified[contracts.IN_ORDER][some],
                    contracts.PROPOSAL_NOISE: state[contracts.PROPOSAL_NOISE][taken[some]],
                }
            )
        )
        return taken, proposed.index_copy(0, refused, resampled[contracts.PROPOSED][: len(refused)]), wrong


class OfLaw(nn.Module):
    """A stage that draws by a law or asks for one."""

    def __init__(self, law: Law) -> None:
        super().__init__()
        self.law = law


class Propose(OfLaw):
    """Plain sampling's draws (n,) and their log-probabilities (n,)."""

    def forward(self, hidden: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Draw by the first uniform of states (n, h)."""
        first = uniforms[:, :1]
        drawn = [categorical.inverse_cdf(self.law(states), u) for states, u in self.law.tiles(hidden, first)]
        tokens, log_p = (torch.cat(parts).squeeze(-1) for parts in zip(*drawn, strict=True))
        return tokens, log_p


class _Verify(OfLaw):
    """Whether each stays as proposed, bool (n,): with probability `min(1, q / p)`; a row's first one is a draw of q.

    And whether q is no law, bool (n,), where it is asked.
    """

    def forward(
        self, candidates: Tensor, positions: Tensor, in_order: Tensor, proposed: Tensor, log_p: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        _, number = absorbing.numbered(positions, candidates.shape[2])
        tiles = self.law.tiles(in_order, proposed.unsqueeze(-1))
        log_q = torch.cat([categorical.token_log_prob(self.law(states), own) for states, own in tiles]).squeeze(-1)
        first = number == 0
        return first | (uniforms[:, 1].log() + log_p < log_q), ~first & log_q.isnan()


class _Resample(OfLaw):
    """The law of the token in the place of one that is not accepted: (n,)."""

    def forward(self, hidden: Tensor, in_order: Tensor, uniforms: Tensor) -> Tensor:
        tiles = self.law.tiles(in_order, hidden, uniforms[:, 2])
        return torch.cat([categorical.residual(self.law(own), self.law(states), u) for own, states, u in tiles])


_VERIFY = "candidates, positions, in_order, proposed, log_p_proposed, proposal_noise -> accepted, no_law"


def _per_row(found: Tensor, row: Tensor, b: int) -> Tensor:
    """Whether anything was found in each row, bool (b,): found (n,), the rows of each (n,), of which b is padding."""
    return torch.zeros(b + 1, dtype=torch.int64, device=row.device).index_add(0, row, found.long())[:-1] > 0


def _written(x_t: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """x_t (b, l) with tokens (n,) at flat positions (n,); padded positions write into a row that is cut off."""
    longer = torch.cat([x_t.flatten(), x_t.new_zeros(1)])
    return longer.index_copy(0, positions, tokens)[:-1].view_as(x_t)
