"""Dynamic-range arithmetic: what engines do with float activations and integer weights, exact in numpy.

An engine takes the range of each row (or sample, or tensor) at run time, writes its numbers as levels, adds up products
of integers, and scales the sums back to real numbers. Engines differ in the order of nearly every step. The forms here
were compared with the engines bit for bit, with rows whose numbers and zero points lie on ties or next to them
(tests/core/engines/test_hybrid.py); no float differed:

| engine | layer | rounding | result |
|---|---|---|---|
| XNNPACK (LiteRT's default) | all but depthwise, which are LiteRT's | `round_like_xnnpack` | `scale_in_fused_step` |
| LiteRT's own kernels | product | symmetric or not, as the operator says | `scale_at_once` |
| | convolution, one scale | `round_symmetrically` | `scale_at_once` |
| | convolution, a scale per channel | `round_asymmetrically` | at once; weights first in groups, in the reference |
| | depthwise | `round_asymmetrically` | `scale_in_fours`; in the reference: at once |
| ONNX Runtime | product, convolution | `round_like_onnx` | `scale_at_once` |

A product rounds each row of its input for itself, a convolution each sample, ONNX Runtime the whole tensor; to XNNPACK
a pointwise convolution is a product, which rounds the channels of each pixel for themselves. The zero point is taken
off before the sum, so that what pads an image counts for nothing. Measured on x86-64 with AVX-512, ai-edge-litert 2.3
and onnxruntime 1.31; nothing was measured on ARM, nor where XNNPACK has no fused steps and so rounds the product, too.

Sources: XNNPACK, quantization.h and the qd8-f32-qc8w kernels; LiteRT, tflite/kernels/fully_connected.cc, conv.cc,
depthwise_conv.cc, batch_matmul.cc and internal/optimized/{neon,sse}_tensor_utils.cc; ONNX, DynamicQuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from narrowgauge.core.arithmetic import FloatArray
from narrowgauge.core.engines.hybrid_rounding import (
    Integers,
    Rows,
    round_asymmetrically,
    round_like_onnx,
    round_like_xnnpack,
    round_symmetrically,
)
from narrowgauge.core.engines.requantize import multiply_add
from narrowgauge.errors import PlanError

HybridLayer = Literal[
    "product",
    "convolution",
    "pointwise convolution",
    "grouped convolution",
    "depthwise convolution",
    "transposed convolution",
]
"""A pointwise convolution has a kernel of one element, strides of 1 and no groups; a depthwise one one input channel a
group."""
Scope = Literal["row", "sample", "tensor"]
"""What one scale covers: numbers that are multiplied and added up together, a sample, or all."""

LANES = 4
"""Output channels that LiteRT's depthwise kernel scales in one step."""


