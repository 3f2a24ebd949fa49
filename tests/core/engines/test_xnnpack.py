"""What XNNPACK does otherwise than LiteRT's own kernels, and what its delegate leaves to them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.engines.fixed_point import DOUBLE_ROUNDING, NEON_DOUBLE_ROUNDING, quantized_multiplier
from narrowgauge.core.engines.kernels import UNBOUNDED, Layer
from narrowgauge.core.engines.rescale import FloatRescale, IntegerRescale
from narrowgauge.core.engines.tflite_reference import TFLITE_REFERENCE
from narrowgauge.core.engines.xnnpack import XNNPACK, XNNPACK_RNDNU
from narrowgauge.errors import PlanError
from tests.core.engines.litert_cases import ACTIVATIONS
from tests.core.engines.litert_operators import encoding, litert, tensor

LITERT = "the judge is LiteRT: pip install ai-edge-litert"


@pytest.mark.parametrize("activation", [1, 2, 3])
@pytest.mark.parametrize("scale", [4.0, 0.8, 0.4, 2 / 3])
@pytest.mark.parametrize("engine", ["xnnpack", "tflite-reference"])
def test_bounds_that_are_ties(engine: str, scale: float, activation: int) -> None:
    """XNNPACK adds the zero point before it rounds a bound, LiteRT's own kernels after."""
    pytest.importorskip("ai_edge_litert", reason=LITERT)
    every = np.arange(-128, 128, dtype=np.int8)
    first = np.repeat(every, 256).reshape(1, 256, 1, 256)
    second = np.tile(every, 256).reshape(1, 256, 1, 256)
    for zero_point in (-3, 0, 1):
        held, made = encoding(scale, 3), encoding(scale, zero_point)
        ours = KERNELS[engine].binary("Add", held, held, made, ACTIVATIONS[activation])
        (found,) = litert(
            "ADD", [tensor(first.shape, held), tensor(second.shape, held)], [tensor(first.shape, made)],
            [first, second], reference=engine == "tflite-reference", version=2, fusedActivationFunction=activation,
        )  # fmt: skip
        np.testing.assert_array_equal(ours, found.reshape(256, 256))


@pytest.mark.parametrize("engine", ["xnnpack", "tflite-reference", "tflite-neon"])
@pytest.mark.parametrize(("operator", "name"), [("Sigmoid", "LOGISTIC"), ("Tanh", "TANH")])
def test_powers_of_two_of_sixteen_bits(operator: str, name: str, engine: str) -> None:
    """Two of them have kernels of their own."""
    pytest.importorskip("ai_edge_litert", reason=LITERT)
    levels = np.arange(-(2**15), 2**15, dtype=np.int16)[None]
    made = encoding(1 / 32768, 0, "int16")
    for power in (-10, -11, -12, -13):
        held = encoding(2.0**power, 0, "int16")
        (found,) = litert(
            name, [tensor(levels.shape, held)], [tensor(levels.shape, made)], [levels],
            reference=engine == "tflite-reference", delegate=engine == "xnnpack", version=2,
        )  # fmt: skip
        np.testing.assert_array_equal(KERNELS[engine].unary(operator, {}, held, made, UNBOUNDED), found[0])


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("ratio", [1 / 300, 1 / 257, 1 / 256, 1 / 100, 127.9, 128, 200])
def test_ratios_that_the_delegate_requantizes(ratio: float, kind: str) -> None:
    pytest.importorskip("ai_edge_litert", reason=LITERT)
    made = encoding(0.013, 3, kind)
    held = encoding(made.scale * np.float32(ratio), 99, kind)
    limits = np.iinfo(kind)
    levels = np.arange(limits.min, limits.max + 1).astype(kind)[None]
    inputs, outputs = [tensor(levels.shape, held)], [tensor(levels.shape, made)]
    (found,) = litert("QUANTIZE", inputs, outputs, [levels], reference=False, version=2)
    np.testing.assert_array_equal(XNNPACK.unary("Requantize", {}, held, made, UNBOUNDED), found[0])


