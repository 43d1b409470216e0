"""Checkpoints as other people's trainers write them: names, their order, objects beside the weights."""

import json
from collections import OrderedDict, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from edlm.nn.networks import EnergyNetwork, Transformer
from edlm.weights import exchange, foreign, published

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
