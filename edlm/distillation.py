"""An energy of transitions learned from the denoiser's own chain rule, without contrast.

By the chain rule over the set S that a step reveals, from left to right, the exact energy of a transition is a sum,

    -log [ q(x^S | x_t) / prod_{i in S} q(x_i | x_t) ] = sum_{i in S} e_i,
    e_i = log q(x_i | x_t) - log q(x_i | x_t, tokens of S left of i),

and a denoiser that is shown those tokens too gives both parts of a term. A random term takes one pass, and has none of
the noise of telling data from draws by their labels. What is learned is the denoiser itself, one token after the other:
an energy by contrast may know more than that, this one cannot.
"""

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn

from edlm import categorical, contracts, noise, samplers, schedules, training, transition
from edlm.contracts import Denoiser
from edlm.networks import EnergyNetwork
from edlm.noise import Stream
from edlm.schedules import Schedule

_PICKED, _TARGET, _PREDICTED = "picked", "target", "predicted"


def chain_rule(
    denoiser: Denoiser,
    network: EnergyNetwork,
    schedule: Schedule,
    num_steps: tuple[int, int],
    num_draws: int = 4,
    pad_id: int | None = None,
    told: Schedule | None = None,
) -> TensorDictSequential:
    """Build the training pipeline of the network behind `energies.learned_transition`: `{x_0, ...} -> {loss, ...}`.

    Texts are put before a step as by `transition.contrastive`. Candidates are as there: the text's own x_s, and
    `num_draws` of the denoiser's fillings of what the step reveals. For each a random position i of S is picked, and
    `loss = mean (e_i - target)^2` over the candidates, (b,): the square in nats, least where the network's scalar at i
    is the chain rule's term. The denoiser is frozen: no gradient, eval mode. told: the schedule whose sigma(t) the
    network is told, if it is told one. Raises ValueError unless num_draws >= 1, and as `before_step` does.
    """
    if num_draws < 1:
        raise ValueError(f"num_draws = {num_draws} must be at least 1")
    keys = [contracts.X_T, contracts.T, contracts.X_S, contracts.POSITIONS]
    keys += [contracts.SEED, contracts.ROW, contracts.STEP]
    term = TensorDictModule(_Term(denoiser, num_draws), in_keys=keys, out_keys=[contracts.CANDIDATES, _PICKED, _TARGET])
    return TensorDictSequential(
        {
            "corrupt": transition.before_step(denoiser.mask_id, schedule, num_steps, pad_id),
            "term": training.Frozen(term),
            "predict": TensorDictModule(
                _Predicted(network, pad_id, told),
                in_keys=[contracts.X_T, contracts.T, contracts.CANDIDATES, _PICKED],
                out_keys=[_PREDICTED],
            ),
            "objective": TensorDictModule(
                lambda predicted, target: (predicted - target.to(predicted)).square().mean(-1),
                in_keys=[_PREDICTED, _TARGET],
                out_keys=[contracts.LOSS],
            ),
        },
        inplace=False,
    )


def chain_rule_energy(denoiser: Denoiser) -> TensorDictModule:
    """The energy that `chain_rule` learns, from the denoiser itself: what a learned one is to be compared with.

    `E = sum_{i in S} [ log p_theta(x_i | x_t) - log p_theta(x_i | x_t, tokens of S left of i) ]`, float64 (b, k), S the
    new positions: under it SIR tends to writing S from left to right as k grows, and Z = 1. A reference and no sampler:
    a candidate costs one pass of the denoiser per token of S, for which plain steps would write as many.
    """
    keys = [contracts.CANDIDATES, contracts.X_T, contracts.T, contracts.LOG_P_CANDIDATES]
    return TensorDictModule(_ChainRule(denoiser), in_keys=keys, out_keys=[contracts.ENERGY])


class _ChainRule(nn.Module):
    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, candidates: Tensor, x_t: Tensor, t: Tensor, log_p_candidates: Tensor) -> Tensor:
        b, k, length = candidates.shape
        new = candidates != x_t.unsqueeze(1)
        number, told = new.cumsum(-1), torch.zeros(b * k, dtype=torch.float64, device=x_t.device)
        for place in range(1, int(number.max()) + 1):
            own = (new & (number == place)).flatten(0, 1)
            asked = own.any(-1).nonzero().squeeze(-1)  # candidates that have so many
            context = torch.where(new & (number >= place), x_t.unsqueeze(1), candidates).flatten(0, 1)[asked]
            where = own[asked].int().argmax(-1)
            of_candidate = torch.arange(len(asked), device=x_t.device) * length + where
            hidden = _hidden(self.denoiser, context, t.repeat_interleave(k)[asked], of_candidate)
            tokens = candidates.flatten(0, 1)[asked, where]
            told.index_add_(0, asked, _log_prob(self.denoiser, hidden, tokens).double())
        return log_p_candidates.double().sum(-1) - told.view(b, k)


