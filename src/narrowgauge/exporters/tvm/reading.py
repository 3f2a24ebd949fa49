"""What integer operators of ONNX say of themselves: encodings, windows, and the room that windows need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.exporters.tvm.convolution import Window
from narrowgauge.exporters.tvm.image import Image, Operand
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.shapes import static_shape

Array = npt.NDArray[Any]
Halo = tuple[int, int, int, int]

NO_HALO: Halo = (0, 0, 0, 0)
_BITS_8 = (np.dtype(np.int8), np.dtype(np.uint8))


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Scale and zero point of a value of levels, as its node in ONNX has them.

    Attributes:
        scale: real value of one step.
        zero_point: in uint8.
        signed: whether ONNX's levels are int8.
    """

    scale: float
    zero_point: int
    signed: bool

    def operand(self, image: Image) -> Operand:
        """Give it to a tensor of that layout."""
        return Operand(image=image, scale=self.scale, zero_point=self.zero_point, offset=128 if self.signed else 0)


def array_of(node: ir.Node, number: int) -> Array:
    """Return the constant that an input is."""
    array = constant_array(node.inputs[number])
    assert array is not None
    return array


def encoding_of(node: ir.Node, scale: int, zero_point: int) -> Encoded | None:
    """Read a scale and a zero point that are constants of one number, of 8 bits; else None."""
    if len(node.inputs) <= zero_point:
        return None
    step, zero = constant_array(node.inputs[scale]), constant_array(node.inputs[zero_point])
    if step is None or zero is None or step.size != 1 or zero.size != 1 or zero.dtype not in _BITS_8:
        return None
    signed = zero.dtype == np.int8
    return Encoded(
        scale=float(step.reshape(())), zero_point=int(zero.reshape(())) + (128 if signed else 0), signed=signed
    )


def window_of(node: ir.Node) -> tuple[Window, tuple[int, int]]:
    """Read the taps of a convolution or pooling, and its padding behind the last row and column."""
    source = static_shape(node.inputs[0]) or ()
    rank = len(source) - 2
    weights = constant_array(node.inputs[3]) if node.op_type == "QLinearConv" else None
    kernel = node.attributes.get_ints("kernel_shape", ()) or (weights.shape[2:] if weights is not None else ())
    if not kernel:  # a global pooling
        return Window(), (0, 0)
    strides = node.attributes.get_ints("strides", ()) or (1,) * rank
    dilations = node.attributes.get_ints("dilations", ()) or (1,) * rank
    pads = tuple(node.attributes.get_ints("pads", ()) or (0,) * (2 * rank))
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if automatic in {"SAME_UPPER", "SAME_LOWER"}:
        pads = _same_pads(source[2:], kernel, strides, dilations, upper=automatic == "SAME_UPPER")
    elif automatic == "VALID":
        pads = (0,) * (2 * rank)
    window = Window(
        kernel=rows_and_columns(kernel, 1), strides=rows_and_columns(strides, 1),
        dilations=rows_and_columns(dilations, 1), start=rows_and_columns(pads[:rank], 0),
    )  # fmt: skip
    return window, rows_and_columns(pads[rank:], 0)


def rows_and_columns(numbers: Sequence[int], missing: int) -> tuple[int, int]:
    """Numbers of rows and columns; a network of one dimension has one row."""
    first, second = (missing, *numbers)[-2:] if len(numbers) == 1 else numbers
    return int(first), int(second)


def _same_pads(
    extents: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], *, upper: bool
) -> tuple[int, ...]:
    """Padding that keeps `ceil(extent / stride)` outputs; the odd pixel at the end (upper) or at the start."""
    totals = [
        max((math.ceil(extent / stride) - 1) * stride + (taps - 1) * dilation + 1 - extent, 0)
        for extent, taps, stride, dilation in zip(extents, kernel, strides, dilations, strict=True)
    ]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (*small, *large) if upper else (*large, *small)


def halo_of(node: ir.Node, number: int) -> Halo:
    """Room that a node's kernel needs around its first input: all that its windows reach."""
    if number != 0 or node.op_type not in {"QLinearConv", "QLinearAveragePool"}:
        return NO_HALO
    source, result = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    if source is None or result is None:
        return NO_HALO
    window, _ = window_of(node)
    beyond = []
    for axis, (extent, count) in enumerate(
        zip(rows_and_columns(source[2:], 1), rows_and_columns(result[2:], 1), strict=True)
    ):
        reach = (count - 1) * window.strides[axis] + (window.kernel[axis] - 1) * window.dilations[axis] + 1
        beyond.append(max(reach - window.start[axis] - extent, 0))
    return window.start[0], window.start[1], beyond[0], beyond[1]
