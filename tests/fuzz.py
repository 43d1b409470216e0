"""Random command lines and damaged files against every command: seeded, resumable, each case alone in a process.

python tests/fuzz.py --cases 1000 --seed 0          about ten minutes on one core; goes on where it was stopped
python tests/fuzz.py --seed 0 --replay corpora:17   one case, with all that it prints
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("EDLM_DEBUG", None)

import fuzz_damage
import fuzz_folder
import fuzz_lines
import torch

from edlm.cli import commands
from edlm.runs import exits

FAMILIES = ("command lines", "run files", "checkpoints", "corpora", "huge numbers")
OF_WORDS = ("command lines", "huge numbers")  # which may be accepted and at work for hours
FAULTS = ("traceback", "silent", "executed", "memory", "time", "status")
SECONDS, MEMORY = 60, 2 << 30
PATIENCE = 4  # seconds, after which a command line that was accepted is stopped by Ctrl-C
ENDS = (0, exits.USAGE_ERROR, exits.INTERRUPTED)
_IMPORTED = (
    "torchtune.config",
    "edlm.weights.exchange",
    "edlm.cli.doctor",
    "edlm.data.datasets",
    "matplotlib.pyplot",
    "transformers",
)
# Parts of keys of what a command says of its files and of its time, and not of what it computed.
_VOLATILE = ("second", "per_s", "sha256", "description", "written", "folder", "path")
_SUM = "sum"  # of a record, whose floats differ in their last digits between batches
_NO_TOKEN = "\N{REPLACEMENT CHARACTER}"  # shown in a text for an id that a damaged tokenizer lacks
_NO_ROOM = ("MemoryError", "allocate memory", "out of memory", "not enough memory")


class Ended(NamedTuple):
    """How a command ended; status is minus the signal where one ended it."""

    status: int
    said: str
    seconds: float
    peak: int


class Case(NamedTuple):
    """What was done, how it ended, and the verdict: `fine` or one of FAULTS."""

    family: str
    number: int
    verdict: str
    did: str
    ended: Ended


def main() -> int:
    """Run the cases that were not run yet, and print the table; the status is 1 if one is at fault."""
    given = _arguments().parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("EDLM_DEBUG", None)
    for name in (*_IMPORTED, *(f"edlm.recipes.{recipe}" for recipe in commands.recipes())):
        import_module(name)
    torch.set_num_threads(1)
    work = given.work.absolute()
    base = _base(work)
    os.chdir(base)
    if given.replay:
        family, _, number = given.replay.rpartition(":")
        case = _case(base, family, int(number), given.seed)
        print(f"{case.did}\n{case.ended.said}\nstatus {case.ended.status}: {case.verdict}")
        return case.verdict in FAULTS
    record = work / f"seed_{given.seed}.jsonl"
    done = [_read(line) for line in record.read_text().splitlines()] if record.is_file() else []
    known = {(case.family, case.number) for case in done}
    wanted = [(FAMILIES[i % len(FAMILIES)], i // len(FAMILIES)) for i in range(given.cases)]
    with record.open("a") as file:
        for family, number in wanted:
            if (family, number) not in known and family in given.family:
                case = _case(base, family, number, given.seed)
                file.write(json.dumps(case) + "\n")
                file.flush()
                done.append(case)
    asked = [case for case in done if (case.family, case.number) in set(wanted)]
    print(_table(asked, given.seed))
    return any(case.verdict in FAULTS for case in asked)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--replay", metavar="FAMILY:NUMBER", help="one case, as the table names it")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "edlm_fuzz"), help="a folder to fill")
    return parser


def _read(line: str) -> Case:
    family, number, verdict, did, ended = json.loads(line)
    return Case(family, number, verdict, did, Ended(*ended))


def _base(work: Path) -> Path:
    """The folder that every case gets a copy of, made once: networks, unfinished runs, texts."""
    base = work / "base"
    if base.is_dir():
        return base
    shutil.rmtree(work / "making", ignore_errors=True)
    fuzz_folder.write_configs(work / "making")
    ended = _in_a_child(work / "making", lambda: fuzz_folder.write_models(Path.cwd()), memory=None)
    for words in fuzz_folder.BEFORE:
        if ended.status == 0:
            ended = _in_a_child(work / "making", partial(commands.main, words), memory=None)
    if ended.status:
        raise RuntimeError(f"the folder cannot be made: {ended.said}")
    (work / "making").rename(base)
    return base


def _case(base: Path, family: str, number: int, seed: int) -> Case:
    rng = random.Random(f"{seed}:{family}:{number}")
    folder = base.parent / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    os.chdir(folder)
    reader, must_refuse, known = None, False, True
    if family == "command lines":
        words, must_refuse = fuzz_lines.words(rng)
        did = " ".join(f"{word[:60]!r}" for word in words)
    elif family == "huge numbers":
        lines = fuzz_lines.huge(base / "configs")
        words = lines[(number + seed) % len(lines)]
        did = " ".join(words)
    else:
        name, reader = rng.choice(list(fuzz_folder.READERS[family].items()))
        words = list(reader.words)
        files = sorted({file for pattern in reader.reads for file in Path().glob(pattern) if file.is_file()})
        file = rng.choice(files)
        what = fuzz_damage.file(rng, file)
        known = not file.is_file() or fuzz_damage.detectable(file, what, file.read_bytes())
        did = f"{name}: {file} {what}"
    patience = PATIENCE if family in OF_WORDS else SECONDS
    ended = _in_a_child(folder, lambda: commands.main(words), memory=MEMORY, patience=patience)
    changed = must_refuse
    if reader is not None and known and ended.status == 0:
        found, expected = _result(folder, reader.writes), _expected(base, family, name, reader)
        changed = found != expected and str(found).count(_NO_TOKEN) <= str(expected).count(_NO_TOKEN)
    verdict = _verdict(ended, changed, (folder / fuzz_damage.CANARY).exists(), family)
    os.chdir(base)
    return Case(family, number, verdict, did, ended._replace(said=ended.said[-2000:]))


def _verdict(ended: Ended, wrong: bool, executed: bool, family: str) -> str:
    no_room = family not in OF_WORDS and any(words in ended.said for words in _NO_ROOM)
    faults = {
        "executed": executed,
        "time": ended.seconds >= SECONDS,
        "memory": ended.peak > MEMORY or ended.status == -signal.SIGKILL or no_room,
        "traceback": "Traceback (most" in ended.said or ended.status == exits.FAULT or ended.status < 0,
        "silent": ended.status == 0 and wrong,
        "status": ended.status not in ((0, exits.USAGE_ERROR) if ended.seconds < PATIENCE else ENDS),
    }
    return next((name for name, found in faults.items() if found), "fine")


def _expected(base: Path, family: str, name: str, reader: fuzz_folder.Reader) -> Any:
    """What the undamaged command writes, found once."""
    kept = base.parent / "expected" / f"{family}_{name}.json"
    if not kept.is_file():
        folder = base.parent / "undamaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        ended = _in_a_child(folder, lambda: commands.main(list(reader.words)), memory=MEMORY)
        if ended.status:
            raise RuntimeError(f"{name} fails without damage: {ended.said}")
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(_result(folder, reader.writes)))
    return json.loads(kept.read_text())


def _result(folder: Path, writes: tuple[str, ...]) -> dict[str, Any]:
    """All that a command wrote but times: JSON by value, other files by hash."""
    files = sorted({file for pattern in writes for file in folder.glob(pattern) if file.is_file()})
    return {str(file.relative_to(folder)): _content(file) for file in files if "cache" not in file.parts}


def _content(file: Path) -> Any:
    if file.suffix in (".json", ".jsonl"):
        lines = [file.read_text()] if file.suffix == ".json" else file.read_text().splitlines()
        lines = sorted(lines) if file.parent.name == "swept" else lines  # settings, in the order in which they ended
        return json.loads(json.dumps([_lasting(json.loads(line)) for line in lines]))
    if file.suffix in (".png", ".csv", ".md"):
        return file.name
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _lasting(value: Any) -> Any:
    """A value without what is volatile."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if not any(word in key for word in _VOLATILE) and key != _SUM}
        return {key: _lasting(each) for key, each in kept.items()}
    if isinstance(value, float):
        return float(f"{value:.4g}")  # what a batch is made of changes the last digits
    return [_lasting(each) for each in value] if isinstance(value, list) else value


