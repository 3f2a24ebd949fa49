"""What each tensor's rounding costs at the network's output, measured from both sides.

From the float side a tensor alone is rounded (`alone`), from the quantized side it alone is left float (`without`). The
first says what it adds by itself, the second what leaving it float would win in the network as it is, where errors
meet, cancel and saturate.

A network is not run once for each of these: what lies before a tensor is computed once for all variants, what lies
behind it by sessions that all variants share (see `analysis.chain`), so that a variant costs the part behind its tensor
only: for MobileNetV2 and 16 samples 22 seconds of a core, where two whole runs for each take 77. All variants are
measured on a few samples, and those that cost most on all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.analysis.chain import (
    Case,
    Change,
    Edit,
    Energies,
    Streams,
    base_errors,
    errors,
    first_cases,
)
from narrowgauge.analysis.energies import output_noise
from narrowgauge.analysis.records import Kind, Sensitivity
from narrowgauge.core.encoding import Encoding, same_encoding
from narrowgauge.core.plan import Plan
from narrowgauge.graph.constants import constant_array, replace_constant_input, set_constant
from narrowgauge.graph.edits import is_operator, sole_consumer
from narrowgauge.graph.pieces import outer_inputs
from narrowgauge.graph.roles import LAYOUT_OPERATORS, activation_inputs, bias_addition, bias_input, weight_inputs
from narrowgauge.recovery.bias_correction import bias_place

# Operators whose output is made of levels of their inputs, or close to it, so that targets give both one encoding.
_HANDING_ON = LAYOUT_OPERATORS | {
    "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Max", "Min", "Relu", "Clip", "Slice", "Split", "Concat",
    "Gather", "GatherND", "Pad", "Expand", "Tile", "AveragePool", "Resize",
}  # fmt: skip

# Samples that every variant is measured on, and how many of the worst tensors are measured on all.
FIRST_SAMPLES = 16
MOST_EXACT = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedTensor:
    """A tensor of the plan, or several with one encoding, that are rounded or left float together.

    Attributes:
        name: of the tensor; of several, the first one whose levels no other one of them is made of.
        kind: activation or weights.
        node: name of the node that writes the activation ("" for an input) or reads the weights.
        depth: that node's place in the network's order.
        members: names of all that have the encoding.
        first: number of the first node that is another one where they are left float: one that writes or reads them.
        last: number of the last such node.
        layers: names of the nodes that read the weights; empty for activations.
    """

    name: str
    kind: Kind
    node: str
    depth: int
    members: tuple[str, ...]
    first: int
    last: int
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedLayer:
    """A node with quantized weights and what it writes.

    Attributes:
        node: the node's name.
        depth: its place in the network's order.
        tensors: its weights, and the activation that it writes (behind its bias and activation function) if that is
            quantized.
    """

    node: str
    depth: int
    tensors: tuple[QuantizedTensor, ...]


def quantized_tensors(model: ir.Model, plan: Plan) -> tuple[QuantizedTensor, ...]:
    """List what a plan rounds, in the network's order; tensors that share an encoding once.

    They share one if it is the same object, or an equal one that is handed on from one to the other by an operator that
    moves or selects levels.

    Args:
        model: the float network.
        plan: its plan.
    """
    places = _Places(model, plan)
    weights = [_weights(places, name) for name in places.weights]
    groups = [_activation(places, members) for members in _groups(model, plan, places)]
    found = [tensor for tensor in (*groups, *weights) if tensor is not None]
    return tuple(sorted(found, key=lambda tensor: (tensor.depth, tensor.kind != "weights")))


def quantized_layers(model: ir.Model, plan: Plan, tensors: Sequence[QuantizedTensor]) -> tuple[QuantizedLayer, ...]:
    """Put weights and the activation that their node writes together, one layer for each node with weights."""
    owner = {member: tensor for tensor in tensors for member in tensor.members}
    float_nodes = {entry.name for entry in plan.float_nodes}
    layers = []
    for depth, node in enumerate(model.graph):
        names = [str(node.inputs[number].name) for number in weight_inputs(node)]  # type: ignore[union-attr]
        held = [owner[name] for name in names if name in owner and node.name not in float_nodes]
        if held:
            written = _written(node, owner)
            together = dict.fromkeys([*held, *([written] if written is not None else [])])
            layers.append(QuantizedLayer(node=str(node.name), depth=depth, tensors=tuple(together)))
    return tuple(layers)


def _written(node: ir.Node, owner: Mapping[str, QuantizedTensor]) -> QuantizedTensor | None:
    """The first quantized value behind a node, through its bias and activation function."""
    value = node.outputs[0]
    while str(value.name) not in owner:
        bias = bias_addition(node) if value is node.outputs[0] else None
        follower = bias or sole_consumer(value)
        if follower is None:
            return None
        if bias is None and (weight_inputs(follower) or len(list(activation_inputs(follower))) > 1):
            return None
        value = follower.outputs[0]
    return owner[str(value.name)]


class _Places:
    """Where the values of a plan are written and read: numbers of nodes."""

    def __init__(self, model: ir.Model, plan: Plan) -> None:
        self.nodes = list(model.graph)
        self.plan = plan
        self.float_nodes = {entry.name for entry in plan.float_nodes}
        self.inputs = {str(value.name) for value in model.graph.inputs}
        self.writer: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}
        self.weights: dict[str, list[int]] = {}
        for number, node in enumerate(self.nodes):
            self.writer |= {str(value.name): number for value in node.outputs}
            for value in outer_inputs(node):
                self.readers.setdefault(str(value.name), []).append(number)
            for held in weight_inputs(node) if node.name not in self.float_nodes else ():
                name = str(node.inputs[held].name)  # type: ignore[union-attr]
                if name in plan.encodings:
                    self.weights.setdefault(name, []).append(number)

    def ends(self, names: Iterable[str]) -> tuple[int, int] | None:
        """First and last node that writes or reads one of the values."""
        found = [number for name in names for number in self.readers.get(name, ())]
        found += [self.writer[name] for name in names if name in self.writer]
        return (min(found), max(found)) if found else None


def _weights(places: _Places, name: str) -> QuantizedTensor | None:
    ends, numbers = places.ends([name]), places.weights[name]
    assert ends is not None
    nodes = [places.nodes[number] for number in numbers]
    biased = [place[0] for node in nodes if (place := bias_place(node)) is not None]
    last = max([ends[1], *(places.writer[str(holder.outputs[0].name)] for holder in biased)])
    return QuantizedTensor(
        name=name, kind="weights", node=str(nodes[0].name), depth=numbers[0], members=(name,),
        first=ends[0], last=last, layers=tuple(str(node.name) for node in nodes),
    )  # fmt: skip


def _activation(places: _Places, members: Sequence[str]) -> QuantizedTensor | None:
    ends = places.ends(members)
    if ends is None:
        return None
    handed = {
        str(value.name)
        for number in {number for name in members for number in places.readers.get(name, ())}
        for value in places.nodes[number].outputs
    }
    name = next((name for name in members if name not in handed), members[0])
    writer = places.writer.get(name)
    constant = writer is None and name not in places.inputs
    reader = places.readers.get(name, [0])[0]
    number = reader if constant else writer
    return QuantizedTensor(
        name=name,
        kind="weights" if constant else "activation",
        node="" if number is None else str(places.nodes[number].name),
        depth=number or 0,
        members=tuple(members),
        first=ends[0],
        last=ends[1],
    )


def _groups(model: ir.Model, plan: Plan, places: _Places) -> list[list[str]]:
    """Encoded values that are no weights, those with one encoding together, in the network's order."""
    names = [str(value.name) for value in model.graph.inputs]
    names += [name for name in model.graph.initializers if name not in places.weights]
    names += [str(value.name) for node in places.nodes for value in node.outputs]
    names = [name for name in dict.fromkeys(names) if name in plan.encodings]
    root = {name: name for name in names}

    def find(name: str) -> str:
        while root[name] != name:
            name = root[name]
        return name

    owner: dict[int, str] = {}
    for name in names:
        if isinstance(plan.encodings[name], Encoding):
            root[find(name)] = find(owner.setdefault(id(plan.encodings[name]), name))
    for node in places.nodes:
        if is_operator(node, *_HANDING_ON) and node.name not in places.float_nodes:
            for first, second in _pairs(node):
                if first in root and second in root and _equal(plan, first, second):
                    root[find(second)] = find(first)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(find(name), []).append(name)
    return list(groups.values())


