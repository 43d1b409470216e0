"""A tiny denoiser or AR model of ours, and a tiny model of the hub beside it, over the same tokens."""

import copy
from pathlib import Path
from typing import Any

import hub_folders
import torch
from torch import Tensor

from edlm.data import vocabulary
from edlm.data.vocabulary import Vocabulary
from edlm.nn.networks import Transformer
from edlm.weights import checkpoints

LETTERS, LENGTH, BOS = "abc", 6, 1
N = len(LETTERS)
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
NOTES = {"schedule": {"_component_": "edlm.schedules.log_linear"}, "time_conditioning": False}


def ours(folder: Path, words: Vocabulary, causal: bool = False, seed: int = 0, **more: Any) -> Path:
    """A network of ours whose laws are neither flat nor certain; more: what its `network.json` keeps."""
    sizes = {**SIZES, "max_length": LENGTH, **({"conditioning_size": 0} if causal else {})}
    torch.manual_seed(seed)
    network = Transformer(words.size, **sizes, causal=causal)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    about = {"bos_id": words.mask_id if words.bos_id is None else words.bos_id} if causal else NOTES
    checkpoints.save_network(folder, network, words, {**about, **more})
    return folder


def hub(folder: Path, transformers: Any, kind: str = "llama", letters: str = LETTERS, **changes: Any) -> Path:
    """A causal model as the hub has it, with a tokenizer of these letters."""
    settings = {"vocab_size": N, "bos_token_id": BOS, "eos_token_id": 2, **changes}
    hub_folders.save(hub_folders.model(kind, transformers, **settings), folder)
    (folder / "tokenizer.json").write_text(vocabulary.characters(letters).tokenizer.to_str())
    return folder


def law_of_hub(folder: Path, transformers: Any, texts: Tensor, bos_id: int | None = BOS) -> Tensor:
    """`log p(x_i | x_<i)` by `transformers`, (n, l), given that it is a letter; without a bos, 0 at the first."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = torch.zeros(texts.shape, dtype=torch.float64)
    for row, text in enumerate(texts.tolist()):
        for place in range(0 if bos_id is not None else 1, len(text)):
            read = [*([] if bos_id is None else [bos_id]), *text[:place]]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([read])).logits[0, -1, :N].double()
            found[row, place] = logits.log_softmax(-1)[text[place]]
    return found


def law_of_denoiser(folder: Path, x_t: Tensor, mask_id: int) -> Tensor:
    """`log p(x_i | x_t)` of every id, (b, l, v), of a denoiser of ours."""
    network = checkpoints.load_network(folder)
    with torch.no_grad():
        logits = network.head(network(x_t, torch.zeros(len(x_t)))).double()
    logits[..., mask_id] = -torch.inf
    return logits.log_softmax(-1)


def texts(rows: int = 5, length: int = LENGTH) -> Tensor:
    return torch.randint(0, N, (rows, length), generator=torch.Generator().manual_seed(2))


def hidden(x: Tensor, mask_id: int) -> Tensor:
    """Texts with about half of their tokens masked, each row another half."""
    masked = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    masked[:, 0], masked[0, 0] = True, False
    return torch.where(masked, mask_id, copy.copy(x))
