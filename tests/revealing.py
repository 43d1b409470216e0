"""Steps of a few rows that reveal different numbers of tokens, what an energy reads of them, and denoisers for it."""

import torch
from builders import tiny_denoiser
from hypothesis import strategies as st
from oracles import all_sequences
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor

from edlm import contracts
from edlm.contracts import Denoiser
from edlm.models.denoisers import SubsDenoiser
from edlm.process import absorbing, schedules

MASK, LENGTH = 4, 8


def denoiser(num_layers: int = 2, seed: int = 0, schedule: schedules.Schedule | None = None) -> SubsDenoiser:
    return tiny_denoiser(seed, MASK, schedule, num_layers=num_layers)


def sharp(num_layers: int) -> SubsDenoiser:
    """Of three symbols and length 3, its laws so far from even that the order of tokens matters."""
    own = tiny_denoiser(0, 3, vocab_size=4, max_length=3, num_layers=num_layers)
    with torch.no_grad():
        own.network.head.weight.mul_(3.0)
    return own


class Step:
    """A step of a few rows that reveals another number of tokens in each, and k candidates for it, from a seed."""

    def __init__(self, seed: int, b: int = 3, k: int = 2) -> None:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randint(0, MASK, (b, LENGTH), generator=generator)
        masked = torch.rand(b, LENGTH, generator=generator) < 0.8
        self.new = masked & (torch.rand(b, LENGTH, generator=generator) < 0.6)
        self.new[:, 0] |= ~self.new.any(1)
        self.x_t = torch.where(masked | self.new, MASK, text)
        tokens = torch.randint(0, MASK, (b, k, LENGTH), generator=generator)
        self.candidates = torch.where(self.new.unsqueeze(1), tokens, self.x_t.unsqueeze(1))
        self.most = int(self.new.sum(1).max())
        self.where = absorbing.places(self.new, self.most)
        self.positions = self.new.flatten().nonzero().squeeze(-1)
        self.t = torch.full((b,), 0.7, dtype=torch.float64)

    def tokens(self, where: Tensor) -> Tensor:
        """Of the candidates at places (b, m)."""
        return self.candidates.gather(
            2, where.clamp(max=LENGTH - 1).unsqueeze(1).expand(-1, self.candidates.shape[1], -1)
        )

    def state(self, own: Denoiser) -> TensorDict:
        """What an energy reads."""
        return state_of(own, self.x_t, self.t, self.candidates)


def state_of(own: Denoiser, x_t: Tensor, t: Tensor, candidates: Tensor) -> TensorDict:
    """What an energy reads of candidates (b, k, l) that are new where they differ from x_t."""
    positions = (candidates != x_t.unsqueeze(1)).any(1).flatten().nonzero().squeeze(-1)
    given = {contracts.X_T: x_t, contracts.T: t, contracts.POSITIONS: positions}
    hidden = own(TensorDict(given))[contracts.HIDDEN]
    law = torch.zeros(x_t.numel(), own.vocab_size, dtype=torch.float64)
    law = law.index_copy(0, positions, own.logits(hidden).double().log_softmax(-1)).view(*x_t.shape, -1)
    log_p = law.unsqueeze(1).expand(*candidates.shape, -1).gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
    log_p = torch.where(candidates != x_t.unsqueeze(1), log_p, 0.0)
    return TensorDict({**given, contracts.CANDIDATES: candidates, contracts.LOG_P_CANDIDATES: log_p})


def fillings_of_every_set(own: Denoiser, energy: TensorDictModule) -> tuple[list[float], float]:
    """Sum `p_theta(x^S | x_t) e^-E` over the fillings of each set S of four places; give the largest |E| too."""
    texts, sums, moved = all_sequences(3, 4), [], 0.0
    for chosen in all_sequences(2, 4)[1:].bool():
        fillings = all_sequences(3, int(chosen.sum()))
        x_t = torch.where(chosen, 3, texts[41]).unsqueeze(0)
        candidates = x_t.repeat(len(fillings), 1)
        candidates[:, chosen] = fillings
        state = state_of(own, x_t, torch.ones(1, dtype=torch.float64), candidates.unsqueeze(0))
        found = energy(state)[contracts.ENERGY]
        sums.append(float((state[contracts.LOG_P_CANDIDATES].sum(-1) - found).exp().sum()))
        moved = max(moved, float(found.abs().max()))
    return sums, moved


steps = st.builds(Step, st.integers(0, 2**62), st.integers(1, 4), st.integers(1, 3))
