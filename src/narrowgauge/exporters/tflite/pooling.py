"""Pools, global ones included."""

from __future__ import annotations

from typing import Any

import numpy as np

from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.forms import Levels, extents_of, permuted
from narrowgauge.exporters.tflite.spatial import (
    Window,
    as_plane,
    emit_plane,
    padded,
    read_plane,
    window_of,
    with_height,
)


def max_pool(call: Call) -> None:
    """MaxPool: MAX_POOL_2D, behind padding with the least number where TFLite has no name for the padding."""
    if len([value for value in call.node.outputs if value.name and value.uses()]) > 1:
        raise call.refusal("TFLite gives no places of the greatest numbers")
    levels = call.levels(call.input())
    window = _rounded_up(call, as_plane(window_of(call, call.wholes("kernel_shape", ()))))
    _refuse_dilation(call, window)
    source, padding = padded(call, read_plane(call, levels), window, levels, lowest=True)
    emit_plane(call, "MAX_POOL_2D", [source], _options(window, padding), levels=levels)


def average_pool(call: Call) -> None:
    """AveragePool: AVERAGE_POOL_2D, whose cells outside the input do not count.

    Where they count, the input is padded with zeros first; where they do not and TFLite has no name for the padding,
    sums of the padded input are divided by how many cells each has.
    """
    levels = call.levels(call.input())
    window = _rounded_up(call, as_plane(window_of(call, call.wholes("kernel_shape", ()))))
    _refuse_dilation(call, window)
    counted = bool(call.whole("count_include_pad", 0))
    pads = any(window.begins) or any(window.ends)
    if not pads or (window.padding == "SAME" and not counted):
        options = _options(window, window.padding)
        emit_plane(call, "AVERAGE_POOL_2D", [read_plane(call, levels)], options, levels=levels)
        return
    if counted and not call.whole("ceil_mode", 0):
        source, padding = padded(call, read_plane(call, levels), _without_name(window), levels)
        emit_plane(call, "AVERAGE_POOL_2D", [source], _options(window, padding), levels=levels)
        return
    call = call.in_float()  # integer pools have no padding of this kind
    _corrected(call, read_plane(call, None), window, counted=counted)


def _corrected(call: Call, plane: int, window: Window, *, counted: bool) -> None:
    """Average over the padded input, times how many cells a window has to how many of them count."""
    extents = tuple(extent for extent in window.extents if extent is not None)
    if len(extents) != 2:
        raise call.refusal("expected a fixed height and width")
    source, padding = padded(call, plane, _without_name(window), None)
    shape = permuted(extents_of(call.result()), call.last())
    out = with_height(shape)
    average = call.between("AVERAGE_POOL_2D", [source], out, _options(window, padding))
    counts = np.ones((1, 1), np.float32)
    asked = call.wholes("pads", [0] * 4)
    for axis, (extent, size, stride) in enumerate(zip(extents, window.kernel, window.strides, strict=True)):
        begin, length = window.begins[axis], out[1 + axis]
        assert length is not None
        low, high = (0, extent) if not counted else (-begin, extent + _named_end(asked, axis, len(window.kernel)))
        starts = np.arange(length) * stride - begin
        inside = np.minimum(starts + size, high) - np.maximum(starts, low)
        counts = counts * inside.reshape((-1, 1) if axis == 0 else (1, -1)).astype(np.float32)
    factor = (np.prod(window.kernel) / counts).astype(np.float32)[np.newaxis, :, :, np.newaxis]
    emit_plane(call, "MUL", [average, call.constant(factor, "shares", np.float32)], {})


def _named_end(pads: list[int], axis: int, count: int) -> int:
    """Return the padding behind an axis that the node names, without what rounding up adds."""
    spatial = len(pads) // 2
    return pads[spatial + axis - (count - spatial)] if axis >= count - spatial else 0


def _rounded_up(call: Call, window: Window) -> Window:
    """Pad behind the input as far as a last window reaches that `ceil_mode` adds."""
    if not call.whole("ceil_mode", 0):
        return window
    ends = list(window.ends)
    out = with_height(permuted(extents_of(call.result()), call.last()))[1:3]
    for axis, (extent, reach, stride) in enumerate(zip(window.extents, window.reaches, window.strides, strict=True)):
        length = out[axis]
        if extent is None or length is None:
            raise call.refusal("its last window may reach beyond the input, whose size is not known")
        ends[axis] = max(ends[axis], (length - 1) * stride + reach - extent - window.begins[axis])
    return Window(
        kernel=window.kernel, strides=window.strides, dilations=window.dilations, begins=window.begins,
        ends=tuple(ends), extents=window.extents,
    )  # fmt: skip


def _without_name(window: Window) -> Window:
    """Let padding be an operator of its own, even where SAME would stand for it."""
    return _Padded(
        kernel=window.kernel, strides=window.strides, dilations=window.dilations, begins=window.begins,
        ends=window.ends, extents=window.extents,
    )  # fmt: skip


class _Padded(Window):
    __slots__ = ()

    @property
    def padding(self) -> str:
        return ""


def _refuse_dilation(call: Call, window: Window) -> None:
    if any(step != 1 for step in window.dilations):
        raise call.refusal(f"TFLite's pools have no dilation, got {list(window.dilations)}")


def _options(window: Window, padding: str) -> dict[str, Any]:
    return {
        "padding": padding, "stride_h": window.strides[0], "stride_w": window.strides[1],
        "filter_height": window.kernel[0], "filter_width": window.kernel[1],
    }  # fmt: skip


def global_pool(call: Call) -> None:
    """GlobalAveragePool and GlobalMaxPool: MEAN and REDUCE_MAX over the spatial axes."""
    order, rank = call.last(), call.rank()
    name = "MEAN" if call.node.op_type == "GlobalAveragePool" else "REDUCE_MAX"
    axes = call.constant(list(range(1, rank - 1)), "axes")
    kept: Levels | None = call.levels(call.input()) if name == "REDUCE_MAX" else None
    call.emit(name, [call.read(0, order), axes], {"keep_dims": True}, order=order, levels=kept)
