"""Anything that can be run here: a network file of any framework or engine, or a network in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from narrowgauge.data.inputs import InputSpec, input_specs, output_names
from narrowgauge.errors import ModelError
from narrowgauge.graph.engine import weight_bytes
from narrowgauge.importers.opening import read
from narrowgauge.runtimes.engines import engine_for, engines_for, file_bytes, open_program
from narrowgauge.runtimes.onnxruntime import open_run, rounds_channels
from narrowgauge.runtimes.program import Program

ROWS_PER_RUN = 8
"""Where a program takes any number of rows and no network tells how large its values get."""

Open = Callable[[int | None], Program]
"""Opens a program on so many threads; None for the cores that this process may use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A network to run, compare or time.

    Attributes:
        name: path, or what it is.
        inputs: what it takes.
        outputs: names of what it gives.
        open: opens it.
        runtime: name of the engine that runs it.
        size_bytes: of its files, or of the weights of a network in memory.
        network: in ONNX, where it was read to be run; None for other engines' files.
    """

    name: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    open: Open
    runtime: str
    size_bytes: int
    network: ir.Model | None


def subject(model: Any, *, runtime: str = "") -> Subject:
    """Open a network to run it: in the engine of its file, else, imported, in ONNX Runtime.

    Args:
        model: a file that an engine runs or an importer reads, or a network in memory.
        runtime: name of the engine, "" for the usual one of such files.

    Raises:
        ModelError: it can neither be run nor read.
        RuntimeFailure: its engine refuses it, or does not run such files.
        MissingDependencyError: its engine, or what reads it, is not installed.
    """
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    if path is not None and not path.exists():
        raise ModelError(f"{path}: no such file; give the path of a network")
    if path is not None and (runtime or engines_for(path)) and engine_for(path, runtime).name != "onnxruntime":
        engine = engine_for(path, runtime)
        program = open_program(path, runtime=engine.name)
        return Subject(
            name=str(path), inputs=program.inputs, outputs=program.outputs, runtime=engine.name,
            open=lambda threads: open_program(path, runtime=engine.name, threads=threads),
            size_bytes=file_bytes(path), network=None,
        )  # fmt: skip
    network = read(model)
    onnx_file = path if path is not None and engines_for(path) else None
    source = network if onnx_file is None else onnx_file

    def opened(threads: int | None) -> Program:
        run = open_run(source, threads=threads, simulate=rounds_channels(network))
        return Program(inputs=input_specs(network), outputs=output_names(network), run=run)

    return Subject(
        name=str(path) if path is not None else (network.graph.name or "network"), inputs=input_specs(network),
        outputs=output_names(network), open=opened, runtime="onnxruntime",
        size_bytes=weight_bytes(network) if onnx_file is None else file_bytes(onnx_file), network=network,
    )  # fmt: skip
