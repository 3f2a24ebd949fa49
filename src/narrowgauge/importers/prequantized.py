"""Networks that others quantized: taken apart into a float network and a `Plan`, nothing lost."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from narrowgauge.core.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Parted:
    """A quantized network in its two parts.

    Attributes:
        model: The float network: its weights and biases are the real numbers that the integers stood for.
        plan: The encodings, by the float network's names.
        notes: What could not be expressed, one sentence each.
    """

    model: ir.Model
    plan: Plan
    notes: tuple[str, ...]


def take_apart(model: ir.Model, *, target: str = "") -> Parted:
    """Part a quantized ONNX network into the float network and its plan.

    Args:
        model: Q/DQ, QOperator, integer-operator or QONNX form; it is not changed.
        target: name of the target that it was quantized for; "" takes the one that its form is of.

    Returns:
        Parts of which `lowering.qdq.lower_to_qdq` makes a network that computes the same integers.

    Raises:
        ModelError: an operator of integers is not known; the message names the node.
    """
    raise NotImplementedError
