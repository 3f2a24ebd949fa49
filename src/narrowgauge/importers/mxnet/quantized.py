"""Rules for the operators that `mxnet.contrib.quantization` writes: integers become pairs of Q and DQ.

MXNet's integers are symmetric: real zero is level 0, and the scale follows from the threshold max(|min|, |max|). The
thresholds of values computed on the way are written in the file by calibration; without it they are computed anew for
every input, which is refused here. Source: MXNet 1.9.1, src/operator/quantization/quantization_utils.h.

How many steps there are between zero and the threshold differs in MXNet 1.9.1 with oneDNN, its usual build: 127.5 of
int8 and 255.5 of uint8 (kInt8Range, kUint8Range) where a value is quantized, joined or written by a fused layer; 127
and 255 (FloatForOneQuantizedLevel, MKLDNNRequantizeForward) where a sum of 32 bits is requantized or unfused weights
are read. Here each value keeps the number of the operator that writes it, also where MXNet reads it with the other: a
difference of half a step at most. Older files, of MXNet before 1.6, and kernels without oneDNN have 127 and 255.

Rounding: oneDNN rounds halves to even and saturates at -128, like ONNX; kernels without it round halves away from zero
and saturate at -127, and `_contrib_quantized_elemwise_mul` cuts, so that those differ by one step at most. Where the
kernels of MXNet 1.9.1 do not compute what the thresholds say, this does, and remarks it (`_CUT` and below it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.importers.mxnet import elementwise, layers, reshaping
from narrowgauge.importers.mxnet.attributes import Attributes
from narrowgauge.importers.mxnet.builder import sizes_of
from narrowgauge.importers.mxnet.call import Bound, Call, Item, Levels, Rule
from narrowgauge.importers.mxnet.symbol import VARIABLE, Node

Array = npt.NDArray[Any]

_STEPS = {True: 127.0, False: 255.0}
_ONEDNN_STEPS = {True: 127.5, False: 255.5}
"""Steps between zero and the threshold, of signed and unsigned levels."""

_ONEDNN_VERSION = 10600
"""Of MXNet, the first with them: 1.5.1 still has 127."""

_ACCUMULATOR = 2**31 - 1

_CUT = (
    "MXNet 1.9.1 with oneDNN writes a sum in the summand's type, and so cuts off what is negative or above half of the "
    "range where only one of sum and summand is signed; here the whole range is used"
)
_FIRST_SCALES = (
    "MXNet 1.9.1 with oneDNN takes one weight scale for each group of a grouped convolution, the first ones of all "
    "channels; here each channel has its own"
)
"""src/operator/subgraph/mkldnn/mkldnn_common.h, ConvertWeightBias2MKLDNN: the mask of the scales counts groups."""

_OTHER_THRESHOLDS = (
    "MXNet 1.9.1 with oneDNN gives an unfused convolution of uint8 results that are 255 / 127 times as large as its "
    "thresholds say; here they are as the thresholds say"
)
"""src/operator/quantization/mkldnn/mkldnn_quantized_conv.cc: QuantizationRangeForS8S8MultiplicationStruct."""

_INNER: Mapping[str, Rule] = {**layers.RULES, **elementwise.RULES, **reshaping.RULES}
"""What the operators that oneDNN fuses consist of."""

_NOT_NEGATIVE = ("relu", "sigmoid", "softrelu")
"""Activations behind which a fused layer writes uint8 (src/operator/subgraph/mkldnn/mkldnn_conv.cc: IsOutputUint8)."""


# --- levels ---


def _levels(call: Call, number: int) -> Levels:
    item = call.items[number] if number < len(call.items) else None
    if not isinstance(item, Levels):
        raise call.refusal(f"expected quantized numbers in input {number}; the file is damaged")
    return item


def _bound(call: Call, number: int) -> float:
    """Return a threshold that is an input."""
    item = call.items[number] if number < len(call.items) else None
    if isinstance(item, Bound):
        return item.number
    array = call.constant(number) if isinstance(item, ir.Value) else None
    if array is None or array.size != 1:
        raise _uncalibrated(call)
    return float(array.reshape(()))


def _uncalibrated(call: Call) -> Exception:
    return call.refusal(
        "its thresholds are computed anew for every input; expected a calibrated network: quantize it with "
        "calib_mode 'naive' or 'entropy', or import the float network and calibrate it here"
    )


def _calibrated(call: Call) -> tuple[float, float] | None:
    """Return the thresholds that calibration wrote, None if it wrote none."""
    if not (call.attributes.has("min_calib_range") and call.attributes.has("max_calib_range")):
        return None
    return call.attributes.number("min_calib_range"), call.attributes.number("max_calib_range")


def _threshold(call: Call, low: float, high: float) -> float:
    threshold = max(abs(low), abs(high))
    if not np.isfinite(threshold):
        raise call.refusal(f"expected finite thresholds, got {low} and {high}; the file is damaged")
    return threshold if np.float32(threshold / _ACCUMULATOR) > 0 else 1.0  # of a tensor of zeros: any scale will do


def _is_signed(call: Call, low: float) -> bool:
    kind = call.attributes.text("out_type", "int8")
    if kind not in ("int8", "uint8", "auto"):
        raise call.attributes.wrong("out_type", "int8, uint8 or auto")
    return kind == "int8" or (kind == "auto" and low < 0)


def _steps(call: Call, *, signed: bool) -> float:
    """Return the steps to the threshold of what oneDNN writes, except requantized sums."""
    return (_STEPS if 0 < call.version < _ONEDNN_VERSION else _ONEDNN_STEPS)[signed]


def _rounded(call: Call, real: ir.Value, threshold: float, steps: float, *, signed: bool) -> list[Item]:
    """Round what a node computed to levels: a QuantizeLinear and a DequantizeLinear."""
    call.claim(real)
    levels = _pair(call, Levels(real=real, threshold=threshold, steps=steps, signed=signed))
    return _outputs(levels)


def _pair(call: Call, levels: Levels) -> Levels:
    name, builder = str(levels.real.name), call.builder
    operands = [
        builder.constant(f"{name}_scale", np.asarray(levels.scale)),
        builder.constant(f"{name}_zero_point", np.asarray(0, dtype=np.int8 if levels.signed else np.uint8)),
    ]
    integers = builder.add("QuantizeLinear", [levels.real, *operands], f"{name}_quantize")
    return replace(levels, real=builder.add("DequantizeLinear", [integers, *operands], f"{name}_dequantize"))


def _outputs(levels: Levels) -> list[Item]:
    return [levels, Bound(-levels.threshold if levels.signed else 0.0), Bound(levels.threshold)]


def _accumulated(call: Call, real: ir.Value, scale: np.float32) -> list[Item]:
    """Return sums of 32 bits, which nothing rounds."""
    call.claim(real)
    highest = float(scale) * _ACCUMULATOR
    return _outputs(Levels(real=real, threshold=highest, steps=_ACCUMULATOR, signed=True))


def quantize(call: Call) -> list[Item]:
    """_contrib_quantize: to uint8 unless said otherwise, with thresholds that are inputs."""
    low, high = _bound(call, 1), _bound(call, 2)
    signed = call.attributes.text("out_type", "uint8") != "uint8"
    return _rounded(call, call.value(), _threshold(call, low, high), _steps(call, signed=signed), signed=signed)


def quantize_calibrated(call: Call) -> list[Item]:
    """_contrib_quantize_v2: with calibrated thresholds; what is quantized already passes."""
    if isinstance(call.items[0], Levels):
        return _outputs(call.items[0])
    found = _calibrated(call)
    if found is None:
        raise _uncalibrated(call)
    signed = _is_signed(call, found[0])
    return _rounded(call, call.value(), _threshold(call, *found), _steps(call, signed=signed), signed=signed)


def requantize(call: Call) -> list[Item]:
    """_contrib_requantize: sums of 32 bits to 8."""
    found = _calibrated(call)
    if found is None:
        raise _uncalibrated(call)
    signed = _is_signed(call, found[0])
    return _rounded(call, _levels(call, 0).real, _threshold(call, *found), _STEPS[signed], signed=signed)


def dequantize(call: Call) -> list[Item]:
    """_contrib_dequantize."""
    return [_levels(call, 0).real]


# --- operators that keep the levels ---


def kept(rule: Rule) -> Rule:
    """Make the rule of an operator whose result has its input's levels: pooling, flattening, a Relu."""

    def on_levels(call: Call) -> list[Item]:
        levels = _levels(call, 0)
        result = rule(replace(call, items=[levels.real]))[0]
        assert isinstance(result, ir.Value)
        return _rounded(call, result, levels.threshold, levels.steps, signed=levels.signed)

    return on_levels


