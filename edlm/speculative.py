"""What a step reveals, written token after token by the denoiser itself, in a few passes over the new tokens alone.

A denoiser that is read in order has a law of its own for what a step reveals, that of `edlm.chain_rule`,

    q(x^S | x_t) = prod_{i in S} q(x_i | x_t, x^{S<i}),

to which weighing candidates tends as their number grows. Here it is drawn from, exactly. What plain sampling draws,
`a_i ~ p_theta(x_i | x_t)`, is a guess, and with two numbers u_i, u'_i of its own token i is a function of those before:

    x_i = a_i if u_i p_theta(a_i | x_t) < q(a_i | x_t, x^{S<i}), else drawn by u'_i from (q - p_theta)_+, normalised,

which has the law q(x_i | x_t, x^{S<i}) whatever came before (speculative sampling, Leviathan et al. 2023,
arXiv 2211.17192). All of them are worked out at once, each from the present tokens before it, and again until nothing
changes: what stands still is what writing one after the other would have written (parallel decoding as a fixed point,
Santilli et al. 2023, arXiv 2305.10427). Of m new tokens the first r + 1 are final after r rounds, so m - 1 suffice, and
where tokens hardly depend on each other one or two do. Masked models that check their own drafts: Guo and Ermon 2025
(arXiv 2504.20456), Campbell et al. 2025 (arXiv 2510.03929).
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from edlm import absorbing, categorical, chain_rule, contracts, samplers
from edlm.denoisers import SubsDenoiser
from edlm.samplers import Kernel, Looped
from edlm.schedules import Schedule

_NO_LAW = "no_law"
_NUMBERS = 3  # uniforms of a position: its guess, whether that is kept, and what is put in its place


def ancestral(schedule: Schedule, denoiser: SubsDenoiser, temperature: float = 1.0, nucleus: float = 1.0) -> Kernel:
    """Sampling from `prod_{i in S} q(x_i | x_t, x^{S<i})` at every step, with no particle and no weight.

    A round reads `2 (|S| - 1)` tokens beside the step's one pass over x_t; `info["particles"]` counts the rounds. Where
    one token is new, and outside the window, the tokens are those of `samplers.ancestral`. temperature, nucleus: of
    every law, p_theta and q alike, so tokens are drawn as those of an autoregressive model would be. The host waits in
    every round for which rows go on. Raises ValueError as `samplers.ancestral` does, and for a network that is no
    `contracts.Ordered`.
    """
    outside = samplers.ancestral(schedule, denoiser, temperature, nucleus)
    stages = _stages(denoiser, _Law(denoiser, temperature, nucleus))
    step = Speculation(
        *(
            TensorDictSequential({name: stages[name] for name in part}, inplace=False)
            for part in (("denoise", "guess"), ("order", "check"), ("replace",))
        )
    )
    draw = partial(samplers.draw, _NUMBERS)
    return Kernel(schedule, denoiser, samplers.init, draw, step, "revealed", num_particles=1, outside=outside)


class Speculation(Looped):
    """The step: a guess of what is new, then rounds of checking it in order, for the rows where it still changes."""

    def __init__(
        self,
        guess: TensorDictModuleBase,
        check: TensorDictModuleBase,
        replace: TensorDictModuleBase,
        pad: Callable[[int], int] = lambda count: count,
    ) -> None:
        super().__init__()
        self.guess, self.check, self.replace, self.pad = guess, check, replace, pad
        self.in_keys = [
            *(contracts.X_T, contracts.T, contracts.POSITIONS, contracts.NEW, contracts.REVEAL, contracts.CORRECTED),
            contracts.PROPOSAL_NOISE,
        ]
        self.out_keys = [contracts.X_S, contracts.PARTICLES, contracts.LOG_RATIO]

    def with_parts(
        self, wrap: Callable[[TensorDictModuleBase], TensorDictModuleBase], pad: Callable[[int], int]
    ) -> "Speculation":
        """The same step with its parts wrapped."""
        return Speculation(wrap(self.guess), wrap(self.check), wrap(self.replace), pad)

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Take the step; `particles` says how many rounds each row took."""
        x_t, positions = tensordict[contracts.X_T], tensordict[contracts.POSITIONS]
        state = TensorDict({**tensordict, **self.guess(tensordict)})
        row, number = absorbing.numbered(positions, x_t.shape[1])
        count = tensordict[contracts.REVEAL].sum(1)
        matters = number + 1 < torch.cat([count, count.new_zeros(1)])[row]  # others depend on it; not on padding
        tokens, rounds = state[contracts.GUESS], torch.zeros_like(count)
        no_law = _per_row(~state[contracts.LOG_P_GUESS].isfinite(), row, len(x_t))
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
        ratio = torch.where(no_law, torch.nan, 0.0).unsqueeze(-1)  # for `finite`: nothing is weighed here
        return TensorDict({contracts.X_S: x_s, contracts.PARTICLES: rounds, contracts.LOG_RATIO: ratio})

    def _round(self, state: TensorDict, rows: Tensor, written: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Check some rows of what is written (b, l): which of the positions are theirs, and what should stand there.

        Last, bool, at which of them the network gave no law.
        """
        b, l = written.shape
        taken, own = samplers.of_rows(state[contracts.POSITIONS], rows, b, l)
        some = samplers.padded(taken, self.pad, 0)
        of_positions = (contracts.GUESS, contracts.LOG_P_GUESS, contracts.PROPOSAL_NOISE)
        checked = self.check(
            TensorDict(
                {
                    contracts.CANDIDATES: written[rows].unsqueeze(1),
                    contracts.POSITIONS: samplers.padded(own, self.pad, len(rows) * l),
                    **{key: state[key][rows] for key in (contracts.T, contracts.CONTEXT, contracts.NEW)},
                    **{key: state[key][some] for key in of_positions},
                }
            )
        )
        guess, wrong = state[contracts.GUESS][taken], checked[_NO_LAW][: len(taken)]
        (refused,) = torch.where(~checked[contracts.KEPT][: len(taken)])
        if not len(refused):
            return taken, guess, wrong
        some = samplers.padded(refused, self.pad, 0)
        replaced = self.replace(
            TensorDict(
                {
                    contracts.HIDDEN: state[contracts.HIDDEN][taken[some]],
                    contracts.IN_ORDER: checked[contracts.IN_ORDER][some],
                    contracts.PROPOSAL_NOISE: state[contracts.PROPOSAL_NOISE][taken[some]],
                }
            )
        )
        return taken, guess.index_copy(0, refused, replaced[contracts.GUESS][: len(refused)]), wrong


class _Law(nn.Module):
    """What tokens are drawn from: logits (n, v) of states (n, h), cooled, and cut to a nucleus."""

    def __init__(self, denoiser: SubsDenoiser, temperature: float, nucleus: float) -> None:
        super().__init__()
        self.denoiser, self.temperature, self.nucleus = denoiser, temperature, nucleus

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.denoiser.logits(states)
        return categorical.nucleus(categorical.cooled(logits, self.temperature), self.nucleus)

    def tiles(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The same rows of tensors (n, ...), so many at a time as may have their logits at once."""
        rows = categorical.rows_at_once(self.denoiser.vocab_size, tensors[0].device, torch.compiler.is_compiling())
        return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


class _OfLaw(nn.Module):
    def __init__(self, law: _Law) -> None:
        super().__init__()
        self.law = law


class _Guess(_OfLaw):
    """Plain sampling's draws (n,) and their log-probabilities (n,)."""

    def forward(self, hidden: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        first = uniforms[:, :1]
        drawn = [categorical.inverse_cdf(self.law(states), u) for states, u in self.law.tiles(hidden, first)]
        tokens, log_p = (torch.cat(parts).squeeze(-1) for parts in zip(*drawn, strict=True))
        return tokens, log_p


class _Check(_OfLaw):
    """Whether each guess stays, bool (n,): with probability `min(1, q / p)`; a row's first one is a draw of q.

    And whether q is no law, bool (n,), where it is asked.
    """

    def forward(
        self, candidates: Tensor, positions: Tensor, in_order: Tensor, guess: Tensor, log_p: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        _, number = absorbing.numbered(positions, candidates.shape[2])
        tiles = self.law.tiles(in_order, guess.unsqueeze(-1))
        log_q = torch.cat([categorical.token_log_prob(self.law(states), own) for states, own in tiles]).squeeze(-1)
        first = number == 0
        return first | (uniforms[:, 1].log() + log_p < log_q), ~first & log_q.isnan()


class _Replace(_OfLaw):
    """What is put in place of a guess that does not stay: tokens (n,)."""

    def forward(self, hidden: Tensor, in_order: Tensor, uniforms: Tensor) -> Tensor:
        tiles = self.law.tiles(in_order, hidden, uniforms[:, 2])
        return torch.cat([categorical.residual(self.law(own), self.law(states), u) for own, states, u in tiles])


class _Order(chain_rule.States):
    """The states (n, h) of one candidate."""

    def forward(self, candidates: Tensor, t: Tensor, positions: Tensor, context: Tensor, new: Tensor) -> Tensor:
        return super().forward(candidates, t, positions, context, new).squeeze(1)


def _stages(denoiser: SubsDenoiser, law: _Law) -> dict[str, TensorDictModule]:
    """By name, with what each reads and writes."""
    found = {
        "denoise": chain_rule.read(denoiser),
        "guess": TensorDictModule(
            _Guess(law),
            in_keys=[contracts.HIDDEN, contracts.PROPOSAL_NOISE],
            out_keys=[contracts.GUESS, contracts.LOG_P_GUESS],
        ),
        "order": TensorDictModule(
            _Order(denoiser),
            in_keys=[contracts.CANDIDATES, contracts.T, contracts.POSITIONS, contracts.CONTEXT, contracts.NEW],
            out_keys=[contracts.IN_ORDER],
        ),
        "check": TensorDictModule(
            _Check(law),
            in_keys=[
                *(contracts.CANDIDATES, contracts.POSITIONS, contracts.IN_ORDER),
                *(contracts.GUESS, contracts.LOG_P_GUESS, contracts.PROPOSAL_NOISE),
            ],
            out_keys=[contracts.KEPT, _NO_LAW],
        ),
        "replace": TensorDictModule(
            _Replace(law),
            in_keys=[contracts.HIDDEN, contracts.IN_ORDER, contracts.PROPOSAL_NOISE],
            out_keys=[contracts.GUESS],
        ),
    }
    return found


def _per_row(found: Tensor, row: Tensor, b: int) -> Tensor:
    """Whether anything was found in each row, bool (b,): found (n,), the rows of each (n,), of which b is padding."""
    return torch.zeros(b + 1, dtype=torch.int64, device=row.device).index_add(0, row, found.long())[:-1] > 0


def _written(x_t: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """x_t (b, l) with tokens (n,) at flat positions (n,); padded positions write into a row that is cut off."""
    longer = torch.cat([x_t.flatten(), x_t.new_zeros(1)])
    return longer.index_copy(0, positions, tokens)[:-1].view_as(x_t)
