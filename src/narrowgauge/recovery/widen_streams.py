"""Residual streams are held in more bits, where additions and normalizations take them."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from narrowgauge.core.numbers import IntegerType
from narrowgauge.graph.edits import is_operator
from narrowgauge.planning.choices import Choices, NodeChoice
from narrowgauge.planning.factors import readers
from narrowgauge.planning.place import Placement
from narrowgauge.targets.schema import Target


def widen_streams(
    model: ir.Model, placement: Placement, target: Target, choices: Choices
) -> tuple[Choices, tuple[str, ...]]:
    """Ask for a wider type for every sum that a LayerNormalization reads, where all that read it take one.

    Each block of a transformer adds to its residual stream, so that it is rounded two dozen times, and all of these
    errors stay in it to the end. Nothing multiplies the stream: wider levels cost memory, no wider products.

    Args:
        model: the float network that was placed.
        placement: what `place` decided.
        target: says by `input_types` what additions and normalizations take.
        choices: what was asked; a type that a person asked for stays.

    Returns:
        The choices with those of the nodes that write the stream, and the names of its values.
    """
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    nodes, widened = dict(choices.nodes), []
    for slot in placement.activations.values():
        value = values.get(slot.value)
        if value is None or slot.writer is None or choices.activations(slot.writer) is not None:
            continue
        kind = _wider(value, slot.type, target)
        if kind is not None:
            nodes[slot.writer] = replace(nodes.get(slot.writer, NodeChoice()), activations=kind)
            widened.append(slot.value)
    return replace(choices, nodes=nodes), tuple(widened)


def _wider(value: ir.Value, own: IntegerType, target: Target) -> IntegerType | None:
    """Return the widest type that all readers of a sum take, None where it is no wider or no normalization reads it."""
    found = readers(value, target)
    if not is_operator(value.producer(), "Add") or value.is_graph_output():
        return None
    if not any(is_operator(node, "LayerNormalization") for node in found):
        return None
    rules = [target.rule(node.op_type) if node.domain == "" else None for node in found]
    common = [
        kind
        for kind in target.activations.types
        if kind.bits > own.bits and all(rule is not None and kind in rule.input_types for rule in rules)
    ]
    return max(common, key=lambda kind: kind.bits, default=None)