def concat(call: Call) -> list[Item]:
    """_contrib_quantized_concat: with the largest threshold of its inputs, int8 if one of them is."""
    count = len(call.items) // 3
    levels = [_levels(call, number) for number in range(count)]
    joined = call.add("Concat", [one.real for one in levels], axis=call.attributes.integer("dim", 1))
    signed = any(one.signed for one in levels)
    largest = max(levels, key=lambda one: one.threshold)
    # The largest one is copied, if its type is the result's.
    steps = largest.steps if largest.signed == signed else _steps(call, signed=signed)
    return _rounded(call, joined, largest.threshold, steps, signed=signed)


def of_two(operator: str) -> Rule:
    """Make the rule of arithmetic on two quantized inputs."""

    def rule(call: Call) -> list[Item]:
        left, right = _levels(call, 0), _levels(call, 1)
        result = call.add(operator, [left.real, right.real])
        if call.attributes.boolean("enable_float_output", default=False):
            return [result]
        found = _calibrated(call)
        if found is not None:
            signed = left.signed or right.signed
            return _rounded(call, result, _threshold(call, *found), _steps(call, signed=signed), signed=signed)
        if operator == "Mul":
            return _accumulated(call, result, left.scale * right.scale)
        return _accumulated(call, result, np.float32((left.threshold + right.threshold) / _ACCUMULATOR))

    return rule


