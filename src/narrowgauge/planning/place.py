"""Which nodes run in integers on a target and which values get an encoding, before any number is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.plan import FloatNode, Mode
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator, sole_consumer
from narrowgauge.graph.roles import (
    CLIPPING_OPERATORS,
    activation_inputs,
    bias_addition,
    bounded_by_constant,
    clips_only,
    float_outputs,
    is_constant,
    is_float,
    output_axis,
    weight_inputs,
)
from narrowgauge.planning.choices import Choices
from narrowgauge.planning.factors import Neighbours, asks_for_sizes, readers, rule_of
from narrowgauge.targets.schema import OperatorRule, Scope, Target

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSlot:
    """Weights that get an encoding.

    Attributes:
        value: the initializer's name.
        node: the node that reads it.
        axis: axis of its output channels.
        type: number type.
        symmetric: no zero point.
        granularity: what one scale covers.
        summed_axis: axis that products are added up along, which blocks run along.
    """

    value: str
    node: str
    axis: int
    type: IntegerType
    symmetric: bool
    granularity: Scope
    summed_axis: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationSlot:
    """An activation (or a constant in the place of one) that gets an encoding.

    Attributes:
        value: its name.
        writer: name of the node that decides it: the one that writes it, None for an input of the network.
        type: number type.
        rule: rule of the integer operator that writes it, None if a float operator or nothing does.
        factor: whether it may have a power-of-two factor along its last axis: who writes and who reads it can.
        normalized: whether it is read as shares of a whole.
    """

    value: str
    writer: str | None
    type: IntegerType
    rule: OperatorRule | None
    factor: bool = False
    normalized: bool = False


@dataclass(kw_only=True, slots=True)
class Placement:
    """Where integers go.

    Attributes:
        mode: when activations are rounded.
        weights: by initializer name.
        activations: by value name.
        shared: value name -> name of the value whose encoding it takes.
        float_nodes: what stays float, with reasons.
        float_outputs: values that integer operators write in float.
        integer_nodes: names of the nodes that run in integers, fused ones included.
        refusals: what was asked for and the target cannot do.
    """

    mode: Mode
    weights: dict[str, WeightSlot] = field(default_factory=dict)
    activations: dict[str, ActivationSlot] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    float_nodes: list[FloatNode] = field(default_factory=list)
    float_outputs: list[str] = field(default_factory=list)
    integer_nodes: set[str] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)

    def root(self, value: str) -> str:
        """Name of the value whose encoding a value takes, itself if its own."""
        while value in self.shared:
            value = self.shared[value]
        return value


def place(model: ir.Model, target: Target, choices: Choices) -> Placement:
    """Decide node by node, in the network's order, what runs in integers.

    A "compute" operator of the target runs in integers wherever it stands and its inputs are converted for it; a
    "join" operator only where its inputs arrive in integers, or one does and the others are rounded for a "compute"
    operator anyway; a "same" operator hands levels on. Bias additions and
    activation functions that the target applies itself belong to the operator before them.

    Args:
        model: the float network, simplified, shapes inferred.
        target: what the chip can do.
        choices: what is asked.
    """
    walk = _Walk(target=target, choices=choices, placement=Placement(mode=choices.mode))
    for node in model.graph:
        walk.visit(node)
    walk.note_float_caps(model)
    return walk.placement


def caps_are_integer(target: Target) -> bool:
    """Whether a target runs a cap (the Min of a value and a constant per channel) in integers, so that it is free.

    It then works on levels of one encoding and rounds nothing. Elsewhere a cap is a float node between two integer
    layers, which costs their fusion.
    """
    rule = target.rule("Min")
    return rule is not None and rule.output == "quantized" and "static" in rule.modes


@dataclass(kw_only=True, slots=True)
class _Walk:
    target: Target
    choices: Choices
    placement: Placement
    arriving: set[str] = field(default_factory=set)  # values that are written in integers
    rules: dict[str, OperatorRule] = field(default_factory=dict)  # value -> rule of its integer writer
    fused: set[str] = field(default_factory=set)  # nodes that belong to one before them

    @property
    def neighbours(self) -> Neighbours:
        return Neighbours(target=self.target, choices=self.choices)

    def visit(self, node: ir.Node) -> None:
        if node.name in self.fused or not (float_outputs(node) or any(is_float(value) for value in node.inputs)):
            return
        if asks_for_sizes(node):
            return
        reason = self.refusal(node)
        if reason:
            self.placement.float_nodes.append(FloatNode(name=str(node.name), operator=node.op_type, reason=reason))
            return
        self.placement.integer_nodes.add(str(node.name))
        rule = self.rule(node)
        assert rule is not None
        if rule.kind == "same":
            self.hand_on(node, rule)
        else:
            self.run_in_integers(node, rule)

    def rule(self, node: ir.Node) -> OperatorRule | None:
        return rule_of(node, self.target)

    def refusal(self, node: ir.Node) -> str:
        """Why a node stays float, "" if it does not."""
        asked = self.choices.keep_float(str(node.name))
        if asked:
            return asked
        rule = self.rule(node)
        if rule is None:
            domain = f"{node.domain}." if node.domain else ""
            return f"{self.target.name} has no integer {domain}{node.op_type}"
        if any(attribute.type in _GRAPHS for attribute in node.attributes.values()):
            return f"the body of {node.op_type} is not quantized"
        return self.mode_refusal(node, rule) or self.kind_refusal(node, rule)

    def mode_refusal(self, node: ir.Node, rule: OperatorRule) -> str:
        mode = self.choices.mode
        weights = weight_inputs(node)
        if mode == "static":
            if "static" in rule.modes:
                return ""
            return f"{self.target.name} runs {node.op_type} only with {' or '.join(rule.modes)} quantization"
        if rule.kind != "compute" or mode not in rule.modes:
            return f"{mode} quantization of {self.target.name} leaves {node.op_type} float"
        return "" if weights else f"{mode} quantization needs constant weights"

    def kind_refusal(self, node: ir.Node, rule: OperatorRule) -> str:
        inputs = [value for _, value in activation_inputs(node)]
        weights = weight_inputs(node)
        if any(value.dtype != ir.DataType.FLOAT for value in [*inputs, *float_outputs(node)]):
            return "only float32 is quantized"
        if rule.constant_weights and not weights:
            return f"{self.target.name} runs {node.op_type} in integers only with constant weights"
        if is_operator(node, "Conv") and self.choices.mode == "static" and weights:
            slow = slow_convolution(node, rule)
            if slow:
                return f"{slow}: {self.target.name} is faster in float"
        if self.choices.mode == "static" and not all(map(_has_range, inputs)):  # a mask of -infinity
            return "an input of it is a constant that has no range: it is empty or not finite"
        moving = [value for value in inputs if not is_constant(value)]
        if not moving and self.moves_constant(node, rule, inputs):
            return ""
        if not moving and not (self.choices.mode == "weight-only" and weights):
            return "its inputs are constant"
        return "" if rule.kind == "compute" else self.arrival_refusal(node, rule, moving)

    def moves_constant(self, node: ir.Node, rule: OperatorRule, inputs: list[ir.Value]) -> bool:
        """Whether an operator moves the levels of constants, which a chip without floats has to hold as such."""
        kept = self.choices.mode == "static" and self.target.all_integer
        return kept and rule.kind == "same" and bool(inputs or weight_inputs(node)) and bool(node.outputs[0].uses())

    def moves_input(self, rule: OperatorRule, value: ir.Value) -> bool:
        """Whether an operator moves the levels of an input of the network, which a chip without floats takes as such.

        All that computes with them, here or behind other moves, must round them anyway.
        """
        if not self.target.all_integer or rule.kind != "same" or not value.is_graph_input():
            return False
        rules = [(node, self.rule(node)) for node in readers(value, self.target)]
        return bool(rules) and all(
            found is not None and found.kind == "compute" and not self.choices.keep_float(str(node.name))
            for node, found in rules
        )

    def arrival_refusal(self, node: ir.Node, rule: OperatorRule, moving: list[ir.Value]) -> str:
        """Why the inputs of an operator that no conversion is paid for keep it float, "" if they do not."""
        arrived = [value for value in moving if value.name in self.arriving]
        late = [value for value in moving if value not in arrived]
        if rule.kind == "join" and arrived:  # what is rounded for a layer anyway costs nothing more
            late = [value for value in late if self.placement.root(str(value.name)) not in self.placement.activations]
        if not late or all(self.moves_input(rule, value) for value in late):
            return ""
        if rule.kind == "same":
            return "its input arrives in float"
        return f"{late[0].name} arrives in float: an integer {node.op_type} would pay for the conversion"

    def hand_on(self, node: ir.Node, rule: OperatorRule) -> None:
        """Let the outputs of a "same" operator take the encoding of its input."""
        inputs = [value for _, value in activation_inputs(node)]
        tables = [node.inputs[number] for number in weight_inputs(node)]  # a Gather takes rows of its weights
        inputs += [value for value in tables if value is not None]
        source = next((value for value in inputs if value.name in self.arriving), None)
        if source is None:
            source = inputs[0]
            for value in inputs:
                if self.placement.root(str(value.name)) not in self.placement.activations:
                    self.take_activation(value, None, None, rule)
        for value in [*inputs, *float_outputs(node)]:
            self.share(str(value.name), str(source.name))
        for value in float_outputs(node):
            self.arriving.add(str(value.name))
            self.rules[str(value.name)] = rule

    def share(self, value: str, source: str) -> None:
        first, second = self.placement.root(value), self.placement.root(source)
        if first != second:
            self.placement.shared[first] = second

    def run_in_integers(self, node: ir.Node, rule: OperatorRule) -> None:
        last = node.outputs[0]
        for follower in self.followers(node, rule):
            self.fused.add(str(follower.name))
            self.placement.integer_nodes.add(str(follower.name))
            last = follower.outputs[0]
        self.take_weights(node, rule)
        if self.choices.mode == "weight-only":
            return
        for _, value in activation_inputs(node):
            self.take_input(value, rule)
        if self.choices.mode == "dynamic":
            return
        read = [output for output in float_outputs(node) if output.uses() or output.is_graph_output()]
        for value in (last if output is node.outputs[0] else output for output in read):
            if rule.output == "float":
                self.placement.float_outputs.append(str(value.name))
            else:
                self.arriving.add(str(value.name))
                self.rules[str(value.name)] = rule
                self.take_activation(value, node, rule)
        bounded = bounded_by_constant(node)
        if bounded is not None and last is node.outputs[0]:
            self.bound_on_levels(bounded, node)
        if rule.shares_inputs:
            for _, value in activation_inputs(node):
                self.share(str(value.name), str(last.name))

    def bound_on_levels(self, bounded: ir.Value, node: ir.Node) -> None:
        """Let a Min or Max with a constant select among levels of one encoding, whose range is that of its output.

        What it cuts off needs no level: the operator before it saturates there, and so does the constant.
        """
        result = str(node.outputs[0].name)
        slots = self.placement.activations
        own = slots.get(result)
        for value in (bounded, *(value for value in node.inputs if is_constant(value))):
            slot = slots.get(str(value.name)) if value is not None else None
            if value is None or slot is None or own is None or slot.type != own.type or len(value.uses()) != 1:
                continue
            if value.is_graph_output() or (slot.rule is not None and slot.rule.fixed_output):
                continue
            del slots[slot.value]
            self.share(slot.value, result)

    def followers(self, node: ir.Node, rule: OperatorRule) -> Iterator[ir.Node]:
        """Nodes behind a node that belong to it: the addition of a constant bias, then one activation function."""
        value = node.outputs[0]
        bias = bias_addition(node)
        if bias is not None and not self.choices.keep_float(str(bias.name)):
            yield bias
            value = bias.outputs[0]
        follower = clips_only(value) or sole_consumer(value)
        if (
            follower is not None
            and follower.domain == ""
            and follower.op_type in rule.fuses
            and (follower.op_type not in CLIPPING_OPERATORS or clips_only(value) is follower)
            and not self.choices.keep_float(str(follower.name))
        ):
            yield follower

    def note_float_caps(self, model: ir.Model) -> None:
        """Say how many caps per channel stand as float nodes behind integer layers."""
        late = [node for node in model.graph if self.is_float_cap(node)]
        if late:
            nodes = "node" if len(late) == 1 else "nodes"
            self.note(
                f"{self.target.name} has no integer Min: caps per channel cost the fusion of {len(late)} {nodes} "
                f"(the first is {late[0].name!r})"
            )

    def is_float_cap(self, node: ir.Node) -> bool:
        bounded = bounded_by_constant(node)
        if bounded is None or bounded.name not in self.arriving or node.name in self.placement.integer_nodes:
            return False
        return any(array is not None and array.size > 1 for array in map(constant_array, node.inputs))

    def take_weights(self, node: ir.Node, rule: OperatorRule) -> None:
        for number in weight_inputs(node):
            weights = node.inputs[number]
            assert weights is not None
            assert weights.const_value is not None
            kind = self.weight_type(node, rule)
            slot = WeightSlot(
                value=str(weights.name),
                node=str(node.name),
                axis=output_axis(node, number),
                type=kind,
                symmetric=self.target.weights.is_symmetric(kind),
                granularity=self.weight_granularity(node, rule),
                summed_axis=_summed_axis(node, len(weights.const_value.shape)),
            )
            if self.choices.mode != "weight-only" and self.needs_one_scale(node, slot):
                slot = replace(slot, granularity="tensor")
            self.placement.weights[slot.value] = slot

    def needs_one_scale(self, node: ir.Node, slot: WeightSlot) -> bool:
        """Whether integer products cannot take a scale per channel.

        That is so for a stack of matrices (ONNX Runtime refuses it), and for weights that another layer reads along
        another axis: its engine would take the scales of one layer's channels for the other's.
        """
        other = self.placement.weights.get(slot.value, slot)
        stacked = is_operator(node, "MatMul") and slot.axis > 1
        return stacked or (other.axis, other.summed_axis) != (slot.axis, slot.summed_axis)

    def weight_type(self, node: ir.Node, rule: OperatorRule) -> IntegerType:
        allowed = rule.weight_types or self.target.weights.types
        return self.choices.weights(str(node.name)) or allowed[0]

    def weight_granularity(self, node: ir.Node, rule: OperatorRule) -> Scope:
        allowed = rule.weight_granularity or self.target.weights.granularity
        asked = self.choices.granularity(str(node.name))
        if asked is None or asked in allowed:
            return asked or allowed[0]
        if rule.weight_granularity:  # the operator has fewer scopes than the target: take its own
            self.note(
                f"a scale per {asked} was asked for the weights, but {self.target.name} takes one per "
                f"{' or '.join(allowed)} for {node.op_type}"
            )
            return allowed[0]
        return asked

    def note(self, refusal: str) -> None:
        if refusal not in self.placement.refusals:
            self.placement.refusals.append(refusal)

    def take_input(self, value: ir.Value, rule: OperatorRule) -> None:
        if self.placement.root(str(value.name)) not in self.placement.activations:
            self.take_activation(value, value.producer(), None, rule)

    def take_activation(
        self, value: ir.Value, writer: ir.Node | None, rule: OperatorRule | None, reader: OperatorRule | None = None
    ) -> None:
        types = (rule or reader).types if rule or reader else ()  # type: ignore[union-attr]
        name = str(writer.name) if writer is not None else None
        kind = (
            self.choices.activations(name)
            or self.neighbours.type_for_readers(value, writer, rule)
            or (types or self.target.activations.types)[0]
        )
        self.placement.activations[str(value.name)] = ActivationSlot(
            value=str(value.name),
            writer=name,
            type=kind,
            rule=rule,
            factor=self.neighbours.takes_factor(value, writer, rule, kind),
            normalized=self.neighbours.is_normalized(value, rule, kind),
        )


def _has_range(value: ir.Value) -> bool:
    """Whether a value is no constant, or one of finite numbers."""
    array = constant_array(value)
    return array is None or (array.size > 0 and bool(np.isfinite(array).all()))


def _summed_axis(node: ir.Node, rank: int) -> int:
    """Axis of a node's weights that products are added up along."""
    if node.op_type == "MatMul":
        return max(rank - 2, 0)
    if node.op_type in {"LSTM", "GRU", "RNN"}:  # [directions, gates, inputs]
        return 2
    if node.op_type == "Gemm":
        return node.attributes.get_int("transB", 0)
    return 0 if node.op_type == "ConvTranspose" else 1


def slow_convolution(node: ir.Node, rule: OperatorRule) -> str:
    """Say why a convolution is slower in integers than in float on the target, "" if it is not."""
    weights = node.inputs[1]
    assert weights is not None
    assert weights.const_value is not None
    outputs, inputs, *kernel = weights.const_value.shape.numpy()
    products = inputs * math.prod(kernel)
    if inputs == 1 and outputs == node.attributes.get_int("group", 1) > 1:
        return f"depthwise with {outputs} channels only" if outputs < rule.fewest_channels else ""
    return f"only {products} products make an output" if math.prod(kernel) > 1 and products < rule.shortest_sum else ""
