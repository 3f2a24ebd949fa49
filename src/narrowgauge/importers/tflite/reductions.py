"""Operators that make fewer numbers of many, along axes."""

from __future__ import annotations

import onnx_ir as ir

from narrowgauge.importers.tflite.arithmetic import ONNX_TYPES
from narrowgauge.importers.tflite.emitter import Call, Results, Written
from narrowgauge.importers.tflite.shaping import moved_axis

REDUCTIONS = {
    "MEAN": "ReduceMean", "SUM": "ReduceSum", "REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin",
    "REDUCE_PROD": "ReduceProd", "REDUCE_ANY": "ReduceMax", "REDUCE_ALL": "ReduceMin",
}  # fmt: skip


def reduction(call: Call) -> Results:
    """MEAN, SUM, REDUCE_MAX and their like, along the axes in input 1; channels first where the input is."""
    keep = bool(call.option("keep_dims"))
    axes = sorted({call.from_front(axis, call.rank()) for axis in call.integers(1)})
    # What is left must be in the file's order: the batch and the channels are, without height and width.
    order = call.home() if call.rank() == 4 and (keep or {1, 2} <= set(axes)) else ()
    value = call.read(0, order)
    logical = call.tensor(0).type == "BOOL"
    if logical:
        value = call.node("Cast", value, to=ir.DataType.INT32)
    places = call.constant([moved_axis(axis, order) for axis in axes], "axes")
    value = call.node(
        REDUCTIONS[call.operator.name], value, places, keepdims=int(keep), noop_with_empty_axes=int(not axes)
    )
    if logical:
        value = call.node("Cast", value, to=ir.DataType.BOOL)
    return Written(value=value, order=order if keep else ())


def extreme_place(call: Call) -> Results:
    """ARG_MAX and ARG_MIN: the first place along an axis."""
    operator = "ArgMax" if call.operator.name == "ARG_MAX" else "ArgMin"
    value = call.node(operator, call.read(), axis=call.axis(1, call.rank()), keepdims=0)
    return call.node("Cast", value, to=ONNX_TYPES[call.result().type])


def largest(call: Call) -> Results:
    """TOPK_V2: the largest numbers along the last axis and where they are."""
    count = call.constant(call.integers(1)[:1], "count")
    values, places = call.nodes("TopK", call.read(), count, count=2)
    return [values, call.node("Cast", places, to=ONNX_TYPES[call.result(1).type])]


def running_sum(call: Call) -> Results:
    """CUMSUM."""
    axis = call.constant(call.axis(1, call.rank()), "axis")
    how = {"exclusive": int(call.option("exclusive")), "reverse": int(call.option("reverse"))}
    return call.node("CumSum", call.read(), axis, **how)
