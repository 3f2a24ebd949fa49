"""Operators that move, select or repeat elements, and those that compute with shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from narrowgauge.lowering.pytorch.call import Call, as_tensor, whole


def reshape(call: Call) -> Any:
    """Reshape: 0 keeps an axis unless `allowzero`, -1 takes what is left."""
    values, wanted = call.tensor(0), call.integers(1) or []
    if not call.integer("allowzero", 0):
        wanted = [
            values.shape[axis] if isinstance(size, int) and size == 0 else size for axis, size in enumerate(wanted)
        ]
    return values.reshape(wanted)


def flatten(call: Call) -> Any:
    """Flatten to a matrix whose columns begin at `axis`."""
    values, axis = call.tensor(), call.integer("axis", 1)
    axis = axis + values.dim() if axis < 0 else axis
    if axis == 1 and values.dim() > 1:
        return values.flatten(1)
    rows: Any = 1
    for size in values.shape[:axis]:
        rows = rows * size
    columns: Any = 1
    for size in values.shape[axis:]:
        columns = columns * size
    return values.reshape(rows, columns)


def transpose(call: Call) -> Any:
    """Transpose; without `perm` the axes are turned round."""
    values = call.tensor()
    return values.permute(call.sizes("perm") or list(reversed(range(values.dim()))))


def concat(call: Call) -> Any:
    """Concat, also of shapes."""
    return call.torch.cat(call.tensors(), call.integer("axis", 0))


def split(call: Call) -> Any:
    """Split in given or equal parts."""
    values, axis = call.tensor(0), call.integer("axis", 0)
    sizes = call.integers(1, "split")
    if sizes is None:
        parts = call.integer("num_outputs", len(call.node.outputs))
        each = -(-values.shape[axis] // parts)
        sizes = [each] * (parts - 1) + [values.shape[axis] - each * (parts - 1)]
    return tuple(call.torch.split(values, sizes, axis))


def sliced(call: Call) -> Any:
    """Slice; a negative step turns the axis round first."""
    values = call.tensor(0)
    starts, ends = call.integers(1) or [], call.integers(2) or []
    axes = call.integers(3) or list(range(len(starts)))
    steps = call.integers(4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        values = _slice(values, start, end, axis % values.dim(), step)
    return values


def _slice(values: Any, start: Any, end: Any, axis: int, step: int) -> Any:
    if step > 0:
        index = [slice(None)] * axis + [slice(start, None if _beyond(end) else end, step)]
        return values[tuple(index)]
    length = values.shape[axis]
    # Position p from the front is length - 1 - p from the back; a start beyond the end is the last element.
    first = length - 1 if start >= length else start % length
    last = -1 if end < -length else end % length if end < 0 else end
    index = [slice(None)] * axis + [slice(length - 1 - first, length - 1 - last, -step)]
    return values.flip(axis)[tuple(index)]


def _beyond(end: Any) -> bool:
    """Whether an end only says "to the last": exporters write the largest integer for that."""
    return isinstance(end, int) and end >= 2**31 - 1


def gather(call: Call) -> Any:
    """Gather along one axis; negative indices count from the end."""
    values, axis, indices = call.tensor(0), call.integer("axis", 0), call.inputs[1]
    axis = axis % values.dim()
    if isinstance(indices, np.ndarray) and indices.ndim == 0:
        return values.select(axis, whole(indices.item()))
    positions = as_tensor(call.torch, indices)
    if axis == 0 and values.dim() == 2 and not isinstance(indices, np.ndarray) and values.dtype.is_floating_point:
        return call.torch.nn.functional.embedding(_not_negative(call, positions, values.shape[0]), values)
    if isinstance(indices, np.ndarray) and indices.dtype != object:
        positions = call.torch.from_numpy(np.where(indices < 0, indices + values.shape[axis], indices))
    else:
        positions = _not_negative(call, positions, values.shape[axis])
    taken = values.index_select(axis, positions.reshape(-1))
    return taken.reshape([*values.shape[:axis], *positions.shape, *values.shape[axis + 1 :]])


def _not_negative(call: Call, positions: Any, length: Any) -> Any:
    return call.torch.where(positions < 0, positions + length, positions)


def gather_elements(call: Call) -> Any:
    """GatherElements."""
    values, axis, positions = call.tensor(0), call.integer("axis", 0), call.tensor(1)
    return call.torch.gather(values, axis, _not_negative(call, positions, values.shape[axis]))


def squeeze(call: Call) -> Any:
    """Squeeze the named axes, or all of one."""
    values, axes = call.tensor(0), call.integers(1, "axes")
    return values.squeeze() if axes is None else values.squeeze(tuple(axes))


def unsqueeze(call: Call) -> Any:
    """Unsqueeze; axes are those of the result."""
    values, axes = call.tensor(0), call.integers(1, "axes") or []
    rank = values.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        values = values.unsqueeze(axis)
    return values


def pad(call: Call) -> Any:
    """Pad with a constant, or mirror or repeat the border."""
    values, mode = call.tensor(0), call.text("mode", "constant")
    sizes = call.integers(1, "pads") or []
    axes = call.integers(3) or list(range(values.dim()))
    axes = [axis % values.dim() for axis in axes]
    before, after = [0] * values.dim(), [0] * values.dim()
    for position, axis in enumerate(axes):
        before[axis], after[axis] = sizes[position], sizes[position + len(axes)]
    pairs = [size for axis in reversed(range(values.dim())) for size in (before[axis], after[axis])]
    if mode == "constant":
        fill = float(call.known(2).reshape(())) if call.has(2) else 0.0
        return call.torch.nn.functional.pad(values, pairs, value=fill)
    kind = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
    while pairs and pairs[-2:] == [0, 0]:  # torch pads the last axes only, and not the first two
        pairs = pairs[:-2]
    if len(pairs) // 2 > values.dim() - 2 and len(pairs) // 2 != values.dim() - 1:
        raise call.refusal(f"padding by {mode} of spatial axes only")
    return call.torch.nn.functional.pad(values, pairs, mode=kind)


def expand(call: Call) -> Any:
    """Expand: both shapes are broadcast together."""
    values, wanted = call.tensor(0), call.integers(1) or []
    rank = max(values.dim(), len(wanted))
    have = [1] * (rank - values.dim()) + list(values.shape)
    want = [1] * (rank - len(wanted)) + wanted
    return values.expand([a if isinstance(b, int) and b == 1 else b for a, b in zip(have, want, strict=True)])


def tile(call: Call) -> Any:
    """Tile."""
    return call.tensor(0).repeat(call.integers(1) or [])


def depth_to_space(call: Call) -> Any:
    """DepthToSpace of images."""
    values, block = call.tensor(), call.integer("blocksize", 1)
    if call.text("mode", "DCR") == "CRD":
        return call.torch.nn.functional.pixel_shuffle(values, block)
    samples, channels, height, width = values.shape
    parts = values.reshape(samples, block, block, channels // block**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(samples, channels // block**2, height * block, width * block)


def space_to_depth(call: Call) -> Any:
    """SpaceToDepth of images."""
    values, block = call.tensor(), call.integer("blocksize", 1)
    samples, channels, height, width = values.shape
    parts = values.reshape(samples, channels, height // block, block, width // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(samples, channels * block**2, height // block, width // block)


def resize(call: Call) -> Any:
    """Resize of the spatial axes: nearest, linear or cubic, as far as torch computes the same coordinates."""
    values = call.tensor(0)
    mode, how = call.text("mode", "nearest"), call.text("coordinate_transformation_mode", "half_pixel")
    axes = call.sizes("axes")
    if axes is not None and sorted(axis % values.dim() for axis in axes) != list(range(2, values.dim())):
        raise call.refusal("a Resize of all spatial axes")
    scales = [float(scale) for scale in call.known(2).reshape(-1)] if call.has(2) and call.known(2).size else None
    sizes = call.integers(3) if call.has(3) else None
    if axes is None:
        if scales is not None and any(scale != 1.0 for scale in scales[:2]):
            raise call.refusal("a Resize of spatial axes only")
        scales = None if scales is None else scales[2:]
        sizes = None if sizes is None else sizes[2:]
    if call.integer("antialias", 0) or call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refusal("a Resize without antialiasing that stretches")
    return _resized(call, values, mode, how, sizes=sizes, scales=scales)


def _resized(call: Call, values: Any, mode: str, how: str, *, sizes: Any, scales: Any) -> Any:
    interpolate = call.torch.nn.functional.interpolate
    chosen = {"size": sizes} if sizes is not None else {"scale_factor": scales}
    if mode == "nearest":
        nearest = call.text("nearest_mode", "round_prefer_floor")
        up = _whole_factors(values, sizes, scales)
        plain = how == "asymmetric" and (nearest == "floor" or up)
        centred = how in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel") and up
        if not plain and not (centred and nearest.startswith("round")) and not (nearest == "floor" and centred):
            raise call.refusal(f"a nearest Resize by whole factors or by {'asymmetric'!r} and 'floor', it has {how!r}")
        return interpolate(values, **chosen, mode="nearest")
    spatial = values.dim() - 2
    kind = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}
    cubic_fits = mode != "cubic" or (
        call.number("cubic_coeff_a", -0.75) == -0.75 and not call.integer("exclude_outside", 0)
    )
    if (
        (mode, spatial) not in kind
        or how not in ("half_pixel", "pytorch_half_pixel", "align_corners")
        or not cubic_fits
    ):
        raise call.refusal(f"a Resize that torch.nn.functional.interpolate computes, it is {mode!r} with {how!r}")
    return interpolate(values, **chosen, mode=kind[mode, spatial], align_corners=how == "align_corners")


def _whole_factors(values: Any, sizes: Any, scales: Any) -> bool:
    """Whether every axis grows by a whole factor, so that all ways to find the nearest agree."""
    if scales is not None:
        return all(scale >= 1 and scale == int(scale) for scale in scales)
    return all(
        isinstance(size, int) and isinstance(have, int) and size % have == 0
        for size, have in zip(sizes, values.shape[2:], strict=True)
    )


def shape(call: Call) -> Any:
    """Shape, as numbers that are known while the module is traced."""
    sizes = list(call.tensor().shape)
    end = call.node.attributes.get_int("end", len(sizes))
    return known(sizes[call.integer("start", 0) : end])


def size(call: Call) -> Any:
    """Size: the number of elements."""
    return known(call.tensor().numel())


def known(numbers: Any) -> Any:
    """Return integers, some of which may be symbolic sizes, as an array."""
    flat = numbers if isinstance(numbers, list) else [numbers]
    if all(isinstance(number, int) for number in flat):
        return np.array(numbers, dtype=np.int64)
    array = np.empty(len(flat), dtype=object)
    array[:] = flat
    return array if isinstance(numbers, list) else array.reshape(())


def constant_of_shape(call: Call) -> Any:
    """ConstantOfShape."""
    held = call.node.attributes.get("value")
    fill = np.zeros(1, np.float32) if held is None else held.as_tensor().numpy()
    kind = as_tensor(call.torch, fill).dtype
    return call.torch.full(call.integers(0) or [], fill.reshape(()).item(), dtype=kind)


def arange(call: Call) -> Any:
    """Range of known bounds."""
    kind = as_tensor(call.torch, call.constants[0]).dtype if call.constants[0] is not None else call.torch.int64
    bounds = [call.known(number).reshape(()).item() for number in range(3)]
    return call.torch.arange(*bounds, dtype=kind)


def einsum(call: Call) -> Any:
    """Einsum."""
    return call.torch.einsum(call.text("equation", ""), *call.tensors())


def triangle(call: Call) -> Any:
    """Trilu: the upper or lower triangle."""
    diagonal = int(call.known(1).reshape(())) if call.has(1) else 0
    function = call.torch.triu if call.integer("upper", 1) else call.torch.tril
    return function(call.tensor(0), diagonal)
