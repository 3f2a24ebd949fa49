"""Operators that move, cut, join and repeat numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.forms import channels_last, cut_options, extents_of, identity, permuted, type_of
from narrowgauge.exporters.tflite.spatial import lowest_number
from narrowgauge.graph.constants import constant_array

_FAR = np.iinfo(np.int32).max


def concat(call: Call) -> None:
    """Concat: CONCATENATION of inputs of one encoding; of uint8 its kernel rescales them."""
    order, levels = call.free_order(), call.levels(call.result())
    axis = call.from_front(call.whole("axis", 0), len(order))
    inputs = []
    for number in range(len(call.node.inputs)):
        if 0 in call.extents(number):
            continue
        found = call.read(number, order)
        inputs.append(found if levels is None or levels.type == "UINT8" else call.emitter.requantized(found, levels))
    call.emit("CONCATENATION", inputs, {"axis": order.index(axis)}, order=order)


def split(call: Call) -> None:
    """Split: SPLIT into equal parts, SPLIT_V into others."""
    order, levels = call.home(), call.levels(call.input())
    axis = call.from_front(call.whole("axis", 0), call.rank())
    count = len(call.node.outputs)
    source = call.read(0, order)
    sizes = call.integers(1) if call.given(1) else _equal_sizes(call, axis, count)
    orders = [order] * count
    where = call.constant(order.index(axis), "axis")
    for value in call.node.outputs:
        if not value.name:
            value.name = call.emitter.free(f"{call.node.name}_unused")
    if any(call.levels(value) != levels for value in call.node.outputs):
        raise call.refusal("its outputs have another encoding than its input")
    if len(set(sizes)) == 1:
        call.operator("SPLIT", [where, source], call.results(orders, levels), {"num_splits": count})
    else:
        options = {"num_splits": count}
        call.operator("SPLIT_V", [source, call.constant(sizes, "sizes"), where], call.results(orders, levels), options)


def _equal_sizes(call: Call, axis: int, count: int) -> list[int]:
    extent = call.extents()[axis]
    if extent is None:
        raise call.refusal(f"expected a fixed extent of axis {axis}")
    part = -(-extent // count)
    return [min(part, extent - part * number) for number in range(count)]


def slice_range(call: Call) -> None:
    """Slice between constant places: STRIDED_SLICE."""
    rank = call.rank()
    begins, ends = call.integers(1), call.integers(2)
    axes = [call.from_front(axis, rank) for axis in call.integers(3, range(len(begins)))]
    steps = call.integers(4, [1] * len(begins))
    order = call.home()
    extents = call.extents()
    first, last, stride = [0] * rank, [0] * rank, [1] * rank
    open_begins, open_ends = set(range(rank)), set(range(rank))
    for axis, begin, end, step in zip(axes, begins, ends, steps, strict=True):
        extent, place = extents[axis], order.index(axis)
        stride[place] = step
        start, stop = (begin, end) if extent is None else _clamped(begin, end, step, extent)
        if abs(start) < _FAR:
            first[place] = start
            open_begins.discard(place)
        if stop is not None and abs(stop) < _FAR:
            last[place] = stop
            open_ends.discard(place)
    masks = [sum(1 << axis for axis in axes) for axes in (open_begins, open_ends)]
    inputs = [
        call.read(0, order), call.constant(first, "begins"), call.constant(last, "ends"),
        call.constant(stride, "strides"),
    ]  # fmt: skip
    call.emit("STRIDED_SLICE", inputs, cut_options(*masks), order=order, levels=call.levels(call.input()))


def _clamped(begin: int, end: int, step: int, extent: int) -> tuple[int, int | None]:
    """Count places from the front, by ONNX's rules; None for an end that lies beyond the axis."""
    begin = begin + extent if begin < 0 else begin
    end = end + extent if end < 0 else end
    if step > 0:
        begin, end = min(max(begin, 0), extent), min(max(end, 0), extent)
        return begin, None if end == extent else end
    begin = min(max(begin, 0), extent - 1)
    return begin, None if end < 0 else min(end, extent - 1)


