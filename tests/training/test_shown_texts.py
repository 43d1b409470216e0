"""Texts drawn on the way of a training: few, the same in every call, as a sampler of so many steps draws them."""

import torch

import edlm
from edlm.data import vocabulary
from edlm.models import denoisers
from edlm.nn.networks import Transformer
from edlm.process import schedules
from edlm.samplers import autoregressive as drawing
from edlm.samplers import baselines, pipelines, plans
from edlm.samplers.sampler import Sampler
from edlm.training import texts

WORDS = vocabulary.characters("abcd")
SIZES = {"hidden_size": 4, "num_layers": 1, "num_heads": 1}


def network(length: int, size: int = 5, **more: object) -> Transformer:
    torch.manual_seed(0)
    found = Transformer(size, length, **{**SIZES, "conditioning_size": 0, **more})  # type: ignore[arg-type]
    return found.eval().requires_grad_(False)


def test_a_denoisers_texts_are_those_of_its_grid() -> None:
    for length, steps in ((8, 8), (80, 64)):
        denoiser = denoisers.subs(network(length), WORDS.mask_id)
        pipeline = pipelines.pipeline(Sampler(denoiser, plans.Grid(steps)), length)
        drawn = WORDS.decode(edlm.sample(pipeline, 2, seed=5)["tokens"])
        expected = [{"row": row, "seed": 5, "text": text} for row, text in enumerate(drawn)]
        assert texts.denoiser_texts(denoiser, WORDS, 5) == expected
        assert texts.denoiser_texts(denoiser, WORDS, 6) != expected


def test_a_baselines_texts_are_those_of_its_kernel() -> None:
    kernel = baselines.d3pm(denoisers.d3pm(network(8), WORDS.mask_id, None), schedules.log_linear())
    drawn = WORDS.decode(baselines.sample(kernel, 8, 8, 2, seed=5)["tokens"])
    assert texts.baseline_texts(kernel, WORDS, 5) == [
        {"row": row, "seed": 5, "text": text} for row, text in enumerate(drawn)
    ]


def test_an_ar_models_texts_begin_with_bos_and_without_one_there_are_none() -> None:
    model = network(8, 5, causal=True)
    drawn = drawing.sample(model, 2, 8, WORDS.mask_id, 4, seed=3)
    found = texts.ar_texts(model, WORDS, 4, 3)
    assert found == [{"row": row, "seed": 3, "text": text} for row, text in enumerate(WORDS.decode(drawn.tokens))]
    assert texts.ar_texts(model, WORDS, None, 3) == []
    assert texts.ar_texts(torch.nn.Linear(1, 1), WORDS, 4, 3) == []
