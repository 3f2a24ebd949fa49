"""One layer fitted to what it reads: weights rounded by what that does to its output, and its bias corrected."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.arithmetic import dequantize, round_trip, spread
from narrowgauge.core.encoding import AnyEncoding, DynamicEncoding, Encoding
from narrowgauge.core.granularity import PerAxis, PerBlock, PerTensor, normalized_axis
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import SMALLEST_SCALE, encoding_from_range
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.engine import available_cores
from narrowgauge.graph.roles import activation_inputs, bias_input, is_constant, output_axis
from narrowgauge.recovery.bias_correction import bias_place, has_place_for_bias
from narrowgauge.recovery.matrix_form import MatrixForm, matrix_form
from narrowgauge.recovery.moments import Moments, moments
from narrowgauge.recovery.read_positions import ReadPositions
from narrowgauge.recovery.rounding import Grid, ScaleRule, best_ridge, round_to_moments

Array = npt.NDArray[Any]
Float = npt.NDArray[np.floating]

# Rows of a layer's input that are taken from all samples together.
_ROWS = 16384

# Share of an accumulator that a bias may take, as in planning.bias_room.
_BIAS_SHARE = 0.5

# Share of the rows that are positions which the network's end reads alone (a class token).
_READ_SHARE = 1 / 3


@dataclass(frozen=True, kw_only=True, slots=True)
class FittingRules:
    """What may be done to a layer, and what the target says of its numbers.

    Attributes:
        round_bits: weights of at most so many bits are rounded by their effect; 0: none.
        correct_bias: whether the bias is corrected.
        bias_bits: width of an integer bias, 0 where it stays float.
        power_of_two: whether weights' scales are powers of two.
    """

    round_bits: int = 7
    correct_bias: bool = True
    bias_bits: int = 32
    power_of_two: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerInputs:
    """What a layer reads, batch by batch, in both networks.

    Attributes:
        rounded: in the quantized network.
        real: in the float network.
        read: positions that the network's end reads alone; None where there are none.
    """

    rounded: Sequence[Array]
    real: Sequence[Array]
    read: ReadPositions | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRounding:
    """What was done to one layer.

    Attributes:
        node: its name.
        value: name of its weights.
        bits: of its weights.
        nearest: error of its output with weights rounded to the nearest level of the plan's grid, relative to the
            output's energy (both without their means where the bias is corrected).
        chosen: the same with the weights that were chosen.
        rounded: whether weights were chosen by their effect on the output.
        bias_shift: root mean square of what was taken out of the bias, relative to the output's; 0 if nothing was.
    """

    node: str
    value: str
    bits: int
    nearest: float
    chosen: float
    rounded: bool
    bias_shift: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedLayer:
    """A layer's new numbers.

    Attributes:
        weights: real numbers of the chosen levels, as the operator stores them; None where they are left.
        encoding: of the weights.
        shift: to be subtracted from the bias (`bias_correction.subtract_from_bias`), one number for each output
            channel, real units; None where the bias is left.
        record: what was done.
    """

    weights: Float | None
    encoding: Encoding
    shift: npt.NDArray[np.float64] | None
    record: LayerRounding


def can_fit(node: ir.Node, plan: Plan) -> bool:
    """Whether a node is a layer with quantized weights, a matrix form (`matrix_form`) and an activation to read."""
    if node.name in {entry.name for entry in plan.float_nodes} or matrix_form(node) is None:
        return False
    if any(is_constant(value) for _, value in activation_inputs(node)):
        return False
    weights = node.inputs[1]
    return weights is not None and isinstance(plan.encodings.get(str(weights.name)), Encoding)


def fit_layer(
    node: ir.Node, wanted: ir.Node, plan: Plan, inputs: LayerInputs, rules: FittingRules
) -> FittedLayer | None:
    """Choose the weights that, on what the layer reads, come nearest to what the float layer makes of its own input.

    Weights are rounded by `rounding.round_to_moments`, and the bias is shifted so that each channel's mean is the float
    layer's (Nagel et al. 2019, section 4.2, measured). The float layer's input is cut off at the ends of the range that
    the plan gives it, because a bias that makes up for clipped values is wrong for all others. Rows at positions that
    the network's end reads alone count as a third of all: what the others lose reaches the answer only through later
    attentions.

    Weights that several nodes read are left, and so are biases that have no place. The weights never get worse than
    rounding to the nearest level, by the error that is measured.

    Args:
        node: the layer as it is, one that `can_fit`; it is not changed.
        wanted: the layer of the float network.
        plan: encodings of the layer's weights and input.
        inputs: what both read.
        rules: what may be done.

    Returns:
        None where nothing may be done or nothing that is finite was seen.
    """
    layer = _Layer.of(node, plan, rules)
    weights = layer.weights
    nearest = chosen = layer.form.weights(round_trip(weights, layer.encoding))
    count = layer.form.channels(nearest[:, :, 0]).size
    rounds, corrects = layer.may_round(), rules.correct_bias and has_place_for_bias(node, count)
    if not (rounds or corrects):
        return None
    halves = _seen(layer, _real_weights(wanted), inputs)
    seen = halves[0] if len(halves) == 1 else halves[0].merge(halves[1])
    if not (seen.count and all(np.isfinite(one).all() for one in (seen.energy, seen.gram, seen.cross))):
        return None
    measured = seen.centered() if corrects else seen
    encoding = layer.encoding
    if rounds:
        weights, encoding = _rounded(layer, measured, [half.centered() for half in halves] if corrects else halves)
        chosen = layer.form.weights(weights)
    shift = None
    if corrects:
        error = node.attributes.get_float("alpha", 1.0) * layer.form.channels(seen.mean_error(chosen))
        shift = _shift_with_room(layer, encoding, error + _bias(node, count) - _bias(wanted, count))
    energy = max(float(measured.energy.sum()), 1e-30)
    moved = 0.0 if shift is None else np.square(shift).sum() * seen.count / max(float(seen.energy.sum()), 1e-30)
    record = LayerRounding(
        node=str(node.name),
        value=str(layer.value.name),
        bits=encoding.type.bits,
        nearest=float(measured.error(nearest).sum()) / energy,
        chosen=float(measured.error(chosen).sum()) / energy,
        rounded=rounds,
        bias_shift=float(np.sqrt(moved)),
    )
    return FittedLayer(weights=weights if rounds else None, encoding=encoding, shift=shift, record=record)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """A layer and what is known of it.

    Attributes:
        node: it.
        form: its matrix form.
        value: its weights.
        weights: their numbers.
        encoding: their encoding.
        source: encoding of its input, None where that stays float.
        rules: what may be done.
    """

    node: ir.Node
    form: MatrixForm
    value: ir.Value
    weights: Float
    encoding: Encoding
    source: AnyEncoding | None
    rules: FittingRules

    @classmethod
    def of(cls, node: ir.Node, plan: Plan, rules: FittingRules) -> _Layer:
        form, value, weights = matrix_form(node), node.inputs[1], constant_array(node.inputs[1])
        assert form is not None
        assert value is not None
        assert weights is not None
        encoding = plan.encodings[str(value.name)]
        assert isinstance(encoding, Encoding)
        read = next(value for _, value in activation_inputs(node))
        source = plan.encodings.get(str(read.name))
        return cls(node=node, form=form, value=value, weights=weights, encoding=encoding, source=source, rules=rules)

    def may_round(self) -> bool:
        few = self.encoding.type.bits <= self.rules.round_bits
        return few and len(self.value.uses()) == 1 and not self.value.is_graph_output()


# --- what the layer reads and should write --------------------------------------------------------------------


def _seen(layer: _Layer, weights: Float, inputs: LayerInputs) -> list[Moments]:
    """Moments of what the layer reads in the quantized network and writes in the float one, without its bias.

    Those of every other batch, and those of the rest. As many batches are worked on together as there are cores.
    """
    halves: list[Moments] = []
    workers = available_cores()
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(inputs.rounded), workers):
            numbers = range(start, min(start + workers, len(inputs.rounded)))
            for number, part in zip(numbers, pool.map(_Part(layer, weights, inputs), numbers), strict=True):
                if number < 2:
                    halves.append(part)
                else:
                    halves[number % 2] = halves[number % 2].merge(part)
    return halves


@dataclass(frozen=True, slots=True)
class _Part:
    """Moments of one batch, by its number."""

    layer: _Layer
    weights: Float
    inputs: LayerInputs

    def __call__(self, number: int) -> Moments:
        layer, read = self.layer, self.inputs.read
        most = max(1, _ROWS // len(self.inputs.rounded))
        rounded, real = self.inputs.rounded[number], self.inputs.real[number]
        encoding = _fixed(layer.source, rounded)
        if encoding is not None and not isinstance(encoding.granularity, PerTensor):
            rounded, encoding = round_trip(rounded, encoding), None
        rows = _rows(layer, rounded, most, read, seed=number)
        if encoding is not None:  # padding is 0, which every encoding keeps: rounding the rows is rounding the value
            rows = round_trip(rows, encoding)
        real_rows = _cut(_rows(layer, real, most, read, seed=number), layer.source)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left behind later
            return moments(rows, real_rows @ self.weights.transpose(0, 2, 1))


def _rows(layer: _Layer, values: Array, most: int, read: ReadPositions | None, *, seed: int) -> Array:
    """Rows of the layer's input; positions that the network's end reads are repeated: their errors count more."""
    rows = layer.form.rows
    every = rows(values, most, np.random.default_rng(seed))
    if read is None or not is_operator(layer.node, "MatMul", "Gemm") or read.axis == values.ndim - 1:
        return every
    alone = rows(np.take(values, read.positions, axis=read.axis), most, np.random.default_rng(seed))
    times = round(_READ_SHARE / (1 - _READ_SHARE) * every.shape[1] / max(alone.shape[1], 1))
    return np.concatenate([every, *[alone] * times], axis=1)


def _fixed(encoding: AnyEncoding | None, values: Array) -> Encoding | None:
    """The affine encoding that a value gets at run time; None where it has none."""
    if not isinstance(encoding, DynamicEncoding):
        return encoding if isinstance(encoding, Encoding) else None
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    return encoding_from_range(low, high, encoding.type, PerTensor(), symmetric=encoding.symmetric)


def _cut(values: Array, encoding: AnyEncoding | None) -> Array:
    if not isinstance(encoding, Encoding) or not isinstance(encoding.granularity, PerTensor):
        return values
    return np.clip(values, encoding.minimum, encoding.maximum)


def _real_weights(node: ir.Node) -> Float:
    """The float network's weights in matrix form."""
    form, weights = matrix_form(node), constant_array(node.inputs[1])
    assert form is not None
    assert weights is not None
    return form.weights(weights)


