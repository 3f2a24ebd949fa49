"""The dynamic form: weights are integers in the file, activations become integers at run time, tensor by tensor.

Matrix products are written as onnxruntime/core/optimizer/matmul_integer_to_float.cc and
dynamic_quantize_matmul_fusion.cc expect them, so that ONNX Runtime makes one kernel of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import DynamicEncoding, Encoding
from narrowgauge.core.granularity import PerAxis, PerBlock, PerTensor, normalized_axis
from narrowgauge.core.plan import Plan
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator, new_node, remove_unused, sole_consumer, take_place
from narrowgauge.graph.roles import activation_inputs, is_constant, weight_inputs
from narrowgauge.lowering.parameters import Parameters, check_names
from narrowgauge.lowering.qdq import dynamic_rounding

CONTRIB = "com.microsoft"

# Attributes of ONNX's LSTM that com.microsoft.DynamicQuantizeLSTM has too: all but `layout`.
_LSTM_ATTRIBUTES = (
    "activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget",
)  # fmt: skip


def lower_dynamically(model: ir.Model, plan: Plan) -> ir.Model:
    """Write a dynamic plan into a copy of its network.

    MatMul and Gemm become DynamicQuantizeLinear, MatMulInteger and a product with both scales; Conv likewise with
    ConvInteger; LSTM becomes com.microsoft.DynamicQuantizeLSTM. A value that several of them read is rounded once.
    Of an operator without such a kernel (GRU, RNN, ...) only the weights are integers, made float when loaded.

    Args:
        model: the float network that the plan was made for; it is not changed.
        plan: of mode "dynamic": activations with a `DynamicEncoding` of uint8, weights with an `Encoding`.

    Returns:
        A network of the same inputs and outputs.

    Raises:
        PlanError: if the plan is of another mode, names what the network does not have, or asks for what no integer
            operator of ONNX takes: weights in blocks or of more than 8 bits, other activations than uint8, and
            weights of a convolution with several zero points.
    """
    return rewritten(model, plan, _REWRITES)


def rewritten(model: ir.Model, plan: Plan, rewrites: Mapping[str, "Rewrite"]) -> ir.Model:
    """Write a dynamic plan into a copy of its network, operator by operator.

    Args:
        model: the float network; it is not changed.
        plan: of mode "dynamic".
        rewrites: operator -> how it is rewritten; of others only the weights become integers.

    Raises:
        PlanError: the plan is of another mode, or names what the network does not have.
    """
    if plan.mode != "dynamic":
        raise PlanError(f"expected a plan of mode dynamic, got {plan.mode}; lower_to_qdq writes the others")
    lowered = model.clone()
    check_names(lowered.graph, plan)
    writer = DynamicWriter(graph=lowered.graph, plan=plan, parameters=Parameters(lowered.graph))
    float_nodes = {node.name for node in plan.float_nodes}
    for node in list(lowered.graph):
        encodings = writer.weight_encodings(node)
        if node.name in float_nodes or not encodings:
            continue
        rewrite = rewrites.get(node.op_type)
        if rewrite is None or not rewrite(writer, node, encodings):
            writer.convert_weights(node, encodings)
    remove_unused(lowered)
    if any(node.domain == CONTRIB for node in lowered.graph):
        lowered.opset_imports.setdefault(CONTRIB, 1)
    return lowered


@dataclass(kw_only=True, slots=True)
class DynamicWriter:
    """What is written where.

    Attributes:
        graph: of the lowered network.
        plan: that is written into it.
        parameters: adds constants and finds free names.
        rounded: value -> its DynamicQuantizeLinear.
    """

    graph: ir.Graph
    plan: Plan
    parameters: Parameters
    rounded: dict[str, ir.Node] = field(default_factory=dict)

    def weight_encodings(self, node: ir.Node) -> dict[int, Encoding]:
        """Encodings of a node's weights by input number."""
        named = {number: self.plan.encodings.get(str(_input(node, number).name)) for number in weight_inputs(node)}
        return {number: encoding for number, encoding in named.items() if isinstance(encoding, Encoding)}

    def convert_weights(self, node: ir.Node, encodings: Mapping[int, Encoding]) -> None:
        """Let a node read its weights as levels that are made float when the network is loaded."""
        for number, encoding in encodings.items():
            node.replace_input_with(number, self.parameters.converted(_input(node, number), encoding, node))

    def activation(self, node: ir.Node) -> ir.Value | None:
        """Return the value that a node's weights are multiplied with if it is to be rounded, else None."""
        value = next((value for _, value in activation_inputs(node)), None)
        encoding = self.plan.encodings.get(str(value.name)) if value is not None else None
        if value is None or not isinstance(encoding, DynamicEncoding):
            return None
        if encoding.type.name != "uint8" or encoding.symmetric:
            raise PlanError(
                f"value {value.name!r}: expected a dynamic encoding of uint8 with a zero point, which is all that "
                f"DynamicQuantizeLinear writes, got {encoding.type.name}{' without one' if encoding.symmetric else ''}"
            )
        return value

    def rounding(self, node: ir.Node) -> ir.Node | None:
        """Return the DynamicQuantizeLinear of a node's activation, one for all its readers; None if it stays float."""
        value = self.activation(node)
        if value is None:
            return None
        known = self.rounded.get(str(value.name))
        if known is None:
            known = self.rounded[str(value.name)] = dynamic_rounding(value, self.parameters)
            producer = value.producer()
            if producer is None:
                self.graph[0].prepend(known)
            else:
                producer.append(known)
        return known

    def name(self, node: ir.Node, suffix: str) -> str:
        """Return a free name for what is made of a node."""
        return self.parameters.name(f"{node.name}_{suffix}")


