"""LSTM, GRU and RNN before a network is written: TFLite's one recurrent kernel where it does the layer, else steps.

An LSTM that UNIDIRECTIONAL_SEQUENCE_LSTM computes becomes a node `SequenceLstm` for each direction (`recurrent`); what
puts the directions together is left out where the readers can do without. Every other layer is unrolled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import AnyEncoding, DynamicEncoding, Encoding
from narrowgauge.core.engines.tflite_recurrent import cell_encoding, cell_encoding_of_scale
from narrowgauge.core.granularity import PerAxis, PerTensor, normalized_axis
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import FloatNode, Plan
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.exporters.tflite.recurrent import ACTIVATIONS, RECORD, SEQUENCE_LSTM, SequenceLstm
from narrowgauge.graph.constants import add_constant, constant_integers
from narrowgauge.graph.edits import is_operator, new_node, remove_unused, sole_consumer, take_place, unique_name
from narrowgauge.graph.recurrent import (
    CELL_CLIP,
    CELL_SCALE,
    COUPLED_INPUT,
    Recurrent,
    cell_magnitude,
    cell_number,
    is_recurrent,
    recurrent_layer,
)
from narrowgauge.graph.shapes import infer_shapes
from narrowgauge.passes.unroll_recurrent import Unrolled, unroll_recurrent


def prepared(network: ir.Model, plan: Plan) -> tuple[ir.Model, Plan]:
    """Rewrite the recurrent layers of a network so that each node is one of TFLite's operators, or ours.

    Args:
        network: simplified, shapes inferred; it is not changed.
        plan: its encodings.

    Returns:
        The network and the plan for it; the given ones where there is no recurrent layer.

    Raises:
        TargetError: a layer has no kernel and cannot be unrolled; the message names it.
    """
    if not any(is_recurrent(node) for node in network.graph):
        return network, plan
    changed = network.clone()
    unrolled, refusals = unroll_recurrent(changed, keep=lambda layer: not kernel_refusal(layer))
    plan = _plan_of_steps(changed, plan, unrolled)
    read = [recurrent_layer(node) for node in changed.graph if is_recurrent(node)]
    layers = [layer for layer in read if isinstance(layer, Recurrent) and not kernel_refusal(layer)]
    if refusals:
        first = refusals[0]
        raise TargetError(
            f"TFLite cannot run node {first.node!r} ({first.operator}): it has no kernel for this layer, and "
            f"{first.reason}"
        )
    _take_one_sample(changed, layers)
    for layer in layers:
        plan = _sequences(changed.graph, layer, plan)
    remove_unused(changed)
    return changed, plan


def kernel_refusal(layer: Recurrent) -> str:
    """Say why UNIDIRECTIONAL_SEQUENCE_LSTM does not compute a layer, "" if it does."""
    if layer.operator != "LSTM":
        return f"TFLite has no {layer.operator}"
    if any(state is not None for state in layer.states):
        return "its state does not begin with zeros"
    if layer.output(2) is not None:
        return "its cells are read"
    if layer.clip or layer.coupled:
        return "its gates are clipped or coupled"
    for direction in layer.directions:
        gate, candidate, squash = (one.operator for one in direction.activations)
        if gate != "Sigmoid" or candidate != squash or candidate not in ACTIVATIONS:
            return f"its activation functions are {gate}, {candidate} and {squash}"
    return ""


def _take_one_sample(model: ir.Model, layers: list[Recurrent]) -> None:
    """Let a network take one sample at a time where a layer's batch is open: the kernel's state has one size."""
    shapes = [layer.node.inputs[0].shape for layer in layers if layer.node.inputs[0] is not None]
    sizes = [shape[1] for shape in shapes if shape is not None and shape.rank() == 3]
    batches = {size for size in sizes if isinstance(size, ir.SymbolicDim) and size.value is not None}
    if not batches:
        return
    for value in [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape([1 if size in batches else size for size in value.shape])
    infer_shapes(model)


def _plan_of_steps(model: ir.Model, plan: Plan, unrolled: tuple[Unrolled, ...]) -> Plan:
    """Hand the encodings of unrolled layers' weights to the matrices that hold them now, and leave the steps float.

    With dynamic quantization the products of the steps round their inputs as the layer's did.
    """
    encodings, float_nodes = dict(plan.encodings), list(plan.float_nodes)
    named = {node.name for node in float_nodes}
    nodes = {str(node.name): node for node in model.graph}
    for layer in unrolled:
        for source, directions in layer.weights.items():
            encoding = encodings.get(source)
            for parts in directions if isinstance(encoding, Encoding) else ():
                assert isinstance(encoding, Encoding)
                encodings |= _encodings_of_parts(model, encoding, parts)
        if plan.mode == "dynamic":
            for name in layer.nodes:
                _round_at_run_time(nodes.get(name), plan, encodings)
        elif layer.node in named:
            float_nodes += [FloatNode(name=name, operator="", reason=f"part of {layer.node!r}") for name in layer.nodes]
    return replace(plan, encodings=encodings, float_nodes=tuple(float_nodes))


def _encodings_of_parts(model: ir.Model, encoding: Encoding, parts: tuple[str, ...]) -> dict[str, Encoding]:
    """Cut an encoding along the gates, which are the columns of the parts."""
    found, start = {}, 0
    for name in parts:
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        end = start + tensor.numpy().shape[1]
        if isinstance(encoding.granularity, PerTensor):
            found[name] = encoding
        elif isinstance(encoding.granularity, PerAxis) and normalized_axis(encoding.granularity.axis, 3) == 1:
            scale, zero_point = encoding.scale[start:end], encoding.zero_point[start:end]
            found[name] = replace(encoding, granularity=PerAxis(1), scale=scale, zero_point=zero_point)
        else:
            raise TargetError(
                f"weights {name!r}: expected one scale or one along the gates, got {encoding.granularity}"
            )
        start = end
    return found


def _round_at_run_time(node: ir.Node | None, plan: Plan, encodings: dict[str, AnyEncoding]) -> None:
    if node is None or not is_operator(node, "MatMul"):
        return
    value, weights = node.inputs
    if value is not None and weights is not None and isinstance(encodings.get(str(weights.name)), Encoding):
        dynamic = next((one for one in plan.encodings.values() if isinstance(one, DynamicEncoding)), None)
        encodings.setdefault(str(value.name), dynamic or DynamicEncoding(type=integer_type("int8")))


def _sequences(graph: ir.Graph, layer: Recurrent, plan: Plan) -> Plan:
    """Replace an LSTM by a node for each direction, and what puts its outputs together."""
    node, encodings = layer.node, dict(plan.encodings)
    float_nodes = list(plan.float_nodes)
    outputs = [value for value in (layer.output(0), layer.output(1)) if value is not None]
    planned = [encodings[str(value.name)] for value in outputs if str(value.name) in encodings]
    weights, recurrence = (encodings.get(str(value.name)) for value in node.inputs[1:3] if value is not None)
    weights = weights if isinstance(weights, Encoding) else None
    recurrence = recurrence if isinstance(recurrence, Encoding) else None
    integer = (
        plan.mode == "static" and str(node.name) not in {one.name for one in plan.float_nodes}
        and weights is not None and recurrence is not None and len(planned) == len(outputs) and bool(planned)
    )  # fmt: skip
    made = []
    for number, direction in enumerate(layer.directions):
        suffix = "" if len(layer.directions) == 1 else ("_backward" if direction.reverse else "_forward")
        one = ir.node(SEQUENCE_LSTM, inputs=[node.inputs[0]], name=unique_name(graph, f"{node.name}{suffix}_steps"))
        record = SequenceLstm(
            layer=layer, direction=direction, name=f"{node.name}{suffix}", number=number, weights=weights,
            recurrence=recurrence, cell=_cell(layer), coupled=COUPLED_INPUT in node.metadata_props,
            cell_clip=cell_number(node, CELL_CLIP) or 0.0,
        )  # fmt: skip
        one.meta[RECORD] = record
        value = one.outputs[0]
        value.name, value.type = unique_name(graph, f"{node.name}{suffix}_state"), ir.TensorType(ir.DataType.FLOAT)
        value.shape = _state_shape(layer)
        node.prepend(one)
        made.append(value)
        if integer:
            encodings[str(value.name)] = planned[0]
        else:
            float_nodes.append(FloatNode(name=str(one.name), operator="LSTM", reason="the plan leaves it float"))
    builder = _Behind(graph=graph, node=node, encodings=encodings)
    builder.put_together(layer, made)
    return replace(plan, encodings=builder.encodings, float_nodes=tuple(float_nodes))


def _state_shape(layer: Recurrent) -> ir.Shape:
    sequences = layer.node.inputs[0]
    shape = None if sequences is None else sequences.shape
    return ir.Shape([None, None, layer.hidden] if shape is None else [shape[0], shape[1], layer.hidden])


def _cell(layer: Recurrent) -> Encoding:
    """Return the encoding of the cells: that of the file that the network comes from, or of what they can reach."""
    kept = cell_number(layer.node, CELL_SCALE)
    try:
        return cell_encoding(cell_magnitude(layer)) if kept is None else cell_encoding_of_scale(kept)
    except PlanError as error:
        raise TargetError(f"TFLite cannot run node {layer.node.name!r} (LSTM): {error}") from None


@dataclass(kw_only=True, slots=True)
class _Behind:
    """Adds what puts the directions of a layer together, with as few nodes as its readers need.

    Attributes:
        graph: that grows.
        node: the layer.
        encodings: of the plan; new values get those of what they are put together from.
    """

    graph: ir.Graph
    node: ir.Node
    encodings: dict[str, AnyEncoding]

    def put_together(self, layer: Recurrent, made: list[ir.Value]) -> None:
        """Let the readers of the layer's outputs read the directions' states, [steps, batch, hidden] each."""
        every, last = layer.output(0), layer.output(1)
        if last is not None:
            ends = [
                self.end(value, reverse=direction.reverse)
                for value, direction in zip(made, layer.directions, strict=True)
            ]
            self.renamed(self.concatenated(ends, 0), last)
        if every is None or (len(made) == 1 and self.without_axis(every, made[0])) or self.beside(every, made):
            return
        parts = [self.add("Unsqueeze", [value, self.integers([1])], value, _with_axis(value)) for value in made]
        self.renamed(self.concatenated(parts, 1), every)

    def without_axis(self, every: ir.Value, state: ir.Value) -> bool:
        """Let a Squeeze or a Reshape behind a layer of one direction read its state directly."""
        readers = [use.node for use in every.uses()]
        if every.is_graph_output() or not all(self.reads_axis(node) for node in readers):
            return False
        for node in readers:
            if not is_operator(node, "Squeeze"):
                node.replace_input_with(0, state)
            elif len(readers) == 1:
                self.renamed(state, node.outputs[0])
            else:
                self.renamed(self.add("Identity", [state], state, state.shape), node.outputs[0])
        return True

    def reads_axis(self, node: ir.Node) -> bool:
        if is_operator(node, "Squeeze") and len(node.inputs) > 1:
            return constant_integers(node.inputs[1]) == (1,)
        shape = constant_integers(node.inputs[1]) if is_operator(node, "Reshape") else None
        return shape is not None and (0 not in shape or bool(node.attributes.get_int("allowzero", 0)))

    def renamed(self, value: ir.Value, old: ir.Value) -> None:
        """Let a value stand for another under its name."""
        encoding = self.encodings.pop(str(value.name), None)
        take_place(value, old)
        if encoding is not None:
            self.encodings.setdefault(str(value.name), encoding)

    def beside(self, every: ir.Value, made: list[ir.Value]) -> bool:
        """Let a Transpose and a Reshape that put the directions side by side be one Concat."""
        turn, extents = sole_consumer(every), every.shape
        if turn is None or extents is None:
            return False
        turned = is_operator(turn, "Transpose")
        # With a batch of one the directions lie side by side without a Transpose.
        if list(turn.attributes.get_ints("perm", ())) != [0, 2, 1, 3] if turned else extents[2] != 1:
            return False
        reader = sole_consumer(turn.outputs[0]) if turned else turn
        shape = constant_integers(reader.inputs[1]) if reader is not None and is_operator(reader, "Reshape") else None
        if reader is None or shape is None:
            return False
        same = len(shape) == 3 and (shape[:2] == (extents[0], extents[2]) or (turned and shape[:2] == (0, 0)))
        if same and not reader.attributes.get_int("allowzero", 0):
            self.renamed(self.concatenated(made, 2), reader.outputs[0])
        elif 0 in shape:
            return False
        else:
            reader.replace_input_with(0, self.concatenated(made, 2))
        return True

    def end(self, value: ir.Value, *, reverse: bool) -> ir.Value:
        """Return what is left behind the last step of a direction, [1, batch, hidden]."""
        bounds = ([0], [1]) if reverse else ([-1], [np.iinfo(np.int64).max])
        shape = None if value.shape is None else ir.Shape([1, *value.shape[1:]])
        return self.add("Slice", [value, *(self.integers(one) for one in (*bounds, [0]))], value, shape)

    def concatenated(self, values: list[ir.Value], axis: int) -> ir.Value:
        if len(values) == 1:
            return values[0]
        sizes = [list(value.shape or ()) for value in values]
        extents = sizes[0]
        extents[axis] = sum(size for one in sizes if isinstance(size := one[axis], int))
        return self.add("Concat", values, values[0], ir.Shape(extents), axis=axis)

    def add(
        self, operator: str, inputs: list[ir.Value], like: ir.Value, shape: ir.Shape | None, **attributes: int
    ) -> ir.Value:
        name = unique_name(self.graph, f"{self.node.name}_{operator.lower()}")
        made = new_node(operator, inputs, attributes, name=name, output=name)
        made.outputs[0].type, made.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), shape
        self.node.prepend(made)
        if str(like.name) in self.encodings:
            self.encodings[name] = self.encodings[str(like.name)]
        return made.outputs[0]

    def integers(self, numbers: list[int]) -> ir.Value:
        return add_constant(self.graph, f"{self.node.name}_integers", np.array(numbers, np.int64))


def _with_axis(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([value.shape[0], 1, *value.shape[1:]])
