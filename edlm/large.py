"""Large language models as networks: LLaDA-8B and Dream-7B as denoisers, any torchtune decoder as an energy's model.

The blocks are torchtune's, and this is the only module of the library that imports it, when a model is built. Weights
come from folders in Hugging Face's layout (`config.json`, `model.safetensors` or its shards with their index); nothing
in them is executed. LLaDA is a Llama and Dream a Qwen 2.5 whose attention looks both ways. A folder is read into a
`Blueprint` first, which takes no memory: `load` fills it, `outline` says what it would be.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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
_QWEN_BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
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
_QWEN_FIXED = {"hidden_act": "silu", "use_sliding_window": False, "rope_scaling": None}
_DREAM_FIXED = {**_QWEN_FIXED, "tie_word_embeddings": False}
_LLAMA_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
# Llama 3.1's stretched rotary positions, but for their factor: the ones that torchtune knows.
_LLAMA_ROTARY = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class DecoderNetwork(nn.Module):
    """A torchtune decoder as a `Network`: tokens (b, l) to hidden states (b, l, h), logits by `head` on request.

    `shifted`: position i reads the state of position i - 1, which is the one that predicts token i in a model made
    from an autoregressive one; position 0, which nothing predicts, keeps its own. `rows_at_once` bounds memory: rows
    are run that many at a time. `vocab_size`: ids from the decoder's own number up to it have probability zero. Noise
    levels are not read: these models know none. The decoder's modules are taken over, its norms in float32.
    """

    def __init__(
        self,
        decoder: Any,
        max_length: int | None = None,
        shifted: bool = False,
        rows_at_once: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        super().__init__()
        self.embedding, self.layers, self.norm = decoder.tok_embeddings, decoder.layers, decoder.norm
        for module in decoder.modules():
            if isinstance(getattr(module, "scale", None), nn.Parameter):
                module.float()  # norms compute in float32, and weights of another type would cost them their fast path
        self.head = _head(decoder, vocab_size)
        self.max_length = min(max_length or decoder.max_seq_len, decoder.max_seq_len)
        self.shifted = shifted
        self.rows_at_once = rows_at_once

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Run the blocks and the final norm. Raises ValueError for sequences longer than `max_length`."""
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"length = {tokens.shape[1]} must be at most {self.max_length}")
        parts = [tokens] if self.rows_at_once is None else tokens.split(self.rows_at_once)
        hidden = torch.cat([self._run(part) for part in parts])
        if self.shifted:
            hidden = torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)
        return hidden if positions is None else hidden.flatten(0, 1)[positions]

    def _run(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens.clamp(max=self.embedding.num_embeddings - 1))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Blueprint(NamedTuple):
    """A model before it takes any memory: how its decoder is built, what fills it, and the network made of it.

    weights: reads them, under torchtune's names; where: what an error names; dtype: that of the weights, as the folder
    says, for an outline.
    """

    build: Callable[[], Any]
    weights: Callable[[], Mapping[str, Tensor]]
    network: Callable[[Any], DecoderNetwork]
    where: str
    dtype: torch.dtype = torch.float32


def load(blueprint: Blueprint, dtype: torch.dtype | None = None) -> DecoderNetwork:
    """Build the network and fill it, in the precision of its files or in another, norms in float32.

    Raises ValueError naming what is missing, unknown or unlike the model.
    """
    unlike = f"{blueprint.where}: the weights are not those of its config.json"
    try:
        weights = blueprint.weights()
    except RuntimeError as error:  # torchtune's own, of sizes that fit no decoder
        raise ValueError(f"{unlike} ({_one_line(error)})") from error
    if dtype is not None:
        weights = {name: value.to(dtype) for name, value in weights.items()}
    try:
        decoder = with_weights(blueprint.build, weights)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{unlike} ({_one_line(error)})") from error
    return blueprint.network(decoder)


def outline(blueprint: Blueprint, dtype: torch.dtype | None = None) -> DecoderNetwork:
    """The network without its weights, on the meta device: it takes no memory and serves `memory.memory_plan`."""
    with torch.device("meta"):
        return blueprint.network(blueprint.build().to(dtype or blueprint.dtype))


