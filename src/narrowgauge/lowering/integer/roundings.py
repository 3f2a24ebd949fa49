"""How real numbers become levels on the way in: each engine's own way, written before an ordinary QuantizeLinear."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.engines.kernels import Rounding
from narrowgauge.core.engines.openvino import scale_and_shift
from narrowgauge.graph.constants import constant_array
from narrowgauge.lowering.integer.emitter import Emitter, Site
from narrowgauge.lowering.pairs import Linear, encoding_of, linear_of


def round_as(emitter: Emitter, node: ir.Node, how: Rounding) -> None:
    """Let a QuantizeLinear of real numbers, with one scale, round as the engine does.

    QuantizeLinear itself divides, rounds half to even and adds the zero point (ONNX). The others are brought to whole
    numbers, or to steps, before it; it then has the scale 1.
    """
    linear = linear_of(node, node.outputs[0])
    if how == "divide" or linear is None or linear.axis is not None:
        return
    scale, zero_point = constant_array(linear.scale), constant_array(linear.zero_point)
    source = node.inputs[0]
    if scale is None or zero_point is None or source is None or source.dtype != ir.DataType.FLOAT:
        return
    site = Site(emitter=emitter, node=node)
    inverse = np.float32(1) / scale
    if how == "reciprocal":
        steps = site.add("Mul", source, site.constant(inverse, "inverse", np.float32))
    elif how == "divide_half_away":
        steps = _half_away(site, source, linear)
    elif how == "range":
        encoding = encoding_of(linear)
        assert encoding is not None  # its scale and zero point are constant
        factor, shift = scale_and_shift(encoding)
        steps = _fused(site, source, factor, shift)
        node.replace_input_with(2, site.constant(encoding.type.minimum, "least", zero_point.dtype))
    else:
        steps = _fused(site, source, inverse, zero_point)
        node.replace_input_with(2, site.constant(0, "zero", zero_point.dtype))
    node.replace_input_with(0, steps)
    node.replace_input_with(1, site.constant(1, "unit", np.float32))


def _fused(site: Site, source: ir.Value, factor: npt.ArrayLike, addend: npt.ArrayLike) -> ir.Value:
    """Multiply and add with one rounding: float64 holds the product exactly."""
    wide = site.add("Cast", source, type=ir.DataType.DOUBLE, to=ir.DataType.DOUBLE)
    wide = site.add("Mul", wide, site.constant(factor, "factor", np.float64))
    wide = site.add("Add", wide, site.constant(addend, "addend", np.float64))
    return site.cast(wide, ir.DataType.FLOAT)


def _half_away(site: Site, source: ir.Value, linear: Linear) -> ir.Value:
    """Divide and round half away from zero, in float64, where adding a half to a float32 is exact."""
    quotient = site.add("Div", source, linear.scale)
    wide = site.add("Cast", quotient, type=ir.DataType.DOUBLE, to=ir.DataType.DOUBLE)
    whole = site.add("Floor", site.add("Add", site.add("Abs", wide), site.constant(0.5, "half", np.float64)))
    return site.cast(site.add("Mul", whole, site.add("Sign", wide)), ir.DataType.FLOAT)
