"""Partial quantization: the layers that cost most are left float."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import onnx_ir as ir

from narrowgauge.analysis.chain import open_streams
from narrowgauge.analysis.sensitivity import sweep
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.graph.constants import replace_constant_input
from narrowgauge.graph.costs import multiply_accumulates
from narrowgauge.graph.roles import bias_addition, is_constant, is_float
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.recovery.workshop import State, Workshop

REASON = "kept float: it costs the most accuracy"


def costliest_layers(workshop: Workshop, state: State) -> tuple[str, ...]:
    """Order the layers with quantized weights by what each costs at the output for its work, most first.

    What it costs is the noise that it adds by itself, measured on the measuring samples (`analysis.sensitivity.sweep`,
    and see `analysis.records.Analysis.ranking` on why not what leaving it float wins); its work are its
    multiplications, which float makes slower. Empty where no output holds floating-point numbers. (Wu et al., "Integer
    Quantization for Deep Learning Inference", 2020, section 6.1, orders layers by the accuracy of quantizing one alone,
    without their work.)
    """
    if not any(is_float(value) for value in state.reference.graph.outputs):
        return ()
    streams = open_streams(state.reference, state.network, state.plan, workshop.measuring, threads=workshop.threads)
    nodes = {str(node.name): node for node in state.network.graph}
    found = [one for one in sweep(streams).sensitivities if one.kind == "layer"]
    total = sum(multiply_accumulates(node) for node in nodes.values()) or 1
    # A layer of next to no work is not free: what is in float must be converted on both sides.
    work = {one.name: multiply_accumulates(nodes[one.name]) / total + 0.01 for one in found}
    return tuple(one.name for one in sorted(found, key=lambda one: one.alone / work[one.name], reverse=True))


def leave_float(workshop: Workshop, state: State, layers: Collection[str]) -> State:
    """Plan again with these layers in float; all other encodings, weights and biases stay as recovery chose them.

    Args:
        workshop: means to plan.
        state: a recovered state.
        layers: names of nodes with weights.
    """
    kept = {name: NodeChoice(keep_float=REASON) for name in layers}
    choices = replace(state.choices, nodes={**state.choices.nodes, **kept})
    planned = workshop.planned(state.reference, state.statistics, choices)
    network = state.network.clone()
    _restore(network, state.reference, layers)
    return replace(planned, network=network, plan=_with_encodings(planned.plan, state.plan))


def _with_encodings(plan: Plan, chosen: Plan) -> Plan:
    """Take over the encodings that were chosen wherever both plans have one of the same kind."""
    encodings = dict(plan.encodings)
    for name, encoding in chosen.encodings.items():
        old = encodings.get(name)
        alike = isinstance(old, Encoding) and isinstance(encoding, Encoding)
        if alike and (old.type, old.granularity) == (encoding.type, encoding.granularity):  # type: ignore[union-attr]
            encodings[name] = encoding
    return replace(plan, encodings=encodings)


def _restore(network: ir.Model, reference: ir.Model, layers: Collection[str]) -> None:
    """Give layers the float network's weights and biases again."""
    for node, twin in zip(network.graph, reference.graph, strict=True):
        if node.name not in layers:
            continue
        pairs = [(node, twin), (bias_addition(node), bias_addition(twin))]
        for one, other in pairs:
            if one is None or other is None:
                continue
            one.resize_inputs(len(other.inputs))
            for number, value in enumerate(other.inputs):
                if is_constant(value):
                    replace_constant_input(one, number, value.const_value.numpy())  # type: ignore[union-attr]
                elif value is None:  # a bias that recovery gave it
                    one.replace_input_with(number, None)
