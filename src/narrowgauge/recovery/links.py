"""Which layer's output channels reach which layers' inputs, through operators that let a factor per channel pass."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array, constant_integers, constant_scalar
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.shapes import dimensions, rank
from narrowgauge.passes.affine import per_channel
from narrowgauge.passes.layers import Layer, layer_of

# f(s x) = s f(x) for every s > 0, element by element.
_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Identity")

# Likewise over positions of a channel, which lies on axis 1.
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Where the channels of a link lie in one value.

    Attributes:
        value: the value.
        axis: its axis, counted from the front.
        repeat: how many neighbours along that axis belong to each channel: 1, or the positions that a Flatten laid
            behind each other.
    """

    value: ir.Value
    axis: int
    repeat: int = 1

    def spread(self, numbers: np.ndarray) -> np.ndarray:
        """One number per index of the axis from one per channel."""
        return np.repeat(numbers, self.repeat)


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A layer, what its output passes through, and the layers that read it; a factor per channel may move along it.

    Attributes:
        writer: the layer before.
        spans: every value between the layers, in the network's order; the first is the writer's output.
        nodes: the nodes between the layers, each with the span that it reads.
        readers: the layers behind, each with the span that it reads; at least one.
    """

    writer: Layer
    spans: tuple[Span, ...]
    nodes: tuple[tuple[ir.Node, Span], ...]
    readers: tuple[tuple[Layer, Span], ...]

    @property
    def channels(self) -> int:
        """How many channels the writer has."""
        return self.writer.output_channels


def find_links(model: ir.Model, layers: Collection[str] | None = None) -> tuple[Link, ...]:
    """Find every layer of the main graph all of whose readers are layers, directly or through operators between.

    The layers are Conv, ConvTranspose, Gemm and MatMul with constant float32 weights of finite numbers. Between them
    may lie Relu, LeakyRelu, PRelu, a Clip from 0 (or without lower bound), a Min or Max with a constant per channel,
    pooling, Pad with zeros, Resize, means over positions, and what moves channels whole (Flatten, Reshape, Transpose).
    An addition, a network output, or a reader in the body of an If or Loop ends the search: there is no link.

    Args:
        model: the network, shapes inferred.
        layers: names of the layers that a link may join; None for all.
    """
    found = {layer.node: layer for layer in map(layer_of, model.graph) if layer is not None and _is_usable(layer)}
    if layers is not None:
        found = {node: layer for node, layer in found.items() if str(node.name) in layers}
    links = (_link(layer, found) for layer in found.values())
    return tuple(link for link in links if link is not None)


def by_channels(layer: Layer, per_pair: np.ndarray) -> np.ndarray:
    """Lay one number per pair of channels out as [groups, outputs of a group, inputs of a group].

    Args:
        layer: the layer.
        per_pair: numbers in the order of the first two axes of its weights.
    """
    if layer.node.op_type == "Conv":  # [out, in/groups]
        return per_pair.reshape(layer.groups, -1, per_pair.shape[1])
    if layer.node.op_type == "ConvTranspose":  # [in, out/groups]
        return per_pair.reshape(layer.groups, -1, per_pair.shape[1]).transpose(0, 2, 1)
    return (per_pair if layer.is_transposed else per_pair.T)[None]


def along(span: Span, numbers: np.ndarray) -> npt.NDArray[np.float32]:
    """Shape one number per index of a span's axis so that they broadcast along it: [channels, 1, ..., 1]."""
    axes = rank(span.value)
    assert axes is not None
    return numbers.reshape(-1, *(1,) * (axes - 1 - span.axis)).astype(np.float32)


def current_layer(layer: Layer) -> Layer:
    """Return a layer with the weights that its node has now: another link may have changed them."""
    weight = constant_array(layer.node.inputs[1])
    assert weight is not None
    return replace(layer, weight=weight)


def _is_usable(layer: Layer) -> bool:
    flat = layer.node.op_type != "MatMul" or layer.weight.ndim == 2
    finite = layer.weight.size > 0 and bool(np.isfinite(layer.weight).all())
    return flat and finite and layer.weight.dtype == np.float32


def _link(writer: Layer, layers: dict[ir.Node, Layer]) -> Link | None:
    axes = rank(writer.output)
    if axes is None or axes < 2:
        return None
    first = Span(value=writer.output, axis=1 if writer.is_convolution else axes - 1)
    spans, nodes, readers = [first], [], []
    for span in spans:  # grows
        if span.value.is_graph_output():
            return None
        for use in span.value.uses():
            if use.node.graph is not writer.node.graph:
                return None
            layer = layers.get(use.node)
            if layer is not None and use.idx == 0 and _reads(layer, span, writer.output_channels):
                readers.append((layer, span))
                continue
            behind = span_behind(use.node, use.idx, span, writer.output_channels)
            if behind is None:
                return None
            nodes.append((use.node, span))
            spans.append(behind)
    return Link(writer=writer, spans=tuple(spans), nodes=tuple(nodes), readers=tuple(readers)) if readers else None


def _reads(layer: Layer, span: Span, channels: int) -> bool:
    axes = rank(span.value)
    axis = 1 if layer.is_convolution else (axes or 0) - 1
    return axis == span.axis and layer.input_channels == channels * span.repeat


