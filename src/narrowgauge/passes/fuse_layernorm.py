"""Recognise layer normalisation in its parts and write it as one LayerNormalization.

y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * gamma + beta over the last axes; J. L. Ba, J. R. Kiros,
G. E. Hinton, "Layer Normalization", 2016, equations 3 and 4. Opset 17 has it as an operator.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_array, constant_integers, constant_scalar
from narrowgauge.graph.edits import graph_of, is_operator, new_node, remove_unused, sole_consumer, take_place
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions, rank


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """What a layer normalisation is made of; `last` is the node whose output it is."""

    source: ir.Value
    last: ir.Node
    axis: int
    epsilon: float
    sizes: tuple[int, ...]
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None


def fuse_layernorm(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace the nodes of a layer normalisation by LayerNormalization, in place.

    The square may be Pow 2, Mul with itself or two separate differences; the division by the root may be a product
    with its reciprocal; gamma and beta may be absent. They must be constants of the normalised axes' shape.

    Refuses: a root of a variance that is not one of a layer normalisation over the last axes, of known sizes.
    """
    refusals = []
    for node in tuple(model.graph):
        if not is_operator(node, "Sqrt") or node.graph is None:
            continue
        variance = _mean_behind_epsilon(node)
        if variance is None:
            continue
        parts = _match(node, *variance)
        if isinstance(parts, str):
            refusals.append(Refusal(node=node.name or "", operator="Sqrt", reason=parts))
        else:
            _fuse(parts)
    remove_unused(model)
    return tuple(refusals)


def _mean_behind_epsilon(root: ir.Node) -> tuple[ir.Node, float] | None:
    """Return the ReduceMean of a square, and epsilon, where the root is taken of their sum."""
    add = _producer(root.inputs[0])
    if not is_operator(add, "Add") or add is None:
        return None
    for index in (0, 1):
        epsilon, mean = constant_scalar(add.inputs[index]), _producer(add.inputs[1 - index])
        if epsilon is not None and mean is not None and is_operator(mean, "ReduceMean") and _squared(mean):
            return mean, epsilon
    return None


def _match(root: ir.Node, variance: ir.Node, epsilon: float) -> _Parts | str:
    centred = _squared(variance)
    source = _source_of_difference(centred, variance)
    if centred is None or source is None:
        return "the square it averages is not one of x - mean(x) over the same axes"
    axes_count, axes = rank(source), constant_integers(variance.inputs[1]) if len(variance.inputs) > 1 else None
    if axes_count is None or axes is None:
        return "its axes or the rank of its input are unknown"
    first = min(axis % axes_count for axis in axes)
    if sorted(axis % axes_count for axis in axes) != list(range(first, axes_count)):
        return "it does not normalise over the last axes, so it is no layer normalisation"
    sizes = (dimensions(source) or ())[first:]
    known = tuple(size for size in sizes if size is not None)
    if len(known) != len(sizes):
        return "the sizes of the axes it normalises over are unknown"
    quotient = _quotient(root, source, variance)
    if quotient is None:
        return "x - mean(x) is not divided by it, or something else reads it"
    parts = _Parts(source=source, last=quotient, axis=first - axes_count, epsilon=epsilon, sizes=known)
    return _with_gamma_and_beta(parts)


def _fuse(parts: _Parts) -> None:
    node, result = parts.last, parts.last.outputs[0]
    graph = graph_of(node)
    dtype = np.float32 if parts.source.dtype is None else parts.source.dtype.numpy()
    name = node.name or f"{result.name}_layernorm"
    gamma = np.ones(parts.sizes) if parts.gamma is None else parts.gamma
    inputs = [parts.source, add_constant(graph, f"{name}_scale", gamma.astype(dtype))]
    if parts.beta is not None:
        inputs.append(add_constant(graph, f"{name}_bias", parts.beta.astype(dtype)))
    attributes = {"axis": parts.axis, "epsilon": parts.epsilon}
    new = new_node("LayerNormalization", inputs, attributes, name=name)
    graph.insert_before(node, new)
    take_place(new.outputs[0], result)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _squared(mean: ir.Node) -> ir.Value | None:
    """Return d where the node averages d * d or d^2, keeping the axes."""
    square = _producer(mean.inputs[0])
    if square is None or not mean.attributes.get_int("keepdims", 1):
        return None
    if is_operator(square, "Pow") and constant_scalar(square.inputs[1]) == 2.0:
        return square.inputs[0]
    if is_operator(square, "Mul") and square.inputs[0] is square.inputs[1]:
        return square.inputs[0]
    return None


def _source_of_difference(value: ir.Value | None, variance: ir.Node) -> ir.Value | None:
    """Return x where the value is x - mean(x) over the axes of `variance`."""
    difference = _producer(value)
    if difference is None or not is_operator(difference, "Sub"):
        return None
    source, mean = difference.inputs[0], _producer(difference.inputs[1])
    if mean is None or not is_operator(mean, "ReduceMean") or mean.inputs[0] is not source:
        return None
    if not mean.attributes.get_int("keepdims", 1) or len(mean.inputs) < 2 or len(variance.inputs) < 2:
        return None
    count, axes = rank(source), (constant_integers(mean.inputs[1]), constant_integers(variance.inputs[1]))
    if count is None or axes[0] is None or axes[1] is None:
        return None
    same = {axis % count for axis in axes[0]} == {axis % count for axis in axes[1]}
    return source if same else None


def _quotient(root: ir.Node, source: ir.Value, variance: ir.Node) -> ir.Node | None:
    """Return the node that divides x - mean(x) by the root."""
    node = sole_consumer(root.outputs[0])
    if node is None:
        return None
    if is_operator(node, "Div"):
        numerator = node.inputs[0] if node.inputs[1] is root.outputs[0] else None
        return node if _source_of_difference(numerator, variance) is source else None
    if not is_operator(node, "Reciprocal"):
        return None
    product = sole_consumer(node.outputs[0])
    if product is None or not is_operator(product, "Mul"):
        return None
    other = product.inputs[1] if product.inputs[0] is node.outputs[0] else product.inputs[0]
    return product if _source_of_difference(other, variance) is source else None


def _with_gamma_and_beta(parts: _Parts) -> _Parts:
    """Take in a Mul and then an Add behind, as far as their constants have the normalised axes' shape."""
    gamma, last = _constant_behind(parts.last, "Mul", parts.sizes)
    beta, last_of_all = _constant_behind(last, "Add", parts.sizes)
    return _Parts(
        source=parts.source,
        last=last_of_all,
        axis=parts.axis,
        epsilon=parts.epsilon,
        sizes=parts.sizes,
        gamma=gamma,
        beta=beta,
    )


def _constant_behind(node: ir.Node, operator: str, sizes: tuple[int, ...]) -> tuple[np.ndarray | None, ir.Node]:
    """Return the constant that the next node multiplies or adds, spread over `sizes`, and the last node taken in."""
    behind = sole_consumer(node.outputs[0])
    if behind is None or not is_operator(behind, operator):
        return None, node
    other = behind.inputs[1] if behind.inputs[0] is node.outputs[0] else behind.inputs[0]
    array = constant_array(other)
    if array is None:
        return None, node
    leading = array.ndim - len(sizes)
    if leading > 0:
        if any(size != 1 for size in array.shape[:leading]) or leading > (rank(node.outputs[0]) or 0) - len(sizes):
            return None, node
        array = array.reshape(array.shape[leading:])
    if any(size not in {1, full} for size, full in zip(array.shape[::-1], sizes[::-1], strict=False)):
        return None, node
    return np.broadcast_to(array, sizes), behind
