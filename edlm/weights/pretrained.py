"""Folders that `transformers` runs: causal models, masked language models, and block diffusion on a causal body.

No code of a folder is run. A key of its config that the model's class does not read is refused by name, and so is a
weight that the model does not have.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from edlm import limits
from edlm.nn import pretrained
from edlm.nn.decoders import EmbeddingWithMask
from edlm.nn.pretrained import PretrainedNetwork, VocabularyHead
from edlm.nn.pretrained_decoder import PretrainedDecoder
from edlm.process import finite
from edlm.weights import config_keys, llada2, masked, shards, tensors

EXTRA = "pip install 'edlm-torch[families]'"
_LAYERS = ("num_hidden_layers", "n_layer")
_ATTENTION = ("full_attention", "sliding_attention")
_FIXED: Mapping[str, Any] = {
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "use_bidirectional_attention": False,
    "position_embedding_type": "absolute",
}


class Blocks(NamedTuple):
    """A reading of block diffusion: the key of the size of its blocks, if any, and what a config may leave out.

    shifted: whether the state before a token predicts it.
    """

    key: str | None
    size: int | None = None
    mask_id: int | None = None
    shifted: bool = False


class Family(NamedTuple):
    """Names of a family's classes in `transformers`, and of its settings.

    reads: keys that its config takes beside its fields. fixed: keys of one value, which may be absent. transform: where
    a masked language model's head has what comes before its vocabulary. blocks: of block diffusion. translated: the
    module that puts its `settings` and `weights` under the names of the class, and gives them theirs back: `exported`.
    """

    config: str
    model: str
    reads: frozenset[str] = frozenset(config_keys.ROPE)
    fixed: Mapping[str, Any] = {}
    transform: Callable[[Any], nn.Module] | None = None
    blocks: Blocks | None = None
    translated: ModuleType | None = None


CAUSAL = {
    "qwen2": Family("Qwen2Config", "Qwen2ForCausalLM"),
    "llama": Family("LlamaConfig", "LlamaForCausalLM"),
    "qwen3": Family("Qwen3Config", "Qwen3ForCausalLM"),
    "mistral": Family("MistralConfig", "MistralForCausalLM"),
    "gemma": Family("GemmaConfig", "GemmaForCausalLM", fixed={"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2": Family("Gemma2Config", "Gemma2ForCausalLM", fixed={"hidden_act": "gelu_pytorch_tanh"}),
    "gemma3_text": Family(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        frozenset({*config_keys.ROPE, "rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"}),
    ),
    "gpt2": Family("GPT2Config", "GPT2LMHeadModel", frozenset()),
}
MASKED = {
    "bert": Family(
        "BertConfig", "BertForMaskedLM", frozenset(), transform=lambda model: model.cls.predictions.transform
    ),
    "roberta": Family(
        "RobertaConfig", "RobertaForMaskedLM", frozenset(), transform=lambda model: _OfRoberta(model.lm_head)
    ),
    "modernbert": Family(
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        frozenset(
            {*config_keys.ROPE, "global_rope_theta", "local_rope_theta", "global_attn_every_n_layers", "layer_norm_eps"}
        ),
        transform=lambda model: model.head,
    ),
}
# Blocks of so many tokens look both ways within themselves, and back: SDAR (Cheng et al. 2025, arXiv 2510.06303),
# Fast-dLLM v2 (Wu et al. 2025, arXiv 2509.26328) and LLaDA 2 (Bie et al. 2025, arXiv 2512.15745).
_NO_WINDOW = {"use_sliding_window": False}
BLOCKS = {
    "sdar": CAUSAL["qwen3"]._replace(
        reads=frozenset({*config_keys.ROPE, "auto_map", "block_size"}), fixed=_NO_WINDOW, blocks=Blocks("block_size")
    ),
    "Fast_dLLM_Qwen": CAUSAL["qwen2"]._replace(
        reads=frozenset({*config_keys.ROPE, "auto_map", "bd_size", "conplemenrary_mask"}),  # the latter in training
        fixed=_NO_WINDOW,
        blocks=Blocks("bd_size", size=32, mask_id=151665, shifted=True),
    ),
    "llada2_moe": Family(
        "Glm4MoeConfig",
        "Glm4MoeForCausalLM",
        reads=frozenset(),
        fixed=llada2.FIXED,
        blocks=Blocks(None, size=32, mask_id=156895),
        translated=llada2,
    ),
}


class Pretrained(NamedTuple):
    """A model before it takes any memory; `decoders.load` and `decoders.outline` make it, as they do a `Blueprint`.

    make: a model of `transformers` to the network. dtype: the widest type of its weights. notes: where the hashes of
    its files stand, if they have any.
    """

    folder: Path
    family: Family
    config: Any
    make: Callable[[Any], PretrainedNetwork]
    dtype: torch.dtype
    notes: Mapping[str, Any] | None = None

    @property
    def where(self) -> str:
        """Name the place that an error is about."""
        return str(self.folder)

    def outline(self, dtype: torch.dtype | None = None) -> PretrainedNetwork:
        """Build the network without its weights, on the meta device."""
        return self.make(_outline(self.folder, self.family, self.config, dtype or self.dtype))

    def load(self, dtype: torch.dtype | None = None) -> PretrainedNetwork:
        """Load the network, in eval mode. Raises ValueError naming what is missing, unknown or unlike the model."""
        if self.notes is not None:
            tensors.verify(self.folder, self.notes, *(file.name for file in shards.files(self.folder)))
        _require_fitting(self.folder, _outline(self.folder, self.family, self.config, torch.float32))
        cls, unlike = getattr(_transformers(self.where), self.family.model), f"{self.folder}: the weights are not those"
        options: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
        options |= {"output_loading_info": True, "dtype": dtype or self.dtype}
        options |= {"attn_implementation": self.config._attn_implementation}
        translated = self.family.translated
        state = None if translated is None else translated.weights(self.folder, self.config)
        try:
            model, found = cls.from_pretrained(
                self.folder if state is None else None, config=self.config, state_dict=state, **options
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ValueError(f"{unlike} of its config.json ({' '.join(str(error).split())[:300]})") from error
        problems = [f"{name} is missing" for name in found["missing_keys"] if not shards.BESIDE.search(name)]
        problems += [f"{name} is not known" for name in found["unexpected_keys"] if not shards.BESIDE.search(name)]
        problems += [f"{each[0]} has another shape" for each in found["mismatched_keys"]]
        if problems:
            raise ValueError(f"{self.folder}: {'; '.join(sorted(problems)[:5])}")
        buffers = {name: value for name, value in model.named_buffers() if value.is_floating_point()}
        finite.require_weights(dict(model.named_parameters()) | buffers, self.folder)
        return self.make(model.eval())

    def export(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name the weights of a network, as `adapters.merged` gives them, as the files of the family do.

        Those that no state or logit depends on are what they were.
        """
        model = _outline(self.folder, self.family, self.config, torch.float32)
        kept = {id(value): name for name, value in model.state_dict(keep_vars=True).items() if name not in _tied(model)}
        own = self.make(model).state_dict(keep_vars=True)
        own["output.weight"] = own["head.weight"]  # torchtune's name for it
        found = {kept[id(own[name])]: value for name, value in state.items()}
        if self.family.translated is not None:
            return self.family.translated.exported(found, self.config)
        return found | {name: shards.tensor(self.folder, name) for name in {*kept.values()} - found.keys()}


