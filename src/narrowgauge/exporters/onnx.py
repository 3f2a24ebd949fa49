"""ONNX files: written whole, read back, compared with what was meant."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from narrowgauge.errors import OutputError
from narrowgauge.graph.engine import weight_bytes

# Protocol buffers end at 2 GiB; weights beyond this size go into a file beside the network.
EXTERNAL_BYTES = 1_500_000_000


def write_onnx(model: ir.Model, path: Path) -> None:
    """Write a network and check that what is on the disk reads back as the same network.

    Weights of more than 1.5 GB go into `<name>.data` beside it.

    Raises:
        OutputError: if the file cannot be written, or does not read back.
    """
    try:
        if weight_bytes(model) > EXTERNAL_BYTES:
            ir.save(model.clone(), path, external_data=f"{path.name}.data")
        else:
            ir.save(model, path)
    except OSError as error:
        raise OutputError(f"{path}: could not write the network: {error.strerror or error}") from None
    _check(model, path)


def _check(model: ir.Model, path: Path) -> None:
    try:
        back = ir.load(path)
    except Exception as error:  # whatever a damaged file makes a parser raise
        raise OutputError(f"{path}: what was written does not read back: {error}") from None
    if _structure(model) != _structure(back):
        raise OutputError(f"{path}: what was written reads back as another network")
    for name, value in model.graph.initializers.items():
        other = back.graph.initializers[name].const_value
        if value.const_value is None or other is None or value.const_value.tobytes() != other.tobytes():
            raise OutputError(f"{path}: initializer {name!r} reads back with other bytes")


def _structure(model: ir.Model) -> list[object]:
    """What the network reads, computes and writes, by the names of its values."""
    graph = model.graph
    ends: list[object] = [sorted(graph.initializers), _names(graph.inputs), _names(graph.outputs)]
    return ends + [
        (node.domain, node.op_type, sorted(node.attributes), _names(node.inputs), _names(node.outputs))
        for node in graph
    ]


def _names(values: Iterable[ir.Value | None]) -> list[str]:
    return [(value.name or "") if value is not None else "" for value in values]
