"""One layer fitted to what it reads; `test_sequential` has the same for whole networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import FloatNode, Plan
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.recovery.fit_layer import FittingRules, LayerInputs, can_fit, fit_layer
from tests.planning.networks import name_of, network, node_of, normal, planned, seen, weights_of

MODEL = network("float[n, 12] x", "float[n, 5] y", "y = Gemm(x, w, b)", w=normal(12, 5, seed=1), b=normal(5, seed=2))
INPUTS = (normal(256, 12, seed=3) @ normal(12, 12, seed=4) / 3 + 0.5).astype(np.float32)
PLAN = planned(MODEL, seen(MODEL, INPUTS), weights=integer_type("int3"), granularity="channel")
BATCHES = LayerInputs(rounded=np.split(INPUTS, 8), real=np.split(INPUTS, 8))
LAYER = node_of(MODEL, "y")


def written(weights: np.ndarray, bias: np.ndarray, plan: Plan = PLAN) -> np.ndarray:
    """What the layer makes of its rounded input."""
    return round_trip(INPUTS, plan.encodings["x"]) @ weights + bias


def test_the_output_is_nearer_and_its_means_are_the_float_layers() -> None:
    wanted = np.clip(INPUTS, PLAN.encodings["x"].minimum, PLAN.encodings["x"].maximum) @ weights_of(MODEL, "w")
    wanted = wanted + weights_of(MODEL, "b")
    nearest = written(round_trip(weights_of(MODEL, "w"), PLAN.encodings["w"]), weights_of(MODEL, "b"))
    fitted = fit_layer(LAYER, LAYER, PLAN, BATCHES, FittingRules())
    assert fitted is not None
    assert fitted.weights is not None
    assert fitted.shift is not None
    found = written(fitted.weights, weights_of(MODEL, "b") - fitted.shift)
    assert np.square(found - wanted).sum() < np.square(nearest - wanted).sum() / 2
    np.testing.assert_allclose(found.mean(axis=0), wanted.mean(axis=0), atol=1e-4)
    np.testing.assert_array_equal(round_trip(fitted.weights, fitted.encoding), fitted.weights)
    energy = np.square(wanted - wanted.mean(axis=0)).sum()
    np.testing.assert_allclose(
        fitted.record.chosen, np.square(found - wanted - (found - wanted).mean(axis=0)).sum() / energy, rtol=1e-3
    )


@pytest.mark.parametrize(("rounds", "corrects"), [(True, False), (False, True), (False, False)])
def test_only_what_may_be_done_is_done(rounds: bool, corrects: bool) -> None:
    fitted = fit_layer(LAYER, LAYER, PLAN, BATCHES, FittingRules(round_bits=3 if rounds else 2, correct_bias=corrects))
    assert (fitted is None) == (not rounds and not corrects)
    if fitted is not None:
        assert (fitted.weights is not None, fitted.shift is not None) == (rounds, corrects)
        assert fitted.record.rounded == rounds


def test_an_input_with_a_scale_for_each_channel() -> None:
    low, high = INPUTS.min(axis=0), INPUTS.max(axis=0)
    each = encoding_from_range(low, high, integer_type("uint8"), PerAxis(1))
    plan = replace(PLAN, encodings={**PLAN.encodings, "x": each})
    fitted = fit_layer(LAYER, LAYER, plan, BATCHES, FittingRules())
    assert fitted is not None
    assert fitted.record.chosen < fitted.record.nearest


def test_what_is_not_finite_is_left() -> None:
    bad = INPUTS.copy()
    bad[0] = np.inf
    plan = replace(PLAN, encodings={"w": PLAN.encodings["w"]})
    rows = np.split(bad, 8)
    assert fit_layer(LAYER, LAYER, plan, LayerInputs(rounded=rows, real=rows), FittingRules()) is None


def test_what_can_be_fitted() -> None:
    model = network(
        "float[n, 4] x", "float[n, 4] y",
        "a = MatMul(x, w) f = MatMul(a, v) p = MatMul(x, u) q = MatMul(c, w2) s = Add(f, p) y = Add(s, q)",
        w=normal(4, 4), v=normal(4, 4), u=normal(4, 4), c=normal(1, 4), w2=normal(4, 4),
    )  # fmt: skip
    encoding = encoding_from_range(-4, 4, integer_type("int8"), PerTensor())
    plan = replace(
        PLAN, encodings=dict.fromkeys(["x", "w", "v", "c", "w2"], encoding),
        float_nodes=(FloatNode(name=name_of(model, "f"), operator="MatMul", reason="by hand"),),
    )  # fmt: skip
    nodes: list[ir.Node] = list(model.graph)
    assert [node.outputs[0].name for node in nodes if can_fit(node, plan)] == ["a"]
