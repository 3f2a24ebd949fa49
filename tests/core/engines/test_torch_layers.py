"""Layers round as PyTorch's engines do, integer for integer: ties, biases that cancel sums, saturation included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.engines.kernels import Layer, LayerKind
from narrowgauge.core.engines.rescale import ComputedRescale, FloatRescale
from narrowgauge.errors import PlanError
from tests.core.engines.torch_engines import FAMILIES, Array, Scales, encoding, quantized, use, vnni

ENGINES = ["fbgemm", "qnnpack", "onednn", "x86"]

KINDS: dict[str, tuple[LayerKind, tuple[int, ...], int]] = {
    "linear": ("product", (), 1),
    "conv1d": ("convolution", (3,), 1),
    "conv2d": ("convolution", (1, 1), 1),
    "grouped": ("convolution", (3, 3), 4),
    "depthwise": ("depthwise", (3, 3), 16),
    "conv3d": ("convolution", (2, 2, 2), 1),
}
"""Name -> what the kernels call it, the kernel's size, groups of 16 channels."""


def torch_levels(torch: Any, levels: Array, weights: Array, bias: Array | None, held: Layer, groups: int) -> Array:
    """What PyTorch computes, channels last."""
    packed_bias = None if bias is None else torch.from_numpy(bias)
    operators, spatial = torch.ops.quantized, weights.ndim - 2
    target = (float(held.output.scale), int(held.output.zero_point))
    tensor, packed = quantized(levels, held.input), quantized(weights, held.weights)
    if spatial == 0:
        return operators.linear(tensor, operators.linear_prepack(packed, packed_bias), *target).int_repr().numpy()
    ones, none = [1] * spatial, [0] * spatial
    prepacked = getattr(operators, f"conv{spatial}d_prepack")(packed, packed_bias, ones, none, ones, groups)
    operator = getattr(operators, f"conv{spatial}d")
    found = (operator if spatial == 1 else operator.new)(tensor, prepacked, *target)
    return np.moveaxis(found.int_repr().numpy(), 1, -1)


def sums_of(torch: Any, levels: Array, weights: Array, zero_point: int, groups: int) -> Array:
    """Exact sums, channels last."""
    steps, matrix = torch.from_numpy(levels.astype(np.float64) - zero_point), torch.from_numpy(np.float64(weights))
    if weights.ndim == 2:
        return np.rint((steps @ matrix.T).numpy()).astype(np.int64)
    found = getattr(torch.nn.functional, f"conv{weights.ndim - 2}d")(steps, matrix, groups=groups)
    return np.moveaxis(np.rint(found.numpy()).astype(np.int64), 1, -1)


