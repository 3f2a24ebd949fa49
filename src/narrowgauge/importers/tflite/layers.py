"""Layers with weights, and pools: TFLite's NHWC kernels as ONNX's NCHW operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.importers.tflite.emitter import CHANNELS_FIRST, Call, Order, Results, Written
from narrowgauge.importers.tflite.network import Quantization

_KERNEL_FIRST: Order = (3, 0, 1, 2)
"""Order of weights whose last axis comes first: [1, height, width, out] of a depthwise convolution, and
[out, height, width, in] of a transposed one, as ONNX wants them."""


def convolution(call: Call) -> Results:
    """CONV_2D: weights [out, height, width, in / groups]; groups follow from the input's channels."""
    _check_ranks(call)
    channels, per_group = call.extents()[3], call.tensor(1).shape[3]
    if not channels or per_group < 1 or channels % per_group:
        raise call.refusal(f"expected channels that weights over {per_group} channels divide, got {channels}")
    return _convolution(call, CHANNELS_FIRST, groups=channels // per_group)


def depthwise_convolution(call: Call) -> Results:
    """DEPTHWISE_CONV_2D: weights [1, height, width, in * multiplier]; one group for each channel of the input."""
    _check_ranks(call)
    channels, out = call.extents()[3], call.tensor(1).shape[3]
    if not channels or call.tensor(1).shape[0] != 1 or out % channels:
        raise call.refusal(f"expected weights of shape [1, .., .., n * {channels}], got {list(call.tensor(1).shape)}")
    return _convolution(call, _KERNEL_FIRST, groups=channels)


def _convolution(call: Call, order: Order, *, groups: int) -> Results:
    kernel = call.tensor(1).shape[1:3]
    strides = (call.positive("stride_h"), call.positive("stride_w"))
    dilations = (call.positive("dilation_h_factor"), call.positive("dilation_w_factor"))
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    value = call.node(
        "Conv", call.read(0, CHANNELS_FIRST), call.read(1, order), bias(call, 2),
        kernel_shape=kernel, strides=strides, dilations=dilations, group=groups, **_padding(call, reach, strides),
    )  # fmt: skip
    return Written(value=value, order=CHANNELS_FIRST)


def transposed_convolution(call: Call) -> Results:
    """TRANSPOSE_CONV: inputs are the output's shape, weights [out, height, width, in], the activation, a bias.

    SAME and VALID say how a convolution that led from the output to the input would pad the output.
    """
    if call.rank(1) != 4 or call.rank(2) != 4:
        raise call.refusal("expected weights and an input of rank 4")
    kernel = call.tensor(1).shape[1:3]
    strides = (call.positive("stride_h"), call.positive("stride_w"))
    made, wanted = call.extents(2)[1:3], call.result().extents[1:3]
    if call.is_constant(0):
        wanted = tuple(call.integers(0)[1:3])
    begins, ends, beyond = [], [], []
    for size, stride, extent, out in zip(kernel, strides, made, wanted, strict=True):
        if extent is not None and out is not None:
            excess = (extent - 1) * stride + size - out
        else:  # as long as the padding alone makes it
            excess = size - stride if call.option("padding") == "SAME" else min(size - stride, 0)
        begins.append(max(excess, 0) // 2)
        ends.append(max(excess, 0) - max(excess, 0) // 2)
        beyond.append(max(-excess, 0))
    if any(rest >= stride for rest, stride in zip(beyond, strides, strict=True)):
        raise call.refusal(f"an output of {wanted} cannot be made of an input of {made} with strides {strides}")
    value = call.node(
        "ConvTranspose", call.read(2, CHANNELS_FIRST), call.read(1, _KERNEL_FIRST), bias(call, 3, activation=2),
        kernel_shape=kernel, strides=strides, pads=(*begins, *ends), output_padding=beyond,
    )  # fmt: skip
    return Written(value=value, order=CHANNELS_FIRST)


def fully_connected(call: Call) -> Results:
    """FULLY_CONNECTED: weights [out, in]; the input's last axis, or all behind the batch, are multiplied with them."""
    if call.option("weights_format") != "DEFAULT":
        raise call.refusal(f"expected weights in rows, got the format {call.option('weights_format')}")
    if call.rank(1) != 2:
        raise call.refusal(f"expected weights of rank 2, got {list(call.tensor(1).shape)}")
    added = bias(call, 2)
    if call.option("keep_num_dims") and call.rank() != 2:
        value = call.node("MatMul", call.read(0), call.read(1, (1, 0)))
        return value if added is None else call.node("Add", value, added)
    width = call.tensor(1).shape[1]
    value = call.read()
    if call.rank() != 2 or call.extents()[1] != width:
        value = call.node("Reshape", value, call.constant([-1, width], "rows"))
    return call.node("Gemm", value, call.read(1), *([] if added is None else [added]), transB=1)


def bias(call: Call, number: int, *, activation: int = 0) -> ir.Value | None:
    """Return the bias of a layer whose weights are input 1; None where it has none.

    The kernels take an integer bias in units of the product of the input's and the weights' scales, whatever scale the
    file records for it (`PopulateConvolutionQuantizationParams` only checks that they agree). So does this.
    """
    if not call.given(number):
        return None
    tensor, scales = call.tensor(number), call.tensor(activation).encoding
    if tensor.dtype.kind == "f":
        return call.read(number)
    weights = call.tensor(1).encoding
    if scales is None or weights is None or scales.per_channel:
        raise call.refusal(f"expected a float bias beside float activations, got {tensor.type}")
    if weights.block:
        raise call.refusal("its sums have no one unit, as its weights have scales of blocks: expected a float bias")
    return integer_bias(call, number, (scales.scale * weights.scale).astype(np.float32))


def integer_bias(call: Call, number: int, scale: npt.NDArray[np.float32]) -> ir.Value:
    """Return a constant bias of integers as levels behind a DequantizeLinear.

    ONNX dequantizes no int64: levels of 64 bits that do not fit into 32 become real numbers.
    """
    levels, tensor = call.array(number).reshape(-1), call.tensor(number)
    if scale.size not in (1, levels.size):
        raise call.refusal(f"expected a bias of {scale.size} numbers, one for each scale, got {levels.size}")
    limits = np.iinfo(np.int32)
    if levels.size and (levels.min() < limits.min or levels.max() > limits.max):
        call.note(f"{tensor.name!r}: the bias has more than 32 bits and became real numbers")
        real = (levels * scale.astype(np.float64)).astype(np.float32)
        return call.emitter.constant(tensor.name, real, named=call.emitter.place(call.index(number)))
    quantization = Quantization(scale=scale, zero_point=np.zeros(scale.size, dtype=np.int64), axis=0)
    named = call.emitter.place(call.index(number))
    return call.emitter.dequantized(tensor.name, levels.astype(np.int32), quantization, 0, named=named)


def pool(call: Call, operator: str, **attributes: Any) -> Results:
    """AVERAGE_POOL_2D and MAX_POOL_2D: cells outside the input do not count."""
    if call.rank() != 4:
        raise call.refusal(f"expected an input of rank 4, got {call.rank()}")
    kernel = (call.positive("filter_height"), call.positive("filter_width"))
    strides = (call.positive("stride_h"), call.positive("stride_w"))
    value = call.node(
        operator, call.read(0, CHANNELS_FIRST),
        kernel_shape=kernel, strides=strides, **attributes, **_padding(call, list(kernel), strides),
    )  # fmt: skip
    return Written(value=value, order=CHANNELS_FIRST)


def average_pool(call: Call) -> Results:
    """AVERAGE_POOL_2D."""
    return pool(call, "AveragePool", count_include_pad=0)


def max_pool(call: Call) -> Results:
    """MAX_POOL_2D."""
    return pool(call, "MaxPool")


def _check_ranks(call: Call) -> None:
    if call.rank() != 4 or call.rank(1) != 4:
        raise call.refusal(f"expected an input and weights of rank 4, got {call.rank()} and {call.rank(1)}")


def _padding(call: Call, reach: list[int], strides: tuple[int, int]) -> dict[str, Any]:
    """Attributes for SAME (an output for every stride, the odd cell behind) and VALID (no padding).

    TensorFlow, "Neural network ops", notes on padding: https://www.tensorflow.org/api_docs/python/tf/nn.
    """
    if call.option("padding") == "VALID":
        return {"pads": (0, 0, 0, 0)}
    extents = call.extents()[1:3]
    if None in extents:
        return {"auto_pad": "SAME_UPPER"}
    begins, ends = [], []
    for extent, size, stride in zip(extents, reach, strides, strict=True):
        assert extent is not None
        total = max((-(-extent // stride) - 1) * stride + size - extent, 0)
        begins.append(total // 2)
        ends.append(total - total // 2)
    return {"pads": (*begins, *ends)}


def batch_matmul(call: Call) -> Results:
    """BATCH_MATMUL: both factors may be transposed in their last two axes."""
    factors = []
    for number, option in ((0, "adj_x"), (1, "adj_y")):
        rank = call.rank(number)
        order = (*range(rank - 2), rank - 1, rank - 2) if call.option(option) else ()
        if rank < 2:
            raise call.refusal(f"expected factors of rank 2 or more, got {rank}")
        factors.append(call.read(number, order))
    return call.node("MatMul", *factors)


def embedding_lookup(call: Call) -> Results:
    """EMBEDDING_LOOKUP: rows of input 1 at the places in input 0."""
    return call.node("Gather", call.read(1), call.read(0), axis=0)
