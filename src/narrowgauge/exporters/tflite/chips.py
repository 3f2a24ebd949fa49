"""TFLite files for chips that take part of a network: integers at the ends, and what the chip will not run is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from narrowgauge.exporters.formats import Export, Exported
from narrowgauge.exporters.tflite.constraints import CHIPS, Chip, describe
from narrowgauge.exporters.tflite.files import write_integer
from narrowgauge.graph.shapes import infer_shapes
from narrowgauge.importers.tflite.litert import read_network


def write_edgetpu(export: Export, folder: Path) -> Exported:
    """Write a network for edgetpu_compiler, which takes constant sizes: one sample, where that is left open.

    The file runs in LiteRT as it is; the compiler makes the one for the chip. Raises as `files.write_integer` does.
    """
    network, notes = with_one_sample(export.network)
    exported = _write(replace(export, network=network), folder, CHIPS["tflite-edgetpu"])
    return replace(exported, notes=(*exported.notes, *notes))


def write_hexagon(export: Export, folder: Path) -> Exported:
    """Write a network for the Hexagon delegate; raises as `files.write_integer` does."""
    return _write(export, folder, CHIPS["tflite-hexagon"])


def _write(export: Export, folder: Path, chip: Chip) -> Exported:
    exported = write_integer(export, folder)
    assert exported.runnable is not None
    graph = read_network(exported.runnable).main
    return replace(exported, notes=(*exported.notes, *describe(graph, chip)))


def with_one_sample(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """Return a copy of a network for one sample at a time, and a note; the network itself where nothing is open.

    The number of samples is the first axis of an input, wherever it stands.
    """
    open_axes = {
        size.value
        for value in model.graph.inputs
        if value.shape is not None and value.shape.rank() and isinstance(size := value.shape[0], ir.SymbolicDim)
    }
    if not open_axes:
        return model, ()
    fixed = model.clone()
    values = [*fixed.graph.inputs, *(output for node in fixed.graph.all_nodes() for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            sizes = [
                1 if isinstance(size, ir.SymbolicDim) and size.value is not None and size.value in open_axes else size
                for size in value.shape
            ]
            value.shape = ir.Shape(sizes)
    for value in fixed.graph.inputs:  # an axis without a name is open in this input alone
        if value.shape is not None and value.shape.rank() and isinstance(value.shape[0], ir.SymbolicDim):
            value.shape = ir.Shape([1, *value.shape[1:]])
    infer_shapes(fixed)
    return fixed, ("the file takes one sample at a time: the chip wants constant sizes",)
