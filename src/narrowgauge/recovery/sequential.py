"""One pass through the layers, float and quantized network side by side: each layer makes up for those before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.plan import Plan
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import add_constant, set_constant
from narrowgauge.graph.edits import new_node, unique_name
from narrowgauge.graph.feeds import Feed
from narrowgauge.graph.pieces import Stream, alive_after, piece, plan_for
from narrowgauge.graph.roles import activation_inputs
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.recovery.bias_correction import subtract_from_bias
from narrowgauge.recovery.fit_layer import FittingRules, LayerInputs, LayerRounding, can_fit, fit_layer
from narrowgauge.recovery.read_positions import ReadPositions, read_positions


def optimize(  # noqa: PLR0913 - what the target says of weights and biases, each by name
    model: ir.Model,
    plan: Plan,
    batches: Iterable[Feed],
    *,
    reference: ir.Model | None = None,
    round_bits: int = 7,
    correct_bias: bool = True,
    bias_bits: int = 32,
    power_of_two: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[ir.Model, Plan, tuple[LayerRounding, ...]]:
    """Round weights and correct biases layer by layer, in the network's order.

    Two streams of activations go through the network: that of the float network, cut off at the ends of the plan's
    ranges, and that of the quantized network so far. At each layer weights are chosen that, on what the quantized
    stream brings, come nearest to what the float stream makes of them (`rounding.round_to_moments`), and the bias is
    shifted so that each channel's mean is the float stream's (Nagel et al. 2019, section 4.2, measured and layer by
    layer). The float stream is cut off because a bias that makes up for clipped values is wrong for all others.

    Rows at positions that the network's end reads alone (`read_positions`: a class token) count as a third of all:
    what the others lose reaches the answer only through later attentions.

    Left alone are weights that several nodes read, those of nodes in float, and operators without a matrix form
    (`matrix_form`); layers without a place for a bias keep theirs. No layer's weights get worse than rounding to the
    nearest level, by the error that is measured.

    Args:
        model: the float network that the plan describes; it is not changed.
        plan: its encodings.
        batches: samples; some 64 do. The activations that are alive between two layers are held for all of them.
        reference: the float network that is to be reached, of the same nodes; the model itself by default.
        round_bits: weights of at most so many bits are rounded by their effect; 0: none.
        correct_bias: whether biases are corrected.
        bias_bits: width of an integer bias, 0 where it stays float.
        power_of_two: whether weights' scales are powers of two.
        threads: of the engine.
        progress: called with 1 behind each layer.

    Returns:
        A copy of the network whose weights are the chosen levels' real numbers, so that rounding them to the nearest
        level gives back the levels; the plan with their scales; and what was done.

    Raises:
        PlanError: if the reference has other nodes than the model.
        RuntimeFailure: if a part of the network cannot be run.
    """
    feeds = [dict(batch.feed) for batch in batches]
    layers = _layers(model, plan)
    if not feeds or not layers or not (round_bits or correct_bias):
        return model, plan, ()
    wanted = reference if reference is not None else model
    if [node.name for node in wanted.graph] != [node.name for node in model.graph]:
        raise PlanError("expected a reference network of the same nodes as the one that the plan describes")
    walk = _Walk(
        network=model.clone(),
        plan=plan,
        float_stream=Stream.start(feeds, threads=threads),
        rounded_stream=Stream.start(feeds, threads=threads),
        rules=FittingRules(
            round_bits=round_bits, correct_bias=correct_bias, bias_bits=bias_bits, power_of_two=power_of_two
        ),
        read=read_positions(wanted),
    )
    with threadpool_limits(1, user_api="blas"):  # its threads wait for each other longer than these products take
        return walk.through(wanted, layers, progress)


def _layers(model: ir.Model, plan: Plan) -> list[str]:
    """Names of the layers whose weights are quantized and that have a matrix form."""
    return [str(node.name) for node in model.graph if can_fit(node, plan)]


def _clamped(reference: ir.Model, plan: Plan) -> ir.Model:
    """A copy of the float network that cuts values off where integer operators saturate as they write them."""
    clamped = reference.clone()
    float_nodes = {entry.name for entry in plan.float_nodes}
    for node in list(clamped.graph):
        for value in node.outputs if node.name not in float_nodes else ():
            encoding = plan.encodings.get(str(value.name))
            if isinstance(encoding, Encoding) and isinstance(encoding.granularity, PerTensor):
                _clamp(clamped.graph, value, encoding)
    return clamped


def _clamp(graph: ir.Graph, value: ir.Value, encoding: Encoding) -> None:
    """Let everything that reads a value read it cut off, under the value's name."""
    name = str(value.name)
    bounds = [
        add_constant(graph, f"{name}_{suffix}", np.asarray(bound, dtype=np.float32))
        for suffix, bound in (("lowest", encoding.minimum), ("highest", encoding.maximum))
    ]
    uses = list(value.uses())
    clip = new_node("Clip", [value, *bounds], name=unique_name(graph, f"{name}_clamp"), like=value)
    node = value.producer()
    assert node is not None
    node.append(clip)
    for reader, number in uses:
        reader.replace_input_with(number, clip.outputs[0])
    for number, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[number] = clip.outputs[0]
    value.name = unique_name(graph, f"{name}_unclamped")
    clip.outputs[0].name = name


