"""The run as the page tells it: the figures of `summary.json`, as far as they are there, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from narrowgauge.analysis.records import Step
from narrowgauge.report import figures
from narrowgauge.runtimes.engines import ENGINES

Level = Literal["good", "loss", "broken", "unknown"]

# Below these the check calls the networks different (analysis/check.py).
_COLLAPSED_AGREEMENT = 80.0
_COLLAPSED_SQNR_DB = 6.0

# What a person calls "kept": a point of accuracy; without labels, as many answers as such networks change without
# losing accuracy (published 8-bit networks agree on 95 % and more); without answers, an error of a hundredth.
_KEPT_POINTS = 1.0
_KEPT_AGREEMENT = 95.0
_KEPT_SQNR_DB = 20.0

_MEASURES = {"top1": "Top-1 accuracy", "top5": "Top-5 accuracy"}


REPORT = "report.html"
"""The page's own name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One measure of both networks; `unit` is "%" for accuracies and empty for a user's own measure."""

    title: str
    unit: str
    reference: float
    quantized: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What `summary.json` says; None where it says nothing.

    Attributes:
        model: the network's file name without folders.
        recipe: the recipe's name.
        mode: static, dynamic or weight-only.
        metrics: measures of both networks, the most telling first.
        agreement: percent of the answers that are the same.
        sqnr_db: of the outputs, decibels.
        samples: how many were checked.
        float_bytes: size of the float network.
        quantized_bytes: size of the quantized one.
        float_ms: median latency of the float network.
        quantized_ms: likewise of the quantized one.
        float_engine: title of the engine that the float network was timed in, where that is another; else "".
        seconds: per stage.
        files: name -> bytes.
        peak_bytes: largest memory of the run.
        notes: what a person should know.
        versions: name -> version of what made it.
    """

    model: str
    recipe: str
    mode: str
    metrics: tuple[Metric, ...]
    agreement: float | None
    sqnr_db: float | None
    samples: int
    float_bytes: float | None
    quantized_bytes: float | None
    float_ms: float | None
    quantized_ms: float | None
    float_engine: str
    seconds: dict[str, float]
    files: dict[str, float]
    peak_bytes: float | None
    notes: tuple[str, ...]
    versions: dict[str, str]

    @property
    def times_smaller(self) -> float | None:
        """Size of the float network over that of the quantized one."""
        return _ratio(self.float_bytes, self.quantized_bytes)

    @property
    def times_faster(self) -> float | None:
        """Latency of the float network over that of the quantized one."""
        return _ratio(self.float_ms, self.quantized_ms)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What came of it in a few words and in plain sentences."""

    level: Level
    title: str
    sentences: tuple[str, ...]


def _other_engine(runtimes: Mapping[str, Any]) -> str:
    timed = runtimes.get("float")
    return next((one.title for one in ENGINES if one.name == timed != runtimes.get("quantized")), "")


def read_run(summary: Mapping[str, Any]) -> Run:
    """Take what is there from a summary; a key that is missing or of another kind is taken as not measured."""
    sizes, latency = _table(summary, "size_bytes"), _table(summary, "latency_ms")
    sqnr = math.inf if summary.get("sqnr_infinite") is True else _number(summary.get("sqnr_db"))
    return Run(
        model=PurePath(str(summary.get("model") or "network")).name,
        recipe=str(summary.get("recipe") or ""),
        mode=str(summary.get("mode") or ""),
        metrics=_metrics(_table(summary, "float"), _table(summary, "quantized")),
        agreement=_number(summary.get("agreement_top1")),
        sqnr_db=sqnr,
        samples=max(int(_number(summary.get("checked_samples")) or 0), 0),
        float_bytes=_number(sizes.get("float")),
        quantized_bytes=_number(sizes.get("quantized")),
        float_ms=_number(latency.get("float")),
        quantized_ms=_number(latency.get("quantized")),
        float_engine=_other_engine(_table(summary, "latency_runtimes")),
        seconds=_numbers(_table(summary, "seconds")),
        files=_numbers({
            name: entry.get("bytes")
            for name, entry in _table(summary, "files").items()
            if isinstance(entry, Mapping) and name != REPORT  # its own size would change with what it says of it
        }),
        peak_bytes=_number(summary.get("peak_rss_bytes")),
        notes=tuple(map(str, notes)) if isinstance(notes := summary.get("notes"), list | tuple) else (),
        versions={name: str(version) for name, version in _table(summary, "versions").items()},
    )  # fmt: skip


def read_steps(summary: Mapping[str, Any]) -> tuple[Step, ...]:
    """Take the steps of recovery from a summary, in which null stands for NaN; what is no step is left out."""
    steps = summary.get("steps")
    return tuple(_step(step) for step in steps if isinstance(step, Mapping)) if isinstance(steps, list | tuple) else ()


def _step(record: Mapping[str, Any]) -> Step:
    before, after, seconds = (_number(record.get(key)) for key in ("noise_before", "noise_after", "seconds"))
    return Step(
        name=str(record.get("name") or ""),
        detail=str(record.get("detail") or ""),
        noise_before=math.nan if before is None else before,
        noise_after=math.nan if after is None else after,
        seconds=math.nan if seconds is None else seconds,
        kept=record.get("kept") is True,
        drop=_number(record.get("drop")),
        judged_db=_number(record.get("judged_db")),
    )


def verdict(run: Run) -> Verdict:
    """Say whether the quantized network can take the float one's place, and by what that is known."""
    if not run.samples:
        return Verdict(
            level="unknown", title="Not checked",
            sentences=("There were no samples to check with, so nothing is known of the accuracy.", *_gains(run)),
        )  # fmt: skip
    level, title = _level(run)
    return Verdict(level=level, title=title, sentences=(*_accuracy(run), *_gains(run)))


