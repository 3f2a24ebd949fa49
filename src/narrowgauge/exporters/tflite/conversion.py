"""The network and its plan to plain records: inputs, nodes in their order, outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.errors import TargetError
from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.emitter import Emitter
from narrowgauge.exporters.tflite.forms import Levels, channels_last, extents_of, identity, levels_of, permuted, type_of
from narrowgauge.exporters.tflite.recurrent_layers import prepared
from narrowgauge.exporters.tflite.steps import steps_of
from narrowgauge.exporters.tflite.tidying import tidied
from narrowgauge.exporters.tflite.writers import ANY_LAYOUT, CHANNELS_LAST, WRITERS, integer_types
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import is_float
from narrowgauge.importers.tflite.network import Graph

_IMAGES_RANK = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """What differs between the files that a network can become.

    Attributes:
        integer_ends: inputs and outputs that are rounded are integers, without QUANTIZE and DEQUANTIZE at the ends.
        halves: constants of real numbers are float16.
    """

    integer_ends: bool = False
    halves: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What a network became.

    Attributes:
        graph: plain records.
        inputs: name in the network -> number of a tensor.
        outputs: likewise.
        layouts: which tensors have another order than the values of their names, see `Conversion.metadata`.
        notes: what a person should know.
    """

    graph: Graph
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    layouts: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def metadata(self) -> str:
        """Where tensors and the values of their names differ in the order of numbers, as JSON.

        `channels_last` lists tensors whose axis 1 is at the end. `orders` says of others which axis of the value each
        axis of the tensor is. `flattened` says of values of two axes which channels and spatial extents the columns are
        of; in the tensor the channels are the innermost of them.
        """
        return json.dumps(self.layouts, separators=(",", ":"))

    def flattened(self, network: ir.Model) -> dict[str, list[int]]:
        """Find the layers that read a value of which `layouts` says how its columns lie: name -> that."""
        values = self.layouts.get("flattened", {})
        readers = {str(node.name): str(node.inputs[0].name) for node in network.graph if node.inputs and node.inputs[0]}
        return {name: values[value] for name, value in readers.items() if value in values}


def convert(network: ir.Model, plan: Plan, style: Style | None = None) -> Conversion:
    """Write a float network and its plan as a TFLite graph.

    Tensors have the names of the network's values: `x` holds the levels of the value `x` where the plan has an encoding
    for it, and then `x_float` its real numbers; without one `x` does.

    Args:
        network: simplified, shapes inferred; it is not changed.
        plan: its encodings; an empty one gives a float file.
        style: what kind of file.

    Raises:
        TargetError: TFLite has no operator for a node, or no such numbers; the message names the node or value.
    """
    chosen = style or Style()
    network, plan = prepared(network, plan)
    network = network.clone()
    emitter = Emitter(graph=network.graph, plan=plan, halves=chosen.halves)
    steps = list(steps_of(network.graph, plan, integer_types))
    integer = {str(step.node.name) for step in steps if step.integer}
    inputs = {
        str(value.name): _add_input(emitter, value, chosen, integer)
        for value in network.graph.inputs
        if not value.is_initializer()
    }
    for step in steps:
        _write(Call(emitter=emitter, step=step))
    outputs = {str(value.name): _output(emitter, value, chosen) for value in network.graph.outputs}
    graph, numbers = tidied(
        Graph(
            tensors=tuple(emitter.tensors), inputs=tuple(inputs.values()), outputs=tuple(outputs.values()),
            operators=tuple(emitter.operators),
        )
    )  # fmt: skip
    return Conversion(
        graph=graph,
        inputs={name: numbers[number] for name, number in inputs.items()},
        outputs={name: numbers[number] for name, number in outputs.items()},
        layouts=_layouts(emitter, frozenset(numbers)),
        notes=tuple(emitter.notes),
    )


def _write(call: Call) -> None:
    node = call.node
    row = WRITERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if row is None:
        domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
        raise TargetError(
            f"TFLite cannot run node {node.name!r} ({domain}{node.op_type}): it has no such operator, and none of ours "
            "stands for it"
        )
    row.write(call)


