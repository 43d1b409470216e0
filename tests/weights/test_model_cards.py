"""Every line of a model's card: what it is, how it is loaded, and figures of exactly these weights."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from edlm.data import vocabulary
from edlm.weights import model_card
from edlm.weights.model_card import Row

WORDS = vocabulary.characters("abcd")
FIGURE: dict[str, Any] = {"texts": "test", "model": "denoiser", "figure": "nelbo", "n": 9, "nats_error": 0.125}
FIGURE |= {"nats_per_token": 1.5, "bits_per_character": 2.25}


def found(path: Path, kind: str = "subs", **description: Any) -> Any:
    network = nn.Linear(30, 40)
    both = {"kind": kind, "path": str(path), "network": network, "vocabulary": WORDS, "weights": "0a1b"}
    return SimpleNamespace(**both, description=description)


def parts(card: Any) -> list[str]:
    """The sections of a card, without what stands in front of them for the hub."""
    return card.content.split("---\n\n", 1)[1].rstrip("\n").split("\n\n")


@pytest.mark.parametrize(
    ("kind", "what", "part"),
    [
        ("subs", "a masked diffusion denoiser", "denoiser"),
        ("d3pm", "an absorbing D3PM, a baseline", "baseline"),
        ("sedd", "a SEDD with an absorbing process, a baseline", "baseline"),
        ("ar", "an autoregressive model", "autoregressive"),
        ("draft", "an energy of drafts, which corrects a denoiser", "energy(of=denoiser)"),
        ("transition", "an energy of what a step reveals, which corrects a denoiser", "energy(of=denoiser)"),
    ],
)
def test_a_card_says_what_a_model_is_and_how_it_is_loaded(kind: str, what: str, part: str, tmp_path: Path) -> None:
    own = found(tmp_path, kind, step=7, schedule=None, bos_id=0, other="left out", **{"class": "Net"})
    card = model_card.of(own, "0a1b")
    assert parts(card) == [
        f"# edlm: {what}",
        "1,240 parameters, 5 ids (characters).",
        "```python\nimport edlm",
        f'model = edlm.from_pretrained("NAME OR FOLDER")\nmodel.{part}, model.vocabulary\n```',
        "## What it is",
        "| key | value |\n|---|---|\n| class | Net |\n| step | 7 |\n| bos_id | 0 |\n"
        f"| vocabulary | {WORDS.fingerprint} |\n| sha256 of the weights | 0a1b |",
    ]
    assert (card.data.library_name, card.data.tags) == ("edlm", ["edlm", "masked-diffusion"])
    assert (card.data.model_name, card.data.eval_results) == (None, None)


def test_a_card_has_a_row_for_each_figure_of_its_weights(tmp_path: Path) -> None:
    figures = [FIGURE, {**FIGURE, "model": "ar", "bits_per_character": None}, {**FIGURE, "nats_per_token": None}]
    figures = [{**each, "warning": "beware"} for each in figures]
    card = {"networks": {"a": {}, "denoiser": {"weights_sha256": "0a1b"}}, "figures": figures}
    (tmp_path / model_card.METRICS).write_text(json.dumps(card))
    made = model_card.of(found(tmp_path), "0a1b")
    assert parts(made)[4:8] == [
        "## Figures",
        "| texts | model | figure | nats a token | bits a character | n |\n|---|---|---|---|---|---|\n"
        "| test | denoiser | nelbo | 1.5000 ± 0.1250 | 2.2500 | 9 |\n"
        "| test | ar | nelbo | 1.5000 ± 0.1250 | - | 9 |",
        "Measured by `edlm run evaluate`; the metric card has all that repeats it. Errors are of the mean over texts.",
        "beware",
    ]
    [result] = made.data.eval_results
    assert (result.metric_name, result.metric_type, result.metric_value) == (
        "denoiser: nelbo",
        "bits_per_character",
        2.25,
    )
    assert (result.dataset_name, result.dataset_type, result.task_type) == ("test", "test", "text-generation")
    assert made.data.model_name == "a masked diffusion denoiser"
    assert "## Figures" not in parts(model_card.of(found(tmp_path), "ffff")), "of other weights nothing is told"
    with pytest.raises(ValueError, match="says nothing of the weights of"):
        model_card.of(found(tmp_path), "ffff", tmp_path / model_card.METRICS)
    for broken in ({"networks": [], "figures": []}, {"networks": {}, "figures": {}}):
        (tmp_path / "x.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=r"x\.json is no metric card: `edlm run evaluate` writes one$"):
            model_card.of(found(tmp_path), "0a1b", tmp_path / "x.json")
    assert list(model_card._rows(figures)) == [
        Row("test", "denoiser", "nelbo", 1.5, 0.125, 2.25, 9),
        Row("test", "ar", "nelbo", 1.5, 0.125, None, 9),
    ]


@pytest.mark.parametrize(
    ("kind", "step", "weights", "claim"),
    [
        ("subs", 1200, "0a1b", "NELBO, an upper bound"),
        ("d3pm", 1200, "0a1b", "an upper bound"),
        ("sedd", 1200, "0a1b", "an upper bound"),
        ("ar", 1200, "0a1b", "exact NLL"),
        ("draft", 1200, "0a1b", None),
        ("subs", 1201, "0a1b", None),
        ("subs", None, "0a1b", None),
        ("subs", 1200, "ffff", None),
    ],
)
def test_the_report_of_a_run_is_told_of_its_own_step_and_weights(
    kind: str, step: int | None, weights: str, claim: str | None, tmp_path: Path
) -> None:
    report = {"step": 1200, "mean": 1.5, "standard_error": 0.25, "n": 9}
    (tmp_path / "report.json").write_text(json.dumps(report))
    said = model_card._reported(found(tmp_path, kind, step=step), weights)
    assert said == (
        ""
        if claim is None
        else f"At the end of training (step 1,200), on held-out text: 1.5000 ± 0.2500 nats a token, {claim}, n = 9."
    )
    for missing in ("mean", "standard_error", "n"):
        (tmp_path / "report.json").write_text(json.dumps({key: report[key] for key in report if key != missing}))
        assert model_card._reported(found(tmp_path, kind, step=step), weights) == ""
