"""Sums become levels: the nodes that write a rescale, and look a level up in a table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.engines.rescale import FRACTION_BITS, ComputedRescale, FloatRescale, Rescale
from narrowgauge.lowering.integer.emitter import Result, Site
from narrowgauge.lowering.integer.fitting import (
    IntegerForm,
    Integers,
    integer_form,
    saturation,
    unbounded,
    within_62_bits,
)

_LARGEST_TABLE = 2**16
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Integers that are to become levels.

    Attributes:
        value: int32 or int64.
        least: least one that can occur, shape (channels,), or (1,) where all are alike.
        greatest: the greatest one.
        rank: axes from that of the channels to the last one.
    """

    value: ir.Value
    least: Integers
    greatest: Integers
    rank: int = 1

    def spread(self, numbers: Integers) -> Integers:
        """Shape numbers of the channels so that they broadcast over the sums."""
        return numbers.reshape(() if numbers.size == 1 else (-1, *(1,) * (self.rank - 1)))


def write_levels(site: Site, sums: Sums, bias: Integers | None, rescale: Rescale, result: Result) -> ir.Value:
    """Add nodes that turn sums, with a bias added first, into levels as they are kept.

    Sums are cut, in int32, to those between which levels change; that keeps every later number small. Then they are
    looked up, where they are few, or computed: `sum * multiplier + addend`, positive by then, shifted to the right.

    Raises:
        PlanError: no arithmetic in integers gives these levels.
    """
    added = np.zeros(1, dtype=np.int64) if bias is None else np.asarray(bias, dtype=np.int64).reshape(-1)
    least, greatest = np.broadcast_arrays(sums.least + added, sums.greatest + added)[:2]
    rescale = _kept(rescale, result.offset)
    low, high = saturation(rescale, *within_62_bits(rescale, least, greatest))
    if len(low) == 1 and high[0] - low[0] < _LARGEST_TABLE:
        value = _cut(site, sums, low - added, high - added)
        place = site.add("Sub", value, _like(site, value, low - added, "least"))
        levels = rescale.levels(np.arange(low[0], high[0] + 1, dtype=np.int64)[:, None])[:, 0]
        return look_up(site, levels.astype(result.type), site.cast(place, ir.DataType.INT32))
    form = integer_form(rescale, low, high)
    if form.rescale.below.any() or form.rescale.above.any() or form.rescale.fraction.any():
        sums = _with_bias(site, sums, added, (least, greatest))
        added = np.zeros(1, dtype=np.int64)
    return _computed(site, sums, added, form, (low, high), result)


def _kept(rescale: Rescale, offset: int) -> Rescale:
    """The same rule, with levels as they are kept."""
    low, high = rescale.low + offset, rescale.high + offset
    if isinstance(rescale, ComputedRescale):
        compute = rescale.compute
        return replace(rescale, compute=lambda sums: compute(sums) + offset, low=low, high=high)
    return replace(rescale, zero_point=rescale.zero_point + offset, low=low, high=high)


def kept_rescale(rescale: FloatRescale, result: Result) -> FloatRescale:
    """Return the same rule with levels as they are kept."""
    kept = _kept(rescale, result.offset)
    assert isinstance(kept, FloatRescale)
    return kept


def _like(site: Site, value: ir.Value, numbers: npt.ArrayLike, suffix: str) -> ir.Value:
    return site.constant(numbers, suffix, np.int64 if value.dtype == ir.DataType.INT64 else np.int32)


