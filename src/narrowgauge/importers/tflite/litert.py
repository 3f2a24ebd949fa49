"""Read a .tflite file into plain data, with the flatbuffer schema that ai-edge-litert carries.

A flatbuffer is a heap of offsets. Nothing of it is trusted: the generated accessors read through Python's `struct` and
numpy, which refuse what lies outside the file, lengths are compared with the file's size before anything is made of
them, and numbers of tensors, buffers and axes are checked here, so that whatever reads a `Network` can rely on them.

Schema: https://github.com/google-ai-edge/LiteRT, tflite/converter/schema/schema.fbs.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.errors import MissingDependencyError, ModelError
from narrowgauge.importers.tflite.network import Graph, Network, Operator, Quantization, Tensor, unique_names

IDENTIFIER = b"TFL3"
"""File identifier of the schema, bytes 4 to 8."""

_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])|(?<=[A-Z])([A-Z])(?=[a-z])")

ENUMERATIONS = {
    "fused_activation_function": "ActivationFunctionType",
    "padding": "Padding",
    "weights_format": "FullyConnectedOptionsWeightsFormat",
    "out_type": "TensorType",
    "output_type": "TensorType",
    "in_data_type": "TensorType",
    "out_data_type": "TensorType",
    "quantized_bias_type": "TensorType",
}
"""Option -> the enumeration that its number is of; MirrorPadOptions.mode is the only one known by its record."""

_PARSER_ERRORS = (struct.error, ValueError, IndexError, TypeError, AttributeError, OverflowError, MemoryError, KeyError)
"""What the generated accessors and numpy raise over offsets that lead nowhere."""


def read_network(path: str | os.PathLike[str]) -> Network:
    """Read a .tflite file.

    Raises:
        ModelError: there is no such file, or it is no TFLite network, or it is damaged.
        MissingDependencyError: ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        raise MissingDependencyError(
            f'{path}: reading TFLite networks needs ai-edge-litert: pip install "narrowgauge[litert]"'
        ) from None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; give the path of a .tflite file") from None
    if data[4:8] != IDENTIFIER:
        raise ModelError(
            f"{path}: expected a TFLite network, which has {IDENTIFIER.decode()} in bytes 4 to 8, got {data[4:8]!r} "
            f"({len(data)} bytes)"
        )
    try:
        return _Reader(data=data, schema=schema).network()
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except _PARSER_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{path} is truncated or damaged ({len(data)} bytes): {reason}; copy or convert it again"
        ) from None


