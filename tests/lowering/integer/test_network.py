"""Whole networks in integers: nothing real inside, what stays real is said, names and types are the plan's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.graph.engine import Optimization, open_session
from narrowgauge.graph.refusals import REFUSAL
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.integer.network import integer_network, lower_to_integer
from narrowgauge.lowering.integer.planned import in_planned_types
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from tests.lowering.integer.networks import encoding, levels_of, lowered, random_levels, real, simulated
from tests.lowering.networks import integer_plan, photos, run
from tests.passes.networks import node, operators

LEVELS: list[Optimization] = ["none", "basic", "extended", "all"]


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("cifar_resnet/resnet20", 32),
        pytest.param("mobilenet_v1_025/mobilenet_v1_0.25_224", 224, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("rule", "type"), [("xnnpack", "int8"), ("tflite-reference", "int8"), ("fbgemm", "uint8")])
def test_networks_have_no_real_numbers_inside(zoo: Path, file: str, size: int, rule: str, type: str) -> None:
    model = load(zoo / "models" / f"{file}.onnx").model
    images = photos(zoo, size, 2)
    plan = integer_plan(model, {"input": images[:1]}, activations=type)
    encodings = dict(plan.encodings)
    for pool in (each for each in model.graph if each.op_type == "GlobalAveragePool"):  # PyTorch keeps its encoding
        encodings[str(pool.outputs[0].name)] = encodings[str(pool.inputs[0].name)]
    plan = replace(plan, encodings=encodings)
    qdq = lower_to_qdq(model, plan, QdqStyle(drop_clips=False, bias_bits=0 if rule == "fbgemm" else 32))
    found = lowered(qdq, KERNELS[rule])
    assert found.refusals == ()
    name = next(str(value.name) for value in model.graph.outputs)
    results = [run(found.model, {"input": images}, optimization)[name] for optimization in LEVELS]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    expected = run(qdq, {"input": images})[name]
    assert np.abs(results[0] - expected).max() <= 0.1 * np.abs(expected).max()


def test_what_has_no_integer_form_stays_between_its_pairs_and_is_said() -> None:
    kind = encoding("int8", 0.05, 3)
    nodes = [node("Erf", "x", "e"), node("LRN", "e", "l", size=3), node("Relu", "l", "y")]
    qdq = simulated(nodes, {"x": ["n", 4, 5, 5]}, {"x": kind, "e": kind, "l": kind, "y": kind})
    found = integer_network(qdq, KERNELS["tflite-reference"])
    reasons = {one.operator: one.reason for one in found.refusals}
    assert set(reasons) == {"Erf", "LRN"}
    assert "Erf" in reasons["Erf"]
    assert reasons["LRN"] == "no form of it in integers is known"
    written = ir.from_proto(ir.to_proto(found.model))
    said = {node.op_type: node.metadata_props.get(REFUSAL) for node in written.graph}
    assert {operator: reason for operator, reason in said.items() if reason} == reasons
    levels = random_levels(np.random.default_rng(1), (2, 4, 5, 5), kind)
    result = levels_of(found.model, {"x": real(levels, kind)})
    assert set(result) == {"x_quantized", "e_quantized", "l_quantized", "y_quantized"}
    np.testing.assert_array_equal(result["y_quantized"], np.maximum(result["l_quantized"], 3))


def test_each_node_without_a_name_has_its_own_reason() -> None:
    kind = encoding("int8", 0.05, 3)
    nodes = [node("Erf", "x", "e"), node("Selu", "e", "y")]
    qdq = simulated(nodes, {"x": ["n", 4]}, {"x": kind, "e": kind, "y": kind})
    for each in qdq.graph:
        each.name = None
    found = integer_network(qdq, KERNELS["tflite-reference"])
    assert [one.operator in one.reason for one in found.refusals] == [True, True]


def test_the_given_network_is_not_changed() -> None:
    kind = encoding("int8", 0.05, 3)
    qdq = simulated([node("Relu", "x", "y")], {"x": ["n", 4]}, {"x": kind, "y": kind})
    before = ir.to_proto(qdq).SerializeToString()
    lower_to_integer(qdq, KERNELS["xnnpack"])
    assert ir.to_proto(qdq).SerializeToString() == before


def test_signed_levels_can_be_read_and_replaced_in_the_plans_type() -> None:
    kind = encoding("int8", 0.05, 3)
    nodes = [node("Add", "x x", "a"), node("MaxPool", "a", "y", kernel_shape=[2, 2])]
    qdq = simulated(nodes, {"x": [1, 1, 4, 4]}, {"x": kind, "a": kind, "y": kind})
    model = lower_to_integer(qdq, KERNELS["xnnpack"])
    planned = in_planned_types(model)
    types = {str(value.name): value.dtype for each in planned.graph for value in each.outputs}
    assert {types[f"{name}_quantized"] for name in "xay"} == {ir.DataType.INT8}
    levels = random_levels(np.random.default_rng(1), (1, 1, 4, 4), kind)
    feed = {"x": real(levels, kind)}
    np.testing.assert_array_equal(run(planned, feed)["y"], run(model, feed)["y"])
    # A level that is put in the place of `a_quantized` reaches everything behind it.
    value = next(value for each in planned.graph for value in each.outputs if value.name == "a_quantized")
    given = ir.Value(name="given", type=value.type, shape=value.shape)
    value.replace_all_uses_with(given)
    planned.graph.inputs.append(given)
    session = open_session(planned, threads=1)
    constant = np.full((1, 1, 4, 4), 40, np.int8)
    (result,) = session.run(None, {"x": feed["x"], "given": constant})
    np.testing.assert_allclose(result, np.full((1, 1, 3, 3), 37 * 0.05), rtol=1e-6)


def test_unsigned_networks_are_their_own_planned_form() -> None:
    kind = encoding("uint8", 0.05, 3)
    qdq = simulated([node("Add", "x x", "y")], {"x": [1, 4]}, {"x": kind, "y": kind})
    model = lower_to_integer(qdq, KERNELS["xnnpack"])
    assert operators(in_planned_types(model)) == operators(model)


def test_a_value_that_is_returned_unrounded_keeps_its_layer_real() -> None:
    kind = encoding("uint8", 0.05, 3)
    qdq = simulated([node("Sigmoid", "x", "y")], {"x": [1, 4]}, {"x": kind})
    found = lowered(qdq, KERNELS["xnnpack"])
    assert operators(found.model) == operators(qdq) | {"Mul": 1}
    assert found.refusals == ()
