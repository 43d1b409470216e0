"""Checkpoints of other people: read exactly, refused by name, their vocabularies ours."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published_files import (
    KINDS,
    built,
    hf_folder,
    kinds,
    prefixed,
    published_order,
    same_weights,
    small,
    trainers_config,
    trainers_file,
)
from safetensors.torch import load_file, save_file

from edlm.data import vocabulary
from edlm.weights import checkpoints, exchange, foreign, published

GOLDENS = Path(os.environ.get("EDLM_SHARED", Path(__file__).parents[3] / "shared")) / "goldens"


# ---- The order of parameters


@kinds
@pytest.mark.parametrize("layers", [1, 2, 12])
def test_parameters_stand_in_the_published_order(kind: str, layers: int) -> None:
    assert published.parameter_order(small(kind, num_layers=layers)) == published_order(kind, layers)


@pytest.mark.parametrize("case", ["a", "b"])
@pytest.mark.parametrize(("file", "prefix"), [("dit", "sd."), ("ar", "sd."), ("ebm_bi", "ebm."), ("ebm_ar", "ar.")])
def test_the_order_is_that_of_the_published_modules(case: str, file: str, prefix: str) -> None:
    """The notes of the published numbers list each network's state as its module gave it."""
    path = GOLDENS / f"share_{file}_{case}.json"
    if not path.is_file():
        pytest.skip(f"no published numbers: {path} is not there (set EDLM_SHARED)")
    notes = json.loads(path.read_text("utf-8"))
    listed = [name.removeprefix(prefix) for name in notes["tensors"] if name.startswith(prefix)]
    tensors = load_file(path.with_suffix(".safetensors"))
    state = {name: tensors[prefix + name] for name in listed}
    network = published.load(state, notes["model"]["heads"])
    assert published.parameter_order(network) == [name for name in listed if name != "rotary_emb.inv_freq"]


@settings(max_examples=12)
@given(
    kind=st.sampled_from(KINDS),
    layers=st.sampled_from([1, 2, 11]),
    heads=st.integers(1, 2),
    size=st.integers(1, 2),
    shuffle=st.randoms(use_true_random=False),
)
def test_averages_find_their_places_whatever_the_order_of_the_state(
    kind: str, layers: int, heads: int, size: int, shuffle: Any
) -> None:
    sizes = {"num_layers": layers, "num_heads": heads, "hidden_size": 2 * heads * size}
    raw, average = small(kind, 0, **sizes), small(kind, 1, **sizes)
    names = list(published.export(raw))
    shuffle.shuffle(names)
    state = {name: published.export(raw)[name] for name in names}
    shadow = [published.export(average)[name] for name in published_order(kind, layers)]
    weights = foreign.Weights("a file", state, shadow, {}, {})
    assert same_weights(built(weights), average)
    assert same_weights(built(weights, raw=True), raw)


# ---- Reading


@kinds
def test_a_trainers_checkpoint_is_read_with_its_averages_its_settings_and_its_step(kind: str, tmp_path: Path) -> None:
    raw, average = small(kind, 0), small(kind, 1)
    file = trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", raw), average, trainers_config())
    weights = foreign.read(file)
    assert weights.source == "Lightning checkpoint"
    expected = {"num_heads": 3, "max_length": 16, "dropout": 0.1, "hidden_size": 12, "num_layers": 2}
    assert weights.settings == {**expected, "conditioning_size": 4}
    assert weights.notes["step"] == 500
    assert weights.notes["parameterization"] == "subs"
    assert weights.notes["time_conditioning"] is False
    assert same_weights(built(weights), average)
    assert same_weights(built(weights, raw=True), raw)
    assert built(weights).arguments["dropout"] == 0.1
    assert not built(weights).training


@pytest.mark.parametrize("energy", ["energy", "autoregressive"])
def test_an_edlm_checkpoint_holds_the_averaged_energy_and_the_frozen_denoiser(energy: str, tmp_path: Path) -> None:
    """The energy's weights stand there twice; the average is of what was trained, the energy."""
    denoiser, raw, average = small("denoiser", 0), small(energy, 1), small(energy, 2)
    state = prefixed("backbone.backbone.", denoiser) | prefixed("backbone.ebm.", raw) | prefixed("ebm.", raw)
    file = trainers_file(tmp_path / "nce.ckpt", state, average, trainers_config())
    assert same_weights(built(foreign.read(file)), average)
    assert same_weights(built(foreign.read(file, "energy"), raw=True), raw)
    assert same_weights(built(foreign.read(file, "denoiser")), denoiser)


