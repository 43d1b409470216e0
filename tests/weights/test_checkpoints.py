"""Checkpoints: what is saved comes back, what is broken is refused by name, and nothing is half-written."""

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edlm.data import vocabulary
from edlm.data.vocabulary import Vocabulary
from edlm.nn import networks
from edlm.runs import environment
from edlm.weights import checkpoints, tensors


@pytest.fixture
def characters() -> Vocabulary:
    return vocabulary.characters()


def small_network(seed: int = 0) -> networks.Transformer:
    torch.manual_seed(seed)
    network = networks.Transformer(28, 16, hidden_size=16, num_layers=1, num_heads=2, conditioning_size=8)
    torch.nn.init.normal_(network.head.weight)
    return network


def test_a_network_comes_back_with_its_weights_its_vocabulary_and_in_eval_mode(
    tmp_path: Path, characters: Vocabulary
) -> None:
    network = small_network()
    checkpoints.save_network(tmp_path / "n", network, characters, {"note": 3})
    loaded = checkpoints.load_network(tmp_path / "n", characters)
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), rtol=0, atol=0)
    assert checkpoints.load_vocabulary_of(tmp_path / "n").fingerprint == characters.fingerprint
    assert checkpoints.read_description(tmp_path / "n")["note"] == 3


def test_an_energy_network_comes_back(tmp_path: Path, characters: Vocabulary) -> None:
    network = networks.EnergyNetwork(28, 16, hidden_size=16, num_layers=1, num_heads=2, conditioning_size=8)
    checkpoints.save_network(tmp_path / "e", network, characters, {})
    loaded = checkpoints.load_network(tmp_path / "e")
    assert isinstance(loaded, networks.EnergyNetwork)
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), rtol=0, atol=0)


