"""Operators on numbers one by one, and on pairs of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.core.arithmetic import bounds_in_levels, quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.tflite_unary import slopes_encoding
from narrowgauge.core.numbers import IntegerType
from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.fixed_outputs import fixed_levels
from narrowgauge.exporters.tflite.forms import Order, extents_of, levels_of, permuted, type_of
from narrowgauge.exporters.tflite.steps import FUSED
from narrowgauge.graph.roles import clip_bounds
from narrowgauge.importers.tflite.network import TYPES

SAME_NAMES = {
    "Abs": "ABS", "Neg": "NEG", "Sign": "SIGN", "Exp": "EXP", "Log": "LOG", "Sqrt": "SQRT", "Sin": "SIN", "Cos": "COS",
    "Floor": "FLOOR", "Ceil": "CEIL", "Round": "ROUND", "Elu": "ELU", "HardSwish": "HARD_SWISH",
    "Sigmoid": "LOGISTIC", "Tanh": "TANH", "Not": "LOGICAL_NOT",
}  # fmt: skip
"""ONNX operator of one input -> TFLite's, without options."""

SAME_PAIRS = {
    "Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Pow": "POW", "Equal": "EQUAL", "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL", "Less": "LESS", "LessOrEqual": "LESS_EQUAL", "And": "LOGICAL_AND",
    "Or": "LOGICAL_OR", "Where": "SELECT_V2",
}  # fmt: skip
"""ONNX operator of several inputs that broadcast -> TFLite's."""


def single(call: Call) -> None:
    """Write an operator of one input that TFLite has under another name."""
    order, name = call.free_order(), SAME_NAMES[call.node.op_type]
    call.emit(name, [call.read(0, order)], order=order, levels=fixed_levels(call, name))


def pair(call: Call) -> None:
    """Write an operator whose inputs broadcast."""
    order = call.free_order()
    options: dict[str, Any] = {}
    name = SAME_PAIRS[call.node.op_type]
    if name in ("ADD", "SUB"):
        options["pot_scale_int16"] = False  # add.cc: scales of int16 are any, not powers of two
    inputs = [call.read_spread(number, order) for number in range(len(call.node.inputs))]
    if name == "DIV" and call.type() in ("INT64", "INT32"):
        raise call.refusal("TFLite divides real numbers only")
    call.emit(name, inputs, options, order=order)


def extreme(call: Call) -> None:
    """Max and Min of any number of inputs: MAXIMUM and MINIMUM of two, of one encoding."""
    name = "MAXIMUM" if call.node.op_type == "Max" else "MINIMUM"
    order, levels = call.free_order(), call.levels(call.result())
    inputs = [call.read_spread(number, order) for number in range(len(call.node.inputs))]
    if levels is not None:
        inputs = [call.emitter.requantized(number, levels) for number in inputs]
    value = call.result()
    if len(inputs) == 1:
        inputs = inputs * 2
    while len(inputs) > 2:
        extents = permuted(extents_of(value), order)
        first = call.between(name, inputs[:2], extents, levels=levels, type=type_of(value))
        inputs = [first, *inputs[2:]]
    call.emit(name, inputs, order=order)


def total(call: Call) -> None:
    """Sum and Mean of any number of inputs."""
    order = call.free_order()
    value = call.result()
    extents = permuted(extents_of(value), order)
    inputs = [call.read_spread(number, order) for number in range(len(call.node.inputs))]
    while len(inputs) > 2:
        inputs = [call.between("ADD", inputs[:2], extents, {"pot_scale_int16": False}), *inputs[2:]]
    if call.node.op_type == "Mean" and len(call.node.inputs) > 1:
        added = call.between("ADD", inputs, extents, {"pot_scale_int16": False})
        share = call.constant(1 / len(call.node.inputs), "share", np.float32)
        call.emit("MUL", [added, share], order=order)
    elif len(inputs) == 1:
        call.emit("ADD", [*inputs, call.constant(0.0, "zero", np.float32)], {"pot_scale_int16": False}, order=order)
    else:
        call.emit("ADD", inputs, {"pot_scale_int16": False}, order=order)


