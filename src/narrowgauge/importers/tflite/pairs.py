"""Pairs of QuantizeLinear and DequantizeLinear behind operators that only move numbers.

Rounding to the same scale changes nothing there. But ONNX Runtime (1.31) looks for a pair around every operator, and
where one that moves int8 numbers lacks the pair behind it, it adds a QuantizeLinear that it then refuses itself
("output_dtype INT8 does not match y_zero_point type UINT8").
"""

from __future__ import annotations

import onnx_ir as ir

from narrowgauge.graph.edits import is_operator
from narrowgauge.importers.tflite.emitter import Emitter

_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice")


def complete_pairs(emitter: Emitter) -> None:
    """Put a pair behind every move of rounded numbers that something else than a QuantizeLinear reads."""
    for node in list(emitter.graph):
        source = node.inputs[0] if node.inputs else None
        before = source.producer() if source is not None else None
        if not is_operator(node, *_MOVES) or before is None or not is_operator(before, "DequantizeLinear"):
            continue
        levels, scale = before.inputs[0], before.inputs[1]
        if levels is None or levels.is_initializer() or scale is None or scale.shape != ir.Shape([]):
            continue
        _complete(emitter, node.outputs[0], before)


def _complete(emitter: Emitter, moved: ir.Value, before: ir.Node) -> None:
    readers = [use for use in moved.uses() if not is_operator(use.node, "QuantizeLinear")]
    returned = moved.is_graph_output()
    if not readers and not returned:
        return
    name = str(moved.name)
    if returned:
        moved.name = emitter.name(f"{name}_before_rounding")
    parameters = list(before.inputs[1:])
    quantize = ir.node("QuantizeLinear", inputs=[moved, *parameters])
    quantize.outputs[0].name = emitter.name(f"{name}_quantized")
    dequantize = ir.node("DequantizeLinear", inputs=[quantize.outputs[0], *parameters])
    result = dequantize.outputs[0]
    result.name = name if returned else emitter.name(f"{name}_dequantized")
    producer = moved.producer()
    assert producer is not None
    producer.append([quantize, dequantize])
    for use in readers:
        use.node.replace_input_with(use.idx, result)
    if returned:
        result.type, result.shape = moved.type, moved.shape
        for number, output in enumerate(emitter.graph.outputs):
            if output is moved:
                emitter.graph.outputs[number] = result
