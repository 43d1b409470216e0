"""The recipe `evaluate` on samples: they are compared with held-out text, judged, and the card says by what."""

import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import ABC, SAMPLES, card_of, words, write
from gpt2_folder import CONTEXT
from running import Runner

from edlm.evaluation import judges
from edlm.evaluation import samples as sample_figures
from edlm.models import autoregressive
from edlm.nn.networks import Transformer
from edlm.weights import checkpoints, tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser, an energy, an AR model and two texts."""
    return write(tmp_path_factory.mktemp("models"))


@pytest.fixture
def run(folder: Path, tmp_path: Path, run: Runner) -> Callable[..., tuple[int, str, str, dict[str, Any]]]:
    """Run the recipe in this process: exit status, output, our lines of standard error, and the card."""

    def call(*overrides: str) -> tuple[int, str, str, dict[str, Any]]:
        ran = run("evaluate", *words(folder, tmp_path / "out", overrides))
        return *ran, card_of(tmp_path / "out")

    return call


def test_samples_are_compared_with_held_out_text_and_judged(run, folder: Path) -> None:
    samples = [f"samples={folder / 'samples.jsonl'}", f"judge={folder / 'ar'}", "ngrams=[1,2]"]
    status, shown, error, card = run(*samples, "rows=2", "energy=null", "ar=null")
    assert status == 0, error
    found = {row["figure"]: row for row in card["quality"]}
    assert list(found) == [
        "unigram entropy, nats",
        "repetition-4",
        "distinct-1",
        "distinct-2",
        "1-gram divergence, nats",
        "2-gram divergence, nats",
        "generative perplexity",
    ]
    assert "unigram entropy, bits" in shown
    grams = {tuple(text[i : i + 2]) for text in SAMPLES for i in range(7)}
    assert found["distinct-2"]["samples"]["mean"] == pytest.approx(len(grams) / 21)
    assert found["distinct-2"]["samples"]["n"] == found["distinct-2"]["held_out"]["n"] == 3
    network = checkpoints.load_as(Transformer, folder / "ar")
    with torch.no_grad():
        log_p = autoregressive.ar_log_prob(
            network, torch.stack([ABC.encode(t) for t in SAMPLES]), ABC.mask_id, ABC.mask_id
        )
    assert found["generative perplexity"]["samples"]["mean"] == pytest.approx(math.exp(-log_p.mean().item()), rel=1e-4)
    assert card["judge"]["kind"] == "autoregressive"
    assert card["judge"]["weights_sha256"] == tensors.sha256(folder / "ar" / "network.safetensors")
    assert card["mauve"] is None
    assert len(card["samples"]) == 64


def test_a_model_in_hugging_faces_format_judges_and_the_card_says_which(run, folder: Path, gpt2: Path) -> None:
    status, _, error, card = run(f"samples={folder / 'samples.jsonl'}", f"judge={gpt2}", "energy=null", "ar=null")
    assert status == 0, error
    judgement = judges.causal_lm(str(gpt2), torch.device("cpu"))(SAMPLES)
    found = {row["figure"]: row for row in card["quality"]}["generative perplexity"]
    expected = math.exp(float(judgement.nll.sum()) / int(judgement.tokens.sum()))
    assert found["samples"]["mean"] == pytest.approx(expected)
    assert found["held_out"] is not None
    judge = card["judge"]
    assert (judge["kind"], judge["context"], judge["precision"]) == ("causal_lm", CONTEXT, "float32")
    assert judge["files_sha256"]["model.safetensors"] == tensors.sha256(gpt2 / "model.safetensors")
    assert {"config.json", "tokenizer.json"} < judge["files_sha256"].keys()
    assert judge["transformers"] == version("transformers")


def test_mauve_is_taken_by_the_command_line_and_the_card_says_of_what(run, folder: Path, gpt2: Path) -> None:
    pytest.importorskip("mauve", reason="needs pip install 'edlm-torch[mauve]'")
    words = (f"samples={folder / 'samples.jsonl'}", f"mauve={gpt2}", "energy=null", "ar=null")
    status, shown, error, card = run(*words)
    assert status == 0, error
    assert "MAUVE" in shown
    [found] = [row for row in card["quality"] if row["figure"] == "MAUVE"]
    assert 0.0 < found["samples"]["mean"] <= 1.0
    assert card["mauve"]["files_sha256"]["model.safetensors"] == tensors.sha256(gpt2 / "model.safetensors")
    assert card["mauve"]["mauve-text"] == version("mauve-text")


def test_held_out_texts_share_none_and_are_as_long_as_a_sample() -> None:
    documents = ["".join("abc "[(i // n) % 4] for n in (1, 4, 16) for i in range(40))]
    found = sample_figures.held_out(documents, ABC, 5, 6)
    assert found is not None
    one, other = found
    assert len(one.tokens) == len(other.tokens) == 6
    assert {len(row) for texts in found for row in texts.tokens} == {5}
    assert one.spelled != other.spelled
    whole = documents[0]
    places = [i for i in range(0, len(whole), 5) for texts in found if whole[i : i + 5] in texts.spelled]
    assert len(places) >= 12
    assert sample_figures.held_out(["abc"], ABC, 5, 6) is None