# --- weights --------------------------------------------------------------------------------------------------


def _rounded(layer: _Layer, measured: Moments, halves: Sequence[Moments]) -> tuple[Float, Encoding]:
    """Round the layer's weights: real numbers of the levels, as the operator stores them, and their encoding."""
    weights, encoding = layer.weights, layer.encoding
    rows = layer.form.weights(weights)
    grid = _grid(layer)
    free = not isinstance(encoding.granularity, PerBlock) and grid.scale.size == encoding.scale.size
    smallest: Float = np.ones(())
    if free:  # twice as wide as the bias needs: it is yet to be corrected
        bias = _bias(layer.node, layer.form.channels(rows[:, :, 0]).size)
        smallest = 2 * _least_scale(layer, bias).reshape(grid.scale.shape)
    rule = ScaleRule(free=free, power_of_two=layer.rules.power_of_two, smallest=smallest)
    ridge = best_ridge(rows, halves, grid, rule)
    scale, levels = round_to_moments(rows, measured, grid, rule, ridge=ridge)
    changed = replace(encoding, scale=scale.reshape(encoding.scale.shape)) if free else encoding
    stored = layer.form.restored(levels).astype(np.int64) + spread(encoding.zero_point, encoding, weights.shape)
    chosen, nearest = dequantize(stored, changed), round_trip(weights, encoding)
    if measured.error(layer.form.weights(chosen)).sum() > measured.error(layer.form.weights(nearest)).sum():
        return nearest, encoding
    return chosen, changed