@pytest.mark.parametrize("per_channel", [True, False], ids=["channel", "tensor"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_layers(engine: str, kind: str, *, per_channel: bool) -> None:
    if engine == "x86" and not vnni():
        pytest.skip("the rule of a processor with VNNI")
    name, window, groups = KINDS[kind]
    wrong = count = 0
    with use(engine) as torch:
        for trial in range(9):
            scales = Scales(FAMILIES[trial % 3], seed=trial)
            rng = scales.rng
            weight_scale = scales.many(16) if per_channel else scales.one()
            if scales.family == "near":  # ties need the quotient of input and output to be one of small numbers
                weight_scale = (rng.integers(1, 5, 16 if per_channel else ()) / 64).astype(np.float32)
            weights = rng.integers(-9 if trial < 4 else -127, 10 if trial < 4 else 128, (16, 16 // groups, *window))
            levels = rng.integers(0, 128, (3, 16, *(5 for _ in window)) if window else (40, 16)).astype(np.uint8)
            zero_point, input_scale = int(rng.integers(0, 128)), scales.one()
            bias = bias_for(rng, trial, input_scale * weight_scale, whole=scales.family == "near")
            held = Layer(
                kind=name, input=encoding(input_scale, zero_point), weights=encoding(weight_scale, 0, "int8"),
                output=encoding(scales.one() * 16, rng.integers(0, 256)), bias=bias,
            )  # fmt: skip
            weights = weights.astype(np.int8)
            found = torch_levels(torch, levels, weights, bias, held, groups)
            form = KERNELS[engine].layer(held)
            sums = sums_of(torch, levels, weights, zero_point, groups)
            ours = form.rescale.levels(sums if form.bias is None else sums + form.bias)
            wrong, count = wrong + int((ours != found).sum()), count + found.size
    assert count > 1000
    assert wrong == 0


def bias_for(rng: np.random.Generator, trial: int, unit: Array, *, whole: bool) -> Array | None:
    """None, whole units, any bias, or one of halves of a unit, where a rounded one has its ties."""
    if trial % 4 == 0:
        return None
    if whole:
        return (rng.integers(-500, 500, 16) * unit).astype(np.float32)
    if trial % 4 == 1:
        return ((rng.integers(-500, 500, 16) + 0.5) * unit).astype(np.float32)
    return rng.normal(0, 2, 16).astype(np.float32)


@pytest.mark.parametrize("per_channel", [True, False], ids=["channel", "tensor"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_bias_that_cancels_the_sums(engine: str, *, per_channel: bool) -> None:
    """Large biases against large sums leave small numbers, in which every rounding of the bias shows."""
    wrong = 0
    with use(engine) as torch:
        for trial in range(12):
            rng = np.random.default_rng(trial)
            input_scale = np.float32(rng.uniform(0.001, 0.01))
            weight_scale = rng.uniform(0.001, 0.01, 16 if per_channel else ()).astype(np.float32)
            unit = input_scale * weight_scale
            weights = np.full((16, 32), 100, np.int8)
            weights[:, :16] = rng.integers(90, 127, (16, 1))
            levels = rng.integers(0, 128, (200, 32)).astype(np.uint8)
            middle = np.rint((levels.astype(np.int64) @ weights.T.astype(np.int64)).mean(axis=0))
            bias = np.asarray(-middle * unit + rng.choice([0, 0.5], 16) * unit, np.float32)
            held = Layer(
                kind="product", input=encoding(input_scale), weights=encoding(weight_scale, 0, "int8"), bias=bias,
                output=encoding(unit.max() * 2.0 ** rng.integers(0, 6), rng.integers(0, 256)),
            )  # fmt: skip
            found = torch_levels(torch, levels, weights, bias, held, 1)
            form = KERNELS[engine].layer(held)
            sums = sums_of(torch, levels, weights, 0, 1)
            wrong += int((form.rescale.levels(sums if form.bias is None else sums + form.bias) != found).sum())
    assert wrong == 0


def test_x86_gives_convolutions_of_many_groups_to_fbgemm() -> None:
    """With an odd zero point, a tie falls on another level in each of the two."""
    kernels = KERNELS["x86"]
    sums = np.arange(-40, 40, dtype=np.int64)[:, None] * np.ones(101, np.int64)

    def differing(kind: LayerKind, groups: int, channels: int = 101) -> tuple[bool, bool]:
        held = Layer(
            kind=kind, groups=groups, input=encoding(0.5, 3), weights=encoding(np.full(channels, 0.5), 0, "int8"),
            output=encoding(1.0, 77), bias=np.full(channels, 0.25, np.float32),
        )  # fmt: skip
        ours = kernels.layer(held).rescale.levels(sums[:, :channels])
        others = (KERNELS[name].layer(held).rescale.levels(sums[:, :channels]) for name in ("fbgemm", "onednn"))
        in_fbgemm, in_onednn = ((ours != other).any() for other in others)
        return bool(in_fbgemm), bool(in_onednn)

    assert differing("convolution", 1) == (True, False)
    assert differing("convolution", 101) == (False, True)
    assert differing("depthwise", 100) == (True, False)
    assert differing("depthwise", 101) == (False, True)
    assert differing("product", 1) == (False, True)


def test_forms() -> None:
    held = {"kind": "product", "input": encoding(0.1, 3), "weights": encoding([0.1, 0.2], 0, "int8")}
    output, bias = encoding(0.3, 5, "uint7"), np.float32([0.4, -0.5])
    assert isinstance(KERNELS["fbgemm"].layer(Layer(**held, output=output)).rescale, FloatRescale)
    form = KERNELS["fbgemm"].layer(Layer(**held, output=output, bias=bias, bounds=(0.0, 6.0)))
    assert isinstance(form.rescale, ComputedRescale)
    assert (form.rescale.channels, form.rescale.low, form.rescale.high) == (2, 5, 25)
    assert form.rescale.levels(np.array([[-(10**9), 10**9]])).tolist() == [[5, 25]]
    rounded = KERNELS["qnnpack"].layer(Layer(**held, output=output, bias=bias))
    assert rounded.bias is not None
    assert rounded.bias.tolist() == [40, -25]
    assert (rounded.rescale.low, rounded.rescale.high) == (0, 127)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": encoding(0.1, 0, "int8")}, "uint8 with one scale .* got int8"),
        ({"output": encoding([0.1, 0.2])}, "uint8 with one scale"),
        ({"weights": encoding(0.1, 0, "uint8")}, "int8 weights .* got uint8"),
        ({"weights": encoding(0.1, 3, "int8")}, "zero point 0"),
        ({"kind": "batch_product", "weights": encoding(0.1)}, "two activations in real numbers"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_that_there_is_no_kernel_for_is_refused(engine: str, change: dict[str, Any], message: str) -> None:
    held = {"kind": "product", "input": encoding(0.1), "weights": encoding(0.1, 0, "int8"), "output": encoding(0.1)}
    with pytest.raises(PlanError, match=message):
        KERNELS[engine].layer(Layer(**(held | change)))
