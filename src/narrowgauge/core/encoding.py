"""Encodings: how the real numbers of one tensor are written as integers. Plain data with a JSON round trip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor, PowerOfTwoFactor
from narrowgauge.core.integer_logarithm import Threshold
from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.errors import PlanError

MOST_SHIFT = 16
"""Greatest exponent of a power-of-two factor."""

FloatArray = npt.NDArray[np.float32]
IntegerArray = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """An affine map between real numbers and levels: `real = scale * (level - zero_point)`.

    Attributes:
        type: the integers.
        granularity: what one scale covers.
        scale: real value of one step, float32, positive and finite, shape `()` per tensor, `(channels,)` per axis,
            the tensor's own with the axis divided by the block size per block.
        zero_point: level of real 0, int32, the scale's shape.

    Raises:
        PlanError: if a scale is not a positive finite number, or shapes differ, or a zero point is no level, or the
            scales of a power-of-two factor are none.
    """

    type: IntegerType
    granularity: Granularity
    scale: FloatArray
    zero_point: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        scale = float32(self.scale)
        zero_point = np.array(self.zero_point)
        if scale.shape != zero_point.shape:
            raise PlanError(f"scale has shape {scale.shape}, zero point {zero_point.shape}; expected the same")
        if isinstance(self.granularity, PerTensor) and scale.ndim != 0:
            raise PlanError(f"an encoding per tensor has one scale, got shape {scale.shape}")
        if isinstance(self.granularity, PerAxis) and scale.ndim != 1:
            raise PlanError(f"an encoding per axis has a list of scales, got shape {scale.shape}")
        if isinstance(self.granularity, PerBlock) and scale.ndim == 0:
            raise PlanError("an encoding per block has an array of scales, got a single one")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise PlanError("expected every scale to be a positive finite number")
        if isinstance(self.granularity, PowerOfTwoFactor):
            _shifts(scale)
        _check_zero_point(zero_point, self.type)
        zero_point = zero_point.astype(np.int32)
        scale.setflags(write=False)
        zero_point.setflags(write=False)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)

    @property
    def minimum(self) -> FloatArray:
        """Real value of the lowest level, the scale's shape."""
        return np.asarray((self.type.minimum - self.zero_point) * self.scale, dtype=np.float32)

    @property
    def maximum(self) -> FloatArray:
        """Real value of the highest level, the scale's shape."""
        return np.asarray((self.type.maximum - self.zero_point) * self.scale, dtype=np.float32)

    def same_as(self, other: Encoding) -> bool:
        """Whether both map every number alike (arrays have no single `==`)."""
        return (
            self.type == other.type
            and self.granularity == other.granularity
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicEncoding:
    """An encoding whose range is taken from each tensor at run time (per tensor, as DynamicQuantizeLinear does)."""

    type: IntegerType
    symmetric: bool = False

    def same_as(self, other: DynamicEncoding) -> bool:
        """Whether both say the same."""
        return self == other


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEncoding:
    """Numbers of 0 to 1 by their logarithm: level q means `2^(-q / 2^octave_bits)`, the highest level means 0.

    Lin et al., "FQ-ViT: Post-Training Quantization for Fully Quantized Vision Transformer", 2022, "Softmax quantized
    with Log-Int-Softmax": `q = clip(round(-log2 x), 0, 2^b - 1)`. Differs: their code has numbers below the last level
    mean 0 and keeps no level to say so; here it is the last one.

    Attributes:
        type: unsigned, 2 to 8 bits.
        octave_bits: bits of a level that part an octave, 0 for whole powers of two, below the type's width.
        threshold: from where on a number takes the next level. "square_root_of_two" rounds the logarithm,
            "three_halves" rounds `1 / x` to an integer, half up, and compares that with 1.5 times a power of two, as
            the paper's integer logarithm does; it parts no octave.
        normalized: levels count from the greatest number of each row along the last axis, and a row's numbers are
            divided by their sum: `real = v / sum(v)`, v = `2^(-q / 2^octave_bits)`. A level of a softmax is then that
            of an exponential, a table of logits, and the division comes behind the product that reads it, once a row.

    Raises:
        PlanError: if the type or the bits are none of these.
    """

    type: IntegerType
    octave_bits: int = 0
    threshold: Threshold = "three_halves"
    normalized: bool = False

    def __post_init__(self) -> None:
        if self.type.signed or self.type.bits > 8:
            raise PlanError(f"logarithms take an unsigned type of at most 8 bits, got {self.type.name}")
        if not 0 <= self.octave_bits < self.type.bits:
            raise PlanError(f"expected 0 to {self.type.bits - 1} bits that part an octave, got {self.octave_bits}")
        if self.threshold not in get_args(Threshold):
            raise PlanError(f"expected threshold three_halves or square_root_of_two, got {self.threshold!r}")
        if self.octave_bits and self.threshold == "three_halves":
            raise PlanError("the threshold three_halves parts no octave; take square_root_of_two with octave_bits")

    @property
    def values(self) -> FloatArray:
        """Real value of each level, float32, shape `(levels,)`; `v` where rows are normalized."""
        real = np.exp2(-np.arange(self.type.levels) / 2.0**self.octave_bits)
        real[-1] = 0.0
        return real.astype(np.float32)

    def same_as(self, other: LogEncoding) -> bool:
        """Whether both say the same."""
        return self == other


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalizedEncoding:
    """Shares of a whole along the last axis (what Softmax writes): `real = level / sum(levels of the row)`.

    The greatest number of a row has the highest level, so that every row uses all of them, and none is rounded twice:
    the levels are exponentials, and the division comes behind the product that reads them, once a row.

    Attributes:
        type: unsigned, at most 16 bits.

    Raises:
        PlanError: if the type is none of these.
    """

    type: IntegerType

    def __post_init__(self) -> None:
        if self.type.signed or self.type.bits > 16:
            raise PlanError(f"shares take an unsigned type of at most 16 bits, got {self.type.name}")

    def same_as(self, other: NormalizedEncoding) -> bool:
        """Whether both say the same."""
        return self == other


AnyEncoding = Encoding | DynamicEncoding | LogEncoding | NormalizedEncoding


def float32(values: npt.ArrayLike) -> FloatArray:
    """Copy numbers as float32; one beyond its range becomes infinity."""
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float32)


