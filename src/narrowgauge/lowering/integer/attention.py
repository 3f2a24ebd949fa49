"""Softmax in levels that are not affine, and the product behind it: `core.integer_softmax` in nodes.

Q/DQ form has the nodes of `lowering.probabilities` between both. In integers the Softmax writes those levels, out of a
table of the differences to the greatest level of each row, and the product with values divides each row once. Where a
target multiplies bytes only, what a level weighs is one byte or two.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding, LogEncoding, NormalizedEncoding
from narrowgauge.core.engines.kernels import Layer
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.integer_exponential import code_weights, exponential_table
from narrowgauge.core.integer_softmax import DeferredSoftmax, LogIntSoftmax, deferred_softmax, log_int_softmax
from narrowgauge.core.integer_width import LARGEST_INT32, Integers
from narrowgauge.core.logarithmic import quantize_logarithm
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import PlanError
from narrowgauge.graph.edits import take_place
from narrowgauge.graph.shapes import dimensions
from narrowgauge.lowering.integer import softmax as affine
from narrowgauge.lowering.integer.emitter import Result, Site, Source, result_of
from narrowgauge.lowering.integer.layers import zero_point_of
from narrowgauge.lowering.integer.rescaling import Sums, look_up, write_levels
from narrowgauge.lowering.integer.sums import within_result
from narrowgauge.lowering.probabilities import is_kept, keep_encoding, probabilities_behind, probabilities_of

_SHIFT = 15
"""Of what codes weigh: `1 << (15 - code)`, two bytes."""

_EXPONENTIAL_BITS = 15
"""Of those that probabilities are computed from."""

_BUCKETS = 2**16
"""Entries of a table of ratios."""

_CODE_BITS = 4
"""Up to which ratios are looked up; more codes than those, which lie far apart, are counted."""

_MOST_TOKENS = LARGEST_INT32 // 255**2
"""Of which products of two bytes add up in int32."""


def softmax(node: ir.Node, site: Site) -> None:
    """Softmax, whatever its output is rounded to.

    Raises:
        PlanError: another axis than the last one where rows have levels of their own, logarithms that attention by
            shifts has no room for, or what `softmax.softmax` refuses.
    """
    found = probabilities_behind(node.outputs[0])
    if found is None:
        affine.softmax(node, site)
        return
    old, encoding = found
    if not site.kernels.transformer_forms:
        raise PlanError(f"{site.kernels.name} has no integer arithmetic for Softmax in levels of {encoding.type.name}")
    sizes, axis = dimensions(node.inputs[0]), node.attributes.get_int("axis", -1)
    if axis != -1 and (sizes is None or axis != len(sizes) - 1):
        raise PlanError(f"its rows lie along axis {axis}, expected the last one")
    source, scaled = affine.scaled_source(site)
    if isinstance(encoding, LogEncoding) and not encoding.normalized:
        levels = _log_int_softmax(site, source, scaled, encoding, sizes[-1] if sizes else None)
    else:
        table = share_levels(float(scaled.scale), encoding, count=2**scaled.type.bits)
        levels = look_up(site, table.astype(encoding.type.storage), affine.differences(site, source, -1))
    keep_encoding(levels, encoding)
    take_place(levels, old)


def share_levels(scale: float, encoding: LogEncoding | NormalizedEncoding, *, count: int) -> Integers:
    """Tabulate the levels of `exp(-k scale)`, `k = 0 ... count - 1`: of shares that count from the greatest of a row.

    Args:
        scale: real value of one level of the softmax's input, whatever it is multiplied by before included.
        encoding: of the shares; a logarithm is of the exponentials.
        count: how many differences occur.
    """
    if isinstance(encoding, NormalizedEncoding):
        return exponential_table(scale, bits=encoding.type.bits, count=count)
    return quantize_logarithm(np.exp(-np.arange(count) * scale), encoding).astype(np.int64)


def share_weights(encoding: LogEncoding | NormalizedEncoding, tokens: int | None) -> Integers:
    """Tabulate what the levels weigh in a product with values of 8 bits.

    Shares weigh their level. Logarithms weigh `2^shift` at most, 15 or the greatest shift with which sums of so many
    tokens are int32; where their number is not known, sums are int64.

    Raises:
        PlanError: more tokens than fit int32.
    """
    most = LARGEST_INT32 // (255 * (tokens or 1))
    if isinstance(encoding, NormalizedEncoding):
        weights = np.arange(encoding.type.levels, dtype=np.int64)
    else:
        shift = min(max(most, 1).bit_length() - 1, _SHIFT)
        weights = code_weights(bits=encoding.type.bits, octave_bits=encoding.octave_bits, shift=shift)[:-1].copy()
        weights[-1] = 0  # the last level means 0
    if weights.max() > most or (tokens or 0) > _MOST_TOKENS:
        raise PlanError(f"{tokens} tokens do not fit int32 with {encoding.type.name}; use fewer bits")
    return weights


def reads_probabilities(node: ir.Node) -> bool:
    """Whether the first input of a product is rounded to levels that are not affine."""
    return probabilities_of(node.inputs[0]) is not None


def product(node: ir.Node, site: Site) -> None:
    """MatMul of probabilities and values.

    Raises:
        PlanError: `softmax` refused; or there are too many tokens, or values or output have several scales, or values
            more than 8 bits or one axis alone.
    """
    found = probabilities_of(node.inputs[0])
    if found is None or not is_kept(found[0]):
        raise PlanError("its probabilities are computed in real numbers")
    levels, encoding = found
    values, result = site.source(1), result_of(node.outputs[0])
    if values.encoding.type.bits > 8:
        raise PlanError(f"expected values of 8 bits behind probabilities, got {values.encoding.type.name}")
    if values.value.shape is None or len(values.value.shape) < 2:  # rows of sums, divided by a column, have channels
        raise PlanError("its values have no axis of channels")
    tokens = _tokens(node)
    if isinstance(encoding, LogEncoding) and not encoding.normalized:
        site.write(_attention_by_shifts(site, levels, values, encoding, result), result)
        return
    weights = share_weights(encoding, tokens)
    bytes_, kind = _bytes(site, levels, weights), ir.DataType.INT32 if tokens else ir.DataType.INT64
    sums = _sums(site, bytes_, values.value, zero_point_of(values), kind, node.outputs[0].shape)
    row = ir.Shape([*levels.shape[:-1], 1]) if levels.shape is not None else None
    total = _sums(site, bytes_, _ones(site, levels, tokens), 0, kind, row)
    form = deferred_softmax(np.array([weights.max()]), values.encoding, result.encoding)
    site.write(_divided(site, sums, total, form, tokens or _MOST_TOKENS, result), result)


def _tokens(node: ir.Node) -> int | None:
    """Return how many tokens there are, None where that is not known."""
    first, second = (dimensions(value) or (None,) for value in node.inputs[:2])
    return first[-1] or (second[-2] if len(second) > 1 else None)


def _ones(site: Site, levels: ir.Value, tokens: int | None) -> ir.Value:
    """Return a column of ones, as many as tokens.

    Where their number is not known, of as many as int32 holds: with more tokens the product with them fails.
    """
    ones = site.constant(np.ones((tokens or _MOST_TOKENS, 1)), "ones", np.uint8)
    if tokens:
        return ones
    count = site.add("Shape", levels, type=ir.DataType.INT64, shape=ir.Shape([1]), start=-1)
    first = site.constant([0], "first", np.int64)
    return site.add("Slice", ones, first, count, first, shape=ir.Shape([None, 1]))


def _bytes(site: Site, levels: ir.Value, weights: Integers) -> list[tuple[ir.Value, int]]:
    """Write what levels weigh as bytes, each with its unit."""
    if len(weights) > 256:  # levels of two bytes are their own weights
        return _both_bytes(site, levels)
    if np.array_equal(weights, np.arange(len(weights))):
        return [(levels, 1)]
    place = site.cast(levels, ir.DataType.INT32)
    parts = [(weights >> 8, 256), (weights & 255, 1)]
    return [(look_up(site, part.astype(np.uint8), place), unit) for part, unit in parts if part.any()]


def _both_bytes(site: Site, levels: ir.Value) -> list[tuple[ir.Value, int]]:
    wide = site.cast(levels, ir.DataType.UINT32)
    high = site.add("BitShift", wide, site.constant(8, "byte", np.uint32), direction="RIGHT")
    return [(site.cast(high, ir.DataType.UINT8), 256), (site.cast(wide, ir.DataType.UINT8), 1)]


def _sums(
    site: Site, parts: list[tuple[ir.Value, int]], values: ir.Value, zero_point: int, kind: ir.DataType,
    shape: ir.Shape | None,
) -> ir.Value:  # fmt: skip
    """Multiply rows of bytes with values, levels of 8 bits as they are kept, and add the bytes up in a type.

    The product is of the given shape.
    """
    zeros = [site.constant(number, f"zero_{number}", np.uint8) for number in (0, zero_point)]
    total: ir.Value | None = None
    for part, unit in parts:
        sums = site.add("MatMulInteger", part, values, *zeros, type=ir.DataType.INT32)
        sums.shape = shape
        sums = site.cast(sums, kind)
        if unit > 1:
            sums = site.add("Mul", sums, site.constant(unit, "unit", kind.numpy()))
        total = sums if total is None else site.add("Add", total, sums)
    assert total is not None  # some level weighs something
    return total


def _divided(
    site: Site, sums: ir.Value, total: ir.Value, form: DeferredSoftmax, tokens: int, result: Result
) -> ir.Value:  # fmt: skip
    """Divide sums by those of their rows and write levels as they are kept: `DeferredSoftmax.levels`."""
    divisor = site.cast(total, ir.DataType.INT64)  # the greatest of a row has the first exponential, so it is not 0
    half = site.add("Div", divisor, site.constant(2, "two", np.int64))
    numerator = site.add("Add", half, site.constant(form.multiplier, "multiplier", np.int64))
    reciprocal = site.add("Div", numerator, divisor)
    product = site.add("Mul", site.cast(sums, ir.DataType.INT64), reciprocal)
    # |sum| is at most 255 totals, the reciprocal the multiplier over the total and less than 2.
    greatest = 255 * (form.multiplier + 2 * int(form.exponentials[0]) * tokens)
    positive = (greatest >> form.shift) + 1
    if positive >= 2**30 or (positive << form.shift) + 2 * greatest >= 2**62:
        raise PlanError("its values are far out of proportion to its output; give the output a coarser scale")
    addend = (positive << form.shift) + (1 << (form.shift - 1))
    raised = site.cast(site.add("Add", product, site.constant(addend, "half", np.int64)), ir.DataType.UINT64)
    steps = site.add("BitShift", raised, site.constant(form.shift, "shift", np.uint64), direction="RIGHT")
    moved = form.zero_point + result.offset - positive
    levels = site.add("Add", site.cast(steps, ir.DataType.INT32), site.constant(moved, "zero_point", np.int32))
    return within_result(site, levels, result)


# --- logarithms of probabilities: FQ-ViT's Log-Int-Softmax


def _log_int_softmax(
    site: Site, source: Source, scaled: Encoding, encoding: LogEncoding, tokens: int | None
) -> ir.Value:  # fmt: skip
    """Compute `LogIntSoftmax.codes` of rows of so many tokens; the last level, which means 0, is the end of them."""
    if encoding.octave_bits:
        raise PlanError(f"attention by shifts has codes of whole octaves, got {encoding}")
    if not tokens:
        raise PlanError("the number of its tokens is not known, and so not whether 32 bits hold their sum")
    table = exponential_table(float(scaled.scale), bits=_EXPONENTIAL_BITS, count=2**scaled.type.bits)
    form = log_int_softmax(table, bits=encoding.type.bits, threshold=encoding.threshold, tokens=tokens)
    part = look_up(site, table.astype(np.int32), affine.differences(site, source, -1))
    total = affine.of_rows(site, "ReduceSum", part, -1)
    ratio = site.add("Mul", total, site.constant(1 << form.fraction_bits, "fraction", np.int32))
    some = site.add("Max", part, site.constant(1, "least_part", np.int32))  # a row's ratio to 0 is beyond every code
    ratio = site.add("Div", ratio, some, shape=part.shape)
    if encoding.type.bits <= _CODE_BITS:
        return site.cast(_codes(site, ratio, form, encoding), ir.DataType.UINT8)
    codes = _counted(site, ratio, form)
    nothing = site.add("Equal", part, site.constant(0, "nothing", np.int32), type=ir.DataType.BOOL)
    last = site.constant(encoding.type.maximum, "last_code", np.int32)
    codes = site.add("Where", nothing, last, codes, type=ir.DataType.INT32, shape=part.shape)
    return site.cast(codes, ir.DataType.UINT8)


def _counted(site: Site, ratio: ir.Value, form: LogIntSoftmax) -> ir.Value:
    """Count the thresholds that ratios reach, one comparison for each of them that int32 holds."""
    total: ir.Value | None = None
    for threshold in form.thresholds[form.thresholds < LARGEST_INT32].tolist():
        least = site.constant(threshold, "threshold", np.int32)
        reached = site.add("GreaterOrEqual", ratio, least, type=ir.DataType.BOOL)
        one = site.cast(reached, ir.DataType.INT32)
        total = one if total is None else site.add("Add", total, one)
    assert total is not None  # the first threshold is small
    return total


def _codes(site: Site, ratio: ir.Value, form: LogIntSoftmax, encoding: LogEncoding) -> ir.Value:
    """Count the thresholds that ratios reach: one table, and a comparison where buckets of it hold several ratios."""
    thresholds = form.thresholds[: encoding.type.maximum]
    last = int(thresholds[-1])
    ratio = site.add("Min", ratio, site.constant(last, "last_ratio", np.int32))
    bits = max((last // _BUCKETS).bit_length(), 0)
    begins = np.arange((last >> bits) + 1, dtype=np.int64) << bits
    codes = np.searchsorted(thresholds, begins, side="right")
    if not bits:
        return look_up(site, codes.astype(np.uint8), ratio)
    following = np.append(thresholds, LARGEST_INT32)[codes]
    place = site.add("Div", ratio, site.constant(1 << bits, "bucket", np.int32))
    reached = site.add("GreaterOrEqual", ratio, look_up(site, following.astype(np.int32), place), type=ir.DataType.BOOL)
    return site.add("Add", look_up(site, codes.astype(np.int32), place), site.cast(reached, ir.DataType.INT32))


def _attention_by_shifts(
    site: Site, levels: ir.Value, values: Source, encoding: LogEncoding, result: Result
) -> ir.Value:  # fmt: skip
    """Sum values that codes shift, `attention_by_shifts`, and write them in the output's levels."""
    weights = code_weights(bits=encoding.type.bits, shift=_SHIFT)[:-1].copy()
    weights[-1] = 0
    parts, shape = _bytes(site, levels, weights), site.node.outputs[0].shape
    sums = _sums(site, parts, values.value, zero_point_of(values), ir.DataType.INT32, shape)
    unit = Encoding(
        type=IntegerType(bits=16, signed=False), granularity=PerTensor(), scale=np.array(2.0**-_SHIFT, np.float32),
        zero_point=np.zeros((), np.int32),
    )  # fmt: skip
    form = site.kernels.layer(
        Layer(
            kind="batch_product", input=unit, weights=values.encoding, output=result.encoding,
            bounds=result.rounding.bounds,
        )
    )  # fmt: skip
    # A code stands for at most 1.5 times its probability.
    most = np.array([3 * 255 << (_SHIFT - 1)])
    return write_levels(site, Sums(value=sums, least=-most, greatest=most), form.bias, form.rescale, result)