def _pairs(node: ir.Node) -> Iterable[tuple[str, str]]:
    return [(str(read.name), str(written.name)) for _, read in activation_inputs(node) for written in node.outputs]


def _equal(plan: Plan, first: str, second: str) -> bool:
    one, other = plan.encodings[first], plan.encodings[second]
    return isinstance(one, Encoding) and same_encoding(one, other)


# --- changes --------------------------------------------------------------------------------------------------


def left_float(tensor: QuantizedTensor, reference: ir.Model) -> Change:
    """Leave a tensor float in the quantized network: weights and their bias are then the float network's."""
    return Change(
        first=tensor.first, last=tensor.last, encodings=dict.fromkeys(tensor.members),
        edit=_constants_of(tensor, reference),
    )  # fmt: skip


def rounded_alone(tensor: QuantizedTensor, network: ir.Model, plan: Plan) -> Change:
    """Round a tensor alone in the float network: weights and their bias are then the quantized network's."""
    return Change(
        first=tensor.first, last=tensor.last, encodings={name: plan.encodings[name] for name in tensor.members},
        edit=_constants_of(tensor, network),
    )  # fmt: skip


def _together(changes: Sequence[Change]) -> Change:
    whole = changes[0]
    for change in changes[1:]:
        whole = whole.with_change(change)
    return whole


