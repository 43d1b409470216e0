"""One network, two heads: the pass that weighs what a step may reveal is the denoiser's pass for the next step.

A joint network (`contracts.Joint`) reads the candidates x_s. Its states at what is new in x_s tell the energy of the
transition (see `transition`), and those at what is still masked give `log p(x_0 | x_s)`. So a sampler reads the text of
masks once, then k candidates per step, and nothing besides; the winner's states are carried to the next step.
The network is told no time: one pass serves two of them, and the law of the data given x_t depends on none.
"""

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from edlm import contracts
from edlm.contracts import Joint, Reads
from edlm.models import energies
from edlm.models.denoisers import SubsDenoiser
from edlm.objectives import denoising, losses, transition
from edlm.process import noise, passes, schedules, stages
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule
from edlm.process.stages import stage


def energy(network: Joint) -> TensorDictModule:
    """The energy of transitions of a joint network as one of its own, `{candidates, x_t, positions} -> {energy}`.

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


def contrastive(
    denoiser: SubsDenoiser,
    schedule: Schedule,
    num_steps: tuple[int, int],
    num_negatives: int = 1,
    nelbo_weight: float = 1.0,
    energy_weight: float = 1.0,
    objective: Callable[[Tensor, Tensor], Tensor] = losses.nce,
    pad_id: int | None = None,
) -> TensorDictSequential:
    """Build the training pipeline of a joint network: `{x_0, seed, row, step, num_rows} -> {loss, energy, ...}`.

    A text is put at a state x_s of a uniform grid, and one pass reads it beside `num_negatives` draws of what the step
    before revealed. `loss = nelbo_weight NELBO / l + energy_weight objective(E)`: the NELBO of the sampler with these
    steps, on what x_s still masks, and contrast on what is new. The draws are the network's own, as they are in
    sampling: no gradient, dropout off, and the weights as they stand now. With a pad_id the batch has to hold
    `num_tokens` too, and l is `num_tokens / num_rows`: the mean of the first part is then one over tokens.
    num_steps: fewest and most steps of the grids to train for; their logarithm is uniform between them.
    Of the T + 1 states of a grid the first, all masks, has no step before it, the last nothing left to predict.
    Raises ValueError unless 1 <= fewest <= most and num_negatives >= 1, and for a denoiser as `network_of` does.
    """
    fewest, most = num_steps
    if not 1 <= fewest <= most:
        raise ValueError(f"num_steps = ({fewest}, {most}) must be the fewest and the most steps, 1 <= fewest <= most")
    if num_negatives < 1:
        raise ValueError(f"num_negatives = {num_negatives} must be at least 1")
    network = network_of(denoiser)
    counted = [] if pad_id is None else [contracts.NUM_TOKENS, contracts.NUM_ROWS]
    draft = TensorDictSequential(
        {"denoise": denoiser, "draw": denoising.negative_noise(num_negatives), "propose": stages.propose(denoiser)},
        inplace=False,
    )
    return TensorDictSequential(
        {
            "corrupt": TensorDictModule(
                _AtState(denoiser.mask_id, schedule, fewest, most, pad_id),
                in_keys=[contracts.X_0, contracts.SEED, contracts.ROW, contracts.STEP, contracts.NUM_ROWS],
                out_keys=[contracts.X_T, contracts.T, contracts.X_S, contracts.POSITIONS, contracts.WEIGHT],
            ),
            "draft": _AsItStands(draft),
            "pair": TensorDictModule(
                lambda data, drawn: torch.cat([data.unsqueeze(1), drawn], dim=1),
                in_keys=[contracts.X_S, contracts.CANDIDATES],
                out_keys=[contracts.CANDIDATES],
            ),
            "read": read(network),
            "weigh": weigh(network),
            "remain": TensorDictModule(
                partial(_still_masked, denoiser.mask_id),
                in_keys=[contracts.X_S, contracts.CANDIDATE_STATES],
                out_keys=[contracts.POSITIONS, contracts.HIDDEN],
            ),
            "score": denoising.score(denoiser),
            "objective": TensorDictModule(
                partial(_loss, nelbo_weight, energy_weight, objective),
                in_keys=[contracts.LOG_PROB, contracts.WEIGHT, contracts.ENERGY, *counted],
                out_keys=[contracts.LOSS],
            ),
        },
        inplace=False,
    )


def network_of(denoiser: SubsDenoiser) -> Joint:
    """The joint network of a denoiser. Raises ValueError for one without, and for one that is told the time."""
    network = denoiser.network
    if not isinstance(network, Joint):
        raise ValueError(f"a network of class {type(network).__name__} has no energy: a joint network has two heads")
    if denoiser.told is not None:
        raise ValueError("a joint network is told no time: build its denoiser without a schedule")
    return network


class _AsItStands(TensorDictModuleBase):
    """A stage of the network that is trained: no gradient, and in eval mode while it runs.

    Not a copy that shares the parameters: what shards or rounds the network's own would leave it with the old ones.
    """

    def __init__(self, stage: TensorDictModuleBase) -> None:
        super().__init__()
        self.in_keys, self.out_keys = list(stage.in_keys), list(stage.out_keys)
        self.stage = stage

    def forward(self, tensordict: TensorDict) -> TensorDict:
        training_now = [module for module in self.stage.modules() if module.training]
        self.stage.eval()
        try:
            with torch.no_grad():
                return tensordict.copy().update(self.stage(tensordict))
        finally:
            for module in training_now:
                module.training = True


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


class _AtState(nn.Module):
    """Texts at one of the T + 1 states of a random grid, x_s, and at the one before, x_t; weights of their NELBO.

    The sum over the states that are before a step is the T-step NELBO, of which one of T + 1 is drawn: its weight is
    `(T + 1) (alpha_s' - alpha_s) / (1 - alpha_s)`, with the next step's `s -> s'`, and zero at the end of the grid.
    """

    def __init__(self, mask_id: int, schedule: Schedule, fewest: int, most: int, pad_id: int | None) -> None:
        super().__init__()
        self.mask_id = mask_id
        self.schedule = schedule
        self.fewest = fewest
        self.most = most
        self.pad_id = pad_id

    def forward(
        self, x_0: Tensor, seed: Tensor, row: Tensor, step: Tensor, num_rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        when, how_many = noise.uniforms(seed, row, step, Stream.TIME, count=2).unbind(-1)
        num_steps = transition.steps_between(self.fewest, self.most, how_many)
        left = (schedules.stratified_times(when, row, num_rows) * (num_steps + 1)).floor()  # steps to go: 0..T
        maskable = torch.ones_like(x_0, dtype=torch.bool) if self.pad_id is None else x_0 != self.pad_id
        reveal_noise = noise.grid(seed, row, step, Stream.CORRUPTION, x_0.shape[1])
        masked_for = transition.steps_masked(reveal_noise, self.schedule, num_steps)
        x_t = torch.where(maskable & (masked_for <= left.unsqueeze(-1) + 1), self.mask_id, x_0)
        x_s = torch.where(maskable & (masked_for <= left.unsqueeze(-1)), self.mask_id, x_0)
        alpha, alpha_next = (self.schedule.alpha(steps.clamp(min=0) / num_steps) for steps in (left, left - 1))
        share = torch.where(left > 1, (alpha_next - alpha) / (1.0 - alpha), left)  # the last step reveals all
        positions = (x_t != x_s).flatten().nonzero().squeeze(-1)
        return x_t, ((left + 1) / num_steps).clamp(max=1.0), x_s, positions, (num_steps + 1) * share


def first(network: Joint, tokens: Tensor) -> TensorDict:
    """The state before the first step: the denoiser's only pass of its own."""
    return TensorDict({contracts.X_T: tokens, contracts.STATES: network(tokens), contracts.OWED: passes.owed(tokens)})


def _states_at(states: Tensor, positions: Tensor) -> Tensor:
    """States (b, l, h) at flat positions (n,), the last one at padded ones: (n, h)."""
    flat = states.flatten(0, 1)
    return flat.index_select(0, positions.clamp(max=len(flat) - 1))


def _states_of_chosen(states: Tensor, chosen: Tensor) -> Tensor:
    """The chosen particle's states: (b, k, l, h) and (b,) to (b, l, h)."""
    index = chosen.view(-1, 1, 1, 1).expand(-1, 1, *states.shape[2:])
    return states.gather(1, index).squeeze(1)


def _still_masked(mask_id: int, x_s: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """What x_s (b, l) masks, as flat positions (n,), and the states (n, h) of candidate 0, the text, there."""
    positions = (x_s == mask_id).flatten().nonzero().squeeze(-1)
    return positions, states[:, 0].flatten(0, 1).index_select(0, positions)


def _loss(
    nelbo_weight: float,
    energy_weight: float,
    objective: Callable[[Tensor, Tensor], Tensor],
    log_prob: Tensor,
    weight: Tensor,
    energies_: Tensor,
    num_tokens: Tensor | None = None,
    num_rows: Tensor | None = None,
) -> Tensor:
    length = log_prob.shape[1] if num_tokens is None or num_rows is None else num_tokens / num_rows
    bound = losses.nelbo(log_prob, weight) / length
    return nelbo_weight * bound + energy_weight * objective(energies_[:, 0], energies_[:, 1:])
