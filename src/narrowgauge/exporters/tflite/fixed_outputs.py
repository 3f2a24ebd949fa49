"""Operators that write one encoding only, whatever the plan says; a QUANTIZE behind them makes the plan's of it."""

from __future__ import annotations

from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.forms import Levels

FIXED_OUTPUTS = {
    "LOGISTIC": {"INT8": (1 / 256, -128), "UINT8": (1 / 256, 0), "INT16": (1 / 32768, 0)},
    "TANH": {"INT16": (1 / 32768, 0)},
    "SOFTMAX": {"INT8": (1 / 256, -128), "UINT8": (1 / 256, 0), "INT16": (1 / 32768, 0)},
    "LOG_SOFTMAX": {"INT8": (16 / 256, 127), "UINT8": (16 / 256, 255)},
    "L2_NORMALIZATION": {"INT8": (1 / 128, 0), "UINT8": (1 / 128, 128)},
}
"""Operator -> type -> scale and zero point of its output, which kernels insist on (activations.cc, l2norm.cc)."""


def fixed_levels(call: Call, name: str) -> Levels | None:
    """Return the levels that an operator writes; None where it writes those of the plan, or real numbers."""
    kind = call.type()
    found = FIXED_OUTPUTS.get(name, {}).get(kind) if call.integer else None
    return None if found is None else Levels(type=kind, scale=found[0], zero_point=found[1])
