"""Fold constants and sizes in turn, until nothing is left of either."""

import onnx_ir as ir

from narrowgauge.graph.refusals import Refusal
from narrowgauge.passes.fold_constants import fold_constants
from narrowgauge.passes.fold_shapes import fold_shapes

_ROUNDS = 8
"""Each may make an operand of the other constant; the longest chain known, of masks of windows, takes four rounds."""


def fold_all(model: ir.Model) -> tuple[Refusal, ...]:
    """Run `fold_constants` and `fold_shapes` in place until no node goes; refusals are those of the last round."""
    refusals: tuple[Refusal, ...] = ()
    for _ in range(_ROUNDS):
        count = len(model.graph)
        refusals = (*fold_constants(model), *fold_shapes(model))
        if len(model.graph) == count:
            break
    return refusals
