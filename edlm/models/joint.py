"""One network, two heads: the pass that weighs what a step may reveal is the denoiser's pass for the next step.

A joint network (`contracts.Joint`) reads the candidates x_s. Its states at what is new in x_s tell the energy of the
transition (see `transition`), and those at what is still masked give `log p(x_0 | x_s)`. So a sampler reads the text of
masks once, then k candidates per step, and nothing besides; the winner's states are carried to the next step.
The network is given no time: one pass serves two of them, and the law of the data given x_t depends on none.
"""

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from edlm import contracts, costs
from edlm.contracts import Joint, Reads
from edlm.declaration import stage
from edlm.models import energies
from edlm.models.denoisers import SubsDenoiser


def energy(network: Joint) -> TensorDictModule:
    """Build the energy of transitions of a joint network as one of its own, `{candidates, x_t, positions} -> {energy}`.

    What `read` and `weigh` compute, for any other kernel or bound; it reads x_t too, one pass more than they need.
    """
    found = stage("candidates, x_t, positions -> energy", _Energy(network))
    return energies.declare(found, ("transition", "draft"), Reads(texts=1, candidates=1, calls=2))


def recall() -> TensorDictModule:
    """Build the stage that takes hidden states from those that a sampler carries: `{states, positions} -> {hidden}`."""
    return stage("states, positions -> hidden", _states_at)


def read(network: Joint) -> TensorDictModule:
    """Build the one pass, that over the candidates: `{candidates} -> {candidate_states}`."""
    return stage("candidates -> candidate_states", _Read(network))


def weigh(network: Joint) -> TensorDictModule:
    """Build the stage that weighs candidates by their states: `{candidate_states, hidden, positions} -> {energy}`."""
    shown = "" if getattr(network, "pad_id", None) is None else ", candidates"
    return stage(f"candidate_states, hidden, positions{shown} -> energy", _Weigh(network))


def carry() -> TensorDictModule:
    """Build the stage that keeps the winner's states for the next step: `{candidate_states, chosen} -> {states}`."""
    return stage("candidate_states, chosen -> states", _states_of_chosen)


def network_of(denoiser: SubsDenoiser) -> Joint:
    """Return the joint network of a denoiser. Raises ValueError for one without, and for one that is given the time."""
    network = denoiser.network
    if not isinstance(network, Joint):
        raise ValueError(f"a network of class {type(network).__name__} has no energy: a joint network has two heads")
    if denoiser.told is not None:
        raise ValueError("a joint network is given no time: build its denoiser without a schedule")
    return network


class _Read(nn.Module):
    """The one pass: candidates (b, k, l) to their states (b, k, l, h)."""

    def __init__(self, network: Joint) -> None:
        super().__init__()
        self.network = network

    def forward(self, candidates: Tensor) -> Tensor:
        return self.network(candidates.flatten(0, 1)).unflatten(0, candidates.shape[:2])


class _Weigh(nn.Module):
    """E, the sum of scalars over what is new: states (b, k, l, h), those of x_t (n, h) at new positions, to (b, k)."""

    def __init__(self, network: Joint) -> None:
        super().__init__()
        self.network = network

    def forward(self, states: Tensor, expected: Tensor, positions: Tensor, candidates: Tensor | None = None) -> Tensor:
        b, k, l, _ = states.shape
        everyone = energies.of_every_particle(positions, b, k, l)
        expected = expected.unsqueeze(1).expand(-1, k, -1).flatten(0, 1)
        asked = states.flatten(0, 1), expected, everyone
        # A network that reads every token need not take a fourth argument.
        scalars = self.network.scalars(*asked, *(() if candidates is None else (candidates.flatten(0, 1),)))
        scalars = scalars.to(torch.promote_types(scalars.dtype, torch.float32))
        owner = (everyone // l).clamp(max=b * k - 1)  # a padded position adds zero to the last
        return scalars.new_zeros(b * k).index_add(0, owner, scalars).view(b, k)


class _Energy(nn.Module):
    """Both passes: over x_t, for what is expected of the new positions, and over the candidates."""

    def __init__(self, network: Joint) -> None:
        super().__init__()
        self.read = _Read(network)
        self.weigh = _Weigh(network)

    def forward(self, candidates: Tensor, x_t: Tensor, positions: Tensor) -> Tensor:
        expected = self.read.network(x_t, None, positions.clamp(max=x_t.numel() - 1))
        shown = () if getattr(self.weigh.network, "pad_id", None) is None else (candidates,)
        return self.weigh(self.read(candidates), expected, positions, *shown)


def first(network: Joint, tokens: Tensor) -> TensorDict:
    """Return the state before the first step: the denoiser's only pass of its own."""
    return TensorDict({contracts.X_T: tokens, contracts.STATES: network(tokens), contracts.OWED: costs.whole(tokens)})


def _states_at(states: Tensor, positions: Tensor) -> Tensor:
    """States (b, l, h) at flat positions (n,), the last one at padded ones: (n, h)."""
    flat = states.flatten(0, 1)
    return flat.index_select(0, positions.clamp(max=len(flat) - 1))


def _states_of_chosen(states: Tensor, chosen: Tensor) -> Tensor:
    """The chosen particle's states: (b, k, l, h) and (b,) to (b, l, h)."""
    index = chosen.view(-1, 1, 1, 1).expand(-1, 1, *states.shape[2:])
    return states.gather(1, index).squeeze(1)
