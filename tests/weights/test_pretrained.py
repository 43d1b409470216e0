"""Folders as `transformers` writes them, beside `transformers` itself: logits, log-probabilities, caches, refusals."""

import json
import sys
from pathlib import Path
from typing import Any

import hub_folders as hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from edlm import contracts
from edlm.models import autoregressive, denoisers
from edlm.nn import decoders
from edlm.nn.pretrained import PretrainedNetwork
from edlm.samplers import autoregressive as sampling
from edlm.weights import large, pretrained, shards
from edlm.weights.masked import named

transformers = pytest.importorskip("transformers", reason="needs pip install 'edlm-torch[families]'")
ROPED = [kind for kind in hub.CAUSAL if kind != "gpt2"]
TOLERANCE = 1e-4


def difference(network: Any, model: Any, tokens: torch.Tensor) -> float:
    """The largest difference of log-probabilities at any position, of any token that both can draw."""
    with torch.no_grad():
        found = network.head(network(tokens)).log_softmax(-1)
        expected = model(tokens).logits
        if network.head.out_features and getattr(network.head, "barred", None) is not None:
            expected = expected.masked_fill(network.head.barred, -torch.inf)
        expected = expected.log_softmax(-1)
    assert bool((found == -torch.inf).eq(expected == -torch.inf).all())
    return float((found - expected).nan_to_num(0.0).abs().max())


def framed(model: Any, tokens: torch.Tensor) -> Any:
    """The model of a masked kind on a text between [CLS] and [SEP], as a function of the text."""

    class Framed:
        def __call__(self, text: torch.Tensor) -> Any:
            edges = [torch.full_like(text[:, :1], id_) for id_ in (2, 3)]
            out = model(torch.cat([edges[0], text, edges[1]], dim=1))
            out.logits = out.logits[:, 1:-1]
            return out

    return Framed()


# ---- Parity


@pytest.mark.parametrize("kind", hub.CAUSAL)
def test_log_probabilities_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model = hub.model(kind, transformers)
    network = decoders.load(large.read_autoregressive(hub.save(model, tmp_path / "m")))
    assert difference(network, model, hub.tokens()) < TOLERANCE
    assert isinstance(network, contracts.Network)
    assert not network.training
    assert network.max_length == 32


@pytest.mark.parametrize("rope", hub.ROPES)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_long_context_positions_are_those_of_transformers(kind: str, rope: str, tmp_path: Path) -> None:
    model, tokens = hub.model(kind, transformers, hub.ROPES[rope]), hub.tokens()
    network = decoders.load(large.read_autoregressive(hub.save(model, tmp_path / "m")))
    assert difference(network, model, tokens) < TOLERANCE
    plain = hub.model(kind, transformers, {"rope_type": "default"})
    if rope != "dynamic":  # which changes nothing up to the length that its config says
        assert difference(network, plain, tokens) > 100 * TOLERANCE


def test_the_form_before_version_5_says_the_same(tmp_path: Path) -> None:
    for kind, section in (("llama", hub.ROPES["llama3"]), ("mistral", hub.ROPES["yarn"]), ("qwen2", {})):
        model = hub.model(kind, transformers, section or {"rope_type": "default"})
        folder = hub.save(model, tmp_path / kind)
        hub.change(folder, ("rope_parameters",), rope_theta=500.0, rope_scaling=section or None)
        assert difference(decoders.load(large.read_autoregressive(folder)), model, hub.tokens()) < TOLERANCE
    gemma = hub.model("gemma3_text", transformers)
    folder = hub.change(
        hub.save(gemma, tmp_path / "gemma"), ("rope_parameters",), rope_theta=1e6, rope_local_base_freq=1e4
    )
    assert difference(decoders.load(large.read_autoregressive(folder)), gemma, hub.tokens()) < TOLERANCE


@pytest.mark.parametrize("base", [8192, 16])
def test_llama_3s_own_positions_are_torchtunes_and_others_are_those_of_transformers(base: int, tmp_path: Path) -> None:
    section = {**hub.ROPES["llama3"], "original_max_position_embeddings": base}
    model = hub.model("llama", transformers, section, max_position_embeddings=64)
    network = decoders.load(large.read_autoregressive(hub.save(model, tmp_path / "m")))
    assert isinstance(network, decoders.DecoderNetwork if base == 8192 else PretrainedNetwork)
    assert difference(network, model, hub.tokens()) < TOLERANCE