plain = (
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5).filter(lambda s: s[:7] != "tensor:")
)
trees = st.recursive(
    plain | st.integers(0, 3).map(lambda n: torch.arange(n, dtype=torch.float64)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 9) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


@given(state=st.dictionaries(st.text(max_size=3), trees, max_size=3))
def test_any_training_state_comes_back_as_it_was(state: dict[str, object]) -> None:
    values: dict[str, torch.Tensor] = {}
    encoded = json.loads(json.dumps(tensors.encode(state, values)))
    assert equal(tensors.decode(encoded, values), state)


def test_the_newest_checkpoint_of_a_run_is_found_and_old_ones_go(tmp_path: Path, characters: Vocabulary) -> None:
    for step in (1, 2, 3):
        checkpoints.save_checkpoint(tmp_path, step, small_network(step), characters, {}, {"step": step}, keep_last=2)
    folder = checkpoints.find_network(tmp_path)
    assert folder.name == "step_00000003"
    assert checkpoints.load_state(folder) == {"step": 3}
    assert checkpoints.read_description(folder)["step"] == 3
    assert sorted(path.name for path in folder.parent.iterdir()) == ["last.json", "step_00000002", "step_00000003"]


def test_saving_the_newest_step_again_leaves_it(tmp_path: Path, characters: Vocabulary) -> None:
    first = checkpoints.save_checkpoint(tmp_path, 1, small_network(), characters, {}, {"step": 1})
    stamp = (first / "network.safetensors").stat().st_mtime_ns
    checkpoints.save_checkpoint(tmp_path, 1, small_network(), characters, {}, {"step": 1})
    assert (first / "network.safetensors").stat().st_mtime_ns == stamp


def test_a_checkpoint_that_was_cut_off_before_it_was_named_is_written_anew(
    tmp_path: Path, characters: Vocabulary
) -> None:
    checkpoints.save_checkpoint(tmp_path, 1, small_network(), characters, {}, {"step": 1})
    orphan = checkpoints.save_checkpoint(tmp_path, 2, small_network(), characters, {}, {"step": 2})
    (tmp_path / "checkpoints" / "last.json").write_text('{"folder": "step_00000001"}')
    (orphan / "training.json").write_text("old")
    assert checkpoints.find_network(tmp_path).name == "step_00000001"
    checkpoints.save_checkpoint(tmp_path, 2, small_network(), characters, {}, {"step": 2})
    assert checkpoints.load_state(checkpoints.find_network(tmp_path)) == {"step": 2}


def test_a_later_checkpoint_that_was_never_named_does_not_push_out_the_last(
    tmp_path: Path, characters: Vocabulary
) -> None:
    """The run was killed before `last.json` named step 4, went on from step 2, and was stopped at step 3."""
    for step in (2, 4):
        checkpoints.save_checkpoint(tmp_path, step, small_network(), characters, {}, {"step": step})
    (tmp_path / "checkpoints" / "last.json").write_text('{"folder": "step_00000002"}')
    (tmp_path / "checkpoints" / ".step_00000007.partial").mkdir()
    checkpoints.save_checkpoint(tmp_path, 3, small_network(), characters, {}, {"step": 3}, keep_last=1)
    assert checkpoints.load_state(checkpoints.find_network(tmp_path)) == {"step": 3}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.json", "step_00000003"]


def test_checkpoints_that_nothing_names_are_refused_and_stay(tmp_path: Path, characters: Vocabulary) -> None:
    """A lost `last.json`: the run is there, but nothing says which step is whole."""
    for step in (1, 2):
        checkpoints.save_checkpoint(tmp_path, step, small_network(), characters, {}, {"step": step})
    folder = tmp_path / "checkpoints"
    (folder / "last.json").unlink()
    before = sorted(folder.rglob("*"))
    said = r'last\.json is missing, and 2 checkpoints are there: write \{"folder": "step_00000002"\} into last\.json'
    for act in (
        checkpoints.last_checkpoint,
        checkpoints.find_network,
        lambda run: checkpoints.save_checkpoint(run, 3, small_network(), characters, {}, {"step": 3}),
    ):
        with pytest.raises(ValueError, match=said):
            act(tmp_path)
    assert sorted(folder.rglob("*")) == before
    (folder / "last.json").write_text('{"folder": "step_00000002"}')
    assert checkpoints.find_network(tmp_path).name == "step_00000002", "what it says helps"


@pytest.mark.parametrize("named", ["first.json", "last.json"])
def test_a_first_save_that_was_cut_off_is_made_anew(tmp_path: Path, characters: Vocabulary, named: str) -> None:
    """Killed before `last.json` named the first step, or before what tells so was taken away."""
    folder = checkpoints.save_checkpoint(tmp_path, 1, small_network(), characters, {}, {"step": 1})
    (folder.parent / "first.json").write_text('{"folder": "step_00000001"}')
    if named == "first.json":
        (folder.parent / "last.json").unlink()
        assert checkpoints.last_checkpoint(tmp_path) is None
    checkpoints.save_checkpoint(tmp_path, 1, small_network(), characters, {}, {"step": 1})
    assert sorted(path.name for path in folder.parent.iterdir()) == ["last.json", "step_00000001"]
    (folder.parent / "first.json").write_text('{"folder": "step_00000009"}')
    (folder.parent / "last.json").unlink()
    with pytest.raises(ValueError, match=r"last\.json is missing, and 1 checkpoints are there"):
        checkpoints.last_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"folder": null}', '{"folder": ["step_00000001"]}', "[" * 100_000]
)
def test_a_damaged_pointer_is_named_with_what_to_write_into_it(
    tmp_path: Path, characters: Vocabulary, content: str
) -> None:
    folder = checkpoints.save_checkpoint(tmp_path, 1, small_network(), characters, {}, {"step": 1})
    (folder.parent / "last.json").write_text(content)
    with pytest.raises(ValueError, match=r'last\.json: .*: write \{"folder": "step_00000001"\} into last\.json'):
        checkpoints.last_checkpoint(tmp_path)


