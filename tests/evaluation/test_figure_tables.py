"""Tables and records of an evaluation: every cell is the number that it says, and every column has its head."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import tiny_denoiser
from torch import Tensor

from edlm.data import pieces, vocabulary
from edlm.data.pieces import Excerpt
from edlm.evaluation import card, contrast, figures, samples, scores, texts
from edlm.evaluation.calibration import CalibrationError
from edlm.evaluation.figures import Figure, TextSet
from edlm.evaluation.samples import Row
from edlm.evaluation.scores import Scores
from edlm.likelihood import paper_nelbo
from edlm.likelihood.estimates import Estimate
from edlm.process import schedules
from edlm.runs import settings as schemas
from edlm.samplers import configs
from edlm.weights.named import Diffusion, Models

CPU, LN_2 = torch.device("cpu"), math.log(2.0)
TWO_BITS = Estimate(2.0 * LN_2, 0.25 * LN_2, 9)
PLAIN = Figure("test", "denoiser", "nelbo", TWO_BITS, 0.5, 1.3, {"denoiser": 18}, None, None, None, None)
CORRECTED = PLAIN._replace(model="energy", name="sampler_nelbo", passes={"denoiser": 18, "energy": 27}, ess=1.5)
CORRECTED = CORRECTED._replace(log_weight_std=0.25, excess=Estimate(-0.5, 0.125, 9), unreliable_rows=0.5)
PAPER = PLAIN._replace(texts="other", model="energy", name="paper_nelbo, log Z low", log_weight_std=4.0)
TUBE = PLAIN._replace(name="tube_lower, K=3", unreliable_rows=0.25)


def test_the_short_table_has_bits_perplexity_what_is_over_plain_and_passes() -> None:
    assert [line.split() for line in figures.table([PLAIN, CORRECTED]).split("\n")] == [
        ["bits/character", "perplexity", "over", "plain", "passes/text"],
        ["denoiser:", "nelbo", "1.0000", "±", "0.1250", "4", "-", "2"],
        ["energy:", "sampler_nelbo", "1.0000", "±", "0.1250", "4", "-0.5000", "±", "0.1250", "5"],
    ]


def test_markdown_has_every_column() -> None:
    nats = "1.3863 ± 0.1733"
    assert figures.every_column([PLAIN, CORRECTED], "byte", "a heading").split("\n") == [
        "a heading",
        "",
        "|  | nats/byte | perplexity | bits/character | over plain | n | ESS | s.d. | passes/text | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| denoiser: nelbo | {nats} | 4 | 1.0000 ± 0.1250 | - | 9 | - | - | 2 | 1.3 |",
        f"| energy: sampler_nelbo | {nats} | 4 | 1.0000 ± 0.1250 | -0.5000 ± 0.1250 | 9 | 1.50 | 0.25 | 5 | 1.3 |",
        "",
    ]
    endless = PLAIN._replace(value=Estimate(math.inf, math.nan, 9))
    assert figures.every_column([endless], "byte", "").split("\n")[-2].split(" | ")[1:4] == ["inf ± nan", "inf", "-"]


def test_sets_stand_side_by_side_with_their_notes() -> None:
    both = [PLAIN, PLAIN._replace(texts="other", value=Estimate(LN_2, 0.1, 9)), PAPER, PAPER._replace(texts="test")]
    assert figures.markdown([*both, TUBE, TUBE._replace(texts="other")], ["* a remark"]).split("\n\n") == [
        "| perplexity | test | other |\n|---|---|---|\n| denoiser: nelbo | 4 | 2 |\n"
        "| energy: paper_nelbo, log Z low* | 4! | 4! |\n| denoiser: tube_lower, K=3 | 4! | 4! |",
        "\\* a remark",
        f"\\* {paper_nelbo.WARNING}",
        "! unreliable: the log-weights' s.d. is above 3, log Z is not known",
        "! unreliable: the ESS is below 0.5 K for more than 5% of the texts; what tube_lower says is then mostly too "
        "high, and no lower end\n",
    ]


def test_a_record_holds_what_a_figure_is_and_null_for_what_is_no_number() -> None:
    record = CORRECTED.record()
    assert record == {
        **{"texts": "test", "model": "energy", "figure": "sampler_nelbo", "n": 9, "ess": 1.5, "log_weight_std": 0.25},
        **{"nats_per_token": 2.0 * LN_2, "nats_error": 0.25 * LN_2, "perplexity": pytest.approx(4.0)},
        **{"bits_per_character": pytest.approx(1.0), "bits_error": pytest.approx(0.125)},
        **{"excess_nats": -0.5, "excess_error": 0.125, "unreliable_rows": 0.5, "seconds": 1.3},
        "passes": {"denoiser": 18, "energy": 27},
    }
    assert (PLAIN.record()["excess_nats"], PLAIN.record()["excess_error"]) == (None, None)
    assert PLAIN._replace(ess=math.nan, seconds=math.inf).record().keys() == record.keys()
    assert {key: PLAIN._replace(ess=math.nan, seconds=math.inf).record()[key] for key in ("ess", "seconds")} == {
        "ess": None,
        "seconds": None,
    }
    assert (PAPER.record()["reliable"], PAPER.record()["warning"]) == (False, paper_nelbo.WARNING)
    assert TUBE.record()["reliable"] is False
    assert TUBE._replace(unreliable_rows=0.05).record()["reliable"] is True
    assert "warning" not in TUBE.record()


@pytest.mark.parametrize(
    ("rows", "least", "chosen"),
    [(None, 0, [0, 2, 3, 4, 5, 6]), (4, 0, [0, 2, 4, 5]), (2, 1, [0, 4]), (9, 3, [3, 4, 5])],
)
def test_excerpts_are_chosen_evenly_of_those_with_anything_to_score(
    rows: int | None, least: int, chosen: list[int]
) -> None:
    """The number of each is its token; the first three are of two tokens, of which one or none is given."""
    words = vocabulary.characters("abcdefg")
    lengths, given = (2, 2, 2, 4, 4, 4, 2), (0, 2, 1, 0, 1, 3, 0)
    every = [Excerpt(torch.full((n,), i), g) for i, (n, g) in enumerate(zip(lengths, given, strict=True))]
    found = figures.choose("t", every, rows, words, least)
    assert [int(excerpt.tokens[0]) for excerpt in found.excerpts] == chosen
    assert [excerpt.given for excerpt in found.excerpts] == [max(given[number], least) for number in chosen]
    assert found.characters == found.tokens == sum(lengths[i] - max(given[i], least) for i in chosen)


def test_the_longest_texts_come_first_and_only_what_is_not_given_is_scored() -> None:
    every = [
        Excerpt(torch.tensor([0, 1]), 1),
        Excerpt(torch.tensor([2, 3, 4, 5]), 1, 1),
        Excerpt(torch.tensor([6, 7]), 0),
    ]
    every.append(Excerpt(torch.tensor([1, 0]), 0))
    found = [
        (row.tolist(), tokens.tolist(), on.int().tolist())
        for tokens, on, row in figures.batches(TextSet("", every, 4, 0), 2)
    ]
    assert found == [
        ([1], [[2, 3, 4, 5]], [[0, 1, 1, 0]]),
        ([0, 2], [[0, 1], [6, 7]], [[0, 1], [1, 1]]),
        ([3], [[1, 0]], [[1, 1]]),
    ]
    law = torch.arange(8).neg().double()
    assert figures.by_single_tokens(TextSet("", every, 4, 0), law) == 1 + 3 + 4 + 6 + 7 + 1 + 0


def test_a_figure_is_the_mean_over_all_texts_of_what_each_score_says() -> None:
    """Two texts in two batches: means over texts that have a value, and the share of those past the known deviation."""
    every = TextSet("t", [Excerpt(torch.tensor([0, 1]), 0), Excerpt(torch.tensor([2, 3, 4, 5]), 1)], 2, 10)
    known: Tensor | None = None

    def score(tokens: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        assert int(seed) == 7
        each = (row + 1).double()
        return Scores({"nelbo": each, "other": -each}, {"denoiser": 3}, 2.0 * each, 2.0 * each, each / 2, known)

    one, two = figures.measure("m", score, every, 1, 7, CPU)
    assert (one.texts, one.model, one.name, two.name) == ("t", "m", "nelbo", "other")
    assert (one.value.mean, two.value.mean) == pytest.approx(((2 * 1 + 3 * 2) / 5, -(2 * 1 + 3 * 2) / 5))
    assert (one.ess, one.log_weight_std, one.unreliable_rows, one.passes) == (3.0, 3.0, 0.5, {"denoiser": 6})
    assert one.tokens_per_character == 0.5
    assert one.excess is not None
    assert one.excess.mean == pytest.approx(0.8)
    known = torch.tensor([True])
    assert figures.measure("m", score, every, 1, 7, CPU)[0].unreliable_rows == 1.0, "as the score says, if it does"

    def broken(*_: Tensor) -> Scores:
        raise ValueError("no number")

    with pytest.raises(ValueError, match=r"^m on t: no number$"):
        figures.collect("m", broken, every, 1, 0, CPU)


def test_a_score_is_averaged_over_seeds_that_follow_each_other() -> None:
    def score(x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        return Scores({"nelbo": seed * 10.0 + row, "other": row * seed.double()}, {"denoiser": 2, "energy": 1})

    row = torch.tensor([3, 4])
    found = scores.averaged(score, 3)(row, row, torch.tensor(5), row)
    assert {name: nats.tolist() for name, nats in found.nats.items()} == {"nelbo": [63.0, 64.0], "other": [18.0, 24.0]}
    assert found.passes == {"denoiser": 6, "energy": 3}


def test_lines_of_an_energy_say_what_one_that_knows_nothing_has() -> None:
    names = ("loss", "accuracy", "gap", "ess", "log_weight_std")
    found = {name: Estimate(number + 0.5, 0.25, 7 + number) for number, name in enumerate(names)}
    lines = contrast.figure_lines(found, CalibrationError(0.125, 0.0625), 16, "info_nce", 3)
    assert lines == [
        ("info_nce loss", "0.5000 ± 0.2500", f"nats, n = 7; knows nothing: {math.log(4.0):.3f}"),
        ("accuracy", "1.5000 ± 0.2500", "data below draw; chance: 0.5"),
        ("energy gap", "2.5000 ± 0.2500", "nats, draws above data; 0 if it knows nothing"),
        ("calibration error", "0.1250", "by chance, if calibrated: 0.0625"),
        ("ESS of 16 draws", "3.5000 ± 0.2500", "of 16"),
        ("s.d. of log-weights", "4.5000 ± 0.2500", "nats"),
    ]
    pairs = contrast.figure_lines(found, None, 16, "nce", 3)
    assert [line[0] for line in pairs] == [line[0].replace("info_", "") for line in lines if "calib" not in line[0]]
    assert pairs[0][2] == f"nats, n = 7; knows nothing: {2.0 * LN_2:.3f}"


def test_noise_levels_have_a_line_each_where_there_are_rows() -> None:
    shown = {"accuracy": 0.75, "ess": 2.5, "log_weight_std": 0.25, "calibration_error": 0.125}
    levels = [{"t": "[0.0, 0.2)", "n": 4, **shown}, {"t": "[0.2, 0.4)", "n": 0, **dict.fromkeys(shown)}]
    assert [line.split(maxsplit=3) for line in contrast.levels_table(levels, 8).split("\n")] == [
        ["by", "noise", "level", "accuracy  ESS, s.d. of log-weights, calibration error"],
        ["t", "in", "[0.0,", "0.2)     0.750  2.50 of 8, 0.25, 0.125"],
    ]


def test_figures_of_samples_stand_beside_those_of_held_out_text() -> None:
    found = [
        Row(samples.ENTROPY, Estimate(2.0 * LN_2, 0.5 * LN_2, 4), Estimate(LN_2, 0.25 * LN_2, 4), "within a text"),
        Row("distinct-2", Estimate(0.5, 0.125, 4), None, "a remark"),
    ]
    assert [" ".join(line.split()) for line in samples.table(found).split("\n")] == [
        "samples held-out text",
        "unigram entropy, nats 1.386 ± 0.35 0.6931 ± 0.17 within a text",
        "unigram entropy, bits 2 ± 0.5 1 ± 0.25",
        "distinct-2 0.5 ± 0.12 - a remark",
    ]
    assert samples.record([found[1], found[0]._replace(samples=Estimate(math.inf, math.nan, 4))]) == [
        {"figure": "distinct-2", "samples": {"mean": 0.5, "standard_error": 0.125, "n": 4}, "held_out": None},
        {
            "figure": samples.ENTROPY,
            "samples": {"mean": None, "standard_error": None, "n": 4},
            "held_out": {"mean": LN_2, "standard_error": 0.25 * LN_2, "n": 4},
        },
    ]


def models(**more: Any) -> Models:
    words = vocabulary.characters("abcd")
    return Models(words, 8, None, None, **{"records": {}, **more})


SETTINGS: dict[str, Any] = {
    **{"seed": 3, "sampler": {}, "num_steps": 8, "num_particles": 4, "window": [0.25, 1], "target_ess": None},
    **{"selection": "sir", "energy_temperature": 1.0, "temperature": 1.0, "nucleus": 1.0, configs.TOGETHER: 1},
    **{"num_completions": 2, "log_z_particles": 16, "documents": "joined", "context": 0},
}


def test_a_heading_says_which_texts_were_scored_and_how() -> None:
    every = TextSet("test", [Excerpt(torch.tensor([0, 1]), 0), Excerpt(torch.tensor([2, 3]), 1)], 12, 3000)
    singles = torch.tensor([-1.0, -2.0, -4.0, -8.0]).double()
    said = "test: 2 of 12 excerpts, 3 tokens, 3,000 characters, seed 3, networks float32, sums float64"
    bits = f"a law of single tokens, of the training text: {11.0 / 3.0 / LN_2:.4f} bits/character"
    alone = models(records={"ar": {}})
    assert card.heading(every, SETTINGS, alone, singles).split("\n") == [said, bits]
    assert card.heading(every, SETTINGS, alone, None) == said


def test_what_is_evaluated_of_a_set_is_in_the_card() -> None:
    every = TextSet("test", [Excerpt(torch.tensor([0, 1]), 0), Excerpt(torch.tensor([2, 3]), 1)], 12, 3000)
    found = card._text_record(every, ["ab", "cd", "d"])
    fingerprint = found.pop("fingerprint")
    assert found == {"name": "test", "documents": 3, "excerpts": 2, "of": 12, "tokens": 3, "characters": 3000}
    assert fingerprint == card._text_record(every, ["ab", "cd", "d"])["fingerprint"]
    assert fingerprint != card._text_record(every, ["ab", "cd", "e"])["fingerprint"]


@pytest.mark.parametrize("wrapped", [True, False])
def test_wrapped_texts_are_as_long_with_their_ends(wrapped: bool) -> None:
    words = vocabulary.characters("abcd", specials=["bos", "eos"])
    how = {"wrapped": wrapped, "documents": "single", "context": 1}
    found = card._excerpts(["abcdabcd", "ab"], 6, how, words)
    room = 4 if wrapped else 6
    plain = pieces.excerpts(["abcdabcd", "ab"], words, room, joined=False, context=1)
    assert [each.scored.tolist() for each in found] == [each.scored.tolist() for each in plain]
    assert max(len(each.tokens) for each in found) == 6
    assert all((int(each.tokens[0]) == words.bos_id) is wrapped for each in found)


@pytest.mark.parametrize(
    ("section", "name"),
    [({"name": "mine", "path": "a/b"}, "mine"), ({"path": "a/b"}, "a/b"), ({}, "pkg.of"), ({"name": 3}, "3")],
)
@pytest.mark.parametrize("split", ["valid", None])
def test_a_component_is_called_by_its_name_and_read_in_its_published_split(
    section: dict[str, Any], name: str, split: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = SimpleNamespace(valid=["v"], test=["t"], **({} if split is None else {"zero_shot": split}))
    asked: list[Any] = []
    monkeypatch.setattr(schemas, "build", lambda *given: asked.append(given) or corpus)
    section = {"_component_": "pkg.of", **section}
    assert texts.zero_shot(section, None, normalised=False) == (name, ["v" if split else "t"])
    assert asked == [(section, "texts")]


def test_the_sampler_of_a_bound_is_told_with_its_numbers() -> None:
    diffusion = Diffusion(tiny_denoiser(), schedules.log_linear(), {})
    assert card.sampler(SETTINGS, models(records={"ar": {}})) == []
    [said] = card.sampler(SETTINGS, models(records={"denoiser": {}, "ar": {}})._replace(diffusion=diffusion))
    assert said.startswith("  bounds of the sampler with ")
    assert said.endswith(", k=4, m=2, t in [0.25, 1]; log Z of 16 drafts")
    [baseline] = card.sampler(SETTINGS, models(records={"denoiser": {}}))
    assert baseline == "  bounds of the sampler with T=8, k=4, m=2, t in [0.25, 1]; log Z of 16 drafts"
