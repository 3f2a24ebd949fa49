"""What convolutions and pools share: windows, padding, and inputs of one spatial axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.forms import Extents, Levels, channels_last, extents_of, permuted
from narrowgauge.lowering.integer.windows import same_padding

_AUTOMATIC = ("SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A window that moves over the spatial axes; every tuple has one entry for each."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    extents: Extents

    @property
    def reaches(self) -> tuple[int, ...]:
        """How many cells each window spans."""
        return tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True))

    @property
    def padding(self) -> str:
        """TFLite's name of this padding, "" where it has none."""
        if not any(self.begins) and not any(self.ends):
            return "VALID"
        same = zip(self.extents, self.reaches, self.strides, self.begins, self.ends, strict=True)
        return "SAME" if all(same_padding(*axis) for axis in same) else ""


def window_of(call: Call, kernel: Sequence[int]) -> Window:
    """Read a node's window.

    Raises:
        TargetError: its padding cannot be known.
    """
    count = len(kernel)
    ones, extents = [1] * count, call.extents()[2:]
    strides, dilations = call.wholes("strides", ones), call.wholes("dilations", ones)
    pads, automatic = call.wholes("pads", [0] * 2 * count), call.text("auto_pad", "NOTSET")
    begins, ends = pads[:count], pads[count:]
    if automatic in _AUTOMATIC:
        if None in extents and any(stride != 1 for stride in strides):
            raise call.refusal(f"its padding ({automatic}) follows from a size that is not known")
        for axis, (extent, size, step, stride) in enumerate(zip(extents, kernel, dilations, strides, strict=True)):
            reach = (size - 1) * step + 1
            total = reach - 1 if extent is None else max((-(-extent // stride) - 1) * stride + reach - extent, 0)
            ends[axis] = total // 2 if automatic == "SAME_LOWER" else total - total // 2
            begins[axis] = total - ends[axis]
    elif automatic == "VALID":
        begins, ends = [0] * count, [0] * count
    return Window(
        kernel=tuple(kernel), strides=tuple(strides), dilations=tuple(dilations), begins=tuple(begins),
        ends=tuple(ends), extents=extents,
    )  # fmt: skip


def as_plane(window: Window) -> Window:
    """Give a window of one spatial axis a first one of one entry."""
    if len(window.kernel) == 2:
        return window
    one, none = (1,), (0,)
    return Window(
        kernel=one + window.kernel, strides=one + window.strides, dilations=one + window.dilations,
        begins=none + window.begins, ends=none + window.ends, extents=one + window.extents,
    )  # fmt: skip


def with_height(extents: Extents) -> Extents:
    """Give a shape [rows, width, channels] a height of 1."""
    return (extents[0], 1, *extents[1:]) if len(extents) == 3 else extents


def read_plane(call: Call, levels: Levels | None, number: int = 0) -> int:
    """Return an input as [rows, height, width, channels]; of one spatial axis, behind a RESHAPE.

    Raises:
        TargetError: it has three spatial axes.
    """
    rank, order = call.rank(number), call.last(number)
    if rank not in (3, 4):
        raise call.refusal(f"expected one or two spatial axes, got {rank - 2}")
    found = call.read(number, order)
    if rank == 4:
        return found
    return _reshaped(call, found, with_height(permuted(call.extents(number), order)), "plane", levels)


def _reshaped(call: Call, number: int, extents: Extents, suffix: str, levels: Levels | None) -> int:
    if list(extents).count(None) > 1:
        raise call.refusal(f"expected at most one open size, got {list(extents)}")
    made = call.temporary(suffix, extents, levels)
    call.emitter.reshape(number, made)
    return made


def padded(call: Call, number: int, window: Window, levels: Levels | None, *, lowest: bool = False) -> tuple[int, str]:
    """Return the input with the padding that TFLite has no name for, and the name of what is left.

    Args:
        call: the node.
        number: the tensor, [rows, height, width, channels].
        window: what pads it.
        levels: of the tensor.
        lowest: pad with the least number instead of real zeros (a maximum).
    """
    if window.padding:
        return number, window.padding
    amounts = [[0, 0], *map(list, zip(window.begins, window.ends, strict=True)), [0, 0]]
    if any(amount < 0 for pair in amounts for amount in pair):
        raise call.refusal(f"expected padding from 0 on, got {amounts}")
    extents = tuple(
        None if extent is None else extent + sum(pair)
        for extent, pair in zip(call.emitter.tensors[number].extents, amounts, strict=True)
    )
    inputs: list[int] = [number, call.constant(amounts, "padding")]
    if lowest:
        inputs.append(lowest_number(call, levels))
    return call.between("PADV2" if lowest else "PAD", inputs, extents, levels=levels), "VALID"


def lowest_number(call: Call, levels: Levels | None) -> int:
    """Return a constant that no number is less than."""
    if levels is None:
        return call.emitter.constant(np.array(np.finfo(np.float32).min, np.float32), "lowest")
    return call.level(levels.bounds[0], levels)


def emit_plane(
    call: Call, name: str, inputs: Sequence[int | None], options: Mapping[str, Any], *, levels: Levels | None = None
) -> None:
    """Add the operator that writes the result as [rows, height, width, channels]; see `Call.emit`."""
    extents = extents_of(call.result())
    order = channels_last(len(extents))
    shape = with_height(permuted(extents, order)) if len(extents) == 3 else None
    call.emit(name, inputs, options, order=order, levels=levels, shape=shape)
