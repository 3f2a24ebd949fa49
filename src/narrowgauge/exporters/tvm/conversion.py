"""Kernels that bring tensors from ONNX's layout into ours and back."""

from __future__ import annotations

from typing import Any

from narrowgauge.exporters.tvm.image import Image
from narrowgauge.exporters.tvm.script import fill_halo, primitive, saturated, shared, spread, vector

_LANES = 16


def pack_kernel(image: Image, *, scale: float, zero_point: int) -> Any:
    """Build the rounding of real numbers to levels, as ONNX's QuantizeLinear defines it, into our layout.

    It takes float32 `[batch, channels, height, width]`, or `[pixels, channels]` of a matrix (one image of one row), and
    the output.
    """
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    arguments = {"real": (_plain(image), "float32"), "levels": (image.size, "uint8")}
    lanes = _LANES if image.width >= _LANES else 1
    tiles = -(-image.width // lanes)
    kind = vector("float32", lanes)
    with primitive("quantize", arguments) as (finish, (real, levels)):
        with shared(image.batch * image.height, image.size) as line:
            number, row = T.Bind(line // image.height), T.Bind(line % image.height)
            rounded = T.alloc_buffer((image.depth, image.width), "uint8", layout=None)
            with T.serial(0, image.channels) as channel, T.serial(0, tiles) as tile:
                column = T.Bind(T.min(tile * lanes, image.width - lanes))
                steps = real.vload([number, channel, row, column], kind) / spread(T.float32(scale), lanes)
                T.buffer_store(rounded, saturated(steps, zero_point, 0, 255, lanes), _run(channel, column, lanes))
            with T.serial(0, image.width) as column:
                start = T.Bind(image.at(number, row, column, 0))
                with T.serial(0, image.channels) as channel:
                    T.buffer_store(levels, rounded[channel, column], [start + channel])
                _fill_channels(levels, start, image, zero_point)
        fill_halo(levels, image, zero_point)
    return finish()


def move_in_kernel(image: Image, *, signed: bool, zero_point: int) -> Any:
    """Build the copy of levels, int8 or uint8 in ONNX's layout, into ours (as `pack_kernel` has them)."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    arguments = {"plain": (_plain(image), "int8" if signed else "uint8"), "levels": (image.size, "uint8")}
    with primitive("move_in", arguments) as (finish, (plain, levels)):
        with shared(image.batch * image.height, image.size) as line, T.serial(0, image.width) as column:
            number, row = T.Bind(line // image.height), T.Bind(line % image.height)
            start = T.Bind(image.at(number, row, column, 0))
            with T.serial(0, image.channels) as channel:
                T.buffer_store(levels, _unsigned(plain[number, channel, row, column], signed), [start + channel])
            _fill_channels(levels, start, image, zero_point)
        fill_halo(levels, image, zero_point)
    return finish()


def pack_rows_kernel(image: Image, *, scale: float, zero_point: int) -> Any:
    """Build `pack_kernel` for a matrix, float32 `[pixels, channels]`."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    arguments = {"real": ((image.width, image.channels), "float32"), "levels": (image.size, "uint8")}
    lanes = _LANES if image.channels >= _LANES else 1
    kind = vector("float32", lanes)
    with primitive("quantize_rows", arguments) as (finish, (real, levels)), shared(image.width, image.size) as pixel:
        start = T.Bind(image.at(0, 0, pixel, 0))
        with T.serial(0, -(-image.channels // lanes)) as tile:
            channel = T.Bind(T.min(tile * lanes, image.channels - lanes))
            steps = real.vload([pixel, channel], kind) / spread(T.float32(scale), lanes)
            T.buffer_store(levels, saturated(steps, zero_point, 0, 255, lanes), _run(None, start + channel, lanes))
        _fill_channels(levels, start, image, zero_point)
    return finish()


def move_rows_in_kernel(image: Image, *, signed: bool, zero_point: int) -> Any:
    """Build `move_in_kernel` for a matrix, `[pixels, channels]`."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    shape = (image.width, image.channels)
    arguments = {"plain": (shape, "int8" if signed else "uint8"), "levels": (image.size, "uint8")}
    with primitive("move_rows_in", arguments) as (finish, (plain, levels)), shared(image.width, image.size) as pixel:
        start = T.Bind(image.at(0, 0, pixel, 0))
        with T.serial(0, image.channels) as channel:
            T.buffer_store(levels, _unsigned(plain[pixel, channel], signed), [start + channel])
        _fill_channels(levels, start, image, zero_point)
    return finish()


def move_out_kernel(image: Image, *, signed: bool, rows: bool) -> Any:
    """Build the copy of levels in our layout to int8 or uint8 in ONNX's.

    Args:
        image: our layout.
        signed: whether to int8.
        rows: whether to `[pixels, channels]`, else to `[batch, channels, height, width]`.
    """
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    def convert(level: Any) -> Any:
        return T.reinterpret("int8", T.bitwise_xor(level, T.uint8(128))) if signed else level

    return _out_kernel("move_out", image, "uint8", "int8" if signed else "uint8", convert, rows=rows)


def unpack_kernel(image: Image, *, scale: float, zero_point: int, rows: bool) -> Any:
    """Build ONNX's DequantizeLinear of levels in our layout, to float32 in ONNX's; see `move_out_kernel`."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    def convert(level: Any) -> Any:
        return T.Cast("float32", T.Cast("int32", level) - T.int32(zero_point)) * T.float32(scale)

    return _out_kernel("dequantize", image, "uint8", "float32", convert, rows=rows)


def crop_kernel(image: Image, *, rows: bool) -> Any:
    """Build the copy of real numbers in our layout (float32 instead of uint8) to ONNX's; see `move_out_kernel`."""
    return _out_kernel("crop", image, "float32", "float32", lambda number: number, rows=rows)


def _out_kernel(name: str, image: Image, source: str, result: str, convert: Any, *, rows: bool) -> Any:
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    shape = (image.width, image.channels) if rows else _plain(image)
    with primitive(name, {"levels": (image.size, source), "plain": (shape, result)}) as (finish, (levels, plain)):
        if rows:
            with shared(image.width, image.size) as pixel, T.serial(0, image.channels) as channel:
                T.buffer_store(plain, convert(levels[image.at(0, 0, pixel, channel)]), [pixel, channel])
        elif image.width >= _LANES:
            with shared(image.batch * image.channels, image.size) as plane:
                number, channel = T.Bind(plane // image.channels), T.Bind(plane % image.channels)
                with T.serial(0, image.height) as row, T.serial(0, image.width) as column:
                    level = levels[image.at(number, row, column, channel)]
                    T.buffer_store(plain, convert(level), [number, channel, row, column])
        else:
            with shared(image.batch * image.height, image.size) as line:
                number, row = T.Bind(line // image.height), T.Bind(line % image.height)
                # Columns innermost would be unrolled here, and LLVM would compile shuffles of all lanes for seconds.
                with T.serial(0, image.width) as column, T.serial(0, image.channels) as channel:
                    level = levels[image.at(number, row, column, channel)]
                    T.buffer_store(plain, convert(level), [number, channel, row, column])
    return finish()


def _plain(image: Image) -> tuple[int, int, int, int]:
    return image.batch, image.channels, image.height, image.width


def _fill_channels(levels: Any, start: Any, image: Image, zero_point: int) -> None:
    """Give channels that only fill the last vector a number: no product sees it, but what is read is written."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    if image.depth > image.channels:
        with T.serial(image.channels, image.depth) as channel:
            T.buffer_store(levels, T.uint8(zero_point), [start + channel])


def _unsigned(level: Any, signed: bool) -> Any:
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    return T.bitwise_xor(T.reinterpret("uint8", level), T.uint8(128)) if signed else level


def _run(first: Any, start: Any, lanes: int) -> list[Any]:
    """Index of `lanes` neighbours along the last axis; `first` is that of the axis before, None where there is none."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    last = T.ramp(start, 1, lanes) if lanes > 1 else start
    return [last] if first is None else [first, last]
