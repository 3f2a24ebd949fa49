"""What a .tflite file says, as plain data: tensors, operators and graphs, checked but not interpreted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from narrowgauge.errors import ModelError

TYPES: dict[str, np.dtype[Any]] = {
    "FLOAT32": np.dtype(np.float32),
    "FLOAT16": np.dtype(np.float16),
    "FLOAT64": np.dtype(np.float64),
    "INT4": np.dtype(ml_dtypes.int4),
    "UINT4": np.dtype(ml_dtypes.uint4),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "INT16": np.dtype(np.int16),
    "UINT16": np.dtype(np.uint16),
    "INT32": np.dtype(np.int32),
    "UINT32": np.dtype(np.uint32),
    "INT64": np.dtype(np.int64),
    "UINT64": np.dtype(np.uint64),
    "BOOL": np.dtype(np.bool_),
}
"""TFLite type -> array type; the types that are not here (strings, resources, complex numbers) are refused."""

_LEVELS = ("INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16")

_HALF_BYTES = ("INT4", "UINT4")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """How the integers of a tensor stand for real numbers: `real = scale * (level - zero_point)`.

    Attributes:
        scale: float32, shape (channels,), or (1,) for one scale; of blocks the tensor's shape with `axis` divided by
            the block's size.
        zero_point: int64, same shape.
        axis: along which the scales lie, or the blocks; 0 where there is one.
        block: how many numbers along `axis` share a scale; 0 where the scales are no blocks'.
    """

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int64]
    axis: int
    block: int = 0

    @property
    def per_channel(self) -> bool:
        """Whether there is more than one scale, or one for each block."""
        return self.scale.size > 1 or self.block > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One tensor.

    Attributes:
        name: unique in its graph.
        type: TFLite's name of the type, "FLOAT32".
        shape: as recorded; an axis that may change is recorded with the extent that the converter saw, mostly 1.
        dynamic: the axes that may change.
        data: the bytes of a constant, uint8; None of a tensor that is computed.
        quantization: as recorded; None where nothing is.
        variable: whether it keeps its value from one run to the next.
        refused: why its numbers cannot be read (sparse, in another file, ...); "" where they can.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    dynamic: tuple[int, ...] = ()
    data: npt.NDArray[np.uint8] | None = None
    quantization: Quantization | None = None
    variable: bool = False
    refused: str = ""

    @property
    def extents(self) -> tuple[int | None, ...]:
        """The shape, None for axes that may change."""
        return tuple(None if axis in self.dynamic else extent for axis, extent in enumerate(self.shape))

    @property
    def encoding(self) -> Quantization | None:
        """How the elements stand for real numbers; None of real numbers themselves and of plain integers.

        Integers of 32 and 64 bits with a scale are biases: their layer says what they stand for.
        """
        return self.quantization if self.type in _LEVELS else None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the array.

        Raises:
            ModelError: no array holds such elements.
        """
        if self.type not in TYPES:
            known = ", ".join(TYPES)
            raise ModelError(f"tensor {self.name!r}: expected elements of {known}, got {self.type}")
        return TYPES[self.type]

    def array(self) -> npt.NDArray[Any]:
        """Return the numbers of a constant: levels, where they stand for real numbers.

        Raises:
            ModelError: its numbers cannot be read, or it has more or fewer bytes than its shape needs.
        """
        if self.refused:
            raise ModelError(f"tensor {self.name!r} {self.refused}")
        data = np.zeros(0, dtype=np.uint8) if self.data is None else self.data
        count = prod(self.shape)
        half = self.type in _HALF_BYTES
        needed = (count + 1) // 2 if half else count * self.dtype.itemsize
        if data.size != needed:
            raise ModelError(
                f"tensor {self.name!r}: {self.type} of shape {list(self.shape)} needs {needed} bytes, the file has "
                f"{data.size}; it is damaged, convert the network again"
            )
        if half:
            data = np.stack([data & 15, data >> 4], axis=-1).reshape(-1)[:count]  # the first number is the low half
            if self.type == "INT4":
                data = ((data ^ 8).astype(np.int8) - 8).view(np.uint8)
            return data.view(np.int8).astype(self.dtype).reshape(self.shape)
        return (
            np.frombuffer(data.tobytes(), dtype=self.dtype.newbyteorder("<"))
            .astype(self.dtype, copy=False)
            .reshape(self.shape)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """One operator.

    Attributes:
        index: its place in the graph.
        name: TFLite's name, "CONV_2D"; of a custom operator "CUSTOM" and its own name.
        version: of the operator.
        inputs: numbers of tensors; None where an optional one is left out.
        outputs: numbers of tensors.
        options: attributes by TFLite's name; enumerations by name. Empty where the file gives none.
        kind: TFLite's name of the record that the options are, "Conv2DOptions"; "" where the file gives none.
        intermediates: numbers of tensors that only say how the kernel's inner numbers are quantized (of an LSTM).
    """

    index: int
    name: str
    version: int
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]
    kind: str
    intermediates: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Name it for a message."""
        return f"operator {self.index} ({self.name})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """One graph; its operators are in an order in which they can run."""

    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operators: tuple[Operator, ...]

    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs: the tensors' own, with a number behind one that is returned twice or is an input."""
        taken = {self.tensors[number].name for number in self.inputs}
        every = {tensor.name for tensor in self.tensors}
        names = []
        for number in self.outputs:
            name = self.tensors[number].name
            if name in taken:
                name = _numbered(name, taken | every)
            taken.add(name)
            names.append(name)
        return tuple(names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A file.

    Attributes:
        graphs: the main one first, then those that operators call.
        notes: what was wrong with the file and did not matter, one sentence each.
    """

    graphs: tuple[Graph, ...]
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> Graph:
        """The graph that runs."""
        return self.graphs[0]


def unique_names(names: list[str]) -> list[str]:
    """Give every tensor of a graph a name of its own: "tensor_3" for none, a number behind one that is taken."""
    unique: list[str] = []
    taken: set[str] = set()
    for number, wanted in enumerate(names):
        name = wanted or f"tensor_{number}"
        if name in taken:
            name = _numbered(name, taken.union(names))
        taken.add(name)
        unique.append(name)
    return unique


def _numbered(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
