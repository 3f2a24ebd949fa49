"""Resize: RESIZE_NEAREST_NEIGHBOR and RESIZE_BILINEAR, where one of their rules reads the same places."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.forms import extents_of, permuted

Places = npt.NDArray[np.float64]

_RULES = ((False, True), (False, False), (True, False))
"""(align_corners, half_pixel_centers), the usual one first."""


def resize(call: Call) -> None:
    """Resize of height and width by nearest or linear interpolation.

    TFLite's kernels know three rules of which place of the input a place of the output reads. For the sizes at hand,
    the one is taken that reads the same places as ONNX's rule.
    """
    order, mode = call.last(), call.text("mode", "nearest")
    before, after = (permuted(extents, order) for extents in (call.extents(), extents_of(call.result())))
    if call.rank() != 4 or before[3] != after[3] or mode not in ("nearest", "linear"):
        raise call.refusal("expected height and width to be resized by nearest or linear interpolation")
    if None in before[1:3] or None in after[1:3]:
        raise call.refusal("expected a fixed height and width before and after it")
    if call.whole("antialias", 0):
        raise call.refusal("TFLite has no antialiasing")
    sizes = [(before[axis], after[axis]) for axis in (1, 2)]
    wanted = [_wanted(call, mode, axis, int(old or 0), int(new or 0)) for axis, (old, new) in enumerate(sizes)]
    for corners, centers in _RULES:
        found = [_places(mode, int(old or 0), int(new or 0), corners=corners, centers=centers) for old, new in sizes]
        if all(np.allclose(one, other, atol=1e-4) for one, other in zip(wanted, found, strict=True)):
            break
    else:
        transformation = call.text("coordinate_transformation_mode", "half_pixel")
        raise call.refusal(f"TFLite has no {mode} interpolation at places by the rule {transformation}")
    name = "RESIZE_BILINEAR" if mode == "linear" else "RESIZE_NEAREST_NEIGHBOR"
    inputs = [call.read(0, order), call.constant([new for _, new in sizes], "size")]
    options = {"align_corners": corners, "half_pixel_centers": centers}
    call.emit(name, inputs, options, order=order, levels=call.levels(call.input()))


def _wanted(call: Call, mode: str, axis: int, old: int, new: int) -> Places:
    """Return which places of the input ONNX reads along a spatial axis (ONNX, Resize)."""
    rule = call.text("coordinate_transformation_mode", "half_pixel")
    place, scale = np.arange(new, dtype=np.float64), _scale(call, axis, old, new)
    if rule == "align_corners":
        source = place * (old - 1) / (new - 1) if new > 1 else place * 0
    elif rule == "asymmetric":
        source = place / scale
    elif rule == "half_pixel" or (rule == "pytorch_half_pixel" and new > 1):
        source = (place + 0.5) / scale - 0.5
    elif rule == "pytorch_half_pixel":
        source = place * 0
    elif rule == "half_pixel_symmetric":
        middle = old / 2 * (1 - new / (old * scale))
        source = middle + (place + 0.5) / scale - 0.5
    else:
        raise call.refusal(f"TFLite has no counterpart of the rule {rule}")
    if mode == "nearest":
        how = call.text("nearest_mode", "round_prefer_floor")
        source = {
            "round_prefer_floor": np.ceil(source - 0.5), "round_prefer_ceil": np.floor(source + 0.5),
            "floor": np.floor(source), "ceil": np.ceil(source),
        }[how]  # fmt: skip
    return np.asarray(np.clip(source, 0, old - 1))


def _scale(call: Call, axis: int, old: int, new: int) -> float:
    """Return the factor that places are divided by: as given, since sizes may be rounded down."""
    scales = call.array(2)
    named = call.wholes("axes", range(call.rank()))
    if scales is None or not scales.size or axis + 2 not in named:
        return new / old
    return float(scales[named.index(axis + 2)])


def _places(mode: str, old: int, new: int, *, corners: bool, centers: bool) -> Places:
    """Return which places of the input TFLite reads (resize_nearest_neighbor.h, resize_bilinear.h)."""
    place = np.arange(new, dtype=np.float64)
    scale = (old - 1) / (new - 1) if corners and new > 1 else old / new
    if mode == "nearest":
        source = np.floor((place + 0.5) * scale) if centers else place * scale
        source = np.floor(source + 0.5) if corners else np.floor(source)
    else:
        source = (place + 0.5) * scale - 0.5 if centers else place * scale
    return np.asarray(np.clip(source, 0, old - 1))
