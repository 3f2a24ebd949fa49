"""Softmax of levels in fixed point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.kernels import SoftmaxForm, WideSoftmaxForm
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_scalar
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.shapes import dimensions
from narrowgauge.lowering.integer.elementwise import places
from narrowgauge.lowering.integer.emitter import Site, Source, result_of
from narrowgauge.lowering.integer.rescaling import look_up

_MOST_NUMBERS = 2**28
"""In a row of unknown extent. Exponentials of 15 bits times 2^16 levels, so many added up, stay within 62 bits."""


def scaled_source(site: Site) -> tuple[Source, Encoding]:
    """Return the levels and what they stand for, times a constant that multiplies them first where one does.

    Raises:
        PlanError: they are not rounded, or have several scales, or are multiplied by something else.
    """
    value = site.node.inputs[0]
    product = value.producer() if value is not None else None
    if value is None or product is None or not is_operator(product, "Mul") or len(value.uses()) != 1:
        source = site.source(0)
        return source, source.encoding
    levels, other = product.inputs if constant_scalar(product.inputs[0]) is None else reversed(product.inputs)
    source, factor = site.source_of(levels, "input 0"), constant_scalar(other)
    if factor is None or factor <= 0:
        raise PlanError("it is multiplied by something else than a positive constant first")
    if _rank(other, 0) > _rank(source.value, 1):
        raise PlanError("it is multiplied by a constant of more axes first")
    return source, replace(source.encoding, scale=source.encoding.scale * np.float32(factor))


def _rank(value: ir.Value | None, unknown: int) -> int:
    return len(value.shape) if value is not None and value.shape is not None else unknown


def softmax(node: ir.Node, site: Site) -> None:
    """Softmax along an axis; its extent has to be known where the kernels' exponentials are numbers of float32."""
    sizes, axis = dimensions(node.inputs[0]), node.attributes.get_int("axis", -1)
    count = sizes[axis] if sizes else None
    if count is None and site.kernels.transformer_forms:
        count = _MOST_NUMBERS
    if not count:
        raise PlanError("the extent of its axis is not known")
    source, scale = scaled_source(site)
    result = result_of(node.outputs[0])
    if result.rounding.clips:
        raise PlanError("an activation function follows it")
    if source.encoding.type.bits == 16 and not site.kernels.transformer_forms:
        levels = _wide(site, source, axis, site.kernels.wide_softmax(scale, result.encoding), count)
    else:
        form, moved = site.kernels.softmax(scale, result.encoding, count), result.offset
        kept = replace(form, zero_point=form.zero_point + moved, low=form.low + moved, high=form.high + moved)
        levels = _quotient(site, source, axis, kept, count)
    site.write(site.cast(levels, ir.DataType.from_numpy(np.dtype(result.type))), result)


def differences(site: Site, source: Source, axis: int) -> ir.Value:
    """Subtract each level from the greatest of its row, int32."""
    level = source.value if source.encoding.type.bits == 8 else places(site, source)
    greatest, kind = of_rows(site, "ReduceMax", level, axis), ir.DataType.INT32
    return site.add("Sub", site.cast(greatest, kind), site.cast(level, kind), shape=level.shape)


def of_rows(site: Site, operator: str, value: ir.Value, axis: int) -> ir.Value:
    """Reduce each row along an axis, which stays as one of extent 1."""
    found = site.add(operator, value, site.constant([axis], "axis", np.int64), keepdims=1)
    found.shape = ir.Shape([None] * len(value.shape)) if value.shape is not None else None
    return found


def _exponentials(site: Site, source: Source, axis: int, table: npt.NDArray[np.int64]) -> tuple[ir.Value, ir.Value]:
    """Look up what each level's distance from the greatest of its row stands for; return that and the rows' sums."""
    exponential = look_up(site, table, differences(site, source, axis))
    return exponential, of_rows(site, "ReduceSum", exponential, axis)


def _quotient(site: Site, source: Source, axis: int, form: SoftmaxForm, count: int) -> ir.Value:
    """Divide exponentials by their sum, of `count` numbers, half to even.

    They are written in fixed point, with as many bits as let their sum and products stay within 62:
    `round_half_even(e * steps / sum)` is `(2 e steps + sum) / (2 sum)`, less 1 where that has no remainder and is odd.
    """
    bits = 61 - int(np.ceil(np.log2(count * (2.0 * form.steps + 1))))
    table = np.rint(np.ldexp(form.exponentials.astype(np.float64), bits)).astype(np.int64)
    exponential, total = _exponentials(site, source, axis, table)
    double = site.add("Mul", total, _number(site, 2))
    scaled = site.add("Mul", exponential, _number(site, 2 * form.steps))
    scaled = site.add("Add", scaled, total)
    quotient = site.add("Div", scaled, double)
    remainder = site.add("Sub", scaled, site.add("Mul", quotient, double))
    tie = site.add("Equal", remainder, _number(site, 0), type=ir.DataType.BOOL)
    odd = site.add("Mod", quotient, _number(site, 2))
    down = site.add("Mul", site.cast(tie, ir.DataType.INT64), odd)
    steps = site.add("Add", site.add("Sub", quotient, down), _number(site, form.zero_point))
    bounds = [site.constant(end, suffix, np.int32) for end, suffix in ((form.low, "low"), (form.high, "high"))]
    return site.add("Clip", site.cast(steps, ir.DataType.INT32), *bounds)


def _number(site: Site, number: int) -> ir.Value:
    return site.constant(number, "number", np.int64)


def _wide(site: Site, source: Source, axis: int, form: WideSoftmaxForm, count: int) -> ir.Value:
    """Multiply exponentials by the reciprocal of their sum, in the steps of `WideSoftmaxForm`."""
    exponential, total = _exponentials(site, source, axis, form.exponentials)
    least, greatest = int(form.exponentials[0]), count * int(form.exponentials.max())
    bits = site.add("Mul", total, _number(site, 0))
    bits = site.add("Add", bits, _number(site, least.bit_length()))
    for power in range(least.bit_length(), greatest.bit_length()):
        longer = site.add("GreaterOrEqual", total, _number(site, 1 << power), type=ir.DataType.BOOL)
        bits = site.add("Add", bits, site.cast(longer, ir.DataType.INT64))
    place = _shifted(site, total, site.add("Sub", _number(site, 31), bits, shape=bits.shape), "LEFT")
    place = _shifted(site, site.add("Add", place, _number(site, 2**13)), _number(site, 14), "RIGHT")
    place = site.cast(site.add("Sub", place, _number(site, 2**16)), ir.DataType.INT32)
    place = site.add("Min", place, site.constant(2**16 - 1, "last", np.int32))
    reciprocal = look_up(site, form.reciprocals, place)
    product = site.add("Mul", exponential, reciprocal)
    half = _shifted(site, _number(site, 1), site.add("Sub", bits, _number(site, 2)), "LEFT")
    product = site.add("Add", product, half)
    rounded = _shifted(site, product, site.add("Sub", bits, _number(site, 1)), "RIGHT")
    return site.add("Min", site.cast(rounded, ir.DataType.INT32), site.constant(2**15 - 1, "greatest", np.int32))


def _shifted(site: Site, value: ir.Value, by: ir.Value, direction: str) -> ir.Value:
    """Shift numbers that are not negative."""
    one, other = site.cast(value, ir.DataType.UINT64), site.cast(by, ir.DataType.UINT64)
    shape = value.shape if value.shape is not None and len(value.shape) else by.shape
    return site.cast(site.add("BitShift", one, other, shape=shape, direction=direction), ir.DataType.INT64)
