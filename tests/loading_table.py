"""The table of `docs/howto/checkpoints.md` of what it costs to load a folder, per family; run it to print the table.

Random models of 19 to 25 million weights, written by `transformers`. Memory is the highest resident set while a folder
is loaded, less what was there before, in shares of the weights' size; Linux alone tells it.
"""

import ctypes
import gc
import logging
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import block_folders
import hub_folders as hub
import torch
import transformers
from torch import nn

from edlm.nn import decoders
from edlm.weights import large

WIDE: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8}
OF_GPT2 = {"n_embd": 512, "n_layer": 8, "n_head": 8}
OF_LLADA2: dict[str, Any] = {**WIDE, "head_dim": 64, "rotary_dim": 32, "moe_intermediate_size": 128, "num_experts": 16}
BLOCKS = ("fast_dllm", "llada2")


class Cost(NamedTuple):
    """One family: what runs it, megabytes of weights, CPU seconds, and memory in shares of the weights."""

    kind: str
    runs: str
    megabytes: float
    seconds: float
    share: float


def resident(name: str) -> float:
    """Read a line of this process's status, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name))) / 1024


def load(folder: Path, kind: str) -> Any:
    read = large.read_diffusion if kind in (*hub.MASKED, *BLOCKS) else large.read_autoregressive
    return decoders.load(read(folder))


def measured(kind: str, folder: Path) -> Cost:
    """Load a folder for the second time: the first brings the code and the files into memory."""
    if kind == "llada2":
        block_folders.llada2(folder, block_folders.llada2_weights({**block_folders.LLADA2, **OF_LLADA2}), **OF_LLADA2)
    elif kind == "fast_dllm":
        block_folders.fast_dllm(folder, transformers, **WIDE)
    else:
        hub.save(hub.model(kind, transformers, **(OF_GPT2 if kind == "gpt2" else WIDE)), folder)
    network = load(folder, kind)
    runs = "torchtune" if isinstance(network, decoders.DecoderNetwork) else "transformers"
    weights: nn.Module = network
    size = sum(each.numel() * each.element_size() for each in weights.parameters()) / 2**20
    del network, weights
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what is loaded next takes memory that was never given back
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set begins anew
    started = time.process_time()
    found = load(folder, kind)
    seconds = time.process_time() - started
    share = (resident("VmHWM") - before) / size
    del found
    return Cost(kind, runs, size, seconds, share)


def main() -> None:
    """Print the table."""
    logging.disable()
    print("| family | run by | weights (MB) | CPU seconds to load | memory to load |\n|---|---|---|---|---|")
    for kind in (*hub.MODELS, *BLOCKS):
        with tempfile.TemporaryDirectory() as folder:
            row = measured(kind, Path(folder))
        print(f"| {row.kind} | {row.runs} | {row.megabytes:.0f} | {row.seconds:.2f} | {row.share:.1f} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
