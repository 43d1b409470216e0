"""Recipes on networks of one's own, on masked language models, and on causal models by themselves, end to end."""

import json
from pathlib import Path
from typing import Any

import hub_folders as hub
import own_parts
import pytest
import torch
from omegaconf import OmegaConf
from running import Runner
from smallest import TEXTS

from edlm.cli import commands
from edlm.data import vocabulary
from edlm.nn import decoders
from edlm.runs import environment
from edlm.samplers import autoregressive
from edlm.weights import large

transformers = pytest.importorskip("transformers", reason="needs pip install 'edlm-torch[families]'")
SENTENCES = ["the cat sat on a mat . the dog ran and the cats sat .", "a hat and a mat . the dogs ran on the mat ."]


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No component is named from outside, and none stays named."""
    monkeypatch.setenv(environment.COMPONENTS, "")


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_network_of_ones_own_is_trained_gone_on_with_sampled_and_evaluated(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_parts.forget(monkeypatch)
    monkeypatch.chdir(own_parts.write(tmp_path / "own"))
    config = OmegaConf.load(commands.configs("pretrain_denoiser")["tiny"])
    config.network = {"_component_": "my_network.Recurrent", "hidden_size": 16}
    OmegaConf.save(config, "my.yaml")
    words = [f"{key}={value}" for key, value in TEXTS.items()] + ["output_dir=mine", "threads=1", "resume=true"]
    status, _, error = run("pretrain_denoiser", *words, config="my.yaml")
    assert status == 0, error
    status, _, error = run("pretrain_denoiser", *words, config="my.yaml")  # goes on from the last checkpoint
    assert status == 0, error
    monkeypatch.setenv(environment.COMPONENTS, "")
    draw = ["denoiser=mine", "energy=null", "num_samples=2", "num_steps=4", "threads=1", "output=x.jsonl"]
    status, _, error = run("generate", *draw)
    assert (status, "class 'my_network.Recurrent' is not one of" in error) == (2, True), error
    status, _, error = run("generate", *draw, "components=[my_network.Recurrent]")
    assert status == 0, error
    assert [len(record["tokens"]) for record in records(Path("x.jsonl"))] == [32, 32]
    score = ["denoiser=mine", "energy=null", "rows=4", "num_steps=4", "output_dir=card", "threads=1"]
    status, shown, error = run("evaluate", *score, "components=[my_network.Recurrent]")
    assert status == 0, error
    assert "nelbo" in shown.lower()


def test_a_module_that_is_no_network_is_said_before_the_first_step(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_parts.forget(monkeypatch)
    monkeypatch.chdir(own_parts.write(tmp_path / "own"))
    Path("my_network.py").write_text(own_parts.FILES["my_network.py"].replace("self.head =", "self.vocabulary ="))
    config = OmegaConf.load(commands.configs("pretrain_denoiser")["tiny"])
    config.network = {"_component_": "my_network.Recurrent", "hidden_size": 16}
    OmegaConf.save(config, "my.yaml")
    status, _, error = run("pretrain_denoiser", "output_dir=mine", "threads=1", config="my.yaml")
    assert (status, "my_network.Recurrent: makes no network, but something" in error) == (2, True), error
    assert not Path("mine").exists()


def test_a_masked_language_model_draws_and_is_evaluated(run: Runner, tmp_path: Path) -> None:
    """Nothing but words of its own vocabulary, which its own decoder reads."""
    folder = hub.save(hub.model("bert", transformers), tmp_path / "bert")
    output = tmp_path / "x.jsonl"
    words = [f"denoiser={folder}", "energy=null", "num_samples=3", "num_steps=4", "length=12", "threads=1"]
    status, _, error = run("generate", *words, f"output={output}", "prompt=the _ sat on")
    assert status == 0, error
    own = large.load_vocabulary(folder)
    for record in records(output):
        assert min(record["tokens"]) >= 7
        assert max(record["tokens"]) < 7 + len(hub.WORDS)
        assert own.decode(torch.tensor(record["tokens"])) == record["text"]
        assert record["text"].startswith("the ")
        assert "##" not in record["text"].replace(" ##s", "")
        assert not {"[", "]"} & set(record["text"])
    (tmp_path / "test.txt").write_text("\n".join(SENTENCES * 3))
    score = [f"denoiser={folder}", "energy=null", "rows=2", "num_steps=3", "length=12", "threads=1", "split=null"]
    score += [f"zero_shot=[{tmp_path / 'test.txt'}]", f"output_dir={tmp_path / 'card'}", "num_completions=1"]
    status, _, error = run("evaluate", *score)
    assert status == 0, error
    card = json.loads((tmp_path / "card" / "metric_card.json").read_text())
    assert card["networks"]["denoiser"]["description"]["model_type"] == "bert"
    found = {figure["figure"]: figure["nats_per_token"] for figure in card["figures"]}
    assert "nelbo" in found
    assert all(0 < value < 50 for value in found.values())
    status, _, error = run("evaluate", *score, f"ar={folder}")
    assert (status, "model_type = 'bert' must be one of" in error) == (2, True), error


def test_a_causal_model_draws_by_itself_with_its_cache(run: Runner, tmp_path: Path) -> None:
    for kind in ("llama", "gpt2"):
        folder = hub.save(hub.model(kind, transformers), tmp_path / kind)
        (folder / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
        hub.change(folder, eos_token_id=2)
        output = tmp_path / f"{kind}.jsonl"
        words = ["denoiser=null", "energy=null", f"ar={folder}", "num_samples=2", "length=9", "threads=1"]
        status, _, error = run("generate", *words, f"output={output}")
        assert status == 0, error
        network = decoders.load(large.read_autoregressive(folder, 9, vocab_size=hub.V + 1))
        drawn = autoregressive.sample(network, 2, 9, mask_id=hub.V, bos_id=1)
        assert [record["tokens"] for record in records(output)] == drawn.tokens.tolist()
