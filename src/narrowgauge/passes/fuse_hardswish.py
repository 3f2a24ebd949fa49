"""Recognise hard sigmoid and hard swish in their parts and write them as one operator.

hard_sigmoid(x) = clip(x + 3, 0, 6) / 6, hard_swish(x) = x hard_sigmoid(x); A. Howard et al., "Searching for
MobileNetV3", 2019, section 5.2. ONNX: HardSigmoid with alpha = 1/6 and beta = 0.5, HardSwish from opset 14 on.
"""

import math

import onnx_ir as ir

from narrowgauge.graph.constants import constant_scalar
from narrowgauge.graph.edits import graph_of, is_operator, new_node, remove_unused, sole_consumer, take_place
from narrowgauge.graph.refusals import Refusal

_TOLERANCE = 1e-5


def fuse_hardswish(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace `Clip(x + 3, 0, 6) / 6` by HardSigmoid and `x * HardSigmoid(x)` by HardSwish, in place.

    The division may be a multiplication by 1/6 and may come after the product with x. Nothing is refused: other Clips
    are simply no hard sigmoid.
    """
    for node in tuple(model.graph):
        if is_operator(node, "Clip") and node.graph is not None:
            _fuse_clip(node)
    for node in tuple(model.graph):
        if is_operator(node, "HardSigmoid") and node.graph is not None:
            _fuse_swish(node)
    remove_unused(model)
    return ()


def _fuse_clip(clip: ir.Node) -> None:
    source = _input_of_hard_sigmoid(clip)
    behind = sole_consumer(clip.outputs[0])
    if source is None or behind is None:
        return
    if _divides_by_six(behind, clip.outputs[0]):
        _put(behind, "HardSigmoid", source, {"alpha": 1.0 / 6.0, "beta": 0.5})
    elif _is_product(behind, clip.outputs[0], source):
        last = sole_consumer(behind.outputs[0])
        if last is not None and _divides_by_six(last, behind.outputs[0]):
            _put(last, "HardSwish", source, {})


def _fuse_swish(sigmoid: ir.Node) -> None:
    source, behind = sigmoid.inputs[0], sole_consumer(sigmoid.outputs[0])
    alpha, beta = sigmoid.attributes.get_float("alpha", 0.2), sigmoid.attributes.get_float("beta", 0.5)
    if source is None or behind is None or not math.isclose(alpha, 1.0 / 6.0, rel_tol=_TOLERANCE) or beta != 0.5:
        return
    if _is_product(behind, sigmoid.outputs[0], source):
        _put(behind, "HardSwish", source, {})


def _input_of_hard_sigmoid(clip: ir.Node) -> ir.Value | None:
    """Return x where the node is Clip(x + 3, 0, 6) or Clip(3 + x, 0, 6)."""
    bounds = [constant_scalar(value) for value in clip.inputs[1:]]
    value = clip.inputs[0]
    if bounds != [0.0, 6.0] or value is None:
        return None
    add = value.producer()
    if add is None or not is_operator(add, "Add") or sole_consumer(value) is not clip:
        return None
    for index in (0, 1):
        if constant_scalar(add.inputs[index]) == 3.0:
            return add.inputs[1 - index]
    return None


def _divides_by_six(node: ir.Node, value: ir.Value) -> bool:
    if is_operator(node, "Div"):
        return node.inputs[0] is value and constant_scalar(node.inputs[1]) == 6.0
    if not is_operator(node, "Mul"):
        return False
    number = constant_scalar(node.inputs[1] if node.inputs[0] is value else node.inputs[0])
    return number is not None and math.isclose(number, 1.0 / 6.0, rel_tol=_TOLERANCE)


def _is_product(node: ir.Node, first: ir.Value, second: ir.Value) -> bool:
    return is_operator(node, "Mul") and tuple(node.inputs) in {(first, second), (second, first)}


def _put(node: ir.Node, operator: str, source: ir.Value, attributes: dict[str, float]) -> None:
    new = new_node(operator, [source], attributes, name=node.name or f"{node.outputs[0].name}_{operator}")
    graph_of(node).insert_before(node, new)
    take_place(new.outputs[0], node.outputs[0])
