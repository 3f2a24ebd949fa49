"""What of a plan a target cannot run."""

from __future__ import annotations

import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerBlock
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.plan import Plan
from narrowgauge.graph.roles import weight_inputs
from narrowgauge.targets.schema import OperatorRule, Scope, Target


def unsupported(model: ir.Model, plan: Plan, target: Target) -> list[str]:
    """Say what a target cannot do of a plan: number types, zero points, granularities; empty if it can all."""
    kinds = {name: value.const_value is not None for name, value in model.graph.initializers.items()}
    said: dict[str, None] = {}
    for name, encoding in plan.encodings.items():
        constant = kinds.get(name, False)
        rules = target.weights if constant else target.activations
        own = {kind for rule in target.operators for kind in (rule.weight_types if constant else _written(rule))}
        what = "weights" if constant else "activations"
        kind = encoding.type
        if constant and kind not in own | set(rules.types) | set(target.activations.types):
            said[f"{what} of {kind.name} (it takes {', '.join(one.name for one in rules.types)})"] = None
        if not constant and kind not in own | set(rules.types):
            said[f"{what} of {kind.name} (it takes {', '.join(one.name for one in rules.types)})"] = None
        if isinstance(encoding, Encoding):
            # A constant may stand in the place of an activation, as the table of positions does.
            placed = rules if not constant or _is_weight(model.graph.initializers[name]) else target.activations
            if placed.is_symmetric(kind) and not _symmetric(encoding):
                said[f"{what} of {kind.name} with a zero point (it takes none)"] = None
            scope = _scope(encoding)
            scopes = {*rules.granularity, *(s for rule in target.operators for s in rule.weight_granularity)}
            if scope != "tensor" and scope not in scopes:
                said[f"{what} with a scale per {scope} (it takes one per {' or '.join(rules.granularity)})"] = None
    return list(said)


def _written(rule: OperatorRule) -> tuple[IntegerType, ...]:
    """Types of activations that an operator has of its own."""
    return (*rule.types, *(one.type for one in rule.log_output))


def _is_weight(value: ir.Value) -> bool:
    return any(number in weight_inputs(node) for node, number in value.uses())


def _symmetric(encoding: Encoding) -> bool:
    """Whether real 0 lies on the level 0; of an unsigned type also on the middle one."""
    middle = 0 if encoding.type.signed else (encoding.type.maximum + 1) // 2
    return bool(((encoding.zero_point == 0) | (encoding.zero_point == middle)).all())


def _scope(encoding: Encoding) -> Scope:
    if isinstance(encoding.granularity, PerBlock):
        return "block"
    return "channel" if isinstance(encoding.granularity, PerAxis) else "tensor"
