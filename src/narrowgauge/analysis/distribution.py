"""What pictures of tensors are drawn from: how their numbers are distributed, and what each channel spans."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.analysis.encoding_words import steps
from narrowgauge.analysis.records import Distribution
from narrowgauge.analysis.roundings import RoundedEncoding, Rounding, roundings
from narrowgauge.calibration.density import counts_between, density
from narrowgauge.calibration.statistics import Statistics, TensorStatistics
from narrowgauge.core.arithmetic import spread
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor, normalized_axis
from narrowgauge.core.plan import Plan
from narrowgauge.graph.roles import output_axis, weight_inputs
from narrowgauge.graph.shapes import dimensions

Array = npt.NDArray[np.float64]

# Bins of a picture and channels in it: a few pixels each.
_BINS = 160
_MOST_CHANNELS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class _Channels:
    """Extremes per channel, real units, and of what is representable there; each of shape `(channels,)`."""

    axis: int
    low: Array
    high: Array
    range_low: Array
    range_high: Array


def distributions(
    model: ir.Model, plan: Plan, statistics: Statistics | None, names: Collection[str]
) -> dict[str, Distribution]:
    """Gather what pictures of some tensors are drawn from: activations from histograms, weights from their elements.

    Bins are equally wide, from the smallest to the largest number that was seen. Of many channels the widest and the
    narrowest are kept, half and half.

    Args:
        model: the float network that the plan describes.
        plan: its encodings.
        statistics: of this network; None where it has none (weight-only and dynamic plans).
        names: which tensors, among those that the plan rounds (see `roundings.roundings`). Any other has no entry, nor
            has one without elements, or an activation whose statistics hold no histogram.

    Raises:
        StatisticsError: if an activation was not observed.
    """
    wanted = set(names)
    found = {}
    for one in roundings(model, plan):
        if one.name not in wanted:
            continue
        if one.kind == "weights":
            drawn = _of_constant(one)
        else:
            drawn = _of_activation(one, statistics.of(one.name)) if statistics is not None else None
        if drawn is not None:
            found[one.name] = drawn
    return found


def _of_constant(one: Rounding) -> Distribution | None:
    assert one.value.const_value is not None
    array = one.value.const_value.numpy().astype(np.float32, copy=False)
    if array.size == 0:
        return None
    edges = _edges(float(array.min()), float(array.max()), one.encoding)
    counts, _ = np.histogram(array, edges)
    return _distribution(one.name, edges, counts.astype(np.float64), _constant_channels(one, array))


def _of_activation(one: Rounding, tensor: TensorStatistics) -> Distribution | None:
    if tensor.histogram.total == 0:
        return None
    edges = _edges(tensor.minimum, tensor.maximum, one.encoding)
    seen = density(tensor)
    points, masses = np.append(seen.points, 0.0), np.append(seen.masses, tensor.histogram.total - seen.total)
    counts = counts_between(seen, edges)
    counts += np.histogram(points, edges, weights=masses)[0]  # zero may lie outside: then there was none
    return _distribution(one.name, edges, counts, _observed_channels(one, tensor))


def _edges(low: float, high: float, encoding: RoundedEncoding) -> Array:
    """Edges of equally wide bins over the numbers seen, one bin of a step where they are all the same."""
    if low < high:
        return np.linspace(low, high, _BINS + 1)
    half = max(steps(encoding, None)[1] / 2, float(np.spacing(abs(low))))
    return np.array([low - half, low + half])


def _distribution(name: str, edges: Array, counts: Array, channels: _Channels | None) -> Distribution:
    shares = counts / max(float(counts.sum()), np.finfo(np.float64).tiny)
    drawn = Distribution(name=name, edges=tuple(edges.tolist()), density=tuple(shares.tolist()))
    return drawn if channels is None else _with_channels(drawn, channels)


def _with_channels(drawn: Distribution, channels: _Channels) -> Distribution:
    order = np.argsort(channels.high - channels.low, kind="stable")
    if order.size > _MOST_CHANNELS:
        half = _MOST_CHANNELS // 2
        order = np.concatenate([order[:half], order[-half:]])
    kept = np.sort(order)
    return Distribution(
        name=drawn.name,
        edges=drawn.edges,
        density=drawn.density,
        channel_axis=channels.axis,
        channel_low=tuple(channels.low[kept].tolist()),
        channel_high=tuple(channels.high[kept].tolist()),
        channel_index=tuple(kept.tolist()),
        channel_range_low=tuple(channels.range_low[kept].tolist()),
        channel_range_high=tuple(channels.range_high[kept].tolist()),
    )


def _constant_channels(one: Rounding, array: npt.NDArray[np.float32]) -> _Channels | None:
    """Channels of weights: along the axis of the scales, else along the reader's output channels."""
    assert isinstance(one.encoding, Encoding)  # constants have no other
    axis = _channel_axis(one, one.encoding, array.ndim)
    if axis is None or array.ndim < 2:
        return None
    others = tuple(number for number in range(array.ndim) if number != axis)
    low, high = (
        np.broadcast_to(spread(ends, one.encoding, array.shape), array.shape)
        for ends in (one.encoding.minimum, one.encoding.maximum)
    )
    return _Channels(
        axis=axis,
        low=array.min(axis=others).astype(np.float64),
        high=array.max(axis=others).astype(np.float64),
        range_low=low.min(axis=others).astype(np.float64),
        range_high=high.max(axis=others).astype(np.float64),
    )


def _channel_axis(one: Rounding, encoding: Encoding, rank: int) -> int | None:
    if isinstance(encoding.granularity, PerAxis):
        return normalized_axis(encoding.granularity.axis, rank)
    assert one.node is not None
    numbers = [number for number in weight_inputs(one.node) if one.node.inputs[number] is one.value]
    return output_axis(one.node, numbers[0]) if numbers else None


def _observed_channels(one: Rounding, tensor: TensorStatistics) -> _Channels | None:
    """Channels that calibration saw, if they are those of this value and not of one that it is a moved copy of."""
    channels, encoding, sizes = tensor.channels, one.encoding, dimensions(one.value)
    if channels is None or sizes is None or channels.axis >= len(sizes) or not isinstance(encoding, Encoding):
        return None
    length = channels.minimum.size
    if sizes[channels.axis] not in (None, length):
        return None
    if isinstance(encoding.granularity, PerTensor):
        ends = [np.broadcast_to(end, length) for end in (encoding.minimum, encoding.maximum)]
    elif isinstance(encoding.granularity, PerAxis) and encoding.scale.size == length:
        if normalized_axis(encoding.granularity.axis, len(sizes)) != channels.axis:
            return None
        ends = [encoding.minimum, encoding.maximum]
    else:
        return None
    return _Channels(
        axis=channels.axis,
        low=channels.minimum.astype(np.float64),
        high=channels.maximum.astype(np.float64),
        range_low=ends[0].astype(np.float64),
        range_high=ends[1].astype(np.float64),
    )