def _add_input(emitter: Emitter, value: ir.Value, style: Style, integer: set[str]) -> int:
    """Add an input: channels last where only operators read it that want it so, as TFLite's images are."""
    extents = extents_of(value)
    order = identity(len(extents))
    last = channels_last(len(extents))
    turned = permuted(extents, last)
    # Whoever feeds the file tells the layouts apart by their shapes alone.
    if len(extents) == _IMAGES_RANK and None not in extents[1:] and turned != extents and _is_image(value):
        order = last
    levels = _input_levels(emitter, value, integer) if style.integer_ends else None
    number = emitter.tensor(emitter.own_name(value, levels), type_of(value), permuted(extents, order), levels)
    emitter.settle(value, order, levels, number)
    return number


def _input_levels(emitter: Emitter, value: ir.Value, integer: set[str]) -> Levels | None:
    """Return an input's encoding if every node that reads it does so in integers, and in the same."""
    found = set(_read_levels(emitter, value, integer))
    if len(found) == 1 and None not in found:
        return found.pop()
    if emitter.plan.encodings:
        note = f"the input {value.name!r} stays float, since not all that reads it does so in one encoding"
        emitter.notes[note] = None
    return None


def _read_levels(emitter: Emitter, value: ir.Value, integer: set[str]) -> Iterator[Levels | None]:
    """Yield the encodings that a value is read in; None where it is read, or returned, in real numbers.

    A Transpose or Identity of a value without an encoding is read as the value in another order.
    """
    encoding = emitter.plan.encodings.get(str(value.name))
    levels = levels_of(encoding, str(value.name)) if isinstance(encoding, Encoding) else None
    if value.is_graph_output():
        yield None
    for use in value.uses():
        if not is_operator(use.node, "Transpose", "Identity"):
            yield levels if str(use.node.name) in integer else None
        elif levels is None:
            yield from _read_levels(emitter, use.node.outputs[0], integer)
        else:
            yield levels


def _is_image(value: ir.Value) -> bool:
    """Whether all that read a value want its channels at the end, or do not mind and their readers do."""
    readers = [use.node for use in value.uses()]
    if not readers or value.is_graph_output():
        return False
    return all(
        node.op_type in CHANNELS_LAST
        or (
            node.op_type in ANY_LAYOUT
            and len(extents_of(node.outputs[0])) == _IMAGES_RANK
            and _is_image(node.outputs[0])
        )
        for node in readers
    )


def _output(emitter: Emitter, value: ir.Value, style: Style) -> int:
    """Return the tensor of an output, in the network's order; in real numbers unless integers are asked for."""
    order = identity(len(extents_of(value)))
    root, _ = emitter.source(value, order)
    if constant_array(root) is not None:
        return emitter.read(value, order, None)
    home = emitter.homes.get(str(root.name))
    if home is None:
        raise TargetError(f"the output {value.name!r} is written by no node")
    return emitter.read(value, order, home.levels if style.integer_ends or not is_float(value) else None)


def _layouts(emitter: Emitter, kept: frozenset[int]) -> dict[str, Any]:
    values = {str(value.name): value for value in emitter.graph.inputs}
    values |= {str(value.name): value for node in emitter.graph for value in node.outputs}
    last, orders = [], {}
    for number, order in emitter.orders.items():
        if number not in kept:
            continue
        name = emitter.tensors[number].name.removesuffix("_float")
        name = emitter.tensors[number].name if name not in values else name
        if name not in values or order == identity(len(order)):
            continue
        if order == channels_last(len(order)):
            last.append(emitter.tensors[number].name)
        else:
            orders[emitter.tensors[number].name] = list(order)
    flattened = {name: list(shape) for name, shape in emitter.flattened.items() if name in emitter.named}
    found: dict[str, Any] = {"channels_last": last}
    if orders:
        found["orders"] = orders
    if flattened:
        found["flattened"] = flattened
    return found
