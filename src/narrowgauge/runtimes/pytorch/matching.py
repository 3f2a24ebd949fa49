"""Which operators of a Q/DQ network PyTorch has integer kernels for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from narrowgauge.graph.edits import is_operator, sole_consumer
from narrowgauge.graph.pieces import outer_inputs
from narrowgauge.graph.roles import clip_bounds
from narrowgauge.runtimes.pytorch.kernels import Call, Engine, Kernel
from narrowgauge.runtimes.pytorch.layers import LAYERS
from narrowgauge.runtimes.pytorch.operators import OPERATORS
from narrowgauge.runtimes.pytorch.pairs import Rounding, constant_reals, rounding_behind

_MOVING = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "DepthToSpace", "SpaceToDepth", "Slice"}
    | {"Split", "Expand", "Tile", "Gather", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Pad", "Shape"}
    | {"Relu", "Clip", "QuantizeLinear", "DequantizeLinear", "Constant", "Concat", "Cast"}
)
"""Operators that give the same levels in float."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """An operator with a kernel.

    Attributes:
        kernel: of the operator.
        rounding: what it writes.
        nodes: all that it does: the operator, an addition of a bias, Relus and Clips, the QuantizeLinear.
    """

    kernel: Kernel
    rounding: Rounding
    nodes: tuple[ir.Node, ...]


def matches(network: ir.Model, engine: Engine) -> tuple[dict[ir.Node, Matched], list[str]]:
    """Find the kernels: last node of what each does (its QuantizeLinear) -> the match; and notes."""
    matched: dict[ir.Node, Matched] = {}
    taken, between = set[ir.Node](), _between_levels(network)
    refused: dict[tuple[str, str], list[str]] = {}  # operator and reason -> names of nodes
    for node in network.graph:
        if node in taken:
            continue
        found = _match(node, engine)
        if not isinstance(found, str):
            taken |= set(found.nodes)
            matched[found.nodes[-1]] = found
        elif node in between and node.op_type not in _MOVING:
            refused.setdefault((node.op_type, found), []).append(str(node.name))
    notes = [
        f"{operator} {names[0]!r}{f' and {len(names) - 1} more' if len(names) > 1 else ''} computed in float: {reason}"
        for (operator, reason), names in refused.items()
    ]
    return matched, notes + [one.kernel.note for one in matched.values() if one.kernel.note]


def _between_levels(network: ir.Model) -> set[ir.Node]:
    """Nodes that depend on levels, and on which levels depend."""
    behind: set[ir.Node] = set()
    for node in network.graph:
        sources = {value.producer() for value in outer_inputs(node)}
        if sources & behind or any(is_operator(one, "DequantizeLinear") and not _constant(one) for one in sources):
            behind.add(node)
    ahead: set[ir.Node] = set()
    for node in reversed(network.graph):
        readers = {use.node for value in node.outputs for use in value.uses()}
        if readers & ahead or any(is_operator(one, "QuantizeLinear") for one in readers):
            ahead.add(node)
    return behind & ahead


def _constant(node: ir.Node | None) -> bool:
    return node is not None and node.inputs[0] is not None and node.inputs[0].is_initializer()


def _match(node: ir.Node, engine: Engine) -> Matched | str:
    """Find the kernel of an operator, or the reason why there is none."""
    build = _KERNELS.get(node.op_type) if node.domain in ("", "com.microsoft") else None
    if build is None:
        return "PyTorch has no integer kernel for it"
    addition = _constant_addition(node)
    between = () if addition is None else (addition,)
    rounding = rounding_behind((node, *between)[-1].outputs[0])
    if rounding is None:
        return "its result is not rounded with one scale"
    bias = None if addition is None else _added(node, addition)
    kernel = build(Call(node=node, engine=engine, output=rounding.levels, bias=bias))
    if isinstance(kernel, str):
        return kernel
    if is_operator(node, "Relu", "Clip"):
        rounding = _cut_by(node, rounding)
    return Matched(kernel=kernel, rounding=rounding, nodes=(node, *between, *rounding.nodes))


_KERNELS = {**LAYERS, **OPERATORS}


def _cut_by(node: ir.Node, rounding: Rounding) -> Rounding:
    low, high = clip_bounds(node)
    least, greatest = rounding.bounds
    return replace(rounding, bounds=(max(low, least), min(high, greatest)))


def _constant_addition(node: ir.Node) -> ir.Node | None:
    """Return the Add of constant numbers, one per column, that alone reads a matrix product."""
    reader = sole_consumer(node.outputs[0]) if is_operator(node, "MatMul") else None
    return reader if reader is not None and is_operator(reader, "Add") and _added(node, reader) is not None else None


def _added(node: ir.Node, addition: ir.Node) -> Any:
    other = next((value for value in addition.inputs if value is not node.outputs[0]), None)
    numbers = constant_reals(other)
    return numbers if numbers is not None and numbers.ndim == 1 else None


def needed(network: ir.Model, matched: Mapping[ir.Node, Matched]) -> set[ir.Node]:
    """Nodes that no kernel does and whose results something else reads."""
    done = {node for one in matched.values() for node in one.nodes}
    wanted = {str(value.name) for value in network.graph.outputs}
    found: set[ir.Node] = set()
    for node in reversed(network.graph):
        if node in matched:
            wanted |= {levels.name for levels in matched[node].kernel.sources}
        elif node not in done and any(str(value.name) in wanted for value in node.outputs):
            found.add(node)
            wanted |= {str(value.name) for value in outer_inputs(node)}
    return found
