"""The numbers of a plan: checked against numpy, and against what the lowered network computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.calibration.ranges import Range
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.encoding import DynamicEncoding, Encoding
from narrowgauge.core.granularity import PerAxis, PerBlock, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan, plan_from_json, plan_to_json
from narrowgauge.demo import digits, network_path
from narrowgauge.errors import PlanError, StatisticsError
from narrowgauge.graph.constants import set_constant
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.planning.bias_room import with_room_for_biases
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.planning.fill import fill, fixed_values
from narrowgauge.planning.place import place
from narrowgauge.targets.registry import load_target, target_names
from tests.planning.networks import choices, network, normal, placed, planned, run, seen, sqnr

SAMPLES = normal(24, 16, 4, 4, seed=9)


def convolution(weights: np.ndarray | None = None, bias: np.ndarray | None = None) -> ir.Model:
    return network(
        "float[n, 16, 4, 4] x", "float[n, 8, 4, 4] y", "y = Conv(x, w, b)",
        w=normal(8, 16, 1, 1) if weights is None else weights, b=normal(8) if bias is None else bias,
    )  # fmt: skip


def product(weights: np.ndarray) -> ir.Model:
    return network(f"float[n, {len(weights)}] x", f"float[n, {weights.shape[1]}] y", "y = MatMul(x, w)", w=weights)


# --- activations ----------------------------------------------------------------------------------------------


def test_activations_cover_what_was_seen() -> None:
    model = convolution()
    plan = planned(model, seen(model, SAMPLES))
    for name, values in (("x", SAMPLES), ("y", run(model, SAMPLES))):
        encoding = plan.encodings[name]
        assert encoding.type.name == "uint8"
        scale = (values.max() - values.min()) / 255
        np.testing.assert_allclose(encoding.scale, scale, rtol=1e-6)
        assert encoding.zero_point == np.rint(-values.min() / scale)


def test_an_estimator_of_a_node_holds_for_its_output_only() -> None:
    model = convolution()
    statistics = seen(model, SAMPLES)
    widest = planned(model, statistics)
    half = planned(model, statistics, nodes={"y": NodeChoice(estimator=lambda *_, **__: half_of(widest))})
    np.testing.assert_allclose(half.encodings["y"].scale, widest.encodings["y"].scale / 2, rtol=0.02)
    assert half.encodings["x"].same_as(widest.encodings["x"])


def half_of(plan: Plan) -> Range:
    encoding = plan.encodings["y"]
    return Range(minimum=float(encoding.minimum) / 2, maximum=float(encoding.maximum) / 2)


def test_values_of_one_encoding_cover_all_of_them() -> None:
    model = network(
        "float[n, 16, 4, 4] x", "float[n, 16, 4, 4] y", "a = Conv(x, w)  b = Conv(x, v)  y = Concat<axis = 1>(a, b)",
        w=normal(8, 16, 1, 1), v=50 * normal(8, 16, 1, 1),
    )  # fmt: skip
    plan = planned(model, seen(model, SAMPLES), "tflite")
    encodings = [plan.encodings[name] for name in "aby"]
    assert all(encoding is encodings[0] for encoding in encodings)
    output = run(model, SAMPLES)
    np.testing.assert_allclose(encodings[0].scale, (output.max() - output.min()) / 255, rtol=1e-6)


def test_moved_levels_have_the_encoding_of_their_source() -> None:
    model = network("float[n, 16, 4, 4] x", "float[n, 128] y", "c = Conv(x, w)  y = Flatten(c)", w=normal(8, 16, 1, 1))
    plan = planned(model, seen(model, SAMPLES))
    assert plan.encodings["y"] is plan.encodings["c"]


def test_a_constant_in_the_place_of_an_activation_covers_its_numbers() -> None:
    constant = np.linspace(-3, 1, 8, dtype=np.float32).reshape(8, 1, 1)
    model = network(
        "float[n, 16, 4, 4] x",
        "float[n, 8, 4, 4] y",
        "c = Conv(x, w)  y = Mul(c, k)",
        w=normal(8, 16, 1, 1),
        k=constant,
    )
    encoding = planned(model, seen(model, SAMPLES)).encodings["k"]
    np.testing.assert_allclose(encoding.scale, 4 / 255, rtol=1e-6)
    assert np.abs(round_trip(constant, encoding) - constant).max() <= 0.51 * encoding.scale


@pytest.mark.parametrize(("target", "output"), [("tflite", (1 / 256, -128)), ("qnn", (1 / 255, 0))])
def test_outputs_that_the_target_fixes(target: str, output: tuple[float, int]) -> None:
    model = network("float[n, 16] x", "float[n, 8] y", "m = MatMul(x, w)  y = Softmax(m)", w=normal(16, 8))
    samples = normal(30, 16)
    plan = planned(model, seen(model, samples), target)
    encoding = plan.encodings["y"]
    np.testing.assert_allclose(encoding.scale, output[0], rtol=1e-6)
    assert encoding.zero_point == output[1]
    assert fixed_values(placed(model, target)) == {"y"}


@pytest.mark.parametrize("target", target_names())
def test_symmetric_and_power_of_two_targets(target: str) -> None:
    rules = load_target(target)
    model = load(network_path("digits_conv")).model
    plan = planned(model, seen(model, digits().images[:16]), target)
    fixed = fixed_values(placed(model, target))
    for name, encoding in plan.encodings.items():
        own = rules.weights if name in model.graph.initializers and encoding.granularity != PerTensor() else None
        if own is None and name in model.graph.initializers:
            continue
        own = own or rules.activations
        if own.is_symmetric(encoding.type) and name not in fixed:
            middle = 0 if encoding.type.signed else (0, 1 << (encoding.type.bits - 1))
            assert np.isin(encoding.zero_point, middle).all(), name
        if own.power_of_two:
            assert (np.log2(encoding.scale) % 1 == 0).all(), name


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "uint16", "int4", "int6"])
def test_number_types_of_activations(kind: str) -> None:
    model = convolution()
    plan = planned(model, seen(model, SAMPLES), activations=integer_type(kind))
    encoding = plan.encodings["x"]
    assert encoding.type.name == kind
    np.testing.assert_allclose(encoding.scale, np.ptp(SAMPLES) / (2**encoding.type.bits - 1), rtol=1e-6)
    assert sqnr(SAMPLES, round_trip(SAMPLES, encoding)) > 6.02 * encoding.type.bits - 8


def test_dynamic_encodings_have_no_numbers() -> None:
    plan = planned(convolution(), None, mode="dynamic")
    assert plan.encodings["x"] == DynamicEncoding(type=integer_type("uint8"))
    assert set(plan.encodings) == {"x", "w"}


def test_weight_only_needs_no_statistics() -> None:
    assert set(planned(convolution(), None, mode="weight-only").encodings) == {"w"}


# --- statistics that give no range ----------------------------------------------------------------------------


def test_static_quantization_needs_statistics() -> None:
    with pytest.raises(StatisticsError, match="needs statistics"):
        planned(convolution(), None)


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "1 NaN"), (-np.inf, "1 infinite")])
def test_bad_numbers_are_named_with_their_sample(bad: float, word: str) -> None:
    model = convolution()
    samples = SAMPLES.copy()
    samples[5, 3, 2, 1] = bad
    statistics = seen(model, samples)
    sample = statistics.of("x").first_bad
    assert "5" in sample
    with pytest.raises(StatisticsError) as caught:
        planned(model, statistics)
    for part in ("'x'", word, repr(sample)):
        assert part in str(caught.value)


def test_a_value_that_was_not_observed_is_named() -> None:
    model = convolution()
    statistics = seen(model, SAMPLES)
    without = Statistics(
        tensors={name: tensor for name, tensor in statistics.tensors.items() if name != "y"}, aliases={},
        samples=statistics.samples, sampled=statistics.sampled, network=statistics.network,
    )  # fmt: skip
    with pytest.raises(StatisticsError, match="'y'"):
        planned(model, without)


def test_a_value_that_is_always_zero() -> None:
    model = convolution(weights=np.zeros((8, 16, 1, 1), np.float32), bias=np.zeros(8, np.float32))
    plan = planned(model, seen(model, SAMPLES))
    lowered = lower_to_qdq(model, plan)
    np.testing.assert_array_equal(run(lowered, SAMPLES), 0)


# --- weights --------------------------------------------------------------------------------------------------


def test_weights_have_a_scale_per_output_channel() -> None:
    weights = normal(8, 16, 1, 1) * np.logspace(-3, 1, 8, dtype=np.float32).reshape(8, 1, 1, 1)
    model = convolution(weights, bias=np.zeros(8, np.float32))
    encoding = planned(model, seen(model, SAMPLES)).encodings["w"]
    assert encoding.granularity == PerAxis(0)
    np.testing.assert_allclose(encoding.scale, np.abs(weights).max((1, 2, 3)) / 127, rtol=1e-6)
    assert not encoding.zero_point.any()


@pytest.mark.parametrize("transposed", [0, 1])
def test_the_output_channels_of_a_gemm(transposed: int) -> None:
    weights = normal(8, 16) * np.logspace(-2, 1, 8, dtype=np.float32).reshape(8, 1)
    model = network(
        "float[n, 16] x", "float[n, 8] y", f"y = Gemm<transB = {transposed}>(x, w)",
        w=weights if transposed else np.ascontiguousarray(weights.T),
    )  # fmt: skip
    encoding = planned(model, None, mode="weight-only").encodings["w"]
    assert encoding.granularity == PerAxis(0 if transposed else 1)
    np.testing.assert_allclose(encoding.scale, np.abs(weights).max(1) / 127, rtol=1e-6)


def test_channels_that_are_all_zero_stay_zero_beside_the_others() -> None:
    weights = normal(8, 16, 1, 1)
    weights[[2, 5]] = 0
    model = convolution(weights)
    plan = planned(model, seen(model, SAMPLES))
    np.testing.assert_allclose(plan.encodings["w"].scale[[2, 5]], np.abs(weights).max() / 127, rtol=1e-6)
    assert not round_trip(weights, plan.encodings["w"])[[2, 5]].any()
    assert sqnr(run(model, SAMPLES), run(lower_to_qdq(model, plan), SAMPLES)) > 35


@pytest.mark.parametrize(("kind", "top"), [("int8", 127), ("int8_narrow", 127), ("int4", 7), ("int16", 32767)])
def test_number_types_of_weights(kind: str, top: int) -> None:
    weights = normal(64, 8)
    encoding = planned(product(weights), None, mode="weight-only", weights=integer_type(kind)).encodings["w"]
    np.testing.assert_allclose(encoding.scale, np.abs(weights).max(0) / top, rtol=1e-6)


@given(st.integers(1, 70), st.sampled_from([16, 32, 64]))
def test_blocks_cover_the_weights_along_the_sum(length: int, size: int) -> None:
    weights = normal(length, 4, seed=length)
    plan = planned(product(weights), None, mode="weight-only", granularity="block", block_size=size)
    encoding = plan.encodings["w"]
    assert encoding.granularity == PerBlock(0, size)
    for block in range(0, length, size):
        np.testing.assert_allclose(
            encoding.scale[block // size], np.abs(weights[block : block + size]).max(0) / 127, rtol=1e-6
        )


def test_blocks_of_the_targets_size() -> None:
    encoding = planned(product(normal(64, 8)), None, mode="weight-only", granularity="block").encodings["w"]
    assert encoding.granularity == PerBlock(0, load_target("onnxruntime").weights.block_sizes[0])


def test_blocks_of_stacked_matrices_run_along_the_sum() -> None:
    weights = normal(3, 64, 8)
    model = network("float[3, n, 64] x", "float[3, n, 8] y", "y = MatMul(x, w)", w=weights)
    encoding = planned(model, None, mode="weight-only", granularity="block", block_size=32).encodings["w"]
    np.testing.assert_allclose(encoding.scale, np.abs(weights.reshape(3, 2, 32, 8)).max(2) / 127, rtol=1e-6)


def test_weights_that_are_not_finite_are_named() -> None:
    model = product(normal(16, 8))
    set_constant(model.graph.initializers["w"], np.full((16, 8), np.nan, np.float32))
    with pytest.raises(PlanError, match="'w' hold NaN or infinity"):
        planned(model, None, mode="weight-only")


def test_a_search_for_the_least_squared_error_makes_none_worse() -> None:
    weights = np.random.default_rng(3).laplace(size=(64, 8)).astype(np.float32)
    model = product(weights)
    errors = []
    for name in ("max", "mse"):
        wanted = replace(choices(model, mode="weight-only", weights=integer_type("int4")), weight_estimator=name)
        target = load_target("onnxruntime")
        encoding = fill(model, place(model, target, wanted), None, target, wanted).encodings["w"]
        errors.append(np.square(round_trip(weights, encoding) - weights).sum(0))
    assert (errors[1] <= errors[0] * 1.0001).all()
    assert errors[1].sum() < 0.8 * errors[0].sum()


# --- room for biases ------------------------------------------------------------------------------------------


def tiny_channels() -> ir.Model:
    """Weights of 1e-9 beside biases of 100: in units of both scales these are 3e12."""
    weights = normal(8, 16, 1, 1)
    weights[[1, 4]] *= 1e-9
    return convolution(weights, bias=np.array([1, 100, -2, 0, -300, 5, 0.1, 0], np.float32))


@pytest.mark.parametrize("simulate", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_biases_beside_tiny_weights_do_not_overflow(granularity: str, simulate: bool) -> None:
    model = tiny_channels() if granularity == "channel" else convolution(1e-9 * normal(8, 16, 1, 1), 100 * normal(8))
    plan = planned(model, seen(model, SAMPLES), granularity=granularity)
    check_room(model, plan.encodings["x"], plan.encodings["w"])
    reference = run(model, SAMPLES)
    found = run(lower_to_qdq(model, plan), SAMPLES, simulate=simulate)
    assert np.abs(found - reference).max() <= 2 * float(plan.encodings["y"].scale)


def check_room(model: ir.Model, activation: Encoding, weights: Encoding) -> None:
    bias = model.graph.initializers["b"].const_value.numpy().astype(np.float64)
    levels = bias / (activation.scale.astype(np.float64) * weights.scale)
    assert np.abs(levels).max() <= 2**30 * 1.0001


def test_room_is_made_again_when_a_range_shrinks() -> None:
    model = tiny_channels()
    plan = planned(model, seen(model, SAMPLES))
    shrunk = replace(plan.encodings["x"], scale=plan.encodings["x"].scale / 50)
    plan = replace(plan, encodings={**plan.encodings, "x": shrunk})
    check_room(model, shrunk, with_room_for_biases(model, plan, bits=32).encodings["w"])
    untouched = [0, 2, 3, 5, 6, 7]
    wider = with_room_for_biases(model, plan, bits=32).encodings["w"]
    np.testing.assert_array_equal(wider.scale[untouched], plan.encodings["w"].scale[untouched])


@given(st.floats(2.0**-20, 1, width=32), st.floats(1, 2.0**40, width=32))
def test_room_in_powers_of_two(scale: float, bias: float) -> None:
    model = convolution(bias=np.full(8, bias, np.float32))
    plan = planned(convolution(), seen_once(), "onnxruntime")
    encodings = {
        "x": replace(plan.encodings["x"], scale=np.float32(scale)),
        "w": replace(plan.encodings["w"], scale=np.full(8, 2.0**-7, np.float32)),
    }
    wider = with_room_for_biases(model, replace(plan, encodings=encodings), bits=32, power_of_two=True).encodings["w"]
    assert (np.log2(wider.scale) % 1 == 0).all()
    check_room(model, encodings["x"], wider)
    assert (wider.scale <= np.maximum(2.0**-7, 2 * bias / (2**30 * scale)) * 1.0001).all()


@pytest.mark.parametrize("target", ["integer-only", "tflite"])
def test_biases_that_integers_add_behind_a_product_have_room(target: str) -> None:
    body = "m = MatMul(x, w)  a = Add(m, b)  y = Relu(a)"
    model = network("float[n, 4, 8] x", "float[n, 4, 3] y", body, w=normal(8, 3), b=np.float32([1, -2, 0]))
    plan = planned(model, seen(model, np.zeros((4, 4, 8), np.float32)), target)
    units = np.float64([1, -2, 0]) / (plan.encodings["x"].scale * plan.encodings["w"].scale.astype(np.float64))
    assert (np.abs(units) <= 2**30 * 1.001).all()


_SEEN: list[Statistics] = []


def seen_once() -> Statistics:
    if not _SEEN:
        _SEEN.append(seen(convolution(), SAMPLES))
    return _SEEN[0]


def test_biases_that_stay_float_need_no_room() -> None:
    model = tiny_channels()
    plan = planned(model, seen(model, SAMPLES), replace(load_target("onnxruntime"), bias_bits=0))
    weights = model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_allclose(plan.encodings["w"].scale, np.abs(weights).max((1, 2, 3)) / 127, rtol=1e-6)


# --- the whole plan -------------------------------------------------------------------------------------------


def test_a_plan_holds_for_its_network_and_survives_its_file() -> None:
    model = load(network_path("digits_vit")).model
    images = digits().images
    plan = planned(model, seen(model, images[:32]))
    assert plan.network == seen(model, images[:4]).network
    again = plan_from_json(plan_to_json(plan))
    assert again.same_as(plan)
    outputs = [run(lower_to_qdq(model, each), images[1200:1300]) for each in (plan, again)]
    np.testing.assert_array_equal(*outputs)
    assert sqnr(run(model, images[1200:1300]), outputs[0]) > 20


# --- fixed encodings in groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", ["AveragePool<kernel_shape = [2, 2]>", "MaxPool<kernel_shape = [2, 2]>"])
def test_what_shares_with_a_fixed_encoding_gets_it(behind: str) -> None:
    model = network("float[n, 16, 4, 4] x", "float[n, 16, 3, 3] y", f"s = Sigmoid(x) y = {behind}(s)")
    for kind, scale in (("int8", 2**-8), ("int16", 2**-15)):
        plan = planned(model, seen(model, SAMPLES), "tflite", activations=integer_type(kind))
        for name in ("s", "y"):
            encoding = plan.encodings[name]
            assert isinstance(encoding, Encoding)
            assert float(encoding.scale) == scale


def test_a_fixed_encoding_is_kept_where_the_others_reach_beyond_it() -> None:
    model = network("float[n, 16, 4, 4] x", "float[n, 32, 4, 4] y", "s = Sigmoid(x) y = Concat<axis = 1>(s, x)")
    plan = planned(model, seen(model, SAMPLES), "tflite", activations=integer_type("int8"))
    fixed, shared = plan.encodings["s"], plan.encodings["y"]
    assert isinstance(fixed, Encoding)
    assert isinstance(shared, Encoding)
    assert (float(fixed.scale), int(fixed.zero_point)) == (2**-8, -128)
    assert shared.same_as(plan.encodings["x"])
    assert shared.minimum <= SAMPLES.min() + float(shared.scale)
    assert shared.maximum >= SAMPLES.max() - float(shared.scale)


def test_fixed_encodings_that_differ_are_kept() -> None:
    model = network(
        "float[n, 16, 4, 4] x", "float[n, 32, 4, 4] y", "s = Sigmoid(x) t = Tanh(x) y = Concat<axis = 1>(s, t)"
    )
    plan = planned(model, seen(model, SAMPLES), "tflite", activations=integer_type("int8"))
    sigmoid, tanh, shared = (plan.encodings[name] for name in ("s", "t", "y"))
    assert isinstance(sigmoid, Encoding)
    assert isinstance(tanh, Encoding)
    assert float(sigmoid.scale) == 2**-8
    assert float(tanh.scale) == 2**-7
    assert isinstance(shared, Encoding)
    assert shared.minimum < -0.5
