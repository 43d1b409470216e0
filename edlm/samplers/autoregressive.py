"""Exact texts of an autoregressive model: one token after the other, each from its law given all tokens before it.

The keys and values of earlier positions are kept, so a token costs one position of the network. Noise is an argument,
keyed like that of every sampler here: a text does not depend on the batch it was drawn in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edlm.models import autoregressive
from edlm.nn import folding
from edlm.nn.attention import Cache
from edlm.nn.decoders import DecoderNetwork
from edlm.nn.networks import Transformer
from edlm.nn.pretrained_decoder import PretrainedDecoder
from edlm.process import absorbing, arguments, categorical, finite, noise
from edlm.process.categorical import Draws
from edlm.process.noise import Stream

Stepped = Transformer | DecoderNetwork | PretrainedDecoder  # networks that compute one position beside a cache


def sample(
    network: Stepped,
    num_samples: int,
    length: int,
    mask_id: int,
    bos_id: int | None,
    *,
    seed: int = 0,
    prompt: Tensor | None = None,
    first_row: int = 0,
    temperature: float = 1.0,
) -> Draws:
    """Draw texts (b, l) and the log-probability of each drawn token (b, l), a function of the arguments alone.

    Row i is sample number `first_row + i` of the seed, whatever else is in the batch. prompt: tokens with masks, (l,)
    or (b, l), filled up with masks on the right; see `complete` for its law and the other arguments.
    Raises ValueError for a length outside 1..max_length, num_samples < 1, a prompt that does not fit, and as `complete`
    does.
    """
    arguments.require_draw(num_samples, seed, first_row)
    _require_length(length, network)
    vocab_size, device = network.head.out_features, network.head.weight.device
    tokens = absorbing.starting_tokens(num_samples, length, mask_id, vocab_size, prompt, device)
    row = torch.arange(first_row, first_row + num_samples, device=device)
    uniforms = noise.grid(torch.tensor(seed, device=device), row, 0, Stream.AUTOREGRESSIVE, length)
    return complete(network, tokens, uniforms, mask_id, bos_id, temperature)


@torch.no_grad()
def complete(
    network: Stepped,
    tokens: Tensor,
    uniforms: Tensor,
    mask_id: int,
    bos_id: int | None,
    temperature: float = 1.0,
) -> Draws:
    """Fill in masks from left to right, each from `p_AR(x_i | x_<i)`; given tokens stay and are read on the way.

    The law of what is filled in is `prod_{i masked} p_AR(x_i | x_<i)`. After a prefix that is the model's own law given
    the prefix; tokens given to the right of a mask it does not look at: it is what the carry-over form of
    `energies.residual_ar` targets, and not the posterior.

    tokens (b, l), uniforms float64 (b, l), of which a mask uses its own. bos_id stands in front of the text; with None
    the first token has to be given. A temperature other than 1 draws from `p_AR^(1 / temperature)`. Returns tokens and
    the log-probabilities they were drawn with, zero where given, (b, l) each. The mask is never drawn; dropout is off.
    Raises ValueError for a text that is too long, a temperature that is not positive and finite, a masked first token
    without a bos, an id outside the vocabulary, a network that is not causal, and one whose logits are no numbers.
    """
    _require_length(tokens.shape[1], network)
    finite.require_temperature("temperature", temperature)
    autoregressive.check_ar(network, mask_id, bos_id)
    masked = tokens == mask_id
    wanted = masked.any(0).tolist()  # read on the host once: which positions need a draw, and where to stop
    if bos_id is None and wanted[0]:
        raise ValueError("without a bos_id the first token has no law of its own: give it in the prompt")
    stepped: Any = folding.fold_conditioning(network) if isinstance(network, Transformer) else network
    cache = stepped.empty_cache(*tokens.shape)
    filled, log_prob = tokens.clone(), torch.zeros_like(uniforms)
    first = 0 if bos_id is not None else 1
    before = tokens[:, 0] if bos_id is None else torch.full_like(tokens[:, 0], bos_id)
    with _dropout_off(stepped):
        for i in range(first, 1 + max((i for i, any_masked in enumerate(wanted) if any_masked), default=-1)):
            position = torch.full((), i - first, device=tokens.device)
            hidden, own = stepped.step(before, position, _read(stepped, cache, i - first))
            for kept, new in zip(cache, own, strict=True):  # the loop's own buffers: nobody else has seen them
                kept.index_copy_(3, position.unsqueeze(0), new.unsqueeze(3))
            if wanted[i]:
                logits = categorical.cooled(autoregressive.ar_logits(stepped, hidden, mask_id), temperature)
                draws = categorical.inverse_cdf(logits, uniforms[:, i : i + 1])
                filled[:, i] = torch.where(masked[:, i], draws.tokens[:, 0], tokens[:, i])
                log_prob[:, i] = torch.where(masked[:, i], draws.log_prob[:, 0], 0.0)
            before = filled[:, i]
    finite.require_drawn(log_prob)
    return Draws(filled, log_prob)


def _read(network: Stepped, cache: Cache, count: int) -> Cache:
    """Leave out what is not written yet, where it would be copied in every step: `transformers` does that."""
    return Cache(*(kept[:, :, :, :count] for kept in cache)) if isinstance(network, PretrainedDecoder) else cache


def _require_length(length: int, network: Stepped) -> None:
    if not 1 <= length <= network.max_length:
        raise ValueError(
            f"length = {length} must lie in 1..{network.max_length}, the longest the network was built for"
        )


@contextmanager
def _dropout_off(network: nn.Module) -> Iterator[None]:
    """Have a network in eval mode for a while."""
    training_now = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training_now:
            module.training = True