def batch_norm(call: Call) -> list[Item]:
    """_contrib_quantized_batch_norm: computed on real numbers, int8 behind it."""
    found = _calibrated(call)
    if found is None:
        raise _uncalibrated(call)
    parameters = [call.value(number) for number in range(1, 5)]
    result = layers.batch_norm(replace(call, items=[_levels(call, 0).real, *parameters]))[0]
    assert isinstance(result, ir.Value)
    return _rounded(call, result, _threshold(call, *found), _steps(call, signed=True), signed=True)


def embedding(call: Call) -> list[Item]:
    """_contrib_quantized_embedding: rows of levels."""
    threshold = _threshold(call, _bound(call, 2), _bound(call, 3))
    rows = call.cast(call.value(0), ir.DataType.INT64)
    chosen = call.add("Gather", [call.value(1), rows], axis=0)
    steps = _steps(call, signed=True)
    scale, zero = np.asarray(np.float32(threshold / steps)), np.asarray(0, dtype=np.int8)
    real = call.add("DequantizeLinear", [chosen, scale, zero])
    call.claim(real)
    return _outputs(Levels(real=real, threshold=threshold, steps=steps, signed=True))


# --- layers with weights ---


_FLATTENING = ("FullyConnected", "_contrib_quantized_fully_connected")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Weights:
    """Weights and bias of a layer as levels.

    Attributes:
        levels: int8, the output channels first.
        scale: one, or one for each output channel.
        bias: int32 in units of the input's scale times the weights'; None without.
    """

    levels: ir.Value
    scale: Array
    bias: Array | None


