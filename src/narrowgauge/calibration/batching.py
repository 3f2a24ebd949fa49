"""How many samples go through a network together."""

from __future__ import annotations

import math

import onnx_ir as ir

from narrowgauge.calibration.collect import SAMPLED
from narrowgauge.calibration.observe import observations
from narrowgauge.graph.shapes import dimensions

_MOST = 8
_LARGEST_VALUE_BYTES = 10 * 2**20
_LEAVING_BYTES = 80 * 2**20


def batch_size(model: ir.Model) -> int:
    """Samples per run: as many as keep memory small, 1 where the batch is not the first axis of everything.

    Counted are the network's largest value and all that leaves the engine whole, where their sizes are known.
    """
    observed = observations(model, sampled=SAMPLED)
    if not observed.batch_first:
        return 1
    leaving = sum(_bytes(entry.shape) for entry in observed.values.values() if entry.reduction == "whole")
    largest = max((_bytes(dimensions(value)) for node in model.graph for value in node.outputs), default=0)
    return max(1, min(_MOST, _LARGEST_VALUE_BYTES // max(largest, 1), _LEAVING_BYTES // max(leaving, 1)))


def _bytes(sizes: tuple[int | None, ...] | None) -> int:
    """Bytes of one sample's value, 0 where its size is not known."""
    if not sizes or any(size is None for size in sizes[1:]):
        return 0
    return 4 * math.prod(size or 1 for size in sizes[1:])
