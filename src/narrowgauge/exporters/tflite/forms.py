"""What a tensor of the file is: its order of axes, its shape, its type, its levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerBlock, PerTensor, normalized_axis
from narrowgauge.errors import TargetError
from narrowgauge.exporters.tflite.steps import levels_type
from narrowgauge.importers.tflite.arithmetic import ONNX_TYPES
from narrowgauge.importers.tflite.network import TYPES, Quantization

Order = tuple[int, ...]
"""Axis k of the tensor is axis `order[k]` of the network's value."""

Extents = tuple[int | None, ...]
"""A shape; None for an axis whose extent is known only at run time."""

_WITHOUT_KERNELS = (ir.DataType.FLOAT16, ir.DataType.DOUBLE)

TFLITE_TYPES = {kind: name for name, kind in ONNX_TYPES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """How an activation is written in integers: TFLite's type, float32 scale, zero point."""

    type: str
    scale: float
    zero_point: int

    @property
    def quantization(self) -> Quantization:
        """As the file records it."""
        return Quantization(
            scale=np.array([self.scale], dtype=np.float32), zero_point=np.array([self.zero_point], np.int64), axis=0
        )

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and greatest level."""
        limits = np.iinfo(TYPES[self.type])
        return int(limits.min), int(limits.max)


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """Where a value was written first."""

    order: Order
    levels: Levels | None


Form = tuple[str, Order, Levels | None]
"""A value in an order, in levels or (None) as it is."""


def levels_of(encoding: Encoding, name: str) -> Levels:
    """Return an activation's encoding as TFLite has it.

    Raises:
        TargetError: TFLite has no such activations.
    """
    kind = encoding.type
    stored = levels_type(kind)
    if not isinstance(encoding.granularity, PerTensor) or stored not in ("INT8", "UINT8", "INT16"):
        raise TargetError(
            f"value {name!r}: expected an activation of int8, uint8 or int16 with one scale, which TFLite has, got "
            f"{kind.name} with {encoding.granularity}"
        )
    zero_point = int(encoding.zero_point)
    if stored == "INT16" and zero_point:
        raise TargetError(f"value {name!r}: expected zero point 0 of int16, as TFLite's kernels do, got {zero_point}")
    return Levels(type=stored, scale=float(encoding.scale), zero_point=zero_point)


def extents_of(value: ir.Value) -> Extents:
    """Return a value's shape.

    Raises:
        TargetError: not even its rank is known.
    """
    if value.shape is None:
        raise TargetError(
            f"value {value.name!r}: TFLite files record the shape of every tensor, and the rank of this one is not "
            "known; export the network with fixed shapes"
        )
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def identity(rank: int) -> Order:
    """Return the network's own order."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """Return the order with axis 1 at the end."""
    return (0, *range(2, rank), 1) if rank > 2 else identity(rank)


def permuted(extents: Sequence[Any], order: Order) -> tuple[Any, ...]:
    """Put extents (or anything else that each axis has) into an order."""
    return tuple(extents[axis] for axis in order)


def weight_levels(array: npt.NDArray[Any], encoding: Encoding, name: str) -> tuple[npt.NDArray[Any], Quantization]:
    """Return the levels of a constant in the type that stores them, and their scales along the array's own axis.

    Raises:
        TargetError: TFLite has no such levels.
    """
    kind = encoding.type
    if isinstance(encoding.granularity, PerBlock) or (kind.bits > 8 and kind.bits != 16):
        raise TargetError(
            f"weights {name!r}: expected one scale or one for each channel and at most 16 bits, got {kind.name} with "
            f"{encoding.granularity}"
        )
    four_bits: type[np.generic] = ml_dtypes.int4
    stored = np.dtype(four_bits) if kind.bits == 4 and kind.signed else kind.storage
    axis = 0
    if isinstance(encoding.granularity, PerAxis):
        axis = normalized_axis(encoding.granularity.axis, array.ndim)
    zero_point = encoding.zero_point.reshape(-1).astype(np.int64)
    quantization = Quantization(scale=encoding.scale.reshape(-1), zero_point=zero_point, axis=axis)
    return quantize(array.astype(np.float32, copy=False), encoding).astype(stored), quantization


def packed(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the bytes of an array as the file has them: little-endian, two numbers of 4 bits in a byte."""
    if array.dtype == np.dtype(ml_dtypes.int4):
        halves = array.astype(np.int8).reshape(-1).view(np.uint8) & 15
        halves = np.concatenate([halves, np.zeros(halves.size % 2, np.uint8)])
        return np.asarray(halves[0::2] | halves[1::2] << 4, dtype=np.uint8)
    ordered = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return np.frombuffer(ordered.tobytes(), dtype=np.uint8)


def type_of(value: ir.Value) -> str:
    """Return TFLite's name of a value's type.

    Raises:
        TargetError: it has none.
    """
    kind = value.dtype
    if kind is None or kind not in TFLITE_TYPES or kind in _WITHOUT_KERNELS:
        known = ", ".join(str(one) for one in TFLITE_TYPES if one not in _WITHOUT_KERNELS)
        raise TargetError(
            f"value {value.name!r}: expected elements of {known}, which TFLite's kernels take, got {kind}"
        )
    return TFLITE_TYPES[kind]


def cut_options(begin_mask: int = 0, end_mask: int = 0, shrink_axis_mask: int = 0) -> dict[str, Any]:
    """Return options of a STRIDED_SLICE: a bit for each axis whose begin or end is open, or that is taken away."""
    return {
        "begin_mask": begin_mask, "end_mask": end_mask, "ellipsis_mask": 0, "new_axis_mask": 0,
        "shrink_axis_mask": shrink_axis_mask, "offset": False,
    }  # fmt: skip
