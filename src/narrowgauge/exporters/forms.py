"""The forms that a planned network takes: the simulated one, the target's own, the one in integers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from narrowgauge.core.plan import Plan
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.exporters.formats import FORMATS, Format
from narrowgauge.graph.edits import sole_consumer
from narrowgauge.lowering.lower import Form, has_rule, lower, lower_by_rule
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.planning.support import unsupported
from narrowgauge.targets.schema import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class Forms:
    """A planned network in its forms.

    Attributes:
        target: what they are for.
        simulated: Q/DQ form, in float.
        exported: the target's own form; None where that is no ONNX network, or the target cannot do the plan.
        format: what writes the target's own files where those are no ONNX network; None where `exported` is there, the
            target cannot do the plan, or what writes them is not installed.
        integer: what the target computes, in integer operators; None where its arithmetic is not known level for level.
            The very network that is exported where that is in this form.
        notes: why a form is missing.
    """

    target: Target
    simulated: ir.Model
    exported: ir.Model | None
    integer: ir.Model | None
    notes: tuple[str, ...]
    format: Format | None = None


LOWERED: tuple[Form, ...] = ("qdq", "qoperator", "integer")
"""The formats that are ONNX networks."""


def check_format(target: Target, form: str) -> None:
    """Refuse a format that a target does not have.

    Raises:
        TargetError: if it is none of the target's.
    """
    if form and form not in target.formats:
        known = f"one of {', '.join(target.formats)}" if target.formats else "none in this version"
        raise TargetError(f"expected a format of {target.name}, {known}, got {form!r}")


def forms_for(target: Target, model: ir.Model, plan: Plan, *, form: str = "") -> Forms:
    """Lower a planned network to every form that it can take.

    Args:
        target: what it is for.
        model: the float network that the plan describes.
        plan: the encodings.
        form: which of the target's formats to export, "" for its first.

    Raises:
        TargetError: if the target has no such format.
    """
    check_format(target, form)
    notes = []
    simulated = lower_to_qdq(model, plan, QdqStyle(bias_bits=target.bias_bits))
    name = form or (target.formats[0] if target.formats else "")
    refused = unsupported(model, plan, target)
    exported, written = None, FORMATS.get(name)
    lowered = next((one for one in LOWERED if one == name), None)
    if refused:
        notes.append(f"WARNING: {target.name} cannot run this plan, it is only simulated: {'; '.join(refused)}")
    elif lowered is not None and lowered != "integer":
        try:
            exported = lower(model, plan, target, form=lowered)
        except PlanError as error:
            refused = [str(error)]
            notes.append(f"WARNING: {name} cannot say this plan, it is only simulated: {error}")
    elif written is None and lowered is None:
        notes.append(f"no file for {target.name} itself yet: the plan and its simulation are written")
    elif written is not None and not written.installed:
        notes.append(
            f"WARNING: not written: {written.title}, only the plan and its simulation: that takes {written.package}, "
            f"which is not installed: {written.install}"
        )
    integer = None
    if not refused and has_rule(target) and plan.mode != "weight-only":
        integer, left = _integer(target, model, plan, exported if name == "qdq" and plan.mode == "static" else None)
        notes += left
        exported = integer if lowered == "integer" else exported
    usable = written if written is not None and written.installed and not refused else None
    return Forms(
        target=target, simulated=simulated, exported=exported, integer=integer, notes=tuple(notes), format=usable
    )


def _integer(
    target: Target, model: ir.Model, plan: Plan, qdq: ir.Model | None
) -> tuple[ir.Model | None, tuple[str, ...]]:
    """Write a plan in the integers that the target computes; None, and why, where that is not known.

    `qdq` is the target's Q/DQ form, where there is one already.
    """
    try:
        lowered = lower_by_rule(model, plan, target, qdq=qdq)
    except PlanError as error:
        return None, (f"no network in the target's own integers: {error}",)
    # What stays float by the plan is told by the plan.
    told = _float_by_plan(model, plan)
    others = [one for one in lowered.refusals if one.node not in told]
    if not others:
        return lowered.model, ()
    more = f" (and {len(others) - 1} more)" if others[1:] else ""
    warning = "WARNING: " if target.all_integer else ""
    return lowered.model, (
        f"{warning}the network in integers computes {others[0].operator} {others[0].node} in real numbers: "
        f"{others[0].reason}{more}",
    )


def _float_by_plan(model: ir.Model, plan: Plan) -> frozenset[str]:
    """Names of the nodes that a plan leaves float, or whose results, alone or behind what is fused, it does."""
    found = {entry.name for entry in plan.float_nodes}
    for node in reversed(list(model.graph)):
        for value in node.outputs:
            after = sole_consumer(value)
            fused = value.name not in plan.encodings and after is not None and after.name in found
            if value.name in plan.float_outputs or fused:
                found.add(str(node.name))
    return frozenset(found)
