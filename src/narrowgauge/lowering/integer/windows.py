"""Where the windows of a pool lie."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from narrowgauge.errors import PlanError
from narrowgauge.graph.shapes import dimensions


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Windows of fixed padding.

    Attributes:
        kernel: cells of a window along each axis.
        strides: from window to window.
        dilations: from cell to cell.
        pads: cells around, before each axis and then behind each.
        beyond: how many cells of these, behind each axis, are no padding but only reached by the last window, where
            the number of windows is rounded up (ceil_mode).
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    beyond: tuple[int, ...]

    @property
    def rank(self) -> int:
        """How many axes windows have."""
        return len(self.kernel)

    def reach(self, axis: int) -> int:
        """From the first cell of a window to its last, both counted."""
        return self.dilations[axis] * (self.kernel[axis] - 1) + 1


def fixed_windows(node: ir.Node) -> Windows:
    """Read the windows of a pool (ONNX, MaxPool and AveragePool; no window begins behind the input and what pads it).

    Raises:
        PlanError: the padding follows from extents that are not known.
    """
    kernel, attributes = tuple(node.attributes.get_ints("kernel_shape", ())), node.attributes
    rank = len(kernel)
    strides, dilations = (tuple(attributes.get_ints(name, (1,) * rank)) for name in ("strides", "dilations"))
    automatic = attributes.get_string("auto_pad", "NOTSET")
    pads = list(attributes.get_ints("pads", (0,) * 2 * rank)) if automatic == "NOTSET" else [0] * 2 * rank
    beyond = [0] * rank
    plain = Windows(kernel=kernel, strides=strides, dilations=dilations, pads=tuple(pads), beyond=tuple(beyond))
    sizes = (dimensions(node.inputs[0]) or (None,) * (rank + 2))[2:]
    up = attributes.get_int("ceil_mode", 0) != 0
    for axis, size in enumerate(sizes):
        if automatic in ("NOTSET", "VALID") and (not up or strides[axis] == 1):
            continue
        if size is None:
            raise PlanError(f"where its windows lie follows from the extent of axis {axis + 2}, which is not known")
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            total = max((-(-size // strides[axis]) - 1) * strides[axis] + plain.reach(axis) - size, 0)
            pads[axis], pads[axis + rank] = shares(total, automatic)
            continue
        padded = size + pads[axis] + pads[axis + rank]
        count = -((plain.reach(axis) - padded) // strides[axis]) + 1
        if (count - 1) * strides[axis] >= size + pads[axis]:
            count -= 1
        beyond[axis] = max((count - 1) * strides[axis] + plain.reach(axis) - padded, 0)
        pads[axis + rank] += beyond[axis]
    return Windows(kernel=kernel, strides=strides, dilations=dilations, pads=tuple(pads), beyond=tuple(beyond))


def shares(total: int, automatic: str) -> tuple[int, int]:
    """Part padding into that before and that behind: of an odd number more before, but for SAME_UPPER."""
    less = total // 2
    return (less, total - less) if automatic == "SAME_UPPER" else (total - less, less)


def padded_as_tflite(node: ir.Node) -> bool:
    """Whether an AveragePool is TFLite's, alone or behind a PAD with zeros: else its file averages real numbers.

    Raises:
        PlanError: the padding follows from extents that are not known.
    """
    counted, up = (node.attributes.get_int(name, 0) != 0 for name in ("count_include_pad", "ceil_mode"))
    if node.attributes.get_string("auto_pad", "NOTSET") == "SAME_UPPER":
        return not (counted and up)
    windows = fixed_windows(node)
    if counted or not any(windows.pads):
        return not (any(windows.pads) and up)
    sizes = (dimensions(node.inputs[0]) or (None,) * (windows.rank + 2))[2:]
    return all(
        same_padding(size, windows.reach(axis), windows.strides[axis], begin, end)
        for axis, (size, begin, end) in enumerate(zip(sizes, windows.pads, windows.pads[windows.rank :], strict=False))
    )


def same_padding(extent: int | None, reach: int, stride: int, begin: int, end: int) -> bool:
    """Whether the padding of an axis is what TFLite calls SAME.

    An output for every stride, the odd cell behind (TensorFlow, "Neural network ops", notes on padding).
    """
    if extent is None:
        return stride == 1 and begin == (reach - 1) // 2 and end == reach - 1 - begin
    total = max((-(-extent // stride) - 1) * stride + reach - extent, 0)
    return begin == total // 2 and end == total - total // 2
