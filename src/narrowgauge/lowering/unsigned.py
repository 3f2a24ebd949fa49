"""Signed levels of activations as unsigned ones: the same numbers, for engines whose kernels take only those.

ONNX Runtime on x86-64 computes a convolution between Q/DQ pairs of int8 in float (measured on 1.31).
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from narrowgauge.core.encoding import AnyEncoding, Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.plan import Plan


def in_unsigned(model: ir.Model, plan: Plan) -> Plan:
    """Write 8-bit signed levels of activations as unsigned ones, 128 higher, and the zero point with them.

    Each level stands for the same number as before, and rounding to it is the same: `rint(x / scale) + zero_point`
    moves by 128 with its limits. Weights keep their type.

    Args:
        model: the network that the plan is for.
        plan: the encodings; it is not changed.
    """
    weights = model.graph.initializers
    moved = {name: one if name in weights else _unsigned(one) for name, one in plan.encodings.items()}
    return replace(plan, encodings=moved)


def _unsigned(encoding: AnyEncoding) -> AnyEncoding:
    if not isinstance(encoding, Encoding) or not isinstance(encoding.granularity, PerTensor):
        return encoding
    if encoding.type != IntegerType(bits=8, signed=True):  # a narrow one has a level less at the bottom
        return encoding
    return replace(
        encoding, type=IntegerType(bits=8, signed=False), zero_point=encoding.zero_point - encoding.type.minimum
    )
