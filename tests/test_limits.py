"""Small files and small numbers that ask for gigabytes or hours: refused before they get them, in one line."""

import json
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import hf_folder, prefixed, small, trainers_file
from running import Runner
from safetensors.torch import save_file
from smallest import denoiser_words

from edlm import limits
from edlm.data import vocabulary
from edlm.nn import networks
from edlm.weights import checkpoints, exchange, foreign, inert, whole


class Planted:
    """An object whose pickle asks for a call."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def repacked(file: Path, compression: int, pickled: bytes | None = None) -> Path:
    """The same parts again, the pickle replaced where another one is given."""
    out = file.with_name("again.ckpt")
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(out, "w", compression) as target:
        for name in source.namelist():
            replaced = pickled if pickled is not None and name.endswith("data.pkl") else source.read(name)
            target.writestr(name, replaced)
    return out


def checkpoint(folder: Path, **more: Any) -> Path:
    return trainers_file(folder / "x.ckpt", prefixed("backbone.", small("denoiser")), **more)


def refused(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


# ---- Files of torch.save


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_checkpoint_is_refused_with_what_to_do(compression: int, tmp_path: Path) -> None:
    """Mapped into memory, as torch would have it, its weights are whatever the compressed bytes are."""
    file = repacked(checkpoint(tmp_path), compression)
    refused(lambda: foreign.read(file), r"again\.ckpt: .* is compressed, and torch\.save compresses nothing: .*zip -0")
    assert foreign.read(repacked(checkpoint(tmp_path), zipfile.ZIP_STORED)).state


def test_a_pickle_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    bomb = b"\x80\x02" + b"]" * 20_000_000 + b"."
    refused(lambda: inert.read(repacked(checkpoint(tmp_path), zipfile.ZIP_DEFLATED, bomb)), "is compressed")
    refused(
        lambda: inert.read(repacked(checkpoint(tmp_path), zipfile.ZIP_STORED, bomb)),
        r"bytes of data\.pkl = 20000003 must be at most 6291456; EDLM_LIMITS=4",
    )


@pytest.mark.parametrize("step", [b"]", b"}", b"(", b"\x8f", b"N"])
def test_a_pickle_of_too_many_steps_is_refused(step: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PICKLE_STEPS", 10_000)
    file = repacked(checkpoint(tmp_path), zipfile.ZIP_STORED, b"\x80\x02" + step * 20_000 + b".")
    refused(lambda: inert.read(file), "steps of its pickle = 10001 must be at most 10000; EDLM_LIMITS=2")


@pytest.mark.parametrize(
    "call",
    [
        Planted(bytearray, 6 << 30),
        Planted(torch.FloatTensor, 1 << 31),
        Planted(torch.UntypedStorage, 6 << 30),
        Planted(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (1,), (1,), False),
    ],
)
def test_a_name_that_takes_what_memory_it_is_told_is_not_called(call: Planted, tmp_path: Path) -> None:
    file = checkpoint(tmp_path, callbacks=call)
    refused(lambda: inert.read(file), "is not executed .names .*, of no tensor of numbers and of no setting")


def test_a_tensor_said_to_be_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    state = {**prefixed("backbone.", small("denoiser")), "backbone.x": torch.zeros(1).expand(1 << 20, 1 << 12)}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    refused(lambda: foreign.read(tmp_path / "x.ckpt"), r"backbone\.x, of shape \(1048576, 4096\), .* take 171.* bytes")
    ema = {"shadow_params": [torch.zeros(1).expand(1 << 20, 1 << 12)]}
    refused(lambda: foreign.read(checkpoint(tmp_path, ema=ema)), r"ema\[0\], of shape \(1048576, 4096\)")


def test_a_storage_that_reads_its_neighbours_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(4.0), "b": torch.arange(4.0)}, tmp_path / "x.ckpt")
    with zipfile.ZipFile(tmp_path / "x.ckpt") as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    longer = pickled.replace(b"K\x04tq", b"K\x08tq", 1)
    assert longer != pickled
    file = repacked(tmp_path / "x.ckpt", zipfile.ZIP_STORED, longer)
    refused(lambda: inert.read(file), r"data/0 is said to hold 32 bytes, and holds 16")


def test_a_flipped_bit_in_a_strangers_checkpoint_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = checkpoint(tmp_path)
    with zipfile.ZipFile(file) as archive:
        parts = [part for part in archive.infolist() if "/data/" in part.filename]
    part = max(parts, key=lambda part: part.file_size)
    content = bytearray(file.read_bytes())
    content[part.header_offset + 512] ^= 16
    file.write_bytes(content)
    refused(lambda: foreign.read(file), r"x\.ckpt: .*/data/.* is damaged: its checksum is another")
    monkeypatch.setenv("EDLM_UNVERIFIED", "1")
    assert foreign.read(file).state


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_file_of_too_many_tensors_is_refused(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TENSORS", 50)
    many, file = {f"x{i}": torch.zeros(0) for i in range(100)}, tmp_path / f"x.{suffix}"
    save_file(many, file) if suffix == "safetensors" else torch.save({"state_dict": many}, file)
    refused(lambda: foreign.read(file), "(parts|tensors) = 10[0-9] must be at most 50; EDLM_LIMITS=[23]")
    monkeypatch.setenv("EDLM_LIMITS", "3")
    assert len(foreign.read(file).state) == 100


def test_settings_that_hold_themselves_and_settings_that_fan_out_end(tmp_path: Path) -> None:
    cyclic: dict[str, Any] = {}
    cyclic.update(config=cyclic, model=cyclic, _content=cyclic)
    fan: Any = {"n_heads": 3}
    for _ in range(60):  # 2^60 paths
        fan = {"config": fan, "model": fan}
    for settings in (cyclic, fan, [cyclic], {"config": {"model": [fan]}}):
        torch.save(
            {"state_dict": prefixed("backbone.", small("denoiser")), "hyper_parameters": settings}, tmp_path / "x"
        )
        assert foreign.read(tmp_path / "x").settings == {}


def test_a_node_that_holds_itself_ends() -> None:
    node = inert.Inert()
    node.state = {"_content": node}
    assert foreign._plain({"config": node}) == {"config": None}


# ---- Json and safetensors


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000])
def test_json_without_end_is_no_error_of_pythons(content: str, tmp_path: Path) -> None:
    (tmp_path / "network.json").write_text(content)
    refused(lambda: checkpoints.load_network(tmp_path), r"network\.json: not (valid json|a json object)")


def test_a_json_file_above_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole.read_json, "__defaults__", (1000,))
    hf_folder(tmp_path / "hf", small("denoiser"), note="x" * 2000)
    refused(lambda: foreign.read(tmp_path / "hf"), r"config\.json: bytes = 2[0-9]* must be at most 1000; EDLM_LIMITS=3")


@pytest.mark.parametrize("size", [1 << 62, 40 << 20])
def test_a_header_longer_than_its_file_or_the_limit_is_refused(size: int, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with file.open("wb") as opened:
        opened.write(size.to_bytes(8, "little"))
        opened.truncate(64 << 20)
    refused(lambda: foreign.read(file), "not a whole safetensors file|bytes of its header = 41943040 must be at most")


@pytest.mark.parametrize(
    "header", [b"[]", b"{}x", b'{"a": 1}', b'{"a": {}}', b'{"a": {"shape": null}}', b"[" * 10_000, b"\xff"]
)
def test_a_broken_header_is_named(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(lambda: foreign.read(tmp_path / "x.safetensors"), r"x\.safetensors: not a whole safetensors file")


# ---- Networks


@pytest.mark.parametrize("kind", [networks.Transformer, networks.EnergyNetwork, networks.JointNetwork])
@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"num_layers": 10**7}, "network: layers = 1000000[01] must be at most 1000"),
        ({"hidden_size": 2**30}, "network: parameters = [0-9]+ must be at most 400000000; EDLM_LIMITS="),
        ({"vocab_size": 10**9}, "network: parameters"),
        ({"conditioning_size": 10**9}, "network: parameters"),
        ({"max_length": 10**9}, "network: max_length = 1000000000 must be at most 131072; EDLM_LIMITS=7630"),
        ({"num_heads": 0}, "num_heads = 0 must be at least 1"),
        ({"num_heads": -2}, "num_heads = -2 must be at least 1"),
        ({"hidden_size": 0}, "hidden_size = 0 must be at least 1"),
        ({"vocab_size": 0}, "vocab_size = 0 must be at least 1"),
        ({"conditioning_size": -1}, "conditioning_size = -1 must be at least 0"),
        ({"hidden_size": 1e3}, r"hidden_size = 1000\.0 must be a whole number"),
        ({"num_layers": None}, "num_layers = None must be a whole number"),
        ({"dropout": -0.1}, r"dropout = -0\.1 must be a number of at least 0 and below 1"),
        ({"dropout": True}, "dropout = True must be a number"),
    ],
)
def test_sizes_that_make_no_network_or_a_huge_one_are_refused_before_it_is_built(
    kind: type[torch.nn.Module], sizes: dict[str, Any], said: str
) -> None:
    refused(lambda: kind(**{"vocab_size": 28, "max_length": 16, "hidden_size": 8, "num_heads": 2, **sizes}), said)


def test_the_limits_are_raised_by_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PARAMETERS", 1000)
    sizes = {"vocab_size": 28, "max_length": 4, "hidden_size": 8, "num_layers": 1, "num_heads": 2}
    refused(lambda: networks.Transformer(**sizes), "parameters = 23[0-9]{3} must be at most 1000; EDLM_LIMITS=24")
    monkeypatch.setenv("EDLM_LIMITS", "24")
    assert networks.Transformer(**sizes)
    for wrong in ("0", "-1", "many", "nan", ""):
        monkeypatch.setenv("EDLM_LIMITS", wrong)
        refused(lambda: networks.Transformer(**sizes), f"EDLM_LIMITS = '{wrong}' must be a number above 0")


def test_a_config_of_a_network_that_makes_no_sense_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Runner(monkeypatch, capfd)
    monkeypatch.setenv("EDLM_LIMITS", "1")
    for word, said in (
        ("network.num_heads=0", "num_heads = 0 must be at least 1"),
        (
            "network.num_layers=10000000",
            "layers = 10000000 must be at most 1000; EDLM_LIMITS=10000 (limits= of a recipe)",
        ),
        ("limits=0", "limits = 0 must be a number above 0"),
        ("verify=maybe", "verify = 'maybe' must be true or false"),
    ):
        ran = run("pretrain_denoiser", *denoiser_words(tmp_path / "x"), word)
        assert ran.status == 2
        assert said in ran.said
        assert len(ran.said.splitlines()) == 1


def test_sizes_of_a_strangers_config_are_checked(tmp_path: Path) -> None:
    for i, (config, said) in enumerate(
        (
            ({"n_heads": 2.5}, r"the file's settings say n_heads = 2\.5, which must be a whole number"),
            ({"n_heads": 0}, "num_heads = 0 does not fit"),
            ({"model_length": 10**12}, "max_length = 1000000000000 must be at most"),
            ({"n_blocks": 10**7}, "settings say num_layers = 10000000, its weights say 2"),
            ({"dropout": 7}, "dropout = 7 must be a number"),
            ({"dropout": "x"}, "dropout = 'x', which must be a number"),
            ({"model_length": "x"}, "model_length = 'x', which must be a whole number"),
            ({"model_length": True}, "model_length = True, which must be a whole number"),
            ({"model_length": []}, r"model_length = \[\], which must be a whole number"),
            ({"n_heads": math.inf}, "n_heads = inf, which must be a whole number"),
            ({"hidden_dim": {"a": 1}}, "hidden_dim = {'a': 1}, which must be a whole number"),
        )
    ):
        folder = hf_folder(tmp_path / str(i), small("denoiser"), **config)
        refused(lambda folder=folder: exchange.convert(folder, tmp_path / "out", "text8"), said)


@pytest.mark.parametrize("ids", [[3, 4], 3, None, []])
def test_lists_of_special_ids_in_a_strangers_config_do_not_matter(ids: Any, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf", small("denoiser"), eos_token_id=ids, bos_token_id=ids)
    exchange.convert(folder, tmp_path / "out", "text8")
    assert checkpoints.load_vocabulary_of(tmp_path / "out").eos_id is None


def test_a_tokenizer_of_our_own_is_taken_by_convert(tmp_path: Path) -> None:
    vocabulary.characters().save(tmp_path)
    file = checkpoint(tmp_path)
    exchange.convert(file, tmp_path / "out", tmp_path / "tokenizer.json")
    words = checkpoints.load_vocabulary_of(tmp_path / "out")
    assert words.decode(words.encode("a cat")) == "a cat"
    with pytest.raises(ValueError, match="'é' at offset 3 is not in the vocabulary"):
        words.encode("caté")


def test_a_pickle_that_is_no_zip_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps(Planted(bytearray, 6 << 30)))
    refused(lambda: foreign.read(tmp_path / "x.ckpt"), "not a whole zip file")
    assert json.loads("1") == 1
