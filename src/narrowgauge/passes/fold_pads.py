"""Fold a Pad into the convolution or pool behind it."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_integers, constant_scalar, replace_constant_input
from narrowgauge.graph.edits import graph_of, is_operator, remove_if_unused, sole_consumer
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import rank
from narrowgauge.passes.cancel_transposes import order_of
from narrowgauge.passes.signs import is_nonnegative

_FOLDABLE = ("AveragePool", "Conv", "MaxPool")


def fold_pads(model: ir.Model) -> tuple[Refusal, ...]:
    """Add the sizes of a constant Pad to the `pads` of each Conv, AveragePool and MaxPool that alone read it, in place.

    An average pool then counts the padding, as it did when the zeros were part of its input. A maximum pool never
    counts it: its padding is folded where it cannot be the maximum by itself, that is where it is the lowest number,
    repeats the border, or is not above zero while the input is known not to be negative (`signs.is_nonnegative`).
    A Pad whose result is transposed first changes places with the Transpose.

    Refuses, for a Pad in front of such a node: another mode than "constant" or another value than zero (but see above),
    padding of batch or channels, negative sizes, sizes that are not constant, `auto_pad`, pools that round up or whose
    padding would reach the size of their window, average pools that already pad without counting it, and maximum pools
    with dilation, or whose indices are read.
    """
    refusals = []
    for node in tuple(model.graph):
        if not is_operator(node, "Pad") or node.outputs[0].is_graph_output():
            continue
        _move_behind_transpose(node)
        consumers = node.outputs[0].consumers()
        if not consumers or not _foldable(node.outputs[0]):
            continue
        reason = _fold(node, consumers)
        if reason is not None:
            refusals.append(Refusal(node=node.name or "", operator="Pad", reason=reason))
    return tuple(refusals)


def _foldable(value: ir.Value) -> bool:
    """Tell whether only operators that pad by themselves read a value."""
    return not value.is_graph_output() and all(
        is_operator(use.node, *_FOLDABLE) and use.idx == 0 for use in value.uses()
    )


def _move_behind_transpose(pad: ir.Node) -> None:
    """Let a Pad work behind the Transpose that alone reads it, if all that reads that pads by itself."""
    transpose = sole_consumer(pad.outputs[0])
    if transpose is None or not is_operator(transpose, "Transpose") or not _foldable(transpose.outputs[0]):
        return
    order, sizes, axes = order_of(transpose), constant_integers(pad.inputs[1]), None
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        axes = constant_integers(pad.inputs[3])
        if axes is None:
            return
    if order is None or sizes is None:
        return
    padded, result, graph = pad.outputs[0], transpose.outputs[0], graph_of(pad)
    pairs = np.asarray(sizes).reshape(2, -1)  # [begin and end, axis]
    if axes is None:
        replace_constant_input(pad, 1, pairs[:, list(order)].reshape(-1))
    else:
        places = [order.index(axis % len(order)) for axis in axes]
        replace_constant_input(pad, 3, np.asarray(places, dtype=np.int64))
    transpose.replace_input_with(0, pad.inputs[0])
    result.replace_all_uses_with(padded)
    pad.replace_input_with(0, result)
    graph.remove(transpose)
    graph.insert_before(pad, transpose)
    source = transpose.inputs[0]
    known = None if source is None else source.shape
    padded.shape, result.shape = result.shape, None if known is None else ir.Shape([known[axis] for axis in order])


def _fold(pad: ir.Node, consumers: Sequence[ir.Node]) -> str | None:
    """Fold the Pad into all its consumers, or return why not."""
    sizes = _spatial_sizes(pad)
    if isinstance(sizes, str):
        return sizes
    for consumer in consumers:
        reason = _reason_against_value(pad, consumer) or _reason_against(consumer, sizes)
        if reason is not None:
            return reason
    for consumer in consumers:
        own = np.asarray(consumer.attributes.get_ints("pads", (0,) * sizes.size), dtype=np.int64)
        consumer.attributes["pads"] = ir.AttrInt64s("pads", [int(size) for size in own + sizes])
        consumer.attributes.pop("auto_pad", None)
        if consumer.op_type == "AveragePool":
            consumer.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        consumer.replace_input_with(0, pad.inputs[0])
    remove_if_unused(pad)
    return None


def _reason_against_value(pad: ir.Node, consumer: ir.Node) -> str | None:
    mode = pad.attributes.get_string("mode", "constant")
    if mode == "edge" and consumer.op_type == "MaxPool":
        return None  # each window that reaches the border also has the number that is repeated there
    if mode != "constant":
        return f"its mode is {mode}"
    given = len(pad.inputs) > 2 and pad.inputs[2] is not None
    value = constant_scalar(pad.inputs[2]) if given else 0.0
    if consumer.op_type != "MaxPool":
        return None if value == 0 else "it does not pad with zero"
    if value is None:
        return "what it pads with is not constant"
    dtype = (
        np.dtype(np.float32) if pad.inputs[0] is None or pad.inputs[0].dtype is None else pad.inputs[0].dtype.numpy()
    )
    if dtype.kind == "f" and value <= np.finfo(dtype).min:
        return None
    if value <= 0 and is_nonnegative(pad.inputs[0]):
        return None
    return f"what it pads with could be the maximum of MaxPool {consumer.name!r}, whose input may be lower"


def _spatial_sizes(pad: ir.Node) -> np.ndarray | str:
    """Return the padding of the spatial axes, begins then ends as `pads` has them, or why it cannot be folded."""
    axes_count = rank(pad.inputs[0])
    sizes = constant_integers(pad.inputs[1])
    axes: tuple[int, ...] | None = tuple(range(axes_count or 0))
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        axes = constant_integers(pad.inputs[3])
    if axes_count is None or sizes is None or axes is None:
        return "its sizes, its axes or the rank of its input are not constant"
    if min(sizes) < 0:
        return "it crops"
    full = np.zeros((2, axes_count), dtype=np.int64)
    full[:, [axis % axes_count for axis in axes]] = np.asarray(sizes).reshape(2, -1)  # [begin and end, axis]
    if full[:, :2].any():
        return "it pads batch or channels"
    return full[:, 2:].reshape(-1)


def _reason_against(consumer: ir.Node, sizes: np.ndarray) -> str | None:
    if consumer.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return f"{consumer.op_type} {consumer.name!r} sets its own padding by auto_pad"
    if consumer.op_type == "Conv":
        return None
    what = f"{consumer.op_type} {consumer.name!r}"
    if consumer.attributes.get_int("ceil_mode", 0):
        return f"{what} rounds its output size up"
    if consumer.op_type == "MaxPool" and len(consumer.outputs) > 1 and consumer.outputs[1].uses():
        return f"the indices of {what} are read, which count the padding"
    if any(dilation != 1 for dilation in consumer.attributes.get_ints("dilations", ())):
        return f"{what} has dilation"
    own = np.asarray(consumer.attributes.get_ints("pads", (0,) * sizes.size))
    if consumer.op_type == "AveragePool" and own.any() and not consumer.attributes.get_int("count_include_pad", 0):
        return f"{what} does not count its own padding"
    if np.any(own + sizes >= np.tile(consumer.attributes.get_ints("kernel_shape", ()), 2)):
        return f"{what} would have windows of padding only"
    return None
