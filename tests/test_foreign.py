"""Checkpoints of other people: read exactly, executed never, refused by name; and written back without a loss."""

import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from edlm import checkpoints, cli, exchange, foreign, inert, published, vocabulary
from edlm.networks import EnergyNetwork, Transformer

Network = Transformer | EnergyNetwork
KINDS = ["denoiser", "autoregressive", "energy"]
SIZES = {"hidden_size": 12, "num_layers": 2, "num_heads": 3}
kinds = pytest.mark.parametrize("kind", KINDS)
# The published modules' parameters in their own order, blocks apart.
BLOCK = ["norm1.weight", "attn_qkv.weight", "attn_out.weight", "norm2.weight"]
BLOCK += ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"]
MODULATION = ["adaLN_modulation.weight", "adaLN_modulation.bias"]
NOISE = [f"sigma_map.mlp.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")]
OUTPUT = ["output_layer.norm_final.weight", "output_layer.linear.weight", "output_layer.linear.bias"]
SCALAR = ["vocab_proj.weight", "vocab_proj.bias", "energy_head.0.weight", "energy_head.0.bias", "energy_head.2.weight"]
GOLDENS = Path(os.environ.get("EDLM_SHARED", Path(__file__).parents[2] / "shared")) / "goldens"


def published_order(kind: str, layers: int = 2) -> list[str]:
    told = kind != "autoregressive"
    blocks = [f"blocks.{i}.{name}" for i in range(layers) for name in BLOCK + MODULATION * told]
    output = OUTPUT + [f"output_layer.{name}" for name in MODULATION * told]
    return ["vocab_embed.embedding", *(NOISE * told), *blocks, *output, *(SCALAR * (kind == "energy"))]


def small(kind: str, seed: int = 0, vocab_size: int = 28, **sizes: int) -> Network:
    torch.manual_seed(seed)
    network: Network
    if kind == "energy":
        network = EnergyNetwork(vocab_size, 16, **{**SIZES, **sizes}, conditioning_size=4)
    else:
        causal = kind == "autoregressive"
        network = Transformer(vocab_size, 16, **{**SIZES, **sizes}, conditioning_size=0 if causal else 4, causal=causal)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network.eval()


def prefixed(prefix: str, network: Network) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in published.export(network).items()}


def trainers_config(**model: Any) -> Any:
    """Settings as the published trainer stores them: nested, with an interpolation and a list."""
    settings = {"n_heads": 3, "length": 16, "dropout": 0.1, "hidden_size": 12, "n_blocks": 2, "cond_dim": 4, **model}
    content = {"model": settings, "parameterization": "subs", "time_conditioning": False, "T": "${model.length}"}
    return OmegaConf.create({**content, "tags": ["a", "b"]})


def trainers_file(
    file: Path, state: dict[str, Tensor], average: Network | None = None, config: Any = None, **more: Any
) -> Path:
    """A checkpoint as the Lightning trainer writes it, with objects of several libraries beside the weights."""
    content = {
        "epoch": 1,
        "global_step": 500,
        "state_dict": OrderedDict(state),
        "loops": {"progress": defaultdict(dict, {"total": {"completed": 3}})},
        "hyper_parameters": {
            "config": config,
            "tokenizer": Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
            "where": Path("/data"),
            "callback": partial(print, 1),
            "ids": {1, 2},
            "random": np.random.RandomState(0).get_state(),
            "score": np.float64(0.5),
        },
        **more,
    }
    if average is not None:
        names = published_order(published.kind_of(published.export(average)))
        shadow = [published.export(average)[name] for name in names]
        content["ema"] = {"decay": 0.9999, "num_updates": 500, "shadow_params": shadow}
    torch.save(content, file)
    return file


def hf_folder(folder: Path, network: Network, weights: str = "model.safetensors", **config: Any) -> Path:
    """A folder as `kuleshov-group/mdlm-owt` is laid out."""
    folder.mkdir()
    sizes = {"vocab_size": 28, "model_length": 16, "hidden_dim": 12, "cond_dim": 4, "n_blocks": 2, "n_heads": 3}
    content = {"model_type": "mdlm", "dropout": 0.1, "time_conditioning": False, **sizes, **config}
    (folder / "config.json").write_text(json.dumps(content))
    state = prefixed("backbone.", network)
    save_file(state, folder / weights) if weights.endswith(".safetensors") else torch.save(state, folder / weights)
    return folder


def same_weights(network: Network, expected: Network) -> bool:
    theirs = expected.state_dict()
    return network.state_dict().keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in network.state_dict().items()
    )


def built(weights: foreign.Weights, raw: bool = False) -> Network:
    return exchange.build(weights, exchange.sizes_of(weights), raw)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`edlm convert` with these arguments: exit status, what it printed, and its complaint."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = 0
        try:
            cli.main(["convert", *map(str, arguments)])
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return call


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


@settings(max_examples=30)
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


# ---- Nothing is executed


