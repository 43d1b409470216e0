"""The edges of what a folder may say: what lies on one is taken, what lies beyond is refused with both numbers."""

import json
import re
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from block_folders import LLADA2
from safetensors.torch import save_file

from edlm import limits
from edlm.data import vocabulary
from edlm.nn.networks import Transformer
from edlm.weights import (
    checkpoints,
    config_keys,
    exchange,
    families,
    gguf_files,
    inert,
    large,
    llada2,
    pairs,
    pretrained,
    published,
    tensors,
)

AT = Path("m")
WORDS = vocabulary.characters("ab", specials=["bos", "eos"])  # ids 0, 1, then bos, eos and the mask


def heads(*sizes: int) -> None:
    families._require_heads(AT, *sizes)


def whole(value: Any) -> int:
    return families.whole_number(AT, {"a": value}, "a")


def real(value: Any) -> float:
    return families.number(AT, {"a": value}, "a")


def of_llada2(**changed: Any) -> dict[str, Any]:
    return llada2.settings(AT, {**LLADA2, **changed})


def of_gguf(is_real: bool, value: Any) -> None:
    gguf_files._require_number(AT, "a", value, is_real)


def head_dim(**own: int) -> int:
    said = {f"{name.replace('_', '.', 1)}": value for name, value in own.items()}
    return gguf_files._head_dim(AT, said, {"hidden_size": 64, "num_attention_heads": 4})


def published_sizes(num_heads: int) -> dict[str, Any]:
    return published._sizes({published._EMBEDDING: torch.zeros(3, 8)}, num_heads, 16, 0.25)


def length_of(max_length: int) -> int:
    weights: Any = SimpleNamespace(settings={}, state={})
    return exchange.sizes_of(weights, 4, max_length).max_length


long = partial(pairs._require_long, "ar")
Case = tuple[Callable[..., Any], tuple[Any, ...] | dict[str, Any]]
TAKEN: list[tuple[Case, Any]] = [
    ((heads, (4, 4, 8)), None),
    ((heads, (4, 2, 24)), None),
    ((whole, (1,)), 1),
    ((whole, (2.0,)), 2),
    ((whole, (limits.SIZE,)), limits.SIZE),
    ((real, (sys.float_info.max,)), sys.float_info.max),
    ((real, (-3,)), -3.0),
    ((of_gguf, (False, 1)), None),
    ((of_gguf, (False, limits.SIZE)), None),
    ((of_gguf, (True, 5e-324)), None),
    ((of_gguf, (True, 1)), None),
    ((head_dim, {}), 16),
    ((head_dim, {"rope_dimension_count": 8}), 8),
    ((head_dim, {"rope_dimension_count": 8, "attention_key_length": 8, "attention_value_length": 8}), 8),
    ((length_of, (1,)), 1),
    ((long, (8, 8)), None),
]
REFUSED: list[tuple[Case, str]] = [
    ((heads, (4, 2, 30)), "m/config.json: 4 heads of which 2 hold keys do not fit a width of 30"),
    ((heads, (4, 2, 12)), "m/config.json: 4 heads of which 2 hold keys do not fit a width of 12"),
    ((heads, (4, 3, 8)), "m/config.json: 4 heads of which 3 hold keys do not fit a width of 8"),
    ((whole, (0,)), "m/config.json: a = 0 must be a whole number of at least 1"),
    ((whole, (1.5,)), "m/config.json: a = 1.5 must be a whole number of at least 1"),
    ((whole, (True,)), "m/config.json: a = True must be a number"),
    ((whole, (limits.SIZE + 1,)), f"m/config.json: a = {limits.SIZE + 1} must be at most {limits.SIZE}; EDLM_LIMITS=2"),
    ((real, (float("inf"),)), "m/config.json: a = inf must be a number"),
    ((real, (float("nan"),)), "m/config.json: a = nan must be a number"),
    ((real, (None,)), "m/config.json: a = None must be a number"),
    ((of_gguf, (False, 0)), "m: a = 0 must be a whole number of at least 1"),
    ((of_gguf, (False, True)), "m: a = True must be a whole number of at least 1"),
    ((of_gguf, (True, 0)), "m: a = 0 must be a positive number"),
    ((of_gguf, (True, True)), "m: a = True must be a positive number"),
    (
        (head_dim, {"rope_dimension_count": 16, "attention_value_length": 8}),
        "m: rope.dimension_count, attention.key_length, attention.value_length differ ([8, 16]), and must be the same",
    ),
    ((published_sizes, (0,)), "num_heads = 0 does not fit: twice it must divide the hidden size 8"),
    ((published_sizes, (3,)), "num_heads = 3 does not fit: twice it must divide the hidden size 8"),
    ((length_of, (0,)), "length = 0 must be at least 1"),
    ((long, (8, 9)), "ar = 'ar' reads 8 tokens, and a text has 9: give length="),
]


