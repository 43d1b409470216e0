"""Transformers in plain torch, rotary, bidirectional or causal, with a vocabulary head or a scalar head.

The parameters have the layout of the published MDLM and EDLM networks: an untied embedding, LayerNorm without bias,
adaLN conditioning on the noise level, tanh GELU. So their weights load by renaming keys. Networks know tokens and
noise levels only; `denoisers` and `energies` know masks and times.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edlm.nn import attention, rope, sizes
from edlm.nn.attention import Cache, after_finished, beside_clean, both, in_blocks, readable, two_streams
from edlm.nn.blocks import Block, Head, Trunk, init_embedding
from edlm.nn.energy_network import EnergyNetwork

__all__ = ["EnergyNetwork", "JointNetwork", "Transformer", "blocks", "recompute"]


class Transformer(nn.Module):
    """A network over tokens with a vocabulary head that can be run on chosen positions alone.

    Bidirectional with adaLN it is a denoiser's network. `causal=True, conditioning_size=0` makes an autoregressive one.

    Args:
        vocab_size: ids, the mask included.
        max_length: the longest block that it reads.
        hidden_size: h, a multiple of 2 * num_heads.
        num_layers: at least 1.
        num_heads: heads of the attention.
        conditioning_size: width of the embedded noise level; 0 leaves adaLN out.
        causal: whether a position reads only itself and those before it.
        dropout: probability in [0, 1).
        norm_bias: whether LayerNorms have a bias.
        pad_id: the id that fills a block after its text. It is not read, so the states of a text do not depend on it;
            None: every token is read. A causal network never reads what stands after a token.
        block_size: positions of a block, of which each reads its own and those before it, for block diffusion; the
            last block may be shorter. None: all positions read each other.
        qk_norm: whether queries and keys are normalised before attention compares them (Dehghani et al. 2023,
            arXiv 2302.05442).

    Raises:
        ValueError: naming the argument, for a size or id that no network can have, or above `limits`.

    Example:
        >>> import edlm
        >>> network = edlm.networks.Transformer(vocab_size=28, max_length=16, hidden_size=32, num_layers=1)
        >>> network(torch.zeros(2, 16, dtype=torch.int64)).shape
        torch.Size([2, 16, 32])
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        conditioning_size: int = 128,
        causal: bool = False,
        dropout: float = 0.0,
        norm_bias: bool = False,
        pad_id: int | None = None,
        block_size: int | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.arguments = sizes.own_arguments(locals())
        sizes.require_sizes(self.arguments)
        self.max_length, self.block_size = max_length, block_size
        self.pad_id = sizes.checked_id(pad_id, vocab_size)
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.trunk = Trunk(hidden_size, num_layers, num_heads, conditioning_size, causal, dropout, norm_bias, qk_norm)
        self.head = Head(hidden_size, vocab_size)
        init_embedding(self.embedding)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        tokens: Tensor,
        sigma: Tensor | None = None,
        positions: Tensor | None = None,
        keep: bool = False,
        clean: Tensor | None = None,
        attention: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map tokens (b, l) and noise levels (b,) to hidden states (b, l, h), or (n, h) at flat positions (n,).

        keep: return keys and values (b, layers, 2, heads, l, d) too, the context that `in_order` reads of x_t.
        clean: the text without masks, (b, l), that every block of the tokens reads in place of the blocks before it:
        the states of all blocks, each as if those before it were finished, in one pass over both.
        attention: which positions a row reads at most, bool (l, l); None: all that the network ever reads.
        """
        if clean is not None and self.block_size is not None and tokens.shape[1] > self.block_size:
            return self._beside_clean(tokens, clean, sigma, positions)
        mask = both(in_blocks(tokens.shape[1], self.block_size, tokens), readable(self._valid(tokens)))
        read = both(attention, mask)
        states, context = self.trunk(self.embedding(tokens), sigma=sigma, mask=read, positions=positions, keep=keep)
        return (states, context) if keep else states

    def _beside_clean(self, tokens: Tensor, clean: Tensor, sigma: Tensor | None, positions: Tensor | None) -> Tensor:
        """Run one pass over [x_t ; x_0], both at the positions of the text, for the states of x_t."""
        copies, l = torch.cat([tokens, clean], dim=1), tokens.shape[1]
        assert self.block_size is not None
        mask = both(beside_clean(l, self.block_size, tokens), readable(self._valid(copies)))
        x = self.embedding(copies)
        cos, sin = (table.repeat(2, 1) for table in rope.table(l, self.trunk.head_size, x))
        wanted = None if positions is None else positions + positions // l * l
        states, _ = self.trunk(x, (cos, sin), sigma, mask, positions=wanted)
        return states[:, :l] if positions is None else states

    def in_order(
        self,
        tokens: Tensor,
        where: Tensor,
        mask_id: int,
        context: Tensor,
        sigma: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """Compute the states (b, k, m - 1, h) that predict new tokens one after the other, in one pass over them alone.

        tokens: int64 (b, k, m), new in k candidates for x_s; where: int64 (b, m), their places in x_t, ascending, l
        where a row has fewer; context: what a pass over x_t keeps. The first new token is predicted from x_t alone.
        text: x_t or any candidate, int64 (b, l), from which a network with a `pad_id` finds its padding.
        See `attention.two_streams` for which row reads which. The states of x_t are those of the pass over x_t. The
        last block computes only the rows that predict.
        """
        b, k, m = tokens.shape
        written = self.embedding(tokens)
        if m == 1:
            return written[:, :, 1:]
        asked = self.embedding.weight[mask_id].expand(b, k, m - 1, written.shape[-1])
        x = torch.cat([written[:, :, :-1], asked], dim=2).flatten(1, 2)
        valid = None if text is None else self._valid(text[:, : context.shape[4]])
        rotary, mask = two_streams(where, context.shape[4], k, self.trunk.head_size, x, valid, self.block_size)
        cache = [Cache(*of_layer.unbind(1)) for of_layer in context.unbind(1)]
        asking = torch.arange(b * x.shape[1], device=x.device).view(b, k, 2, m - 1)[:, :, 1].flatten()
        states, _ = self.trunk(x, rotary, sigma, mask, cache, asking)
        return states.view(b, k, m - 1, -1)

    def after(
        self, text: Tensor, places: Tensor, cache: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute some rows of a text of blocks, as `forward` does, at the cost of those alone.

        text: tokens (b, l); places: those of the rows, int64 (b, n), ascending and without a gap, l where a text has
        fewer; cache: keys and values (b, layers, 2, heads, c, d) of what comes before the rows, at their own positions.
        Returns the states (b, n, h), or (n', h) at flat positions of (b, n), and the rows' own keys and values.
        """
        assert self.block_size is not None
        tokens = text.gather(1, places.clamp(max=text.shape[1] - 1))
        x, sizes = self.embedding(tokens), (cache.shape[4], self.block_size, self.trunk.head_size)
        rotary, mask = after_finished(places, text.shape[1], *sizes, x, self._valid(text))
        layers = [Cache(*of_layer.unbind(1)) for of_layer in cache.unbind(1)]
        states, own = self.trunk(x, rotary, None, mask, layers, positions, keep=True)
        assert own is not None
        return states, own

    def no_context(self, b: int) -> Tensor:
        """Return the keys and values of no position, (b, layers, 2, heads, 0, d)."""
        layers, heads = self.arguments["num_layers"], self.arguments["num_heads"]
        return self.embedding.weight.new_zeros(b, layers, 2, heads, 0, self.trunk.head_size)

    def step(self, tokens: Tensor, position: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Compute one position of a causal network without conditioning, as `forward` does, at the cost of one token.

        tokens (b,) at `position`, int64 (); cache: (layers, b, heads, l, d), of which the first `position` are read.
        Returns the hidden states (b, h) and the position's own keys and values (layers, b, heads, d); the cache is not
        written to. No shape depends on the position.
        """
        x, length = self.embedding(tokens.unsqueeze(1)), cache.keys.shape[3]
        rotary = rope.at(position.unsqueeze(0), self.trunk.head_size, x)
        seen = x.new_zeros(1, length + 1)  # the last is the position itself
        seen[:, :-1].masked_fill_(torch.arange(length, device=x.device) >= position, -torch.inf)
        hidden, own = self.trunk(x, rotary, mask=(seen,), cache=[*map(Cache, *cache)], keep=True)
        return hidden.squeeze(1), Cache(*own.squeeze(4).transpose(0, 1).unbind(2))

    def follow(self, tokens: Tensor, start: Tensor, cache: Cache, together: int = 0) -> tuple[Tensor, Cache]:
        """Compute the next positions of a causal network without conditioning, as `forward` does, at their cost alone.

        tokens (b, m) stand at `start`, int64 (b,), and after it; cache: (layers, b, heads, l, d), of which each row's
        first `start` are read. together: so many of the last tokens read each other too, as masks that draft do.
        Returns hidden states (b, m, h) and the keys and values of what was read (layers, b, heads, m, d); the cache is
        not written to.
        """
        x, (b, m), length = self.embedding(tokens), tokens.shape, cache.keys.shape[3]
        at = start.unsqueeze(-1) + torch.arange(m, device=x.device)
        cos, sin = (table.view(b, m, -1) for table in rope.at(at.flatten(), self.trunk.head_size, x))
        mask = attention.added(attention.following(start, m, length, together), x)
        hidden, own = self.trunk(x, (cos, sin), mask=(mask,), cache=[*map(Cache, *cache)], keep=True)
        return hidden, Cache(*own.transpose(0, 1).unbind(2))

    def _valid(self, tokens: Tensor) -> Tensor | None:
        """Mark the tokens that are read, bool (b, l); None: all of them, or all before a token."""
        return None if self.pad_id is None or self.arguments.get("causal") else tokens != self.pad_id

    def empty_cache(self, b: int, length: int) -> Cache:
        """Allocate zeros for the keys and values of b rows of `length` positions."""
        heads = self.arguments["num_heads"]
        like = self.embedding.weight
        keys = like.new_zeros(self.arguments["num_layers"], b, heads, length, like.shape[1] // heads)
        return Cache(keys, torch.zeros_like(keys))


class JointNetwork(nn.Module):
    """A denoiser and an energy of transitions over one trunk: the pass that weighs x_s is the next step's denoiser.

    The trunk reads tokens alone, so its states give the denoiser's law whatever is new in x_s. The energy reads these
    states through blocks of its own. New tokens are marked there by the state that x_t had in their place.

    Args:
        vocab_size: ids, the mask included.
        max_length: the longest block that it reads.
        hidden_size: h, a multiple of 2 * num_heads.
        num_layers: layers of the trunk, at least 1.
        num_heads: heads of the attention.
        conditioning_size: width of the embedded noise level; 0 leaves adaLN out.
        dropout: probability in [0, 1).
        norm_bias: whether LayerNorms have a bias.
        num_energy_layers: layers of the energy alone, at least 1.
        pad_id: as of `Transformer`; neither head reads it.
        block_size: as of `Transformer`, for both heads.
        qk_norm: as of `Transformer`, for both heads.

    Raises:
        ValueError: naming the argument, for a size or id that no network can have, or above `limits`.

    Example:
        >>> import edlm
        >>> network = edlm.networks.JointNetwork(vocab_size=28, max_length=16, hidden_size=32, num_layers=1)
        >>> network(torch.zeros(2, 16, dtype=torch.int64)).shape
        torch.Size([2, 16, 32])
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        conditioning_size: int = 128,
        dropout: float = 0.0,
        norm_bias: bool = False,
        num_energy_layers: int = 1,
        pad_id: int | None = None,
        block_size: int | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.arguments = sizes.own_arguments(locals())
        sizes.require_sizes(self.arguments)
        self.max_length, self.pad_id, self.block_size = max_length, pad_id, block_size
        self.denoiser = Transformer(
            **{key: self.arguments[key] for key in self.arguments if key != "num_energy_layers"}
        )
        self.new = nn.Linear(hidden_size, hidden_size)
        self.energy_trunk = Trunk(hidden_size, num_energy_layers, num_heads, 0, False, dropout, norm_bias, qk_norm)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.scalar = nn.Linear(hidden_size, 1, bias=False)
        # Nothing is marked at first, and the energy starts at zero: an untrained energy changes no sample.
        for parameter in (self.new.weight, self.new.bias, self.scalar.weight):
            nn.init.zeros_(parameter)

    @property
    def trunk(self) -> Trunk:
        """Trunk of the denoiser."""
        return self.denoiser.trunk

    @property
    def head(self) -> Head:
        """Head of the denoiser."""
        return self.denoiser.head

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Map tokens (b, l) and noise levels (b,) to the denoiser's states (b, l, h), or (n, h) at flat positions."""
        return self.denoiser(tokens, sigma, positions)

    def scalars(self, states: Tensor, expected: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Compute the energy's scalars (n,) at the flat positions (n,) that are new in x_s, from its states (b, l, h).

        expected: the states (n, h) that x_t has at these positions. A position of b * l is padding; its scalar is zero.
        tokens: x_s (b, l), from which a network with a `pad_id` finds its padding.
        """
        size = states.shape[0] * states.shape[1]
        there, at = (positions < size).unsqueeze(-1), positions.clamp(max=size - 1)
        marks = torch.where(there, self.new(expected), 0.0).to(states.dtype)
        marked = states.flatten(0, 1).index_add(0, at, marks).view_as(states)
        valid = None if self.pad_id is None or tokens is None else tokens != self.pad_id
        mask = both(in_blocks(states.shape[1], self.block_size, states), readable(valid))
        x, _ = self.energy_trunk(marked, mask=mask, positions=at)
        return torch.where(there, self.scalar(F.relu(self.hidden(x))), 0.0).squeeze(-1)


def blocks(network: nn.Module) -> list[Block]:
    """List the blocks of all trunks of a network.

    Args:
        network: any module.

    Returns:
        Its blocks, in the order of its modules.

    Example:
        >>> import edlm
        >>> len(edlm.networks.blocks(edlm.networks.Transformer(28, 16, hidden_size=32, num_layers=3)))
        3
    """
    return [module for module in network.modules() if isinstance(module, Block)]


def recompute(network: nn.Module) -> None:
    """Have every block keep only its input for the backward pass and run again there: less memory, in place.

    Gradients stay as they are: the second run repeats the dropout of the first. Call it after
    `execution.compile_blocks`, which sees nothing of what is inside.

    Args:
        network: the network whose blocks are changed.

    Raises:
        ValueError: for a network without any.

    Example:
        >>> import edlm
        >>> edlm.networks.recompute(edlm.networks.Transformer(28, 16, hidden_size=32, num_layers=3))
    """
    found: list[Any] = [*blocks(network)] or [*getattr(network, "layers", ())]  # a decoder's are torchtune's
    if not found:
        raise ValueError(f"{type(network).__name__} has no blocks to recompute")
    for block in found:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
