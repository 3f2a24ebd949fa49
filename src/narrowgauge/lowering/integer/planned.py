"""Integer networks with every level in the plan's own type, to look at and to replace."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.edits import new_node
from narrowgauge.lowering.integer.emitter import UNSIGNED
from narrowgauge.lowering.parameters import Parameters


def in_planned_types(model: ir.Model) -> ir.Model:
    """Copy an integer network so that every signed level `x_quantized` is written, and read by all that need it.

    The same integers; slower, since levels that are kept as unsigned ones become signed ones and unsigned ones again.

    Args:
        model: what `lower_to_integer` made; one without unsigned levels comes back as it is.
    """
    copy = model.clone()
    parameters = Parameters(copy.graph)
    values = {str(value.name): value for node in copy.graph for value in node.outputs}
    for name, value in values.items():
        producer = value.producer()
        if not name.endswith(UNSIGNED) or value.dtype != ir.DataType.UINT8 or producer is None:
            continue
        readers = list(value.uses())
        signed = values.get(name.removesuffix(UNSIGNED))
        nodes = []
        if signed is None:
            nodes = _shifted(value, ir.DataType.INT8, -128, name.removesuffix(UNSIGNED), parameters)
            signed = nodes[-1].outputs[0]
        else:
            readers = [use for use in readers if not _leads_to(use.node, signed)]
        nodes += _shifted(signed, ir.DataType.UINT8, 128, f"{name}_again", parameters)
        (producer if len(nodes) > 3 else signed.producer() or producer).append(nodes)
        for node, number in readers:
            node.replace_input_with(number, nodes[-1].outputs[0])
    return copy


def _leads_to(node: ir.Node, signed: ir.Value) -> bool:
    """Whether a node is the first of the three that write signed levels."""
    written = signed
    for _ in range(3):
        producer = written.producer()
        if producer is node:
            return True
        if producer is None or producer.inputs[0] is None:
            return False
        written = producer.inputs[0]
    return False


def _shifted(value: ir.Value, kind: ir.DataType, by: int, name: str, parameters: Parameters) -> list[ir.Node]:
    """Add to levels of 8 bits, and write them as another type under a name."""
    wide = new_node("Cast", [value], {"to": ir.DataType.INT32}, name=parameters.name(f"{name}_wide"), like=value)
    wide.outputs[0].type = ir.TensorType(ir.DataType.INT32)
    offset = parameters.constant(f"{name}_offset", np.asarray(by, dtype=np.int32))
    moved = new_node("Add", [wide.outputs[0], offset], name=parameters.name(f"{name}_moved"), like=wide.outputs[0])
    last = new_node("Cast", [moved.outputs[0]], {"to": kind}, name=parameters.name(f"{name}_cast"), like=value)
    last.outputs[0].type = ir.TensorType(kind)
    last.outputs[0].name = parameters.name(name)
    return [wide, moved, last]
