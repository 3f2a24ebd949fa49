"""Whether a network is already quantized."""

import onnx_ir as ir

from narrowgauge.graph.constants import constant_tensor
from narrowgauge.graph.edits import all_nodes, is_operator

_ROUNDING_OPERATORS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_INTEGER_OPERATORS = frozenset(
    {"ConvInteger", "MatMulInteger", "MatMulInteger16", "MulInteger", "ReduceSumInteger", "MatMulIntegerToFloat"}
    | {"DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"}
)
_QONNX_OPERATORS = frozenset({"Quant", "BipolarQuant", "Trunc", "IntQuant", "FloatQuant"})
"""Of the domains of QONNX and Brevitas, which its files spell in several ways; ONNX itself has none of these names."""

_STORED_LEVELS = frozenset(
    {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT16, ir.DataType.UINT16}
)


def is_quantized(model: ir.Model) -> bool:
    """Tell whether any node quantizes, dequantizes or computes on quantized numbers.

    True for the standard operators (QuantizeLinear, QLinearConv, MatMulInteger, ...), for those of ONNX Runtime's own
    domain, whose names begin with QLinear or Q, for QONNX's, and for weights stored as integers that a Cast and a Mul
    make real.
    """
    return any(is_quantized_operator(node) or casts_weights(node) for node in all_nodes(model))


def is_quantized_operator(node: ir.Node) -> bool:
    """Tell whether a node quantizes, dequantizes or computes on quantized numbers by its very operator."""
    operator = node.op_type
    if operator in _ROUNDING_OPERATORS or operator in _INTEGER_OPERATORS or operator.startswith("QLinear"):
        return True
    if is_qonnx_operator(node):
        return True
    return node.domain == "com.microsoft" and operator.startswith("Q") and operator[1:2].isupper()


def is_qonnx_operator(node: ir.Node) -> bool:
    """Tell whether a node is one of QONNX's quantizers."""
    return node.op_type in _QONNX_OPERATORS and node.domain not in ("", "ai.onnx")


def casts_weights(node: ir.Node) -> bool:
    """Tell whether a node makes float numbers of a constant matrix of at most 16 bits, to be scaled behind it."""
    if not is_operator(node, "Cast") or node.attributes.get_int("to", 0) != ir.DataType.FLOAT:
        return False
    tensor = constant_tensor(node.inputs[0])
    if tensor is None or tensor.dtype not in _STORED_LEVELS or tensor.shape.rank() < 2:
        return False
    readers = [use.node for use in node.outputs[0].uses()]
    return bool(readers) and all(is_operator(reader, "Mul", "Sub", "Reshape") for reader in readers)
