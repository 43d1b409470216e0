"""Folders of AR models: plain torch's probabilities, ids that only the denoiser knows, positions, tokenizers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from large_folders import BOS, FEWER, MASK, V, ar_network, close, random_weights, reference, tokens_of, write, write_hub

from edlm.data import vocabulary
from edlm.models import autoregressive, denoisers, energies
from edlm.nn import decoders
from edlm.weights import large


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each model."""
    return write_hub(tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_has_the_probabilities_of_plain_torch(family: str, tied: bool, tmp_path: Path) -> None:
    state = random_weights(family)
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    written = {name: value for name, value in state.items() if not (tied and name == "lm_head.weight")}
    write(tmp_path / "m", family, written, tie_word_embeddings=tied)
    network, x = decoders.load(large.read_autoregressive(tmp_path / "m")), tokens_of()
    with torch.no_grad():
        close(network.head(network(x)), reference("dream", state, x, causal=True))
    assert network.max_length == 32


def test_ids_above_the_embedding_are_read_as_no_token(hub: Path) -> None:
    """They are rows of zeros, so that no two of them differ and none is another token."""
    network = ar_network(hub, "qwen2")
    known = network.embedding.num_embeddings
    x = torch.randint(0, known, (2, 6), generator=torch.Generator().manual_seed(0))
    above, higher, last = (torch.cat([x[:, :2], torch.full((2, 1), id_), x[:, 3:]], 1) for id_ in (known, V, known - 1))
    with torch.no_grad():
        rows = network.embedding.weight.new_zeros(1, network.embedding.embedding_dim)
        found, same, other = network(above), network(higher), network(last)
        extended = torch.nn.Embedding.from_pretrained(torch.cat([network.embedding.weight, rows]))
        network.embedding = extended
        assert torch.equal(network(above), found)
    assert torch.equal(found, same)
    assert not torch.allclose(found[:, 2:], other[:, 2:])


def test_a_mask_that_no_network_reads_makes_no_denoiser(hub: Path) -> None:
    network = ar_network(hub, "qwen2")
    known = network.embedding.num_embeddings
    assert denoisers.subs(network, known - 1)
    for made in (lambda: denoisers.subs(network, known), lambda: denoisers.d3pm(network, known)):
        with pytest.raises(ValueError, match=f"mask_id = {known} is no id that the network reads: it embeds {known}"):
            made()
    with pytest.raises(ValueError, match=f"bos_id = {known} is no id that the network reads"):
        energies.residual_ar(network, V - 1, bos_id=known, carry_over=True)


def test_ids_that_a_decoder_does_not_know_are_impossible(hub: Path) -> None:
    network, own = ar_network(hub, "qwen2"), decoders.load(large.read_autoregressive(hub / "qwen2"))
    x = torch.tensor([[1, 2, 30, 4], [1, 38, 2, 4]])
    with torch.no_grad():
        logits = network.head(network(x))
        assert logits.shape[-1] == network.head.out_features == V
        assert (logits[..., FEWER:] == -torch.inf).all()
        assert torch.equal(logits[:1, :, :FEWER], own.head(own(x[:1])))
        log_p = autoregressive.ar_log_prob(network, x, MASK, BOS)
    assert log_p.isinf().tolist() == [[False] * 4, [False, True, False, False]]


def test_llamas_stretched_rotary_positions(tmp_path: Path) -> None:
    """Long wavelengths are divided by the factor, short ones kept, those between interpolated."""
    scaling = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    state = random_weights("llama")
    for base, expected in ((500.0, 500.0**-0.5), (1e8, 1e-4 / 4)):
        write(tmp_path / str(base), "llama", state, rope_theta=base, rope_scaling=scaling)
        network = decoders.load(large.read_autoregressive(tmp_path / str(base)))
        theta = network.layers[0].attn.pos_embeddings.theta
        torch.testing.assert_close(theta, torch.tensor([1.0, expected]))
    base = 707.0**2  # one turn every 4442 tokens, between 2048 and 8192
    write(tmp_path / "between", "llama", state, rope_theta=base, rope_scaling=scaling)
    theta = decoders.load(large.read_autoregressive(tmp_path / "between")).layers[0].attn.pos_embeddings.theta
    smooth = (8192 * (1 / 707) / (2 * torch.pi) - 1) / 3
    torch.testing.assert_close(theta[1].item(), ((1 - smooth) / 4 + smooth) / 707, rtol=1e-5, atol=0.0)
    write(tmp_path / "other", "llama", state, rope_scaling={**scaling, "low_freq_factor": 2.0, "slow_factor": 2.0})
    with pytest.raises(ValueError, match="slow_factor is not known of rope_type = 'llama3'"):
        large.read_autoregressive(tmp_path / "other")


def test_merges_are_compared_however_they_are_written(tmp_path: Path) -> None:
    documents = ["the name of the statement is the name of the value"] * 3
    words = vocabulary.train_bpe(documents, 262)
    content = json.loads(words.tokenizer.to_str())
    assert content["model"]["merges"]
    large.require_same_tokens(words, tmp_path)  # there is none to compare with
    for merges in (content["model"]["merges"], [" ".join(pair) for pair in content["model"]["merges"]]):
        (tmp_path / "tokenizer.json").write_text(
            json.dumps({**content, "model": {**content["model"], "merges": merges}})
        )
        large.require_same_tokens(words, tmp_path)
    for change in ({"merges": []}, {"vocab": {"a": 0}}):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "model": {**content["model"], **change}}))
        with pytest.raises(ValueError, match="another tokenizer than the denoiser's"):
            large.require_same_tokens(words, tmp_path)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("pre_tokenizer", None),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("normalizer", {"type": "Lowercase"}),
        ("normalizer", {"type": "Prepend", "prepend": "x"}),
    ],
)
def test_another_cut_into_words_is_another_tokenizer(part: str, other: dict[str, Any] | None, tmp_path: Path) -> None:
    words = vocabulary.train_bpe(["the name of the statement is the name of the value"] * 3, 262)
    content = json.loads(words.tokenizer.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    large.require_same_tokens(words, tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, part: other}))
    with pytest.raises(ValueError, match=r"tokenizer\.json: another tokenizer than the denoiser's"):
        large.require_same_tokens(words, tmp_path)
    trimmed = {**content["pre_tokenizer"], "trim_offsets": not content["pre_tokenizer"]["trim_offsets"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "pre_tokenizer": trimmed, "decoder": None}))
    large.require_same_tokens(words, tmp_path)  # neither says anything of ids