def _constants_of(tensor: QuantizedTensor, source: ir.Model) -> Edit | None:
    """An edit that gives the layers that read these weights the weights and biases of another network."""
    if not tensor.layers:
        return None
    twins = {str(node.name): node for node in source.graph if node.name in tensor.layers}

    def edit(graph: ir.Graph) -> None:
        nodes = {str(node.name): node for node in graph}
        for name, twin in twins.items():
            _take_constants(graph, nodes[name], twin)

    return edit


def _take_constants(graph: ir.Graph, node: ir.Node, twin: ir.Node) -> None:
    for number in weight_inputs(twin):
        array, value = constant_array(twin.inputs[number]), node.inputs[number]
        if array is not None and value is not None and value.is_initializer():
            _set(value, array)
    for holder, other, number in _bias_places(node, twin):
        theirs = constant_array(other.inputs[number]) if number < len(other.inputs) else None
        own = constant_array(holder.inputs[number]) if number < len(holder.inputs) else None
        if theirs is None and own is not None:
            replace_constant_input(holder, number, np.zeros_like(own))
        elif theirs is not None and (own is None or not _same_numbers(own, theirs)):
            replace_constant_input(holder, number, theirs, name=f"{holder.name}_bias")


def _bias_places(node: ir.Node, twin: ir.Node) -> list[tuple[ir.Node, ir.Node, int]]:
    """Where a node and its twin have their bias: the node, the twin's, the number of the input."""
    number = bias_input(node)
    if number is not None:
        return [(node, twin, number)]
    own, other = bias_place(node), bias_place(twin)
    return [] if own is None or other is None or own[1] != other[1] else [(own[0], other[0], own[1])]


def _set(value: ir.Value, array: npt.NDArray[Any]) -> None:
    own = constant_array(value)
    if own is not array and not _same_numbers(own, array):
        set_constant(value, array)


def _same_numbers(first: npt.NDArray[Any] | None, second: npt.NDArray[Any] | None) -> bool:
    return first is not None and second is not None and np.array_equal(first, second)


