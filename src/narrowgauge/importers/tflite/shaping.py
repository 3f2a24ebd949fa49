"""Operators that move, cut, join and repeat numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from narrowgauge.importers.tflite.arithmetic import ONNX_TYPES
from narrowgauge.importers.tflite.emitter import CHANNELS_FIRST, Call, Order, Results, Written

_FAR = np.iinfo(np.int64).max
"""An end beyond every axis."""


def moved_axis(axis: int, order: Order) -> int:
    """Return where an axis of the file's order is in another."""
    return order.index(axis) if order else axis


def reshape(call: Call) -> Results:
    """RESHAPE: the shape is input 1, or in old files an option."""
    if not call.given(1):
        shape = call.operator.options.get("new_shape")
        if shape is None:
            raise call.refusal("expected a shape as input 1 or as the option 'new_shape'")
        return _reshaped(call, [int(extent) for extent in shape])
    if call.is_constant(1):
        return _reshaped(call, call.integers(1))
    return call.node("Reshape", call.read(), call.long(1))


def _reshaped(call: Call, shape: list[int]) -> ir.Value:
    # An extent of 0 is one here; in ONNX it means the input's unless said otherwise.
    zero = {"allowzero": 1} if 0 in shape else {}
    return call.node("Reshape", call.read(), call.constant(shape, "shape"), **zero)


def transpose(call: Call) -> Results:
    """TRANSPOSE by a constant order."""
    order = call.integers(1)
    if sorted(order) != list(range(call.rank())):
        raise call.refusal(f"expected an order of {call.rank()} axes, got {order}")
    return call.node("Transpose", call.read(), perm=order)


def squeeze(call: Call) -> Results:
    """SQUEEZE: the axes named, or all of one entry."""
    named = call.operator.options.get("squeeze_dims")
    axes = [] if named is None else [call.from_front(int(axis), call.rank()) for axis in named]
    axes = axes or [axis for axis, extent in enumerate(call.extents()) if extent == 1]
    return (
        call.node("Squeeze", call.read(), call.constant(axes, "axes")) if axes else call.node("Identity", call.read())
    )


def expand_dims(call: Call) -> Results:
    """EXPAND_DIMS."""
    axis = call.axis(1, call.rank() + 1)
    return call.node("Unsqueeze", call.read(), call.constant([axis], "axes"))


def concatenation(call: Call) -> Results:
    """CONCATENATION, channels first where its inputs are."""
    order = call.free_order()
    axis = call.from_front(int(call.option("axis")), call.rank())
    values = [call.read(number, order) for number in range(len(call.operator.inputs))]
    return Written(value=call.node("Concat", *values, axis=moved_axis(axis, order)), order=order)


def split(call: Call) -> Results:
    """SPLIT into equal parts: input 0 is the axis."""
    count = len(call.operator.outputs)
    axis = call.axis(0, call.rank(1))
    return call.nodes("Split", call.read(1), count=count, axis=axis, num_outputs=count)


def split_v(call: Call) -> Results:
    """SPLIT_V into parts of given sizes; one of them may be -1, the rest."""
    sizes, axis = call.integers(1), call.axis(2, call.rank())
    extent = call.extents()[axis]
    if -1 in sizes:
        if extent is None or sizes.count(-1) > 1:
            raise call.refusal(f"expected sizes of all parts along an axis of {extent} entries, got {sizes}")
        sizes[sizes.index(-1)] = extent - sum(sizes) - 1
    if len(sizes) != len(call.operator.outputs) or min(sizes) < 0 or extent not in (None, sum(sizes)):
        raise call.refusal(f"expected {len(call.operator.outputs)} sizes that sum up to {extent}, got {sizes}")
    return call.nodes("Split", call.read(), call.constant(sizes, "sizes"), count=len(sizes), axis=axis)


def pack(call: Call) -> Results:
    """PACK: each input becomes one entry of a new axis."""
    axis = call.from_front(int(call.option("axis")), call.rank() + 1)
    axes = call.constant([axis], "axes")
    parts = [call.node("Unsqueeze", call.read(number), axes) for number in range(len(call.operator.inputs))]
    return call.node("Concat", *parts, axis=axis)