@dataclass(kw_only=True, slots=True)
class _Reader:
    data: bytes
    schema: Any
    left: int = field(init=False)  # elements that vectors may still have: a file has no more than it has bytes
    buffers: int = 0
    biases: list[str] = field(default_factory=list)  # that record scales along an axis that they do not have

    def __post_init__(self) -> None:
        self.left = 4 * len(self.data)  # vectors may be shared; offsets that run in circles end here

    def network(self) -> Network:
        model = self.schema.Model.GetRootAs(self.data)
        self.buffers = self.counted(model.BuffersLength())
        codes = [model.OperatorCodes(number) for number in range(self.counted(model.OperatorCodesLength()))]
        names = [self.operator_name(code) for code in codes]
        graphs = [
            self.graph(model, model.Subgraphs(number), list(zip(names, codes, strict=True)))
            for number in range(self.counted(model.SubgraphsLength()))
        ]
        if not graphs:
            raise ModelError("the file holds no graph; it is damaged or incomplete, convert the network again")
        return Network(graphs=tuple(graphs), notes=self.notes())

    def notes(self) -> tuple[str, ...]:
        if not self.biases:
            return ()
        return (
            f"the file is malformed: {len(self.biases)} biases record scales along an axis that they do not have, the "
            f"first is {self.biases[0]!r}; the kernels take the product of the input's and the weights' scales, and so "
            "did the import; LiteRT refuses such a file",
        )

    def counted(self, length: int) -> int:
        """Return a vector's length, once it is known that the file can have that many elements."""
        self.left -= length
        if self.left < 0:
            raise ValueError(f"a list of {length} elements does not fit into the file")
        return length

    def operator_name(self, code: Any) -> str:
        # Numbers from 127 on do not fit into the old field, which then holds 127.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = _name_of(self.schema.BuiltinOperator, number)
        if name == "CUSTOM":
            return f"CUSTOM {(code.CustomCode() or b'').decode('utf-8', 'replace')}"
        return name

    def graph(self, model: Any, graph: Any, codes: list[tuple[str, Any]]) -> Graph:
        records = [graph.Tensors(number) for number in range(self.counted(graph.TensorsLength()))]
        names = unique_names([_text(record.Name()) for record in records])
        tensors = tuple(self.tensor(model, record, name) for record, name in zip(records, names, strict=True))
        tensors = tuple(self.in_blocks(one, record, tensors) for one, record in zip(tensors, records, strict=True))
        operators = tuple(
            self.operator(number, graph.Operators(number), codes, len(tensors))
            for number in range(self.counted(graph.OperatorsLength()))
        )
        inputs, outputs = (
            tuple(_required(number, len(tensors), "the graph") for number in self.integers(record, which))
            for record, which in ((graph, "Inputs"), (graph, "Outputs"))
        )
        return Graph(tensors=tensors, inputs=inputs, outputs=outputs, operators=operators)

    def integers(self, record: Any, which: str) -> list[int]:
        length = self.counted(getattr(record, f"{which}Length")())
        return [int(number) for number in getattr(record, f"{which}AsNumpy")()] if length else []

    def tensor(self, model: Any, record: Any, name: str) -> Tensor:
        shape = tuple(self.integers(record, "Shape"))
        signature = self.integers(record, "ShapeSignature") or list(shape)
        if len(signature) != len(shape):
            raise ModelError(f"tensor {name!r}: shape {list(shape)} and shape signature {signature} differ in rank")
        dynamic = tuple(axis for axis, extent in enumerate(signature) if extent < 0)
        shape = tuple(1 if extent < 0 else extent for extent in shape)
        data = self.buffer(model, record.Buffer(), name)
        refused = ""
        if record.Sparsity() is not None:
            refused = "is sparse, which no importer of ours unpacks: convert the network without sparsity"
        elif record.ExternalBuffer():
            refused = "lies in another file: convert the network into one file"
        return Tensor(
            name=name, type=_name_of(self.schema.TensorType, record.Type()), shape=shape, dynamic=dynamic,
            data=data, quantization=self.quantization(record.Quantization(), name, shape, record.Type()),
            variable=bool(record.IsVariable()), refused=refused or self.other_quantization(record.Quantization()),
        )  # fmt: skip

    def buffer(self, model: Any, number: int, name: str) -> npt.NDArray[np.uint8] | None:
        if number >= self.buffers:
            raise ModelError(f"tensor {name!r} names buffer {number} of {self.buffers}; the file is damaged")
        record = model.Buffers(number)
        if record.Size() > 1:  # networks of more than 2 GiB have their buffers behind the flatbuffer
            start, size = record.Offset(), record.Size()
            if start + size > len(self.data):
                raise ValueError(f"the {size} bytes of tensor {name!r} lie beyond the end of the file")
            return np.frombuffer(self.data, dtype=np.uint8, count=size, offset=start)
        # Length first: for an empty vector the accessor returns the number 0.
        return record.DataAsNumpy() if record.DataLength() else None

    def quantization(self, record: Any, name: str, shape: tuple[int, ...], kind: int) -> Quantization | None:
        count = 0 if record is None else self.counted(record.ScaleLength())
        if not count:
            return None
        scale = np.array(record.ScaleAsNumpy(), dtype=np.float32)
        zero_point = np.zeros(count, dtype=np.int64)
        if self.counted(record.ZeroPointLength()):
            given = np.array(record.ZeroPointAsNumpy(), dtype=np.int64)
            if given.size not in (1, count):
                raise ModelError(f"tensor {name!r}: expected {count} zero points, one for each scale, got {given.size}")
            zero_point[:] = given
        axis = record.QuantizedDimension() if count > 1 else 0
        if count > 1 and not (0 <= axis < len(shape) and shape[axis] == count):
            if kind == self.schema.TensorType.INT32:  # a bias: no kernel looks at its own scale
                self.biases.append(name)
                return None
            raise ModelError(
                f"tensor {name!r} has {count} scales along axis {axis} (quantized_dimension), but its shape is "
                f"{list(shape)}; expected as many scales as that axis has entries; convert the network again"
            )
        if not np.isfinite(scale).all() or (scale < 0).any():
            raise ModelError(f"tensor {name!r}: expected positive finite scales, got {scale[:4].tolist()}")
        return Quantization(scale=scale, zero_point=zero_point, axis=axis)

    def other_quantization(self, record: Any) -> str:
        details = self.schema.QuantizationDetails
        kind = details.NONE if record is None else record.DetailsType()
        if kind in (details.NONE, details.BlockwiseQuantization):
            return ""
        how = _name_of(details, kind)
        return f"is quantized by {how}; expected one scale, one along an axis, or one for each block"

    def in_blocks(self, tensor: Tensor, record: Any, tensors: tuple[Tensor, ...]) -> Tensor:
        """Give a matrix the scales of its blocks, which are another tensor; other tensors come back as they are.

        A block is a run of numbers along the last axis; LiteRT's kernels know neither zero points nor scales of
        0 (XNNPACK, qb4w).
        """
        quantization = record.Quantization()
        if quantization is None or quantization.DetailsType() != self.schema.QuantizationDetails.BlockwiseQuantization:
            return tensor
        where, table = f"tensor {tensor.name!r}", quantization.Details()
        if table is None:
            raise ModelError(f"{where} is quantized in blocks, but the file does not say in which; it is damaged")
        made = self.schema.BlockwiseQuantizationT.InitFromBuf(table.Bytes, table.Pos)
        scales = tensors[_required(made.scales, len(tensors), where)]
        scale = scales.array()
        if scale.dtype.kind != "f" or not np.isfinite(scale).all() or (scale <= 0).any():
            raise ModelError(f"{where}: expected positive finite scales in {scales.name!r}, which is {scales.type}")
        blocks = (*scale.shape[:-1], scale.shape[-1] * made.blockSize) if scale.ndim else ()
        if made.blockSize < 1 or len(tensor.shape) != 2 or tensor.data is None or blocks != tensor.shape:
            raise ModelError(
                f"{where}: expected a constant matrix in blocks of {made.blockSize} along its last axis, each "
                f"with a scale, got shape {list(tensor.shape)} and scales of shape {list(scale.shape)}; convert the "
                "network again"
            )
        if made.zeroPoints >= 0 and tensors[_required(made.zeroPoints, len(tensors), where)].array().any():
            raise ModelError(f"{where} has zero points of blocks; expected none, as LiteRT's kernels take none")
        zero_point = np.zeros(scale.shape, dtype=np.int64)
        return replace(
            tensor,
            quantization=Quantization(
                scale=scale.astype(np.float32), zero_point=zero_point, axis=1, block=int(made.blockSize)
            ),
        )

    def operator(self, number: int, record: Any, codes: list[tuple[str, Any]], tensors: int) -> Operator:
        if record.OpcodeIndex() >= len(codes):
            raise ModelError(
                f"operator {number} is of kind {record.OpcodeIndex()} of {len(codes)}; the file is damaged"
            )
        name, code = codes[record.OpcodeIndex()]
        where = f"operator {number} ({name})"
        options, kind = self.options(record, where)
        return Operator(
            index=number, name=name, version=code.Version(), options=options, kind=kind,
            inputs=tuple(None if n == -1 else _required(n, tensors, where) for n in self.integers(record, "Inputs")),
            outputs=tuple(_required(n, tensors, where) for n in self.integers(record, "Outputs")),
            intermediates=tuple(_required(n, tensors, where) for n in self.integers(record, "Intermediates")),
        )  # fmt: skip

    def options(self, record: Any, where: str) -> tuple[dict[str, Any], str]:
        table = record.BuiltinOptions()
        if record.BuiltinOptionsType() == 0 or table is None:
            return {}, ""
        kind = _name_of(self.schema.BuiltinOptions, record.BuiltinOptionsType())
        made = getattr(self.schema, f"{kind}T").InitFromBuf(table.Bytes, table.Pos)
        options = {}
        for camel, value in vars(made).items():
            name = _CAMEL.sub(lambda found: f"_{found.group().lower()}", camel)
            enumeration = "MirrorPadMode" if kind == "MirrorPadOptions" and name == "mode" else ENUMERATIONS.get(name)
            options[name] = value if enumeration is None else _name_of(getattr(self.schema, enumeration), value)
        if any(isinstance(value, float) and not np.isfinite(value) for value in options.values()):
            raise ModelError(f"{where}: expected finite options, got {options}; the file is damaged")
        return options, kind


def _name_of(enumeration: Any, number: int) -> str:
    for name, value in vars(enumeration).items():
        if value == number and not name.startswith("_"):
            return str(name)
    raise ModelError(f"{number} is no {enumeration.__name__} of this schema: the file is damaged, or newer than it")


def _text(name: bytes | None) -> str:
    return (name or b"").decode("utf-8", "replace")


def _required(number: int, count: int, where: str) -> int:
    if not 0 <= number < count:
        raise ModelError(f"{where} names tensor {number} of {count}; the file is damaged")
    return number
