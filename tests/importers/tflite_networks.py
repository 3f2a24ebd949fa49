"""Build small .tflite networks, and run them in LiteRT."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from narrowgauge.importers.tflite.operators import OPERATORS

TYPES = {
    "float32": "FLOAT32", "float16": "FLOAT16", "int8": "INT8", "uint8": "UINT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class T:
    """A tensor; `data` makes it a constant, `scale` an integer one that stands for real numbers.

    `blocks` are the number of the tensor that has the scales of its blocks, of the one that has their zero points (-1
    for none), and their size.
    """

    shape: Sequence[int]
    type: str = "FLOAT32"
    data: np.ndarray | None = None
    scale: Sequence[float] = ()
    zero_point: Sequence[int] = ()
    axis: int = 0
    blocks: tuple[int, int, int] | None = None
    signature: Sequence[int] | None = None
    variable: bool = False
    name: str = ""


def constant(array: Any, dtype: Any = None, **fields: Any) -> T:
    """A constant tensor."""
    array = np.array(array, dtype=dtype)
    fields = {"type": TYPES[array.dtype.name]} | fields
    return T(shape=array.shape, data=array, **fields)


def levels(rng: np.random.Generator, shape: Sequence[int], **fields: Any) -> T:
    """A constant tensor of random int8 levels."""
    return constant(rng.integers(-127, 128, shape), np.int8, **fields)


@dataclass(frozen=True, kw_only=True)
class Op:
    """An operator: numbers of its tensors, -1 for one left out."""

    name: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    options: dict[str, Any]
    version: int = 1


def packed(tensors: Sequence[T], operators: Sequence[Op], inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
    """Write a network of one graph."""
    return packed_graphs([(tensors, operators, inputs, outputs)])


def packed_graphs(graphs: Sequence[tuple[Sequence[T], Sequence[Op], Sequence[int], Sequence[int]]]) -> bytes:
    """Write a network of several graphs."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT()
    model.version = 3
    model.operatorCodes, model.subgraphs, model.buffers = [], [], [schema.BufferT()]
    for tensors, operators, inputs, outputs in graphs:
        graph = schema.SubGraphT()
        graph.inputs, graph.outputs = list(inputs), list(outputs)
        graph.tensors = [_tensor(schema, model, number, tensor) for number, tensor in enumerate(tensors)]
        graph.operators = [_operator(schema, model, operator) for operator in operators]
        model.subgraphs.append(graph)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor(schema: Any, model: Any, number: int, tensor: T) -> Any:
    made = schema.TensorT()
    made.name = tensor.name or f"t{number}"
    made.shape, made.shapeSignature = list(tensor.shape), tensor.signature
    made.hasRank = True
    made.type = getattr(schema.TensorType, tensor.type)
    made.isVariable = tensor.variable
    made.buffer = 0
    if tensor.data is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), dtype=np.uint8)
        made.buffer = len(model.buffers)
        model.buffers.append(buffer)
    if len(tensor.scale):
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale = [float(scale) for scale in tensor.scale]
        made.quantization.zeroPoint = list(tensor.zero_point or [0] * len(tensor.scale))
        made.quantization.quantizedDimension = tensor.axis
    if tensor.blocks is not None:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        made.quantization.details = schema.BlockwiseQuantizationT()
        details = made.quantization.details
        details.scales, details.zeroPoints, details.blockSize = tensor.blocks
    return made


def _operator(schema: Any, model: Any, operator: Op) -> Any:
    number = getattr(schema.BuiltinOperator, operator.name)
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), operator.version
    made = schema.OperatorT()
    made.opcodeIndex = len(model.operatorCodes)
    model.operatorCodes.append(code)
    made.inputs, made.outputs = list(operator.inputs), list(operator.outputs)
    kinds = {"VAR_HANDLE": "VarHandleOptions", "CALL_ONCE": "CallOnceOptions"}
    kind = OPERATORS[operator.name].options if operator.name in OPERATORS else kinds.get(operator.name, "")
    if kind:
        made.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        made.builtinOptions = getattr(schema, f"{kind}T")()
        for name, value in operator.options.items():
            assert hasattr(made.builtinOptions, name), name
            setattr(made.builtinOptions, name, value)
    return made


def one_operator(
    path: Path,
    name: str,
    inputs: Sequence[T | None],
    outputs: Sequence[T],
    feed: dict[str, np.ndarray],
    *,
    version: int = 1,
    **options: Any,
) -> list[np.ndarray]:
    """Write a network of one operator and run it in LiteRT; what is not constant is an input.

    The inputs have the names `t0`, `t1`, ... in their order, left out ones not counted. The outputs get the shapes that
    LiteRT gives them.
    """
    tensors = [tensor for tensor in inputs if tensor is not None]
    numbers = iter(range(len(tensors)))
    read = [-1 if tensor is None else next(numbers) for tensor in inputs]
    written = list(range(len(tensors), len(tensors) + len(outputs)))
    fed = [n for n, tensor in enumerate(tensors) if tensor.data is None and not tensor.variable]
    operator = Op(name=name, inputs=read, outputs=written, options=options, version=version)
    path.write_bytes(packed([*tensors, *outputs], [operator], fed, written))
    results = run_litert(path, feed)
    made = [replace(one, shape=result.shape) for one, result in zip(outputs, results, strict=True)]
    path.write_bytes(packed([*tensors, *made], [operator], fed, written))
    return results


def opened(path: Path, **options: Any) -> Any:
    """Open a network in LiteRT, without its own prints."""
    from ai_edge_litert.interpreter import Interpreter

    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        interpreter = Interpreter(model_path=str(path), num_threads=1, **options)
        interpreter.allocate_tensors()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
    return interpreter


def run_litert(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run a network in LiteRT on the arrays that it takes itself, integers where the file has them."""
    interpreter = opened(path)
    details = {one["name"]: one["index"] for one in interpreter.get_input_details()}
    for name, array in feed.items():
        interpreter.set_tensor(details[name], array)
    interpreter.invoke()
    return [interpreter.get_tensor(one["index"]) for one in interpreter.get_output_details()]
