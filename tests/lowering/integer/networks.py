"""Small networks in Q/DQ and in integer form, and the checks that every integer form has to pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.kernels import Kernels
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.integer.network import Lowered, integer_network
from narrowgauge.lowering.integer.planned import in_planned_types
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from tests.lowering.networks import hand_plan
from tests.passes.networks import network

Feed = Mapping[str, np.ndarray]


def encoding(kind: str, scale: Any, zero_point: int = 0) -> Encoding:
    """One scale, or one for each entry of axis 0."""
    scales = np.asarray(scale, np.float32)
    return Encoding(
        type=integer_type(kind), granularity=PerAxis(0) if scales.ndim else PerTensor(), scale=scales,
        zero_point=np.full(scales.shape, zero_point, np.int32),
    )  # fmt: skip


def simulated(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    encodings: Mapping[str, Encoding],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    bias_bits: int = 32,
) -> ir.Model:
    """Build a network and write encodings into it as Q/DQ pairs."""
    model = load(network(nodes, inputs, list(outputs), dict(constants or {})), simplify=False).model
    return lower_to_qdq(model, hand_plan(encodings), QdqStyle(drop_clips=False, bias_bits=bias_bits))


def lowered(qdq: ir.Model, kernels: Kernels) -> Lowered:
    """Lower a network, and check that it is a valid one without real numbers inside, of the same inputs and outputs."""
    found = integer_network(qdq, kernels)
    proto = ir.to_proto(found.model)
    onnx.checker.check_model(proto, full_check=True)
    for one, other in ((found.model.graph.inputs, qdq.graph.inputs), (found.model.graph.outputs, qdq.graph.outputs)):
        assert [value.name for value in one] == [value.name for value in other]
    assert not [node.name for node in found.model.graph if compares_wide_numbers(node)]
    if not found.refusals:
        assert real_numbers_inside(found.model) == []
    return found


def compares_wide_numbers(node: ir.Node) -> bool:
    """Whether ONNX Runtime 1.31 gets it wrong: https://github.com/microsoft/onnxruntime/pull/25280."""
    return node.op_type in {"Max", "Min", "Clip", "Sign"} and node.inputs[0].dtype == ir.DataType.INT64


def real_numbers_inside(model: ir.Model) -> list[str]:
    """Name the values of floating-point type between the first QuantizeLinear and the last DequantizeLinear."""
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    types = {info.name: info.type.tensor_type.elem_type for info in (*proto.graph.value_info, *proto.graph.output)}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    behind: set[str] = set()  # what depends on a QuantizeLinear
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" or behind.intersection(node.input):
            behind.update(node.output)
    ahead: set[str] = set()  # what a DequantizeLinear depends on
    for node in reversed(proto.graph.node):
        if node.op_type == "DequantizeLinear" or ahead.intersection(node.output):
            ahead.update(node.input)
    inside = sorted(behind & ahead)
    assert all(name in types for name in inside), "shape inference left out a value"
    return [name for name in inside if types[name] in floats]


def levels_of(model: ir.Model, feed: Feed) -> dict[str, np.ndarray]:
    """Run an integer network and return all levels, in the plan's types."""
    copy = in_planned_types(model)
    values = [value for node in copy.graph for value in node.outputs if str(value.name).endswith("_quantized")]
    copy.graph.outputs[:] = values
    session = open_session(copy, threads=1)
    names = [str(value.name) for value in values]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def real(levels: np.ndarray, kind: Encoding) -> np.ndarray:
    """Return numbers that round to these levels whatever the rule."""
    return ((levels.astype(np.int64) - kind.zero_point) * kind.scale.astype(np.float64)).astype(np.float32)


def random_levels(rng: np.random.Generator, shape: Sequence[int], kind: Encoding) -> np.ndarray:
    limits = np.iinfo(kind.type.storage)
    return rng.integers(limits.min, limits.max + 1, shape).astype(kind.type.storage)
