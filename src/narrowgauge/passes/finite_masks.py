"""Masks of attention as finite numbers that are added to the scores."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_array, replace_constant_input
from narrowgauge.graph.edits import graph_of, is_operator, new_node, remove_unused, substitute
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import same_shape

LOWEST = -1e6
"""Added to a score it makes the exponential 0 in float32, beside any score above it by 104 (e^-104 < 2^-149): that is
so for scores between -999,000 and 999,000, and float32 has no finer steps than 1/16 beyond that anyway."""

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice", "Identity", "Gather", "Tile")
_SCORES = ("Add", "Where", "Mul", *_MOVES)


def finite_masks(model: ir.Model) -> tuple[Refusal, ...]:
    """Raise what is added to scores of attention, -infinity and the least number of float32 included, to `LOWEST`.

    Only where a Softmax alone reads what comes of it. `Where(mask, scores, lowest)` becomes
    `scores + Where(mask, 0, lowest)`, and the guard `Where(IsNaN(weights), 0, weights)` behind the Softmax of finite
    scores is left out. So a mask has a range, and what is added may have another encoding than the scores. A mask that
    is 0 everywhere is left out, too.

    The network computes the same but in rows whose tokens are all masked, which attend to nothing: where they were
    NaN, zero or even they become those of the scores without a mask.

    Nothing is refused.
    """
    scores = _scores(model.graph)
    for node in tuple(model.graph):
        if node in scores:
            _raise_constants(node)
            if is_operator(node, "Where"):
                _add_instead(node)
    for node in tuple(model.graph):
        if node in scores and is_operator(node, "Add"):
            _drop_empty(node)
    for node in tuple(model.graph):
        if is_operator(node, "IsNaN"):
            _drop_guard(node)
    remove_unused(model)
    return ()


def _scores(graph: ir.Graph) -> set[ir.Node]:
    """Nodes whose results nothing but a Softmax reads, through others of them."""
    found: set[ir.Node] = set()
    for node in reversed(list(graph)):
        if not is_operator(node, *_SCORES) or any(output.is_graph_output() for output in node.outputs):
            continue
        uses = [use for output in node.outputs for use in output.uses()]
        if uses and all((is_operator(use.node, "Softmax") or use.node in found) for use in uses):
            found.add(node)
    return found


def _raise_constants(node: ir.Node) -> None:
    for number, value in enumerate(node.inputs):
        array = constant_array(value)
        if array is None or array.dtype.kind != "f" or np.isnan(array).any() or not (array < LOWEST).any():
            continue
        replace_constant_input(node, number, np.maximum(array, np.asarray(LOWEST, dtype=array.dtype)))


def _add_instead(node: ir.Node) -> None:
    """Write `Where(mask, scores, lowest)`, or the other way round, as an addition."""
    condition, *branches = node.inputs
    constants = [constant_array(value) for value in branches]
    if (constants[0] is None) == (constants[1] is None):
        return
    moving = 0 if constants[0] is None else 1
    lowest, scores = constants[1 - moving], branches[moving]
    if lowest is None or scores is None or lowest.max() > LOWEST:
        return
    graph, result = graph_of(node), node.outputs[0]
    zero = add_constant(graph, f"{result.name}_kept", np.zeros((), dtype=lowest.dtype))
    parts = [zero, branches[1 - moving]] if moving == 0 else [branches[1 - moving], zero]
    mask = new_node("Where", [condition, *parts], name=f"{node.name}_mask", output=f"{result.name}_mask")
    mask.outputs[0].type = result.type
    if condition is not None and condition.shape is not None and lowest.size == 1:
        mask.outputs[0].shape = condition.shape
    total = new_node(
        "Add", [scores, mask.outputs[0]], name=f"{node.name}_sum", output=f"{result.name}_sum", like=result
    )
    node.prepend([mask, total])
    if substitute(result, total.outputs[0]):
        total.outputs[0].name = result.name


def _drop_empty(node: ir.Node) -> None:
    """Leave out the addition of zeros that does not widen what they are added to."""
    for number in (0, 1):
        scores, result = node.inputs[1 - number], node.outputs[0]
        if _uniform(node.inputs[number]) == 0 and scores is not None and same_shape(scores, result):
            substitute(result, scores)
            return


def _uniform(value: ir.Value | None) -> float | None:
    """Return the number that stands everywhere in a value, None where that is not known to be one."""
    array = constant_array(value)
    if array is not None:
        return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else None
    node = value.producer() if value is not None else None
    if node is not None and is_operator(node, *_MOVES):
        return _uniform(node.inputs[0])
    if node is None or not is_operator(node, "Where"):
        return None
    condition, *branches = node.inputs
    taken = _uniform(condition)
    if taken is not None:
        return _uniform(branches[0 if taken else 1])
    first, second = map(_uniform, branches)
    return first if first == second else None


def _drop_guard(node: ir.Node) -> None:
    """Leave out what replaces NaN by 0 behind the Softmax of finite scores."""
    weights = node.inputs[0]
    softmax = weights.producer() if weights is not None else None
    if weights is None or not is_operator(softmax, "Softmax") or softmax is None or not _is_finite(softmax.inputs[0]):
        return
    for use in tuple(node.outputs[0].uses()):
        guard = use.node
        first, second = (*guard.inputs[1:3], None, None)[:2]
        zero = constant_array(first)
        if is_operator(guard, "Where") and second is weights and zero is not None and not zero.any():
            substitute(guard.outputs[0], weights)


def _is_finite(value: ir.Value | None) -> bool:
    """Whether scores are a sum of products and of finite constants."""
    node = value.producer() if value is not None else None
    array = constant_array(value)
    if array is not None:
        return bool(np.isfinite(array).all())
    if is_operator(node, *_MOVES) and node is not None:
        return _is_finite(node.inputs[0])
    if is_operator(node, "Where") and node is not None:
        return all(_is_finite(part) for part in node.inputs[1:])
    if is_operator(node, "Add", "Mul") and node is not None:
        return all(_is_finite(part) for part in node.inputs)
    return node is not None
