"""Kernels of convolutions and matrix products: 8-bit operands, 32-bit accumulators, rounded before they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from narrowgauge.exporters.tvm.image import Image
from narrowgauge.exporters.tvm.processor import Product
from narrowgauge.exporters.tvm.script import fill_halo, primitive, saturated, shared

Requantization = Literal["factor", "shift", "float"]

# Vectors of int32 that a depthwise convolution works on.
_LANES = 16
# Outputs of a row that a depthwise convolution makes at a time: they share what they read.
_NEIGHBOURS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Where the products of an output come from: rows first, columns second.

    Attributes:
        kernel: taps.
        strides: pixels from one output to the next.
        dilations: pixels from one tap to the next.
        start: pixels before the first one, the padding on top and left.
    """

    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    start: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """How accumulators become levels.

    Attributes:
        by: "factor": times a float32 factor of each channel, rounded half to even; "shift": the same where every factor
            is 2^-s, s at least 1, in integers alone; "float": times a factor and not rounded.
        zero_point: of the output, in uint8.
        low: lowest level, in uint8.
        high: highest level.
    """

    by: Requantization
    zero_point: int = 0
    low: int = 0
    high: int = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Convolution:
    """A convolution of uint8 levels with int8 weights.

    Attributes:
        source: layout of its input, with halo enough for the window.
        result: layout of its output; its channels in memory are a multiple of the vector's lanes.
        window: taps.
        groups: of channels.
        rounding: of the accumulators.
    """

    source: Image
    result: Image
    window: Window
    groups: int
    rounding: Rounding

    @property
    def is_depthwise(self) -> bool:
        """Whether every output channel reads the input channel of its own number alone."""
        return self.groups == self.source.channels == self.result.channels > 1


# --- groups of channels ---------------------------------------------------------------------------------------------


