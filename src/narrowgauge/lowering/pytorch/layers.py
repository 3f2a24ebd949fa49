"""Operators with weights, pooling and normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from narrowgauge.lowering.pytorch.call import Call


def convolution(call: Call) -> Any:
    """Conv of one to three spatial axes; padding that differs between the sides is done before."""
    values, weights = call.tensor(0), call.tensor(1)
    spatial = weights.dim() - 2
    strides, dilations = _each(call, "strides", spatial), _each(call, "dilations", spatial)
    before, after = _padding(call, values, weights.shape[2:], strides, dilations)
    if before != after:
        values = call.torch.nn.functional.pad(values, _innermost_first(before, after))
        before = [0] * spatial
    function = getattr(call.torch.nn.functional, f"conv{_spatial(call, spatial)}d")
    return function(values, weights, call.optional(2), strides, before, dilations, call.integer("group", 1))


def transposed_convolution(call: Call) -> Any:
    """ConvTranspose: computed without padding, then cut to the extent that ONNX asks for."""
    values, weights = call.tensor(0), call.tensor(1)
    spatial = weights.dim() - 2
    strides, dilations = _each(call, "strides", spatial), _each(call, "dilations", spatial)
    longer = call.sizes("output_padding") or [0] * spatial
    full = [
        strides[axis] * (values.shape[2 + axis] - 1) + dilations[axis] * (weights.shape[2 + axis] - 1) + 1
        for axis in range(spatial)
    ]
    before, after = _transposed_padding(call, values, full, strides, longer)
    function = getattr(call.torch.nn.functional, f"conv_transpose{_spatial(call, spatial)}d")
    bias, group = call.optional(2), call.integer("group", 1)
    if before == after and all(isinstance(size, int) for size in before):
        return function(values, weights, bias, strides, before, longer, group, dilations)
    result = function(values, weights, bias, strides, 0, longer, group, dilations)
    for axis in range(spatial):
        length = full[axis] + longer[axis] - before[axis] - after[axis]
        result = result.narrow(2 + axis, before[axis], length)
    return result


def general_product(call: Call) -> Any:
    """Gemm: `alpha * A' * B' + beta * C`."""
    first, second = call.tensor(0), call.tensor(1)
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    addend = call.optional(2)
    if call.integer("transA", 0):
        first = first.t()
    plain_addend = addend is None or (beta == 1.0 and addend.dim() == 1)
    if call.integer("transB", 0) and alpha == 1.0 and plain_addend:
        return call.torch.nn.functional.linear(first, second, addend)
    product = first.matmul(second.t() if call.integer("transB", 0) else second)
    if alpha != 1.0:
        product = product * alpha
    if addend is None:
        return product
    return product + (addend if beta == 1.0 else addend * beta)


def product(call: Call) -> Any:
    """MatMul."""
    return call.torch.matmul(call.tensor(0), call.tensor(1))


def linear(call: Call) -> Any:
    """`x * W^T + b`, what `module.to_module` makes of a MatMul with constant weights."""
    return call.torch.nn.functional.linear(call.tensor(0), call.tensor(1), call.optional(2))


def max_pool(call: Call) -> Any:
    """MaxPool; what is padded never wins."""
    values, (kernel, strides, dilations) = call.tensor(0), _pool(call)
    if len(call.node.outputs) > 1 and call.node.outputs[1].name:
        raise call.refusal("a MaxPool without its second output, the indices")
    before, after = _padding(call, values, kernel, strides, dilations)
    if before != after:
        values = call.torch.nn.functional.pad(values, _innermost_first(before, after), value=float("-inf"))
        before = [0] * len(kernel)
    function = getattr(call.torch.nn.functional, f"max_pool{_spatial(call, len(kernel))}d")
    return function(values, kernel, strides, before, dilations, bool(call.integer("ceil_mode", 0)))


def average_pool(call: Call) -> Any:
    """AveragePool; padding counts where `count_include_pad` says so."""
    values, (kernel, strides, dilations) = call.tensor(0), _pool(call)
    before, after = _padding(call, values, kernel, strides, dilations)
    counts, ceiling = bool(call.integer("count_include_pad", 0)), bool(call.integer("ceil_mode", 0))
    if any(step != 1 for step in dilations):
        raise call.refusal("an AveragePool without dilations")
    function = getattr(call.torch.nn.functional, f"avg_pool{_spatial(call, len(kernel))}d")
    if before == after:
        return function(values, kernel, strides, before, ceiling, counts)
    if ceiling:
        raise call.refusal("equal padding on both sides of an AveragePool that rounds its extent up")
    padded = call.torch.nn.functional.pad(values, _innermost_first(before, after))
    means = function(padded, kernel, strides)
    if counts:
        return means
    ones = call.torch.nn.functional.pad(call.torch.ones_like(values[:1, :1]), _innermost_first(before, after))
    return means / function(ones, kernel, strides)


def global_average_pool(call: Call) -> Any:
    """Mean of all but the first two axes, which stay as axes of one."""
    values = call.tensor(0)
    return values.mean(list(range(2, values.dim())), keepdim=True)


def global_max_pool(call: Call) -> Any:
    """Greatest of all but the first two axes, which stay as axes of one."""
    values = call.tensor(0)
    return values.amax(list(range(2, values.dim())), keepdim=True)


def batch_normalization(call: Call) -> Any:
    """BatchNormalization with the statistics that it brings along."""
    if call.integer("training_mode", 0):
        raise call.refusal("a BatchNormalization that is not in training mode")
    scale, bias, mean, variance = (call.tensor(number) for number in range(1, 5))
    epsilon = call.number("epsilon", 1e-5)
    return call.torch.nn.functional.batch_norm(call.tensor(0), mean, variance, scale, bias, False, 0.0, epsilon)


def layer_normalization(call: Call) -> Any:
    """LayerNormalization over the last axes; its first output only."""
    if any(output.name and output.uses() for output in call.node.outputs[1:]):
        raise call.refusal("a LayerNormalization of which only the first output is read")
    values, scale, bias = call.tensor(0), call.tensor(1), call.optional(2)
    axis = call.integer("axis", -1) % values.dim()
    shape, epsilon = list(values.shape[axis:]), call.number("epsilon", 1e-5)
    if list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        return call.torch.nn.functional.layer_norm(values, shape, scale, bias, epsilon)
    scaled = call.torch.nn.functional.layer_norm(values, shape, None, None, epsilon) * scale
    return scaled if bias is None else scaled + bias


def rms_normalization(call: Call) -> Any:
    """RMSNormalization over the last axes."""
    values = call.tensor(0)
    axes = list(range(call.integer("axis", -1) % values.dim(), values.dim()))
    mean = (values * values).mean(axes, keepdim=True)
    return values * call.torch.rsqrt(mean + call.number("epsilon", 1e-5)) * call.tensor(1)


def instance_normalization(call: Call) -> Any:
    """InstanceNormalization of each sample and channel."""
    return call.torch.nn.functional.instance_norm(
        call.tensor(0), weight=call.tensor(1), bias=call.tensor(2), eps=call.number("epsilon", 1e-5)
    )


def group_normalization(call: Call) -> Any:
    """GroupNormalization with a scale and bias per channel (opset 21)."""
    groups = call.integer("num_groups", 1)
    return call.torch.nn.functional.group_norm(
        call.tensor(0), groups, call.tensor(1), call.tensor(2), call.number("epsilon", 1e-5)
    )


def norm_one(call: Call) -> Any:
    """LpNormalization; what is all zero stays zero."""
    values, order = call.tensor(0), call.integer("p", 2)
    norm = call.torch.linalg.vector_norm(values, order, call.integer("axis", -1), keepdim=True)
    return values / call.torch.where(norm == 0, call.torch.ones_like(norm), norm)


def _spatial(call: Call, axes: int) -> int:
    if not 1 <= axes <= 3:
        raise call.refusal(f"one to three spatial axes, it has {axes}")
    return axes


def _each(call: Call, name: str, axes: int) -> list[int]:
    return call.sizes(name) or [1] * axes


def _pool(call: Call) -> tuple[list[int], list[int], list[int]]:
    kernel = call.sizes("kernel_shape") or []
    return kernel, _each(call, "strides", len(kernel)), _each(call, "dilations", len(kernel))


def _padding(
    call: Call, values: Any, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[Any], list[Any]]:
    """Rows to add before and after each spatial axis (ONNX operator Conv, attributes auto_pad and pads)."""
    count, how = len(kernel), call.text("auto_pad", "NOTSET")
    if how in ("NOTSET", "VALID"):
        held = call.sizes("pads") if how == "NOTSET" else None
        pads = held or [0] * (2 * count)
        return pads[:count], pads[count:]
    before, after = [], []
    for axis in range(count):
        extent, reach = values.shape[2 + axis], dilations[axis] * (kernel[axis] - 1) + 1
        total = (-(-extent // strides[axis]) - 1) * strides[axis] + reach - extent
        total = max(total, 0) if isinstance(total, int) else call.torch.sym_max(total, 0)
        less = total // 2
        before.append(total - less if how == "SAME_LOWER" else less)
        after.append(less if how == "SAME_LOWER" else total - less)
    return before, after


def _transposed_padding(
    call: Call, values: Any, full: Sequence[Any], strides: Sequence[int], longer: Sequence[int]
) -> tuple[list[Any], list[Any]]:
    """Rows to cut off before and after each spatial axis (ONNX operator ConvTranspose)."""
    count, how, wanted = len(full), call.text("auto_pad", "NOTSET"), call.sizes("output_shape")
    if wanted is None and how in ("NOTSET", "VALID"):
        pads = (call.sizes("pads") if how == "NOTSET" else None) or [0] * (2 * count)
        return pads[:count], pads[count:]
    before, after = [], []
    for axis in range(count):
        extent = wanted[axis] if wanted is not None else values.shape[2 + axis] * strides[axis]
        total = full[axis] + longer[axis] - extent
        if isinstance(total, int) and total < 0:
            raise call.refusal(f"an extent of at most {full[axis] + longer[axis]}, it asks for {extent}")
        less = total // 2
        before.append(less if how == "SAME_UPPER" else total - less)
        after.append(total - less if how == "SAME_UPPER" else less)
    return before, after


def _innermost_first(before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
    """Order of torch.nn.functional.pad: the last axis first, before and after beside each other."""
    return [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