def autoregressive(
    decoder: Any, max_length: int | None = None, rows_at_once: int | None = None, vocab_size: int | None = None
) -> DecoderNetwork:
    """A causal torchtune decoder (Llama 3, Qwen 2, Gemma, Mistral, Phi 3) for `energies.residual_ar`, in eval mode.

    vocab_size: that of the denoiser, where it is larger; ids that the decoder does not know are impossible.
    Raises ValueError if a layer looks ahead.
    """
    if not all(layer.attn.is_causal for layer in decoder.layers):
        raise ValueError("an autoregressive energy needs a decoder with causal attention in every layer")
    return DecoderNetwork(decoder, max_length, rows_at_once=rows_at_once, vocab_size=vocab_size).eval()


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
    """LLaDA or Dream from its folder, in the precision of its weights: `load(read_diffusion(folder, max_length))`."""
    return load(read_diffusion(folder, max_length))


def read_diffusion(folder: str | Path, max_length: int = 2048) -> Blueprint:
    """LLaDA (`model_type` llada) or Dream (Dream) as its `config.json` has it, bidirectional.

    Raises ValueError naming the file or the setting that is missing, unknown or unlike these models.
    """
    return _read(Path(folder), {"llada": _llada, "Dream": _dream}, max_length)


def read_autoregressive(
    folder: str | Path, max_length: int = 2048, rows_at_once: int | None = None, vocab_size: int | None = None
) -> Blueprint:
    """Qwen 2 and 2.5 (`model_type` qwen2) or Llama 2 to 3.2 (llama) as its `config.json` has it, for `residual_ar`.

    The other arguments are those of `autoregressive`. Raises ValueError as `read_diffusion` does.
    """
    network = partial(autoregressive, rows_at_once=rows_at_once, vocab_size=vocab_size)
    families = {"qwen2": partial(_qwen, fixed=_QWEN_FIXED, network=network), "llama": partial(_llama, network=network)}
    return _read(Path(folder), families, max_length)


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


def require_same_tokens(vocabulary: Vocabulary, folder: str | Path) -> None:
    """Raise ValueError if the `tokenizer.json` of a folder, where there is one, gives text other ids than ours.

    Special tokens are not compared: Dream has two that Qwen 2.5 has not.
    """
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        return
    ours = json.loads(vocabulary.tokenizer.to_str())["model"]
    theirs = checkpoints.read_json(file).get("model")
    if not isinstance(theirs, dict) or _words_and_merges(ours) != _words_and_merges(theirs):
        raise ValueError(f"{file}: another tokenizer than the denoiser's, so a token means another text to each")