def test_the_best_checkpoint_stays_beside_the_last(tmp_path: Path, characters: Vocabulary) -> None:
    best = {"step": 1, "loss": 0.5}
    for step in (1, 2, 3):
        checkpoints.save_checkpoint(tmp_path, step, small_network(), characters, {}, {"step": step}, 1, best)
    kept = ["best.json", "last.json", "step_00000001", "step_00000003"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept
    assert checkpoints.best_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_00000001"
    checkpoints.save_checkpoint(tmp_path, 3, small_network(), characters, {}, {}, 1, {"step": 3, "loss": 0.25})
    assert checkpoints.best_checkpoint(tmp_path) == checkpoints.last_checkpoint(tmp_path), "even of a step saved before"


def test_a_write_that_fails_leaves_the_last_checkpoint_and_no_remains(tmp_path: Path, characters: Vocabulary) -> None:
    """As on a full disk: the operating system refuses to let any file grow past a few kilobytes."""
    good = checkpoints.save_checkpoint(tmp_path, 1, small_network(), characters, {}, {"step": 1})
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    process = os.fork()
    if process == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            checkpoints.save_checkpoint(tmp_path, 2, small_network(), characters, {}, {"step": 2})
        except ValueError as error:
            named = "step_00000002" in str(error) and str(good) in str(error)
            os._exit(0 if named and "\n" not in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert checkpoints.find_network(tmp_path) == good


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no checkpoint there \(expected network.json"):
        checkpoints.load_network(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_truncated_file_is_named(tmp_path: Path, characters: Vocabulary, kept: int) -> None:
    checkpoints.save_network(tmp_path / "n", small_network(), characters, {})
    file = tmp_path / "n" / "network.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"network\.safetensors: not a whole safetensors file"):
        checkpoints.load_network(tmp_path / "n")


def test_broken_json_is_named(tmp_path: Path, characters: Vocabulary) -> None:
    checkpoints.save_network(tmp_path / "n", small_network(), characters, {})
    (tmp_path / "n" / "network.json").write_text('{"class": "Transf')
    with pytest.raises(ValueError, match=r"network\.json: not valid json"):
        checkpoints.load_network(tmp_path / "n")


def test_another_vocabulary_is_refused_with_both_named(tmp_path: Path, characters: Vocabulary) -> None:
    checkpoints.save_network(tmp_path / "n", small_network(), characters, {})
    other = vocabulary.characters("abc ")
    with pytest.raises(ValueError, match=rf"{characters.fingerprint}, not {other.fingerprint}"):
        checkpoints.load_network(tmp_path / "n", other)


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        (vocabulary.characters("abc"), "size = 28 and 4, mask_id = 27 and 3, their tokenizers"),
        (vocabulary.characters("zyxwvutsrqponmlkjihgfedcba "), "their tokenizers"),
        (vocabulary.characters(specials=["bos"]), "size = 28 and 29, mask_id = 27 and 28, bos_id = None and 27"),
    ],
)
def test_two_networks_of_different_vocabularies_are_refused_with_what_differs(
    tmp_path: Path, characters: Vocabulary, other: Vocabulary, differing: str
) -> None:
    for name, ids in (("one", characters), ("same", vocabulary.characters()), ("other", other)):
        checkpoints.save_network(tmp_path / name, small_network(), ids, {})
    checkpoints.require_same_vocabulary(tmp_path / "one", tmp_path / "same")
    with pytest.raises(ValueError, match="were trained on different vocabularies") as caught:
        checkpoints.require_same_vocabulary(tmp_path / "one", tmp_path / "other")
    assert str(caught.value) == (
        f"{tmp_path / 'one'} and {tmp_path / 'other'} were trained on different vocabularies: {differing}"
    )


def test_other_shapes_are_refused_with_the_tensor_named(tmp_path: Path, characters: Vocabulary) -> None:
    checkpoints.save_network(tmp_path / "n", small_network(), characters, {})
    file = tmp_path / "n" / "network.json"
    description = json.loads(file.read_text())
    description["arguments"]["vocab_size"] = 29
    file.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"embedding\.weight has shape \(28, 16\), not \(29, 16\)"):
        checkpoints.load_network(tmp_path / "n")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 16}, "unexpected keyword argument 'width'"),
        ({"num_heads": 3}, r"hidden_size = 16 must be a multiple of 2 \* num_heads = 6"),
        ({"num_heads": 0}, "num_heads = 0 must be at least 1"),
        ({"vocab_size": -1}, "vocab_size = -1 must be at least 1"),
        ({"max_length": 0}, "max_length = 0 must be at least 1"),
        ({"conditioning_size": -8}, "conditioning_size = -8 must be at least 0"),
        ({"hidden_size": 16.0}, r"hidden_size = 16\.0 must be a whole number"),
        ({"num_layers": True}, "num_layers = True must be a whole number"),
        ({"num_layers": "1"}, "num_layers = '1' must be a whole number"),
        ({"dropout": 1.5}, r"dropout = 1\.5 must be a number of at least 0 and below 1"),
        ({"dropout": float("nan")}, "dropout = nan must be a number"),
        ({"causal": "false"}, "causal = 'false' must be true or false"),
        ({"num_layers": 10**7}, "network: layers = 10000000 must be at most 1000; EDLM_LIMITS=10000"),
        ({"hidden_size": 2**40}, "network: parameters = [0-9]+ must be at most 400000000"),
        ({"vocab_size": 10**12}, "network: parameters = [0-9]+ must be at most 400000000"),
        ({"conditioning_size": 10**15}, "network: parameters = [0-9]+ must be at most 400000000"),
        ({"max_length": 10**12}, "network: max_length = 1000000000000 must be at most"),
    ],
)
def test_arguments_that_make_no_network_are_refused_with_the_file_named(
    tmp_path: Path, characters: Vocabulary, changes: dict[str, Any], said: str
) -> None:
    checkpoints.save_network(tmp_path / "n", small_network(), characters, {})
    file = tmp_path / "n" / "network.json"
    description = json.loads(file.read_text())
    description["arguments"] |= changes
    file.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=rf"n/network\.json: its arguments make no Transformer \(.*{said}"):
        checkpoints.load_network(tmp_path / "n")


