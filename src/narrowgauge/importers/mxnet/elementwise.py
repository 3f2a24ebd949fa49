"""Rules for arithmetic: one number at a time, and reductions along axes.

Their definitions are those of MXNet 1.9.1, src/operator/tensor/*.cc. Comparisons and logic give numbers, 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from narrowgauge.importers.mxnet.builder import sizes_of
from narrowgauge.importers.mxnet.call import Call, Item, Rule, integers


def unary(operator: str) -> Rule:
    """Make the rule of an operator that ONNX has too."""

    def rule(call: Call) -> list[Item]:
        return [call.add(operator, [call.value()])]

    return rule


def binary(operator: str) -> Rule:
    """Make the rule of arithmetic on two values, broadcast as in ONNX."""

    def rule(call: Call) -> list[Item]:
        return [call.add(operator, [call.value(0), call.value(1)])]

    return rule


def with_scalar(operator: str, *, reverse: bool = False) -> Rule:
    """Make the rule of arithmetic with the attribute `scalar`, which comes first where `reverse`."""

    def rule(call: Call) -> list[Item]:
        data = call.value()
        operands = [data, call.scalar(call.attributes.number("scalar"), data)]
        return [call.add(operator, operands[::-1] if reverse else operands)]

    return rule


def comparison(operator: str, *, negated: bool = False, scalar: bool = False) -> Rule:
    """Make the rule of a comparison."""

    def rule(call: Call) -> list[Item]:
        data = call.value(0)
        other = call.scalar(call.attributes.number("scalar"), data) if scalar else call.value(1)
        result = call.add(operator, [data, other])
        if negated:
            result = call.add("Not", [result])
        return [call.add("Cast", [result], to=data.dtype or ir.DataType.FLOAT)]

    return rule


def remainder(*, scalar: bool = False) -> Rule:
    """Make the rule of the remainder, which has the divisor's sign: a - b * floor(a / b)."""

    def rule(call: Call) -> list[Item]:
        data = call.value(0)
        divisor = call.scalar(call.attributes.number("scalar"), data) if scalar else call.value(1)
        whole = call.add("Floor", [call.add("Div", [data, divisor])])
        return [call.add("Sub", [data, call.add("Mul", [divisor, whole])])]

    return rule


def hypotenuse(call: Call) -> list[Item]:
    """broadcast_hypot: sqrt(a^2 + b^2)."""
    squares = [call.add("Mul", [one, one]) for one in call.values()[:2]]
    return [call.add("Sqrt", [call.add("Add", squares)])]


def sum_of_all(call: Call) -> list[Item]:
    """add_n."""
    return [call.add("Sum", call.values())]


def clip(call: Call) -> list[Item]:
    """Clip."""
    data = call.value()
    bounds = [call.scalar(call.attributes.number(name), data) for name in ("a_min", "a_max")]
    return [call.add("Clip", [data, *bounds])]


def square(call: Call) -> list[Item]:
    """Square."""
    return [call.add("Mul", [call.value(), call.value()])]


def reciprocal_root(call: Call) -> list[Item]:
    """Rsqrt: one over the square root."""
    return [call.add("Reciprocal", [call.add("Sqrt", [call.value()])])]


def exp_minus_one(call: Call) -> list[Item]:
    """expm1, as exp(x) - 1."""
    data = call.value()
    return [call.add("Sub", [call.add("Exp", [data]), call.scalar(1, data)])]


def log_of(base: float | None) -> Rule:
    """Make the rule of a logarithm: of 1 + x where there is no base."""

    def rule(call: Call) -> list[Item]:
        data = call.value()
        if base is None:
            return [call.add("Log", [call.add("Add", [data, call.scalar(1, data)])])]
        return [call.add("Div", [call.add("Log", [data]), call.scalar(np.log(base), data)])]

    return rule


def truncate(call: Call) -> list[Item]:
    """Fix and trunc: round towards zero."""
    data = call.value()
    return [call.add("Mul", [call.add("Sign", [data]), call.add("Floor", [call.add("Abs", [data])])])]


