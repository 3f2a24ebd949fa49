"""PyTorch's integer engines on the CPU: FBGEMM, QNNPACK, oneDNN, and x86, which chooses between two of them.

Each rule gave every integer of PyTorch 2.13 on x86-64 with AVX-512 and VNNI (tests/core/engines/test_torch_kernels.py).
Sources are files of pytorch/pytorch, aten/src/ATen/native/quantized/cpu, where no other is named.

Two things depend on where an element lies, and on the processor, not on its numbers:

- Element by element, PyTorch takes whole vectors (64 levels with AVX-512, 32 with AVX2) and what is left over one by
  one. Add, LeakyRelu and Elu round a rest otherwise (the zero point before the rounding instead of after it, products
  not fused), which moves ties, and a few in a million other numbers, by one level. The rules here are those of whole
  vectors.
- AveragePool of channels that lie next to each other in memory rounds whole vectors of channels with the zero point
  after the rounding. The rule here is that of channels apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import erf, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.core.arithmetic import dequantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.fixed_point import integer_rescale
from narrowgauge.core.engines.kernels import (
    Bounds,
    Kernels,
    Layer,
    LayerForm,
    PairForm,
    SoftmaxForm,
    steps,
    storage_levels,
)
from narrowgauge.core.engines.requantize import multiply_add, quantize_by_inverse, rounded, rounded_with_zero_point
from narrowgauge.core.engines.rescale import ComputedRescale, FloatRescale, Sums
from narrowgauge.core.engines.torch_layers import (
    check_levels,
    fbgemm_layer,
    limits,
    onednn_layer,
    qnnpack_layer,
    x86_layer,
)
from narrowgauge.errors import PlanError

Table = npt.NDArray[np.int64]
Real = npt.NDArray[np.float32]
Attributes = Mapping[str, Any]

FIXED_OUTPUTS: dict[str, tuple[float, int]] = {"Tanh": (2 / 256, 128), "HardSigmoid": (1 / 256, 0)}
"""Scale and zero point that PyTorch gives the result of an operator, whatever is asked for (kernels' qtanh, ...)."""


# --- operators on levels --------------------------------------------------------------------------------------------


def unary(
    operator: str, attributes: Attributes, input: Encoding, output: Encoding, bounds: Bounds, *, qnnpack: bool = False
) -> Table:
    """Table of an operator on each level; see `Kernels.unary`.

    The level stands for `fma(level, scale, -zero point * scale)`, and the function's result is written with a product
    with the inverse of the scale, the zero point added after the rounding (kernels/QuantizedOpKernels.cpp). Another
    encoding alone ("Requantize") is dequantize and quantize_per_tensor. QNNPACK's Sigmoid and Tanh write one
    encoding only, its HardSwish adds the zero point before it rounds (pytorch_qnnp: sigmoid.c, tanh.c, hardswish.c).

    Raises:
        PlanError: PyTorch has no such kernel.
    """
    check_levels(operator, input, output)
    real = dequantize(storage_levels(input), input)
    if operator in ("Requantize", "Relu", "Clip"):
        low, high = (max(bounds[0], 0.0), bounds[1]) if operator == "Relu" else bounds
        if _same_meaning(input, output):
            return np.clip(storage_levels(input), *limits(output, (low, high)))
        cut = np.clip(real, np.float32(low), np.float32(high))
        return np.asarray(quantize_by_inverse(cut, output, zero_point_first=True), dtype=np.int64)
    if operator not in _FUNCTIONS:
        raise PlanError(f"expected an operator that PyTorch computes on levels, got {operator}")
    _check_output(operator, input, output, qnnpack=qnnpack)
    found = np.asarray(_FUNCTIONS[operator](attributes, _fused(input)), dtype=np.float32)
    last = rounded_with_zero_point if qnnpack and operator == "HardSwish" else rounded
    levels = last(found * (np.float32(1) / output.scale), output)
    return np.clip(levels.astype(np.int64), *limits(output, bounds))


def _leaky_relu(attributes: Attributes, real: Real) -> Real:
    return np.where(real > 0, real, real * np.float32(attributes.get("alpha", 0.01)))


def _elu(attributes: Attributes, real: Real) -> Real:
    negative = np.expm1(np.minimum(real, 0).astype(np.float64)).astype(np.float32)
    return np.where(real >= 0, real, np.float32(attributes.get("alpha", 1.0)) * negative)


def _hard_swish(attributes: Attributes, real: Real) -> Real:
    return np.asarray(real * np.clip(real + np.float32(3), 0, 6) / np.float32(6), dtype=np.float32)


def _hard_sigmoid(attributes: Attributes, real: Real) -> Real:
    slope, offset = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    if not np.isclose(slope, 1 / 6, rtol=1e-6) or offset != 0.5:
        raise PlanError(
            f"expected HardSigmoid of slope 1/6 and offset 0.5, as PyTorch has it, got {slope} and {offset}"
        )
    return np.asarray(np.clip(real + np.float32(3), 0, 6) / np.float32(6), dtype=np.float32)


def _gelu(attributes: Attributes, real: Real) -> npt.NDArray[np.float64]:
    exact = real.astype(np.float64)
    if attributes.get("approximate", "none") == "tanh":
        share = np.tanh(sqrt(2 / np.pi) * (exact + 0.044715 * exact**3))
    else:
        share = np.array([erf(number) for number in exact * sqrt(0.5)])
    return np.asarray(exact * 0.5 * (1 + share), dtype=np.float64)


_FUNCTIONS: dict[str, Callable[[Attributes, Real], npt.NDArray[np.floating[Any]]]] = {
    "Sigmoid": lambda attributes, real: 1 / (1 + np.exp(-real.astype(np.float64))),
    "Tanh": lambda attributes, real: np.tanh(real.astype(np.float64)),
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "HardSwish": _hard_swish,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
}


def binary(
    operator: str, first: Encoding, second: Encoding, output: Encoding, bounds: Bounds, *, qnnpack: bool = False
) -> Table:
    """Table of every pair of levels; see `Kernels.binary`.

    Add: `rint(float32(a + b) * float32(1 / output scale)) + zero point`, `a = fma(level, scale, -zero point * scale)`
    (kernels/QuantizedOpKernels.cpp, qadd_kernel). Mul and QNNPACK's Add: see `pair`.

    Raises:
        PlanError: PyTorch has no such kernel.
    """
    if operator == "Add" and not qnnpack:
        check_levels(operator, first, second, output)
        one, other = _fused(first), _fused(second)
        levels = rounded((one[:, None] + other[None, :]) * (np.float32(1) / output.scale), output)
        return np.clip(levels.astype(np.int64), *limits(output, bounds))
    return pair(operator, first, second, output, bounds, qnnpack=qnnpack).table()


def pair(
    operator: str, first: Encoding, second: Encoding, output: Encoding, bounds: Bounds, *, qnnpack: bool = False
) -> PairForm:
    """How two levels become one; see `Kernels.pair`.

    Mul: one float32 multiplier, `float32(product of scales) * float32(1 / output scale)`, half to even
    (kernels/QuantizedOpKernels.cpp, qmul_kernel). QNNPACK's Add: integers, each input times a multiplier of up to 22
    bits, half away from zero (pytorch_qnnp: requantization.h, pytorch_qnnp_compute_add_quantization_params).

    Raises:
        PlanError: PyTorch has no such kernel, or none in integers.
    """
    check_levels(operator, first, second, output)
    zero_point, (low, high) = int(output.zero_point), limits(output, bounds)
    if operator == "Mul":
        inverse = np.float32(1) / output.scale
        multiplier = np.asarray(first.scale * second.scale * inverse, dtype=np.float32)
        rescale = FloatRescale(multiplier=multiplier, zero_point=zero_point, low=low, high=high)
        return PairForm(first=steps(first), second=steps(second), combine="multiply", rescale=rescale)
    if operator != "Add" or not qnnpack:
        raise PlanError(f"expected Mul, or Add of QNNPACK, which PyTorch computes in integers, got {operator}")
    ratios = [np.float64(each.scale / output.scale) for each in (first, second)]
    least, greatest = QNNPACK_ADD_RATIOS
    if not all(least <= ratio < greatest for ratio in ratios):
        raise PlanError(
            f"expected scales of the inputs of Add between {least} and {greatest} of the output's, QNNPACK's own "
            f"limits, got {ratios[0]:.3g} and {ratios[1]:.3g}"
        )
    shift = 22 - int(np.frexp(max(ratios))[1])  # the greater multiplier lies between 2^21 and 2^22
    parts = [int(np.rint(ratio * 2.0**shift)) for ratio in ratios]
    rescale_sum = integer_rescale(1, 1 << (shift - 1), shift, (-1, 0), zero_point, (low, high))
    return PairForm(first=steps(first) * parts[0], second=steps(second) * parts[1], combine="add", rescale=rescale_sum)


QNNPACK_ADD_RATIOS = (2.0**-14, 2.0**8)
"""Scale of an input of Add over the output's: at least, and below (pytorch_qnnp: add.c)."""


def average(input: Encoding, output: Encoding, count: int, *, qnnpack: bool = False) -> LayerForm:
    """Sum of levels to the level of their mean; input and output share their encoding.

    `rint(float32(sum * float32(1 / count)) + zero point)`, the sum without its zero points, so that a tie falls on an
    even level (kernels/QuantizedOpKernels.cpp, do_avg_pool_on_AVX_n; AdaptiveAveragePooling.cpp). QNNPACK's multiplier
    is `float32(scale / float32(scale * count))`, and the zero point comes after the rounding (pytorch_qnnp:
    global-average-pooling.c, average-pooling.c).

    Raises:
        PlanError: the output has another encoding.
    """
    check_levels("an average", input, output)
    if not _same_meaning(input, output):
        raise PlanError("expected the encoding of the input for an average, which PyTorch keeps, got another")
    zero_point, (low, high) = int(output.zero_point), limits(output, (-np.inf, np.inf))
    bias = np.asarray(-int(input.zero_point) * count, dtype=np.int64)
    if qnnpack:
        multiplier = np.asarray(input.scale / (output.scale * np.float32(count)), dtype=np.float32)
        rescale = FloatRescale(multiplier=multiplier, zero_point=zero_point, low=low, high=high)
        return LayerForm(bias=bias, rescale=rescale)
    share = np.float32(1) / np.float32(count)

    def compute(sums: Sums) -> Table:
        levels = rounded_with_zero_point(np.asarray(sums).astype(np.float32) * share, output)
        return np.asarray(levels, dtype=np.int64)

    return LayerForm(bias=bias, rescale=ComputedRescale(compute=compute, channels=0, low=low, high=high))


def average_pool(input: Encoding, output: Encoding, count: int, *, qnnpack: bool = False) -> ComputedRescale:
    """Sum of a window's levels to the level of their mean; see `average`."""
    form = average(input, output, count, qnnpack=qnnpack)
    rescale = form.rescale

    def compute(sums: Sums) -> Table:
        return rescale.levels(np.asarray(sums, dtype=np.int64) - int(input.zero_point) * count)

    return ComputedRescale(compute=compute, channels=0, low=rescale.low, high=rescale.high)


def concatenated(input: Encoding, output: Encoding) -> Table:
    """Table of an input of Concat: the same levels where the encodings are equal, else those of "Requantize"."""
    return unary("Requantize", {}, input, output, (-np.inf, np.inf))


def softmax(input: Encoding, output: Encoding, count: int) -> SoftmaxForm:
    """Refuse: PyTorch computes it in real numbers."""
    raise PlanError("expected an operator that PyTorch computes on levels, got Softmax")


# --- what there is --------------------------------------------------------------------------------------------------


def _fused(encoding: Encoding) -> Real:
    """Real numbers of all levels, as ATen's vectors dequantize them: the product and the sum in one rounding."""
    return multiply_add(storage_levels(encoding), encoding.scale, encoding.scale * np.float32(-encoding.zero_point))


def _same_meaning(first: Encoding, second: Encoding) -> bool:
    return bool(first.scale == second.scale) and int(first.zero_point) == int(second.zero_point)


def _check_output(operator: str, input: Encoding, output: Encoding, *, qnnpack: bool) -> None:
    if operator == "Gelu" and not _same_meaning(input, output):
        raise PlanError("expected the encoding of the input for Gelu, which PyTorch keeps, got another")
    fixed = (1 / 256, 0) if qnnpack and operator == "Sigmoid" else FIXED_OUTPUTS.get(operator)
    if fixed is not None and (float(output.scale), int(output.zero_point)) != fixed:
        raise PlanError(
            f"expected scale {fixed[0]} and zero point {fixed[1]} of the result of {operator}, which PyTorch gives it, "
            f"got {float(output.scale)} and {int(output.zero_point)}"
        )


def _kernels(name: str, layer: Callable[[Layer], LayerForm], source: str, *, qnnpack: bool = False) -> Kernels:
    return Kernels(
        name=name, source=source, quantize="reciprocal_with_zero_point", layer=layer,
        unary=partial(unary, qnnpack=qnnpack), binary=partial(binary, qnnpack=qnnpack),
        pair=partial(pair, qnnpack=qnnpack), mean=partial(average, qnnpack=qnnpack),
        average_pool=partial(average_pool, qnnpack=qnnpack), softmax=softmax, concat=concatenated,
    )  # fmt: skip


FBGEMM = _kernels("fbgemm", fbgemm_layer, "FBGEMM in PyTorch 2.13, measured on x86-64 with AVX-512")
ONEDNN = _kernels("onednn", onednn_layer, "oneDNN in PyTorch 2.13, measured on x86-64 with VNNI")
X86 = _kernels("x86", x86_layer, "PyTorch 2.13's default engine on x86-64, measured with VNNI")
QNNPACK = _kernels(
    "qnnpack", qnnpack_layer, "QNNPACK in PyTorch 2.13, measured on x86-64; not on ARM", qnnpack=True
)  # fmt: skip
