"""The whole flow: what one stage leaves for the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import narrowgauge
from narrowgauge.analysis.records import Analysis
from narrowgauge.analysis.records_json import analysis_from_json
from narrowgauge.core.encoding import Encoding
from narrowgauge.demo import digits, network_path
from narrowgauge.errors import PlanError, RecipeError
from narrowgauge.pipeline import Result
from narrowgauge.recipe import Recipe, Rule
from narrowgauge.recovery.partial_float import REASON
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
    recipe = Recipe(name="ranges", estimator="max", methods=("refine-ranges", "correct-bias"))
    result = narrowgauge.quantize(ir.to_proto(model), {"x": samples}, samples=60, recipe=recipe)
    assert float(result.plan.encodings["x"].scale) * 255 < 150 / 3
    held_out = {"x": samples[60:]}
    reference = run(model, held_out)
    for simulate in (True, False):
        assert np.abs(run(result.model, held_out, simulate=simulate) - reference)[:, 3].max() < 1
    activation, scales = result.plan.encodings["x"].scale, result.plan.encodings["w"].scale
    assert 100 / (activation.astype(np.float64) * scales[3]) < 2**31


# --- accuracy and budgets that are asked for ------------------------------------------------------------------

DIGITS = digits()
HELD_OUT = np.r_[:64, DIGITS.train_count : DIGITS.train_count + 100]
LABELLED = {"data": {"image": DIGITS.images[HELD_OUT]}, "labels": DIGITS.labels[HELD_OUT], "samples": 64}


def few_bits(**asked: Any) -> Result:
    """Weights of 3 bits with plain ranges, which cost points."""
    return narrowgauge.quantize(network_path("digits_conv"), recipe="plain", weights="int3", **(LABELLED | asked))


def lost(result: Result) -> float:
    return result.summary["float"]["top1"] - result.summary["quantized"]["top1"]


def test_an_accuracy_that_is_asked_for_steers_recovery() -> None:
    steered = few_bits(max_drop=2.0, analysis="none")
    assert lost(few_bits(analysis="none")) > 2.0 >= lost(steered)
    assert [step.name for step in steered.steps] == ["plain ranges", "ranges", "leave layers float"]
    assert steered.steps[-1].drop == pytest.approx(lost(steered))
    kept = [node for node in steered.plan.float_nodes if node.reason == REASON]
    assert 0 < len(kept) < 8
    assert [step["name"] for step in steered.summary["steps"]] == [step.name for step in steered.steps]


def test_an_accuracy_that_plain_ranges_reach_costs_no_recovery() -> None:
    result = narrowgauge.quantize(network_path("digits_conv"), max_drop=5.0, analysis="none", **LABELLED)
    assert [step.name for step in result.steps] == ["plain ranges"]


def test_an_accuracy_out_of_reach_still_gives_a_network() -> None:
    """Twelve samples leave none to find costly layers with."""
    result = few_bits(max_drop=0.0, analysis="none", samples=12)
    assert result.check is not None
    assert lost(result) > 0
    assert not [node for node in result.plan.float_nodes if node.reason == REASON]


def test_without_samples_of_their_own_nothing_steers() -> None:
    result = narrowgauge.quantize(
        network_path("digits_conv"), recipe="plain", max_drop=1.0, statistics=few_bits(analysis="none").statistics
    )
    assert [step.name for step in result.steps] == ["ranges"]
    assert [note for note in result.notes if "did not steer recovery" in note]


def test_a_budget_is_kept_and_its_alternatives_are_told() -> None:
    result = narrowgauge.quantize(network_path("digits_conv"), recipe="plain", budget="size 15 %", **LABELLED)
    assert result.analysis is not None
    (taken,) = [point for point in result.analysis.front if point.chosen]
    assert taken.cost <= 0.15 * result.analysis.front[-1].cost  # there all layers are float
    assert len(result.analysis.front) > 5
    widths = {slot.type.bits for slot in result.plan.encodings.values() if isinstance(slot, Encoding)}
    assert {4, 8} <= widths


# --- what comes back ------------------------------------------------------------------------------------------


def test_the_analysis_and_the_steps_come_with_the_result(tmp_path: Path) -> None:
    result = narrowgauge.quantize(network_path("digits_conv"), IMAGES, samples=64, recipe="fast", out=tmp_path / "o")
    assert result.analysis is not None
    assert (result.analysis.samples, result.analysis.remedies) == (16, ())
    assert result.analysis.steps == result.steps
    assert result.steps[0].name == "ranges"
    assert result.analysis.ranking()[0].name in result.plan.encodings
    read = analysis_from_json((tmp_path / "o" / "analysis.json").read_text(encoding="utf-8"), source="analysis.json")
    assert read.sensitivities == result.analysis.sensitivities


def test_no_analysis_where_none_is_asked_for(tmp_path: Path) -> None:
    result = narrowgauge.quantize(
        network_path("digits_conv"), IMAGES, samples=64, recipe="plain", analysis="none", out=tmp_path / "o"
    )
    assert result.analysis is None
    assert "analyse" not in result.summary["seconds"]
    kept = analysis_from_json((tmp_path / "o" / "analysis.json").read_text(encoding="utf-8"), source="analysis.json")
    assert kept == Analysis(steps=result.steps)  # for the report, which lists them


def test_a_full_analysis_tries_remedies() -> None:
    result = narrowgauge.analyze(network_path("digits_conv"), IMAGES, samples=64, recipe="plain", check_samples=16)
    assert result.analysis is not None
    assert result.analysis.samples == 16
    assert len({remedy.tensor for remedy in result.analysis.remedies}) == 6


@pytest.mark.parametrize("recipe", ["auto", "best"])
def test_statistics_alone_are_enough_for_weights_per_tensor(recipe: str) -> None:
    """Recovery that would read samples again does without them."""
    statistics = narrowgauge.calibrate(network_path("digits_conv"), IMAGES)
    result = narrowgauge.quantize(
        network_path("digits_conv"), target="snpe", granularity="tensor", recipe=recipe, statistics=statistics
    )
    assert result.steps
    assert "nothing was checked: there are no data" in result.notes


def test_samples_that_can_be_read_once_are_read_once() -> None:
    images = IMAGES["image"]
    result = narrowgauge.quantize(
        network_path("digits_conv"), ({"image": images[row : row + 1]} for row in range(64)),
        target="snpe", granularity="tensor", samples=48, analysis="quick",
    )  # fmt: skip
    assert result.analysis is not None
    assert result.summary["agreement_top1"] > 0.9


def test_an_unknown_depth_of_analysis_is_refused() -> None:
    with pytest.raises(RecipeError, match="expected analysis none, quick, full, got 'deep'"):
        narrowgauge.quantize(network_path("digits_conv"), IMAGES, target="tflite", analysis="deep")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that another tool quantized: ONNX Runtime's own quantization, in Q/DQ form."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(IMAGES["image"][:32])

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"image": row[None]}

    path = tmp_path_factory.mktemp("others") / "others.onnx"
    quantize_static(network_path("digits_conv"), path, Reader(), quant_format=QuantFormat.QDQ)
    return path


def test_a_network_that_came_quantized_keeps_its_encodings_without_data(others: Path) -> None:
    result = narrowgauge.quantize(others, target="onnxruntime")
    assert any("its own encodings are kept" in note for note in result.notes)
    scales = {
        float(value.const_value.numpy().item())
        for name, value in ir.load(others).graph.initializers.items()
        if name.endswith("_scale") and value.const_value is not None and value.const_value.size == 1
    }
    kept = {float(e.scale) for e in result.plan.encodings.values() if isinstance(e, Encoding) and e.scale.ndim == 0}
    assert kept
    assert kept <= scales
    theirs, ours = run(ir.load(others), IMAGES["image"]), run(result.forms.simulated, IMAGES["image"])
    assert np.mean(theirs.argmax(1) == ours.argmax(1)) > 0.98


def test_with_data_it_is_quantized_anew(others: Path) -> None:
    again = narrowgauge.quantize(others, IMAGES, target="tflite", samples=64)
    assert any("new encodings are chosen" in note for note in again.notes)
    assert again.summary["agreement_top1"] > 90
    kept = narrowgauge.quantize(others, IMAGES, target="tflite", plan="own")
    assert any("its own encodings are kept" in note for note in kept.notes)
    assert not kept.plan.same_as(again.plan)


def test_an_analysis_is_of_the_encodings_that_it_came_with(others: Path) -> None:
    result = narrowgauge.analyze(others, IMAGES, samples=32)
    assert any("its own encodings are kept" in note for note in result.notes)
    assert result.analysis is not None
    assert {row.name for row in result.analysis.losses} >= {"image", "logits"}


def test_its_encodings_are_a_plan_for_other_networks(others: Path, tmp_path: Path) -> None:
    own = narrowgauge.quantize(others, target="onnxruntime").plan
    given = narrowgauge.quantize(others, IMAGES, target="onnxruntime", plan=others, samples=32)
    assert given.plan.same_as(own)
    with pytest.raises(PlanError, match="expected a plan or a quantized network, this one is float"):
        narrowgauge.quantize(others, IMAGES, target="onnxruntime", plan=network_path("digits_conv"))


@pytest.mark.parametrize(("target", "told"), [("onnxruntime", True), ("integer-only", False)])
def test_a_rule_for_an_operator_that_stays_float_is_told(target: str, told: bool) -> None:
    recipe = Recipe(name="logarithms", estimator="max", rules=(Rule(operator="Softmax", activations="uint4"),))
    result = narrowgauge.quantize(
        network_path("digits_vit"), IMAGES, target=target, samples=16, check_samples=2, recipe=recipe, analysis="none"
    )
    assert any("uint4 has no effect on Softmax" in note for note in result.notes) is told
