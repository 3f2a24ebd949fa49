"""Ranges chosen by the error behind the next layers are no worse, by that measure and on samples never seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.calibration.histogram import EMPTY
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.data.batches import Batch
from narrowgauge.demo import digits, network_path
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.planning.fill import fixed_values
from narrowgauge.recovery.range_refinement import Refinement, refine_ranges
from narrowgauge.targets.registry import load_target
from tests.calibration.networks import batches_of
from tests.planning.networks import network, normal, placed, planned, run, seen, weights_of

WEIGHTS = normal(32, 16, seed=1) / 4


def heavy(count: int, seed: int) -> np.ndarray:
    """Rows of 32 numbers near 0; three in a hundred rows hold one of 20 to 40."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, 32)).astype(np.float32)
    far = generator.random(count) < 0.03
    rows[far, generator.integers(0, 32, far.sum())] = generator.uniform(20, 40, far.sum())
    return rows


CUT = network(
    "float[n, 32] x", "float[n, 16] y", "m = Gemm(x, w, b)  y = Clip(m, low, high)",
    w=WEIGHTS, b=normal(16), low=np.float32(-1.5), high=np.float32(1.5),
)  # fmt: skip
"""What a heavy tail would add is cut off behind the layer."""

SAMPLES, HELD_OUT = heavy(300, 2), heavy(400, 3)


def refined(
    model: ir.Model,
    plan: Plan,
    statistics: Statistics,
    samples: np.ndarray,
    target: str = "onnxruntime",
    **asked: object,
) -> tuple[Plan, tuple[Refinement, ...]]:
    batches = list(batches_of(model, {str(model.graph.inputs[0].name): samples}, 16))
    symmetric = load_target(target).activations.is_symmetric
    return refine_ranges(model, plan, statistics, batches, symmetric=symmetric, threads=1, **asked)


def measured(model: ir.Model, encoding: Encoding, samples: np.ndarray) -> float:
    """Geometric mean over the samples of the relative error behind the layer, the input alone being rounded."""
    reference = run(model, samples).astype(np.float64)
    noise = np.square(run(model, round_trip(samples, encoding)) - reference).sum(1)
    return float(np.exp(np.log(noise / np.square(reference).sum(1) + 1e-30).mean()))


def test_a_heavy_tail_that_the_next_layer_cuts_is_cut() -> None:
    statistics = seen(CUT, SAMPLES)
    plan = planned(CUT, statistics, ranges="max")
    better, done = refined(CUT, plan, statistics, SAMPLES)
    assert [each.value for each in done] == ["x"]
    assert better.encodings["x"].scale < plan.encodings["x"].scale / 2
    for samples in (SAMPLES, HELD_OUT):
        before, after = (measured(CUT, each.encodings["x"], samples) for each in (plan, better))
        assert after < before / 3
    reference = run(CUT, HELD_OUT)
    errors = [np.square(run(lower_to_qdq(CUT, each), HELD_OUT) - reference).mean(1) for each in (plan, better)]
    assert np.median(errors[1]) < np.median(errors[0]) / 3


def test_the_errors_it_tells_are_those_that_numpy_measures() -> None:
    statistics = seen(CUT, SAMPLES)
    plan = planned(CUT, statistics, ranges="max")
    better, done = refined(CUT, plan, statistics, SAMPLES)
    np.testing.assert_allclose(done[0].before, measured(CUT, plan.encodings["x"], SAMPLES), rtol=1e-3)
    np.testing.assert_allclose(done[0].after, measured(CUT, better.encodings["x"], SAMPLES), rtol=1e-3)


@pytest.mark.parametrize("ranges", ["max", "mse", "percentile:99", "entropy", "aciq"])
@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "uint4", "int6"])
def test_the_chosen_range_is_no_worse_than_the_plans_whatever_that_was(ranges: str, kind: str) -> None:
    statistics = seen(CUT, SAMPLES)
    plan = planned(CUT, statistics, ranges=ranges, activations=integer_type(kind))
    better, done = refined(CUT, plan, statistics, SAMPLES)
    assert all(each.after < each.before for each in done)
    before, after = (measured(CUT, each.encodings["x"], SAMPLES) for each in (plan, better))
    assert after <= before * 1.001
    assert better.encodings["x"].type.name == kind


