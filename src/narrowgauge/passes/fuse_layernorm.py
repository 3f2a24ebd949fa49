"""Recognise layer normalisation in its parts and write it as one LayerNormalization.

y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * gamma + beta over the last axes; J. L. Ba, J. R. Kiros,
G. E. Hinton, "Layer Normalization", 2016, equations 3 and 4. Opset 17 has it as an operator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_array, constant_scalar
from narrowgauge.graph.edits import graph_of, is_operator, new_node, remove_unused, sole_consumer, take_place
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions, rank
from narrowgauge.passes.moments import Moments, producer, variance_of

_Sizes = tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """What a layer normalisation is made of; `last` is the node whose output it is, `sizes` are the axes it is over."""

    moments: Moments
    last: ir.Node
    epsilon: float
    sizes: _Sizes
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None


def fuse_layernorm(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace the nodes of a layer normalisation by LayerNormalization, in place.

    The variance may be the mean square less the square of the mean; a square Pow 2, Mul with itself or two separate
    differences; the root Sqrt or a power; the division by it a product with its reciprocal, which gamma may have
    multiplied first: `x (gamma / root) + (beta - mean (gamma / root))`. Gamma and beta may be absent. They must be
    constants of the normalised axes' shape.

    Refuses: a root of a variance that is not one of a layer normalisation over the last axes, of known sizes.
    """
    refusals = []
    for node in tuple(model.graph):
        power = _power(node)
        found = _variance_and_epsilon(node) if power and node.graph is not None else None
        if found is None:
            continue
        parts = _match(node, power, *found)
        if isinstance(parts, str):
            refusals.append(Refusal(node=node.name or "", operator=node.op_type, reason=parts))
        else:
            _fuse(parts)
    remove_unused(model)
    return tuple(refusals)


def _power(node: ir.Node) -> float:
    """Return 0.5 for a square root, -0.5 for its reciprocal, 0 for any other node."""
    if is_operator(node, "Sqrt"):
        return 0.5
    exponent = constant_scalar(node.inputs[1]) if is_operator(node, "Pow") else None
    return exponent if exponent in (0.5, -0.5) else 0.0


def _variance_and_epsilon(root: ir.Node) -> tuple[Moments, float] | None:
    """Return of what a root takes the variance, and epsilon, where it is one of their sum."""
    add = producer(root.inputs[0], "Add")
    for index in (0, 1) if add is not None else ():
        epsilon, moments = constant_scalar(add.inputs[index]), variance_of(add.inputs[1 - index])  # type: ignore[union-attr]
        if epsilon is not None and moments is not None:
            return moments, epsilon
    return None


def _match(root: ir.Node, power: float, moments: Moments, epsilon: float) -> _Parts | str:
    count = rank(moments.source) or 0
    first = moments.axes[0] if moments.axes else count
    if moments.axes != tuple(range(first, count)) or first == count:
        return "it does not normalise over the last axes, so it is no layer normalisation"
    sizes = (dimensions(moments.source) or ())[first:]
    quotient = _quotient(root, power, moments)
    if quotient is not None:
        parts = _with_gamma_and_beta(_Parts(moments=moments, last=quotient, epsilon=epsilon, sizes=sizes))
    else:
        applied = _scaled_first(root, power, _Parts(moments=moments, last=root, epsilon=epsilon, sizes=sizes))
        if applied is None:
            return "x - mean(x) is not divided by it, or something else reads it"
        parts = applied
    if None in parts.sizes:
        return "the sizes of the axes it normalises over are unknown"
    return parts


