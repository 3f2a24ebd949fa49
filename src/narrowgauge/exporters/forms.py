"""The forms that a planned network takes: the simulated one, the target's own, the one in integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from narrowgauge.core.plan import Plan
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.exporters.formats import FORMATS, Format
from narrowgauge.lowering.dynamic import lower_dynamically
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.lowering.qoperator import lower_to_qoperator
from narrowgauge.lowering.unsigned import in_unsigned
from narrowgauge.planning.support import unsupported
from narrowgauge.targets.schema import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class Forms:
    """A planned network in its forms.

    Attributes:
        target: what they are for.
        simulated: Q/DQ form, runs anywhere ONNX runs.
        exported: the target's own form; None where that is no ONNX network, or the target cannot do the plan.
        format: what writes the target's own files where those are no ONNX network; None where `exported` is there, the
            target cannot do the plan, or what writes them is not installed.
        integer: standard and ONNX Runtime's integer operators; None where the target's arithmetic is not theirs.
        notes: why a form is missing.
    """

    target: Target
    simulated: ir.Model
    exported: ir.Model | None
    integer: ir.Model | None
    notes: tuple[str, ...]
    format: Format | None = None


Writer = Callable[[ir.Model, Plan, Target], ir.Model]


def _qdq(model: ir.Model, plan: Plan, target: Target) -> ir.Model:
    if plan.mode == "dynamic":
        return lower_dynamically(model, plan)
    # ONNX Runtime computes DequantizeLinear of a constant in every run, slower than the layer itself.
    native = target.runtime == "onnxruntime"
    style = QdqStyle(
        bias_bits=target.bias_bits, convert_weights=native and plan.mode == "weight-only",
        clip_levels=native, widen_weights=native and plan.mode == "static", shield_float_layers=native,
    )  # fmt: skip
    prefers_unsigned = native and not target.activations.types[0].signed
    return lower_to_qdq(model, in_unsigned(model, plan) if prefers_unsigned else plan, style)


def _qoperator(model: ir.Model, plan: Plan, target: Target) -> ir.Model:
    return lower_dynamically(model, plan) if plan.mode == "dynamic" else lower_to_qoperator(_qdq(model, plan, target))


LOWERED: dict[str, Writer] = {"qdq": _qdq, "qoperator": _qoperator}
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
    if refused:
        notes.append(f"WARNING: {target.name} cannot run this plan, it is only simulated: {'; '.join(refused)}")
    elif name in LOWERED:
        try:
            exported = LOWERED[name](model, plan, target)
        except PlanError as error:
            refused = [str(error)]
            notes.append(f"WARNING: {name} cannot say this plan, it is only simulated: {error}")
    elif written is None:
        notes.append(f"no file for {target.name} itself yet: the plan and its simulation are written")
    elif not written.installed:
        notes.append(
            f"WARNING: not written: {written.title}, only the plan and its simulation: that takes {written.package}, "
            f"which is not installed: {written.install}"
        )
    integer = None
    if target.arithmetic.requantization == "onnxruntime" and not refused and plan.mode != "weight-only":
        lowered = exported if name == "qdq" and plan.mode == "static" else None
        integer = lower_to_qoperator(lowered) if lowered is not None else _qoperator(model, plan, target)
    usable = written if written is not None and written.installed and not refused else None
    return Forms(
        target=target, simulated=simulated, exported=exported, integer=integer, notes=tuple(notes), format=usable
    )