def test_nothing_but_known_classes_is_built(tmp_path: Path, characters: Vocabulary) -> None:
    checkpoints.save_network(tmp_path / "n", small_network(), characters, {})
    file = tmp_path / "n" / "network.json"
    file.write_text(file.read_text().replace('"Transformer"', '"os.system"'))
    with pytest.raises(ValueError, match=r"class 'os.system' is not one of Transformer, EnergyNetwork"):
        checkpoints.load_network(tmp_path / "n")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, characters: Vocabulary) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*file/n"):
        checkpoints.save_network(tmp_path / "file" / "n", small_network(), characters, {})


@pytest.mark.parametrize(
    ("encoded", "said"),
    [
        ("tensor:7", "holds no training state ('tensor:7' is missing)"),
        ({"pair": []}, "holds no training state ('pairs' is missing)"),
        ({"pairs": 3}, "holds no training state ('int' object is not iterable)"),
        ([1], "holds no training state, but list"),
    ],
)
def test_a_state_that_is_none_is_told_with_what_is_wrong(
    tmp_path: Path, characters: Vocabulary, encoded: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.UNVERIFIED, "1")  # the hash alone would refuse it
    folder = checkpoints.save_checkpoint(tmp_path, 1, small_network(), characters, {}, {"a": torch.ones(1)})
    file = folder / "training.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "state": encoded}))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        checkpoints.load_state(folder)
    assert str(error.value) == f"{file}: its key 'state' {said}"
