"""`edlm convert`: from published checkpoints to ours and back without a loss, a mistake in one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published_files import SIZES, kinds, prefixed, published_order, same_weights, small, trainers_config, trainers_file
from safetensors.torch import load_file

from edlm.cli import commands
from edlm.data import vocabulary
from edlm.nn.networks import EnergyNetwork, Transformer
from edlm.samplers import autoregressive
from edlm.weights import checkpoints, exchange, foreign, loading, published


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`edlm convert` with these arguments: exit status, what it printed, and its complaint."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = 0
        try:
            commands.main(["convert", *map(str, arguments)])
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return call


def test_a_converted_denoiser_and_energy_are_what_the_file_holds_and_nothing_is_overwritten(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    denoiser, energy = small("denoiser", 0), small("energy", 2)
    one = trainers_file(
        tmp_path / "mdlm.ckpt", prefixed("backbone.", small("denoiser", 9)), denoiser, trainers_config()
    )
    two = trainers_file(tmp_path / "nce.ckpt", prefixed("ebm.", small("energy", 8)), energy, trainers_config())
    status, out, error = run(one, tmp_path / "den", "--tokenizer", "text8")
    assert (status, error) == (0, "")
    shown = dict(line.split(None, 1) for line in out.splitlines())
    assert shown["kind"] == "denoiser"
    assert shown["heads"] == "3, from the file's settings"
    assert shown["vocabulary"] == "28 ids, the mask is 27"
    assert shown["weights"] == "averaged"
    assert shown["step"] == "500"
    assert same_weights(checkpoints.load_as(Transformer, tmp_path / "den", vocabulary.characters()), denoiser)
    assert run(two, tmp_path / "en", "--tokenizer", "text8")[0] == 0
    assert same_weights(checkpoints.load_as(EnergyNetwork, tmp_path / "en", vocabulary.characters()), energy)
    assert run(one, tmp_path / "raw", "--tokenizer", "text8", "--raw")[0] == 0
    assert same_weights(checkpoints.load_as(Transformer, tmp_path / "raw"), small("denoiser", 9))
    assert checkpoints.read_description(tmp_path / "raw")["weights"] == "raw"
    status, _, error = run(one, tmp_path / "den", "--tokenizer", "text8")
    assert status == 2
    assert "exists already" in error


def test_a_converted_denoiser_knows_that_its_texts_stand_between_two_tokens(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    words = vocabulary.characters()
    pair = vocabulary.Vocabulary(words.tokenizer, words.size, words.mask_id, bos_id=26, eos_id=25)
    (tmp_path / "words").mkdir()
    pair.save(tmp_path / "words")
    file = trainers_file(tmp_path / "it.ckpt", prefixed("backbone.", small("denoiser", 1)), None, trainers_config())
    assert run(file, tmp_path / "it", "--tokenizer", tmp_path / "words", "--wrapped")[0] == 0
    assert checkpoints.read_description(tmp_path / "it")["wrapped"] is True
    said = run(file, tmp_path / "other", "--tokenizer", "text8", "--wrapped")[2]
    assert "wrapped = True needs a vocabulary with a bos and an eos" in said
    ar = trainers_file(tmp_path / "ar.ckpt", prefixed("backbone.", small("autoregressive", 1)), None, trainers_config())
    said = run(ar, tmp_path / "ar", "--tokenizer", "text8", "--wrapped")[2]
    assert "wrapped = True is for a denoiser, and this is none: leave it out" in said


def test_a_converted_ar_model_knows_the_bos_that_it_is_given_and_is_drawn_alone(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    state = prefixed("backbone.", small("autoregressive", 1))
    file = trainers_file(tmp_path / "ar.ckpt", state, None, trainers_config())
    status, out, error = run(file, tmp_path / "ar", "--tokenizer", "text8", "--bos", " ")
    assert (status, error) == (0, "")
    assert dict(line.split(None, 1) for line in out.splitlines())["bos_id"] == "26"
    assert run(file, tmp_path / "given", "--tokenizer", "text8")[0] == 0
    found = [loading.autoregressive(str(tmp_path / name), torch.device("cpu")) for name in ("ar", "given")]
    assert [each.description.get("bos_id") for each in found] == [26, None]
    draws = autoregressive.sample(found[0].network, 2, 8, found[0].vocabulary.mask_id, 26, seed=1)
    assert int(draws.tokens.max()) < 27
    said = run(file, tmp_path / "other", "--tokenizer", "text8", "--bos", "<s>")[2]
    assert "bos = '<s>' is no token of the vocabulary" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.ckpt", "out"], "nowhere.ckpt: no such file or folder"),
        (["x.ckpt", "out"], "x.ckpt holds no tokenizer: name a tokenizer.json"),
        (["x.ckpt", "out", "--tokenizer", "nowhere"], "nowhere: no tokenizer there"),
        (["x.ckpt", "out", "--tokenizer", "text8", "--num-heads", "5"], "num_heads = 5 does not fit"),
        (["x.ckpt", "out", "--tokenizer", "text8", "--num-heads", "0"], "num_heads = 0 does not fit"),
        (["x.ckpt", "out", "--tokenizer", "text8", "--num-heads", "2"], "rotary_emb.inv_freq"),
        (["x.ckpt", "out", "--tokenizer", "text8", "--length", "0"], "length = 0 must be at least 1"),
        (["x.ckpt", "out", "--tokenizer", "text8", "--part", "energy"], "there is no part 'energy'"),
        (["x.ckpt", "x.ckpt/out", "--tokenizer", "text8"], "cannot write x.ckpt/out"),
        ([".", "out"], "config.json: cannot be read"),
        (["x.ckpt", "out", "--to", "hf"], "x.ckpt: no checkpoint there"),
        (["x.ckpt", "out", "--to", "hf", "--raw"], "--raw is for published weights"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(
    run: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", small("denoiser")))
    status, _, error = run(*arguments)
    assert status == 2
    assert said in error
    assert len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == ["x.ckpt"]


@kinds
def test_a_network_comes_back_from_a_hugging_face_folder_as_it_was(
    kind: str, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    network, words = small(kind), vocabulary.characters()
    network.arguments["dropout"] = 0.1
    notes = {"step": 7, "schedule": {"_component_": "edlm.schedules.cosine"}, "time_conditioning": True, "corpus": "x"}
    checkpoints.save_network(tmp_path / "ours", network, words, notes)
    assert run(tmp_path / "ours", tmp_path / "hf", "--to", "hf")[0] == 0
    assert published.kind_of(foreign.read(tmp_path / "hf").state) == kind
    assert run(tmp_path / "hf", tmp_path / "back")[0] == 0
    for file in ("network.json", "vocabulary.json", "tokenizer.json", "network.safetensors"):
        assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "ours" / file).read_bytes(), file


def test_an_exported_denoiser_is_laid_out_as_the_published_one(tmp_path: Path) -> None:
    checkpoints.save_network(tmp_path / "ours", small("denoiser"), vocabulary.characters(), {})
    exchange.export(tmp_path / "ours", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text("utf-8"))
    sizes = {"vocab_size": 28, "model_length": 16, "hidden_dim": 12, "cond_dim": 4, "n_blocks": 2, "n_heads": 3}
    assert {**config, **sizes, "model_type": "mdlm", "architectures": ["MDLM"], "dropout": 0.0} == config
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    assert tensors.keys() == {f"backbone.{name}" for name in [*published_order("denoiser"), "rotary_emb.inv_freq"]}


@pytest.mark.parametrize("notes", [{}, {"time_conditioning": False}, {"time_conditioning": True}])
def test_an_exported_denoiser_says_whether_it_is_given_the_time(notes: dict[str, bool], tmp_path: Path) -> None:
    checkpoints.save_network(tmp_path / "ours", small("denoiser"), vocabulary.characters(), notes)
    exchange.export(tmp_path / "ours", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text("utf-8"))
    assert config["time_conditioning"] is notes.get("time_conditioning", False)


def test_norms_with_biases_are_not_exported(tmp_path: Path) -> None:
    network = Transformer(28, 16, **SIZES, conditioning_size=0, norm_bias=True)
    checkpoints.save_network(tmp_path / "ours", network, vocabulary.characters(), {})
    with pytest.raises(ValueError, match="published norms have no biases"):
        exchange.export(tmp_path / "ours", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_an_autoregressive_network_with_conditioning_is_not_exported(tmp_path: Path) -> None:
    network = Transformer(28, 16, **SIZES, conditioning_size=8, causal=True)
    checkpoints.save_network(tmp_path / "ours", network, vocabulary.characters(), {})
    with pytest.raises(ValueError, match="a published autoregressive network has no conditioning"):
        exchange.export(tmp_path / "ours", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.slow
def test_generate_runs_on_what_was_converted(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    denoiser = trainers_file(tmp_path / "mdlm.ckpt", prefixed("backbone.", small("denoiser")), small("denoiser", 1))
    energy = trainers_file(tmp_path / "nce.ckpt", prefixed("ebm.", small("energy")), small("energy", 3))
    assert run(denoiser, tmp_path / "den", "--tokenizer", "text8", "--length", "16")[0] == 0
    assert run(energy, tmp_path / "en", "--tokenizer", "text8", "--length", "16")[0] == 0
    words = [f"denoiser={tmp_path / 'den'}", f"energy={tmp_path / 'en'}", f"output={tmp_path / 'x.jsonl'}"]
    command = [sys.executable, "-m", "edlm.cli.commands", "run", "generate", *words]
    sizes = ["num_samples=2", "num_steps=4", "num_particles=2", "threads=1"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    texts = [json.loads(line)["text"] for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    assert [len(text) for text in texts] == [16, 16]


def test_ids_of_the_published_characters_are_put_in_our_order() -> None:
    """There: [CLS], [SEP], [BOS], [EOS], [MASK], [PAD], [RESERVED], [UNK], then the letters and the space."""
    order, specials = exchange._TEXT8_IDS, exchange._TEXT8_SPECIALS
    assert order[:27] == tuple(range(8, 35))
    assert sorted(order) == list(range(35))
    assert order[34] == 4
    assert [order[specials[name]] for name in ("bos_id", "eos_id", "pad_id")] == [2, 3, 5]
    assert exchange._in_our_order("?_ zyxwvutsrqponmlkjihgfedcba", 29) == (*range(28, 2, -1), 2, 0, 1)