def called(case: Case) -> Any:
    function, given = case
    return function(**given) if isinstance(given, dict) else function(*given)


@pytest.mark.parametrize("number", range(len(TAKEN)))
def test_what_lies_on_an_edge_is_taken(number: int) -> None:
    case, expected = TAKEN[number]
    assert called(case) == expected


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_lies_beyond_it_is_refused(number: int) -> None:
    case, said = REFUSED[number]
    with pytest.raises(ValueError) as error:  # noqa: PT011
        called(case)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    "changed",
    [
        {"first_k_dense_replace": 0},
        {"first_k_dense_replace": 3},
        {"num_experts": 8, "n_group": 4, "topk_group": 4, "num_experts_per_tok": 8},
        {"topk_group": 2, "num_experts_per_tok": 4},
        {"num_attention_heads": 2},
        {"partial_rotary_factor": 1.0, "rotary_dim": 12},
        {"partial_rotary_factor": 1 / 6, "rotary_dim": 2},
    ],
)
def test_experts_and_turned_parts_may_be_all_that_there_are(changed: dict[str, Any]) -> None:
    found = of_llada2(**changed)
    names = {"num_experts": "n_routed_experts"}
    own = {key: value for key, value in changed.items() if key not in ("partial_rotary_factor", "rotary_dim")}
    assert {key: found[names.get(key, key)] for key in own} == own
    share = changed.get("partial_rotary_factor", 0.5)
    rope = {"rope_type": "default", "rope_theta": 600.0, "partial_rotary_factor": share}
    assert found["rope_parameters"] == rope


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"first_k_dense_replace": -1}, "first_k_dense_replace = -1 must be a number of layers"),
        ({"first_k_dense_replace": True}, "first_k_dense_replace = True must be a number of layers"),
        ({"partial_rotary_factor": 0, "rotary_dim": 0}, "partial_rotary_factor = 0 must leave an even part of 12"),
        (
            {"partial_rotary_factor": 0.25, "rotary_dim": 3},
            "partial_rotary_factor = 0.25 must leave an even part of 12",
        ),
        ({"partial_rotary_factor": "a"}, "partial_rotary_factor = 'a' must leave an even part of 12"),
        ({"rope_parameters": 3}, "rope_parameters = 3 must be a section"),
    ],
)
def test_and_no_more(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^m/config.json: {re.escape(said)}$"):
        of_llada2(**changed)


@pytest.mark.parametrize(("dropped", "size"), [((), 12), (("head_dim",), 8)])
def test_a_head_that_no_config_sizes_has_its_share_of_the_width(dropped: tuple[str, ...], size: int) -> None:
    config = {key: value for key, value in LLADA2.items() if key not in (*dropped, "rotary_dim")}
    assert llada2.settings(AT, config)["head_dim"] == size


@pytest.mark.parametrize(("size", "right"), [(1, True), (32, True), (0, False), (True, False), (2.0, False)])
def test_a_block_has_a_token_at_least(size: Any, right: bool, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    config = {"model_type": "sdar", "num_hidden_layers": 1, "block_size": size}
    if right:
        assert pretrained.in_blocks(tmp_path, config, 8).family is pretrained.BLOCKS["sdar"]
        return
    with pytest.raises(ValueError, match=rf"block_size = {size!r} must be a whole number of at least 1$"):
        pretrained.in_blocks(tmp_path, config, 8)


def test_a_mask_that_is_added_comes_after_all_ids(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(WORDS.tokenizer.to_str())
    for given, mask_id, size in (({}, 9, 10), ({"mask_token_id": 3}, 3, 9), ({"embedding_size": 12}, 12, 13)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 9, **given}))
        found = large.load_vocabulary(tmp_path, add_mask=True)
        assert (found.mask_id, found.size) == (mask_id, size)


@pytest.mark.parametrize(("kind", "mask"), [("llada2_moe", 156895), ("Fast_dLLM_Qwen", 151665), ("sdar", None)])
def test_a_mask_that_a_config_leaves_out_is_its_familys(kind: str, mask: int | None, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(WORDS.tokenizer.to_str())
    for given, mask_id in (({}, mask), ({"mask_token_id": None}, mask), ({"mask_token_id": 9}, 9)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "vocab_size": 157184, **given}))
        if mask_id is None:
            with pytest.raises(ValueError, match="mask_token_id = None must be a number"):
                large.load_vocabulary(tmp_path)
        else:
            assert large.load_vocabulary(tmp_path).mask_id == mask_id


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_layers", "conditioning_size"])
def test_sizes_of_a_files_settings_are_those_of_its_weights(name: str, causal: bool) -> None:
    """But for the conditioning of an autoregressive network, which has none."""
    network = Transformer(
        3, 8, hidden_size=8, num_layers=1, num_heads=2, conditioning_size=0 if causal else 4, causal=causal
    )
    own = {
        "vocab_size": 3,
        "hidden_size": 8,
        "num_layers": 1,
        "conditioning_size": network.arguments["conditioning_size"],
    }
    sizes = exchange.Sizes(2, 8, "as given", "as given")

    def weights(**settings: int) -> Any:
        return SimpleNamespace(state=published.export(network), average=None, settings={**own, **settings})

    built = exchange.build(weights(), sizes)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in built.state_dict().items())
    if causal and name == "conditioning_size":
        assert exchange.build(weights(conditioning_size=64), sizes).arguments == built.arguments
        return
    said = f"the file's settings say {name} = {own[name] + 1}, its weights say {own[name]}"
    with pytest.raises(ValueError, match=f"^{said}$"):
        exchange.build(weights(**{name: own[name] + 1}), sizes)


