"""Files that contradict themselves: settings beside another network's weights are refused, by the setting's name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from large_folders import CONFIGS, FFN, HEADS, KV, LAYERS, H, V, random_weights, write
from published_files import KINDS, built, hf_folder, prefixed, same_weights, small, trainers_config, trainers_file

from edlm.data import vocabulary
from edlm.nn import decoders
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.weights import checkpoints, exchange, families, foreign, large, pretrained, published

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "conditioning_size": 8}
CLASSES = {"Transformer": Transformer, "EnergyNetwork": EnergyNetwork, "JointNetwork": JointNetwork}


# ---- Published files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("published_name", "name", "right"),
    [("hidden_size", "hidden_size", 12), ("n_blocks", "num_layers", 2), ("cond_dim", "conditioning_size", 4)],
)
@pytest.mark.parametrize("by", [-1, 1])
def test_a_trainers_settings_are_those_of_its_weights(
    kind: str, published_name: str, name: str, right: int, by: int, tmp_path: Path
) -> None:
    network = small(kind)
    file = tmp_path / "x.ckpt"
    trainers_file(file, prefixed("backbone.", network), config=trainers_config(**{published_name: right + by}))
    if kind == "autoregressive" and name == "conditioning_size":
        assert same_weights(built(foreign.read(file)), network), "it ignores its setting"
        return
    with pytest.raises(ValueError, match=rf"settings say {name} = {right + by}, its weights say {right}$"):
        built(foreign.read(file))


@pytest.mark.parametrize(
    ("published_name", "name", "right"),
    [
        ("vocab_size", "vocab_size", 28),
        ("hidden_dim", "hidden_size", 12),
        ("n_blocks", "num_layers", 2),
        ("cond_dim", "conditioning_size", 4),
    ],
)
def test_a_folders_settings_are_those_of_its_weights(
    published_name: str, name: str, right: int, tmp_path: Path
) -> None:
    for wrong in (right - 1, right + 1):
        folder = hf_folder(tmp_path / str(wrong), small("denoiser"), **{published_name: wrong})
        with pytest.raises(ValueError, match=rf"settings say {name} = {wrong}, its weights say {right}$"):
            built(foreign.read(folder))
    assert same_weights(built(foreign.read(hf_folder(tmp_path / "right", small("denoiser")))), small("denoiser"))


def test_what_is_given_goes_before_the_settings_and_these_before_the_default(tmp_path: Path) -> None:
    weights = foreign.read(hf_folder(tmp_path / "x", small("denoiser")))
    assert exchange.sizes_of(weights) == (3, 16, "from the file's settings", "from the file's settings")
    assert exchange.sizes_of(weights, 2, 9) == (2, 9, "as given", "as given")
    default = "the published default, the file does not say"
    state = published.export(small("denoiser"))
    state.pop("rotary_emb.inv_freq", None)
    bare = foreign.Weights("a file", state, None, {}, {})
    assert exchange.sizes_of(bare) == (exchange.DEFAULT_HEADS, exchange.DEFAULT_LENGTH, default, default)
    with pytest.raises(ValueError, match="length = 0 must be at least 1"):
        exchange.sizes_of(weights, max_length=0)
    assert exchange.sizes_of(weights, max_length=1).max_length == 1


# ---- Folders of ours


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "change",
    [
        *({name: value + step * unit} for name, value, unit in
          (("vocab_size", 6, 1), ("hidden_size", 16, 4), ("num_layers", 2, 1), ("conditioning_size", 8, 1))
          for step in (-1, 1)),
        {"conditioning_size": 0},
        {"norm_bias": True},
    ],
    ids=lambda change: "-".join(f"{name}={value}" for name, value in change.items()),
)  # fmt: skip
def test_arguments_are_those_of_the_weights(kind: str, change: dict[str, Any], tmp_path: Path) -> None:
    words = vocabulary.characters("abcd")
    checkpoints.save_network(tmp_path / "n", CLASSES[kind](6, 8, **SIZES), words, {})
    assert type(checkpoints.load_network(tmp_path / "n")) is CLASSES[kind]
    file = tmp_path / "n" / "network.json"
    description = json.loads(file.read_text("utf-8"))
    description["arguments"] |= change
    file.write_text(json.dumps(description), "utf-8")
    with pytest.raises(ValueError, match=r"network\.safetensors: .* (is missing|is not known|has shape \(.*\), not )"):
        checkpoints.load_network(tmp_path / "n")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("other", CLASSES)
def test_a_network_of_one_class_is_not_read_as_another(kind: str, other: str, tmp_path: Path) -> None:
    words = vocabulary.characters("abcd")
    checkpoints.save_network(tmp_path / "n", CLASSES[kind](6, 8, **SIZES), words, {})
    if kind == other:
        assert isinstance(checkpoints.load_as(CLASSES[other], tmp_path / "n"), CLASSES[other])
        return
    with pytest.raises(ValueError, match=rf"holds a network of class {kind}, not {other}"):
        checkpoints.load_as(CLASSES[other], tmp_path / "n")


# ---- Large models


@pytest.mark.parametrize(
    ("family", "flags"),
    [
        (
            "llada",
            {
                **{"block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True},
                **dict.fromkeys(("alibi", "weight_tying", "include_bias", "include_qkv_bias"), False),
                **dict.fromkeys(("attention_layer_norm", "bias_for_layer_norm", "input_emb_norm"), False),
                **{"scale_logits": False, "layer_norm_with_affine": True},
                **{"multi_query_attention": None, "block_group_size": 1},
            },
        ),
        (
            "dream",
            {"hidden_act": "silu", "use_sliding_window": False, "rope_scaling": None, "tie_word_embeddings": False},
        ),
    ],
)
def test_each_flag_has_the_one_value_of_its_family(family: str, flags: dict[str, Any], tmp_path: Path) -> None:
    """As given or left out; another value makes another network of the same names."""
    assert flags == {"llada": families._LLADA_FIXED, "dream": families._DREAM_FIXED}[family]
    folder = tmp_path / "m"
    folder.mkdir()
    read = large.read_diffusion
    plain = {name: value for name, value in CONFIGS[family].items() if name not in flags}

    def config(**changed: Any) -> None:
        (folder / "config.json").write_text(json.dumps({**plain, **changed}), "utf-8")

    config()
    read(folder)
    config(**flags)
    read(folder)
    for name, value in flags.items():
        other = {"type": "linear"} if value is None else not value if isinstance(value, bool) else f"{value}x"
        config(**{name: other})
        with pytest.raises(ValueError, match=rf"config\.json: {name} = .* must be {value!r}$"):
            read(folder)


@pytest.mark.parametrize(
    ("family", "flags"),
    [
        ("qwen2", {"hidden_act": ("silu", "relu"), "use_sliding_window": (False, True)}),
        ("qwen2", {"layer_types": (["full_attention"] * 2, ["full_attention", "sliding_attention"])}),
        ("llama", {"hidden_act": ("silu", "relu"), "attention_bias": (False, True), "mlp_bias": (False, True)}),
        ("llama", {"rope_scaling": (None, {"type": "linear", "factor": 2.0}), "head_dim": (4, 8)}),
    ],
)
def test_torchtune_builds_what_it_has_and_transformers_runs_the_rest(
    family: str, flags: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "m").mkdir()
    for name, (usual, other) in flags.items():
        for value, kind in ((usual, decoders.Blueprint), (other, pretrained.Pretrained)):
            (tmp_path / "m" / "config.json").write_text(json.dumps({**CONFIGS[family], name: value}), "utf-8")
            assert isinstance(large.read_autoregressive(tmp_path / "m"), kind), name


@pytest.mark.parametrize("family", CONFIGS)
def test_each_size_is_the_configs(family: str, tmp_path: Path) -> None:
    """Every number of the builder, and what stands for one that is left out."""
    folder = write(tmp_path / "m", family, random_weights(family), shards=1)
    read = large.read_diffusion if family in ("llada", "dream") else large.read_autoregressive
    longest = 64 if family in ("llada", "dream") else 32
    expected = {
        **{"vocab_size": V, "num_layers": LAYERS, "num_heads": HEADS, "num_kv_heads": KV, "embed_dim": H},
        **{"intermediate_dim": FFN, "max_seq_len": longest, "rope_base": 500.0, "norm_eps": 1e-5},
    }
    assert expected.items() <= read(folder).build.keywords.items()
    assert read(folder, 7).build.keywords["max_seq_len"] == 7
    assert read(folder, longest + 1).build.keywords["max_seq_len"] == longest
    config = json.loads((folder / "config.json").read_text("utf-8"))
    heads = "n_kv_heads" if family == "llada" else "num_key_value_heads"
    for absent in ({heads: None}, {key: value for key, value in config.items() if key == heads}):
        left = {key: value for key, value in config.items() if key not in absent}
        (folder / "config.json").write_text(json.dumps({**left, **{k: None for k, v in absent.items() if v is None}}))
        assert read(folder).build.keywords["num_kv_heads"] == HEADS
    numbers = [name for name, value in config.items() if type(value) in (int, float) and not name.endswith("_id")]
    optional = {heads, "embedding_size" if config.get("vocab_size") else ""}
    if family == "llada":
        optional.add("vocab_size")  # `embedding_size`, the table's own, goes before it
    for name in set(numbers) - optional:
        (folder / "config.json").write_text(json.dumps({**config, name: "2"}), "utf-8")
        with pytest.raises(ValueError, match=rf"config\.json: {name} = '2' must be a number"):
            read(folder)


def test_lladas_table_may_have_more_rows_than_its_vocabulary(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llada", random_weights("llada"), shards=1, vocab_size=V - 3)
    assert large.read_diffusion(folder).build.keywords["vocab_size"] == V
    write(folder, "llada", random_weights("llada"), shards=1, embedding_size=None)
    assert large.read_diffusion(folder).build.keywords["vocab_size"] == V
    assert large.load_diffusion(folder).head(torch.zeros(1, H)).shape == (1, V)


@pytest.mark.parametrize(
    ("family", "absent"),
    [
        ("llada", {}),
        ("dream", {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}),
        ("qwen2", {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}),
        ("llama", {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}),
    ],
)
def test_a_number_that_a_config_leaves_out_is_the_familys(family: str, absent: dict[str, Any], tmp_path: Path) -> None:
    """Or is asked for by its name: of LLaDA each one is."""
    folder = write(tmp_path / "m", family, random_weights(family), shards=1)
    read = large.read_diffusion if family in ("llada", "dream") else large.read_autoregressive
    config = json.loads((folder / "config.json").read_text("utf-8"))
    built = {"max_position_embeddings": "max_seq_len", "rms_norm_eps": "norm_eps", "rope_theta": "rope_base"}
    for name in built if absent else ("rope_theta", "rms_norm_eps", "max_sequence_length"):
        (folder / "config.json").write_text(json.dumps({key: config[key] for key in config.keys() - {name}}), "utf-8")
        if absent:
            assert read(folder, 1 << 16).build.keywords[built[name]] == absent[name]
            continue
        with pytest.raises(ValueError, match=rf"config\.json: {name} = None must be a number"):
            read(folder)


def test_positions_are_stretched_as_torchtune_does_or_by_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    stretched = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    (tmp_path / "m").mkdir()

    def read(**rope: Any) -> Any:
        config = {**CONFIGS["llama"], "rope_scaling": {"rope_type": "llama3", "factor": 8.0, **rope}}
        (tmp_path / "m" / "config.json").write_text(json.dumps(config), "utf-8")
        return large.read_autoregressive(tmp_path / "m")

    assert read(**stretched).build.keywords["scale_factor"] == 8.0
    for name, value in stretched.items():
        assert isinstance(read(**{**stretched, name: 2 * value}), pretrained.Pretrained), name


FIXED = {
    **dict.fromkeys(("is_encoder_decoder", "is_decoder", "add_cross_attention", "use_bidirectional_attention"), False),
    "position_embedding_type": "absolute",
}
OF_FAMILIES = {
    "gemma": {"hidden_activation": "gelu_pytorch_tanh"},
    "gemma2": {"hidden_act": "gelu_pytorch_tanh"},
    "sdar": {"use_sliding_window": False},
    "Fast_dLLM_Qwen": {"use_sliding_window": False},
    "llada2_moe": {
        **{"use_bias": False, "use_qkv_bias": False, "use_sliding_window": False, "tie_word_embeddings": False},
        **{"use_qk_norm": True, "use_rmsnorm": True, "using_split_qkv_in_self_attention": False, "hidden_act": "silu"},
        **{"norm_head": False, "norm_softmax": False, "norm_topk_prob": True, "score_function": "sigmoid"},
        **{"router_dtype": "fp32", "moe_router_enable_expert_bias": True},
    },
}


@pytest.mark.parametrize("family", [*pretrained.CAUSAL, *pretrained.MASKED, *pretrained.BLOCKS])
def test_what_transformers_would_run_as_another_network_is_refused(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    known = {**pretrained.CAUSAL, **pretrained.MASKED, **pretrained.BLOCKS}[family]
    expected = {**FIXED, **OF_FAMILIES.get(family, {})}
    assert {**pretrained._FIXED, **known.fixed} == expected
    for name, value in expected.items():
        config = {"model_type": family, name: not value if isinstance(value, bool) else f"{value}x"}
        with pytest.raises(ValueError, match=rf"config\.json: {name} = .* must be {value!r}$"):
            pretrained._read(tmp_path, config, known, lambda model: model)
