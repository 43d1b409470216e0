"""A campaign, not a test: runs of every recipe are killed at random moments, or started twice in one folder.

python tests/kills.py FOLDER --kills 100 --pairs 20 --seed 0

A killed run is repeated, and must end with all that an undisturbed one leaves, bit for bit but for what a clock said.
Of two runs in one folder one is refused with 2 and one line, and the other ends as if it had been alone. Every trial is
a child forked from this warm process. `FOLDER/trials.jsonl` has a line per trial: the same command goes on after it.
Exits with 1 if a trial found something.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import frontier_folder
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401  # once, and not in every child
import smallest
import torch
from omegaconf import OmegaConf
from together import fork, wait

from edlm.cli import commands
from edlm.runs import entry

CLOCK = re.compile(r"seconds|per_s$|per_second|median|elapsed")  # keys of what a clock said
_NAME = 20  # characters of a row of a table
_DOUBLE = 0.3  # the share of killed runs that are killed once more


class Case(NamedTuple):
    """A recipe with a config, and its words; all that it writes lies in `run`, all that it reads in `models`."""

    recipe: str
    words: Sequence[str]
    config: str = "tiny"


def cases() -> dict[str, Case]:
    """Every recipe, at its smallest."""
    run, updates = Path("run"), ["save_every=2", "valid_every=2", "steps=6"]
    energy = [word for word in smallest.energy_words(run) if not word.startswith("save_every=")]
    joint = [word for word in energy if not word.startswith(("closing.", "scope="))]
    base = [
        "corpus._component_=edlm.corpora.text_files",
        "corpus.path=models/text",
        "threads=1",
        "seed=0",
    ]
    drawn = ["denoiser=models/denoiser", "num_samples=24", "batch_size=2", "num_steps=8"]
    few = ["rows=4", "num_steps=4", "num_particles=2", "log_z_particles=4", "batch_size=2"]
    frontier = Path("frontier.yaml")
    return {
        "pretrain_denoiser": Case("pretrain_denoiser", [*smallest.denoiser_words(run), *updates, "sample_every=3"]),
        "sedd": Case("pretrain_denoiser", [*smallest.denoiser_words(run), *updates], "tiny_sedd"),
        "pretrain_ar": Case("pretrain_ar", [*smallest.ar_words(run), *updates, "keep_best=true"]),
        "edlm_nce": Case("edlm_nce", [*energy, "save_every=2", "pretrain.save_every=2"]),
        "transition": Case("edlm_nce", [*energy, "save_every=2", "scope=transition"]),
        "edlm_joint": Case("edlm_joint", [*joint, "save_every=2"]),
        "generate": Case("generate", [*drawn, "energy=models/energy", "output=run/texts.jsonl", "threads=1"]),
        "ar": Case("generate", [*drawn, "denoiser=null", "energy=null", "ar=models/ar", "output=run/ar.jsonl"]),
        "evaluate": Case(
            "evaluate",
            [*base, *few, "output_dir=run", "denoiser=models/denoiser", "energy=models/energy", "ar=models/ar"],
        ),
        "frontier": Case("frontier", ["output_dir=run"], str(frontier)),
        "oracle": Case("oracle", ["output_dir=run"], "oracle.yaml"),
    }


def enter(case: Case) -> None:
    """Run a recipe as the command line does, in the folder that is the current one."""
    module = import_module(f"edlm.recipes.{case.recipe}")
    known = commands.configs(case.recipe)
    sys.argv = [case.recipe, "--config", str(known.get(case.config, case.config)), *case.words]
    entry.enter(module.main, module.SETTINGS)


def prepare(folder: Path) -> None:
    """What runs read: networks, a text, and the configs of sweeps."""
    if (folder / "models" / "text" / "test.txt").is_file():
        return
    shutil.rmtree(folder / "models", ignore_errors=True)
    (folder / "models").mkdir(parents=True)
    frontier_folder.write(folder / "models")


def configs(place: Path) -> None:
    """The sweeps of `frontier` and `oracle`, small."""
    frontier: Any = OmegaConf.to_container(OmegaConf.load(commands.configs("frontier")["tiny"]))
    names = {key: f"models/{key}" for key in ("denoiser", "energy", "ar", "judge")}
    small = {"num_samples": 4, "batch_size": 2, "replicates": 4, "ngrams": [1, 2], "length": None, "threads": 1}
    sweeps = [
        {**each, "plan": {"name": "grid", "num_steps": [2, 4]}} if "plan" in each else each
        for each in frontier["sweeps"]
    ]
    corpus = {"_component_": "edlm.corpora.text_files", "path": "models/text"}
    frontier = {**frontier, **names, **small, "sweeps": sweeps[:3], "corpus": corpus}
    (place / "frontier.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(frontier)), encoding="utf-8")
    oracle: Any = OmegaConf.to_container(OmegaConf.load(commands.configs("oracle")["learned"]))
    oracle["learn"] |= {"steps": 4, "batch_size": 4, "num_texts": 32, "valid_rows": 4, "save_every": 2}
    oracle["learn"] |= {"valid_every": 2, "log_every": 1}
    oracle["learn"]["network"] |= smallest.NETWORK
    oracle |= {"num_samples": 8, "batch_size": 4, "bounded_texts": 4, "entropy_texts": 8, "replicates": 4}
    plain, learned = (
        {**each, "plan": {"name": "grid", "num_steps": 2}} for each in (oracle["sweeps"][0], oracle["sweeps"][1])
    )
    named = {"name": "energy", "called": "transition"}
    oracle |= {"threads": 1, "sweeps": [plain, {**learned, "correction": named, "candidates": 2}]}
    (place / "oracle.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(oracle)), encoding="utf-8")


def left(folder: Path) -> dict[str, Any]:
    """All that a run left, by name; of a picture that it is there, of records all but what a clock said."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content: Any = file.read_bytes()
        if file.suffix == ".png":
            content = content[:4]
        elif file.suffix in (".json", ".jsonl"):
            lines = content.decode().split("\n") if file.suffix == ".jsonl" else [content.decode()]
            content = [_without_clock(json.loads(line)) if line else "" for line in lines]
        elif file.suffix in (".csv", ".md"):  # the names in tables of what the records say: seconds are among the rest
            rows = [line for line in content.splitlines() if file.suffix == ".csv" or line.startswith(b"|")]
            content = [row[:_NAME] for row in rows]
        found[str(file.relative_to(folder))] = content
    return found


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clock(item) for key, item in value.items() if not CLOCK.search(key)}
    return [_without_clock(item) for item in value] if isinstance(value, list) else value


