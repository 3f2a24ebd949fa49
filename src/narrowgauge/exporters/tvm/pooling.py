"""Kernels that reduce windows of levels; operation for operation as ONNX Runtime's integer operators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from narrowgauge.exporters.tvm.convolution import Window
from narrowgauge.exporters.tvm.image import Image, Operand
from narrowgauge.exporters.tvm.script import fill_halo, primitive, saturated, shared, spread, vector

_LANES = 16


def max_pool_kernel(source: Image, result: Image, window: Window, zero_point: int) -> Any:
    """Build the maximum of each window; taps beyond the tensor are moved to its nearest level.

    That one lies in the window, too, because no window begins or ends wholly outside and taps have no gaps.
    """
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    lanes = math.gcd(result.depth, 4 * _LANES)
    arguments = {"levels": (source.size, "uint8"), "result": (result.size, "uint8")}
    work = result.size // lanes * math.prod(window.kernel)
    with primitive("max_pool", arguments) as (finish, (levels, output)):
        with shared(result.batch * result.height, work) as line, T.serial(0, result.width) as column:
            number, row = T.Bind(line // result.height), T.Bind(line % result.height)
            with T.serial(0, result.depth // lanes) as tile:
                found = T.alloc_buffer((1,), vector("uint8", lanes), scope="local", layout=None)
                T.buffer_store(found, spread(T.uint8(0), lanes), [0])
                with T.serial(0, window.kernel[0]) as down, T.serial(0, window.kernel[1]) as right:
                    y = _inside(row * window.strides[0] + down - window.start[0], source.height)
                    x = _inside(column * window.strides[1] + right - window.start[1], source.width)
                    read = levels.vload([source.at(number, y, x, tile * lanes)], vector("uint8", lanes))
                    T.buffer_store(found, T.max(found[0], read), [0])
                T.buffer_store(output, found[0], [T.ramp(result.at(number, row, column, tile * lanes), 1, lanes)])
        fill_halo(output, result, zero_point)
    return finish()


def _inside(index: Any, extent: int) -> Any:
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    return T.max(T.min(index, extent - 1), 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """A mean over windows.

    Attributes:
        source: what is read; its halo holds the zero point, so that it adds nothing.
        result: what is written.
        window: taps; None where the whole tensor is one window.
        pads: padding behind the last row and column.
        counts_padding: whether the padding counts as zeros.
        low: lowest level that is written, in uint8.
        high: highest.
    """

    source: Operand
    result: Operand
    window: Window | None
    pads: tuple[int, int] = (0, 0)
    counts_padding: bool = False
    low: int = 0
    high: int = 255


def average_pool_kernel(average: Average) -> Any:
    """Build the mean of each window, from the exact sum of its levels.

    ONNX Runtime adds up real numbers where the window is not the whole tensor; the sum here is exact, which may decide
    a tie otherwise.
    """
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    source, result = average.source.image, average.result.image
    window = average.window or Window(kernel=(source.height, source.width))
    lanes = math.gcd(result.depth, _LANES)
    arguments = {"levels": (source.size, "uint8"), "result": (result.size, "uint8")}
    work = result.size // lanes * math.prod(window.kernel)
    with primitive("average_pool", arguments) as (finish, (levels, output)):
        with shared(result.batch * result.height, work) as line, T.serial(0, result.width) as column:
            number, row = T.Bind(line // result.height), T.Bind(line % result.height)
            with T.serial(0, result.depth // lanes) as tile:
                total = T.alloc_buffer((1,), vector("int32", lanes), scope="local", layout=None)
                zero = average.source.zero_point * math.prod(window.kernel)
                T.buffer_store(total, spread(T.int32(-zero), lanes), [0])
                with T.serial(0, window.kernel[0]) as down, T.serial(0, window.kernel[1]) as right:
                    y = row * window.strides[0] + down - window.start[0]
                    x = column * window.strides[1] + right - window.start[1]
                    read = levels.vload([source.at(number, y, x, tile * lanes)], vector("uint8", lanes))
                    T.buffer_store(total, total[0] + T.Cast(vector("int32", lanes), read), [0])
                real = T.Cast(vector("float32", lanes), total[0])
                if average.window is None:
                    steps, added = _of_all(average, real, lanes), average.result.zero_point
                else:
                    steps, added = _of_window(average, real, row, column, lanes), average.result.offset
                T.buffer_store(
                    output, saturated(steps, added, average.low, average.high, lanes),
                    [T.ramp(result.at(number, row, column, tile * lanes), 1, lanes)],
                )  # fmt: skip
        fill_halo(output, result, average.result.zero_point)
    return finish()


def _of_all(average: Average, total: Any, lanes: int) -> Any:
    """Return the mean of a plane, in steps: the sum times `source scale / (result scale * count)`."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    count = average.source.image.height * average.source.image.width
    factor = np.float32(average.source.scale) / (np.float32(average.result.scale) * np.float32(count))
    return total * spread(T.float32(float(factor)), lanes)


def _of_window(average: Average, total: Any, row: Any, column: Any, lanes: int) -> Any:
    """Return the mean of a window, in steps, the zero point added before it is rounded."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    window, image = average.window, average.source.image
    assert window is not None

    def taps(place: Any, axis: int, extent: int) -> Any:
        start = place * window.strides[axis] - window.start[axis]
        end = start + window.kernel[axis]
        if average.counts_padding:
            return T.min(end, extent + average.pads[axis]) - start
        return T.min(end, extent) - T.max(start, 0)

    count = T.Bind(T.Cast("float32", taps(row, 0, image.height) * taps(column, 1, image.width)))
    mean = total * spread(T.float32(average.source.scale), lanes) / spread(count, lanes)
    steps = mean / spread(T.float32(average.result.scale), lanes)
    return steps + spread(T.float32(float(average.result.original_zero_point)), lanes)