def round_away(call: Call) -> list[Item]:
    """Round: halves away from zero, unlike ONNX's Round."""
    data = call.value()
    shifted = call.add("Floor", [call.add("Add", [call.add("Abs", [data]), call.scalar(0.5, data)])])
    return [call.add("Mul", [call.add("Sign", [data]), shifted])]


def logical_not(call: Call) -> list[Item]:
    """logical_not: 1 where the number is 0."""
    data = call.value()
    return [call.cast(call.add("Equal", [data, call.scalar(0, data)]), data.dtype or ir.DataType.FLOAT)]


def hard_sigmoid(call: Call) -> list[Item]:
    """hard_sigmoid: clip(alpha x + beta, 0, 1)."""
    attributes = call.attributes
    alpha, beta = attributes.number("alpha", 0.2), attributes.number("beta", 0.5)
    return [call.add("HardSigmoid", [call.value()], alpha=alpha, beta=beta)]


def smooth_l1(call: Call) -> list[Item]:
    """smooth_l1: (s x)^2 / 2 where |x| < 1 / s^2, else |x| - 1 / (2 s^2)."""
    data, sigma = call.value(), call.attributes.number("scalar", 1.0)
    size = call.add("Abs", [data])
    inner = call.add("Mul", [call.add("Mul", [data, data]), call.scalar(0.5 * sigma**2, data)])
    outer = call.add("Sub", [size, call.scalar(0.5 / sigma**2, data)])
    return [call.add("Where", [call.add("Less", [size, call.scalar(1 / sigma**2, data)]), inner, outer])]


def filled_like(number: float) -> Rule:
    """Make the rule of zeros_like or ones_like."""

    def rule(call: Call) -> list[Item]:
        data = call.value()
        return [call.add("Expand", [call.scalar(number, data), call.add("Shape", [data])])]

    return rule


def reduction(operator: str) -> Rule:
    """Make the rule of a reduction along axes: all of them where none is named, the others where `exclude`."""

    def rule(call: Call) -> list[Item]:
        data, attributes = call.value(), call.attributes
        axes = list(attributes.sizes("axis", ()))
        keep = attributes.boolean("keepdims", default=False)
        everything = not axes
        if attributes.boolean("exclude", default=False) and axes:
            rank = call.rank()
            axes = sorted(set(range(rank)) - {axis % rank for axis in axes})
        if everything:
            result = call.add(operator, [data], keepdims=int(keep))
            # Without numpy semantics MXNet has no arrays of rank 0: a full reduction has the shape (1,).
            return [result if keep else call.add("Reshape", [result, integers([1])])]
        if not axes:
            return [call.add("Identity", [data])]
        result = call.add(operator, [data, integers(axes)], keepdims=int(keep))
        whole = not keep and sizes_of(data) is not None and len(set(axes)) == call.rank()
        return [call.add("Reshape", [result, integers([1])]) if whole else result]

    return rule


def norm(call: Call) -> list[Item]:
    """Norm of order 1 or 2."""
    order = call.attributes.integer("ord", 2)
    if order not in (1, 2):
        raise call.attributes.wrong("ord", "1 or 2")
    return list(reduction(f"ReduceL{order}")(call))


def position_of(operator: str) -> Rule:
    """Make the rule of argmax or argmin, which give real numbers."""

    def rule(call: Call) -> list[Item]:
        data = call.value()
        if not call.attributes.has("axis"):
            raise call.refusal("expected an axis; without one the input is flattened, which is not supported")
        axis, keep = call.attributes.integer("axis"), call.attributes.boolean("keepdims", default=False)
        found = call.add(operator, [data], axis=axis, keepdims=int(keep))
        return [call.cast(found, ir.DataType.FLOAT)]

    return rule


def channel_position(call: Call) -> list[Item]:
    """argmax_channel: the largest one's place along axis 1."""
    return [call.cast(call.add("ArgMax", [call.value()], axis=1, keepdims=0), ir.DataType.FLOAT)]