def _stored_weights(call: Call, data: Levels, steps: float, *, biased: bool) -> _Weights:
    """Read weights and bias that the file has as int8, their thresholds behind the data's."""
    levels = call.constant(1)
    count = 3 if biased else 2
    if levels is None or levels.dtype != np.int8:
        raise call.refusal(f"expected int8 weights, got {'none' if levels is None else levels.dtype}")
    weights = _stored(call, count + 2, steps)
    levels = levels if weights.any_real else np.zeros_like(levels)
    bias = None
    if biased:
        stored = call.constant(2)
        if stored is None or stored.dtype not in (np.int8, np.int32):
            raise call.refusal(f"expected an int8 bias, got {'none' if stored is None else stored.dtype}")
        bias = stored.astype(np.int32)
        if stored.dtype == np.int8:
            # quantized_fully_connected.cc, QuantizedSumInitKernelWithBias: cut, not rounded.
            unit = _stored(call, count + 4, steps)
            factor = np.float64(unit.scale / (data.scale * weights.scale)) if unit.any_real else 0.0
            bias = _in_32_bits(call, np.trunc(stored * factor))
    name = f"{str(call.value(1).name).removesuffix('_quantize')}_quantized"
    return _Weights(levels=call.builder.constant(name, levels), scale=np.asarray(weights.scale), bias=bias)


@dataclass(frozen=True, slots=True)
class _Unit:
    """Real value of one step of stored levels, and whether any is not zero: MXNet stores zeros as levels of 127."""

    scale: np.float32
    any_real: bool


def _stored(call: Call, number: int, steps: float) -> _Unit:
    """Read the thresholds of stored levels, two inputs from a number on."""
    low, high = _bound(call, number), _bound(call, number + 1)
    return _Unit(np.float32(_threshold(call, low, high) / steps), bool(low or high))


def _in_32_bits(call: Call, bias: Array) -> Array:
    if not (np.abs(bias) <= _ACCUMULATOR).all():
        raise call.refusal("its bias does not fit in 32 bits at the scale of its products; the thresholds are damaged")
    return bias.astype(np.int32)


def _rounded_weights(call: Call, data: Levels, weights: Array, bias: Array | None, *, by_channel: bool) -> _Weights:
    """Round float weights as oneDNN's kernels do when they first run (mkldnn_common.h: GetWeightScales)."""
    if not np.isfinite(weights).all():
        raise call.refusal("its weights are not finite; the training diverged or the file is damaged")
    axes = tuple(range(1, weights.ndim)) if by_channel else None
    largest = np.max(np.abs(weights), axis=axes, initial=0.0).astype(np.float32)
    scale = np.where(largest > 0, largest / np.float32(_steps(call, signed=True)), np.float32(1)).astype(np.float32)
    if bias is not None and by_channel:
        # The bias must fit in half of 32 bits, or the weights get a larger scale.
        least = (np.abs(bias) / (np.float32(2**30) * data.scale)).astype(np.float32)
        scale = np.maximum(scale, least)
    spread = scale.reshape(-1, *(1,) * (weights.ndim - 1)) if by_channel else scale
    levels = np.clip(np.rint(weights / spread), -128, 127).astype(np.int8)
    name = f"{call.value(1).name}_quantized"
    return _Weights(
        levels=call.builder.constant(name, levels),
        scale=scale,
        bias=None if bias is None else _in_32_bits(call, np.rint(bias / (scale * np.float64(data.scale)))),
    )


def _operands(call: Call, data: Levels, weights: _Weights) -> list[Item]:
    """Add the DequantizeLinear of weights and bias, and return what the float layer reads."""
    if call.node.operator in _FLATTENING and call.attributes.boolean("flatten", default=True):
        sizes = sizes_of(data.real)
        if sizes is None or len(sizes) != 2:
            data = _pair(call, replace(data, real=call.add("Flatten", [data.real], axis=1)))

    def dequantized(levels: ir.Value, scale: Array, kind: type[np.integer[Any]]) -> ir.Value:
        zero = np.zeros(scale.shape, dtype=kind)
        axis = {"axis": 0} if scale.ndim else {}
        name, builder = str(levels.name), call.builder
        operands = [builder.constant(f"{name}_scale", scale), builder.constant(f"{name}_zero_point", zero)]
        return builder.add("DequantizeLinear", [levels, *operands], f"{call.node.name}_{name}_dequantize", **axis)

    read: list[Item] = [data.real, dequantized(weights.levels, weights.scale, np.int8)]
    if weights.bias is not None:
        levels = call.builder.constant(f"{call.node.name}_bias_quantized", weights.bias)
        scale = (weights.scale * data.scale).astype(np.float32)
        read.append(dequantized(levels, scale, np.int32))
    return read


