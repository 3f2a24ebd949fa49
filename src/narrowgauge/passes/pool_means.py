"""Write a mean over the image as GlobalAveragePool, for which ONNX Runtime and most targets have an integer kernel."""

import onnx_ir as ir

from narrowgauge.graph.constants import constant_integers
from narrowgauge.graph.edits import graph_of, is_operator, new_node, take_place
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import rank


def pool_means(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace ReduceMean over axes 2 and 3 of a tensor of rank 4 by GlobalAveragePool, in place.

    Without `keepdims` a Flatten from axis 1 follows ([N, C, 1, 1] to [N, C], whatever N is). Means over other axes are
    left alone and not reported: they are no pooling.
    """
    for node in tuple(model.graph):
        if is_operator(node, "ReduceMean") and _is_spatial(node):
            _replace(node)
    return ()


def _is_spatial(node: ir.Node) -> bool:
    axes = constant_integers(node.inputs[1]) if len(node.inputs) > 1 else None
    return rank(node.inputs[0]) == 4 and axes is not None and {axis % 4 for axis in axes} == {2, 3}


def _replace(node: ir.Node) -> None:
    graph, result = graph_of(node), node.outputs[0]
    name = node.name or f"{result.name}_pool"
    pool = new_node("GlobalAveragePool", [node.inputs[0]], name=name, output=f"{result.name}_pooled")
    pool.outputs[0].type = result.type
    source = node.inputs[0]
    if source is not None and source.shape is not None:
        pool.outputs[0].shape = ir.Shape([source.shape[0], source.shape[1], 1, 1])
    nodes = [pool]
    if not node.attributes.get_int("keepdims", 1):
        nodes.append(new_node("Flatten", pool.outputs, {"axis": 1}, name=f"{pool.name}_flatten"))
    graph.insert_before(node, nodes)
    take_place(nodes[-1].outputs[0], result)
