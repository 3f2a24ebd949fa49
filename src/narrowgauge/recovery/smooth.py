"""Outlier channels of a matrix product's input are scaled down there and up in the weights, which bear it better."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.calibration.histogram import EMPTY
from narrowgauge.calibration.statistics import ChannelStatistics, Statistics, TensorStatistics
from narrowgauge.graph.constants import add_constant, set_constant
from narrowgauge.graph.digest import network_digest
from narrowgauge.graph.edits import is_operator, new_node, unique_name
from narrowgauge.graph.roles import is_constant
from narrowgauge.recovery.noise import (
    migration_factors,
    product_channels,
    product_noise,
    products_by_input,
    weights_by_input,
)

Float = npt.NDArray[np.float64]

# Migration strengths that are tried; 0 leaves the layer as it is.
STRENGTHS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)

# An extra multiplication is worth it only where the predicted noise falls by this factor.
_WORTH_A_NODE = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """What was done to one value.

    Attributes:
        value: the value whose channels were scaled down.
        strength: alpha of the paper.
        gain: predicted noise before over after, at the layers' outputs.
        channel: the channel that was scaled down most.
        factor: by how much.
    """

    value: str
    strength: float
    gain: float
    channel: int
    factor: float


def smooth(
    model: ir.Model,
    statistics: Statistics,
    *,
    layers: Iterable[str],
    rounded: Collection[str] = (),
    bits: int = 8,
    weight_bits: int | None = None,
) -> tuple[ir.Model, Statistics, tuple[Migration, ...]]:
    """Divide each channel of a matrix product's input by s and multiply its weights' row by s.

    Xiao et al., "SmoothQuant", 2023, equations 3 and 4: s = max|x|^alpha / max|w|^(1 - alpha) per channel. Differs:
    alpha is chosen layer by layer, from the statistics, as the one that makes the predicted rounding noise at the
    layers' outputs least (activations per tensor, weights per output channel, both uniform noise of step^2 / 12);
    where that is no better than leaving it, the layer is left. The division is folded into the LayerNormalization that
    writes the value, where only these products read it; elsewhere it costs a Mul, spent where it halves the noise and
    the value comes in float: behind an integer operator it would come after the rounding.

    The network's outputs do not change but for float rounding. Statistics of a scaled value keep its exact extremes
    and means; its histogram is dropped, so that every estimator takes the extremes.

    Args:
        model: the float network; it is not changed.
        statistics: of this network.
        layers: names of the products that will run in integers.
        rounded: names of the values that integer operators write as integers.
        bits: of activations.
        weight_bits: of weights; None for as many.

    Returns:
        A copy of the network, the statistics that hold for it, and what was done.
    """
    smoothed = model.clone()
    groups = products_by_input(smoothed, set(layers))
    done: list[Migration] = []
    tensors = dict(statistics.tensors)
    for name, nodes in groups.items():
        tensor = tensors.get(name)
        seen = product_channels(tensor, nodes[0].inputs[0])
        if seen is None or tensor is None:
            continue
        found = _best(seen, [weights_by_input(node) for node in nodes], bits, weight_bits)
        if found is None:
            continue
        factors, strength, gain = found
        if not _apply(smoothed.graph, nodes, factors, worth_a_node=gain >= _WORTH_A_NODE and name not in rounded):
            continue
        scaled = _scaled(tensor, factors)
        tensors[str(nodes[0].inputs[0].name)] = scaled  # type: ignore[union-attr]
        channel = int(np.argmax(factors))
        factor = float(factors[channel])
        done.append(Migration(value=name, strength=strength, gain=gain, channel=channel, factor=factor))
    if not done:
        return model, statistics, ()
    return smoothed, replace(statistics, tensors=tensors, network=network_digest(smoothed)), tuple(done)


def _best(
    channels: ChannelStatistics, weights: list[Float], bits: int, weight_bits: int | None
) -> tuple[Float, float, float] | None:
    reach = np.maximum(np.abs(channels.minimum), np.abs(channels.maximum)).astype(np.float64)
    joined = np.concatenate(weights, axis=1)
    if joined.shape[0] != reach.size or reach.max(initial=0.0) == 0:
        return None
    heights = np.maximum(np.abs(joined).max(axis=1), 1e-8)
    factors = {strength: migration_factors(reach, heights, strength) for strength in STRENGTHS}
    noises = {strength: product_noise(channels, joined, factors[strength], bits, weight_bits) for strength in STRENGTHS}
    strength = min(noises, key=noises.__getitem__)
    gain = noises[0.0] / max(noises[strength], 1e-300)
    return (factors[strength], strength, gain) if gain > 1.05 else None


def _apply(graph: ir.Graph, nodes: list[ir.Node], factors: Float, *, worth_a_node: bool) -> bool:
    value = nodes[0].inputs[0]
    assert value is not None
    writer = value.producer()
    alone = all(use.node in nodes for use in value.uses()) and not value.is_graph_output()
    foldable = is_operator(writer, "LayerNormalization") and writer is not None and all(
        is_constant(parameter) for parameter in writer.inputs[1:] if parameter is not None
    )  # fmt: skip
    if alone and foldable and writer is not None and writer.attributes.get_int("axis", -1) in (-1, _last(value)):
        for number in range(1, len(writer.inputs)):
            _replace_scaled(graph, writer, number, 1 / factors, along=-1)
    elif not worth_a_node:
        return False
    else:
        name = unique_name(graph, f"{value.name}_smoothed")
        divisor = add_constant(graph, f"{name}_factor", (1 / factors).astype(np.float32))
        multiplication = new_node("Mul", [value, divisor], name=name, like=value)
        nodes[0].prepend(multiplication)
        for node in nodes:
            node.replace_input_with(0, multiplication.outputs[0])
    for node in nodes:
        _replace_scaled(graph, node, 1, factors, along=1 if node.attributes.get_int("transB", 0) else 0)
    return True


def _last(value: ir.Value) -> int:
    return value.shape.rank() - 1 if value.shape is not None else -1


def _replace_scaled(graph: ir.Graph, node: ir.Node, number: int, factors: Float, *, along: int) -> None:
    """Scale a constant input, in place where this node alone reads it."""
    value = node.inputs[number]
    if value is None or value.const_value is None:
        return
    array = value.const_value.numpy()
    shape = [-1 if axis == along % array.ndim else 1 for axis in range(array.ndim)]
    scaled = (array * factors.reshape(shape)).astype(np.float32)
    if len(value.uses()) == 1:
        set_constant(value, scaled)
    else:
        node.replace_input_with(number, add_constant(graph, f"{value.name}_{node.name}", scaled))


def _scaled(tensor: TensorStatistics, factors: Float) -> TensorStatistics:
    assert tensor.channels is not None
    minimum = (tensor.channels.minimum / factors).astype(np.float32)
    maximum = (tensor.channels.maximum / factors).astype(np.float32)
    channels = replace(tensor.channels, minimum=minimum, maximum=maximum, total=tensor.channels.total / factors)
    return replace(
        tensor, minimum=float(minimum.min()), maximum=float(maximum.max()), histogram=EMPTY, channels=channels
    )