_ARITHMETIC = {
    "Add": ("elemwise_add", "_plus", "_Plus", "_add", "broadcast_add", "broadcast_plus", "_grad_add"),
    "Sub": ("elemwise_sub", "_minus", "_Minus", "_sub", "broadcast_sub", "broadcast_minus"),
    "Mul": ("elemwise_mul", "_mul", "_Mul", "broadcast_mul"),
    "Div": ("elemwise_div", "_div", "_Div", "broadcast_div"),
    "Max": ("_maximum", "_Maximum", "broadcast_maximum"),
    "Min": ("_minimum", "_Minimum", "broadcast_minimum"),
    "Pow": ("_power", "_Power", "broadcast_power"),
}

_WITH_SCALAR = {
    ("Add", False): ("_plus_scalar", "_PlusScalar"),
    ("Sub", False): ("_minus_scalar", "_MinusScalar"),
    ("Sub", True): ("_rminus_scalar", "_RMinusScalar"),
    ("Mul", False): ("_mul_scalar", "_MulScalar"),
    ("Div", False): ("_div_scalar", "_DivScalar"),
    ("Div", True): ("_rdiv_scalar", "_RDivScalar"),
    ("Pow", False): ("_power_scalar", "_PowerScalar"),
    ("Pow", True): ("_rpower_scalar", "_RPowerScalar"),
    ("Max", False): ("_maximum_scalar", "_MaximumScalar"),
    ("Min", False): ("_minimum_scalar", "_MinimumScalar"),
}

_COMPARISONS = {
    "equal": ("Equal", False),
    "not_equal": ("Equal", True),
    "greater": ("Greater", False),
    "greater_equal": ("GreaterOrEqual", False),
    "lesser": ("Less", False),
    "lesser_equal": ("LessOrEqual", False),
}

_UNARY = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softsign": "Softsign", "exp": "Exp", "log": "Log",
    "sqrt": "Sqrt", "abs": "Abs", "negative": "Neg", "reciprocal": "Reciprocal", "sign": "Sign", "floor": "Floor",
    "ceil": "Ceil", "erf": "Erf", "sin": "Sin", "cos": "Cos", "tan": "Tan", "arcsin": "Asin", "arccos": "Acos",
    "arctan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "arcsinh": "Asinh", "arccosh": "Acosh", "arctanh": "Atanh",
}  # fmt: skip

_REDUCTIONS = {
    "sum": "ReduceSum", "sum_axis": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax", "max_axis": "ReduceMax",
    "min": "ReduceMin", "min_axis": "ReduceMin", "prod": "ReduceProd",
}  # fmt: skip

RULES: Mapping[str, Rule] = {
    **{name: binary(operator) for operator, names in _ARITHMETIC.items() for name in names},
    **{
        name: with_scalar(operator, reverse=reverse)
        for (operator, reverse), names in _WITH_SCALAR.items()
        for name in names
    },
    **{
        f"{prefix}_{name}{suffix}": comparison(operator, negated=negated, scalar=bool(suffix))
        for name, (operator, negated) in _COMPARISONS.items()
        for prefix, suffix in (("broadcast", ""), ("", ""), ("", "_scalar"))
    },
    **{name: unary(operator) for name, operator in _UNARY.items()},
    **{name: reduction(operator) for name, operator in _REDUCTIONS.items()},
    "broadcast_mod": remainder(),
    "_mod": remainder(),
    "_mod_scalar": remainder(scalar=True),
    "broadcast_hypot": hypotenuse,
    "_hypot": hypotenuse,
    "add_n": sum_of_all,
    "ElementWiseSum": sum_of_all,
    "clip": clip,
    "square": square,
    "rsqrt": reciprocal_root,
    "expm1": exp_minus_one,
    "log1p": log_of(None),
    "log2": log_of(2),
    "log10": log_of(10),
    "fix": truncate,
    "trunc": truncate,
    "round": round_away,
    "logical_not": logical_not,
    "hard_sigmoid": hard_sigmoid,
    "smooth_l1": smooth_l1,
    "zeros_like": filled_like(0),
    "ones_like": filled_like(1),
    "norm": norm,
    "argmax": position_of("ArgMax"),
    "argmin": position_of("ArgMin"),
    "argmax_channel": channel_position,
}