def gather(call: Call) -> None:
    """Gather: GATHER along an axis, STRIDED_SLICE of places that follow each other, which more delegates take.

    Levels of a constant table are gathered as they are, and become the result's, or real numbers, behind that.
    """
    axis = call.from_front(call.whole("axis", 0), call.rank())
    places, extent = call.array(1), call.extents()[axis]
    if places is not None and extent is not None:
        places = np.where(places < 0, places + extent, places)
    if places is not None and places.size and places.min() < 0:
        raise call.refusal("its places are counted from an end that is not known")
    table = call.array(0)
    if table is None and places is not None and _follow(places):
        _slice_of_one_axis(call, axis, int(places.min()), places.size)
        return
    where = call.read(1) if places is None else call.constant(places.astype(np.int32), "places")
    options = {"axis": axis, "batch_dims": 0}
    encoding = call.emitter.plan.encodings.get(str(call.input().name))
    single = isinstance(encoding, Encoding) and isinstance(encoding.granularity, PerTensor)
    if table is None:
        call.emit("GATHER", [call.read(0), where], options, levels=call.levels(call.input()))
        return
    if not single or not isinstance(encoding, Encoding) or encoding.type.bits != 8:
        source = call.emitter.constant_form(call.input(), table, identity(table.ndim), None)
        call.in_float().emit("GATHER", [source, where], options)
        return
    source = call.emitter.weights(call.input(), table, encoding, identity(table.ndim))
    found = call.emitter.levels_at(source)
    rows = call.between("GATHER", [source, where], extents_of(call.result()), options, levels=found)
    if call.integer:
        call.emit("QUANTIZE", [rows])
    else:
        call.emit("DEQUANTIZE", [rows])


def _follow(places: npt.NDArray[np.int64]) -> bool:
    """Whether places are one, or several in a row."""
    return places.ndim == 0 or (places.ndim == 1 and places.size > 0 and bool((np.diff(places) == 1).all()))


def _slice_of_one_axis(call: Call, axis: int, begin: int, count: int) -> None:
    rank, order = call.rank(), call.home()
    if order != channels_last(rank):
        order = identity(rank)  # several slices of one value in another order share its TRANSPOSE
    place = order.index(axis)
    first, last = [0] * rank, [0] * rank
    first[place], last[place] = begin, begin + count
    mask = (1 << rank) - 1 - (1 << place)
    extents = [*permuted(call.extents(), order)]
    extents[place] = count
    inputs = [call.read(0, order), *(call.constant(one, "places") for one in (first, last, [1] * rank))]
    options, levels = cut_options(mask, mask), call.levels(call.input())
    if len(extents_of(call.result())) == rank:
        call.emit("STRIDED_SLICE", inputs, options, order=order, levels=levels)
        return
    if extents.count(None) > 1:  # a RESHAPE takes the axis away
        options["shrink_axis_mask"] = 1 << place
        shape = None
    else:
        shape = tuple(extents)
    left = [other for other in order if other != axis]
    call.emit(
        "STRIDED_SLICE", inputs, options, levels=levels, shape=shape,
        order=tuple(sorted(left).index(other) for other in left),
    )  # fmt: skip


def gather_elements(call: Call) -> None:
    """GatherND."""
    if call.whole("batch_dims", 0):
        raise call.refusal("expected batch_dims of 0")
    call.emit("GATHER_ND", [call.read(0), as_int32(call, 1)], levels=call.levels(call.input()))


def as_int32(call: Call, number: int) -> int:
    """Return an input of integers as int32, which kernels want for shapes and places."""
    array = call.array(number)
    if array is not None:
        return call.constant(array, "numbers")
    found = call.read(number)
    if call.type(number) == "INT32":
        return found
    options = {"in_data_type": call.type(number), "out_data_type": "INT32"}
    return call.between("CAST", [found], call.extents(number), options, type="INT32")


def pad(call: Call) -> None:
    """Pad: PAD with real zeros, PADV2 with another number, MIRROR_PAD."""
    rank, levels, mode = call.rank(), call.levels(call.input()), call.text("mode", "constant")
    amounts = call.integers(1)
    axes = [call.from_front(axis, rank) for axis in call.integers(3, range(rank))]
    begins, ends = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begins[axis], ends[axis] = amounts[place], amounts[place + len(axes)]
    if min([*begins, *ends], default=0) < 0:
        raise call.refusal(f"expected padding from 0 on, got {amounts}")
    order = call.home()
    pairs = [[begins[axis], ends[axis]] for axis in order]
    inputs = [call.read(0, order), call.constant(pairs, "padding")]
    if mode == "reflect":
        call.emit("MIRROR_PAD", inputs, {"mode": "REFLECT"}, order=order, levels=levels)
        return
    if mode != "constant":
        raise call.refusal(f"expected the mode constant or reflect, got {mode}")
    filler = call.array(2)
    if call.given(2) and filler is None:
        raise call.refusal("the number that it fills in is computed")
    real = 0.0 if filler is None else float(filler.reshape(-1)[0])
    if real == 0:
        call.emit("PAD", inputs, order=order, levels=levels)
        return
    if np.isneginf(real):
        inputs.append(lowest_number(call, levels))
    elif levels is not None:
        level = np.clip(np.rint(np.float32(real) / np.float32(levels.scale)) + levels.zero_point, *levels.bounds)
        inputs.append(call.level(int(level), levels))
    else:
        inputs.append(call.constant(real, "filler", constant_array(call.input(2)).dtype))  # type: ignore[union-attr]
    call.emit("PADV2", inputs, order=order, levels=levels)