def layer(rule: Rule) -> Rule:
    """Make the rule of a layer with stored int8 weights and sums of 32 bits."""

    def on_levels(call: Call) -> list[Item]:
        data = _levels(call, 0)
        biased = not call.attributes.boolean("no_bias", default=False)
        if call.node.operator == "_contrib_quantized_conv" and not data.signed:
            call.builder.remark(_OTHER_THRESHOLDS, call.node.name)
        weights = _stored_weights(call, data, _STEPS[True], biased=biased)
        result = rule(replace(call, items=_operands(call, data, weights)))[0]
        assert isinstance(result, ir.Value)
        return _accumulated(call, result, np.float32(weights.scale * data.scale))

    return on_levels


# --- what oneDNN fuses ---


def fused(call: Call) -> list[Item]:
    """_sg_mkldnn_conv and _sg_mkldnn_fully_connected: a layer, then a BatchNorm, activations and a sum, as one."""
    graphs = call.node.subgraphs
    if len(graphs) != 1 or len(graphs[0].heads) != 1:
        raise call.refusal(f"expected one inner graph with one output, got {len(graphs)} graphs; the file is damaged")
    inner = graphs[0]
    variables = [number for number, node in enumerate(inner.nodes) if node.operator == VARIABLE]
    if len(variables) > len(call.items):
        raise call.refusal(f"has fewer inputs ({len(call.items)}) than its inner graph; the file is damaged")
    items = dict(zip(variables, call.items, strict=False))
    is_quantized = call.attributes.boolean("quantized", default=False)
    for number, node in enumerate(inner.nodes):
        if node.operator == VARIABLE:
            continue
        read = [items[source] for source, _ in node.inputs]
        attributes = Attributes(texts=node.attributes, where=f"{call.where}: {node.operator} {node.name!r}")
        step = Call(node=node, items=read, attributes=attributes, builder=call.builder, version=call.version)
        norm = _norm_behind(inner.nodes, number, items)
        if is_quantized and node.operator in _LAYERS:
            items[number] = _fused_layer(step, call, norm, thresholds=len(variables))
        elif is_quantized and node.operator == "BatchNorm" and inner.nodes[node.inputs[0][0]].operator in _LAYERS:
            items[number] = read[0]  # it is in the weights already
        elif node.operator in _INNER:
            items[number] = _INNER[node.operator](replace(step, items=[_real(item) for item in read]))[0]
        else:
            raise step.refusal("the operator is not supported inside a fused layer")
    result = _real(items[inner.heads[0][0]])
    assert isinstance(result, ir.Value)
    return _written(call, result, inner.nodes[inner.heads[0][0]]) if is_quantized else [result]


_LAYERS = {"Convolution": layers.convolution, "FullyConnected": layers.fully_connected}


def _real(item: Item) -> Item:
    return item.real if isinstance(item, Levels) else item


@dataclass(frozen=True, kw_only=True, slots=True)
class _Norm:
    """A BatchNorm as a factor and a summand for each channel."""

    factor: Array
    summand: Array


def _norm_behind(nodes: Sequence[Node], number: int, items: Mapping[int, Item]) -> _Norm | None:
    """Return the BatchNorm that reads a layer, None where there is none."""
    found = next((node for node in nodes if node.operator == "BatchNorm" and node.inputs[0] == (number, 0)), None)
    if found is None:
        return None
    attributes = Attributes(texts=found.attributes, where=f"BatchNorm {found.name!r}")
    arrays = []
    for source, _ in found.inputs[1:5]:
        item = items.get(source)
        tensor = item.const_value if isinstance(item, ir.Value) else None
        if tensor is None:
            raise attributes.wrong("gamma, beta, mean and variance", "constants")
        arrays.append(tensor.numpy())
    gamma, beta, mean, variance = arrays
    if attributes.boolean("fix_gamma", default=True):
        gamma = np.ones_like(beta)
    spread = variance + np.float32(attributes.number("eps", 1e-3))
    if not (spread > 0).all():
        raise ValueError("a variance of the BatchNorm is negative")
    factor = gamma / np.sqrt(spread)
    return _Norm(factor=factor, summand=beta - factor * mean)


