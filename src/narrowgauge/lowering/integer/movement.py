"""Operators that move, select, repeat or join levels."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.kernels import UNBOUNDED
from narrowgauge.errors import PlanError
from narrowgauge.graph.channels import keeps_last_axis
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.shapes import dimensions
from narrowgauge.lowering.integer.elementwise import bounded, requantized, tabulated
from narrowgauge.lowering.integer.emitter import Result, Site, Source, kept_type, offset, result_of
from narrowgauge.lowering.integer.layers import by_bytes
from narrowgauge.lowering.integer.windows import fixed_windows


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


_BY_BYTES = ("DepthToSpace", "SpaceToDepth")
"""ONNX Runtime (1.31) has them of 8 bits alone: the bytes of wider levels move apart from each other."""

_NOT_OF_16_BITS = ("ReduceMax", "ReduceMin", "Pad", "Resize")
"""ONNX Runtime (1.31) has them of 8 and of 32 bits."""


def move(node: ir.Node, site: Site) -> None:
    """An operator whose first input holds the levels that its outputs consist of."""
    channels = site.kernels.transformer_forms and keeps_last_axis(node)
    source = site.source(0, channels=channels)
    read = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    results = {value: result_of(value, channels=channels) for value in read}
    moved = _moved(site, source, list(node.inputs[1:]))
    for new, old in zip(moved, node.outputs, strict=True):
        if old in results:
            site.write(requantized(site, new, source, results[old]), results[old])


def _moved(site: Site, source: Source, others: list[ir.Value | None]) -> list[ir.Value]:
    """Add the same operator of levels, in a type for which ONNX Runtime has it; the others are its other inputs."""
    node, kind = site.node, source.value.dtype
    wide = source.encoding.type.bits == 16
    assert kind is not None  # that of levels as they are kept
    if wide and node.op_type in _BY_BYTES:
        return [_moved_by_bytes(site, source)]
    through = ir.DataType.INT32 if wide and node.op_type in _NOT_OF_16_BITS else kind
    value = site.cast(source.value, through)
    outputs = [(through, old.shape) for old in node.outputs]
    made = site.add_several(node.op_type, [value, *others], _attributes(node), outputs)
    for new, old in zip(made, node.outputs, strict=True):
        new.shape = old.shape
    return [site.cast(new, kind) for new in made]


def _moved_by_bytes(site: Site, source: Source) -> ir.Value:
    def moved(value: ir.Value, zero: int, suffix: str) -> ir.Value:
        byte = site.add(site.node.op_type, value, **_attributes(site.node))
        byte.shape = site.node.outputs[0].shape
        return site.cast(byte, ir.DataType.INT32)

    limits = np.iinfo(source.encoding.type.storage)
    ends = np.array([0]), np.array([limits.max - limits.min])
    value = by_bytes(site, source, moved, ends)  # from 0 on
    if limits.min:
        value = site.add("Add", value, site.constant(limits.min, "least", np.int32))
    return site.cast(value, ir.DataType.from_numpy(np.dtype(source.encoding.type.storage)))


def place(node: ir.Node, site: Site) -> None:
    """ArgMax and ArgMin: the place of the extreme level is that of the extreme number."""
    node.replace_input_with(0, site.cast(site.source(0).value, ir.DataType.INT32))


def shape(node: ir.Node, site: Site) -> None:
    """Shape: of the levels."""
    node.replace_input_with(0, site.source(0, channels=True).value)


def pool(node: ir.Node, site: Site) -> None:
    """MaxPool; its second output, places, is not known."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise PlanError("its second output is read")
    source = site.source(0)
    if source.encoding.type.bits == 8:
        move(node, site)
        return
    result = result_of(node.outputs[0])
    site.write(requantized(site, _wide_maxima(site, source), source, result), result)


def _wide_maxima(site: Site, source: Source) -> ir.Value:
    """Take the greatest of the cells of each window, axis by axis: ONNX Runtime (1.31) has no MaxPool of 16 bits."""
    windows, kind = fixed_windows(site.node), source.value.dtype
    assert kind is not None
    value = site.cast(source.value, ir.DataType.INT32)
    unknown = ir.Shape([None] * (windows.rank + 2))
    if any(windows.pads):
        least = site.constant(np.iinfo(source.encoding.type.storage).min, "least", np.int32)
        amounts = [0, 0, *windows.pads[: windows.rank], 0, 0, *windows.pads[windows.rank :]]
        value = site.add("Pad", value, site.constant(amounts, "around", np.int64), least, shape=unknown)
    for axis in range(windows.rank):
        numbers = [site.constant([number], "axis", np.int64) for number in (axis + 2, windows.strides[axis])]
        cells = []
        for cell in range(windows.kernel[axis]):
            begin = cell * windows.dilations[axis]
            end = begin - windows.reach(axis) + 1  # from the end, where 0 is the end itself
            ends = [site.constant([one], "end", np.int64) for one in (begin, end or np.iinfo(np.int64).max)]
            cells.append(site.add("Slice", value, *ends, *numbers, shape=unknown))
        value = site.add("Max", *cells) if len(cells) > 1 else cells[0]
    value.shape = site.node.outputs[0].shape
    return site.cast(value, kind)


