"""A layer with constant weights as matrix products: rows of inputs times rows of weights, one product per group.

For every operator alike, `output[r, o] = sum_k input[r, k] * weight[o, k]`, where r counts samples and positions and
k input channels and kernel taps. Arrays have a leading axis of groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import output_axis, weight_inputs

# Inputs (channels times taps) up to which a layer is treated whole: its second moments are this number squared.
MOST_INPUTS = 2304

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixForm:
    """How a layer's arrays become matrices.

    Attributes:
        weights: weights as the operator stores them -> [groups, outputs, inputs * taps].
        restored: the inverse.
        rows: activations, how many rows are wanted at the most, random numbers -> [groups, rows, inputs * taps].
        adds_groups: whether all groups' products are added up to one output (see `_in_parts`), not set side by side.
    """

    weights: Callable[[Array], Array]
    restored: Callable[[Array], Array]
    rows: Callable[[Array, int, np.random.Generator], Array]
    adds_groups: bool = False

    def channels(self, numbers: Array) -> Array:
        """Numbers of each group and output, [groups, outputs], as numbers of each output channel."""
        return numbers.sum(axis=0) if self.adds_groups else numbers.reshape(-1)


def matrix_form(node: ir.Node) -> MatrixForm | None:
    """Return the matrix form of a Conv, ConvTranspose, Gemm or MatMul with constant weights; None where it has none.

    None also for a product with a stack of matrices or a vector, where padding depends on a shape that only the
    operator knows (`auto_pad`, `output_shape` of a ConvTranspose), and for groups of more than `MOST_INPUTS` inputs.
    """
    if weight_inputs(node) != [1]:
        return None
    weights = node.inputs[1]
    assert weights is not None
    assert weights.const_value is not None
    shape = tuple(weights.const_value.shape.numpy())
    form = _form(node, shape) if 0 not in shape else None
    if form is None:
        return None
    groups = node.attributes.get_int("group", 1)
    inputs = math.prod(shape) // _output_channels(node, shape)
    parts = next(parts for parts in range(1, inputs + 1) if inputs % parts == 0 and inputs // parts <= MOST_INPUTS)
    if parts == 1:
        return form
    return _in_parts(form, parts) if groups == 1 else None


def _form(node: ir.Node, shape: tuple[int, ...]) -> MatrixForm | None:
    if is_operator(node, "Conv") and len(shape) > 2:
        return _convolution(node, shape)
    if is_operator(node, "ConvTranspose") and len(shape) > 2:
        return _transposed_convolution(node, shape)
    if is_operator(node, "Gemm") and not node.attributes.get_int("transA", 0):
        return _product(transposed=bool(node.attributes.get_int("transB", 0)))
    return _product(transposed=False) if is_operator(node, "MatMul") and len(shape) == 2 else None


def _output_channels(node: ir.Node, shape: tuple[int, ...]) -> int:
    return shape[output_axis(node, 1)] * (node.attributes.get_int("group", 1) if node.op_type == "ConvTranspose" else 1)


def _in_parts(form: MatrixForm, parts: int) -> MatrixForm:
    """Treat a wide layer's inputs as several groups, whose products are added up.

    Each part is then rounded for itself: the square matrix of second moments is known only along its diagonal blocks.
    """

    def cut(rows: Array) -> Array:  # [1, rows, inputs] to [parts, rows, inputs / parts]
        return rows.reshape(rows.shape[1], parts, rows.shape[2] // parts).transpose(1, 0, 2)

    def joined(rows: Array) -> Array:
        return rows.transpose(1, 0, 2).reshape(1, rows.shape[1], parts * rows.shape[2])

    return MatrixForm(
        weights=lambda weights: cut(form.weights(weights)),
        restored=lambda rows: form.restored(joined(rows)),
        rows=lambda values, most, generator: cut(form.rows(values, most, generator)),
        adds_groups=True,
    )


# --- matrix products ------------------------------------------------------------------------------------------


def _product(*, transposed: bool) -> MatrixForm:
    def flip(weights: Array) -> Array:  # [inputs, outputs], or [outputs, inputs]
        return weights if transposed else weights.T

    def rows(values: Array, most: int, generator: np.random.Generator) -> Array:
        flat = values.reshape(math.prod(values.shape[:-1]), values.shape[-1])
        return flat[spread_positions(len(flat), most, generator)][None]

    return MatrixForm(weights=lambda weights: flip(weights)[None], restored=lambda rows: flip(rows[0]), rows=rows)


def spread_positions(count: int, most: int, generator: np.random.Generator) -> Integers:
    """Choose at most so many of the positions 0, 1, ..., count - 1: one at random out of each of equal parts."""
    if count <= most:
        return np.arange(count)
    return ((np.arange(most) + generator.random(most)) * count / most).astype(np.int64)


# --- convolutions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Window:
    """Geometry of a kernel along each spatial axis, as ONNX's attributes give it."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_begin: tuple[int, ...]
    pads_end: tuple[int, ...]
    output_padding: tuple[int, ...]


