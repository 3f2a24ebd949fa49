"""The rule of RNN, MXNet's fused recurrent layers (MXNet 1.9.1, src/operator/rnn-inl.h, rnn_impl.h).

One flat array has the parameters: for each layer and direction the weights of the input and of the state, one after the
other, then in the same order the two biases. Gates lie as cuDNN has them: of an LSTM input, forget, candidate, output;
of a GRU reset, update, candidate, whose state's bias is inside the reset (ONNX: linear_before_reset).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.importers.mxnet.call import Call, Item, Rule, integers

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """One mode: ONNX's operator, where MXNet has each of ONNX's gates, and further attributes."""

    operator: str
    gates: tuple[int, ...]
    attributes: Mapping[str, Any]


_KINDS = {
    "lstm": _Kind(operator="LSTM", gates=(0, 3, 1, 2), attributes={}),
    "gru": _Kind(operator="GRU", gates=(1, 0, 2), attributes={"linear_before_reset": 1}),
    "rnn_tanh": _Kind(operator="RNN", gates=(0,), attributes={"activations": ["Tanh"]}),
    "rnn_relu": _Kind(operator="RNN", gates=(0,), attributes={"activations": ["Relu"]}),
}


def recurrent(call: Call) -> list[Item]:
    """RNN: layers of one kind in one or both directions. Sequences [time, batch, features]."""
    attributes = call.attributes
    kind = _KINDS.get(attributes.text("mode", ""))
    if kind is None:
        raise attributes.wrong("mode", f"one of {', '.join(_KINDS)}")
    if attributes.boolean("use_sequence_length", default=False) or attributes.has("projection_size"):
        raise call.refusal("lengths of sequences and projections are not supported")
    size, count = attributes.integer("state_size"), attributes.integer("num_layers")
    directions = 2 if attributes.boolean("bidirectional", default=False) else 1
    features = call.sizes()[2] if call.rank() == 3 else None
    numbers = call.constant(1)
    if numbers is None or features is None:
        raise call.refusal("needs constant parameters and a known number of features [time, batch, features]")
    if not (0 < size <= numbers.size and 0 < count <= numbers.size):
        raise call.refusal(f"{count} layers of {size} features do not fit {numbers.size} parameters")
    layers = _layers(call, numbers, features, (len(kind.gates), size, count, directions))
    states = [_states(call, place, count) for place in ((2, 3) if kind.operator == "LSTM" else (2,))]
    data, lasts = call.value(), []
    common = {"hidden_size": size, "direction": "bidirectional" if directions == 2 else "forward", **kind.attributes}
    if "activations" in common:
        common["activations"] = kind.attributes["activations"] * directions
    for number, (weights, recurrence, bias) in enumerate(layers):
        gates = [_reordered(array, kind.gates, size) for array in (weights, recurrence)]
        gates.append(_reordered_bias(bias, kind.gates, size))
        first = [state[number] for state in states]
        name, outputs = f"{call.node.name}_layer{number}", 3 if kind.operator == "LSTM" else 2
        made = call.builder.add_many(kind.operator, [data, *gates, None, *first], name, outputs, **common)
        lasts.append(made[1:])
        # [time, directions, batch, size] to [time, batch, directions * size]
        ordered = call.add("Transpose", [made[0]], perm=[0, 2, 1, 3])
        data = call.add("Reshape", [ordered, integers([0, 0, directions * size])])
    results: list[Item] = [data]
    if attributes.boolean("state_outputs", default=False):
        results += [call.add("Concat", one, axis=0) for one in zip(*lasts, strict=True)]
    return results


def _layers(
    call: Call, numbers: Array, features: int, sizes: tuple[int, int, int, int]
) -> list[tuple[Array, Array, Array]]:
    """Cut the flat parameters into each layer's weights, recurrence and biases, a direction along the first axis."""
    gates, size, count, directions = sizes
    rows = gates * size
    shapes = [(rows, features if number == 0 else size * directions) for number in range(count)]
    needed = sum(directions * rows * (shape[1] + size + 2) for shape in shapes)
    flat = numbers.reshape(-1)
    if flat.size != needed:
        raise call.refusal(f"expected {needed} parameters for {features} features, got {flat.size}")
    position = 0

    def take(*shape: int) -> Array:
        nonlocal position
        length = int(np.prod(shape))
        position += length
        return flat[position - length : position].reshape(shape)

    products = [[(take(*shape), take(rows, size)) for _ in range(directions)] for shape in shapes]
    biases = [take(directions, 2, rows) for _ in shapes]
    return [
        (np.stack([one for one, _ in product]), np.stack([other for _, other in product]), bias)
        for product, bias in zip(products, biases, strict=True)
    ]


def _reordered(array: Array, gates: tuple[int, ...], size: int) -> Array:
    parts = array.reshape(array.shape[0], len(gates), size, -1)  # [directions, gates, size, features]
    return np.ascontiguousarray(parts[:, list(gates)].reshape(array.shape))


def _reordered_bias(bias: Array, gates: tuple[int, ...], size: int) -> Array:
    parts = bias.reshape(bias.shape[0], 2, len(gates), size)  # [directions, input or state, gates, size]
    return np.ascontiguousarray(parts[:, :, list(gates)].reshape(bias.shape[0], -1))


def _states(call: Call, place: int, count: int) -> list[ir.Value | None]:
    """Return the first state of each layer; None stands for zeros, whatever the batch."""
    constant = call.constant(place)
    if constant is not None and not constant.any():
        return [None] * count
    state = call.value(place)
    if count == 1:
        return [state]
    return list(call.builder.add_many("Split", [state], f"{call.node.name}_states", count, axis=0, num_outputs=count))


RULES: Mapping[str, Rule] = {"RNN": recurrent}
