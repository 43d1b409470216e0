"""SmolLM2-135M from its GGUF file: weights, log-probabilities and text as `transformers` reads them."""

from pathlib import Path
from typing import Any

import pytest
import real
import torch
from safetensors.torch import load_file
from torch import Tensor

from edlm.cli import commands
from edlm.data import tokenizer_files
from edlm.nn import decoders
from edlm.weights import large, whole

pytestmark = pytest.mark.real

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "def add(a, b):\n\treturn a + b  # 1234567890",
    "Hello  world,\n\n\tthe  cat's hat — it'll cost £3.50, don't you think? 你好 🎉",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "smollm2"
    commands.main(["convert", str(real.gguf()), str(out)])
    return out


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """What `transformers` reads of the file itself, once: its settings, its weights, and the model that they make."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # noqa: PLC0415

    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config)
    found = load_gguf_checkpoint(str(real.gguf()), return_tensors=True, model_to_load=model)
    left = model.load_state_dict(found["tensors"], strict=False)
    assert (left.missing_keys, left.unexpected_keys) == (["lm_head.weight"], [])
    model.tie_weights()
    return model.eval(), found


def log_p(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)


@torch.no_grad()
def test_weights_and_log_probabilities_are_those_that_transformers_reads(folder: Path, theirs: Any) -> None:
    model, read = theirs
    found = decoders.load(large.read_autoregressive(folder, 64))
    tokenizer = tokenizer_files.read(folder / "tokenizer.json")
    assert sum(p.numel() for p in found.parameters()) == 134_515_008
    config, saved = whole.read_json(folder / "config.json"), load_file(folder / "model.safetensors")
    assert {name: value for name, value in read["config"].items() if name in config} == {
        name: value for name, value in config.items() if name in read["config"]
    }
    assert saved.keys() == read["tensors"].keys()
    assert all(torch.equal(saved[name], value) for name, value in read["tensors"].items())
    for text in TEXTS:
        tokens = torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids])
        ours, expected = log_p(found.head(found(tokens)), tokens), log_p(model(tokens).logits, tokens)
        assert float((ours - expected).abs().max()) < 2e-5
    tokens = torch.tensor([tokenizer.encode("The capital of France is Paris.", add_special_tokens=False).ids])
    assert float(log_p(found.head(found(tokens)), tokens)[0, -2]) > -1.5  # " Paris"


def test_its_tokenizer_gives_every_text_back(folder: Path) -> None:
    tokenizer = tokenizer_files.read(folder / "tokenizer.json")
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    digits = tokenizer.encode("1234", add_special_tokens=False).ids
    assert [tokenizer.decode([each]) for each in digits] == list("1234")  # as SmolLM2 was trained: a digit is a token
