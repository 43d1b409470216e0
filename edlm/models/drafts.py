"""Inputs of energies and denoisers as a sampler makes them, of keyed noise, and the same with one thing changed."""

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.process import noise
from edlm.process.noise import Stream

ENERGY_KEYS = (contracts.CANDIDATES, contracts.X_T, contracts.T, contracts.POSITIONS, contracts.LOG_P_CANDIDATES)
_PER_ROW = tuple(key for key in ENERGY_KEYS if contracts.SHAPES[key].split()[0] == "b")
_PER_PARTICLE = tuple(key for key in ENERGY_KEYS if "k" in contracts.SHAPES[key].split())


def drafts(
    vocab_size: int,
    mask_id: int,
    length: int = 8,
    num_rows: int = 3,
    num_particles: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> TensorDict:
    """Make what an energy is given in a corrected step: `{candidates, x_t, t, positions, log_p_candidates}`.

    Tokens are any but the mask, evenly; the last row is all masks, and every row has some. The candidates fill in what
    x_t masks.

    Args:
        vocab_size: ids, the mask's included.
        mask_id: the mask's.
        length: tokens of a text.
        num_rows: texts.
        num_particles: candidates of each.
        seed: of the tokens.
        device: where they are put.

    Returns:
        The inputs of an energy.

    Raises:
        ValueError: for a mask outside the vocabulary.

    Example:
        >>> import edlm
        >>> edlm.testing.drafts(vocab_size=5, mask_id=4, num_particles=2)["candidates"].shape
        torch.Size([3, 2, 8])
    """
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"mask_id = {mask_id} is outside the vocabulary of {vocab_size}")
    row, position = torch.arange(num_rows, device=device), torch.arange(length, device=device)
    u = noise.uniforms(seed, row.unsqueeze(1), 0, Stream.PROPOSAL, position, count=num_particles + 2)  # (b, l, k + 2)
    drawn = (u * (vocab_size - 1)).long()
    tokens = (drawn + (drawn >= mask_id)).transpose(1, 2)  # (b, k + 2, l)
    share = (row + 1).unsqueeze(1) / num_rows
    masked = (u[..., -1] < share) | (position == row.unsqueeze(1) % length)
    x_t = torch.where(masked, mask_id, tokens[:, -2])
    filled = masked.unsqueeze(1)
    log_p = noise.uniforms(seed, row.unsqueeze(1), 1, Stream.PROPOSAL, position, count=num_particles).log().float()
    return TensorDict(
        {
            contracts.CANDIDATES: torch.where(filled, tokens[:, :num_particles], x_t.unsqueeze(1)),
            contracts.X_T: x_t,
            contracts.T: share.squeeze(1).double(),
            contracts.POSITIONS: masked.flatten().nonzero().squeeze(-1),
            contracts.LOG_P_CANDIDATES: torch.where(filled, log_p.transpose(1, 2), 0.0),
        }
    )


def only_particle(inputs: TensorDict, j: int) -> TensorDict:
    """Keep the candidate j of every row."""
    return inputs.clone().update({key: inputs[key][:, [j]] for key in _PER_PARTICLE})


def only_rows(inputs: TensorDict, rows: list[int], mask_id: int) -> TensorDict:
    """Keep some of the rows, and ask for their masks."""
    chosen = TensorDict({key: inputs[key][rows] for key in _PER_ROW})
    return chosen.set(contracts.POSITIONS, _masked(chosen[contracts.X_T], mask_id))


def mix_rows(inputs: TensorDict, other: TensorDict, i: int, mask_id: int) -> TensorDict:
    """Put row i among rows of other texts, of which only every other position is asked for."""
    mine = torch.arange(len(inputs[contracts.X_T]), device=inputs[contracts.X_T].device) == i
    mixed = TensorDict(
        {key: torch.where(mine.view(-1, *[1] * (inputs[key].ndim - 1)), inputs[key], other[key]) for key in _PER_ROW}
    )
    positions = _masked(mixed[contracts.X_T], mask_id)
    own = positions // mixed[contracts.X_T].shape[1] == i
    every_other = torch.arange(len(positions), device=positions.device) % 2 == 0
    return mixed.set(contracts.POSITIONS, positions[own | every_other])


def pad_positions(inputs: TensorDict) -> TensorDict:
    """Add three positions that are padding."""
    positions = inputs[contracts.POSITIONS]
    padding = positions.new_full((3,), inputs[contracts.X_T].numel())
    return inputs.clone().set(contracts.POSITIONS, torch.cat([positions, padding]))


def fill_half(inputs: TensorDict, mask_id: int) -> TensorDict:
    """Have the candidates fill in every other of the positions and leave masks at the rest."""
    positions = inputs[contracts.POSITIONS][::2]
    x_t = inputs[contracts.X_T]
    filled = torch.zeros_like(x_t, dtype=torch.bool).flatten().index_fill(0, positions, True).view_as(x_t).unsqueeze(1)
    left = (x_t == mask_id).unsqueeze(1) & ~filled
    changes = {
        contracts.CANDIDATES: torch.where(left, mask_id, inputs[contracts.CANDIDATES]),
        contracts.LOG_P_CANDIDATES: torch.where(left, 0.0, inputs[contracts.LOG_P_CANDIDATES]),
        contracts.POSITIONS: positions,
    }
    return inputs.clone().update(changes)


def _masked(x_t: Tensor, mask_id: int) -> Tensor:
    return (x_t == mask_id).flatten().nonzero().squeeze(-1)
