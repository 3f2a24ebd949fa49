"""A planned network in one of its forms: simulated, in ONNX Runtime's integer operators, in a target's own integers."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.engines.hybrid import HYBRIDS
from narrowgauge.core.engines.kernels import Kernels
from narrowgauge.core.plan import Plan
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.lowering.dynamic import lower_dynamically
from narrowgauge.lowering.hybrid import lower_as_litert
from narrowgauge.lowering.integer.network import Lowered, integer_network
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.lowering.qoperator import lower_to_qoperator
from narrowgauge.lowering.unsigned import in_unsigned
from narrowgauge.targets.schema import Target

Form = Literal["qdq", "qoperator", "integer"]

ONNXRUNTIME = "onnxruntime"
"""The rule whose integer form is ONNX Runtime's own operators."""


def lower(model: ir.Model, plan: Plan, target: Target, *, form: Form = "qdq", arithmetic: str = "") -> ir.Model:
    """Write a plan into a copy of its network.

    Args:
        model: the float network that the plan was made for; it is not changed.
        plan: the encodings.
        target: what it is for.
        form: "qdq": pairs of QuantizeLinear and DequantizeLinear, as the target's engine reads them; "qoperator": ONNX
            Runtime's integer operators; "integer": what the target computes, level for level.
        arithmetic: of the integer form: the name of a rule of requantization; "" for the target's own.

    Returns:
        A network of the same inputs and outputs. In integers, an operator whose arithmetic is not known stays between
        its QuantizeLinear and DequantizeLinear; `lower_by_rule` says which.

    Raises:
        PlanError: the plan does not fit the network, or rounds activations in a way that the form does not have.
        TargetError: there is no such rule, or the target's own is not known.
    """
    if form == "qdq":
        return _qdq(model, plan, target)
    rule = ONNXRUNTIME if form == "qoperator" else arithmetic
    return lower_by_rule(model, plan, target, arithmetic=rule).model


def lower_by_rule(
    model: ir.Model, plan: Plan, target: Target, *, arithmetic: str = "", qdq: ir.Model | None = None
) -> Lowered:
    """Write a plan in the integers of a rule, and say what stays in real numbers.

    Args and errors as `lower`'s; `qdq` is the network in that form for this target, where there is one already.
    """
    rule = arithmetic or target.arithmetic.requantization
    if plan.mode == "dynamic" and rule in HYBRIDS:
        dynamic = lower_dynamically(model, plan) if rule == ONNXRUNTIME else lower_as_litert(model, plan, HYBRIDS[rule])
        return Lowered(model=dynamic, refusals=())
    if rule == ONNXRUNTIME:
        pairs = _qdq(model, plan, target) if qdq is None else qdq
        return Lowered(model=lower_to_qoperator(pairs), refusals=())
    kernels = kernels_of(target, arithmetic)
    if plan.mode != "static":
        raise PlanError(f"expected a static plan for integers of the rule {kernels.name}, got a {plan.mode} one")
    # Each engine has its own level for the bound of an activation function: they stay until it is asked.
    style = QdqStyle(bias_bits=target.bias_bits, drop_clips=False)
    kept = {entry.name: entry.reason for entry in plan.float_nodes}
    return integer_network(lower_to_qdq(model, plan, style), kernels, kept)


def has_rule(target: Target, arithmetic: str = "") -> bool:
    """Whether the arithmetic of a target, or of that name, is known level for level."""
    name = arithmetic or target.arithmetic.requantization
    return name == ONNXRUNTIME or name in KERNELS


def kernels_of(target: Target, arithmetic: str = "") -> Kernels:
    """Return the kernels of a rule, "" for the target's.

    Raises:
        TargetError: there is no such rule.
    """
    name = arithmetic or target.arithmetic.requantization
    if name not in KERNELS:
        whose = "" if arithmetic else f"{target.name}: "
        known = ", ".join(sorted([ONNXRUNTIME, *KERNELS]))
        raise TargetError(f"{whose}expected an arithmetic that is known level for level: {known}; got {name!r}")
    return KERNELS[name]


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
