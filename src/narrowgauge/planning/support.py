"""What of a plan a target cannot run, and what of a recipe a plan did not take."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from narrowgauge.core.encoding import AnyEncoding, Encoding
from narrowgauge.core.granularity import PerAxis, PerBlock
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.plan import Plan
from narrowgauge.graph.roles import float_outputs, weight_inputs
from narrowgauge.planning.choices import Choices
from narrowgauge.planning.factors import readers, rule_of
from narrowgauge.targets.schema import Scope, Target


def unsupported(model: ir.Model, plan: Plan, target: Target) -> list[str]:
    """Say what a target cannot do of a plan: number types, zero points, granularities; empty if it can all.

    Each is said once, with the first tensor that has it.
    """
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    values |= {str(value.name): value for value in (*model.graph.inputs, *model.graph.initializers.values())}
    said: dict[str, str] = {}
    for name, encoding in plan.encodings.items():
        for fault in _faults(encoding, values.get(name), target):
            said.setdefault(fault, name)
    return [f"{fault}, first {name!r}" for fault, name in said.items()]


def without_effect(model: ir.Model, plan: Plan, choices: Choices) -> list[str]:
    """Say for which operators a type of activations was asked, alone, that no encoding came of."""
    reasons = {entry.name: entry.reason for entry in plan.float_nodes}
    found: dict[str, list[str]] = {}
    for node in model.graph:
        asked = choices.nodes.get(str(node.name))
        if asked is None or asked.activations is None or asked.keep_float or str(node.name) not in reasons:
            continue
        if not any(value.name in plan.encodings for value in float_outputs(node)):
            said = f"{asked.activations.name} has no effect on {node.op_type}: {reasons[str(node.name)]}"
            found.setdefault(said, []).append(str(node.name))
    return [
        f"{said} ({nodes[0]}{f' and {len(nodes) - 1} more' if len(nodes) > 1 else ''})" for said, nodes in found.items()
    ]


def _faults(encoding: AnyEncoding, value: ir.Value | None, target: Target) -> Iterator[str]:
    """Say what a target cannot do of one tensor's encoding."""
    constant = value is not None and value.const_value is not None
    weights = value is not None and constant and _is_weight(value, target)
    # A constant may stand in the place of an activation, as the table of positions does.
    what, rules = ("weights", target.weights) if weights else ("activations", target.activations)
    kind, own = encoding.type, _own_types(value, target, weights=weights)
    if kind not in {*own, *rules.types}:
        alone = [one for one in own if one not in rules.types]
        more = f", and here {', '.join(one.name for one in alone)}" if alone else ""
        yield f"{what} of {kind.name} (it takes {', '.join(one.name for one in rules.types)}{more})"
    if not isinstance(encoding, Encoding):
        return
    if rules.is_symmetric(kind) and not _symmetric(encoding):
        yield f"{what} of {kind.name} with a zero point (it takes none)"
    scope = _scope(encoding)
    held = (*target.weights.granularity, *(one for rule in target.operators for one in rule.weight_granularity))
    if scope not in ("tensor", *rules.granularity, *(held if constant else ())):
        yield f"{what} with a scale per {scope} (it takes one per {' or '.join(rules.granularity)})"


def _own_types(value: ir.Value | None, target: Target, *, weights: bool) -> list[IntegerType]:
    """Types that the operators around a tensor have beside the target's."""
    if value is None:
        return []
    if weights:
        rules = [rule_of(node, target) for node, _ in value.uses()]
        return list(dict.fromkeys(kind for rule in rules if rule is not None for kind in rule.weight_types))
    writer = _source(value, target).producer()
    found: dict[IntegerType, None] = {}
    if writer is not None and writer.domain == "":
        for rule in target.operators:
            # What is fused into an operator writes what that one does; a bias addition is part of a layer's row.
            if writer.op_type in (*rule.operators, *rule.fuses) or (writer.op_type == "Add" and rule.kind == "compute"):
                found |= dict.fromkeys(rule.types)
            if writer.op_type in rule.operators:
                found |= dict.fromkeys(one.type for one in rule.log_output)
    for node in readers(value, target):
        read = rule_of(node, target)
        found |= dict.fromkeys(read.types if read is not None else ())
    return list(found)


def _source(value: ir.Value, target: Target) -> ir.Value:
    """The value whose levels another one has, moved."""
    node = value.producer()
    while node is not None and (rule := rule_of(node, target)) is not None and rule.kind == "same" and node.inputs[0]:
        value = node.inputs[0]
        node = value.producer()
    return value


def _is_weight(value: ir.Value, target: Target) -> bool:
    """Whether a constant is a layer's weights; a Gather's table is levels where the target only moves them."""
    for node, number in value.uses():
        rule = rule_of(node, target)
        if number in weight_inputs(node) and (rule is None or rule.kind != "same"):
            return True
    return False


def _symmetric(encoding: Encoding) -> bool:
    """Whether real 0 lies on the level 0; of an unsigned type also on the middle one."""
    middle = 0 if encoding.type.signed else (encoding.type.maximum + 1) // 2
    return bool(((encoding.zero_point == 0) | (encoding.zero_point == middle)).all())


def _scope(encoding: Encoding) -> Scope:
    if isinstance(encoding.granularity, PerBlock):
        return "block"
    return "channel" if isinstance(encoding.granularity, PerAxis) else "tensor"
