"""The formats: what a planned network becomes, written, read back and compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from narrowgauge.core.plan import Plan
from narrowgauge.errors import OutputError
from narrowgauge.exporters.formats import Export, Exported
from narrowgauge.exporters.tflite.checking import check
from narrowgauge.exporters.tflite.conversion import Style, convert
from narrowgauge.exporters.tflite.litert import serialized

NAME = "model.tflite"

_RUNTIME_VERSION = b"1.14.0".ljust(16, b"\0")
"""The first TensorFlow Lite that reads int8 files; 16 bytes, as TensorFlow's converter writes it."""


def write(export: Export, folder: Path) -> Exported:
    """Write the planned network with real numbers at its ends; see `Write`.

    Raises:
        TargetError: TFLite cannot say the network or the plan.
        OutputError: the file cannot be written, or differs from the plan.
        MissingDependencyError: ai-edge-litert is not installed.
    """
    return _write(export, folder, Style())


def write_integer(export: Export, folder: Path) -> Exported:
    """Write the planned network with integers at its ends, where these are rounded; raises as `write` does."""
    return _write(export, folder, Style(integer_ends=True))


def write_halves(export: Export, folder: Path) -> Exported:
    """Write the float network with weights of float16; raises as `write` does."""
    return _without_plan(export, folder, Style(halves=True))


def write_float(export: Export, folder: Path) -> Exported:
    """Write the float network; raises as `write` does."""
    return _without_plan(export, folder, Style())


def _without_plan(export: Export, folder: Path, style: Style) -> Exported:
    network = export.original or export.network  # recovery makes up for roundings that are not in the file
    empty = Plan(target=export.plan.target, encodings={})
    exported = _write(replace(export, network=network, plan=empty), folder, style)
    if not export.plan.encodings:
        return exported
    note = "the file is the float network: the plan is not in it"
    return replace(exported, notes=(*exported.notes, note), planned=False)


def _write(export: Export, folder: Path, style: Style) -> Exported:
    path = folder / NAME
    conversion = convert(export.network, export.plan, style)
    data = serialized(
        conversion.graph, inputs=conversion.inputs, outputs=conversion.outputs,
        metadata={"min_runtime_version": _RUNTIME_VERSION, "narrowgauge": conversion.metadata.encode()},
        description="narrowgauge",
    )  # fmt: skip
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"{path}: could not write: {error.strerror}") from None
    simulated = export.simulated if export.plan.encodings else None
    check(path, conversion.graph, export.plan, simulated, conversion.flattened(export.network))
    return Exported(runnable=path, notes=conversion.notes)
