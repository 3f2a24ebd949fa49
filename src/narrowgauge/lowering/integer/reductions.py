"""Sums and means of levels, rescaled. Pools whose windows reach over the edge count the cells inside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_integers
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.shapes import dimensions
from narrowgauge.lowering.integer.elementwise import bounded
from narrowgauge.lowering.integer.emitter import Result, Site, Source, offset, result_of
from narrowgauge.lowering.integer.layers import by_bytes, zero_point_of
from narrowgauge.lowering.integer.rescaling import Sums, look_up, write_levels
from narrowgauge.lowering.integer.windows import Windows, fixed_windows, padded_as_tflite

_LARGEST_TABLE = 2**20


def _ends(encoding: Encoding, moved: int) -> tuple[int, int]:
    """The least and the greatest level as it is kept."""
    limits = np.iinfo(encoding.type.storage)
    return int(limits.min) + moved, int(limits.max) + moved


def reduction(node: ir.Node, site: Site) -> None:
    """ReduceMean and ReduceSum along axes of known extents."""
    sizes = dimensions(node.inputs[0])
    given = node.inputs[1] if len(node.inputs) > 1 else None
    axes = constant_integers(given) if given is not None else tuple(node.attributes.get_ints("axes", ()))
    if axes is None or sizes is None:
        raise PlanError("its axes are computed, or the rank of its input is not known")
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        raise PlanError("it has no axes")
    _reduced(site, axes or tuple(range(len(sizes))), keep=node.attributes.get_int("keepdims", 1))


def global_average_pool(node: ir.Node, site: Site) -> None:
    """GlobalAveragePool: every axis behind the channels."""
    sizes = dimensions(node.inputs[0])
    if sizes is None:
        raise PlanError("the rank of its input is not known")
    _reduced(site, tuple(range(2, len(sizes))), keep=1)


def _reduced(site: Site, axes: tuple[int, ...], *, keep: int) -> None:
    source, result = site.source(0), result_of(site.node.outputs[0])
    sizes = dimensions(site.node.inputs[0]) or ()
    extents = [sizes[axis] for axis in axes]
    known = [extent for extent in extents if extent]
    if len(known) != len(extents):
        raise PlanError(f"it reduces axes of {extents} entries, expected known extents")
    count = math.prod(known)
    kernel = site.kernels.sum if is_operator(site.node, "ReduceSum") else site.kernels.mean
    form = kernel(source.encoding, result.encoding, count)
    moved = offset(source.linear)
    least, greatest = (count * end for end in _ends(source.encoding, moved))
    small = max(-least, greatest) <= np.iinfo(np.int32).max
    value = site.cast(source.value, ir.DataType.INT32 if small else ir.DataType.INT64)
    value = site.add(
        "ReduceSum", value, site.constant(axes, "axes", np.int64), shape=site.node.outputs[0].shape, keepdims=keep
    )
    value.shape = site.node.outputs[0].shape
    bias = np.asarray(0 if form.bias is None else form.bias) - moved * count
    sums = Sums(value=value, least=np.array([least]), greatest=np.array([greatest]))
    site.write(bounded(site, write_levels(site, sums, bias, form.rescale, result), result), result)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Windows:
    """The windows of an AveragePool.

    Attributes:
        kernel: cells along each axis.
        attributes: of the convolution that sums them.
        inside: whether all lie inside.
        padding_counts: whether cells of the padding are counted, too.
        added: padding that is put around the input first, since it counts and what lies beyond it does not.
    """

    kernel: tuple[int, ...]
    attributes: dict[str, Any]
    inside: bool
    padding_counts: bool
    added: tuple[int, ...] = ()


def _windows(node: ir.Node) -> _Windows:
    kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
    names = ("strides", "dilations", "auto_pad", "pads")
    attributes = {name: node.attributes[name].value for name in names if name in node.attributes}
    automatic = attributes.get("auto_pad", "NOTSET")
    counts = bool(node.attributes.get_int("count_include_pad", 0))
    if node.attributes.get_int("ceil_mode", 0) and automatic in ("NOTSET", "VALID"):
        return _rounded_up(fixed_windows(node), padding_counts=counts)
    inside = automatic == "VALID" or (automatic == "NOTSET" and not any(attributes.get("pads", ())))
    return _Windows(kernel=kernel, attributes=attributes, inside=inside, padding_counts=counts and not inside)


def _rounded_up(windows: Windows, *, padding_counts: bool) -> _Windows:
    """Windows the last of which reach beyond the padding."""
    inside, both = not any(windows.pads), padding_counts and any(windows.beyond)
    behind = (*(0,) * windows.rank, *windows.beyond)
    added = tuple(pad - beyond for pad, beyond in zip(windows.pads, behind, strict=True)) if both else ()
    pads = behind if both else windows.pads
    attributes = {"strides": windows.strides, "dilations": windows.dilations, "pads": pads}
    counts = padding_counts and not inside and not both
    return _Windows(
        kernel=windows.kernel, attributes=attributes, inside=inside, padding_counts=counts,
        added=added if any(added) else (),
    )  # fmt: skip


def _padded(site: Site, source: Source, pads: tuple[int, ...]) -> Source:
    """Put zero points around levels."""
    if not pads:
        return source
    rank, kind = len(pads) // 2, source.value.dtype
    assert kind is not None  # that of levels as they are kept
    wide = source.encoding.type.bits == 16  # ONNX Runtime (1.31) has no Pad of 16 bits
    value = site.cast(source.value, ir.DataType.INT32 if wide else kind)
    around = site.constant([0, 0, *pads[:rank], 0, 0, *pads[rank:]], "around", np.int64)
    zero = site.constant(zero_point_of(source), "around_zero_point", np.int32 if wide else np.uint8)
    value = site.add("Pad", value, around, zero, shape=_unknown(rank + 2))
    return Source(linear=source.linear, encoding=source.encoding, value=site.cast(value, kind))


def average_pool(node: ir.Node, site: Site) -> None:
    """AveragePool: sums by a convolution with ones, of each channel by itself."""
    if site.kernels.tflite_files and not padded_as_tflite(node):
        raise PlanError("TFLite has no such padding: the file averages real numbers")
    source, result, windows = site.source(0), result_of(node.outputs[0]), _windows(node)
    source = _padded(site, source, windows.added)
    full = math.prod(windows.kernel)
    moved = offset(source.linear)
    channels_apart, shape = _channels_apart(site, source.value, len(windows.kernel))
    apart = Source(linear=source.linear, encoding=source.encoding, value=channels_apart)
    ends = (np.array([_ends(source.encoding, moved)[0] * full]), np.array([_ends(source.encoding, moved)[1] * full]))
    zero = zero_point_of(source) if windows.padding_counts else 0
    value = by_bytes(site, _with_zero(apart, zero - moved), _summing(site, windows), ends)
    if windows.inside or windows.padding_counts:
        rescale = site.kernels.average_pool(source.encoding, result.encoding, full)
        sums = Sums(value=value, least=ends[0] - zero * full, greatest=ends[1] - zero * full)
        levels = write_levels(site, sums, np.asarray((zero - moved) * full), rescale, result)
    elif source.encoding.type.bits == 8:
        levels = _by_count(site, windows, value, source, result)
    else:
        levels = _for_each_count(site, windows, value, source, result)
    site.write(bounded(site, _channels_together(site, levels, shape, len(windows.kernel)), result), result)


def _with_zero(source: Source, zero_point: int) -> Source:
    """The same levels with another zero point, which padding then has."""
    encoding = Encoding(
        type=source.encoding.type, granularity=source.encoding.granularity, scale=source.encoding.scale,
        zero_point=np.asarray(zero_point),
    )  # fmt: skip
    return Source(linear=source.linear, encoding=encoding, value=source.value)


def _summing(site: Site, windows: _Windows) -> Any:
    ones = site.constant(np.ones((1, 1, *windows.kernel)), "ones", np.uint8)

    def sums(value: ir.Value, zero_point: int, suffix: str) -> ir.Value:
        zero = site.constant(zero_point, f"{suffix}_zero_point", np.uint8)
        return site.add(
            "ConvInteger", value, ones, zero, type=ir.DataType.INT32, shape=_unknown(len(windows.kernel) + 2),
            **windows.attributes,
        )  # fmt: skip

    return sums


def _unknown(rank: int) -> ir.Shape:
    return ir.Shape([None] * rank)


def _channels_apart(site: Site, value: ir.Value, rank: int) -> tuple[ir.Value, ir.Value]:
    """Reshape [batch, channels, ..] to [batch * channels, 1, ..]; also return the first two extents."""
    outer = site.add("Shape", value, type=ir.DataType.INT64, shape=ir.Shape([2]), start=0, end=2)
    inner = site.add("Shape", value, type=ir.DataType.INT64, shape=ir.Shape([rank]), start=2)
    rows = site.add("ReduceProd", outer, type=ir.DataType.INT64, shape=ir.Shape([1]), keepdims=1)
    shape = site.add("Concat", rows, site.constant([1], "one", np.int64), inner, shape=ir.Shape([rank + 2]), axis=0)
    return site.add("Reshape", value, shape, shape=_unknown(rank + 2), allowzero=1), outer


def _channels_together(site: Site, value: ir.Value, outer: ir.Value, rank: int) -> ir.Value:
    inner = site.add("Shape", value, type=ir.DataType.INT64, shape=ir.Shape([rank]), start=2)
    shape = site.add("Concat", outer, inner, shape=ir.Shape([rank + 2]), axis=0)
    value = site.add("Reshape", value, shape, allowzero=1)
    value.shape = site.node.outputs[0].shape
    return value


def _by_count(site: Site, windows: _Windows, value: ir.Value, source: Source, result: Result) -> ir.Value:
    """Look up sums in a table for each number of cells inside."""
    moved, full = offset(source.linear), math.prod(windows.kernel)
    greatest = _ends(source.encoding, moved)[1]
    tables: list[npt.NDArray[np.int64]] = []
    for count in range(full + 1):
        sums = np.arange(count * greatest + 1, dtype=np.int64)
        rescale = site.kernels.average_pool(source.encoding, result.encoding, max(count, 1))
        tables.append(rescale.levels(sums - moved * count))
    if sum(len(table) for table in tables) > _LARGEST_TABLE:
        raise PlanError(f"windows of {full} cells reach over the edge; expected fewer")
    begins = np.cumsum([0, *(len(table) for table in tables[:-1])])
    place = site.add("Add", value, look_up(site, begins.astype(np.int32), _counts(site, windows, source)))
    return look_up(site, result.kept(np.concatenate(tables)), place)


def _for_each_count(site: Site, windows: _Windows, value: ir.Value, source: Source, result: Result) -> ir.Value:
    """Rescale sums of 16-bit levels for each number of cells inside, and take what belongs to that of the window."""
    counts, full = _counts(site, windows, source), math.prod(windows.kernel)
    least, greatest = (end * full for end in _ends(source.encoding, 0))
    sums = Sums(value=value, least=np.array([least]), greatest=np.array([greatest]))
    kind, levels = ir.DataType.from_numpy(np.dtype(result.type)), None
    for count in sorted({math.prod(sides) for sides in product(*(range(1, side + 1) for side in windows.kernel))}):
        rescale = site.kernels.average_pool(source.encoding, result.encoding, count)
        made = site.cast(write_levels(site, sums, None, rescale, result), ir.DataType.INT32)
        if levels is None:
            levels = made
            continue
        here = site.add("Equal", counts, site.constant(count, "count", np.int32), type=ir.DataType.BOOL)
        levels = site.add("Where", here, made, levels, type=ir.DataType.INT32, shape=made.shape)
    assert levels is not None  # a window has a cell
    return site.cast(levels, kind)


def _counts(site: Site, windows: _Windows, source: Source) -> ir.Value:
    """Return how many cells of each window lie inside, int32, [1, 1, ...]."""
    inner = site.add("Shape", source.value, type=ir.DataType.INT64, start=2)
    inner.shape = ir.Shape([len(windows.kernel)])
    shape = site.add("Concat", site.constant([1, 1], "one_image", np.int64), inner, axis=0)
    shape.shape = ir.Shape([len(windows.kernel) + 2])
    ones = site.add("Expand", site.constant(1, "cell", np.uint8), shape, shape=_unknown(len(windows.kernel) + 2))
    counts: ir.Value = _summing(site, windows)(ones, 0, "count")
    return counts
