"""Plain records to the bytes of a .tflite file, with the flatbuffer schema that ai-edge-litert carries.

The inverse of `importers.tflite.litert`. Equal constants are one buffer; the same records give the same bytes.

Schema: https://github.com/google-ai-edge/LiteRT, tflite/converter/schema/schema.fbs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.errors import MissingDependencyError, TargetError
from narrowgauge.importers.tflite.litert import ENUMERATIONS, IDENTIFIER
from narrowgauge.importers.tflite.network import Graph, Operator, Tensor

_VERSION = 3
"""Of the schema."""

_LARGEST = 2**31 - 1
"""Bytes of a flatbuffer, whose offsets are signed 32-bit numbers."""

_OLD_CODES = 127
"""Operators' numbers up to here stand in the old field of one byte, too; greater ones are named by this there."""

_ALIGNMENT = 16
"""Bytes; schema.fbs: `data:[ubyte] (force_align: 16)`."""

_SPARE = 65536
"""Bytes that a builder has at first besides the weights; it grows."""

SIGNATURE = "serving_default"
"""Key of the one signature, as TensorFlow's converter names it."""


def serialized(
    graph: Graph, *, inputs: Mapping[str, int], outputs: Mapping[str, int], metadata: Mapping[str, bytes],
    description: str,
) -> bytes:  # fmt: skip
    """Write a network of one graph.

    Args:
        graph: the graph.
        inputs: names of the signature -> numbers of tensors.
        outputs: likewise.
        metadata: name -> content.
        description: of the file.

    Raises:
        TargetError: it would be larger than a flatbuffer can be.
        MissingDependencyError: ai-edge-litert is not installed.
    """
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        raise MissingDependencyError(
            'writing TFLite networks needs ai-edge-litert: pip install "narrowgauge[litert]"'
        ) from None
    size = sum(tensor.data.size for tensor in graph.tensors if tensor.data is not None)
    if size > _LARGEST * 15 // 16:
        raise TargetError(f"the network has {size} bytes of weights; a TFLite file holds less than {_LARGEST} bytes")
    writer = _Writer(schema)
    model = writer.model(graph, description)
    model.signatureDefs = [writer.signature(inputs, outputs)]
    model.metadata = [writer.metadata(name, content) for name, content in metadata.items()]
    model.buffers = writer.buffers
    builder = _sharing(flatbuffers.Builder)(size + _SPARE)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


class _Writer:
    """Collects buffers, and the codes of operators, while records are made."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.buffers: list[Any] = [schema.BufferT()]  # buffer 0 is that of tensors without numbers
        self.known: dict[bytes, int] = {}
        self.codes: dict[tuple[str, int], int] = {}

    def model(self, graph: Graph, description: str) -> Any:
        model = self.schema.ModelT()
        model.version, model.description = _VERSION, description
        made = self.schema.SubGraphT()
        made.name = "main"
        made.tensors = [self.tensor(tensor) for tensor in graph.tensors]
        made.inputs, made.outputs = _integers(graph.inputs), _integers(graph.outputs)
        made.operators = [self.operator(operator) for operator in graph.operators]
        model.subgraphs = [made]
        model.operatorCodes = [self.code(name, version) for name, version in self.codes]
        return model

    def buffer(self, data: npt.NDArray[np.uint8]) -> int:
        key = hashlib.sha256(data.tobytes()).digest()
        if key not in self.known:
            self.known[key] = len(self.buffers)
            self.buffers.append(_aligned(self.schema, data))
        return self.known[key]

    def tensor(self, tensor: Tensor) -> Any:
        made = self.schema.TensorT()
        made.name, made.hasRank = tensor.name, True
        made.shape = _integers(tensor.shape)
        if tensor.dynamic:
            made.shapeSignature = _integers(-1 if extent is None else extent for extent in tensor.extents)
        made.type = getattr(self.schema.TensorType, tensor.type)
        made.isVariable = tensor.variable
        made.buffer = 0 if tensor.data is None else self.buffer(tensor.data)
        if tensor.quantization is not None:
            made.quantization = self.schema.QuantizationParametersT()
            made.quantization.scale = tensor.quantization.scale.astype(np.float32)
            made.quantization.zeroPoint = tensor.quantization.zero_point.astype(np.int64)
            made.quantization.quantizedDimension = tensor.quantization.axis
        return made

    def operator(self, operator: Operator) -> Any:
        made = self.schema.OperatorT()
        made.opcodeIndex = self.codes.setdefault((operator.name, operator.version), len(self.codes))
        made.inputs = _integers(-1 if number is None else number for number in operator.inputs)
        made.outputs = _integers(operator.outputs)
        if operator.intermediates:
            made.intermediates = _integers(operator.intermediates)
        if operator.kind:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, operator.kind)
            made.builtinOptions = self.options(operator)
        return made

    def options(self, operator: Operator) -> Any:
        made = getattr(self.schema, f"{operator.kind}T")()
        for name, value in operator.options.items():
            first, *others = name.split("_")
            field = first + "".join(word.capitalize() for word in others)
            if field not in vars(made):
                raise TargetError(f"{operator}: {operator.kind} of this ai-edge-litert has no option {name!r}")
            enumeration = "MirrorPadMode" if operator.kind == "MirrorPadOptions" else ENUMERATIONS.get(name)
            if enumeration is not None:
                setattr(made, field, getattr(getattr(self.schema, enumeration), value))
            else:
                setattr(made, field, _integers(value) if isinstance(value, list | tuple) else value)
        return made

    def code(self, name: str, version: int) -> Any:
        made = self.schema.OperatorCodeT()
        made.builtinCode = getattr(self.schema.BuiltinOperator, name)
        made.deprecatedBuiltinCode = min(made.builtinCode, _OLD_CODES)
        made.version = version
        return made

    def signature(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
        made = self.schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = SIGNATURE, 0
        made.inputs, made.outputs = self.named(inputs), self.named(outputs)
        return made

    def named(self, tensors: Mapping[str, int]) -> list[Any]:
        every = []
        for name, number in tensors.items():
            made = self.schema.TensorMapT()
            made.name, made.tensorIndex = name, number
            every.append(made)
        return every

    def metadata(self, name: str, content: bytes) -> Any:
        made = self.schema.MetadataT()
        made.name, made.buffer = name, self.buffer(np.frombuffer(content, dtype=np.uint8))
        return made


def _integers(numbers: Any) -> npt.NDArray[np.int32]:
    return np.array(list(numbers), dtype=np.int32)


def _sharing(builder: Any) -> Any:
    """Make a kind of builder that writes equal vectors once: zero points, one for each channel, are most of them."""

    class Sharing(builder):  # type: ignore[misc]
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.written: dict[tuple[str, bytes], Any] = {}

        def CreateNumpyVector(self, vector: npt.NDArray[Any]) -> Any:  # noqa: N802
            key = (vector.dtype.str, vector.tobytes())
            if key not in self.written:
                self.written[key] = super().CreateNumpyVector(vector)
            return self.written[key]

    return Sharing


def _aligned(schema: Any, data: npt.NDArray[np.uint8]) -> Any:
    """Make a buffer whose bytes begin where kernels can read them in place; the generated code does not see to it."""

    class Aligned(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head = builder.head - len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data.tobytes()
            content = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, content)
            return schema.BufferEnd(builder)

    return Aligned(data=data)
