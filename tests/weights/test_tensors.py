"""Weights: what is none is refused by name, what is one is read exactly, and what was changed since is seen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published_files import KINDS, built, hf_folder, kinds, prefixed, same_weights, small, trainers_file
from running import Runner
from safetensors.torch import load_file, save_file
from smallest import denoiser_words, train, words_of
from torch import Tensor, nn

from edlm.data import vocabulary
from edlm.runs import environment
from edlm.weights import checkpoints, exchange, foreign, published

WORDS = vocabulary.characters()
NORM = "backbone.blocks.0.norm1.weight"
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def written(folder: Path, state: dict[str, Tensor], kind: str) -> Path:
    """A stranger's weights in each of the files that are read."""
    if kind == "ckpt":
        return trainers_file(folder / "x.ckpt", state)
    if kind == "safetensors":
        save_file(state, folder / "x.safetensors")
        return folder / "x.safetensors"
    return hf_folder(folder / "hf", small("denoiser"), kind)


files = pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "float32 nan": lambda x: x.clone().index_fill_(0, torch.tensor([3]), torch.nan),
    "float32 inf": lambda x: x.clone().index_fill_(0, torch.tensor([3]), torch.inf),
    "float32 -inf": lambda x: x.clone().index_fill_(0, torch.tensor([0]), -torch.inf),
    "bfloat16 nan": lambda x: (x * torch.nan).bfloat16(),
    "float16 inf": lambda x: (x * torch.inf).half(),
    "float64 above float32": lambda x: x.double() * 1e300,
    "complex64": lambda x: x.to(torch.complex64),
    "bool": lambda x: x > 0,
    "int8": lambda x: x.to(torch.int8),
    "int64": lambda x: x.long(),
}


@files
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_weight_is_not_converted(wrong: str, kind: str, tmp_path: Path) -> None:
    state = prefixed("backbone.", small("denoiser"))
    file = written(tmp_path, {**state, NORM: WRONG[wrong](state[NORM])}, kind)
    with pytest.raises(ValueError, match=r"blocks\.0\.norm1\.weight holds (values that are not finite|\w+, and)"):
        exchange.convert(file, tmp_path / "out", "text8")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_weight_is_not_loaded(wrong: str, tmp_path: Path) -> None:
    checkpoints.save_network(tmp_path / "n", small("denoiser"), WORDS, {})
    file = tmp_path / "n" / "network.safetensors"
    state = load_file(file)
    save_file({**state, "trunk.norm.weight": WRONG[wrong](state["trunk.norm.weight"])}, file)
    _without_hashes(tmp_path / "n")
    with pytest.raises(ValueError, match=r"trunk\.norm\.weight holds"):
        checkpoints.load_network(tmp_path / "n")


def test_the_average_is_checked_too(tmp_path: Path) -> None:
    average = small("denoiser", 1)
    nn.init.constant_(average.trunk.norm.weight, torch.nan)
    file = trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", small("denoiser")), average)
    with pytest.raises(ValueError, match=r"output_layer\.norm_final\.weight holds values that are not finite"):
        exchange.convert(file, tmp_path / "out", "text8")
    exchange.convert(file, tmp_path / "out", "text8", raw=True)


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    data=st.data(),
    dtypes=st.lists(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), min_size=2, max_size=2),
)
def test_each_weight_is_exact_whatever_the_type_of_the_others(
    kind: str, data: st.DataObject, dtypes: list[torch.dtype]
) -> None:
    state = published.export(small(kind))
    odd = data.draw(st.sets(st.sampled_from(sorted(state)), min_size=1))
    mixed = {name: value.to(dtypes[name in odd]) for name, value in state.items()}
    network = published.load(mixed, 3)
    for name, value in published.export(network).items():
        if name in mixed and name != "rotary_emb.inv_freq":
            assert torch.equal(value.double(), mixed[name].double()), name


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("where", ["", "backbone.", "backbone.blocks.1."])
def test_names_of_wrapped_networks_are_taken_apart(wrapper: str, where: str, tmp_path: Path) -> None:
    network = small("denoiser")
    state = {
        f"{where}{wrapper}.{name.removeprefix(where)}" if name.startswith(where) else name: value
        for name, value in prefixed("backbone.", network).items()
    }
    assert any(wrapper in name for name in state)
    for kind in ("ckpt", "safetensors"):
        assert same_weights(built(foreign.read(written(tmp_path, state, kind))), network)


def test_two_names_that_become_one_are_refused(tmp_path: Path) -> None:
    state = prefixed("backbone.", small("denoiser"))
    state[f"module.{NORM}"] = state[NORM] + 1
    with pytest.raises(ValueError, match=r"backbone\.blocks\.0\.norm1\.weight is there twice, once as module\."):
        foreign.read(written(tmp_path, state, "ckpt"))


@kinds
def test_a_compiled_network_is_saved_as_what_it_is(kind: str, tmp_path: Path) -> None:
    network = small(kind)
    checkpoints.save_network(tmp_path / "n", torch.compile(network), WORDS, {})
    loaded: Any = checkpoints.load_network(tmp_path / "n")
    assert same_weights(loaded, network)


