"""The sequential pass: the quantized network comes nearer to the float one, and nothing that must stay is changed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.calibration.collect import collect
from narrowgauge.core.arithmetic import quantize, round_trip
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import FloatNode, Plan
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.data.batches import Batch
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import set_constant
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.planning.bias_room import with_room_for_biases
from narrowgauge.recovery import matrix_form
from narrowgauge.recovery.fit_layer import LayerRounding
from narrowgauge.recovery.sequential import optimize
from narrowgauge.targets.registry import load_target
from tests.planning.networks import name_of, network, normal, planned, run, seen, sqnr, weights_of

INT4 = integer_type("int4")
SMOOTHING = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=np.float32) / 16


@dataclass(frozen=True)
class Rows:
    """Some samples, as the pass takes them."""

    feed: Mapping[str, np.ndarray]


def images(count: int, seed: int, channels: int = 16) -> np.ndarray:
    """Images whose pixels and channels depend on their neighbours, as those of photographs do."""
    rough = normal(count, channels, 12, 12, seed=seed)
    smooth = sum(
        np.roll(rough, (down, right), axis=(2, 3)) * SMOOTHING[down + 1, right + 1]
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    )
    return (3 * (smooth + np.roll(smooth, 1, axis=1)) + 0.5).astype(np.float32)


def fed(samples: np.ndarray, size: int = 8) -> list[Rows]:
    return [Rows({"x": samples[start : start + size]}) for start in range(0, len(samples), size)]


CHAIN = network(
    "float[n, 16, 12, 12] x", "float[n, 10] y",
    """
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    p = Clip(a, zero, six)
    d = Conv<group = 24, pads = [1, 1, 1, 1], strides = [2, 2]>(p, w2, b2)
    q = Relu(d)
    e = Conv(q, w3)
    f = Conv<group = 2>(e, w4, b4)
    r = Add(e, f)
    t = ConvTranspose<strides = [2, 2]>(r, w5, b5)
    u = Relu(t)
    g = GlobalAveragePool(u)
    h = Flatten(g)
    y = Gemm(h, w6, b6)
    """,
    w1=normal(24, 16, 3, 3, seed=1) / 8, b1=normal(24, seed=2) / 4, zero=np.float32(0), six=np.float32(6),
    w2=normal(24, 1, 3, 3, seed=3) / 2, b2=normal(24, seed=4) / 4,
    w3=normal(16, 24, 1, 1, seed=5) / 4,
    w4=normal(16, 8, 1, 1, seed=6) / 2, b4=normal(16, seed=7) / 4,
    w5=normal(16, 12, 2, 2, seed=8) / 3, b5=normal(12, seed=9) / 4,
    w6=normal(12, 10, seed=10), b6=normal(10, seed=11),
)  # fmt: skip
"""Every kind of layer; their inputs arrive rounded, cut off, and with the errors of the layers before."""

SAMPLES, HELD_OUT = images(48, 20), images(48, 21)


def rounding_error(model: ir.Model, plan: Plan, samples: np.ndarray, reference: ir.Model = CHAIN) -> float:
    return sqnr(run(reference, samples), run(lower_to_qdq(model, plan), samples))


def chain_plan(target: str = "openvino", **asked: object) -> Plan:
    return planned(CHAIN, seen(CHAIN, SAMPLES), target, **asked)


PLANS = {
    "4 bits per channel": {"weights": INT4, "granularity": "channel"},
    "4 bits per tensor": {"weights": INT4, "granularity": "tensor"},
    "3 bits": {"weights": integer_type("int3"), "granularity": "channel"},
    "5 bits, narrow": {"weights": integer_type("int5_narrow"), "granularity": "channel"},
    "another target": {"weights": INT4, "granularity": "channel", "target": "onnxruntime"},
}


@functools.cache
def optimized(asked: str) -> tuple[Plan, ir.Model, Plan, tuple[LayerRounding, ...]]:
    plan = chain_plan(**PLANS[asked])
    return plan, *optimize(CHAIN, plan, fed(SAMPLES), threads=1)


@pytest.mark.parametrize("asked", PLANS)
def test_the_network_comes_nearer_on_samples_never_seen(asked: str) -> None:
    plan, better, changed, done = optimized(asked)
    assert rounding_error(better, changed, HELD_OUT) > rounding_error(CHAIN, plan, HELD_OUT) + 3
    assert len(done) == len([name for name in plan.encodings if name in CHAIN.graph.initializers])
    for layer in done:
        assert layer.rounded
        assert layer.chosen <= layer.nearest


@pytest.mark.parametrize("asked", PLANS)
def test_nearest_rounding_gives_the_chosen_levels_back(asked: str) -> None:
    plan, better, changed, _ = optimized(asked)
    for name, value in better.graph.initializers.items():
        encoding, before = changed.encodings.get(name), plan.encodings.get(name)
        if isinstance(encoding, Encoding) and isinstance(before, Encoding):
            np.testing.assert_array_equal(round_trip(value.const_value.numpy(), encoding), value.const_value.numpy())
            assert encoding.type == before.type
            assert encoding.granularity == before.granularity
            np.testing.assert_array_equal(encoding.zero_point, before.zero_point)
            levels = quantize(value.const_value.numpy(), encoding)
            assert levels.min() >= encoding.type.minimum
    assert changed.encodings.keys() == plan.encodings.keys()
    assert with_room_for_biases(better, changed, bits=32).same_as(changed)


def test_the_given_network_stays() -> None:
    before = {name: value.const_value.numpy().copy() for name, value in CHAIN.graph.initializers.items()}
    plan = chain_plan(weights=INT4)
    optimize(CHAIN, plan, fed(SAMPLES[:16]), threads=1)
    assert dict.fromkeys(before, True) == {
        name: np.array_equal(value.const_value.numpy(), before[name])
        for name, value in CHAIN.graph.initializers.items()
    }


def test_means_are_the_float_networks() -> None:
    _, better, changed, _ = optimized("4 bits per channel")
    reference = run(CHAIN, SAMPLES)
    off = (run(lower_to_qdq(better, changed), SAMPLES) - reference).mean(axis=0)
    assert np.abs(off).max() < 0.05 * reference.std()


def test_biases_alone() -> None:
    plan = chain_plan(weights=INT4)
    better, same, done = optimize(CHAIN, plan, fed(SAMPLES), round_bits=0, threads=1)
    assert same.same_as(plan)
    assert not any(layer.rounded for layer in done)
    np.testing.assert_array_equal(weights_of(better, "w2"), weights_of(CHAIN, "w2"))
    assert rounding_error(better, plan, HELD_OUT) > rounding_error(CHAIN, plan, HELD_OUT) + 1


def test_weights_alone() -> None:
    plan = chain_plan(weights=INT4)
    better, changed, _ = optimize(CHAIN, plan, fed(SAMPLES), correct_bias=False, threads=1)
    for name in ("b1", "b2", "b4", "b5", "b6"):
        np.testing.assert_array_equal(weights_of(better, name), weights_of(CHAIN, name))
    assert rounding_error(better, changed, HELD_OUT) > rounding_error(CHAIN, plan, HELD_OUT) + 1


def test_weights_of_more_bits_are_left_to_nearest_rounding() -> None:
    plan = chain_plan(weights=integer_type("int8"))
    better, changed, done = optimize(CHAIN, plan, fed(SAMPLES[:16]), threads=1)
    assert changed.same_as(plan)
    assert not any(layer.rounded for layer in done)
    np.testing.assert_array_equal(weights_of(better, "w1"), weights_of(CHAIN, "w1"))


def test_scales_that_are_powers_of_two_stay_so() -> None:
    plan = chain_plan(weights=INT4)
    encodings = {
        name: replace(each, scale=np.exp2(np.ceil(np.log2(each.scale)))) if name in CHAIN.graph.initializers else each
        for name, each in plan.encodings.items()
    }
    plan = replace(plan, encodings=encodings)
    better, changed, _ = optimize(CHAIN, plan, fed(SAMPLES), power_of_two=True, threads=1)
    for name in ("w1", "w2", "w6"):
        scale = changed.encodings[name].scale
        np.testing.assert_array_equal(np.exp2(np.rint(np.log2(scale))), scale)
    assert rounding_error(better, changed, HELD_OUT) > rounding_error(CHAIN, plan, HELD_OUT) + 1


def test_what_two_nodes_read_and_what_stays_float_is_left() -> None:
    model = network(
        "float[n, 24] x", "float[n, 24] y",
        "a = Gemm(x, w, b)  r = Relu(a)  c = Gemm(r, w, b)  s = Relu(c)  y = Gemm(s, v, b)",
        w=normal(24, 24) / 5, v=normal(24, 24, seed=1), b=normal(24),
    )  # fmt: skip
    samples = normal(64, 24, seed=5)
    plan = planned(model, seen(model, samples), "openvino", weights=INT4)
    plan = replace(plan, float_nodes=(FloatNode(name=name_of(model, "y"), operator="Gemm", reason="by hand"),))
    plan = replace(plan, encodings={name: each for name, each in plan.encodings.items() if name != "v"})
    better, changed, done = optimize(model, plan, fed(samples), threads=1)
    assert changed.same_as(plan)
    for name in "wv":
        np.testing.assert_array_equal(weights_of(better, name), weights_of(model, name))
    assert [layer.node for layer in done] == [name_of(model, "a"), name_of(model, "c")]
    assert {value.name for value in better.graph.initializers.values()} > {"w", "v", "b"}  # a bias for each


def test_products_and_the_additions_behind_them() -> None:
    model = network(
        "float[n, t, 32] x", "float[n, t, 32] y",
        "a = MatMul(x, w)  b = Add(a, bias)  g = Gelu(b)  c = MatMul(g, v)  y = Add(c, x)",
        w=normal(32, 48) / 5, v=normal(48, 32, seed=1) / 5, bias=normal(48) / 3,
    )  # fmt: skip
    model.graph.opset_imports[""] = 21
    samples = (normal(32, 10, 32, seed=5) @ (normal(32, 32, seed=6) / 4)).astype(np.float32)
    plan = planned(model, seen(model, samples), weights=INT4, granularity="channel")
    better, changed, done = optimize(model, plan, fed(samples), threads=1)
    reference = run(model, samples)
    found = [run(lower_to_qdq(*pair), samples) for pair in ((model, plan), (better, changed))]
    assert sqnr(reference, found[1]) > sqnr(reference, found[0]) + 3
    assert [layer.bias_shift > 0 for layer in done] == [True, False]  # the second has no place for a bias


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
def test_networks_without_ranges(mode: str) -> None:
    model = network(
        "float[n, 32] x", "float[n, 8] y", "a = Gemm(x, w, b)  r = Relu(a)  m = MatMul(r, v)  y = Add(m, c)",
        w=normal(32, 40) / 5, b=normal(40), v=normal(40, 8, seed=1), c=normal(8),
    )  # fmt: skip
    samples = (normal(64, 32, seed=5) @ (normal(32, 32, seed=6) / 4)).astype(np.float32)
    plan = planned(model, None, mode=mode, weights=INT4, granularity="channel")
    better, changed, done = optimize(model, plan, fed(samples), threads=1)
    assert done
    reference = run(model, samples)
    found = [run(lower_to_qdq(*pair), samples) for pair in ((model, plan), (better, changed))]
    assert sqnr(reference, found[1]) > sqnr(reference, found[0]) + 2


def test_blocks_keep_their_scales() -> None:
    model = network("float[n, 64] x", "float[n, 8] y", "y = MatMul(x, w)", w=normal(64, 8))
    samples = (normal(256, 64, seed=5) @ (normal(64, 64, seed=6) / 4)).astype(np.float32)
    plan = planned(model, None, mode="weight-only", weights=INT4, granularity="block", block_size=16)
    better, changed, _ = optimize(model, plan, fed(samples), threads=1)
    assert changed.same_as(plan)
    reference = run(model, samples)
    found = [run(lower_to_qdq(each, plan), samples) for each in (model, better)]
    assert sqnr(reference, found[1]) > sqnr(reference, found[0]) + 2


def test_asymmetric_weights() -> None:
    plan = chain_plan("snpe", weights=integer_type("uint4"))
    assert any(each.zero_point.any() for name, each in plan.encodings.items() if name in CHAIN.graph.initializers)
    better, changed, _ = optimize(CHAIN, plan, fed(SAMPLES), bias_bits=load_target("snpe").bias_bits, threads=1)
    assert rounding_error(better, changed, HELD_OUT) > rounding_error(CHAIN, plan, HELD_OUT) + 3


def test_a_network_with_branches_and_several_inputs() -> None:
    model = network(
        "float[4, 16] x, float[4, 16] z, bool flag", "float[4, 8] y",
        """
        a = Gemm(x, w, b)
        k = Gemm(z, v, b)
        c = If(flag) <
            then_branch = then_graph () => (float[4, 16] t) { t = Add(a, k) },
            else_branch = else_graph () => (float[4, 16] e) { e = Sub(a, k) }
        >
        y = Gemm(c, u)
        """,
        w=normal(16, 16) / 4, v=normal(16, 16, seed=1) / 4, b=normal(16), u=normal(16, 8, seed=2),
    )  # fmt: skip
    batches = [
        Rows({"x": normal(4, 16, seed=n), "z": normal(4, 16, seed=50 + n), "flag": np.array(n % 2 == 0)})
        for n in range(12)
    ]
    held = [Batch(feed=one.feed, count=4, names=tuple("abcd"), labels=(None,) * 4) for one in batches]
    plan = planned(model, collect(model, held), weights=INT4, granularity="channel")
    better, changed, done = optimize(model, plan, batches, threads=1)
    assert len(done) == 3
    reference, before, after = (
        np.concatenate([run(each, one.feed) for one in batches])
        for each in (model, lower_to_qdq(model, plan), lower_to_qdq(better, changed))
    )
    assert sqnr(reference, after) > sqnr(reference, before)


def test_a_reference_of_other_numbers_is_what_is_aimed_at() -> None:
    other = CHAIN.clone()
    set_constant(other.graph.initializers["w6"], weights_of(CHAIN, "w6") * 1.5)
    set_constant(other.graph.initializers["b6"], weights_of(CHAIN, "b6") + 5)
    plan = chain_plan(weights=INT4)
    better, changed, _ = optimize(CHAIN, plan, fed(SAMPLES), reference=other, threads=1)
    found = [rounding_error(*pair, HELD_OUT, other) for pair in ((CHAIN, plan), (better, changed))]
    assert found[1] > found[0] + 3


def test_a_reference_of_other_nodes_is_refused() -> None:
    other = network("float[n, 24] x", "float[n, 24] y", "y = Relu(x)")
    with pytest.raises(PlanError, match="same nodes"):
        optimize(CHAIN, chain_plan(weights=INT4), fed(SAMPLES), reference=other)


def test_without_samples_nothing_happens() -> None:
    plan = chain_plan(weights=INT4)
    assert optimize(CHAIN, plan, []) == (CHAIN, plan, ())


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_wide_layers_are_rounded_in_parts(granularity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_form, "MOST_INPUTS", 16)
    plan = chain_plan(weights=INT4, granularity=granularity)
    better, changed, done = optimize(CHAIN, plan, fed(SAMPLES), threads=1)
    assert len(done) == 6
    assert rounding_error(better, changed, HELD_OUT) > rounding_error(CHAIN, plan, HELD_OUT) + 2


def test_transposed_convolutions_whose_groups_share_scales() -> None:
    model = network(
        "float[n, 16, 12, 12] x", "float[n, 8, a, b] y", "y = ConvTranspose<group = 2, strides = [2, 2]>(x, w, b)",
        w=normal(16, 4, 3, 3), b=normal(8),
    )  # fmt: skip
    plan = planned(model, seen(model, SAMPLES), "openvino", weights=INT4, granularity="channel")
    better, changed, _ = optimize(model, plan, fed(SAMPLES), threads=1)
    assert changed.encodings["w"].scale.shape == plan.encodings["w"].scale.shape
    found = [rounding_error(*pair, HELD_OUT, model) for pair in ((model, plan), (better, changed))]
    assert found[1] > found[0] + 2


def test_samples_without_rows_change_nothing() -> None:
    plan = chain_plan(weights=INT4)
    _, same, done = optimize(CHAIN, plan, [Rows({"x": SAMPLES[:0]})], threads=1)
    assert same.same_as(plan)
    assert done == ()


def test_a_bias_behind_a_rounded_product_is_kept() -> None:
    """The product's own saturation stands between it and the addition in the stream that is aimed at."""
    bias = 5 + normal(1, 1, 5)
    model = network(
        "float[n, 4, 6] x", "float[n, 4, 3] y", "m = MatMul(x, w1)\n a = Add(m, b)\n y = MatMul(a, w2)",
        w1=normal(6, 5, seed=1), b=bias, w2=normal(5, 3, seed=2),
    )  # fmt: skip
    x = normal(16, 4, 6)
    plan = planned(model, seen(model, x))
    product = encoding_from_range(-6, 6, integer_type("int8"), PerTensor())
    plan = replace(plan, float_nodes=(), float_outputs=(), encodings={**plan.encodings, "m": product})
    better, _, done = optimize(model, plan, fed(x), bias_bits=0, threads=1)
    assert [one.value for one in done] == ["w1"]
    np.testing.assert_allclose(weights_of(better, "b"), bias, atol=0.2)
