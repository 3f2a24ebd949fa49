"""Means of activations worked out from weights alone, and the bias correction that needs no data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.calibration.histogram import EMPTY
from narrowgauge.calibration.statistics import ChannelStatistics, Statistics, TensorStatistics
from narrowgauge.core.plan import Plan
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.digest import network_digest
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import clip_bounds, is_constant
from narrowgauge.graph.shapes import rank
from narrowgauge.passes.layers import Layer, layer_of
from narrowgauge.recovery.bias_correction import correct_bias
from narrowgauge.recovery.equalize import Equalization
from narrowgauge.recovery.links import Span, bound_per_channel, by_channels, span_behind

Float = npt.NDArray[np.float64]

# Operators that leave each channel's mean as it is; averages narrow its deviation, which is not counted.
_KEEP_MEANS = {
    "Identity", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose",
}  # fmt: skip


_BOUNDING = ("Relu", "Clip", "Min", "Max")


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """A value taken as normally distributed per channel.

    Attributes:
        axis: axis of the channels, counted from the front.
        mean: per index of the axis, real units.
        deviation: standard deviation, likewise, not negative.
        rough: whether they were carried through a layer as if all that it adds up were independent. Means are good for
            bias correction then; deviations are too small by far.
    """

    axis: int
    mean: Float
    deviation: Float
    rough: bool = False


def expected_moments(model: ir.Model, inputs: Mapping[str, Moments] | None = None) -> dict[str, Moments]:
    """Work out mean and deviation per channel of a network's values, without data.

    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2.1: the
    output of a BatchNormalization has mean beta and deviation |gamma| by construction, and appendix C gives the moments
    behind a Relu or Clip. Give the network as it was before its BatchNormalizations were folded; values keep their
    names in the folded one. Where none was left, differs from the paper: moments go on through Conv, Gemm, MatMul and
    Add as if all numbers were independent, from those of the inputs; that is rough, the rougher the deeper, since
    neighbouring numbers of images are anything but independent.

    Args:
        model: the network, shapes inferred.
        inputs: moments of the network's inputs (mean 0 and deviation 1 for normalized images); without them nothing
            is known before the first BatchNormalization.

    Returns:
        Value name -> moments; values of which nothing is known are missing.
    """
    known = dict(inputs or {})
    for node in model.graph:
        found = _behind(node, known)
        if found is not None:
            known[str(node.outputs[0].name)] = found
    return known


def rescaled_moments(moments: Mapping[str, Moments], done: Iterable[Equalization]) -> dict[str, Moments]:
    """Turn moments of a network into those of the equalized one.

    Args:
        moments: of the network before.
        done: what `equalize` did.
    """
    scaled = dict(moments)
    for one in done:
        for name, factors in one.values.items():
            old = scaled.pop(name, None)
            if old is not None and old.axis == one.axes[name] and old.mean.size == factors.size:
                scaled[name] = replace(old, mean=old.mean / factors, deviation=old.deviation / factors)
    return scaled


def correct_bias_analytically(model: ir.Model, plan: Plan, moments: Mapping[str, Moments]) -> tuple[ir.Model, Plan]:
    """Subtract the expected error of rounded weights from biases, without data: `correct_bias` with expected means.

    Args:
        model: the float network; it is not changed.
        plan: encodings of the weights.
        moments: of this network's values.

    Returns:
        A copy of the network with other biases, and the plan as it was.
    """
    tensors = {name: _as_statistics(found) for name, found in moments.items() if found.mean.size}
    expected = Statistics(tensors=tensors, aliases={}, samples=0, sampled=0, network=network_digest(model))
    return correct_bias(model, plan, expected)


def clipped_normal(mean: Float, deviation: Float, low: npt.ArrayLike, high: npt.ArrayLike) -> tuple[Float, Float]:
    """Mean and standard deviation of a normal variable that is clipped (its tails piled up at the bounds).

    Nagel et al. 2019, appendix C, equations 31 to 34.

    Args:
        mean: of the variable before.
        deviation: likewise; where it is 0 the variable is its mean.
        low: lower bound, minus infinity for none.
        high: upper bound, not below the lower one.
    """
    lower, upper = np.broadcast_to(low, mean.shape), np.broadcast_to(high, mean.shape)
    spread = np.maximum(deviation, 1e-30)
    alpha, beta = (lower - mean) / spread, (upper - mean) / spread
    below, above = _normal_share(alpha), 1 - _normal_share(beta)
    inside = 1 - below - above
    floor, ceiling = np.where(np.isfinite(lower), lower, 0.0), np.where(np.isfinite(upper), upper, 0.0)
    start, end = _normal_density(alpha), _normal_density(beta)
    first = mean * inside + spread * (start - end) + floor * below + ceiling * above
    second = (mean**2 + spread**2) * inside + spread * ((mean + floor) * start - (mean + ceiling) * end)
    second += floor**2 * below + ceiling**2 * above
    return first, np.sqrt(np.maximum(second - first**2, 0.0))


def _normal_share(numbers: Float) -> Float:
    """Share of a standard normal variable below each number."""
    return np.array([0.5 * math.erfc(-number / math.sqrt(2)) for number in numbers.tolist()], dtype=np.float64)


def _normal_density(numbers: Float) -> Float:
    return np.asarray(np.exp(-(numbers**2) / 2) / math.sqrt(2 * math.pi))


# --- through the network --------------------------------------------------------------------------------------


def _behind(node: ir.Node, known: Mapping[str, Moments]) -> Moments | None:
    """Moments of a node's first output, None where they cannot be told."""
    if is_operator(node, "BatchNormalization"):
        return _normalized(node)
    layer = layer_of(node)
    source = known.get(str(layer.node.inputs[0].name)) if layer and layer.node.inputs[0] is not None else None
    if layer is not None:
        return _behind_layer(layer, node, source) if source is not None else None
    found = [(value, known[str(value.name)]) for value in node.inputs if value is not None and value.name in known]
    if not found:
        return None
    value, moments = found[0]
    if is_operator(node, *_BOUNDING):
        return _bounded(node, value, known)
    if is_operator(node, "Add"):
        return _sum(node, found)
    span = Span(value=value, axis=moments.axis)
    after = span_behind(node, 0, span, moments.mean.size) if is_operator(node, *_KEEP_MEANS) else None
    if after is None:
        return None
    mean, deviation = after.spread(moments.mean), after.spread(moments.deviation)
    return replace(moments, axis=after.axis, mean=mean, deviation=deviation)