class Planted:
    """An object whose pickle asks for a call that leaves a file behind."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def test_a_call_that_a_file_asks_for_is_not_made(tmp_path: Path) -> None:
    mark, network = tmp_path / "mark", small("denoiser")
    state = prefixed("backbone.", network)
    weights = foreign.read(
        trainers_file(tmp_path / "0.ckpt", state, callbacks=Planted(eval, f"open({str(mark)!r}, 'w').close()"))
    )
    assert same_weights(built(weights), network)
    refused = {"builtins.getattr, not loaded": Planted(Path.touch, mark), "system": Planted(os.system, f"touch {mark}")}
    for named, call in refused.items():
        with pytest.raises(ValueError, match=f"holds more than weights and settings, and is not executed .*{named}"):
            foreign.read(trainers_file(tmp_path / "1.ckpt", state, callbacks=call))
    assert not mark.exists()
    torch.load(tmp_path / "0.ckpt", weights_only=False)  # the control: read as a plain pickle, the call is made
    assert mark.exists()


def test_a_call_in_the_place_of_weights_is_no_tensor(tmp_path: Path) -> None:
    state: Any = {**prefixed("backbone.", small("denoiser")), "backbone.x": Planted(eval, "1/0")}
    with pytest.raises(ValueError, match=r"backbone\.x is no tensor"):
        foreign.read(trainers_file(tmp_path / "x.ckpt", state))


class Items(dict[str, int]):
    """A class of its own that is filled item by item, which the restricted reader refuses."""


@pytest.mark.slow
def test_what_is_refused_comes_with_the_command_that_keeps_the_plain_part(tmp_path: Path) -> None:
    """And that command's file loads with the same weights."""
    raw, average = small("denoiser", 0), small("denoiser", 1)
    file = trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", raw), average, callbacks=Items(a=1))
    with pytest.raises(ValueError, match="is not executed") as error:
        foreign.read(file)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert "add_safe_globals" not in message, "no advice to execute it here"
    assert "Can only SETITEM" in message
    command = message.split('python -c "')[1].removesuffix('"')
    trusted = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_foreign; "
    subprocess.run([sys.executable, "-c", trusted + command], check=True, cwd=tmp_path, env=dict(os.environ))
    weights = foreign.read(tmp_path / "plain.ckpt")
    assert same_weights(built(weights), average)
    assert weights.notes["step"] == 500


def test_unknown_objects_keep_their_state_and_stay_apart(tmp_path: Path) -> None:
    torch.save({"a": Path("/x"), "b": partial(print, 1), "c": OmegaConf.create({"k": 3})}, tmp_path / "x.pt")
    read = inert.read(tmp_path / "x.pt")
    assert all(isinstance(value, inert.Inert) for value in read.values())
    assert read["a"].arguments == ("/", "x")
    assert len({type(value) for value in read.values()}) == 3
    assert foreign._plain(read["c"]) == {"k": 3}


def test_reading_leaves_torch_as_strict_as_before(tmp_path: Path) -> None:
    file = trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", small("denoiser")), config=trainers_config())
    before = set(torch.serialization.get_safe_globals())
    foreign.read(file)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken", pickle.dumps({"state_dict": {}})])
def test_a_file_that_torch_did_not_write_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.ckpt: not a whole zip file of torch\.save"):
        foreign.read(file)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(kept: float, tmp_path: Path) -> None:
    file = trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", small("denoiser")))
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"x\.ckpt: not a whole zip file"):
        foreign.read(file)


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
    assert words.decode(tokens[0]) == "the cat_"
    with torch.no_grad():
        if kind == "energy":
            assert torch.equal(ours(tokens, tokens.flip(1)), network(theirs, theirs.flip(1)))
            return
        expected, found = network.head(network(theirs))[0], ours.head(ours(tokens))[0]
        # Each entry of `tokens` says by which column of ours the column of theirs at its place is known.
        assert torch.equal(found[:, tokens[0]], expected[:, theirs[0]])


# ---- The command


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


def test_norms_with_biases_are_not_exported(tmp_path: Path) -> None:
    network = Transformer(28, 16, **SIZES, conditioning_size=0, norm_bias=True)
    checkpoints.save_network(tmp_path / "ours", network, vocabulary.characters(), {})
    with pytest.raises(ValueError, match="published norms have no biases"):
        exchange.export(tmp_path / "ours", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.slow
def test_generate_runs_on_what_was_converted(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    denoiser = trainers_file(tmp_path / "mdlm.ckpt", prefixed("backbone.", small("denoiser")), small("denoiser", 1))
    energy = trainers_file(tmp_path / "nce.ckpt", prefixed("ebm.", small("energy")), small("energy", 3))
    assert run(denoiser, tmp_path / "den", "--tokenizer", "text8", "--length", "16")[0] == 0
    assert run(energy, tmp_path / "en", "--tokenizer", "text8", "--length", "16")[0] == 0
    words = [f"denoiser={tmp_path / 'den'}", f"energy={tmp_path / 'en'}", f"output={tmp_path / 'x.jsonl'}"]
    command = [sys.executable, "-m", "edlm.cli", "run", "generate", *words]
    sizes = ["num_samples=2", "num_steps=4", "num_particles=2", "threads=1"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    texts = [json.loads(line)["text"] for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    assert [len(text) for text in texts] == [16, 16]
