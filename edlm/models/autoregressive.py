"""Causal networks as laws of texts: the log-probability of each token given those before it."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm.nn.attention import Attention
from edlm.nn.blocks import Head
from edlm.process import categorical


def ar_log_prob(
    network: nn.Module, tokens: Tensor, mask_id: int, bos_id: int | None, positions: Tensor | None = None
) -> Tensor:
    """Compute `log p(x_i | x_<i)` of a causal network: tokens (n, l) to nats (n, l), float32 or better.

    The network reads `[bos, x_0, ..., x_{l-2}]`; without a bos, position 0 is given and its entry is zero. The mask's
    logit is left out. With flat positions, indices into n * l of which n * l is padding, the vocabulary head runs on
    those alone and the entries of others are zero. Never more than a fixed number of logits exist at once, also where
    gradients are taken, if the network's head is a `blocks.Head`.
    """
    n, l = tokens.shape
    # Position i is predicted by the state that read everything before it.
    read, behind = (tokens, 1) if bos_id is None else (F.pad(tokens[:, :-1], (1, 0), value=bos_id), 0)
    if positions is None:
        positions = torch.arange(n * l, device=tokens.device)
    predicted = (positions % l >= behind) & (positions < n * l)
    hidden = network(read, None, torch.where(predicted, positions - behind, 0))
    wanted = tokens.flatten()[positions.clamp(max=n * l - 1)]
    head = network.get_submodule("head")
    trained = torch.is_grad_enabled() and hidden.requires_grad and not torch.compiler.is_compiling()
    if isinstance(head, Head) and trained:
        found = head.log_prob(hidden, wanted, mask_id, predicted.to(hidden.dtype))  # a sum of them is what is trained
        found = torch.where(predicted, found, 0.0)
        return found.new_zeros(n * l + 1).index_copy(0, positions, found)[:-1].view(n, l)
    vocab_size = int(head.out_features)  # type: ignore[arg-type]
    width = categorical.columns_at_once(vocab_size, tokens.device)
    rows = categorical.rows_at_once(width, tokens.device, torch.compiler.is_compiling())
    tiles = [
        categorical.streamed_log_prob(partial(ar_logits, network, states, mask_id), vocab_size, target, width)
        for states, target in zip(hidden.split(rows), wanted.split(rows), strict=True)
    ]
    found = torch.where(predicted, torch.cat(tiles), 0.0)
    return found.new_zeros(n * l + 1).index_copy(0, positions, found)[:-1].view(n, l)


def ar_logits(network: nn.Module, hidden: Tensor, mask_id: int, columns: slice | None = None) -> Tensor:
    """Return logits (n, v) of hidden states (n, h), or some columns of them, `-inf` at the mask."""
    head = network.get_submodule("head")
    logits: Tensor = head(hidden) if columns is None else head(hidden, columns)
    place = mask_id - (0 if columns is None else columns.start)
    if 0 <= place < logits.shape[-1]:
        logits.select(-1, place).fill_(-torch.inf)  # in place: the head's own output
    return logits


class Law(nn.Module):
    """The law of tokens at states of a causal network: what a denoiser's `logits` are to its own states."""

    def __init__(self, network: nn.Module, mask_id: int) -> None:
        super().__init__()
        self.network, self.mask_id = network, mask_id
        self.vocab_size = int(network.get_submodule("head").out_features)  # type: ignore[arg-type]

    def logits(self, hidden: Tensor) -> Tensor:
        """Map states (n, h) to unnormalised log-probabilities (n, v), `-inf` at the mask."""
        return ar_logits(self.network, hidden, self.mask_id)


def check_ar(network: nn.Module, mask_id: int, bos_id: int | None, pad_id: int | None = None) -> None:
    """Raise ValueError for a network that is not causal, or a token id outside its vocabulary.

    Causal means that no attention says it looks ahead, ours by `causal`, torchtune's by `is_causal`; where no
    part has such a flag, the owner's word is taken.
    """
    for name, module in network.named_modules():
        if not (module.causal if isinstance(module, Attention) else getattr(module, "is_causal", True)):
            raise ValueError(f"an autoregressive model needs a causal network: causal=True ({name} looks ahead)")
    vocab_size = int(network.get_submodule("head").out_features)  # type: ignore[arg-type]
    embedding = getattr(network, "embedding", None)
    rows = embedding.num_embeddings if isinstance(embedding, nn.Embedding) else vocab_size
    limits = {"mask_id": vocab_size, "bos_id": max(rows, vocab_size), "pad_id": vocab_size}  # a bos is only read
    for (name, limit), token in zip(limits.items(), (mask_id, bos_id, pad_id), strict=True):
        if token is not None and not 0 <= token < limit:
            raise ValueError(f"{name} = {token} is outside the network's vocabulary of {limit}")
    if bos_id is not None and bos_id >= rows:
        raise ValueError(f"bos_id = {bos_id} is no id that the network reads: it embeds {rows}")
