"""The arrays of an MXNet .params file.

The format (MXNet 1.9.1, src/ndarray/ndarray.cc: NDArray::Save, NDArray::LegacyLoad, NDArray::Save of a list), all
numbers little-endian:

    file    uint64 0x112, uint64 reserved, uint64 count, count arrays, uint64 count, count names
    name    uint64 length, bytes ("arg:" or "aux:" before the name, as `Module` and `HybridBlock.export` write it)
    array   uint32 magic
              0xF993FAC9, 0xF993FACA: int32 storage type (0 dense), shape, device, type, numbers
              0xF993FAC8: shape, device, type, numbers
              else, before MXNet 0.11: the magic itself is the rank, uint32 sizes, device, type, numbers
    shape   int32 rank, int64 sizes; without numbers behind it where the array is empty of shape
    device  int32 kind, int32 number
    type    int32, see `_TYPES`
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from narrowgauge.errors import ModelError

Array = npt.NDArray[Any]

_LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_LARGEST_RANK = 32
"""MXNet's own limit, and numpy's before 2.0."""

_TYPES: dict[int, npt.DTypeLike] = {
    0: np.float32, 1: np.float64, 2: np.float16, 3: np.uint8, 4: np.int32, 5: np.int8, 6: np.int64, 7: np.bool_,
    8: np.int16, 9: np.uint16, 10: np.uint32, 11: np.uint64, 12: ml_dtypes.bfloat16,
}  # fmt: skip
"""mshadow's type flags (3rdparty/mshadow/mshadow/base.h: TypeFlag)."""


def read_parameters(path: Path) -> dict[str, Array]:
    """Read every array of a .params file, by its name without "arg:" and "aux:".

    The arrays are read-only views of one copy of the file.

    Raises:
        ModelError: the file cannot be read, is none, or is truncated or damaged; the message has the place.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    reader = _Reader(content=content, path=path)
    if len(content) < 8 or reader.number("<Q", "the magic number") != _LIST_MAGIC:
        raise ModelError(
            f"{path}: expected an MXNet .params file, which begins with the bytes {struct.pack('<Q', _LIST_MAGIC)!r}, "
            f"got {content[:8]!r}; give the file that `Module.save_checkpoint` or `HybridBlock.export` wrote"
        )
    reader.number("<Q", "the reserved number")
    count = reader.count("arrays", smallest=4)
    arrays = [reader.array(number) for number in range(count)]
    named = reader.count("names", smallest=8)
    if named != count:
        raise reader.damaged(f"{count} arrays, but {named} names; expected a name for each")
    names = [reader.name(number) for number in range(named)]
    found: dict[str, Array] = {}
    for name, array in zip(names, arrays, strict=True):
        short = name.removeprefix("arg:").removeprefix("aux:")
        if short in found:
            raise reader.damaged(f"two arrays are called {short!r}")
        if array is not None:
            found[short] = array
    return found


@dataclass(kw_only=True, slots=True)
class _Reader:
    content: bytes
    path: Path
    position: int = 0

    def damaged(self, what: str) -> ModelError:
        return ModelError(
            f"{self.path}: the .params file is truncated or damaged at byte {self.position} of {len(self.content)}: "
            f"{what}; copy or save it again"
        )

    def take(self, size: int, what: str) -> bytes:
        left = len(self.content) - self.position
        if size > left:
            raise self.damaged(f"{what} needs {size} bytes, {left} are left")
        self.position += size
        return self.content[self.position - size : self.position]

    def number(self, form: str, what: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form), what))[0])

    def count(self, what: str, *, smallest: int) -> int:
        """Read how many things follow, each of `smallest` bytes or more, so that a wild number allocates nothing."""
        count = self.number("<Q", f"the number of {what}")
        if count * smallest > len(self.content) - self.position:
            raise self.damaged(f"it says that {count} {what} follow, more than there is room for")
        return count

    def name(self, number: int) -> str:
        what = f"the name of array {number}"
        raw = self.take(self.number("<Q", what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8") from error

    def array(self, number: int) -> Array | None:
        """Read one array; None where it is without shape, which MXNet writes for arrays that were never filled."""
        what = f"array {number}"
        magic = self.number("<I", what)
        if magic in (_V2, _V3):
            storage = self.number("<i", what)
            if storage != 0:
                raise ModelError(
                    f"{self.path}: {what} is sparse (storage type {storage}); expected a dense array; convert it with "
                    "`tostype('default')` and save again"
                )
        elif magic == _V1:
            storage = 0
        rank = self.number("<i", what) if magic in (_V1, _V2, _V3) else magic
        if rank == -1 or (rank == 0 and magic != _V3):
            return None
        if not 0 <= rank <= _LARGEST_RANK:
            raise self.damaged(f"{what} has {rank} axes; expected at most {_LARGEST_RANK}")
        form = "<q" if magic in (_V1, _V2, _V3) else "<I"
        shape = tuple(self.number(form, f"the shape of {what}") for _ in range(rank))
        self.take(8, f"the device of {what}")
        flag = self.number("<i", f"the type of {what}")
        if flag not in _TYPES:
            raise self.damaged(f"{what} has the type {flag}; expected one of {', '.join(map(str, _TYPES))}")
        kind = np.dtype(_TYPES[flag])
        return self.numbers(shape, kind, what)

    def numbers(self, shape: tuple[int, ...], kind: np.dtype[Any], what: str) -> Array:
        size = kind.itemsize
        for length in shape:
            if length < 0:
                raise self.damaged(f"{what} has the shape {shape}")
            size *= length
        start = self.position
        if size > len(self.content) - start:
            raise self.damaged(f"{what} of shape {shape} needs {size} bytes, {len(self.content) - start} are left")
        self.position += size
        return np.frombuffer(self.content, kind, size // kind.itemsize, offset=start).reshape(shape)