def _cut(site: Site, sums: Sums, low: Integers, high: Integers) -> ir.Value:
    """Cut sums to what lies between these ends, where any lies outside."""
    value = sums.value
    for ends, cuts, suffix in (
        (low, (sums.least < low).any(), "lowest"), (high, (sums.greatest > high).any(), "highest"),
    ):  # fmt: skip
        if not cuts:
            continue
        end = _like(site, value, sums.spread(ends), suffix)
        if value.dtype == ir.DataType.INT32:
            value = site.add("Max" if suffix == "lowest" else "Min", value, end)
        else:  # ONNX Runtime (1.31) compares int64 numbers wrongly in Max and Min, not in Less and Greater
            beyond = site.add("Less" if suffix == "lowest" else "Greater", value, end, type=ir.DataType.BOOL)
            value = site.add("Where", beyond, end, value, type=ir.DataType.INT64, shape=value.shape)
    return value


def _with_bias(site: Site, sums: Sums, added: Integers, ends: tuple[Integers, Integers]) -> Sums:
    value = sums.value
    if not added.any():
        return replace(sums, least=ends[0], greatest=ends[1])
    if ends[0].min() < _INT32.min or ends[1].max() > _INT32.max:
        value = site.cast(value, ir.DataType.INT64)
    value = site.add("Add", value, _like(site, value, sums.spread(added), "bias"))
    return replace(sums, value=value, least=ends[0], greatest=ends[1])


def _computed(
    site: Site, sums: Sums, added: Integers, fitted: IntegerForm, ends: tuple[Integers, Integers], result: Result
) -> ir.Value:
    """Compute levels of sums between these ends, bias included, by the form."""
    form = fitted.rescale

    def each(numbers: Integers, suffix: str) -> ir.Value:
        return site.constant(sums.spread(_wide(numbers)), suffix)

    value = _cut(site, sums, ends[0] - added, ends[1] - added)
    value = _raised(site, sums, value, fitted.raised - added)
    wide = site.cast(value, ir.DataType.INT64)
    total = site.add("Mul", wide, each(form.multiplier, "multiplier"))
    if form.fraction.any():
        total = site.add("Add", total, _whole(site, site.add("Mul", wide, each(form.fraction, "fraction"))))
    if form.below.any() or form.above.any():
        sign = _sign(site, value, negative=bool(form.below.any()), positive=bool(form.above.any()))
        total = site.add("Add", total, site.add("Mul", sign, each(np.maximum(form.above, -form.below), "inner")))
    last = unbounded(form).levels(np.stack([ends[0], ends[1] + min(len(fitted.raised), 1)]))
    positive = max(-form.low, -int(last.min()), 0)  # added to levels, since BitShift takes unsigned numbers
    addend = form.addend + added * form.multiplier + ((form.zero_point + positive) << form.shift)
    total = site.cast(site.add("Add", total, each(addend, "addend")), ir.DataType.UINT64)
    shift = sums.spread(_wide(form.shift)).astype(np.uint64)
    steps = site.add("BitShift", total, site.constant(shift, "shift"), direction="RIGHT")
    kind = ir.DataType.from_numpy(np.dtype(result.type))
    beyond = last.min() < form.low or last.max() > form.high
    if not (positive or beyond or fitted.begins is not None):
        return site.cast(steps, kind)
    reached = site.cast(steps, ir.DataType.INT32)
    if positive:
        reached = site.add("Sub", reached, site.constant(positive, "positive", np.int32))
    if beyond:
        reached = cut(site, reached, form.low, form.high)
    if fitted.begins is not None:
        reached = _stepped(site, sums, value, reached, fitted, added)
    return site.cast(reached, kind)


def _whole(site: Site, product: ir.Value) -> ir.Value:
    """Shift products of at most 62 bits down by those of a fraction; BitShift takes unsigned numbers."""
    positive = site.add("Add", product, site.constant(2**62, "fraction_positive", np.int64))
    places = site.constant(FRACTION_BITS, "fraction_bits", np.uint64)
    down = site.add("BitShift", site.cast(positive, ir.DataType.UINT64), places, direction="RIGHT")
    taken = site.constant(2 ** (62 - FRACTION_BITS), "fraction_taken", np.int64)
    return site.add("Sub", site.cast(down, ir.DataType.INT64), taken)