def test_a_tail_that_matters_is_kept() -> None:
    """Every sample has one large number, and it alone decides the output."""
    model = network("float[n, 32] x", "float[n, 16] y", "y = Gemm(x, w, b)", w=WEIGHTS, b=np.zeros(16, np.float32))
    samples = normal(200, 32) / 10
    samples[:, 5] = np.random.default_rng(0).uniform(10, 30, 200)
    statistics = seen(model, samples)
    plan = planned(model, statistics, ranges="percentile:96")
    better, done = refined(model, plan, statistics, samples)
    assert len(done) == 1
    np.testing.assert_allclose(better.encodings["x"].maximum, samples.max(), rtol=0.05)


def test_parts_of_the_extremes_compete_where_there_is_no_histogram() -> None:
    statistics = seen(CUT, SAMPLES)
    bare = replace(statistics, tensors={k: replace(t, histogram=EMPTY) for k, t in statistics.tensors.items()})
    plan = planned(CUT, bare, ranges="max")
    better, done = refined(CUT, plan, bare, SAMPLES)
    assert len(done) == 1
    share = better.encodings["x"].scale / plan.encodings["x"].scale
    assert np.isclose(share, [0.9, 0.8, 0.7, 0.6, 0.5], rtol=1e-3).any()


def test_scales_of_power_of_two_targets_stay_powers_of_two() -> None:
    statistics = seen(CUT, SAMPLES)
    target = load_target("onnxruntime")
    target = replace(target, activations=replace(target.activations, power_of_two=True))
    plan = planned(CUT, statistics, target, ranges="max")
    better, done = refined(CUT, plan, statistics, SAMPLES, power_of_two=True)
    assert done
    assert np.log2(better.encodings["x"].scale) % 1 == 0


def test_symmetric_types_stay_symmetric() -> None:
    statistics = seen(CUT, SAMPLES)
    kind = integer_type("int8")
    target = load_target("onnxruntime")
    target = replace(target, activations=replace(target.activations, symmetric=True, types=(kind,)))
    plan = planned(CUT, statistics, target, ranges="max")
    batches = list(batches_of(CUT, {"x": SAMPLES}, 16))

    def symmetric(type: IntegerType) -> bool:
        return type == kind

    better, done = refine_ranges(CUT, plan, statistics, batches, symmetric=symmetric, threads=1)
    assert done
    assert better.encodings["x"].zero_point == 0


# --- what shares an encoding, and what is fixed ---------------------------------------------------------------


def test_a_small_input_of_a_concatenation_does_not_decide_for_a_large_one() -> None:
    model = network(
        "float[n, 8, 6, 6] x", "float[n, 8, 6, 6] y",
        "a = Conv(x, w)  b = Conv(x, v)  c = Concat<axis = 1>(a, b)  y = Conv(c, u)",
        w=normal(8, 8, 1, 1) / 3, v=normal(8, 8, 1, 1) * 10, u=normal(8, 16, 1, 1) / 4,
    )  # fmt: skip
    samples = normal(64, 8, 6, 6)
    statistics = seen(model, samples)
    plan = planned(model, statistics, "tflite", ranges="mse")
    better, _ = refined(model, plan, statistics, samples, "tflite")
    assert better.encodings["a"] is better.encodings["b"] is better.encodings["c"]
    assert better.encodings["a"].maximum > plan.encodings["a"].maximum / 2
    reference = run(model, samples)
    errors = [np.square(run(lower_to_qdq(model, each), samples) - reference).mean() for each in (plan, better)]
    assert errors[1] < 1.1 * errors[0]


def test_levels_that_are_handed_on_keep_one_encoding() -> None:
    model = network(
        "float[n, 2, 4, 4] x", "float[n, 16] y",
        "c = Conv(x, one)  f = Flatten(c)  m = Gemm(f, w, b)  y = Clip(m, low, high)",
        one=np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1), w=WEIGHTS, b=normal(16),
        low=np.float32(-1.5), high=np.float32(1.5),
    )  # fmt: skip
    samples = SAMPLES.reshape(-1, 2, 4, 4)
    statistics = seen(model, samples)
    plan = planned(model, statistics, ranges="max")
    better, done = refined(model, plan, statistics, samples)
    assert {each.value for each in done} == {"x", "c"}
    assert better.encodings["f"] is better.encodings["c"]
    assert better.encodings["c"].scale < plan.encodings["c"].scale / 2


