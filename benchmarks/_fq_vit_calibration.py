"""What FQ-ViT's observers keep of a network's values, and the quantizers they make of it.

Lin et al., "FQ-ViT: Post-Training Quantization for Fully Quantized Vision Transformer", 2022, as its code has them:
github.com/megvii-research/FQ-ViT at 5daf591, models/ptq/observer/. Values are seen in batches of the float network; a
batch is fed in chunks here, which changes nothing: extremes, quantiles and sums of squares of a batch are put together
from those of its chunks, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.power_of_two_factor import choose_factor, published_factor

Array = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]

UINT8 = IntegerType(bits=8, signed=False)
INT8 = IntegerType(bits=8, signed=True)

MOMENTUM = 0.01
QUANTILE = 0.99999
SHRINKING_STEPS = 90
MOST_SHIFT = 3
_GROUPS = 4096
_LEAST_SCALE = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a chunk of a batch showed of a value.

    Attributes:
        minimum: least number of each channel (last axis), shape (channels,).
        maximum: greatest number, likewise.
        tails: its smallest and its largest numbers, as many as the batch's quantiles need.
        count: of its numbers.
    """

    minimum: Array
    maximum: Array
    tails: tuple[Array, Array]
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a batch showed of a value: extremes of each channel, shape (channels,), and the quantiles of all."""

    minimum: Array
    maximum: Array
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What calibration saw of a value.

    Attributes:
        batches: one after another.
        errors: of the last batch, squared, summed, for each range that `shrunk` gives; float64, shape (steps,).
        rows: the last batch itself where its channels are needed, shape (rows, channels), else None.
    """

    batches: Sequence[Seen]
    errors: Sums
    rows: Array | None

    @property
    def minimum(self) -> Array:
        """Least number of each channel, shape (channels,)."""
        least: Array = np.min([seen.minimum for seen in self.batches], axis=0)
        return least

    @property
    def maximum(self) -> Array:
        """Greatest number of each channel, shape (channels,)."""
        greatest: Array = np.max([seen.maximum for seen in self.batches], axis=0)
        return greatest


# --- observing ------------------------------------------------------------------------------------------------


def part_of(values: Array, chunks: int) -> Part:
    """Observe a chunk of a batch that comes in so many chunks of this size."""
    rows, flat = values.reshape(-1, values.shape[-1]), values.reshape(-1)
    kept = min(flat.size, int((1 - QUANTILE) * flat.size * chunks) + 2)
    return Part(
        minimum=rows.min(axis=0),
        maximum=rows.max(axis=0),
        tails=(-_largest(-flat, kept), _largest(flat, kept)),
        count=flat.size,
    )


def _largest(values: Array, kept: int) -> Array:
    """Return the largest numbers in any order; few are sorted, for the least of the largest of groups bounds them."""
    if kept <= _GROUPS <= values.size // 2:
        groups = values[: values.size // _GROUPS * _GROUPS].reshape(-1, _GROUPS).max(axis=0)
        values = values[values >= np.partition(groups, _GROUPS - kept)[_GROUPS - kept]]
    return np.partition(values, values.size - kept)[values.size - kept :]


def joined(parts: Sequence[Part]) -> Seen:
    """Put the chunks of a batch together."""
    count = sum(part.count for part in parts)
    smallest = np.sort(np.concatenate([part.tails[0] for part in parts]))
    largest = -np.sort(-np.concatenate([part.tails[1] for part in parts]))
    return Seen(
        minimum=np.min([part.minimum for part in parts], axis=0),
        maximum=np.max([part.maximum for part in parts], axis=0),
        low=_from_end(smallest, count),
        high=_from_end(largest, count),
    )


def _from_end(ordered: Array, count: int) -> float:
    """Interpolate linearly at the place of the quantile, counted from the end that the numbers begin at."""
    place = (1 - QUANTILE) * (count - 1)
    first = min(int(place), len(ordered) - 1)
    second = min(first + 1, len(ordered) - 1)
    return float(ordered[first] + (place - int(place)) * (ordered[second] - ordered[first]))


def squared_errors(values: Array, quantizers: Sequence[Encoding]) -> Sums:
    """Sum the squared errors of rounding with each quantizer per tensor, float64, shape (quantizers,).

    All numbers between two rounding thresholds become the same one, so that sums of the sorted numbers and of their
    squares give the error, and each quantizer costs only the search for its thresholds.
    """
    ordered = np.sort(values.reshape(-1))
    wide = ordered.astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(wide)])
    squares = np.concatenate([[0.0], np.cumsum(np.square(wide))])
    errors = np.empty(len(quantizers))
    for number, quantizer in enumerate(quantizers):
        levels = np.arange(quantizer.type.minimum, quantizer.type.maximum + 1) - float(quantizer.zero_point)
        thresholds = ((levels[:-1] + 0.5) * float(quantizer.scale)).astype(np.float32)
        places = np.concatenate([[0], np.searchsorted(ordered, thresholds), [ordered.size]])
        real = levels * float(quantizer.scale)
        errors[number] = squares[-1] + np.sum(np.square(real) * np.diff(places) - 2 * real * np.diff(sums[places]))
    return errors


