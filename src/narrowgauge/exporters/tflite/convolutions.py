"""Conv and ConvTranspose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.forms import cut_options
from narrowgauge.exporters.tflite.spatial import as_plane, emit_plane, padded, read_plane, window_of
from narrowgauge.exporters.tflite.weights import Weights, add_bias, add_weights, add_zeros, weights_of


def convolution(call: Call) -> None:
    """Conv: CONV_2D with weights [out, height, width, in / groups], or DEPTHWISE_CONV_2D, [1, height, width, out]."""
    weights = weights_of(call)
    if weights is None:
        raise call.refusal("its weights are computed")
    out, per_group, *kernel = weights.array.shape
    groups, levels = call.whole("group", 1), call.levels(call.input())
    window = as_plane(window_of(call, kernel))
    source, padding = padded(call, read_plane(call, levels), window, levels)
    options: dict[str, Any] = {
        "padding": padding, "stride_h": window.strides[0], "stride_w": window.strides[1],
        "dilation_h_factor": window.dilations[0], "dilation_w_factor": window.dilations[1],
    }  # fmt: skip
    bias = call.node.inputs[2] if call.given(2) else None
    plane = (out, per_group, *window.kernel)
    if groups > 1 and per_group == 1 and groups == call.extents()[1]:
        options["depth_multiplier"] = out // groups
        name, weights = "DEPTHWISE_CONV_2D", weights.reshaped(plane, (1, 2, 3, 0), 3)
    else:
        name, weights = "CONV_2D", weights.reshaped(plane, (0, 2, 3, 1), 0)
    inputs = [source, add_weights(call, weights, name), *(add_bias(call, bias, out) or add_zeros(call, out))]
    emit_plane(call, name, inputs, options)


def transposed_convolution(call: Call) -> None:
    """ConvTranspose: TRANSPOSE_CONV with weights [out, height, width, in], and what padding it has no name for cut off.

    SAME and VALID say how a convolution that led from the output to the input would pad the output
    (transpose_conv.cc).
    """
    weights = weights_of(call)
    if weights is None or call.whole("group", 1) != 1:
        raise call.refusal("expected constant weights and one group")
    channels, out, *kernel = weights.array.shape
    levels, count = call.levels(call.input()), len(kernel)
    dilations = call.wholes("dilations", [1] * count)
    weights, kernel = _dilated(weights, kernel, dilations), [
        (size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)
    ]  # fmt: skip
    crop = _crop(call, kernel)
    if count == 1:
        kernel, crop = [1, *kernel], [_Crop(size=1, stride=1, extent=1, begin=0, out=1), *crop]
    weights = weights.reshaped((channels, out, *kernel), (1, 2, 3, 0), 0)
    source = read_plane(call, levels)
    same = all(one.same for one in crop)
    sizes = [one.out if same else max(one.full, one.begin + one.out) for one in crop]
    rows = call.extents()[0]
    options = {"padding": "SAME" if same else "VALID", "stride_h": crop[0].stride, "stride_w": crop[1].stride}
    inputs = [
        _output_shape(call, source, rows, [*sizes, out]), add_weights(call, weights, "TRANSPOSE_CONV"), source
    ]  # fmt: skip
    inputs += add_bias(call, call.node.inputs[2] if call.given(2) else None, out)
    if same or all(one.begin == 0 and size == one.out for one, size in zip(crop, sizes, strict=True)):
        emit_plane(call, "TRANSPOSE_CONV", inputs, options)
        return
    given = dict(options, fused_activation_function=call.step.activation)
    whole = call.between("TRANSPOSE_CONV", inputs, (rows, *sizes, out), given, levels=call.levels(call.result()))
    begins = [0, *(one.begin for one in crop), 0]
    ends = [0, *(one.begin + one.out for one in crop), 0]
    places = [call.constant(one, name) for one, name in ((begins, "begins"), (ends, "ends"), ([1] * 4, "strides"))]
    plain = replace(call, step=replace(call.step, activation="NONE"))  # it is applied already
    emit_plane(plain, "STRIDED_SLICE", [whole, *places], cut_options(0b1001, 0b1001))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Crop:
    """One spatial axis of a transposed convolution: what is made, and what of it is the output."""

    size: int
    stride: int
    extent: int
    begin: int
    out: int

    @property
    def full(self) -> int:
        """How long the output is before anything is cut off."""
        return (self.extent - 1) * self.stride + self.size

    @property
    def same(self) -> bool:
        """Whether SAME cuts off the same."""
        return -(-self.out // self.stride) == self.extent and max(self.full - self.out, 0) // 2 == self.begin


def _crop(call: Call, kernel: Sequence[int]) -> list[_Crop]:
    count = len(kernel)
    strides, beyond = call.wholes("strides", [1] * count), call.wholes("output_padding", [0] * count)
    pads, automatic = call.wholes("pads", [0] * 2 * count), call.text("auto_pad", "NOTSET")
    wanted = call.wholes("output_shape", ())
    crops = []
    for axis, extent in enumerate(call.extents()[2:]):
        if extent is None:
            raise call.refusal("expected a fixed height and width")
        size, stride = kernel[axis], strides[axis]
        begin = pads[axis]
        out = (extent - 1) * stride + size + beyond[axis] - pads[axis] - pads[axis + count]
        if wanted or automatic in ("SAME_UPPER", "SAME_LOWER"):
            out = wanted[axis] if wanted else extent * stride
            total = max((extent - 1) * stride + size + beyond[axis] - out, 0)
            begin = total - total // 2 if automatic == "SAME_LOWER" else total // 2
            if automatic == "NOTSET":  # ONNX, ConvTranspose: the odd cell before, unless SAME_UPPER is said
                begin = total - total // 2
        crops.append(_Crop(size=size, stride=stride, extent=extent, begin=begin, out=out))
    return crops


def _dilated(weights: Weights, kernel: Sequence[int], dilations: Sequence[int]) -> Weights:
    """Put zeros between the weights, since TRANSPOSE_CONV knows no dilation."""
    if all(step == 1 for step in dilations):
        return weights
    shape = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    places = (slice(None), slice(None), *(slice(None, None, step) for step in dilations))

    def spread(array: npt.NDArray[Any], zero: int = 0) -> npt.NDArray[Any]:
        wide = np.full((*array.shape[:2], *shape), zero, dtype=array.dtype)
        wide[places] = array
        return wide

    quantization, levels = weights.quantization, weights.levels
    if levels is not None and quantization is not None:
        levels = spread(levels, int(quantization.zero_point[0]))
    return Weights(array=spread(weights.array), name=weights.name, levels=levels, quantization=quantization)


def _output_shape(call: Call, source: int, rows: int | None, behind: Sequence[int]) -> int:
    """Return the shape of the output, with the number of rows that the input has at run time where that is open."""
    if rows is not None:
        return call.constant([rows, *behind], "output_shape")
    shape = call.between("SHAPE", [source], (4,), {"out_type": "INT32"}, type="INT32")
    places = [call.constant([number], "place") for number in (0, 1, 1)]
    first = call.between("STRIDED_SLICE", [shape, *places], (1,), cut_options(), type="INT32")
    return call.between(
        "CONCATENATION", [first, call.constant(list(behind), "output_shape")], (4,), {"axis": 0}, type="INT32"
    )