def same_encoding(first: AnyEncoding, second: AnyEncoding) -> bool:
    """Whether two encodings map every number alike."""
    if isinstance(first, Encoding) and isinstance(second, Encoding):
        return first.same_as(second)
    return not isinstance(first, Encoding) and first == second


def encoding_to_json(encoding: AnyEncoding) -> dict[str, Any]:
    """Write an encoding as JSON values; every float32 scale survives the round trip exactly."""
    if isinstance(encoding, DynamicEncoding):
        return {"type": encoding.type.name, "dynamic": True, "symmetric": encoding.symmetric}
    if isinstance(encoding, LogEncoding):
        return {
            "type": encoding.type.name, "logarithmic": True, "octave_bits": encoding.octave_bits,
            "threshold": encoding.threshold, "normalized": encoding.normalized,
        }  # fmt: skip
    if isinstance(encoding, NormalizedEncoding):
        return {"type": encoding.type.name, "normalized": True}
    record: dict[str, Any] = {"type": encoding.type.name, "granularity": "tensor"}
    if isinstance(encoding.granularity, PowerOfTwoFactor):
        record |= {"granularity": "power-of-two-factor", "axis": encoding.granularity.axis}
    elif isinstance(encoding.granularity, PerAxis):
        record |= {"granularity": "axis", "axis": encoding.granularity.axis}
    elif isinstance(encoding.granularity, PerBlock):
        record |= {"granularity": "block", "axis": encoding.granularity.axis, "size": encoding.granularity.size}
    if isinstance(encoding.granularity, PowerOfTwoFactor):
        base = encoding.scale.min(initial=np.inf)
        record |= {"scale": _shortest(np.asarray(base)), "shift": _shifts(encoding.scale).tolist()}
    else:
        record["scale"] = _shortest(encoding.scale)
    zero_point = encoding.zero_point
    uniform = zero_point.size > 0 and (zero_point == zero_point.flat[0]).all()
    record["zero_point"] = int(zero_point.flat[0]) if uniform else zero_point.tolist()
    return record


