"""What TensorFlow Lite's integer LSTM computes on levels: UNIDIRECTIONAL_SEQUENCE_LSTM of 8-bit levels, exact.

The gates are sums in 32 bits that are rounded to levels of 2^-12 in 16 bits, twice: what comes from the input and what
comes from the state before; sigmoid and tanh are fixed-point functions from 16 bits to 16; the cells stay in 16 bits at
a scale that is a power of two; what goes out is rounded to 8 bits.

Source: tflite/kernels/unidirectional_sequence_lstm.cc (`PopulateQuantizedLstmParams8x8_16`) and lstm_eval.cc
(`LstmStepInteger8x8_16`, `UpdateLstmCellInteger`, `CalculateLstmOutputInteger8x8_16`). Measured on ai-edge-litert 2.3,
x86-64: no differing integer, neither with the reference kernels nor without. Projections and layer normalization, which
ONNX's LSTM does not have, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.fixed_point import (
    Integers,
    divide_by_power_of_two,
    double_rounding_form,
    quantized_multiplier,
)
from narrowgauge.core.engines.rescale import IntegerRescale
from narrowgauge.core.engines.tflite_fixed_point import GATE_BITS, GREATEST, LEAST, saturated, sigmoid_table, tanh_table
from narrowgauge.core.granularity import PerAxis, PerTensor, normalized_axis
from narrowgauge.core.numbers import integer_type
from narrowgauge.errors import PlanError

CELL_EXPONENTS = range(-15, -8)
"""log2 of the scales that cells may have: those for which the kernel has a tanh (`ApplyTanh`, 0 to 6 integer bits)."""

_GATE_STEP = np.float32(2.0**-12)

_UNBOUNDED = (-(2**31), 2**31 - 1)

_PRODUCT_STEP = 2.0**-15
"""Real value of a unit of a sigmoid or a tanh."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Levels of one matrix or diagonal of weights, symmetric, one scale.

    Attributes:
        levels: int8, shape [hidden, inputs]; of a peephole int16, shape [hidden].
        scale: real value of a level.
    """

    levels: npt.NDArray[np.integer]
    scale: np.float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """One gate.

    Attributes:
        input: weights of the input.
        recurrence: weights of what the layer gave out one step before.
        bias: int32, shape [hidden], in units of the input's scale times that of its weights.
        peephole: weights of the cells; None for none.
    """

    input: Weights
    recurrence: Weights
    bias: npt.NDArray[np.int32]
    peephole: Weights | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GateForm:
    """A gate as plain integers; zero points are in the biases.

    Level of 2^-12 before the activation function, each sum of levels times weights:
    `saturate(input.levels(sum + input_bias) + recurrence.levels(sum + recurrence_bias))`, and so again with the
    peepholes' product.

    Attributes:
        input_bias: int32, shape [hidden].
        recurrence_bias: the same.
        input: from sums of the input to levels, saturated.
        recurrence: from sums of the state to what is added, not saturated.
        peephole: from products with the cells to what is added; None where there are no peepholes.
    """

    input_bias: npt.NDArray[np.int32]
    recurrence_bias: npt.NDArray[np.int32]
    input: IntegerRescale
    recurrence: IntegerRescale
    peephole: IntegerRescale | None


@dataclass(frozen=True, kw_only=True, slots=True)
class IntegerLstm:
    """An LSTM on levels.

    Attributes:
        input: of the input, int8.
        output: of what goes out and comes back as state, int8.
        cell: of the cells, int16, zero point 0, a power of two between 2^-15 and 2^-9.
        forget: the forget gate.
        candidate: the gate with tanh, "cell" in TensorFlow Lite.
        out: the output gate.
        update: the input gate; None where it is one minus the forget gate.
        cell_clip: magnitude that the cells keep to, real units; 0 for none.

    Raises:
        PlanError: an encoding is not what the kernel takes.
    """

    input: Encoding
    output: Encoding
    cell: Encoding
    forget: Gate
    candidate: Gate
    out: Gate
    update: Gate | None
    cell_clip: float = 0.0

    def __post_init__(self) -> None:
        for what, encoding in (("input", self.input), ("output", self.output)):
            if encoding.type.bits != 8 or not encoding.type.signed or not isinstance(encoding.granularity, PerTensor):
                raise PlanError(f"expected the LSTM's {what} as int8 with one scale, got {_told(encoding)}")
        if self.candidate.peephole is not None:
            raise PlanError("expected no peepholes of the LSTM's cell gate, the kernel has none")
        cell_exponent(self.cell)

    @property
    def hidden_size(self) -> int:
        """How many cells there are."""
        return int(self.forget.recurrence.levels.shape[0])

    @property
    def output_rescale(self) -> IntegerRescale:
        """From a product of a sigmoid and a tanh to levels of the output."""
        step = np.float32(_PRODUCT_STEP / float(self.output.scale) * _PRODUCT_STEP)
        return double_rounding_form(quantized_multiplier(step), int(self.output.zero_point), (-128, 127))

    @property
    def clip_level(self) -> int:
        """Level that the cells keep to, 0 for none."""
        if self.cell_clip <= 0:
            return 0
        return int(np.clip(np.float32(self.cell_clip) / self.cell.scale, LEAST, GREATEST))


def cell_encoding(greatest: float) -> Encoding:
    """Encode cells up to a magnitude: the least power of two that holds it; beyond 64 they saturate.

    Source: tensorflow/compiler/mlir/lite/quantization/lite/toco_legacy, `extend_to_power_of_two` of
    operator_property.cc: the bound is 2^ceil(log2(magnitude)), the scale that over 2^15.
    """
    bound = np.ceil(np.log2(greatest)) if greatest > 0 else 0
    exponent = np.clip(bound - 15, CELL_EXPONENTS[0], CELL_EXPONENTS[-1])
    scale, zero_point = np.array(2.0**exponent, np.float32), np.array(0, np.int32)
    return Encoding(type=integer_type("int16"), granularity=PerTensor(), scale=scale, zero_point=zero_point)


def cell_exponent(cell: Encoding) -> int:
    """Return log2 of the cells' scale.

    Raises:
        PlanError: the kernel takes no cells of such an encoding.
    """
    fits = cell.type.bits == 16 and cell.type.signed and isinstance(cell.granularity, PerTensor)
    fraction, exponent = np.frexp(cell.scale)
    if not fits or cell.zero_point.any() or fraction != 0.5 or exponent - 1 not in CELL_EXPONENTS:
        raise PlanError(
            "expected the LSTM's cells as int16 with zero point 0 and a scale that is a power of two from 2^-15 to "
            f"2^-9, got {_told(cell)}"
        )
    return int(exponent) - 1


def gate_form(layer: IntegerLstm, gate: Gate) -> GateForm:
    """Write a gate as plain integers, its scales multiplied in float32 as the kernel does it."""
    return GateForm(
        input_bias=_bias(gate.input, layer.input, gate.bias),
        recurrence_bias=_bias(gate.recurrence, layer.output, np.zeros_like(gate.bias)),
        input=_rescale(gate.input, layer.input, (LEAST, GREATEST)),
        recurrence=_rescale(gate.recurrence, layer.output, _UNBOUNDED),
        peephole=None if gate.peephole is None else _rescale(gate.peephole, layer.cell, _UNBOUNDED),
    )


def run(
    layer: IntegerLstm, inputs: npt.NDArray[np.integer], *, reverse: bool = False
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int16]]:
    """Compute an LSTM from a state of zeros.

    Args:
        layer: the layer.
        inputs: levels, shape [batch, time, inputs].
        reverse: go from the last step to the first; the outputs stay at their inputs' places.

    Returns:
        Levels that go out and levels of the cells, both after every step, shape [batch, time, hidden].
    """
    batch, time, _ = inputs.shape
    state = np.full((batch, layer.hidden_size), int(layer.output.zero_point), dtype=np.int64)
    cells = np.zeros((batch, layer.hidden_size), dtype=np.int64)
    outputs = np.zeros((batch, time, layer.hidden_size), dtype=np.int8)
    every = np.zeros((batch, time, layer.hidden_size), dtype=np.int16)
    forms = {name: gate_form(layer, gate) for name, gate in _gates(layer)}
    for step in reversed(range(time)) if reverse else range(time):
        state, cells = _step(layer, forms, inputs[:, step].astype(np.int64), state, cells)
        outputs[:, step], every[:, step] = state, cells
    return outputs, every


def _step(
    layer: IntegerLstm, forms: dict[str, GateForm], value: Integers, state: Integers, cells: Integers
) -> tuple[Integers, Integers]:
    exponent = cell_exponent(layer.cell)
    forget = _lookup(sigmoid_table(), _gate(layer.forget, forms["forget"], value, state, cells))
    candidate = _lookup(tanh_table(GATE_BITS), _gate(layer.candidate, forms["candidate"], value, state, cells))
    if layer.update is None:
        update = GREATEST - forget
    else:
        update = _lookup(sigmoid_table(), _gate(layer.update, forms["update"], value, state, cells))
    added = divide_by_power_of_two(update * candidate, 30 + exponent).astype(np.int16)
    cells = saturated(divide_by_power_of_two(forget * cells, 15) + added)
    if layer.clip_level:
        cells = np.clip(cells, -layer.clip_level, layer.clip_level)
    out = _lookup(sigmoid_table(), _gate(layer.out, forms["out"], value, state, cells))
    return layer.output_rescale.levels(out * _lookup(tanh_table(15 + exponent), cells)), cells


def _gates(layer: IntegerLstm) -> list[tuple[str, Gate]]:
    gates = [("forget", layer.forget), ("candidate", layer.candidate), ("out", layer.out)]
    return gates if layer.update is None else [*gates, ("update", layer.update)]


def _gate(gate: Gate, form: GateForm, value: Integers, state: Integers, cells: Integers) -> Integers:
    """Levels of a gate before its activation function, shape [batch, hidden]."""
    level = form.input.levels(value @ gate.input.levels.T.astype(np.int64) + form.input_bias)
    sums = state @ gate.recurrence.levels.T.astype(np.int64) + form.recurrence_bias
    level = saturated(level + form.recurrence.levels(sums))
    if gate.peephole is not None and form.peephole is not None:
        level = saturated(level + form.peephole.levels(gate.peephole.levels.astype(np.int64) * cells))
    return level


def _rescale(weights: Weights, encoding: Encoding, limits: tuple[int, int]) -> IntegerRescale:
    """From sums of weights times levels to levels of 2^-12; the one product of the scales is rounded to float32."""
    return double_rounding_form(quantized_multiplier(weights.scale * encoding.scale / _GATE_STEP), 0, limits)


def _bias(weights: Weights, encoding: Encoding, bias: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The bias less what the input's zero point adds to every sum."""
    shifted = weights.levels.astype(np.int64).sum(axis=1) * int(encoding.zero_point)
    effective: npt.NDArray[np.int32] = (bias.astype(np.int64) - shifted).astype(np.int32)
    return effective


