"""Integer number types of 2 to 16 bits (and the 32 bits of a bias)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from narrowgauge.errors import PlanError

_NAME = re.compile(r"(u?)int(\d+)(_narrow)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class IntegerType:
    """A range of consecutive integers (levels).

    Attributes:
        bits: width, 2 to 16, or 32 for a bias.
        signed: two's complement if true, else unsigned.
        narrow: the lowest level of a signed type is left out, so that the range is symmetric: [-127, 127] of int8
            (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
            Inference", 2017, section 3 and appendix A.2: int8 weights never take -128).

    Raises:
        PlanError: if the width is not one of these, or an unsigned type is said to be narrow.
    """

    bits: int
    signed: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 16 or self.bits == 32):
            raise PlanError(f"expected a width of 2 to 16 bits (or 32 for a bias), got {self.bits}")
        if self.narrow and not self.signed:
            raise PlanError("a narrow range leaves out the lowest level of a signed type; this type is unsigned")

    @property
    def minimum(self) -> int:
        """Lowest level."""
        return -(1 << (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def maximum(self) -> int:
        """Highest level."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def levels(self) -> int:
        """Number of levels."""
        return self.maximum - self.minimum + 1

    @property
    def name(self) -> str:
        """Name as written in plans, targets and on the command line: `int8`, `uint4`, `int8_narrow`."""
        return f"{'' if self.signed else 'u'}int{self.bits}{'_narrow' if self.narrow else ''}"

    @property
    def storage(self) -> np.dtype[np.integer]:
        """Smallest numpy integer type that holds every level."""
        width = next(width for width in (8, 16, 32) if width >= self.bits)
        return np.dtype(f"{'' if self.signed else 'u'}int{width}")


def integer_type(name: str) -> IntegerType:
    """Read a type from its name, the inverse of `IntegerType.name`.

    Raises:
        PlanError: if the name is not of the form `[u]intN` or `intN_narrow`.
    """
    match = _NAME.fullmatch(name.strip().lower())
    if match is None:
        raise PlanError(f"expected a number type such as int8, uint8, int4 or int8_narrow, got {name!r}")
    unsigned, bits, narrow = match.groups()
    return IntegerType(bits=int(bits), signed=not unsigned, narrow=narrow is not None)