def test_a_network_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="and this is a Linear"):
        checkpoints.save_network(tmp_path / "n", nn.Linear(1, 1), WORDS, {})
    assert not list(tmp_path.glob("n*"))


# ---- Hashes


STATE = {"step": 3, "losses": [0.5, 0.25], "optimizer": {"m": torch.arange(64.0), 0: torch.ones(3)}}
HASHED = ("network.safetensors", "training.safetensors", "training.json", "vocabulary.json", "tokenizer.json")


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return checkpoints.save_checkpoint(folder, 3, small("denoiser"), WORDS, {}, STATE)


def _without_hashes(folder: Path) -> None:
    """As a folder of an earlier version is."""
    for file in folder.glob("*.json"):
        content = json.loads(file.read_text("utf-8"))
        content.pop("sha256", None)
        file.write_text(json.dumps(content), "utf-8")


def _read_all(folder: Path) -> None:
    checkpoints.load_network(folder, checkpoints.load_vocabulary_of(folder))
    checkpoints.load_state(folder)


def test_what_was_not_touched_is_read(step: Path) -> None:
    _read_all(step)
    assert checkpoints.load_state(step)["losses"] == [0.5, 0.25]


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(HASHED), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(name: str, place: float, bit: int, step: Path) -> None:
    file = step / name
    whole = file.read_bytes()
    changed = bytearray(whole)
    at = int(place * len(changed))
    changed[at] ^= 1 << bit
    file.write_bytes(changed)
    try:
        if name == "training.json" and _says_the_same(whole, bytes(changed)):
            return  # white space
        with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
            _read_all(step)
        assert len(str(caught.value).splitlines()) == 1
    finally:
        file.write_bytes(whole)


def _says_the_same(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one)["state"] == json.loads(other)["state"])
    except (ValueError, KeyError):
        return False


@pytest.mark.parametrize("name", ["network.safetensors", "training.safetensors"])
def test_a_flag_reads_changed_weights_all_the_same(
    name: str, step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(step, tmp_path / "n")
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    said = rf"{name}: damaged or exchanged since it was saved: its sha256 is \w+, and was \w+; verify=false"
    with pytest.raises(ValueError, match=said):
        _read_all(folder)
    checkpoints.load_network(folder, verify=False)
    checkpoints.load_state(folder, verify=False)
    monkeypatch.setenv(environment.UNVERIFIED, "1")
    _read_all(folder)


@pytest.mark.parametrize("kind", ["denoiser", "energy"])
def test_another_networks_weights_are_refused(kind: str, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("other", 1)):
        checkpoints.save_network(tmp_path / name, small(kind, seed), WORDS, {})
    shutil.copy(tmp_path / "other" / "network.safetensors", tmp_path / "one")
    with pytest.raises(ValueError, match=r"one/network\.safetensors: damaged or exchanged since it was saved"):
        checkpoints.load_network(tmp_path / "one")


@pytest.mark.parametrize("changes", [{"num_heads": 1}, {"dropout": 0.5}, {"max_length": 8}])
def test_arguments_that_no_weight_contradicts_are_compared_too(changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoints.save_network(tmp_path / "n", small("denoiser"), WORDS, {})
    file = tmp_path / "n" / "network.json"
    content = json.loads(file.read_text("utf-8"))
    content["arguments"] |= changes
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=r"n/network\.json: damaged or exchanged"):
        checkpoints.load_network(tmp_path / "n")
    content["sha256"] = "none"
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match="sha256 = 'none' must be a section of hashes"):
        checkpoints.load_network(tmp_path / "n")


def test_a_folder_of_an_earlier_version_is_read(step: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(step, tmp_path / "n")
    _without_hashes(folder)
    _read_all(folder)


@pytest.mark.parametrize(
    "content", [{}, {"state": None}, {"state": {"pairs": [1]}}, {"state": "tensor:99"}, {"state": 3}]
)
def test_a_training_state_that_is_none_is_named(content: dict[str, Any], step: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(step, tmp_path / "n")
    (folder / "training.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=r"training\.json: its key 'state' holds no training state"):
        checkpoints.load_state(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["network.safetensors", "training.safetensors"])
def test_a_run_does_not_go_on_from_damaged_weights_unless_it_is_told_to(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, words = Runner(monkeypatch, capfd), [*denoiser_words(tmp_path / "run"), "decay=constant"]
    train("pretrain_denoiser", *words)
    file = next((tmp_path / "run").rglob(f"step_00000006/{name}"))
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    more = words_of({"steps": 8, "resume": "true"})
    monkeypatch.setenv(environment.UNVERIFIED, "")
    refused = run("pretrain_denoiser", *words, *more)
    assert refused.status == 2
    assert f"{name}: damaged or exchanged since it was saved" in refused.said
    assert run("pretrain_denoiser", *words, *more, "verify=false").status == 0
