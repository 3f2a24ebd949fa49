"""Weights stored as integers and made real by ordinary operators, brought to DequantizeLinear.

Two forms: Cast, Sub and Mul (with a Reshape before and behind where scales stand for blocks), which engines fold when
they load the file, and a Cast from 4 to 8 bits before a DequantizeLinear.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array, constant_tensor
from narrowgauge.graph.edits import all_nodes, graph_of, is_operator, sole_consumer, take_place
from narrowgauge.graph.quantized import casts_weights
from narrowgauge.importers.rewriting import Parameters, Rewriter, parameters_of

_FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)


def restore_stored_weights(rewriter: Rewriter) -> None:
    """Rewrite both forms, in place; what looks like them and is not stays as it is."""
    for node in tuple(all_nodes(rewriter.model)):
        if casts_weights(node):
            _restore(rewriter, node)
        elif is_operator(node, "DequantizeLinear"):
            _narrow(rewriter, node)


def _narrow(rewriter: Rewriter, node: ir.Node) -> None:
    """Let a DequantizeLinear read levels of 4 bits themselves instead of their Cast to 8."""
    cast = node.inputs[0].producer() if node.inputs[0] is not None else None
    tensor = constant_tensor(cast.inputs[0]) if cast is not None and is_operator(cast, "Cast") else None
    zero_point = constant_array(parameters_of(node).zero_point)
    if cast is None or tensor is None or tensor.dtype not in _FOUR_BITS:
        return
    if zero_point is not None:
        narrow = zero_point.astype(tensor.dtype.numpy())
        if not np.array_equal(narrow.astype(zero_point.dtype), zero_point):
            return
        name = str(node.inputs[2].name) if node.inputs[2] is not None else f"{node.name}_zero_point"
        node.replace_input_with(2, rewriter.constant(graph_of(node), name, narrow))
    node.replace_input_with(0, cast.inputs[0])


def _restore(rewriter: Rewriter, cast: ir.Node) -> None:
    levels = cast.inputs[0]
    stored = constant_tensor(levels)
    assert levels is not None
    assert stored is not None
    steps = _steps(cast.outputs[0])
    if steps is None:
        return
    reshaped, zeros, scales, result = steps
    shape = tuple(int(size) for size in stored.shape.numpy())
    kind = stored.dtype.numpy()
    spread = np.zeros((1,) * scales.ndim, dtype=np.float32) if zeros is None else zeros
    if not np.array_equal(spread.astype(kind).astype(np.float32), spread):
        return  # an offset that is no level
    found = _blocks(shape, reshaped, scales) if reshaped is not None else _axis(shape, scales)
    if found is None:
        return
    axis, size, scale_shape = found
    wide = np.broadcast_to(spread, scales.shape) if spread.size == 1 or spread.shape == scales.shape else None
    if wide is None:
        return
    graph, base = graph_of(cast), str(levels.name).removesuffix("_quantized")
    parameters = Parameters(
        scale=rewriter.constant(graph, f"{base}_scale", scales.reshape(scale_shape)),
        zero_point=rewriter.constant(graph, f"{base}_zero_point", wide.reshape(scale_shape).astype(kind)),
        axis=axis,
        block_size=size,
    )
    real = rewriter.dequantize(cast, levels, parameters)
    take_place(real, result)


_Steps = tuple[tuple[int, ...] | None, npt.NDArray[Any] | None, npt.NDArray[Any], ir.Value]


def _steps(value: ir.Value) -> _Steps | None:
    """Follow [Reshape], [Sub], Mul, [Reshape]; return the first shape, the offset, the scales and the result."""
    reshaped = zeros = None
    node = sole_consumer(value)
    if node is not None and is_operator(node, "Reshape"):
        sizes = constant_array(node.inputs[1])
        if sizes is None:
            return None
        reshaped, value = tuple(int(size) for size in sizes), node.outputs[0]
        node = sole_consumer(value)
    if node is not None and is_operator(node, "Sub") and node.inputs[0] is value:
        zeros, value = constant_array(node.inputs[1]), node.outputs[0]
        if zeros is None:
            return None
        node = sole_consumer(value)
    if node is None or not is_operator(node, "Mul"):
        return None
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    scales, value = constant_array(other), node.outputs[0]
    if scales is None or scales.dtype != np.float32:
        return None
    if reshaped is not None:
        node = sole_consumer(value)
        if node is None or not is_operator(node, "Reshape"):
            return None
        value = node.outputs[0]
    return reshaped, zeros, scales, value


def _axis(shape: tuple[int, ...], scales: npt.NDArray[Any]) -> tuple[int, int, tuple[int, ...]] | None:
    """Return the axis that scales in a shape which broadcasts over the weights lie along, no block, and their shape."""
    if scales.size == 1:
        single = scales.ndim == len(shape) and 1 in shape  # a scale per channel of the only channel
        return (shape.index(1), 0, (1,)) if single else (0, 0, ())
    padded = (1,) * (len(shape) - scales.ndim) + scales.shape
    axes = [axis for axis, size in enumerate(padded) if size != 1]
    if len(axes) != 1 or padded[axes[0]] != shape[axes[0]]:
        return None
    return axes[0], 0, (scales.size,)


def _blocks(
    shape: tuple[int, ...], reshaped: tuple[int, ...], scales: npt.NDArray[Any]
) -> tuple[int, int, tuple[int, ...]] | None:
    """Return axis and size of blocks that a Reshape `[.., blocks, size, ..]` parts, and the shape of their scales."""
    if len(reshaped) != len(shape) + 1 or scales.ndim != len(reshaped):
        return None
    candidates = [axis for axis in range(len(shape)) if scales.shape[axis + 1] == 1 and reshaped[axis + 1] > 0]
    for axis in candidates:
        size = reshaped[axis + 1]
        parted = (*shape[:axis], shape[axis] // size, size, *shape[axis + 1 :])
        fits = all(given in (-1, expected) for given, expected in zip(reshaped, parted, strict=True))
        expected = (*parted[: axis + 1], *parted[axis + 2 :])
        if fits and shape[axis] % size == 0 and (*scales.shape[: axis + 1], *scales.shape[axis + 2 :]) == expected:
            return axis, size, expected
    return None
