"""How low the levels of masked attention scores need to reach.

A mask adds -100, -10,000 or the least number of float32 to scores that are not to be read. Levels that reach down to
these leave few for the scores. They need not: the greatest score of a row is not below the least score that is read,
so that one lower by `MARGIN` has no weight, and all below may saturate there. No weight changes by more than e^-10 of
the greatest of its row, as long as scores are no lower than those that calibration saw; but for rows whose tokens are
all masked, which then attend evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.calibration.histogram import Histogram, intervals
from narrowgauge.calibration.statistics import Statistics, TensorStatistics
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.moves import MOVES
from narrowgauge.graph.roles import is_float

MARGIN = 10.0
"""What is lower by this than the greatest of its row has an 86th of the lowest of 255 levels, which rounds to 0; where
nothing rounds it, 500 such tokens together have a fiftieth of the weight of one that is read."""

_GAP = 16.0
"""What is lower than all others by this is masked; for less no levels are won."""

_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "Softmax")


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """How far down levels reach.

    Attributes:
        read: the least number that is read, real units: what a range is chosen for.
        lowest: where what is masked may saturate.
    """

    read: float
    lowest: float


def score_floors(model: ir.Model, statistics: Statistics) -> dict[str, Floor]:
    """Find masked scores and masks: names of values that a Softmax reads alone, and of what is added up to them."""
    search = _Search(statistics=statistics)
    for node in model.graph:
        scores = node.inputs[0] if is_operator(node, "Softmax") else None
        if scores is not None and not is_mask(scores):  # scores themselves may be inputs of the network
            search.follow(scores, node, None)
    return search.found()


def above(tensor: TensorStatistics, lowest: float) -> TensorStatistics:
    """Leave out of a tensor's statistics what is below a number."""
    bins = tensor.histogram.bins
    # The end of a bin that is nearer to zero: of numbers below it the greatest.
    kept = (bins.astype(np.uint32) << 16).view(np.float32) >= lowest
    histogram = Histogram(bins=bins[kept], counts=tensor.histogram.counts[kept])
    return replace(tensor, minimum=max(tensor.minimum, lowest), histogram=histogram, channels=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Numbers:
    """Where a value's numbers lie, real units: in intervals, ascending; each number of a constant is one.

    Attributes:
        lower: lower ends.
        upper: upper ends.
    """

    lower: npt.NDArray[np.float64]
    upper: npt.NDArray[np.float64]

    def above_gap(self) -> float | None:
        """Return the least number above the highest gap, None where there is no gap."""
        gaps = np.flatnonzero(self.lower[1:] - self.upper[:-1] >= _GAP)
        return float(self.lower[gaps[-1] + 1]) if gaps.size else None


@dataclass(kw_only=True, slots=True)
class _Search:
    statistics: Statistics
    floors: dict[ir.Value, dict[ir.Node, Floor]] = field(default_factory=dict)  # one for each node that reads it
    least: dict[ir.Value, float | None] = field(default_factory=dict)

    def found(self) -> dict[str, Floor]:
        """Floors of the values that nothing else reads than what asked for them."""
        return {
            str(value.name): Floor(
                read=min(one.read for one in floors.values()), lowest=min(one.lowest for one in floors.values())
            )
            for value, floors in self.floors.items()
            if floors.keys() == {use.node for use in value.uses()} and not value.is_graph_output()
        }

    def follow(self, value: ir.Value, reader: ir.Node, lowest: float | None) -> None:
        """Note how low a value needs to reach, and what is added up to it; `lowest` is None at a Softmax."""
        read = self.least_read(value)
        if read is None:
            return
        floor = Floor(read=read, lowest=read - MARGIN if lowest is None else min(lowest, read))
        known = self.floors.setdefault(value, {}).get(reader, floor)
        floor = self.floors[value][reader] = min(known, floor, key=lambda one: one.lowest)
        node = value.producer()
        if node is not None and is_operator(node, *MOVES) and node.inputs[0] is not None:
            self.follow(node.inputs[0], node, floor.lowest)
        if node is not None and is_operator(node, "Where"):
            for branch in node.inputs[1:]:
                if branch is not None and constant_array(branch) is not None:
                    known = self.floors.setdefault(branch, {}).get(node, floor)
                    self.floors[branch][node] = min(known, floor, key=lambda one: one.lowest)
        if node is not None and is_operator(node, "Add"):
            first, second = node.inputs
            for operand, other in ((first, second), (second, first)):
                greatest = None if other is None else self.greatest(other)
                if operand is not None and greatest is not None:
                    self.follow(operand, node, floor.lowest - greatest)

    def least_read(self, value: ir.Value) -> float | None:
        """Return the least number of a masked value that is not masked; None of a value without a mask."""
        if value not in self.least:
            self.least[value] = self.found_least(value)
        return self.least[value]

    def found_least(self, value: ir.Value) -> float | None:
        node = value.producer()
        if is_mask(value):
            numbers = self.numbers(value)
            edge = None if numbers is None else numbers.above_gap()
            return edge if edge is not None and _reads_in_each_row(value, edge) else None
        if node is not None and is_operator(node, *MOVES) and node.inputs[0] is not None:
            return self.least_read(node.inputs[0])
        if node is None or not is_operator(node, "Add") or None in node.inputs:
            return None
        masked = [self.least_read(one) for one in node.inputs if one is not None]
        least = [self.smallest(one) if found is None else found for one, found in zip(node.inputs, masked, strict=True)]
        known = [one for one in least if one is not None]
        if masked.count(None) == len(masked) or len(known) < len(least):
            return None
        numbers = self.numbers(value)
        possible = numbers.lower[numbers.upper >= sum(known)] if numbers is not None else np.zeros(0)
        return max(float(possible.min()), sum(known)) if possible.size else sum(known)

    def numbers(self, value: ir.Value) -> _Numbers | None:
        """Return what is known of a value's numbers, None where nothing is, or one of them is not finite."""
        array = constant_array(value)
        if array is not None:
            each = np.unique(array.astype(np.float64))
            return _Numbers(lower=each, upper=each) if each.size and np.isfinite(each).all() else None
        tensor = self.seen(value)
        if tensor is None:
            return None
        found = intervals(tensor.histogram, tensor.minimum, tensor.maximum)
        return _Numbers(lower=found.lower, upper=found.upper)

    def seen(self, value: ir.Value) -> TensorStatistics | None:
        known = self.statistics.tensors, self.statistics.aliases
        tensor = self.statistics.of(str(value.name)) if any(value.name in names for names in known) else None
        return None if tensor is None or tensor.is_empty or tensor.infinity_count else tensor

    def smallest(self, value: ir.Value | None) -> float | None:
        numbers = None if value is None else self.numbers(value)
        return float(numbers.lower[0]) if numbers is not None else None

    def greatest(self, value: ir.Value) -> float | None:
        numbers = self.numbers(value)
        return float(numbers.upper[-1]) if numbers is not None else None


def is_mask(value: ir.Value) -> bool:
    """Whether a value is a constant, or is made of inputs and constants without a product of two values or a layer."""
    if constant_array(value) is not None:
        return True
    open_ones, seen = [value], {value}
    while open_ones:
        node = open_ones.pop().producer()
        if is_operator(node, *_PRODUCTS):
            return False
        for one in node.inputs if node is not None else ():
            if one is not None and is_float(one) and constant_array(one) is None and one not in seen:
                seen.add(one)
                open_ones.append(one)
    return True


def _reads_in_each_row(value: ir.Value, least: float) -> bool:
    """Whether no row of a constant is all masked, so that another number of its rows would be its greatest."""
    array = constant_array(value)
    return array is None or bool(array.ndim and (array >= least).any(axis=-1).all())
