"""Published networks in tables and configs: every row, where each size is from, and ids in their order."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edlm.data import vocabulary
from edlm.nn.networks import EnergyNetwork, Transformer
from edlm.weights import exchange, foreign, inert, published

WORDS = vocabulary.characters("abcd")
SIZES: dict[str, Any] = {"hidden_size": 8, "num_layers": 3, "num_heads": 2, "dropout": 0.25}


def network(kind: str) -> Any:
    if kind == "energy":
        return EnergyNetwork(WORDS.size, 16, **SIZES, conditioning_size=4)
    causal = kind == "autoregressive"
    return Transformer(WORDS.size, 16, **SIZES, conditioning_size=0 if causal else 4, causal=causal)


@pytest.mark.parametrize("kind", ["denoiser", "autoregressive", "energy"])
def test_every_size_of_a_network_is_told_and_where_it_is_from(kind: str) -> None:
    notes = {"step": 5, "weights": "raw", "other": 1, "bos_id": 0, "time_conditioning": False, "parameterization": "x"}
    conditioning = "none" if kind == "autoregressive" else "4"
    expected = [
        *(("source", "a file"), ("kind", kind), ("layers", "3"), ("width", "8")),
        *(("heads", "2, as given"), ("length", "16, by default"), ("vocabulary", "5 ids, the mask is 4")),
        *(("conditioning", conditioning), ("weights", "raw"), ("step", "5"), ("parameterization", "x")),
        *(("time_conditioning", "False"), ("bos_id", "0")),
    ]
    sizes = exchange.Sizes(2, 16, "as given", "by default")
    assert exchange._table("a file", network(kind), WORDS, notes, sizes) == expected
    plain = [(name, value.partition(", ")[0] if name in ("heads", "length") else value) for name, value in expected]
    assert exchange._table("a file", network(kind), WORDS, notes) == plain
    assert len(exchange._table("a file", network(kind), WORDS, {})) == 8


@pytest.mark.parametrize("told", [True, False, None])
@pytest.mark.parametrize("kind", ["denoiser", "autoregressive", "energy"])
def test_a_config_of_the_hub_has_the_published_names(kind: str, told: bool | None) -> None:
    notes = {} if told is None else {"time_conditioning": told}
    found = exchange._hf_config(network(kind).bfloat16(), WORDS, notes)
    assert found.pop("architectures") == [exchange._ARCHITECTURES[kind]]
    assert found == {
        **{"model_type": "mdlm", "n_heads": 2, "model_length": 16, "dropout": 0.25, "vocab_size": 5, "hidden_dim": 8},
        **{"n_blocks": 3, "cond_dim": 0 if kind == "autoregressive" else 4, "time_conditioning": bool(told)},
        **{"mask_token_id": 4, "torch_dtype": "bfloat16", "edlm": notes},
    }


@pytest.mark.parametrize(
    ("given", "own", "frequencies", "heads", "origin"),
    [
        (4, 2, 1, 4, "as given"),
        (None, 2, 1, 2, "from the file's settings"),
        (None, None, 1, 4, "from the rotary frequencies"),
        (None, None, None, 12, "the published default, the file does not say"),
    ],
)
@pytest.mark.parametrize(
    ("asked", "said", "length", "length_from"),
    [
        (9, 7, 9, "as given"),
        (None, 7, 7, "from the file's settings"),
        (None, None, 1024, "the published default, the file does not say"),
    ],
)
def test_a_size_that_no_weight_shows_is_the_first_that_is_known(
    given: int | None,
    own: int | None,
    frequencies: int | None,
    heads: int,
    origin: str,
    asked: int | None,
    said: int | None,
    length: int,
    length_from: str,
) -> None:
    state = {published._EMBEDDING: torch.zeros(3, 8)}
    state |= {} if frequencies is None else {published._FREQUENCIES: torch.zeros(frequencies)}
    weights: Any = SimpleNamespace(state=state, settings={"num_heads": own, "max_length": said})
    assert exchange.sizes_of(weights, given, asked) == (heads, length, origin, length_from)


def test_averages_are_named_in_their_order_if_they_fit() -> None:
    state = {"a": torch.zeros(2), "b": torch.zeros(3)}
    one, other = torch.ones(2), torch.ones(3)
    found = exchange._by_name([other, one], state, ["b", "a"])
    assert found["a"] is one
    assert found["b"] is other
    with pytest.raises(ValueError, match=r"^the file averages 1 parameters, the network has 2: take raw weights$"):
        exchange._by_name([one], state, ["b", "a"])
    said = r"^the file's average in the place of b has shape \(2,\), not \(3,\): take raw weights$"
    with pytest.raises(ValueError, match=said):
        exchange._by_name([one, other], state, ["b", "a"])


def test_a_folder_with_several_tokenizers_goes_by_ours_then_by_gpt2s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(exchange.vocabulary, "load_vocabulary", lambda *own: calls.append(("ours", *own)))
    monkeypatch.setattr(exchange.vocabulary, "byte_level_bpe", lambda *own: calls.append(("gpt2", *own)))
    monkeypatch.setattr(exchange, "_from_json", lambda *own: calls.append(("json", *own)))
    with pytest.raises(ValueError, match=r"no tokenizer there \(expected tokenizer\.json, or GPT-2's vocab\.json and"):
        exchange._read_vocabulary(tmp_path)
    names = ("tokenizer.json", "merges.txt", "vocab.json", "vocabulary.json")
    for name in names:
        (tmp_path / name).touch()
        exchange._read_vocabulary(tmp_path)
    exchange._read_vocabulary(tmp_path / "tokenizer.json")
    own = ("json", tmp_path / "tokenizer.json")
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    assert calls == [own, own, ("gpt2", *files), ("ours", tmp_path), own]


@pytest.mark.parametrize(
    ("value", "taken"),
    [(3, True), (3.0, True), (3.5, False), (True, False), ("3", False), (float("inf"), False), ([3], False)],
)
def test_a_size_of_a_file_is_a_whole_number_and_its_dropout_a_number(value: Any, taken: bool) -> None:
    names = {"num_heads": "n_heads", "dropout": "drop"}
    nothing = {"n_heads": None, "drop": "${other}"}
    assert foreign._settings(nothing, names) == {}
    if taken:
        assert foreign._settings({"n_heads": value, "drop": 0.5}, names) == {"num_heads": value, "dropout": 0.5}
        return
    said = rf"^the file's settings say n_heads = {value!r}".replace("[", r"\[") + ", which must be a whole number$"
    with pytest.raises(ValueError, match=said):
        foreign._settings({"n_heads": value}, names)
    for wrong in (True, "a", float("nan")):
        with pytest.raises(ValueError, match=rf"^the file's settings say drop = {wrong!r}, which must be a number$"):
            foreign._settings({"drop": wrong}, names)


@pytest.mark.parametrize(("depth", "found"), [(0, 3), (1, 3), (7, 3), (8, None), (9, None)])
@pytest.mark.parametrize("key", ["_content", "_val"])
def test_a_value_is_taken_out_of_so_many_nodes(depth: int, found: int | None, key: str) -> None:
    value: Any = 3
    for _ in range(depth):
        node = inert.Inert()
        node.__setstate__({key: value})
        value = node
    assert foreign._content(value) == found
    assert foreign._plain({"a": value}) == {"a": found}
    assert foreign._plain(value) == {}


@pytest.mark.parametrize(
    ("config", "told", "more"),
    [
        ({}, False, {}),
        ({"time_conditioning": True, "parameterization": "subs"}, True, {"parameterization": "subs"}),
        ({"time_conditioning": 1, "parameterization": 3}, False, {}),
    ],
)
def test_notes_are_of_the_published_schedule(config: dict[str, Any], told: bool, more: dict[str, str]) -> None:
    schedule = {"_component_": "edlm.schedules.log_linear", "eps": 1e-3}
    assert foreign._notes(config) == {"schedule": schedule, "time_conditioning": told, **more}
