"""Room for biases: weights' scales so wide that no bias overflows the integer that it becomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerBlock, PerTensor
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import SMALLEST_SCALE
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.roles import activation_inputs, bias_addition, bias_input, weight_inputs

# Largest share of an accumulator that a bias may take, so that sums stay inside it.
_BIAS_SHARE = 0.5


def with_room_for_biases(model: ir.Model, plan: Plan, *, bits: int, power_of_two: bool = False) -> Plan:
    """Widen the scales of channels whose weights are so small that their bias would overflow.

    A bias becomes an integer in units of `activation scale * weight scale`; where that product is too small for it,
    the weight's scale grows until the bias takes half of the integer. So does that of a product whose bias is a
    constant added behind it, where integers add it.

    Args:
        model: the float network that the plan describes.
        plan: its encodings; to be called again when activations' scales have changed.
        bits: width of a bias, 0 where it stays float.
        power_of_two: whether weights' scales are powers of two.
    """
    if not bits:
        return plan
    encodings = dict(plan.encodings)
    float_nodes = {entry.name for entry in plan.float_nodes}
    for node in model.graph:
        for number in weight_inputs(node) if node.name not in float_nodes else ():
            name = str(node.inputs[number].name)  # type: ignore[union-attr]
            weights = encodings.get(name)
            activation = next((encodings.get(str(value.name)) for _, value in activation_inputs(node)), None)
            if isinstance(weights, Encoding) and isinstance(activation, Encoding):
                unit = float(activation.scale.min()) * _BIAS_SHARE * 2.0 ** (bits - 1)
                encodings[name] = _widened(_bias(node, plan), weights, unit, power_of_two=power_of_two)
    return replace(plan, encodings=encodings)


def _bias(node: ir.Node, plan: Plan) -> npt.NDArray[np.float32] | None:
    """Bias that becomes an integer in a layer's sums, None where there is none."""
    number = bias_input(node)
    if number is not None:
        return constant_array(node.inputs[number]) if number < len(node.inputs) else None
    addition = bias_addition(node)
    if addition is None or node.outputs[0].name in plan.encodings or addition.outputs[0].name in plan.float_outputs:
        return None
    if any(entry.name == addition.name for entry in plan.float_nodes):
        return None
    return next(array for value in addition.inputs if (array := constant_array(value)) is not None)


def _widened(bias: npt.NDArray[np.float32] | None, weights: Encoding, unit: float, *, power_of_two: bool) -> Encoding:
    """Widen scales so that each, times the unit, reaches its channel's bias."""
    if bias is None or isinstance(weights.granularity, PerBlock):
        return weights
    reach = np.abs(bias.astype(np.float64))
    if isinstance(weights.granularity, PerTensor):
        reach = np.asarray(reach.max(initial=0.0))
    if reach.shape != weights.scale.shape:
        return weights
    smallest = reach / unit
    if power_of_two:
        smallest = np.exp2(np.ceil(np.log2(np.maximum(smallest, SMALLEST_SCALE))))
    return replace(weights, scale=np.maximum(weights.scale, smallest.astype(np.float32)))
