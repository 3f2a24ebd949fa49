"""Fold multiplications and additions of constants into the layers before or behind them."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant
from narrowgauge.graph.edits import graph_of, new_node, remove_if_unused, sole_consumer, take_place
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions, rank
from narrowgauge.passes.affine import Affine, affine_of, per_channel
from narrowgauge.passes.layers import CannotFoldError, Layer, layer_of, scale_input, scale_output


def fold_affine(model: ir.Model) -> tuple[Refusal, ...]:
    """Fold every Add, Sub, Mul, Div and Neg by constants that a neighbouring layer can take, in place.

    Into the Conv, ConvTranspose, Gemm or MatMul (with or without the Add of its bias) before it where nothing else
    reads that layer's output, else into the layer behind where nothing else reads the node's. A bias is made where
    there was none. The bias of a MatMul is an Add behind it, of one number per channel.

    What no layer takes is merged: of adjacent such nodes that alone read each other at most a Mul and an Add are left.

    Refuses, where there is a layer behind: a shift that meets zero padding or a transposed convolution, and weights
    that would not be finite.
    """
    refusals: dict[ir.Node, Refusal] = {}
    changed = True
    while changed:
        changed = False
        for node in tuple(model.graph):
            affine = affine_of(node) if node.graph is not None else None
            if affine is not None and (fold_into_producer(affine) or _fold_into_consumer(affine, refusals)):
                refusals.pop(node, None)
                changed = True
    for node in tuple(model.graph):
        if node.graph is not None:
            _merge_behind(node)
    return tuple(refusal for node, refusal in refusals.items() if node.graph is not None)


def fold_into_producer(affine: Affine) -> bool:
    """Fold into the layer that makes x, if this node alone reads it; its output takes this node's output's name."""
    layer = layer_of(affine.source.producer())
    if layer is None or sole_consumer(layer.output) is not affine.node or _is_bias(affine):
        return False
    numbers = _channelwise(affine, layer, layer.output_channels)
    if numbers is None:
        return False
    needs_bias = layer.node.op_type == "MatMul" and layer.bias_node is None and bool(np.any(numbers[1]))
    try:
        scale_output(layer, numbers[0], np.zeros(1) if needs_bias else numbers[1])
    except CannotFoldError:
        return False
    result = affine.node.outputs[0]
    operands = [value for value in affine.node.inputs if value is not None and value.is_initializer()]
    if needs_bias:
        _add_bias(affine, layer, numbers[1])
    else:
        take_place(layer.output, result)
        _hand_over_name(operands, layer)
    return True


def _hand_over_name(operands: Sequence[ir.Value], layer: Layer) -> None:
    """Let a new bias have the name that it should have, if what was folded had it and nothing reads that any more."""
    bias, graph = layer.node.inputs[-1], graph_of(layer.node)
    for value in operands:
        name = value.name
        if bias is not None and name and not value.uses() and (bias.name or "").startswith(f"{name}_"):
            del graph.initializers[name]
            bias.name = name


def _merge_behind(node: ir.Node) -> None:
    """Merge the longest chain of affine nodes that begins here into Mul and Add, if that leaves fewer."""
    chain: list[Affine] = []
    following: ir.Node | None = node
    while following is not None:
        affine = affine_of(following)
        if affine is None or (chain and affine.source is not chain[-1].node.outputs[0]) or _is_bias(affine):
            break
        chain.append(affine)
        following = sole_consumer(following.outputs[0])
    if len(chain) < 2 or any(not _keeps_size(affine) for affine in chain):
        return
    scale, shift = np.ones(()), np.zeros(())
    for affine in chain:
        scale, shift = scale * affine.scale, shift * affine.scale + affine.shift
    largest = max(max(affine.scale.size, affine.shift.size) for affine in chain)
    needed = [("Mul", scale)] * bool(np.any(scale != 1)) + [("Add", shift)] * bool(np.any(shift != 0))
    if not 0 < len(needed) < len(chain) or max(scale.size, shift.size) > largest:
        return
    result = chain[-1].node.outputs[0]
    dtype = np.float32 if result.dtype is None else result.dtype.numpy()
    with np.errstate(over="ignore"):
        stored = [(operator, numbers.astype(dtype)) for operator, numbers in needed]
    if all(np.isfinite(numbers).all() for _, numbers in stored):
        _write_chain(chain, stored)


def _keeps_size(affine: Affine) -> bool:
    """Tell whether a node's constants surely do not broadcast its operand to a larger shape."""
    sizes = dimensions(affine.source)
    numbers = affine.scale if affine.scale.size > affine.shift.size else affine.shift
    if numbers.size == 1:
        return sizes is not None and len(sizes) >= max(affine.scale.ndim, affine.shift.ndim)
    if sizes is None or numbers.ndim > len(sizes):
        return False
    known = sizes[len(sizes) - numbers.ndim :]
    return all(number in {1, size} for number, size in zip(numbers.shape, known, strict=True))


