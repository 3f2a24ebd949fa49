"""Each remedy's figure is what the whole network with it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import narrowgauge.analysis.remedies as remedies_module
from narrowgauge.analysis.chain import Streams, open_streams
from narrowgauge.analysis.remedies import Patient, Trial, remedies
from narrowgauge.analysis.sensitivity import quantized_tensors
from narrowgauge.core.encoding import AnyEncoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.targets.registry import load_target
from tests.analysis.exact import batched, noise, without
from tests.planning.networks import network, normal, planned, seen

SPREAD = np.array([0.05, 1, 4, 0.2], np.float32)
MODEL = network(
    "float[n, 4, 6, 6] x", "float[n, 4, 6, 6] y",
    "a = Conv(x, w1, b1) ra = Relu(a) c = Conv(ra, w2) y = Relu(c)",
    w1=normal(4, 4, 1, 1) * SPREAD[:, None, None, None], b1=normal(4) * SPREAD, w2=normal(4, 4, 1, 1, seed=1),
)  # fmt: skip
DATA = normal(40, 4, 6, 6, seed=2)
STATISTICS = seen(MODEL, DATA)
PLAN = planned(MODEL, STATISTICS, "snpe", weights=integer_type("int4"), granularity="tensor")
TARGET = load_target("snpe")
BATCHES = batched(MODEL, {"x": DATA[:16]}, 4)


def opened() -> Streams:
    return open_streams(MODEL, MODEL, PLAN, BATCHES, threads=1)


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
