"""Layers with float activations and integer weights, run in LiteRT, and activations that tell formulas apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.importers.tflite_networks import Op, T, constant, opened, packed

Array = np.ndarray


def near_ties(seed: int, rows: int, numbers: int) -> Array:
    """Rows whose zero point and numbers lie on ties or a rounding error beside them; some of one sign, some empty."""
    rng = np.random.default_rng(seed)
    unit = rng.uniform(1e-3, 10, (rows, 1)).astype(np.float32)
    low = -(rng.integers(0, 256, (rows, 1)) + rng.integers(0, 2, (rows, 1)) * 0.5)
    steps = np.concatenate([low, low + 255, rng.integers(-510, 511, (rows, max(numbers - 2, 0))) * 0.5], axis=1)
    values = (np.clip(steps, low, low + 255)[:, :numbers] * unit).astype(np.float32)
    values[::7], values[1::7] = np.abs(values[::7]), -np.abs(values[1::7])
    values[2::50], values[3::50] = 0, values[3::50] * np.float32(1e-36)
    rng.shuffle(values, axis=1)
    return values


def spread(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same(made: Array, expected: Array) -> None:
    """Expect the same floats, bit for bit but for the sign of 0."""
    assert made.shape == expected.shape
    assert made.dtype == expected.dtype == np.float32
    different = (made != expected).sum()
    assert different == 0, f"{different} of {made.size} floats differ, by {np.abs(made - expected).max()}"


@dataclass
class Layer:
    """A TFLite layer with integer weights, run in LiteRT."""

    name: str
    values: Array
    weights: Array
    scale: Array
    output: tuple[int, ...]
    bias: Array | None = None
    axis: int = 0
    version: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    before: tuple[T, ...] = ()

    def results(self, folder: Path, engine: str) -> Array:
        pytest.importorskip("ai_edge_litert", reason="ai-edge-litert, which is the judge here, is not installed")
        from ai_edge_litert.interpreter import OpResolverType

        weights = constant(self.weights, np.int8, scale=self.scale.reshape(-1).tolist(), axis=self.axis)
        inputs = [T(shape=self.values.shape), weights]
        if self.before:  # TRANSPOSE_CONV: the shape, the weights, the activation
            inputs = [*self.before, weights, T(shape=self.values.shape)]
        tensors = [*inputs, *([] if self.bias is None else [constant(self.bias, np.float32)]), T(shape=self.output)]
        count, fed = len(tensors) - 1, 2 if self.before else 0
        operator = Op(name=self.name, inputs=range(count), outputs=[count], options=self.options, version=self.version)
        path = folder / "layer.tflite"
        path.write_bytes(packed(tensors, [operator], [fed], [count]))
        resolver = {
            "tflite-neon": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            "tflite-reference": OpResolverType.BUILTIN_REF,
        }
        kinds = {"experimental_op_resolver_type": resolver[engine]} if engine in resolver else {}
        interpreter = opened(path, **kinds)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], self.values)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@dataclass
class Image:
    """How a convolution moves over an image of [samples, rows, columns, channels]."""

    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    same: bool = True

    def patches(self, steps: Array) -> Array:
        """Return [samples, rows, columns, kernel rows, kernel columns, channels]; what pads is 0."""
        reach = [(size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True)]
        if self.same:
            missing = [
                max((-(-extent // stride) - 1) * stride + size - extent, 0)
                for extent, stride, size in zip(steps.shape[1:3], self.strides, reach, strict=True)
            ]
            steps = np.pad(steps, ((0, 0), *((one // 2, one - one // 2) for one in missing), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(steps, reach, axis=(1, 2))
        windows = windows[:, :: self.strides[0], :: self.strides[1], :, :: self.dilations[0], :: self.dilations[1]]
        return windows.transpose(0, 1, 2, 4, 5, 3)

    @property
    def options(self) -> dict[str, int]:
        return {
            "strideH": self.strides[0], "strideW": self.strides[1], "dilationHFactor": self.dilations[0],
            "dilationWFactor": self.dilations[1], "padding": 0 if self.same else 1,
        }  # fmt: skip
