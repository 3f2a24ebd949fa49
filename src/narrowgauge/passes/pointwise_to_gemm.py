"""Write a classifier that is a 1x1 Conv on a single pixel as the matrix product it is."""

import itertools

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array, replace_constant_input
from narrowgauge.graph.edits import (
    graph_of,
    is_operator,
    new_node,
    remove_unused,
    sole_consumer,
    take_place,
    unique_name,
)
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions, rank
from narrowgauge.passes.merge_reshapes import RESHAPES

ACTIVATION_FUNCTIONS = (
    *("Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Selu", "Sigmoid"),
    *("Softplus", "Softsign", "Tanh", "ThresholdedRelu"),
)
"""Operators of one tensor that compute each element by itself, so that they work on any shape."""


def pointwise_to_gemm(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace each 1x1 Conv from [N, C, 1, 1] that ends up flattened to [N, K] by a Gemm on [N, C], in place.

    Between the Conv and the reshape that flattens, [N, K, 1, 1] to [N, K], there may be activation functions and more
    such Convs, each read by the next alone. One Flatten before the first Conv stands for all, or what has the shape
    [N, C] already; the reshape behind goes away and its value's name survives. Values in between keep their names and
    numbers and lose their axes of size 1. A Conv whose output goes elsewhere too, as in squeeze-and-excitation, is left
    alone and not reported.

    Refuses, where a Conv from one pixel to one pixel is flattened: groups, a kernel larger than a pixel, weights that
    are not constant.
    """
    refusals: list[Refusal] = []
    for node in tuple(model.graph):
        if node.graph is None or not is_operator(node, *RESHAPES) or rank(node.outputs[0]) != 2:
            continue
        chain, refused = _chain_before(node)
        if refused is not None:
            refusals.append(refused)
        if chain:
            _replace(chain, node)
    remove_unused(model)  # reshapes before the one that flattened
    return tuple(refusals)


def _chain_before(reshape: ir.Node) -> tuple[list[ir.Node], Refusal | None]:
    """Return the nodes to work on [N, C], beginning with a Conv, and the Conv before them that was refused."""
    value, width = reshape.inputs[0], (dimensions(reshape.outputs[0]) or (None, None))[1]
    while value is not None and is_operator(value.producer(), *RESHAPES) and sole_consumer(value) is not None:
        producer = value.producer()
        value = None if producer is None else producer.inputs[0]
    chain: list[ir.Node] = []
    refused = None
    if value is None or width is None or _pixel_channels(value) != width:
        return chain, refused
    while value is not None and _pixel_channels(value) is not None and sole_consumer(value) is not None:
        node = value.producer()
        if is_operator(node, "Conv") and node is not None and _pixel_channels(node.inputs[0]) is not None:
            reason = _reason_against(node)
            if reason is not None:
                refused = Refusal(node=node.name or "", operator=node.op_type, reason=reason)
                break
        elif node is None or not is_operator(node, *ACTIVATION_FUNCTIONS):
            break
        chain.insert(0, node)
        value = node.inputs[0]
    while chain and not is_operator(chain[0], "Conv"):
        chain.pop(0)
    return chain, refused


def _pixel_channels(value: ir.Value | None) -> int | None:
    """Return C for a value of shape [N, C, 1, ...], else None."""
    sizes = dimensions(value)
    if sizes is None or len(sizes) < 3 or any(size != 1 for size in sizes[2:]):
        return None
    return sizes[1]


def _reason_against(conv: ir.Node) -> str | None:
    weight = dimensions(conv.inputs[1])
    if conv.attributes.get_int("group", 1) != 1:
        return "it has groups of channels"
    if constant_array(conv.inputs[1]) is None or weight is None:
        return "its weights are not constant"
    # From one pixel to one pixel with a kernel of one, neither stride nor dilation means anything, and nothing pads.
    if any(size != 1 for size in weight[2:]):
        return "its kernel is larger than the one pixel of its input"
    return None


def _replace(chain: list[ir.Node], reshape: ir.Node) -> None:
    """Let the nodes of the chain work on [N, C], and the last one make what the reshape made."""
    value = _flat(chain[0])
    for node in chain:
        result = node.outputs[0]
        shape = None if result.shape is None else ir.Shape(result.shape[:2])
        if is_operator(node, "Conv"):
            value = _gemm(node, value).outputs[0]
        else:
            node.replace_input_with(0, value)
            value = result
        value.shape = shape
    take_place(value, reshape.outputs[0])


def _gemm(conv: ir.Node, flat: ir.Value) -> ir.Node:
    """Replace one Conv; its output's name survives."""
    graph, result = graph_of(conv), conv.outputs[0]
    weight = np.asarray(constant_array(conv.inputs[1]))  # [out, in, 1, ...]
    name = conv.name or f"{result.name}_gemm"
    output = unique_name(graph, f"{result.name}_flat")
    gemm = new_node("Gemm", [flat, *conv.inputs[1:]], {"transB": 1}, name=name, output=output)
    graph.insert_before(conv, gemm)
    take_place(gemm.outputs[0], result)
    replace_constant_input(gemm, 1, weight.reshape(weight.shape[:2]))
    return gemm


def _flat(conv: ir.Node) -> ir.Value:
    """Return a value that holds the Conv's input as [N, C]: one that is there, or that of a new Flatten."""
    graph, source = graph_of(conv), conv.inputs[0]
    if source is None:
        message = f"the Conv {conv.name!r} has no input"
        raise ValueError(message)
    channels = _pixel_channels(source)
    value: ir.Value | None = source
    while value is not None and is_operator(value.producer(), *RESHAPES):
        producer = value.producer()
        value = None if producer is None else producer.inputs[0]
        if value is not None and rank(value) == 2 and (dimensions(value) or ())[1:] == (channels,):
            return value
    flatten = next((use.node for use in source.uses() if _flattens(use.node) and use.node.graph is graph), None)
    if flatten is not None and flatten in tuple(itertools.takewhile(lambda node: node is not conv, graph)):
        return flatten.outputs[0]
    if flatten is not None:
        graph.remove(flatten)  # from behind the Conv to before it
    else:
        name = unique_name(graph, f"{source.name}_flatten")
        flatten = new_node("Flatten", [source], {"axis": 1}, name=name)
        flatten.outputs[0].type = source.type
        flatten.outputs[0].shape = None if source.shape is None else ir.Shape(source.shape[:2])
    graph.insert_before(conv, flatten)
    return flatten.outputs[0]


def _flattens(node: ir.Node) -> bool:
    return is_operator(node, "Flatten") and node.attributes.get_int("axis", 1) == 1