def _write_chain(chain: Sequence[Affine], needed: Sequence[tuple[str, np.ndarray]]) -> None:
    """Replace a chain of nodes by others that compute the same; the names of its last node and value survive."""
    last, value = chain[-1].node, chain[0].source
    graph, result = graph_of(last), last.outputs[0]
    for number, (operator, numbers) in enumerate(needed):
        final = number == len(needed) - 1
        name = (last.name or f"{result.name}_merged") if final else f"{result.name}_scaled"
        constant = add_constant(graph, f"{result.name}_{'scale' if operator == 'Mul' else 'shift'}", numbers)
        node = new_node(operator, [value, constant], name=name, output=f"{result.name}_{operator}", like=result)
        graph.insert_before(last, node)
        value = node.outputs[0]
    take_place(value, result)
    for affine in reversed(chain[:-1]):
        remove_if_unused(affine.node)


def _add_bias(affine: Affine, layer: Layer, shift: np.ndarray) -> None:
    """Put an Add of one number per channel, the bias of a MatMul, in the place of the node."""
    node, graph = affine.node, graph_of(affine.node)
    name = node.name or f"{node.outputs[0].name}_bias"
    bias = np.broadcast_to(shift, (layer.output_channels,)).astype(layer.weight.dtype)
    constant = add_constant(graph, f"{layer.output.name}_bias", bias)
    add = new_node("Add", [layer.output, constant], name=name)
    graph.insert_before(node, add)
    take_place(add.outputs[0], node.outputs[0])


def _fold_into_consumer(affine: Affine, refusals: dict[ir.Node, Refusal]) -> bool:
    consumer = sole_consumer(affine.node.outputs[0])
    layer = _layer_with_bias(consumer)
    if layer is None or layer.node.inputs[0] is not affine.node.outputs[0] or _is_bias(affine):
        return False
    numbers = _channelwise(affine, layer, layer.input_channels)
    if numbers is None or _widens(affine, layer):
        return False
    try:
        scale_input(layer, *numbers)
    except CannotFoldError as reason:
        node = affine.node
        refusals[node] = Refusal(node=node.name or "", operator=node.op_type, reason=str(reason))
        return False
    layer.node.replace_input_with(0, affine.source)
    remove_if_unused(affine.node)
    return True


def _widens(affine: Affine, layer: Layer) -> bool:
    """Tell whether the constants (may) broadcast x to a larger shape, which must not get lost."""
    sizes = dimensions(affine.source)
    if sizes is None or len(sizes) < max(affine.scale.ndim, affine.shift.ndim):
        return True
    if layer.is_convolution and len(sizes) != layer.weight.ndim:
        return True
    if max(affine.scale.size, affine.shift.size) == 1:
        return False
    return sizes[1 if layer.is_convolution else -1] != layer.input_channels


def _is_bias(affine: Affine) -> bool:
    layer = layer_of(affine.node)
    return layer is not None and layer.bias_node is affine.node


def _layer_with_bias(node: ir.Node | None) -> Layer | None:
    """Return the layer that a node is, for a MatMul with the Add behind it."""
    layer = layer_of(node)
    if layer is None or layer.node.op_type != "MatMul" or layer.bias_node is not None:
        return layer
    behind = layer_of(sole_consumer(layer.node.outputs[0]))
    return behind if behind is not None and behind.node is layer.node else layer


def _channelwise(affine: Affine, layer: Layer, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return scale and shift per channel, or None if they differ within a channel."""
    axes = layer.weight.ndim if layer.is_convolution else rank(affine.source)
    if axes is None:
        # A MatMul of unknown rank has at least the rank of its weights.
        axes = 2
    axis = 1 if layer.is_convolution else axes - 1
    scale = per_channel(affine.scale, axis=axis, axes=axes, channels=channels)
    shift = per_channel(affine.shift, axis=axis, axes=axes, channels=channels)
    return None if scale is None or shift is None else (scale, shift)
