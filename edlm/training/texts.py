"""Texts drawn on the way of a training run."""

from collections.abc import Sequence
from typing import Any

from edlm.data.vocabulary import Vocabulary
from edlm.models.denoisers import SubsDenoiser
from edlm.nn.decoders import DecoderNetwork
from edlm.nn.networks import Transformer
from edlm.samplers import autoregressive, baselines, blocks, pipelines, plans
from edlm.samplers.sampler import Sampler
from edlm.training.log import Texts

_NUM_TEXTS, _NUM_STEPS = 2, 64


def denoiser_texts(denoiser: SubsDenoiser, vocabulary: Vocabulary, seed: int) -> Texts:
    """Draw a few texts of a denoiser, the same noise each time, so that what differs is what was learned."""
    plan = blocks.of_denoiser(plans.Grid(min(_NUM_STEPS, denoiser.max_length)), denoiser)
    pipeline = pipelines.pipeline(Sampler(denoiser, plan), denoiser.max_length)
    tokens = pipelines.sample(pipeline, _NUM_TEXTS, seed=seed)["tokens"]
    return _records(vocabulary.decode(tokens.cpu()), seed)


def baseline_texts(kernel: baselines.Reverse, vocabulary: Vocabulary, seed: int) -> Texts:
    """Draw a few texts of a baseline, the same noise each time."""
    length = kernel.denoiser.max_length
    tokens = baselines.sample(kernel, length, min(_NUM_STEPS, length), _NUM_TEXTS, seed=seed)["tokens"]
    return _records(vocabulary.decode(tokens.cpu()), seed)


def ar_texts(network: Any, vocabulary: Vocabulary, bos_id: int | None, seed: int) -> Texts:
    """Draw a few texts of an autoregressive model; none of a network without `step`."""
    if not isinstance(network, Transformer | DecoderNetwork) or bos_id is None:
        return []
    draws = autoregressive.sample(network, _NUM_TEXTS, network.max_length, vocabulary.mask_id, bos_id, seed=seed)
    return _records(vocabulary.decode(draws.tokens.cpu()), seed)


def _records(texts: Sequence[str], seed: int) -> Texts:
    return [{"row": row, "seed": seed, "text": text} for row, text in enumerate(texts)]