def _grid(layer: _Layer) -> Grid:
    """The levels and scales of weights in matrix form, with size 1 along the axes that share a scale."""
    encoding, shape = layer.encoding, layer.weights.shape
    scale, lowest, highest = (
        layer.form.weights(np.broadcast_to(spread(np.asarray(numbers), encoding, shape), shape)).transpose(0, 2, 1)
        for numbers in (
            encoding.scale,
            (encoding.type.minimum - encoding.zero_point).astype(np.float32),
            (encoding.type.maximum - encoding.zero_point).astype(np.float32),
        )
    )
    granularity = encoding.granularity
    if isinstance(granularity, PerTensor):
        return Grid(scale=scale[:1, :1, :1], lowest=lowest[:1, :1, :1], highest=highest[:1, :1, :1])
    if isinstance(granularity, PerAxis) and normalized_axis(granularity.axis, len(shape)) == output_axis(layer.node, 1):
        groups = slice(None) if scale.shape[0] * scale.shape[2] == encoding.scale.size else slice(1)
        return Grid(scale=scale[groups, :1], lowest=lowest[groups, :1], highest=highest[groups, :1])
    return Grid(scale=scale, lowest=lowest, highest=highest)


# --- bias -----------------------------------------------------------------------------------------------------


def _bias(node: ir.Node, channels: int) -> Float:
    """A layer's constant bias, one number for each output channel; 0 where it has none."""
    holder, number = bias_place(node) or (node, len(node.inputs))
    bias = constant_array(holder.inputs[number]) if number < len(holder.inputs) else None
    if bias is None or bias.size != channels:
        return np.zeros(channels)
    return bias.astype(np.float64).reshape(-1)


def _shift_with_room(layer: _Layer, encoding: Encoding, shift: Float) -> npt.NDArray[np.float64]:
    """Take a number out of each channel's bias where the weights' scale leaves room for it, else 0."""
    fits = _least_scale(layer, _bias(layer.node, shift.size) - shift) <= encoding.scale
    return np.where(fits if fits.shape == shift.shape else fits.all(), shift, 0.0).astype(np.float64)


def _least_scale(layer: _Layer, bias: Float) -> Float:
    """Least scale of the weights whose products with the input's scale can hold a bias (`planning.bias_room`)."""
    source, shape = layer.source, layer.encoding.scale.shape
    # A bias is an integer only behind an input of one scale.
    single = isinstance(source, Encoding) and isinstance(source.granularity, PerTensor)
    if not layer.rules.bias_bits or bias_input(layer.node) is None or not isinstance(source, Encoding) or not single:
        return np.full(shape, SMALLEST_SCALE)
    reach = np.abs(bias)
    if reach.size != layer.encoding.scale.size or len(shape) != 1:
        reach = np.full(shape, reach.max(initial=0.0))
    unit = float(source.scale) * _BIAS_SHARE * 2.0 ** (layer.rules.bias_bits - 1)
    return np.maximum(reach / unit, SMALLEST_SCALE)
