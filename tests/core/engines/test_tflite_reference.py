"""How LiteRT's own kernels round where no delegate takes them, and what they do not have."""

from typing import Any

import numpy as np
import pytest

from narrowgauge.core.engines.kernels import UNBOUNDED, Kernels, Layer
from narrowgauge.core.engines.tflite_optimized import TFLITE_NEON
from narrowgauge.core.engines.tflite_reference import TFLITE_REFERENCE, TFLITE_SINGLE_ROUNDING
from narrowgauge.core.engines.xnnpack import XNNPACK
from narrowgauge.errors import PlanError
from tests.core.engines.litert_operators import encoding, litert, tensor
from tests.importers.tflite_networks import T


def ties(kernels: Kernels) -> list[int]:
    """Levels of the sums -6, -5, ... 6 where four of the sum are one of the output."""
    layer = Layer(kind="convolution", input=encoding(0.5), weights=encoding(0.5), output=encoding(1))
    return kernels.layer(layer).rescale.levels(np.arange(-6, 7)).tolist()


def test_where_ties_go() -> None:
    assert ties(TFLITE_REFERENCE) == [-2, -1, -1, -1, -1, 0, 0, 1, 1, 1, 1, 2, 2]
    assert ties(TFLITE_NEON) == [-1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert ties(TFLITE_SINGLE_ROUNDING) == [-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2]


def layer(**changed: Any) -> Layer:
    fields: dict[str, Any] = {
        "kind": "product", "input": encoding(1), "weights": encoding(1), "output": encoding(1)
    }  # fmt: skip
    return Layer(**(fields | changed))


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (layer(input=encoding(1, 0, "int4")), "int8, uint8 or int16, which LiteRT computes with, got int4"),
        (layer(input=encoding(1, 0, "uint16")), "got uint16"),
        (layer(input=encoding([1, 2])), "expected one scale"),
        (layer(input=encoding(1, 3, "int16"), output=encoding(1, 0, "int16")), "zero point 0"),
        (layer(output=encoding(1, 0, "uint8")), "to have one type, got int8, uint8"),
        (layer(weights=encoding(1, 0, "uint8")), "expected signed weights of up to 8 bits with int8 inputs"),
        (layer(weights=encoding(1, 3)), "zero point 0 of int8 weights"),
        (
            layer(input=encoding(1, 0, "uint8"), output=encoding(1, 0, "uint8"), weights=encoding([1, 2], 0, "uint8")),
            "expected uint8 weights of one scale",
        ),
        (
            layer(kind="batch_product", **{name: encoding(1, 0, "uint8") for name in ("input", "weights", "output")}),
            "int8 or int16 in a product of two activations",
        ),
    ],
)  # fmt: skip
def test_layers_that_litert_has_not_are_refused(refused: Layer, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        TFLITE_REFERENCE.layer(refused)


@pytest.mark.parametrize(
    ("operator", "held", "made", "message"),
    [
        ("Sigmoid", encoding(1), encoding(1 / 255, -128), "Sigmoid to write int8 with scale 0.00390625"),
        ("Tanh", encoding(1, 0, "int16"), encoding(1, 0, "int16"), "Tanh to write int16 with scale"),
        ("HardSwish", encoding(1), encoding(1 / 1000), "a scale of more than 1/128 of the input's"),
        ("HardSwish", encoding(1, 0, "int16"), encoding(1, 0, "int16"), "known for HardSwish of int16"),
        ("Abs", encoding(1, 0, "uint8"), encoding(1, 0, "uint8"), "known for Abs"),
        ("Exp", encoding(1, 0, "int16"), encoding(1, 0, "int16"), "to stay within float32"),
        ("Erf", encoding(1), encoding(1), "known for Erf"),
        ("Tanh", encoding(1), encoding(1, 0, "uint8"), "to have one type"),
    ],
)
def test_operators_that_litert_has_not_are_refused(operator: str, held: Any, made: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        TFLITE_REFERENCE.unary(operator, {}, held, made, UNBOUNDED)


def test_pairs_and_sums_that_litert_has_not_are_refused() -> None:
    one, other, wide, unsigned = encoding(1), encoding(2), encoding(1, 0, "int16"), encoding(1, 0, "uint8")
    with pytest.raises(PlanError, match="known for Max of int8 with these scales"):
        TFLITE_REFERENCE.binary("Max", one, other, one, UNBOUNDED)
    with pytest.raises(PlanError, match="expected 8-bit levels for a table of pairs of Add, got int16"):
        TFLITE_REFERENCE.binary("Add", wide, wide, wide, UNBOUNDED)
    with pytest.raises(PlanError, match="expected uint8 of ReduceSum"):
        TFLITE_REFERENCE.sum(one, one, 3)
    with pytest.raises(PlanError, match="share scale and zero point"):
        TFLITE_REFERENCE.average_pool(one, other, 4)
    for kernels in (TFLITE_REFERENCE, XNNPACK):
        with pytest.raises(PlanError, match="a mean of at least one number, got 0"):
            kernels.mean(one, one, 0)
    with pytest.raises(PlanError, match="fewer cells"):
        TFLITE_REFERENCE.average_pool(wide, wide, 10**6)
    with pytest.raises(PlanError, match="one scale for all of a Concat of int8"):
        TFLITE_REFERENCE.concat(one, other)
    with pytest.raises(PlanError, match="expected int8 or int16 of a linear Resize"):
        TFLITE_REFERENCE.resize(unsigned, unsigned, "half_pixel", (2, 2), (4, 4))
    with pytest.raises(PlanError, match="Resize to share scale"):
        TFLITE_REFERENCE.resize(one, other, "half_pixel", (2, 2), (4, 4))


def test_the_reference_kernel_really_reads_sums_as_uint8() -> None:
    """Why they are refused. Where this fails, LiteRT was mended, and the refusal can go."""
    pytest.importorskip("ai_edge_litert", reason="the judge is LiteRT: pip install ai-edge-litert")
    held, made, levels = encoding(0.5), encoding(1), np.full((1, 4, 1), 100, np.int8)
    axes = T(shape=(1,), type="INT32", data=np.array([1], np.int32))
    inputs, outputs = [tensor(levels.shape, held), axes], [tensor((1, 1), made)]
    (found,) = litert("SUM", inputs, outputs, [levels], reference=True, version=2)
    assert found.astype(np.uint8) == 200, "of int8 it would be 127"
