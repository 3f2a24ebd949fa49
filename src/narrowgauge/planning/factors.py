"""Which encoding of a value suits who writes it and who reads it: a type, a power-of-two factor, shares of a whole."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from narrowgauge.core.numbers import IntegerType
from narrowgauge.graph.channels import keeps_last_axis
from narrowgauge.graph.edits import is_operator, sole_consumer
from narrowgauge.graph.roles import weight_inputs
from narrowgauge.planning.choices import Choices
from narrowgauge.targets.schema import OperatorRule, Target


def readers(value: ir.Value, target: Target) -> list[ir.Node]:
    """Nodes that compute with a value, also behind nodes that only move its levels."""
    found: dict[ir.Node, None] = {}
    open_ones = [value]
    while open_ones:
        for use in open_ones.pop().uses():
            rule = rule_of(use.node, target)
            if rule is not None and rule.kind == "same":
                open_ones += use.node.outputs
            elif not asks_for_sizes(use.node):
                found[use.node] = None
    return list(found)


def rule_of(node: ir.Node, target: Target) -> OperatorRule | None:
    """Return what a target says of a node's operator, None where it names no such operator."""
    return target.rule(node.op_type) if node.domain == "" else None


def asks_for_sizes(node: ir.Node) -> bool:
    """Whether a node reads how large a value is, not what is in it."""
    return is_operator(node, "Shape", "Size")


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """What a target and the choices say of the nodes around a value.

    In all methods `rule` is of the integer operator that writes the value, None if a float operator or nothing does.

    Attributes:
        target: what the chip can do.
        choices: what is asked.
    """

    target: Target
    choices: Choices

    def type_for_readers(
        self, value: ir.Value, writer: ir.Node | None, rule: OperatorRule | None
    ) -> IntegerType | None:
        """Return the type that what reads a value prefers; None for the target's.

        That is the first of the only operator that reads it, or of the network's outputs where none does. Where a
        factor for each channel is what all readers could take, but the channels do not stay apart, it is a wide one
        that all of them take.
        """
        found = readers(value, self.target)
        if not found and not value.is_graph_input():  # only moves lead on to what the network gives
            return next(iter(self.target.activations.output_types), None)
        if value.is_graph_input() or value.is_graph_output():
            return None
        rules = [one for node in found if (one := rule_of(node, self.target)) and not self._stays_float(node)]
        if not rules or len(rules) < len(found):
            return None
        first = next(iter(rules[0].input_types), None) if len(rules) == 1 else None
        writes = rule is not None and "output" in rule.power_of_two_factor
        if not writes or not all("input" in one.power_of_two_factor for one in rules):
            return first
        if self.takes_factor(value, writer, rule, first or self.target.activations.types[0]):
            return first
        wide = [
            kind for kind in self.target.activations.symmetric_types if all(kind in one.input_types for one in rules)
        ]
        return next(iter(wide), first)

    def takes_factor(
        self, value: ir.Value, writer: ir.Node | None, rule: OperatorRule | None, kind: IntegerType
    ) -> bool:  # fmt: skip
        """Whether a value's writer and all its readers take a power-of-two factor along its last axis.

        Args:
            value: of which the last axis is that of channels.
            writer: the node that decides it: the one before the bias and the activation function that belong to it.
            rule: of the writer.
            kind: type of the value's levels.
        """
        if rule is None or "output" not in rule.power_of_two_factor or value.is_graph_output():
            return False
        if writer is None or (is_operator(writer, "MatMul", "Gemm") and not weight_inputs(writer)):
            return False  # a product of two activations has no channels of its own: it writes one scale
        if value.shape is None or value.shape.rank() < 2 or kind in self.target.activations.symmetric_types:
            return False
        return not self.target.activations.symmetric and not self.target.activations.power_of_two and all(
            self.reads_factor(use.node, value) for use in value.uses() if not asks_for_sizes(use.node)
        )  # fmt: skip

    def reads_factor(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether a node takes a power-of-two factor along the last axis of one of its inputs."""
        rule = rule_of(node, self.target)
        if rule is None or "input" not in rule.power_of_two_factor or self._stays_float(node):
            return False
        if rule.kind == "same":
            moved = all(not output.is_graph_output() for output in node.outputs) and keeps_last_axis(node)
            return moved and all(
                self.reads_factor(use.node, output)
                for output in node.outputs
                for use in output.uses()
                if not asks_for_sizes(use.node)
            )
        if is_operator(node, "MatMul", "Gemm"):  # along the axis that is summed over, of a product with constants
            return bool(weight_inputs(node)) and node.inputs[0] is value and not node.attributes.get_int("transA", 0)
        if is_operator(node, "LayerNormalization"):
            axis, rank = node.attributes.get_int("axis", -1), value.shape.rank() if value.shape is not None else 0
            return node.inputs[0] is value and axis in (-1, rank - 1)
        ranks = {other.shape.rank() if other.shape is not None else None for other in node.outputs if other is not None}
        return ranks == {value.shape.rank() if value.shape is not None else -1}

    def is_normalized(self, value: ir.Value, rule: OperatorRule | None, kind: IntegerType) -> bool:
        """Whether a product alone reads what a Softmax along the last axis writes, and divides behind itself.

        Its values are an activation with an axis of channels: what is computed with constants, or gives one number for
        each row, takes shares with a scale.
        """
        logarithms = [one.type for one in rule.log_output if one.normalized] if rule is not None else []
        if rule is None or kind not in (*rule.normalized_output, *logarithms) or value.shape is None:
            return False
        writer, reader = value.producer(), sole_consumer(value)
        if writer is None or reader is None or not is_operator(writer, "Softmax") or not is_operator(reader, "MatMul"):
            return False
        if writer.attributes.get_int("axis", -1) not in (-1, value.shape.rank() - 1):
            return False
        if reader.inputs[0] is not value or weight_inputs(reader) or self._stays_float(reader):
            return False
        values = reader.inputs[1]
        return values is not None and values.shape is not None and values.shape.rank() > 1

    def _stays_float(self, node: ir.Node) -> bool:
        return bool(self.choices.keep_float(str(node.name)))
