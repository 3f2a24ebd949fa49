"""What was left out: weights that no layer rounds, inputs that show calibration nothing."""

from __future__ import annotations

import onnx_ir as ir

from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.plan import Plan
from narrowgauge.data.inputs import input_specs

# Of the weights' bytes; with less a person should hear it.
_SMALL_SHARE = 0.5

# Weights are matrices and kernels; vectors are biases and scales of channels, which mostly stay float.
_WEIGHT_RANK = 2


def quantized_share(model: ir.Model, plan: Plan) -> float:
    """Return the share of the weights' bytes, 0 to 1, that a plan quantizes; 1 where a network has no weights.

    Args:
        model: the float network that the plan describes.
        plan: its plan.
    """
    sizes = {
        name: value.const_value.nbytes
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype.is_floating_point()
        and len(value.const_value.shape) >= _WEIGHT_RANK
    }
    total = sum(sizes.values())
    return sum(size for name, size in sizes.items() if name in plan.encodings) / total if total else 1.0


def coverage_warnings(model: ir.Model, plan: Plan) -> list[str]:
    """Say so where a plan quantizes nothing, or only a small part of the weights."""
    if not plan.encodings:
        return [
            f"WARNING: nothing was quantized: {plan.target} runs every node of this network in float in {plan.mode} "
            "quantization; take another --recipe or --target"
        ]
    share = quantized_share(model, plan)
    if share >= _SMALL_SHARE:
        return []
    return [f"only {100 * share:.0f} % of the weights are quantized: see why the other nodes stay float"]


def constant_input_warnings(model: ir.Model, statistics: Statistics) -> list[str]:
    """Name float inputs that held one and the same number all over every sample: they calibrate nothing."""
    found = []
    for spec in input_specs(model):
        seen = statistics.tensors.get(spec.name)
        if seen is not None and spec.shape and spec.dtype.kind == "f" and seen.minimum == seen.maximum:
            found.append(
                f"WARNING: every number of input {spec.name!r} was {seen.minimum:g} in all {statistics.samples} "
                "samples: ranges of such data fit no other; are these the data that were meant?"
            )
    return found
