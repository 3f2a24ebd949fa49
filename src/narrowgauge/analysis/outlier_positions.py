"""Where outliers fall, and how large they and their neighbours are, seen on a few samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.graph.engine import open_session, run_session
from narrowgauge.graph.feeds import Batch
from narrowgauge.graph.pieces import piece

Array = npt.NDArray[Any]

# Positions are named where at least half of the samples have the outlier there, unless those are more than so many.
_USUAL = 0.5
_MOST_POSITIONS = 16

# Ordinary numbers that are kept of a batch for the median.
_MOST_KEPT = 2**14


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """What is looked for.

    Attributes:
        value: the value's name.
        axis: of its channels.
        channel: which of them.
        threshold: magnitudes above it are the outlier, those below are ordinary.
    """

    value: str
    axis: int
    channel: int
    threshold: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What the samples had there.

    Attributes:
        positions: on which it falls in most samples, most frequent first; empty if anywhere, or where samples differ in
            size.
        low: 10th percentile of the numbers above the threshold, real units, NaN where there was none.
        high: 90th percentile, likewise: the outermost are those of a sample or two.
        ordinary: median magnitude below the threshold, likewise.
    """

    positions: tuple[int, ...] = ()
    low: float = math.nan
    high: float = math.nan
    ordinary: float = math.nan


def look_at(
    model: ir.Model, spots: Mapping[Any, Spot], batches: Iterable[Batch], *, threads: int | None = None
) -> dict[Any, Seen]:
    """Run samples through the part of a network that writes some values, and look at one channel of each.

    Args:
        model: the float network.
        spots: by any key.
        batches: a few samples; without any, nothing is found.
        threads: of the engine; None for the cores that this process may use.

    Raises:
        RuntimeFailure: if the engine cannot run the network on the samples.
    """
    written = {str(value.name) for node in model.graph for value in node.outputs}
    names = list(dict.fromkeys(spot.value for spot in spots.values() if spot.value in written))
    tallies = {key: _Tally() for key in spots}
    session = None
    for batch in batches if names else ():
        if session is None:
            session = open_session(piece(model, list(model.graph), names), threads=threads)
        wanted = {entry.name for entry in session.get_inputs()}
        values = run_session(session, names, {name: one for name, one in batch.feed.items() if name in wanted})
        for key, spot in spots.items():
            rows = _rows(values.get(spot.value), spot, batch.count)
            if rows is not None:
                tallies[key].add(rows, spot.threshold)
    return {key: tally.seen() for key, tally in tallies.items()}


@dataclass(kw_only=True, slots=True)
class _Tally:
    hits: Counter[int] = field(default_factory=Counter)
    sizes: set[int] = field(default_factory=set)
    samples: int = 0
    large: list[Array] = field(default_factory=list)
    ordinary: list[Array] = field(default_factory=list)

    def add(self, rows: Array, threshold: float) -> None:
        """Count one batch, `[samples, positions]`."""
        large = np.abs(rows) > threshold
        self.samples += rows.shape[0]
        self.sizes.add(rows.shape[1])
        self.hits.update(np.nonzero(large)[1].tolist())
        self.large.append(rows[large])
        others = np.abs(rows[~large])
        self.ordinary.append(others[:: max(1, others.size // _MOST_KEPT)])

    def seen(self) -> Seen:
        large = np.concatenate(self.large) if self.large else np.zeros(0)
        others = np.concatenate(self.ordinary) if self.ordinary else np.zeros(0)
        return Seen(
            positions=_usual(self.hits, self.samples) if len(self.sizes) == 1 and self.sizes != {1} else (),
            low=float(np.percentile(large, 10)) if large.size else math.nan,
            high=float(np.percentile(large, 90)) if large.size else math.nan,
            ordinary=float(np.median(others)) if others.size else math.nan,
        )


def _rows(array: Array | None, spot: Spot, count: int) -> Array | None:
    """One channel as [samples, positions]; None for a value without an axis of samples."""
    if array is None or array.ndim < 2 or spot.axis == 0 or array.shape[0] < count:
        return None
    rows: Array = np.take(array[:count], spot.channel, axis=spot.axis).reshape(count, -1)
    return rows


def _usual(hits: Counter[int], samples: int) -> tuple[int, ...]:
    usual = sorted((-count, position) for position, count in hits.items() if count >= _USUAL * samples)
    return tuple(position for _, position in usual) if len(usual) <= _MOST_POSITIONS else ()
