"""Calibration: one pass over the samples, statistics of every value of the network."""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from narrowgauge.calibration.histogram import EMPTY, Histogram, histogram_of_bins, leading_bits, merge_histograms
from narrowgauge.calibration.observe import Observation, Observations, observations
from narrowgauge.calibration.reduce import Reduced, calibration_network
from narrowgauge.calibration.statistics import ChannelStatistics, Statistics, TensorStatistics, merge_tensors
from narrowgauge.errors import DataError
from narrowgauge.graph.digest import network_digest
from narrowgauge.graph.engine import available_cores, open_session, run_session
from narrowgauge.graph.exposing import in_rounds
from narrowgauge.graph.feeds import Batch, named, sample_rows

Array = npt.NDArray[np.float32]

# Elements of one sample's tensor up to which every one is counted in the histogram.
SAMPLED = 2048

# Counted-up values are kept as 16-bit bins and turned into counts when so many have come together.
_PENDING_ELEMENTS = 16 * 2**20

# Bytes that the engine may hold for the values that leave it whole; more is done in several rounds per batch.
_ROUND_BYTES = 128 * 2**20

_SAVE_SECONDS = 20.0

# Batches that are under way at a time, at the most: each holds its activations.
_MOST_WORKERS = 4

# Elements that are reduced together: what stays in a core's cache.
_PIECE_ELEMENTS = 1 << 17

# Elements that decide where the counting of a sample's elements begins.
_HASHED = 64

# Far above what a sound network computes, far below the largest float32.
_SUSPICIOUS = 1e37


