"""The energy of transitions that a denoiser has in itself: nothing to train, no other network, hardly a pass more.

By the chain rule over the set S that a step reveals, from left to right, the exact energy of a transition is a sum,

    -log [ q(x^S | x_t) / prod_{i in S} q(x_i | x_t) ] = sum_{i in S} [ log q(x_i | x_t) - log q(x_i | x_t, x^{S<i}) ],

and a denoiser that is shown the tokens of S left of i gives the second part too. Token by token that is `exact_energy`,
one pass for each. `energy` takes one pass for all of them, over the new tokens alone: see `contracts.Ordered`.
"""

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from edlm import contracts
from edlm.contracts import Denoiser, Ordered, Reads
from edlm.declaration import stage
from edlm.models import energies
from edlm.models.denoisers import SubsDenoiser
from edlm.process import absorbing, categorical, schedules

_READ = "candidates, t, positions, log_p_candidates"
READS = Reads(candidates=0, new=2)  # of a candidate, beside a pass over x_t: each token and the mask in its place


def energy(denoiser: SubsDenoiser) -> TensorDictModule:
    """Build the chain rule of the denoiser's own network, for any kernel or bound: `E` in nats, float64 (b, k).

    `E = sum_{i in S} [ log p_theta(x_i | x_t) - log q(x_i | x_t, x^{S<i}) ]`, S the positions that candidates fill in
    and q the network's law as it is read in order. Whatever the weights, q is a law: `sum p_theta(x^S | x_t) e^-E = 1`,
    Z = 1. Zero where one token is new. Here x_t is read once more, and the host waits for the most new tokens of a row;
    `read` and `weigh`, the stages of a sampler, need neither. Raises ValueError for a network that is no
    `contracts.Ordered`.
    """
    found = stage(f"{_READ}, x_t -> energy", _Alone(denoiser))
    return energies.declare(found, ("transition", "draft"), Reads(texts=1, candidates=0, new=READS.new, calls=2))


def weigh(denoiser: SubsDenoiser) -> TensorDictModule:
    """Build the stage that weighs candidates from the context of `read`: beside it `2 k (|S| - 1)` tokens are read.

    The energies are those of `energy`, up to rounding. Raises ValueError as `energy` does.
    """
    return stage(f"{_READ}, context, new -> energy", _Weigh(denoiser))


def order(denoiser: SubsDenoiser) -> TensorDictModule:
    """Build the stage that gives the states (n, h) which predict each new token of one candidate from those before it.

    Raises ValueError as `energy` does.
    """
    return stage("candidates, t, positions, context, new -> in_order", _Order(denoiser))


def read(denoiser: SubsDenoiser) -> TensorDictModule:
    """Build the denoiser's pass, which keeps what reading in order needs: `{x_t, t, positions} -> {hidden, context}`.

    Raises ValueError for a network that is no `contracts.Ordered`.
    """
    return stage("x_t, t, positions -> hidden, context", _Read(denoiser))


def exact_energy(denoiser: Denoiser) -> TensorDictModule:
    """Build the chain rule of any denoiser, token by token: what `energy` is to be compared with.

    `E = sum_{i in S} [ log p_theta(x_i | x_t) - log p_theta(x_i | x_t, x^{S<i}) ]`, float64 (b, k): under it SIR tends
    to writing S from left to right as k grows, and Z = 1. A reference and no sampler: a candidate costs one pass of the
    denoiser per token of S, for which plain steps would write as many.
    """
    found = stage("candidates, x_t, t, log_p_candidates -> energy", _Exact(denoiser))
    return energies.declare(found, ("transition", "draft"), Reads(candidates=0, in_turn=1))


def _ordered(denoiser: SubsDenoiser) -> Ordered:
    network = denoiser.network
    if not isinstance(network, Ordered):
        raise ValueError(f"a network of class {type(network).__name__} cannot be read in order, as a Transformer can")
    return network


