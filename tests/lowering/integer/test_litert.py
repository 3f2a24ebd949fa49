"""Networks planned and written for TensorFlow Lite, against LiteRT: every tensor inside, integer for integer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.lowering.lower import lower_by_rule
from narrowgauge.targets.registry import load_target
from tests.exporters.tflite.running import written
from tests.lowering.integer.networks import levels_of
from tests.lowering.integer.test_plans import Made, attention, decoder, mobile, mobile_of_16_bits, planned_network
from tests.lowering.integer.test_tflite_files import opened
from tests.planning.networks import planned, seen

CASES: list[tuple[Callable[[], Made], str, str]] = [
    (mobile, "int8", "int8_narrow"), (mobile, "int8", "int4"), (mobile_of_16_bits, "int16", "int8_narrow"),
    (decoder, "int8", "int8_narrow"), (decoder, "int16", "int8_narrow"),
    (attention, "int8", "int8_narrow"), (attention, "int8", "int4"), (attention, "int16", "int8_narrow"),
]  # fmt: skip
"""Network, type of activations, type of weights."""

NO_KERNEL = (mobile, "int8", "int4")
"""LiteRT's reference kernels have no depthwise convolution of 4 bits."""


def planned_for_tflite(
    write: Callable[[], Made], activations: str, weights: str, samples: int | str
) -> tuple[ir.Model, Plan, np.ndarray]:
    model, feed = planned_network(write, samples)
    kinds = {"activations": integer_type(activations), "weights": integer_type(weights)}
    return model, planned(model, seen(model, feed), "tflite", **kinds), feed


@pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`")
@pytest.mark.parametrize(
    ("write", "activations", "weights", "rule"),
    [
        pytest.param(*one, rule, id="-".join([one[0].__name__, *one[1:], rule]))
        for one in CASES
        for rule in ("xnnpack", "tflite-reference")
        if rule == "xnnpack" or one != NO_KERNEL
    ],
)
def test_every_tensor_is_litert_s(
    write: Callable[[], Made], activations: str, weights: str, rule: str, tmp_path: Path
) -> None:
    check(*planned_for_tflite(write, activations, weights, "n"), rule, tmp_path)


@pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`")
def test_the_delegate_takes_transposed_convolutions_of_a_fixed_number_of_samples(tmp_path: Path) -> None:
    """With an open number LiteRT computes their output's shape, which makes its own kernel round them."""
    check(*planned_for_tflite(decoder, "int8", "int8_narrow", 1), "xnnpack", tmp_path)


def check(model: ir.Model, plan: Plan, feed: np.ndarray, rule: str, folder: Path) -> None:
    path = written(model, folder, plan).runnable
    assert path is not None
    interpreter = opened(path, rule)
    found = lower_by_rule(model, plan, load_target("tflite"), arithmetic=rule)
    assert found.refusals == ()
    compared = 0
    for sample in feed[:8, None]:
        (given,) = interpreter.get_input_details()
        ours = levels_of(found.model, {"x": sample})
        interpreter.set_tensor(given["index"], np.ascontiguousarray(laid_out(sample, given["shape"])))
        interpreter.invoke()
        for detail in interpreter.get_tensor_details():
            levels = ours.get(f"{detail['name']}_quantized")
            if levels is None or f"{detail['name']}_quantized" in found.model.graph.initializers:
                continue
            theirs = interpreter.get_tensor(detail["index"])
            np.testing.assert_array_equal(laid_out(levels, theirs.shape), theirs, err_msg=detail["name"])
            compared += theirs.size
    assert compared > 1000


def laid_out(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Put channels last where that is the shape that is wanted."""
    return array if array.shape == tuple(shape) else array.transpose(0, 2, 3, 1)