Rewrite = Callable[[DynamicWriter, ir.Node, Mapping[int, Encoding]], bool]
"""A function that cannot rewrite a node returns False, and the node stays float."""


def _input(node: ir.Node, number: int) -> ir.Value:
    value = node.inputs[number]
    assert value is not None
    return value


# --- products -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class IntegerWeights:
    """Integer weights of a product.

    Attributes:
        name: of the float weights.
        levels: in the order that the integer operator reads.
        scale: float32, `()` or `(channels,)`.
        zero_point: of the levels' type, the scale's shape.
    """

    name: str
    levels: npt.NDArray[np.integer[Any]]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.integer[Any]]


def integer_weights(node: ir.Node, encoding: Encoding, axis: int) -> IntegerWeights:
    """Round a node's weights for a product whose output channels lie along `axis` of them.

    Raises:
        PlanError: if an integer product does not take them.
    """
    value = _input(node, 1)
    array = constant_array(value)
    assert array is not None
    granularity = encoding.granularity
    along = isinstance(granularity, PerAxis) and normalized_axis(granularity.axis, array.ndim) == axis % array.ndim
    if encoding.type.bits > 8 or not (isinstance(granularity, PerTensor) or along):
        raise PlanError(
            f"weights {value.name!r}: expected at most 8 bits and one scale, or one per output channel (axis {axis}), "
            f"for an integer {node.op_type}, got {encoding.type.name} with {granularity}; choose int8 per channel, or "
            "mode weight-only"
        )
    levels = quantize(array, encoding)
    zero_point = encoding.zero_point.astype(levels.dtype)
    return IntegerWeights(name=str(value.name), levels=levels, scale=encoding.scale, zero_point=zero_point)


