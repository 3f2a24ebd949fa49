"""Modules that PyTorch's eager and FX quantization converted, as float modules that round where those hold integers.

All of torch.ao.nn.quantized and what `convert_fx` writes end in calls of `torch.ops.quantized`, with weights packed for
an engine, and of functions that PyTorch has for quantized tensors, too. A twin is a copy of the module whose packed
weights are unpacked; while it runs, these calls are taken over: they compute on the real numbers that the integers
stand for, and the result is rounded to the scale and zero point that the original has there.

The engines accumulate in integers and round once, as this does but for float32's rounding, so that integers may come
one step apart where a result lies beside a tie.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from narrowgauge.errors import ModelError
from narrowgauge.importers.pytorch.examples import Call
from narrowgauge.importers.pytorch.operators import register
from narrowgauge.importers.pytorch.packed import unpacked
from narrowgauge.importers.pytorch.quantized_operators import call_operator
from narrowgauge.importers.pytorch.roundings import Rounding, mark, round_to, rounding_of, tensors_in

_QUANTIZED_MODULES = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")
_NOT_QUANTIZED = ("FloatFunctional", "FXFloatFunctional")
"""Classes of these modules that compute in float."""

_PARAMETER = re.compile(r"(?!weight_)(.*_)?(scale|zero_point)(_\d+)?")
"""Buffers in which converted modules keep the scale and zero point of activations, which the code reads as numbers."""

_MOST_APART = 0.001
"""Share of results that may be more than a step apart: where one layer's tie is decided, others behind it follow."""

_UNCHANGED = frozenset(
    {
        "alpha_dropout", "clone", "contiguous", "detach", "dropout", "dropout1d", "dropout2d", "dropout3d",
        "feature_dropout", "identity",
    }
)  # fmt: skip
"""Functions that hand a tensor on as it is, in evaluation mode."""

_ROUNDED = frozenset(
    {
        "relu", "relu_", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
        "adaptive_max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
        "reshape", "view", "flatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "__getitem__",
        "chunk", "split", "split_with_sizes", "unbind", "narrow", "select", "expand", "expand_as", "repeat",
        "repeat_interleave", "tile", "pixel_shuffle", "pixel_unshuffle", "movedim", "swapaxes", "unflatten",
        "reshape_as", "view_as", "channel_shuffle", "flip", "roll", "index_select", "amax", "amin",
        "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
        "adaptive_avg_pool3d", "mean", "interpolate", "upsample", "upsample_nearest", "upsample_bilinear",
        "clamp", "clamp_", "clip", "hardtanh", "hardtanh_", "relu6", "leaky_relu", "leaky_relu_", "pad",
        "constant_pad_nd", "threshold", "nearest_interpolate",
    }
)  # fmt: skip
"""Functions whose result has the scale and zero point of what they read, among them those that only move integers."""

_CONCATENATIONS = frozenset({"cat", "concat", "concatenate", "stack"})
"""Functions whose result has the scale and zero point of the first tensor."""

_FIXED = {"sigmoid": (1 / 256, 0), "hardsigmoid": (1 / 256, 0), "tanh": (2 / 256, 128)}
"""Functions with a known range -> scale and zero point of quint8; the zero point of qint8 is 128 less
(aten/src/ATen/native/quantized/cpu/qsigmoid.cpp, qhardsigmoid.cpp, qtanh.cpp)."""

_QUESTIONS = frozenset(
    {
        "size", "dim", "numel", "ndimension", "__len__", "stride", "is_contiguous", "__get__",
        "is_floating_point", "get_device", "nelement", "has_torch_function", "q_scale", "q_zero_point",
        "type_as", "element_size", "data_ptr", "storage_offset",
    }
)  # fmt: skip
"""Functions that tell something of a tensor without its values."""


@dataclass(slots=True)
class Watch:
    """What running a twin shows.

    Attributes:
        step: scale of the last tensor that was dequantized, the step of what the network returns; 0 if there is none.
        dynamic: whether a layer takes the range of each tensor at run time.
    """

    step: float = 0.0
    dynamic: bool = False


def is_quantized_module(module: Any) -> bool:
    """Tell whether parts of a module hold integers."""
    import torch

    return any(
        isinstance(value, torch.ScriptObject) for part in module.modules() for value in vars(part).values()
    ) or any(
        type(part).__module__.startswith(_QUANTIZED_MODULES) and type(part).__name__ not in _NOT_QUANTIZED
        for part in module.modules()
    )


def float_twin(module: Any) -> Any:
    """Copy a quantized module to one that computes the same in float while calls are taken over.

    Raises:
        ModelError: Weights are packed in a way that is not known; tracing raises it for calls that are not.
    """
    import torch

    register()
    twin = _without_graph(copy.deepcopy(module))
    for path, part in twin.named_modules():
        if type(part).__module__.startswith(_QUANTIZED_MODULES):
            # Their own one unpacks what is no longer packed.
            part._save_to_state_dict = functools.partial(torch.nn.Module._save_to_state_dict, part)
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.ScriptObject):
                delattr(part, name)
                setattr(part, name, unpacked(value, f"{path}.{name}".strip(".")))
        for name, value in list(part._buffers.items()):
            if value is not None and value.numel() == 1 and _PARAMETER.fullmatch(name):
                del part._buffers[name]
                setattr(part, name, value.item())
    return twin


