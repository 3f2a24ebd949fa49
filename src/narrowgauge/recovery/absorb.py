"""High-bias absorption: what a channel hardly ever falls below goes from one layer's bias into the next one's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.calibration.statistics import Statistics
from narrowgauge.graph.constants import constant_array, replace_constant_input
from narrowgauge.graph.edits import is_operator
from narrowgauge.passes.layers import Layer, scale_input, scale_output
from narrowgauge.recovery.analytic_bias import Moments, clipped_normal
from narrowgauge.recovery.links import Link, along, bound_per_channel, current_layer, find_links

Float = npt.NDArray[np.float64]

# f(x - c) = f(x) - c where nothing is cut off; a Relu is so above c.
_SHIFTS = ("Relu", "Min", "Identity", "GlobalAveragePool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose")


@dataclass(frozen=True, kw_only=True, slots=True)
class Absorption:
    """What was moved from one layer to those that read it.

    Attributes:
        writer: name of the layer before.
        readers: names of the layers behind.
        amounts: what was subtracted from each output channel's bias, real units, 0 or more.
        clipped: expected change of each channel's mean by what the Relu now cuts off, real units: it is not exact.
            With statistics 0: calibration saw nothing there.
    """

    writer: str
    readers: tuple[str, ...]
    amounts: Float
    clipped: Float


def absorb_high_biases(
    model: ir.Model,
    moments: Mapping[str, Moments] | None = None,
    statistics: Statistics | None = None,
    *,
    deviations: float = 3.0,
) -> tuple[ir.Model, tuple[Absorption, ...]]:
    """Move what a channel hardly ever falls below, before a Relu, into the biases of the layers behind it.

    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.1.3,
    equations 12 to 15: r(W x + b - c) + c = r(W x + b) wherever W x + b is above c = max(0, mean - 3 deviations). That
    holds for 99.865 % of a normal variable, so the network changes. Caps (a Min with a constant per channel) move
    along. To be called behind `equalize`, which makes such biases; calibrate the new network.

    Differs from the paper: where statistics are given, c is the least value that calibration saw behind the Relu, so
    that nothing it saw is cut off. Moments that are rough are not used: their deviations are too small. And a layer
    that pads its input is left as it is, since zeros at the border would then stand for c.

    Args:
        model: the float network, shapes inferred; it is not changed.
        moments: of the layers' outputs before their activation functions, as BatchNormalization tells them.
        statistics: of this network.
        deviations: how many standard deviations below the mean count as hardly ever.

    Returns:
        A copy of the network, and what was done.
    """
    absorbed = model.clone()
    done = []
    for link in find_links(absorbed):
        found = _seen_floor(link, statistics) if statistics else _expected_floor(link, moments or {}, deviations)
        if found is None or not _can_shift(link):
            continue
        amounts = np.where(_below_caps(link, found[0]), found[0], 0.0)
        if amounts.any():
            _apply(link, amounts)
            clipped = np.where(amounts > 0, found[1], 0.0)
            readers = tuple(str(layer.node.name) for layer, _ in link.readers)
            done.append(
                Absorption(writer=str(link.writer.node.name), readers=readers, amounts=amounts, clipped=clipped)
            )
    return (absorbed, tuple(done)) if done else (model, ())


def _seen_floor(link: Link, statistics: Statistics) -> tuple[Float, Float] | None:
    """Least value that was seen of each channel behind the first Relu, and what cutting it off there changes: 0."""
    relu = next((node for node, _ in link.nodes if is_operator(node, "Relu")), None)
    tensor = statistics.tensors.get(str(relu.outputs[0].name)) if relu is not None else None
    channels = tensor.channels if tensor is not None and not tensor.is_empty else None
    if channels is None or channels.axis != link.spans[0].axis or channels.minimum.size != link.channels:
        return None
    return np.maximum(channels.minimum.astype(np.float64), 0.0), np.zeros(link.channels)


def _expected_floor(link: Link, moments: Mapping[str, Moments], deviations: float) -> tuple[Float, Float] | None:
    """Mean less some deviations of each channel, and by how much cutting it off there raises the mean."""
    found = moments.get(str(link.writer.output.name))
    if found is None or found.rough or found.mean.size != link.channels:
        return None
    floor = np.maximum(found.mean - deviations * found.deviation, 0.0)
    kept, _ = clipped_normal(found.mean, found.deviation, floor, np.inf)
    return floor, kept - found.mean


def _can_shift(link: Link) -> bool:
    if not all(is_operator(node, *_SHIFTS) for node, _ in link.nodes):
        return False
    if not any(is_operator(node, "Relu") for node, _ in link.nodes) or not _has_bias(link.writer):
        return False
    return all(_has_bias(layer) and not _is_padded(layer.node) for layer, _ in link.readers)


def _has_bias(layer: Layer) -> bool:
    """Whether a layer has, or can be given, a bias that takes a shift."""
    return layer.node.op_type in {"Conv", "Gemm"} or layer.bias_node is not None


def _is_padded(node: ir.Node) -> bool:
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    return automatic.startswith("SAME") or any(node.attributes.get_ints("pads", ()))


def _below_caps(link: Link, amounts: Float) -> npt.NDArray[np.bool_]:
    below = np.ones(link.channels, dtype=np.bool_)
    for node, span in link.nodes:
        bound = bound_per_channel(node, span, link.channels) if is_operator(node, "Min") else None
        if bound is not None:
            below &= amounts < bound.reshape(link.channels, span.repeat).min(axis=1)
    return below


def _apply(link: Link, amounts: Float) -> None:
    scale_output(current_layer(link.writer), np.ones(1), -amounts)
    for layer, span in link.readers:
        scale_input(current_layer(layer), np.ones(1), span.spread(amounts))
    for node, span in link.nodes:
        bound = bound_per_channel(node, span, link.channels) if is_operator(node, "Min") else None
        if bound is not None:
            number = next(number for number, value in enumerate(node.inputs) if constant_array(value) is not None)
            replace_constant_input(node, number, along(span, bound - span.spread(amounts)))
