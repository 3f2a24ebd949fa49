"""Operators without weights in PyTorch's integer kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from narrowgauge.core.engines.torch_kernels import FIXED_OUTPUTS, QNNPACK_ADD_RATIOS
from narrowgauge.graph.constants import constant_integers
from narrowgauge.runtimes.pytorch.kernels import NOT_UNSIGNED, Build, Call, Kernel


def _pair(operator: str) -> Build:
    """Add and Mul, of one shape and layout first: else PyTorch takes elements one by one, which rounds otherwise."""

    def build(call: Call) -> Kernel | str:
        first, second = call.source(0), call.source(1)
        if first is None or second is None or not all(one.unsigned for one in (first, second, call.output)):
            return NOT_UNSIGNED
        least, greatest = QNNPACK_ADD_RATIOS
        ratios = [float(one.scale / call.output.scale) for one in (first, second)]
        if operator == "add" and call.engine == "qnnpack" and not all(least <= ratio < greatest for ratio in ratios):
            return "QNNPACK's Add takes inputs whose scale is 2^-14 to 2^8 of the output's"
        import torch

        kernel, (scale, zero_point) = getattr(torch.ops.quantized, operator), call.target

        def run(one: Any, other: Any) -> Any:
            return kernel(*_alike(one, other), scale, zero_point)

        return Kernel(sources=(first, second), run=run)

    return build


def _alike(first: Any, second: Any) -> tuple[Any, Any]:
    """Give two tensors one shape and one layout."""
    import torch

    shape = torch.broadcast_shapes(first.shape, second.shape)
    if first.shape == second.shape and first.dim() == 4:
        layout = torch.channels_last
        if first.is_contiguous(memory_format=layout) and second.is_contiguous(memory_format=layout):
            return first, second
    return first.expand(shape).contiguous(), second.expand(shape).contiguous()


def _function(make: Callable[[Call], Callable[[Any], Any] | str]) -> Build:
    """An operator on each level."""

    def build(call: Call) -> Kernel | str:
        source = call.source(0)
        if source is None or not source.unsigned or not call.output.unsigned:
            return NOT_UNSIGNED
        fixed = (1 / 256, 0) if call.node.op_type == "Sigmoid" and call.engine == "qnnpack" else None
        fixed = FIXED_OUTPUTS.get(call.node.op_type, fixed)
        if fixed is not None and call.target != fixed:
            return f"PyTorch gives its result scale {fixed[0]} and zero point {fixed[1]}"
        if call.node.op_type == "Gelu" and not source.like(call.output):
            return "PyTorch gives its result the scale and zero point of its input"
        run = make(call)
        return run if isinstance(run, str) else Kernel(sources=(source,), run=run)

    return build


def _sigmoid(call: Call) -> Callable[[Any], Any]:
    import torch

    return lambda tensor: torch.ops.quantized.sigmoid(tensor, *call.target)


def _tanh(call: Call) -> Callable[[Any], Any]:
    import torch

    found: Callable[[Any], Any] = torch.tanh
    return found


def _hard_sigmoid(call: Call) -> Callable[[Any], Any] | str:
    import torch

    attributes = call.node.attributes
    if not np.isclose(attributes.get_float("alpha", 0.2), 1 / 6, rtol=1e-6) or attributes.get_float("beta", 0.5) != 0.5:
        return "PyTorch's HardSigmoid has the slope 1/6 and the offset 0.5"
    found: Callable[[Any], Any] = torch.nn.functional.hardsigmoid
    return found


def _hard_swish(call: Call) -> Callable[[Any], Any]:
    import torch

    return lambda tensor: torch.ops.quantized.hardswish(tensor, *call.target)


def _leaky_relu(call: Call) -> Callable[[Any], Any]:
    import torch

    slope = call.node.attributes.get_float("alpha", 0.01)
    # Where channels lie next to each other, PyTorch takes elements one by one, which rounds otherwise.
    return lambda tensor: torch.ops.quantized.leaky_relu(tensor.contiguous(), slope, False, *call.target)


def _elu(call: Call) -> Callable[[Any], Any]:
    import torch

    alpha = call.node.attributes.get_float("alpha", 1.0)
    return lambda tensor: torch.ops.quantized.elu(tensor, *call.target, alpha)


def _gelu(call: Call) -> Callable[[Any], Any]:
    import torch

    kind = call.node.attributes.get_string("approximate", "none")
    return lambda tensor: torch.nn.functional.gelu(tensor, approximate=kind)


def concatenation(call: Call) -> Kernel | str:
    """Concat: `quantized.cat`, with channels apart, since it rounds otherwise where they lie next to each other."""
    sources = [call.source(number) for number in range(len(call.node.inputs))]
    held = tuple(one for one in sources if one is not None and one.unsigned)
    if len(held) < len(sources) or not call.output.unsigned:
        return NOT_UNSIGNED
    import torch

    axis, (scale, zero_point) = call.node.attributes.get_int("axis", 0), call.target

    def run(*tensors: Any) -> Any:
        return torch.ops.quantized.cat([one.contiguous() for one in tensors], axis, scale, zero_point)

    return Kernel(sources=held, run=run)


def mean(call: Call) -> Kernel | str:
    """GlobalAveragePool and ReduceMean: `adaptive_avg_pool2d` of the axes to reduce, which adds up integers."""
    source = call.source(0)
    if source is None or not source.unsigned:
        return NOT_UNSIGNED
    if not source.like(call.output):
        return "PyTorch gives its result the scale and zero point of its input"
    global_pool = call.node.op_type == "GlobalAveragePool"
    axes = None if global_pool else _axes(call)
    if isinstance(axes, str):
        return axes
    keeps = global_pool or call.node.attributes.get_int("keepdims", 1) != 0

    def run(tensor: Any) -> Any:
        import torch

        rank = tensor.dim()
        gone = sorted({axis % rank for axis in axes}) if axes is not None else list(range(2, rank))
        kept = [axis for axis in range(rank) if axis not in gone]
        shape = [tensor.shape[axis] for axis in kept]
        rows = (
            tensor.permute(*kept, *gone).contiguous().reshape(1, -1, 1, max(tensor.numel() // max(_count(shape), 1), 1))
        )
        pooled = torch.nn.functional.adaptive_avg_pool2d(rows, 1)
        return pooled.reshape([1 if axis in gone else tensor.shape[axis] for axis in range(rank)] if keeps else shape)

    return Kernel(sources=(source,), run=run)


def _count(shape: list[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _axes(call: Call) -> tuple[int, ...] | str:
    """Axes of a ReduceMean, which are an attribute or, later, an input."""
    given = call.node.inputs[1] if len(call.node.inputs) > 1 else None
    axes = call.node.attributes.get_ints("axes", ()) if given is None else constant_integers(given)
    return tuple(axes) if axes else "the axes of a mean have to be constant"


def average_pool(call: Call) -> Kernel | str:
    """AveragePool of one or two axes: `avg_pool2d`, with channels apart; see `torch_kernels` for the others."""
    source, attributes = call.source(0), call.node.attributes
    if source is None or not source.unsigned:
        return NOT_UNSIGNED
    if not source.like(call.output):
        return "PyTorch gives its result the scale and zero point of its input"
    window = list(attributes.get_ints("kernel_shape", ()))
    count = len(window)
    pads = list(attributes.get_ints("pads", ())) or [0] * (2 * count)
    strides = list(attributes.get_ints("strides", ())) or [1] * count
    whole = attributes.get_int("count_include_pad", 0) != 0
    if (
        count not in (1, 2) or pads[:count] != pads[count:] or attributes.get_int("ceil_mode", 0) != 0
        or any(step != 1 for step in attributes.get_ints("dilations", ()))
        or attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    ):  # fmt: skip
        return "PyTorch's integer pooling has one or two axes, symmetric padding and no holes, and rounds sizes down"
    if call.engine == "qnnpack" and ((any(pads) and not whole) or _count(window) == 1):
        return "QNNPACK's pooling counts the padding, and has no window of one"
    lead = [] if count == 2 else [1]
    sizes = (lead + window, lead + strides, ([] if count == 2 else [0]) + pads[:count])

    def run(tensor: Any) -> Any:
        import torch

        images = tensor.contiguous() if count == 2 else tensor.contiguous().unsqueeze(2)
        pooled = torch.nn.functional.avg_pool2d(images, *sizes, ceil_mode=False, count_include_pad=whole)
        return pooled if count == 2 else pooled.squeeze(2)

    return Kernel(sources=(source,), run=run)


def cut(call: Call) -> Kernel | str:
    """Relu and Clip between levels of one meaning: `clamp`, which the bounds of the rounding do."""
    source = call.source(0)
    if source is None or not source.unsigned or not source.like(call.output):
        return "PyTorch cuts levels of uint8 and keeps their scale and zero point"
    return Kernel(sources=(source,), run=lambda tensor: tensor)


OPERATORS: dict[str, Build] = {
    "Add": _pair("add"),
    "Mul": _pair("mul"),
    "Sigmoid": _function(_sigmoid),
    "Tanh": _function(_tanh),
    "HardSigmoid": _function(_hard_sigmoid),
    "HardSwish": _function(_hard_swish),
    "LeakyRelu": _function(_leaky_relu),
    "Elu": _function(_elu),
    "Gelu": _function(_gelu),
    "Concat": concatenation,
    "GlobalAveragePool": mean,
    "ReduceMean": mean,
    "AveragePool": average_pool,
    "Relu": cut,
    "Clip": cut,
}
"""Operator of ONNX -> its kernel."""
