"""The end of an energy's training: its figures are those of the samplers, and its words follow from the figures."""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import randomise, tiny_denoiser
from commands import run_of

from edlm.data import vocabulary
from edlm.data.pieces import Blocks
from edlm.evaluation import ngrams
from edlm.evaluation.judges import Judgement
from edlm.frontier import closing, closing_report
from edlm.frontier.closing import ENERGY, IN_ORDER, ONE, PLAIN, Closing
from edlm.likelihood import bounds, estimates, exact
from edlm.likelihood.estimates import Estimate
from edlm.models import energies
from edlm.nn.networks import EnergyNetwork
from edlm.samplers import pipelines
from edlm.samplers.corrections import Correction, Joint, OfEnergy
from edlm.samplers.sampler import Sampler

ABC = vocabulary.characters("abc", specials=["pad"])  # the mask is 4, the padding 3
LENGTH = 8
SETTINGS: dict[str, Any] = {
    "samples": {"num_samples": 2, "num_steps": 2, "num_particles": 3, "window": [0.0, 1.0], "seed": 5},
    "closing": {"rows": 9, "num_samples": 9, "counts": [1, 4, 8], "num_completions": 1},
    "batch_size": 4,
    "denoiser": "runs/tiny/denoiser",
    "output_dir": "runs/tiny/energy",
    "scope": "transition",
}


def transition_energy(seed: int = 3) -> Correction:
    """Of transitions, and far from constant."""
    network = EnergyNetwork(5, LENGTH, hidden_size=16, num_layers=1, num_heads=2, conditioning_size=8)
    return OfEnergy(energies.learned_transition(randomise(network, seed).double().eval()), called="transition")


def blocks() -> Blocks:
    rows = torch.randint(0, 3, (20, LENGTH), generator=torch.Generator().manual_seed(0))
    rows[4, -2:] = 3  # filled up, and one of those that are scored
    return Blocks(rows, rows, rows[:12])


@pytest.fixture(scope="module")
def found() -> Closing:
    return closing.of_run(SETTINGS, tiny_denoiser(1), transition_energy(), blocks(), ABC)


def samplers() -> dict[str, Sampler]:
    return closing.ways(tiny_denoiser(1), transition_energy(), 4, 3, (0.0, 1.0))[0]


def test_its_ways_are_plain_twice_the_energy_and_in_order(found: Closing) -> None:
    assert [each.name for each in found.ways] == [ONE, PLAIN, ENERGY, IN_ORDER]
    assert [each.point.together for each in found.ways] == pytest.approx([1.0, 4.0, 4.0, 4.0], rel=0.05)
    assert [each.point.is_exact for each in found.ways] == [True, True, False, True]
    assert not found.left_out
    assert [(each.way, round(each.together)) for each in found.points] == [
        *(("plain", 1), ("plain", 4), ("transition, k=3", 4), ("in order", 4), ("plain", 8), ("in order", 8)),
    ], "at one token a pass in order is plain"