def clip(call: Call) -> None:
    """Relu and Clip that nothing takes in: RELU, RELU6, RELU_N1_TO_1, RELU_0_TO_1, or a minimum and a maximum."""
    order, node = call.free_order(), call.node
    if any(call.given(number) and call.array(number) is None for number in (1, 2)):
        raise call.refusal("its bounds are computed")
    low, high = clip_bounds(node)
    kind = type_of(call.input())
    source, levels = call.read(0, order), call.levels(call.result())
    if kind == "FLOAT32" and (low, high) in FUSED:
        call.emit(FUSED[low, high], [source], order=order)
    elif kind == "FLOAT32" and levels is None and (low, high) == (0, 1):
        call.emit("RELU_0_TO_1", [source], order=order)
    elif levels is not None:
        encoding = call.emitter.plan.encodings[str(call.result().name)]
        assert isinstance(encoding, Encoding)
        step = replace(call.step, bounds=bounds_in_levels((low, high), encoding))
        replace(call, step=step).emit("QUANTIZE", [source], order=order)
    else:
        dtype = TYPES[kind]
        wanted = [(name, bound) for name, bound in (("MAXIMUM", low), ("MINIMUM", high)) if np.isfinite(bound)]
        first, *others = wanted or [("MAXIMUM", _least(dtype))]
        for name, bound in others:
            limit, extents = call.constant(bound, name.lower(), dtype), permuted(extents_of(call.result()), order)
            source = call.between(name, [source, limit], extents, type=kind)
        call.emit(first[0], [source, call.constant(first[1], first[0].lower(), dtype)], order=order)


def _least(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).min) if dtype.kind in "iu" else float(np.finfo(dtype).min)


def leaky_relu(call: Call) -> None:
    """LeakyRelu."""
    order = call.free_order()
    call.emit("LEAKY_RELU", [call.read(0, order)], {"alpha": call.real("alpha", 0.01)}, order=order)


def parametric_relu(call: Call) -> None:
    """PRelu: the slopes have one entry for each channel, and axes of one entry for the others.

    Of levels, slopes are levels, too: the plan has no encoding of theirs, see `slopes_encoding`.
    """
    slopes = call.array(1)
    if slopes is None:
        raise call.refusal("its slopes are computed")
    order = call.free_order()
    if slopes.size == 1:
        options = {"alpha": float(slopes.reshape(()))}
        call.emit("LEAKY_RELU", [call.read(0, order)], options, order=order)
        return
    moved = slopes.reshape((1,) * (len(order) - slopes.ndim) + slopes.shape).transpose(order)[0]
    if not call.integer:
        inputs = [
            call.read(0, order),
            call.emitter.float_constant(np.ascontiguousarray(moved), str(call.input(1).name)),
        ]
        call.emit("PRELU", inputs, order=order)
        return
    kind, name = call.type(), str(call.input(1).name)
    encoding = slopes_encoding(moved, IntegerType(bits=8, signed=kind == "INT8"))
    stored = quantize(moved.astype(np.float32), encoding).astype(TYPES[kind])
    slope = call.emitter.constant(stored, name, quantization=levels_of(encoding, name).quantization)
    call.emitter.notes[f"slopes of {call.node.name!r} are rounded to 8 bits, which the plan does not say"] = None
    call.emit("PRELU", [call.read(0, order), slope], order=order)


def gelu(call: Call) -> None:
    """Gelu, by the error function or by tanh."""
    order = call.free_order()
    options = {"approximate": call.text("approximate", "none") == "tanh"}
    call.emit("GELU", [call.read(0, order)], options, order=order)


def cast(call: Call) -> None:
    """Cast."""
    order = call.free_order()
    options = {"in_data_type": type_of(call.input()), "out_data_type": type_of(call.result())}
    call.emit("CAST", [call.read(0, order)], options, order=order)


def exclusive_or(call: Call) -> None:
    """Xor: NOT_EQUAL of truths."""
    order = call.free_order()
    call.emit("NOT_EQUAL", [call.read_spread(number, order) for number in (0, 1)], order=order)


def reciprocal(call: Call) -> None:
    """Reciprocal: one divided by the input."""
    order = call.free_order()
    call.emit("DIV", [call.constant(1.0, "one", np.float32), call.read(0, order)], order=order)


def softplus(call: Call) -> None:
    """Softplus, without overflow: log(1 + exp(-|x|)) + max(x, 0)."""
    steps = _Steps(call)
    source = steps.read()
    small = steps.add("EXP", steps.add("NEG", steps.add("ABS", source)))
    logarithm = steps.add("LOG", steps.add("ADD", small, steps.number(1.0)))
    steps.last("ADD", logarithm, steps.add("RELU", source))


def softsign(call: Call) -> None:
    """Softsign: x / (1 + |x|)."""
    steps = _Steps(call)
    source = steps.read()
    steps.last("DIV", source, steps.add("ADD", steps.add("ABS", source), steps.number(1.0)))


def swish(call: Call) -> None:
    """Swish: x * sigmoid(alpha * x)."""
    steps, alpha = _Steps(call), call.real("alpha", 1.0)
    source = steps.read()
    inner = source if alpha == 1 else steps.add("MUL", source, steps.number(alpha))
    steps.last("MUL", source, steps.add("LOGISTIC", inner))


