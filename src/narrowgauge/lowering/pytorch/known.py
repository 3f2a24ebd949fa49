"""What networks compute with shapes: done in numpy while the module is traced, so that no tensor holds a size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.lowering.pytorch.call import Call, Known

_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL}


def compute(call: Call) -> Known | None:
    """Compute a node whose inputs are all known; None where it is no computation of shapes."""
    arrays = [value for value in call.inputs if value is not None]
    if not arrays or not all(isinstance(value, np.ndarray) and value.dtype.kind in "iubO" for value in arrays):
        return None
    function = _FUNCTIONS.get(call.node.op_type) if call.node.domain == "" else None
    return None if function is None else function(call)


def _two(function: Callable[[Any, Any], Any]) -> Callable[[Call], Known]:
    return lambda call: np.asarray(function(call.known(0), call.known(1)))


def _gather(call: Call) -> Known:
    return np.asarray(np.take(call.known(0), call.known(1).astype(np.int64), axis=call.integer("axis", 0)))


def _concat(call: Call) -> Known:
    return np.concatenate([call.known(number) for number in range(len(call.inputs))], axis=call.integer("axis", 0))


def _slice(call: Call) -> Known:
    values, starts, ends = call.known(0), call.integers(1) or [], call.integers(2) or []
    axes = call.integers(3) or list(range(len(starts)))
    steps = call.integers(4) or [1] * len(starts)
    index = [slice(None)] * values.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, None if step < 0 and end < -(2**31) else end, step)
    return values[tuple(index)]


def _unsqueeze(call: Call) -> Known:
    return np.expand_dims(call.known(0), tuple(call.integers(1, "axes") or []))


def _squeeze(call: Call) -> Known:
    axes = call.integers(1, "axes")
    return np.squeeze(call.known(0), None if axes is None else tuple(axes))


def _cast(call: Call) -> Known | None:
    return call.known(0) if ir.DataType(call.integer("to", 1)) in _INTEGERS - {ir.DataType.BOOL} else None


def _reshape(call: Call) -> Known:
    return call.known(0).reshape(call.integers(1) or [])


def _product(call: Call) -> Known:
    values: Known = call.known(0)
    axes = call.integers(1, "axes")
    kept = bool(call.integer("keepdims", 1))
    return np.asarray(np.prod(values, axis=None if axes is None else tuple(axes), keepdims=kept))


def _where(call: Call) -> Known:
    return np.where(call.known(0).astype(bool), call.known(1), call.known(2))


def _constant_of_shape(call: Call) -> Known | None:
    held = call.node.attributes.get("value")
    fill = np.zeros(1, np.float32) if held is None else held.as_tensor().numpy()
    shape = call.integers(0) or []
    if fill.dtype.kind not in "iu" or not all(isinstance(size, int) for size in shape):
        return None
    return np.full(shape, fill.reshape(()), dtype=np.int64)


_FUNCTIONS: dict[str, Callable[[Call], Known | None]] = {
    "Add": _two(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _two(np.floor_divide),  # sizes are not negative
    "Equal": _two(lambda first, second: np.asarray(first == second)),
    "Gather": _gather,
    "Identity": lambda call: call.known(0),
    "Max": _two(np.maximum),
    "Min": _two(np.minimum),
    "Mul": _two(np.multiply),
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _two(np.subtract),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
