"""ONNX Runtime on the CPU: files of ONNX networks, run by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from narrowgauge.data.inputs import input_specs
from narrowgauge.errors import RuntimeFailure
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.onnx import read
from narrowgauge.runtimes.program import Array, Program, Run

__all__ = ["Run", "open_program", "open_run"]


def open_run(model: ir.Model | str | os.PathLike[str], *, threads: int | None = None, simulate: bool = False) -> Run:
    """Open a network; what comes back runs a feed and returns the outputs by name, in the network's order.

    Args:
        model: a network or file.
        threads: of one operator; None for the cores that this process may use.
        simulate: compute Q/DQ pairs as they are written, in float, instead of fusing them into integer kernels.

    Raises:
        RuntimeFailure: if ONNX Runtime refuses the network or, later, a feed.
    """
    session = open_session(model, threads=threads, simulate=simulate)
    names = [output.name for output in session.get_outputs()]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return dict(zip(names, session.run(names, dict(feed)), strict=True))
        except Exception as error:  # ONNX Runtime raises bare classes of its own that share no base
            raise RuntimeFailure(f"ONNX Runtime could not run the network: {' '.join(str(error).split())}") from None

    return run


def open_program(path: Path, *, threads: int | None = None) -> Program:
    """Open an ONNX file; see `Program`.

    Raises:
        ModelError: it is no ONNX network.
        RuntimeFailure: ONNX Runtime refuses it.
    """
    network = read(path)
    outputs = tuple(str(value.name) for value in network.graph.outputs)
    return Program(inputs=input_specs(network), outputs=outputs, run=open_run(path, threads=threads))