def mish(call: Call) -> None:
    """Mish: x * tanh(softplus(x)), where tanh(log(1 + e)) is (e^2 + 2 e) / (e^2 + 2 e + 2), with x up to 20."""
    steps = _Steps(call)
    source = steps.read()
    power = steps.add("EXP", steps.add("MINIMUM", source, steps.number(20.0)))  # beyond, the quotient is 1 in float32
    part = steps.add("MUL", power, steps.add("ADD", power, steps.number(2.0)))
    steps.last("MUL", source, steps.add("DIV", part, steps.add("ADD", part, steps.number(2.0))))


def hard_sigmoid(call: Call) -> None:
    """HardSigmoid: alpha * x + beta, kept between 0 and 1; relu6(x + 3) / 6 where it is that."""
    steps, alpha, beta = _Steps(call), call.real("alpha", 0.2), call.real("beta", 0.5)
    if np.float32(alpha) == np.float32(1 / 6) and beta == 0.5:
        moved = steps.add("RELU6", steps.add("ADD", steps.read(), steps.number(3.0)))
        steps.last("MUL", moved, steps.number(1 / 6))
        return
    scaled = steps.add("MUL", steps.read(), steps.number(alpha))
    moved = steps.add("ADD", scaled, steps.number(beta))
    steps.last("MINIMUM", steps.add("MAXIMUM", moved, steps.number(0.0)), steps.number(1.0))


def selu(call: Call) -> None:
    """Selu and Celu by ELU, whose slope and reach are 1."""
    steps = _Steps(call)
    alpha = call.real("alpha", 1.6732632423543772 if call.node.op_type == "Selu" else 1.0)
    gamma = call.real("gamma", 1.0507009873554805) if call.node.op_type == "Selu" else 1.0
    source = steps.read()
    if call.node.op_type == "Celu":  # max(0, x) + min(0, alpha * (exp(x / alpha) - 1)) = alpha * elu(x / alpha)
        inner = steps.add("ELU", steps.add("MUL", source, steps.number(1 / alpha)))
        steps.last("MUL", inner, steps.number(alpha))
        return
    below = steps.add("MUL", steps.add("MINIMUM", steps.add("ELU", source), steps.number(0.0)), steps.number(alpha))
    steps.last("MUL", steps.add("ADD", steps.add("RELU", source), below), steps.number(gamma))


def thresholded_relu(call: Call) -> None:
    """ThresholdedRelu: x where it is above alpha, else 0."""
    steps = _Steps(call)
    source = steps.read()
    above = steps.add("GREATER", source, steps.number(call.real("alpha", 1.0)), type="BOOL")
    steps.last("SELECT_V2", above, source, steps.number(0.0))


def modulo(call: Call) -> None:
    """Mod with the divisor's sign: FLOOR_MOD."""
    if call.whole("fmod", 0):
        raise call.refusal("TFLite's remainder has the divisor's sign, fmod asks for the dividend's")
    order = call.free_order()
    call.emit("FLOOR_MOD", [call.read_spread(number, order) for number in (0, 1)], order=order)


class _Steps:
    """Operators on real numbers, one behind the other, each of the result's shape."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.order: Order = call.free_order()
        self.extents = permuted(extents_of(call.result()), self.order)

    def read(self) -> int:
        return self.call.read(0, self.order)

    def number(self, real: float) -> int:
        return self.call.constant(real, "number", np.float32)

    def add(self, name: str, *inputs: int, type: str = "FLOAT32") -> int:
        options = {"pot_scale_int16": False} if name == "ADD" else {}
        return self.call.between(name, inputs, self.extents, options, type=type)

    def last(self, name: str, *inputs: int) -> None:
        options = {"pot_scale_int16": False} if name == "ADD" else {}
        self.call.emit(name, inputs, options, order=self.order)


def alias(call: Call) -> None:
    """Identity and Dropout: the output is the input; Transpose: in another order of its axes.

    Real numbers that the plan has rounded before it are rounded here.
    """
    rank, emitter = call.rank(), call.emitter
    order = tuple(range(rank))
    if call.node.op_type == "Transpose":
        order = tuple(call.wholes("perm", reversed(range(rank))))
    value: ir.Value = call.node.outputs[0]
    planned = call.planned(value)
    root, _ = emitter.source(call.input(), order)
    home = emitter.homes.get(str(root.name))
    if planned is None or home is None or home.levels is not None:
        emitter.aliases[str(value.name)] = (call.input(), order)
        return
    found = call.home()
    number = emitter.read(call.input(), found, call.planned(call.input()))
    emitter.settle(value, tuple(order.index(axis) for axis in found), emitter.levels_at(number), number)