def _product(
    writer: DynamicWriter,
    node: ir.Node,
    operator: str,
    attributes: Mapping[str, Any],
    rounding: ir.Node,
    weights: IntegerWeights,
    scale: npt.NDArray[np.float32],
) -> ir.Value:
    """Write the integer product before a node and return its result in real numbers.

    Args:
        writer: of the network.
        node: the float product.
        operator: MatMulInteger or ConvInteger.
        attributes: of the operator.
        rounding: the DynamicQuantizeLinear of the first factor.
        weights: the second factor.
        scale: of the weights, in a shape that broadcasts over the product.
    """
    activation, activation_scale, activation_zero_point = rounding.outputs
    levels = writer.parameters.constant(f"{weights.name}_quantized", weights.levels)
    zero_point = writer.parameters.constant(f"{weights.name}_zero_point", weights.zero_point)
    weight_scale = writer.parameters.constant(f"{weights.name}_scale", scale)
    inputs = [activation, levels, activation_zero_point, zero_point]
    product = new_node(operator, inputs, attributes, name=writer.name(node, "integers"))
    cast = new_node("Cast", product.outputs, {"to": ir.DataType.FLOAT}, name=writer.name(node, "accumulator"))
    both = new_node("Mul", [activation_scale, weight_scale], name=writer.name(node, "scale"))
    scaled = new_node("Mul", [cast.outputs[0], both.outputs[0]], name=writer.name(node, "scaled"))
    for made, kind, shape in (
        (product, ir.DataType.INT32, node.outputs[0].shape),
        (cast, ir.DataType.FLOAT, node.outputs[0].shape),
        (both, ir.DataType.FLOAT, ir.Shape(scale.shape)),
        (scaled, ir.DataType.FLOAT, node.outputs[0].shape),
    ):
        made.outputs[0].type = ir.TensorType(kind)
        made.outputs[0].shape = shape
    node.prepend([product, cast, both, scaled])
    return scaled.outputs[0]


def _add(writer: DynamicWriter, node: ir.Node, value: ir.Value, bias: ir.Value) -> ir.Value:
    added = new_node("Add", [value, bias], name=writer.name(node, "biased"), like=node.outputs[0])
    node.prepend(added)
    return added.outputs[0]


def _matmul(writer: DynamicWriter, node: ir.Node, encodings: Mapping[int, Encoding]) -> bool:
    rounding = writer.rounding(node)
    if rounding is None or 1 not in encodings:
        return False
    weights = integer_weights(node, encodings[1], -1)
    result = _product(writer, node, "MatMulInteger", {}, rounding, weights, weights.scale)
    addition = sole_consumer(node.outputs[0])
    if addition is not None and is_operator(addition, "Add") and is_constant(addition.inputs[0]):
        # ONNX Runtime's fusion takes a bias only where it is the second of both.
        first, second = addition.inputs
        addition.replace_input_with(0, second)
        addition.replace_input_with(1, first)
    take_place(result, node.outputs[0])
    return True


def _gemm(writer: DynamicWriter, node: ir.Node, encodings: Mapping[int, Encoding]) -> bool:
    rounding = writer.rounding(node) if not node.attributes.get_int("transA", 0) else None
    if rounding is None or 1 not in encodings:
        return False
    transposed = bool(node.attributes.get_int("transB", 0))
    weights = integer_weights(node, encodings[1], 0 if transposed else 1)
    if transposed:
        weights = IntegerWeights(
            name=weights.name,
            levels=np.ascontiguousarray(weights.levels.T),
            scale=weights.scale,
            zero_point=weights.zero_point,
        )
    scale = (weights.scale * np.float32(node.attributes.get_float("alpha", 1.0))).astype(np.float32)
    result = _product(writer, node, "MatMulInteger", {}, rounding, weights, scale)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        result = _add(writer, node, result, _times_beta(writer, node, bias))
    take_place(result, node.outputs[0])
    return True


def _times_beta(writer: DynamicWriter, node: ir.Node, bias: ir.Value) -> ir.Value:
    beta = node.attributes.get_float("beta", 1.0)
    if beta == 1.0:
        return bias
    array = constant_array(bias)
    if array is not None:
        return writer.parameters.constant(f"{bias.name}_times_beta", (array * np.float32(beta)).astype(np.float32))
    factor = writer.parameters.constant(f"{node.name}_beta", np.array(beta, dtype=np.float32))
    product = new_node("Mul", [bias, factor], name=writer.name(node, "bias"), like=bias)
    node.prepend(product)
    return product.outputs[0]