@pytest.mark.parametrize(
    ("others", "known"),
    [
        ({}, 2),
        ({"bos_id": 2}, 3),
        ({"bos_id": 2, "eos_id": 3}, 4),
        ({"bos_id": None, "eos_id": 3}, 4),
        ({"bos_id": 3, "eos_id": 2}, 2),
    ],
)
def test_ids_are_shared_up_to_the_last_that_both_name(others: dict[str, int | None], known: int) -> None:
    assert (WORDS.bos_id, WORDS.eos_id) == (2, 3)
    assert pairs._shared(WORDS, others) == known
    assert [pairs._below(id_, known) for id_ in (None, known - 1, known)] == [False, True, False]


def test_a_bos_is_an_id_of_the_network(tmp_path: Path) -> None:
    network = Transformer(WORDS.size, 8, hidden_size=4, num_layers=1, num_heads=1, causal=True)
    for bos_id in (WORDS.size - 1, WORDS.size):
        checkpoints.save_network(tmp_path / str(bos_id), network, WORDS, {"bos_id": bos_id})
    assert checkpoints.load_network(tmp_path / str(WORDS.size - 1)).max_length == 8
    with pytest.raises(ValueError, match=rf"bos_id = {WORDS.size} must be an id below vocab_size = {WORDS.size}$"):
        checkpoints.load_network(tmp_path / str(WORDS.size))


@pytest.mark.parametrize("frequencies", [None, 0, 1, 2, 4])
def test_heads_are_counted_by_their_frequencies(frequencies: int | None) -> None:
    state = {published._EMBEDDING: torch.zeros(3, 8)}
    state |= {} if frequencies is None else {published._FREQUENCIES: torch.zeros(frequencies)}
    assert published.num_heads_of(state) == ({1: 4, 2: 2, 4: 1}[frequencies] if frequencies else None)


