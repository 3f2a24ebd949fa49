"""Rules for layers: convolutions, products, normalizations, pooling, activations.

Their definitions are those of MXNet 1.9.1, src/operator/nn/*.cc and src/operator/*.cc (`describe`); defaults that
differ from ONNX's are written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.importers.mxnet.builder import sizes_of
from narrowgauge.importers.mxnet.call import Call, Item, Rule, integers


def convolution(call: Call) -> list[Item]:
    """Convolution, also depthwise and in groups; NHWC through transposes."""
    return [channels_first(call, lambda data: _convolution(call, data))]


def _convolution(call: Call, data: ir.Value) -> ir.Value:
    kernel = call.attributes.sizes("kernel")
    weight = call.value(1)
    if _is_channels_last(call):  # [out, kernel.., in] to [out, in, kernel..]
        weight = call.add("Transpose", [weight], perm=[0, len(kernel) + 1, *range(1, len(kernel) + 1)])
    bias = [] if call.attributes.boolean("no_bias", default=False) else [call.value(2)]
    return call.add("Conv", [data, weight, *bias], **window(call, kernel))


def window(call: Call, kernel: tuple[int, ...]) -> dict[str, object]:
    """Return a convolution's attributes in ONNX's words."""
    rank = len(kernel)
    pad = call.attributes.sizes("pad", (0,) * rank)
    return {
        "kernel_shape": kernel,
        "strides": call.attributes.sizes("stride", (1,) * rank),
        "dilations": call.attributes.sizes("dilate", (1,) * rank),
        "pads": (*pad, *pad),
        "group": call.attributes.integer("num_group", 1),
    }


def _is_channels_last(call: Call) -> bool:
    return call.attributes.text("layout", "NCHW").endswith("C")


def channels_first(call: Call, layer: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """Compute a layer on the first input, between transposes where its layout has the channels last."""
    data = call.value()
    if not _is_channels_last(call):
        return layer(data)
    spatial = len(call.attributes.text("layout", "")) - 2
    first = call.add("Transpose", [data], perm=[0, spatial + 1, *range(1, spatial + 1)])
    return call.add("Transpose", [layer(first)], perm=[0, *range(2, spatial + 2), 1])


def deconvolution(call: Call) -> list[Item]:
    """Deconvolution; its `no_bias` is true unless said otherwise."""
    kernel = call.attributes.sizes("kernel")
    rank = len(kernel)
    if _is_channels_last(call):
        raise call.refusal("a deconvolution with the channels last is not supported; export it with layout NCHW")
    attributes = window(call, kernel)
    adjust = call.attributes.sizes("adj", (0,) * rank)
    target = call.attributes.sizes("target_shape", ())
    if any(target):
        pad, adjust = _pads_for(call, kernel, target)
        attributes["pads"] = (*pad, *pad)
    bias = [] if call.attributes.boolean("no_bias", default=True) else [call.value(2)]
    inputs = [call.value(), call.value(1), *bias]
    return [call.add("ConvTranspose", inputs, output_padding=adjust, **attributes)]


def _pads_for(call: Call, kernel: tuple[int, ...], target: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose pads and adjustment as MXNet does for a wanted size (deconvolution-inl.h: InferPad)."""
    rank = len(kernel)
    stride = call.attributes.sizes("stride", (1,) * rank)
    dilate = call.attributes.sizes("dilate", (1,) * rank)
    spatial = call.sizes()[2:]
    pads, adjusted = [], []
    for axis, (size, wanted) in enumerate(zip(spatial, target, strict=True)):
        if size is None:
            raise call.refusal("`target_shape` needs a known input size; give example inputs")
        excess = stride[axis] * (size - 1) + dilate[axis] * (kernel[axis] - 1) + 1 - wanted
        if excess < 0:
            raise call.refusal(f"`target_shape` {target} is more than the layer makes of {spatial}")
        adjusted.append(excess % 2)
        pads.append((excess + 1) // 2)
    return tuple(pads), tuple(adjusted)


def fully_connected(call: Call) -> list[Item]:
    """FullyConnected: rows of the flattened input, or its last axis, times the transposed weights."""
    data, weight = call.value(), call.value(1)
    bias = None if call.attributes.boolean("no_bias", default=False) else call.value(2)
    return [product(call, data, weight, bias)]


def product(call: Call, data: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """Multiply by transposed weights [out, in] and add a bias."""
    sizes = sizes_of(data)
    flatten = call.attributes.boolean("flatten", default=True)
    if flatten and (sizes is None or len(sizes) != 2):
        data = call.add("Flatten", [data], axis=1)
    elif sizes is None or len(sizes) != 2:
        result = call.add("MatMul", [data, call.add("Transpose", [weight], perm=[1, 0])])
        return result if bias is None else call.add("Add", [result, bias])
    return call.add("Gemm", [data, weight, *([] if bias is None else [bias])], transB=1)


def batch_norm(call: Call) -> list[Item]:
    """BatchNorm: gamma counts as 1 unless `fix_gamma` is false; the running statistics are used."""
    data, gamma, beta, mean, variance = call.values()[:5]
    if call.attributes.boolean("fix_gamma", default=True):
        shape = [size or 0 for size in sizes_of(beta) or ()]
        gamma = call.builder.constant(f"{call.node.name}_fixed_gamma", np.ones(shape, dtype=_kind(beta)))
    epsilon = call.attributes.number("eps", 1e-3)
    axis = call.attributes.integer("axis", 1)
    if axis != 1:
        rank = call.rank()
        axis %= rank
    if axis == 1:
        return [call.add("BatchNormalization", [data, gamma, beta, mean, variance], epsilon=epsilon)]
    order = list(range(rank))
    order[1], order[axis] = order[axis], order[1]
    swapped = call.add("Transpose", [data], perm=order)
    normal = call.add("BatchNormalization", [swapped, gamma, beta, mean, variance], epsilon=epsilon)
    return [call.add("Transpose", [normal], perm=order)]


def _kind(value: ir.Value) -> np.dtype[Any]:
    return np.dtype(np.float32 if value.dtype is None else value.dtype.numpy())


_ACTIVATIONS = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softrelu": "Softplus", "softsign": "Softsign",
    "mish": "Mish",
}  # fmt: skip


def activation(call: Call) -> list[Item]:
    """Activation."""
    kind = call.attributes.text("act_type", "")
    if kind == "log_sigmoid":
        return [call.add("Log", [call.add("Sigmoid", [call.value()])])]
    if kind not in _ACTIVATIONS:
        raise call.attributes.wrong("act_type", f"one of {', '.join(_ACTIVATIONS)}")
    return [call.add(_ACTIVATIONS[kind], [call.value()])]


def leaky_relu(call: Call) -> list[Item]:
    """LeakyReLU: all its kinds; "rrelu" takes the mean of its slopes, as it does outside training."""
    data, kind = call.value(), call.attributes.text("act_type", "leaky")
    slope = call.attributes.number("slope", 0.25)
    if kind == "leaky":
        return [call.add("LeakyRelu", [data], alpha=slope)]
    if kind == "rrelu":
        low, high = call.attributes.number("lower_bound", 0.125), call.attributes.number("upper_bound", 0.334)
        return [call.add("LeakyRelu", [data], alpha=(low + high) / 2)]
    if kind == "elu":
        return [call.add("Elu", [data], alpha=slope)]
    if kind == "selu":
        return [call.add("Selu", [data])]
    if kind == "gelu":
        return [call.add("Gelu", [data])]
    if kind == "prelu":
        return [call.add("PRelu", [data, _along_channels(call, call.value(1))])]
    raise call.attributes.wrong("act_type", "one of leaky, rrelu, elu, selu, gelu, prelu")


def _along_channels(call: Call, slopes: ir.Value) -> ir.Value:
    """Give slopes, one for each channel, a shape that broadcasts over [N, C, ...]."""
    trailing = max(call.rank() - 2, 0)
    numbers = slopes.const_value
    if trailing == 0:
        return slopes
    if numbers is None:
        return call.add("Unsqueeze", [slopes, integers(range(1, trailing + 1))])
    array = numbers.numpy()
    return call.builder.constant(f"{slopes.name}_by_channel", array.reshape(-1, *(1,) * trailing))


def pooling(call: Call) -> list[Item]:
    """Pooling of kinds max, avg, sum and lp."""
    return [channels_first(call, lambda data: pool(call, data))]


def pool(call: Call, data: ir.Value) -> ir.Value:
    """Pool a value [N, C, ...]."""
    attributes = call.attributes
    kind = attributes.text("pool_type", "max")
    if kind not in ("max", "avg", "sum", "lp"):
        raise attributes.wrong("pool_type", "one of max, avg, sum, lp")
    if attributes.boolean("global_pool", default=False):
        return _global_pool(call, data, kind)
    kernel = attributes.sizes("kernel")
    rank = len(kernel)
    pad = attributes.sizes("pad", (0,) * rank)
    stride = attributes.sizes("stride", (1,) * rank)
    convention = attributes.text("pooling_convention", "valid")
    if convention not in ("valid", "full"):
        raise call.refusal(
            f"the pooling convention {convention!r} is not supported; expected valid or full: pad explicitly"
        )
    with_pads = attributes.boolean("count_include_pad", default=True)
    common = {
        "kernel_shape": kernel,
        "strides": stride,
        "pads": (*pad, *pad),
        "ceil_mode": int(convention == "full"),
    }
    if kind == "max":
        return call.add("MaxPool", [data], **common)
    if kind == "lp":
        return call.add("LpPool", [data], p=attributes.integer("p_value"), **common)
    if kind == "sum":
        # The sum is the mean times the window's size only where no window is cut at the border.
        if convention == "full":
            raise call.refusal("pooling of kind sum is supported with the pooling convention valid only")
        mean = call.add("AveragePool", [data], count_include_pad=1, **common)
        return call.add("Mul", [mean, call.scalar(math.prod(kernel), data)])
    return call.add("AveragePool", [data], count_include_pad=int(with_pads), **common)


def _global_pool(call: Call, data: ir.Value, kind: str) -> ir.Value:
    if kind == "max":
        return call.add("GlobalMaxPool", [data])
    if kind == "avg":
        return call.add("GlobalAveragePool", [data])
    if kind == "lp":
        return call.add("GlobalLpPool", [data], p=call.attributes.integer("p_value"))
    rank = len(sizes_of(data) or ()) or call.rank()
    return call.add("ReduceSum", [data, integers(range(2, rank))], keepdims=1)


def local_response(call: Call) -> list[Item]:
    """LRN: the same equation as ONNX's."""
    attributes = call.attributes
    return [
        call.add(
            "LRN", [call.value()], alpha=attributes.number("alpha", 1e-4), beta=attributes.number("beta", 0.75),
            bias=attributes.number("knorm", 2.0), size=attributes.integer("nsize"),
        )
    ]  # fmt: skip


def instance_norm(call: Call) -> list[Item]:
    """InstanceNorm."""
    return [call.add("InstanceNormalization", call.values()[:3], epsilon=call.attributes.number("eps", 1e-3))]


def layer_norm(call: Call) -> list[Item]:
    """LayerNorm along one axis, any."""
    data, gamma, beta = call.values()[:3]
    axis, epsilon = call.attributes.integer("axis", -1), call.attributes.number("eps", 1e-5)
    rank = len(sizes_of(data) or ())
    if axis == -1 or axis == rank - 1:
        return [call.add("LayerNormalization", [data, gamma, beta], axis=-1, epsilon=epsilon)]
    rank = call.rank()
    order = [index for index in range(rank) if index != axis % rank] + [axis % rank]
    last = call.add("Transpose", [data], perm=order)
    normal = call.add("LayerNormalization", [last, gamma, beta], axis=-1, epsilon=epsilon)
    return [call.add("Transpose", [normal], perm=[int(place) for place in np.argsort(order)])]


def group_norm(call: Call) -> list[Item]:
    """GroupNorm; before MXNet 1.7 gamma and beta had one number for each group, later one for each channel."""
    data, gamma, beta = call.values()[:3]
    groups, channels = call.attributes.integer("num_groups", 1), call.sizes()[1]
    gamma, beta = (_for_channels(call, one, groups, channels) for one in (gamma, beta))
    epsilon = call.attributes.number("eps", 1e-5)
    return [call.add("GroupNormalization", [data, gamma, beta], num_groups=groups, epsilon=epsilon)]


def _for_channels(call: Call, value: ir.Value, groups: int, channels: int | None) -> ir.Value:
    numbers = value.const_value
    if numbers is None or numbers.size != groups or channels in (None, groups):
        return value
    assert channels is not None
    return call.builder.constant(f"{value.name}_by_channel", np.repeat(numbers.numpy(), channels // groups))


def l2_normalization(call: Call) -> list[Item]:
    """L2Normalization: x / sqrt(sum(x^2) + eps) over a sample, over the channels, or over the positions."""
    data, mode = call.value(), call.attributes.text("mode", "instance")
    if mode not in ("instance", "channel", "spatial"):
        raise call.attributes.wrong("mode", "one of instance, channel, spatial")
    axes = [1] if mode == "channel" else range({"instance": 1, "spatial": 2}[mode], call.rank())
    squares = call.add("ReduceSumSquare", [data, integers(list(axes))], keepdims=1)
    shifted = call.add("Add", [squares, call.scalar(call.attributes.number("eps", 1e-10), data)])
    return [call.add("Div", [data, call.add("Sqrt", [shifted])])]


def dropout(call: Call) -> list[Item]:
    """Dropout and the like: nothing outside training."""
    return [call.items[0]]


def softmax_output(call: Call) -> list[Item]:
    """SoftmaxOutput: a softmax over the channels, over the last axis, or over a whole sample; the label is dropped.

    Differs from MXNet 1.9.1's oneDNN kernel, which takes the last axis instead of a whole sample of four axes, against
    MXNet's documentation and its own kernel.
    """
    data = call.value()
    if call.attributes.boolean("multi_output", default=False):
        return [call.add("Softmax", [data], axis=1)]
    if call.attributes.boolean("preserve_shape", default=False):
        return [call.add("Softmax", [data], axis=-1)]
    sizes = sizes_of(data)
    if sizes is not None and len(sizes) <= 2:
        return [call.add("Softmax", [data], axis=-1)]
    rows = call.add("Softmax", [call.add("Flatten", [data], axis=1)], axis=1)
    return [call.add("Reshape", [rows, call.add("Shape", [data])])]


def softmax_activation(call: Call) -> list[Item]:
    """SoftmaxActivation over the last axis, as MXNet 1.9.1 computes the mode "instance", or over the channels."""
    mode = call.attributes.text("mode", "instance")
    return [call.add("Softmax", [call.value()], axis=1 if mode == "channel" else -1)]


def softmax(operator: str, *, negated: bool = False) -> Rule:
    """Make the rule of softmax, log_softmax or softmin."""

    def rule(call: Call) -> list[Item]:
        if call.attributes.boolean("use_length", default=False):
            raise call.refusal("a softmax with lengths (`use_length`) is not supported")
        data = call.value()
        temperature = call.attributes.number("temperature", 1.0)
        if negated:
            data = call.add("Neg", [data])
        if temperature != 1:
            data = call.add("Div", [data, call.scalar(temperature, data)])
        return [call.add(operator, [data], axis=call.attributes.integer("axis", -1))]

    return rule


def logistic_output(call: Call) -> list[Item]:
    """LogisticRegressionOutput: a sigmoid; the label is dropped."""
    return [call.add("Sigmoid", [call.value()])]


def up_sampling(call: Call) -> list[Item]:
    """UpSampling of one input: by repetition, or by the network's own weights of kind bilinear."""
    scale, kind = call.attributes.integer("scale"), call.attributes.text("sample_type", "")
    data = call.value()
    if kind == "bilinear":
        kernel = 2 * scale - scale % 2
        pad = math.ceil((scale - 1) / 2)
        channels = call.attributes.integer("num_filter", 0) or call.sizes()[1]
        return [
            call.add(
                "ConvTranspose", [data, call.value(1)], kernel_shape=(kernel, kernel), strides=(scale, scale),
                pads=(pad,) * 4, group=channels,
            )
        ]  # fmt: skip
    if kind != "nearest" or len(call.items) > 1:
        raise call.refusal("expected upsampling of one input, nearest or bilinear")
    factors = np.array([1, 1, scale, scale], dtype=np.float32)
    return [
        call.add(
            "Resize", [data, None, factors], mode="nearest", coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    ]  # fmt: skip


def bilinear_resize(call: Call) -> list[Item]:
    """BilinearResize2D to a size or by factors; corners are aligned unless said otherwise."""
    attributes = call.attributes
    if attributes.text("mode", "size") != "size":
        raise call.refusal(f"the mode {attributes.text('mode', '')!r} is not supported; expected size")
    aligned = attributes.boolean("align_corners", default=True)
    common = {
        "mode": "linear",
        "coordinate_transformation_mode": "align_corners" if aligned else "half_pixel",
    }
    height, width = attributes.integer("height", 1), attributes.integer("width", 1)
    by_height, by_width = (attributes.has(name) for name in ("scale_height", "scale_width"))
    if by_height and by_width:
        # MXNet 1.9.1, bilinear_resize-inl.h: the factor times the size, cut to an integer.
        factors = [attributes.number("scale_height"), attributes.number("scale_width")]
        old = call.sizes()[2:]
        if None in old:
            return [call.add("Resize", [call.value(), None, np.array([1, 1, *factors], dtype=np.float32)], **common)]
        height, width = (int(np.float32(factor) * (size or 0)) for factor, size in zip(factors, old, strict=True))
    leading = call.add("Slice", [call.add("Shape", [call.value()]), integers([0]), integers([2])])
    wanted = call.add("Concat", [leading, integers([height, width])], axis=0)
    return [call.add("Resize", [call.value(), None, None, wanted], **common)]


def adaptive_average_pool(call: Call) -> list[Item]:
    """AdaptiveAvgPooling2D to one position."""
    wanted = call.attributes.sizes("output_size", ())
    if wanted not in ((), (1,), (1, 1)):
        raise call.refusal(f"expected adaptive pooling to one position, got {wanted}")
    return [call.add("GlobalAveragePool", [call.value()])]


RULES: Mapping[str, Rule] = {
    "Convolution": convolution,
    "Convolution_v1": convolution,
    "Deconvolution": deconvolution,
    "FullyConnected": fully_connected,
    "BatchNorm": batch_norm,
    "BatchNorm_v1": batch_norm,
    "CuDNNBatchNorm": batch_norm,
    "Activation": activation,
    "LeakyReLU": leaky_relu,
    "Pooling": pooling,
    "Pooling_v1": pooling,
    "LRN": local_response,
    "InstanceNorm": instance_norm,
    "LayerNorm": layer_norm,
    "GroupNorm": group_norm,
    "L2Normalization": l2_normalization,
    "Dropout": dropout,
    "SoftmaxOutput": softmax_output,
    "Softmax": softmax_output,
    "SoftmaxActivation": softmax_activation,
    "softmax": softmax("Softmax"),
    "log_softmax": softmax("LogSoftmax"),
    "softmin": softmax("Softmax", negated=True),
    "LinearRegressionOutput": dropout,
    "MAERegressionOutput": dropout,
    "LogisticRegressionOutput": logistic_output,
    "SVMOutput": dropout,
    "UpSampling": up_sampling,
    "_contrib_BilinearResize2D": bilinear_resize,
    "_contrib_AdaptiveAvgPooling2D": adaptive_average_pool,
}

LABELLED: Mapping[str, int] = {
    "SoftmaxOutput": 1, "Softmax": 1, "LinearRegressionOutput": 1, "MAERegressionOutput": 1,
    "LogisticRegressionOutput": 1, "SVMOutput": 1,
}  # fmt: skip
"""Losses: how many of their inputs matter outside training."""
