"""UNIDIRECTIONAL_SEQUENCE_LSTM as ONNX's LSTM: float, with integer weights, and in integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.graph.recurrent import CELL_CLIP, CELL_SCALE, COUPLED_INPUT
from narrowgauge.importers.tflite.emitter import Call, Results
from narrowgauge.importers.tflite.network import Quantization, Tensor

# Inputs by gate, in ONNX's order: input, output, forget, cell.
_WEIGHTS = (1, 4, 2, 3)
_RECURRENCE = (5, 8, 6, 7)
_BIASES = (12, 15, 13, 14)
_PEEPHOLES = (9, 11, 10)  # the cell gate has none
_PROJECTION, _OUTPUT_STATE, _CELL_STATE = 16, 18, 19
_NORMALIZATION = (20, 21, 22, 23)

_INTERMEDIATES = 5
"""Tensors that say how the integer kernel's inner numbers are quantized; the last one, what goes out."""

_ACTIVATIONS = {"TANH": "Tanh", "RELU": "Relu"}


def lstm(call: Call) -> Results:
    """UNIDIRECTIONAL_SEQUENCE_LSTM, from a state of zeros.

    The integer kernel rounds its inner state in every step, to the scales of the state tensors; ONNX's LSTM does not.
    The scale of the cells, and what they are cut to, stay in the node's metadata (`graph.recurrent`), and what goes in
    and out is rounded right at the node, so that the kernel's integers can be computed from the network.
    """
    _refuse_variants(call)
    time_major = bool(call.option("time_major"))
    activation = _ACTIVATIONS[call.option("fused_activation_function")]
    value = call.read() if time_major else _rounded(call, call.read(0, (1, 0, 2)), call.tensor(0), "input")
    hidden = call.tensor(_WEIGHTS[2]).shape[0]
    peepholes = None
    if call.given(_PEEPHOLES[1]):
        peepholes = _joined(call, _PEEPHOLES, "peepholes")
    inputs = (value, _joined(call, _WEIGHTS, "weights"), _joined(call, _RECURRENCE, "recurrence"), _bias(call, hidden))
    result, _, _ = call.nodes(
        "LSTM", *inputs, *([] if peepholes is None else [None, None, None, peepholes]), count=3,
        hidden_size=hidden, activations=["Sigmoid", activation, activation],
    )  # fmt: skip
    _keep_cells(call, result.producer())
    if _one_scale(call):
        result = _rounded(call, result, call.result(), "steps")
    result = call.node("Squeeze", result, call.constant([1], "direction"))  # [time, 1, batch, hidden]
    return result if time_major else call.node("Transpose", result, perm=(1, 0, 2))


def _rounded(call: Call, value: ir.Value, tensor: Tensor, suffix: str) -> ir.Value:
    """Round a value once more to the levels that it has anyway, beside a node that works on levels."""
    quantization, name = tensor.encoding, f"{call.name}_{suffix}"
    if quantization is None or quantization.per_channel:
        return value
    levels = call.emitter.linear("QuantizeLinear", value, name, quantization, tensor.dtype, axis=0)
    return call.emitter.linear("DequantizeLinear", levels, name, quantization, tensor.dtype, axis=0)


def _keep_cells(call: Call, node: ir.Node | None) -> None:
    """Note in the node's metadata what ONNX has no attribute for."""
    assert node is not None
    cells, clip = call.tensor(_CELL_STATE).encoding, float(call.option("cell_clip"))
    if cells is not None:
        node.metadata_props[CELL_SCALE] = repr(float(cells.scale[0]))
    if clip > 0:
        node.metadata_props[CELL_CLIP] = repr(clip)
    if not call.given(_WEIGHTS[0]):
        node.metadata_props[COUPLED_INPUT] = "true"


def _one_scale(call: Call) -> bool:
    """Whether what goes out, what comes back as state and the kernel's own rounding have one scale, as they should."""
    output, state = call.result().encoding, call.tensor(_OUTPUT_STATE).encoding
    if output is None or len(call.operator.intermediates) != _INTERMEDIATES:
        return False
    hidden = call.emitter.source.tensors[call.operator.intermediates[-1]].quantization
    every = (output, state, hidden)
    return all(one is not None and one.scale[0] == output.scale[0] for one in every) and all(
        one is not None and one.zero_point[0] == output.zero_point[0] for one in every
    )