def unpack(call: Call) -> Results:
    """UNPACK: each entry of an axis becomes an output."""
    count = len(call.operator.outputs)
    axis = call.from_front(int(call.option("axis")), call.rank())
    if call.extents()[axis] not in (None, count):
        raise call.refusal(f"expected {call.extents()[axis]} outputs, one for each entry of axis {axis}, got {count}")
    parts = call.nodes("Split", call.read(), count=count, axis=axis, num_outputs=count)
    axes = call.constant([axis], "axes")
    return [call.node("Squeeze", part, axes) for part in parts]


def slice_by_size(call: Call) -> Results:
    """SLICE: begins and sizes, -1 of which is up to the end."""
    if call.is_constant(1) and call.is_constant(2):
        begins, sizes = call.integers(1), call.integers(2)
        ends = [_FAR if size == -1 else begin + size for begin, size in zip(begins, sizes, strict=True)]
        return call.node("Slice", call.read(), call.constant(begins, "begins"), call.constant(ends, "ends"))
    begin, size = call.long(1), call.long(2)
    open_end = call.node("Equal", size, call.constant(-1, "rest"))
    end = call.node("Where", open_end, call.constant(_FAR, "far"), call.node("Add", begin, size))
    return call.node("Slice", call.read(), begin, end)


@dataclass(kw_only=True, slots=True)
class _Cuts:
    """What a slice with masks does, axis by axis of the input."""

    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    strides: list[int] = field(default_factory=list)
    axes: list[int] = field(default_factory=list)
    shrunk: list[int] = field(default_factory=list)
    added: list[int] = field(default_factory=list)

    def cut(self, axis: int, begin: int, end: int, stride: int) -> None:
        self.axes.append(axis)
        self.begins.append(begin)
        self.ends.append(end)
        self.strides.append(stride)


