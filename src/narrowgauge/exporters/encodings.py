"""Encodings on their way into other tools' files: what a file takes, and whether it reads back as the plan has it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import Granularity, PerBlock, PerTensor, granularity_words, normalized_axis
from narrowgauge.core.plan import Plan
from narrowgauge.errors import OutputError, PlanError, TargetError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import output_axis, weight_inputs

Read = Callable[[Path], Mapping[str, Encoding]]
"""A reader of a file: its encodings by name. It raises PlanError."""

LARGEST_FILE_BYTES = 2**29  # some fifty million scales; the networks that people quantize have some hundred thousand


def static_encodings(network: ir.Model, plan: Plan, *, title: str) -> dict[str, Encoding]:
    """List the encodings of a plan that a file of parameters holds; tensors without an element have none.

    Args:
        network: the float network of the plan.
        plan: the plan.
        title: the file's name for people.

    Raises:
        TargetError: the plan is dynamic, or an activation has more than one scale.
    """
    found = {}
    for name, encoding in plan.encodings.items():
        if not isinstance(encoding, Encoding):
            raise TargetError(
                f"{title}: expected ranges that are known beforehand, but {name!r} takes its own at run time: "
                "quantize with a recipe that calibrates"
            )
        if name not in network.graph.initializers and not isinstance(encoding.granularity, PerTensor):
            raise TargetError(
                f"{title}: expected one scale for the activation {name!r}, the plan has one per "
                f"{granularity_words(encoding.granularity)}"
            )
        if encoding.scale.size:
            found[name] = _counted_from_front(network, name, encoding)
    return found


def _counted_from_front(network: ir.Model, name: str, encoding: Encoding) -> Encoding:
    """Write an axis that is counted from the end as one that is counted from the front."""
    constant, granularity = network.graph.initializers.get(name), encoding.granularity
    if isinstance(granularity, PerTensor) or constant is None or constant.shape is None:
        return encoding
    axis = normalized_axis(granularity.axis, len(constant.shape))
    return replace(encoding, granularity=replace(granularity, axis=axis))


def activation_values(network: ir.Model, encodings: Mapping[str, Encoding]) -> dict[str, Encoding]:
    """Keep the encodings of values that are computed or fed, not of constants."""
    return {name: encoding for name, encoding in encodings.items() if name not in network.graph.initializers}


def in_type(network: ir.Model, name: str, encoding: Encoding, *, narrow: bool, title: str) -> Encoding:
    """Give an encoding of a signed type the range that a file has: with the lowest level, or `narrow` without.

    Allowed for constants none of which comes to lie on that level: they have the same levels in both types. Unsigned
    types stay.

    Raises:
        TargetError: the plan's type has the other range, and a number may come to lie on the level they differ in.
    """
    if encoding.type.narrow == narrow or not encoding.type.signed:
        return encoding
    other = replace(encoding, type=replace(encoding.type, narrow=narrow))
    array = constant_array(network.graph.initializers.get(name))
    if array is None or not np.array_equal(_levels(array, encoding), _levels(array, other)):
        raise TargetError(
            f"{title}: levels are of {other.type.name}, those of {name!r} of {encoding.type.name}, which has "
            f"{'one more' if narrow else 'one less'}: quantize it to {other.type.name}"
        )
    return other


def _levels(array: npt.NDArray[Any], encoding: Encoding) -> npt.NDArray[np.integer]:
    return quantize(array.astype(np.float32, copy=False), encoding)


def channel_axis(network: ir.Model, name: str) -> int | None:
    """Return the axis of a constant along which every layer that reads it as weights has its output channels.

    None where no layer does so, or two disagree. Files that list a scale per channel without an axis mean this one.
    """
    value = network.graph.initializers.get(name)
    if value is None:
        return None
    axes = {output_axis(node, number) for node, number in value.uses() if number in weight_inputs(node)}
    return axes.pop() if len(axes) == 1 else None


def check_axis(network: ir.Model, name: str, granularity: Granularity, *, title: str, instead: str) -> None:
    """Refuse scales that a file would have to name the axis of, and cannot.

    Args:
        network: the float network.
        name: the constant's.
        granularity: what its scales cover.
        title: the file's name for people.
        instead: what to do.

    Raises:
        TargetError: there is one scale per block, or per index of an axis that is not the output channels'.
    """
    if isinstance(granularity, PerTensor):
        return
    if isinstance(granularity, PerBlock) or granularity.axis != channel_axis(network, name):
        raise TargetError(
            f"{title} has one scale a tensor or one per output channel of a layer's weights, but {name!r} has one per "
            f"{granularity_words(granularity)}: {instead}"
        )


def float_readers(network: ir.Model, floats: Collection[str], encodings: Mapping[str, Encoding]) -> list[str]:
    """Name the values that the simulation rounds only for the integer nodes behind them, while float nodes read them.

    Such values are fed or written by float nodes. A file that names tensors rounds them for every reader.

    Args:
        network: the float network.
        floats: names of the nodes that compute in float.
        encodings: by value.
    """
    values = list(network.graph.inputs)
    values += [value for node in network.graph if node.name in floats for value in node.outputs]
    return [
        str(value.name)
        for value in values
        if value.name in encodings
        and any(node.name in floats or node.graph is not network.graph for node in number_readers(value))
    ]


def number_readers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read the numbers of a value, once for each input: not those that ask for its shape."""
    return [node for node, _ in value.uses() if not is_operator(node, "Shape", "Size")]


