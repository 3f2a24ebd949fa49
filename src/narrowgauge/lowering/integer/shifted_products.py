"""Products of levels that have a power-of-two factor: the shifts of the channels go into the weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from narrowgauge.core.engines.integer_only import shifted_weights
from narrowgauge.core.engines.kernels import Layer
from narrowgauge.core.power_of_two_factor import factor_of
from narrowgauge.errors import PlanError
from narrowgauge.lowering.integer.emitter import Result, Site, Source, offset
from narrowgauge.lowering.integer.fitting import Integers
from narrowgauge.lowering.integer.layers import Weights, bias_of
from narrowgauge.lowering.integer.rescaling import Sums, write_levels

_INT32 = np.iinfo(np.int32)
_MOST_INPUTS = _INT32.max // (255 * 128)
"""Of which products of levels of 8 bits with digits from -128 to 127 add up in int32."""

_POSITIVE = 2**17
"""More than the greatest weight of 8 bits, shifted by 16, over 256."""


def shifted_product(site: Site, source: Source, weights: Weights, bias: ir.Value | None, result: Result) -> ir.Value:
    """Multiply rows, [..., inputs], each input with a shift and a zero point, with weights, [channels, inputs].

    A weight of 8 bits, shifted, has more; it is written in digits of 256, each an int8, and so are the products: one
    MatMulInteger for each digit. (A chip shifts the products, or the levels. The sums are the same integers.) Digits
    are computed from the weights and the shifts, constants both, which an engine does once: the file has 8-bit weights.

    Raises:
        PlanError: levels of 16 bits, more inputs than digits add up of in int32, or sums beyond 62 bits.
    """
    if source.encoding.type.bits != 8:
        raise PlanError(f"expected 8-bit levels with a scale for each channel, got {source.encoding.type.name}")
    if weights.levels.shape[1] > _MOST_INPUTS:
        raise PlanError(f"it adds up {weights.levels.shape[1]} products, of at most {_MOST_INPUTS} 32 bits hold")
    wide, taken, base = shifted_weights(weights.levels - weights.zero_points, source.encoding)
    unit = np.asarray(base.scale * weights.encoding.scale)
    form = site.kernels.layer(
        Layer(
            kind="product", input=base, weights=weights.encoding, output=result.encoding,
            bias=bias_of(bias, len(wide), unit), bounds=result.rounding.bounds, channels=len(wide),
        )
    )  # fmt: skip
    up, down = np.maximum(wide, 0).sum(axis=1), np.minimum(wide, 0).sum(axis=1)
    least, greatest = 255 * down, 255 * up  # of levels as they are kept, from 0 on
    added = -(taken + offset(source.linear) * wide.sum(axis=1))
    if form.bias is not None:
        added = added + form.bias
    digits = _digits(site, weights, factor_of(source.encoding).shifts, wide)
    sums = Sums(value=_sums(site, source, digits, (least, greatest)), least=least, greatest=greatest)
    return write_levels(site, sums, added, form.rescale, result)


def _sums(site: Site, source: Source, digits: list[ir.Value], ends: tuple[Integers, Integers]) -> ir.Value:
    inside = bool(ends[0].min(initial=0) >= _INT32.min and ends[1].max(initial=0) <= _INT32.max)
    kind = ir.DataType.INT32 if inside else ir.DataType.INT64
    total: ir.Value | None = None
    for number, matrix in enumerate(digits):
        part = site.add("MatMulInteger", source.value, matrix, type=ir.DataType.INT32, shape=site.node.outputs[0].shape)
        part = site.cast(part, kind)
        if number:
            factor = site.constant(256**number, f"unit_{number}", np.int32 if inside else np.int64)
            part = site.add("Mul", part, factor)
        total = part if total is None else site.add("Add", total, part)
    assert total is not None  # there is a digit
    return total


def _digits(site: Site, weights: Weights, shifts: Integers, wide: Integers) -> list[ir.Value]:
    """Write shifted weights in digits of 256 from -128 to 127, the lowest first, as int8, [inputs, channels]."""
    steps = (weights.levels - weights.zero_points).T
    narrow = np.int8 if steps.min(initial=0) >= -128 and steps.max(initial=0) <= 127 else np.int16
    rest = site.cast(site.constant(steps, "weights", narrow), ir.DataType.INT32)
    rest = site.add("Mul", rest, site.constant(np.int64(1) << shifts[:, None], "shifts", np.int32))
    digits: list[ir.Value] = []
    left = (wide + 128) >> 8
    while left.any():
        # Div truncates: what it divides is made positive.
        higher = site.add("Add", rest, site.constant(128 + 256 * _POSITIVE, "positive", np.int32))
        higher = site.add("Div", higher, site.constant(256, "base", np.int32))
        higher = site.add("Sub", higher, site.constant(_POSITIVE, "taken", np.int32))
        lower = site.add("Sub", rest, site.add("Mul", higher, site.constant(256, "base", np.int32)))
        digits.append(site.cast(lower, ir.DataType.INT8))
        rest, left = higher, (left + 128) >> 8
    return [*digits, site.cast(rest, ir.DataType.INT8)]
