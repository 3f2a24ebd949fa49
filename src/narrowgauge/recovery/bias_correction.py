"""Bias correction: the mean error that rounded weights add to each output channel is taken out of the bias."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.graph.constants import add_constant, set_constant
from narrowgauge.graph.edits import is_operator, sole_consumer
from narrowgauge.graph.roles import WEIGHT_ROLES, activation_inputs, is_constant, weight_inputs
from narrowgauge.graph.shapes import dimensions

Float = npt.NDArray[np.float64]


def correct_bias(model: ir.Model, plan: Plan, statistics: Statistics) -> tuple[ir.Model, Plan]:
    """Subtract E[(Wq - W) x] from the bias of every layer with quantized weights.

    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2,
    equation 17, with the expectation measured (their "empirical" variant needs outputs; Banner et al. 2019 and NNCF's
    fast bias correction use input means as here). Differs: the mean per input channel comes from the calibration's
    statistics, so no second pass is needed, and a kernel tap counts only as often as it lies inside the padding.

    Layers whose input's means are unknown, or that have no place for a bias, are left as they are.

    Args:
        model: the float network; it is not changed.
        plan: encodings of the weights.
        statistics: means per channel of the layers' inputs.

    Returns:
        A copy of the network with other biases, and the plan as it was.
    """
    corrected = model.clone()
    float_nodes = {entry.name for entry in plan.float_nodes}
    for node in list(corrected.graph):
        for number in weight_inputs(node) if node.name not in float_nodes else ():
            weights = node.inputs[number]
            encoding = plan.encodings.get(str(weights.name)) if weights is not None else None
            if isinstance(encoding, Encoding) and weights is not None and weights.const_value is not None:
                shift = _output_shift(node, weights.const_value.numpy(), encoding, statistics)
                if shift is not None:
                    subtract_from_bias(corrected.graph, node, shift)
    return corrected, plan


def _output_shift(
    node: ir.Node, weights: npt.NDArray[np.float32], encoding: Encoding, statistics: Statistics
) -> Float | None:
    """Mean error of each output channel, real units; None where it cannot be told."""
    source = next((value for _, value in activation_inputs(node)), None)
    if source is None or node.op_type not in _SHIFTS:
        return None
    mean = _input_mean(source, WEIGHT_ROLES[node.op_type].input_axis, statistics)
    if mean is None:
        return None
    error = round_trip(weights, encoding).astype(np.float64) - weights
    return _SHIFTS[node.op_type](node, error, mean)


def _input_mean(source: ir.Value, axis: int, statistics: Statistics) -> Float | None:
    tensor = statistics.tensors.get(str(source.name))
    if tensor is None or tensor.channels is None or tensor.channels.count == 0 or source.shape is None:
        return None
    if tensor.nan_count or tensor.infinity_count or tensor.channels.axis != axis % source.shape.rank():
        return None
    return tensor.channels.mean


def _conv_shift(node: ir.Node, error: Float, mean: Float) -> Float | None:
    group = node.attributes.get_int("group", 1)
    outputs, inputs = error.shape[:2]
    if mean.size != inputs * group:
        return None
    coverage = _tap_coverage(node, error.shape[2:])
    per_input = (error * coverage).reshape(outputs, inputs, -1).sum(axis=2)
    means = np.repeat(mean.reshape(group, inputs), outputs // group, axis=0)
    shift: Float = (per_input * means).sum(axis=1)
    return shift


def _tap_coverage(node: ir.Node, kernel: tuple[int, ...]) -> Float:
    """Share of the output positions at which each kernel tap lies on the input, not on its padding."""
    source = node.inputs[0]
    sizes = dimensions(source)
    spatial = sizes[2:] if sizes else ()
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto != "NOTSET" or len(spatial) != len(kernel) or any(size is None for size in spatial):
        return np.ones(kernel)
    rank = len(kernel)
    pads = node.attributes.get_ints("pads", [0] * (2 * rank))
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    coverage = np.ones(())
    for axis in range(rank):
        size = spatial[axis]
        assert size is not None
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        count = max((size + pads[axis] + pads[axis + rank] - reach) // strides[axis] + 1, 1)
        starts = np.arange(count) * strides[axis] - pads[axis]
        positions = starts[:, None] + dilations[axis] * np.arange(kernel[axis])[None, :]
        inside = ((positions >= 0) & (positions < size)).mean(axis=0)
        coverage = coverage[..., None] * inside
    return coverage


def _gemm_shift(node: ir.Node, error: Float, mean: Float) -> Float | None:
    if node.attributes.get_int("transA", 0) or node.attributes.get_float("alpha", 1.0) != 1.0:
        return None
    by_input = error.T if node.attributes.get_int("transB", 0) else error
    return mean @ by_input if mean.size == by_input.shape[0] else None


def _matmul_shift(node: ir.Node, error: Float, mean: Float) -> Float | None:
    if error.ndim != 2 or mean.size != error.shape[0]:
        return None
    return mean @ error


_SHIFTS = {"Conv": _conv_shift, "Gemm": _gemm_shift, "MatMul": _matmul_shift}


def _is_per_channel(bias: ir.Value, channels: int) -> bool:
    """Whether a bias is constant and has one number for each channel, along its last axis."""
    if bias.const_value is None or bias.const_value.size != channels:
        return False
    return bias.const_value.shape.rank() > 0 and bias.const_value.shape[-1] == channels


def bias_place(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Say which input of which node holds the bias of a layer, or may; None where there is no place for one.

    That is the third input of a Conv, ConvTranspose or Gemm, and the constant of the Add that alone reads a MatMul. The
    bias has one number for each output channel, along its last axis.
    """
    if is_operator(node, "MatMul"):
        addition = sole_consumer(node.outputs[0])
        if addition is None or not is_operator(addition, "Add"):
            return None
        number = next((n for n, value in enumerate(addition.inputs) if is_constant(value)), -1)
        return (addition, number) if number >= 0 else None
    return (node, 2) if node.attributes.get_float("beta", 1.0) == 1.0 else None


def has_place_for_bias(node: ir.Node, channels: int) -> bool:
    """Whether `subtract_from_bias` can change a layer of so many output channels."""
    place = bias_place(node)
    if place is None:
        return False
    holder, number = place
    old = holder.inputs[number] if number < len(holder.inputs) else None
    return old is None or _is_per_channel(old, channels)


def subtract_from_bias(graph: ir.Graph, node: ir.Node, shift: Float) -> None:
    """Subtract from a layer's bias, giving it one of its own where it has none or shares it.

    Nothing happens where the layer has no place for a bias.

    Args:
        graph: the graph that holds the node.
        node: the layer.
        shift: real units, one number for each output channel.
    """
    place = bias_place(node)
    if place is None or not has_place_for_bias(node, shift.size):
        return
    holder, number = place
    old = holder.inputs[number] if number < len(holder.inputs) else None
    if old is None:
        new = add_constant(graph, f"{node.name}_bias", (-shift).astype(np.float32))
        holder.resize_inputs(max(number + 1, len(holder.inputs)))
        holder.replace_input_with(number, new)
        return
    assert old.const_value is not None
    before = old.const_value.numpy()
    after = (before - shift.reshape(before.shape)).astype(np.float32)
    if len(old.uses()) == 1:
        set_constant(old, after)
    else:
        holder.replace_input_with(number, add_constant(graph, f"{old.name}_{node.name}", after))