def _segments(model: ir.Model, layers: Collection[str]) -> list[list[ir.Node]]:
    """The network's nodes, cut before each layer."""
    found: list[list[ir.Node]] = [[]]
    for node in model.graph:
        if node.name in layers:
            found.append([])
        found[-1].append(node)
    return found


@dataclass(kw_only=True, slots=True)
class _Walk:
    network: ir.Model
    plan: Plan
    float_stream: Stream
    rounded_stream: Stream
    rules: FittingRules
    read: Mapping[str, ReadPositions]
    done: list[LayerRounding] = field(default_factory=list)

    def through(
        self, reference: ir.Model, layers: Sequence[str], progress: Callable[[int], None]
    ) -> tuple[ir.Model, Plan, tuple[LayerRounding, ...]]:
        names = set(layers)
        ends = alive_after(self.network)
        twins = {node.name: node for node in reference.graph}
        clamped = _clamped(reference, self.plan)
        float_segments = _segments(clamped, names)
        position = 0
        for number, segment in enumerate(_segments(self.network, names)):
            if number:
                self.visit(segment[0], twins[segment[0].name])
                progress(1)
            position += len(segment)
            if number < len(layers) and _kept(segment, ends[position - 1]):
                self.advance(segment, ends[position - 1])
                self.advance_float(clamped, float_segments[number], ends[position - 1])
        return self.network, self.plan, tuple(self.done)

    def advance(self, nodes: Sequence[ir.Node], keep: set[str]) -> None:
        part = piece(self.network, nodes, _kept(nodes, keep))
        lowered = lower_to_qdq(
            part, plan_for(part, self.plan), QdqStyle(bias_bits=self.rules.bias_bits, spell_out_channels=True)
        )
        self.rounded_stream.advance(lowered, keep)

    def advance_float(self, clamped: ir.Model, nodes: Sequence[ir.Node], keep: set[str]) -> None:
        self.float_stream.advance(piece(clamped, nodes, _kept(nodes, keep)), keep)

    def visit(self, node: ir.Node, wanted: ir.Node) -> None:
        value, source = node.inputs[1], str(next(value for _, value in activation_inputs(node)).name)
        assert value is not None
        inputs = LayerInputs(
            rounded=self.rounded_stream.values[source],
            real=self.float_stream.values[source],
            read=self.read.get(source),
        )
        fitted = fit_layer(node, wanted, self.plan, inputs, self.rules)
        if fitted is None:
            return
        if fitted.weights is not None:
            set_constant(value, fitted.weights)
            self.plan = replace(self.plan, encodings={**self.plan.encodings, str(value.name): fitted.encoding})
        if fitted.shift is not None:
            subtract_from_bias(self.network.graph, node, fitted.shift)
        self.done.append(fitted.record)


def _kept(nodes: Sequence[ir.Node], keep: set[str]) -> list[str]:
    return [str(value.name) for node in nodes for value in node.outputs if value.name in keep]