def global_pool(node: ir.Node, site: Site) -> None:
    """GlobalMaxPool: the greatest level of each channel."""
    sizes = dimensions(node.inputs[0])
    if sizes is None:
        raise PlanError("the rank of its input is not known")
    source, result = site.source(0), result_of(node.outputs[0])
    axes = site.constant(range(2, len(sizes)), "axes", np.int64)
    value = site.add("ReduceMax", site.cast(source.value, ir.DataType.INT32), axes, keepdims=1)
    value.shape = node.outputs[0].shape
    kind = ir.DataType.from_numpy(np.dtype(kept_type(source.linear)))
    site.write(requantized(site, site.cast(value, kind), source, result), result)


def pad(node: ir.Node, site: Site) -> None:
    """Pad: what it puts around levels is the level of the constant."""
    source, result = site.source(0), result_of(node.outputs[0])
    inputs: list[ir.Value | None] = list(node.inputs[1:])
    if node.attributes.get_string("mode", "constant") == "constant":
        given = node.inputs[2] if len(node.inputs) > 2 else None
        real = np.zeros((), np.float32) if given is None else _constant(given)
        inputs += [None] * (2 - len(inputs))
        level = quantize(real.reshape(()), source.encoding).astype(np.int64) + offset(source.linear)
        inputs[1] = site.constant(level, "level", np.uint8 if source.encoding.type.bits == 8 else np.int32)
    (value,) = _moved(site, source, inputs)
    site.write(requantized(site, value, source, result), result)


def _constant(value: ir.Value) -> np.ndarray:
    array = constant_array(value)
    node = value.producer()
    if array is None and node is not None and node.op_type == "DequantizeLinear":
        levels, scale, zero_point = (constant_array(one) for one in node.inputs)
        if levels is not None and scale is not None and zero_point is not None:
            array = (levels.astype(np.int64) - zero_point).astype(np.float32) * scale
    if array is None or array.size != 1:
        raise PlanError("what it pads with is computed")
    return array


def concat(node: ir.Node, site: Site) -> None:
    """Concat: each input in the output's encoding first, in that of its channels where it joins those."""
    channels = site.kernels.transformer_forms
    result = result_of(node.outputs[0], channels=channels)
    sources = [site.source(number, channels=channels) for number in range(len(node.inputs))]
    parts = _parts(node, result) if result.encoding.scale.ndim else [result] * len(sources)
    values = [_joined(site, source, part) for source, part in zip(sources, parts, strict=True)]
    value = site.add("Concat", *values, **_attributes(node))
    value.shape = node.outputs[0].shape
    site.write(bounded(site, value, result), result)


def _parts(node: ir.Node, result: Result) -> list[Result]:
    """Return what each input of a Concat becomes, where the output has a scale for each channel of its last axis.

    Raises:
        PlanError: they are joined along that axis, and how many channels an input has is not known.
    """
    if keeps_last_axis(node):
        return [result] * len(node.inputs)
    sizes = [dimensions(value) for value in node.inputs]
    counts = [one[-1] for one in sizes if one and one[-1] is not None]
    if len(counts) != len(sizes) or sum(counts) != result.encoding.scale.size:
        raise PlanError("it joins channels, and how many an input has is not known")
    begins = np.cumsum([0, *counts])
    return [replace(result, encoding=_some(result.encoding, *ends)) for ends in pairwise(begins.tolist())]


def _some(encoding: Encoding, begin: int, end: int) -> Encoding:
    """Return the encoding of some of the channels."""
    return replace(encoding, scale=encoding.scale[begin:end], zero_point=encoding.zero_point[begin:end])


def _joined(site: Site, source: Source, result: Result) -> ir.Value:
    if source.encoding.same_as(result.encoding):
        return source.value
    if site.kernels.transformer_forms:
        return requantized(site, source.value, source, result)
    if (
        site.kernels.tflite_files and source.encoding.type.signed
    ):  # a QUANTIZE in the file: CONCATENATION takes one scale
        table = site.kernels.unary("Requantize", {}, source.encoding, result.encoding, UNBOUNDED)
    else:
        table = site.kernels.concat(source.encoding, result.encoding)
    return tabulated(site, source, table, result)