def _lookup(table: Integers, levels: Integers) -> Integers:
    found: Integers = table[levels - LEAST]
    return found


def _told(encoding: Encoding) -> str:
    scale = np.array2string(encoding.scale, threshold=4)
    zero_point = np.array2string(encoding.zero_point, threshold=4)
    return f"{encoding.type.name}, {encoding.granularity}, scale {scale}, zero point {zero_point}"


def peephole_weights(numbers: npt.NDArray[np.float32]) -> Weights:
    """Write peepholes as symmetric levels of 16 bits, as TensorFlow Lite's quantizer does (operator_property.cc)."""
    greatest = float(np.abs(numbers).max(initial=0.0)) or 1.0
    scale = np.float32(greatest / GREATEST)
    return Weights(levels=np.clip(np.rint(numbers / scale), -GREATEST, GREATEST).astype(np.int16), scale=scale)


def cell_encoding_of_scale(scale: float) -> Encoding:
    """Encode cells at a scale.

    Raises:
        PlanError: the kernel takes no cells of such a scale.
    """
    encoding = replace(cell_encoding(1.0), scale=np.array(scale, np.float32))
    cell_exponent(encoding)
    return encoding


def gate_scale(weights: Encoding, gate: int, hidden: int, direction: int) -> np.float32:
    """Return the one scale that the kernel takes for a gate's matrix.

    Args:
        weights: of all gates, one scale, or scales along an axis of [directions, gates * hidden, inputs].
        gate: which, in the order of the matrix.
        hidden: rows of a gate.
        direction: which.

    Raises:
        PlanError: a gate has several scales, or zero points, or other than 8 bits.
    """
    scale, granularity = weights.scale, weights.granularity
    if isinstance(granularity, PerAxis) and normalized_axis(granularity.axis, 3) == 0:
        scale = scale[direction]
    elif isinstance(granularity, PerAxis) and normalized_axis(granularity.axis, 3) == 1:
        scale = scale[gate * hidden : (gate + 1) * hidden]
    found = np.unique(scale)
    if weights.zero_point.any() or weights.type.bits != 8 or not weights.type.signed or found.size != 1:
        raise PlanError(
            "expected an LSTM's weights as int8 with zero point 0 and one scale for each gate, which TFLite's kernel "
            f"takes, got {weights.type.name} with {found.size} scales; plan with one scale for each tensor"
        )
    return np.float32(found[0])


def bias_levels(numbers: npt.NDArray[np.floating], unit: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Write a bias in units of the input's scale times its weights' (float32), ties to even, saturated to 32 bits."""
    steps = np.rint(numbers / np.asarray(unit, dtype=np.float32)).astype(np.float64)
    levels: npt.NDArray[np.int32] = np.clip(steps, -(2**31), 2**31 - 1).astype(np.int32)
    return levels