@pytest.mark.parametrize("kind", hub.MASKED)
def test_a_masked_language_model_reads_each_text_between_its_two_tokens(kind: str, tmp_path: Path) -> None:
    model, tokens = hub.model(kind, transformers), hub.tokens(lowest=4)
    network = large.load_diffusion(hub.save(model, tmp_path / "m"))
    assert difference(network, framed(model, tokens), tokens) < TOLERANCE
    assert network.max_length == (29 if kind == "roberta" else 30)
    longest = hub.tokens(1, network.max_length)
    assert difference(network, framed(model, longest), longest) < TOLERANCE
    logits = network.head(network(tokens))
    never = [id_ for id_ in range(hub.V) if id_ < 7 or id_ >= 7 + len(hub.WORDS)]
    assert (logits == -torch.inf).all((0, 1)).nonzero().flatten().tolist() == never


def test_sdar_sees_its_block_and_all_before_it(tmp_path: Path) -> None:
    """Beside the body's own attention with that mask added to its scores."""
    model, tokens = hub.model("qwen3", transformers), hub.tokens()
    folder = hub.change(hub.save(model, tmp_path / "m"), model_type="sdar", block_size=4, mask_token_id=9)
    hub.change(folder, architectures=["SDARForCausalLM"], auto_map={"AutoModel": "modeling_sdar.SDARModel"})
    network = large.load_diffusion(folder)
    block = torch.arange(hub.LENGTH) // 4
    scores = torch.zeros(hub.LENGTH, hub.LENGTH).masked_fill(block[:, None] < block[None], -torch.inf)
    with torch.no_grad():
        expected = model(tokens, attention_mask=scores.expand(len(tokens), 1, -1, -1)).logits
        found = network.head(network(tokens))
        assert float((found - expected).abs().max()) < TOLERANCE
        changed = tokens.clone()
        changed[:, 8] = 5
        seen = (network(changed) - network(tokens)).abs().amax((0, 2)) > 1e-6
    assert seen.tolist() == [False] * 8 + [True] * 16


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_a_causal_body_is_made_to_look_both_ways(kind: str, tmp_path: Path) -> None:
    """As far as its windows reach: five tokens on either side of Mistral; of Gemma's layers some see all."""
    folder, tokens = hub.save(hub.model(kind, transformers), tmp_path / "m"), hub.tokens(1)
    config = json.loads((folder / "config.json").read_text())
    network = pretrained.causal(folder, config, 64, both_ways=True).load()
    with torch.no_grad():
        changed = tokens.clone()
        changed[:, -1] = 5
        seen = (network(changed) - network(tokens)).abs().amax((0, 2)) > 1e-6
    reach = 2 * 5 if kind == "mistral" else hub.LENGTH - 1  # of two layers
    assert seen.tolist() == [i >= hub.LENGTH - 1 - reach for i in range(hub.LENGTH)]


# ---- The laws of a network


@pytest.mark.parametrize("kind", ["gemma2", "mistral", "bert", "modernbert"])
def test_rows_positions_and_parts_are_those_of_the_whole(kind: str, tmp_path: Path) -> None:
    folder, tokens = hub.save(hub.model(kind, transformers), tmp_path / "m"), hub.tokens(5)
    masked = kind in hub.MASKED
    network = large.load_diffusion(folder) if masked else decoders.load(large.read_autoregressive(folder))
    positions = torch.tensor([0, 30, 7, 119])
    with torch.no_grad():
        whole = network(tokens)
        assert torch.allclose(network(tokens, None, positions), whole.flatten(0, 1)[positions], atol=1e-5)
        network.rows_at_once = 2
        assert torch.allclose(network(tokens), whole, atol=1e-5)
        columns = network.head(whole, slice(3, 11))
        assert torch.allclose(columns, network.head(whole)[..., 3:11], atol=1e-5)