def chance(run: Run) -> float | None:
    """How far a difference in accuracy may come from the choice of samples, percentage points, 95 %.

    The difference is a mean of values -1, 0 and 1, and not 0 only where the answers differ; so its standard error is at
    most sqrt(share of other answers / samples).
    """
    if run.agreement is None or not run.samples:
        return None
    return 196 * math.sqrt(max(100 - run.agreement, 0) / 100 / run.samples)


def _level(run: Run) -> tuple[Level, str]:
    agreement, sqnr = run.agreement, run.sqnr_db
    if (agreement is not None and agreement < _COLLAPSED_AGREEMENT) or (sqnr is not None and sqnr < _COLLAPSED_SQNR_DB):
        return "broken", "Do not ship this"
    lost = next((one.reference - one.quantized for one in run.metrics if one.unit), None)
    if lost is not None:
        kept = lost <= _KEPT_POINTS
    elif agreement is not None:
        kept = agreement >= _KEPT_AGREEMENT
    elif sqnr is not None:
        kept = sqnr >= _KEPT_SQNR_DB
    else:
        return "unknown", "Not comparable"
    return ("good", "The accuracy is kept") if kept else ("loss", "Some accuracy is lost")


def _accuracy(run: Run) -> list[str]:
    sentences = []
    if run.metrics:
        first = run.metrics[0]
        before, after = (figures.points(value, first.unit) for value in (first.reference, first.quantized))
        sentences.append(f"{first.title}: {after}, against {before} of the float network.")
    if run.agreement is not None:
        sentences.append(f"It gives the float network’s answer on {run.agreement:.1f} % of {run.samples:,} samples.")
        margin = chance(run)
        if run.metrics and run.metrics[0].unit and margin:
            sentences.append(f"With so many samples, up to {margin:.1f} points of a difference may be chance.")
    elif run.sqnr_db is not None:
        sentences.append(f"Its outputs differ from the float ones by {figures.error_size(run.sqnr_db)} of their size.")
    return sentences


def _gains(run: Run) -> list[str]:
    parts = []
    if run.times_smaller is not None:
        parts.append(_times(run.times_smaller, "smaller", "larger"))
    if run.times_faster is not None:
        parts.append(_times(run.times_faster, "faster", "slower") + " on one thread here")
    return [f"It is {' and '.join(parts)}."] if parts else []


def _times(ratio: float, better: str, worse: str) -> str:
    if abs(ratio - 1) < 0.05:
        return f"no {better}"
    return f"{ratio:.1f} times {better}" if ratio > 1 else f"{1 / ratio:.1f} times {worse}"


def _metrics(reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> tuple[Metric, ...]:
    """A user's own metric says more than top-1, and that more than top-5: the order of `--max-drop`."""
    own = [name for name in reference if name not in _MEASURES]
    found = []
    for name in [*own, *_MEASURES]:
        before, after = _number(reference.get(name)), _number(candidate.get(name))
        if before is not None and after is not None:
            unit = "%" if name in _MEASURES else ""
            found.append(Metric(title=_MEASURES.get(name, name), unit=unit, reference=before, quantized=after))
    return tuple(found)


def _ratio(first: float | None, second: float | None) -> float | None:
    return first / second if first and second else None


def _table(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    read = {str(name): _number(value) for name, value in record.items()}
    return {name: value for name, value in read.items() if value is not None}
