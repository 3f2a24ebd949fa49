"""How many samples go through a network together."""

from __future__ import annotations

import math

import onnx_ir as ir

from narrowgauge.calibration.observe import observations
from narrowgauge.graph.shapes import dimensions

_MOST = 16
_LARGEST_VALUE_BYTES = 40 * 2**20


def batch_size(model: ir.Model) -> int:
    """Samples per run: as many as keep the network's largest value small, 1 where that or the batch is unknown."""
    if not observations(model, sampled=1).batch_first:
        return 1
    largest = 1
    for node in model.graph:
        for value in node.outputs:
            sizes = dimensions(value)
            if sizes is None or any(size is None for size in sizes[1:]):
                return 1
            largest = max(largest, 4 * math.prod(size or 1 for size in sizes[1:]))
    return max(1, min(_MOST, _LARGEST_VALUE_BYTES // largest))
