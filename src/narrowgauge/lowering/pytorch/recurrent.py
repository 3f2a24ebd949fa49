"""LSTM, GRU and RNN with their usual activation functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from narrowgauge.lowering.pytorch.call import Call

_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def lstm(call: Call) -> Any:
    """LSTM. ONNX has the gates in the order input, output, forget, cell; PyTorch input, forget, cell, output."""
    if call.has(7) or call.integer("input_forget", 0):
        raise call.refusal("an LSTM without peepholes and coupled gates")
    return _recurrent(call, "lstm", (0, 2, 3, 1))


def gru(call: Call) -> Any:
    """GRU. ONNX has the gates in the order update, reset, hidden; PyTorch reset, update, hidden."""
    if not call.integer("linear_before_reset", 0):
        raise call.refusal("a GRU that resets behind the product (linear_before_reset = 1)")
    return _recurrent(call, "gru", (1, 0, 2))


def rnn(call: Call) -> Any:
    """Plain recurrence with tanh."""
    return _recurrent(call, "rnn_tanh", (0,))


def _recurrent(call: Call, name: str, order: Sequence[int]) -> Any:
    """Run one layer, forwards, backwards or both.

    Shapes, for T steps, N samples, D directions, H hidden numbers: input `[T, N, I]`, weights `[D, gates * H, I]` and
    `[D, gates * H, H]`, bias `[D, 2 * gates * H]`, states `[D, N, H]`, output `[T, D, N, H]`.
    """
    direction = call.text("direction", "forward")
    _refuse_variants(call)
    torch, values = call.torch, call.tensor(0)
    weights, hidden_weights = call.tensor(1), call.tensor(2)
    directions, hidden = hidden_weights.shape[0], hidden_weights.shape[2]
    parameters = []
    for number in range(directions):
        parts = [weights[number], hidden_weights[number]]
        if call.has(3):
            parts += list(call.tensor(3)[number].chunk(2))
        parameters += [_ordered(torch, part, order) for part in parts]
    if direction == "reverse":
        values = values.flip(0)
    empty = torch.zeros([directions, values.shape[1], hidden], dtype=values.dtype)
    states = [call.tensor(number) if call.has(number) else empty for number in ((5, 6) if name == "lstm" else (5,))]
    held = states if name == "lstm" else states[0]
    function = getattr(torch, name)
    found = function(values, held, parameters, call.has(3), 1, 0.0, False, directions == 2, False)
    output = found[0].reshape([values.shape[0], values.shape[1], directions, hidden]).permute(0, 2, 1, 3)
    return (output.flip(0) if direction == "reverse" else output, *found[1:])


def _refuse_variants(call: Call) -> None:
    directions = 2 if call.text("direction", "forward") == "bidirectional" else 1
    usual = list(_ACTIVATIONS[call.node.op_type]) * directions
    asked = call.node.attributes.get_strings("activations")
    if asked is not None and [name.lower() for name in asked] != [name.lower() for name in usual]:
        raise call.refusal(f"the activation functions {', '.join(usual)}")
    if call.has(4) or call.integer("layout", 0) or "clip" in call.node.attributes:
        raise call.refusal("sequences of one length, the steps first, and no clipping")


def _ordered(torch: Any, parameter: Any, order: Sequence[int]) -> Any:
    """Put the gates in PyTorch's order."""
    gates = parameter.chunk(len(order))
    return torch.cat([gates[number] for number in order])
