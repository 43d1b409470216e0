"""The table of `docs/howto/checkpoints.md` that compares folders with `transformers`; run it to print the table."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import block_folders
import hub_folders as hub
import large_folders
import torch
import transformers
from torch import Tensor

from edlm.nn import decoders
from edlm.weights import large

BLOCKS = ("sdar", "fast_dllm", "llada2")
Compute = Callable[[Tensor], Tensor]


class Parity(NamedTuple):
    """One folder: what runs it, the largest difference of a log-probability in nats, and seconds to load it."""

    kind: str
    rope: str
    runs: str
    difference: float
    seconds: float


def measured(kind: str, rope: str, folder: Path) -> Parity:
    """Compare all log-probabilities of three random texts of 24 tokens."""
    model, tokens = hub.model(kind, transformers, hub.ROPES.get(rope)), hub.tokens()
    hub.save(model, folder)
    started = time.perf_counter()
    network: Any = decoders.load(
        large.read_diffusion(folder) if kind in hub.MASKED else large.read_autoregressive(folder)
    )
    seconds = time.perf_counter() - started
    with torch.no_grad():
        found = network.head(network(tokens)).log_softmax(-1)
        if network.__class__.__name__ == "PretrainedNetwork" and network.frame is not None:
            edges = [torch.full_like(tokens[:, :1], id_) for id_ in network.frame]
            logits = model(torch.cat([edges[0], tokens, edges[1]], dim=1)).logits[:, 1:-1]
            expected = logits.masked_fill(network.head.barred, -torch.inf).log_softmax(-1)
        else:
            expected = model(tokens).logits.log_softmax(-1)
    runs = "torchtune" if isinstance(network, decoders.DecoderNetwork) else "transformers"
    return Parity(kind, rope, runs, float((found - expected).nan_to_num(0.0).abs().max()), seconds)


def of_whole_texts(kind: str, folder: Path) -> tuple[Compute, Tensor]:
    """Write LLaDA or Dream, and give what plain torch computes of texts, and some texts."""
    state = large_folders.random_weights(kind)
    large_folders.write(folder, kind, state)
    return partial(large_folders.reference, kind, state), large_folders.tokens_of()


def of_blocks(kind: str, folder: Path) -> tuple[Compute, Tensor]:
    """The same of block diffusion: Qwen's own classes where they have the body, and plain torch for LLaDA 2."""
    seen, tokens = block_folders.seen(), hub.tokens(3, block_folders.LENGTH)
    if kind == "llada2":
        state = block_folders.llada2_weights()
        block_folders.llada2(folder, state)
        return lambda texts: block_folders.llada2_logits(state, texts, seen), tokens
    model = (block_folders.sdar if kind == "sdar" else block_folders.fast_dllm)(folder, transformers)
    scores = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf).expand(len(tokens), 1, -1, -1)
    return lambda texts: model(texts, attention_mask=scores).logits, tokens


def of_diffusion(kind: str, folder: Path) -> Parity:
    """Compare with plain torch, or with the class that has the body, under the mask of blocks of 32 tokens."""
    compute, tokens = of_blocks(kind, folder) if kind in BLOCKS else of_whole_texts(kind, folder)
    started = time.perf_counter()
    network: Any = large.load_diffusion(folder)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        expected = compute(tokens)
        if kind in ("dream", "fast_dllm"):  # whose state at i - 1 predicts token i
            expected = torch.cat([expected[:, :1], expected[:, :-1]], dim=1)
        found = network.head(network(tokens)).log_softmax(-1)
    runs = "torchtune" if isinstance(network, decoders.DecoderNetwork) else "transformers"
    return Parity(kind, "default", runs, float((found - expected.log_softmax(-1)).abs().max()), seconds)


def rows() -> Iterator[Parity]:
    """Measure every family with its own positions, four of them with every kind of long-context ones, and diffusion."""
    for kind in hub.MODELS:
        stretched = list(hub.ROPES) if kind in ("llama", "qwen2", "qwen3", "mistral") else []
        for rope in ("default", *stretched):
            with tempfile.TemporaryDirectory() as folder:
                yield measured(kind, rope, Path(folder))
    for kind in ("llada", "dream", *BLOCKS):
        with tempfile.TemporaryDirectory() as folder:
            yield of_diffusion(kind, Path(folder))


def main() -> None:
    """Print the table."""
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        measured("llama", "default", Path(folder))  # what the first of all loads is not counted
    print("| family | positions | run by | largest difference (nats) | seconds to load |\n|---|---|---|---|---|")
    for row in rows():
        print(f"| {row.kind} | {row.rope} | {row.runs} | {row.difference:.1e} | {row.seconds:.2f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
