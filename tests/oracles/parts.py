"""Exact answers in the library's contracts: a denoiser and an energy that a sampler can be built of."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from edlm.contracts import CANDIDATES, ENERGY, HIDDEN, POSITIONS, X_T, T
from edlm.process import schedules
from oracles.energies import EnergyFn
from oracles.laws import at

MarginalsFn = Callable[[Tensor], Tensor]  # x_t (b, l) -> log-probabilities (b, l, v)


class Lookup(nn.Module):
    """A table over all states as a function of the state, on whatever device the module is moved to."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        """Look up states (..., l): for the table (v,) * l + (...) the entries (..., ...)."""
        return at(self.table, x)


class OracleDenoiser(TensorDictModuleBase):
    """A `Denoiser` whose hidden states are the log-probabilities (n, v) themselves.

    Small law: pass `Lookup(marginal_table(joint))`; hidden Markov law: `partial(hmm_posterior_marginals, hmm)`.
    """

    def __init__(self, marginals: MarginalsFn, mask_id: int, max_length: int = 1024) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [X_T, T, POSITIONS], [HIDDEN]
        self.marginals = marginals
        self.mask_id, self.vocab_size, self.max_length = mask_id, mask_id + 1, max_length
        self.schedule = schedules.log_linear()

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Write the log-probabilities of the flat positions; a padded position gets the uniform law."""
        log_p = self.marginals(tensordict[X_T]).flatten(0, 1)
        padding = F.pad(log_p.new_zeros(1, self.mask_id), (0, 1), value=-torch.inf)
        return tensordict.set(HIDDEN, torch.cat([log_p, padding])[tensordict[POSITIONS]])

    def logits(self, hidden: Tensor) -> Tensor:
        """Return them unchanged: (n, v)."""
        return hidden


class OracleEnergy(TensorDictModuleBase):
    """An `Energy` computed by a function of candidates (b, k, l) and x_t (b, l)."""

    def __init__(self, energy: EnergyFn) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [CANDIDATES, X_T], [ENERGY]
        self.energy = energy

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Write the energies (b, k)."""
        return tensordict.set(ENERGY, self.energy(tensordict[CANDIDATES], tensordict[X_T]))
