"""The lowering of a network: every operator between levels, in order, by the table of rewrites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from narrowgauge.core.engines.kernels import Kernels
from narrowgauge.errors import PlanError
from narrowgauge.graph.edits import is_operator, remove_unused
from narrowgauge.graph.refusals import REFUSAL, Refusal
from narrowgauge.graph.roles import is_float
from narrowgauge.lowering.integer import (
    attention,
    convolutions,
    elementwise,
    layer_normalization,
    movement,
    products,
    recurrent,
    reductions,
    resize,
    transposed,
)
from narrowgauge.lowering.integer.emitter import Emitter, Site
from narrowgauge.lowering.integer.roundings import round_as

Rewrite = Callable[[ir.Node, Site], None]

REWRITES: dict[str, Rewrite] = {
    "Conv": convolutions.convolution,
    "ConvTranspose": transposed.transposed_convolution,
    "Gemm": products.gemm,
    "MatMul": products.matmul,
    "LSTM": recurrent.lstm,
    "Add": elementwise.binary,
    "Sub": elementwise.binary,
    "Mul": elementwise.product,
    "Div": elementwise.binary,
    "Max": elementwise.binary,
    "Min": elementwise.binary,
    "PRelu": elementwise.parametric_relu,
    "Relu": elementwise.clip,
    "Clip": elementwise.clip,
    "Identity": elementwise.identity,
    "QuantizeLinear": elementwise.rounding,
    **dict.fromkeys(
        ("Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Gelu", "Elu", "Exp", "Log", "Sqrt", "Abs", "Neg",
         "Erf", "Softplus", "Reciprocal", "Sin", "Cos", "Floor", "Ceil", "Round", "Sign", "Mish", "Selu", "Celu"),
        elementwise.unary,
    ),
    "ReduceMean": reductions.reduction,
    "ReduceSum": reductions.reduction,
    "GlobalAveragePool": reductions.global_average_pool,
    "GlobalMaxPool": movement.global_pool,
    "AveragePool": reductions.average_pool,
    "LayerNormalization": layer_normalization.layer_normalization,
    "Softmax": attention.softmax,
    **dict.fromkeys(
        ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Tile", "Gather",
         "GatherND", "GatherElements", "ReduceMax", "ReduceMin", "DepthToSpace", "SpaceToDepth",
         "ReverseSequence"),
        movement.move,
    ),
    "Shape": movement.shape,
    "ArgMax": movement.place,
    "ArgMin": movement.place,
    "MaxPool": movement.pool,
    "Pad": movement.pad,
    "Concat": movement.concat,
    "Resize": resize.resize,
}  # fmt: skip
"""Operator of ONNX -> how it is written in integers; a function raises `PlanError` where it cannot be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lowered:
    """A network in integers.

    Attributes:
        model: the network.
        refusals: nodes that compute in real numbers between levels, and why.
    """

    model: ir.Model
    refusals: tuple[Refusal, ...]


def lower_to_integer(qdq: ir.Model, kernels: Kernels) -> ir.Model:
    """Write a Q/DQ network in integers as an engine computes it; see `integer_network`."""
    return integer_network(qdq, kernels).model


def integer_network(qdq: ir.Model, kernels: Kernels, kept: Mapping[str, str] | None = None) -> Lowered:
    """Write a Q/DQ network in integers as an engine computes it.

    Args:
        qdq: pairs of QuantizeLinear and DequantizeLinear around float operators; it is not changed.
        kernels: the engine's arithmetic.
        kept: names of nodes that stay float also where they read and write levels, and why.

    Returns:
        A network of the same inputs and outputs, of operators of ONNX itself. Levels have the names and types that
        they have in the Q/DQ network, but for signed ones of 8 bits (`emitter`). Nodes that stay float bear the reason
        in their metadata (`graph.refusals.REFUSAL`).
    """
    model = qdq.clone()
    emitter = Emitter(graph=model.graph, kernels=kernels)
    reasons: dict[ir.Node, str] = {}
    for node in list(model.graph):
        rewrite = REWRITES.get(node.op_type) if node.domain == "" else None
        if rewrite is None or node.graph is not model.graph or not _is_read(node):
            continue
        if is_operator(node, "QuantizeLinear") and not _reads_levels(node):
            continue
        if kept and node.name in kept:
            reasons[node] = kept[str(node.name)]
            continue
        try:
            rewrite(node, Site(emitter=emitter, node=node))
        except PlanError as error:
            reasons[node] = str(error)
    remove_unused(model)
    refusals = tuple(_left_float(model.graph, reasons))
    for node in list(model.graph):
        if is_operator(node, "QuantizeLinear"):
            round_as(emitter, node, kernels.quantize)
    remove_unused(model)  # scales that the roundings no longer read
    return Lowered(model=model, refusals=refusals)


def _is_read(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)


def _reads_levels(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is not None and is_operator(source.producer(), "DequantizeLinear")


def _is_real(value: ir.Value, after: set[ir.Value]) -> bool:
    """Whether a value behind levels is computed in real numbers."""
    return value in after and not is_operator(value.producer(), "DequantizeLinear")


def _left_float(graph: ir.Graph, reasons: dict[ir.Node, str]) -> list[Refusal]:
    """Name the nodes that compute real numbers of levels for levels; each bears the reason, as metadata."""
    after: set[ir.Value] = set()
    for node in graph:
        if is_operator(node, "DequantizeLinear") or any(value in after for value in node.inputs if value is not None):
            after |= {value for value in node.outputs if is_float(value) or value.dtype is None}
    before: set[ir.Value] = set()
    for node in reversed(list(graph)):
        if is_operator(node, "QuantizeLinear") or any(value in before for value in node.outputs):
            before |= {value for value in node.inputs if value is not None}
    named = []
    for node in graph:
        if is_operator(node, "DequantizeLinear") or not any(
            value in after and value in before for value in node.outputs
        ):
            continue
        reason = reasons.get(node, "no form of it in integers is known")
        if any(value is not None and _is_real(value, after) for value in node.inputs):
            reason = "it reads real numbers"
        node.metadata_props[REFUSAL] = reason
        named.append(Refusal(node=str(node.name), operator=node.op_type, reason=reason))
    return named
