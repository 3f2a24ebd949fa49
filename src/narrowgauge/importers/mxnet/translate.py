"""An MXNet graph, node by node, to an ONNX network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.errors import ModelError
from narrowgauge.graph.edits import remove_unused
from narrowgauge.importers.mxnet import elementwise, layers, quantized, recurrent, reshaping
from narrowgauge.importers.mxnet.attributes import Attributes
from narrowgauge.importers.mxnet.builder import Builder
from narrowgauge.importers.mxnet.call import Bound, Call, Item, Levels, Rule
from narrowgauge.importers.mxnet.inputs import shape_of_input
from narrowgauge.importers.mxnet.symbol import VARIABLE, Symbol

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]

RULES: Mapping[str, Rule] = {
    **layers.RULES, **elementwise.RULES, **reshaping.RULES, **recurrent.RULES, **quantized.RULES,
}  # fmt: skip
"""One row for each operator of MXNet."""

_IR_VERSION = 10

_SENSELESS = (ArithmeticError, AssertionError, LookupError, MemoryError, TypeError, ValueError)
"""What a rule runs into where attributes contradict each other or the shapes, each in its own way."""

_BEHIND_DATA = range(1, 8)
_TRAINED = {
    **dict.fromkeys(
        ("Convolution", "Convolution_v1", "Deconvolution", "FullyConnected", "BatchNorm", "BatchNorm_v1",
         "CuDNNBatchNorm", "InstanceNorm", "LayerNorm", "GroupNorm", "Embedding", "_contrib_quantized_conv",
         "_contrib_quantized_fully_connected", "_contrib_quantized_batch_norm", "_sg_mkldnn_fully_connected",
         "_sg_onednn_fully_connected"),
        _BEHIND_DATA,
    ),
    "_sg_mkldnn_conv": range(1, 2),  # behind them a summand may come
    "_sg_onednn_conv": range(1, 2),
}  # fmt: skip
"""Layers: numbers of the inputs that were trained. A variable there that the .params file lacks is no input of the
network, but a parameter that is missing."""

_KINDS = {
    "0": ir.DataType.FLOAT, "1": ir.DataType.DOUBLE, "2": ir.DataType.FLOAT16, "3": ir.DataType.UINT8,
    "4": ir.DataType.INT32, "5": ir.DataType.INT8, "6": ir.DataType.INT64,
}  # fmt: skip


def translate(
    symbol: Symbol, parameters: Mapping[str, Array], shapes: Mapping[str, Shape], where: str
) -> tuple[ir.Model, list[str]]:
    """Translate a network.

    Args:
        symbol: the graph.
        parameters: its trained arrays by name.
        shapes: of inputs, where known; of others they are derived.
        where: what to call the file in messages.

    Returns:
        The network, and notes.

    Raises:
        ModelError: an operator is not known, a parameter or the shape of an input is missing, or shapes do not fit.
    """
    translation = _Translation(symbol=symbol, parameters=parameters, shapes=shapes, where=where)
    needed = symbol.needed(layers.LABELLED)
    translation.refuse_unknown(needed)
    for number in needed:
        translation.add(number)
    translation.add_outputs()
    graph = translation.builder.graph
    unused = sorted(set(shapes) - {str(value.name) for value in graph.inputs})
    notes = [f"shapes were given for {', '.join(unused)}, which are no inputs of the network"] if unused else []
    model = ir.Model(graph, ir_version=_IR_VERSION, producer_name="narrowgauge")
    remove_unused(model)
    return model, [*notes, *translation.builder.notes()]


def inputs_of(symbol: Symbol, parameters: Mapping[str, Array]) -> list[str]:
    """List the network's inputs: variables that are needed outside training and that are no parameters."""
    nodes = [symbol.nodes[number] for number in symbol.needed(layers.LABELLED)]
    return [node.name for node in nodes if node.operator == VARIABLE and node.name not in parameters]


