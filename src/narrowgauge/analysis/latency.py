"""How fast networks are beside each other: interleaved runs, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Times of one network.

    Attributes:
        median_ms: of one run, milliseconds.
        minimum_ms: fastest run.
        runs: how many were timed.
    """

    median_ms: float
    minimum_ms: float
    runs: int


def measure_latency(
    runs: Mapping[str, Callable[[], object]], *, seconds: float = 0.25, most: int = 200
) -> dict[str, Latency]:
    """Time networks in turn, A B C A B C ..., so that a machine that changes speed changes all of them.

    Args:
        runs: name -> one run.
        seconds: about how long to go on, all together.
        most: rounds at the most.

    Returns:
        Name -> times; the first round warms up and is not counted.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()), [])) < most:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start))
        if time.perf_counter() > end and len(next(iter(times.values()))) >= 3:
            break
    return {
        name: Latency(median_ms=statistics.median(taken), minimum_ms=min(taken), runs=len(taken))
        for name, taken in times.items()
    }
