"""Energies `E(x_0, x_t, t)` in nats, low = likely: `p(x_0 | x_t) ~ p_theta(x_0 | x_t) exp(-E)` (Xu et al. 2025).

An energy is a TensorDict module that reads `candidates` (b, k, l) and whichever of `x_t`, `t`, `positions` and
`log_p_candidates` it needs, and writes `energy` (b, k). Particles and rows never see each other.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn

from edlm import contracts, costs
from edlm.contracts import Energy, Reads, Scope
from edlm.declaration import stage
from edlm.models import autoregressive
from edlm.nn.networks import EnergyNetwork
from edlm.process import arguments, schedules
from edlm.process.schedules import Schedule

E = TypeVar("E", bound=nn.Module)
_OF_PAIRS = "one that reads pairs of texts, as networks.EnergyNetwork is"


def zero() -> TensorDictModule:
    """Build `E = 0`: importance sampling with it has the law of the plain sampler. A control for experiments.

    Returns:
        An energy of either scope, which reads nothing of a text.

    Example:
        >>> import edlm, torch
        >>> from tensordict import TensorDict
        >>> energy = edlm.energies.zero()
        >>> energy(TensorDict({"candidates": torch.zeros(1, 2, 3, dtype=torch.int64)}))["energy"].tolist()
        [[0.0, 0.0]]
    """
    return declare(stage("candidates -> energy", _zero), ("draft", "transition"), costs.NOTHING)


def declare(energy: E, scopes: tuple[Scope, ...], reads: Reads | None = None) -> E:
    """Have an energy say what it can weigh, and what it reads.

    Args:
        energy: the module, which is changed.
        scopes: what it can weigh, its own scope first.
        reads: what it reads of a row; None: every candidate once.

    Returns:
        The same module.

    Example:
        >>> import edlm
        >>> edlm.energies.declare(edlm.energies.zero(), ("draft",)).scopes
        ('draft',)
    """
    energy.scopes, energy.reads = scopes, Reads() if reads is None else reads  # type: ignore[assignment]
    return energy


def scopes_of(energy: Energy) -> tuple[Scope, ...]:
    """Return what an energy says that it can weigh.

    Args:
        energy: any energy.

    Returns:
        The scopes, its own first; either, if it says nothing.

    Example:
        >>> import edlm
        >>> edlm.energies.scopes_of(edlm.energies.zero())
        ('draft', 'transition')
    """
    found: tuple[Scope, ...] = getattr(energy, "scopes", ("draft", "transition"))
    return found


def learned(network: nn.Module, schedule: Schedule | None = None, pad_id: int | None = None) -> TensorDictModule:
    """Build the energy of drafts of a network `(x_t, x_0, sigma) -> scalar`, as contrast trains it.

    Args:
        network: an `EnergyNetwork`, or what is called like one.
        schedule: that of whose `sigma(t)` the network is given; None gives it zero.
        pad_id: positions that x_t gives as this id do not count.

    Returns:
        A `contracts.Energy` of drafts.

    Raises:
        ValueError: for a network of single texts, and if the schedule's sigma(1) is infinite.

    Example:
        >>> import edlm
        >>> network = edlm.networks.EnergyNetwork(5, max_length=8, hidden_size=16, num_layers=1, num_heads=2).eval()
        >>> edlm.energies.scopes_of(edlm.energies.learned(network))
        ('draft',)
    """
    of_pairs = isinstance(network, nn.Module) and (hasattr(network, "per_position") or not hasattr(network, "head"))
    arguments.require_kind("network", network, of_pairs, _OF_PAIRS)
    return declare(_of_network(_Learned(network, schedule, pad_id)), ("draft",))


def learned_transition(
    network: EnergyNetwork, schedule: Schedule | None = None, pad_id: int | None = None
) -> TensorDictModule:
    """Build the energy of a transition from a network's scalars: `E = sum_{i in S} e_i(x_t, x_s)`, S the new positions.

    S is where x_s differs from x_t. The log-ratio of a transition is such a sum, by the chain rule over S; an average
    over a long text would drown the few positions that differ. Zero if nothing is new. Raises ValueError as `learned`
    does.

    Args:
        network: an `EnergyNetwork`, or what is called like one.
        schedule: see `learned`.
        pad_id: see `learned`.

    Returns:
        A `contracts.Energy` of transitions.

    Example:
        >>> import edlm
        >>> network = edlm.networks.EnergyNetwork(5, max_length=8, hidden_size=16, num_layers=1, num_heads=2).eval()
        >>> edlm.energies.scopes_of(edlm.energies.learned_transition(network))
        ('transition',)
    """
    arguments.require_kind("network", network, hasattr(network, "per_position"), _OF_PAIRS)
    return declare(_of_network(_LearnedTransition(network, schedule, pad_id)), ("transition",))


def residual_ar(
    network: nn.Module, mask_id: int, bos_id: int | None, carry_over: bool, pad_id: int | None = None
) -> TensorDictModule:
    """Build the energy of an autoregressive model against the denoiser: nothing to train (EDLM, Xu et al. 2025).

    Posterior form (carry_over=False): `E = -log p_AR(x_0) + log p_theta(x_0 | x_t)`, so that `Z(x_t)` is the
    probability of the visible tokens under the AR model. Carry-over form: only positions that x_t masks count, in both
    parts, and Z = 1; it does not look at visible tokens to the right.

    The mask has probability zero under the AR model too: a candidate with a mask at a position that counts has
    E = +inf. Log-probabilities are float32 or better, sums float64.

    Args:
        network: a causal network over the denoiser's vocabulary.
        mask_id: the id of the mask.
        bos_id: what stands in front of the text, so that both parts cover every position; it may be the mask's id, for
            a network that was trained with it there. With None the first token is given, as the published models take
            it, and is left out of both.
        carry_over: the carry-over form, or else that of the posterior.
        pad_id: positions that x_t gives as this id count in neither part.

    Returns:
        A `contracts.Energy` of drafts.

    Raises:
        ValueError: as `check_ar` does, for a network that is not causal or an id outside its vocabulary.

    Example:
        >>> import edlm
        >>> sizes = dict(hidden_size=16, num_layers=1, num_heads=2, conditioning_size=0)
        >>> network = edlm.networks.Transformer(5, max_length=8, **sizes, causal=True).eval()
        >>> edlm.energies.residual_ar(network, mask_id=4, bos_id=4, carry_over=False).in_keys
        ['candidates', 'x_t', 'positions', 'log_p_candidates']
    """
    autoregressive.check_ar(network, mask_id, bos_id, pad_id)
    weigh = _ResidualAr(network, mask_id, bos_id, carry_over, pad_id)
    found = stage("candidates, x_t, positions, log_p_candidates -> energy", weigh)
    return declare(found, ("draft",))  # a mask has no chance under an AR model


def ordered_ar(network: nn.Module, mask_id: int, bos_id: int | None) -> TensorDictModule:
    """Build the energy of an autoregressive model's law of the tokens that are filled in, from left to right.

    `E = sum_{i in S} [ log p_theta(x_i | x_t) - log p_AR(x_i | x_<i) ]`, where candidates fill in S. If a mask stands
    to the left of a token of S, the model has no law of it, and E = +inf. Of whole drafts E is the carry-over form of
    `residual_ar`. A first token without a bos is left out. Z = 1.

    Args:
        network: a causal network over the denoiser's vocabulary.
        mask_id: the id of the mask.
        bos_id: the token in front of the text; None: the first token is given.

    Returns:
        A `contracts.Energy` of drafts, and of transitions that begin at the first mask.

    Raises:
        ValueError: as `residual_ar` does.

    Example:
        >>> import edlm
        >>> sizes = dict(hidden_size=16, num_layers=1, num_heads=2, conditioning_size=0)
        >>> network = edlm.networks.Transformer(5, max_length=8, **sizes, causal=True).eval()
        >>> edlm.energies.ordered_ar(network, mask_id=4, bos_id=4).in_keys
        ['candidates', 'positions', 'log_p_candidates']
    """
    autoregressive.check_ar(network, mask_id, bos_id)
    found = stage("candidates, positions, log_p_candidates -> energy", _OrderedAr(network, mask_id, bos_id))
    return declare(found, ("draft", "transition"))


def autoregressive_model(energy: Energy) -> tuple[nn.Module, int, int | None] | None:
    """Find the autoregressive model of a residual energy.

    Args:
        energy: any energy.

    Returns:
        Its network, the mask's id and the bos's; None for an energy that is no `residual_ar`.

    Example:
        >>> import edlm
        >>> edlm.energies.autoregressive_model(edlm.energies.zero()) is None
        True
    """
    found = getattr(energy, "module", None)
    return (found.network, found.mask_id, found.bos_id) if isinstance(found, _ResidualAr) else None


def _of_network(module: "_Learned") -> TensorDictModule:
    if module.schedule is not None:
        schedules.require_finite_sigma(module.schedule, "energy")
    return stage("candidates, x_t, t -> energy", module)


def scaled(energy: TensorDictModuleBase, factor: float) -> TensorDictModuleBase:
    """Scale an energy to `factor * E`: `-1` flips the sign, the control that must make samples worse.

    Args:
        energy: any energy; one that can be +inf may only be scaled by a positive factor.
        factor: what it is multiplied with.

    Returns:
        An energy of the same scope that reads the same keys.

    Example:
        >>> import edlm
        >>> edlm.energies.scaled(edlm.energies.zero(), -1.0).in_keys
        ['candidates']
    """
    arguments.require_energy("energy", energy)
    arguments.require_numbers(factor=factor)
    return _Sum([energy], [factor])


def product(*experts: TensorDictModuleBase) -> TensorDictModuleBase:
    """Add energies, `E = sum_j E_j`, float64: experts multiply, the target is `p_theta prod_j exp(-E_j)` (Hinton 2002).

    Args:
        experts: energies, at least one; the weight of one is `scaled(energy, weight)`.

    Returns:
        An energy of the scopes that all of them have, which reads what any of them reads.

    Raises:
        ValueError: for no energy.

    Example:
        >>> import edlm
        >>> edlm.energies.product(edlm.energies.zero(), edlm.energies.zero()).out_keys
        ['energy']
    """
    if not experts:
        raise ValueError("a product needs at least one energy")
    for number, expert in enumerate(experts):
        arguments.require_energy(f"experts[{number}]", expert)
    return _Sum(experts, [1.0] * len(experts))


def _zero(candidates: Tensor) -> Tensor:
    return torch.zeros(candidates.shape[:2], dtype=torch.float64, device=candidates.device)


class _Learned(nn.Module):
    def __init__(self, network: nn.Module, schedule: Schedule | None, pad_id: int | None) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.pad_id = pad_id

    def forward(self, candidates: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        b, k, l = candidates.shape
        x_0 = candidates.flatten(0, 1)  # (b k, l): the particles of a row stay together
        x_t = x_t.unsqueeze(1).expand(b, k, l).flatten(0, 1)
        valid = None if self.pad_id is None else x_t != self.pad_id
        noise_level = None
        if self.schedule is not None:
            noise_level = schedules.sigma(self.schedule, t).unsqueeze(1).expand(b, k).flatten()
        return self._scalars(x_t, x_0, noise_level, valid).unflatten(0, (b, k))

    def _scalars(self, x_t: Tensor, x_0: Tensor, noise_level: Tensor | None, valid: Tensor | None) -> Tensor:
        return self.network(x_t, x_0, noise_level, valid)


class _LearnedTransition(_Learned):
    def _scalars(self, x_t: Tensor, x_0: Tensor, noise_level: Tensor | None, valid: Tensor | None) -> Tensor:
        scalars: Tensor = self.network.per_position(x_t, x_0, noise_level, valid)  # type: ignore[operator]
        scalars = scalars.to(torch.promote_types(scalars.dtype, torch.float32))
        return torch.where(x_t != x_0, scalars, 0.0).sum(-1)


def of_every_particle(positions: Tensor, b: int, k: int, l: int) -> Tensor:
    """Return flat positions of rows as those of all their particles, padding kept.

    Args:
        positions: flat in b * l, int64 (n,); b * l is padding.
        b: how many rows.
        k: particles of a row.
        l: tokens of a text.

    Returns:
        Positions flat in b * k * l, int64 (n k,).

    Example:
        >>> import edlm, torch
        >>> edlm.energies.of_every_particle(torch.tensor([1, 4]), b=1, k=2, l=4).tolist()
        [1, 5, 8, 8]
    """
    row, position = positions // l, positions % l
    particles = torch.arange(k, device=positions.device)
    everyone = (row.unsqueeze(-1) * k + particles) * l + position.unsqueeze(-1)
    return everyone.clamp(max=b * k * l).flatten()


class _Sum(TensorDictModuleBase):
    """`sum_j factor_j E_j` of any energies, each shown only what it reads."""

    def __init__(self, terms: Sequence[TensorDictModuleBase], factors: Sequence[float]) -> None:
        super().__init__()
        self.in_keys = list(dict.fromkeys(key for term in terms for key in term.in_keys))
        self.out_keys = [contracts.ENERGY]
        self.terms = nn.ModuleList(terms)
        self.shown = [list(term.in_keys) for term in terms]
        self.factors = list(factors)
        scopes = [scopes_of(term) for term in terms]
        declare(
            self,
            tuple(scope for scope in scopes[0] if all(scope in each for each in scopes)),
            costs.together(*(costs.of_energy(term) for term in terms)),
        )

    def forward(self, tensordict: TensorDict) -> TensorDict:
        found = [
            factor * term(tensordict.select(*keys))[contracts.ENERGY].double()
            for term, keys, factor in zip(self.terms, self.shown, self.factors, strict=True)
        ]
        return tensordict.set(contracts.ENERGY, torch.stack(found).sum(0))


class _ResidualAr(nn.Module):
    def __init__(
        self, network: nn.Module, mask_id: int, bos_id: int | None, carry_over: bool, pad_id: int | None
    ) -> None:
        super().__init__()
        self.network = network
        self.mask_id = mask_id
        self.bos_id = bos_id
        self.carry_over = carry_over
        self.pad_id = pad_id

    def forward(self, candidates: Tensor, x_t: Tensor, positions: Tensor, log_p_candidates: Tensor) -> Tensor:
        wanted = of_every_particle(positions, *candidates.shape) if self.carry_over else None
        log_p_ar = autoregressive.ar_log_prob(self.network, candidates.flatten(0, 1), self.mask_id, self.bos_id, wanted)
        log_ratio = log_p_ar.view(candidates.shape).double() - log_p_candidates.double()
        log_ratio = torch.where(candidates == self.mask_id, -torch.inf, log_ratio)
        return -torch.where(self._counts(x_t).unsqueeze(1), log_ratio, 0.0).sum(-1)

    def _counts(self, x_t: Tensor) -> Tensor:
        """The positions of both parts, bool (b, l). It must not depend on what was drawn, or Z would."""
        counts = x_t == self.mask_id if self.carry_over else torch.ones_like(x_t, dtype=torch.bool)
        if self.pad_id is not None:
            counts = counts & (x_t != self.pad_id)
        if self.bos_id is None:
            counts = counts & (torch.arange(x_t.shape[1], device=x_t.device) > 0)
        return counts


class _OrderedAr(nn.Module):
    def __init__(self, network: nn.Module, mask_id: int, bos_id: int | None) -> None:
        super().__init__()
        self.network, self.mask_id, self.bos_id = network, mask_id, bos_id

    def forward(self, candidates: Tensor, positions: Tensor, log_p_candidates: Tensor) -> Tensor:
        wanted = of_every_particle(positions, *candidates.shape)
        log_p_ar = autoregressive.ar_log_prob(self.network, candidates.flatten(0, 1), self.mask_id, self.bos_id, wanted)
        (b, k, l), first = candidates.shape, 0 if self.bos_id is not None else 1
        filled = torch.zeros(b * l + 1, dtype=torch.bool, device=positions.device).index_fill(0, positions, True)
        counts = (filled[:-1].view(b, 1, l) & (torch.arange(l, device=positions.device) >= first)).expand(b, k, l)
        unknown = (candidates == self.mask_id).long().cumsum(-1) > 0
        log_ratio = log_p_ar.view(b, k, l).double() - log_p_candidates.double()
        log_ratio = torch.where(unknown, -torch.inf, log_ratio)
        return -torch.where(counts, log_ratio, 0.0).sum(-1)
