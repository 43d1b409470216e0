"""What `fuzz.py` damages: tiny networks, runs, published weights and corpora, and the commands that read them."""

import gzip
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import frontier_folder
import large_folders
import published_files
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import smallest
from omegaconf import OmegaConf

from edlm.cli import commands
from edlm.data import vocabulary

NETWORK = frontier_folder.SIZES
LENGTH = frontier_folder.LENGTH
UPDATES = {
    **{"steps": 2, "batch_size": 2, "valid_every": 1, "valid_rows": 8, "save_every": 1, "log_every": 1},
    **{"warmup_steps": 0, "decay": "constant"},
}
TEXTS = {"corpus._component_": "edlm.corpora.text_files", "corpus.path": "models/text"}
ABC = {"vocabulary._component_": "edlm.vocabulary.characters", "vocabulary.alphabet": "'abc '"}
MACHINE = {"threads": 1, "device": "cpu"}
SAMPLES = {"num_steps": 2, "num_particles": 2, "window": "[0.0, 1.0]"}
MODELS = {name: f"models/{name}" for name in ("denoiser", "energy", "transition", "joint", "ar", "judge")}
PLAIN = "[{plan: {name: grid, num_steps: [2, 4]}}, {ar: {temperature: 1.0}}]"
EXACT = "{correction: {name: energy, called: exact}, plan: {name: grid, num_steps: 2}, candidates: 2}"
EXACT = f"[{{plan: {{name: grid, num_steps: [1, 2]}}}}, {EXACT}]"
CASE = (
    "[{method: plain, vocab_size: 5, length: 4, rows: 1, num_steps: 2, num_particles: 1, repeats: 1, "
    "textbook_steps: null, target: 1.0, memory_target: null, machinery_target: null}]"
)


def _of(*names: str) -> dict[str, str]:
    return {name: MODELS[name] for name in names}


def _training(prefix: str = "") -> dict[str, Any]:
    network = NETWORK if prefix != "causal" else {k: v for k, v in NETWORK.items() if k != "conditioning_size"}
    return {"length": LENGTH, **UPDATES, **{f"network.{key}": value for key, value in network.items()}}


def settings() -> dict[str, dict[str, Any]]:
    """The smallest settings of every recipe that do all its parts, as changes to its tiny config."""
    denoiser = {**_training(), **ABC}
    energy = {**TEXTS, **MACHINE, **UPDATES, **{f"pretrain.{key}": value for key, value in denoiser.items()}}
    energy |= {f"samples.{key}": value for key, value in {"num_samples": 1, **SAMPLES}.items()} | _of("denoiser")
    compared = {**TEXTS, **MACHINE, "ngrams": "[1]", "replicates": 5, "batch_size": 2}
    found = {
        "pretrain_denoiser": {"output_dir": "out", **TEXTS, **MACHINE, **denoiser},
        "pretrain_ar": {"output_dir": "out", **TEXTS, **MACHINE, **_training("causal"), **ABC},
        "edlm_nce": {"output_dir": "out", **energy, "report_particles": 2},
        "edlm_joint": {"output_dir": "out", **energy},
        "generate": {"output": "out/x.jsonl", **MACHINE, **SAMPLES, **_of("denoiser", "energy"), "num_samples": 2},
        "evaluate": {"output_dir": "out", **compared, **SAMPLES, **_of("denoiser", "energy"), "rows": 2},
        "frontier": {"output_dir": "out", **compared, **_of("denoiser", "energy", "ar", "judge")},
        "oracle": {"output_dir": "out", "length": 3, "replicates": 5, "batch_size": 10, "sweeps": EXACT},
        "benchmark": {"output_dir": "out", **MACHINE, "modes": "[eager]", "growth": "[]", "training": "[]"},
    }
    found["evaluate"] |= {"num_passes": 2, "num_completions": 2, "log_z_particles": 2}
    found["frontier"] |= {"num_samples": 2, "sweeps": PLAIN}
    found["oracle"] |= {"num_samples": 10, "bounded_texts": 10, "entropy_texts": 10, "source.symbols": 2}
    found["benchmark"] |= {f"network.{key}": value for key, value in NETWORK.items()} | {"cases": CASE}
    return found


def write_configs(folder: Path) -> None:
    """Write each recipe's smallest config to `configs/`."""
    (folder / "configs").mkdir(parents=True)
    for recipe, changes in settings().items():
        loaded = OmegaConf.load(commands.configs(recipe)["tiny"])
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(smallest.words_of(changes)))
        (folder / "configs" / f"{recipe}.yaml").write_text(OmegaConf.to_yaml(merged), encoding="utf-8")