class _Term(nn.Module):
    """What a step reveals, the text's own first and then draws: (b, 1 + k, l); a position of S for each, and its term.

    The positions and the terms of the energy are (b, 1 + k).
    """

    def __init__(self, denoiser: Denoiser, num_draws: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.num_draws = num_draws
        self.propose = samplers.propose(denoiser)

    def forward(
        self, x_t: Tensor, t: Tensor, x_s: Tensor, positions: Tensor, seed: Tensor, row: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (b, length), k = x_t.shape, 1 + self.num_draws
        hidden = _hidden(self.denoiser, x_t, t, positions)
        uniforms = noise.uniforms(
            seed, row[positions // length], step, Stream.NEGATIVES, positions % length, self.num_draws
        )
        draws = self.propose(
            TensorDict(
                {
                    contracts.X_T: x_t,
                    contracts.HIDDEN: hidden,
                    contracts.POSITIONS: positions,
                    contracts.PROPOSAL_NOISE: uniforms,
                }
            )
        )[contracts.CANDIDATES]
        candidates = torch.cat([x_s.unsqueeze(1), draws], dim=1)
        new = (x_s != x_t).unsqueeze(1).expand_as(candidates)
        share = noise.uniforms(seed, row, step, Stream.SELECTION, count=k)
        number = (share * new.sum(-1)).floor().unsqueeze(-1)
        picked = (new.cumsum(-1) <= number).sum(-1, keepdim=True).clamp(max=length - 1)  # of a row of padding: any
        token, where = candidates.gather(-1, picked).flatten(), picked.flatten()
        of_row = torch.arange(b, device=x_t.device).repeat_interleave(k) * length + where
        before = hidden[torch.searchsorted(positions, of_row).clamp(max=len(positions) - 1)]  # positions are in order
        left = torch.arange(length, device=x_t.device) < picked
        context = torch.where(left, candidates, x_t.unsqueeze(1)).flatten(0, 1)  # (b k, l)
        of_candidate = torch.arange(b * k, device=x_t.device) * length + where
        after = _hidden(self.denoiser, context, t.repeat_interleave(k), of_candidate)
        term = (_log_prob(self.denoiser, before, token) - _log_prob(self.denoiser, after, token)).view(b, k)
        return candidates, picked.squeeze(-1), torch.where(new.any(-1), term, 0.0)


def _hidden(denoiser: Denoiser, x_t: Tensor, t: Tensor, positions: Tensor) -> Tensor:
    state = TensorDict({contracts.X_T: x_t, contracts.T: t, contracts.POSITIONS: positions})
    found: Tensor = denoiser(state)[contracts.HIDDEN]
    return found


def _log_prob(denoiser: Denoiser, hidden: Tensor, tokens: Tensor) -> Tensor:
    """`log p(token)` at hidden states (n, h): nats (n,), a tile of logits at a time."""
    rows = categorical.rows_at_once(denoiser.vocab_size, hidden.device)
    tiles = zip(hidden.split(rows), tokens.unsqueeze(-1).split(rows), strict=True)
    return torch.cat([categorical.token_log_prob(denoiser.logits(states), own) for states, own in tiles]).squeeze(-1)


class _Predicted(nn.Module):
    """The network's scalar at the picked position of every candidate, zero if nothing is new: (b, k)."""

    def __init__(self, network: EnergyNetwork, pad_id: int | None, told: Schedule | None) -> None:
        super().__init__()
        self.network = network
        self.pad_id = pad_id
        self.told = told

    def forward(self, x_t: Tensor, t: Tensor, candidates: Tensor, picked: Tensor) -> Tensor:
        b, k, length = candidates.shape
        before = x_t.unsqueeze(1).expand(b, k, length).flatten(0, 1)
        valid = None if self.pad_id is None else before != self.pad_id
        sigma = None if self.told is None else schedules.sigma(self.told, t).repeat_interleave(k)
        scalars = self.network.per_position(before, candidates.flatten(0, 1), sigma, valid)
        own = scalars.view(b, k, length).gather(-1, picked.unsqueeze(-1)).squeeze(-1)
        return torch.where((candidates != x_t.unsqueeze(1)).any(-1), own, 0.0)
