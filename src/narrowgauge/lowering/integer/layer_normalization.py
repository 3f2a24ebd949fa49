"""LayerNormalization of levels in integers: the steps of `core.integer_layernorm.LayerNormForm`, node by node.

What belongs to each number is int32 where the form's products are, what belongs to a row alone is int64. BitShift takes
unsigned numbers; where nothing is negative, a division by a power of two is the shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.integer_layernorm import LayerNormForm, layernorm_form
from narrowgauge.core.integer_width import LARGEST_INT32
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.shapes import dimensions
from narrowgauge.lowering.integer.emitter import Result, Site, Source, offset, result_of
from narrowgauge.lowering.integer.sums import within_result

_BUCKET_BITS = 10
"""Of a magnitude, those that a first root is looked up by: 3/4 of 1024 entries, off by `2^-10` at most."""


def layer_normalization(node: ir.Node, site: Site) -> None:
    """LayerNormalization over the last axis, with constant gain and bias.

    Raises:
        PlanError: other axes, a computed gain or bias, mean or deviation are read, or numbers that `layernorm_form`
            refuses with products of 32 and of 64 bits.
    """
    if not site.kernels.transformer_forms:
        raise PlanError(f"{site.kernels.name} has no integer arithmetic for LayerNormalization")
    sizes, axis = dimensions(node.inputs[0]), node.attributes.get_int("axis", -1)
    if axis != -1 and (sizes is None or axis != len(sizes) - 1):
        raise PlanError(f"it normalizes from axis {axis} on, expected the last axis alone")
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise PlanError("its mean or deviation is read")
    source, result = site.source(0, channels=True), result_of(node.outputs[0], channels=True)
    form = _form(node, source, result, sizes[-1] if sizes else None)
    channels = len(form.shifts)
    rows = site.add(
        "Reshape", source.value, site.constant([-1, channels], "rows", np.int64), shape=ir.Shape([None, channels])
    )
    levels = _levels(site, rows, form, source, result)
    shape = site.add("Shape", source.value, type=ir.DataType.INT64, shape=ir.Shape([None]))
    site.write(site.add("Reshape", levels, shape, shape=source.value.shape, allowzero=1), result)


def _form(node: ir.Node, source: Source, result: Result, channels: int | None) -> LayerNormForm:
    """Find the integers, with products of 32 bits where these do."""
    gain, bias = constant_array(node.inputs[1]), np.zeros(1)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        found = constant_array(node.inputs[2])
        if found is None:
            raise PlanError("its bias is computed")
        bias = found
    if gain is None:
        raise PlanError("its gain is computed")
    if channels is None and gain.size == bias.size == 1:
        raise PlanError("the number of its channels is not known")
    channels = channels or max(gain.size, bias.size)
    if {gain.size, bias.size} - {1, channels}:
        raise PlanError(f"its gain and bias have {gain.size} and {bias.size} numbers, expected {channels}")
    numbers = [np.broadcast_to(each.reshape(-1).astype(np.float64), channels) for each in (gain, bias)]
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    try:
        return layernorm_form(source.encoding, result.encoding, gain=numbers[0], bias=numbers[1], epsilon=epsilon)
    except PlanError:
        return layernorm_form(
            source.encoding, result.encoding, gain=numbers[0], bias=numbers[1], epsilon=epsilon, width=64
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Widths:
    """What follows from a form and its inputs' type.

    Attributes:
        form: the integers.
        reach: the greatest magnitude of `X`.
        halvings: every `t` that a row may have, from the least on, at least two.
        most_shift: the greatest shift of `D`, at least 1.
        kind: in which each number is computed.
    """

    form: LayerNormForm
    reach: int
    halvings: range
    most_shift: int
    kind: ir.DataType

    def shift(self, halvings: int) -> int:
        """How far `D` of a row is shifted down."""
        return halvings + self.form.guard - self.form.epsilon_bits


def _widths(form: LayerNormForm, source: Source) -> _Widths:
    type, channels, root_bits = source.encoding.type, len(form.shifts), form.root_bits
    limits = np.iinfo(type.storage)
    least = int(((limits.min - form.zero_points) << form.shifts).min())
    greatest = int(((limits.max - form.zero_points) << form.shifts).max())
    # The variance of numbers within a range is at most a quarter of its square.
    ends = (max(form.epsilon, 1), ((channels * (greatest - least)) ** 2 // 4 << 2 * form.epsilon_bits) + form.epsilon)
    first, last = ((max(end, 1).bit_length() - 1 - (2 * root_bits - 2)) >> 1 for end in ends)
    halvings = range(min(first, last - 1), last + 1)
    most = max(last + form.guard - form.epsilon_bits, 1)
    # `D` over 2^shift is at most 2^(R + 1); times 2^most, and as much again, it has to fit.
    narrow = root_bits == 15 and most + root_bits + 2 <= 30
    if most + root_bits + 2 > 62:
        raise PlanError("its differences do not fit 64 bits; use fewer bits or smaller shifts")
    return _Widths(
        form=form, reach=max(greatest, -least), halvings=halvings, most_shift=most,
        kind=ir.DataType.INT32 if narrow else ir.DataType.INT64,
    )  # fmt: skip


def _levels(site: Site, rows: ir.Value, form: LayerNormForm, source: Source, result: Result) -> ir.Value:
    """Normalize rows, shape (rows, channels), of levels as they are kept."""
    widths = _widths(form, source)
    spread = site.cast(rows, widths.kind)
    zero_points = form.zero_points + offset(source.linear)
    spread = _by(site, "Sub", spread, zero_points, "zero_points") if zero_points.any() else spread
    spread = _by(site, "Mul", spread, np.int64(1) << form.shifts, "shifts") if form.shifts.any() else spread
    total = _row_sum(site, spread, len(form.shifts))
    factor, reciprocal = _of_rows(site, _variance(site, spread, total, widths), widths)
    difference = site.add("Sub", _by(site, "Mul", spread, len(form.shifts), "channels"), total)
    # Positive: `D` over 2^shift is at most 2^(R + 1), and half a unit.
    positive = 2 ** (form.root_bits + 1) + 1
    scaled = site.add("Mul", difference, factor)
    addend = (positive << widths.most_shift) + (1 << (widths.most_shift - 1))
    scaled = _by(site, "Add", scaled, addend, "difference_half")
    scaled = _by(site, "Div", scaled, 1 << widths.most_shift, "difference_unit")
    scaled = _by(site, "Sub", scaled, positive, "difference_positive")
    normal_shift = 2 * form.root_bits - form.guard - form.normal_bits
    half = np.int64(1) << (normal_shift - 1)
    normal = _shifted_down(site, site.add("Mul", scaled, reciprocal), half, normal_shift)
    product = _by(site, "Mul", normal, form.multipliers, "multipliers")
    return _cut(site, _shifted_down(site, product, form.addends, form.shift_out), widths, result)


def _variance(site: Site, spread: ir.Value, total: ir.Value, widths: _Widths) -> ir.Value:
    """Return V of each row, int64, at least 1."""
    form, channels = widths.form, len(widths.form.shifts)
    fits = widths.kind == ir.DataType.INT32 and widths.reach**2 <= LARGEST_INT32
    spread = spread if fits else site.cast(spread, ir.DataType.INT64)
    squares = _row_sum(site, site.cast(site.add("Mul", spread, spread), ir.DataType.INT64), channels)
    squares = _by(site, "Mul", squares, channels << (2 * form.epsilon_bits), "squares_unit")
    mean = _by(site, "Mul", site.cast(total, ir.DataType.INT64), 1 << form.epsilon_bits, "total_unit")
    variance = site.add("Sub", squares, site.add("Mul", mean, mean))
    if form.epsilon:
        return _by(site, "Add", variance, form.epsilon, "epsilon")
    none = site.add("Equal", variance, site.constant(0, "none", np.int64), type=ir.DataType.BOOL)
    return site.add("Add", variance, site.cast(none, ir.DataType.INT64))


def _row_sum(site: Site, numbers: ir.Value, channels: int) -> ir.Value:
    """Sum rows: a product with ones takes a fifth of the time of ReduceSum (int64, ONNX Runtime 1.31)."""
    assert numbers.dtype is not None
    ones = site.constant(np.ones((channels, 1)), "ones", numbers.dtype.numpy())
    return site.add("MatMul", numbers, ones, shape=_of_row())


def _of_rows(site: Site, variance: ir.Value, widths: _Widths) -> tuple[ir.Value, ir.Value]:
    """Return what `D` of each row is multiplied by before it is shifted, and `r`."""
    root_bits, halvings = widths.form.root_bits, widths.halvings
    bounds = [2 ** (2 * root_bits - 2 + 2 * each) for each in halvings[1:]]
    reached = site.add(
        "GreaterOrEqual", variance, site.constant(bounds, "magnitudes", np.int64), type=ir.DataType.BOOL,
        shape=ir.Shape([None, len(bounds)]),
    )  # fmt: skip
    place = _row_sum(site, site.cast(reached, ir.DataType.INT32), len(bounds))

    def found(numbers: list[int], suffix: str) -> ir.Value:
        table = site.constant(numbers, suffix, np.int64)
        return site.add("Gather", table, place, shape=_of_row(), axis=0)

    magnitude = site.add("Mul", variance, found([4 ** max(-each, 0) for each in halvings], "magnitude_up"))
    magnitude = site.add("Div", magnitude, found([4 ** max(each, 0) for each in halvings], "magnitude_down"))
    # Where the factor would have more bits, D is 0.
    most = 30 if widths.kind == ir.DataType.INT32 else 62
    factor = found([2 ** min(widths.most_shift - widths.shift(each), most) for each in halvings], "difference_up")
    root = _root(site, magnitude, root_bits)
    one = site.constant(2 ** (2 * root_bits), "one", np.int64)
    half = site.add("Add", _by(site, "Div", root, 2, "two"), one)
    return site.cast(factor, widths.kind), site.cast(site.add("Div", half, root), widths.kind)


def _root(site: Site, magnitude: ir.Value, root_bits: int) -> ir.Value:
    """Return the rounded square root of numbers of `2^(2R - 2)` to `2^(2R) - 1`.

    A table gives it to `2^-10`. Newton's step squares that error and halves it: one of R = 15 leaves 1 / 64, two of
    R = 31 less. Cut to an integer, the mean of both is the rounded root or 1 less, which a comparison tells.
    """
    bucket = 2 * root_bits - _BUCKET_BITS
    table = [math.isqrt((2 * each + 1) << (bucket - 1)) for each in range(2**_BUCKET_BITS)]
    place = _by(site, "Div", magnitude, 1 << bucket, "bucket")
    root = site.add("Gather", site.constant(table, "roots", np.int64), place, shape=_of_row(), axis=0)
    for _ in range(1 if root_bits == 15 else 2):
        root = _by(site, "Div", site.add("Add", root, site.add("Div", magnitude, root)), 2, "two")
    rest = site.add("Sub", magnitude, site.add("Mul", root, root))
    above = site.add("Greater", rest, root, type=ir.DataType.BOOL)
    return site.add("Add", root, site.cast(above, ir.DataType.INT64))


def _shifted_down(site: Site, value: ir.Value, addend: npt.ArrayLike, bits: int) -> ir.Value:
    """Return `(value + addend) >> bits` of signed numbers whose sum fits their width.

    BitShift takes unsigned numbers, here half their range higher: what is added wraps around, the sum does not.
    """
    kind = value.dtype
    assert kind is not None
    width, unsigned = (64, ir.DataType.UINT64) if kind == ir.DataType.INT64 else (32, ir.DataType.UINT32)
    middle = np.asarray(addend, dtype=np.int64).astype(np.uint64) + np.uint64(1 << (width - 1))
    higher = _by(site, "Add", site.cast(value, unsigned), middle.astype(unsigned.numpy()), "addend")
    shift = site.constant(bits, "shift", unsigned.numpy())
    down = site.add("BitShift", higher, shift, direction="RIGHT")
    return _by(site, "Sub", site.cast(down, kind), 1 << (width - 1 - bits), "middle")


def _cut(site: Site, steps: ir.Value, widths: _Widths, result: Result) -> ir.Value:
    """Keep levels within the type, and within the bounds of an activation function; return them as they are kept."""
    if widths.form.root_bits == 31 and widths.form.shift_out < 32:
        raise PlanError("its output's scale is so small that levels exceed 32 bits before they are cut")
    steps = site.cast(steps, ir.DataType.INT32)
    steps = _by(site, "Add", steps, result.offset, "offset") if result.offset else steps
    return within_result(site, steps, result)


def _by(site: Site, operator: str, value: ir.Value, number: npt.ArrayLike, suffix: str) -> ir.Value:
    """Combine a value with constants of its type."""
    assert value.dtype is not None
    return site.add(operator, value, site.constant(number, suffix, value.dtype.numpy()))


def _of_row() -> ir.Shape:
    return ir.Shape([None, 1])