@dataclass(kw_only=True, slots=True)
class _Translation:
    """A network on its way.

    Attributes:
        symbol: see `translate`, as the next three.
        parameters: by name.
        shapes: of inputs.
        where: the file.
        builder: the ONNX graph so far.
        items: what each output (number of a node, and of its output) has become.
        readers: see `Symbol.readers`.
    """

    symbol: Symbol
    parameters: Mapping[str, Array]
    shapes: Mapping[str, Shape]
    where: str
    builder: Builder = field(default_factory=Builder)
    items: dict[tuple[int, int], Item] = field(default_factory=dict)
    readers: Mapping[int, Sequence[tuple[int, int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.readers = self.symbol.readers()

    def refuse_unknown(self, needed: Sequence[int]) -> None:
        """Refuse operators that have no rule, before anything is translated."""
        for number in needed:
            node = self.symbol.nodes[number]
            if node.operator != VARIABLE and node.operator not in RULES:
                raise ModelError(
                    f"{self.where}: the operator {node.operator!r} of the node {node.name!r} is not supported; "
                    f"expected one of the {len(RULES)} that the importer knows; cut the network before it "
                    "(`symbol.get_internals()`)"
                )

    def add(self, number: int) -> None:
        """Translate one node."""
        node = self.symbol.nodes[number]
        if node.operator == VARIABLE:
            self.items[number, 0] = self.variable(number)
            return
        attributes = Attributes(texts=node.attributes, where=f"{self.where}: {node.operator} {node.name!r}")
        call = Call(
            node=node, items=self.read(number), attributes=attributes, builder=self.builder,
            version=self.symbol.version,
        )  # fmt: skip
        try:
            results = RULES[node.operator](call)
        except _SENSELESS as error:
            raise call.refusal(
                f"what its attributes {dict(node.attributes)} ask for makes no sense ({error}); the file is damaged"
            ) from error
        for place, item in enumerate(results):
            self.items[number, place] = item
            if isinstance(item, ir.Value):
                call.claim(item, str(place) if len(results) > 1 else "")

    def variable(self, number: int) -> ir.Value:
        """Return a parameter or an input of the network."""
        node = self.symbol.nodes[number]
        if node.name in self.parameters:
            return self.builder.constant(node.name, self.parameters[node.name])
        for reader, place in self.readers[number]:
            layer = self.symbol.nodes[reader]
            if place in _TRAINED.get(layer.operator, ()):
                raise ModelError(
                    f"{self.where}: the parameter {node.name!r} of {layer.operator} {layer.name!r} is not in the "
                    f".params file, which has {len(self.parameters)} arrays; give the file that belongs to this symbol"
                )
        kind = _KINDS.get(node.attributes.get("__dtype__", "0"), ir.DataType.FLOAT)
        shape = shape_of_input(self.symbol, self.readers, number, self.parameters, self.shapes)
        if shape is None:
            raise ModelError(
                f"{self.where}: the shape of the input {node.name!r} is written nowhere in the file; expected example "
                f"inputs or the user's data, or a dictionary of shapes such as {{{node.name!r}: (None, 3, 224, 224)}}"
            )
        return self.builder.input(node.name, kind, shape)

    def read(self, number: int) -> list[Item]:
        """Return what a node reads; labels are left out."""
        node = self.symbol.nodes[number]
        found = []
        for entry in node.inputs[: layers.LABELLED.get(node.operator)]:
            if entry not in self.items:
                producer = self.symbol.nodes[entry[0]]
                raise ModelError(
                    f"{self.where}: {node.operator} {node.name!r} reads output {entry[1]} of {producer.operator} "
                    f"{producer.name!r}, which is not supported (it serves training) or does not exist"
                )
            found.append(self.items[entry])
        return found

    def add_outputs(self) -> None:
        """Make the heads the network's outputs."""
        for number, output in self.symbol.heads:
            node, item = self.symbol.nodes[number], self.items.get((number, output))
            if item is None:
                raise ModelError(
                    f"{self.where}: the network returns output {output} of {node.name!r}, which is not supported"
                )
            if isinstance(item, Bound):
                continue  # the thresholds of a quantized output: they are in the network's QuantizeLinear
            value = item if isinstance(item, ir.Value) else item.real
            if value.producer() is None or value.is_graph_output():
                value = self.builder.add("Identity", [value], f"{node.name}_returned")
            elif isinstance(item, Levels):
                self.builder.return_rounded(value, f"{node.name}_output")
            self.builder.graph.outputs.append(value)
