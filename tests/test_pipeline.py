"""The whole flow: what one stage leaves for the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import narrowgauge
from narrowgauge.core.encoding import Encoding
from narrowgauge.demo import digits, network_path
from narrowgauge.recipe import Recipe
from narrowgauge.targets.registry import load_target
from tests.planning.networks import network, normal, run

IMAGES = {"image": digits().images[:96]}


@pytest.mark.parametrize("name", ["digits_conv", "digits_vit"])
def test_a_plan_on_its_own_network_gives_the_same_file(tmp_path: Path, name: str) -> None:
    """The float network beside a plan has corrected biases: they are not corrected twice."""
    first = narrowgauge.quantize(network_path(name), IMAGES, samples=64, out=tmp_path / "first")
    again = narrowgauge.quantize(
        tmp_path / "first" / "float.onnx", IMAGES, samples=64, plan=tmp_path / "first" / "plan.json"
    )
    assert again.plan.same_as(first.plan)
    np.testing.assert_array_equal(*(run(each.model, IMAGES["image"]) for each in (first, again)))


@pytest.mark.parametrize("target", ["tflite", "qnn", "snpe", "pytorch-fbgemm"])
def test_what_a_target_fixes_is_what_the_plan_says(target: str) -> None:
    """Softmax and Sigmoid of small numbers: every estimator and the refinement would choose other ranges."""
    model = network(
        "float[n, 32] x", "float[n, 16] y", "m = MatMul(x, v)  p = Softmax(m)  q = MatMul(p, w)  s = Sigmoid(q)"
        "  y = MatMul(s, u)",
        v=normal(32, 16) / 50, w=normal(16, 16) / 50, u=normal(16, 16),
    )  # fmt: skip
    result = narrowgauge.quantize(ir.to_proto(model), {"x": normal(80, 32)}, target=target, samples=40)
    found = 0
    for node in result.float_model.graph:
        rule, encoding = load_target(target).rule(node.op_type), result.plan.encodings.get(str(node.outputs[0].name))
        fixed = (
            [each for each in rule.fixed_output if encoding is not None and each.type == encoding.type] if rule else []
        )
        if fixed and isinstance(encoding, Encoding):
            found += 1
            assert encoding.scale == np.float32(fixed[0].scale)
            assert encoding.zero_point == fixed[0].zero_point
    assert found


def test_biases_have_room_in_the_range_that_refinement_chose() -> None:
    """A single far number gives the plan a wide range; the refined one is narrow, and the bias still fits."""
    weights = normal(32, 16) / 4
    weights[:, 3] *= 1e-8
    bias = normal(16)
    bias[3] = 100
    model = network(
        "float[n, 32] x", "float[n, 16] y", "m = Gemm(x, w, b)  y = Clip(m, low, high)",
        w=weights, b=bias, low=np.float32(-1.5), high=np.float32(200),
    )  # fmt: skip
    samples = normal(120, 32)
    samples[40, 7] = 150
    recipe = Recipe(name="ranges", estimator="max", migrate=False)
    result = narrowgauge.quantize(ir.to_proto(model), {"x": samples}, samples=60, recipe=recipe)
    assert float(result.plan.encodings["x"].scale) * 255 < 150 / 3
    held_out = {"x": samples[60:]}
    reference = run(model, held_out)
    for simulate in (True, False):
        assert np.abs(run(result.model, held_out, simulate=simulate) - reference)[:, 3].max() < 1
    activation, scales = result.plan.encodings["x"].scale, result.plan.encodings["w"].scale
    assert 100 / (activation.astype(np.float64) * scales[3]) < 2**31
