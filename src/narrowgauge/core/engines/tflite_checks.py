"""What LiteRT's kernels take: types, scales and zero points; all else is refused."""

from __future__ import annotations

import numpy as np

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.kernels import Layer
from narrowgauge.errors import PlanError


def check_activation(encoding: Encoding, what: str) -> None:
    """Refuse levels that LiteRT has no type for.

    Raises:
        PlanError: neither int8, uint8 nor int16, or more than one scale, or int16 with a zero point, or a scale with
            which float32 products of scales overflow.
    """
    kind = encoding.type
    if kind.bits not in (8, 16) or (kind.bits == 16 and not kind.signed):
        raise PlanError(f"expected {what} to be int8, uint8 or int16, which LiteRT computes with, got {kind.name}")
    if encoding.scale.ndim:
        raise PlanError(f"expected one scale of {what}, got {encoding.granularity}")
    if not 2.0**-40 <= encoding.scale <= 2.0**40:
        raise PlanError(f"expected a scale of {what} between 2^-40 and 2^40, got {float(encoding.scale):g}")
    if kind.bits == 16 and encoding.zero_point != 0:
        raise PlanError(f"expected zero point 0 of {what}, as LiteRT asks of int16, got {int(encoding.zero_point)}")


def check_alike(what: str, *encodings: Encoding) -> None:
    """Refuse tensors of different types.

    Raises:
        PlanError: naming what and the types.
    """
    for encoding in encodings:
        check_activation(encoding, f"inputs and output of {what}")
    names = [encoding.type.storage.name for encoding in encodings]
    if len(set(names)) > 1:
        raise PlanError(f"expected inputs and output of {what} to have one type, got {', '.join(names)}")


def check_count(what: str, count: int) -> None:
    """Refuse a mean or a sum of nothing.

    Raises:
        PlanError: naming what.
    """
    if count < 1:
        raise PlanError(f"expected {what} of at least one number, got {count}")


def check_layer(layer: Layer) -> None:
    """Refuse a layer that LiteRT has no kernel for.

    Raises:
        PlanError: types that do not go together, or scales per channel of uint8 weights.
    """
    if layer.kind == "batch_product":
        check_alike("a product of two activations", layer.input, layer.weights, layer.output)
        if not layer.input.type.signed:
            raise PlanError("expected int8 or int16 in a product of two activations, as LiteRT asks, got uint8")
        return
    check_alike("a layer with weights", layer.input, layer.output)
    weights, unsigned = layer.weights, not layer.input.type.signed
    if weights.type.bits > 8 or weights.type.signed == unsigned or (unsigned and weights.scale.ndim):
        wanted = "uint8 weights of one scale" if unsigned else "signed weights of up to 8 bits"
        raise PlanError(
            f"expected {wanted} with {layer.input.type.name} inputs, as LiteRT has them, "
            f"got {weights.type.name}, {weights.granularity}"
        )
    if weights.scale.ndim > 1 or (not unsigned and weights.zero_point.any()):
        raise PlanError(
            f"expected one scale, or one per channel, and zero point 0 of {weights.type.name} weights, "
            f"got {weights.granularity}"
        )


def check_fixed_output(operator: str, output: Encoding, scale: float, zero_point: int) -> None:
    """Refuse an output that LiteRT's kernel does not write.

    Raises:
        PlanError: another scale or zero point.
    """
    if output.scale != np.float32(scale) or output.zero_point != zero_point:
        raise PlanError(
            f"expected {operator} to write {output.type.name} with scale {scale:g} and zero point {zero_point}, as "
            f"LiteRT's kernel does, got scale {float(output.scale):g} and zero point {int(output.zero_point)}"
        )


def check_resized(input: Encoding, output: Encoding) -> None:
    """Refuse an interpolation that changes what levels mean.

    Raises:
        PlanError: input and output differ.
    """
    check_alike("Resize", input, output)
    if not input.same_as(output):
        raise PlanError("expected input and output of Resize to share scale and zero point, as LiteRT's do")