def read_text(path: Path, what: str) -> str:
    """Read a text file that others may have written.

    Args:
        path: the file.
        what: it should hold, for the message.

    Raises:
        PlanError: it cannot be read, is not UTF-8, or is larger than any such file.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise PlanError(f"{path}: expected {what} of at most {LARGEST_FILE_BYTES} bytes, it has {size}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: expected {what}, could not read it: {error}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: could not write: {error.strerror or error}") from None


def check_read_back(
    path: Path,
    planned: Mapping[str, Encoding],
    read: Callable[[Path], Mapping[str, Encoding]],
    *,
    tolerance: float = 0.0,
) -> None:
    """Compare what a file says with the plan, level by level: signed and unsigned types of one width are alike.

    Args:
        path: the file.
        planned: what it should say.
        read: its reader.
        tolerance: how far a scale may be off, as a part of itself; 0 where the file holds every float32.

    Raises:
        OutputError: they differ, or the file cannot be read; the message names the first tensor.
    """
    try:
        found = read(path)
    except PlanError as error:
        raise OutputError(f"what was written does not read back: {error}") from None
    for name in [*planned, *(name for name in found if name not in planned)]:
        if name not in found or name not in planned:
            where = "the file" if name in planned else "the plan"
            raise OutputError(f"{path}: the encoding of {name!r} is not in {where}")
        said = _difference(planned[name], found[name], tolerance)
        if said:
            raise OutputError(f"{path}: the encoding of {name!r} reads back with {said}")


def _difference(planned: Encoding, found: Encoding, tolerance: float) -> str:
    """Say in what two encodings differ, "" if in nothing."""
    if planned.type.bits != found.type.bits or planned.type.levels != found.type.levels:
        return f"levels of {found.type.name}, not {planned.type.name}"
    if planned.scale.size == found.scale.size == 1:  # one scale is one scale, of whatever
        found = replace(
            found, granularity=planned.granularity, scale=found.scale.reshape(planned.scale.shape),
            zero_point=found.zero_point.reshape(planned.scale.shape),
        )  # fmt: skip
    if planned.granularity != found.granularity:
        return f"a scale per {granularity_words(found.granularity)}, not per {granularity_words(planned.granularity)}"
    if planned.scale.shape != found.scale.shape:
        return f"scales of shape {found.scale.shape}, not {planned.scale.shape}"
    off = np.abs(found.scale.astype(np.float64) - planned.scale) > tolerance * planned.scale.astype(np.float64)
    if off.any():
        first = int(np.flatnonzero(off)[0])
        return f"scale {found.scale.flat[first]!s} at {first}, not {planned.scale.flat[first]!s}"
    if not np.array_equal(planned.zero_point - planned.type.minimum, found.zero_point - found.type.minimum):
        return "another zero point"
    return ""


def counted(names: list[str], what: str = "values") -> str:
    """Say how many names there are, of `what`, and the first."""
    return f"{names[0]!r}" if len(names) == 1 else f"{len(names)} {what} (the first is {names[0]!r})"
