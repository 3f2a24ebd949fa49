"""How a tensor of levels lies in memory: channels innermost, with room around it for the padding of its readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_WIDE = 16
_NARROW = 4


def physical_channels(channels: int) -> int:
    """Channels with those that fill the last vector: four of them in a group for images, else sixteen."""
    unit = _NARROW if channels <= _NARROW else _WIDE
    return -(-channels // unit) * unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """Layout of a tensor of levels, uint8 (of int8 the level plus 128, so that all products are of uint8 and int8).

    In memory `[batch, top + height + bottom, left + width + right, depth]`. A matrix is an image of one row: its rows
    are the pixels.

    Attributes:
        batch: images.
        channels: of the tensor.
        height: rows.
        width: pixels of a row.
        depth: channels in memory; what the last of them hold is never read with a weight other than 0.
        halo: pixels around it that hold the zero point: top, left, bottom, right.
    """

    batch: int
    channels: int
    height: int
    width: int
    depth: int
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def size(self) -> int:
        """Number of bytes."""
        top, left, bottom, right = self.halo
        return self.batch * (top + self.height + bottom) * (left + self.width + right) * self.depth

    @property
    def row(self) -> int:
        """Bytes from one row to the next."""
        return (self.halo[1] + self.width + self.halo[3]) * self.depth

    def at(self, image: Any, row: Any, column: Any, channel: Any) -> Any:
        """Return where a level lies; rows and columns count from the tensor's own first one."""
        rows = self.halo[0] + self.height + self.halo[2]
        return (image * rows + row + self.halo[0]) * self.row + (column + self.halo[1]) * self.depth + channel


@dataclass(frozen=True, kw_only=True, slots=True)
class Operand:
    """A tensor of levels and what they stand for.

    Attributes:
        image: its layout.
        scale: real value of one step.
        zero_point: of the levels in memory, uint8.
        offset: what a level in memory is larger than in ONNX: 128 where that is int8, else 0.
    """

    image: Image
    scale: float
    zero_point: int
    offset: int

    @property
    def original_zero_point(self) -> int:
        """Zero point in ONNX."""
        return self.zero_point - self.offset


def whole(shape: Sequence[int], *, last: bool) -> Image:
    """Lay out a tensor without a halo.

    Args:
        shape: of the tensor, of rank 2 to 4 where channels come second, else of any rank from 1 up.
        last: whether its channels are the last axis; else the second.
    """
    if last:
        rows = 1
        for extent in shape[:-1]:
            rows *= extent
        return Image(batch=1, channels=shape[-1], height=1, width=rows, depth=physical_channels(shape[-1]))
    height, width = (1, 1, *shape[2:])[-2:] if len(shape) > 2 else (1, 1)
    return Image(batch=shape[0], channels=shape[1], height=height, width=width, depth=physical_channels(shape[1]))