def _sign(site: Site, value: ir.Value, *, negative: bool, positive: bool) -> ir.Value:
    """Return -1, 0 and 1 for numbers below, at and above 0, int64; 0 for a side that is left out."""
    if value.dtype == ir.DataType.INT32:
        value = site.add("Max", value, site.constant(-int(negative), "minus", np.int32))
        value = site.add("Min", value, site.constant(int(positive), "plus", np.int32))
        return site.cast(value, ir.DataType.INT64)
    zero = site.constant(0, "zero", np.int64)
    sides = [
        site.cast(site.add(operator, value, zero, type=ir.DataType.BOOL), ir.DataType.INT64) if wanted else zero
        for operator, wanted in (("Greater", positive), ("Less", negative))
    ]
    return site.add("Sub", *sides, shape=value.shape)


def _stepped(
    site: Site, sums: Sums, value: ir.Value, reached: ir.Value, fitted: IntegerForm, added: Integers
) -> ir.Value:
    """Step up to the next level where the sum has reached it."""
    assert fitted.begins is not None
    count, channels = fitted.begins.shape
    rows = np.arange(channels) * count - fitted.rescale.low
    place = site.add("Add", reached, site.constant(sums.spread(rows), "rows", np.int32))
    table = (fitted.begins - added).T.reshape(-1)
    wide = value.dtype == ir.DataType.INT64
    following = look_up(site, table.astype(np.int64 if wide else np.int32), place)
    up = site.add("GreaterOrEqual", value, following, type=ir.DataType.BOOL)
    return site.add("Add", reached, site.cast(up, ir.DataType.INT32))


def _raised(site: Site, sums: Sums, value: ir.Value, raised: Integers) -> ir.Value:
    """Add 1 to single sums of each channel."""
    original, kind = value, value.dtype
    assert kind is not None
    for each in raised:
        one = _like(site, value, sums.spread(each), "raised")
        hit = site.add("Equal", original, one, type=ir.DataType.BOOL)
        value = site.add("Add", value, site.cast(hit, kind))
    return value


def _wide(numbers: Integers) -> Integers:
    numbers = np.asarray(numbers, dtype=np.int64).reshape(-1)
    return numbers[:1] if (numbers == numbers[0]).all() else numbers


def look_up(site: Site, table: npt.NDArray[np.generic], places: ir.Value) -> ir.Value:
    """Add nodes that replace each place, int32, by the entry of a table there.

    GatherElements of flat numbers: ONNX Runtime's Gather of single numbers takes five times as long (measured on 1.31).
    """
    shape = site.add("Shape", places, type=ir.DataType.INT64, shape=ir.Shape([]))
    shape.shape = None
    flat = site.add("Reshape", places, site.constant([-1], "flat", np.int64), shape=ir.Shape([None]))
    kind = ir.DataType.from_numpy(table.dtype)
    found = site.add("GatherElements", site.constant(table, "table"), flat, type=kind, shape=ir.Shape([None]), axis=0)
    return site.add("Reshape", found, shape, type=kind, shape=places.shape, allowzero=1)


def cut(site: Site, levels: ir.Value, low: npt.ArrayLike, high: npt.ArrayLike) -> ir.Value:
    """Keep levels, int32, between two ends, one number each or one for each channel of the last axis."""
    levels = site.add("Max", levels, site.constant(low, "floor", np.int32))
    return site.add("Min", levels, site.constant(high, "ceiling", np.int32))


def clipped(site: Site, value: ir.Value, low: int, high: int) -> ir.Value:
    """Cut levels of 8 bits, as they are kept, where the bounds lie inside the type."""
    if low <= 0 and high >= 255:
        return value
    bounds = [
        site.constant(bound, suffix, np.uint8) if cuts else None
        for bound, suffix, cuts in ((low, "lowest", low > 0), (high, "highest", high < 255))
    ]
    return site.add("Clip", value, *bounds)