def span_behind(node: ir.Node, number: int, span: Span, channels: int) -> Span | None:
    """Where the channels lie behind a node that lets a factor per channel pass; None if it does not."""
    result = node.outputs[0]
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    same = Span(value=result, axis=span.axis, repeat=span.repeat)
    if is_operator(node, "Min", "Max"):
        return same if bound_per_channel(node, span, channels) is not None else None
    if number != 0:
        return None
    if is_operator(node, *_HOMOGENEOUS) or (is_operator(node, *_POOLS) and span.axis == 1):
        return same
    if is_operator(node, "Clip"):
        return same if zero_based_bound(node) is not None else None
    if is_operator(node, "Pad"):
        return same if _pads_with_zeros(node, span.axis) else None
    if is_operator(node, "Resize"):
        return same if _keeps_axis(node, span.axis) else None
    if is_operator(node, "ReduceMean", "ReduceMax"):
        axis = _axis_behind_reduction(node, span.axis)
        return None if axis is None else Span(value=result, axis=axis, repeat=span.repeat)
    if is_operator(node, "Transpose"):
        order = node.attributes.get_ints("perm", None)
        axes = rank(span.value) or 0
        places = list(order) if order is not None else list(range(axes))[::-1]
        return Span(value=result, axis=places.index(span.axis), repeat=span.repeat)
    return _behind_reshape(result, span) if is_operator(node, *_RESHAPES) else None


def bound_per_channel(node: ir.Node, span: Span, channels: int) -> np.ndarray | None:
    """Bound of a Min or Max of a value and a constant, one per index of the span's axis; None where it is another.

    Returns:
        Shape [channels * repeat], float64.
    """
    axes = rank(span.value)
    if len(node.inputs) != 2 or axes is None:
        return None
    arrays = [array for array in map(constant_array, node.inputs) if array is not None]
    if len(arrays) != 1 or arrays[0].dtype != np.float32:
        return None
    width = channels * span.repeat
    bound = per_channel(arrays[0], axis=span.axis, axes=axes, channels=width)
    return None if bound is None else np.broadcast_to(bound.astype(np.float64), (width,))


def zero_based_bound(node: ir.Node) -> tuple[float, float] | None:
    """Bounds of a Clip whose lower one is 0 or missing (minus infinity); None for any other or unknown bounds."""
    bounds = [-math.inf, math.inf]
    for number, value in enumerate(node.inputs[1:3]):
        found = constant_scalar(value) if value is not None else bounds[number]
        if found is None or math.isnan(found):
            return None
        bounds[number] = found
    low, high = bounds
    lowest = float(np.finfo(np.float32).min)
    if low != 0 and low > lowest:
        return None
    return (0.0 if low == 0 else -math.inf), (high if high < -lowest else math.inf)


def _pads_with_zeros(node: ir.Node, axis: int) -> bool:
    """Whether a Pad adds nothing along an axis, and elsewhere zeros or copies of what is there."""
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    copies = node.attributes.get_string("mode", "constant") != "constant"
    if not copies and fill is not None and constant_scalar(fill) != 0:
        return False
    pads = constant_integers(node.inputs[1]) if len(node.inputs) > 1 else None
    chosen = constant_integers(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    axes = rank(node.inputs[0])
    if pads is None or axes is None or (chosen is None and len(node.inputs) > 3 and node.inputs[3] is not None):
        return False
    named = [number % axes for number in chosen] if chosen is not None else list(range(axes))
    return all(pads[place] == pads[place + len(named)] == 0 for place, number in enumerate(named) if number == axis)


def _keeps_axis(node: ir.Node, axis: int) -> bool:
    """Whether a Resize leaves an axis as it is and takes no number from outside the value."""
    before, after = dimensions(node.inputs[0]), dimensions(node.outputs[0])
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return False
    return before is not None and after is not None and before[axis] is not None and before[axis] == after[axis]


def _axis_behind_reduction(node: ir.Node, axis: int) -> int | None:
    axes = rank(node.inputs[0])
    attribute = node.attributes.get_ints("axes", None)
    chosen = constant_integers(node.inputs[1]) if len(node.inputs) > 1 else attribute
    if axes is None or not chosen:
        return None
    reduced = {number % axes for number in chosen}
    if axis in reduced:
        return None
    return axis if node.attributes.get_int("keepdims", 1) else axis - sum(number < axis for number in reduced)


def _behind_reshape(result: ir.Value, span: Span) -> Span | None:
    """Find the channels in a reshaped value: an axis of the same length and as many elements behind it, or the last.

    Elements keep their order, so a channel stays one run of neighbours: those of an axis that is as long and has as
    many elements behind it, or, where the last axis swallowed all that lay behind, so many neighbours along it.
    """
    before, after = dimensions(span.value), dimensions(result)
    if before is None or not after or before[span.axis] is None:
        return None
    length = before[span.axis]
    inner = _product(before[span.axis + 1 :])
    if inner is None or not inner or not length:
        return None
    for axis in range(len(after)):
        if after[axis] == length and _product(after[axis + 1 :]) == inner:
            return Span(value=result, axis=axis, repeat=span.repeat)
    if after[-1] == length * inner:
        return Span(value=result, axis=len(after) - 1, repeat=span.repeat * inner)
    return None


def _product(sizes: tuple[int | None, ...]) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None
