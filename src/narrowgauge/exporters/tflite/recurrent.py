"""TFLite's recurrent kernel, UNIDIRECTIONAL_SEQUENCE_LSTM: one direction of an LSTM.

The node that becomes one is an operator of ours, `SequenceLstm`, from [steps, batch, inputs] to [steps, batch, hidden];
`recurrent_layers.prepared` makes it of the network's layer, and its record stands in the node's `meta`.

The kernel keeps its state from one run to the next. A file of ours begins with zeros, as ONNX's LSTM does, if whoever
runs it resets the variables before each sequence (`Interpreter.reset_all_variables`).

Sources: tflite/kernels/unidirectional_sequence_lstm.cc; which tensor gets which scale: tensorflow/lite/tools/optimize/
operator_property.cc, UNIDIRECTIONAL_SEQUENCE_LSTM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.tflite_recurrent import bias_levels, gate_scale, peephole_weights
from narrowgauge.core.granularity import PerAxis, PerTensor, normalized_axis
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.forms import Levels, Order, levels_of, permuted
from narrowgauge.graph.recurrent import Direction, Recurrent
from narrowgauge.importers.tflite.network import Quantization, Tensor

SEQUENCE_LSTM = "SequenceLstm"
"""Operator of the nodes that are written here."""

RECORD = "narrowgauge.sequence_lstm"
"""Key of a node's `meta`: its record."""

ACTIVATIONS = {"Tanh": "TANH", "Relu": "RELU"}
"""Of the cells, ONNX's name -> TFLite's."""

_KERNEL_GATES = (0, 2, 3, 1)
"""TFLite's order input, forget, cell, output, in ONNX's input, output, forget, cell."""

_KERNEL_PEEPHOLES = (0, 2, 1)
"""TFLite's order input, forget, output, in ONNX's input, output, forget."""

_GATE_NAMES = ("input", "forget", "cell", "output")

