"""Operators on levels one by one, and on pairs of levels: tables, and for 16 bits sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.kernels import UNBOUNDED, Bounds
from narrowgauge.core.engines.tflite_unary import slopes_encoding
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import clip_bounds, is_constant
from narrowgauge.lowering.integer.emitter import Result, Site, Source, offset, result_at, result_of
from narrowgauge.lowering.integer.rescaling import Sums, clipped, look_up, write_levels
from narrowgauge.lowering.integer.sums import summed

Levels = npt.NDArray[np.int64]


def places(site: Site, source: Source) -> ir.Value:
    """Return levels as places in a table, int32, from 0 on."""
    value = site.cast(source.value, ir.DataType.INT32)
    least = np.iinfo(np.int16).min
    if source.encoding.type.bits == 16 and source.encoding.type.signed:
        value = site.add("Sub", value, site.constant(least, "least", np.int32))
    return value


def unary(node: ir.Node, site: Site) -> None:
    """Any operator of one input."""
    source, result = site.ends()
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    table = site.kernels.unary(node.op_type, attributes, source.encoding, result.encoding, result.rounding.bounds)
    levels = tabulated(site, source, table, result)
    site.write(levels if site.kernels.transformer_forms else bounded(site, levels, result), result)


def parametric_relu(node: ir.Node, site: Site) -> None:
    """PRelu. TFLite's files round constant slopes by themselves, and a single one is LEAKY_RELU's."""
    slopes = constant_array(node.inputs[1])
    if slopes is None or not site.kernels.tflite_files:
        binary(node, site)
        return
    source, result = site.source(0), result_of(node.outputs[0])
    if source.encoding.type.bits != 8:
        raise PlanError(f"expected 8-bit levels of PRelu, as LiteRT's kernel does, got {source.encoding.type.name}")
    if slopes.size == 1:
        alpha = {"alpha": float(slopes.reshape(()))}
        table = site.kernels.unary("LeakyRelu", alpha, source.encoding, result.encoding, result.rounding.bounds)
        site.write(bounded(site, tabulated(site, source, table, result), result), result)
        return
    encoding = slopes_encoding(slopes, source.encoding.type)
    kept = quantize(slopes.astype(np.float32), encoding).astype(np.int32) + offset(source.linear)
    levels = site.constant(kept, "slopes", np.uint8)
    _combined(site, "PRelu", source, Source(linear=source.linear, encoding=encoding, value=levels), result)


def clip(node: ir.Node, site: Site) -> None:
    """Relu or Clip between levels."""
    if any(bound is not None and not is_constant(bound) for bound in node.inputs[1:]):
        raise PlanError("its bounds are computed")
    source, result = site.ends()
    bounds = _within(clip_bounds(node), result.rounding.bounds)
    if site.kernels.transformer_forms and _is_wide(source, result):
        site.write(summed(site, [source], result, bounds=bounds), result)
        return
    table = site.kernels.unary(node.op_type, {}, source.encoding, result.encoding, bounds)
    site.write(tabulated(site, source, table, result), result)


def _within(first: Bounds, second: Bounds) -> Bounds:
    low, high = max(first[0], second[0]), min(first[1], second[1])
    if low > high:
        raise PlanError("its bounds leave nothing of what bounds it")
    return low, high


def identity(node: ir.Node, site: Site) -> None:
    """Identity: from one encoding to another, or none."""
    source, result = site.ends()
    value = requantized(site, source.value, source, result)
    site.write(value if value is not source.value else site.add("Identity", value), result)


def tabulated(site: Site, source: Source, table: Levels, result: Result) -> ir.Value:
    """Replace levels by the entries of a table, or cut them where that is all that it does.

    A table of shape (channels, levels) has a row for each channel of the last axis.
    """
    kept = result.kept(table)
    if kept.ndim > 1:
        different, which = np.unique(kept, axis=0, return_inverse=True)
        rows = site.constant(which.reshape(-1) * kept.shape[1], "rows", np.int32)
        return look_up(site, different.reshape(-1), site.add("Add", places(site, source), rows))
    low, high = int(kept[0]), int(kept[-1])
    cuts = source.value.dtype == ir.DataType.UINT8 and np.array_equal(kept, np.clip(np.arange(256), low, high))
    if cuts and kept.dtype == np.uint8:
        whole = (low, high) == (0, 255)
        return site.add("Identity", source.value) if whole else clipped(site, source.value, low, high)
    return look_up(site, kept, places(site, source))


def requantized(site: Site, value: ir.Value, source: Source, result: Result) -> ir.Value:
    """Return levels of the source's encoding, moved or selected ones, in the result's, within its bounds."""
    moved = Source(linear=source.linear, encoding=source.encoding, value=value)
    bounds = result.rounding.bounds
    same = source.encoding.same_as(result.encoding)
    if site.kernels.transformer_forms and not (same and bounds == UNBOUNDED) and _is_wide(source, result):
        return summed(site, [moved], result)
    if not same:
        table = site.kernels.unary("Requantize", {}, source.encoding, result.encoding, bounds)
        return tabulated(site, moved, table, result)
    if bounds == UNBOUNDED:
        return value
    table = site.kernels.unary("Clip", {}, source.encoding, result.encoding, bounds)
    return tabulated(site, moved, table, result)


def _is_wide(source: Source, result: Result) -> bool:
    """Whether a table would be large: of 16 bits, or one for each channel."""
    return any(one.scale.ndim or one.type.bits > 8 for one in (source.encoding, result.encoding))


def bounded(site: Site, value: ir.Value, result: Result) -> ir.Value:
    """Keep levels of the result's encoding within the bounds before its rounding."""
    return requantized(site, value, Source(linear=result.linear, encoding=result.encoding, value=value), result)


