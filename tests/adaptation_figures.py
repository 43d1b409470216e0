"""Measure a model before `edlm run adapt --config smollm2`, on the blocks and the noise of that run's report.

Run it by `python tests/adaptation_figures.py WIKITEXT FOLDER [KEY=VALUE ...]`, with the keys that the run is given too.
WIKITEXT has the valid.txt and test.txt of WikiText-2; FOLDER is written if it is not there: articles of the validation
split are train.txt, the first quarter of those of the test split valid.txt, the others test.txt. It prints the NELBO of
the denoiser before training, its nats per masked token, and the exact likelihood of the AR model, read after a bos.
"""

import re
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from edlm.cli import commands
from edlm.data import detokenizers
from edlm.likelihood import estimates
from edlm.likelihood.estimates import Estimate
from edlm.models import autoregressive
from edlm.nn import decoders
from edlm.recipes import adapt
from edlm.training import report
from edlm.weights import large


def articles(file: Path) -> list[str]:
    """The articles of a split, detokenised: each begins with a title between single equals signs."""
    lines = [detokenizers.wikitext(line.strip()) for line in file.read_text("utf-8").splitlines() if line.strip()]
    found: list[list[str]] = []
    for line in lines:
        if re.fullmatch(r"= [^=].*[^=] =", line):
            found.append([])
        if found:
            found[-1].append(line)
    return ["\n".join(each) for each in found]


def write(wikitext: Path, folder: Path) -> None:
    """Write the three files of a corpus."""
    folder.mkdir(parents=True)
    train, test = articles(wikitext / "valid.txt"), articles(wikitext / "test.txt")
    quarter = len(test) // 4
    for name, texts in {"train": train, "valid": test[:quarter], "test": test[quarter:]}.items():
        (folder / f"{name}.txt").write_text("\n\n".join(texts) + "\n", "utf-8")
        print(f"{folder / name}.txt: {len(texts)} articles, {sum(len(text.encode()) for text in texts):,} bytes")


def exact(made: adapt.Adapt, rows: int) -> Estimate:
    """Estimate the likelihood of the AR model itself on the first blocks of the test split, in nats per token."""
    words, length = made.plan.vocabulary, made.settings["length"]
    network = decoders.load(large.read_autoregressive(made.settings["start_from"], length + 1, vocab_size=words.size))
    with torch.no_grad():
        parts = made.blocks.test[torch.arange(rows)].split(2)
        laws = [autoregressive.ar_log_prob(network, part, words.mask_id, words.bos_id) for part in parts]
    return estimates.estimate(-torch.cat(laws).double().mean(1))


def said(name: str, found: Estimate, size: float) -> str:
    """One line: nats per token, and bits per byte."""
    bits = f"{found.bits / size:.3f} ± {found.bits_error / size:.3f} bits per byte"
    return f"{name:28}{found.mean:.3f} ± {found.standard_error:.3f} nats per token, {bits}, n = {found.n}"


def main(wikitext: str, folder: str, *words: str) -> None:
    """Write the corpus where it is missing, and print the figures."""
    if not Path(folder).exists():
        write(Path(wikitext), Path(folder))
    config = OmegaConf.load(commands.configs("adapt")["smollm2"])
    keys = OmegaConf.from_dotlist([f"corpus.path={folder}", *words])
    settings: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(config, keys))  # type: ignore[assignment]
    torch.set_num_threads(settings["threads"] or torch.get_num_threads())
    made = adapt.Adapt(settings)
    made.setup()
    rows = 4 * settings["valid_rows"]
    size = made.plan.bytes_per_token(made.blocks.test, rows)
    print(said("NELBO before training", made.held_out_bound(made.run.average, made.blocks.test, rows), size))
    for level in report.NOISE_LEVELS:
        found = made.masked_nll(level)
        told = found and f"{found.mean:.2f} ± {found.standard_error:.2f} nats, n = {found.n}"
        print(f"{f'per masked token, t = {level:g}':28}{told}")
    print(said("the AR model, exactly", exact(made, rows), size))


if __name__ == "__main__":
    main(*sys.argv[1:])
