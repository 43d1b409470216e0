"""Whether a machine has what the library needs, what it could have besides, and whether it samples.

Each check stands by itself and imports what it asks about, so that a broken installation is told and not died of.
"""

import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

DISTRIBUTION = "edlm-torch"
_FOR_DEVELOPERS = ("test", "dev")
_TEXTS, _LENGTH, _STEPS = 3, 32, 8


class Finding(NamedTuple):
    """One finding: the thing looked at, what is there, what is needed, and whether the library can do with it."""

    what: str
    found: str
    remark: str = ""
    suffices: bool = True


def examine() -> Iterator[Finding]:
    """Look at versions, device, compiler, extras and caches, and draw a few texts: one finding after the other."""
    yield from _versions()
    for what, look in (("device", _device), ("compiler", _compiler), ("recipes", _recipes)):
        yield _survived(what, look)
    yield from _extras()
    yield _survived("token cache", _token_cache)
    yield _survived("sampling", _sampling)


def table(findings: list[Finding]) -> str:
    """Lay out findings in aligned columns, a line each; `!` in front of what does not suffice."""
    what, found = max(len(own.what) for own in findings), max(len(own.found) for own in findings)
    return "\n".join(
        f"{' ' if own.suffices else '!'} {own.what:<{what}}  {own.found:<{found}}  {own.remark}".rstrip()
        for own in findings
    )


def _versions() -> Iterator[Finding]:
    """Python, and every package that is required without an extra."""
    about = metadata.metadata(DISTRIBUTION)
    yield Finding("edlm", metadata.version(DISTRIBUTION))
    yield _compared("python", platform.python_version(), SpecifierSet(about["Requires-Python"]))
    for wanted in _required():
        if wanted.marker is None:
            yield _compared(wanted.name, _version(wanted.name), wanted.specifier)


def _extras() -> Iterator[Finding]:
    """Every extra of users, and how to have it where it is not there."""
    for extra in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []:
        if extra not in _FOR_DEVELOPERS:
            own = [
                _compared(each.name, _version(each.name), each.specifier)
                for each in _required()
                if each.marker is not None and each.marker.evaluate({"extra": extra})
            ]
            there = all(each.suffices for each in own)
            found = ", ".join(f"{each.what} {each.found}" for each in own)
            yield Finding(f"extra {extra}", found, "" if there else f"pip install '{DISTRIBUTION}[{extra}]'")


def _required() -> list[Requirement]:
    return [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _compared(what: str, version: str | None, wanted: SpecifierSet) -> Finding:
    needed = ",".join(sorted(map(str, wanted), reverse=True))  # >=2.11,<2.14
    suffices = version is not None and wanted.contains(version, prereleases=True)
    return Finding(what, version or "not installed", f"needs {needed}", suffices)


def _survived(what: str, look: Callable[[], Finding]) -> Finding:
    """Return what a check finds, or the error that it ends in."""
    try:
        return look()
    except Exception as error:  # whatever is wrong with an installation
        reason = re.sub(r"\s+", " ", str(error)).strip()
        return Finding(what, "failed", f"{type(error).__name__}: {reason}"[:200], False)


def _device() -> Finding:
    import torch

    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        return Finding("device", "cpu", threads)
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Finding("device", "cuda", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB; {threads}")


def _compiler() -> Finding:
    import torch

    from edlm.samplers import execution

    missing = execution.missing_compiler(torch.device("cpu"))
    if missing:
        return Finding("compiler", f"no {missing}", "execution=compile runs eager without a C++ compiler")
    return Finding("compiler", shutil.which(os.environ.get("CXX", "")) or "found", "for execution=compile")


def _recipes() -> Finding:
    """A component as recipes build it, through torchtune: a wrong torchao shows when that is imported, not before."""
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it reports at import that it has no kernels for this torch
    import_module("edlm.runs.settings").build({"_component_": "edlm.schedules.log_linear"})
    return Finding("recipes", "a component is built")


def _token_cache() -> Finding:
    from edlm.data import datasets

    folder = Path(datasets.CACHE).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    return Finding("token cache", datasets.CACHE, "" if writable else f"{existing} cannot be written to", writable)


def _sampling() -> Finding:
    """Texts of an untrained network are whole, and one alone is the text that it is among others."""
    import torch

    from edlm import samplers
    from edlm.models import denoisers
    from edlm.nn import networks
    from edlm.samplers import pipelines, plans

    started = time.monotonic()
    network = networks.Transformer(28, _LENGTH, hidden_size=32, num_layers=1, num_heads=2).eval()
    sampler = samplers.Sampler(denoisers.subs(network, mask_id=27), plans.Grid(_STEPS))
    pipeline = pipelines.pipeline(sampler, _LENGTH)
    together = pipelines.sample(pipeline, _TEXTS, seed=0)["tokens"]
    alone = pipelines.sample(pipeline, 1, seed=0, first_row=_TEXTS - 1)["tokens"]
    whole, same = bool((together != 27).all()), torch.equal(alone[0], together[-1])
    said = f"{_TEXTS} texts of {_LENGTH} tokens in {_STEPS} steps: "
    said += "whole, and the same alone" if whole and same else "masks are left" if same else "another text alone"
    return Finding("sampling", f"{time.monotonic() - started:.2f} s", said, whole and same)