_INTERMEDIATES = 5
"""Tensors that say how the integer kernel's inner numbers are quantized; only the last, of what goes out, is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceLstm:
    """One direction of an LSTM that the kernel computes.

    Attributes:
        layer: the layer.
        direction: of it.
        number: which direction that is.
        name: what its constants are named after.
        weights: encoding of the input's weights, of all directions; None for real numbers.
        recurrence: of the state's.
        cell: of the cells, where the layer runs on levels.
        cell_clip: magnitude that the cells keep to; 0 for none.
        coupled: the input gate is one minus the forget gate, and is not written.
    """

    layer: Recurrent
    direction: Direction
    number: int
    name: str
    weights: Encoding | None
    recurrence: Encoding | None
    cell: Encoding
    cell_clip: float
    coupled: bool


def sequence_lstm(call: Call) -> None:
    """Write one direction of an LSTM: UNIDIRECTIONAL_SEQUENCE_LSTM, between REVERSE_V2 where it runs backwards.

    Steps or batch come first as they do in what is read. Real numbers; int8 weights beside real numbers, which the
    kernel rounds at run time; or int8, with cells of int16.
    """
    record: SequenceLstm = call.node.meta[RECORD]
    source = call.input()
    order: Order = (1, 0, 2) if call.home() == (1, 0, 2) else (0, 1, 2)
    batch = call.extents()[1]
    call.emitter.notes[
        "TFLite's LSTM keeps its state from one run to the next and has one number of samples: reset the variables "
        "before each sequence (Interpreter.reset_all_variables)"
    ] = None
    levels, written = call.levels(source), call.levels(call.result())
    _check(call, record, levels, written)
    value = call.read(order=order)
    time = order.index(0)
    constants = _Constants(call=call, record=record, levels=levels)
    inputs: list[int | None] = [_reversed(call, value, time, levels) if record.direction.reverse else value]
    inputs += [*constants.matrices(), *constants.peepholes(), *constants.biases(), None, None]
    inputs += [*_states(call, record, batch or 1, written), None, None, None, None]
    options = {
        "fused_activation_function": ACTIVATIONS[record.direction.activations[1].operator],
        "cell_clip": record.cell_clip, "proj_clip": 0.0, "time_major": time == 0,
        "asymmetric_quantize_inputs": constants.hybrid, "diagonal_recurrent_tensors": False,
    }  # fmt: skip
    name = "UNIDIRECTIONAL_SEQUENCE_LSTM"
    extents = permuted((call.extents()[0], batch, record.layer.hidden), order)
    if record.direction.reverse:
        made = call.between(name, inputs, extents, options, levels=written)
        _intermediates(call, written)
        call.emit("REVERSE_V2", [made, call.constant([time], "axis")], order=order)
    else:
        call.emit(name, inputs, options, order=order)
        _intermediates(call, written)


def _reversed(call: Call, value: int, axis: int, levels: Levels | None) -> int:
    extents = call.emitter.tensors[value].extents
    return call.between("REVERSE_V2", [value, call.constant([axis], "axis")], extents, levels=levels)


def _check(call: Call, record: SequenceLstm, levels: Levels | None, written: Levels | None) -> None:
    """Refuse what the integer kernel does not take.

    Raises:
        TargetError: activations that are not int8.
    """
    if (levels is None) != (written is None) or (levels is not None and levels.type != "INT8"):
        raise call.refusal(
            "expected the LSTM's input and output as int8, which TFLite's integer kernel takes; got "
            f"{levels.type if levels else 'real numbers'} and {written.type if written else 'real numbers'}"
        )
    if written is not None and written.type != "INT8":
        raise call.refusal(f"expected the LSTM's output as int8, got {written.type}")


def _states(call: Call, record: SequenceLstm, batch: int, written: Levels | None) -> list[int]:
    """Add the variables: what goes out, and the cells."""
    cells = None if written is None else levels_of(record.cell, f"{record.name}_cells")
    found = []
    for name, levels in (("state", written), ("cells", cells)):
        call.emitter.tensors.append(
            Tensor(
                name=call.emitter.free(f"{record.name}_{name}_variable"),
                type="FLOAT32" if levels is None else levels.type, shape=(batch, record.layer.hidden), variable=True,
                quantization=None if levels is None else levels.quantization,
            )
        )  # fmt: skip
        found.append(len(call.emitter.tensors) - 1)
    return found


def _intermediates(call: Call, written: Levels | None) -> None:
    """Say for the integer kernel, which asks for five tensors, how what goes out is quantized."""
    if written is None:
        return
    emitter, first = call.emitter, len(call.emitter.tensors)
    for number in range(_INTERMEDIATES):
        last = number == _INTERMEDIATES - 1
        name = emitter.free(f"{call.name}_intermediate_{number}")
        emitter.tensors.append(
            Tensor(
                name=name, type="INT8" if last else "FLOAT32", shape=(0,),
                quantization=written.quantization if last else None,
            )
        )  # fmt: skip
    numbers = tuple(range(first, first + _INTERMEDIATES))
    emitter.operators[-1] = replace(emitter.operators[-1], intermediates=numbers)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Constants:
    """Adds the constants of one direction, gate by gate, in the kernel's order."""

    call: Call
    record: SequenceLstm
    levels: Levels | None

    @property
    def hybrid(self) -> bool:
        """Whether the kernel rounds real numbers at run time; peepholes would be rounded too, which no plan says."""
        record = self.record
        planned = record.weights is not None and record.recurrence is not None
        return planned and self.call.dynamic and record.direction.peepholes is None

    def matrices(self) -> list[int | None]:
        """Add the weights of the input, then those of the state."""
        direction, record = self.record.direction, self.record
        pairs = (
            ("weights", direction.weights, record.weights),
            ("recurrence", direction.recurrence, record.recurrence),
        )
        return [
            self.matrix(name, np.split(array, 4)[gate], encoding, gate)
            for name, array, encoding in pairs
            for gate in _KERNEL_GATES
        ]

    def matrix(self, what: str, array: npt.NDArray[np.float32], encoding: Encoding | None, gate: int) -> int | None:
        if self.left_out(gate):
            return None
        name = self.name(gate, what)
        if encoding is None:
            return self.call.emitter.float_constant(np.ascontiguousarray(array), name)
        integer = self.levels is not None or self.hybrid
        one = self.of_gate(encoding, gate) if integer else _rows(encoding, gate, len(array), self.record.number)
        quantization = Quantization(
            scale=one.scale.reshape(-1), zero_point=one.zero_point.reshape(-1).astype(np.int64), axis=0
        )
        number = self.call.emitter.constant(quantize(array, one), name, quantization=quantization)
        return number if integer else self.call.emitter.dequantized(number)

    def name(self, gate: int, what: str) -> str:
        return f"{self.record.name}_{_GATE_NAMES[_KERNEL_GATES.index(gate)]}_{what}"

    def left_out(self, gate: int) -> bool:
        return self.record.coupled and gate == _KERNEL_GATES[0]

    def of_gate(self, encoding: Encoding, gate: int) -> Encoding:
        """Return a gate's one scale, which is all that the integer kernels take."""
        try:
            scale = gate_scale(encoding, gate, self.record.layer.hidden, self.record.number)
        except PlanError as error:
            raise self.call.refusal(str(error)) from None
        zero_point = np.array(0, np.int32)
        return replace(encoding, granularity=PerTensor(), scale=np.array(scale), zero_point=zero_point)

    def peepholes(self) -> list[int | None]:
        """Add the peepholes; int16 with a scale of their own beside levels."""
        rows = self.record.direction.peepholes
        if rows is None:
            return [None, None, None]
        found: list[int | None] = []
        for row in _KERNEL_PEEPHOLES:
            name = f"{self.record.name}_peepholes"
            if self.left_out(row):
                found.append(None)
            elif self.levels is None:
                found.append(self.call.emitter.float_constant(np.ascontiguousarray(rows[row]), name))
            else:
                weights = peephole_weights(rows[row])
                quantization = _one_scale(weights.scale)
                found.append(self.call.emitter.constant(weights.levels, name, quantization=quantization))
        return found

    def biases(self) -> list[int | None]:
        """Add the sums of both biases that ONNX has; int32 in units of the input's scale times the weights'."""
        direction, record = self.record.direction, self.record
        gates = np.split(direction.input_bias + direction.recurrence_bias, 4)
        found: list[int | None] = []
        for gate in _KERNEL_GATES:
            if self.left_out(gate):
                found.append(None)
            elif self.levels is None or record.weights is None:
                # The kernel takes no bias but float32.
                found.append(self.call.emitter.constant(np.ascontiguousarray(gates[gate]), self.name(gate, "bias")))
            else:
                unit = np.float32(self.levels.scale) * np.float32(self.of_gate(record.weights, gate).scale)
                levels = bias_levels(gates[gate], unit)
                name, quantization = self.name(gate, "bias"), _one_scale(unit)
                found.append(self.call.emitter.constant(levels, name, quantization=quantization))
        return found


def _one_scale(scale: np.float32) -> Quantization:
    return Quantization(scale=np.array([scale], np.float32), zero_point=np.zeros(1, np.int64), axis=0)


def _rows(encoding: Encoding, gate: int, rows: int, direction: int) -> Encoding:
    """Return the part of an encoding of [directions, gates * hidden, inputs] that is one gate's."""
    if isinstance(encoding.granularity, PerTensor):
        return encoding
    if not isinstance(encoding.granularity, PerAxis):
        raise TargetError(
            f"expected an LSTM's weights with one scale or one along the gates, got {encoding.granularity}"
        )
    axis = normalized_axis(encoding.granularity.axis, 3)
    part: int | slice = direction if axis == 0 else slice(gate * rows, (gate + 1) * rows)
    granularity = PerTensor() if axis == 0 else PerAxis(0)
    scale, zero_point = np.asarray(encoding.scale[part]), np.asarray(encoding.zero_point[part])
    return replace(encoding, granularity=granularity, scale=scale, zero_point=zero_point)
