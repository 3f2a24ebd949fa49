"""Layers with weights in PyTorch's integer kernels: convolutions and matrix products with packed weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.core.engines.torch_layers import MOST_ONEDNN_GROUPS
from narrowgauge.runtimes.pytorch.kernels import NOT_UNSIGNED, Build, Call, Kernel, quantized, relabelled
from narrowgauge.runtimes.pytorch.pairs import Levels, constant_reals, greatest_level

_SATURATES = (
    "FBGEMM's depthwise kernel adds two products in 16 bits, which saturate where levels of 8 bits meet weights that "
    "are greater than 128 together, and so differ from every other engine: take activations of 7 bits"
)


def _layer(call: Call, axis: int) -> tuple[Levels, Levels] | str:
    """Return the levels that a layer reads and its weights, which have one scale or one per index of `axis`."""
    source, weights = call.source(0), call.source(1)
    if source is None or not source.unsigned or not call.output.unsigned:
        return NOT_UNSIGNED
    if weights is None or weights.constant is None or weights.constant.dtype != np.int8 or weights.zero_point.any():
        return "PyTorch's kernels take constant weights of int8 with zero point 0"
    if weights.axis is not None and weights.axis % weights.constant.ndim != axis:
        return "PyTorch's kernels take weights with one scale or one per output channel"
    return source, weights


def _bias(call: Call, channels: int) -> npt.NDArray[np.float32] | str | None:
    """Return the constant bias of a layer, shape (channels,); None for none."""
    given = call.node.inputs[2] if len(call.node.inputs) > 2 else None
    if given is None:
        return call.bias
    bias = constant_reals(given)
    if bias is None:
        return "PyTorch's kernels take a constant bias"
    if bias.size not in (1, channels) or (bias.size > 1 and bias.shape[-1] != channels):
        return "PyTorch's kernels take one bias per output channel"
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (channels,)))


def convolution(call: Call) -> Kernel | str:
    """Conv: `quantized.conv1d`, `conv2d` or `conv3d`; padding that is not symmetric is put around the levels before."""
    found = _layer(call, 0)
    if isinstance(found, str):
        return found
    source, weights = found
    assert weights.constant is not None
    kernel, spatial = weights.constant.shape[2:], weights.constant.ndim - 2
    if spatial not in (1, 2, 3):
        return "PyTorch's convolutions have one to three spatial axes"
    bias = _bias(call, len(weights.constant))
    if isinstance(bias, str):
        return bias
    import torch

    attributes = call.node.attributes
    strides, dilations = (_ints(call, name, spatial) for name in ("strides", "dilations"))
    groups = attributes.get_int("group", 1)
    pads = _explicit_pads(call, spatial)
    inside = list(pads[:spatial]) if pads is not None and pads[:spatial] == pads[spatial:] else [0] * spatial
    packed = getattr(torch.ops.quantized, f"conv{spatial}d_prepack")(
        quantized(weights.constant, weights),
        _tensor(bias),
        strides,
        inside,
        dilations,
        groups,
    )
    operator = getattr(torch.ops.quantized, f"conv{spatial}d")
    operator = operator if spatial == 1 else operator.new
    scale, zero_point = call.target

    def run(tensor: Any) -> Any:
        around = pads if pads is not None else _same_pads(call, tensor.shape[2:], kernel)
        if around[:spatial] != around[spatial:] or list(around[:spatial]) != inside:
            tensor = _padded(tensor, around, spatial)
        return operator(tensor, packed, scale, zero_point)

    return Kernel(sources=(source,), run=run, note=_saturation(call, weights, groups))


def _saturation(call: Call, weights: Levels, groups: int) -> str:
    """Say that products saturate where FBGEMM's depthwise kernel adds two in 16 bits, "" where they do not."""
    assert weights.constant is not None
    depthwise = groups > 1 and weights.constant.shape[1] == 1 and weights.constant.ndim > 3
    if not depthwise or not _in_fbgemm(call, groups):
        return ""
    rows = np.abs(weights.constant.astype(np.int64)).reshape(len(weights.constant), -1)
    greatest_pair = np.sort(rows, axis=1)[:, -2:].sum(axis=1).max(initial=0)
    return _SATURATES if greatest_pair * greatest_level(call.node.inputs[0]) > np.iinfo(np.int16).max else ""


def transposed_convolution(call: Call) -> Kernel | str:
    """ConvTranspose: `quantized.conv_transpose1d`, `2d` or `3d`."""
    found = _layer(call, 1)
    if isinstance(found, str):
        return found
    source, weights = found
    assert weights.constant is not None
    attributes, spatial = call.node.attributes, weights.constant.ndim - 2
    groups = attributes.get_int("group", 1)
    more = list(attributes.get_ints("output_padding", ())) or [0] * spatial
    wrong = _wrong_transposed(call, weights, groups, more)
    if wrong:
        return wrong
    pads = _explicit_pads(call, spatial)
    if pads is None or pads[:spatial] != pads[spatial:] or "output_shape" in attributes:
        return "PyTorch's transposed convolutions take symmetric padding"
    bias = _bias(call, weights.constant.shape[1] * groups)
    if isinstance(bias, str):
        return bias
    import torch

    strides, dilations = (_ints(call, name, spatial) for name in ("strides", "dilations"))
    packed = getattr(torch.ops.quantized, f"conv_transpose{spatial}d_prepack")(
        quantized(weights.constant, weights),
        _tensor(bias),
        strides,
        list(pads[:spatial]),
        more,
        dilations,
        groups,
    )
    operator, (scale, zero_point) = getattr(torch.ops.quantized, f"conv_transpose{spatial}d"), call.target
    return Kernel(sources=(source,), run=lambda tensor: operator(tensor, packed, scale, zero_point))