# --- quantizers -----------------------------------------------------------------------------------------------

Method = Callable[[Observed], Encoding]


def uniform(minimum: float, maximum: float) -> Encoding:
    """Asymmetric, one scale: `scale = (max - min) / 255`, `zero point = -round(min / scale)`, not stretched to 0."""
    scale = max((maximum - minimum) / (UINT8.levels - 1), _LEAST_SCALE)
    zero_point = np.clip(UINT8.minimum - np.rint(minimum / scale), UINT8.minimum, UINT8.maximum)
    return Encoding(
        type=UINT8, granularity=PerTensor(), scale=np.asarray(scale, np.float32), zero_point=zero_point.astype(np.int32)
    )


def extremes(observed: Observed) -> Encoding:
    """MinMax: the extremes of all batches."""
    return uniform(float(observed.minimum.min()), float(observed.maximum.max()))


def averaged(observed: Observed) -> Encoding:
    """EMA: the extremes of the batches, averaged with momentum 0.01, which all but leaves the first batch's."""
    return uniform(
        _moving([float(seen.minimum.min()) for seen in observed.batches]),
        _moving([float(seen.maximum.max()) for seen in observed.batches]),
    )


def quantiles(observed: Observed) -> Encoding:
    """Percentile: the quantiles 0.00001 and 0.99999 of the batches, averaged likewise."""
    return uniform(_moving([seen.low for seen in observed.batches]), _moving([seen.high for seen in observed.batches]))


def least_error(observed: Observed) -> Encoding:
    """OMSE: the extremes, shrunk together by as many percent as cost the least squared error on the last batch."""
    candidates = shrunk(observed.batches)
    return candidates[int(np.argmin(observed.errors))]


def shrunk(batches: Sequence[Seen]) -> list[Encoding]:
    """Ranges that OMSE tries: the extremes of all batches times 1, 0.99, ... 0.11."""
    low = min(float(seen.minimum.min()) for seen in batches)
    high = max(float(seen.maximum.max()) for seen in batches)
    return [uniform(low * (1 - 0.01 * step), high * (1 - 0.01 * step)) for step in range(SHRINKING_STEPS)]


def power_of_two(observed: Observed) -> Encoding:
    """PTF: one zero point for all channels, shifts of 0 to 3 chosen on the last batch."""
    factor = published_factor(observed.minimum, observed.maximum, UINT8, rows=_rows(observed), most_shift=MOST_SHIFT)
    return factor.encoding(UINT8, axis=-1)


def power_of_two_zero_points(observed: Observed) -> Encoding:
    """Not the paper's: the same shifts with a zero point for each channel."""
    factor = choose_factor(observed.minimum, observed.maximum, UINT8, rows=_rows(observed), most_shift=MOST_SHIFT)
    return factor.encoding(UINT8, axis=-1)


def _rows(observed: Observed) -> Array:
    if observed.rows is None:
        raise ValueError("the last batch of this value was not kept")
    return observed.rows


def _moving(values: Sequence[float]) -> float:
    average = values[0]
    for value in values[1:]:
        average += MOMENTUM * (value - average)
    return average


def joined_batches(batches: Sequence[Mapping[str, list[Part]]]) -> dict[str, tuple[Seen, ...]]:
    """Put together what was seen of each value: batches of parts of values -> value -> batches."""
    return {name: tuple(joined(batch[name]) for batch in batches) for name in batches[0]}
