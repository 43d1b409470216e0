"""The ends of what numbers can be: the extreme uniforms, the last step that noise has, texts of no probability."""

import math

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from edlm import testing
from edlm.data import tokenizer_kinds
from edlm.evaluation import quality
from edlm.frontier import exact
from edlm.frontier.exact import Beside
from edlm.likelihood import hidden_markov
from edlm.likelihood.estimates import Estimate
from edlm.objectives import batches
from edlm.process import noise, particles
from edlm.process.noise import Stream
from edlm.samplers import plans
from edlm.samplers.sampler import Sampler

SYMBOLS = LENGTH = 3
SMALLEST, LARGEST = 2.0**-53, 1.0 - 2.0**-53


def words(value: int) -> Tensor:
    return torch.tensor([value])


def test_the_extreme_uniforms_are_those_that_noise_can_be() -> None:
    all_ones = words((1 << 32) - 1)
    assert noise._to_uniform(words(0), words(0)).item() == SMALLEST
    assert noise._to_uniform(all_ones, all_ones).item() == LARGEST < 1.0


@pytest.mark.parametrize("extreme", [SMALLEST, LARGEST])
def test_a_selection_that_fails_at_an_extreme_uniform_alone_is_told(extreme: float) -> None:
    def fails(log_weights: Tensor, uniforms: Tensor) -> Tensor:
        return torch.where((uniforms == extreme).any(-1), log_weights.shape[1], particles.sir(log_weights, uniforms))

    testing.check_selection(particles.sir)
    with pytest.raises(AssertionError):
        testing.check_selection(fails)


def test_noise_of_evaluation_is_that_of_no_step_of_training() -> None:
    row, last = torch.arange(64), batches.HELD_OUT_STEP
    assert 2**31 < last < 2**32, "a step is a word of 32 bits, and no training has so many"
    for stream in Stream:
        own = noise.grid(0, row, last, stream, LENGTH)
        for step in (0, 1, 2, last - 1):
            assert not (own == noise.grid(0, row, step, stream, LENGTH)).any()


def test_texts_of_no_probability_add_nothing_to_exact_figures() -> None:
    """A cycle of three symbols, whose first is even: three texts of 27, and what follows a token is known."""
    source = hidden_markov.markov(torch.eye(SYMBOLS).roll(1, dims=1))
    entropy, texts = Estimate(math.log(3) / LENGTH, 0.0, 2), hidden_markov.texts(source, 2, LENGTH, seed=0)
    beside = Beside(source, LENGTH, entropy, texts, (1,), 0, 2)
    sampler = Sampler(hidden_markov.denoiser(source, LENGTH), plans.TokensPerPass(1))
    found = exact._exact(sampler, beside, [])
    assert found == {"total_variation": [pytest.approx(0.0, abs=1e-9), 0.0], "kl": [pytest.approx(0.0, abs=1e-9), 0.0]}
    at_once = exact._exact(sampler.replace(plan=plans.Grid(1)), beside, [])
    assert at_once["total_variation"] == [pytest.approx(8 / 9), 0.0]
    assert at_once["kl"] == [pytest.approx(math.log(9) / LENGTH), 0.0]


def test_of_nothing_there_is_no_id_no_n_gram_and_no_line() -> None:
    assert tokenizer_kinds.own_size(Tokenizer(WordLevel({}, unk_token="?"))) == 0
    assert tokenizer_kinds.own_size(Tokenizer(WordLevel({"a": 0}, unk_token="?"))) == 1
    with pytest.raises(ValueError, match="n = 1 need a text of at least 1 tokens"):
        quality.grams([], 1)