def _in_a_child(folder: Path, work: Callable[[], Any], memory: int | None, patience: float = SECONDS) -> Ended:
    """Run in a forked process, within time and memory; it is asked to stop after `patience` seconds."""
    said, started = folder.parent / f"{folder.name}.said", time.monotonic()
    child = os.fork()
    if child == 0:
        _be_child(folder, said, work, memory)
    signals = [(patience, signal.SIGINT), (SECONDS, signal.SIGKILL)]
    found, status, used = os.wait4(child, os.WNOHANG)
    while not found:
        if signals and time.monotonic() - started > signals[0][0]:
            os.kill(child, signals.pop(0)[1])
        time.sleep(0.005)
        found, status, used = os.wait4(child, os.WNOHANG)
    seconds = time.monotonic() - started
    return Ended(os.waitstatus_to_exitcode(status), said.read_text(errors="replace"), seconds, used.ru_maxrss * 1024)


def _be_child(folder: Path, said: Path, work: Callable[[], Any], memory: int | None) -> NoReturn:
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs this in the background
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (0, 1, 2):
            os.dup2(out if stream else os.open(os.devnull, os.O_RDONLY), stream)
        os.chdir(folder)
        if memory is not None:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
        work()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _table(cases: list[Case], seed: int) -> str:
    rows: list[tuple[str, ...]] = [("", "cases", *FAULTS, "refused", "s", "MB")]
    for family in FAMILIES:
        own = [case for case in cases if case.family == family]
        counts = [sum(case.verdict == fault for case in own) for fault in FAULTS]
        refused = sum(case.ended.status == exits.USAGE_ERROR for case in own)
        longest = max((case.ended.seconds for case in own), default=0.0)
        peak = max((case.ended.peak for case in own), default=0) >> 20
        rows.append((family, *map(str, (len(own), *counts, refused, f"{longest:.1f}", peak))))
    lines = ["  ".join(f"{cell:>13}" if i == 0 else f"{cell:>9}" for i, cell in enumerate(row)) for row in rows]
    faults = [
        f"{case.verdict}: --seed {seed} --replay '{case.family}:{case.number}'  {case.did[:160]}\n"
        f"    {(case.ended.said.strip().splitlines() or [''])[-1][:200]}"
        for case in cases
        if case.verdict in FAULTS
    ]
    return "\n".join([*lines, "", *faults])


if __name__ == "__main__":
    sys.exit(main())