def test_scales_that_xnnpack_does_not_take_are_refused() -> None:
    fine, coarse = encoding(2.0**-9), encoding(1)
    for operator in ("Add", "Mul"):
        with pytest.raises(PlanError, match=f"expected {operator} of 8-bit levels to reach fewer than 32768 steps"):
            XNNPACK.pair(operator, coarse, coarse, fine, UNBOUNDED)
    with pytest.raises(PlanError, match="a step of the inputs of a layer with weights"):
        XNNPACK.layer(Layer(kind="product", input=coarse, weights=coarse, output=fine))
    with pytest.raises(PlanError, match="Sigmoid to write int8 with scale"):
        XNNPACK.unary("Sigmoid", {}, coarse, coarse, UNBOUNDED)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize(
    ("operator", "ratios"),
    [("Add", (1e-6, 0.3)), ("Add", (2.0**-11, 0.7)), ("Add", (2.0**-10, 1)), ("Add", (255.9, 1)),
     ("Add", (2.0**-12, 2.0**-13)), ("Sub", (300, 0.5)), ("Sub", (2.0**-11, 0.7)), ("Mul", (1e-5, 0.1)),
     ("Mul", (2.0**-16, 1)), ("Mul", (0.5, 511))],
)  # fmt: skip
def test_pairs_of_scales_on_both_sides_of_the_delegate_s_limits(
    operator: str, ratios: tuple[float, float], kind: str
) -> None:
    pytest.importorskip("ai_edge_litert", reason=LITERT)
    made = encoding(0.013, 3, kind)
    held = [encoding(made.scale * np.float32(ratios[0]), 99, kind), encoding(np.float32(ratios[1]), 50, kind)]
    if operator != "Mul":
        held[1] = encoding(made.scale * np.float32(ratios[1]), 50, kind)
    levels = np.arange(np.iinfo(kind).min, np.iinfo(kind).max + 1).astype(kind)
    feeds = [np.repeat(levels, 256).reshape(1, 256, 1, 256), np.tile(levels, 256).reshape(1, 256, 1, 256)]
    inputs = [tensor(feeds[0].shape, one) for one in held]
    (found,) = litert(
        operator.upper(), inputs, [tensor(feeds[0].shape, made)], feeds, reference=False, version=2,
        fusedActivationFunction=0,
    )  # fmt: skip
    ours = XNNPACK.binary(operator, held[0], held[1], made, UNBOUNDED)
    np.testing.assert_array_equal(ours, found.reshape(256, 256))


def test_what_the_delegate_leaves_is_litert_s_own() -> None:
    held, made = encoding(0.1, 3), encoding(0.2, -7)
    nearly_flat = {"alpha": 0.001}
    np.testing.assert_array_equal(
        XNNPACK.unary("LeakyRelu", nearly_flat, held, made, UNBOUNDED),
        TFLITE_REFERENCE.unary("LeakyRelu", nearly_flat, held, made, UNBOUNDED),
    )
    wide = encoding(0.1, 0, "int16")
    layer = Layer(kind="convolution", input=wide, weights=encoding(0.01), output=wide)
    assert isinstance(XNNPACK.layer(layer).rescale, IntegerRescale)


def test_transposed_convolutions_of_an_open_shape_are_litert_s_own() -> None:
    """Its vectors of 8 channels round half up, the channels left over half away from zero."""
    held, made = encoding(0.25, 3), encoding(1, 5)
    layer = Layer(kind="transposed", input=held, weights=encoding(1), output=made, channels=11)
    sums = np.repeat(np.arange(-9, 10)[:, None], 11, axis=1)
    np.testing.assert_array_equal(XNNPACK.layer(layer).rescale.levels(sums), np.rint(sums / 4) + 5)
    own = XNNPACK.layer(replace(layer, fixed_shape=False)).rescale.levels(sums) - 5
    quarter = quantized_multiplier(0.25)
    np.testing.assert_array_equal(own[:, :8], NEON_DOUBLE_ROUNDING.literal(sums[:, :8], quarter))
    np.testing.assert_array_equal(own[:, 8:], DOUBLE_ROUNDING.literal(sums[:, 8:], quarter))
    assert (own[:, 0] != own[:, 8]).any()


@given(st.integers(-(2**31) + 1, 2**31 - 1), st.integers(1, 12), st.integers(0, 255))
def test_arm_rounds_uint8_half_up(number: int, power: int, zero_point: int) -> None:
    kind, one = "uint8", encoding(1, 0, "uint8")
    made = encoding(2.0**power, zero_point, kind)
    layer = Layer(kind="convolution", input=one, weights=one, output=made)
    arm, x86 = XNNPACK_RNDNU.layer(layer).rescale, XNNPACK.layer(layer).rescale
    assert isinstance(arm, IntegerRescale)
    assert isinstance(x86, FloatRescale)
    assert arm.levels(np.array(number)) == np.clip(((number + (1 << power >> 1)) >> power) + zero_point, 0, 255)
    signed = Layer(kind="convolution", input=encoding(1), weights=encoding(1), output=encoding(2))
    assert isinstance(XNNPACK_RNDNU.layer(signed).rescale, FloatRescale)
