"""A small AR model whose texts a small denoiser drafts, and the prompts to try them with."""

from functools import partial
from typing import Any

import torch
from builders import tiny_denoiser, tiny_network
from oracles import all_sequences
from torch import Tensor
from torchtune.models import qwen2

import edlm
from edlm import contracts
from edlm.models import denoisers
from edlm.nn.attention import Cache
from edlm.nn.decoders import DecoderNetwork
from edlm.nn.networks import Transformer
from edlm.samplers import plans
from edlm.samplers.corrections import Autoregressive

SYMBOLS, LENGTH, MASK = 3, 4, 3
SEQUENCES = all_sequences(SYMBOLS, LENGTH)
CAUSAL = {"conditioning_size": 0, "causal": True, "num_layers": 2, "vocab_size": SYMBOLS + 1}
PROMPTS = [
    None,
    torch.tensor([1, 2]),
    torch.tensor([0, MASK, MASK, 2]),
    torch.tensor([MASK, 1, MASK, MASK, 0, 0, 2, MASK]),
    torch.tensor([2, MASK, 0, MASK, 1, MASK, MASK, 1]),
]
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-9)


def ar_network(seed: int = 1, max_length: int = LENGTH, **changes: object) -> Transformer:
    return tiny_network(seed, **(CAUSAL | {"max_length": max_length} | changes))


def ar_decoder(seed: int = 1, length: int = LENGTH) -> DecoderNetwork:
    """A causal decoder of torchtune with two queries to a key, float64 but for its norms."""
    torch.manual_seed(seed)
    decoder = qwen2.qwen2(SYMBOLS + 1, 2, 4, 2, embed_dim=16, intermediate_dim=24, max_seq_len=length)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    network = DecoderNetwork(decoder).double().eval().requires_grad_(False)
    for module in network.modules():
        if hasattr(module, "scale"):
            module.float()
    return network


def denoiser(seed: int = 0, max_length: int = LENGTH, sharpness: float = 3.0) -> denoisers.SubsDenoiser:
    """Far enough from the AR model that many of its drafts are refused."""
    own = tiny_denoiser(seed, MASK, vocab_size=SYMBOLS + 1, max_length=max_length, num_layers=1)
    with torch.no_grad():
        own.network.head.weight.mul_(sharpness)
    return own


def sampler(
    own: contracts.Denoiser | None = None,
    law: Autoregressive | None = None,
    plan: plans.Plan = plans.Grid(1),  # noqa: B008
    **changes: object,
) -> edlm.samplers.Sampler:
    law = law or Autoregressive(ar_network(), MASK)
    made = edlm.samplers.Sampler(own or denoiser(), plan, correction=law, selection="speculative")
    return made.replace(**changes)


@torch.no_grad()
def log_prob(tokens: Tensor, network: Transformer | None = None, temperature: float = 1.0) -> Tensor:
    """`log p_AR(x_i | x_<i)` of whole texts (n, l), from one pass over them with the mask's id in front."""
    network = network or ar_network(max_length=tokens.shape[1])
    read = torch.cat([torch.full_like(tokens[:, :1], MASK), tokens[:, :-1]], dim=1)
    logits = network.head(network(read))[..., :MASK] / temperature
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def heeding(max_length: int, last: float, sharpness: float = 1.0) -> Transformer:
    """A network whose law depends on the last token so much, and the more on those before it the less that is."""
    network = ar_network(max_length=max_length)
    with torch.no_grad():
        network.embedding.weight.mul_(last)
        network.head.weight.mul_(sharpness)
    return network


@torch.no_grad()
def followed(network: Any, seed: int, b: int, parts: list[int], room: int, unread: float) -> tuple[Tensor, Tensor]:
    """States of tokens that a causal network reads part by part beside a cache, and those of whole texts.

    Rows are at other places, and what is not to be read of the cache is `unread`. No cache is written to.
    """
    generator, length = torch.Generator().manual_seed(seed), sum(parts)
    tokens = torch.randint(SYMBOLS + 1, (b, length), generator=generator)
    late = torch.randint(0, 3, (b,), generator=generator)  # of each row so many tokens stand before these
    before = torch.randint(SYMBOLS + 1, (b, 3), generator=generator)
    whole = [network(torch.cat([x[:n], y]).unsqueeze(0))[0, n:] for x, y, n in zip(before, tokens, late, strict=True)]
    cache = Cache(*(kept + unread for kept in network.empty_cache(b, length + 3 + room)))
    start, found = torch.zeros(b, dtype=torch.int64), []
    for step, part in enumerate([before, *tokens.split(parts, dim=1)]):
        held = [kept.clone() for kept in cache]
        hidden, own = network.follow(part, start, cache)
        assert all(torch.equal(kept, old) for kept, old in zip(cache, held, strict=True))
        at = (start.unsqueeze(-1) + torch.arange(part.shape[1]))[None, :, None, :, None]
        cache = Cache(*(kept.scatter(3, at.expand_as(new), new) for kept, new in zip(cache, own, strict=True)))
        start = late if step == 0 else start + part.shape[1]
        found += [hidden] if step else []
    return torch.cat(found, dim=1), torch.stack(whole)
