"""What all kernels have in common: the frame of a function, halos, rounding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from narrowgauge.exporters.tvm.image import Image

_WORTH_SHARING = 50_000  # about 15 microseconds
_OPAQUE = 8  # TVM's OpPatternKind kOpaque: its passes fuse nothing into such a function


@contextlib.contextmanager
def primitive(
    name: str, arguments: Mapping[str, tuple[Any, str]]
) -> Iterator[tuple[Callable[[], Any], tuple[Any, ...]]]:
    """Open a function of TVM; what is built inside becomes its body.

    Args:
        name: of the function.
        arguments: name -> shape (a number where there is one axis) and type of each buffer, the outputs last.

    Yields:
        What returns the function once the frame is closed, and the buffers.
    """
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    builder = IRBuilder()
    with builder, T.prim_func(s_tir=True), contextlib.ExitStack() as stack:
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE})
        buffers = tuple(
            T.arg(key, T.buffer((shape,) if isinstance(shape, int) else shape, kind, layout=None))
            for key, (shape, kind) in arguments.items()
        )
        # TVM's passes expect the body to be one block.
        stack.enter_context(T.sblock("root"))
        T.reads()
        T.writes()
        yield builder.get, buffers


def shared(turns: Any, work: int) -> Any:
    """Open a loop over turns that do not depend on each other, shared out to threads where that is worth it.

    Args:
        turns: how many.
        work: of all turns, roughly, in operations on vectors. To hand a loop to threads and wait for them takes some
            microseconds on a machine that is idle, and a turn of its scheduler on one that is busy.
    """
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    return T.parallel(0, turns) if work >= _WORTH_SHARING else T.serial(0, turns)


def fill_halo(output: Any, image: Image, zero_point: int) -> None:
    """Write the zero point into what surrounds a tensor."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    if not any(image.halo):
        return
    top, left, bottom, right = image.halo

    def fill(start: Any, count: int) -> None:
        if count:
            with T.serial(0, count) as index:
                T.buffer_store(output, T.uint8(zero_point), [start + index])

    with T.serial(0, image.batch) as number:
        fill(image.at(number, -top, -left, 0), top * image.row)
        fill(image.at(number, image.height, -left, 0), bottom * image.row)
        with T.serial(0, image.height) as row:
            fill(image.at(number, row, -left, 0), left * image.depth)
            fill(image.at(number, row, image.width, 0), right * image.depth)


def saturated(steps: Any, added: int, low: int, high: int, lanes: int) -> Any:
    """Return real numbers as levels: rounded half to even, a whole number added, cut to the ends.

    Args:
        steps: float32, units of one step.
        added: to the rounded number, which makes it a level in uint8.
        low: lowest level, in uint8.
        high: highest.
        lanes: of the vector, 1 for a single number.
    """
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    levels = T.nearbyint(steps) + spread(T.float32(float(added)), lanes)
    least, most = spread(T.float32(float(low)), lanes), spread(T.float32(float(high)), lanes)
    return T.Cast(vector("uint8", lanes), T.max(T.min(levels, most), least))


def vector(kind: str, lanes: int) -> str:
    """Name a type of so many lanes."""
    return f"{kind}x{lanes}" if lanes > 1 else kind


def spread(number: Any, lanes: int) -> Any:
    """Return a number in every lane."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - as TVM's own scripts call it

    return T.broadcast(number, lanes) if lanes > 1 else number