def expand(call: Call) -> None:
    """Expand: BROADCAST_TO the output's shape, which is the greater of the input's and the given extents."""
    extents, levels = extents_of(call.result()), call.levels(call.input())
    if None not in extents:
        call.emit("BROADCAST_TO", [call.read(0), call.constant(list(extents), "shape")], levels=levels)
        return
    asked, rank, source = call.extents(1), len(extents), call.read(0)
    missing = rank - call.rank()
    if asked != (rank,) or (missing and None in call.extents()):
        raise call.refusal(f"expected {rank} axes and {rank} extents, got {call.rank()} and {asked}")
    if None in call.extents():
        own = call.between("SHAPE", [source], (rank,), {"out_type": "INT32"}, type="INT32")
    else:
        own = call.constant([*[1] * missing, *call.extents()], "extents")
    shape = call.between("MAXIMUM", [as_int32(call, 1), own], asked, type="INT32")
    call.emit("BROADCAST_TO", [source, shape], levels=levels)


def tile(call: Call) -> None:
    """Tile."""
    call.emit("TILE", [call.read(0), as_int32(call, 1)], levels=call.levels(call.input()))


def depth_to_space(call: Call) -> None:
    """DepthToSpace: TFLite's order of channels is DCR; for CRD they are moved first."""
    block, levels, order = call.whole("blocksize", 1), call.levels(call.input()), call.last()
    source = call.read(0, order)
    extents = permuted(call.extents(), order)
    channels = extents[3]
    if call.text("mode", "DCR") == "CRD":
        if channels is None:
            raise call.refusal("expected a fixed number of channels")
        places = np.arange(channels).reshape(-1, block * block).T.reshape(-1)  # [channel, cell] to [cell, channel]
        options = {"axis": 3, "batch_dims": 0}
        inputs = [source, call.constant(places, "channels")]
        source = call.between("GATHER", inputs, extents, options, levels=levels, type=type_of(call.input()))
    call.emit("DEPTH_TO_SPACE", [source], {"block_size": block}, order=order, levels=levels)


def space_to_depth(call: Call) -> None:
    """SpaceToDepth."""
    order, levels = call.last(), call.levels(call.input())
    options = {"block_size": call.whole("blocksize", 1)}
    call.emit("SPACE_TO_DEPTH", [call.read(0, order)], options, order=order, levels=levels)


def shape_of(call: Call) -> None:
    """Shape, or a part of it."""
    rank = call.rank()
    start, end = call.whole("start", 0), call.whole("end", rank)
    start, end = (number + rank if number < 0 else min(number, rank) for number in (start, end))
    if (start, end) == (0, rank):
        call.emit("SHAPE", [call.read(0)], {"out_type": "INT64"})
        return
    whole = call.between("SHAPE", [call.read(0)], (rank,), {"out_type": "INT64"}, type="INT64")
    places = [call.constant([number], "place") for number in (start, end, 1)]
    call.emit("STRIDED_SLICE", [whole, *places], cut_options())


def fill(call: Call) -> None:
    """ConstantOfShape: FILL."""
    tensor = call.node.attributes.get("value")
    array = np.zeros(1, np.float32) if tensor is None else tensor.as_tensor().numpy()
    filler = call.emitter.float_constant(array.reshape(()), f"{call.name}_number")
    call.emit("FILL", [as_int32(call, 0), filler])


def counting(call: Call) -> None:
    """Range."""
    call.emit("RANGE", [call.read(number) for number in range(3)])


def one_hot(call: Call) -> None:
    """OneHot."""
    depth, numbers = call.array(1), call.array(2)
    if depth is None or numbers is None:
        raise call.refusal("expected a constant depth and constant numbers")
    inputs = [
        call.read(0), call.constant(depth.reshape(()), "depth"),
        *(call.emitter.float_constant(numbers[place].reshape(()), "number") for place in (1, 0)),
    ]  # fmt: skip
    rank = len(extents_of(call.result()))
    axis = call.from_front(call.whole("axis", -1), rank)
    call.emit("ONE_HOT", inputs, {"axis": -1 if axis == rank - 1 else axis})
