"""Each remedy's figure is what the whole network with it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

import narrowgauge.analysis.remedies as remedies_module
from narrowgauge.analysis.chain import Change, Streams, changed_plan, open_streams
from narrowgauge.analysis.remedies import Patient, Trial, remedies
from narrowgauge.analysis.sensitivity import quantized_tensors
from narrowgauge.core.encoding import AnyEncoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.graph.constants import set_constant
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.recovery.equalize import equalize
from narrowgauge.recovery.sequential import optimize
from narrowgauge.targets.registry import load_target
from tests.analysis.exact import batched, noise, without
from tests.planning.networks import network, normal, planned, seen

SPREAD = np.array([0.05, 1, 4, 0.2], np.float32)
MODEL = network(
    "float[n, 4, 6, 6] x", "float[n, 4, 6, 6] y",
    "a = Conv(x, w1, b1) ra = Relu(a) c = Conv(ra, w2) y = Relu(c)",
    w1=normal(4, 4, 1, 1) * SPREAD[:, None, None, None], b1=normal(4) * SPREAD, w2=normal(4, 4, 1, 1, seed=1),
)  # fmt: skip
DATA = normal(40, 4, 6, 6, seed=2) + 0.5  # rounded weights then shift means
STATISTICS = seen(MODEL, DATA)
PLAN = planned(MODEL, STATISTICS, "snpe", weights=integer_type("int4"), granularity="tensor")
TARGET = load_target("snpe")
BATCHES = batched(MODEL, {"x": DATA[:16]}, 4)
LEARNED = batched(MODEL, {"x": DATA[16:32]}, 4)


def opened() -> Streams:
    return open_streams(MODEL, MODEL, PLAN, BATCHES + LEARNED, threads=1)


def test_every_remedy_is_what_the_whole_network_says() -> None:
    tensors = {tensor.name: tensor for tensor in quantized_tensors(MODEL, PLAN)}
    found = remedies(opened(), [tensors["w1"], tensors["ra"]], STATISTICS, target=TARGET)
    by_name = {(one.tensor, one.method): one for one in found}
    before = noise(MODEL, MODEL, PLAN, BATCHES)

    def check(tensor: str, method: str, encoding: AnyEncoding) -> None:
        plan = replace(PLAN, encodings={**PLAN.encodings, tensor: encoding})
        np.testing.assert_allclose(by_name[tensor, method].noise, noise(MODEL, MODEL, plan, BATCHES), rtol=2e-3)

    w1 = MODEL.graph.initializers["w1"].const_value.numpy()
    reach = np.abs(w1).max(axis=(1, 2, 3))
    symmetric = TARGET.weights.is_symmetric(PLAN.encodings["w1"].type)
    check("w1", "per channel", encoding_from_range(
        w1.min((1, 2, 3)), w1.max((1, 2, 3)), PLAN.encodings["w1"].type, PerAxis(0), symmetric=symmetric))  # fmt: skip
    wide = IntegerType(bits=16, signed=True)
    check("w1", "16 bits", encoding_from_range(w1.min(), w1.max(), wide, PerTensor(), symmetric=symmetric))
    channels = STATISTICS.of("ra").channels
    check("ra", "per channel", encoding_from_range(
        channels.minimum, channels.maximum, PLAN.encodings["ra"].type, PerAxis(1)))  # fmt: skip
    for name in ("w1", "ra"):
        expected = noise(MODEL, MODEL, without(PLAN, [name]), BATCHES)
        np.testing.assert_allclose(by_name[name, "float"].noise, expected, rtol=2e-3)
    for one in found:
        np.testing.assert_allclose(one.gain, before - one.noise, rtol=0.05, atol=before / 100)
    assert reach.max() > 10 * reach.min()
    assert by_name["w1", "per channel"].gain > by_name["w1", "bias correction"].gain > 0
    assert "per channel" in by_name["ra", "per channel"].detail
    for name in ("w1", "ra"):
        gains = [one.gain for one in found if one.tensor == name]
        assert gains == sorted(gains, reverse=True)
    assert [one.tensor for one in found] == sorted((one.tensor for one in found), key=["w1", "ra"].index)


def test_other_ranges_are_tried_only_where_statistics_tell_them() -> None:
    tensors = {tensor.name: tensor for tensor in quantized_tensors(MODEL, PLAN)}
    with_them = remedies(opened(), [tensors["ra"]], STATISTICS, target=TARGET)
    without_them = remedies(opened(), [tensors["ra"]], None, target=TARGET)
    assert sum(one.method.startswith("range: ") for one in with_them) >= 2
    assert [one.method for one in without_them] == ["float"]


def test_a_new_remedy_is_one_line_and_what_cannot_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(patient: Patient) -> Iterator[Trial]:
        yield Trial(method="wider", change=patient.encoded(replace(patient.encoding, scale=patient.encoding.scale * 2)))

    def impossible(patient: Patient) -> Iterator[Trial]:
        odd = encoding_from_range(np.full(3, -1.0), np.full(3, 1.0), integer_type("int8"), PerAxis(7))
        yield Trial(method="impossible", change=patient.encoded(odd))

    monkeypatch.setattr(remedies_module, "REMEDIES", {"wider": halved, "impossible": impossible})
    tensors = quantized_tensors(MODEL, PLAN)
    found = remedies(opened(), tensors, STATISTICS, target=TARGET)
    assert {one.method for one in found} == {"wider"}
    assert {one.tensor for one in found} == {tensor.name for tensor in tensors}


# --- remedies that change weights -----------------------------------------------------------------------------


def noisy_copies(count: int, seed: int) -> np.ndarray:
    """Rows of 16 numbers that are two signals at different strengths: what is rounded off one, others tell."""
    signals = normal(count, 2, seed=seed)
    return (np.repeat(signals, 8, axis=1) * np.linspace(0.6, 1.4, 16, dtype=np.float32)).astype(np.float32)


CORRELATED = network(
    "float[n, 16] x", "float[n, 8] y", "a = Gemm(x, w, b)  y = Relu(a)", w=normal(16, 8, seed=3), b=normal(8, seed=4)
)
ROWS = noisy_copies(64, 5)


def correlated(weights: str = "int4", **changed: np.ndarray) -> tuple[ir.Model, Plan, Streams]:
    """A layer of few bits behind a coarsely rounded input, measured on half of the rows."""
    model = CORRELATED.clone()
    for name, array in changed.items():
        set_constant(model.graph.initializers[name], array)
    plan = planned(model, seen(CORRELATED, ROWS), weights=integer_type(weights), granularity="channel")
    coarse = encoding_from_range(-4, 4, integer_type("int4"), PerTensor())
    plan = replace(plan, encodings={"x": coarse, "w": plan.encodings["w"]})
    return model, plan, open_streams(CORRELATED, model, plan, batched(model, {"x": ROWS}, 8), threads=1)


@pytest.mark.parametrize("weights", ["int3", "int4"])
def test_rounding_by_its_effect_is_the_best_remedy_of_correlated_inputs(weights: str) -> None:
    model, plan, streams = correlated(weights)
    (tensor,) = (tensor for tensor in quantized_tensors(model, plan) if tensor.name == "w")
    found = remedies(streams, [tensor], None, target=load_target("onnxruntime"), samples=32)
    assert found[0].method == "rounding"
    assert found[0].gain > 1.2 * max(one.gain for one in found[1:])
    measured, learned = (batched(model, {"x": rows}, 8) for rows in (ROWS[:32], ROWS[32:]))
    whole = optimize(model, plan, learned, reference=CORRELATED, threads=1)
    np.testing.assert_allclose(found[0].noise, noise(CORRELATED, *whole[:2], measured), rtol=1e-4)


def test_rounding_starts_from_what_recovery_left() -> None:
    """The quantized network's weights and bias are others than the float one's."""
    model, plan, streams = correlated(b=normal(8, seed=4) + 3)
    (tensor,) = (tensor for tensor in quantized_tensors(model, plan) if tensor.name == "w")
    found = {one.method: one for one in remedies(streams, [tensor], None, target=load_target("onnxruntime"))}
    assert found["rounding"].noise < found["rounding"].gain / 10
    assert "bias" in found["rounding"].detail


def test_rounding_inside_a_network_is_what_the_whole_network_says() -> None:
    tensors = [tensor for tensor in quantized_tensors(MODEL, PLAN) if tensor.kind == "weights"]
    found = {
        one.tensor: one for one in remedies(opened(), tensors, STATISTICS, target=TARGET) if one.method == "rounding"
    }
    assert set(found) == {"w1", "w2"}
    for tensor in tensors:
        streams = opened()
        patient = Patient(tensor=tensor, streams=streams, cases=streams.cases[4:], statistics=None, target=TARGET)
        (trial,) = remedies_module.REMEDIES["rounding"](patient)
        expected = noise(MODEL, *applied(MODEL, PLAN, trial.change), BATCHES)
        np.testing.assert_allclose(found[tensor.name].noise, expected, rtol=2e-3)
        assert found[tensor.name].gain > 0


def applied(model: ir.Model, plan: Plan, change: Change) -> tuple[ir.Model, Plan]:
    other = model.clone()
    change.edit(other.graph)
    return other, changed_plan(plan, change.encodings)


def test_rounding_is_offered_only_where_it_applies() -> None:
    model = network(
        "float[n, 8, 6, 6] x", "float[n, 8, 6, 6] y",
        'a = Conv(x, w, b) r = Relu(a) c = Conv(r, w) d = Conv<auto_pad = "SAME_UPPER">(c, v) y = Conv(d, u)',
        w=normal(8, 8, 1, 1), b=normal(8), v=normal(8, 8, 3, 3, seed=1), u=normal(8, 8, 1, 1, seed=2),
    )  # fmt: skip
    data = normal(8, 8, 6, 6, seed=3)
    plan = planned(
        model, seen(model, data), granularity="channel", nodes={"y": NodeChoice(weights=integer_type("int8"))}
    )
    wide = replace(plan.encodings["u"], type=IntegerType(bits=16, signed=True), scale=plan.encodings["u"].scale / 256)
    for encodings, offered in ((plan.encodings, {"u"}), ({**plan.encodings, "u": wide}, set())):
        given = replace(plan, encodings=encodings)
        streams = open_streams(model, model, given, batched(model, {"x": data}, 4), threads=1)
        tensors = quantized_tensors(model, given)
        found = remedies(streams, tensors, None, target=load_target("onnxruntime"))
        assert {one.tensor for one in found if one.method == "rounding"} == offered


DATA_OF_8 = normal(40, 8, 6, 6, seed=2)
UNEQUAL = network(
    "float[n, 8, 6, 6] x", "float[n, 4, 6, 6] y", "a = Conv(x, w1, b1)  r = Relu(a)  y = Conv(r, w2)",
    w1=normal(8, 8, 1, 1) * np.geomspace(0.01, 8, 8, dtype=np.float32)[:, None, None, None],
    b1=normal(8, seed=1) * np.geomspace(0.01, 8, 8, dtype=np.float32),
    w2=normal(4, 8, 1, 1, seed=2) * np.geomspace(8, 0.01, 8, dtype=np.float32)[None, :, None, None],
)  # fmt: skip


def test_equalization_is_the_best_remedy_of_unequal_channels_on_both_sides() -> None:
    """Leaving one of the two layers float leaves the other one's channels, and the value between, as they are."""
    statistics = seen(UNEQUAL, DATA_OF_8)
    plan = planned(UNEQUAL, statistics, "snpe", granularity="tensor")
    batches = batched(UNEQUAL, {"x": DATA_OF_8[:16]}, 4)
    streams = open_streams(UNEQUAL, UNEQUAL, plan, batches + batches, threads=1)
    tensors = [tensor for tensor in quantized_tensors(UNEQUAL, plan) if tensor.kind == "weights"]
    found = remedies(streams, tensors, statistics, target=TARGET)
    other, its_statistics, _ = equalize(UNEQUAL, statistics, caps=False)
    expected = noise(UNEQUAL, other, planned(other, its_statistics, "snpe", granularity="tensor"), batches)
    for tensor in tensors:
        first, second = [one for one in found if one.tensor == tensor.name][:2]
        assert first.method == "equalization"
        assert first.gain > 2 * second.gain
        np.testing.assert_allclose(first.noise, expected, rtol=2e-3)


def test_equalization_is_offered_only_for_one_scale_that_a_neighbour_can_change() -> None:
    statistics = seen(UNEQUAL, DATA_OF_8)
    batches = batched(UNEQUAL, {"x": DATA_OF_8[:8]}, 4)
    for granularity, known, offered in (
        ("tensor", statistics, {"w1", "w2"}), ("channel", statistics, set()), ("tensor", None, set()),
    ):  # fmt: skip
        plan = planned(UNEQUAL, statistics, granularity=granularity)
        streams = open_streams(UNEQUAL, UNEQUAL, plan, batches, threads=1)
        found = remedies(streams, quantized_tensors(UNEQUAL, plan), known, target=load_target("onnxruntime"))
        assert {one.tensor for one in found if one.method == "equalization"} == offered
