"""Fold a Pad with zeros into the convolution or average pool behind it."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_integers, constant_scalar
from narrowgauge.graph.edits import is_operator, remove_if_unused
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import rank

_FOLDABLE = ("AveragePool", "Conv")


def fold_pads(model: ir.Model) -> tuple[Refusal, ...]:
    """Add the sizes of a constant Pad to the `pads` of every Conv and AveragePool that alone read it, in place.

    An average pool then counts the padding, as it did when the zeros were part of its input.

    Refuses, for a Pad in front of such a node: another mode than "constant", another value than zero, padding of batch
    or channels, negative sizes, sizes that are not constant, `auto_pad`, and average pools that round up, that
    already pad without counting it, or whose padding would reach the size of their window.
    """
    refusals = []
    for node in tuple(model.graph):
        if not is_operator(node, "Pad"):
            continue
        consumers = node.outputs[0].consumers()
        if not consumers or node.outputs[0].is_graph_output():
            continue
        if not all(is_operator(use.node, *_FOLDABLE) and use.idx == 0 for use in node.outputs[0].uses()):
            continue
        reason = _fold(node, consumers)
        if reason is not None:
            refusals.append(Refusal(node=node.name or "", operator="Pad", reason=reason))
    return tuple(refusals)


def _fold(pad: ir.Node, consumers: Sequence[ir.Node]) -> str | None:
    """Fold the Pad into all its consumers, or return why not."""
    sizes = _spatial_sizes(pad)
    if isinstance(sizes, str):
        return sizes
    for consumer in consumers:
        reason = _reason_against(consumer, sizes)
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


def _spatial_sizes(pad: ir.Node) -> np.ndarray | str:
    """Return the padding of the spatial axes, begins then ends as `pads` has them, or why it cannot be folded."""
    axes_count = rank(pad.inputs[0])
    sizes = constant_integers(pad.inputs[1])
    if pad.attributes.get_string("mode", "constant") != "constant":
        return f"its mode is {pad.attributes.get_string('mode')}"
    if len(pad.inputs) > 2 and pad.inputs[2] is not None and constant_scalar(pad.inputs[2]) != 0:
        return "it does not pad with zero"
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
    if consumer.attributes.get_int("ceil_mode", 0):
        return f"AveragePool {consumer.name!r} rounds its output size up"
    if any(consumer.attributes.get_ints("pads", ())) and not consumer.attributes.get_int("count_include_pad", 0):
        return f"AveragePool {consumer.name!r} does not count its own padding"
    kernel = np.tile(consumer.attributes.get_ints("kernel_shape", ()), 2)
    if np.any(np.asarray(consumer.attributes.get_ints("pads", (0,) * sizes.size)) + sizes >= kernel):
        return f"AveragePool {consumer.name!r} would have windows of padding only"
    return None
