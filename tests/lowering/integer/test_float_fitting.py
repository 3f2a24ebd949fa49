"""A float rescale is taken for a computed rule only where both give the same levels for every sum that can occur."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.engines.kernels import Layer, LayerForm
from narrowgauge.core.engines.rescale import ComputedRescale, FloatRescale
from narrowgauge.lowering.integer.float_fitting import float_form
from tests.lowering.integer.networks import encoding


def whole(layer: Layer, levels: np.ndarray) -> np.ndarray:
    """A bias of whole units, as the Q/DQ form of a target with integer biases has it."""
    return levels * (layer.input.scale * layer.weights.scale).astype(np.float64)


def layer_of(rng: np.random.Generator, channels: int, *, power_of_two: bool = False) -> Layer:
    scales = 2.0 ** -rng.integers(5, 8, channels + 1) if power_of_two else rng.uniform(0.002, 0.02, channels + 1)
    return Layer(
        kind="convolution", input=encoding("uint8", scales[0], 3), weights=encoding("int8", scales[1:]),
        output=encoding("uint8", rng.uniform(0.01, 0.3), int(rng.integers(0, 200))),
    )  # fmt: skip


@settings(max_examples=15)
@given(st.integers(0, 2**20), st.sampled_from(["fbgemm", "onednn"]), st.booleans(), st.booleans())
def test_what_is_found_is_equal(seed: int, engine: str, whole_bias: bool, power_of_two: bool) -> None:
    rng = np.random.default_rng(seed)
    held = layer_of(rng, 3, power_of_two=power_of_two)
    bias = whole(held, rng.integers(-3000, 3000, 3)) if whole_bias else rng.normal(0, 1, 3)
    held = Layer(
        kind=held.kind, input=held.input, weights=held.weights, output=held.output, bias=bias.astype(np.float32)
    )
    form = KERNELS[engine].layer(held)
    least, greatest = np.array([-7000, 0, -9000]), np.array([7000, 9000, -100])
    found = float_form(form, held, least, greatest)
    if found is form:
        return
    assert found.bias is not None
    for channel in range(3):
        sums = np.zeros((greatest[channel] - least[channel] + 1, 3), np.int64) + least
        sums[:, channel] = np.arange(least[channel], greatest[channel] + 1)
        ours, theirs = found.rescale.levels(sums + found.bias), form.rescale.levels(sums)
        np.testing.assert_array_equal(ours[:, channel], theirs[:, channel])


def test_most_layers_of_fbgemm_have_one() -> None:
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        held = layer_of(rng, 8)
        bias = whole(held, rng.integers(-3000, 3000, 8)).astype(np.float32)
        held = Layer(kind=held.kind, input=held.input, weights=held.weights, output=held.output, bias=bias)
        reach = np.full(8, 30000)
        form = float_form(KERNELS["fbgemm"].layer(held), held, -reach, reach)
        found += isinstance(form.rescale, FloatRescale)
    assert found >= 17


def test_a_bias_of_parts_of_units_has_none() -> None:
    held = layer_of(np.random.default_rng(0), 2)
    unit = held.input.scale * held.weights.scale
    held = Layer(
        kind=held.kind, input=held.input, weights=held.weights, output=held.output,
        bias=(np.float32([7.4, 8.5]) * unit).astype(np.float32),
    )  # fmt: skip
    form = KERNELS["fbgemm"].layer(held)
    assert float_form(form, held, np.full(2, -30000), np.full(2, 30000)) is form


@pytest.mark.parametrize("engine", ["qnnpack", "fbgemm"])
def test_other_forms_stay(engine: str) -> None:
    held = layer_of(np.random.default_rng(0), 2)
    form = KERNELS[engine].layer(held)
    assert isinstance(form.rescale, FloatRescale)
    assert float_form(form, held, np.full(2, -9), np.full(2, 9)) is form


def test_levels_that_every_sum_reaches_or_none_does_count() -> None:
    """A rule of one level within the sums: another level of the float rescale would be found out."""
    held = layer_of(np.random.default_rng(0), 1)
    rule = ComputedRescale(compute=lambda sums: np.full(sums.shape, 77), channels=0, low=0, high=255)
    form = LayerForm(bias=None, rescale=rule)
    assert float_form(form, held, np.array([-9]), np.array([9])) is form
