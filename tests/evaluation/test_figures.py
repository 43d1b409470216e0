"""Figures of a corpus: what is counted, what it is divided by, and when the paper's figure is marked."""

import math

import pytest
import torch
from torch import Tensor

from edlm.data import pieces, vocabulary
from edlm.data.pieces import Excerpt
from edlm.evaluation import figures as text_figures
from edlm.evaluation.figures import Figure, TextSet
from edlm.evaluation.scores import Scores
from edlm.likelihood import paper_nelbo
from edlm.likelihood.estimates import Estimate


def figure(name: str, std: float | None) -> Figure:
    return Figure("text", "energy", name, Estimate(1.0, 0.1, 4), 1.0, 0.1, {"denoiser": 4}, 2.0, std, None, 0.0)


@pytest.mark.parametrize(("std", "unreliable"), [(0.5, False), (3.0, False), (3.01, True), (math.inf, True)])
def test_past_a_deviation_of_three_the_papers_figure_is_marked(std: float, unreliable: bool) -> None:
    low = figure("paper_nelbo, log Z low", std)
    assert low.record()["reliable"] != unreliable
    for shown in (text_figures.table([low]), text_figures.comparison([low])):
        assert paper_nelbo.WARNING in shown
        assert ("unreliable" in shown) == unreliable
        assert ("!" in shown) == unreliable
    bound = figure("sampler_nelbo", std)
    assert "unreliable" not in text_figures.table([bound])
    assert paper_nelbo.WARNING not in text_figures.table([bound])


def test_bits_are_per_character_whatever_a_token_is() -> None:
    quarter = figure("nelbo", None)._replace(tokens_per_character=0.25).record()
    assert quarter["bits_per_character"] == pytest.approx(0.25 / math.log(2))
    assert quarter["bits_error"] == pytest.approx(0.025 / math.log(2))
    assert quarter["perplexity"] == pytest.approx(math.e)


def test_characters_are_those_that_the_scored_tokens_spell() -> None:
    bpe = vocabulary.train_bpe(["the name the name the"] * 3, 265)
    excerpts = pieces.excerpts(["the name", "the the"], bpe, 4)
    texts = text_figures.choose("t", excerpts, None, bpe, 0)
    assert texts.tokens < texts.characters == len("the name") + len("the the"), "the end of a text spells nothing"
    some = text_figures.choose("t", 10 * excerpts, 3, bpe, 0)
    assert (len(some.excerpts), some.num_all) == (3, 10 * len(excerpts))
    with pytest.raises(ValueError, match="t: 1 excerpts to score, but an error bar needs at least 2"):
        text_figures.choose("t", excerpts[:1], None, bpe, 0)


def test_rows_of_unequal_length_count_by_their_tokens() -> None:
    excerpts = [Excerpt(torch.zeros(n, dtype=torch.int64), given) for n, given in ((4, 0), (2, 0), (4, 3), (2, 0))]
    seen: list[int] = []

    def score(tokens: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        seen.extend(row.tolist())
        assert tokens.shape == scored.shape
        return Scores({"nelbo": row.double()}, {"denoiser": len(row)})

    [result] = text_figures.measure("m", score, TextSet("t", excerpts, 4, 9), 2, 0, torch.device("cpu"))
    assert sorted(seen) == [0, 1, 2, 3]
    assert result.value.mean == pytest.approx((4 * 0 + 2 * 1 + 1 * 2 + 2 * 3) / 9)
    assert result.passes == {"denoiser": 4}
