"""What was written, read back: the same records, and the numbers of the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.errors import OutputError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.importers.tflite.litert import read_network
from narrowgauge.importers.tflite.network import Graph, Operator, Quantization, Tensor

_BIAS = "INT32"
"""Type of levels that only biases have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Constant:
    """What one node of the simulated form reads as a constant.

    Attributes:
        scale: one, or one for each channel.
        steps: levels, counted from the zero point.
        axis: of the channels; None for one scale.
        laid_out: the steps in the order of a layer's weights in the file; None where that is not known here.
    """

    scale: npt.NDArray[np.float32]
    steps: npt.NDArray[Any]
    axis: int | None
    laid_out: npt.NDArray[Any] | None


def check(
    path: Path,
    graph: Graph,
    plan: Plan,
    simulated: ir.Model | None,
    flattened: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> None:
    """Read a file back and compare it.

    Args:
        path: the file.
        graph: what it was made of.
        plan: every activation in it has this encoding.
        simulated: the Q/DQ form, whose weights and biases are those of the file; None where the file has none.
        flattened: name of a layer -> channels and spatial extents that the columns of its input are of, where the file
            has the channels innermost, and so the columns of its weights.

    Raises:
        OutputError: something differs; the message names the tensor.
    """
    back = read_network(path).main
    _compare_records(path, graph, back)
    activations = {name: encoding for name, encoding in plan.encodings.items() if isinstance(encoding, Encoding)}
    constants = {} if simulated is None else _constants(simulated, flattened)
    for tensor in back.tensors:
        levels = tensor.quantization if tensor.type == _BIAS else tensor.encoding
        if tensor.data is not None and tensor.name in constants and levels is not None:
            _compare_levels(path, tensor, levels, constants[tensor.name])
        elif tensor.name in activations and tensor.data is None:
            _compare_encoding(path, tensor, activations[tensor.name])


def _compare_records(path: Path, wanted: Graph, got: Graph) -> None:
    ends = (wanted.inputs, wanted.outputs, len(wanted.tensors), len(wanted.operators))
    if ends != (got.inputs, got.outputs, len(got.tensors), len(got.operators)):
        raise OutputError(f"{path}: what was written has other inputs, outputs or numbers of tensors and operators")
    for tensor, other in zip(wanted.tensors, got.tensors, strict=True):
        if not _same_tensor(tensor, other):
            raise OutputError(f"{path}: tensor {tensor.name!r} reads back as another one, {other.name!r}")
    for operator, written in zip(wanted.operators, got.operators, strict=True):
        if not _same_operator(operator, written):
            raise OutputError(f"{path}: {operator} reads back as {written}, or with other options")


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    if (one.name, one.type, one.shape, one.dynamic) != (other.name, other.type, other.shape, other.dynamic):
        return False
    if (one.data is None or one.data.size == 0) != (other.data is None or other.data.size == 0):
        return False
    if one.data is not None and other.data is not None and not np.array_equal(one.data, other.data):
        return False
    return _same_quantization(one.quantization, other.quantization)


def _same_quantization(one: Quantization | None, other: Quantization | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        np.array_equal(one.scale, other.scale)
        and np.array_equal(one.zero_point, other.zero_point)
        and one.axis == other.axis
    )


def _same_operator(one: Operator, other: Operator) -> bool:
    ends = (one.name, one.version, one.inputs, one.outputs, one.intermediates)
    if ends != (other.name, other.version, other.inputs, other.outputs, other.intermediates):
        return False
    return all(_same_option(value, other.options.get(name)) for name, value in one.options.items())


def _same_option(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        return list(one) == ([] if other is None else [int(number) for number in other])
    return bool(np.float32(one) == np.float32(other)) if isinstance(one, float) else bool(one == other)


def _compare_encoding(path: Path, tensor: Tensor, encoding: Encoding) -> None:
    found = tensor.encoding
    if found is None:
        raise OutputError(f"{path}: {tensor.name!r}: expected levels, what was written has {tensor.type}")
    if not np.array_equal(found.scale, encoding.scale.reshape(-1)) or not np.array_equal(
        found.zero_point, encoding.zero_point.reshape(-1)
    ):
        raise OutputError(
            f"{path}: {tensor.name!r}: expected the scale {encoding.scale} and zero point {encoding.zero_point} of the "
            f"plan, what was written has {found.scale} and {found.zero_point}"
        )


def _compare_levels(path: Path, tensor: Tensor, found: Quantization, wanted: Sequence[_Constant]) -> None:
    axis = found.axis if found.per_channel else None
    steps = _steps(tensor.array(), found.zero_point, axis)
    for one in wanted:
        if _same_scales(one.scale, found.scale) and _same_steps(one, steps, axis, bias=tensor.type == _BIAS):
            return
    raise OutputError(f"{path}: {tensor.name!r}: what was written has other levels or scales than the plan gives")


def _same_steps(wanted: _Constant, steps: npt.NDArray[Any], axis: int | None, *, bias: bool) -> bool:
    """Compare number by number where the file's order is known, else channel by channel, whatever the order within."""
    if bias:  # one number, or one for each channel
        flat = wanted.steps.reshape(-1)
        return flat.size in (1, steps.size) and bool((flat == steps.reshape(-1)).all())
    if wanted.laid_out is not None:
        return np.array_equal(wanted.laid_out, steps)
    one, other = _by_channel(wanted.steps, wanted.axis), _by_channel(steps, axis)
    # One scale lies along no axis.
    return np.array_equal(one, other) or np.array_equal(np.sort(one, axis=None), np.sort(other, axis=None))


def _same_scales(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    """Whether scales agree; one that the file repeats for every channel stands for one."""
    return np.array_equal(one, other) or (one.size == 1 and bool((other == one[0]).all()))


def _constants(simulated: ir.Model, flattened: Mapping[str, Sequence[int]]) -> dict[str, list[_Constant]]:
    """Find the levels of every constant, by the name that it had in real numbers, as each of its readers has them."""
    found: dict[str, list[_Constant]] = {}
    for node in simulated.graph:
        if not is_operator(node, "DequantizeLinear"):
            continue
        levels, scale, zero_point = (constant_array(node.inputs[number]) for number in range(3))
        if levels is None or scale is None or zero_point is None or node.inputs[1] is None:
            continue
        axis = None if scale.ndim == 0 else node.attributes.get_int("axis", 1) % max(levels.ndim, 1)
        name = str(node.inputs[1].name).rpartition("_scale")[0]
        steps = _steps(levels, zero_point.reshape(-1), axis)
        for use in node.outputs[0].uses():
            laid_out = _laid_out(use.node, steps, flattened) if use.idx == 1 else None
            constant = _Constant(scale=scale.reshape(-1), steps=steps, axis=axis, laid_out=laid_out)
            found.setdefault(name, []).append(constant)
    return found


def _laid_out(
    node: ir.Node, steps: npt.NDArray[Any], flattened: Mapping[str, Sequence[int]]
) -> npt.NDArray[Any] | None:
    """Put the weights of a layer of at most two spatial axes into the order of TFLite's kernel; None for others.

    CONV_2D: [out, height, width, in / groups]; DEPTHWISE_CONV_2D: [1, height, width, out], where each group has one
    channel; TRANSPOSE_CONV: [out, height, width, in]; FULLY_CONNECTED: [out, in] (TensorFlow, schema.fbs and the
    kernels' Prepare). A single spatial axis is the width.
    """
    if is_operator(node, "Conv", "ConvTranspose") and steps.ndim in (3, 4):
        if is_operator(node, "ConvTranspose"):
            steps = _spread(steps, node.attributes.get_ints("dilations", ()))
        plane = steps if steps.ndim == 4 else steps[:, :, None]  # the axes of channels x height x width
        depthwise = node.attributes.get_int("group", 1) > 1 and plane.shape[1] == 1
        last = is_operator(node, "ConvTranspose") or depthwise
        return plane.transpose((1, 2, 3, 0) if last else (0, 2, 3, 1))
    if is_operator(node, "Gemm", "MatMul") and steps.ndim == 2:
        rows = steps if node.attributes.get_int("transB", 0) else steps.T  # out x in
        extents = flattened.get(str(node.name))
        if extents is None:
            return rows
        return np.moveaxis(rows.reshape(-1, *extents), 1, -1).reshape(rows.shape)
    return None


def _spread(steps: npt.NDArray[Any], dilations: Sequence[int]) -> npt.NDArray[Any]:
    """Put zeros between the weights of a dilated layer, since TRANSPOSE_CONV knows no dilation."""
    sizes = [(size - 1) * step + 1 for size, step in zip(steps.shape[2:], dilations, strict=False)]
    if not sizes:
        return steps
    wide = np.zeros((*steps.shape[:2], *sizes), dtype=steps.dtype)
    places = (slice(None), slice(None), *(slice(None, None, step) for step in dilations))
    wide[places] = steps
    return wide


def _steps(levels: npt.NDArray[Any], zero_point: npt.NDArray[Any], axis: int | None) -> npt.NDArray[Any]:
    """Count levels from the zero point: signed weights are written 128 higher beside uint8 activations."""
    shape = [-1 if number == axis else 1 for number in range(levels.ndim)]
    wide = np.dtype(np.int16 if levels.dtype.itemsize == 1 else np.int64)
    zero = zero_point.astype(wide)
    return np.asarray(levels.astype(wide) - (zero[0] if axis is None else zero.reshape(shape)))


def _by_channel(levels: npt.NDArray[Any], axis: int | None) -> npt.NDArray[Any]:
    rows = levels.reshape(1, -1) if axis is None or not levels.ndim else np.moveaxis(levels, axis, 0)
    return np.sort(rows.reshape(rows.shape[0], -1), axis=1) if rows.size else rows