def test_an_energy_that_differs_from_its_second_copy_is_refused(tmp_path: Path) -> None:
    state = prefixed("backbone.ebm.", small("energy", 0)) | prefixed("ebm.", small("energy", 1))
    with pytest.raises(ValueError, match=r"vocab_embed\.embedding of energy is there twice"):
        foreign.read(trainers_file(tmp_path / "x.ckpt", state))


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_hugging_face_folder_is_read(weights: str, tmp_path: Path) -> None:
    network = small("denoiser")
    found = foreign.read(hf_folder(tmp_path / "hf", network, weights, time_conditioning=True))
    assert found.source == "Hugging Face folder"
    assert found.notes["time_conditioning"] is True
    assert same_weights(built(found), network)
    assert built(found).arguments["max_length"] == 16


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_bare_weights_are_read_and_their_heads_are_in_the_rotary_frequencies(prefix: str, tmp_path: Path) -> None:
    network = small("denoiser")
    state = prefixed(prefix, network)
    save_file(state, tmp_path / "x.safetensors")
    weights = foreign.read(tmp_path / "x.safetensors")
    assert exchange.sizes_of(weights)[:3] == (3, 1024, "from the rotary frequencies")
    assert same_weights(built(weights), network)
    assert exchange.sizes_of(weights, 6, 8) == (6, 8, "as given", "as given")
    bare = weights._replace(state={name: v for name, v in weights.state.items() if name != "rotary_emb.inv_freq"})
    assert exchange.sizes_of(bare)[:2] == (12, 1024)


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf", small("denoiser"), model_type="llada")
    with pytest.raises(ValueError, match=r"model_type = 'llada' must be mdlm; edlm\.large reads llada and Dream"):
        foreign.read(folder)


def test_settings_that_contradict_the_weights_are_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf", small("denoiser"), n_blocks=3)
    with pytest.raises(ValueError, match="settings say num_layers = 3, its weights say 2"):
        built(foreign.read(folder))


def test_averages_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    network = small("denoiser")
    shadow = [published.export(network)[name] for name in published_order("denoiser")]
    for wrong, said in (
        (shadow[1:], "averages 29 parameters, the network has 30"),
        ([shadow[1], shadow[0], *shadow[2:]], r"average in the place of vocab_embed\.embedding has shape \(4, 256\)"),
    ):
        weights = foreign.Weights("a file", published.export(network), wrong, {}, {})
        with pytest.raises(ValueError, match=said):
            built(weights)
    file = tmp_path / "x.ckpt"
    trainers_file(file, prefixed("backbone.", network), ema={"decay": 0.9, "shadow_params": "gone"})
    with pytest.raises(ValueError, match="are not a list of tensors under shadow_params"):
        foreign.read(file)


