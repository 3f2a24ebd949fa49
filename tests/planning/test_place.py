"""Where integers go: which node runs in integers on which target, and who shares an encoding with whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.numbers import integer_type
from narrowgauge.demo import NETWORK_NAMES, network_path
from narrowgauge.graph.roles import is_float
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.planning.choices import Choices, NodeChoice
from narrowgauge.planning.place import Placement, caps_are_integer, place
from narrowgauge.targets.registry import load_target, target_names
from tests.planning.networks import name_of, network, normal, placed, planned, run, seen

IMAGE = "float[n, 32, 8, 8] x"


def integers(model: ir.Model, placement: Placement) -> set[str]:
    """First outputs of the nodes that run in integers."""
    return {str(node.outputs[0].name) for node in model.graph if node.name in placement.integer_nodes}


def reason(model: ir.Model, placement: Placement, output: str) -> str:
    name = name_of(model, output)
    return next(node.reason for node in placement.float_nodes if node.name == name)


def same_roots(placement: Placement, *values: str) -> bool:
    return len({placement.root(value) for value in values}) == 1


def residual() -> ir.Model:
    return network(
        IMAGE, "float[n, 32, 8, 8] y",
        "c = Conv(x, w1)  r = Relu(c)  d = Conv(r, w2)  a = Add(d, r)  y = Relu(a)",
        w1=normal(32, 32, 1, 1), w2=normal(32, 32, 1, 1, seed=1),
    )  # fmt: skip


# --- kinds ----------------------------------------------------------------------------------------------------


def test_activation_functions_are_fused_and_only_their_outputs_are_encoded() -> None:
    model = residual()
    placement = placed(model)
    assert integers(model, placement) == {"c", "r", "d", "a", "y"}
    assert not placement.float_nodes
    assert set(placement.activations) == {"x", "r", "d", "y"}
    assert set(placement.weights) == {"w1", "w2"}


@pytest.mark.parametrize(
    ("activation", "fused"),
    [("Relu(c)", True), ("Clip(c, low, high)", True), ("Sigmoid(c)", False), ("Neg(c)", False)],
)
def test_only_functions_that_the_target_fuses_are_fused(activation: str, fused: bool) -> None:
    bounds = {"low": np.float32(0), "high": np.float32(6)} if "low" in activation else {}
    model = network(
        IMAGE, IMAGE.replace("x", "y"), f"c = Conv(x, w)  y = {activation}", w=normal(32, 32, 1, 1), **bounds
    )
    placement = placed(model)
    assert ("c" not in placement.activations) == fused
    assert placement.weights.keys() == {"w"}


def test_a_clip_with_bounds_of_the_run_time_is_not_fused() -> None:
    model = network(
        f"{IMAGE}, float[] high", IMAGE.replace("x", "y"), "c = Conv(x, w)  y = Clip(c, , high)", w=normal(32, 32, 1, 1)
    )
    assert "c" in placed(model).activations


def test_a_value_read_twice_is_encoded_before_and_behind_its_relu() -> None:
    model = network(
        IMAGE, IMAGE.replace("x", "y"), "c = Conv(x, w)  r = Relu(c)  y = Add(c, r)", w=normal(32, 32, 1, 1)
    )
    placement = placed(model)
    assert "c" in placement.activations
    assert "c" in integers(model, placement)
    assert "r" not in placement.activations or not same_roots(placement, "c", "r")


def test_the_bias_of_a_matrix_product_belongs_to_it() -> None:
    model = network(
        "float[n, 16] x", "float[n, 8] y", "m = MatMul(x, w)  b = Add(m, bias)  y = Relu(b)",
        w=normal(16, 8), bias=normal(8),
    )  # fmt: skip
    placement = placed(model)
    assert integers(model, placement) == {"m", "b", "y"}
    assert placement.float_outputs == ["y"]
    assert set(placement.activations) == {"x"}


@pytest.mark.parametrize("shape", [(1,), (6, 1), (6, 8)])
def test_an_addition_that_is_no_bias_stays_outside(shape: tuple[int, ...]) -> None:
    model = network(
        "float[6, 16] x", "float[6, 8] y", "m = MatMul(x, w)  y = Add(m, other)", w=normal(16, 8), other=normal(*shape)
    )
    placement = placed(model)
    assert integers(model, placement) == {"m"}
    assert "arrives in float" in reason(model, placement, "y")


def test_joins_run_in_integers_only_where_everything_arrives_in_integers() -> None:
    model = network(
        f"{IMAGE}, float[n, 32, 8, 8] z", IMAGE.replace("x", "y"),
        "a = Conv(x, w)  b = Conv(z, v)  both = Add(a, b)  e = Erf(b)  y = Add(both, e)",
        w=normal(32, 32, 1, 1), v=normal(32, 32, 1, 1),
    )  # fmt: skip
    placement = placed(model)
    assert {"a", "b", "both"} <= integers(model, placement)
    assert reason(model, placement, "e") == "onnxruntime has no integer Erf"
    assert reason(model, placement, "y").startswith("e arrives in float")


def test_a_shortcut_from_a_float_layer_joins_where_it_is_rounded_for_the_next_layer_anyway() -> None:
    body = "s = Conv(x, stem)  r = Relu(s)  c = Conv(r, w)  y = Add(c, r)"
    weights = {"stem": normal(32, 3, 3, 3), "w": normal(32, 32, 1, 1)}
    model = network("float[n, 3, 8, 8] x", "float[n, 32, 6, 6] y", body, **weights)
    placement = placed(model)
    assert integers(model, placement) == {"c", "y"}
    assert set(placement.activations) == {"r", "c", "y"}
    around = network("float[n, 3, 8, 8] x", "float[n, 32, 6, 6] y", body.replace("Add(c, r)", "Add(c, s)"), **weights)
    assert integers(around, placed(around)) == {"c"}


def test_operators_that_move_levels_share_the_encoding() -> None:
    model = network(
        IMAGE, "float[n, 512] y",
        "c = Conv(x, w)  p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)  f = Flatten(p)  y = Reshape(f, s)",
        w=normal(32, 32, 1, 1), s=np.array([-1, 512]),
    )  # fmt: skip
    placement = placed(model)
    assert integers(model, placement) == {"c", "p", "f", "y"}
    assert same_roots(placement, "c", "p", "f", "y")
    assert set(placement.activations) == {"x", "c"}


def test_moving_what_comes_in_float_stays_float() -> None:
    model = network("float[n, 4, 4] x", "float[n, 16] y", "y = Flatten(x)")
    placement = placed(model)
    assert reason(model, placement, "y") == "its input arrives in float"
    assert not placement.activations


def test_all_parts_of_a_split_share_the_encoding() -> None:
    model = network(
        IMAGE, "float[n, 16, 8, 8] u, float[n, 16, 8, 8] v",
        "c = Conv(x, w)  u, v = Split<axis = 1, num_outputs = 2>(c)",
        w=normal(32, 32, 1, 1),
    )  # fmt: skip
    assert same_roots(placed(model), "c", "u", "v")


# --- what targets say -----------------------------------------------------------------------------------------


def joined() -> ir.Model:
    return network(
        IMAGE, "float[n, 64, 8, 8] y", "a = Conv(x, w)  b = Conv(x, v)  y = Concat<axis = 1>(a, b)",
        w=normal(32, 32, 1, 1), v=normal(32, 32, 1, 1, seed=1),
    )  # fmt: skip


def test_concat_shares_its_inputs_where_the_target_says_so() -> None:
    model = joined()
    assert same_roots(placed(model, "tflite"), "a", "b", "y")
    assert not same_roots(placed(model, "onnxruntime"), "a", "b")


def attention() -> ir.Model:
    return network(
        "float[n, 6, 16] x", "float[n, 6, 6] y",
        "q = MatMul(x, w)  t = Transpose<perm = [0, 2, 1]>(q)  y = MatMul(q, t)",
        w=normal(16, 16),
    )  # fmt: skip


def test_products_of_activations_run_in_integers_where_the_target_wants_them() -> None:
    model = attention()
    placement = placed(model, "onnxruntime")
    assert "y" not in integers(model, placement)
    assert "constant weights" in reason(model, placement, "y")
    assert {"q", "t", "y"} <= integers(model, placed(model, "tflite"))


def convolution(outputs: int, inputs: int, kernel: int, group: int = 1) -> ir.Model:
    return network(
        f"float[n, {inputs * group}, 8, 8] x", f"float[n, {outputs}, h, v] y", f"y = Conv<group = {group}>(x, w)",
        w=normal(outputs, inputs, kernel, kernel),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (convolution(8, 3, 3), "only 27 products"),
        (convolution(8, 4, 3), ""),
        (convolution(8, 16, 1), ""),  # a product of matrices: never too short
        (convolution(8, 1, 3, group=8), "depthwise with 8 channels only"),
        (convolution(16, 1, 3, group=16), ""),
    ],
)
def test_convolutions_that_would_be_slower_stay_float(model: ir.Model, why: str) -> None:
    placement = placed(model)
    assert ("y" in integers(model, placement)) == (not why)
    if why:
        assert reason(model, placement, "y") == f"{why}{' make an output' if 'only 27' in why else ''}" + (
            ": onnxruntime is faster in float"
        )
    assert "y" in integers(model, placed(model, mode="weight-only"))


def test_operators_of_other_domains_and_bodies_stay_float() -> None:
    model = residual()
    node = next(node for node in model.graph if node.op_type == "Add")
    node.domain = "com.example"
    placement = placed(model)
    assert "onnxruntime has no integer com.example.Add" in {entry.reason for entry in placement.float_nodes}


def test_a_mask_of_minus_infinity_stays_float() -> None:
    mask = np.triu(np.full((6, 6), -np.inf, np.float32), 1)
    model = network(
        "float[n, 6, 16] x", "float[n, 6, 6] y", "m = MatMul(x, w)  y = Add(mask, m)", w=normal(16, 6), mask=mask
    )
    placement = placed(model, "tflite")
    assert integers(model, placement) == {"m"}
    assert "no range" in reason(model, placement, "y")


def test_integers_and_double_precision_are_left_alone() -> None:
    model = network(
        "int64[n, 4] x", "double[n, 4] y", "s = Add(x, x)  d = Cast<to = 11>(s)  y = Add(d, d)"
    )  # fmt: skip
    placement = placed(model)
    assert {entry.name for entry in placement.float_nodes} == {name_of(model, "d"), name_of(model, "y")}
    assert reason(model, placement, "y") == "only float32 is quantized"
    assert not placement.activations


# --- what is asked --------------------------------------------------------------------------------------------


def test_a_node_kept_float_takes_its_reason_along() -> None:
    model = residual()
    placement = placed(model, nodes={"d": NodeChoice(keep_float="by hand")})
    assert integers(model, placement) == {"c", "r"}
    assert reason(model, placement, "d") == "by hand"
    assert reason(model, placement, "a").startswith("d arrives in float")
    assert "w2" not in placement.weights


def test_a_fused_function_kept_float_is_not_fused() -> None:
    model = residual()
    placement = placed(model, nodes={"r": NodeChoice(keep_float="by hand")})
    assert "c" in placement.activations
    assert reason(model, placement, "r") == "by hand"


def test_types_and_granularity_of_single_nodes() -> None:
    model = residual()
    placement = placed(
        model, weights=integer_type("int4"),
        nodes={"d": NodeChoice(weights=integer_type("int16"), granularity="tensor", activations=integer_type("int8"))},
    )  # fmt: skip
    assert (placement.weights["w1"].type.name, placement.weights["w1"].granularity) == ("int4", "channel")
    assert (placement.weights["w2"].type.name, placement.weights["w2"].granularity) == ("int16", "tensor")
    assert placement.activations["d"].type.name == "int8"
    assert placement.activations["r"].type.name == "uint8"


def test_a_granularity_that_an_operator_lacks_is_said() -> None:
    model = network("int64[n, 3] x", "float[n, 3, 16] y", "y = Gather(w, x)", w=normal(50, 16))
    placement = placed(model, mode="weight-only", granularity="block")
    assert placement.weights["w"].granularity == "tensor"
    assert placement.refusals == [
        "a scale per block was asked for the weights, but onnxruntime takes one per tensor for Gather"
    ]


@pytest.mark.parametrize("transposed", [0, 1])
def test_blocks_run_along_what_is_summed_up(transposed: int) -> None:
    shape = (8, 64) if transposed else (64, 8)
    model = network("float[n, 64] x", "float[n, 8] y", f"y = Gemm<transB = {transposed}>(x, w)", w=normal(*shape))
    assert placed(model, mode="weight-only").weights["w"].summed_axis == transposed


def test_blocks_of_other_layers_run_along_what_is_summed_up() -> None:
    stacked = network("float[4, n, 64] x", "float[4, n, 8] y", "y = MatMul(x, w)", w=normal(4, 64, 8))
    assert placed(stacked, mode="weight-only").weights["w"].summed_axis == 1
    recurrent = network(
        "float[t, n, 24] x", "float[t, d, n, 5] y", "y = LSTM<hidden_size = 5>(x, w, r)",
        w=normal(1, 20, 24), r=normal(1, 20, 5),
    )  # fmt: skip
    assert {slot.summed_axis for slot in placed(recurrent, mode="weight-only").weights.values()} == {2}
    assert placed(convolution(8, 4, 3), mode="weight-only").weights["w"].summed_axis == 1


# --- modes ----------------------------------------------------------------------------------------------------


def test_dynamic_rounds_only_the_inputs_of_layers() -> None:
    model = attention()
    placement = placed(model, mode="dynamic")
    assert set(placement.activations) == {"x"}
    assert set(placement.weights) == {"w"}
    assert reason(model, placement, "y") == "dynamic quantization needs constant weights"
    assert reason(model, placement, "t") == "dynamic quantization of onnxruntime leaves Transpose float"


def test_weight_only_rounds_no_activation() -> None:
    model = residual()
    placement = placed(model, mode="weight-only")
    assert not placement.activations
    assert set(placement.weights) == {"w1", "w2"}
    assert reason(model, placement, "a") == "weight-only quantization of onnxruntime leaves Add float"


def test_an_operator_that_needs_another_mode_says_so() -> None:
    model = network(
        "float[t, n, 4] x", "float[t, d, n, 5] y", "y = LSTM<hidden_size = 5>(x, w, r)",
        w=normal(1, 20, 4), r=normal(1, 20, 5),
    )  # fmt: skip
    assert "only with dynamic or weight-only" in reason(model, placed(model), "y")
    assert set(placed(model, mode="dynamic").weights) == {"w", "r"}


def test_fixed_outputs_keep_their_rule() -> None:
    model = network("float[n, 16] x", "float[n, 8] y", "m = MatMul(x, w)  y = Softmax(m)", w=normal(16, 8))
    slot = placed(model, "tflite").activations["y"]
    assert slot.rule is not None
    assert slot.rule.fixed_output


# --- every target on real networks ----------------------------------------------------------------------------


def check_complete(model: ir.Model, placement: Placement, *, target: str) -> None:
    floats = {entry.name for entry in placement.float_nodes}
    assert all(entry.reason for entry in placement.float_nodes)
    assert not floats & placement.integer_nodes
    for node in model.graph:
        touches_floats = any(is_float(value) for value in [*node.inputs, *node.outputs])
        touches_floats = touches_floats and node.op_type not in {"Shape", "Size"}
        assert (node.name in floats) + (node.name in placement.integer_nodes) == touches_floats, (target, node.name)
    names = {value.name for node in model.graph for value in node.outputs} | {
        value.name for value in model.graph.inputs
    }
    names |= set(model.graph.initializers)
    assert {*placement.activations, *placement.shared, *placement.weights, *placement.float_outputs} <= names
    assert all(placement.root(value) in placement.activations for value in placement.shared)


@pytest.mark.parametrize("name", NETWORK_NAMES)
@pytest.mark.parametrize("mode", ["static", "dynamic", "weight-only"])
def test_every_node_of_the_demo_networks_is_decided_on_every_target(name: str, mode: str) -> None:
    model = load(network_path(name)).model
    for target in target_names():
        check_complete(model, place(model, load_target(target), Choices(mode=mode)), target=target)


ZOO = (
    "mobilenet_v2/mobilenet_v2_1.0_224.onnx",
    "vit_tiny/vit_tiny_patch16_224.onnx",
    "cifar_resnet/resnet20.onnx",
)


@pytest.mark.parametrize("name", ZOO)
def test_every_node_of_real_networks_is_decided_on_every_target(zoo: Path, name: str) -> None:
    model = load(zoo / "models" / name).model
    for target in target_names():
        check_complete(model, place(model, load_target(target), Choices()), target=target)


def test_the_additions_of_resnet_are_integers(zoo: Path) -> None:
    model = load(zoo / "models" / "cifar_resnet" / "resnet20.onnx").model
    placement = place(model, load_target("onnxruntime"), Choices())
    additions = [node.name for node in model.graph if node.op_type == "Add"]
    assert len(additions) == 9
    assert placement.integer_nodes.issuperset(additions)


def test_a_target_of_ones_own() -> None:
    target = replace(load_target("onnxruntime"), operators=())
    model = residual()
    placement = place(model, target, Choices())
    assert not placement.integer_nodes
    assert len(placement.float_nodes) == 5


def capped(*, shared_bound: bool = False) -> ir.Model:
    """A convolution, a Relu, a cap per channel, a convolution."""
    body = "a = Conv(x, w, b)  r = Relu(a)  m = Min(r, cap)  y = Conv(m, v)"
    if shared_bound:
        body += "  z = Min(x, cap)"
    return network(
        "float[n, 8, 6, 6] x", "float[n, 4, 6, 6] y" + (", float[n, 8, 6, 6] z" if shared_bound else ""), body,
        w=normal(8, 8, 1, 1), b=normal(8), v=normal(4, 8, 1, 1, seed=1),
        cap=np.linspace(0.2, 3, 8, dtype=np.float32).reshape(8, 1, 1),
    )  # fmt: skip


CAPPED_SAMPLES = normal(32, 8, 6, 6, seed=2)


def with_output(model: ir.Model, name: str) -> ir.Model:
    """A copy whose only output is one of its inner values."""
    copy = model.clone()
    copy.graph.outputs[:] = [value for node in copy.graph for value in node.outputs if value.name == name]
    return copy


@pytest.mark.parametrize("target", ["snpe", "qnn", "tflite"])
def test_a_cap_works_on_levels_of_one_encoding(target: str) -> None:
    model = capped()
    statistics = seen(model, CAPPED_SAMPLES)
    plan = planned(model, statistics, target)
    bounded = plan.encodings["m"]
    assert all(plan.encodings[name].same_as(bounded) for name in ("r", "cap"))
    assert caps_are_integer(load_target(target))
    assert not plan.notes
    assert statistics.of("r") is statistics.of("m")  # what only a cap reads is not observed for itself
    reaches, kept = (float(run(with_output(model, name), CAPPED_SAMPLES).max()) for name in ("r", "m"))
    assert reaches > 1.2 * kept  # the range is that of what the cap leaves
    np.testing.assert_allclose(bounded.maximum, kept, rtol=0.01)


def test_a_cap_rounds_nothing() -> None:
    """Its output is the rounded float output: min(round(x), round(c)) = round(min(x, c))."""
    model = capped()
    plan = planned(model, seen(model, CAPPED_SAMPLES), "snpe")
    keep = {name: one for name, one in plan.encodings.items() if name in {"r", "m", "cap"}}
    model = with_output(model, "m")
    expected = round_trip(run(model, CAPPED_SAMPLES), keep["m"])
    found = run(lower_to_qdq(model, replace(plan, encodings=keep)), CAPPED_SAMPLES)
    np.testing.assert_array_equal(found, expected)


def test_a_constant_that_bounds_two_values_keeps_its_own_range() -> None:
    placement = placed(capped(shared_bound=True), "snpe")
    assert placement.root("r") == "m"
    assert placement.root("cap") == "cap"


def test_caps_that_cost_the_fusion_are_noted() -> None:
    placement = placed(capped(), "onnxruntime")
    assert not caps_are_integer(load_target("onnxruntime"))
    (note,) = placement.refusals
    assert "fusion of 1 node" in note
    assert placed(residual(), "onnxruntime").refusals == []


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_weights_that_layers_read_along_different_axes_have_one_scale(mode: str) -> None:
    """A scale per channel of one layer would be taken for the other's by an engine that ignores the axis (QGemm)."""
    model = network(
        "float[n, 8] x", "float[n, 8] y", "a = Gemm(x, w)  r = Relu(a)  y = Gemm<transB=1>(r, w)", w=normal(8, 8)
    )
    assert placed(model, mode=mode).weights["w"].granularity == "tensor"  # type: ignore[arg-type]
    alike = network("float[n, 8] x", "float[n, 8] y", "a = Gemm(x, w)  r = Relu(a)  y = Gemm(r, w)", w=normal(8, 8))
    assert placed(alike, mode=mode).weights["w"].granularity == "channel"  # type: ignore[arg-type]


def test_a_stack_of_matrices_has_one_scale() -> None:
    """ONNX Runtime refuses a scale per channel of one, in QLinearMatMul as in DynamicQuantizeMatMul."""
    model = network("float[n, 3, 5, 8] x", "float[n, 3, 5, 6] y", "y = MatMul(x, w)", w=normal(3, 8, 6))
    assert placed(model).weights["w"].granularity == "tensor"
    assert placed(model, mode="weight-only").weights["w"].granularity == "channel"