class Campaign:
    """Trials in a folder, each with a line in `trials.jsonl`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.file = folder, seed, folder / "trials.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        for case in cases().values():  # once, and not in every child
            import_module(f"edlm.recipes.{case.recipe}")
        lines = self.file.read_text("utf-8").splitlines() if self.file.is_file() else []
        self.done = {(each["kind"], each["number"]): each for each in map(json.loads, lines)}
        self.wholes: dict[str, tuple[dict[str, Any], float]] = {}

    def trial(self, kind: str, number: int, act: Callable[[str, Path, random.Random], dict[str, Any]]) -> None:
        """One trial of a kind, unless an earlier campaign has had it."""
        if (kind, number) in self.done:
            return
        name = list(cases())[number % len(cases())]
        place = self.place(f"{kind}{number}")
        found = act(name, place, random.Random(f"{self.seed} {kind} {number}"))
        record = {"kind": kind, "number": number, "case": name, **found}
        self.done[kind, number] = record
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)
        if not found["wrong"]:
            shutil.rmtree(place)

    def place(self, name: str) -> Path:
        """A folder of its own for a trial, with what runs read beside."""
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "models").symlink_to((self.folder / "models").resolve())
        configs(place)
        return place

    def whole(self, name: str) -> tuple[dict[str, Any], float]:
        """What an undisturbed run leaves, and its seconds."""
        if name not in self.wholes:
            place, started = self.place(f"whole_{name}"), time.monotonic()
            status = self.finish(name, place)
            if status:
                raise RuntimeError(f"{name} ends with {status} by itself: {place / 'said'}")
            self.wholes[name] = left(place / "run"), time.monotonic() - started
        return self.wholes[name]

    def start(self, name: str, place: Path, said: str = "said") -> int:
        """Start a run in a folder."""
        case = cases()[name]

        def work() -> None:
            torch.set_num_threads(1)
            os.chdir(place)
            enter(case)

        return fork(work, place / said)

    def finish(self, name: str, place: Path) -> int:
        """Run to the end; the exit status."""
        return wait(self.start(name, place), 300.0)

    def kill(self, name: str, place: Path, draw: random.Random) -> dict[str, Any]:
        """Kill a run at a random moment, perhaps again, then let it end."""
        wanted, seconds = self.whole(name)
        moments = [draw.uniform(0.0, seconds) for _ in range(1 + (draw.random() < _DOUBLE))]
        statuses = []
        for moment in moments:
            child = self.start(name, place)
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
            statuses.append(wait(child))
        status = self.finish(name, place)
        wrong = [f"the repeated run ends with {status}"] if status else _differences(left(place / "run"), wanted)
        return {"moments": [round(each, 3) for each in moments], "of": round(seconds, 3), "statuses": statuses} | {
            "wrong": wrong
        }

    def pair(self, name: str, place: Path, draw: random.Random) -> dict[str, Any]:
        """Start a second run in the folder while a first one works."""
        wanted, seconds = self.whole(name)
        first = self.start(name, place, "said_0")
        delay = draw.uniform(0.0, 0.3 * seconds)
        time.sleep(delay)
        second = self.start(name, place, "said_1")
        statuses = [wait(each, 300.0) for each in (first, second)]
        said = [(place / f"said_{index}").read_text("utf-8") for index in (0, 1)]
        refused = [text for text, status in zip(said, statuses, strict=True) if status == 2]
        wrong = [] if sorted(statuses) == [0, 2] else [f"they end with {statuses}"]
        wrong += [
            f"refused without the holder: {text[-200:]}"
            for text in refused
            if "is being written by process" not in text
        ]
        return {
            "delay": round(delay, 3),
            "statuses": statuses,
            "wrong": wrong + _differences(left(place / "run"), wanted),
        }


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    names = sorted(found.keys() | wanted.keys())
    return [f"{name} differs" for name in names if found.get(name) != wanted.get(name)]


def main() -> None:
    """Run what is missing of a campaign and say how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    campaign = Campaign(given.folder, given.seed)
    for number in range(given.kills):
        campaign.trial("kill", number, campaign.kill)
    for number in range(given.pairs):
        campaign.trial("pair", number, campaign.pair)
    wrong = [each for each in campaign.done.values() if each["wrong"]]
    print(f"{len(campaign.done)} trials, {len(wrong)} found something")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
