"""Weights that no integer kernel reads, as the real numbers that their levels stand for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array


def dequantized_constant(node: ir.Node) -> npt.NDArray[np.float32] | None:
    """Return the output of a DequantizeLinear of constants, None of any other: of any width, per axis or block."""
    levels, scale = constant_array(node.inputs[0]), constant_array(node.inputs[1])
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if levels is None or scale is None or (len(node.inputs) > 2 and node.inputs[2] is not None and zero is None):
        return None
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    step, start = (None if one is None else _spread(one, levels.shape, axis, block) for one in (scale, zero))
    assert step is not None
    centred = levels.astype(np.int64) - (0 if start is None else start.astype(np.int64))
    return (centred.astype(np.float32) * step.astype(np.float32)).astype(np.float32)


def _spread(
    parameters: npt.NDArray[np.generic], shape: tuple[int, ...], axis: int, block: int
) -> npt.NDArray[np.generic]:
    """Spread scales or zero points so that they broadcast over a tensor of that shape."""
    if parameters.size == 1 and parameters.ndim <= 1:
        return parameters.reshape(())
    if block:
        return np.repeat(parameters, block, axis=axis).take(range(shape[axis]), axis=axis)
    return parameters.reshape([-1 if index == axis % len(shape) else 1 for index in range(len(shape))])
