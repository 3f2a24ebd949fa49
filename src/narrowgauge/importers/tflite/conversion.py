"""A TFLite network to an ONNX network: inputs, operators in their order, outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.errors import ModelError
from narrowgauge.graph.shapes import infer_shapes
from narrowgauge.importers.imported import Converted
from narrowgauge.importers.tflite.arithmetic import ONNX_TYPES, activated
from narrowgauge.importers.tflite.emitter import Call, Emitter, Results, Row, Written
from narrowgauge.importers.tflite.litert import read_network
from narrowgauge.importers.tflite.network import Graph, Network, Operator, Tensor
from narrowgauge.importers.tflite.operators import OPERATORS
from narrowgauge.importers.tflite.pairs import complete_pairs
from narrowgauge.importers.tflite.variables import VARIABLE_OPERATORS, Variable, handles, initial_values

_OPSET = 21
"""The first whose QuantizeLinear knows 4 and 16 bits, which narrowgauge works on."""

_IR_VERSION = 10
"""The one that belongs to it (onnx.helper.VERSION_TABLE)."""

_REASONS = {
    "SVDF": "keeps a state from one run to the next, which ONNX has no place for",
    "WHILE": "runs other graphs of the file, which no importer of ours reads: convert the network with unrolled loops",
    "IF": "runs other graphs of the file, which no importer of ours reads",
    "DENSIFY": "unpacks sparse weights, which no importer of ours reads: convert the network without sparsity",
}
"""Why operators are refused that people may well have."""

_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BATCH_MATMUL")


def convert(source: str | os.PathLike[str], *, example: Any = None) -> Converted:
    """Read a .tflite file as an ONNX network.

    Inputs, outputs and inner values keep their tensors' names; inputs and outputs keep their layout, inner values
    between convolutions have their channels first. Real numbers go in and come out where the file has integers. What
    stands for real numbers is a pair of QuantizeLinear and DequantizeLinear, weights and biases are integers behind a
    DequantizeLinear, a bias in units of the product of its layer's scales, as the kernels take it. Fused activation
    functions bound the real numbers.

    Args:
        source: the path.
        example: not looked at: the file says all about its inputs.

    Raises:
        ModelError: the file is no TFLite network, damaged, or has an operator that is not known; the message names it.
        MissingDependencyError: ai-edge-litert is not installed.
    """
    network = read_network(source)
    try:
        return _converted(network)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from None


def _converted(network: Network) -> Converted:
    source, signed = _with_signed_weights(network.main)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": _OPSET}, name="main")
    emitter = Emitter(source=source, graph=graph)
    for number in source.inputs:
        _add_input(emitter, number)
    outputs = dict(zip(reversed(source.outputs), reversed(source.output_names()), strict=True))
    variables = initial_values(network)
    for operator in source.operators:
        if operator.name == "READ_VARIABLE":
            _add_variable(emitter, operator, variables, outputs)
        elif operator.name not in VARIABLE_OPERATORS:
            _add_operator(emitter, operator, outputs)
    for number, name in zip(source.outputs, source.output_names(), strict=True):
        _add_output(emitter, number, name)
    complete_pairs(emitter)
    for node in graph:
        node.name = node.outputs[0].name
    model = ir.Model(graph, ir_version=_IR_VERSION, producer_name="TFLite")
    infer_shapes(model)
    for number, value in zip(source.outputs, graph.outputs, strict=True):
        if value.shape is None:
            value.shape = _onnx_shape(source.tensors[number])
    notes = (*network.notes, *signed, *emitter.notes, *_notes(source, _not_called(network)))
    return Converted(model=model, notes=notes, target="tflite" if _quantized(source) else "")


def _add_input(emitter: Emitter, number: int) -> None:
    tensor = emitter.source.tensors[number]
    if number in emitter.homes:
        raise ModelError(f"tensor {tensor.name!r} is two inputs at once; the file is damaged")
    value = ir.Value(name=tensor.name, type=_onnx_type(tensor), shape=_onnx_shape(tensor))
    emitter.graph.inputs.append(value)
    emitter.homes[number] = ()
    emitter.values[number, ()] = value if tensor.encoding is None else emitter.rounded(tensor, value)


def _add_output(emitter: Emitter, number: int, name: str) -> None:
    tensor = emitter.source.tensors[number]
    value = emitter.value(number)
    if value.name != name:
        value = emitter.nodes("Identity", [value], {}, name=f"{name}_copy")[0]
        value.name = name
    value.type = _onnx_type(tensor)
    emitter.graph.outputs.append(value)


def _onnx_type(tensor: Tensor) -> ir.TensorType:
    if tensor.encoding is not None:
        return ir.TensorType(ir.DataType.FLOAT)
    if tensor.type not in ONNX_TYPES:
        raise ModelError(f"tensor {tensor.name!r}: expected elements of {', '.join(ONNX_TYPES)}, got {tensor.type}")
    return ir.TensorType(ONNX_TYPES[tensor.type])


def _onnx_shape(tensor: Tensor) -> ir.Shape:
    """The shape with names for the axes that may change; the first one is the batch."""
    return ir.Shape(
        [
            extent if extent is not None else "batch" if axis == 0 else f"{tensor.name}_axis_{axis}"
            for axis, extent in enumerate(tensor.extents)
        ]
    )


def _add_operator(emitter: Emitter, operator: Operator, outputs: dict[int, str]) -> None:
    row = OPERATORS.get(operator.name)
    if row is None:
        raise ModelError(f"{operator} {_REASONS.get(operator.name, 'is not known to this version of narrowgauge')}")
    if operator.version > row.newest:
        raise ModelError(f"{operator} is of version {operator.version}; known is up to version {row.newest}")
    if operator.kind and row.options and operator.kind != row.options:
        raise ModelError(f"{operator} has {operator.kind}; expected {row.options}: the file is damaged")
    if not operator.outputs:
        raise ModelError(f"{operator} has no output; the file is damaged")
    call = Call(emitter=emitter, operator=operator, row=row)
    try:
        written = _written(_direct(call, row) if row.emit is None else row.emit(call))
    except (IndexError, KeyError, ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise call.refusal(f"its inputs and options do not go together ({error}); the file is damaged") from None
    if len(written) != len(operator.outputs):
        raise call.refusal(f"expected {len(written)} outputs, got {len(operator.outputs)}")
    for number, one in zip(operator.outputs, written, strict=True):
        value = activated(call, one.value) if row.fuses else one.value
        emitter.write(number, value, one.order, output=outputs.get(number, ""))


def _add_variable(
    emitter: Emitter, operator: Operator, variables: Mapping[Variable, npt.NDArray[Any]], outputs: dict[int, str]
) -> None:
    """Read a variable as the constant that it is."""
    named = handles(emitter.source)
    handle = operator.inputs[0] if operator.inputs else None
    if handle not in named or named[handle] not in variables or len(operator.outputs) != 1:
        raise ModelError(f"{operator} reads a variable that nothing has initialized")
    (number,) = operator.outputs
    tensor = emitter.source.tensors[number]
    if tensor.encoding is not None:
        raise ModelError(f"{operator}: expected a variable of real numbers, got {tensor.type}")
    value = emitter.constant(f"{tensor.name}_initial", variables[named[handle]])
    copy = emitter.nodes("Identity", [value], {}, name=str(value.name))[0]
    emitter.write(number, copy, output=outputs.get(number, ""))


def _direct(call: Call, row: Row) -> Results:
    """One node of the counterpart, with the same inputs."""
    order = call.free_order() if row.any_layout else ()
    inputs = [call.read(number, order) for number in range(len(call.operator.inputs))]
    attributes = {name: call.option(option) for name, option in row.attributes.items()} | dict(row.fixed)
    return Written(value=call.node(row.onnx, *inputs, **attributes), order=order)


def _written(results: Results) -> list[Written]:
    every = results if isinstance(results, list) else [results]
    return [one if isinstance(one, Written) else Written(value=one) for one in every]


def _with_signed_weights(graph: Graph) -> tuple[Graph, list[str]]:
    """Take bytes for signed ones where old converters wrote so.

    Weights of type UINT8 and zero point 0 beside float activations are int8 numbers: the kernels read them so
    (fully_connected.cc, EvalHybrid; measured on LiteRT 2.3), because TFLite had no INT8 at first.
    """
    tensors, changed = list(graph.tensors), []
    for operator in graph.operators:
        if operator.name not in _WEIGHTED or not _is_float(graph.tensors, operator, 0):
            continue
        for index in operator.inputs[1:]:
            tensor = graph.tensors[index] if index is not None else None
            if index is None or tensor is None or tensor.type != "UINT8" or tensor.quantization is None:
                continue
            if not tensor.quantization.zero_point.any():
                tensors[index] = replace(tensor, type="INT8")
                changed.append(tensor.name)
    if not changed:
        return graph, []
    note = f"weights written as bytes are read as signed ones, as the kernels do: {', '.join(map(repr, changed))}"
    return replace(graph, tensors=tuple(tensors)), [note]


def _not_called(network: Network) -> int:
    """Count the graphs besides the main one that no operator calls: other signatures of the file."""
    called = {
        int(operator.options.get("init_subgraph_index", 0))
        for operator in network.main.operators
        if operator.name == "CALL_ONCE"
    }
    return len(set(range(1, len(network.graphs))) - called)


def _quantized(graph: Graph) -> bool:
    return any(tensor.encoding is not None for tensor in graph.tensors)


def _notes(source: Graph, others: int) -> list[str]:
    """Say where real numbers stand for the file's integers, and which layers round their activations at run time."""
    notes = []
    if others:
        notes.append(f"the file has {others} more graphs, which the first does not call; only the first is imported")
    ends = [source.tensors[number] for number in (*source.inputs, *source.outputs)]
    integers = [tensor for tensor in ends if tensor.encoding is not None]
    if integers:
        names = ", ".join(f"{tensor.name!r} ({tensor.type})" for tensor in integers)
        notes.append(f"real numbers go in and come out where the file has integers: {names}")
    hybrid = [
        operator
        for operator in source.operators
        if operator.name in _WEIGHTED
        and _is_float(source.tensors, operator, 0)
        and _has_levels(source.tensors, operator)
    ]
    if hybrid:
        layers = "1 layer has" if len(hybrid) == 1 else f"{len(hybrid)} layers have"
        notes.append(
            f"{layers} integer weights and float activations, which TFLite's own kernels round at run "
            "time; here only the weights are rounded"
        )
    return notes


def _is_float(tensors: tuple[Tensor, ...], operator: Operator, number: int) -> bool:
    index = operator.inputs[number] if operator.inputs else None
    return index is not None and tensors[index].type == "FLOAT32"


def _has_levels(tensors: tuple[Tensor, ...], operator: Operator) -> bool:
    return any(index is not None and tensors[index].encoding is not None for index in operator.inputs[1:])