def test_a_constant_that_shares_the_encoding_keeps_it() -> None:
    model = network(
        "float[n, 32] x", "float[n, 16] y",
        "h = Gemm(x, v)  c = Concat<axis = 1>(h, k)  m = Gemm(c, w, b)  y = Clip(m, l, u)",
        v=np.eye(32, 16, dtype=np.float32), k=np.full((1, 16), 9, np.float32), w=WEIGHTS, b=normal(16),
        l=np.float32(-1.5), u=np.float32(1.5),
    )  # fmt: skip
    samples = SAMPLES[:1]
    statistics = seen(model, samples)
    plan = planned(model, statistics, "tflite", ranges="max")
    better, _ = refined(model, plan, statistics, samples, "tflite")
    assert better.encodings["k"] is better.encodings["h"] is better.encodings["c"]


def test_what_the_target_fixes_stays() -> None:
    model = network(
        "float[n, 32] x", "float[n, 16] y", "m = MatMul(x, v)  p = Softmax(m)  y = MatMul(p, w)",
        v=normal(32, 16) / 50, w=normal(16, 16),
    )  # fmt: skip
    samples = normal(64, 32)
    statistics = seen(model, samples)
    plan = planned(model, statistics, "tflite")
    fixed = fixed_values(placed(model, "tflite"))
    assert fixed == {"p"}
    assert refined(model, plan, statistics, samples, "tflite", fixed=fixed)[0].encodings["p"] is plan.encodings["p"]
    assert "p" in {each.value for each in refined(model, plan, statistics, samples, "tflite")[1]}, (
        "else it shows nothing"
    )


# --- whole networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_conv", "digits_vit"])
@pytest.mark.parametrize("target", ["onnxruntime", "tflite"])
def test_a_whole_network_is_no_worse(name: str, target: str) -> None:
    model = load(network_path(name)).model
    images = digits().images
    statistics = seen(model, images[:64])
    plan = planned(model, statistics, target, ranges="max")
    before = dict(plan.encodings)
    better, done = refined(
        model, plan, statistics, images[:16], target, fixed=fixed_values(placed(model, target)),
    )  # fmt: skip
    assert dict(plan.encodings) == before
    assert plan.encodings.keys() == better.encodings.keys()
    assert all(each.after < each.before for each in done)
    changed = {value for value in plan.encodings if plan.encodings[value] is not better.encodings[value]}
    assert {each.value for each in done} <= changed
    reference = run(model, images[1200:])
    errors = [np.square(run(lower_to_qdq(model, each), images[1200:]) - reference).mean() for each in (plan, better)]
    assert errors[1] < 1.2 * errors[0]


def test_without_samples_or_encodings_nothing_happens() -> None:
    statistics = seen(CUT, SAMPLES)
    plan = planned(CUT, statistics, ranges="max")
    nothing: list[Batch] = []
    assert refine_ranges(CUT, plan, statistics, nothing, symmetric=lambda type: False) == (plan, ())
    weights = replace(plan, encodings={"w": plan.encodings["w"]})
    same, done = refined(CUT, weights, statistics, SAMPLES)
    assert same.same_as(weights)
    assert done == ()
    np.testing.assert_array_equal(weights_of(CUT, "w"), WEIGHTS)


def test_the_shape_of_a_value_is_no_reader_that_its_error_reaches() -> None:
    model = network(
        "float[n, 32] x", "float[n, 8] y, int64[2] s",
        "m = Gemm(x, w, b)  h = Relu(m)  s = Shape(h)  y = Gemm(h, w2)", w=WEIGHTS, b=normal(16), w2=normal(16, 8),
    )  # fmt: skip
    plan = planned(model, seen(model, SAMPLES))
    after, _ = refined(model, plan, seen(model, SAMPLES), SAMPLES)
    assert after.encodings.keys() == plan.encodings.keys()
