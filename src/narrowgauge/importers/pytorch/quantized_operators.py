"""The operators of `torch.ops.quantized` on real numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from narrowgauge.errors import ModelError
from narrowgauge.importers.pytorch.packed import real_weight
from narrowgauge.importers.pytorch.roundings import (
    Rounding,
    mark,
    round_dynamically,
    round_to,
    rounding_of,
    tensors_in,
)

Compute = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator.

    Attributes:
        parameters: their names, parted by blanks; with `scale` and `zero_point` if the result has its own.
        compute: the same on real numbers, given all other parameters in their order.
    """

    parameters: str
    compute: Compute


def call_operator(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Compute an operator and round its result as it does.

    Raises:
        ModelError: It is not in the table.
    """
    operator = _operators().get(name)
    if operator is None:
        raise ModelError(f"the operator quantized::{name} is not known; quantize the float network anew")
    parameters = operator.parameters.split()
    own = {key.removeprefix("output_"): value for key, value in named.items()}
    given = {**dict(zip(parameters, arguments, strict=False)), **own}
    roundings = [one for one in map(rounding_of, tensors_in(list(given.values()))) if one is not None]
    scale, zero_point = given.pop("scale", None), given.pop("zero_point", None)
    result = operator.compute(*(given[key] for key in parameters if key in given))
    if "scale" not in parameters:
        return round_to(result, rounding_of(result) or roundings[0]) if roundings else result
    if scale is None and roundings:
        return round_to(result, roundings[0])
    signed = bool(roundings) and roundings[0].signed
    return round_to(result, Rounding(scale=float(scale), zero_point=int(zero_point), signed=signed))


@functools.cache
def _operators() -> dict[str, Operator]:
    """The table: name -> operator. Signatures: `torch._C._jit_get_all_schemas()`."""
    import torch
    from torch.nn import functional

    own = "{} scale zero_point"
    convolve, transpose = (torch.conv2d, torch.conv3d), (torch.conv_transpose2d, torch.conv_transpose3d)
    table = {
        "add": Operator(own.format("x y"), torch.add),
        "mul": Operator(own.format("x y"), torch.mul),
        "matmul": Operator(own.format("x y"), torch.matmul),
        "add_scalar": Operator("x y", _add_number),
        "mul_scalar": Operator("x y", _multiply_number),
        "cat": Operator("x dim scale zero_point", torch.cat),
        "linear": Operator(own.format("x packed"), _linear),
        "conv1d": Operator(own.format("x packed"), _of_one_dimension(_convolution(convolve[0]))),
        "conv2d": Operator(own.format("x packed"), _convolution(convolve[0])),
        "conv3d": Operator(own.format("x packed"), _convolution(convolve[1])),
        "conv2d_add": Operator(own.format("x y packed"), _convolution_with_sum(convolve[0])),
    }
    for name in ("batch_norm", "batch_norm1d", "batch_norm2d", "batch_norm3d"):
        table[name] = Operator(own.format("x weight bias mean variance eps"), _batch_norm)
    for name in list(table):
        table[f"{name}_relu"] = Operator(table[name].parameters, _with_relu(table[name].compute))
    table |= {
        "conv_transpose1d": Operator(own.format("x packed"), _of_one_dimension(_transposed(transpose[0]))),
        "conv_transpose2d": Operator(own.format("x packed"), _transposed(transpose[0])),
        "conv_transpose3d": Operator(own.format("x packed"), _transposed(transpose[1])),
        "linear_dynamic": Operator("x packed reduce_range", _dynamic_linear),
        "linear_relu_dynamic": Operator("x packed reduce_range", _with_relu(_dynamic_linear)),
        "linear_leaky_relu": Operator("x packed scale zero_point slope", _leaky_linear),
        "linear_tanh": Operator(own.format("x packed"), _tanh_linear),
        "layer_norm": Operator(own.format("x shape weight bias eps"), functional.layer_norm),
        "group_norm": Operator(own.format("x groups weight bias eps"), functional.group_norm),
        "instance_norm": Operator(own.format("x weight bias eps"), _instance_norm),
        "softmax": Operator(own.format("x dim"), torch.softmax),
        "sigmoid": Operator(own.format("x"), torch.sigmoid),
        "hardswish": Operator(own.format("x"), functional.hardswish),
        "elu": Operator("x scale zero_point alpha", functional.elu),
        "celu": Operator("x scale zero_point alpha", functional.celu),
        "leaky_relu": Operator(own.format("x slope inplace"), _leaky_relu),
        "prelu": Operator(own.format("x weight"), _prelu),
        "dropout": Operator("x scale zero_point p training", _unchanged),
        "relu6": Operator("x inplace", _relu6),
        "max_pool1d": Operator("x kernel stride padding dilation ceil", functional.max_pool1d),
        "max_pool2d": Operator("x kernel stride padding dilation ceil", functional.max_pool2d),
    }
    return table


def _with_relu(compute: Compute) -> Compute:
    import torch

    return lambda *arguments: torch.relu(compute(*arguments))


def _linear(x: Any, packed: Any) -> Any:
    from torch.nn import functional

    return functional.linear(x, real_weight(packed), packed.bias)


def _leaky_linear(x: Any, packed: Any, slope: float) -> Any:
    from torch.nn import functional

    return functional.leaky_relu(_linear(x, packed), slope)


def _tanh_linear(x: Any, packed: Any) -> Any:
    return _linear(x, packed).tanh()


def _dynamic_linear(x: Any, packed: Any, reduce_range: bool = False) -> Any:
    """Compute with all 8 bits: PyTorch takes 7 with `reduce_range`, whose numbers ONNX's operator does not give."""
    return _linear(round_dynamically(x), packed)


def _convolution(function: Compute) -> Compute:
    def compute(x: Any, packed: Any) -> Any:
        settings = (list(packed.stride), list(packed.padding), list(packed.dilation), packed.groups)
        return function(x, real_weight(packed), packed.bias, *settings)

    return compute


def _convolution_with_sum(function: Compute) -> Compute:
    compute = _convolution(function)
    return lambda x, y, packed: compute(x, packed) + y


def _transposed(function: Compute) -> Compute:
    def compute(x: Any, packed: Any) -> Any:
        return function(
            x, real_weight(packed), packed.bias, list(packed.stride), list(packed.padding),
            list(packed.output_padding), packed.groups, list(packed.dilation),
        )  # fmt: skip

    return compute


def _of_one_dimension(compute: Compute) -> Compute:
    """A convolution of one dimension is packed as one of two, of height 1."""
    return lambda x, packed: compute(x.unsqueeze(2), packed).squeeze(2)


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, eps: float) -> Any:
    from torch.nn import functional

    return functional.batch_norm(x, mean, variance, weight, bias, eps=eps)


