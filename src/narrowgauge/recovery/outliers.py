"""A few outlier channels of a matrix product's input are multiplied in float, the others in integers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.calibration.histogram import EMPTY
from narrowgauge.calibration.statistics import ChannelStatistics, Statistics, TensorStatistics
from narrowgauge.graph.constants import add_constant, set_constant
from narrowgauge.graph.digest import network_digest
from narrowgauge.graph.edits import new_node, unique_name
from narrowgauge.recovery.noise import (
    migration_factors,
    product_channels,
    product_noise,
    products_by_input,
    weights_by_input,
)

Float = npt.NDArray[np.float64]

# Channels that may be split off, at the most, and how much less noise the split must predict to be worth its nodes.
_MOST_CHANNELS = 4
_WORTHWHILE = 4.0

# Strengths of migration that the split competes with.
_STRENGTHS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """What was done to one value.

    Attributes:
        value: the value with the outliers.
        channels: which of its channels are multiplied in float.
        range_before: largest magnitude with them, real units.
        range_after: without them.
        gain: predicted noise before over after.
        float_nodes: names of the nodes that must stay float.
    """

    value: str
    channels: tuple[int, ...]
    range_before: float
    range_after: float
    gain: float
    float_nodes: tuple[str, ...]


def split_outliers(
    model: ir.Model, statistics: Statistics, *, layers: Iterable[str], bits: int = 8
) -> tuple[ir.Model, Statistics, tuple[Split, ...]]:
    """Write x W as x W' + x_o W_o: the rows of W for the outlier channels o are zero in W' and alone in W_o.

    Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022, section 3.2. Differs:
    the channels are fixed beforehand, from the statistics: the fewest, at most four, for which the predicted rounding
    noise at the products' outputs falls to a quarter of what scaling channels into the weights (`smooth`) could reach.
    The outliers saturate in the integers of x, where their weights are zero, so that its range is the others'.

    The network's outputs do not change but for float rounding. Only for products that write float and whose input
    comes in float: one that arrives in integers has lost the outliers.

    Args:
        model: the float network; it is not changed.
        statistics: of this network.
        layers: names of the products that will run in integers, whose inputs and outputs are written in float.
        bits: of activations and weights.

    Returns:
        A copy of the network, the statistics that hold for it, and what was done.
    """
    divided = model.clone()
    tensors = dict(statistics.tensors)
    done: list[Split] = []
    for name, nodes in products_by_input(divided, set(layers)).items():
        tensor, value = tensors.get(name), nodes[0].inputs[0]
        seen = product_channels(tensor, value)
        if seen is None or tensor is None or value is None:
            continue
        found = _worthwhile(seen, np.concatenate([weights_by_input(node) for node in nodes], axis=1), bits)
        if found is None or value.is_graph_output() or len({use.node for use in value.uses()}) != len(nodes):
            continue
        channels, gain = found
        float_nodes = tuple(_divide(divided.graph, node, channels) for node in nodes)
        tensors[name] = _without(tensor, channels)
        before, after = (max(abs(part.minimum), abs(part.maximum)) for part in (tensor, tensors[name]))
        split = Split(
            value=name,
            channels=tuple(int(channel) for channel in channels),
            range_before=before,
            range_after=after,
            gain=gain,
            float_nodes=float_nodes,
        )
        done.append(split)
    if not done:
        return model, statistics, ()
    return divided, replace(statistics, tensors=tensors, network=network_digest(divided)), tuple(done)


def _worthwhile(channels: ChannelStatistics, weights: Float, bits: int) -> tuple[npt.NDArray[np.intp], float] | None:
    """The fewest channels whose splitting off is worth it, with the predicted gain."""
    reach = np.maximum(np.abs(channels.minimum), np.abs(channels.maximum)).astype(np.float64)
    if weights.shape[0] != reach.size or reach.size <= 2 * _MOST_CHANNELS:
        return None
    order = np.argsort(-reach)
    before = _least_noise(channels, weights, reach, bits)
    for count in range(1, _MOST_CHANNELS + 1):
        outliers = order[:count]
        rest = np.delete(np.arange(reach.size), outliers)
        kept = ChannelStatistics(
            axis=channels.axis, minimum=channels.minimum[rest], maximum=channels.maximum[rest],
            total=channels.total[rest], count=channels.count,
        )  # fmt: skip
        gain = before / max(_least_noise(kept, weights[rest], reach[rest], bits), 1e-300)
        if gain >= _WORTHWHILE:
            return outliers, gain
    return None


def _least_noise(channels: ChannelStatistics, weights: Float, reach: Float, bits: int) -> float:
    heights = np.maximum(np.abs(weights).max(axis=1), 1e-8)
    return min(
        product_noise(channels, weights, migration_factors(reach, heights, strength), bits) for strength in _STRENGTHS
    )


def _divide(graph: ir.Graph, node: ir.Node, channels: npt.NDArray[np.intp]) -> str:
    """Give the outlier channels a product of their own; return the name of its node."""
    value, weights, result = node.inputs[0], node.inputs[1], node.outputs[0]
    assert value is not None
    assert weights is not None
    assert weights.const_value is not None
    along = 1 if node.attributes.get_int("transB", 0) else 0
    array = weights.const_value.numpy()
    outlying = np.moveaxis(np.take(array, channels, axis=along), along, 0)
    rest = array.copy()
    np.moveaxis(rest, along, 0)[channels] = 0
    if len(weights.uses()) == 1:
        set_constant(weights, rest)
    else:
        node.replace_input_with(1, add_constant(graph, f"{weights.name}_{node.name}", rest))
    scale = node.attributes.get_float("alpha", 1.0)
    name = unique_name(graph, f"{node.name}_outliers")
    picked = new_node(
        "Gather", [value, add_constant(graph, f"{name}_channels", channels.astype(np.int64))], {"axis": -1},
        name=f"{name}_gather",
    )  # fmt: skip
    product = new_node(
        "MatMul", [picked.outputs[0], add_constant(graph, f"{name}_weights", (scale * outlying).astype(np.float32))],
        name=name, like=result,
    )  # fmt: skip
    picked.outputs[0].type = value.type
    total = new_node("Add", [product.outputs[0], product.outputs[0]], name=f"{name}_add", like=result)
    node.append([picked, product, total])
    # The sum takes the old name; what the integers give gets a new one.
    kept = result.name
    result.replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
    result.name, total.outputs[0].name = f"{kept}_inliers", kept
    total.replace_input_with(1, result)
    return name


def _without(tensor: TensorStatistics, outliers: npt.NDArray[np.intp]) -> TensorStatistics:
    """Statistics of a tensor whose outlier channels may saturate."""
    channels = tensor.channels
    assert channels is not None
    rest = np.delete(np.arange(channels.minimum.size), outliers)
    low, high = float(channels.minimum[rest].min()), float(channels.maximum[rest].max())
    clipped = replace(
        channels,
        minimum=np.clip(channels.minimum, low, high),
        maximum=np.clip(channels.maximum, low, high),
        total=np.clip(channels.total, low * channels.count, high * channels.count),
    )
    return replace(tensor, minimum=low, maximum=high, histogram=EMPTY, channels=clipped)