@pytest.mark.parametrize("name", [ONE, PLAIN, IN_ORDER])
def test_bits_are_those_of_the_exact_likelihood_per_character_without_what_fills_up(found: Closing, name: str) -> None:
    x_0 = blocks().test[torch.arange(9) * 12 // 9]
    scored = x_0 != 3
    nats = (exact.of_sampler(samplers()[name], x_0, scored).nats * scored.sum(1)).sum()
    own = next(each for each in found.ways if each.name == name)
    assert own.point.bits.mean == pytest.approx(float(nats / scored.sum() / math.log(2)))
    assert (own.point.bits.n, found.texts.characters) == (9, int(scored.sum()))


def test_a_law_of_single_tokens_stands_beside_them(found: Closing, tmp_path: Path) -> None:
    """By counts of the training text and one more each; what fills a block up is neither counted nor scored."""
    rows, x_0 = blocks().train, blocks().test[torch.arange(9) * 12 // 9]
    often = torch.tensor([float((rows == token).sum()) + 1.0 for token in range(3)])
    total = (
        float(often.sum()) + ABC.size - 4
    )  # a token that never occurs counts once, the mask and what fills up do not
    nats = -sum(math.log(float(often[int(token)]) / total) for token in x_0.flatten() if token != 3)
    assert found.single == pytest.approx(nats / math.log(2) / found.texts.characters)
    closing_report.conclude(tmp_path, found, SETTINGS)
    assert f"a law of single tokens has {found.single:.3f}" in (tmp_path / "report.md").read_text()


def test_the_energy_has_the_bound_of_its_own_sampler(found: Closing) -> None:
    x_0 = blocks().test[torch.arange(9) * 12 // 9]
    scored, row = x_0 != 3, torch.arange(9)
    nats = bounds.of_sampler(samplers()[ENERGY], x_0, torch.tensor(5), row, scored=scored).nats
    assert found.ways[2].point.bits.mean == pytest.approx(
        float((nats * scored.sum(1)).sum() / scored.sum() / math.log(2))
    )


def test_texts_are_those_of_the_sampler_with_their_passes_and_what_the_judge_says(found: Closing) -> None:
    judge = ngrams.judge(ABC.decode(blocks().train))
    for own, sampler in zip(found.ways, samplers().values(), strict=True):
        out = pipelines.sample(pipelines.pipeline(sampler, LENGTH), 9, seed=5)
        texts = ABC.decode(out["tokens"])
        assert list(own.texts) == texts
        passes = out["info", "denoiser_passes"] + out["info", "energy_passes"]
        assert own.passes.mean == pytest.approx(float(passes.mean()))
        told = judge(texts)
        assert own.judged.mean == pytest.approx(float(told.nll.sum() / told.tokens.sum() / math.log(2)))


def test_a_way_that_there_is_not_is_left_out_with_the_reason() -> None:
    """No bound is known of candidates that are weighed by a law of two temperatures, or of a joint energy alone."""
    built, left_out = closing.ways(tiny_denoiser(1), Joint(), 4, 3, (0.0, 1.0))
    assert list(built) == [ONE, PLAIN, IN_ORDER]
    assert "joint" in left_out[ENERGY]


def test_held_out_texts_are_spread_evenly_and_without_padding_all_of_them_counts() -> None:
    rows = torch.arange(20).unsqueeze(1).expand(20, LENGTH) % 3
    texts = closing.held_out(rows, 8, vocabulary.characters("abc"))
    assert [int(each.tokens[0]) for each in texts.excerpts] == [number * 20 // 8 % 3 for number in range(8)]
    assert (texts.characters, len(closing.held_out(rows, 99, ABC).excerpts)) == (8 * LENGTH, 20)


def test_an_empty_text_counts_for_nothing_under_the_judge() -> None:
    """8 nats of four tokens, whatever else there is."""
    counts = torch.tensor([1, 0, 3])
    found = closing.judged(lambda _: Judgement(torch.tensor([2.0, 0.0, 6.0]).double(), counts), ["a", "", "abc"])
    assert (found.mean, found.n) == (pytest.approx(2.0 / math.log(2)), 3)
    wanted = estimates.estimate(torch.tensor([2.0, 0.0, 2.0]), counts).standard_error / math.log(2)
    assert found.standard_error == pytest.approx(wanted)


def test_so_many_tokens_of_the_training_text_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "_COUNTED", 5 * LENGTH)
    counted: list[list[str]] = []
    monkeypatch.setattr(ngrams, "judge", lambda texts: counted.append(texts) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        closing.of_run(SETTINGS, tiny_denoiser(1), transition_energy(), blocks(), ABC)
    some = blocks().train[torch.tensor([0, 4, 8, 12, 16])]
    assert counted == [ABC.decode(some)]
    texts = closing.held_out(blocks().test, 9, ABC)
    often = torch.bincount(some[some != 3], minlength=4) + 1.0  # every token but the mask once more
    nats = -sum(math.log(float(often[token] / often.sum())) for each in texts.excerpts for token in each.scored)
    found = closing.without_context(texts, blocks().train, ABC)
    assert found == pytest.approx(nats / math.log(2) / texts.characters)


def test_a_denoiser_of_blocks_goes_through_them() -> None:
    built, _ = closing.ways(tiny_denoiser(1, block_size=4), transition_energy(), 4, 3, (0.0, 1.0))
    assert all("4" in str(each.plan) for each in built.values())


def test_the_words_follow_the_paired_difference(found: Closing) -> None:
    """Every text moved by about a nat a token: the sign and the size of the difference are known."""
    records = {name: dict(own) for name, own in found.records.items()}
    plain = next(iter(records[found.ways[1].point.name]["nats"].values()))
    for way, by in ((found.ways[2], 1.0), (found.ways[3], -1.0)):
        [(figure, _)] = records[way.point.name]["nats"].items()
        moved = [each + by * (1.0 + 0.1 * math.sin(number)) for number, each in enumerate(plain)]
        records[way.point.name]["nats"] = {figure: moved}
    worse, better, _ = closing_report.sentences(found._replace(records=records))
    assert re.search(r"1\.4\d\d? ± 0\.0\d\d? bits a character more than plain", worse)
    assert re.search(r"1\.4\d\d? ± 0\.0\d\d? bits a character fewer than plain", better)


def test_what_is_no_more_than_its_error_is_not_told_apart(found: Closing) -> None:
    records = {**found.records, found.ways[2].point.name: found.records[found.ways[1].point.name]}
    assert "not told apart from plain" in closing_report.sentences(found._replace(records=records))[0]


def test_what_the_judge_says_is_told_by_its_own_error(found: Closing) -> None:
    one, plain, energy, order = found.ways
    told = plain._replace(judged=Estimate(3.0, 0.1, 9))
    for judged, said in (
        (3.2, "does not tell"),
        (4.0, r"judged 1\.00 ± 0\.14 worse"),
        (2.0, "judged 1.00 ± 0.14 better"),
    ):
        own = energy._replace(judged=Estimate(judged, 0.1, 9))
        assert re.search(said, closing_report.sentences(found._replace(ways=[one, told, own, order]))[0])


def test_few_texts_of_one_way_are_too_few_for_the_judge(found: Closing) -> None:
    one, plain, energy, order = found.ways
    for own, other in ((9, 4), (4, 9)):
        ways = [one, plain._replace(judged=Estimate(1.0, 0.1, other)), energy._replace(judged=Estimate(9.0, 0.1, own))]
        said = closing_report.sentences(found._replace(ways=[*ways, order]))
        assert said[0].endswith("; the judge does not tell their texts apart")


def test_many_tokens_a_pass_are_compared_with_one_in_order_where_that_is_known(found: Closing) -> None:
    assert closing_report.sentences(found)[2].startswith(f"{IN_ORDER}: ")
    assert f" {ONE} (" in closing_report.sentences(found)[2]
    without = closing_report.sentences(found._replace(ways=found.ways[:3]))
    assert [said.partition(":")[0] for said in without] == [ENERGY, PLAIN]


def test_the_report_has_every_figure_under_its_name(found: Closing) -> None:
    own, report = found.ways[2], closing_report.report(found)
    assert list(report) == [ONE, PLAIN, ENERGY, IN_ORDER]
    assert report[ENERGY] == {
        "bits_per_character": own.point.bits._asdict(),
        "figure": "transition_nelbo",
        "judged": own.judged._asdict(),
        "passes": own.passes._asdict(),
        "seconds": own.seconds,
    }


def test_the_table_names_each_way_with_its_tokens_a_pass_and_marks_a_bound(found: Closing) -> None:
    head, one, *several, last = closing_report.rows(found)
    assert one[0] == ONE
    assert [re.sub(r"[\d.]+ a pass", "N a pass", row[0]) for row in several] == [
        f"{name}, N a pass" for name in (PLAIN, ENERGY, IN_ORDER)
    ]
    assert [row[1].startswith("<= ") for row in (one, *several)] == [False, False, True, False]
    assert len({len(row) for row in (head, one, *several, last)}) == 1
    assert last[0] == "held-out text"


def test_all_of_it_is_written_and_shown(found: Closing, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closing_report.conclude(tmp_path, found, SETTINGS)
    out = capsys.readouterr().out
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [each["way"] for each in records] == [name for name in (ONE, PLAIN, ENERGY, IN_ORDER) for _ in range(9)]
    assert records[10] == {"row": 1, "seed": 5, "way": PLAIN, "text": found.ways[1].texts[1]}
    table = (tmp_path / "report.md").read_text()
    for own in found.ways:
        assert f"{own.point.bits.mean:.3f} ± {own.point.bits.standard_error:.3f}" in out
        assert f"{own.judged.mean:.3f} ± {own.judged.standard_error:.3f}" in table
        assert own.texts[1] in out
    assert out.count("edlm run ") == 3
    words = " ".join(out.split())
    for said in (closing_report.remark(found, SETTINGS), *closing_report.sentences(found)):
        assert said[1:] in words
        assert said in table


@pytest.mark.parametrize("scope", ["draft", "transition"])
def test_what_next_would_start(scope: str) -> None:
    for _, command in closing_report.next_commands({**SETTINGS, "scope": scope}):
        run = run_of(shlex.split(command.rpartition("&& ")[2]))
        assert run is not None
        assert run.settings()
