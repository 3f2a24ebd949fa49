"""Planned networks on their way out."""

from typing import Any

import onnx_ir as ir

from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.exporters.formats import Export
from narrowgauge.exporters.forms import forms_for
from narrowgauge.targets.registry import load_target
from tests.planning.networks import planned, seen


def export(model: ir.Model, data: Any, target: str = "openvino", **asked: Any) -> Export:
    """Plan a network for a target by ranges that clip nothing; `mode="none"` plans nothing."""
    chosen = load_target(target)
    if asked.get("mode") == "none":
        return Export(network=model, plan=Plan(target=target, encodings={}), target=chosen, simulated=model)
    asked = {key: integer_type(value) if key in ("weights", "activations") else value for key, value in asked.items()}
    statistics = seen(model, data) if asked.get("mode", "static") == "static" else None
    plan = planned(model, statistics, target, **asked)
    return Export(network=model, plan=plan, target=chosen, simulated=forms_for(chosen, model, plan).simulated)
