"""What is refused, on folders in the form in which the library that knows it writes them: nothing edited by hand."""

import json
from pathlib import Path
from typing import Any

import hub_folders as hub
import pytest
import torch

from edlm.nn import decoders
from edlm.weights import large

transformers = pytest.importorskip("transformers", reason="needs pip install 'edlm-torch[families]'")

CAUSAL, WITHOUT_GROUPS = hub.MODELS["llama"][2], hub.MODELS["bert"][2]
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 16}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
GEMMA_3 = {"text_config": {**CAUSAL, "head_dim": 16}, "mm_tokens_per_image": 4}
GEMMA_3["vision_config"] = {**VISION, "image_size": 16, "patch_size": 8}
SMALL = {"vocab_size": hub.V, "hidden_size": 32}
ROPE = {"rope_theta": 500.0, "original_max_position_embeddings": 16}
LONG = {**ROPE, "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
T5 = {"vocab_size": hub.V, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}

# Class of the config, class of the model, settings; of families that nothing here is compared with.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**CAUSAL, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "qwen2_moe": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM", {**CAUSAL, **SHARED}),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**CAUSAL, **EXPERTS}),
    "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM", {**CAUSAL, **SHARED, "head_dim": 16}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {**CAUSAL, "pad_token_id": 0}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", CAUSAL),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {**CAUSAL, "pad_token_id": 0}),
    "gemma3": ("Gemma3Config", "Gemma3ForConditionalGeneration", GEMMA_3),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", WITHOUT_GROUPS),
    "bloom": ("BloomConfig", "BloomForCausalLM", {**SMALL, "n_layer": 2, "n_head": 4}),
    "mamba": ("MambaConfig", "MambaForCausalLM", {**SMALL, "num_hidden_layers": 2}),
    "distilbert": ("DistilBertConfig", "DistilBertForMaskedLM", {"vocab_size": hub.V, "dim": 32, "n_heads": 4}),
    "electra": ("ElectraConfig", "ElectraForMaskedLM", {**WITHOUT_GROUPS, "embedding_size": 32}),
    "albert": ("AlbertConfig", "AlbertForMaskedLM", {**WITHOUT_GROUPS, "embedding_size": 16}),
    "deberta-v2": ("DebertaV2Config", "DebertaV2ForMaskedLM", WITHOUT_GROUPS),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaForMaskedLM", WITHOUT_GROUPS),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
}
# The same of known families, and what the refusal says.
FORMS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "longrope": (
        *("LlamaConfig", "LlamaForCausalLM", {**CAUSAL, "rope_parameters": {**LONG, "factor": 2.0}}),
        "rope_type = 'longrope' must be one of default, linear, dynamic, yarn, llama3",
    ),
    "a part of each head turned": (
        *("LlamaConfig", "LlamaForCausalLM"),
        {**CAUSAL, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor is not known of rope_type = 'default'",
    ),
    "Gemma 3 both ways": (
        *(
            "Gemma3TextConfig",
            "Gemma3ForCausalLM",
            {**hub.MODELS["gemma3_text"][2], "use_bidirectional_attention": True},
        ),
        "use_bidirectional_attention = True must be False",
    ),
    "BERT as a decoder": (
        *("BertConfig", "BertLMHeadModel", {**WITHOUT_GROUPS, "is_decoder": True}),
        "is_decoder = True must be False",
    ),
    "BERT without a vocabulary": ("BertConfig", "BertModel", WITHOUT_GROUPS, "config.json describes"),
    "a classifier of texts by BERT": (
        "BertConfig",
        "BertForSequenceClassification",
        WITHOUT_GROUPS,
        "config.json describes",
    ),
    "Llama without a vocabulary": ("LlamaConfig", "LlamaModel", CAUSAL, "is not known"),
    "a classifier of texts by Llama": (
        *("LlamaConfig", "LlamaForSequenceClassification", {**CAUSAL, "pad_token_id": 0}),
        "score.weight is not known",
    ),
}


def written(folder: Path, config: str, model: str, settings: dict[str, Any]) -> Path:
    """A folder of random weights, by the library."""
    torch.manual_seed(0)
    found = getattr(transformers, model)(getattr(transformers, config)(**settings))
    found.save_pretrained(folder)
    if config == "BertConfig":
        hub.tokenizer(folder)
    return folder


def one_line(error: pytest.ExceptionInfo[ValueError], folder: Path) -> str:
    said = str(error.value)
    assert len(said.splitlines()) == 1
    assert str(folder) in said
    return said


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_is_not_known_is_refused_by_its_name(family: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "m", *FAMILIES[family])
    for read in (large.read_autoregressive, large.read_diffusion):
        with pytest.raises(ValueError, match=f"model_type = '{family}' must be one of ") as error:
            read(folder)
        one_line(error, folder)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_a_known_family_is_refused_by_what_it_has(form: str, tmp_path: Path) -> None:
    *parts, expected = FORMS[form]
    folder = written(tmp_path / "m", *parts)
    with pytest.raises(ValueError, match=r".") as error:
        large.load_diffusion(folder) if parts[0] == "BertConfig" else decoders.load(large.read_autoregressive(folder))
    assert expected in one_line(error, folder)


def test_quantised_weights_are_refused_by_the_section_that_names_them(tmp_path: Path) -> None:
    found = hub.model("qwen3", transformers)
    found.config.quantization_config = transformers.GPTQConfig(bits=4).to_dict()
    folder = hub.save(found, tmp_path / "m")
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["bits"] == 4
    with pytest.raises(ValueError, match="quantization_config") as error:
        large.read_autoregressive(folder)
    one_line(error, folder)


def test_a_pickle_of_weights_is_not_read(tmp_path: Path) -> None:
    model = hub.model("qwen3", transformers)
    folder = hub.save(model, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.safetensors") as error:
        decoders.load(large.read_autoregressive(folder))
    one_line(error, folder)


def test_biases_in_all_layers_are_read_and_not_refused(tmp_path: Path) -> None:
    """So what is refused above is refused for its own reason."""
    model = hub.model("llama", transformers, attention_bias=True, mlp_bias=True)
    network, tokens = decoders.load(large.read_autoregressive(hub.save(model, tmp_path / "m"))), hub.tokens()
    with torch.no_grad():
        found, expected = network.head(network(tokens)).log_softmax(-1), model(tokens).logits.log_softmax(-1)
    assert float((found - expected).abs().max()) < 1e-4
