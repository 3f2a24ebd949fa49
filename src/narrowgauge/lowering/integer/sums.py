"""Sums of tensors with scales of their own, and levels in another encoding: `core.engines.integer_sums` in nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from narrowgauge.core.engines.integer_sums import WeightedSum, channel_limits, weighted_sum
from narrowgauge.core.engines.kernels import Bounds
from narrowgauge.lowering.integer.emitter import Result, Site, Source, offset
from narrowgauge.lowering.integer.fitting import Integers
from narrowgauge.lowering.integer.rescaling import cut


def summed(
    site: Site, sources: Sequence[Source], result: Result, *, signs: tuple[int, ...] = (), bounds: Bounds | None = None
) -> ir.Value:
    """Add levels up, which broadcast, and write them as the result's, within bounds: its own where none are given.

    Channels lie along the last axis of the sources that have a scale for each, and of the result.

    Raises:
        PlanError: see `weighted_sum`.
    """
    encodings = tuple(source.encoding for source in sources)
    form = weighted_sum(encodings, result.encoding, signs=signs, bounds=bounds or result.rounding.bounds)
    moved = [offset(source.linear) for source in sources]
    addend = form.addend + (np.int64(result.offset) << form.shift)
    for more, multiplier in zip(moved, form.multipliers, strict=True):
        addend = addend - more * multiplier
    positive = _positive(form, sources, moved, addend)
    total: ir.Value | None = None
    for number, (source, multiplier) in enumerate(zip(sources, form.multipliers, strict=True)):
        wide = site.cast(source.value, ir.DataType.INT64)
        term = site.add("Mul", wide, site.constant(multiplier, f"multiplier_{number}", np.int64))
        term.shape = _with_channels(wide.shape, multiplier)
        total = term if total is None else _broadcast(site, total, term)
    assert total is not None  # there is an input
    total = site.add("Add", total, site.constant(addend + (positive << form.shift), "addend", np.int64))
    unsigned = site.cast(total, ir.DataType.UINT64)
    steps = site.add("BitShift", unsigned, site.constant(form.shift, "shift", np.uint64), direction="RIGHT")
    reached = site.cast(steps, ir.DataType.INT32)
    if positive:
        reached = site.add("Sub", reached, site.constant(positive, "positive", np.int32))
    reached = cut(site, reached, form.low + result.offset, form.high + result.offset)
    return site.cast(reached, ir.DataType.from_numpy(np.dtype(result.type)))


def within_result(site: Site, levels: ir.Value, result: Result) -> ir.Value:
    """Keep levels, `Result.offset` included, within the type and the bounds of an activation function.

    The bounds may be other levels in every channel of the last axis.

    Args:
        site: the operator.
        levels: integers that int32 holds.
        result: what they are.

    Returns:
        The levels as they are kept.
    """
    low, high = (each + result.offset for each in channel_limits(result.encoding, result.rounding.bounds))
    levels = cut(site, site.cast(levels, ir.DataType.INT32), low, high)
    return site.cast(levels, ir.DataType.from_numpy(np.dtype(result.type)))


def _with_channels(shape: ir.Shape | None, numbers: Integers) -> ir.Shape | None:
    """Return the shape of what is multiplied by numbers of the channels: a last axis of 1 has as many entries then."""
    if shape is None or np.size(numbers) == 1:
        return shape
    return ir.Shape([*shape[:-1], np.size(numbers)])


def _broadcast(site: Site, first: ir.Value, second: ir.Value) -> ir.Value:
    value = site.add("Add", first, second)
    value.shape = site.node.outputs[0].shape
    return value


def _positive(form: WeightedSum, sources: Sequence[Source], moved: Sequence[int], addend: Integers) -> int:
    """Return what is added to every level so that none is negative: BitShift takes unsigned numbers."""
    least = addend
    for source, more, multiplier in zip(sources, moved, form.multipliers, strict=True):
        limits = np.iinfo(source.encoding.type.storage)
        least = least + np.minimum((limits.min + more) * multiplier, (limits.max + more) * multiplier)
    return max(-int((least >> form.shift).min(initial=0)), 0)
