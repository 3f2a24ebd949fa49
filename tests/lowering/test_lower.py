"""A plan in each of its forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.demo import digits, network_path
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.integer.network import Lowered
from narrowgauge.lowering.lower import Form, has_rule, lower, lower_by_rule
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.targets.registry import load_target
from tests.lowering.integer.networks import real_numbers_inside
from tests.passes.networks import operators
from tests.planning.networks import network, normal, planned, run, seen, sqnr

IMAGES = digits().images
MODEL = load(network_path("digits_conv")).model
STATISTICS = seen(MODEL, IMAGES[:32])


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("name", ["onnxruntime", "tflite", "pytorch-fbgemm", "pytorch-qnnpack"])
def test_every_form_answers_as_the_network_does(name: str, form: Form) -> None:
    target = load_target(name)
    made = lower(MODEL, planned(MODEL, STATISTICS, name), target, form=form)
    assert sqnr(run(MODEL, IMAGES[1200:1300]), run(made, IMAGES[1200:1300])) > 20


@pytest.mark.parametrize("rule", ["xnnpack", "tflite-reference", "tflite-neon", "tflite-single-rounding"])
def test_integers_of_a_rule_have_no_real_numbers_inside(rule: str) -> None:
    target = load_target("tflite")
    found = lower_by_rule(MODEL, planned(MODEL, STATISTICS, "tflite"), target, arithmetic=rule)
    assert found.refusals == ()
    assert real_numbers_inside(found.model) == []


def test_rules_differ_by_a_level_now_and_then() -> None:
    plan, target = planned(MODEL, STATISTICS, "tflite"), load_target("tflite")
    one, other = (
        run(lower(MODEL, plan, target, form="integer", arithmetic=rule), IMAGES[1200:1300])
        for rule in ("xnnpack", "tflite-reference")
    )
    assert 0 < (one != other).mean() < 0.5
    assert sqnr(one, other) > 30


def test_the_rule_of_onnx_runtime_is_its_own_operators() -> None:
    plan, target = planned(MODEL, STATISTICS), load_target("onnxruntime")
    made = lower(MODEL, plan, target, form="integer")
    assert operators(made) == operators(lower(MODEL, plan, target, form="qoperator"))
    other = lower(MODEL, plan, load_target("tflite"), form="integer", arithmetic="onnxruntime")
    assert "QLinearConv" in operators(other)


def in_integers(body: str, **nodes: NodeChoice) -> Lowered:
    """A network of tokens, of any number of rows, in the integers of integer-only."""
    model = network(
        "float[n, 5, 8] x", "float[n, k, j] y", body,
        w=normal(8, 8, seed=1), c=normal(1, 1, 8, seed=2), g=normal(8, seed=3), o=normal(8, seed=4),
        head=np.array([0]), rest=np.array([1, 8]),
    )  # fmt: skip
    feed = normal(12, 5, 8, seed=5)
    plan = planned(model, seen(model, feed), "integer-only", nodes=nodes)
    found = lower_by_rule(model, plan, load_target("integer-only"))
    assert sqnr(run(model, feed), run(found.model, feed)) > 20
    return found


def test_what_is_kept_float_stays_float_between_levels() -> None:
    body = "m = MatMul(x, w)  t = Tanh(m)  y = MatMul(t, w)"
    assert not in_integers(body).refusals
    found = in_integers(body, t=NodeChoice(keep_float="kept float by the recipe (node Tanh)"))
    assert [(one.operator, one.reason) for one in found.refusals] == [("Tanh", "kept float by the recipe (node Tanh)")]
    assert operators(found.model)["Tanh"] == 1


@pytest.mark.parametrize(
    "sizes",
    [
        "s = Shape<start = 0, end = 1>(m)",
        "t = Transpose<perm = [0, 2, 1]>(m)  s = Shape<start = 0, end = 1>(t)",
        "f = Shape(m)  s = Gather(f, head)",
    ],
)
def test_sizes_are_those_of_the_levels(sizes: str) -> None:
    """A class token that is repeated for each row, as PyTorch's older exporter writes `expand(x.shape[0], -1, -1)`."""
    body = (
        f"m = MatMul(x, w)  {sizes}  z = Concat<axis = 0>(s, rest)  e = Expand(c, z)"
        "  a = Concat<axis = 1>(e, m)  k = LayerNormalization<axis = -1>(a, g, o)  y = MatMul(k, w)"
    )
    found = in_integers(body)
    assert found.refusals == ()
    assert real_numbers_inside(found.model) == []


def test_an_unknown_rule_is_refused() -> None:
    target = load_target("tflite")
    plan = planned(MODEL, STATISTICS, "tflite")
    with pytest.raises(TargetError, match=r"expected an arithmetic that is known .*: fbgemm, .*; got 'gemmlowp'"):
        lower(MODEL, plan, target, form="integer", arithmetic="gemmlowp")
    unknown = replace(target, arithmetic=replace(target.arithmetic, requantization="unknown"))
    with pytest.raises(TargetError, match=r"^tflite: expected an arithmetic .*; got 'unknown'"):
        lower(MODEL, plan, unknown, form="integer")
    assert not has_rule(unknown)
    assert has_rule(unknown, "xnnpack")
    assert all(has_rule(target, name) for name in KERNELS)


@pytest.mark.parametrize(("mode", "rule"), [("dynamic", "fbgemm"), ("weight-only", "xnnpack")])
def test_integers_of_a_rule_take_a_plan_that_it_has_a_form_of(mode: str, rule: str) -> None:
    target = load_target("onnxruntime")
    with pytest.raises(PlanError, match=f"expected a static plan for integers of the rule {rule}, got a {mode} one"):
        lower(MODEL, planned(MODEL, None, mode=mode), target, form="integer", arithmetic=rule)


def test_the_dynamic_integers_of_a_litert_target_are_litert_s(tmp_path: Path) -> None:
    """Every output bit for bit, of a network without a mean, whose order of sums each engine has for itself."""
    pytest.importorskip("ai_edge_litert", reason="LiteRT is the engine")
    from tests.exporters.tflite.running import in_litert, written

    model = network(
        "float[n, 3, 8, 9] x", "float[n, 5] y",
        "c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) f = Flatten(r) y = Gemm(f, v)",
        w=normal(8, 3, 3, 3), b=normal(8), v=normal(576, 5),
    )  # fmt: skip
    plan = planned(model, None, "tflite", mode="dynamic")
    made = lower(model, plan, load_target("tflite"), form="integer")
    x = np.random.default_rng(0).normal(size=(7, 3, 8, 9)).astype(np.float32)
    theirs = in_litert(written(model, tmp_path, plan).runnable, model, {"x": x})["y"]
    np.testing.assert_array_equal(run(made, x), theirs)
    reference = lower(model, plan, load_target("tflite"), form="integer", arithmetic="tflite-reference")
    assert (run(reference, x) != theirs).any()
