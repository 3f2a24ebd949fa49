"""Outliers are cut off where they arise, so that no value behind them is stretched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.analysis.records import Outlier
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.errors import StatisticsError
from narrowgauge.graph.constants import add_constant
from narrowgauge.graph.edits import is_operator, new_node, sole_consumer, take_place, unique_name
from narrowgauge.graph.roles import activation_inputs, bias_addition, clip_bounds, clips_only, is_constant

# A cap is kept where the noise at the output falls below this share: the samples are few, and a cap changes the float
# network.
_WORTHWHILE = 0.8

# How far below the reach of the other channels a cap may lie.
_DEEPEST = 1 / 8

# A side is cut where it reaches so many times further than the other channels.
_STANDS_OUT = 2.0

# The few channels that are no others: one in so many, one at least.
_FEW = 32

# Caps that may be no better, one after the other, before the search turns.
_PATIENCE = 1

# Places that are tried, at the most: each takes a dozen measurements.
_MOST_PLACES = 4

# Activation functions that rise wherever their output matters, so that a cap before them is one behind them; before
# them it also saves levels of what they read.
_RISING = {"Gelu", "HardSwish", "LeakyRelu", "Elu", "Selu", "Celu", "Softplus", "Swish", "Mish"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cap:
    """A value that was cut off.

    Attributes:
        value: the value whose numbers are cut.
        low: lower bound, real units, minus infinity if none.
        high: upper bound, infinity if none.
        reach: largest magnitude before.
        noise_before: at the output, without this cap.
        noise_after: with it.
    """

    value: str
    low: float
    high: float
    reach: float
    noise_before: float
    noise_after: float


def cap_outliers(
    model: ir.Model,
    statistics: Statistics,
    outliers: Sequence[Outlier],
    *,
    calibrate: Callable[[ir.Model], Statistics],
    noise: Callable[[ir.Model, Statistics], float],
    sketch: Callable[[ir.Model], Statistics] | None = None,
) -> tuple[ir.Model, Statistics, tuple[Cap, ...]]:
    """Cut outliers off at the unit that they come from, where the quantized network is better for it.

    A unit that fires strongly on a few positions and a layer that writes it into one channel of a residual stream
    (Sun et al., "Massive Activations in Large Language Models", 2024, section 2; Darcet et al., "Vision Transformers
    Need Registers", 2024) stretch every range behind them. A clip of the stream itself turns the direction of the
    vectors that normalizations read. A cap at the unit shrinks the whole vector that it writes: its direction
    stays.

    Which cap is best is measured at the network's output: from the reach of the other channels up by factors of 2 as
    long as that is better, else down, and then the steps of sqrt(2) beside the best one; behind each cap everything is
    calibrated anew. A cap is kept only where the noise falls below 0.8 times. What other methods can do against the
    outliers belongs into `noise`, so that a cap competes with it.

    The cap is a Clip in the network: the float network changes. Where integers are written there, saturation does the
    same, and the lowering leaves the Clip out.

    Args:
        model: the float network, shapes inferred; it is not changed.
        statistics: of this network.
        outliers: what `analysis.outliers.find_outliers` found, the worst first.
        calibrate: gathers the statistics of a network.
        noise: plans a network by its statistics, simulates it, and returns the noise at its output against the network
            as it came (`recovery.measure.OutputNoise`).
        sketch: gathers statistics of fewer samples, for comparing caps; None for `calibrate`.

    Returns:
        The network with the caps, its statistics, and the caps; what came in and no caps where none is worth it.
    """
    rough = sketch or calibrate
    places = list(dict.fromkeys(place for outlier in outliers if (place := _place(model, outlier))))
    places = [place for place in places if _sides(statistics, place) is not None][:_MOST_PLACES]
    if not places:
        return model, statistics, ()
    network, seen = model, statistics if sketch is None else sketch(model)
    before = noise(network, seen)
    caps: list[Cap] = []
    for value in places:
        sides = _sides(seen, value)
        best = None if sides is None else _best(network, value, sides, rough, noise, before)
        if sides is not None and best is not None:
            low, high = sides.bounds(best.cap)
            caps.append(
                Cap(value=value, low=low, high=high, reach=sides.reach, noise_before=before, noise_after=best.noise)
            )
            network, seen, before = best.network, best.statistics, best.noise
    if not caps or sketch is None:
        return network, seen, tuple(caps)
    final = calibrate(network)
    if not noise(network, final) < _WORTHWHILE * noise(model, statistics):
        return model, statistics, ()
    return network, final, tuple(caps)


# --- where ----------------------------------------------------------------------------------------------------


def _place(model: ir.Model, outlier: Outlier) -> str:
    """Name of the value to cut for an outlier, "" if there is none.

    That is the unit that it comes from, else what its source writes: behind the bias and behind a Relu or Clip, which
    takes the cap in, but before any other activation function.
    """
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    source = next((node for node in model.graph if str(node.name) == outlier.source), None)
    if source is None:
        return ""
    value = values.get(outlier.source_value) if outlier.unit is not None else source.outputs[0]
    if value is None or not any(not is_constant(read) for _, read in activation_inputs(source)):
        return ""
    value = _before_activation(value)
    writer = value.producer()
    if writer is not None and (addition := bias_addition(writer)) is not None:
        value = addition.outputs[0]
    if (clip := clips_only(value)) is not None:
        value = clip.outputs[0]
    unfit = value.is_graph_output() or value.dtype != ir.DataType.FLOAT or value.producer() is None
    return "" if unfit else str(value.name)


def _before_activation(value: ir.Value) -> ir.Value:
    writer = value.producer()
    source = writer.inputs[0] if writer is not None and writer.inputs else None
    if writer is None or source is None or not is_operator(writer, *_RISING):
        return value
    return source if sole_consumer(source) is writer and source.producer() is not None else value


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sides:
    """How far a value reaches: its own extremes, and the largest magnitude of its other channels."""

    low: float
    high: float
    others: float

    @property
    def reach(self) -> float:
        return max(-self.low, self.high)

    def bounds(self, cap: float) -> tuple[float, float]:
        """Both bounds of a cap, infinite on a side that does not stand out."""
        return (
            -cap if -self.low > _STANDS_OUT * self.others else -math.inf,
            cap if self.high > _STANDS_OUT * self.others else math.inf,
        )


def _sides(statistics: Statistics, value: str) -> _Sides | None:
    """Extremes of a value, None where they are unknown or no side stands out."""
    try:
        tensor = statistics.of(value)
    except StatisticsError:
        return None
    if tensor.channels is None or tensor.is_empty or tensor.nan_count or tensor.infinity_count:
        return None
    reach = np.sort(np.maximum(np.abs(tensor.channels.minimum), np.abs(tensor.channels.maximum)))[::-1]
    few = max(1, reach.size // _FEW)
    if reach.size <= few or not reach[0] > _STANDS_OUT * reach[few] > 0:
        return None
    return _Sides(low=float(tensor.minimum), high=float(tensor.maximum), others=float(reach[few]))


# --- how far --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trial:
    network: ir.Model
    statistics: Statistics
    cap: float
    noise: float


def _best(
    model: ir.Model,
    value: str,
    sides: _Sides,
    calibrate: Callable[[ir.Model], Statistics],
    noise: Callable[[ir.Model, Statistics], float],
    before: float,
) -> _Trial | None:
    """The cap of least noise near the reach of the other channels, None where none is worth it."""

    def trial(cap: float) -> _Trial:
        network = capped(model, value, *sides.bounds(cap))
        seen = calibrate(network)
        return _Trial(network=network, statistics=seen, cap=cap, noise=noise(network, seen))

    def walk(start: _Trial, factor: float) -> _Trial:
        best, cap, worse = start, sides.others, 0
        while worse < _PATIENCE and _DEEPEST * sides.others <= cap * factor < sides.reach:
            cap *= factor
            found = trial(cap)
            worse = 0 if found.noise < best.noise else worse + 1
            best = found if not worse else best
        return best

    first = trial(sides.others)
    up = walk(first, 2.0)
    best = up if up is not first else walk(first, 0.5)
    if not best.noise < _WORTHWHILE * before:
        return None
    beside = [trial(best.cap * factor) for factor in (math.sqrt(2), math.sqrt(0.5))]
    return min([best, *beside], key=lambda found: found.noise)


def capped(model: ir.Model, value: str, low: float, high: float) -> ir.Model:
    """Return a copy of a network in which a value is cut to bounds, for all that read it.

    A Relu or Clip that writes the value takes the bounds in; elsewhere a Clip is put behind it.

    Args:
        model: the network.
        value: name of a value that a node of the main graph writes; no output of the network.
        low: lower bound, real units, minus infinity for none.
        high: upper bound, infinity for none.
    """
    copy = model.clone()
    found = next(output for node in copy.graph for output in node.outputs if output.name == value)
    writer = found.producer()
    assert writer is not None
    merged = is_operator(writer, "Relu", "Clip") and all(
        bound is None or is_constant(bound) for bound in writer.inputs[1:]
    )
    source = writer.inputs[0] if merged else found
    if merged:
        least, most = clip_bounds(writer)
        low, high = max(low, least), min(high, most)
    readers = list(found.uses())
    name = unique_name(copy.graph, f"{value}_cap")
    clip = new_node("Clip", [source, *_constants(copy.graph, name, low, high)], name=name, like=found)
    writer.append(clip)
    if merged:
        take_place(clip.outputs[0], found)
        return copy
    for node, number in readers:
        node.replace_input_with(number, clip.outputs[0])
    return copy


def _constants(graph: ir.Graph, name: str, low: float, high: float) -> list[ir.Value | None]:
    return [
        add_constant(graph, f"{name}_{suffix}", np.asarray(bound, dtype=np.float32)) if math.isfinite(bound) else None
        for suffix, bound in (("low", low), ("high", high))
    ]