def _conv(writer: DynamicWriter, node: ir.Node, encodings: Mapping[int, Encoding]) -> bool:
    rounding = writer.rounding(node)
    if rounding is None or 1 not in encodings:
        return False
    weights = integer_weights(node, encodings[1], 0)
    if (weights.zero_point != weights.zero_point.flat[0]).any():
        raise PlanError(
            f"weights {weights.name!r}: expected one zero point for all channels, which is all that ConvInteger takes "
            "in ONNX Runtime; choose signed weights without zero point (int8)"
        )
    weights = IntegerWeights(
        name=weights.name,
        levels=weights.levels,
        scale=weights.scale,
        zero_point=np.asarray(weights.zero_point.flat[0]),
    )
    channels = (-1,) + (1,) * (weights.levels.ndim - 2)  # (C, 1, 1) behind the batch axis
    scale = weights.scale.reshape(channels) if weights.scale.ndim else weights.scale
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    result = _product(writer, node, "ConvInteger", attributes, rounding, weights, scale)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        result = _add(writer, node, result, _along_channels(writer, node, bias, channels))
    take_place(result, node.outputs[0])
    return True


def _along_channels(writer: DynamicWriter, node: ir.Node, bias: ir.Value, channels: tuple[int, ...]) -> ir.Value:
    array = constant_array(bias)
    if array is not None:
        return writer.parameters.constant(f"{bias.name}_channels", array.reshape(channels))
    shape = writer.parameters.constant(f"{node.name}_channels", np.array(channels, dtype=np.int64))
    reshaped = new_node("Reshape", [bias, shape], name=writer.name(node, "bias"))
    node.prepend(reshaped)
    return reshaped.outputs[0]


# --- recurrent ------------------------------------------------------------------------------------------------------


def _lstm(writer: DynamicWriter, node: ir.Node, encodings: Mapping[int, Encoding]) -> bool:
    if writer.activation(node) is None or set(encodings) != {1, 2} or node.attributes.get_int("layout", 0) != 0:
        return False
    if any(encoding.type.bits > 8 or isinstance(encoding.granularity, PerBlock) for encoding in encodings.values()):
        return False
    (weights, *weights_linear), (recurrence, *recurrence_linear) = (
        _lstm_weights(writer, _input(node, number), encodings[number]) for number in (1, 2)
    )
    others = [node.inputs[number] if number < len(node.inputs) else None for number in range(3, 8)]
    new = ir.node(
        "DynamicQuantizeLSTM",
        inputs=[node.inputs[0], weights, recurrence, *others, *weights_linear, *recurrence_linear],
        attributes={name: node.attributes[name].value for name in _LSTM_ATTRIBUTES if name in node.attributes},
        domain=CONTRIB,
        name=node.name,
        num_outputs=len(node.outputs),
    )
    node.prepend(new)
    for output, old in zip(new.outputs, list(node.outputs), strict=True):
        take_place(output, old)
    return True


def _lstm_weights(writer: DynamicWriter, value: ir.Value, encoding: Encoding) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return levels, scale and zero point as DynamicQuantizeLSTM reads them.

    ONNX's weights are `[directions, 4 * hidden, inputs]`, this operator's `[directions, inputs, 4 * hidden]`, with
    scales `[directions]` or `[directions, 4 * hidden]`.
    """
    array = constant_array(value)
    assert array is not None
    directions, gates, _ = array.shape
    along_gates = isinstance(encoding.granularity, PerAxis) and normalized_axis(encoding.granularity.axis, 3) == 1
    shape = (directions, gates) if along_gates else (directions,)
    levels = np.ascontiguousarray(quantize(array, encoding).transpose(0, 2, 1))
    zero_point = encoding.zero_point.astype(levels.dtype)
    constant = writer.parameters.constant
    return (
        constant(f"{value.name}_quantized", levels),
        constant(f"{value.name}_scale", np.ascontiguousarray(np.broadcast_to(encoding.scale, shape))),
        constant(f"{value.name}_zero_point", np.ascontiguousarray(np.broadcast_to(zero_point, shape))),
    )


_REWRITES: dict[str, Rewrite] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "LSTM": _lstm,
}
"""Operator -> how it is rewritten."""
