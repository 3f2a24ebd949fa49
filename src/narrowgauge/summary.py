"""What `summary.json` holds."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from narrowgauge.analysis.check import Check
from narrowgauge.analysis.evaluate import Answers
from narrowgauge.analysis.records import Step
from narrowgauge.core.plan import Plan
from narrowgauge.exporters.folder import Written


def summarize(  # noqa: PLR0913 - the parts of the record, each by name
    *,
    model: str,
    target: str,
    recipe: str,
    plan: Plan,
    check: Check | None,
    float_bytes: int,
    written: Written,
    seconds: Mapping[str, float],
    steps: Sequence[Step],
    notes: Sequence[str],
    bit_exact: Mapping[str, Any],
) -> dict[str, Any]:
    """Put a run's figures together as JSON values; a figure that was not measured is null.

    Sizes are bytes, times seconds but for `latency_ms`, accuracies percent, `sqnr_db` decibels (null where both
    networks' outputs are equal: `sqnr_infinite` is then true). `steps` are what recovery tried, see
    `analysis.records.Step`. `runnable` is the file that was checked and the engine that runs it ("" where it is
    simulated), and whether the plan is in it; `first_sample` has the best five classes of the first sample that was
    checked, the best first; `latency_runtimes` are the engines that were timed. `bit_exact` has, for each engine that
    was looked into, how its integers lie to ours, see `analysis.exactness.to_summary`. `files` are those beside the
    summary, each with size and sha256, filled in once they are written.
    """
    comparison = check.comparison if check is not None else None
    latency = check.latency if check is not None else {}
    sqnr = comparison.sqnr_db if comparison is not None else None
    return {
        "model": model,
        "target": target,
        "recipe": recipe,
        "mode": plan.mode,
        "float": dict(comparison.reference) if comparison is not None else {},
        "quantized": dict(comparison.candidate) if comparison is not None else {},
        "agreement_top1": comparison.agreement_top1 if comparison is not None else None,
        "sqnr_db": sqnr if sqnr is not None and math.isfinite(sqnr) else None,
        "sqnr_infinite": sqnr == math.inf,
        "first_sample": _answers(comparison.first) if comparison is not None else None,
        "checked_samples": comparison.samples if comparison is not None else 0,
        "labelled_samples": comparison.labelled if comparison is not None else 0,
        "size_bytes": {"float": float_bytes, "quantized": written.size_bytes},
        "runnable": {"file": written.runnable.name, "runtime": written.runtime, "planned": written.planned},
        "latency_ms": {name: times.median_ms for name, times in latency.items()} or {"float": None, "quantized": None},
        "latency_runtimes": {
            "float": check.float_runtime if check is not None else "",
            "quantized": check.runtime if check is not None else "",
        },
        "bit_exact": dict(bit_exact),
        "files": {},
        "seconds": dict(seconds),
        "peak_rss_bytes": peak_memory_bytes(),
        "float_nodes": [
            {"name": node.name, "operator": node.operator, "reason": node.reason} for node in plan.float_nodes
        ],
        "steps": [_finite(dataclasses.asdict(step)) for step in steps],
        "notes": list(dict.fromkeys(notes)),
    }


def _answers(first: Answers | None) -> dict[str, Any] | None:
    if first is None:
        return None
    return {"name": first.name, "top5": {"float": list(first.reference), "quantized": list(first.candidate)}}


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: what was not measured is null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far, bytes.

    Linux counts a child's `ru_maxrss` from the size of the process that started it; its own `VmHWM` does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