def _refuse_variants(call: Call) -> None:
    if call.given(_PROJECTION) or any(call.given(number) for number in _NORMALIZATION):
        raise call.refusal("an LSTM with a projection or with layer normalization has no counterpart in ONNX")
    if call.operator.options.get("diagonal_recurrent_tensors"):
        raise call.refusal("an LSTM with diagonal recurrent weights has no counterpart in ONNX")
    if call.option("fused_activation_function") not in _ACTIVATIONS:
        raise call.refusal(
            f"expected the activation {' or '.join(_ACTIVATIONS)}, got {call.option('fused_activation_function')}"
        )
    if any(not call.tensor(number).variable for number in (_OUTPUT_STATE, _CELL_STATE)):
        raise call.refusal("expected a state that begins with zeros, it is computed or given")
    steps = call.extents()[0 if call.option("time_major") else 1]
    limit = float(call.option("cell_clip"))
    # A step adds at most 1 to the cell (a product of a sigmoid and a tanh), so few steps reach no limit.
    bounded = steps is not None and steps <= limit and call.option("fused_activation_function") == "TANH"
    if limit > 0 and not bounded:
        call.note(f"{call.name!r}: the file keeps the LSTM's cells between -{limit:g} and {limit:g}, ONNX's does not")
    scale = call.tensor(0).encoding
    if scale is not None:
        call.note(f"{call.name!r}: TFLite rounds the LSTM's inner state in every step, the imported network does not")


def _joined(call: Call, numbers: Sequence[int], name: str) -> ir.Value:
    """Join the gates' weights: [1, gates * hidden, ...]; without an input gate it is one minus the forget gate."""
    forget = numbers[2]
    arrays = [call.array(number if call.given(number) else forget) for number in numbers]
    scales = [call.tensor(number if call.given(number) else forget).encoding for number in numbers]
    if not call.given(numbers[0]):
        arrays[0] = _negated(call, arrays[0], scales[0])
    joined = np.concatenate(arrays)[np.newaxis]
    if all(scale is None for scale in scales) and joined.dtype.kind == "f":
        return call.constant(joined, name, np.float32)
    if any(array.dtype != arrays[0].dtype for array in arrays):
        raise call.refusal(f"expected {name} of one type, got {', '.join(str(array.dtype) for array in arrays)}")
    each, zeros = [], []
    for array, scale in zip(arrays, scales, strict=True):
        if scale is None or (scale.per_channel and scale.axis != 0):
            raise call.refusal(f"expected {name} with one scale, or one for each row")
        each.append(np.broadcast_to(scale.scale, array.shape[:1]))
        zeros.append(np.broadcast_to(scale.zero_point, array.shape[:1]))
    quantization = Quantization(scale=np.concatenate(each), zero_point=np.concatenate(zeros), axis=1)
    return call.emitter.dequantized(f"{call.name}_{name}", joined, quantization, 1)


def _negated(call: Call, array: npt.NDArray[Any], scale: Quantization | None) -> npt.NDArray[Any]:
    if scale is None:
        return -array.astype(np.float32)
    if scale.zero_point.any() or (array == np.iinfo(array.dtype).min).any():
        raise call.refusal("the forget gate's weights have no negative, and the input gate needs it")
    return -array.astype(np.int8)


def _bias(call: Call, hidden: int) -> ir.Value:
    """Join the gates' biases, and zeros for the recurrent ones that only ONNX has: [1, 8 * hidden]."""
    forget = _BIASES[2]
    signs = [1 if call.given(number) else -1 for number in _BIASES]
    tensors = [number if call.given(number) else forget for number in _BIASES]
    arrays = [sign * call.array(number) for sign, number in zip(signs, tensors, strict=True)]
    if any(array.shape != (hidden,) for array in arrays):
        raise call.refusal(f"expected biases of shape [{hidden}], got {[list(array.shape) for array in arrays]}")
    joined = np.concatenate([*arrays, np.zeros(4 * hidden, dtype=arrays[0].dtype)])[np.newaxis]
    activations = call.tensor(0).encoding
    if joined.dtype.kind == "f":
        return call.constant(joined, "bias", np.float32)
    each = []
    for number in _WEIGHTS:
        weights = call.tensor(number if call.given(number) else _WEIGHTS[2]).encoding
        if activations is None or weights is None:
            raise call.refusal("expected float biases beside float activations")
        each.append(np.broadcast_to((activations.scale * weights.scale).astype(np.float32), (hidden,)))
    each.append(np.ones(4 * hidden, dtype=np.float32))
    scale = np.concatenate(each)
    quantization = Quantization(scale=scale, zero_point=np.zeros(scale.size, dtype=np.int64), axis=1)
    return call.emitter.dequantized(f"{call.name}_bias", joined.astype(np.int32), quantization, 1)
