"""One case measured: the time, memory, passes and parts of every method, and whether the targets are met."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from edlm.benchmark.methods import Case, Method
from edlm.runs import tables, timing
from edlm.runs.timing import Clock, Part, Spread

TEXTBOOK = "textbook"
_NETWORKS, _HEADS = ("denoiser", "energy"), ("denoiser head", "energy head")
_STAGES = ("denoise", "propose", "weigh", "select", "reveal", "noise")
_HEADER = ["", "seconds", "lowest", "highest", "x faster", "lowest", "highest"]
_HEADER += ["peak", "passes", "of matmul rate", "preparation"]


class Verdict(NamedTuple):
    """A figure beside its target."""

    what: str
    method: str
    figure: float
    target: float
    met: bool


def measure(
    case: Case, methods: Mapping[str, Method], device: torch.device, rate: float, detailed: bool = True
) -> dict[str, Any]:
    """Prepare every method, look into it once if `detailed`, then time all of them in turns: a record for json.

    rate: operations per second of a large product, which the achieved rates are a share of. A method that runs out of
    the device's memory is left out, and the record says so.
    """
    able: dict[str, Method] = {}
    records: dict[str, dict[str, Any]] = {}
    for name, method in methods.items():
        try:
            records[name] = _prepare(method, device, detailed)
            able[name] = method
        except torch.OutOfMemoryError:
            records[name] = {"failed": "out of memory"}
    times = timing.interleaved({name: method.run for name, method in able.items()}, case.repeats, device)
    for name, method in able.items():
        _add_times(records[name], [value * method.scale for value in times[name]], method)
    scaled = {name: records[name]["seconds"] for name in able}
    ratios = {
        name: timing.ratios(scaled[TEXTBOOK], scaled[name])._asdict()
        for name in able
        if name != TEXTBOOK and TEXTBOOK in able
    }
    _add_rates(records, rate)
    return {"name": str(case), "case": case._asdict(), "methods": records, "ratios": ratios}


def judge(record: Mapping[str, Any], targets: Mapping[str, float | None]) -> list[Verdict]:
    """Compare a record with its targets: times faster, times less memory, and the machinery's share of eager time."""
    methods, verdicts = record["methods"], []
    for name in record["ratios"]:
        if targets["target"] is not None:
            ratio = record["ratios"][name]["median"]
            verdicts.append(_at_least("times faster", name, ratio, targets["target"]))
        peaks = [methods[each].get("peak_memory") for each in (TEXTBOOK, name)]
        if targets["memory_target"] is not None and None not in peaks:
            saved = peaks[0] / max(1, peaks[1])
            verdicts.append(_at_least("times less memory", name, saved, targets["memory_target"]))
        share, wanted = methods[name].get("shares", {}).get("machinery"), targets["machinery_target"]
        if wanted is not None and share is not None:
            verdicts.append(Verdict("machinery's share", name, share, wanted, share <= wanted))
    return verdicts


def table(record: Mapping[str, Any]) -> str:
    """Lay out a record for the terminal: a line per method, and where the time of those that were looked into went."""
    rows = [_row(name, method, record["ratios"].get(name)) for name, method in record["methods"].items()]
    lines = [record["name"], tables.columns([_HEADER, *rows])]
    for name, method in record["methods"].items():
        if "extrapolated_by" in method:
            case = record["case"]
            lines.append(f"  {name}: extrapolated from {case['textbook_steps']} of {case['num_steps']} steps")
        if "shares" in method:
            shares = ", ".join(f"{part} {share:.1%}" for part, share in method["shares"].items())
            rate = method["denoiser_share_of_matmul_rate"]
            lines.append(f"  {name}: {shares}; a denoiser pass at {rate:.1%} of the matmul rate")
    return "\n".join(lines)


def say(verdict: Verdict) -> str:
    """Say a verdict in one line."""
    outcome = "met" if verdict.met else "missed"
    return f"  {verdict.method}: {verdict.what} {verdict.figure:.3g}, target {verdict.target:g}: {outcome}"


