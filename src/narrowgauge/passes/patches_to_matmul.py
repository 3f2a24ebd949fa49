"""Write the patch embedding of a transformer, a Conv that is flattened to a sequence, as a matrix product.

Integer kernels of several engines write the result of a convolution only in integers, that of a matrix product also in
float. The residual stream of a transformer, to which every block adds, begins there.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_array, replace_constant_input
from narrowgauge.graph.edits import (
    graph_of,
    is_operator,
    new_node,
    remove_if_unused,
    sole_consumer,
    take_place,
    unique_name,
)
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions, infer_shapes
from narrowgauge.passes.cancel_transposes import merge_transposes, order_of
from narrowgauge.passes.merge_reshapes import RESHAPES


def patches_to_matmul(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace each Conv over patches, and what makes a sequence of its output, by a MatMul of the patches, in place.

    Such a Conv has a kernel as large as its stride, and more than a pixel. Its output is read only by a Transpose that
    puts the channels last, at once ([N, C, H, W] to [N, H, W, C]) or after reshapes ([N, C, H * W] to [N, H * W, C]),
    for any number of spatial axes. The transposed value keeps its name; the MatMul takes the Conv's, and the weights,
    now [kernel height * kernel width * in, out], keep theirs. The patches are cut out by reshapes and transposes that
    have no more than four axes for an image, since many engines know no more, and any batch size.

    Refuses such a Conv with groups, dilation, padding or weights that are not constant, with an input whose height or
    width is not fixed, or is no multiple of the kernel's, and one whose output is not kept image by image.
    """
    refusals: list[Refusal] = []
    changed = False
    for node in tuple(model.graph):
        readers = _readers_into_sequence(node) if _is_patchwise(node) else []
        if not readers:
            continue
        reason = _reason_against(node, readers[-1])
        if reason is None:
            _replace(node, readers)
            changed = True
        else:
            refusals.append(Refusal(node=node.name or "", operator=node.op_type, reason=reason))
    if changed:
        merge_transposes(model)  # the input may come from channels-last itself
        infer_shapes(model)
    return tuple(refusals)


def _is_patchwise(node: ir.Node) -> bool:
    """Tell whether the node is a Conv whose kernel is as large as its stride, and more than a pixel."""
    if not is_operator(node, "Conv"):
        return False
    kernel = _kernel(node)
    return kernel is not None and math.prod(kernel) > 1 and kernel == tuple(node.attributes.get_ints("strides", ()))


def _kernel(conv: ir.Node) -> tuple[int, ...] | None:
    shape = dimensions(conv.inputs[1])
    sizes = conv.attributes.get_ints("kernel_shape") or (() if shape is None else shape[2:])
    known = tuple(size for size in sizes if size is not None)
    return known if len(known) == len(sizes) else None


def _readers_into_sequence(conv: ir.Node) -> list[ir.Node]:
    """Return the reshapes, if any, and the Transpose to channels-last that alone read the Conv's output, else []."""
    value, weight = conv.outputs[0], dimensions(conv.inputs[1])
    readers: list[ir.Node] = []
    consumer = sole_consumer(value)
    while consumer is not None and is_operator(consumer, *RESHAPES):
        readers.append(consumer)
        value = consumer.outputs[0]
        consumer = sole_consumer(value)
    sizes = dimensions(value)
    if consumer is None or sizes is None or weight is None or len(sizes) < 3 or sizes[1] != weight[0]:
        return []
    return [*readers, consumer] if order_of(consumer) == _channels_last(len(sizes)) else []


def _channels_last(axes: int) -> tuple[int, ...]:
    return (0, *range(2, axes), 1)


def _reason_against(conv: ir.Node, transpose: ir.Node) -> str | None:
    attributes, kernel = conv.attributes, _kernel(conv) or ()
    dilations = attributes.get_ints("dilations", (1,) * len(kernel))
    if attributes.get_int("group", 1) != 1:
        return "it has groups of channels"
    if any(taps > 1 and distance != 1 for taps, distance in zip(kernel, dilations, strict=True)):
        return "it is dilated"
    # VALID has no padding whatever `pads` says, and SAME none where the kernel fits a whole number of times.
    if attributes.get_string("auto_pad", "NOTSET") == "NOTSET" and any(attributes.get_ints("pads", ())):
        return "its input is padded"
    if constant_array(conv.inputs[1]) is None:
        return "its weights are not constant"
    return _reason_against_sizes(conv, transpose, kernel)


