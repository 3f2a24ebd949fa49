"""Signed levels of activations written as unsigned ones: the same numbers to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.lowering.unsigned import in_unsigned
from tests.lowering.networks import hand_plan, per_channel, per_tensor, run
from tests.lowering.test_qdq import imported
from tests.passes.networks import node, random


@pytest.mark.parametrize("zero_point", [-128, -3, 0, 127])
def test_the_network_gives_the_same_numbers(zero_point: int) -> None:
    w = random(6, 4, 3, 3)
    model = imported(node("Conv", "x w", "y"), inputs={"x": ["N", 4, 7, 7]}, outputs=["y"], constants={"w": w})
    plan = hand_plan(
        {"x": per_tensor("int8", 0.03, zero_point), "w": per_channel("int8", w, 0), "y": per_tensor("int8", 0.02, 5)}
    )
    moved = in_unsigned(model, plan)
    assert {name: one.type.name for name, one in moved.encodings.items()} == {"x": "uint8", "w": "int8", "y": "uint8"}
    assert int(moved.encodings["x"].zero_point) == zero_point + 128
    x = 4 * random(3, 4, 7, 7)
    np.testing.assert_array_equal(run(lower_to_qdq(model, moved), {"x": x})["y"],
                                  run(lower_to_qdq(model, plan), {"x": x})["y"])  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "scales"), [("int16", ()), ("int8_narrow", ()), ("int4", ()), ("uint8", ()), ("int8", (4,))]
)
def test_what_has_no_such_counterpart_stays(kind: str, scales: tuple[int, ...]) -> None:
    encoding = Encoding(
        type=integer_type(kind), granularity=PerAxis(1) if scales else PerTensor(),
        scale=np.full(scales, 0.1, np.float32), zero_point=np.zeros(scales, np.int32),
    )  # fmt: skip
    model = imported(node("Identity", "x", "y"), inputs={"x": ["N", 4]}, outputs=["y"])
    assert in_unsigned(model, hand_plan({"x": encoding})).encodings["x"] is encoding