def encoding_from_json(record: Mapping[str, Any], *, name: str) -> AnyEncoding:
    """Read an encoding, the inverse of `encoding_to_json`.

    Args:
        record: the JSON object.
        name: whose encoding it is, for the error message.

    Raises:
        PlanError: if a key is missing or unknown or a value is not what it should be.
    """
    try:
        return _from_json(record)
    except PlanError as error:
        raise PlanError(f"encoding of {name!r}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise PlanError(f"encoding of {name!r}: {what}; see docs/plan.md for the keys") from None


def _from_json(record: Mapping[str, Any]) -> AnyEncoding:
    if _boolean(record, "dynamic"):
        _check_keys(record, {"type", "dynamic", "symmetric"})
        return DynamicEncoding(type=_type(record), symmetric=_boolean(record, "symmetric"))
    if _boolean(record, "logarithmic"):
        _check_keys(record, {"type", "logarithmic", "octave_bits", "threshold", "normalized"})
        return LogEncoding(
            type=_type(record),
            octave_bits=_integer(record, "octave_bits") if "octave_bits" in record else 0,
            threshold=record.get("threshold", "three_halves"),
            normalized=_boolean(record, "normalized"),
        )
    if _boolean(record, "normalized"):
        _check_keys(record, {"type", "normalized"})
        return NormalizedEncoding(type=_type(record))
    kinds = {"dynamic", "logarithmic", "normalized"}
    _check_keys(record, {"type", "granularity", "axis", "size", "scale", "shift", "zero_point"} | kinds)
    scale = float32(_numbers(record["scale"], "scale"))
    if record.get("granularity") == "power-of-two-factor":
        scale = _shifted(scale, _numbers(record["shift"], "shift"))
    elif "shift" in record:
        raise PlanError("'shift' stands with the granularity power-of-two-factor only")
    zero_point = _numbers(record.get("zero_point", 0), "zero_point")
    if zero_point.ndim == 0:
        zero_point = np.full(scale.shape, zero_point)
    kind = _type(record)
    _check_zero_point(zero_point, kind)
    return Encoding(type=kind, granularity=_granularity(record), scale=scale, zero_point=zero_point.astype(np.int32))


def _shifts(scale: FloatArray) -> npt.NDArray[np.int64]:
    """Exponents of scales over the smallest one.

    Raises:
        PlanError: if they are not powers of two of each other, or lie too far apart.
    """
    if not scale.size:
        return np.zeros(0, dtype=np.int64)
    mantissa, exponent = np.frexp(scale.astype(np.float64) / float(scale.min()))
    if (mantissa != 0.5).any() or (exponent > MOST_SHIFT + 1).any():
        raise PlanError(
            f"expected the scales of a power-of-two factor to be one scale times powers of two up to 2^{MOST_SHIFT}"
        )
    return exponent.astype(np.int64) - 1


def _shifted(base: FloatArray, shift: npt.NDArray[np.float64]) -> FloatArray:
    """Scales of a power-of-two factor."""
    if base.ndim or shift.ndim != 1:
        raise PlanError("a power-of-two factor has one number 'scale' and a list 'shift' with a number per channel")
    if not np.equal(shift, np.rint(shift)).all() or (shift < 0).any() or (shift > MOST_SHIFT).any():
        raise PlanError(f"expected shifts to be integers from 0 to {MOST_SHIFT}")
    return float32(np.ldexp(np.float64(base), shift.astype(np.int32)))


def _check_zero_point(zero_point: npt.NDArray[np.number], type: IntegerType) -> None:
    if not np.equal(zero_point, np.rint(zero_point)).all():
        raise PlanError("expected zero points to be integers")
    if (zero_point < type.minimum).any() or (zero_point > type.maximum).any():
        raise PlanError(
            f"expected zero points between {type.minimum} and {type.maximum} ({type.name}), "
            f"got {zero_point.min():.0f} to {zero_point.max():.0f}"
        )


def _type(record: Mapping[str, Any]) -> IntegerType:
    name = record["type"]
    if not isinstance(name, str):
        raise PlanError(f"expected 'type' to be the name of a number type such as int8, got {name!r}")
    return integer_type(name)


def _numbers(value: Any, key: str) -> npt.NDArray[np.float64]:
    """A JSON number or nested lists of numbers, all of one length per level."""
    try:
        numbers = np.array(value)
    except ValueError:
        raise PlanError(f"expected {key!r} to be a number or lists of equal length, got lists of several") from None
    if numbers.dtype.kind not in "iuf" and numbers.size:
        raise PlanError(f"expected {key!r} to be a number or a list of numbers, got {value!r}")
    return numbers.astype(np.float64)


def _boolean(record: Mapping[str, Any], key: str) -> bool:
    value = record.get(key, False)
    if not isinstance(value, bool):
        raise PlanError(f"expected {key!r} to be true or false, got {value!r}")
    return value


def _integer(record: Mapping[str, Any], key: str) -> int:
    value = record[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanError(f"expected {key!r} to be an integer, got {value!r}")
    return value


def _granularity(record: Mapping[str, Any]) -> Granularity:
    kind = record.get("granularity", "tensor")
    if kind == "tensor":
        return PerTensor()
    if kind == "axis":
        return PerAxis(_integer(record, "axis"))
    if kind == "power-of-two-factor":
        return PowerOfTwoFactor(_integer(record, "axis"))
    if kind == "block":
        return PerBlock(_integer(record, "axis"), _integer(record, "size"))
    raise PlanError(f"expected granularity tensor, axis, power-of-two-factor or block, got {kind!r}")


def _check_keys(record: Mapping[str, Any], allowed: set[str]) -> None:
    unknown = sorted(set(record) - allowed)
    if unknown:
        raise PlanError(f"unknown key {unknown[0]!r}; expected some of {', '.join(sorted(allowed))}")


def _shortest(values: FloatArray) -> Any:
    """Float32 values as the shortest decimal numbers that read back to the same float32."""
    if values.ndim == 0:
        return float(str(np.float32(values)))
    return [_shortest(row) for row in values]
