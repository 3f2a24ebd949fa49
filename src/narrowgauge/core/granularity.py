"""How many scales a tensor has: one, one per index of an axis, or one per block along an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from narrowgauge.errors import PlanError


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor; scale shape `()`."""


@dataclass(frozen=True, slots=True)
class PerAxis:
    """One scale per index of `axis`; a `[64, 3, 7, 7]` tensor with axis 0 has scale shape `(64,)`."""

    axis: int


@dataclass(frozen=True, slots=True)
class PowerOfTwoFactor(PerAxis):
    """One scale per index of `axis`, each a power of two times the smallest; scale shape as of `PerAxis`.

    Lin et al., "FQ-ViT: Post-Training Quantization for Fully Quantized Vision Transformer", 2022, "Power-of-Two Factor
    for Integer LayerNorm". Levels of different channels then add up in integers: `(level - zero_point) << shift`.
    """


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale per run of `size` elements along `axis` (ONNX's blocked quantization).

    A `[768, 192]` tensor with axis 0 and size 32 has scale shape `(24, 192)`; a last block may be shorter.
    """

    axis: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PlanError(f"expected a block of at least 1 element, got {self.size}")


Granularity = PerTensor | PerAxis | PerBlock


def granularity_words(granularity: Granularity) -> str:
    """Say what one scale covers: "tensor", "axis 0", "axis 0, powers of two apart", "axis 0, blocks of 32"."""
    if isinstance(granularity, PowerOfTwoFactor):
        return f"axis {granularity.axis}, powers of two apart"
    if isinstance(granularity, PerAxis):
        return f"axis {granularity.axis}"
    if isinstance(granularity, PerBlock):
        return f"axis {granularity.axis}, blocks of {granularity.size}"
    return "tensor"


def normalized_axis(axis: int, rank: int) -> int:
    """Return `axis` as a number in [0, rank).

    Raises:
        PlanError: if the tensor has no such axis.
    """
    if not -rank <= axis < rank:
        raise PlanError(f"expected an axis of a tensor of rank {rank}, got axis {axis}")
    return axis % rank


def scale_shape(granularity: Granularity, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of the scale (and zero point) of a tensor of that shape.

    Raises:
        PlanError: if the tensor has no such axis.
    """
    if isinstance(granularity, PerTensor):
        return ()
    axis = normalized_axis(granularity.axis, len(shape))
    if isinstance(granularity, PerAxis):
        return (shape[axis],)
    blocks = math.ceil(shape[axis] / granularity.size)
    return (*shape[:axis], blocks, *shape[axis + 1 :])