def _words_and_merges(model: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """What decides a text's ids. Merges are pairs; older files have them as texts with a space between."""
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges") or []]
    return model.get("vocab"), merges


def _read(folder: Path, families: Mapping[str, Callable[..., Blueprint]], max_length: int) -> Blueprint:
    config = checkpoints.read_json(folder / "config.json")
    family = families.get(str(config.get("model_type")))
    if family is None:
        raise ValueError(f"{folder}: model_type = {config.get('model_type')!r} must be one of {', '.join(families)}")
    return family(folder, config, max_length)._replace(where=str(folder), dtype=dtype_of(folder))


def dtype_of(folder: str | Path) -> torch.dtype:
    """The precision of a folder's weights by its `config.json`, under either name; float32 if it does not say."""
    file = Path(folder) / "config.json"
    config = checkpoints.read_json(file) if file.is_file() else {}
    found = getattr(torch, str(config.get("torch_dtype") or config.get("dtype")), None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _llada(folder: Path, config: Mapping[str, Any], max_length: int) -> Blueprint:
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
    build = partial(
        llama3.llama3,
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

    def weights() -> Mapping[str, Tensor]:
        return convert_weights.hf_to_tune(_named(folder, {**_LLADA, **blocks}), heads, kv_heads, width)

    return Blueprint(build, weights, lambda decoder: DecoderNetwork(_bidirectional(decoder)).eval(), "")


def _dream(folder: Path, config: Mapping[str, Any], max_length: int) -> Blueprint:
    def network(decoder: Any) -> DecoderNetwork:
        return DecoderNetwork(_bidirectional(decoder), shifted=True).eval()

    return _qwen(folder, config, max_length, _DREAM_FIXED, network)


def _qwen(
    folder: Path,
    config: Mapping[str, Any],
    max_length: int,
    fixed: Mapping[str, Any],
    network: Callable[[Any], DecoderNetwork],
) -> Blueprint:
    from torchtune.models import qwen2
    from torchtune.models.qwen2._convert_weights import qwen2_hf_to_tune

    _require_fixed(folder, config, fixed)
    tied = bool(config.get("tie_word_embeddings", False))
    build = partial(qwen2.qwen2, **_sizes(folder, config, max_length), tie_word_embeddings=tied)
    names = _llama_names(config, tied, _QWEN_BIASES)
    return Blueprint(build, lambda: qwen2_hf_to_tune(_named(folder, names)), network, "")


def _llama(
    folder: Path, config: Mapping[str, Any], max_length: int, network: Callable[[Any], DecoderNetwork]
) -> Blueprint:
    from torchtune.models import convert_weights, llama3, llama3_2

    _require_fixed(folder, config, _LLAMA_FIXED)
    sizes = _sizes(folder, config, max_length)
    heads, kv_heads, width = sizes["num_heads"], sizes["num_kv_heads"], sizes["embed_dim"]
    tied = bool(config.get("tie_word_embeddings", False))
    stretched = config.get("rope_scaling")
    if stretched is None and not tied:
        build = partial(llama3.llama3, **sizes)
    else:
        factor = 1.0 if stretched is None else _rotary_factor(folder, stretched)
        build = partial(llama3_2.llama3_2, **sizes, scale_factor=factor, tie_word_embeddings=tied)
    names = _llama_names(config, tied)
    return Blueprint(
        build, lambda: convert_weights.hf_to_tune(_named(folder, names), heads, kv_heads, width), network, ""
    )


def _rotary_factor(folder: Path, stretched: Any) -> float:
    """The factor of Llama 3.1's rotary positions; 1 leaves them as they are."""
    kind = isinstance(stretched, dict) and stretched.get("rope_type", stretched.get("type"))
    if kind != "llama3" or any(stretched.get(name) != value for name, value in _LLAMA_ROTARY.items()):
        known = ", ".join(f"{name} = {value:g}" for name, value in _LLAMA_ROTARY.items())
        raise ValueError(f"{folder}/config.json: rope_scaling = {stretched!r} must be of type llama3 with {known}")
    return float(_need(folder, stretched, "factor"))


def _sizes(folder: Path, config: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """Arguments that torchtune's builders share, from a config in Hugging Face's names."""
    need = partial(_need, folder, config)
    heads, width = int(need("num_attention_heads")), int(need("hidden_size"))
    _require_fixed(
        folder, {**config, "head_dim": config.get("head_dim") or width // heads}, {"head_dim": width // heads}
    )
    return {
        "vocab_size": int(need("vocab_size")),
        "num_layers": int(need("num_hidden_layers")),
        "num_heads": heads,
        "num_kv_heads": int(config.get("num_key_value_heads") or heads),
        "embed_dim": width,
        "intermediate_dim": int(need("intermediate_size")),
        "max_seq_len": min(max_length, int(need("max_position_embeddings"))),
        "norm_eps": need("rms_norm_eps"),
        "rope_base": need("rope_theta"),
    }


def _llama_names(config: Mapping[str, Any], tied: bool, biases: tuple[str, ...] = ()) -> dict[str, str]:
    """Every parameter of a folder in Hugging Face's names for a Llama, which stay as they are."""
    above = [name for name in _LLADA.values() if not (tied and name == "lm_head.weight")]
    in_block = [*_LLADA_BLOCK.values(), *biases]
    blocks = [f"model.layers.{i}.{name}" for i in range(int(config["num_hidden_layers"])) for name in in_block]
    return {name: name for name in (*above, *blocks)}


def _bidirectional(decoder: Any) -> Any:
    """Let every position of a decoder that nobody else holds yet see all others."""
    for layer in decoder.layers:
        layer.attn.is_causal = False
    return decoder


class _PaddedHead(Head):
    """A head of `out_features` columns whose weight has fewer rows: columns beyond them are -inf."""

    def forward(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        columns = columns or slice(0, self.out_features)
        logits = F.linear(hidden, self.weight[columns])
        return F.pad(logits, (0, columns.stop - columns.start - logits.shape[-1]), value=-torch.inf)


def _head(decoder: Any, vocab_size: int | None) -> Head:
    """The vocabulary head over the decoder's own weight, also where that is its embedding, as wide as is asked."""
    weight = (decoder.output if isinstance(decoder.output, nn.Linear) else decoder.tok_embeddings).weight
    known, width = weight.shape
    wanted = max(known, vocab_size or 0)
    head = (Head if wanted == known else _PaddedHead)(width, wanted, bias=False, device="meta")
    head.weight = weight
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
