"""Measure drafts that an AR model verifies beside its own cached sampling: CPU seconds of a text, one thread.

Run it by `python tests/measure_drafts.py AR SETTING ... [--texts 6] [--batch 1] [--length 256]`. AR is a run folder, or
the folder of a large model. A setting is one of

    DENOISER:AHEAD:CONTEXT:LOOP    drafts of a denoiser, in a run folder or a large model's; LOOP is anew or kept
    masks:AHEAD                    drafts of the AR model's own masks
    counts:AHEAD:ORDER:TEXT        drafts by n-grams of so many tokens, counted in a text

The seeds are 0, 1, ...; all settings of a seed are measured one after the other, so what else the machine does meets
them alike.
"""

import argparse
from collections.abc import Callable
from statistics import mean
from typing import Any

import timing
import torch

import edlm
from edlm.evaluation import drafted
from edlm.samplers import ahead, autoregressive, corrections, drafters, pipelines
from edlm.samplers.drafters import Drafter
from edlm.weights import loading, sources
from edlm.weights.loading import Found

CPU = torch.device("cpu")
COUNTS = ("rounds", "calls", "denoiser_tokens", "energy_tokens")
HEAD = (
    "| drafts | texts | tokens a round | rounds | calls | tokens read to draft | tokens verified "
    "| CPU seconds | of AR | ms of a round: drafting | AR model | the rest |"
)
Draw = Callable[[int], dict[str, float]]  # of a seed: what the texts took, on average


def setting(words: str, ar: Found, batch: int, length: int) -> Draw:
    """Build what draws by a setting."""
    kind, *numbers = words.split(":")
    network, mask_id, bos_id = ar.network, ar.vocabulary.mask_id, ar.description.get("bos_id")
    if kind not in ("masks", "counts"):
        return of_denoiser(words, ar, batch, length)
    drafter: Drafter = (
        drafters.OfMasks(network, mask_id, int(numbers[0]))
        if kind == "masks"
        else drafters.OfCounts(
            drafted.counts(numbers[2], int(numbers[1]), drafted.TOKENS, ar.vocabulary, CPU), int(numbers[0])
        )
    )

    def draw(seed: int) -> dict[str, float]:
        out = ahead.sample(network, drafter, batch, length, mask_id, bos_id, seed=seed)
        found = (out.rounds, out.calls, out.draft_tokens, out.ar_tokens)
        return {name: each.double().mean().item() for name, each in zip(COUNTS, found, strict=True)}

    return draw


def of_denoiser(words: str, ar: Found, batch: int, length: int) -> Draw:
    """Build what draws with a denoiser's drafts, DENOISER:AHEAD:CONTEXT:LOOP."""
    path, count, context, loop = words.rsplit(":", 3)
    denoiser = loading.denoiser(path, CPU, length).denoiser
    denoiser.max_length = length  # drafts are read in windows of `context` tokens, so a network of short texts serves
    how = {"ahead": int(count), "context": int(context), "anew": {"anew": True, "kept": False}[loop]}
    correction = corrections.Autoregressive(ar.network, ar.description.get("bos_id"), **how)  # type: ignore[arg-type]
    sampler = edlm.samplers.Sampler(denoiser, edlm.plans.Grid(1), correction=correction, selection="speculative")
    pipeline = pipelines.pipeline(sampler, length)

    def draw(seed: int) -> dict[str, float]:
        info = edlm.sample(pipeline, batch, seed=seed)["info"]
        return {name: info[name].sum(1).double().mean().item() for name in COUNTS}

    return draw


def watch(spent: dict[str, float]) -> None:
    """Add up the seconds of the parts of a step."""

    def watched(name: str, part: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            took, found = timing.seconds(part, *given)
            spent[name] = spent.get(name, 0.0) + took
            return found

        return called

    for name in ("_reading", "_round"):
        setattr(ahead.Ahead, name, watched(name, getattr(ahead.Ahead, name)))
    for drafter in (drafters.OfDenoiser, drafters.OfMasks, drafters.OfCounts):
        drafter.draft = watched("draft", drafter.draft)  # type: ignore[method-assign]


def line(words: str, runs: list[dict[str, float]]) -> str:
    """One row of the table."""
    rounds = mean(run["rounds"] for run in runs)
    ratios = [run["seconds"] / run["ar_seconds"] for run in runs]
    ms = {name: 1000 * mean(run[name] for run in runs) / rounds for name in ("draft", "_reading", "_round")}
    cells = [words.replace(":", ", "), len(runs), f"{mean(run['length'] for run in runs) / rounds:.2f}"]
    cells += [f"{mean(run[name] for run in runs):.0f}" for name in COUNTS]
    cells += [f"{mean(run['seconds'] for run in runs):.3f}", timing.shown(ratios), f"{ms['draft']:.1f}"]
    cells += [f"{ms['_reading']:.1f}", f"{ms['_round'] - ms['_reading']:.1f}"]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Measure every setting and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ar")
    parser.add_argument("settings", nargs="+")
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(1)
    ar = loading.autoregressive(given.ar, CPU, sources.How(given.length))
    ids = ar.vocabulary.mask_id, ar.description.get("bos_id")
    built = {words: setting(words, ar, given.batch, given.length) for words in given.settings}
    spent: dict[str, float] = {}
    watch(spent)
    for draw in built.values():
        draw(99)  # the first call of anything is slower
    runs: dict[str, list[dict[str, float]]] = {words: [] for words in built}
    for seed in range(given.texts):
        alone = timing.seconds(autoregressive.sample, ar.network, given.batch, given.length, *ids, seed=seed)[0]
        for words, draw in built.items():
            spent.clear()
            took, counted = timing.seconds(draw, seed)
            runs[words].append(counted | spent | {"seconds": took, "ar_seconds": alone, "length": given.length})
    alone = mean(run["ar_seconds"] for run in runs[given.settings[0]])
    print(f"AR with its cache: {alone:.3f} CPU seconds a batch of {given.batch}\n{HEAD}\n{'|---' * 12}|")
    for words, measured in runs.items():
        print(line(words, measured))


if __name__ == "__main__":
    main()
