"""Room for biases: weights' scales so wide that no bias overflows the integer that it becomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerBlock, PerTensor
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import SMALLEST_SCALE
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.roles import activation_inputs, bias_input, weight_inputs

# Largest share of an accumulator that a bias may take, so that sums stay inside it.
_BIAS_SHARE = 0.5


def with_room_for_biases(model: ir.Model, plan: Plan, *, bits: int, power_of_two: bool = False) -> Plan:
    """Widen the scales of channels whose weights are so small that their bias would overflow.

    A bias becomes an integer in units of `activation scale * weight scale`; where that product is too small for it,
    the weight's scale grows until the bias takes half of the integer.

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
                encodings[name] = _widened(node, weights, unit, power_of_two=power_of_two)
    return replace(plan, encodings=encodings)


def _widened(node: ir.Node, weights: Encoding, unit: float, *, power_of_two: bool) -> Encoding:
    """Widen scales so that each, times the unit, reaches its channel's bias."""
    number = bias_input(node)
    bias = constant_array(node.inputs[number]) if number is not None and number < len(node.inputs) else None
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