def _fuse(parts: _Parts) -> None:
    node, result, source = parts.last, parts.last.outputs[0], parts.moments.source
    graph = graph_of(node)
    dtype = np.float32 if source.dtype is None else source.dtype.numpy()
    name = node.name or f"{result.name}_layernorm"
    gamma = np.ones([size or 1 for size in parts.sizes]) if parts.gamma is None else parts.gamma
    inputs = [source, add_constant(graph, f"{name}_scale", gamma.astype(dtype))]
    if parts.beta is not None:
        inputs.append(add_constant(graph, f"{name}_bias", parts.beta.astype(dtype)))
    attributes = {"axis": -len(parts.sizes), "epsilon": parts.epsilon}
    new = new_node("LayerNormalization", inputs, attributes, name=name)
    graph.insert_before(node, new)
    take_place(new.outputs[0], result)


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the other operand of a node of two."""
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _reciprocal(root: ir.Node, power: float) -> ir.Value | None:
    """Return one over the root."""
    if power < 0:
        return root.outputs[0]
    node = sole_consumer(root.outputs[0])
    if node is None:
        return None
    if is_operator(node, "Reciprocal"):
        return node.outputs[0]
    inverse = is_operator(node, "Div") and node.inputs[1] is root.outputs[0] and constant_scalar(node.inputs[0]) == 1.0
    return node.outputs[0] if inverse else None


def _quotient(root: ir.Node, power: float, moments: Moments) -> ir.Node | None:
    """Return the node that divides x - mean(x) by the root."""
    inverse = _reciprocal(root, power)
    if inverse is None:
        node = sole_consumer(root.outputs[0])
        divides = is_operator(node, "Div") and node is not None and node.inputs[1] is root.outputs[0]
        return node if node is not None and divides and moments.is_difference(node.inputs[0]) else None
    node = sole_consumer(inverse)
    if node is None or not is_operator(node, "Mul"):
        return None
    return node if moments.is_difference(_other(node, inverse)) else None


def _scaled_first(root: ir.Node, power: float, parts: _Parts) -> _Parts | None:
    """Read `x g + (beta - mean g)` or `x g - mean g (+ beta)`, where g is gamma over the root."""
    factor = _reciprocal(root, power)
    if factor is None:
        return None
    scaling = sole_consumer(factor)
    if scaling is not None and is_operator(scaling, "Mul"):
        known = _spread(constant_array(_other(scaling, factor)), parts.sizes, rank(parts.moments.source))
        if known is None:
            return None
        parts, factor = replace(parts, gamma=known[0], sizes=known[1]), scaling.outputs[0]
    products = [use.node for use in factor.uses() if is_operator(use.node, "Mul")]
    others = {id(_other(node, factor)): node for node in products}
    scaled = others.get(id(parts.moments.source))
    shift = next((node for node in products if parts.moments.is_mean(_other(node, factor))), None)
    if scaled is None or shift is None or len(factor.uses()) != 2:
        return None
    return _difference(scaled, shift, parts)


def _difference(scaled: ir.Node, shift: ir.Node, parts: _Parts) -> _Parts | None:
    """Find where mean g is taken from x g, beta being added before or behind."""
    last, other = sole_consumer(scaled.outputs[0]), sole_consumer(shift.outputs[0])
    if last is None or other is None or not is_operator(other, "Sub") or other.inputs[1] is not shift.outputs[0]:
        return None
    if last is other:
        parts = replace(parts, last=last)
        beta, behind, sizes = _constant_behind(last, "Add", parts.sizes)
        return replace(parts, last=behind, beta=beta, sizes=sizes)
    known = _spread(constant_array(other.inputs[0]), parts.sizes, rank(parts.moments.source))
    if known is None or not is_operator(last, "Add") or _other(last, scaled.outputs[0]) is not other.outputs[0]:
        return None
    return replace(parts, last=last, beta=known[0], sizes=known[1]) if sole_consumer(other.outputs[0]) is last else None


def _with_gamma_and_beta(parts: _Parts) -> _Parts:
    """Take in a Mul and then an Add behind, as far as their constants have the normalised axes' shape."""
    gamma, last, sizes = _constant_behind(parts.last, "Mul", parts.sizes)
    beta, last, sizes = _constant_behind(last, "Add", sizes)
    return replace(parts, last=last, sizes=sizes, gamma=gamma, beta=beta)


def _constant_behind(node: ir.Node, operator: str, sizes: _Sizes) -> tuple[np.ndarray | None, ir.Node, _Sizes]:
    """Return the constant that the next node multiplies or adds, spread over `sizes`, and the last node taken in."""
    behind = sole_consumer(node.outputs[0])
    if behind is None or not is_operator(behind, operator):
        return None, node, sizes
    known = _spread(constant_array(_other(behind, node.outputs[0])), sizes, rank(node.outputs[0]))
    return (None, node, sizes) if known is None else (known[0], behind, known[1])


def _spread(array: np.ndarray | None, sizes: _Sizes, axes: int | None) -> tuple[np.ndarray, _Sizes] | None:
    """Spread a constant over the normalised axes; one of rank 1 tells the size of a single axis where it is unknown.

    Returns:
        The constant and the sizes; None where it is none, or differs along another axis or may widen the value.
    """
    if array is None:
        return None
    if sizes == (None,) and array.ndim == 1 and array.size > 1:
        sizes = (array.size,)
    leading = array.ndim - len(sizes)
    if leading > 0:
        if any(size != 1 for size in array.shape[:leading]) or leading > (axes or 0) - len(sizes):
            return None
        array = array.reshape(array.shape[leading:])
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or any(
        size not in {1, full} for size, full in zip(array.shape[::-1], known[::-1], strict=False)
    ):
        return None
    return np.broadcast_to(array, known), sizes
