"""PyTorch's integer engines for tests of the rules that describe them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type

Array = np.ndarray

FAMILIES = ("near", "tie", "rand")
"""How scales are drawn: small multiples of one number (ties of real numbers that float rounding decides), powers of two
(exact ties), any."""


class Scales:
    """Draws scales of a family."""

    def __init__(self, family: str, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.family = family
        self.base = np.float32(self.rng.uniform(0.001, 0.01))

    def one(self) -> np.float32:
        return np.float32(self.many(1)[0])

    def many(self, count: int) -> Array:
        if self.family == "near":
            return (self.base * self.rng.integers(1, 9, count)).astype(np.float32)
        if self.family == "tie":
            return (2.0 ** -self.rng.integers(3, 8, count).astype(np.float64)).astype(np.float32)
        return self.rng.uniform(0.003, 0.05, count).astype(np.float32)


@contextlib.contextmanager
def use(engine: str) -> Iterator[Any]:
    """Give PyTorch with an engine on one thread, or skip."""
    torch = pytest.importorskip("torch", reason="the engines are PyTorch's: pip install torch")
    from narrowgauge.importers.pytorch.silence import silence

    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this PyTorch has no engine {engine}")
    before, threads = torch.backends.quantized.engine, torch.get_num_threads()
    torch.backends.quantized.engine = engine
    torch.set_num_threads(1)
    try:
        with silence():  # it warns of what is to come
            yield torch
    finally:
        torch.backends.quantized.engine = before
        torch.set_num_threads(threads)


def vnni() -> bool:
    """Whether the engine x86 gives convolutions to oneDNN here."""
    processor = Path("/proc/cpuinfo")
    return processor.is_file() and "avx512_vnni" in processor.read_text(encoding="utf-8")


def vectors() -> bool:
    """Whether PyTorch takes vectors of 64 levels or fewer here: on x86-64 with AVX2 or AVX-512."""
    processor = Path("/proc/cpuinfo")
    return processor.is_file() and "avx2" in processor.read_text(encoding="utf-8")


def encoding(scale: Any, zero_point: Any = 0, kind: str = "uint8") -> Encoding:
    """One scale, or one for each entry of axis 0."""
    scales = np.asarray(scale, np.float32)
    return Encoding(
        type=integer_type(kind), granularity=PerAxis(0) if scales.ndim else PerTensor(), scale=scales,
        zero_point=np.full(scales.shape, zero_point, np.int32),
    )  # fmt: skip


def quantized(levels: Array, held: Encoding, axis: int = 0) -> Any:
    """A quantized tensor of these levels."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(levels))
    if held.scale.ndim:
        scales, zeros = torch.from_numpy(np.float64(held.scale)), torch.zeros(held.scale.size, dtype=torch.int64)
        return torch._make_per_channel_quantized_tensor(tensor, scales, zeros, axis)
    return torch._make_per_tensor_quantized_tensor(tensor, float(held.scale), int(held.zero_point))
