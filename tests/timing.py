"""CPU seconds of what is measured beside an AR model, and their ratio to its own."""

import time
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any


def seconds(work: Callable[..., Any], *given: Any, **named: Any) -> tuple[float, Any]:
    """Measure CPU seconds, and give what came of them."""
    start = time.process_time()
    found = work(*given, **named)
    return time.process_time() - start, found


def shown(ratios: list[float]) -> str:
    """Write the mean of ratios with its standard error, if there are several."""
    error = f" ± {stdev(ratios) / len(ratios) ** 0.5:.2f}" if len(ratios) > 1 else ""
    return f"{mean(ratios):.2f}{error}"