def write_models(folder: Path) -> None:
    """Write networks of ours, published weights in four formats, and one text in ten formats of files."""
    frontier_folder.write(folder / "models")
    published = folder / "published"
    published.mkdir()
    denoiser, energy = published_files.small("denoiser", 0), published_files.small("energy", 2)
    state = published_files.prefixed("backbone.", published_files.small("denoiser", 9))
    published_files.trainers_file(published / "mdlm.ckpt", state, denoiser, published_files.trainers_config())
    published_files.hf_folder(published / "hf", denoiser)
    published_files.hf_folder(published / "hf_pickled", denoiser, "pytorch_model.bin")
    state = published_files.prefixed("ebm.", energy)
    published_files.trainers_file(published / "edlm.ckpt", state, energy, published_files.trainers_config())
    (folder / "hub").mkdir()
    for family in ("llada", "qwen2"):
        size = {"vocab_size": 36} if family == "qwen2" else {}
        state = large_folders.random_weights(family, **size)
        large_folders.write(folder / "hub" / family, family, state, **size)
        (folder / "hub" / family / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
    _write_texts(folder / "texts")


def _write_texts(folder: Path) -> None:
    folder.mkdir()
    documents = [f"{'abc cab bca acb ' * (3 + i % 4)}abc{'a' * i}" for i in range(12)]
    plain = "\n\n".join(documents) + "\n"
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    table = pyarrow.table({"text": documents})
    (folder / "text.txt").write_text(plain)
    (folder / "text.jsonl").write_text(lines)
    (folder / "text.csv").write_text("".join(f'"1","abc","{document}"\n' for document in documents))
    pyarrow.parquet.write_table(table, folder / "text.parquet")
    with pyarrow.ipc.new_stream(str(folder / "text.arrow"), table.schema) as stream:
        stream.write_table(table)
    with zipfile.ZipFile(folder / "text.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text.txt", plain)
    (folder / "text.txt.gz").write_bytes(gzip.compress(plain.encode(), mtime=0))
    (folder / "text.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    (folder / "text.tsv").write_text("".join(f"1\ttitle\t{document}\n" for document in documents))


class Reader(NamedTuple):
    """A command that reads a file: its words, what of a folder it reads, and the files it writes."""

    words: tuple[str, ...]
    reads: tuple[str, ...]  # patterns
    writes: tuple[str, ...] = ("out/**/*",)


def _run(recipe: str, *words: str) -> tuple[str, ...]:
    return ("run", recipe, "--config", f"configs/{recipe}.yaml", *words)


NEWEST = "trained/checkpoints/step_00000002"
RESULT = "out/checkpoints/*/network.safetensors"
BEFORE = (  # in this order: unfinished work of three recipes
    _run("pretrain_denoiser", "output_dir=trained"),
    _run("generate", "output=drawn.jsonl"),
    _run("frontier", "output_dir=swept"),
)
RESUMED = {
    "training": Reader(
        _run("pretrain_denoiser", "output_dir=trained", "steps=3"),
        ("trained/*.json*", "trained/checkpoints/last.json", f"{NEWEST}/training.json"),
        ("trained/*.json*", RESULT.replace("out", "trained")),
    ),
    "texts": Reader(_run("generate", "output=drawn.jsonl", "num_samples=3"), ("drawn.jsonl",), ("drawn.jsonl",)),
    "sweep": Reader(
        _run("frontier", "output_dir=swept", f"sweeps={PLAIN.replace('4]', '4, 6]')}"),
        ("swept/*.json*",),
        ("swept/*.json*",),
    ),
    "judged": Reader(_run("evaluate", "samples=drawn.jsonl"), ("drawn.jsonl",)),
}
LARGE = ("device=cpu", "threads=1", "precision=null", "length=8", "num_samples=1", "num_steps=2", "tokens_per_pass=1")
CHECKPOINTS = {
    "generate": Reader(_run("generate"), ("models/denoiser/*", "models/energy/*")),
    "carry_over": Reader(_run("generate", "energy=null", "ar=models/ar"), ("models/ar/*",)),
    "joint": Reader(_run("generate", "denoiser=models/joint", "energy=models/joint"), ("models/joint/*",)),
    "evaluate": Reader(_run("evaluate", "transition=models/transition"), ("models/transition/*", "models/energy/*")),
    "resume": Reader(
        _run("pretrain_denoiser", "output_dir=trained", "steps=3"),
        (f"{NEWEST}/*",),
        (RESULT.replace("out", "trained"),),
    ),
    "start": Reader(_run("edlm_nce"), ("models/denoiser/*",)),
    "lightning": Reader(("convert", "published/mdlm.ckpt", "out", "--tokenizer", "text8"), ("published/mdlm.ckpt",)),
    "energy": Reader(("convert", "published/edlm.ckpt", "out", "--tokenizer", "text8"), ("published/edlm.ckpt",)),
    "folder": Reader(("convert", "published/hf", "out", "--tokenizer", "text8"), ("published/hf/*",)),
    "pickled": Reader(("convert", "published/hf_pickled", "out", "--tokenizer", "text8"), ("published/hf_pickled/*",)),
    "export": Reader(("convert", "models/denoiser", "out", "--to", "hf"), ("models/denoiser/*",)),
    "large": Reader(
        ("run", "generate", "--config", "llada", "denoiser=hub/llada", "output=out/x.jsonl", *LARGE), ("hub/llada/*",)
    ),
    "large energy": Reader(
        (
            *("run", "generate", "--config", "llada", "denoiser=hub/llada", "ar=hub/qwen2", "ar_form=carry_over"),
            *("num_particles=2", "output=out/x.jsonl", *LARGE),
        ),
        ("hub/qwen2/*",),
    ),
}
CORPORA = {
    **{
        path.removeprefix("texts/text."): Reader(
            _run(
                "pretrain_denoiser", "corpus._component_=edlm.datasets.files", f"corpus.path={path}", "corpus.cache=c"
            ),
            (path,),
            (RESULT,),
        )
        for path in (
            f"texts/text.{suffix}"
            for suffix in ("txt", "jsonl", "csv", "parquet", "arrow", "zip", "txt.gz", "jsonl.gz", "tsv")
        )
    },
    "text": Reader(
        _run("pretrain_denoiser", "corpus.path=texts/text.txt"),
        ("texts/text.txt",),
        (RESULT,),
    ),
    "evaluated": Reader(_run("evaluate", "zero_shot=[texts/text.txt]", "split=null"), ("texts/text.txt",)),
}
READERS: Mapping[str, Mapping[str, Reader]] = {"run files": RESUMED, "checkpoints": CHECKPOINTS, "corpora": CORPORA}