# --- sweep ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What the sweep found.

    Attributes:
        noise: output noise of the whole quantized network (see `records.Sensitivity`), on all samples.
        sensitivities: of every tensor and layer, in the network's order.
    """

    noise: float
    sensitivities: tuple[Sensitivity, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Subject:
    """One row of the result and how it is measured."""

    name: str
    kind: Literal["activation", "weights", "layer"]
    node: str
    depth: int
    alone: Change
    without: Change
    tensors: tuple[str, ...] = ()


def sweep(
    streams: Streams,
    *,
    first_samples: int = FIRST_SAMPLES,
    most_exact: int = MOST_EXACT,
    progress: Callable[[int], None] = lambda count: None,
) -> Sweep:
    """Measure what every tensor and every layer costs at the network's output.

    Where the quantized network's weights or biases are others than the float one's (rounding was optimised, biases
    corrected), weights are left float together with their bias as the float network has both, and rounded alone
    together with their bias as the quantized one has it.

    Args:
        streams: both networks and the samples.
        first_samples: samples that every tensor is measured on.
        most_exact: of so many tensors and layers that add most, the figures are those of all samples.
        progress: called with a number of variants, of two for each tensor and layer and two for each exact one.

    Raises:
        RuntimeFailure: if the engine refuses a part.
    """
    subjects = _subjects(streams)
    cases, threads = streams.cases, streams.threads
    whole = base_errors(streams.quantized, cases, threads=threads)
    signals = np.array([case.signals() for case in cases])
    few = first_cases(cases, first_samples)
    alone, without = _measure(streams, subjects, cases[:few], progress)
    seen = np.full(len(subjects), few)
    if few < len(cases):
        costs = [output_noise(error, signals[:few].sum(axis=0)) for error in alone]
        order = np.argsort(costs, kind="stable")[::-1][:most_exact]
        more = _measure(streams, [subjects[number] for number in order], cases[few:], progress)
        alone[order] += more[0]
        without[order] += more[1]
        seen[order] = len(cases)
    rows = []
    for number, subject in enumerate(subjects):
        signal, total = signals[: seen[number]].sum(axis=0), whole[: seen[number]].sum(axis=0)
        remaining = output_noise(without[number], signal)
        row = Sensitivity(
            name=subject.name,
            kind=subject.kind,
            node=subject.node,
            depth=subject.depth,
            alone=output_noise(alone[number], signal),
            without=remaining,
            gain=difference(output_noise(total, signal), remaining),
            samples=sum(case.count for case in cases[: seen[number]]),
            tensors=subject.tensors,
        )
        rows.append(row)
    return Sweep(noise=output_noise(whole.sum(axis=0), signals.sum(axis=0)), sensitivities=tuple(rows))


def difference(before: float, after: float) -> float:
    """What is won; 0 where both are infinite."""
    return 0.0 if before == after else before - after


def _measure(
    streams: Streams, subjects: Sequence[_Subject], cases: Sequence[Case], progress: Callable[[int], None]
) -> tuple[Energies, Energies]:
    """Error energies over the cases, each alone and all without each, `(subjects, outputs)`."""
    both = []
    for chain, changes in (
        (streams.reference, [subject.alone for subject in subjects]),
        (streams.quantized, [subject.without for subject in subjects]),
    ):
        both.append(errors(chain, changes, cases, threads=streams.threads, progress=progress).sum(axis=1))
    return both[0], both[1]


def _subjects(streams: Streams) -> list[_Subject]:
    reference, network, plan = streams.reference.model, streams.quantized.model, streams.quantized.plan
    tensors = quantized_tensors(network, plan)
    alone = {tensor.name: rounded_alone(tensor, network, plan) for tensor in tensors}
    without = {tensor.name: left_float(tensor, reference) for tensor in tensors}
    subjects = [
        _Subject(
            name=tensor.name, kind=tensor.kind, node=tensor.node, depth=tensor.depth,
            alone=alone[tensor.name], without=without[tensor.name],
        )
        for tensor in tensors
    ]  # fmt: skip
    subjects += [
        _Subject(
            name=layer.node, kind="layer", node=layer.node, depth=layer.depth,
            alone=_together([alone[tensor.name] for tensor in layer.tensors]),
            without=_together([without[tensor.name] for tensor in layer.tensors]),
            tensors=tuple(tensor.name for tensor in layer.tensors),
        )
        for layer in quantized_layers(network, plan, tensors)
    ]  # fmt: skip
    return subjects
