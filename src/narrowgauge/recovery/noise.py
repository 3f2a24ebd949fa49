"""How much rounding noise a matrix product will have, predicted from statistics alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.calibration.statistics import ChannelStatistics, TensorStatistics
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import weight_inputs

Float = npt.NDArray[np.float64]


def products_by_input(model: ir.Model, layers: set[str]) -> dict[str, list[ir.Node]]:
    """Matrix products with constant two-dimensional weights, of the given names, by the name of what they multiply."""
    groups: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if node.name not in layers or not is_operator(node, "MatMul", "Gemm") or weight_inputs(node) != [1]:
            continue
        weights = node.inputs[1]
        flat = weights is not None and weights.const_value is not None and len(weights.const_value.shape) == 2
        if source is not None and flat and not node.attributes.get_int("transA", 0):
            groups.setdefault(str(source.name), []).append(node)
    return groups


def product_channels(tensor: TensorStatistics | None, value: ir.Value | None) -> ChannelStatistics | None:
    """What was seen along the axis that a product sums up, the last; None where that is unknown or not all finite."""
    if tensor is None or tensor.channels is None or value is None or value.shape is None:
        return None
    if tensor.nan_count or tensor.infinity_count or tensor.is_empty:
        return None
    return tensor.channels if tensor.channels.axis == value.shape.rank() - 1 else None


def weights_by_input(node: ir.Node) -> Float:
    """Weights of a matrix product as [input channels, output channels]."""
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    weights = node.inputs[1].const_value.numpy().astype(np.float64)
    return weights.T if node.attributes.get_int("transB", 0) else weights


def migration_factors(reach: Float, heights: Float, strength: float) -> Float:
    """Factor s per channel, its median 1; channels that are always 0 keep 1."""
    if strength == 0 or not reach.any():
        return np.ones_like(reach)
    factors = np.where(reach > 0, np.maximum(reach, 1e-8) ** strength / heights ** (1 - strength), np.nan)
    factors = np.where(np.isnan(factors), 1.0, factors / np.nanmedian(factors))
    return np.clip(factors, 2.0**-10, 2.0**10)


def product_noise(
    channels: ChannelStatistics, weights: Float, factors: Float, bits: int, weight_bits: int | None = None
) -> float:
    """Predicted variance of the rounding error, summed over the output channels of all the products.

    Args:
        channels: what was seen of what is multiplied.
        weights: `[input channels, output channels]`.
        factors: by which each input channel is divided, and its weights multiplied.
        bits: of activations.
        weight_bits: of weights; None for as many. With fewer than 8 their range is not their largest magnitude: the
            best step for Gaussian weights of 4 bits is 0.6 times as wide (Banner et al. 2019, section 3.1).
    """
    weight_bits = bits if weight_bits is None else weight_bits
    low = min(float((channels.minimum / factors).min()), 0.0)
    high = max(float((channels.maximum / factors).max()), 0.0)
    step = (high - low) / (2**bits - 1)
    scaled = weights * factors[:, None]
    activation_noise = step**2 / 12 * float((scaled**2).sum())
    weight_steps = np.abs(scaled).max(axis=0) / (2 ** (weight_bits - 1) - 1) * (0.6 if weight_bits < 8 else 1.0)
    # E x^2 per channel is not known; for spread numbers it is near (range / 6)^2 + mean^2.
    spread = (channels.maximum - channels.minimum).astype(np.float64) / 6
    energy = (spread**2 + channels.mean**2) / factors**2
    weight_noise = float((weight_steps**2).sum()) / 12 * float(energy.sum())
    return float(activation_noise + weight_noise)