class InOrder(nn.Module):
    """The parts of a denoiser whose network can be read in order."""

    def __init__(self, denoiser: SubsDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.network = _ordered(denoiser)

    def noise_levels(self, t: Tensor) -> Tensor | None:
        """Return the noise levels (b,) that the network is given, None for one that is given none."""
        told = self.denoiser.told
        return None if told is None else schedules.sigma(told, t)

    def states_of(self, tokens: Tensor, where: Tensor, t: Tensor, context: Tensor, text: Tensor) -> Tensor:
        """Compute the states (b, k, m - 1, h) of new tokens but the first; text (b, l): a reading without padding."""
        asked = tokens, where, self.denoiser.mask_id, context, self.noise_levels(t)
        shown = getattr(self.network, "pad_id", None) is not None or getattr(self.network, "shifted", False)
        if not shown:  # it need not take another argument
            return self.network.in_order(*asked)
        return self.network.in_order(*asked, text)


class _Read(InOrder):
    """The denoiser's pass, and what is kept of it: states (n, h) at the positions, and the context."""

    def forward(self, x_t: Tensor, t: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(x_t, self.noise_levels(t), positions.clamp(max=x_t.numel() - 1), keep=True)


class States(InOrder):
    """The states (n, k, h) that predict what is new at flat positions, each from x_t and the new tokens before it.

    Those of a row's first one mean nothing: it is predicted from x_t alone.
    """

    def forward(self, candidates: Tensor, t: Tensor, positions: Tensor, context: Tensor, new: Tensor) -> Tensor:
        """Read candidates (b, k, l); positions: those of `new`, ascending, `b * l` padding; new has two or more."""
        b, k, l = candidates.shape
        row, number = absorbing.numbered(positions, l)
        tokens = candidates.gather(2, new.clamp(max=l - 1).unsqueeze(1).expand(-1, k, -1))
        hidden = self.states_of(tokens, new, t, context, candidates[:, 0])
        return hidden[row.clamp(max=b - 1), :, (number - 1).clamp(0, new.shape[1] - 2)]  # padding may count further


class _Order(States):
    """The states (n, h) of one candidate."""

    def forward(self, candidates: Tensor, t: Tensor, positions: Tensor, context: Tensor, new: Tensor) -> Tensor:
        return super().forward(candidates, t, positions, context, new).squeeze(1)


class _Weigh(nn.Module):
    """The energy (b, k) from the context of x_t."""

    def __init__(self, denoiser: SubsDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.states = States(denoiser)

    def forward(
        self, candidates: Tensor, t: Tensor, positions: Tensor, log_p: Tensor, context: Tensor, new: Tensor
    ) -> Tensor:
        b, k, l = candidates.shape
        if new.shape[1] == 1:  # one token has nothing before it
            return torch.zeros(b, k, dtype=torch.float64, device=t.device)
        row, number = absorbing.numbered(positions, l)
        later = ((row < b) & (number > 0)).unsqueeze(-1)  # the first one of a row is predicted from x_t alone
        row, place = row.clamp(max=b - 1), positions % l
        hidden = self.states(candidates, t, positions, context, new)
        log_q = _log_prob(self.denoiser, hidden.flatten(0, 1), candidates[row, :, place].flatten()).view(-1, k)
        terms = torch.where(later, log_p[row, :, place].double() - log_q.double(), 0.0)
        return terms.new_zeros(b, k).index_add(0, row, terms)


class _Alone(nn.Module):
    """The energy (b, k) with a pass over x_t of its own."""

    def __init__(self, denoiser: SubsDenoiser) -> None:
        super().__init__()
        self.read = _Read(denoiser)
        self.weigh = _Weigh(denoiser)

    def forward(self, candidates: Tensor, t: Tensor, positions: Tensor, log_p: Tensor, x_t: Tensor) -> Tensor:
        b, l = x_t.shape
        drawn = torch.zeros(b * l + 1, dtype=torch.bool, device=t.device).index_fill(0, positions, True)[:-1]
        drawn = drawn.view(b, l)
        most = l if torch.compiler.is_compiling() else max(1, int(drawn.sum(1).amax()))
        _, context = self.read(x_t, t, positions)
        return self.weigh(candidates, t, positions, log_p, context, absorbing.places(drawn, most))


class _Exact(nn.Module):
    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, candidates: Tensor, x_t: Tensor, t: Tensor, log_p_candidates: Tensor) -> Tensor:
        b, k, length = candidates.shape
        new = candidates != x_t.unsqueeze(1)
        number, log_q = new.cumsum(-1), torch.zeros(b * k, dtype=torch.float64, device=x_t.device)
        for place in range(1, int(number.max()) + 1):
            own = (new & (number == place)).flatten(0, 1)
            asked = own.any(-1).nonzero().squeeze(-1)  # candidates that have so many
            context = torch.where(new & (number >= place), x_t.unsqueeze(1), candidates).flatten(0, 1)[asked]
            where = own[asked].int().argmax(-1)
            of_candidate = torch.arange(len(asked), device=x_t.device) * length + where
            hidden = _hidden(self.denoiser, context, t.repeat_interleave(k)[asked], of_candidate)
            tokens = candidates.flatten(0, 1)[asked, where]
            log_q.index_add_(0, asked, _log_prob(self.denoiser, hidden, tokens).double())
        return log_p_candidates.double().sum(-1) - log_q.view(b, k)


def _hidden(denoiser: Denoiser, x_t: Tensor, t: Tensor, positions: Tensor) -> Tensor:
    state = TensorDict({contracts.X_T: x_t, contracts.T: t, contracts.POSITIONS: positions})
    found: Tensor = denoiser(state)[contracts.HIDDEN]
    return found


def _log_prob(denoiser: Denoiser, hidden: Tensor, tokens: Tensor) -> Tensor:
    """`log p(token)` at hidden states (n, h): nats (n,), a tile of logits at a time."""
    rows = categorical.rows_at_once(denoiser.vocab_size, hidden.device, torch.compiler.is_compiling())
    tiles = zip(hidden.split(rows), tokens.unsqueeze(-1).split(rows), strict=True)
    return torch.cat([categorical.token_log_prob(denoiser.logits(states), own) for states, own in tiles]).squeeze(-1)
