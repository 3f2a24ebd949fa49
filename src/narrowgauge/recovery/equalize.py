"""Cross-layer equalization: neighbouring layers share out the ranges of their weights' channels evenly."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.calibration.histogram import EMPTY
from narrowgauge.calibration.statistics import ChannelStatistics, Statistics, TensorStatistics
from narrowgauge.graph.constants import add_constant, constant_array, replace_constant_input
from narrowgauge.graph.digest import network_digest
from narrowgauge.graph.edits import graph_of, is_operator, new_node, take_place, unique_name
from narrowgauge.passes.layers import Layer, scale_input, scale_output
from narrowgauge.recovery.links import (
    Link,
    Span,
    along,
    bound_per_channel,
    by_channels,
    current_layer,
    find_links,
    zero_based_bound,
)

Float = npt.NDArray[np.float64]

# Sweeps over the network end when no factor changes by more than this share, or after so many.
_CONVERGED = 1e-3
_MOST_SWEEPS = 300

# Layers stay as they are where no factor differs from 1 by more than this share.
_WORTH_DOING = 0.01

# Factors stay between the inverse of this and this: beyond it a channel is as good as dead.
_LARGEST_FACTOR = 2.0**12


@dataclass(frozen=True, kw_only=True, slots=True)
class Equalization:
    """What was done between one layer and those that read it.

    Attributes:
        writer: name of the layer before.
        readers: names of the layers behind.
        factors: by which the output channels were divided and the weights behind multiplied, shape [channels].
        values: value name -> factors along its axis of channels, of every value between the layers.
        axes: value name -> that axis.
        capped: names of the values that a Clip bounded and now a Min with a constant per channel does.
    """

    writer: str
    readers: tuple[str, ...]
    factors: Float
    values: Mapping[str, Float]
    axes: Mapping[str, int]
    capped: tuple[str, ...] = ()


def equalize(
    model: ir.Model,
    statistics: Statistics | None = None,
    *,
    layers: Collection[str] | None = None,
    caps: bool = True,
    activation_share: float = 0.5,
) -> tuple[ir.Model, Statistics | None, tuple[Equalization, ...]]:
    """Divide each output channel of a layer by s and multiply the weights that read it by s, until ranges are equal.

    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.1,
    equation 11: s_i = sqrt(r1_i r2_i) / r2_i, with r1_i the largest |weight| of output channel i of the layer before
    and r2_i that of input channel i of the layers behind; pair by pair, over the whole network, until it stands still
    (a depthwise convolution between two others so gets the factors of the paper's triples). Wanted where a whole weight
    tensor has one scale. No data are needed.

    The network's outputs do not change but for float rounding. Differs from the paper in two things. It replaces ReLU6
    by ReLU; here a Clip from 0 to h becomes a Relu and, where it needs one, a Min with the constants h / s_i, a cap per
    channel. And it lets the channels of the activation between drift apart, which has one scale, too: here r1_i is
    the geometric mean of the weights' range and the activation's reach a_i where that is known, r1_i^(1 - k) (c a_i)^k,
    with c the median of r1_i / a_i. The bound of a Clip or cap is taken for the reach, else statistics tell it.

    Channels with weights of 0 on either side keep their scale. Weights that several layers share are copied.

    Args:
        model: the float network, shapes inferred; it is not changed.
        statistics: of this network, if there are any; they also tell where no cap is needed because no channel of the
            value ever reached it. Those of rescaled values keep exact extremes and means per channel and lose their
            histogram, and those without statistics per channel are left out: calibrate the new network wherever the
            samples can be read.
        layers: names of the layers that may change, None for all.
        caps: whether a cap per channel may be put in; if not, layers on both sides of a Clip that needs one stay.
        activation_share: k; 0 is the paper's method, for weights whose activations stay float.

    Returns:
        A copy of the network, the statistics that hold for it (None for None), and what was done.
    """
    equalized = model.clone()
    links = find_links(equalized, layers)
    idle = {link.writer.node: _idle_clips(link, statistics) for link in links}
    if not caps:
        links = tuple(link for link in links if not _needs_new_cap(link, idle[link.writer.node]))
    activations = [
        _activation_reach(link, statistics) if activation_share else np.zeros(link.channels) for link in links
    ]
    factors = _converged(links, activations, activation_share)
    done = []
    for link, factor in zip(links, factors, strict=True):
        if np.abs(np.log(factor)).max(initial=0.0) > _WORTH_DOING:
            done.append(_apply(link, factor, idle[link.writer.node]))
    if not done:
        return model, statistics, ()
    return equalized, _rescaled(equalized, statistics, done), tuple(done)


def drop_idle_caps(model: ir.Model, statistics: Statistics) -> tuple[ir.Model, Statistics, tuple[str, ...]]:
    """Remove the caps (a Min with a constant per channel) that no channel ever reached while calibrating.

    Args:
        model: the float network; it is not changed.
        statistics: of this network.

    Returns:
        A copy of the network, the statistics, which hold for it too, and the names of the values whose cap went.
    """
    freed = model.clone()
    gone = []
    for link in find_links(freed):
        for node, span in link.nodes:
            bound = bound_per_channel(node, span, link.channels) if is_operator(node, "Min") else None
            if bound is not None and _stays_below(node.outputs[0], span, bound, statistics):
                gone.append(str(node.outputs[0].name))
                take_place(span.value, node.outputs[0])
    if not gone:
        return model, statistics, ()
    return freed, replace(statistics, network=network_digest(freed)), tuple(gone)


# --- factors --------------------------------------------------------------------------------------------------


def _converged(links: Sequence[Link], activations: Sequence[Float], share: float) -> list[Float]:
    """Factors of each link after sweeping over all of them until they stand still.

    Args:
        links: of the network.
        activations: reach of each link's channels before any scaling, 0 where unknown.
        share: weight of that reach beside the weights' range.
    """
    reach = {
        layer.node: _reach(layer) for link in links for layer in (link.writer, *(each for each, _ in link.readers))
    }
    totals = [np.ones(link.channels) for link in links]
    for _ in range(_MOST_SWEEPS):
        change = 0.0
        for number, link in enumerate(links):
            wanted = totals[number] * _factors(link, reach, activations[number] / totals[number], share)
            step = np.clip(wanted, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR) / totals[number]
            totals[number] *= step
            reach[link.writer.node] /= step.reshape(reach[link.writer.node].shape[0], -1, 1)
            for layer, span in link.readers:
                reach[layer.node] *= span.spread(step).reshape(reach[layer.node].shape[0], 1, -1)
            change = max(change, float(np.abs(np.log(step)).max(initial=0.0)))
        if change < _CONVERGED:
            break
    return totals


def _reach(layer: Layer) -> Float:
    """Largest |weight| over the kernel, shape [groups, outputs of a group, inputs of a group]."""
    array = np.abs(layer.weight.astype(np.float64))
    return by_channels(layer, array.reshape(*array.shape[:2], -1).max(axis=2)).copy()


def _factors(link: Link, reach: Mapping[ir.Node, Float], activation: Float, share: float) -> Float:
    """Equation 11 for one link; 1 where a channel has no weights on one side."""
    before = reach[link.writer.node].max(axis=2).reshape(-1)
    behind = np.zeros(link.channels)
    for layer, span in link.readers:
        inputs = reach[layer.node].max(axis=1).reshape(link.channels, span.repeat)
        behind = np.maximum(behind, inputs.max(axis=1))
    alive = (before > 0) & (behind > 0)
    known = alive & (activation > 0)
    if known.any():
        common = np.median(before[known] / activation[known])
        before[known] = before[known] ** (1 - share) * (common * activation[known]) ** share
    return np.sqrt(np.where(alive, before, 1.0) / np.where(alive, behind, 1.0))


def _activation_reach(link: Link, statistics: Statistics | None) -> Float:
    """Largest value that each channel takes between the layers, 0 where nothing says it.

    What a Clip or cap bounds it to; where there is none, what calibration saw.
    """
    bounds = [bound for node, span in link.nodes if (bound := _upper_bound(node, span, link.channels)) is not None]
    if bounds:
        return np.asarray(np.min(bounds, axis=0))
    tensors = statistics.tensors if statistics is not None else {}
    reach = np.zeros(link.channels)
    for span in link.spans:
        tensor = tensors.get(str(span.value.name))
        channels = _channels(tensor, span.axis, link.channels * span.repeat) if tensor is not None else None
        if channels is not None:
            largest = np.maximum(np.abs(channels.minimum), np.abs(channels.maximum)).astype(np.float64)
            reach = np.maximum(reach, largest.reshape(link.channels, span.repeat).max(axis=1))
    return reach


def _upper_bound(node: ir.Node, span: Span, channels: int) -> Float | None:
    """Finite positive bound that a Clip or a Min with a constant keeps each channel below, None for another node."""
    bound = bound_per_channel(node, span, channels) if is_operator(node, "Min") else None
    if is_operator(node, "Clip"):
        bounds = zero_based_bound(node)
        bound = np.full(channels * span.repeat, bounds[1] if bounds else math.inf)
    if bound is None or not (np.isfinite(bound).all() and (bound > 0).all()):
        return None
    return np.asarray(bound.reshape(channels, span.repeat).max(axis=1))


# --- the network ----------------------------------------------------------------------------------------------


def _apply(link: Link, factors: Float, idle: Collection[ir.Node]) -> Equalization:
    values = {str(span.value.name): span.spread(factors) for span in link.spans}
    axes = {str(span.value.name): span.axis for span in link.spans}
    scale_output(current_layer(link.writer), 1 / factors, np.zeros(1))
    for layer, span in link.readers:
        scale_input(current_layer(layer), span.spread(factors), np.zeros(1))
    capped = []
    for node, span in link.nodes:
        if is_operator(node, "Clip"):
            capped += _split_clip(node, span, span.spread(factors), idle=node in idle)
        elif is_operator(node, "Min", "Max"):
            _scale_bound(node, span, link.channels, span.spread(factors))
    return Equalization(
        writer=str(link.writer.node.name),
        readers=tuple(str(layer.node.name) for layer, _ in link.readers),
        factors=factors,
        values=values,
        axes=axes,
        capped=tuple(capped),
    )


def _split_clip(node: ir.Node, span: Span, factors: Float, *, idle: bool) -> list[str]:
    """Write a Clip of rescaled channels as Relu and Min; return the name of the capped value, if it has a cap."""
    bounds = zero_based_bound(node)
    assert bounds is not None
    low, high = bounds
    graph, result = graph_of(node), node.outputs[0]
    name, value = str(node.name), str(result.name)
    source, capped = span.value, not idle and math.isfinite(high)
    if low == 0:
        names = (
            (unique_name(graph, f"{name}_relu"), unique_name(graph, f"{value}_uncapped")) if capped else (name, None)
        )
        relu = new_node("Relu", [node.inputs[0]], name=names[0], output=names[1], like=result)
        graph.insert_before(node, relu)
        source = relu.outputs[0]
    elif node.inputs[0] is not None:
        source = node.inputs[0]
    if capped:
        cap = add_constant(graph, f"{value}_cap", along(span, high / factors))
        bounded = new_node("Min", [source, cap], name=name)
        graph.insert_before(node, bounded)
        source = bounded.outputs[0]
    take_place(source, result)
    return [value] if capped else []


def _scale_bound(node: ir.Node, span: Span, channels: int, factors: Float) -> None:
    bound = bound_per_channel(node, span, channels)
    number = next(number for number, value in enumerate(node.inputs) if constant_array(value) is not None)
    if bound is not None and bound.any():
        replace_constant_input(node, number, along(span, bound / factors))


# --- caps -----------------------------------------------------------------------------------------------------


def _idle_clips(link: Link, statistics: Statistics | None) -> set[ir.Node]:
    """Clips of a link whose upper bound no channel ever reached; those without one."""
    found = set()
    for node, span in link.nodes:
        bounds = zero_based_bound(node) if is_operator(node, "Clip") else None
        if bounds is None:
            continue
        bound = np.full(link.channels * span.repeat, bounds[1])
        if math.isinf(bounds[1]) or (statistics and _stays_below(node.outputs[0], span, bound, statistics)):
            found.add(node)
    return found


def _needs_new_cap(link: Link, idle: Collection[ir.Node]) -> bool:
    return any(is_operator(node, "Clip") and node not in idle for node, _ in link.nodes)


def _stays_below(value: ir.Value, span: Span, bound: Float, statistics: Statistics) -> bool:
    """Whether every channel of a value was seen, and only below its bound."""
    tensor = statistics.tensors.get(str(value.name))
    if tensor is None or tensor.is_empty or tensor.nan_count or tensor.infinity_count:
        return False
    channels = _channels(tensor, span.axis, bound.size)
    return bool((channels.maximum < bound).all() if channels is not None else tensor.maximum < bound.min())


# --- statistics -----------------------------------------------------------------------------------------------


def _rescaled(model: ir.Model, statistics: Statistics | None, done: Sequence[Equalization]) -> Statistics | None:
    if statistics is None:
        return None
    tensors = dict(statistics.tensors)
    aliases = dict(statistics.aliases)
    for one in done:
        for name, factors in one.values.items():
            tensor = tensors.pop(name, None)
            scaled = _scaled(tensor, factors, one.axes[name]) if tensor is not None else None
            if scaled is not None:
                tensors[name] = scaled
    capped = {name for one in done for name in one.capped}
    for node in model.graph:  # what only a cap reads needs no range above it
        if node.outputs[0].name in capped:
            aliases[str(node.inputs[0].name)] = str(node.outputs[0].name)  # type: ignore[union-attr]
    return replace(statistics, tensors=tensors, aliases=aliases, network=network_digest(model))


def _scaled(tensor: TensorStatistics, factors: Float, axis: int) -> TensorStatistics | None:
    channels = _channels(tensor, axis, factors.size)
    if channels is None:
        return None
    minimum = (channels.minimum / factors).astype(np.float32)
    maximum = (channels.maximum / factors).astype(np.float32)
    return replace(
        tensor,
        minimum=float(minimum.min()),
        maximum=float(maximum.max()),
        histogram=EMPTY,
        channels=replace(channels, minimum=minimum, maximum=maximum, total=channels.total / factors),
    )


def _channels(tensor: TensorStatistics, axis: int, size: int) -> ChannelStatistics | None:
    """What was seen along an axis, None where that is not known or not all was finite."""
    channels = tensor.channels
    if channels is None or channels.axis != axis or channels.minimum.size != size:
        return None
    return None if tensor.is_empty or tensor.nan_count or tensor.infinity_count else channels