@pytest.mark.parametrize("kind", ["gemma2", "bert"])
def test_a_heads_log_probabilities_have_the_gradients_of_its_logits(kind: str, tmp_path: Path) -> None:
    folder = hub.save(hub.model(kind, transformers), tmp_path / "m")
    masked = kind in hub.MASKED
    network = large.load_diffusion(folder) if masked else decoders.load(large.read_autoregressive(folder))
    hidden = torch.randn(6, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tokens, weights = torch.tensor([7, 8, 9, 10, 11, 12]), torch.arange(1.0, 7.0)
    logits = network.head(hidden).index_fill(-1, torch.tensor([4]), -torch.inf)
    expected = logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    (wanted,) = torch.autograd.grad((weights * expected).sum(), hidden)
    found = network.head.log_prob(hidden, tokens, 4, weights)
    (gradient,) = torch.autograd.grad((weights * found).sum(), hidden)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(gradient, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text", "gpt2", "mistral"])
def test_texts_drawn_with_a_cache_have_the_log_probabilities_of_whole_texts(kind: str, tmp_path: Path) -> None:
    """Past the window of Gemma and Mistral; a denoiser's mask is no token of the model."""
    folder = hub.save(hub.model(kind, transformers, hub.ROPES["linear"] if kind == "llama" else None), tmp_path / "m")
    network = decoders.load(large.read_autoregressive(folder, vocab_size=hub.V + 1))
    drawn = sampling.sample(network, 3, 20, mask_id=hub.V, bos_id=1, seed=0)
    assert int(drawn.tokens.max()) < hub.V
    with torch.no_grad():
        expected = autoregressive.ar_log_prob(network, drawn.tokens, hub.V, 1)
    assert float((drawn.log_prob - expected).abs().max()) < TOLERANCE
    alone = sampling.sample(network, 1, 20, mask_id=hub.V, bos_id=1, seed=0, first_row=2)
    assert torch.equal(alone.tokens[0], drawn.tokens[2])


@pytest.mark.parametrize("kind", ["gemma2", "gpt2"])
def test_ids_that_the_model_does_not_know_are_impossible_and_read_as_no_token(kind: str, tmp_path: Path) -> None:
    folder, tokens = hub.save(hub.model(kind, transformers), tmp_path / "m"), hub.tokens(2)
    network = decoders.load(large.read_autoregressive(folder, vocab_size=hub.V + 3))
    with torch.no_grad():
        plain = decoders.load(large.read_autoregressive(folder))
        assert torch.allclose(network(tokens), plain(tokens), atol=1e-5)
        assert (network.head(network(tokens))[..., hub.V :] == -torch.inf).all()
        unknown, other = tokens.clone(), tokens.clone()
        unknown[:, 3], other[:, 3] = hub.V + 1, hub.V + 2
        assert torch.equal(network(unknown), network(other))
        for known in range(0, hub.V, 7):
            other[:, 3] = known
            assert not torch.allclose(network(unknown)[:, 3:], network(other)[:, 3:], atol=1e-3)


# ---- Weights as people have them


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_shards_buffers_and_a_head_that_is_its_embedding_again_are_read(kind: str, tmp_path: Path) -> None:
    model = hub.model(kind, transformers, tie_word_embeddings=True)
    folder = hub.save(model, tmp_path / "m", max_shard_size="12KB")
    files = shards.files(folder)
    assert len(files) > 2
    state = load_file(files[0])
    embedding = model.get_input_embeddings().weight.detach().clone()
    state |= {"lm_head.weight": embedding, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(state, files[0], {"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= {"lm_head.weight": files[0].name}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert difference(decoders.load(large.read_autoregressive(folder)), model, hub.tokens()) < TOLERANCE
    save_file({**state, "lm_head.weight": embedding + 1}, files[0], {"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight, and tie_word"):
        decoders.load(large.read_autoregressive(folder))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "bert"])
def test_one_bfloat16_weight_rounds_no_other(kind: str, tmp_path: Path) -> None:
    model = hub.model(kind, transformers)
    folder = hub.save(model, tmp_path / "m")
    (name,) = [each for each in model.state_dict() if each.endswith(("embed_tokens.weight", "word_embeddings.weight"))]
    state = load_file(folder / "model.safetensors")
    state[name] = state[name].bfloat16()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    hub.change(folder, dtype="bfloat16")
    network = large.load_diffusion(folder) if kind == "bert" else decoders.load(large.read_autoregressive(folder))
    held = {value.data_ptr(): value.detach() for value in network.parameters()}.values()
    assert {value.dtype for value in held} == {torch.float32}
    model.get_input_embeddings().weight.data = state[name].float()
    expected = {value.data_ptr(): value.detach() for value in model.parameters()}.values()
    assert sorted(float(v.double().abs().sum()) for v in held) == sorted(
        float(v.double().abs().sum()) for v in expected
    )


def test_names_of_an_older_bert_are_read_and_its_other_heads_left_aside(tmp_path: Path) -> None:
    """As bert-base-uncased has them: gamma and beta, a pooler, and the head for pairs of sentences."""
    model, tokens = hub.model("bert", transformers), hub.tokens()
    folder = hub.save(model, tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in state.items()
    }
    old |= {"bert.pooler.dense.weight": torch.ones(32, 32), "bert.pooler.dense.bias": torch.ones(32)}
    old |= {"cls.seq_relationship.weight": torch.ones(2, 32), "cls.seq_relationship.bias": torch.ones(2)}
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    assert difference(large.load_diffusion(folder), framed(model, tokens), tokens) < TOLERANCE


def test_gpt2_without_its_prefix_and_with_its_old_buffers_is_read(tmp_path: Path) -> None:
    model = hub.model("gpt2", transformers)
    folder = hub.save(model, tmp_path / "m")
    state = {k.removeprefix("transformer."): v for k, v in load_file(folder / "model.safetensors").items()}
    save_file({**state, "h.0.attn.bias": torch.ones(1, 1, 32, 32)}, folder / "model.safetensors", {"format": "pt"})
    assert difference(decoders.load(large.read_autoregressive(folder)), model, hub.tokens()) < TOLERANCE


# ---- Refusals


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("llama", {"qk_layernorm": True}, "not known, and may change the network: qk_layernorm = True"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}"),
        ("llama", {"auto_map": {"AutoModel": "own.Own"}}, "auto_map"),
        ("qwen2", {"use_mrope": True}, "use_mrope = True"),
        ("qwen3", {"num_experts": 8}, "num_experts = 8"),
        ("gpt2", {"alibi": True}, "alibi = True"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' must be 'abs"),
        ("bert", {"is_decoder": True}, "is_decoder = True must be False"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True must be False"),
        ("gemma2", {"hidden_act": "relu"}, "hidden_act = 'relu' must be 'gelu_pytorch_tanh'"),
        ("mistral", {"model_type": "mixtral"}, "model_type = 'mixtral' must be one of qwen2, llama, qwen3, mistral"),
        ("llama", {"model_type": "gemma3"}, "model_type = 'gemma3' must be one of"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type = 'longrope' must be one of default, lin"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "scale": 2}},
            "scale is not known of rope",
        ),
        ("llama", {"rope_parameters": {"rope_type": "linear", "type": "yarn"}}, "has two types, linear and yarn"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, None),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ("llama", {"rope_scaling": 3}, "rope_scaling = 3 must be a section"),
        ("llama", {"rope_theta": 7.0}, "rope_theta is given twice, as [7.0, 10000.0]"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 2}, "layer_types has 'chunked_attention', and may have full"),
        ("qwen3", {"num_hidden_layers": 10**7}, "num_hidden_layers = 10000000 must be at most 1000"),
        ("qwen3", {"hidden_size": 10**6}, "config.json describes"),
        ("qwen3", {"num_hidden_layers": 1, "layer_types": None}, "is not known"),
        ("qwen3", {"intermediate_size": 40}, "the weights are not those of its config.json"),
        ("qwen3", {"hidden_size": "wide"}, "config.json"),
        ("qwen3", {"model_type": "sdar", "mask_token_id": 9}, "block_size = None must be a whole number of at least 1"),
        ("qwen3", {"model_type": "sdar_moe"}, "model_type = 'sdar_moe' must be one of llada, Dream, sdar, Fast"),
        ("qwen3", {"model_type": "Fast_dLLM_Qwen3"}, "model_type = 'Fast_dLLM_Qwen3' must be one of llada, Dream"),
    ],
)
def test_what_is_unknown_is_refused_by_name(
    kind: str, changes: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    folder = hub.change(hub.save(hub.model(kind, transformers), tmp_path / "m"), **changes)
    diffusion = kind in hub.MASKED or str(changes.get("model_type")).startswith(("sdar", "llada", "Fast"))
    with pytest.raises(ValueError, match=r".") as error:
        large.load_diffusion(folder) if diffusion else decoders.load(large.read_autoregressive(folder))
    assert (said or "differ") in str(error.value)
    assert str(folder) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "bert"])
def test_a_weight_too_few_or_too_many_is_named(kind: str, tmp_path: Path) -> None:
    folder = hub.save(hub.model(kind, transformers), tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    gone = next(name for name in state if "layer" in name or ".h.1." in name)
    extra = {"model.layers.0.self_attn.extra.weight": torch.ones(9000)}
    for changed, said in (({**state, **extra}, r"extra\.weight is not known"), ({**state, **extra}, None)):
        if said is None:
            del changed[gone]
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=said or f"{gone} is missing") as error:
            large.load_diffusion(folder) if kind == "bert" else decoders.load(large.read_autoregressive(folder))
        assert len(str(error.value).splitlines()) == 1


def test_weights_of_another_type_or_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    folder = hub.save(hub.model("qwen3", transformers), tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    for value, said in ((torch.full((32,), torch.nan), "not finite"), (torch.ones(32).to(torch.int8), "holds I8")):
        save_file({**state, "model.norm.weight": value}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=rf"model\.norm\.weight.*{said}|{said}"):
            decoders.load(large.read_autoregressive(folder))


def test_a_tokenizer_that_names_no_mask_is_refused(tmp_path: Path) -> None:
    folder = hub.save(hub.model("bert", transformers), tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"cls_token": "[CLS]", "sep_token": "[SEP]"}))
    with pytest.raises(ValueError, match=r"name no mask_token of its tokenizer\.json"):
        large.load_diffusion(folder)
    hub.tokenizer(folder)
    hub.change(folder, vocab_size=9)
    with pytest.raises(ValueError, match="vocab_size = 9 must be the network's number of ids"):
        large.load_vocabulary(folder)


def test_a_tokenizer_whose_text_becomes_the_mask_is_refused(tmp_path: Path) -> None:
    """One that knows [MASK] as a word of many."""
    folder = hub.save(hub.model("bert", transformers), tmp_path / "m")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"], content["pre_tokenizer"] = [], {"type": "WhitespaceSplit"}
    content["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="text that spells the mask becomes the mask"):
        large.load_diffusion(folder)


def test_the_tokenizers_own_file_goes_before_the_map_of_special_tokens(tmp_path: Path) -> None:
    folder = hub.save(hub.model("bert", transformers), tmp_path / "m")
    (folder / "special_tokens_map.json").write_text(json.dumps({"mask_token": "cat", "bos_token": "dog"}))
    assert (named(folder)["mask"], named(folder)["bos"]) == ("[MASK]", "dog")


@pytest.mark.parametrize(("kind", "widths"), [("qwen3", (48, 64)), ("llama", (48, 32)), ("gpt2", (128, 32))])
def test_what_is_too_long_is_refused_and_widths_are_those_of_its_layers(
    kind: str, widths: tuple[int, int], tmp_path: Path
) -> None:
    folder = hub.save(hub.model(kind, transformers), tmp_path / "m")
    network = pretrained.causal(folder, json.loads((folder / "config.json").read_text()), 64).load()
    assert network.widths == widths
    with pytest.raises(ValueError, match="length = 33 must be at most 32"):
        network(hub.tokens(1, 33))


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.save(hub.model("qwen3", transformers), tmp_path / "m")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'edlm-torch\[families\]'"):
        large.read_autoregressive(folder)


def test_a_masked_model_is_no_autoregressive_one_and_a_causal_one_no_denoiser(tmp_path: Path) -> None:
    bert = hub.save(hub.model("bert", transformers), tmp_path / "bert")
    with pytest.raises(ValueError, match="model_type = 'bert' must be one of qwen2, llama"):
        large.read_autoregressive(bert)
    network = large.load_diffusion(bert)
    with pytest.raises(ValueError, match="looks ahead"):
        autoregressive.check_ar(network, 4, 1)
    assert denoisers.subs(network, 4).vocab_size == hub.V
