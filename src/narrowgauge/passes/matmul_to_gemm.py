"""Write a matrix product with its bias as the one operator that it is."""

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array, replace_constant_input
from narrowgauge.graph.edits import graph_of, is_operator, new_node, sole_consumer, take_place
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.roles import is_float
from narrowgauge.graph.shapes import rank


def matmul_to_gemm(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace MatMul by constant weights and the Add of a bias behind it by a Gemm, in place, where x has two axes.

    Y = x W + b, x [N, K], W [K, M], b one number for each column, or for all. Many targets and ONNX Runtime have one
    integer kernel for this operator, which adds the bias to the accumulator. The Gemm has the MatMul's node name and
    the Add's output name. Products of more axes are no Gemm, and not reported.
    """
    for node in tuple(model.graph):
        add = sole_consumer(node.outputs[0]) if is_operator(node, "MatMul") else None
        if add is not None and is_operator(add, "Add"):
            _merge(node, add)
    return ()


def _merge(product: ir.Node, add: ir.Node) -> None:
    weight = constant_array(product.inputs[1])
    index = 1 if add.inputs[0] is product.outputs[0] else 0
    bias = constant_array(add.inputs[index])
    if (
        weight is None
        or bias is None
        or weight.ndim != 2
        or rank(product.inputs[0]) != 2
        or not is_float(add.outputs[0])
    ):
        return
    columns = weight.shape[1]
    if bias.ndim > 2 or bias.shape not in {(), (1,), (1, 1), (columns,), (1, columns)}:
        return
    graph = graph_of(product)
    name = product.name or f"{add.outputs[0].name}_gemm"
    gemm = new_node("Gemm", [*product.inputs, add.inputs[index]], name=name, output=f"{add.outputs[0].name}_sum")
    graph.insert_before(add, gemm)
    take_place(gemm.outputs[0], add.outputs[0])
    graph.remove(product, safe=True)
    if bias.shape != (columns,):
        replace_constant_input(gemm, 2, np.array(np.broadcast_to(bias.reshape(-1), (columns,))))
