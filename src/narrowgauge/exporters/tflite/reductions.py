"""Operators that make fewer numbers of many, along axes."""

from __future__ import annotations

import numpy as np

from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.fixed_outputs import fixed_levels
from narrowgauge.exporters.tflite.forms import Order, extents_of, identity, permuted, type_of

REDUCTIONS = {
    "ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
}  # fmt: skip

_KEEPS_LEVELS = ("REDUCE_MAX", "REDUCE_MIN")


def reduction(call: Call) -> None:
    """ReduceMean, ReduceSum, ReduceMax, ReduceMin, ReduceProd, along axes where the input is found."""
    axes = call.axes()
    if not axes:
        if call.whole("noop_with_empty_axes", 0):
            raise call.refusal("it has no axes; simplify the network")
        axes = list(range(call.rank()))
    home = call.home()
    keep = bool(call.whole("keepdims", 1))
    name = REDUCTIONS[call.node.op_type]
    places = call.constant(sorted(home.index(axis) for axis in axes), "axes")
    levels = call.levels(call.input()) if name in _KEEPS_LEVELS else None
    order = home if keep else _without(home, axes)
    call.emit(name, [call.read(0, home), places], {"keep_dims": keep}, order=order, levels=levels)


def _without(order: Order, axes: list[int]) -> Order:
    """Return the order of what is left when axes are taken away."""
    left = [axis for axis in order if axis not in axes]
    return tuple(sorted(left).index(axis) for axis in left)


def norm(call: Call) -> None:
    """ReduceL1, ReduceL2, ReduceSumSquare: of absolute values or squares, SUM."""
    axes, home = call.axes() or list(range(call.rank())), call.home()
    keep = bool(call.whole("keepdims", 1))
    source, extents = call.read(0, home), permuted(call.extents(), home)
    if call.node.op_type == "ReduceL1":
        each = call.between("ABS", [source], extents)
    else:
        each = call.between("MUL", [source, source], extents)
    places = call.constant(sorted(home.index(axis) for axis in axes), "axes")
    order = home if keep else _without(home, axes)
    if call.node.op_type != "ReduceL2":
        call.emit("SUM", [each, places], {"keep_dims": keep}, order=order)
        return
    total = call.between("SUM", [each, places], permuted(extents_of(call.result()), order), {"keep_dims": keep})
    call.emit("SQRT", [total], order=order)


def softmax(call: Call) -> None:
    """Softmax and LogSoftmax: along the last axis of the tensor."""
    rank = call.rank()
    axis = call.from_front(call.whole("axis", -1), rank)
    home = call.home()
    order = home if home[-1] == axis else (*(other for other in identity(rank) if other != axis), axis)
    name, options = ("SOFTMAX", {"beta": 1.0}) if call.node.op_type == "Softmax" else ("LOG_SOFTMAX", {})
    call.emit(name, [call.read(0, order)], options, order=order, levels=fixed_levels(call, name))


def lp_normalization(call: Call) -> None:
    """LpNormalization with p = 2: L2_NORMALIZATION, along the last axis of the tensor."""
    rank = call.rank()
    axis = call.from_front(call.whole("axis", -1), rank)
    if call.whole("p", 2) != 2:
        raise call.refusal("expected p of 2")
    home = call.home()
    order = home if home[-1] == axis else (*(other for other in identity(rank) if other != axis), axis)
    name = "L2_NORMALIZATION"
    call.emit(name, [call.read(0, order)], order=order, levels=fixed_levels(call, name))


def place_of_extreme(call: Call) -> None:
    """ArgMax and ArgMin: the first place along an axis."""
    if call.whole("select_last_index", 0):
        raise call.refusal("TFLite gives the first place, the node asks for the last")
    name = "ARG_MAX" if call.node.op_type == "ArgMax" else "ARG_MIN"
    axis = call.from_front(call.whole("axis", 0), call.rank())
    inputs = [call.read(0), call.constant(axis, "axis")]
    if not call.whole("keepdims", 1):
        call.emit(name, inputs, {"output_type": "INT64"})
        return
    extents = call.extents()
    flat = call.between(name, inputs, (*extents[:axis], *extents[axis + 1 :]), {"output_type": "INT64"}, type="INT64")
    call.emit("EXPAND_DIMS", [flat, call.constant(axis, "axis")])


def largest(call: Call) -> None:
    """TopK: the largest numbers along the last axis, and where they are."""
    rank = call.rank()
    if call.from_front(call.whole("axis", -1), rank) != rank - 1 or not call.whole("largest", 1):
        raise call.refusal("expected the largest numbers along the last axis")
    count = call.integers(1)[0]
    values, places = call.node.outputs
    levels = call.levels(call.input())
    extents = (*call.extents()[:-1], count)
    order = identity(rank)
    found = call.temporary("places", extents, type="INT32")
    written = call.emitter.write(values, order, levels)
    call.operator("TOPK_V2", [call.read(0), call.constant(count, "count")], [written, found])
    if places.name:
        options = {"in_data_type": "INT32", "out_data_type": type_of(places)}
        call.operator("CAST", [found], [call.emitter.write(places, order, None)], options)


def running_sum(call: Call) -> None:
    """CumSum."""
    axis = call.from_front(call.integers(1)[0], call.rank())
    options = {"exclusive": bool(call.whole("exclusive", 0)), "reverse": bool(call.whole("reverse", 0))}
    call.emit("CUMSUM", [call.read(0), call.constant(axis, "axis", np.int32)], options)