Results = Callable[[Integers, FloatArray, FloatArray, FloatArray | None], FloatArray]
"""(sums [rows, ..., channels], the rows' scale [rows, 1, ..., 1], the weights' scale () or (channels,), bias
(channels,) or None) -> real numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hybrid:
    """How one kind of layer is computed.

    Attributes:
        scope: what is rounded together.
        rounding: rows of real numbers, float32 [rows, numbers] -> their levels.
        results: how sums become real numbers.
    """

    scope: Scope
    rounding: Callable[[FloatArray], Rows]
    results: Results

    def layer(
        self,
        values: FloatArray,
        sums: Callable[[Integers], Integers],
        weight_scale: FloatArray,
        bias: FloatArray | None = None,
    ) -> FloatArray:
        """Compute a layer.

        Args:
            values: its input, float32, finite, at least one axis; a sample for each entry of the first.
            sums: what the layer makes of integers of the shape of `values`, with integer weights: sums of products,
                channels last, the first axis as it is (of a product: all but the last).
            weight_scale: one, or one for each output channel.
            bias: real numbers, one for each output channel.
        """
        real = np.asarray(values, np.float32)
        leading = {"row": real.shape[:-1], "sample": real.shape[:1], "tensor": ()}[self.scope]
        rows = self.rounding(real.reshape(int(np.prod(leading, dtype=np.int64)), -1))
        made = sums(rows.steps.reshape(real.shape))
        scale = rows.scale.reshape(leading + (1,) * (made.ndim - len(leading)))
        with np.errstate(over="ignore", invalid="ignore"):  # infinite where the engine's are
            return self.results(made, scale, np.asarray(weight_scale, np.float32), bias)


# --- results ----------------------------------------------------------------------------------------------------------


def scale_in_fused_step(
    sums: Integers, scale: FloatArray, weight_scale: FloatArray, bias: FloatArray | None
) -> FloatArray:
    """`fma(float32(sum * scale), weight scale, bias)`."""
    steps = sums.astype(np.float32) * scale
    return steps * weight_scale if bias is None else multiply_add(steps, weight_scale, bias)


def scale_at_once(sums: Integers, scale: FloatArray, weight_scale: FloatArray, bias: FloatArray | None) -> FloatArray:
    """`float32(sum * float32(scale * weight scale)) + bias`."""
    return _biased(sums.astype(np.float32) * (scale * weight_scale), bias)


def scale_weights_first(
    sums: Integers, scale: FloatArray, weight_scale: FloatArray, bias: FloatArray | None
) -> FloatArray:
    """`float32(float32(sum * weight scale) * scale) + bias`."""
    return _biased(sums.astype(np.float32) * weight_scale * scale, bias)


def scale_in_fours(sums: Integers, scale: FloatArray, weight_scale: FloatArray, bias: FloatArray | None) -> FloatArray:
    """`float32(float32(sum * weight scale) * scale) + bias`; channels that fill no four: the scale first.

    LiteRT, DepthwiseConvHybridGeneral of depthwise_conv_hybrid.h.
    """
    real, channels = sums.astype(np.float32), sums.shape[-1]
    full = np.arange(channels) < channels // LANES * LANES
    return _biased(np.where(full, real * weight_scale * scale, real * scale * weight_scale), bias)


def _biased(real: FloatArray, bias: FloatArray | None) -> FloatArray:
    return real if bias is None else real + np.asarray(bias, np.float32)


# --- engines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridKernels:
    """One engine's dynamic-range kernels.

    Attributes:
        name: as in `core.engines.arithmetics`, or "onnxruntime".
        product: of matrices, activations with a zero point.
        symmetric_product: where the operator asks for none (TFLite's asymmetric_quantize_inputs is false).
        layers: (kind of a convolution, whether its weights have a scale for each channel) -> how it is computed.
    """

    name: str
    product: Hybrid
    symmetric_product: Hybrid
    layers: Mapping[tuple[HybridLayer, bool], Hybrid]

    def of(self, layer: HybridLayer, *, per_channel: bool, symmetric: bool) -> Hybrid:
        """Return how a layer is computed.

        Args:
            layer: its kind.
            per_channel: whether the weights have a scale for each output channel.
            symmetric: whether the operator asks for activations without zero point; only products look at it.

        Raises:
            PlanError: the engine has no such kernel.
        """
        if layer == "product":
            return self.symmetric_product if symmetric else self.product
        found = self.layers.get((layer, per_channel))
        if found is None:
            scales = "a scale for each channel" if per_channel else "one scale for all weights"
            raise PlanError(f"{self.name} has no dynamic-range kernel of a {layer} with {scales}")
        return found


def _hybrid(scope: Scope, rounding: Callable[[FloatArray], Rows], results: Results) -> Hybrid:
    return Hybrid(scope=scope, rounding=rounding, results=results)


_XNNPACK = _hybrid("sample", round_like_xnnpack, scale_in_fused_step)
_XNNPACK_PRODUCT = _hybrid("row", round_like_xnnpack, scale_in_fused_step)
_ONNX_CONVOLUTIONS: tuple[HybridLayer, ...] = (
    "convolution", "pointwise convolution", "grouped convolution", "depthwise convolution",
)  # fmt: skip
_ONNX = _hybrid("tensor", round_like_onnx, scale_at_once)
_LITERT_PRODUCT = _hybrid("row", round_asymmetrically, scale_at_once)
_LITERT_SYMMETRIC_PRODUCT = _hybrid("row", round_symmetrically, scale_at_once)
_LITERT_ONE_SCALE = _hybrid("sample", round_symmetrically, scale_at_once)
_LITERT_AT_ONCE = _hybrid("sample", round_asymmetrically, scale_at_once)
_LITERT_WEIGHTS_FIRST = _hybrid("sample", round_asymmetrically, scale_weights_first)
_LITERT_DEPTHWISE = _hybrid("sample", round_asymmetrically, scale_in_fours)

HYBRIDS: Mapping[str, HybridKernels] = {
    kernels.name: kernels
    for kernels in (
        HybridKernels(
            name="xnnpack",
            product=_XNNPACK_PRODUCT,
            symmetric_product=_XNNPACK_PRODUCT,
            layers={
                ("convolution", False): _XNNPACK,
                ("convolution", True): _XNNPACK,
                ("pointwise convolution", False): _XNNPACK_PRODUCT,
                ("pointwise convolution", True): _XNNPACK_PRODUCT,
                ("grouped convolution", False): _XNNPACK,
                ("grouped convolution", True): _XNNPACK,
                ("depthwise convolution", True): _LITERT_DEPTHWISE,
                ("transposed convolution", False): _XNNPACK,
                ("transposed convolution", True): _XNNPACK,
            },
        ),
        HybridKernels(
            name="tflite-reference",
            product=_LITERT_PRODUCT,
            symmetric_product=_LITERT_SYMMETRIC_PRODUCT,
            layers={
                ("convolution", False): _LITERT_ONE_SCALE,
                ("convolution", True): _LITERT_WEIGHTS_FIRST,
                ("pointwise convolution", False): _LITERT_ONE_SCALE,
                ("pointwise convolution", True): _LITERT_WEIGHTS_FIRST,
                ("grouped convolution", True): _LITERT_WEIGHTS_FIRST,
                ("depthwise convolution", True): _LITERT_AT_ONCE,
            },
        ),
        HybridKernels(
            name="tflite-neon",
            product=_LITERT_PRODUCT,
            symmetric_product=_LITERT_SYMMETRIC_PRODUCT,
            layers={
                ("convolution", False): _LITERT_ONE_SCALE,
                ("convolution", True): _LITERT_AT_ONCE,
                ("pointwise convolution", False): _LITERT_ONE_SCALE,
                ("pointwise convolution", True): _LITERT_AT_ONCE,
                ("grouped convolution", True): _LITERT_WEIGHTS_FIRST,
                ("depthwise convolution", True): _LITERT_DEPTHWISE,
            },
        ),
        HybridKernels(
            name="onnxruntime",
            product=_ONNX,
            symmetric_product=_ONNX,
            layers={(layer, per_channel): _ONNX for layer in _ONNX_CONVOLUTIONS for per_channel in (False, True)},
        ),
    )
}
"""Engine -> its kernels."""
