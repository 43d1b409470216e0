"""The command `edlm convert`: weights of others to a folder of ours, and ours to one of Hugging Face."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path


def convert(arguments: Sequence[str]) -> None:
    """Convert published weights to a folder for `edlm run`, and ours or a GGUF file to a Hugging Face folder."""
    parser = argparse.ArgumentParser(prog="edlm convert", description=convert.__doc__)
    parser.add_argument(
        "path", type=Path, help="a Hugging Face folder, a Lightning checkpoint, weights.safetensors, or a .gguf"
    )
    parser.add_argument("out", type=Path, help="the folder to write; one that exists is not overwritten")
    parser.add_argument("--to", choices=["edlm", "hf"], default="edlm", help="hf: PATH is a network or run folder")
    parser.add_argument("--tokenizer", help="tokenizer.json, a folder with it or GPT-2's two files, or text8")
    parser.add_argument("--part", choices=["energy", "denoiser"], help="of an EDLM checkpoint; default: its energy")
    parser.add_argument("--num-heads", type=int, help="where the file does not say; default: 12")
    parser.add_argument("--length", type=int, help="longest sequence, where the file does not say; default: 1024")
    parser.add_argument("--raw", action="store_true", help="the weights as trained, not their moving average")
    parser.add_argument("--bos", help="token that an AR model reads before a text; default: its first is given")
    parser.add_argument("--order", help="of text8's ids in the file, a symbol each: _ is the mask, ? no character")
    parser.add_argument("--wrapped", action="store_true", help="texts of a denoiser stand between a bos and an eos")
    given = parser.parse_args(arguments)
    exchange = importlib.import_module("edlm.weights.exchange")
    quantised = given.path.suffix == ".gguf"
    if quantised or given.to == "hf":
        for name in ("tokenizer", "part", "num_heads", "length", "raw", "bos", "order", "wrapped"):
            if getattr(given, name) not in (None, False):
                where = "for a GGUF file" if quantised else "with --to hf"
                raise ValueError(f"--{name.replace('_', '-')} is for published weights: leave it out {where}")
    if quantised:
        rows = importlib.import_module("edlm.weights.gguf_files").convert(given.path, given.out)
    elif given.to == "hf":
        rows = exchange.export(given.path, given.out)
    else:
        sizes, read = (given.num_heads, given.length), (given.raw, given.bos, given.order, given.wrapped)
        rows = exchange.convert(given.path, given.out, given.tokenizer, given.part, *sizes, *read)
    print("\n".join(f"{name:<18} {value}" for name, value in rows))
    print(f"wrote {given.out}")