def note_difference(module: Any, twin: Any, call: Call) -> tuple[str, ...]:
    """Run both on the example and compare what they return.

    Returns:
        A warning if more than one element in a thousand is more than a step of the result's scale apart.
    """
    import torch

    watch = Watch()
    with torch.no_grad():
        expected = [tensor.dequantize() for tensor in tensors_in(module(*call.positional, **call.named))]
        with taking_over(watch):
            found = tensors_in(twin(*call.positional, **call.named))
    apart = torch.cat([(one - other).abs().flatten() for one, other in zip(expected, found, strict=True)])
    wrong = float((apart > 1.01 * watch.step).float().mean()) if watch.step and len(apart) else 0.0
    if wrong <= _MOST_APART:
        return ()
    return (
        f"WARNING: on the example, {wrong:.1%} of the results are more than one step of {watch.step:.3g} from those of "
        "the quantized module itself",
    )


def _without_graph(module: Any) -> Any:
    """Return a module that runs its code: torch.export would run the graph of an FX module, which has no modules."""
    import torch

    if not isinstance(module, torch.fx.GraphModule):
        return module
    plain = type(type(module).__name__, (torch.nn.Module,), {})()  # its name stands in messages
    plain.__dict__.update({name: value for name, value in vars(module).items() if name != "_graph"})
    plain.forward = types.MethodType(type(module).forward, plain)
    return plain


@contextlib.contextmanager
def taking_over(watch: Watch) -> Iterator[None]:
    """Have calls that concern quantized tensors computed on real numbers while a twin runs or is traced."""
    from torch.overrides import TorchFunctionMode

    class _Functions(TorchFunctionMode):  # type: ignore[misc]  # without PyTorch's types
        def __torch_function__(
            self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
        ) -> Any:
            return _call(function, arguments, named or {}, watch)

    with _Functions():
        yield


def _call(function: Any, arguments: tuple[Any, ...], named: dict[str, Any], watch: Watch) -> Any:
    """Do what a function of PyTorch does with quantized tensors."""
    operator = _operator_name(function)
    if operator is not None:
        watch.dynamic |= operator.endswith("_dynamic")
        return call_operator(operator, arguments, named)
    name = getattr(function, "__name__", str(function))
    if name == "quantize_per_tensor":
        return _quantize(*arguments, **named)
    if name == "quantize_per_channel":
        return _quantize_channels(*arguments, **named)
    roundings = [rounding_of(value) for value in tensors_in((arguments, named))]
    rounding = next((one for one in roundings if one is not None), None)
    if name == "dequantize":
        return _dequantize(arguments[0], rounding, watch)
    if rounding is None:
        return function(*arguments, **named)
    if name in _QUESTIONS:
        return _answer(function, rounding, arguments, named)
    if name in _UNCHANGED:
        return mark(function(*arguments, **named), rounding)
    kept = name in _ROUNDED or (name in _CONCATENATIONS and None not in roundings)
    if not kept and name not in _FIXED:
        raise ModelError(f"the function {name!r} on quantized tensors is not known; quantize the float network anew")
    return round_to(function(*arguments, **named), rounding if kept else _fixed(name, signed=rounding.signed))


def _answer(function: Any, rounding: Rounding, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Tell something of a tensor, as the quantized one would."""
    import torch

    tensor = torch.Tensor
    if function == tensor.is_quantized.__get__:
        return True
    if function == tensor.dtype.__get__:
        return torch.qint8 if rounding.signed else torch.quint8
    if function in (tensor.q_scale, tensor.q_zero_point):
        return rounding.scale if function == tensor.q_scale else rounding.zero_point
    return function(*arguments, **named)


def _fixed(name: str, *, signed: bool) -> Rounding:
    scale, zero_point = _FIXED[name]
    return Rounding(scale=scale, zero_point=zero_point - 128 if signed else zero_point, signed=signed)


def _operator_name(function: Any) -> str | None:
    """Name of an operator of `torch.ops.quantized`."""
    text = str(getattr(function, "_qualified_op_name", None) or getattr(function, "_name", None) or "")
    namespace, _, name = text.partition("::")
    return name.partition(".")[0] if namespace == "quantized" else None


def _quantize(input: Any, scale: Any, zero_point: Any, dtype: Any) -> Any:
    """torch.quantize_per_tensor, as the real numbers that its levels stand for."""
    import torch

    if isinstance(scale, torch.Tensor):
        known = torch.ops.quantized_decomposed
        parameters = (scale, zero_point, *_levels(dtype))
        return known.dequantize_per_tensor.tensor(known.quantize_per_tensor.tensor(input, *parameters), *parameters)
    signed = _levels(dtype)[0] < 0
    return round_to(input, Rounding(scale=float(scale), zero_point=int(zero_point), signed=signed))


def _quantize_channels(input: Any, scales: Any, zero_points: Any, axis: int, dtype: Any) -> Any:
    """torch.quantize_per_channel, of weights that a reference module quantizes whenever it runs."""
    import torch

    known = torch.ops.quantized_decomposed
    parameters = (scales, zero_points, axis, *_levels(dtype))
    return known.dequantize_per_channel(known.quantize_per_channel(input, *parameters), *parameters)


def _levels(dtype: Any) -> tuple[int, int, Any]:
    """The lowest and highest level, and the type without a scale, of a type of quantized tensors."""
    import torch

    if dtype not in (torch.quint8, torch.qint8):
        raise ModelError(f"expected tensors of quint8 or qint8, got {dtype}; quantize the float network anew")
    return (-128, 127, torch.int8) if dtype == torch.qint8 else (0, 255, torch.uint8)


def _dequantize(tensor: Any, rounding: Rounding | None, watch: Watch) -> Any:
    import torch

    if rounding is not None:
        watch.step = rounding.scale
    return torch.ops.aten.alias.default(tensor)  # another object, which has no rounding
