"""What a plan leaves out is counted and said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from narrowgauge.analysis.coverage import constant_input_warnings, coverage_warnings, quantized_share
from tests.planning.networks import network, normal, planned, seen

TWO = network(
    "float[n, 16] x", "float[n, 8] y", "h = Gemm(x, w1)  y = Gemm(h, w2)", w1=normal(16, 24), w2=normal(24, 8)
)


def test_the_share_is_of_the_weights_bytes() -> None:
    plan = planned(TWO, seen(TWO, normal(20, 16)))
    assert quantized_share(TWO, plan) == 1
    assert coverage_warnings(TWO, plan) == []
    without = {name: encoding for name, encoding in plan.encodings.items() if name != "w1"}
    part = replace(plan, encodings=without)
    assert quantized_share(TWO, part) == pytest.approx(24 * 8 / (16 * 24 + 24 * 8))
    assert "only 33 % of the weights" in coverage_warnings(TWO, part)[0]


def test_a_plan_that_rounds_nothing_is_a_warning() -> None:
    plan = replace(planned(TWO, seen(TWO, normal(20, 16))), encodings={})
    (said,) = coverage_warnings(TWO, plan)
    assert said.startswith("WARNING: nothing was quantized")


def test_a_network_without_weights_leaves_none_out() -> None:
    model = network("float[n, 4] x", "float[n, 4] y", "y = Add(x, x)")
    assert quantized_share(model, planned(model, seen(model, normal(5, 4)))) == 1


@pytest.mark.parametrize(("value", "warned"), [(0.0, True), (-2.5, True), (None, False)])
def test_an_input_that_never_changes_is_a_warning(value: float | None, warned: bool) -> None:
    samples = normal(20, 16) if value is None else np.full((20, 16), value, dtype=np.float32)
    said = constant_input_warnings(TWO, seen(TWO, samples))
    assert bool(said) == warned
    assert all(f"'x' was {value:g} in all 20 samples" in line for line in said)
