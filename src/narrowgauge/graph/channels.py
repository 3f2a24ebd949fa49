"""Channels along the last axis: which operators leave them where they are."""

from __future__ import annotations

import onnx_ir as ir

from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.shapes import dimensions


def keeps_last_axis(node: ir.Node) -> bool:
    """Whether an operator that moves data leaves the channels along the last axis whole and in their order."""
    source = node.inputs[0]
    before, after = dimensions(source) if source is not None else None, dimensions(node.outputs[0])
    if not before or not after or before[-1] is None or before[-1] != after[-1]:
        return False
    if is_operator(node, "Transpose"):
        order = node.attributes.get_ints("perm", [])
        return bool(order) and order[-1] == len(order) - 1
    if is_operator(node, "Gather"):
        return node.attributes.get_int("axis", 0) not in (-1, len(before) - 1)
    if is_operator(node, "Concat", "Split"):
        return node.attributes.get_int("axis", 0) not in (-1, len(before) - 1)
    if is_operator(node, "Slice") and len(node.inputs) > 4:
        steps = constant_array(node.inputs[4])
        return steps is not None and bool((steps > 0).all())
    # As many channels as before: all of them are kept, and only the axes before them change.
    return is_operator(node, "Slice", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand")