def _fused_layer(step: Call, call: Call, norm: _Norm | None, *, thresholds: int) -> ir.Value:
    """Translate the layer that a fused operator begins with.

    Args:
        step: the layer itself, on the fused operator's inputs.
        call: the fused operator.
        norm: the BatchNorm behind the layer.
        thresholds: number of the first of the operator's inputs that is a threshold.
    """
    data = _levels(step, 0)
    biased = not step.attributes.boolean("no_bias", default=False)
    array = step.constant(1)
    if array is None:
        raise call.refusal("expected constant weights")
    if array.dtype == np.int8:
        bounds = call.items[thresholds:]
        stored = replace(step, items=[*step.items[: 3 if biased else 2], *bounds])
        weights = _stored_weights(stored, data, _steps(call, signed=True), biased=biased)
    else:
        bias = step.constant(2) if biased else None
        if norm is not None:
            array = array * norm.factor.reshape(-1, *(1,) * (array.ndim - 1))
            bias = norm.summand + (0 if bias is None else norm.factor * bias)
        # mkldnn_conv.cc: by channel where the output's thresholds are calibrated. mkldnn_fc.cc: where it says so.
        by_channel = call.attributes.boolean("channel_wise_quantize", default=_calibrated(call) is not None)
        if by_channel and 1 < step.attributes.integer("num_group", 1) < len(array):
            call.builder.remark(_FIRST_SCALES, call.node.name)
        weights = _rounded_weights(step, data, array, bias, by_channel=by_channel)
    attributes = Attributes(
        texts={**step.attributes.texts, "no_bias": str(weights.bias is None)}, where=step.attributes.where
    )
    result = _LAYERS[step.node.operator](replace(step, items=_operands(step, data, weights), attributes=attributes))[0]
    assert isinstance(result, ir.Value)
    return result


def _written(call: Call, result: ir.Value, last: Node) -> list[Item]:
    """Round what a fused operator computed, if it writes integers."""
    if call.attributes.boolean("enable_float_output", default=False) or call.attributes.has("enabled_float_output"):
        return [result]
    found = _calibrated(call)
    if found is None:
        call.claim(result)
        return _outputs(Levels(real=result, threshold=float(_ACCUMULATOR), steps=_ACCUMULATOR, signed=True))
    attributes = Attributes(texts=last.attributes, where=call.where)
    positive = last.operator == "Activation" and attributes.text("act_type", "") in _NOT_NEGATIVE
    positive = positive or (last.operator == "clip" and attributes.number("a_min") >= 0)
    if any(isinstance(item, Levels) and item.signed == positive for item in call.items[1:]):
        call.builder.remark(_CUT, call.node.name)
    steps = _steps(call, signed=not positive)
    return _rounded(call, result, _threshold(call, *found), steps, signed=not positive)


RULES: Mapping[str, Rule] = {
    "_contrib_quantize": quantize,
    "_contrib_quantize_v2": quantize_calibrated,
    "_contrib_requantize": requantize,
    "_contrib_dequantize": dequantize,
    "_contrib_quantized_conv": layer(layers.convolution),
    "_contrib_quantized_fully_connected": layer(layers.fully_connected),
    "_contrib_quantized_pooling": kept(layers.pooling),
    "_contrib_quantized_flatten": kept(reshaping.flatten),
    "_contrib_quantized_act": kept(layers.activation),
    "_contrib_quantized_reshape": kept(reshaping.reshape),
    "_contrib_quantized_concat": concat,
    "_contrib_quantized_elemwise_add": of_two("Add"),
    "_contrib_quantized_elemwise_mul": of_two("Mul"),
    "_contrib_quantized_batch_norm": batch_norm,
    "_contrib_quantized_embedding": embedding,
    "_sg_mkldnn_conv": fused,
    "_sg_mkldnn_fully_connected": fused,
    "_sg_onednn_conv": fused,
    "_sg_onednn_fully_connected": fused,
}
