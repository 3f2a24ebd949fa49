"""OpenVINO's own file, the IR: a network in `model.xml`, its numbers in `model.bin`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.errors import MissingDependencyError, OutputError, TargetError
from narrowgauge.exporters.formats import Export, Exported
from narrowgauge.exporters.onnx import write_onnx
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.runtimes.openvino import the_core

if TYPE_CHECKING:
    import openvino

NAME = "model.xml"

# Bounds of a FakeQuantize are float32 products of the scale; a scale from their difference is off by a few roundings.
_TOLERANCE = 4 * float(np.finfo(np.float32).eps)
_LAYOUT = {"Reshape", "Transpose", "Squeeze", "Unsqueeze"}


def write(export: Export, folder: Path) -> Exported:
    """Write the planned network as OpenVINO IR, weights in their integers; see `Write`.

    OpenVINO reads the Q/DQ network and fuses each pair into a FakeQuantize, whose bounds are the real numbers of the
    least and greatest level. Read back, each scale and zero point has to be the plan's.

    Raises:
        TargetError: OpenVINO does not take the network.
        OutputError: the file cannot be written, or differs from the plan.
        MissingDependencyError: OpenVINO is not installed.
    """
    try:
        import openvino
        from openvino._offline_transformations import apply_moc_transformations
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenVINO IR is written by OpenVINO, which cannot be imported ({error}): "
            'pip install "narrowgauge[openvino]"'
        ) from None
    path = folder / NAME
    core = the_core()
    with tempfile.TemporaryDirectory(prefix="narrowgauge-") as scratch:
        source = Path(scratch) / "simulated.onnx"
        write_onnx(export.simulated, source)
        try:
            model = core.read_model(source)
            # What openvino.convert_model does, which besides reports to its makers over the network.
            apply_moc_transformations(model, cf=False, smart_reshape=False)
        except Exception as error:  # OpenVINO raises bare RuntimeErrors of several lines
            raise TargetError(f"OpenVINO does not take the network: {' '.join(str(error).split())}") from None
        try:
            openvino.save_model(model, path, compress_to_fp16=False)
            del model  # it holds the file in `scratch` open
            back = core.read_model(path)
        except Exception as error:
            raise OutputError(f"{path}: OpenVINO could not write it: {' '.join(str(error).split())}") from None
    missing = check(back, export.simulated, path)
    return Exported(runnable=path, notes=tuple(_notes(missing)))


def check(back: openvino.Model, simulated: ir.Model, path: Path) -> list[str]:
    """Compare every encoding of an IR with that of the Q/DQ network that it was made of.

    Returns:
        Names of dequantized values that the IR has no longer under their names, so that they were not compared.

    Raises:
        OutputError: inputs or outputs have other names, or a scale or zero point differs; the message names the value.
    """
    for what, ports, values in (
        ("input", back.inputs, [value for value in simulated.graph.inputs if not value.is_initializer()]),
        ("output", back.outputs, simulated.graph.outputs),
    ):
        for value in values:
            if not any(value.name in port.get_names() for port in ports):
                raise OutputError(f"{path}: expected the {what} {value.name!r}, what was written has none of that name")
    written = {name: node for node in back.get_ops() for port in node.outputs() for name in port.get_names()}
    missing = []
    for expected in _dequantized(simulated):
        found = _read(written[expected.output]) if expected.output in written else None
        if found is None:
            missing.append(expected.output)
        else:
            _compare(expected, found, path)
    return missing


@dataclass(frozen=True, kw_only=True, slots=True)
class _Expected:
    """What the Q/DQ network says of a value.

    Attributes:
        output: name of its dequantized form.
        scale: the plan's, any shape.
        zero_point: likewise.
        lowest: least integer of the type that stores the levels.
        levels: of constant weights; None where they come at run time.
    """

    output: str
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int64]
    lowest: int
    levels: npt.NDArray[Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What the IR says of it; `levels` None where they come at run time."""

    scale: npt.NDArray[Any]
    zero_point: npt.NDArray[Any]
    levels: npt.NDArray[Any] | None


