"""Neighbouring layers share out the ranges of their channels; the network computes what it did."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.errors import StatisticsError
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.recovery.equalize import drop_idle_caps, equalize
from tests.planning.networks import network, normal, operators, planned, run, seen, sqnr, weights_of

Array = np.ndarray


def unequal(*shape: int, axis: int = 0, seed: int = 0, spread: float = 1.5) -> Array:
    """Weights whose channels along an axis differ in size by about e^spread."""
    generator = np.random.default_rng(seed)
    factors = np.exp(spread * generator.standard_normal(shape[axis]))
    sizes = [-1 if number == axis else 1 for number in range(len(shape))]
    values = generator.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))
    return (values * factors.reshape(sizes)).astype(np.float32)


def mobile(activation: str, **more: Array) -> ir.Model:
    """A convolution, a depthwise one and a pointwise one, then pooling and a classifier."""
    body = (
        "a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)  c = ACT(a)  "
        "d = Conv<pads = [1, 1, 1, 1], group = 8>(c, w2, b2)  e = ACT(d)  f = Conv(e, w3, b3)  g = ACT(f)  "
        "p = GlobalAveragePool(g)  q = Flatten(p)  y = Gemm<transB = 1>(q, w4, b4)"
    )
    form = {"clip": "Clip({0}, low, high)", "relu": "Relu({0})", "none": "Identity({0})"}[activation]
    for name in "adf":
        body = body.replace(f"ACT({name})", form.format(name))
    weights = {
        "w1": unequal(8, 3, 3, 3), "w2": unequal(8, 1, 3, 3, seed=1), "w3": unequal(6, 8, 1, 1, seed=2),
        "w4": unequal(5, 6, seed=3), "b1": normal(8), "b2": normal(8, seed=1), "b3": normal(6), "b4": normal(5),
    }  # fmt: skip
    if activation == "clip":
        weights |= {"low": np.float32(0), "high": np.float32(2)}
    return network("float[n, 3, 12, 12] x", "float[n, 5] y", body, **weights, **more)


SAMPLES, HELD_OUT = normal(16, 3, 12, 12, seed=5), normal(64, 3, 12, 12, seed=6)


def assert_same(before: ir.Model, after: ir.Model, samples: Array) -> None:
    expected = run(before, samples)
    np.testing.assert_allclose(run(after, samples), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def reach(model: ir.Model, name: str, channel_axis: int) -> Array:
    array = np.abs(weights_of(model, name))
    return array.max(axis=tuple(number for number in range(array.ndim) if number != channel_axis))


@pytest.mark.parametrize("activation", ["clip", "relu", "none"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_mobile_block_computes_what_it_did(activation: str, share: float) -> None:
    model = mobile(activation)
    before = {name: weights_of(model, name).copy() for name in model.graph.initializers}
    changed, statistics, done = equalize(model, activation_share=share)
    assert_same(model, changed, HELD_OUT)
    assert statistics is None
    assert len(done) == 3
    for name, array in before.items():
        np.testing.assert_array_equal(weights_of(model, name), array)


def test_ranges_are_equal_afterwards() -> None:
    model, _, _ = equalize(mobile("relu"), activation_share=0)
    first, depthwise, pointwise = reach(model, "w1", 0), reach(model, "w2", 0), reach(model, "w3", 1)
    np.testing.assert_allclose(first, depthwise, rtol=5e-3)
    np.testing.assert_allclose(depthwise, pointwise, rtol=5e-3)
    np.testing.assert_allclose(reach(model, "w3", 0), reach(model, "w4", 1), rtol=5e-3)


def test_two_layers_get_the_factors_of_equation_11() -> None:
    w1, w2 = unequal(7, 4), unequal(3, 7, axis=1, seed=1)
    body = "h = Gemm<transB = 1>(x, w1, b)  r = Relu(h)  y = Gemm<transB = 1>(r, w2)"
    model = network("float[n, 4] x", "float[n, 3] y", body, w1=w1, w2=w2, b=normal(7))
    changed, _, (done,) = equalize(model)
    before, behind = np.abs(w1).max(axis=1), np.abs(w2).max(axis=0)
    expected = np.sqrt(before * behind) / behind
    np.testing.assert_allclose(done.factors, expected, rtol=1e-6)
    np.testing.assert_allclose(weights_of(changed, "w1"), w1 / expected[:, None], rtol=1e-6)
    np.testing.assert_allclose(weights_of(changed, "b"), normal(7) / expected, rtol=1e-6)


@pytest.mark.parametrize("activation", ["clip", "relu"])
def test_an_equalized_network_stays(activation: str) -> None:
    once, _, _ = equalize(mobile(activation))
    again, _, done = equalize(once)
    assert not done
    assert again is once


# --- caps -----------------------------------------------------------------------------------------------------


def test_each_clip_becomes_a_cap_per_channel() -> None:
    model, _, done = equalize(mobile("clip"))
    assert operators(model) == [
        "Conv", "Relu", "Min", "Conv", "Relu", "Min", "Conv", "Relu", "Min", "GlobalAveragePool", "Flatten", "Gemm",
    ]  # fmt: skip
    assert [one.capped for one in done] == [("c",), ("e",), ("g",)]
    np.testing.assert_allclose(weights_of(model, "c_cap").reshape(-1), 2 / done[0].factors, rtol=1e-6)
    assert weights_of(model, "c_cap").shape == (8, 1, 1)


def test_a_bound_that_no_channel_reached_needs_no_cap() -> None:
    model = mobile("clip")
    model.graph.initializers["high"].const_value = ir.tensor(np.float32(1e3), name="high")
    statistics = seen(model, SAMPLES)
    capped, _, _ = equalize(model)
    free, _, done = equalize(model, statistics)
    assert operators(capped).count("Min") == 3
    assert operators(free).count("Min") == 0
    assert operators(free).count("Relu") == 3
    assert not any(one.capped for one in done)
    assert_same(model, free, SAMPLES)


def test_caps_are_dropped_where_calibration_never_reached_them() -> None:
    model, _, _ = equalize(mobile("clip"))
    statistics = seen(model, SAMPLES)
    assert drop_idle_caps(model, statistics)[0] is model
    cap = model.graph.initializers["e_cap"]
    cap.const_value = ir.tensor(cap.const_value.numpy() * np.float32(100), name="e_cap")
    statistics = seen(model, SAMPLES)
    freed, kept, gone = drop_idle_caps(model, statistics)
    assert gone == ("e",)
    assert operators(freed).count("Min") == 2
    assert_same(model, freed, SAMPLES)
    assert kept.network == seen(freed, SAMPLES).network


def test_without_caps_only_layers_that_need_none_change() -> None:
    model = mobile("clip")
    assert equalize(model, caps=False)[2] == ()
    model.graph.initializers["high"].const_value = ir.tensor(np.float32(1e3), name="high")
    changed, _, done = equalize(model, seen(model, SAMPLES), caps=False)
    assert len(done) == 3
    assert "Min" not in operators(changed)
    assert_same(model, changed, SAMPLES)


def test_a_clip_with_another_lower_bound_stops_it() -> None:
    model = mobile("clip")
    model.graph.initializers["low"].const_value = ir.tensor(np.float32(-1), name="low")
    assert equalize(model)[2] == ()


# --- what stops it, what it passes through --------------------------------------------------------------------


def chain(between: str, shape: str = "float[n, 3, 8, 8] x", last: str = "y = Conv(h, v)", **more: Array) -> ir.Model:
    weights = {"w": unequal(8, 3, 1, 1), "v": unequal(4, 8, 1, 1, axis=1, seed=1), "b": normal(8)} | more
    return network(shape, "float y", f"a = Conv(x, w, b)  {between}  {last}", **weights)


PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
PASSES: dict[str, Callable[[], ir.Model]] = {
    "max pool": lambda: chain("h = MaxPool<kernel_shape = [2, 2]>(a)"),
    "average pool": lambda: chain("h = AveragePool<kernel_shape = [2, 2]>(a)"),
    "pad": lambda: chain("h = Pad(a, pads)", pads=PADS),
    "leaky": lambda: chain("h = LeakyRelu<alpha = 0.1>(a)"),
    "slope": lambda: chain("h = PRelu(a, slope)", slope=unequal(8, 1, 1)),
    "scalar bound": lambda: chain("r = Relu(a)  h = Min(r, high)", high=np.float32(1)),
    "lower bound": lambda: chain("h = Max(low, a)", low=-np.abs(unequal(8, 1, 1))),
    "upper bound only": lambda: chain("h = Clip(a, , high)", high=np.float32(1)),
    "two readers": lambda: chain("h = Relu(a)", last="y1 = Conv(h, v)  y2 = Conv(h, u)  y = Add(y1, y2)",
                                 u=unequal(4, 8, 1, 1, axis=1, seed=2)),
    "branches": lambda: chain("r = Relu(a)  h = MaxPool<kernel_shape = [1, 1]>(a)",
                              last="y1 = Conv(h, v)  y2 = Conv(r, u)  y = Add(y1, y2)",
                              u=unequal(4, 8, 1, 1, axis=1, seed=2)),
    "flattened positions": lambda: chain("r = Relu(a)  h = Flatten(r)", last="y = MatMul(h, v)",
                                         v=unequal(8 * 64, 4, axis=0, seed=1)),
    "means": lambda: chain("h = ReduceMean<keepdims = 0>(a, axes)", last="y = MatMul(h, v)",
                           axes=np.array([2, 3], np.int64), v=unequal(8, 4, axis=0, seed=1)),
    "tokens": lambda: chain("r = Reshape(a, s)  h = Transpose<perm = [0, 2, 1]>(r)", last="y = MatMul(h, v)",
                            s=np.array([0, 8, 64], np.int64), v=unequal(8, 4, axis=0, seed=1)),
    "transposed convolution": lambda: chain("h = Relu(a)", last="y = ConvTranspose<group = 2>(h, v)",
                                            v=unequal(8, 3, 2, 2, seed=1)),
    "groups": lambda: chain("h = Relu(a)", last="y = Conv<group = 4>(h, v)", v=unequal(8, 2, 3, 3, axis=0, seed=1)),
    "multiplier": lambda: chain("h = Relu(a)", last="y = Conv<group = 8>(h, v)", v=unequal(16, 1, 3, 3, seed=1)),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_factors_pass_through(name: str) -> None:
    model = PASSES[name]()
    changed, _, done = equalize(model)
    assert len(done) == 1
    assert np.ptp(done[0].factors) > 0.1
    assert_same(model, changed, normal(4, 3, 8, 8, seed=9))


STOPS: dict[str, Callable[[], ir.Model]] = {
    "residual": lambda: chain("h = Relu(a)", last="c = Conv(h, v)  y = Add(c, h)", v=unequal(8, 8, 1, 1, axis=1)),
    "sigmoid": lambda: chain("h = Sigmoid(a)"),
    "pad with ones": lambda: chain("h = Pad(a, pads, one)", pads=PADS, one=np.float32(1)),
    "pad of channels": lambda: chain("h = Pad(a, pads)", pads=np.array([0, 0, 0, 0, 0, 1, 0, 0]),
                                     v=unequal(4, 9, 1, 1, axis=1)),
    "mean of channels": lambda: chain("h = ReduceMean(a, axes)", axes=np.array([1], np.int64), v=unequal(4, 1, 1, 1)),
    "dead layer behind": lambda: chain("h = Relu(a)", v=np.zeros((4, 8, 1, 1), np.float32)),
    "other channels": lambda: chain("h = Transpose<perm = [0, 2, 1, 3]>(a)"),
}  # fmt: skip


@pytest.mark.parametrize("name", STOPS)
def test_what_cannot_take_the_factors_stops_them(name: str) -> None:
    model = STOPS[name]()
    assert equalize(model)[0] is model


def test_an_output_of_the_network_keeps_its_scale() -> None:
    body = "a = Conv(x, w)  h = Relu(a)  y = Conv(h, v)"
    outputs = "float[n, 4, 8, 8] y, float[n, 8, 8, 8] h"
    model = network("float[n, 3, 8, 8] x", outputs, body, w=unequal(8, 3, 1, 1), v=unequal(4, 8, 1, 1, axis=1))
    assert equalize(model)[2] == ()


def test_only_named_layers_change() -> None:
    model = mobile("relu")
    names = [str(node.name) for node in model.graph if node.op_type in {"Conv", "Gemm"}]
    _, _, done = equalize(model, layers=names[1:])
    assert [(one.writer, one.readers) for one in done] == [
        (names[1], (names[2],)), (names[2], (names[3],)),
    ]  # fmt: skip


def test_weights_that_two_layers_share_are_parted() -> None:
    body = "a = Conv(x, w)  r = Relu(a)  h = Conv(r, w)  s = Relu(h)  y = Conv(s, v)"
    model = network("float[n, 6, 8, 8] x", "float[n, 4, 8, 8] y", body, w=unequal(6, 6, 1, 1), v=unequal(4, 6, 1, 1))
    changed, _, done = equalize(model)
    assert len(done) == 2
    assert_same(model, changed, normal(4, 6, 8, 8, seed=9))


def test_the_body_of_an_if_may_read_the_value() -> None:
    body = """
    a = Conv(x, w)  h = Relu(a)  y1 = Conv(h, v)  m = ReduceMax<keepdims = 0>(x)  c = Greater(m, one)
    y2 = If (c) < then_branch = t () => (float p) { p = Neg(h) }, else_branch = e () => (float q) { q = Abs(h) } >
    y = Concat<axis = 1>(y1, y2)
    """
    weights = {"w": unequal(8, 3, 1, 1), "v": unequal(4, 8, 1, 1, axis=1), "one": np.float32(1)}
    model = network("float[n, 3, 8, 8] x", "float y", body, **weights)
    assert equalize(model)[2] == ()


def test_channels_without_weights_keep_their_scale() -> None:
    w, v = unequal(8, 3, 1, 1), unequal(4, 8, 1, 1, axis=1, seed=1)
    w[2], v[:, 5] = 0, 0
    model = chain("h = Relu(a)", w=w, v=v)
    changed, _, (done,) = equalize(model)
    np.testing.assert_array_equal(done.factors[[2, 5]], 1)
    assert_same(model, changed, normal(4, 3, 8, 8, seed=9))


@settings(max_examples=25)
@given(data=st.data())
def test_random_chains_compute_what_they_did(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1000))
    channels, source, body, weights = 3, "x", "", {"low": np.float32(0), "high": np.float32(1.5)}
    for number in range(data.draw(st.integers(2, 4))):
        depthwise = number > 0 and data.draw(st.booleans())
        width = channels if depthwise else data.draw(st.integers(1, 6))
        weights[f"w{number}"] = unequal(width, 1 if depthwise else channels, 3, 3, seed=seed + number, spread=2.0)
        weights[f"b{number}"] = normal(width, seed=seed)
        group = channels if depthwise else 1
        body += f" c{number} = Conv<pads = [1, 1, 1, 1], group = {group}>({source}, w{number}, b{number}) "
        activation = data.draw(st.sampled_from(["Relu({0})", "Clip({0}, low, high)", "Identity({0})", "Tanh({0})"]))
        source, channels = f"r{number}", width
        body += f" {source} = {activation.format(f'c{number}')} "
    model = network("float[n, 3, 5, 5] x", "float y", f"{body} y = Identity({source})", **weights)
    changed, _, _ = equalize(model, activation_share=data.draw(st.sampled_from([0.0, 0.5])))
    assert_same(model, changed, normal(4, 3, 5, 5, seed=seed))


# --- statistics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["clip", "relu", "none"])
def test_statistics_are_those_of_calibrating_again(activation: str) -> None:
    model = mobile(activation)
    changed, statistics, done = equalize(model, seen(model, SAMPLES))
    fresh = seen(changed, SAMPLES)
    assert done
    assert statistics is not None
    assert statistics.network == fresh.network
    for name, tensor in fresh.tensors.items():
        if name.endswith("_uncapped"):
            assert statistics.of(name) is statistics.of(name.removesuffix("_uncapped"))
            continue
        kept, size = statistics.of(name), max(abs(tensor.minimum), abs(tensor.maximum))
        np.testing.assert_allclose([kept.minimum, kept.maximum], [tensor.minimum, tensor.maximum], atol=1e-5 * size)
        assert kept.channels is not None
        assert tensor.channels is not None
        np.testing.assert_allclose(kept.channels.maximum, tensor.channels.maximum, atol=1e-5 * size)
        np.testing.assert_allclose(kept.channels.mean, tensor.channels.mean, atol=1e-5 * size)


def test_statistics_without_channels_are_left_out() -> None:
    model = PASSES["tokens"]()
    before = seen(model, normal(4, 3, 8, 8))
    _, statistics, done = equalize(model, before)
    assert statistics is not None
    for name in done[0].values:
        tensor = statistics.tensors.get(name)
        assert tensor is None or tensor.channels is not None
        if name in before.tensors and tensor is None:
            with pytest.raises(StatisticsError):
                statistics.of(name)


# --- what it is for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["clip", "relu"])
def test_one_scale_a_tensor_rounds_better(activation: str) -> None:
    model = mobile(activation)
    changed, _, _ = equalize(model)
    reference = run(model, HELD_OUT)
    quality = []
    for candidate in (model, changed):
        plan = planned(candidate, seen(candidate, SAMPLES), "snpe", granularity="tensor")
        quality.append(sqnr(reference, run(lower_to_qdq(candidate, plan), HELD_OUT)))
    assert quality[1] > quality[0] + 3
