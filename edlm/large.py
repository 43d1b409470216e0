"""Large language models as networks: LLaDA-8B and Dream-7B as denoisers, any torchtune decoder as an energy's model.

The blocks are torchtune's, and this is the only module of the library that imports it, when a model is built. Weights
come from folders in Hugging Face's layout (`config.json`, `model.safetensors` or its shards with their index); nothing
in them is executed. LLaDA is a Llama and Dream a Qwen 2.5 whose attention looks both ways.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from edlm import checkpoints
from edlm.networks import Head
from edlm.vocabulary import Vocabulary

# Names of LLaDA's parameters as a Llama's: those above the blocks, and those of block i.
_LLADA = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
_LLADA_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "q_proj.weight": "self_attn.q_proj.weight",
    "k_proj.weight": "self_attn.k_proj.weight",
    "v_proj.weight": "self_attn.v_proj.weight",
    "attn_out.weight": "self_attn.o_proj.weight",
    "ff_norm.weight": "post_attention_layernorm.weight",
    "ff_proj.weight": "mlp.gate_proj.weight",
    "up_proj.weight": "mlp.up_proj.weight",
    "ff_out.weight": "mlp.down_proj.weight",
}
_DREAM_BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
# Settings that would make another network of the same names; absent ones have these values.
_LLADA_FIXED = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "weight_tying": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
}
_DREAM_FIXED = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "rope_scaling": None,
}


class DecoderNetwork(nn.Module):
    """A torchtune decoder as a `Network`: tokens (b, l) to hidden states (b, l, h), logits by `head` on request.

    `shifted`: position i reads the state of position i - 1, which is the one that predicts token i in a model made
    from an autoregressive one; position 0, which nothing predicts, keeps its own. `rows_at_once` bounds memory: rows
    are run that many at a time. Noise levels are not read: these models know none. The decoder's modules are taken
    over, its norms in float32.
    """

    def __init__(
        self, decoder: Any, max_length: int | None = None, shifted: bool = False, rows_at_once: int | None = None
    ) -> None:
        super().__init__()
        self.embedding, self.layers, self.norm = decoder.tok_embeddings, decoder.layers, decoder.norm
        for module in decoder.modules():
            if isinstance(getattr(module, "scale", None), nn.Parameter):
                module.float()  # norms compute in float32, and weights of another type would cost them their fast path
        self.head = _head(decoder)
        self.max_length = min(max_length or decoder.max_seq_len, decoder.max_seq_len)
        self.shifted = shifted
        self.rows_at_once = rows_at_once

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Run the blocks and the final norm. Raises ValueError for sequences longer than `max_length`."""
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"length = {tokens.shape[1]} must be at most {self.max_length}")
        parts = tokens.split(self.rows_at_once or len(tokens))
        hidden = torch.cat([self._run(part) for part in parts])
        if self.shifted:
            hidden = torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)
        return hidden if positions is None else hidden.flatten(0, 1)[positions]

    def _run(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def autoregressive(decoder: Any, max_length: int | None = None, rows_at_once: int | None = None) -> DecoderNetwork:
    """A causal torchtune decoder (Llama 3, Qwen 2, Gemma, Mistral, Phi 3) for `energies.residual_ar`, in eval mode.

    Raises ValueError if a layer looks ahead.
    """
    if not all(layer.attn.is_causal for layer in decoder.layers):
        raise ValueError("an autoregressive energy needs a decoder with causal attention in every layer")
    return DecoderNetwork(decoder, max_length, rows_at_once=rows_at_once).eval()


def with_weights(build: Callable[[], Any], weights: Mapping[str, Tensor]) -> Any:
    """A torchtune decoder that holds the given tensors themselves, in their precision, under torchtune's names.

    `build` makes it, on no device, since a copy would take gigabytes; rotary tables are float32 whatever the weights
    are. Raises ValueError for names and shapes that are not the decoder's.
    """
    with torch.device("meta"):
        decoder = build()
    try:
        decoder.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(_one_line(error)) from error
    for module in decoder.modules():
        if hasattr(module, "rope_init"):
            module.rope_init()  # tables that no file holds
    return decoder


def load_diffusion(folder: str | Path, max_length: int = 2048) -> DecoderNetwork:
    """LLaDA (`model_type` llada) or Dream (Dream) from its folder, bidirectional, in the precision of its weights.

    Raises ValueError naming the file, the setting or the parameter that is missing, unknown or unlike these models.
    """
    folder = Path(folder)
    config = checkpoints.read_json(folder / "config.json")
    families: dict[Any, Callable[..., DecoderNetwork]] = {"llada": _llada, "Dream": _dream}
    family = families.get(config.get("model_type"))
    if family is None:
        raise ValueError(f"{folder}: model_type = {config.get('model_type')!r} must be one of {', '.join(families)}")
    return family(folder, config, max_length)


def load_vocabulary(folder: str | Path, tokenizer: str | Path | None = None) -> Vocabulary:
    """The vocabulary of such a folder: its `tokenizer.json`, or another one, and the special ids of its config.

    Special tokens of the tokenizer from the mask's id on are left out, as no text stands for them; `size` counts the
    ids of the network. Dream's folder has no `tokenizer.json`: give that of Qwen 2.5, which Dream extends.
    Raises ValueError naming what is missing.
    """
    folder = Path(folder)
    config = checkpoints.read_json(folder / "config.json")
    mask_id = int(_need(folder, config, "mask_token_id"))
    content = checkpoints.read_json(Path(tokenizer or folder / "tokenizer.json"))
    content["added_tokens"] = [token for token in content.get("added_tokens", []) if token["id"] < mask_id]
    content.update(truncation=None, padding=None)  # a file may ask to cut and pad every text
    words = Tokenizer.from_str(json.dumps(content))
    words.encode_special_tokens = True  # text that spells a special token is text
    size = int(config.get("embedding_size") or _need(folder, config, "vocab_size"))
    specials = {f"{name}_id": config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return Vocabulary(words, size=size, mask_id=mask_id, **specials)


def _llada(folder: Path, config: Mapping[str, Any], max_length: int) -> DecoderNetwork:
    from torchtune.models import convert_weights, llama3

    _require_fixed(folder, config, _LLADA_FIXED)
    need = partial(_need, folder, config)
    layers, heads, width = int(need("n_layers")), int(need("n_heads")), int(need("d_model"))
    kv_heads = int(config.get("n_kv_heads") or heads)
    blocks = {
        f"model.transformer.blocks.{i}.{theirs}": f"model.layers.{i}.{llamas}"
        for i in range(layers)
        for theirs, llamas in _LLADA_BLOCK.items()
    }
    state = _named(folder, {**_LLADA, **blocks})

    def build() -> Any:
        return llama3.llama3(
            vocab_size=int(config.get("embedding_size") or need("vocab_size")),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            embed_dim=width,
            max_seq_len=min(max_length, int(need("max_sequence_length"))),
            rope_base=need("rope_theta"),
            intermediate_dim=int(need("mlp_hidden_size")),
            norm_eps=need("rms_norm_eps"),
        )

    decoder = _filled(folder, build, lambda: convert_weights.hf_to_tune(state, heads, kv_heads, width))
    return DecoderNetwork(_bidirectional(decoder)).eval()


def _dream(folder: Path, config: Mapping[str, Any], max_length: int) -> DecoderNetwork:
    from torchtune.models import qwen2
    from torchtune.models.qwen2._convert_weights import qwen2_hf_to_tune

    _require_fixed(folder, config, _DREAM_FIXED)
    need = partial(_need, folder, config)
    layers, heads, width = int(need("num_hidden_layers")), int(need("num_attention_heads")), int(need("hidden_size"))
    in_block = [*_LLADA_BLOCK.values(), *_DREAM_BIASES]
    names = [*_LLADA.values(), *(f"model.layers.{i}.{name}" for i in range(layers) for name in in_block)]
    state = _named(folder, {name: name for name in names})

    def build() -> Any:
        return qwen2.qwen2(
            vocab_size=int(need("vocab_size")),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=int(need("num_key_value_heads")),
            embed_dim=width,
            intermediate_dim=int(need("intermediate_size")),
            max_seq_len=min(max_length, int(need("max_position_embeddings"))),
            norm_eps=need("rms_norm_eps"),
            rope_base=need("rope_theta"),
        )

    decoder = _filled(folder, build, lambda: qwen2_hf_to_tune(state))
    return DecoderNetwork(_bidirectional(decoder), shifted=True).eval()


def _filled(folder: Path, build: Callable[[], Any], weights: Callable[[], Mapping[str, Tensor]]) -> Any:
    try:
        return with_weights(build, weights())
    except (RuntimeError, ValueError) as error:  # torchtune's own, of sizes that fit no decoder
        raise ValueError(f"{folder}: the weights are not those of its config.json ({_one_line(error)})") from error


def _bidirectional(decoder: Any) -> Any:
    """Let every position of a decoder that nobody else holds yet see all others."""
    for layer in decoder.layers:
        layer.attn.is_causal = False
    return decoder


def _head(decoder: Any) -> Head:
    """The vocabulary head over the decoder's own weight, also where that is its embedding."""
    own = decoder.output if isinstance(decoder.output, nn.Linear) else decoder.tok_embeddings
    head = Head(own.weight.shape[1], own.weight.shape[0], bias=False, device="meta")
    head.weight = own.weight
    return head


def _named(folder: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """All tensors of a folder by their new names, after a check of every old one."""
    tensors = _read_shards(folder)
    problems = [f"{name} is missing" for name in names.keys() - tensors.keys()]
    problems += [f"{name} is not known" for name in tensors.keys() - names.keys()]
    if problems:
        raise ValueError(f"{folder}: {'; '.join(sorted(problems)[:5])}")
    return {new: tensors[old] for old, new in names.items()}


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return checkpoints.read_safetensors(folder / "model.safetensors")
    where = checkpoints.read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(re.fullmatch(r"[\w.-]+\.safetensors", str(f)) for f in where.values()):
        raise ValueError(f"{index}: no weight_map from parameters to safetensors files beside it")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        tensors.update(checkpoints.read_safetensors(folder / name))
    return tensors


def _need(folder: Path, config: Mapping[str, Any], name: str) -> Any:
    if not isinstance(config.get(name), int | float):
        raise ValueError(f"{folder}/config.json: {name} = {config.get(name)!r} must be a number")
    return config[name]


def _require_fixed(folder: Path, config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise ValueError(f"{folder}/config.json: {name} = {config[name]!r} must be {value!r}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