def test_a_base_that_is_given_twice_is_given_once_if_it_is_the_same() -> None:
    for section in ({"rope_theta": 7.0}, {"rope_theta": 7}):
        config = {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", **section}}
        assert config_keys.rope(AT, config, 5.0) == {"rope_type": "default", "rope_theta": 7.0}
    assert config_keys.rope(AT, {}, 5.0) == {"rope_type": "default", "rope_theta": 5.0}
    with pytest.raises(ValueError, match=r"^m/config.json: rope_theta is given twice, as \[6\.0, 7\.0\]$"):
        config_keys.rope(AT, {"rope_theta": 7.0, "rope_scaling": {"rope_theta": 6.0}})


@pytest.mark.parametrize(
    ("given", "nested"),
    [
        (None, False),
        ({}, False),
        ({"rope_theta": 7.0}, False),
        ({"full": {}}, True),
        ({"full": {}, "factor": 1.0}, True),
    ],
)
def test_rotary_positions_of_one_kind_of_layer_are_nested(given: Any, nested: bool) -> None:
    assert pretrained._nested({"rope_parameters": given}) is nested


@pytest.mark.parametrize(
    ("own", "size", "said"),
    [
        ({"shifted": True, "bos_id": 0}, 9, None),
        ({"shifted": True, "bos_id": 8}, 9, None),
        ({"shifted": True, "bos_id": None}, None, None),
        ({"shifted": False, "bos_id": None}, 9, None),
        ({"shifted": True, "bos_id": 9}, 9, "bos_id"),
        ({"shifted": True, "bos_id": -1}, 9, "bos_id"),
        ({"shifted": True, "bos_id": True}, 9, "bos_id"),
        ({"shifted": True, "bos_id": 3}, None, "bos_id"),
        ({"shifted": False, "bos_id": 3}, 9, "bos_id"),
        ({"shifted": 1, "bos_id": 3}, 9, "shifted"),
        ({"shifted": True}, 9, "shifted"),
        ({"shifted": True, "bos_id": 3, "other": 1}, 9, "shifted"),
        (["shifted", "bos_id"], 9, "shifted"),
    ],
)
def test_an_adapted_model_says_how_it_is_read(own: Any, size: int | None, said: str | None, tmp_path: Path) -> None:
    for notes in ({}, {"edlm": None}, {"edlm": [own]}, {"edlm": {}}):
        (tmp_path / "config.json").write_text(json.dumps(notes))
        assert large.adapted_by(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": size, "edlm": {"adapted": own}}))
    if said is None:
        assert large.adapted_by(tmp_path) == own
        return
    told = {"bos_id": f".bos_id = {own['bos_id']!r}" if said == "bos_id" else "", "shifted": f" = {own!r}"}[said]
    wanted = {"bos_id": "an id of a shifted model", "shifted": "shifted, true or false, and bos_id"}[said]
    with pytest.raises(
        ValueError, match=f"^{re.escape(f'{tmp_path}/config.json: edlm.adapted{told} must be {wanted}')}$"
    ):
        large.adapted_by(tmp_path)


def test_a_large_folder_has_a_config_and_no_network_of_ours(tmp_path: Path) -> None:
    assert large.hub_folder(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    assert large.hub_folder(str(tmp_path)) == tmp_path
    (tmp_path / "network.json").write_text("{}")
    assert large.hub_folder(tmp_path) is None
    newest = tmp_path / "run" / "checkpoints" / "step_00000004"
    newest.mkdir(parents=True)
    assert large.hub_folder(tmp_path / "run") is None, "what nothing names is lost"
    (newest.parent / "last.json").write_text(json.dumps({"folder": newest.name}))
    assert large.hub_folder(tmp_path / "run") is None
    (newest / "config.json").write_text("{}")
    assert large.hub_folder(tmp_path / "run") == newest


def test_a_file_that_is_gone_has_no_hash(tmp_path: Path) -> None:
    said = f"{tmp_path / 'a'}: cannot be read (No such file or directory)"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        tensors.sha256(tmp_path / "a")


def test_the_first_five_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"module.a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}, file)
    tensors.require_named({"a": (2,), "b": (3,), "c": (1,)}, file)
    said = "a has shape (2,), not (3,); b has shape (3,), not (2,); c is not known; d is missing; e is missing"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {said}')}$"):
        tensors.require_named({"a": (3,), "b": (2,), "d": (1,), "e": (1,), "f": (1,)}, file)


@pytest.mark.parametrize(("compressed", "longer"), [(True, False), (False, True)])
def test_a_part_that_is_packed_or_longer_than_its_bytes_is_not_read(
    compressed: bool, longer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    listed = zipfile.ZipFile.infolist

    def infolist(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        found = listed(archive)
        found[0].compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        found[0].file_size += longer
        return found

    assert torch.equal(inert.read(tmp_path / "a.pt")["a"], torch.zeros(2))
    monkeypatch.setattr(zipfile.ZipFile, "infolist", infolist)
    with pytest.raises(ValueError, match=r"a/data\.pkl is compressed, and torch\.save compresses nothing"):
        inert.read(tmp_path / "a.pt")
