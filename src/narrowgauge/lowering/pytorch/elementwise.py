"""Operators that compute each element by itself, and reductions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from narrowgauge.lowering.pytorch.call import Call

Function = Callable[[Call], Any]


def unary(name: str) -> Function:
    """Row of an operator that torch has under this name with the same meaning."""
    return lambda call: getattr(call.torch, name)(call.tensor())


def functional(name: str) -> Function:
    """Likewise of torch.nn.functional."""
    return lambda call: getattr(call.torch.nn.functional, name)(call.tensor())


def binary(name: str) -> Function:
    """Row of an operator of two inputs."""
    return lambda call: getattr(call.torch, name)(call.tensor(0), call.tensor(1))


def folded(name: str) -> Function:
    """Row of an operator of any number of inputs that takes them two by two."""
    return lambda call: functools.reduce(getattr(call.torch, name), call.tensors())


def mean(call: Call) -> Any:
    """Mean of any number of inputs."""
    return functools.reduce(call.torch.add, call.tensors()) / len(call.inputs)


def division(call: Call) -> Any:
    """Div: integers are divided towards zero."""
    first, second = call.tensor(0), call.tensor(1)
    if first.dtype.is_floating_point:
        return first / second
    return call.torch.div(first, second, rounding_mode="trunc")


def modulo(call: Call) -> Any:
    """Mod: the sign is the divisor's, or the dividend's with `fmod`."""
    function = call.torch.fmod if call.integer("fmod", 0) else call.torch.remainder
    return function(call.tensor(0), call.tensor(1))


def power(call: Call) -> Any:
    """Pow: the result has the type of the base."""
    base = call.tensor(0)
    exponent = call.constants[1]
    if exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2.0:
        return base * base
    return call.torch.pow(base, call.tensor(1)).to(base.dtype)


def clip(call: Call) -> Any:
    """Clip to bounds that may be constants, computed, or left out."""
    values = call.tensor(0)
    bounds = [None if not call.has(number) else call.constants[number] for number in (1, 2)]
    given = [call.has(number) for number in (1, 2)]
    if any(there and bound is None for there, bound in zip(given, bounds, strict=True)):
        return call.torch.clamp(values, *(call.optional(number) for number in (1, 2)))
    low, high = (None if bound is None else bound.reshape(()).item() for bound in bounds)
    if low is None and high is None:
        return values
    return call.torch.clamp(values, low, high)


def gelu(call: Call) -> Any:
    """Gelu, exact or by tanh."""
    return call.torch.nn.functional.gelu(call.tensor(), approximate=call.text("approximate", "none"))


def hard_sigmoid(call: Call) -> Any:
    """HardSigmoid of any slope: `max(0, min(1, alpha * x + beta))`."""
    slope, offset = call.number("alpha", 0.2), call.number("beta", 0.5)
    return call.torch.clamp(call.tensor() * slope + offset, 0.0, 1.0)


def hard_swish(call: Call) -> Any:
    """HardSwish: `x * max(0, min(1, x / 6 + 1 / 2))`."""
    return call.torch.nn.functional.hardswish(call.tensor())


def leaky_relu(call: Call) -> Any:
    """LeakyRelu."""
    return call.torch.nn.functional.leaky_relu(call.tensor(), call.number("alpha", 0.01))


def elu(call: Call) -> Any:
    """Elu."""
    return call.torch.nn.functional.elu(call.tensor(), call.number("alpha", 1.0))


def celu(call: Call) -> Any:
    """Celu."""
    return call.torch.nn.functional.celu(call.tensor(), call.number("alpha", 1.0))


def selu(call: Call) -> Any:
    """Selu of any constants."""
    alpha, gamma = call.number("alpha", 1.6732632423543772), call.number("gamma", 1.0507009873554805)
    values = call.tensor()
    return gamma * call.torch.where(values > 0, values, alpha * call.torch.expm1(values))


def thresholded_relu(call: Call) -> Any:
    """ThresholdedRelu."""
    values = call.tensor()
    return call.torch.where(values > call.number("alpha", 1.0), values, call.torch.zeros_like(values))


def prelu(call: Call) -> Any:
    """PRelu with a slope that is broadcast as ONNX does it."""
    values = call.tensor(0)
    return call.torch.where(values < 0, values * call.tensor(1), values)


def swish(call: Call) -> Any:
    """Swish: `x * sigmoid(alpha * x)`."""
    values = call.tensor()
    return values * call.torch.sigmoid(values * call.number("alpha", 1.0))


def softmax(call: Call) -> Any:
    """Softmax along one axis."""
    return call.torch.softmax(call.tensor(), call.integer("axis", -1))


def log_softmax(call: Call) -> Any:
    """LogSoftmax along one axis."""
    return call.torch.log_softmax(call.tensor(), call.integer("axis", -1))


def where(call: Call) -> Any:
    """Where."""
    return call.torch.where(call.tensor(0), call.tensor(1), call.tensor(2))


def reduced(reduce: Callable[[Any, Any, list[int], bool], Any]) -> Function:
    """Row of a reduction: `reduce(torch, values, axes, keepdim)`."""

    def row(call: Call) -> Any:
        values, axes = call.tensor(0), call.integers(1, "axes")
        if not axes and call.integer("noop_with_empty_axes", 0):
            axes = []
            return reduce(call.torch, values.unsqueeze(0), [0], False)  # over nothing: each element by itself
        numbers = axes or list(range(values.dim()))
        return reduce(call.torch, values, numbers, bool(call.integer("keepdims", 1)))

    return row


def chained_product(torch: Any, values: Any, axes: list[int], keepdim: bool) -> Any:
    """Product along several axes, which torch takes one by one."""
    for axis in sorted((axis % values.dim() for axis in axes), reverse=True):
        values = torch.prod(values, axis, keepdim=keepdim)
    return values


def arg(name: str) -> Function:
    """Row of ArgMax or ArgMin."""

    def row(call: Call) -> Any:
        if call.integer("select_last_index", 0):
            raise call.refusal("the first index where several are equal")
        return getattr(call.torch, name)(call.tensor(), call.integer("axis", 0), bool(call.integer("keepdims", 1)))

    return row


def top_k(call: Call) -> Any:
    """TopK: values and their indices."""
    (count,) = call.integers(1) or [1]
    largest, ordered = bool(call.integer("largest", 1)), bool(call.integer("sorted", 1))
    return tuple(call.torch.topk(call.tensor(), count, call.integer("axis", -1), largest, ordered))


def cumulative_sum(call: Call) -> Any:
    """CumSum forwards, each element included."""
    if call.integer("exclusive", 0) or call.integer("reverse", 0):
        raise call.refusal("a CumSum forwards, each element included")
    (axis,) = call.integers(1) or [0]
    return call.torch.cumsum(call.tensor(), axis)


def cast(call: Call) -> Any:
    """Cast to a type that torch has."""
    return call.tensor().to(dtype(call, call.integer("to", 1)))


def cast_like(call: Call) -> Any:
    """Cast to the type of another value."""
    return call.tensor(0).to(call.tensor(1).dtype)


def dtype(call: Call, number: int) -> Any:
    """Return the torch type of an ONNX one, by its number.

    Raises:
        TargetError: torch has none.
    """
    import onnx_ir as ir

    kind = ir.DataType(number)
    found = getattr(call.torch, {"FLOAT": "float32", "DOUBLE": "float64"}.get(kind.name, kind.name.lower()), None)
    if found is None:
        raise call.refusal(f"a type that PyTorch has, it is {kind.name}")
    return found


def is_infinite(call: Call) -> Any:
    """IsInf of either sign."""
    if not (call.integer("detect_negative", 1) and call.integer("detect_positive", 1)):
        raise call.refusal("an IsInf of either sign")
    return call.torch.isinf(call.tensor())


def identity(call: Call) -> Any:
    """Identity, and Dropout, which is one outside of training."""
    return call.inputs[0]


def constant_array(call: Call) -> Any:
    """Constant node of any form."""
    import onnx_ir as ir

    tensor = ir.convenience.get_const_tensor(call.node.outputs[0])
    if tensor is None:
        raise call.refusal("a Constant of numbers")
    return np.asarray(tensor.numpy())