def binary(node: ir.Node, site: Site) -> None:
    """Any operator of two inputs, which broadcast."""
    if len(node.inputs) != 2:
        raise PlanError(f"it has {len(node.inputs)} inputs, expected 2")
    if site.kernels.transformer_forms and is_operator(node, "Add", "Sub"):
        sources, result = [site.source(number, channels=True) for number in range(2)], site.ends()[1]
        signs = (1, -1) if is_operator(node, "Sub") else (1, 1)
        site.write(summed(site, sources, result, signs=signs), result)
        return
    _combined(site, node.op_type, site.source(0), site.source(1), result_of(node.outputs[0]))


def product(node: ir.Node, site: Site) -> None:
    """Mul, and the square of a difference that nothing rounds in between."""
    value = node.inputs[0]
    difference = value.producer() if value is not None and value is node.inputs[1] else None
    if value is None or difference is None or not is_operator(difference, "Sub") or len(value.uses()) != 2:
        binary(node, site)
        return
    sources = [site.source_of(one, f"input {number} of the difference") for number, one in enumerate(difference.inputs)]
    _combined(site, "SquaredDifference", sources[0], sources[1], result_of(node.outputs[0]))


def _combined(site: Site, operator: str, first: Source, second: Source, result: Result) -> None:
    encodings = (first.encoding, second.encoding, result.encoding)
    if all(one.type.bits == 8 for one in encodings):
        table = site.kernels.binary(operator, *encodings, result.rounding.bounds)
        shape = site.node.outputs[0].shape
        known = constant_array(second.value)
        if known is not None and known.size == 1 and known.ndim <= (len(shape) if shape is not None else 0):
            site.write(tabulated(site, first, table[:, int(known.reshape(()))], result), result)
            return
        place = site.add("Mul", places(site, first), site.constant(256, "row", np.int32))
        place = site.add("Add", place, places(site, second), shape=shape)
        place.shape = shape
        value = look_up(site, result.kept(table).reshape(-1), place)
    else:
        value = _computed(site, operator, first, second, result)
    site.write(value, result)


_COMBINE = {"add": "Add", "multiply": "Mul", "maximum": "Max", "minimum": "Min"}
_REACH: dict[str, Callable[[Levels, Levels], Levels]] = {
    "add": np.add.outer, "multiply": np.multiply.outer, "maximum": np.maximum.outer, "minimum": np.minimum.outer,
}  # fmt: skip


def _computed(site: Site, operator: str, first: Source, second: Source, result: Result) -> ir.Value:
    """Combine levels of 16 bits: what each stands for, looked up, then a rescale."""
    encodings: tuple[Encoding, Encoding, Encoding] = (first.encoding, second.encoding, result.encoding)
    form = site.kernels.pair(operator, *encodings, result.rounding.bounds)
    ends = [np.array([table.min(), table.max()]) for table in (form.first, form.second)]
    reach = _REACH[form.combine](*ends)  # all four are monotone in each argument, or bilinear
    one = look_up(site, form.first, places(site, first))
    other = look_up(site, form.second, places(site, second))
    value = site.add(_COMBINE[form.combine], one, other)
    value.shape = site.node.outputs[0].shape
    sums = Sums(value=value, least=np.array([reach.min()]), greatest=np.array([reach.max()]))
    return write_levels(site, sums, None, form.rescale, result)


def rounding(node: ir.Node, site: Site) -> None:
    """A QuantizeLinear of what a DequantizeLinear wrote: from one encoding to another."""
    source = site.source(0, channels=site.kernels.transformer_forms)
    result = result_at(node, channels=site.kernels.transformer_forms)
    value = requantized(site, source.value, source, result)
    site.write(value if value is not source.value else site.add("Identity", value), result)
