"""Two networks tensor by tensor: where they part, in real units and, where both are integers, in integers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.analysis.energies import energy
from narrowgauge.analysis.evaluate import Run
from narrowgauge.analysis.pairing import Matched, Pair, Tensor
from narrowgauge.core.arithmetic import dequantize, spread
from narrowgauge.core.encoding import Encoding, encoding_to_json
from narrowgauge.errors import PlanError, RuntimeFailure
from narrowgauge.graph.engine import open_session, run_session
from narrowgauge.graph.exposing import in_rounds, returning
from narrowgauge.graph.feeds import Batch, sample_rows
from narrowgauge.runtimes.feeding import Route, rerouted

Array = npt.NDArray[Any]
Expose = Callable[[Sequence[str]], Run]
"""Opens a network, or a runtime that holds it, so that a run returns the values of these names."""

EQUAL_DB = 100.0
"""Float values with an SQNR above it count as equal: sums of float32 in another order reach some 120 dB or more."""

# Values of both networks that are held at a time; the network runs once for every such round.
_ROUND_BYTES = 256 * 2**20

# Another layout is taken for the right one where it leaves at most this share of the error's energy.
_FAR_BETTER = 0.1

_LARGEST_RANK = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class IntegerDifferences:
    """How far integers of one scale lie apart.

    Attributes:
        different: how many elements differ.
        by_1: how many of them by 1.
        by_2: by 2.
        by_3_to_10: by 3 to 10.
        by_more: by more than 10.
        largest: the largest difference.
    """

    different: int
    by_1: int
    by_2: int
    by_3_to_10: int
    by_more: int
    largest: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRow:
    """How a value of the second network lies to that of the first, over all samples.

    Attributes:
        name: of the value in the first network (of the float value where levels stand for it).
        name_b: in the second.
        node: name of the node that writes it in the first; "" for an input.
        operator: of that node; "" for an input.
        matched: by what the two were found to be the same.
        shape: of the first one's array in the first run.
        shape_b: of the second one's.
        axes: how the second one's axes were put into the first one's order (as for numpy's `transpose`); None where
            they were left.
        elements: how many were compared; 0 where the shapes do not fit.
        sqnr_db: 10 log10(sum a^2 / sum (a - b)^2) in decibels, infinity if equal, minus infinity where only one holds
            NaN or infinity; None without elements.
        max_difference: largest |a - b| in real units; None without elements.
        cosine: sum a b / (|a| |b|); None without elements, or with NaN or infinity in one.
        integers: how far the levels lie apart, in steps of their common scale; None where one of the two is float or
            the scales differ: then the real numbers are compared.
        encoding_a: scale and zero point of the first one's levels, None if it is float.
        encoding_b: likewise.
        remark: what is special about the comparison, "" if nothing.
    """

    name: str
    name_b: str
    node: str
    operator: str
    matched: Matched
    shape: tuple[int, ...]
    shape_b: tuple[int, ...]
    axes: tuple[int, ...] | None
    elements: int
    sqnr_db: float | None
    max_difference: float | None
    cosine: float | None
    integers: IntegerDifferences | None
    encoding_a: Encoding | None
    encoding_b: Encoding | None
    remark: str

    @property
    def differs(self) -> bool:
        """Whether integers differ at all, or real numbers by more than float32's rounding explains."""
        if self.integers is not None:
            return self.integers.different > 0
        return self.sqnr_db is not None and self.sqnr_db < EQUAL_DB


def compare_values(
    a: Expose,
    b: Expose,
    batches: Sequence[Batch],
    pairs: Sequence[Pair],
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[TensorRow, ...]:
    """Compare values of two networks on the same samples.

    Values are looked at in rounds, so that memory does not grow with their number, only with the largest of them and
    with the size of a batch. Where the arrays' shapes are each other's permutations, or where a channels-first and a
    channels-last reading fit far better than the plain one, the second is compared in the fitting layout (decided on
    the first batch). Axes of size 1 that only one has are left out.

    Args:
        a: the first network; see `exposed`.
        b: the second; it takes the first one's input names.
        batches: samples, kept in memory; rows that only fill a fixed batch are left out where they can be told.
        pairs: which values, in the order of the rows.
        progress: called with the number of samples of each run.

    Raises:
        RuntimeFailure: if a network cannot be run with its inner values as outputs.
    """
    rows: list[TensorRow] = []
    for group in _rounds(pairs, batches):
        runs = a([pair.first.value for pair in group]), b([pair.second.value for pair in group])
        tallies = [_Tally(pair=pair) for pair in group]
        for batch in batches:
            one, other = (run(batch.feed) for run in runs)
            for tally in tallies:
                values = one[tally.pair.first.value], other[tally.pair.second.value]
                tally.add(*(sample_rows(np.asarray(value), batch) for value in values))
            progress(batch.count)
        rows += [tally.row() for tally in tallies]
    return tuple(rows)


def exposed(model: ir.Model, *, routed: Mapping[str, Route] | None = None, threads: int | None = None) -> Expose:
    """Let ONNX Runtime return any value of a network.

    The network is computed as it is written, operator by operator and Q/DQ pairs in float: fusions depend on what is
    returned, and would change the numbers that are looked at. Integer operators of a file give what they always give.

    Args:
        model: the network; it is not changed.
        routed: how a feed reaches the network's own inputs; None where it is for this very network.
        threads: of one operator; None for the cores that this process may use.
    """

    def expose(values: Sequence[str]) -> Run:
        fed = {str(value.name) for value in model.graph.inputs} & set(values)
        wanted = list(dict.fromkeys(value for value in values if value not in fed))
        session = open_session(returning(model, wanted), threads=threads, optimization="none", simulate=True)

        def run(feed: Mapping[str, Array]) -> dict[str, Array]:
            own = rerouted(feed, routed) if routed is not None else dict(feed)
            found = run_session(session, wanted, own, what="the network with its inner values as outputs")
            return {name: own[name] for name in fed} | found

        return run

    return expose


def first_difference(rows: Sequence[TensorRow]) -> TensorRow | None:
    """The first row, in the network's order, whose values differ; None if none does."""
    return next((row for row in rows if row.differs), None)


def worst(rows: Sequence[TensorRow]) -> TensorRow | None:
    """The row of the lowest SQNR among those that differ; None if none does."""
    return min((row for row in rows if row.differs), key=_decibels_of, default=None)


def _decibels_of(row: TensorRow) -> float:
    return math.inf if row.sqnr_db is None else row.sqnr_db


def to_json(row: TensorRow) -> dict[str, Any]:
    """Put a row into JSON values; figures that are not finite are null."""
    encodings = {
        key: None if found is None else encoding_to_json(found)
        for key, found in (("encoding_a", row.encoding_a), ("encoding_b", row.encoding_b))
    }
    return {
        "name": row.name,
        "name_b": row.name_b,
        "node": row.node,
        "operator": row.operator,
        "matched": row.matched,
        "shape": list(row.shape),
        "shape_b": list(row.shape_b),
        "axes": None if row.axes is None else list(row.axes),
        "elements": row.elements,
        "sqnr_db": _finite(row.sqnr_db),
        "sqnr_infinite": row.sqnr_db == math.inf,
        "max_difference": _finite(row.max_difference),
        "cosine": row.cosine,
        "differs": row.differs,
        "integers": None if row.integers is None else _integers_to_json(row.integers),
        **encodings,
        "remark": row.remark,
    }


def _integers_to_json(found: IntegerDifferences) -> dict[str, int]:
    return {
        "different": found.different, "by_1": found.by_1, "by_2": found.by_2, "by_3_to_10": found.by_3_to_10,
        "by_more": found.by_more, "largest": found.largest,
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# --- runs -------------------------------------------------------------------------------------------------------------


def _rounds(pairs: Sequence[Pair], batches: Sequence[Batch]) -> list[list[Pair]]:
    """Cut values into groups whose sizes stay within a bound.

    An open first axis counts as the longest first axis that is fed, any other as the longest axis.
    """
    shapes = [array.shape for batch in batches for array in batch.feed.values() if array.ndim]
    rows = max((shape[0] for shape in shapes), default=1)
    longest = max((max(shape) for shape in shapes), default=1)
    return in_rounds(
        pairs, lambda pair: sum(_bytes(tensor, rows, longest) for tensor in (pair.first, pair.second)), _ROUND_BYTES
    )


def _bytes(tensor: Tensor, rows: int, longest: int) -> int:
    """Bytes of a value, as float32; of an unknown rank it is taken for an eighth of a round."""
    if tensor.shape is None:
        return _ROUND_BYTES // 8
    open_axes = (rows if axis == 0 else longest for axis in range(len(tensor.shape)))
    return 4 * math.prod(other if size is None else size for size, other in zip(tensor.shape, open_axes, strict=True))


# --- one value over all batches ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fit:
    """How the second one's array is brought into the first one's shape: `transpose(axes).reshape(shape)`.

    Attributes:
        axes: None where they stay.
        reshaped: whether the two differ by axes of size 1.
    """

    axes: tuple[int, ...] | None = None
    reshaped: bool = False

    def of(self, other: Array, shape: tuple[int, ...]) -> Array | None:
        """The array in the other layout; None where it does not get that shape."""
        if self.axes is not None:
            other = other.transpose(self.axes)
        if self.reshaped and _without_ones(other.shape) == _without_ones(shape):
            other = other.reshape(shape)
        return other if other.shape == shape else None


@dataclass(kw_only=True, slots=True)
class _Tally:
    pair: Pair
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    fit: _Fit | None = None
    is_integer: bool = True
    elements: int = 0
    signal: float = 0.0
    other_signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    largest: float = 0.0
    unlike: bool = False  # NaN or infinity where the other has something else
    finite: bool = True
    steps: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # by 1, by 2, by 3 to 10, by more
    most_steps: int = 0

    def add(self, first: Array, second: Array) -> None:
        """Take the values of a batch."""
        one, other = _real(first, self.pair.first.encoding), _real(second, self.pair.second.encoding)
        if self.shapes is None or not self.elements:
            self.shapes = one.shape, other.shape
            self.fit = _fit(one, other)
        fitting = self.fit.of(other, one.shape) if self.fit is not None else None
        if self.fit is None or fitting is None:
            return
        self.elements += one.size
        self.add_real(one, fitting)
        self.is_integer = self.is_integer and self.counts_steps(first, second)
        if self.is_integer:
            steps = _steps(first, self.pair.first.encoding), _steps(second, self.pair.second.encoding)
            there = self.fit.of(steps[1], one.shape)
            assert there is not None
            self.add_steps(np.abs(steps[0] - there))

    def counts_steps(self, first: Array, second: Array) -> bool:
        """Whether both are integers of one scale; plain integers (an index that is returned) have the scale 1."""
        one, other = self.pair.first.encoding, self.pair.second.encoding
        if first.dtype.kind not in "iub" or second.dtype.kind not in "iub":
            return False
        if one is None or other is None:
            return one is other
        return type(one.granularity) is type(other.granularity) and np.array_equal(one.scale, other.scale)

    def add_real(self, one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> None:
        both = np.isfinite(one) & np.isfinite(other)
        if not both.all():
            self.finite = False
            self.unlike = self.unlike or not np.array_equal(one[~both], other[~both], equal_nan=True)
            one, other = one[both], other[both]
        difference = one - other
        self.signal += float(np.square(one).sum())
        self.other_signal += float(np.square(other).sum())
        self.noise += float(np.square(difference).sum())
        self.product += float((one * other).sum())
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0)))

    def add_steps(self, steps: npt.NDArray[np.int64]) -> None:
        counts = [(steps == 1), (steps == 2), (steps > 2) & (steps <= 10), steps > 10]
        self.steps = [before + int(count.sum()) for before, count in zip(self.steps, counts, strict=True)]
        self.most_steps = max(self.most_steps, int(steps.max(initial=0)))

    def row(self) -> TensorRow:
        """Return what was found."""
        first, second = self.pair.first, self.pair.second
        shapes = self.shapes or ((), ())
        compared = self.elements > 0
        return TensorRow(
            name=first.name,
            name_b=second.name,
            node=first.node,
            operator=first.operator,
            matched=self.pair.matched,
            shape=shapes[0],
            shape_b=shapes[1],
            axes=self.fit.axes if self.fit is not None else None,
            elements=self.elements,
            sqnr_db=self.decibels() if compared else None,
            max_difference=(math.inf if self.unlike else self.largest) if compared else None,
            cosine=self.cosine() if compared and self.finite else None,
            integers=self.integers() if compared and self.is_integer else None,
            encoding_a=first.encoding,
            encoding_b=second.encoding,
            remark="; ".join(self.remarks()),
        )

    def decibels(self) -> float:
        if self.unlike:
            return -math.inf
        return math.inf if self.noise == 0 else 10 * math.log10(max(self.signal, 1e-300) / self.noise)

    def cosine(self) -> float:
        lengths = math.sqrt(self.signal) * math.sqrt(self.other_signal)
        if lengths == 0:
            return float(self.signal == self.other_signal)
        return max(-1.0, min(1.0, self.product / lengths))

    def integers(self) -> IntegerDifferences:
        by_1, by_2, by_3_to_10, by_more = self.steps
        return IntegerDifferences(
            different=sum(self.steps), by_1=by_1, by_2=by_2, by_3_to_10=by_3_to_10, by_more=by_more,
            largest=self.most_steps,
        )  # fmt: skip

    def remarks(self) -> Iterator[str]:
        shapes = self.shapes or ((), ())
        if self.fit is None:
            yield f"not compared: the shapes {_text(shapes[0])} and {_text(shapes[1])} do not fit"
        elif self.fit.axes is not None:
            yield f"another layout: B's axes are taken in the order {', '.join(map(str, self.fit.axes))}"
        elif self.fit.reshaped:
            yield f"the shapes {_text(shapes[0])} and {_text(shapes[1])} are compared without axes of size 1"
        one, other = self.pair.first.encoding, self.pair.second.encoding
        if one is not None and other is not None and not one.same_as(other):
            same = self.is_integer and self.elements > 0
            yield "levels counted from another zero point" if same else "other scales: real numbers are compared"


def _real(array: Array, encoding: Encoding | None) -> npt.NDArray[np.float64]:
    if encoding is not None and array.dtype.kind in "iu":
        try:
            array = dequantize(array, encoding)
        except PlanError as error:
            raise RuntimeFailure(
                f"the scales of a tensor of shape {_text(array.shape)} do not fit it: {error}"
            ) from None
    return array.astype(np.float64)


def _steps(array: Array, encoding: Encoding | None) -> npt.NDArray[np.int64]:
    """Levels, counted from real 0."""
    levels = array.astype(np.int64)
    return levels if encoding is None else levels - spread(encoding.zero_point, encoding, levels.shape)


def _fit(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> _Fit | None:
    """Find the layout in which the second fits the first; None where none has the shape."""
    fits = [_Fit(axes=axes) for axes in _orders(one.shape, other.shape)]
    if one.shape == other.shape:
        best = min(fits, key=lambda fit: _noise(one, other, fit), default=None)
        plain = _noise(one, other, _Fit())
        better = best is not None and _noise(one, other, best) <= _FAR_BETTER * min(plain, energy(one))
        return best if better and plain > 0 else _Fit()
    if fits:
        return min(fits, key=lambda fit: _noise(one, other, fit))
    return _Fit(reshaped=True) if _without_ones(one.shape) == _without_ones(other.shape) else None


def _orders(shape: tuple[int, ...], other: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Orders of the second one's axes that give the first one's shape: of the channels, else any.

    The first axis is the batch. Where the shapes are equal only the channels are moved: a matrix that fits better
    transposed is an error to be seen, not a layout.
    """
    rank = len(shape)
    if len(other) != rank or sorted(shape) != sorted(other) or rank > _LARGEST_RANK:
        return []
    axes = range(rank)
    channels = [(0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)] if rank > 2 else []
    found = [order for order in dict.fromkeys(channels) if tuple(other[axis] for axis in order) == shape]
    if shape == other or found:
        return found
    return [order for order in itertools.permutations(axes) if tuple(other[axis] for axis in order) == shape]


def _noise(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], fit: _Fit) -> float:
    there = fit.of(other, one.shape)
    assert there is not None
    with np.errstate(invalid="ignore", over="ignore"):
        return energy(one - there)


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "()"
