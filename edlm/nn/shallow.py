"""A denoiser's network that is read in order by one block of its own, over the states of the rest."""

import torch
from torch import Tensor, nn

from edlm.nn import rope, sizes
from edlm.nn.attention import Cache, rows_at, two_streams
from edlm.nn.blocks import Block
from edlm.nn.networks import Transformer


class ShallowNetwork(Transformer):
    """A `Transformer` with an in-order head: one more block, which alone reads new tokens one after the other.

    A pass over x_t is that of the `Transformer`. It keeps its states, and the keys and values that the block makes of
    them. To predict a token of S, the network takes the state of x_t in its place, and adds the output of the block,
    which reads the tokens of S before it (after self-speculative masked diffusion, Campbell et al. 2025, arXiv
    2510.03929). So a round of writing in order costs one block, at any depth. Before training the block adds nothing.

    Args:
        vocab_size: ids, the mask included.
        max_length: the longest block that it reads.
        hidden_size: h, a multiple of 2 * num_heads.
        num_layers: layers of the denoiser, at least 1.
        num_heads: heads of the attention.
        conditioning_size: width of the embedded noise level; 0 leaves adaLN out. The block in order is told none.
        dropout: probability in [0, 1).
        norm_bias: whether LayerNorms have a bias.
        pad_id: as of `Transformer`.
        qk_norm: as of `Transformer`.

    Raises:
        ValueError: naming the argument, for a size or id that no network can have, or above `limits`.

    Example:
        >>> import edlm
        >>> from edlm.nn import shallow
        >>> network = shallow.ShallowNetwork(vocab_size=28, max_length=16, hidden_size=32, num_layers=1)
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
        pad_id: int | None = None,
        qk_norm: bool = False,
    ) -> None:
        own = sizes.own_arguments(locals())
        super().__init__(**own)
        self.arguments = own
        self.written = nn.Linear(hidden_size, hidden_size)
        self.ordered = Block(hidden_size, num_heads, 0, False, dropout, norm_bias, qk_norm)
        for parameter in (self.ordered.attention.out.weight, self.ordered.down.weight, self.ordered.down.bias):
            nn.init.zeros_(parameter)

    def forward(
        self,
        tokens: Tensor,
        sigma: Tensor | None = None,
        positions: Tensor | None = None,
        keep: bool = False,
        clean: Tensor | None = None,
        attention: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map tokens to hidden states as `Transformer` does.

        keep: return the states of all positions too, with keys and values of the block in order: (b, 3, l, h).
        """
        if not keep:
            return super().forward(tokens, sigma, positions, clean=clean, attention=attention)
        states = super().forward(tokens, sigma, attention=attention)
        assert isinstance(states, Tensor)
        rotary = rope.table(states.shape[1], self.trunk.head_size, states)
        seen = self.ordered.attention.remembered(self.ordered.norm_1(states), rotary)
        context = torch.stack([states, *(part.transpose(1, 2).flatten(2) for part in seen)], dim=1)
        return rows_at(states, positions), context

    def in_order(
        self,
        tokens: Tensor,
        where: Tensor,
        mask_id: int,
        context: Tensor,
        sigma: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """Compute the states (b, k, m - 1, h) that predict new tokens one after the other; see `Transformer.in_order`.

        Each token but the last has a row that is the token, and each but the first one that starts from the state of
        x_t in its place. Which row reads which is as there.
        """
        (b, k, m), (states, *seen) = tokens.shape, context.unbind(1)
        written = self.written(self.embedding(tokens))
        if m == 1:
            return written[:, :, 1:]
        at = where[:, 1:].clamp(max=context.shape[2] - 1).unsqueeze(-1).expand(-1, -1, context.shape[3])
        asked = states.gather(1, at).unsqueeze(1).expand(b, k, m - 1, -1)
        x = torch.cat([written[:, :, :-1], asked], dim=2).flatten(1, 2)
        valid = None if text is None else self._valid(text)
        rotary, mask = two_streams(where, context.shape[2], k, self.trunk.head_size, x, valid)
        cache = Cache(*(part.unflatten(2, (-1, self.trunk.head_size)).transpose(1, 2) for part in seen))
        asking = torch.arange(b * x.shape[1], device=x.device).view(b, k, 2, m - 1)[:, :, 1].flatten()
        found, _ = self.ordered(x, rotary, mask=mask, cache=cache, positions=asking)
        return found.view(b, k, m - 1, -1)


def start_from(shallow: ShallowNetwork, denoiser: Transformer) -> None:
    """Copy a trained denoiser into the network and freeze it: training then changes only the block in order.

    Args:
        shallow: the network that is written to.
        denoiser: the network that is read.

    Raises:
        ValueError: if their shapes differ.

    Example:
        >>> import edlm
        >>> from edlm.nn import shallow
        >>> sizes = {"vocab_size": 28, "max_length": 16, "hidden_size": 32, "num_layers": 1}
        >>> network, denoiser = shallow.ShallowNetwork(**sizes), edlm.networks.Transformer(**sizes)
        >>> shallow.start_from(network, denoiser)
        >>> sorted({name.split(".")[0] for name, each in network.named_parameters() if each.requires_grad})
        ['ordered', 'written']
    """
    given = denoiser.state_dict()
    own = {name: value for name, value in shallow.state_dict().items() if name.split(".")[0] in ("ordered", "written")}
    try:
        shallow.load_state_dict({**given, **own})
    except RuntimeError as error:
        raise ValueError(f"the network in order cannot start from the denoiser: {error}") from error
    shallow.requires_grad_(False)
    for part in (shallow.written, shallow.ordered):
        part.requires_grad_(True)