@kinds
def test_unknown_and_missing_names_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    state = prefixed("backbone.", small(kind))
    extra = trainers_file(tmp_path / "a.ckpt", {**state, "metric.total": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"metric\.total is not known"):
        built(foreign.read(extra))
    del state["backbone.blocks.1.mlp.0.bias"]
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.0\.bias is missing"):
        built(foreign.read(trainers_file(tmp_path / "b.ckpt", state)))


@pytest.mark.parametrize(
    ("part", "said"),
    [("energy", "there is no part 'energy'; it holds one network alone"), ("denoiser", "no part 'denoiser'")],
)
def test_a_part_that_is_not_there_is_refused(part: str, said: str, tmp_path: Path) -> None:
    file = trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", small("denoiser")))
    with pytest.raises(ValueError, match=said):
        foreign.read(file, part)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf", small("denoiser"))
    file = folder / "model.safetensors"
    save_file({}, file)
    for path in (folder, file):
        with pytest.raises(ValueError, match=r"model\.safetensors: no weights by name"):
            foreign.read(path)


# ---- Vocabularies


def gpt2_like(folder: Path) -> vocabulary.Vocabulary:
    """A byte-level tokenizer in GPT-2's two files, `<|endoftext|>` its last token."""
    folder.mkdir(exist_ok=True)
    trained = vocabulary.train_bpe(["the cat sat on the mat. the dog sat on the log."] * 3, 270)
    trained.tokenizer.model.save(str(folder))
    tokens = json.loads((folder / "vocab.json").read_text("utf-8"))
    (folder / "vocab.json").write_text(json.dumps({**tokens, vocabulary.END_OF_TEXT: len(tokens)}), "utf-8")
    return vocabulary.byte_level_bpe(folder / "vocab.json", folder / "merges.txt")


def test_gpt2s_files_and_one_file_give_the_same_ids_with_the_mask_on_top(tmp_path: Path) -> None:
    expected = gpt2_like(tmp_path / "gpt2")
    two = exchange.find_vocabulary(tmp_path / "gpt2", expected.size)
    assert two.fingerprint == expected.fingerprint
    assert two.mask_id == expected.size - 1
    expected.tokenizer.save(str(tmp_path / "tokenizer.json"))
    for source in (tmp_path / "tokenizer.json", tmp_path):
        one = exchange.find_vocabulary(source, expected.size)
        assert (one.mask_id, one.bos_id, one.eos_id) == (expected.mask_id, expected.bos_id, expected.eos_id)
        assert torch.equal(one.encode("the cat"), expected.encode("the cat"))


def test_a_vocabulary_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    size = gpt2_like(tmp_path / "gpt2").size
    with pytest.raises(ValueError, match=f"a vocabulary of {size} ids, mask included; the network has 28"):
        exchange.find_vocabulary(tmp_path / "gpt2", 28)
    with pytest.raises(ValueError, match="no tokenizer there"):
        exchange.find_vocabulary(tmp_path, 28)


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("kind", ["denoiser", "energy"])
def test_an_order_of_ones_own_becomes_ours_with_the_mask_at_the_end(kind: str, others: int, tmp_path: Path) -> None:
    """Characters, the mask, and ids that no text has, shuffled."""
    symbols = list("abcdefghijklmnopqrstuvwxyz _" + "?" * others)
    order = "".join(
        symbols[i] for i in torch.randperm(len(symbols), generator=torch.Generator().manual_seed(3)).tolist()
    )
    network = small(kind, vocab_size=len(order))
    file = trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", network))
    exchange.convert(file, tmp_path / "out", "text8", order=order)
    ours: Any = checkpoints.load_network(tmp_path / "out")
    words = checkpoints.load_vocabulary_of(tmp_path / "out")
    assert (words.size, words.mask_id) == (len(order), len(order) - 1)
    text = "the cat_"
    theirs = torch.tensor([[order.index(symbol) for symbol in text]])
    tokens = torch.tensor([[words.mask_id if symbol == "_" else int(words.encode(symbol)[0]) for symbol in text]])
    with torch.no_grad():
        if kind == "energy":
            torch.testing.assert_close(
                ours(tokens, tokens.flip(1)), network(theirs, theirs.flip(1)), rtol=1e-5, atol=0.0
            )
            return
        expected, found = network.head(network(theirs))[0], ours.head(ours(tokens))[0]
        assert torch.equal(found[:, tokens[0]], expected[:, theirs[0]])


@pytest.mark.parametrize(
    ("order", "tokenizer", "said"),
    [
        ("abcdefghijklmnopqrstuvwxyz ", "text8", "must have 28 symbols, one for each id"),
        ("abcdefghijklmnopqrstuvwxyz ?", "text8", "must have 28 symbols, one for each id"),
        ("aacdefghijklmnopqrstuvwxyz _", "text8", "'_', the mask, each once, and '?' for all others"),
        (" abcdefghijklmnopqrstuvwxyz_", None, "is of the characters of text8: give --tokenizer text8"),
    ],
)
def test_what_is_no_order_is_refused(order: str, tokenizer: str | None, said: str, tmp_path: Path) -> None:
    file = trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", small("denoiser", vocab_size=28)))
    with pytest.raises(ValueError, match=re.escape(said)):
        exchange.convert(file, tmp_path / "out", tokenizer, order=order)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["denoiser", "energy"])
def test_text8s_published_ids_become_ours_with_the_mask_at_the_end(kind: str, tmp_path: Path) -> None:
    """Published: [CLS] [SEP] [BOS] [EOS] [MASK] [PAD] [RESERVED] [UNK], then the characters from 8 on."""
    network = small(kind, vocab_size=35)
    file = trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", network))
    exchange.convert(file, tmp_path / "out", "text8")
    ours: Any = checkpoints.load_network(tmp_path / "out")
    words = checkpoints.load_vocabulary_of(tmp_path / "out")
    text = "the cat"
    theirs_of = {character: 8 + i for i, character in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    theirs = torch.tensor([[2, *(theirs_of[c] for c in text), 4, 5, 3, 0, 1, 6, 7]])
    assert (words.bos_id, words.mask_id, words.pad_id, words.eos_id) == (29, 34, 31, 30)
    tokens = torch.tensor([[29, *words.encode(text).tolist(), 34, 31, 30, 27, 28, 32, 33]])
    assert words.decode(tokens[0]) == "the cat_" + 4 * "\N{REPLACEMENT CHARACTER}"
    with torch.no_grad():
        if kind == "energy":
            # but for rounding: both embeddings are combined token by token, and the tokens stand in another order
            close = {"rtol": 1e-5, "atol": 0.0}
            torch.testing.assert_close(ours(tokens, tokens.flip(1)), network(theirs, theirs.flip(1)), **close)
            return
        expected, found = network.head(network(theirs))[0], ours.head(ours(tokens))[0]
        # Each entry of `tokens` says by which column of ours the column of theirs at its place is known.
        assert torch.equal(found[:, tokens[0]], expected[:, theirs[0]])
