"""Ordinary operators that work on levels themselves (MaxPool, Transpose, Clip, ...), moved to the real numbers.

Levels grow with the numbers that they stand for, so what moves, selects or compares levels of one meaning does the same
to real numbers: `Q -> MaxPool -> DQ` becomes `Q -> DQ -> MaxPool -> Q -> DQ`, and rounding the second time changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.core.granularity import normalized_axis
from narrowgauge.errors import ModelError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import all_nodes, graph_of, is_operator
from narrowgauge.graph.shapes import rank
from narrowgauge.importers.rewriting import Parameters, Rewriter, parameters_of


@dataclass(frozen=True, kw_only=True, slots=True)
class _Move:
    """An operator that levels can pass.

    Attributes:
        inputs: numbers of the inputs that hold levels; None for all.
        outputs: how many of its outputs hold levels; None for all.
    """

    inputs: tuple[int, ...] | None = (0,)
    outputs: int | None = 1


_MOVES: dict[str, _Move] = {
    **dict.fromkeys(
        ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather", "GatherElements",
         "GatherND", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Resize", "MaxPool", "ReduceMax", "ReduceMin",
         "TopK", "Relu", "Compress", "ReverseSequence", "Dropout"),
        _Move(),
    ),
    "Split": _Move(outputs=None),
    "Concat": _Move(inputs=None),
    "Max": _Move(inputs=None),
    "Min": _Move(inputs=None),
    "Clip": _Move(inputs=None),
    "Pad": _Move(inputs=(0, 2)),
    "Where": _Move(inputs=(1, 2)),
    "ScatterElements": _Move(inputs=(0, 2)),
    "ScatterND": _Move(inputs=(0, 2)),
    "ArgMax": _Move(outputs=0),
    "ArgMin": _Move(outputs=0),
    "Shape": _Move(outputs=0),
    "Size": _Move(outputs=0),
    "Equal": _Move(inputs=None, outputs=0),
    "Greater": _Move(inputs=None, outputs=0),
    "GreaterOrEqual": _Move(inputs=None, outputs=0),
    "Less": _Move(inputs=None, outputs=0),
    "LessOrEqual": _Move(inputs=None, outputs=0),
}  # fmt: skip

_ALONG_AXES = frozenset({"Identity", "Transpose"})
"""What scales along an axis can follow."""


def move_to_real_numbers(rewriter: Rewriter) -> None:
    """Rewrite such operators of levels that a QuantizeLinear wrote or a DequantizeLinear reads, in place.

    Raises:
        ModelError: an operator on levels is none of these, or moves levels that have several scales.
    """
    known = _known_parameters(rewriter.model)
    for node in tuple(all_nodes(rewriter.model)):
        move = _move(node)
        if move is not None and any(value in known for value in _carried(node, move)):
            _rewrite(rewriter, node, move, known)
        elif is_operator(node, "Cast") and node.inputs[0] in known:
            _cast(rewriter, node, known)


def _move(node: ir.Node) -> _Move | None:
    return _MOVES.get(node.op_type) if is_operator(node, node.op_type) else None


def _sources(node: ir.Node, move: _Move) -> list[tuple[int, ir.Value]]:
    numbers = range(len(node.inputs)) if move.inputs is None else move.inputs
    pairs = [(number, node.inputs[number]) for number in numbers if number < len(node.inputs)]
    return [(number, value) for number, value in pairs if value is not None]


def _results(node: ir.Node, move: _Move) -> list[ir.Value]:
    return [value for value in node.outputs[: move.outputs] if value.name]


def _carried(node: ir.Node, move: _Move) -> list[ir.Value]:
    return [*(value for _, value in _sources(node, move)), *_results(node, move)]


def _known_parameters(model: ir.Model) -> dict[ir.Value, Parameters]:
    """Find the scale and zero point of levels: from what writes them, else from what reads them.

    Constants have none of their own: what stands beside them in the same operator tells.
    """
    known: dict[ir.Value, Parameters] = {}
    for node in all_nodes(model):
        if is_operator(node, "QuantizeLinear"):
            known[node.outputs[0]] = parameters_of(node)
        elif is_operator(node, "DynamicQuantizeLinear"):
            known[node.outputs[0]] = Parameters(scale=node.outputs[1], zero_point=node.outputs[2])
    nodes = [(node, move) for node in all_nodes(model) if (move := _move(node)) is not None]
    _spread_forward(nodes, known)
    for node in all_nodes(model):
        levels = node.inputs[0] if is_operator(node, "DequantizeLinear") else None
        if levels is not None and constant_array(levels) is None:
            known.setdefault(levels, parameters_of(node))
    while _spread_backward(nodes, known) or _spread_forward(nodes, known):
        pass
    return known


def _spread_forward(nodes: list[tuple[ir.Node, _Move]], known: dict[ir.Value, Parameters]) -> bool:
    found = False
    for node, move in nodes:
        parameters = next((known[value] for _, value in _sources(node, move) if value in known), None)
        for value in _results(node, move) if parameters is not None else ():
            if value not in known and parameters is not None:
                known[value] = _behind(node, parameters)
                found = True
    return found


def _spread_backward(nodes: list[tuple[ir.Node, _Move]], known: dict[ir.Value, Parameters]) -> bool:
    found = False
    for node, move in reversed(nodes):
        parameters = next((known[value] for value in _results(node, move) if value in known), None)
        beside = next((known[value] for _, value in _sources(node, move) if value in known), None)
        for _, value in _sources(node, move):
            given = beside or parameters
            if value not in known and constant_array(value) is None and given is not None:
                known[value] = given
                found = True
    return found


def _behind(node: ir.Node, parameters: Parameters) -> Parameters:
    """What an operator makes of scales along an axis."""
    scale = constant_array(parameters.scale)
    if scale is None or scale.size == 1:
        return parameters
    if node.op_type not in _ALONG_AXES or parameters.block_size:
        raise ModelError(
            f"node {node.name!r} ({node.op_type}) moves integers that have {scale.size} scales, which cannot follow; "
            "expected one scale; dequantize before it"
        )
    if node.op_type == "Identity":
        return parameters
    axes = rank(node.inputs[0]) or 0
    order = node.attributes.get_ints("perm", tuple(reversed(range(axes))))
    axis = tuple(order).index(normalized_axis(parameters.axis, len(order)))
    return Parameters(scale=parameters.scale, zero_point=parameters.zero_point, axis=axis)


def _rewrite(rewriter: Rewriter, node: ir.Node, move: _Move, known: dict[ir.Value, Parameters]) -> None:
    sources = _sources(node, move)
    first = next((known[value] for _, value in sources if value in known), None)
    first = first or next(known[value] for value in _results(node, move) if value in known)
    if is_operator(node, "Pad") and len(sources) == 1 and node.attributes.get_string("mode", "constant") == "constant":
        _pad_with_level(rewriter, node, sources[0][1])
        sources = _sources(node, move)
    if is_operator(node, "Relu"):
        _relu_to_clip(rewriter, node, sources[0][1])
        sources = _sources(node, _MOVES["Clip"])
    if is_operator(node, "Resize") and node.attributes.get_string("mode", "nearest") != "nearest":
        rewriter.note(
            f"node {node.name!r} (Resize) interpolates integers, whose rounding the engine decides: its result may "
            "differ by a level"
        )
    for number, value in sources:
        node.replace_input_with(number, rewriter.dequantize(node, value, known.get(value, first)))
    for value in _results(node, move):
        _round_behind(rewriter, node, value, known[value])


def _round_behind(rewriter: Rewriter, node: ir.Node, levels: ir.Value, parameters: Parameters) -> None:
    """Let an output of a node be real numbers, and a QuantizeLinear behind it write the levels under their name."""
    kind = levels.dtype or (parameters.zero_point.dtype if parameters.zero_point is not None else None)
    name, uses = str(levels.name), tuple(levels.uses())
    wanted = rewriter.real_name_for(levels)
    returned = levels.is_graph_output()
    graph = graph_of(node)
    levels.name = rewriter.name(wanted)
    levels.type = ir.TensorType(ir.DataType.FLOAT)
    following = ir.node("Identity", inputs=[levels])  # a place to write before
    node.append(following)
    rounded = rewriter.quantize(following, levels, parameters, kind or ir.DataType.UINT8)
    graph.remove(following, safe=True)
    rounded.name = name
    for use in uses:
        use.node.replace_input_with(use.idx, rounded)
    if returned:
        for number, output in enumerate(graph.outputs):
            if output is levels:
                graph.outputs[number] = rounded


def _pad_with_level(rewriter: Rewriter, node: ir.Node, levels: ir.Value) -> None:
    """Say that a Pad without a value puts the level 0 around, which need not stand for the number 0."""
    kind = levels.dtype or ir.DataType.UINT8
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, rewriter.constant(graph_of(node), f"{node.name}_level", np.zeros((), kind.numpy())))


def _relu_to_clip(rewriter: Rewriter, node: ir.Node, levels: ir.Value) -> None:
    """Write a Relu of levels, which cuts at the level 0, as the Clip that it is."""
    kind = levels.dtype or ir.DataType.INT8
    node.op_type = "Clip"
    node.resize_inputs(2)
    node.replace_input_with(1, rewriter.constant(graph_of(node), f"{node.name}_level", np.zeros((), kind.numpy())))


def _cast(rewriter: Rewriter, node: ir.Node, known: dict[ir.Value, Parameters]) -> None:
    """Write a Cast of levels to float as the DequantizeLinear that it is: scale 1, zero point 0."""
    levels = node.inputs[0]
    if levels is None or node.attributes.get_int("to", 0) != ir.DataType.FLOAT:
        raise ModelError(
            f"node {node.name!r} (Cast) turns quantized integers into another type of integers, whose meaning is not "
            "known; expected operators between DequantizeLinear and QuantizeLinear"
        )
    zero_point = known[levels].zero_point
    kind = levels.dtype or (zero_point.dtype if zero_point is not None else None)
    graph = graph_of(node)
    one = rewriter.constant(graph, f"{node.name}_scale", np.ones((), np.float32))
    zero = rewriter.constant(graph, f"{node.name}_zero_point", np.zeros((), (kind or ir.DataType.UINT8).numpy()))
    real = rewriter.dequantize(node, levels, Parameters(scale=one, zero_point=zero))
    node.outputs[0].replace_all_uses_with(real, replace_graph_outputs=True)
    name = node.outputs[0].name
    graph.remove(node, safe=True)
    real.name = name
