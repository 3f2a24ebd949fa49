"""Networks and plans of whole numbers and powers of two: every float32 sum is exact, so noise is, in any order."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import AnyEncoding
from narrowgauge.core.plan import Plan
from narrowgauge.data import Batch
from narrowgauge.graph.engine import open_session
from narrowgauge.graph.roles import is_float, weight_inputs
from narrowgauge.lowering.qdq import lower_to_qdq
from tests.calibration.networks import batches_of
from tests.lowering.networks import hand_plan, per_tensor

Array = np.ndarray


def exact_plan(
    model: ir.Model, *, step: float = 4.0, float_nodes: Sequence[str] = (), skip: Sequence[str] = (), bits: int = 16
) -> Plan:
    """Encode every weight with a step of 2, every input and every written value (but `skip`) with a step of `step`."""
    encodings: dict[str, AnyEncoding] = {}
    for value in model.graph.inputs:
        encodings[str(value.name)] = per_tensor(f"int{bits}", 2.0)
    for node in model.graph:
        for number in weight_inputs(node):
            encodings[str(node.inputs[number].name)] = per_tensor("int8", 2.0)
        for value in node.outputs:
            if is_float(value) and value.name not in skip:
                encodings[str(value.name)] = per_tensor(f"int{bits}", step)
    return hand_plan(encodings, float_nodes=float_nodes)


def outputs(model: ir.Model, batches: Sequence[Batch]) -> list[dict[str, Array]]:
    session = open_session(model, threads=1, optimization="none", simulate=True)
    names = [value.name for value in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(batch.feed)), strict=True)) for batch in batches]


def noise(reference: ir.Model, network: ir.Model, plan: Plan, batches: Sequence[Batch]) -> float:
    """Run both networks whole: the mean over the float outputs of error energy over signal energy."""
    ours, theirs = outputs(lower_to_qdq(network, plan), batches), outputs(reference, batches)
    shares = []
    for name in theirs[0]:
        if theirs[0][name].dtype.kind != "f":
            continue
        pairs = [(mine[name].astype(np.float64), real[name]) for mine, real in zip(ours, theirs, strict=True)]
        error = sum(np.square(mine - real).sum() for mine, real in pairs)
        signal = sum(np.square(real.astype(np.float64)).sum() for _, real in pairs)
        shares.append(0.0 if error == 0 else error / signal if signal else math.inf)
    return float(np.mean(shares))


def only(plan: Plan, names: Sequence[str]) -> Plan:
    return replace(plan, encodings={name: plan.encodings[name] for name in names})


def without(plan: Plan, names: Sequence[str]) -> Plan:
    return replace(plan, encodings={name: one for name, one in plan.encodings.items() if name not in names})


def batched(model: ir.Model, feed: Mapping[str, Array], size: int = 4) -> list[Batch]:
    return list(batches_of(model, dict(feed), size))
