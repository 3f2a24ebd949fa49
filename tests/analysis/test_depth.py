"""The error of each value along the network, against two whole runs that show every value."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.analysis.chain import open_streams
from narrowgauge.analysis.depth import cumulative_noise, decibels
from narrowgauge.analysis.probability_loss import round_probabilities
from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.encoding import LogEncoding, NormalizedEncoding
from narrowgauge.core.numbers import integer_type
from narrowgauge.demo import digits, network_path
from narrowgauge.graph.exposing import returning
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import lower_to_qdq
from tests.analysis.exact import batched, exact_plan
from tests.calibration.networks import batches_of, branches, exposed, whole
from tests.lowering.networks import hand_plan, per_tensor
from tests.planning.networks import network, normal, planned, run, seen, sqnr

MODEL = network(
    "float[n, 3, 6, 6] x", "float[n, 4, 6, 6] y",
    """
    a = Conv<pads = [1, 1, 1, 1]>(x, w1)
    ra = Relu(a)
    b = Conv(ra, w2)
    n1 = Sigmoid(b)
    f = Neg(n1)
    y = Add(f, ra)
    """,
    w1=whole(np.random.default_rng(0), 4, 3, 3, 3), w2=whole(np.random.default_rng(1), 4, 4, 1, 1) / 16,
)  # fmt: skip


def truth(model: ir.Model, plan, feeds, names):
    """SQNR by value from both networks whole, every value an output."""
    lowered = lower_to_qdq(model, plan)
    real, rounded = exposed(model, feeds, names), exposed(lowered, feeds, names)
    found = {}
    for name in names:
        pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(real[name], rounded[name], strict=True)]
        error = sum(np.square(a - b).sum() for a, b in pairs)
        found[name] = decibels(sum(np.square(a).sum() for a, _ in pairs), error)
    return found


def test_values_part_as_whole_runs_show() -> None:
    plan = exact_plan(MODEL, skip=("a", "n1", "f", "y"))
    feed = {"x": whole(np.random.default_rng(2), 6, 3, 6, 6)}
    batches = batched(MODEL, feed, 2)
    found = cumulative_noise(open_streams(MODEL, MODEL, plan, batches, threads=2))
    assert [one.name for one in found] == ["x", "ra", "b", "n1", "f", "y"]
    names = ["n1", "f", "y"]
    expected = truth(MODEL, plan, [dict(batch.feed) for batch in batches], names)
    for one in found:
        if one.name in names:
            np.testing.assert_allclose(one.sqnr_db, expected[one.name], rtol=1e-3, err_msg=one.name)
    image = feed["x"].astype(np.float64)
    error = np.square(round_trip(feed["x"], plan.encodings["x"]) - image).sum()
    np.testing.assert_allclose(found[0].sqnr_db, decibels(np.square(image).sum(), error), rtol=1e-4)
    assert [(one.node, one.operator, one.depth) for one in found[:2]] == [
        ("", "", 0), (str(MODEL.graph[1].name), "Relu", 1),
    ]  # fmt: skip


def test_nothing_parts_where_nothing_is_rounded() -> None:
    model = branches()
    batches = batched(model, {"x": normal(3, 4)}, 1)
    found = cumulative_noise(open_streams(model, model, hand_plan({}), batches, threads=1))
    assert {one.name for one in found} == {"x", "total", "h", "y"}
    assert all(one.sqnr_db == math.inf for one in found)


def test_errors_of_a_real_network_grow_from_the_input_on() -> None:
    model = load(network_path("digits_conv")).model
    images = digits().images
    plan = planned(model, seen(model, images[:64]), "snpe")
    streams = open_streams(model, model, plan, list(batches_of(model, images[:32], 4)), threads=2)
    steps: list[int] = []
    found = cumulative_noise(streams, samples=8, progress=steps.append)
    assert sum(steps) == 8
    assert found[0].sqnr_db > 40
    assert 10 < found[-1].sqnr_db < found[0].sqnr_db
    assert [one.depth for one in found] == sorted(one.depth for one in found)


def test_decibels() -> None:
    assert decibels(100.0, 1.0) == 20
    assert decibels(0.0, 0.0) == math.inf
    assert decibels(0.0, 1.0) == decibels(1.0, math.inf) == -math.inf


def test_masks_of_minus_infinity_do_not_hide_the_error_beside_them() -> None:
    mask = np.array([0, -np.inf, 0, 0], dtype=np.float32)
    model = network(
        "float[n, 6] x", "float[n, 4] y", "a = MatMul(x, w)  m = Add(a, mask)  y = Softmax(m)",
        w=normal(6, 4, seed=1), mask=mask,
    )  # fmt: skip
    x = normal(8, 6)
    plan = planned(model, seen(model, x))
    streams = open_streams(model, model, plan, list(batches_of(model, {"x": x})))
    found = {one.name: one for one in cumulative_noise(streams)}
    real, rounded = (run(returning(each, ["m"]), x)[:, [0, 2, 3]] for each in (model, lower_to_qdq(model, plan)))
    assert found["m"].sqnr_db == pytest.approx(sqnr(real, rounded), abs=0.01)


@pytest.mark.parametrize(
    "encoding", [LogEncoding(type=integer_type("uint4")), NormalizedEncoding(type=integer_type("uint8"))]
)
def test_shares_that_their_reader_rounds_are_compared_as_it_reads_them(encoding: LogEncoding) -> None:
    model = network("float[n, 6] x", "float[n, 4] y", "p = Softmax(x) y = MatMul(p, w)", w=normal(6, 4))
    softmax = str(model.graph[0].name)
    plan = hand_plan({"p": encoding, "w": per_tensor("int8", 0.05)}, float_nodes=[softmax])
    x = normal(8, 6)
    streams = open_streams(model, model, plan, list(batches_of(model, {"x": x})), threads=1)
    found = {one.name: one.sqnr_db for one in cumulative_noise(streams)}
    real = run(returning(model, ["p"]), x)
    assert found["p"] == pytest.approx(sqnr(real, round_probabilities(real, encoding)[1]), abs=0.01)
