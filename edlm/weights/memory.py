"""Bounds on the memory of a corrected step of large models, before any of it is taken."""

from typing import NamedTuple

from torch import nn

from edlm.nn.decoders import DecoderNetwork
from edlm.nn.pretrained import PretrainedNetwork
from edlm.process import categorical

Large = DecoderNetwork | PretrainedNetwork


class MemoryPlan(NamedTuple):
    """Upper bounds on the bytes that a corrected step needs, in the order in which it needs them."""

    weights: int  # of the denoiser and the energy's model
    drafts: int  # k candidates with their log-probabilities and noise
    denoise: int  # the denoiser's blocks
    propose: int  # its logits and the draws, tile by tile
    weigh: int  # the energy's blocks and logits, chunk by chunk

    @property
    def peak(self) -> int:
        """The largest sum of bytes at one time: weights and drafts stay, the rest comes one after the other."""
        return self.weights + self.drafts + max(self.denoise, self.propose, self.weigh)


def memory_plan(
    denoiser: Large,
    energy: Large | None,
    batch_size: int,
    num_particles: int,
    length: int,
    logits_at_once: int = categorical.LOGITS_AT_ONCE["cuda"],
    *,
    trained: int = 0,
) -> MemoryPlan:
    """Bound the bytes of one step of importance sampling with `energies.residual_ar`, or of a step without an energy.

    As the energy, the denoiser itself stands for one over its network: shared weights are held once, beside `trained`
    bytes of the energy's own.
    Weights are counted, the rest is bounded. Per token the widest moment of a block holds three vectors of its
    feed-forward layer, or eight of its attention, and the float32 copies of a norm. `logits_at_once` is the size of a
    tile, that of `categorical` on a GPU. Attention is assumed to need memory linear in the length. Networks may be on
    the meta device, which takes no memory.
    """
    num_particles = num_particles if energy is not None else 1
    tokens, in_energy = batch_size * length, batch_size * num_particles * length
    # A head has no logits, but four float32 vectors of every token at once.
    scored, headed = (0, in_energy * 4 * 4 * denoiser.head.in_features) if energy is denoiser else (logits_at_once, 0)
    tile = min(tokens, max(1, logits_at_once // denoiser.head.out_features))
    vocab_size = denoiser.head.out_features
    drawn = vocab_size * (2 * denoiser.head.weight.element_size() + 4 * 4)  # logits, and weights in float32
    blocks = num_particles if vocab_size > categorical.BLOCK else 1  # one per draw, or the whole vocabulary for all
    drawn += blocks * min(categorical.BLOCK, vocab_size) * (4 + 8 + 8)  # a block, and its running sum
    return MemoryPlan(
        weights=_bytes_of(denoiser) + (trained if energy in (None, denoiser) else _bytes_of(energy)),
        drafts=in_energy * (8 + 8 + 8 + 4 + 4),
        denoise=_bytes_of_block(denoiser, tokens),
        propose=tile * drawn + tokens * denoiser.head.in_features * denoiser.head.weight.element_size(),
        weigh=0 if energy is None else headed + _bytes_of_weighing(energy, batch_size * num_particles, length, scored),
    )


def _bytes_of_weighing(energy: Large, candidates: int, length: int, logits_at_once: int) -> int:
    """Sum the states of all candidates, and the larger of a block for the rows run at once and a chunk of logits."""
    rows = min(energy.rows_at_once or candidates, candidates)
    states = candidates * length * energy.head.in_features * energy.head.weight.element_size()
    scored = min(candidates * length * energy.head.out_features, logits_at_once)
    return 2 * states + max(_bytes_of_block(energy, rows * length), scored * 3 * 4)


def _bytes_of(network: nn.Module) -> int:
    """Sum parameters and buffers, a shared one once."""
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _bytes_of_block(network: Large, tokens: int) -> int:
    size, width = network.head.weight.element_size(), network.head.in_features
    forward, heads = network.widths
    widest = max(3 * forward + 2 * width, 8 * heads + 2 * width)
    return tokens * (widest * size + 2 * width * 4)
