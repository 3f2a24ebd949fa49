"""Whether a network is already quantized."""

import onnx_ir as ir

from narrowgauge.graph.edits import all_nodes

_QUANTIZED_OPERATORS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_INTEGER_OPERATORS = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulNBits"})


def is_quantized(model: ir.Model) -> bool:
    """Tell whether any node quantizes, dequantizes or computes on quantized numbers.

    True for the standard operators (QuantizeLinear, QLinearConv, MatMulInteger, ...) and for those of ONNX Runtime's
    own domain, whose names begin with QLinear or Q.
    """
    return any(_is_quantized_operator(node) for node in all_nodes(model))


def _is_quantized_operator(node: ir.Node) -> bool:
    operator = node.op_type
    if operator in _QUANTIZED_OPERATORS or operator in _INTEGER_OPERATORS or operator.startswith("QLinear"):
        return True
    return node.domain == "com.microsoft" and operator.startswith("Q") and operator[1:2].isupper()