def _dequantized(simulated: ir.Model) -> Iterator[_Expected]:
    for node in simulated.graph:
        if not is_operator(node, "DequantizeLinear"):
            continue
        scale = constant_array(node.inputs[1])
        zero_point = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
        if scale is None:
            continue  # a scale that comes at run time is no number of the plan
        kind = node.inputs[0].dtype if node.inputs[0] is not None else None
        levels = constant_array(node.inputs[0])
        yield _Expected(
            output=str(node.outputs[0].name),
            scale=scale,
            zero_point=np.zeros(scale.shape, np.int64) if zero_point is None else zero_point.astype(np.int64),
            lowest=int(kind.min) if kind is not None else 0,
            levels=None if levels is None else levels.astype(np.int64),
        )


def _read(node: openvino.Node) -> _Found | None:
    """Read the encoding that a node of the IR gives its output; None where it gives none."""
    while node.get_type_name() in _LAYOUT:
        node = node.input_value(0).get_node()
    if node.get_type_name() == "FakeQuantize":
        bounds = [_constant(node.input_value(number).get_node()) for number in (3, 4)]
        if bounds[0] is None or bounds[1] is None:
            return None
        low, high = (bound.astype(np.float64).reshape(-1) for bound in bounds if bound is not None)
        scale = (high - low) / (node.get_attributes()["levels"] - 1)
        return _Found(scale=scale, zero_point=-np.rint(low / scale), levels=None)
    return _read_product(node)


def _read_product(node: openvino.Node) -> _Found | None:
    """Read `(Convert(levels) - zero point) * scale`, the form that constant weights have."""
    if node.get_type_name() != "Multiply":
        return None
    scale, inner = _constant(node.input_value(1).get_node()), node.input_value(0).get_node()
    zero_point: npt.NDArray[Any] | None = np.zeros(())
    if inner.get_type_name() == "Subtract":
        zero_point, inner = _constant(inner.input_value(1).get_node()), inner.input_value(0).get_node()
    levels = _constant(inner)
    if scale is None or zero_point is None or levels is None:
        return None
    return _Found(scale=scale.reshape(-1), zero_point=zero_point.reshape(-1), levels=levels)


def _constant(node: openvino.Node) -> npt.NDArray[Any] | None:
    """Numbers of a constant, also behind conversions and changes of its shape."""
    while node.get_type_name() in {"Convert", "Reshape", "Unsqueeze", "Squeeze"}:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    kind = node.get_element_type()
    return _unpacked(node, signed=kind.is_signed()) if kind.bitwidth == 4 else np.array(node.data)


def _unpacked(node: openvino.Node, *, signed: bool) -> npt.NDArray[np.int64]:
    """Numbers of 4 bits, two in a byte, the first in its low half."""
    packed = np.array(node.data).reshape(-1).view(np.uint8)
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1).astype(np.int64)
    numbers = np.where(halves > 7, halves - 16, halves) if signed else halves
    return numbers[: int(np.prod(list(node.shape)))]


def _compare(expected: _Expected, found: _Found, path: Path) -> None:
    scale, zero_point = expected.scale.reshape(-1).astype(np.float64), expected.zero_point.reshape(-1)
    if found.levels is None:  # the least level of the type is the first: bounds say nothing of how levels are counted
        zero_point = zero_point - expected.lowest
    for what, wanted, got, tolerance in (
        ("scale", scale, found.scale.astype(np.float64), _TOLERANCE),
        ("zero point", zero_point, np.asarray(found.zero_point, np.float64), 0.0),
    ):
        if got.size not in (1, wanted.size) or not np.allclose(got, wanted, rtol=tolerance, atol=0.0):
            raise OutputError(
                f"{path}: {expected.output!r}: expected the {what} {_some(wanted)} of the plan, what was written has "
                f"{_some(got)}"
            )
    if expected.levels is None or found.levels is None:
        return
    if not np.array_equal(expected.levels.reshape(-1), found.levels.reshape(-1)):
        raise OutputError(f"{path}: {expected.output!r}: what was written has other levels than the plan gives")


def _some(numbers: npt.NDArray[Any]) -> str:
    """Write the first few numbers for a message."""
    more = ", ..." if numbers.size > 3 else ""
    return ", ".join(f"{number:.9g}" for number in numbers[:3]) + more


def _notes(missing: Iterable[str]) -> Iterator[str]:
    names = sorted(missing)
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield (
            f"OpenVINO rewrote the rounding of {names[0]!r}{others}: these numbers of the IR were not compared with "
            "those of the plan"
        )