def collect(
    model: ir.Model,
    batches: Iterable[Batch],
    *,
    sampled: int = SAMPLED,
    threads: int | None = None,
    start: Statistics | None = None,
    save_to: Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Statistics:
    """Run samples through a network and gather the statistics of every float value, in one pass.

    Extremes per tensor are exact, and per channel too, but for one case: where a Relu or Clip bounds a value from
    below and its tensor has more than `sampled` elements, a channel that never reached the bound in the counted
    elements has their minimum. Means per channel are exact for matrix products' inputs and those of the counted
    elements for convolutions'. Memory does not grow with the number of samples.

    Args:
        model: the float network, opset 13 or newer, shapes inferred; it is not changed.
        batches: samples, as `data.batches` makes them.
        sampled: elements of one sample's tensor up to which all are counted in the histogram; of a larger one an
            even subset of about so many is.
        threads: of the engine; None for the cores that this process may use.
        start: statistics to go on from (of samples that are not among `batches`).
        save_to: file that the statistics are saved in while they grow, and when the pass is interrupted.
        progress: called with the number of samples after each batch.

    Raises:
        DataError: if there is no sample at all.
        RuntimeFailure: if the engine cannot run the network on a sample; the message names the sample.
        StatisticsError: if `start` belongs to another network.
    """
    collector = Collector(model, sampled=sampled, threads=threads)
    taken = 0 if start is None else start.samples
    saved = time.monotonic()

    def so_far() -> Statistics:
        statistics = collector.statistics()
        return statistics if start is None else start.merge(statistics)

    try:
        for batch in batches:
            collector.add(batch, first_index=taken)
            taken += batch.count
            progress(batch.count)
            if save_to is not None and time.monotonic() - saved > _SAVE_SECONDS:
                so_far().save(save_to)
                saved = time.monotonic()
        collector.finish()
    except BaseException:
        if save_to is not None and collector.statistics().samples:
            so_far().save(save_to)
        raise
    if collector.statistics().samples == 0 and start is None:
        raise DataError("no sample to calibrate with: the data are empty")
    return so_far()


class Collector:
    """The statistics of one pass while they grow; they hold whole batches only, whenever the pass is interrupted."""

    def __init__(self, model: ir.Model, *, sampled: int = SAMPLED, threads: int | None = None) -> None:
        self.model = model
        self.sampled = sampled
        self._samples = 0
        self.observations: Observations = observations(model, sampled=sampled)
        # Batches side by side, each on a thread of its own, use the cores better than one batch on all of them.
        threads = threads or available_cores()
        self._workers = min(threads, _MOST_WORKERS)
        self._threads = max(1, threads // self._workers)
        self._groups = _rounds(list(self.observations.values.values()))
        self._rounds = [_open_round(model, group, sampled, self._threads) for group in self._groups]
        self._whole_rounds: list[_Round] = []
        self._sums = {name: _Sums(observation) for name, observation in self.observations.values.items()}
        self._pending_elements = 0
        self._pool = ThreadPoolExecutor(max_workers=self._workers)
        self._looks: deque[tuple[Future[dict[str, _Part]], Batch, int]] = deque()
        self._digest = network_digest(model)

    def add(self, batch: Batch, *, first_index: int) -> None:
        """Add the samples of a batch; the first of them is sample number `first_index` of the data.

        Some batches are under way at a time; what they bring is added in their order.
        """
        self._looks.append((self._pool.submit(_look, self._rounds, batch, self.sampled), batch, first_index))
        while len(self._looks) > self._workers:
            self._add_oldest()

    def _add_oldest(self) -> None:
        """Wait for the oldest batch under way and add what it brought; if it failed, later ones are dropped."""
        look, batch, first_index = self._looks.popleft()
        try:
            parts = look.result()
        except BaseException:
            self._looks.clear()
            raise
        if not all(part.finite for part in parts.values()):
            # Maxima and pools may pass over a NaN: where one value shows something, look at every value whole.
            parts = self._careful_parts(batch, first_index)
        for name, part in parts.items():
            self._pending_elements += self._sums[name].add(part)
        self._samples += batch.count
        if self._pending_elements > _PENDING_ELEMENTS:
            self._count_pending()

    def _careful_parts(self, batch: Batch, first_index: int) -> dict[str, _Part]:
        """Look at every value whole and count NaN and infinity; for the rare batch that holds some."""
        if not self._whole_rounds:
            groups = _rounds([replace(entry, reduction="whole") for group in self._groups for entry in group])
            self._whole_rounds = [_open_round(self.model, group, self.sampled, self._threads) for group in groups]
        parts = {}
        for round_ in self._whole_rounds:
            outputs = _run(round_, batch)
            for entry in round_.reduced:
                assert entry.whole is not None
                value = outputs[entry.whole]
                part = _careful_part(entry.observation, value, batch, first_index, self.sampled)
                parts[entry.observation.name] = part
        return parts

    def finish(self) -> None:
        """Wait for the batches that are under way."""
        while self._looks:
            self._add_oldest()

    def statistics(self) -> Statistics:
        """Return what was seen so far."""
        self.finish()
        self._count_pending()
        return Statistics(
            tensors={name: sums.statistics() for name, sums in self._sums.items()},
            aliases=self.observations.aliases,
            samples=self._samples,
            sampled=self.sampled,
            network=self._digest,
        )

    def _count_pending(self) -> None:
        for sums in self._sums.values():
            sums.count_pending()
        self._pending_elements = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    session: onnxruntime.InferenceSession
    reduced: tuple[Reduced, ...]
    names: list[str]


def _open_round(model: ir.Model, group: list[Observation], sampled: int, threads: int | None) -> _Round:
    network, reduced = calibration_network(model, group, sampled=sampled)
    names = [str(value.name) for value in network.graph.outputs]
    return _Round(session=open_session(network, threads=threads), reduced=reduced, names=names)


def _rounds(observed: list[Observation]) -> list[list[Observation]]:
    """Cut the values into groups whose known sizes of what leaves the engine whole stay within a bound."""

    def size(entry: Observation) -> int:
        return 4 * math.prod(length or 1 for length in entry.shape) if entry.reduction == "whole" else 0

    return in_rounds(observed, size, _ROUND_BYTES) or [[]]  # without a value to look at, the network still runs


def _run(round_: _Round, batch: Batch) -> dict[str, Array]:
    """What is looked at of a batch: the engine's outputs, and what it was fed."""
    fed = cast("dict[str, Array]", dict(batch.feed))
    return fed | run_session(round_.session, round_.names, fed, what=f"the network on {named(batch)}")


# --- what one batch adds to one value -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What a batch adds: extremes and sums per channel (or of all, without channels), and the bins counted."""

    minimum: Array
    maximum: Array
    total: npt.NDArray[np.float64]
    count: int
    bins: npt.NDArray[np.uint16]
    has_channels: bool
    nan_count: int = 0
    infinity_count: int = 0
    first_bad: str = ""
    first_bad_index: int = -1

    @property
    def finite(self) -> bool:
        """Whether the reductions saw neither NaN nor infinity."""
        if self.count == 0:
            return True
        # A pool over nothing but NaN gives the lowest float32: numbers near it are looked at once more, too.
        return all(bool((np.abs(numbers) < _SUSPICIOUS).all()) for numbers in (self.minimum, self.maximum, self.total))


_NOTHING = _Part(
    minimum=np.full(1, np.inf, dtype=np.float32),
    maximum=np.full(1, -np.inf, dtype=np.float32),
    total=np.zeros(1),
    count=0,
    bins=np.zeros(0, np.uint16),
    has_channels=False,
)
"""What a value without elements adds."""


def _look(rounds: list[_Round], batch: Batch, sampled: int) -> dict[str, _Part]:
    """Run a batch and reduce what is looked at."""
    parts: dict[str, _Part] = {}
    for round_ in rounds:
        outputs = _run(round_, batch)
        with np.errstate(over="ignore", invalid="ignore"):  # sums of infinities show in the result
            parts |= {entry.observation.name: _part(entry, outputs, batch, sampled) for entry in round_.reduced}
    return parts


def _part(entry: Reduced, outputs: Mapping[str, Array], batch: Batch, sampled: int) -> _Part:
    if entry.whole is not None:
        return _whole_part(entry.observation, sample_rows(outputs[entry.whole], batch), batch.count, sampled)
    assert entry.maximum is not None
    assert entry.subset is not None
    subset = sample_rows(outputs[entry.subset], batch)
    has_channels = entry.observation.channel_axis is not None
    maximum = _per_channel(sample_rows(outputs[entry.maximum], batch), np.maximum, has_channels)
    inner = subset[:, :, entry.skipped[0] :, entry.skipped[1] :]
    total, number = _plane_sums(inner)
    if entry.minimum is not None:
        minimum = _per_channel(sample_rows(outputs[entry.minimum], batch), np.minimum, has_channels)
    else:
        minimum = np.min(subset, axis=(0, 2, 3))
    return _Part(
        minimum=minimum,
        maximum=maximum,
        total=total,
        count=subset.shape[0] * number,
        bins=leading_bits(_subset(inner, batch.count, sampled)),
        has_channels=has_channels,
    )


def _per_channel(values: Array, pick: np.ufunc, has_channels: bool) -> Array:
    flat = values.reshape(values.shape[0], -1) if has_channels else values.reshape(-1, 1)
    result: Array = pick.reduce(flat, axis=0)
    return result


def _plane_sums(subset: Array) -> tuple[npt.NDArray[np.float64], int]:
    """Sum per channel of points on planes, and how many points a sample's channel has."""
    points = subset.shape[2] * subset.shape[3]
    sums = subset.reshape(-1, points) @ np.ones(points, dtype=np.float32)
    return sums.reshape(subset.shape[:2]).astype(np.float64).sum(axis=0), points


def _whole_part(observation: Observation, rows: Array, count: int, sampled: int) -> _Part:
    axis = observation.channel_axis
    has_channels = axis is not None and rows.ndim > axis
    if rows.size == 0:
        return _NOTHING
    number = rows.size // (rows.shape[axis] if has_channels and axis is not None else 1)
    minimum, maximum, total = _reduced(rows, axis if has_channels else None)
    return _Part(
        minimum=minimum,
        maximum=maximum,
        total=total,
        count=number,
        bins=leading_bits(_subset(rows, count, sampled)),
        has_channels=has_channels,
    )


def _reduced(rows: Array, axis: int | None) -> tuple[Array, Array, npt.NDArray[np.float64]]:
    """Extremes and sums per channel (of all, without channels), piece by piece: a piece stays in the cache for all."""
    others: tuple[int, ...] = (0,)
    if axis is None:
        rows = rows.reshape(-1, 1)
    elif axis == rows.ndim - 1:
        rows = rows.reshape(-1, rows.shape[-1])
    else:
        others = tuple(number for number in range(rows.ndim) if number != axis)
    length = max(1, _PIECE_ELEMENTS * rows.shape[0] // rows.size)
    pieces = [rows[start : start + length] for start in range(0, rows.shape[0], length)]
    # Float32 sums of a few thousand numbers are exact enough for means, and several times faster.
    narrow = pieces[0].size <= _PIECE_ELEMENTS
    sums = np.float32 if narrow else np.float64
    parts = [(piece.min(axis=others), piece.max(axis=others), piece.sum(axis=others, dtype=sums)) for piece in pieces]
    return (
        functools.reduce(np.minimum, [part[0] for part in parts]),
        functools.reduce(np.maximum, [part[1] for part in parts]),
        np.sum([part[2] for part in parts], axis=0, dtype=np.float64),
    )


def _subset(rows: Array, count: int, sampled: int) -> Array:
    """Evenly spread elements of each sample, by a rule that looks at the sample alone, not at its batch.

    Where the first of them lies depends on the sample's numbers: what stands at the same place in every sample (an
    outlier on a corner's token) would else be counted always or never.
    """
    if rows.size <= sampled * max(count, 1) or rows.ndim == 0 or rows.shape[0] != count:
        step = max(1, rows.size // (sampled * max(count, 1)))
        return rows.reshape(-1)[::step]
    flat = rows.reshape(count, -1)
    step = max(1, flat.shape[1] // sampled)
    while math.gcd(step, rows.shape[-1]) > 1:
        step += 1
    length = flat.shape[1] // step
    some = np.ascontiguousarray(flat[:, :: max(1, flat.shape[1] // _HASHED)], dtype=np.float32).view(np.uint32)
    starts = np.bitwise_xor.reduce(some, axis=1) % step
    return np.stack([row[start : start + length * step : step] for row, start in zip(flat, starts, strict=True)])


def _careful_part(observation: Observation, value: Array, batch: Batch, first_index: int, sampled: int) -> _Part:
    rows = sample_rows(value, batch)
    if rows.size == 0:
        return _NOTHING
    finite = np.isfinite(rows)
    clean = np.where(finite, rows, np.float32(np.nan))
    axis = observation.channel_axis
    has_channels = axis is not None and rows.ndim > axis
    columns = np.moveaxis(clean, axis, -1) if has_channels and axis is not None else clean
    flat = columns.reshape(-1, columns.shape[-1] if has_channels else 1)  # (elements of a channel, channels)
    bad_rows = np.flatnonzero(~finite.reshape(finite.shape[0] if finite.ndim else 1, -1).all(axis=1))
    row = int(bad_rows[0]) if bad_rows.size and rows.ndim and rows.shape[0] == batch.count else 0
    return _Part(
        minimum=np.fmin.reduce(flat, axis=0, initial=np.inf),
        maximum=np.fmax.reduce(flat, axis=0, initial=-np.inf),
        total=np.nansum(flat, axis=0, dtype=np.float64),
        count=flat.shape[0],
        bins=leading_bits(_subset(rows, batch.count, sampled)),
        has_channels=has_channels,
        nan_count=int(np.isnan(rows).sum()),
        infinity_count=int(np.isinf(rows).sum()),
        first_bad=batch.names[row] if bad_rows.size else "",
        first_bad_index=first_index + row if bad_rows.size else -1,
    )


class _Sums:
    """Statistics of one value while they grow."""

    def __init__(self, observation: Observation) -> None:
        self.observation = observation
        self._counted: Histogram = EMPTY
        self._pending: list[npt.NDArray[np.uint16]] = []
        self._tensor: TensorStatistics | None = None

    def add(self, part: _Part) -> int:
        """Add a batch; return how many elements wait to be counted."""
        axis = self.observation.channel_axis
        channels = None
        if part.has_channels and axis is not None:
            channels = ChannelStatistics(
                axis=axis, minimum=part.minimum, maximum=part.maximum, total=part.total, count=part.count
            )
        seen = TensorStatistics(
            minimum=float(part.minimum.min(initial=np.inf)),
            maximum=float(part.maximum.max(initial=-np.inf)),
            histogram=EMPTY,
            channels=channels,
            nan_count=part.nan_count,
            infinity_count=part.infinity_count,
            first_bad=part.first_bad,
            first_bad_index=part.first_bad_index,
        )
        self._tensor = seen if self._tensor is None else merge_tensors([self._tensor, seen])
        self._pending.append(part.bins)
        return int(part.bins.size)

    def count_pending(self) -> None:
        """Turn waiting elements into counts."""
        if self._pending:
            fresh = histogram_of_bins(np.concatenate(self._pending))
            self._counted = merge_histograms([self._counted, fresh])
            self._pending = []

    def statistics(self) -> TensorStatistics:
        """Return what was seen."""
        empty = TensorStatistics(minimum=math.inf, maximum=-math.inf, histogram=EMPTY, channels=None)
        tensor = self._tensor or empty
        return TensorStatistics(
            minimum=tensor.minimum,
            maximum=tensor.maximum,
            histogram=self._counted,
            channels=tensor.channels,
            nan_count=tensor.nan_count,
            infinity_count=tensor.infinity_count,
            first_bad=tensor.first_bad,
            first_bad_index=tensor.first_bad_index,
        )