def _prepare(method: Method, device: torch.device, detailed: bool) -> dict[str, Any]:
    """Run a method for the first times, which are not timed, and look into one of them."""
    empty = timing.memory_in_use(device) if timing.can_measure_memory(device) else 0
    record: dict[str, Any] = {"first_runs": timing.seconds(method.warm_up, device)}
    if method.observe is None:  # a mode that may compile or capture more sizes than the warm-up has
        record["first_runs"] += timing.seconds(method.run, device)
    if not detailed:
        return record
    clock, observe, spent = Clock(device), method.observe, 0.0

    def look() -> None:
        nonlocal spent
        spent = timing.seconds(method.run if observe is None else lambda: observe(clock), device)

    if timing.can_measure_memory(device):
        above = empty if device.type == "cuda" else timing.memory_in_use(device)
        record["peak_memory"] = timing.peak_memory(look, device, above)
    else:
        look()
    return record if observe is None else record | _looked_into(clock.parts, spent, method.scale)


def _looked_into(parts: Mapping[str, Part], total: float, scale: float) -> dict[str, Any]:
    """Passes, operations and shares of an observed run, those of a whole case."""
    known = {name: parts[name] for name in (*_NETWORKS, *_HEADS) if name in parts}
    networks = sum(part.seconds for name, part in known.items() if name in _NETWORKS)
    heads = sum(part.seconds for name, part in known.items() if name in _HEADS)
    shares = {"networks": networks, "heads": heads, "machinery": total - networks - heads}
    shares |= {name: parts[name].seconds for name in _STAGES if name in parts}
    denoiser = parts["denoiser"]
    return {
        "passes": {name: {"calls": part.calls * scale, "rows": part.rows * scale} for name, part in known.items()},
        "flops": sum(part.flops for part in known.values()) * scale,
        "denoiser_flops_per_second": denoiser.flops / denoiser.seconds,
        "shares": {name: value / total for name, value in shares.items()},
    }


def _add_times(record: dict[str, Any], seconds: list[float], method: Method) -> None:
    record |= {"seconds": seconds, **timing.spread(seconds)._asdict()}
    if method.scale != 1.0:
        record["extrapolated_by"] = method.scale
    if method.observe is None:
        record["preparation"] = max(0.0, record["first_runs"] - record["median"])


def _add_rates(records: Mapping[str, dict[str, Any]], rate: float) -> None:
    """Operations per second as a share of `rate`; every mode of ours does the operations that eager was seen to do."""
    seen = records.get("eager", {}).get("flops")
    for name, record in records.items():
        flops = record.get("flops", None if name == TEXTBOOK else seen)
        if flops is not None and "median" in record:
            record["share_of_matmul_rate"] = flops / record["median"] / rate
        if "denoiser_flops_per_second" in record:
            record["denoiser_share_of_matmul_rate"] = record["denoiser_flops_per_second"] / rate


def _at_least(what: str, method: str, figure: float, target: float) -> Verdict:
    return Verdict(what, method, figure, target, figure >= target)


def _row(name: str, record: Mapping[str, Any], ratio: Mapping[str, float] | None) -> list[str]:
    if "failed" in record:
        return [name, record["failed"], *[""] * (len(_HEADER) - 2)]
    peak, passes, share = record.get("peak_memory"), record.get("passes"), record.get("share_of_matmul_rate")
    return [
        name,
        *(f"{record[key]:.4g}" for key in Spread._fields),
        *("" if ratio is None else f"{ratio[key]:.3g}" for key in Spread._fields),
        "" if peak is None else f"{peak / 2**20:.0f} MiB",
        "" if passes is None else " + ".join(f"{passes[part]['calls']:.0f}" for part in _NETWORKS if part in passes),
        "" if share is None else f"{share:.1%}",
        f"{record['preparation']:.1f} s" if "preparation" in record else "",
    ]
