"""Products of levels that have a power-of-two factor: the shifts of the channels go into the weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from narrowgauge.core.integer_only import shifted_weights
from narrowgauge.core.kernels import Layer
from narrowgauge.errors import PlanError
from narrowgauge.lowering.integer.emitter import Result, Site, Source, offset
from narrowgauge.lowering.integer.fitting import Integers
from narrowgauge.lowering.integer.layers import Weights, bias_of
from narrowgauge.lowering.integer.rescaling import Sums, write_levels

_INT32 = np.iinfo(np.int32)


def shifted_product(site: Site, source: Source, weights: Weights, bias: ir.Value | None, result: Result) -> ir.Value:
    """Multiply rows, [..., inputs], each input with a shift and a zero point, with weights, [channels, inputs].

    A weight of 8 bits, shifted, has more; it is written in digits of 256, each an int8, and so are the products: one
    MatMulInteger for each digit. (A chip shifts the products, or the levels. The sums are the same integers.)

    Raises:
        PlanError: levels of 16 bits, or sums beyond 62 bits.
    """
    if source.encoding.type.bits != 8:
        raise PlanError(f"expected 8-bit levels with a scale for each channel, got {source.encoding.type.name}")
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
    sums = Sums(value=_sums(site, source, wide, (least, greatest)), least=least, greatest=greatest)
    return write_levels(site, sums, added, form.rescale, result)


def _sums(site: Site, source: Source, wide: Integers, ends: tuple[Integers, Integers]) -> ir.Value:
    inside = bool(ends[0].min(initial=0) >= _INT32.min and ends[1].max(initial=0) <= _INT32.max)
    kind = ir.DataType.INT32 if inside else ir.DataType.INT64
    total: ir.Value | None = None
    for number, digit in enumerate(_digits(wide)):
        matrix = site.constant(digit.T, f"weights_{number}", np.int8)
        part = site.add("MatMulInteger", source.value, matrix, type=ir.DataType.INT32, shape=site.node.outputs[0].shape)
        part = site.cast(part, kind)
        if number:
            factor = site.constant(256**number, f"unit_{number}", np.int32 if inside else np.int64)
            part = site.add("Mul", part, factor)
        total = part if total is None else site.add("Add", total, part)
    assert total is not None  # there is a digit
    return total


def _digits(wide: Integers) -> list[Integers]:
    """Write integers in digits of 256 from -128 to 127, the lowest first."""
    digits: list[Integers] = []
    rest = wide
    while rest.any() or not digits:
        digit = ((rest + 128) & 255) - 128
        digits.append(digit)
        rest = (rest - digit) >> 8
    return digits
