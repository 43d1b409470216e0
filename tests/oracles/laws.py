"""Laws over sequences, and every sequence, state and candidate of a small space."""

import torch
from torch import Tensor


def markov(initial: Tensor, transition: Tensor, length: int) -> Tensor:
    """Joint law of a Markov chain: initial (m,), transition (m, m) with rows that sum to 1."""
    law = initial
    for _ in range(length - 1):
        law = law.unsqueeze(-1) * transition
    return law


def random_markov(seed: int, symbols: int, length: int, strength: float = 2.0) -> Tensor:
    """A Markov law with noisy transitions around a random permutation: every symbol has a favourite successor.

    A larger strength makes neighbours depend on each other more; without the permutation some chains end in one symbol.
    """
    generator = torch.Generator().manual_seed(seed)
    initial = torch.randn(symbols, generator=generator, dtype=torch.float64).softmax(-1)
    noise = torch.randn(symbols, symbols, generator=generator, dtype=torch.float64)
    favourite = torch.eye(symbols, dtype=torch.float64)[torch.randperm(symbols, generator=generator)]
    return markov(initial, (noise + strength * favourite).softmax(-1), length)


def random_joint(seed: int, symbols: int, length: int, strength: float = 1.0) -> Tensor:
    """A law without any structure: the softmax of `strength` times independent normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    logits = strength * torch.randn(symbols**length, generator=generator, dtype=torch.float64)
    return logits.softmax(-1).reshape((symbols,) * length)


def two_fair_bits() -> Tensor:
    """Two identical fair bits: the smallest law that no factorised step can draw."""
    return torch.eye(2, dtype=torch.float64) / 2


def all_sequences(symbols: int, length: int) -> Tensor:
    """Every sequence of m symbols, last position fastest: int64 (m^l, l)."""
    digits = symbols ** torch.arange(length - 1, -1, -1)
    return torch.arange(symbols**length).unsqueeze(-1) // digits % symbols


def all_masked_states(symbols: int, length: int) -> Tensor:
    """Every sequence in which any position may be masked: int64 ((m + 1)^l, l)."""
    return all_sequences(symbols + 1, length)


def index_of(x: Tensor, symbols: int) -> Tensor:
    """Number of a sequence (..., l) among `all_sequences`; pass m + 1 for a state with masks."""
    return (x * symbols ** torch.arange(x.shape[-1] - 1, -1, -1, device=x.device)).sum(-1)


def empirical_law(tokens: Tensor, symbols: int) -> Tensor:
    """Frequencies of the sequences in a sample: tokens (b, l) to (m^l,)."""
    counts = torch.bincount(index_of(tokens, symbols).cpu(), minlength=symbols ** tokens.shape[-1])
    return counts.to(torch.float64) / tokens.shape[0]


def with_masks(law: Tensor, length: int) -> Tensor:
    """Append a mask to each of the last l axes, of m entries, that sums over it: `p(visible tokens)` of every state."""
    for axis in range(-length, 0):
        law = torch.cat([law, law.sum(axis, keepdim=True)], dim=axis)
    return law


def at(table: Tensor, x: Tensor) -> Tensor:
    return table[x.unbind(-1)]


def agree(x: Tensor, x_t: Tensor, mask_id: int) -> Tensor:
    """Whether x has the visible tokens of x_t: two (..., l) to bool (...)."""
    return ((x == x_t) | (x_t == mask_id)).all(-1)


def filled(candidates: Tensor, x_t: Tensor, mask_id: int) -> Tensor:
    return (x_t == mask_id).unsqueeze(-2) & (candidates != mask_id)


def subsets(of: Tensor) -> Tensor:
    chosen = all_sequences(2, len(of)).bool()
    return chosen[~(chosen & ~of).any(-1)]


def fill(x_t: Tensor, positions: Tensor, symbols: int) -> Tensor:
    """Every way to fill in the positions, bool (l,): (b, l) to (b, m^|positions|, l)."""
    tokens = all_sequences(symbols, int(positions.sum()))
    filled = x_t.unsqueeze(1).repeat(1, len(tokens), 1)
    filled[..., positions] = tokens
    return filled