def strided_slice(call: Call) -> Results:
    """STRIDED_SLICE, with TensorFlow's masks: https://www.tensorflow.org/api_docs/python/tf/strided_slice."""
    masks = {name: int(call.option(f"{name}_mask")) for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    if not (call.is_constant(1) and call.is_constant(2)):
        return _computed_slice(call, masks)
    cuts = _cuts(call, masks)
    value = call.node(
        "Slice", call.read(), call.constant(cuts.begins, "begins"), call.constant(cuts.ends, "ends"),
        call.constant(cuts.axes, "axes"), call.constant(cuts.strides, "strides"),
    )  # fmt: skip
    if cuts.shrunk:
        value = call.node("Squeeze", value, call.constant(cuts.shrunk, "shrunk"))
    return call.node("Unsqueeze", value, call.constant(cuts.added, "added")) if cuts.added else value


def _cuts(call: Call, masks: Mapping[str, int]) -> _Cuts:
    begins, ends, strides = (call.integers(number) for number in (1, 2, 3))
    if not len(begins) == len(ends) == len(strides) or 0 in strides:
        raise call.refusal(f"expected as many begins, ends and strides other than 0, got {begins}, {ends}, {strides}")
    bits = [{name: bool(mask >> number & 1) for name, mask in masks.items()} for number in range(len(begins))]
    named = sum(not (bit["new_axis"] or bit["ellipsis"]) for bit in bits)
    cuts, axis = _Cuts(), 0
    for bit, begin, end, stride in zip(bits, begins, ends, strides, strict=True):
        if bit["ellipsis"]:
            axis += max(call.rank() - named, 0)
            continue
        if bit["new_axis"]:
            cuts.added.append(axis + len(cuts.added) - len(cuts.shrunk))
            continue
        if bit["shrink_axis"]:
            cuts.cut(axis, begin, begin + 1 if begin != -1 else _FAR, 1)
            cuts.shrunk.append(axis)
        else:
            first = (0 if stride > 0 else _FAR) if bit["begin"] else begin
            last = end + begin if call.option("offset") else end
            cuts.cut(axis, first, (_FAR if stride > 0 else -_FAR) if bit["end"] else last, stride)
        axis += 1
    if axis > call.rank():
        raise call.refusal(f"expected at most {call.rank()} axes, got {axis}")
    return cuts


def _computed_slice(call: Call, masks: Mapping[str, int]) -> ir.Value:
    """Cut between computed places: only whole axes, in order."""
    strides = call.integers(3)
    if masks["ellipsis"] or masks["new_axis"] or masks["shrink_axis"] or call.option("offset") or min(strides) < 1:
        raise call.refusal("places that are computed are not known together with new, left out or reversed axes")
    bounds = []
    for number, name, beyond in ((1, "begin", 0), (2, "end", _FAR)):
        open_ends = [bool(masks[name] >> axis & 1) for axis in range(len(strides))]
        masked, limit = call.constant(open_ends, f"{name}_open", np.bool_), call.constant(beyond, f"{name}_limit")
        bounds.append(call.node("Where", masked, limit, call.long(number)))
    axes = call.constant(range(len(strides)), "axes")
    return call.node("Slice", call.read(), *bounds, axes, call.constant(strides, "strides"))


def gather(call: Call) -> Results:
    """GATHER along an axis; where leading axes of both are paired (`batch_dims`), only along the next one."""
    axis = call.from_front(int(call.option("axis")), call.rank())
    paired = int(call.option("batch_dims"))
    paired = paired + call.rank(1) if paired < 0 else paired
    if paired == 0:
        return call.node("Gather", call.read(), call.read(1), axis=axis)
    if axis != paired:
        raise call.refusal(f"expected batch_dims to be 0 or the axis {axis}, got {paired}")
    places = call.node("Cast", call.read(1), to=ir.DataType.INT64)
    places = call.node("Unsqueeze", places, call.constant([-1], "axes"))
    return call.node("GatherND", call.read(), places, batch_dims=paired)


def gather_nd(call: Call) -> Results:
    """GATHER_ND."""
    return call.node("GatherND", call.read(), call.node("Cast", call.read(1), to=ir.DataType.INT64))


def scatter_nd(call: Call) -> Results:
    """SCATTER_ND into zeros: inputs are places, numbers and the shape; numbers for one place are summed."""
    zero = ir.tensor(np.zeros(1, dtype=np.float32 if _is_real(call, 1) else call.tensor(1).dtype))
    zeros = call.node("ConstantOfShape", call.long(2), value=zero)
    places = call.node("Cast", call.read(0), to=ir.DataType.INT64)
    return call.node("ScatterND", zeros, places, call.read(1), reduction="add")


def places_of_true(call: Call) -> Results:
    """WHERE: the places of what is true, one in a row."""
    return call.node("Transpose", call.node("NonZero", call.read()), perm=(1, 0))


def pad(call: Call) -> Results:
    """PAD and PADV2: with real zeros, or with the number in input 2; channels first where the input is."""
    if not call.is_constant(1):
        amounts = call.node("Cast", call.read(1), to=ir.DataType.INT64)  # [axes, 2]
        amounts = call.node("Reshape", call.node("Transpose", amounts, perm=(1, 0)), call.constant([-1], "flat"))
        return call.node("Pad", call.read(), amounts, call.read(2) if call.given(2) else None)
    order = call.home() if call.rank() == 4 else ()
    begins, ends = _amounts(call, order)
    amount = call.constant([*begins, *ends], "amounts")
    value = call.node("Pad", call.read(0, order), amount, _scalar(call, 2) if call.given(2) else None)
    return Written(value=value, order=order)


def _scalar(call: Call, number: int) -> ir.Value:
    value = call.read(number)
    return value if call.rank(number) == 0 else call.node("Reshape", value, call.constant([], "scalar"))


def _amounts(call: Call, order: Order) -> tuple[list[int], list[int]]:
    """Return how many entries to add before and behind each axis."""
    amounts = call.integers(1)
    if len(amounts) != 2 * call.rank() or min(amounts, default=0) < 0:
        raise call.refusal(f"expected two numbers from 0 on for each of {call.rank()} axes, got {amounts}")
    axes = order or range(call.rank())
    return [amounts[2 * axis] for axis in axes], [amounts[2 * axis + 1] for axis in axes]


def mirror_pad(call: Call) -> Results:
    """MIRROR_PAD: REFLECT leaves out the edge; SYMMETRIC repeats it, which ONNX has no mode for."""
    begins, ends = _amounts(call, ())
    if call.option("mode") == "REFLECT":
        return call.node("Pad", call.read(), call.constant([*begins, *ends], "amounts"), mode="reflect")
    value = call.read()
    for axis, (begin, end, extent) in enumerate(zip(begins, ends, call.extents(), strict=True)):
        if extent is not None and max(begin, end) > extent:
            raise call.refusal(f"axis {axis} of {extent} entries cannot be mirrored by {begin} and {end}")
        before = [_mirrored(call, value, axis, begin - 1, -_FAR)] if begin else []
        behind = [_mirrored(call, value, axis, -1, -1 - end)] if end else []
        if before or behind:
            value = call.node("Concat", *before, value, *behind, axis=axis)
    return value if any(begins) or any(ends) else call.node("Identity", value)


def _mirrored(call: Call, value: ir.Value, axis: int, first: int, last: int) -> ir.Value:
    """Return entries of an axis from one place down to before another."""
    return call.node(
        "Slice", value, call.constant([first], "begins"), call.constant([last], "ends"), call.constant([axis], "axes"),
        call.constant([-1], "strides"),
    )  # fmt: skip


def reverse(call: Call) -> Results:
    """REVERSE_V2."""
    axes = [call.from_front(axis, call.rank()) for axis in call.integers(1)]
    numbers = ([-1] * len(axes), [-_FAR] * len(axes), axes, [-1] * len(axes))
    names = ("begins", "ends", "axes", "strides")
    return call.node("Slice", call.read(), *(call.constant(n, name) for n, name in zip(numbers, names, strict=True)))


def tile(call: Call) -> Results:
    """TILE."""
    return call.node("Tile", call.read(), call.long(1))


def broadcast_to(call: Call) -> Results:
    """BROADCAST_TO."""
    return call.node("Expand", call.read(), call.long(1))


def fill(call: Call) -> Results:
    """FILL a shape with one number."""
    return call.node("Expand", call.read(1), call.long(0))


def zeros_like(call: Call) -> Results:
    """ZEROS_LIKE."""
    zero = ir.tensor(np.zeros(1, dtype=np.float32 if _is_real(call, 0) else call.tensor(0).dtype))
    return call.node("ConstantOfShape", call.node("Shape", call.read()), value=zero)


def _is_real(call: Call, number: int) -> bool:
    """Whether an input is read in real numbers of 32 bits."""
    return call.tensor(number).type == "FLOAT32" or call.tensor(number).encoding is not None


def shape_of(call: Call) -> Results:
    """SHAPE, in the type that the output has."""
    return call.node("Cast", call.node("Shape", call.read()), to=ONNX_TYPES[call.result().type])


def rank_of(call: Call) -> Results:
    """RANK: known here."""
    return call.node("Identity", call.constant(call.rank(), "rank", np.int32))


def one_hot(call: Call) -> Results:
    """ONE_HOT: inputs are places, how many, the number there, the number elsewhere."""
    axes = call.constant([0], "axes")
    values = call.node("Concat", *(call.node("Unsqueeze", call.read(n), axes) for n in (3, 2)), axis=0)
    places = call.node("Cast", call.read(), to=ir.DataType.INT64)
    return call.node("OneHot", places, call.long(1), values, axis=int(call.option("axis")))


def depth_to_space(call: Call) -> Results:
    """DEPTH_TO_SPACE: the depth is [row, column, channel], ONNX's mode DCR."""
    size = call.positive("block_size")
    value = call.node("DepthToSpace", call.read(0, CHANNELS_FIRST), blocksize=size, mode="DCR")
    return Written(value=value, order=CHANNELS_FIRST)


def space_to_depth(call: Call) -> Results:
    """SPACE_TO_DEPTH."""
    value = call.node("SpaceToDepth", call.read(0, CHANNELS_FIRST), blocksize=call.positive("block_size"))
    return Written(value=value, order=CHANNELS_FIRST)


def space_to_batch(call: Call) -> Results:
    """SPACE_TO_BATCH_ND: https://www.tensorflow.org/api_docs/python/tf/space_to_batch."""
    blocks, amounts = _blocks(call)
    extents, count = _known_extents(call), len(blocks)
    begins, ends = [0] * call.rank(), [0] * call.rank()
    begins[1 : count + 1], ends[1 : count + 1] = amounts[::2], amounts[1::2]
    value = call.node("Pad", call.read(), call.constant([*begins, *ends], "amounts"))
    padded = [extent + begin + end for extent, begin, end in zip(extents, begins[1:], ends[1:], strict=True)]
    if any(extent % block for extent, block in zip(padded, blocks, strict=False)):
        raise call.refusal(f"expected padded extents {padded} that the blocks {blocks} divide")
    rest = padded[count:]
    parted = [size for extent, block in zip(padded, blocks, strict=False) for size in (extent // block, block)]
    # [batch, rows, block, columns, block, ..] to [block, block, batch, rows, columns, ..]
    value = call.node("Reshape", value, call.constant([-1, *parted, *rest], "parted"))
    order = [*range(2, 2 * count + 1, 2), 0, *range(1, 2 * count, 2), *range(2 * count + 1, 2 * count + 1 + len(rest))]
    value = call.node("Transpose", value, perm=order)
    return call.node("Reshape", value, call.constant([-1, *parted[::2], *rest], "shape"))


def batch_to_space(call: Call) -> Results:
    """BATCH_TO_SPACE_ND: https://www.tensorflow.org/api_docs/python/tf/batch_to_space."""
    blocks, amounts = _blocks(call)
    extents, count = _known_extents(call), len(blocks)
    value = call.node("Reshape", call.read(), call.constant([*blocks, -1, *extents], "parted"))
    # [block, block, batch, rows, columns, ..] to [batch, rows, block, columns, block, ..]
    pairs = [axis for number in range(count) for axis in (count + 1 + number, number)]
    value = call.node("Transpose", value, perm=[count, *pairs, *range(2 * count + 1, count + 1 + len(extents))])
    joined = [extent * block for extent, block in zip(extents, blocks, strict=False)]
    value = call.node("Reshape", value, call.constant([-1, *joined, *extents[count:]], "shape"))
    ends = [extent - end for extent, end in zip(joined, amounts[1::2], strict=True)]
    axes = call.constant(range(1, count + 1), "axes")
    return call.node("Slice", value, call.constant(amounts[::2], "begins"), call.constant(ends, "ends"), axes)


def _blocks(call: Call) -> tuple[list[int], list[int]]:
    blocks, amounts = call.integers(1), call.integers(2)
    if not 0 < len(blocks) < call.rank() or len(amounts) != 2 * len(blocks) or min(blocks) < 1 or min(amounts) < 0:
        raise call.refusal(f"expected blocks of a tensor of rank {call.rank()}, got {blocks} and {amounts}")
    return blocks, amounts


def _known_extents(call: Call) -> list[int]:
    """Return the extents behind the batch axis."""
    known = [extent for extent in call.extents()[1:] if extent is not None]
    if len(known) != call.rank() - 1:
        raise call.refusal(f"expected fixed extents behind the batch axis, got {call.extents()}")
    return known


def resize(call: Call) -> Results:
    """RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR to the height and width in input 1."""
    corners, centers = bool(call.option("align_corners")), bool(call.option("half_pixel_centers"))
    if call.rank() != 4 or (corners and centers):
        raise call.refusal("expected an input of rank 4, and either align_corners or half_pixel_centers")
    places = "align_corners" if corners else "half_pixel" if centers else "asymmetric"
    attributes = {"mode": "linear"}
    if call.operator.name == "RESIZE_NEAREST_NEIGHBOR":
        # round(x), floor(x + 1/2) and floor(x); x is not negative (resize_nearest_neighbor.h)
        attributes = {"mode": "nearest", "nearest_mode": "floor" if places == "asymmetric" else "round_prefer_ceil"}
    value = call.read(0, CHANNELS_FIRST)
    result = call.node(
        "Resize", value, None, None, _resized(call, value), coordinate_transformation_mode=places, **attributes
    )
    return Written(value=result, order=CHANNELS_FIRST)


def _resized(call: Call, value: ir.Value) -> ir.Value:
    """Return the whole shape after a resize, channels first.

    ONNX Runtime (1.31) refuses a Resize of two axes alone (`axes`) between transposes, which it moves wrongly.
    """
    batch, _, _, channels = call.extents()
    if batch is not None and channels is not None and call.is_constant(1):
        return call.constant([batch, channels, *call.integers(1)], "sizes")
    kept = call.node("Shape", value, start=0, end=2)
    return call.node("Concat", kept, call.long(1), axis=0)
