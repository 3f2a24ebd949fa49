"""The roundings of `core.engines.hybrid_rounding` as nodes: rows of a value become levels when the network runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.core.arithmetic import FloatArray
from narrowgauge.core.engines import hybrid_rounding
from narrowgauge.core.engines.hybrid_rounding import Rows
from narrowgauge.lowering.hybrid.maker import Maker


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundedRows:
    """A value as levels, all float32 whole numbers.

    Attributes:
        levels: the value's shape, -128 to 127.
        scale: one for each row, the value's rank.
        zero_point: likewise; None where it is 0 for all.
    """

    levels: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None


def symmetrically(make: Maker, value: ir.Value, axes: Sequence[int]) -> RoundedRows:
    """Write `core.engines.hybrid_rounding.round_symmetrically`."""
    reach = make.reduced("ReduceMax", make("Abs", value), axes)
    empty = make("Equal", reach, 0.0)
    known = make("Where", empty, 1.0, reach)
    inverse = make("Where", empty, 0.0, make("Div", 127.0, known))
    levels = _half_away(make, make("Mul", value, inverse))
    scale = make("Where", empty, 1.0, make("Div", known, 127.0))
    return RoundedRows(levels=make("Clip", levels, -127.0, 127.0), scale=scale, zero_point=None)


def asymmetrically(make: Maker, value: ir.Value, axes: Sequence[int]) -> RoundedRows:
    """Write `core.engines.hybrid_rounding.round_asymmetrically`: scale and zero point in float64."""
    low, high = _extremes(make, value, axes)
    empty = make("Equal", low, high)
    reach = make.cast(make("Where", empty, 255.0, make("Sub", high, low)), ir.DataType.DOUBLE)
    exact = make("Div", reach, 255.0, type=np.float64)
    below = make("Div", make.cast(low, ir.DataType.DOUBLE), exact)
    above = make("Div", make.cast(high, ir.DataType.DOUBLE), exact)
    near_low = make(
        "Less",
        make("Add", make("Abs", below), 128.0, type=np.float64),
        make("Add", make("Abs", above), 127.0, type=np.float64),
    )
    found = make(
        "Where",
        near_low,
        make("Sub", -128.0, below, type=np.float64),
        make("Sub", 127.0, above, type=np.float64),
    )
    whole = make("Floor", make("Abs", found))
    half = make("Less", make("Sub", make("Abs", found), whole), 0.5, type=np.float64)
    up = make("Where", half, whole, make("Add", whole, 1.0, type=np.float64))
    signed = make("Clip", make("Mul", make("Sign", found), up), -128.0, 127.0, type=np.float64)
    zero_point = make("Where", empty, 0.0, make.cast(signed, ir.DataType.FLOAT))
    scale = make.cast(exact, ir.DataType.FLOAT)
    steps = make("Mul", value, _inverse(make, scale))
    levels = make("Clip", make("Add", _half_away(make, steps), zero_point), -128.0, 127.0)
    return RoundedRows(levels=levels, scale=scale, zero_point=zero_point)


def like_xnnpack(make: Maker, value: ir.Value, axes: Sequence[int]) -> RoundedRows:
    """Write `core.engines.hybrid_rounding.round_like_xnnpack`."""
    low, high = _extremes(make, value, axes)
    empty = make("Equal", low, high)
    inverse = make("Where", empty, 1.0, make("Div", 255.0, make("Where", empty, 1.0, make("Sub", high, low))))
    below, above = make("Mul", low, inverse), make("Mul", high, inverse)
    near_low = make("Less", 0.0, make("Add", make("Add", -128.0, below), make("Add", 127.0, above)))
    found = make("Where", near_low, make("Sub", -128.0, below), make("Sub", 127.0, above))
    zero_point = make("Round", make("Clip", found, -128.0, 127.0))
    least, most = make("Sub", -128.0, zero_point), make("Sub", 127.0, zero_point)
    steps = make("Max", make("Min", make("Mul", value, inverse), most), least)
    levels = make("Add", make("Round", steps), zero_point)
    return RoundedRows(levels=levels, scale=_inverse(make, inverse), zero_point=zero_point)


Write = Callable[[Maker, ir.Value, Sequence[int]], RoundedRows]

ROUNDINGS: dict[Callable[[FloatArray], Rows], Write] = {
    hybrid_rounding.round_symmetrically: symmetrically,
    hybrid_rounding.round_asymmetrically: asymmetrically,
    hybrid_rounding.round_like_xnnpack: like_xnnpack,
}
"""Rounding in numpy -> in nodes."""


def _extremes(make: Maker, value: ir.Value, axes: Sequence[int]) -> tuple[ir.Value, ir.Value]:
    low = make("Min", make.reduced("ReduceMin", value, axes), 0.0)
    return low, make("Max", make.reduced("ReduceMax", value, axes), 0.0)


def _inverse(make: Maker, value: ir.Value) -> ir.Value:
    """Write 1 / value so that it stays: of a product with it ONNX Runtime makes one division, which rounds once."""
    return make("Neg", make("Div", -1.0, value))


def _half_away(make: Maker, steps: ir.Value) -> ir.Value:
    """Round by adding one half in float32, as LiteRT does it in vectors.

    The numbers of a row that fill no vector LiteRT rounds exactly, which is another level for 0.49999997 steps alone.
    """
    half = make("Where", make("Less", steps, 0.0), make.constant(-0.5), make.constant(0.5))
    whole = make.cast(make("Add", steps, half), ir.DataType.INT32)  # towards 0
    return make.cast(whole, ir.DataType.FLOAT)