def _span(convolution: Convolution, product: Product) -> int:
    """Input channels that a vector of outputs reads: those of all groups it touches, to the next whole step."""
    if convolution.groups == 1:
        return convolution.source.depth
    inputs = convolution.source.channels // convolution.groups
    outputs = convolution.result.channels // convolution.groups
    most = 0
    for block in range(convolution.result.depth // product.lanes):
        first, last = block * product.lanes, min((block + 1) * product.lanes, convolution.result.channels) - 1
        if last >= first:
            most = max(most, (last // outputs - first // outputs + 1) * inputs)
    return min(-(-most // product.depth) * product.depth, convolution.source.depth)


def _start(convolution: Convolution, product: Product, block: Any, span: int, least: Any) -> Any:
    """Return the first input channel that a vector of outputs reads; `least` is min, of numbers or expressions."""
    if convolution.groups == 1:
        return 0
    inputs = convolution.source.channels // convolution.groups
    outputs = convolution.result.channels // convolution.groups
    return least(block * product.lanes // outputs * inputs, convolution.source.depth - span)


# --- weights --------------------------------------------------------------------------------------------------------


def packed_weights(convolution: Convolution, product: Product, weights: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Lay weights out in the order in which the kernel reads them.

    Args:
        convolution: what reads them.
        product: its instruction.
        weights: levels, `[outputs, inputs of a group, rows, columns]`.

    Returns:
        One axis: `[vectors of outputs, rows, columns, steps, lanes, depth]`, or `[vectors, rows, columns, lanes]` of a
        depthwise convolution; zeros where a vector or step has room.
    """
    outputs, inputs, rows, columns = weights.shape
    if convolution.is_depthwise:
        padded = np.zeros((convolution.result.depth, rows, columns), np.int8)
        padded[:outputs] = weights[:, 0]
        vectors = padded.reshape(-1, _lanes_of(convolution), rows, columns).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(vectors).reshape(-1)
    span = _span(convolution, product)
    blocks = convolution.result.depth // product.lanes
    padded = np.zeros((blocks * product.lanes, span, rows, columns), np.int8)
    per_group = outputs // convolution.groups
    for output in range(outputs):
        start = _start(convolution, product, output // product.lanes, span, min)
        first = output // per_group * inputs - start
        padded[output, first : first + inputs] = weights[output]
    parted = padded.reshape(blocks, product.lanes, span // product.depth, product.depth, rows, columns)
    return np.ascontiguousarray(parted.transpose(0, 4, 5, 2, 1, 3)).reshape(-1)


def _lanes_of(convolution: Convolution) -> int:
    return min(_LANES, convolution.result.depth)


# --- kernels --------------------------------------------------------------------------------------------------------


def convolution_kernel(convolution: Convolution, product: Product) -> Any:
    """Build a convolution as a function of TVM.

    It takes the levels, the packed weights, a bias of each channel (int32: the input's zero point is in it), a factor
    of each channel (float32, or int32 shifts), and the output.
    """
    if convolution.is_depthwise:
        return _depthwise_kernel(convolution)
    return _dense_kernel(convolution, product)


def _arguments(convolution: Convolution, weights: int) -> dict[str, tuple[int, str]]:
    depth = convolution.result.depth
    by = convolution.rounding.by
    return {
        "levels": (convolution.source.size, "uint8"),
        "weights": (weights, "int8"),
        "bias": (depth, "int32"),
        "factors": (depth, "int32" if by == "shift" else "float32"),
        "result": (convolution.result.size, "float32" if by == "float" else "uint8"),
    }


def _tile(width: int, blocks: int, product: Product, *, together: int) -> tuple[int, int]:
    """Choose how many pixels and how many vectors of channels a step of the innermost loop works on.

    What costs is products and, at half as much, what is read for them; pixels that two tiles share are made twice.
    """
    best, found = float("inf"), (1, 1)
    room = product.registers - 2
    for vectors in (one for one in range(1, 5) if together % one == 0):
        for pixels in range(1, min(width, 14) + 1):
            if pixels * vectors + vectors > room:
                continue
            reads = pixels + vectors
            cost = -(-width // pixels) * (blocks // vectors) * (pixels * vectors + 0.5 * reads + 1)
            if cost < best:
                best, found = cost, (pixels, vectors)
    return found


def _dense_kernel(convolution: Convolution, product: Product) -> Any:
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    source, result, window = convolution.source, convolution.result, convolution.window
    lanes, blocks, span = product.lanes, result.depth // product.lanes, _span(convolution, product)
    per_group = result.channels // convolution.groups
    together = blocks if convolution.groups == 1 else per_group // lanes if per_group % lanes == 0 else 1
    pixels, vectors = _tile(result.width, blocks, product, together=together)
    tiles = -(-result.width // pixels)
    rows, columns = window.kernel
    steps = span // product.depth
    merged = convolution.groups == 1 and window.dilations[1] == 1  # a row of taps is one stretch of memory
    arguments = _arguments(convolution, blocks * rows * columns * span * lanes)
    with primitive("convolution", arguments) as (finish, (levels, weights, bias, factors, output)):
        taps = result.size // lanes * rows * columns * steps
        with shared(blocks // vectors * result.batch * result.height * tiles, taps) as task:
            block = T.Bind(task // (result.batch * result.height * tiles) * vectors)
            line = T.Bind(task // tiles % (result.batch * result.height))
            image, row = T.Bind(line // result.height), T.Bind(line % result.height)
            column = T.Bind(T.min(task % tiles * pixels, result.width - pixels))
            first = T.Bind(_start(convolution, product, block, span, T.min) + T.int32(0))
            sums = T.alloc_buffer((pixels * vectors,), f"int32x{lanes}", scope="local", layout=None)
            for vector in range(vectors):
                for pixel in range(pixels):
                    T.buffer_store(sums, bias.vload([(block + vector) * lanes], f"int32x{lanes}"),
                                   [pixel * vectors + vector])  # fmt: skip

            def add_step(tap_row: Any, tap_column: Any, step: Any) -> None:
                held = [
                    T.Bind(weights.vload(
                        [(((block + vector) * rows + tap_row) * columns + tap_column) * span * lanes
                         + step * lanes * product.depth], f"int8x{lanes * product.depth}",
                    ))
                    for vector in range(vectors)
                ]  # fmt: skip
                for pixel in range(pixels):
                    position = source.at(
                        image,
                        row * window.strides[0] + tap_row * window.dilations[0] - window.start[0],
                        (column + pixel) * window.strides[1] + tap_column * window.dilations[1] - window.start[1],
                        first + step * product.depth,
                    )
                    for vector in range(vectors):
                        index = pixel * vectors + vector
                        T.buffer_store(sums, product.add(sums[index], levels, position, held[vector]), [index])

            with T.serial(0, rows) as tap_row:
                if merged:
                    with T.serial(0, columns * steps) as step:
                        add_step(tap_row, 0, step)
                else:
                    with T.serial(0, columns) as tap_column, T.serial(0, steps) as step:
                        add_step(tap_row, tap_column, step)
            for vector in range(vectors):
                channel = (block + vector) * lanes
                for pixel in range(pixels):
                    total = T.Bind(sums[pixel * vectors + vector])
                    position = result.at(image, row, column + pixel, channel)
                    T.buffer_store(
                        output, _rounded(convolution.rounding, total, factors, channel, lanes),
                        [T.ramp(position, 1, lanes)],
                    )  # fmt: skip
        fill_halo(output, result, convolution.rounding.zero_point)
    return finish()


def _rounded(rounding: Rounding, total: Any, factors: Any, channel: Any, lanes: int) -> Any:
    """Return accumulators as levels (or real numbers)."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    if rounding.by == "shift":
        # Half of what is shifted out, less one, and one more where the last bit that stays is odd: ties go to even.
        shift = factors.vload([channel], f"int32x{lanes}")
        one = T.broadcast(T.int32(1), lanes)
        odd = (total >> shift) & one
        steps = (total + ((one << (shift - one)) - one) + odd) >> shift
        low, high = (T.broadcast(T.int32(end - rounding.zero_point), lanes) for end in (rounding.low, rounding.high))
        levels = T.max(T.min(steps, high), low) + T.broadcast(T.int32(rounding.zero_point), lanes)
        return T.Cast(f"uint8x{lanes}", levels)
    real = T.Cast(f"float32x{lanes}", total) * factors.vload([channel], f"float32x{lanes}")
    return real if rounding.by == "float" else saturated(real, rounding.zero_point, rounding.low, rounding.high, lanes)


def _depthwise_kernel(convolution: Convolution) -> Any:
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    source, result, window = convolution.source, convolution.result, convolution.window
    lanes = _lanes_of(convolution)
    pixels = min(_NEIGHBOURS, result.width)
    tiles = -(-result.width // pixels)
    rows, columns = window.kernel
    taps = rows * columns
    arguments = _arguments(convolution, result.depth * taps)
    with primitive("depthwise", arguments) as (finish, (levels, weights, bias, factors, output)):
        with shared(result.batch * result.height, result.size // lanes * taps) as line:
            image, row = T.Bind(line // result.height), T.Bind(line % result.height)
            with T.serial(0, result.depth // lanes) as block:
                channel = T.Bind(block * lanes)
                held = [
                    T.Bind(T.Cast(f"int32x{lanes}", weights.vload([channel * taps + tap * lanes], f"int8x{lanes}")))
                    for tap in range(taps)
                ]
                start = T.Bind(bias.vload([channel], f"int32x{lanes}"))
                with T.serial(0, tiles) as tile:
                    column = T.Bind(T.min(tile * pixels, result.width - pixels))
                    sums = [start] * pixels
                    for tap_row in range(rows):
                        line_read = T.Bind(
                            source.at(
                                image, row * window.strides[0] + tap_row * window.dilations[0] - window.start[0],
                                column * window.strides[1] - window.start[1], channel,
                            )
                        )  # fmt: skip
                        read: dict[int, Any] = {}
                        for pixel in range(pixels):
                            for tap_column in range(columns):
                                away = pixel * window.strides[1] + tap_column * window.dilations[1]
                                if away not in read:
                                    position = line_read + away * source.depth
                                    read[away] = T.Bind(
                                        T.Cast(f"int32x{lanes}", levels.vload([position], f"uint8x{lanes}"))
                                    )
                                sums[pixel] = T.Bind(sums[pixel] + read[away] * held[tap_row * columns + tap_column])
                    for pixel in range(pixels):
                        T.buffer_store(
                            output, _rounded(convolution.rounding, sums[pixel], factors, channel, lanes),
                            [T.ramp(result.at(image, row, column + pixel, channel), 1, lanes)],
                        )  # fmt: skip
        fill_halo(output, result, convolution.rounding.zero_point)
    return finish()