def _window(node: ir.Node, kernel: tuple[int, ...]) -> _Window:
    rank = len(kernel)
    pads = node.attributes.get_ints("pads", [0] * (2 * rank))
    automatic = node.attributes.get_string("auto_pad", "NOTSET") == "VALID"
    return _Window(
        kernel=kernel,
        strides=tuple(node.attributes.get_ints("strides", [1] * rank)),
        dilations=tuple(node.attributes.get_ints("dilations", [1] * rank)),
        pads_begin=tuple(pads[:rank]) if not automatic else (0,) * rank,
        pads_end=tuple(pads[rank:]) if not automatic else (0,) * rank,
        output_padding=tuple(node.attributes.get_ints("output_padding", [0] * rank)),
    )


def _convolution(node: ir.Node, shape: tuple[int, ...]) -> MatrixForm | None:
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    groups = node.attributes.get_int("group", 1)
    window = _window(node, shape[2:])

    def outputs(sizes: Sequence[int]) -> list[int]:
        return [
            (size + begin + end - dilation * (taps - 1) - 1) // stride + 1
            for size, begin, end, dilation, taps, stride in zip(
                sizes, window.pads_begin, window.pads_end, window.dilations, window.kernel, window.strides, strict=True
            )
        ]

    def sources(axis: int, positions: Integers, size: int) -> Integers:
        starts = positions * window.strides[axis] - window.pads_begin[axis]
        found = starts[:, None] + window.dilations[axis] * np.arange(window.kernel[axis])
        return np.where((found >= 0) & (found < size), found, -1)

    return MatrixForm(
        weights=lambda weights: weights.reshape(groups, shape[0] // groups, -1),
        restored=lambda rows: rows.reshape(shape),
        rows=lambda values, most, generator: _unfolded(values, groups, outputs, sources, most, generator),
    )


def _transposed_convolution(node: ir.Node, shape: tuple[int, ...]) -> MatrixForm | None:
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    if "output_shape" in node.attributes:
        return None
    groups = node.attributes.get_int("group", 1)
    window = _window(node, shape[2:])
    inputs, outputs_per_group = shape[0] // groups, shape[1]

    def outputs(sizes: Sequence[int]) -> list[int]:
        return [
            stride * (size - 1) + extra + dilation * (taps - 1) + 1 - begin - end
            for size, begin, end, dilation, taps, stride, extra in zip(
                sizes, window.pads_begin, window.pads_end, window.dilations, window.kernel, window.strides,
                window.output_padding, strict=True,
            )
        ]  # fmt: skip

    def sources(axis: int, positions: Integers, size: int) -> Integers:
        """Tap t reads input i where position = i * stride + t * dilation - pad, if there is such an i."""
        reached = positions[:, None] + window.pads_begin[axis] - window.dilations[axis] * np.arange(window.kernel[axis])
        found = reached // window.strides[axis]
        return np.where((reached % window.strides[axis] == 0) & (found >= 0) & (found < size), found, -1)

    def to_rows(weights: Array) -> Array:  # [inputs, outputs per group, *kernel]
        parted = weights.reshape(groups, inputs, outputs_per_group, -1)
        return parted.transpose(0, 2, 1, 3).reshape(groups, outputs_per_group, -1)

    def restored(rows: Array) -> Array:
        parted = rows.reshape(groups, outputs_per_group, inputs, -1)
        return parted.transpose(0, 2, 1, 3).reshape(shape)

    return MatrixForm(
        weights=to_rows,
        restored=restored,
        rows=lambda values, most, generator: _unfolded(values, groups, outputs, sources, most, generator),
    )


def _unfolded(
    values: Array,
    groups: int,
    outputs: Callable[[Sequence[int]], list[int]],
    sources: Callable[[int, Integers, int], Integers],
    most: int,
    generator: np.random.Generator,
) -> Array:
    """Gather what the taps read at some output positions of each sample ("im2col"); padding reads 0.

    Args:
        values: activations [samples, channels, *sizes].
        groups: of channels.
        outputs: sizes of the input -> sizes of the output.
        sources: axis, output positions along it, the input's size along it -> the input's index for each position and
            tap, -1 where a tap reads padding.
        most: rows wanted.
        generator: chooses the positions.
    """
    samples, channels, *sizes = values.shape
    extents = outputs(sizes)
    chosen = spread_positions(math.prod(extents), max(1, most // max(samples, 1)), generator)
    flat = np.zeros((len(chosen), 1), dtype=np.int64)
    inside = np.ones((len(chosen), 1), dtype=bool)
    for axis, positions in enumerate(np.unravel_index(chosen, extents)):
        found = sources(axis, np.asarray(positions), sizes[axis])  # [positions, taps of the axis]
        shape = len(chosen), flat.shape[1] * found.shape[1]
        flat = (flat[:, :, None] * sizes[axis] + np.maximum(found, 0)[:, None, :]).reshape(shape)
        inside = (inside[:, :, None] & (found >= 0)[:, None, :]).reshape(shape)
    parted = values.reshape(samples, groups, channels // groups, math.prod(sizes))
    read = parted[..., flat] * inside  # [samples, groups, channels, positions, taps]
    inputs = channels // groups * flat.shape[1]
    return read.transpose(1, 0, 3, 2, 4).reshape(groups, samples * len(chosen), inputs)