def _reason_against_sizes(conv: ir.Node, transpose: ir.Node, kernel: Sequence[int]) -> str | None:
    image, sequence = (dimensions(conv.inputs[0]) or (None,) * 3)[2:], dimensions(transpose.outputs[0])
    sizes = [size for size in image if size is not None]
    places = [size for size in (sequence or (None,) * 3)[1:-1] if size is not None]
    if len(sizes) != len(kernel) or sequence is None or len(places) != len(sequence) - 2:
        return "the size of its input is not fixed"
    if any(size % taps for size, taps in zip(sizes, kernel, strict=True)):
        whole, patch = " x ".join(map(str, sizes)), " x ".join(map(str, kernel))
        return f"its input of {whole} is no whole number of patches of {patch}"
    if math.prod(places) != math.prod(sizes) // math.prod(kernel):
        return "what reads its output mixes the patches with the batch"
    return None


def _replace(conv: ir.Node, readers: Sequence[ir.Node]) -> None:
    graph, result = graph_of(conv), readers[-1].outputs[0]
    weight = np.asarray(constant_array(conv.inputs[1]))  # [out, in, *kernel]
    matrix = np.moveaxis(weight, (0, 1), (-1, -2)).reshape(-1, weight.shape[0])  # [prod(kernel) * in, out]
    nodes = _patches(conv, result, width=matrix.shape[0])
    name = conv.name or f"{result.name}_matmul"
    product = unique_name(graph, f"{result.name}_product")
    matmul = new_node("MatMul", [nodes[-1].outputs[0], conv.inputs[1]], name=name, output=product)
    nodes.append(matmul)
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    if bias is not None:
        nodes.append(new_node("Add", [matmul.outputs[0], bias], name=unique_name(graph, f"{name}_bias")))
    graph.insert_before(conv, nodes)
    take_place(nodes[-1].outputs[0], result)
    for node in (*reversed(readers), conv):  # the Conv still holds the weights
        remove_if_unused(node)
    replace_constant_input(matmul, 1, np.ascontiguousarray(matrix))


def _patches(conv: ir.Node, result: ir.Value, *, width: int) -> list[ir.Node]:
    """Return new nodes that cut the Conv's input into patches, [N, *places, width], the places as `result` has them.

    For an image, in [N, in, H, W], with h patches of height p down and w of width q across:
    [N, H, W, in] -> [N h, p, w, q in] -> [N h, w, p, q in] -> [N, h w, p q in].
    """
    graph, kernel, image = graph_of(conv), _kernel(conv) or (), dimensions(conv.inputs[0]) or ()
    places = (dimensions(result) or ())[1:-1]
    nodes = [_node(graph, "Transpose", conv.inputs[0], f"{result.name}_channels_last", _channels_last(len(image)))]
    if len(kernel) > 1:
        # [N * h, p, w, q * in]: for each axis how many patches, then the size of one
        split = [size for taps, pixels in zip(kernel, image[2:], strict=True) for size in ((pixels or 0) // taps, taps)]
        split = [-1, *split[1:-1], width // math.prod(kernel[:-1])]
        order = (*range(0, len(split), 2), *range(1, len(split), 2))
        nodes.append(_node(graph, "Reshape", nodes[-1].outputs[0], f"{result.name}_split", split))
        nodes.append(_node(graph, "Transpose", nodes[-1].outputs[0], f"{result.name}_ordered", order))
    target = [-1, *(size or 0 for size in places), width]
    nodes.append(_node(graph, "Reshape", nodes[-1].outputs[0], f"{result.name}_patches", target))
    source, patches = conv.inputs[0], nodes[-1].outputs[0]
    if source is not None and source.shape is not None:  # or -1 would lose the name of the batch's size
        patches.type, patches.shape = source.type, ir.Shape([source.shape[0], *target[1:]])
    return nodes


def _node(graph: ir.Graph, operator: str, source: ir.Value | None, name: str, numbers: Sequence[int]) -> ir.Node:
    """Build a Transpose to an order of axes, or a Reshape to sizes."""
    name = unique_name(graph, name)
    if operator == "Transpose":
        return new_node(operator, [source], {"perm": list(numbers)}, name=name)
    return new_node(operator, [source, add_constant(graph, f"{name}_shape", np.asarray(numbers, np.int64))], name=name)