def _normalized(node: ir.Node) -> Moments | None:
    gamma, beta = constant_array(node.inputs[1]), constant_array(node.inputs[2])
    if gamma is None or beta is None:
        return None
    return Moments(axis=1, mean=beta.astype(np.float64), deviation=np.abs(gamma.astype(np.float64)))


def _behind_layer(layer: Layer, node: ir.Node, source: Moments) -> Moments | None:
    """W mean + b, and the root of W^2 variance; each position of the kernel counts as inside the input."""
    axes = rank(layer.node.inputs[0])
    axis = 1 if layer.is_convolution else (axes or 0) - 1
    if layer.node.op_type == "ConvTranspose" or source.axis != axis or source.mean.size != layer.input_channels:
        return None
    if layer.node.attributes.get_float("alpha", 1.0) != 1.0 or layer.node.attributes.get_float("beta", 1.0) != 1.0:
        return None
    if layer.weight.ndim != 2 and layer.node.op_type == "MatMul":
        return None
    weights = layer.weight.astype(np.float64).reshape(*layer.weight.shape[:2], -1)
    means = source.mean.reshape(layer.groups, -1, 1)
    variances = source.deviation.reshape(layer.groups, -1, 1) ** 2
    mean = (by_channels(layer, weights.sum(axis=2)) @ means).reshape(-1)
    variance = (by_channels(layer, (weights**2).sum(axis=2)) @ variances).reshape(-1)
    bias = _bias(layer, node)
    if bias is not None and bias.size not in (1, mean.size):
        return None
    if bias is not None:
        mean = mean + bias.reshape(-1)
    return Moments(axis=axis, mean=mean, deviation=np.sqrt(variance), rough=True)


def _bias(layer: Layer, node: ir.Node) -> Float | None:
    if layer.bias_node is node:
        array = next(array for array in map(constant_array, node.inputs) if array is not None)
    else:
        array = constant_array(layer.node.inputs[2]) if len(layer.node.inputs) > 2 else None  # type: ignore[assignment]
    return None if array is None else array.astype(np.float64)


def _bounds(node: ir.Node, value: ir.Value, moments: Moments) -> tuple[Float | float, Float | float] | None:
    if is_operator(node, "Relu", "Clip"):
        known = all(is_constant(bound) for bound in node.inputs[1:] if bound is not None)
        return clip_bounds(node) if known and node.inputs[0] is value else None
    bound = bound_per_channel(node, Span(value=value, axis=moments.axis), moments.mean.size)
    if bound is None:
        return None
    return (-math.inf, bound) if node.op_type == "Min" else (bound, math.inf)


def _bounded(node: ir.Node, value: ir.Value, known: Mapping[str, Moments]) -> Moments | None:
    """Clip the normal variable before a Relu and a Min (or more of their kind) once, by what they do together."""
    moments = known[str(value.name)]
    bounds = _bounds(node, value, moments)
    if bounds is None:
        return None
    low, high = bounds
    while is_operator(writer := value.producer(), *_BOUNDING) and writer is not None:
        inner = next((each for each in writer.inputs if each is not None and str(each.name) in known), None)
        found = _bounds(writer, inner, known[str(inner.name)]) if inner is not None else None
        if inner is None or found is None:
            break
        low, high = np.clip(found[0], low, high), np.clip(found[1], low, high)
        value, moments = inner, known[str(inner.name)]
    mean, deviation = clipped_normal(moments.mean, moments.deviation, low, high)
    return replace(moments, mean=mean, deviation=deviation)


def _sum(node: ir.Node, found: list[tuple[ir.Value, Moments]]) -> Moments | None:
    parts = [moments for _, moments in found]
    if len(parts) != len(node.inputs) or len({(part.axis, part.mean.size) for part in parts}) != 1:
        return None
    variance = np.sum([part.deviation**2 for part in parts], axis=0)
    return Moments(
        axis=parts[0].axis,
        mean=np.sum([part.mean for part in parts], axis=0),
        deviation=np.sqrt(variance),
        rough=True,
    )


def _as_statistics(moments: Moments) -> TensorStatistics:
    minimum = (moments.mean - 3 * moments.deviation).astype(np.float32)
    maximum = (moments.mean + 3 * moments.deviation).astype(np.float32)
    channels = ChannelStatistics(axis=moments.axis, minimum=minimum, maximum=maximum, total=moments.mean, count=1)
    return TensorStatistics(
        minimum=float(minimum.min()), maximum=float(maximum.max()), histogram=EMPTY, channels=channels
    )
