"""Kernels that work on each level by itself: additions, products and joins of tensors of levels.

Operation for operation they compute what ONNX Runtime's integer operators compute (measured on 1.31, x86-64), so that
both give the same integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from narrowgauge.exporters.tvm.image import Operand
from narrowgauge.exporters.tvm.script import fill_halo, primitive, saturated, shared, spread, vector

_LANES = 16
_OPERATIONS = 8  # on each vector, roughly


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """An addition or a product of two tensors of one shape.

    Attributes:
        operator: of the real numbers.
        first: what is read.
        second: likewise.
        result: what is written.
        low: lowest level that is written, in uint8.
        high: highest.
        fused: whether the processor multiplies and adds with one rounding.
    """

    operator: Literal["Add", "Mul"]
    first: Operand
    second: Operand
    result: Operand
    low: int
    high: int
    fused: bool


def pair_kernel(pair: Pair) -> Any:
    """Build it; see `_added` and `_multiplied` for the arithmetic."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    image = pair.result.image
    lanes = math.gcd(image.depth, _LANES)
    compute = _added if pair.operator == "Add" else _multiplied
    arguments = {
        "first": (pair.first.image.size, "uint8"), "second": (pair.second.image.size, "uint8"),
        "result": (image.size, "uint8"),
    }  # fmt: skip
    tall = image.height > 1  # a matrix has one row: its pixels are shared out
    rows, columns = (image.height, image.width) if tall else (image.width, 1)
    with primitive(pair.operator.lower(), arguments) as (finish, (first, second, result)):
        with shared(image.batch * rows, _OPERATIONS * image.size // lanes) as line:
            number, place = T.Bind(line // rows), T.Bind(line % rows)
            with T.serial(0, columns) as along, T.serial(0, image.depth // lanes) as tile:
                row, column = (place, along) if tall else (0, place)
                one, other = (
                    _original(levels.vload([operand.image.at(number, row, column, tile * lanes)],
                                           vector("uint8", lanes)), operand, lanes)
                    for levels, operand in ((first, pair.first), (second, pair.second))
                )  # fmt: skip
                steps = compute(pair, one, other, lanes)
                position = image.at(number, row, column, tile * lanes)
                T.buffer_store(
                    result, saturated(steps, pair.result.offset, pair.low, pair.high, lanes),
                    [T.ramp(position, 1, lanes)],
                )  # fmt: skip
        fill_halo(result, image, pair.result.zero_point)
    return finish()


def _original(levels: Any, operand: Operand, lanes: int) -> Any:
    """Return levels as ONNX has them, int32."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    return T.Cast(vector("int32", lanes), levels) - spread(T.int32(operand.offset), lanes)


def _added(pair: Pair, one: Any, other: Any, lanes: int) -> Any:
    """Return `one * r1 + (other * r2 + f)`, f from the zero points, each product added with one rounding."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    step = np.float32(pair.result.scale)
    ratios = [np.float32(operand.scale) / step for operand in (pair.first, pair.second)]
    zeros = [operand.original_zero_point for operand in (pair.first, pair.second)]
    # fma(r1, z1, f32(r2 * z2)): the product of two float32 is exact in float64.
    centre = np.float32(np.float64(ratios[0]) * zeros[0] + np.float64(ratios[1] * np.float32(zeros[1])))
    rest = np.float32(pair.result.original_zero_point) - centre

    def multiplied_and_added(levels: Any, ratio: np.float32, addend: Any) -> Any:
        factor = spread(T.float32(float(ratio)), lanes)
        real = T.Cast(vector("float32", lanes), levels)
        return T.fma(real, factor, addend) if pair.fused else real * factor + addend

    inner = multiplied_and_added(other, ratios[1], spread(T.float32(float(rest)), lanes))
    return multiplied_and_added(one, ratios[0], inner)


def _multiplied(pair: Pair, one: Any, other: Any, lanes: int) -> Any:
    """Return the product of the levels, exact, times a factor, and the zero point added before it is rounded."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    factor = np.float32(pair.first.scale) * np.float32(pair.second.scale) / np.float32(pair.result.scale)
    centred = [
        levels - spread(T.int32(operand.original_zero_point), lanes)
        for levels, operand in ((one, pair.first), (other, pair.second))
    ]
    real = T.Cast(vector("float32", lanes), centred[0] * centred[1]) * spread(T.float32(float(factor)), lanes)
    return real + spread(T.float32(float(pair.result.original_zero_point)), lanes)


def concat_kernel(parts: Sequence[Operand], result: Operand, low: int, high: int) -> Any:
    """Build the join of tensors along their channels; levels of another scale are rounded again."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    image = result.image
    arguments = {f"part_{number}": (part.image.size, "uint8") for number, part in enumerate(parts)}
    arguments["result"] = (image.size, "uint8")
    with primitive("concat", arguments) as (finish, buffers):
        output = buffers[-1]
        with (
            shared(image.batch * image.height, _OPERATIONS * image.size // _LANES) as line,
            T.serial(0, image.width) as column,
        ):
            number, row = T.Bind(line // image.height), T.Bind(line % image.height)
            start = T.Bind(image.at(number, row, column, 0))
            offset = 0
            for part, levels in zip(parts, buffers[:-1], strict=True):
                source = T.Bind(part.image.at(number, row, column, 0))
                for first, count, lanes in _stretches(part.image.channels):
                    with T.serial(0, count // lanes) as tile:
                        read = levels.vload([source + first + tile * lanes], vector("uint8", lanes))
                        written = start + offset + first + tile * lanes
                        T.buffer_store(
                            output, _requantized(read, part, result, (low, high), lanes),
                            [T.ramp(written, 1, lanes) if lanes > 1 else written],
                        )  # fmt: skip
                offset += part.image.channels
            if image.depth > image.channels:
                with T.serial(image.channels, image.depth) as channel:
                    T.buffer_store(output, T.uint8(result.zero_point), [start + channel])
        fill_halo(output, image, result.zero_point)
    return finish()


def _stretches(channels: int) -> list[tuple[int, int, int]]:
    """First channel, number and lanes of the stretches that channels are copied in: vectors, then single ones."""
    whole = channels // _LANES * _LANES
    return [one for one in ((0, whole, _LANES), (whole, channels - whole, 1)) if one[1]]


def _requantized(levels: Any, part: Operand, result: Operand, ends: tuple[int, int], lanes: int) -> Any:
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    centred = T.Cast(vector("int32", lanes), levels) - spread(T.int32(part.zero_point), lanes)
    real = T.Cast(vector("float32", lanes), centred) * spread(T.float32(part.scale), lanes)
    steps = real / spread(T.float32(result.scale), lanes)
    return saturated(steps, result.zero_point, *ends, lanes)
