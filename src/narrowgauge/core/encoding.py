"""Encodings: how the real numbers of one tensor are written as integers. Plain data with a JSON round trip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor
from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.errors import PlanError

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
        PlanError: if a scale is not a positive finite number, or shapes differ, or a zero point is no level.
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


AnyEncoding = Encoding | DynamicEncoding


def float32(values: npt.ArrayLike) -> FloatArray:
    """Copy numbers as float32; one beyond its range becomes infinity."""
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float32)


def same_encoding(first: AnyEncoding, second: AnyEncoding) -> bool:
    """Whether two encodings map every number alike."""
    if isinstance(first, Encoding) and isinstance(second, Encoding):
        return first.same_as(second)
    return isinstance(first, DynamicEncoding) and first == second


def encoding_to_json(encoding: AnyEncoding) -> dict[str, Any]:
    """Write an encoding as JSON values; every float32 scale survives the round trip exactly."""
    if isinstance(encoding, DynamicEncoding):
        return {"type": encoding.type.name, "dynamic": True, "symmetric": encoding.symmetric}
    record: dict[str, Any] = {"type": encoding.type.name, "granularity": "tensor"}
    if isinstance(encoding.granularity, PerAxis):
        record |= {"granularity": "axis", "axis": encoding.granularity.axis}
    elif isinstance(encoding.granularity, PerBlock):
        record |= {"granularity": "block", "axis": encoding.granularity.axis, "size": encoding.granularity.size}
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
    _check_keys(record, {"type", "granularity", "axis", "size", "scale", "zero_point", "dynamic"})
    scale = float32(_numbers(record["scale"], "scale"))
    zero_point = _numbers(record.get("zero_point", 0), "zero_point")
    if zero_point.ndim == 0:
        zero_point = np.full(scale.shape, zero_point)
    kind = _type(record)
    _check_zero_point(zero_point, kind)
    return Encoding(type=kind, granularity=_granularity(record), scale=scale, zero_point=zero_point.astype(np.int32))


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
    if kind == "block":
        return PerBlock(_integer(record, "axis"), _integer(record, "size"))
    raise PlanError(f"expected granularity tensor, axis or block, got {kind!r}")


def _check_keys(record: Mapping[str, Any], allowed: set[str]) -> None:
    unknown = sorted(set(record) - allowed)
    if unknown:
        raise PlanError(f"unknown key {unknown[0]!r}; expected some of {', '.join(sorted(allowed))}")


def _shortest(values: FloatArray) -> Any:
    """Float32 values as the shortest decimal numbers that read back to the same float32."""
    if values.ndim == 0:
        return float(str(np.float32(values)))
    return [_shortest(row) for row in values]
