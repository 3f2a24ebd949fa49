"""LSTM in integers, as TensorFlow Lite's kernel computes it (`core.engines.tflite_recurrent`): a Scan over the steps.

Here the layer is read as the kernel has it; `recurrent_steps` writes it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.engines.tflite_recurrent import (
    Gate,
    IntegerLstm,
    Weights,
    bias_levels,
    cell_encoding,
    cell_encoding_of_scale,
    gate_scale,
    peephole_weights,
)
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.recurrent import (
    CELL_CLIP,
    CELL_SCALE,
    COUPLED_INPUT,
    Direction,
    Recurrent,
    cell_magnitude,
    cell_number,
    recurrent_layer,
)
from narrowgauge.graph.refusals import Refusal
from narrowgauge.lowering.integer.emitter import Result, Site, Source, result_of
from narrowgauge.lowering.integer.recurrent_steps import states
from narrowgauge.lowering.pairs import dequantized, encoding_of


def lstm(node: ir.Node, site: Site) -> None:
    """LSTM whose input, weights and output are levels of 8 bits.

    Raises:
        PlanError: it is another layer than the kernel's.
    """
    if not site.kernels.tflite_lstm:
        raise PlanError(f"{site.kernels.name} has no LSTM in integers")
    layer = recurrent_layer(node, _numbers)
    if isinstance(layer, Refusal):
        raise PlanError(layer.reason)
    _check(layer)
    outputs = {number: value for number in (0, 1) if (value := layer.output(number)) is not None}
    results = {number: result_of(value) for number, value in outputs.items()}
    first = next(iter(results.values()))
    if not all(result.encoding.same_as(first.encoding) for result in results.values()):
        raise PlanError("its two outputs are rounded differently")
    source = site.source(0)
    made = [
        states(site, source, first, _integer_layer(layer, direction, number, source, first), direction)
        for number, direction in enumerate(layer.directions)
    ]
    for number, result in results.items():
        axis = (1, 0)[number]  # of the directions
        shape = ir.Shape([None, 1, None, layer.hidden][number:])
        place = site.constant([axis], "axis", np.int64)
        parts = [site.add("Unsqueeze", one[number], place, type=ir.DataType.UINT8, shape=shape) for one in made]
        value = parts[0] if len(parts) == 1 else site.add("Concat", *parts, shape=outputs[number].shape, axis=axis)
        site.write(value, result)


def _check(layer: Recurrent) -> None:
    """Refuse what the kernel does not compute.

    Raises:
        PlanError: what that is.
    """
    if any(state is not None for state in layer.states) or layer.output(2) is not None:
        raise PlanError("its state does not begin with zeros, or its cells are read")
    usual = ("Sigmoid", "Tanh", "Tanh")
    if any(tuple(one.operator for one in each.activations) != usual for each in layer.directions):
        raise PlanError(f"its activation functions are not {', '.join(usual)}")
    if layer.clip or layer.coupled:
        raise PlanError("its gates are clipped or coupled")


def _numbers(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """Return levels of weights as they are, and what a bias stands for, with more bits than float32 has."""
    linear = dequantized(value, (ir.DataType.INT8, ir.DataType.INT32))
    if linear is None:
        return constant_array(value)
    levels, encoding = constant_array(linear.levels), encoding_of(linear)
    if levels is None or encoding is None:
        return None
    if linear.type == ir.DataType.INT8:
        return levels.astype(np.float32)
    return levels * encoding.scale.astype(np.float64)


def _integer_layer(
    layer: Recurrent, direction: Direction, number: int, source: Source, result: Result
) -> IntegerLstm:  # fmt: skip
    """Read one direction as the kernel has it.

    Raises:
        PlanError: the kernel does not take such levels.
    """
    node, hidden = layer.node, layer.hidden
    encodings = []
    for which in (1, 2):
        linear = dequantized(node.inputs[which], (ir.DataType.INT8,))
        encoding = encoding_of(linear) if linear is not None else None
        if encoding is None:
            raise PlanError("its weights are not constant levels of 8 bits")
        encodings.append(encoding)
    bias = direction.input_bias + direction.recurrence_bias
    kept = cell_number(node, CELL_SCALE)

    def gate(place: int, peephole: int | None) -> Gate:
        rows = slice(place * hidden, (place + 1) * hidden)
        scales = [gate_scale(encoding, place, hidden, number) for encoding in encodings]
        matrices = [array[rows].astype(np.int8) for array in (direction.weights, direction.recurrence)]
        inputs, recurrence = (
            Weights(levels=array, scale=scale) for array, scale in zip(matrices, scales, strict=True)
        )  # fmt: skip
        rows_of_cells = None if direction.peepholes is None or peephole is None else direction.peepholes[peephole]
        return Gate(
            input=inputs, recurrence=recurrence,
            bias=bias_levels(bias[rows], np.float32(source.encoding.scale) * inputs.scale),
            peephole=None if rows_of_cells is None else peephole_weights(rows_of_cells),
        )  # fmt: skip

    return IntegerLstm(
        input=source.encoding, output=result.encoding,
        cell=cell_encoding(cell_magnitude(layer)) if kept is None else cell_encoding_of_scale(kept),
        forget=gate(2, 2), candidate=gate(3, None), out=gate(1, 1),
        update=None if COUPLED_INPUT in node.metadata_props else gate(0, 0),
        cell_clip=cell_number(node, CELL_CLIP) or 0.0,
    )  # fmt: skip
