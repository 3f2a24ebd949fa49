"""Plans that put every node of a small network on levels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import AnyEncoding, Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.graph.roles import bias_addition, clips_only, is_float, output_axis, weight_inputs
from narrowgauge.targets.registry import load_target
from tests.exporters.tflite.running import Array, in_onnxruntime

SHARING = {
    "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose",
    "Pad", "Slice", "Split", "Gather", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "AveragePool", "Resize",
    "TopK", "Identity", "Concat", "Max", "Min",
}  # fmt: skip
"""Operators whose output has the encoding of their first input."""

PAIRS = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"}
"""Operators that read a constant as an activation."""

FUSING = {"Conv", "Gemm", "Add", "MatMul", "ConvTranspose"}


def everything_in_integers(
    model: ir.Model, feed: Mapping[str, Array], activations: str = "int8", weights: str = "int8_narrow"
) -> Plan:
    """Give every activation the encoding of its range over a feed, and every layer's weights theirs.

    What lies between a layer and the addition or activation function that belong to it has none.
    """
    seen = _seen(model, feed)
    encodings: dict[str, AnyEncoding] = {
        str(value.name): _around(seen[str(value.name)], activations) for value in model.graph.inputs if is_float(value)
    }
    for node in model.graph:
        encodings |= dict(_weights(node, activations, weights))
        for value in node.inputs if node.op_type in PAIRS else ():
            if value is not None and value.const_value is not None and is_float(value):
                encodings[str(value.name)] = _around(value.const_value.numpy(), activations)
        for value in node.outputs:
            if is_float(value):
                encodings[str(value.name)] = _output(node, value, encodings, seen, activations)
    for name in list(_between(model)):
        encodings.pop(name, None)
    return Plan(target="tflite", encodings=encodings)


def _seen(model: ir.Model, feed: Mapping[str, Array]) -> dict[str, Array]:
    everything = model.clone()
    everything.graph.outputs[:] = [value for node in everything.graph for value in node.outputs if is_float(value)]
    return {**(in_onnxruntime(everything, feed) if everything.graph.outputs else {}), **feed}


def _weights(node: ir.Node, activations: str, kind: str) -> Iterator[tuple[str, Encoding]]:
    for number in weight_inputs(node):
        value = node.inputs[number]
        array = value.const_value.numpy()
        axis = output_axis(node, number)
        stacked = array.ndim > 2 and node.op_type == "MatMul"
        single = activations == "uint8" or node.op_type == "Gather" or stacked
        others = None if single else tuple(other for other in range(array.ndim) if other != axis)
        reach = np.maximum(np.abs(array).max(axis=others), 1e-3)
        granularity = PerTensor() if single else PerAxis(axis)
        yield (
            str(value.name),
            encoding_from_range(-reach, reach, integer_type(kind), granularity, symmetric=True),
        )


def _output(
    node: ir.Node, value: ir.Value, encodings: Mapping[str, AnyEncoding], seen: Mapping[str, Array], activations: str
) -> AnyEncoding:
    rule = load_target("tflite").rule(node.op_type)
    fixed = [] if rule is None else [one for one in rule.fixed_output if one.type == integer_type(activations)]
    source = str(node.inputs[0].name)
    if node.op_type in SHARING and source in encodings and not weight_inputs(node):
        return encodings[source]
    if fixed:
        return Encoding(
            type=fixed[0].type, granularity=PerTensor(), scale=np.float32(fixed[0].scale),
            zero_point=np.int32(fixed[0].zero_point),
        )  # fmt: skip
    return _around(seen[str(value.name)], activations)


def _between(model: ir.Model) -> Iterator[str]:
    for node in model.graph:
        if bias_addition(node) is not None:
            yield str(node.outputs[0].name)
            yield from (str(value.name) for value in bias_addition(node).inputs)
        if node.op_type in FUSING and clips_only(node.outputs[0]) is not None:
            yield str(node.outputs[0].name)


def _around(array: Array, activations: str) -> Encoding:
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    high = high if high > low else low + 1
    return encoding_from_range(low, high, integer_type(activations), PerTensor(), symmetric=activations == "int16")