def _wrong_transposed(call: Call, weights: Levels, groups: int, output_padding: Sequence[int]) -> str:
    """Say why a transposed convolution is not given to PyTorch; measured on 2.13."""
    assert weights.constant is not None
    shape = weights.constant.shape
    if len(shape) not in (3, 4, 5):
        return "PyTorch's convolutions have one to three spatial axes"
    if weights.axis is not None:
        return "PyTorch's transposed convolutions take weights with one scale"
    if call.engine == "qnnpack" and len(shape) == 5:
        return "PyTorch computes wrong numbers for three-dimensional transposed convolutions with QNNPACK"
    if call.engine == "onednn" and any(output_padding):
        return "oneDNN's transposed convolutions have no output padding"
    in_onednn = call.engine == "onednn" or (call.engine == "x86" and not any(output_padding))
    if in_onednn and shape[0] // groups != shape[1]:
        return (
            "PyTorch computes wrong numbers for transposed convolutions that change the number of channels with oneDNN"
        )
    return ""


def product(call: Call) -> Kernel | str:
    """MatMul with a constant matrix, or Gemm: `quantized.linear`."""
    attributes, gemm = call.node.attributes, call.node.op_type == "Gemm"
    rows = gemm and attributes.get_int("transB", 0) != 0
    found = _layer(call, 0 if rows else 1)
    if isinstance(found, str):
        return found
    source, weights = found
    assert weights.constant is not None
    if weights.constant.ndim != 2:
        return "PyTorch's matrix products take constant weights of two axes"
    plain = (attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    if gemm and (attributes.get_int("transA", 0) != 0 or not all(plain)):
        return "PyTorch's matrix products have no factor and take the first matrix as it is"
    matrix = weights.constant if rows else weights.constant.T
    bias = _bias(call, len(matrix))
    if isinstance(bias, str):
        return bias
    import torch

    laid = replace(weights, axis=None if weights.axis is None else 0)
    packed = torch.ops.quantized.linear_prepack(quantized(matrix, laid), _tensor(bias))
    scale, zero_point = call.target

    def run(tensor: Any) -> Any:
        rows = tensor.contiguous()
        if rows.dim() > 1:
            return torch.ops.quantized.linear(rows, packed, scale, zero_point)
        return torch.ops.quantized.linear(rows.reshape(1, -1), packed, scale, zero_point).reshape(-1)

    return Kernel(sources=(source,), run=run)


def _in_fbgemm(call: Call, groups: int = 0) -> bool:
    """Whether FBGEMM computes a layer: in the engine x86 a matrix product and a convolution of many groups."""
    many = call.node.op_type in ("MatMul", "Gemm") or groups > MOST_ONEDNN_GROUPS
    return call.engine == "fbgemm" or (call.engine == "x86" and many)


def _tensor(array: npt.NDArray[np.float32] | None) -> Any:
    import torch

    return None if array is None else torch.from_numpy(np.array(array, np.float32))


def _ints(call: Call, name: str, count: int) -> list[int]:
    return list(call.node.attributes.get_ints(name, ())) or [1] * count


def _explicit_pads(call: Call, spatial: int) -> tuple[int, ...] | None:
    """Padding at the beginning of each axis, then at the end of each; None where it depends on the input's size."""
    kind = call.node.attributes.get_string("auto_pad", "NOTSET")
    if kind.startswith("SAME"):
        return None
    none = (0,) * (2 * spatial)
    return none if kind == "VALID" else tuple(call.node.attributes.get_ints("pads", ())) or none


def _same_pads(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """Padding that leaves `ceil(size / stride)` outputs (ONNX Conv, auto_pad)."""
    strides, dilations = (_ints(call, name, len(sizes)) for name in ("strides", "dilations"))
    needed = [
        max((math.ceil(size / stride) - 1) * stride + (extent - 1) * dilation + 1 - size, 0)
        for size, extent, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    upper = call.node.attributes.get_string("auto_pad", "NOTSET") == "SAME_UPPER"
    first = [total // 2 if upper else total - total // 2 for total in needed]
    return (*first, *(total - begin for total, begin in zip(needed, first, strict=True)))


def _padded(tensor: Any, pads: Sequence[int], spatial: int) -> Any:
    """Put the level of zero around a quantized tensor."""
    import torch

    around = [side for axis in reversed(range(spatial)) for side in (pads[axis], pads[axis + spatial])]
    return relabelled(tensor, torch.nn.functional.pad(tensor.int_repr(), around, value=tensor.q_zero_point()))


LAYERS: dict[str, Build] = {
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "MatMul": product,
    "Gemm": product,
}
"""Operator of ONNX -> its kernel."""