def _instance_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    from torch.nn import functional

    return functional.instance_norm(x, weight=weight, bias=bias, eps=eps)


def _leaky_relu(x: Any, slope: float, inplace: bool) -> Any:
    from torch.nn import functional

    return functional.leaky_relu(x, slope)


def _prelu(x: Any, weight: Any) -> Any:
    from torch.nn import functional

    return functional.prelu(x, weight.dequantize() if weight.is_quantized else weight)


def _relu6(x: Any, inplace: bool = False) -> Any:
    from torch.nn import functional

    return functional.relu6(x)


def _unchanged(x: Any, *settings: Any) -> Any:
    return x


def _add_number(x: Any, y: float) -> Any:
    """Move the zero point by the number's steps; where it stays a level, the scale is the same (qadd.cpp)."""
    rounding = rounding_of(x)
    if rounding is None:
        return x + y
    steps = round(y / rounding.scale)
    lowest, highest = rounding.levels
    if not lowest <= rounding.zero_point - steps <= highest:
        raise ModelError(f"adding {y} to a quantized tensor changes its scale, which is not known to be done")
    moved = Rounding(scale=rounding.scale, zero_point=rounding.zero_point - steps, signed=rounding.signed)
    return mark(x + steps * rounding.scale, moved)


def _multiply_number(x: Any, y: float) -> Any:
    """Multiply the scale by the number; a negative one mirrors the levels (qmul.cpp)."""
    rounding = rounding_of(x)
    if rounding is None:
        return x * y
    if y == 0:
        raise ModelError("multiplying a quantized tensor by 0 leaves nothing to quantize; take the layer out")
    lowest, highest = rounding.levels
    zero_point = rounding.zero_point if y > 0 else highest + lowest - rounding.zero_point
    return mark(x * y, Rounding(scale=rounding.scale * abs(y), zero_point=zero_point, signed=rounding.signed))
