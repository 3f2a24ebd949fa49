import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge import demo, quantize
from narrowgauge.report.run import chance, read_run, read_steps, verdict

GOOD: dict[str, Any] = {
    "float": {"top1": 84.8}, "quantized": {"top1": 84.5}, "agreement_top1": 97.4, "sqnr_db": 28.0,
    "checked_samples": 744, "size_bytes": {"float": 4000, "quantized": 1000},
    "latency_ms": {"float": 3.0, "quantized": 1.5},
}  # fmt: skip


def level_of(**changes: Any) -> str:
    return verdict(read_run(GOOD | changes)).level


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "good"),
        ({"quantized": {"top1": 83.0}}, "loss"),
        ({"agreement_top1": 79.0}, "broken"),
        ({"sqnr_db": 5.0}, "broken"),
        ({"checked_samples": 0}, "unknown"),
        ({"float": {}, "quantized": {}}, "good"),
        ({"float": {}, "quantized": {}, "agreement_top1": 94.0}, "loss"),
        ({"float": {}, "quantized": {}, "agreement_top1": None}, "good"),
        ({"float": {}, "quantized": {}, "agreement_top1": None, "sqnr_db": 12.0}, "loss"),
        ({"float": {}, "quantized": {}, "agreement_top1": None, "sqnr_db": None, "sqnr_infinite": True}, "good"),
        ({"float": {}, "quantized": {}, "agreement_top1": None, "sqnr_db": None}, "unknown"),
        ({"float": {"error": 0.2}, "quantized": {"error": 9.0}}, "good"),  # nobody says which way is better
    ],
)
def test_the_verdict_follows_what_was_measured(changes: dict[str, Any], level: str) -> None:
    assert level_of(**changes) == level


def test_the_verdict_names_its_figures() -> None:
    text = " ".join(verdict(read_run(GOOD)).sentences)
    assert "84.5 %, against 84.8 %" in text
    assert "97.4 % of 744 samples" in text
    assert "4.0 times smaller and 2.0 times faster" in text


def test_a_slower_and_larger_network_is_called_so() -> None:
    worse = GOOD | {"size_bytes": {"float": 1, "quantized": 2}, "latency_ms": {"float": 1.0, "quantized": 1.01}}
    assert verdict(read_run(worse)).sentences[-1] == "It is 2.0 times larger and no faster on one thread here."


def test_a_metric_of_ones_own_comes_first() -> None:
    run = read_run({"float": {"top5": 1, "top1": 2, "mAP": 3}, "quantized": {"top5": 1, "top1": 2, "mAP": 3}})
    assert [one.title for one in run.metrics] == ["mAP", "Top-1 accuracy", "Top-5 accuracy"]


def test_chance_covers_the_difference_of_random_answers() -> None:
    """Draw networks that are right equally often and differ on 10 % of the answers: 95 % stay within the margin."""
    generator = np.random.default_rng(0)
    samples, others = 500, 0.1
    gains = generator.choice([-1, 0, 1], p=[others / 2, 1 - others, others / 2], size=(4000, samples))
    margin = chance(read_run({"checked_samples": samples, "agreement_top1": 100 * (1 - others)}))
    assert margin is not None
    assert np.mean(np.abs(100 * gains.mean(axis=1)) <= margin) == pytest.approx(0.95, abs=0.015)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys([*GOOD, "model", "seconds", "files", "notes", "steps"], json_values)
    )
)
def test_any_summary_is_read(summary: dict[str, Any]) -> None:
    assert verdict(read_run(summary)).title
    read_steps(summary)


def test_the_summary_of_a_real_run_is_read() -> None:
    images, labels, _ = demo.digits()
    result = quantize(
        demo.network_path("digits_conv"), {"image": images[:40]}, labels=labels[:40], samples=8, recipe="plain"
    )
    summary = json.loads(json.dumps(result.summary))
    run = read_run(summary)
    assert run.model == "digits_conv.onnx"
    assert run.samples == 32
    assert run.metrics[0].title == "Top-1 accuracy"
    assert run.metrics[0].reference == summary["float"]["top1"]
    assert run.times_smaller == pytest.approx(summary["size_bytes"]["float"] / summary["size_bytes"]["quantized"])
    assert run.seconds == summary["seconds"]


def test_steps_are_read_with_what_was_not_measured() -> None:
    record = {"name": "equalize", "noise_before": None, "noise_after": 0.1, "seconds": 2, "kept": True, "drop": None}
    (step,) = read_steps({"steps": [record, 7]})
    assert (step.name, step.detail, step.noise_after, step.seconds, step.kept, step.drop) == (
        "equalize", "", 0.1, 2.0, True, None,
    )  # fmt: skip
    assert math.isnan(step.noise_before)


def test_the_engine_of_the_float_networks_latency_is_named_where_it_is_another() -> None:
    def engine(**runtimes: str) -> str:
        return read_run({"latency_runtimes": runtimes}).float_engine

    assert engine(float="onnxruntime", quantized="tvm") == "ONNX Runtime"
    assert engine(float="openvino", quantized="openvino") == ""
    assert engine(float="abacus", quantized="tvm") == ""
    assert read_run({}).float_engine == ""