def causal(
    folder: Path,
    config: Mapping[str, Any],
    max_length: int,
    rows_at_once: int | None = None,
    vocab_size: int | None = None,
    both_ways: bool = False,
) -> Pretrained:
    """Read a causal model. both_ways: let every position see all others. vocab_size: of a denoiser, whose ids it has.

    Raises ValueError, naming the folder and the setting, for one that is unknown or unlike these models.
    """
    family = CAUSAL[str(config.get("model_type"))]

    def make(model: Any) -> PretrainedNetwork:
        body, own = model.base_model, model.config
        head = VocabularyHead(model.get_output_embeddings(), _softcap(own), width=vocab_size)
        body = pretrained.bidirectional(body) if both_ways else body
        longest = min(max_length, own.max_position_embeddings)
        return PretrainedDecoder(body, head, longest, rows_at_once=rows_at_once).eval()

    return _read(folder, config, family, make)


def adapted(
    folder: Path,
    config: Mapping[str, Any],
    max_length: int,
    shifted: bool,
    bos_id: int | None,
    mask_id: int | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Pretrained:
    """Read a causal model as a denoiser: attention both ways, a bos in front of a text where it has one.

    mask_id: that of a mask, which gets a row where the model has none; None: its row is there. notes: hold hashes.
    Raises ValueError as `causal` does.
    """
    family = CAUSAL[str(config.get("model_type"))]

    def make(model: Any) -> PretrainedNetwork:
        body, embedding = pretrained.bidirectional(model.base_model), model.get_input_embeddings()
        width = None if mask_id is None else max(mask_id + 1, embedding.num_embeddings)
        head = VocabularyHead(model.get_output_embeddings(), _softcap(model.config), width=width)
        if mask_id == embedding.num_embeddings:
            model.set_input_embeddings(EmbeddingWithMask(embedding))
        longest = model.config.max_position_embeddings - (0 if bos_id is None else 1)
        network = PretrainedDecoder(body, head, min(max_length, longest), shifted=shifted)
        network.bos_id = bos_id
        return network.eval()

    plain = {key: value for key, value in config.items() if key != "is_causal"}
    return _read(folder, plain, family, make)._replace(notes=notes)


def in_blocks(folder: Path, config: Mapping[str, Any], max_length: int) -> Pretrained:
    """Read block diffusion, whose position i sees its own block and all before it, and predicts token i, or i + 1.

    Raises ValueError as `causal` does, and for blocks of no size, or layers that do not see all that they may.
    """
    family = BLOCKS[str(config.get("model_type"))]
    blocks, where = family.blocks, f"{folder}/config.json"
    assert blocks is not None
    given = None if blocks.key is None else config.get(blocks.key)
    size: Any = blocks.size if given is None else given
    if type(size) is not int or size < 1:
        raise ValueError(f"{where}: {blocks.key} = {size!r} must be a whole number of at least 1")

    def make(model: Any) -> PretrainedNetwork:
        head, longest = VocabularyHead(model.get_output_embeddings()), model.config.max_position_embeddings
        body, shifted = pretrained.bidirectional(model.base_model), blocks.shifted
        return PretrainedNetwork(body, head, min(max_length, longest), shifted=shifted, block_size=size).eval()

    found = _read(folder, config, family, make)
    if set(config.get("layer_types") or ()) - {"full_attention"}:
        raise ValueError(f"{where}: layer_types = {config['layer_types']} must be full_attention alone, in blocks")
    return found


def mask_of(config: Mapping[str, Any]) -> int | None:
    """Find the id of the mask of a family whose config may leave it out; None for any other."""
    family = BLOCKS.get(str(config.get("model_type")))
    return None if family is None or family.blocks is None else family.blocks.mask_id


def masked_lm(folder: Path, config: Mapping[str, Any], max_length: int) -> Pretrained:
    """Read a masked language model as a denoiser's network: each text is read between the two tokens that frame it.

    Ids that no text holds are never drawn. Raises ValueError as `causal` does, and for a folder whose tokenizer does
    not name the mask and the frame.
    """
    family = MASKED[str(config.get("model_type"))]
    specials = masked.specials(folder, config)

    def make(model: Any) -> PretrainedNetwork:
        assert family.transform is not None
        own = model.config
        longest = own.max_position_embeddings - len(specials.frame)
        longest -= own.pad_token_id + 1 if own.model_type == "roberta" else 0  # its first positions are never read
        head = VocabularyHead(model.get_output_embeddings(), never=specials.never)
        transform, body = family.transform(model), model.base_model
        return PretrainedNetwork(body, head, min(max_length, longest), transform, specials.frame).eval()

    return _read(folder, config, family, make)


def _read(
    folder: Path, config: Mapping[str, Any], family: Family, make: Callable[[Any], PretrainedNetwork]
) -> Pretrained:
    transformers = _transformers(str(folder))
    cls = getattr(transformers, family.config)
    for key, value in {**_FIXED, **family.fixed}.items():
        if config.get(key, value) not in (value, None):
            raise ValueError(f"{folder}/config.json: {key} = {config[key]!r} must be {value!r}")
    if family.translated is None:
        fields = {field.name for field in dataclasses.fields(cls)}
        config_keys.require_known(folder, config, fields | family.reads | family.fixed.keys() | _FIXED.keys())
    else:
        config = family.translated.settings(folder, config)
    for name in ("rope_scaling", "rope_parameters"):
        if name in family.reads and isinstance(config.get(name), dict):
            config_keys.require_type(folder, name, config[name])
    if family.reads.issuperset(config_keys.ROPE) and not _nested(config):
        config_keys.rope(folder, config)
    _require_layers(folder, config)
    try:
        built = cls.from_dict({key: value for key, value in config.items() if key != "model_type"})
    except Exception as error:  # its own checks raise what they like
        raise ValueError(f"{folder}/config.json: {' '.join(str(error).split())[:300]}") from error
    # What caps the logits of attention is left out by `sdpa`.
    built._attn_implementation = "eager" if getattr(built, "attn_logit_softcapping", None) is not None else "sdpa"
    return Pretrained(folder, family, built, make, shards.widest(folder))


def _nested(config: Mapping[str, Any]) -> bool:
    given = config.get("rope_parameters")
    return isinstance(given, dict) and any(isinstance(each, dict) for each in given.values())


def _require_layers(folder: Path, config: Mapping[str, Any]) -> None:
    for name in _LAYERS:
        if type(config.get(name)) is int:
            limits.require(f"{folder}/config.json", name, config[name], limits.LAYERS)
    kinds = config.get("layer_types") or []
    unknown = [each for each in kinds if each not in _ATTENTION] if isinstance(kinds, list) else [kinds]
    if unknown:
        raise ValueError(f"{folder}/config.json: layer_types has {unknown[0]!r}, and may have {', '.join(_ATTENTION)}")


def _outline(folder: Path, family: Family, config: Any, dtype: torch.dtype) -> Any:
    """Build the model without its weights. Raises ValueError for sizes that make none."""
    cls = getattr(_transformers(family.model), family.model)
    try:
        with torch.device("meta"):
            model = cls(config).to(dtype)
    except Exception as error:  # sizes that do not fit each other end in whatever a module raises
        raise ValueError(
            f"{folder}/config.json makes no {family.model} ({' '.join(str(error).split())[:200]})"
        ) from error
    for name, module in model.named_modules():
        if name.endswith(".gate"):  # a router, which is float32 whatever the rest is
            module.float()
    return model


def _require_fitting(folder: Path, outline: Any) -> None:
    """Raise ValueError for a model of more weights than its files hold, before any memory is taken, and for a tied
    weight that is there twice and differs.
    """
    shapes = shards.shapes(folder)
    tied = _tied(outline)
    held = sum(torch.Size(shape).numel() for shape in shapes.values())
    asked = sum(each.numel() for name, each in outline.named_parameters() if name not in tied)
    if asked > held:
        raise ValueError(f"{folder}: config.json describes {asked} weights, and the files hold {held}")
    for pair in tied.items():
        one, other = (_found(outline, name, shapes) for name in pair)
        if one is not None and other is not None:
            shards.require_same(folder, one, shards.tensor(folder, one), other, shards.tensor(folder, other))


def _tied(outline: Any) -> Mapping[str, str]:
    """Name the weights that are another one again, and that one."""
    return (outline._tied_weights_keys or {}) if outline.config.tie_word_embeddings else {}


def _found(outline: Any, name: str, shapes: Mapping[str, Any]) -> str | None:
    """Find a parameter in the files, with the body's name in front or without."""
    return next((each for each in (name, name.removeprefix(f"{outline.base_model_prefix}.")) if each in shapes), None)


def _softcap(config: Any) -> float | None:
    found = getattr(config, "final_logit_softcapping", None)
    return None if found is None else float(found)


class _OfRoberta(nn.Module):
    """The part of RoBERTa's head before its vocabulary."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.dense, self.norm = head.dense, head.layer_norm

    def forward(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.norm(nn.functional.gelu(self.dense(hidden)))
        return normed


def _transformers(where: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{where}: `transformers` runs this model: {EXTRA}") from error
    return transformers
