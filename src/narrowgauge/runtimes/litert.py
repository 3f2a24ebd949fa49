"""LiteRT on the CPU: .tflite files, run by tensor names.

LiteRT picks the kernels, as it does by default: its XNNPACK delegate takes the operators that it knows, LiteRT's own
optimized kernels the others. A network with variables (the state of an LSTM) begins every run with a state of zeros.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from narrowgauge.data.inputs import InputSpec
from narrowgauge.errors import MissingDependencyError, RuntimeFailure
from narrowgauge.graph.engine import available_cores
from narrowgauge.importers.tflite import read_network
from narrowgauge.importers.tflite.network import Graph, Tensor
from narrowgauge.runtimes.program import Array, Program

Result = TypeVar("Result")

_STDERR = 2
"""File descriptor that LiteRT's own code writes to."""

_SILENCE = threading.Lock()
"""Held while that descriptor leads nowhere: it is the whole process's, and must be put back as it was."""


def open_program(path: Path, *, threads: int | None = None) -> Program:
    """Open a .tflite file; inputs and outputs have the names that the importer gives them.

    Only axes that the file says may change take other extents.

    Args:
        path: the file.
        threads: of one operator; None for the cores that this process may use.

    Raises:
        ModelError: it is no TFLite network.
        RuntimeFailure: LiteRT refuses it, or, later, a feed.
        MissingDependencyError: ai-edge-litert is not installed.
    """
    graph = read_network(path).main
    fixed = not any(graph.tensors[number].dynamic for number in graph.inputs)
    interpreter = _opened(path, threads or available_cores(), allocate=fixed)
    shapes = {number: graph.tensors[number].shape for number in graph.inputs} if fixed else {}
    tensors, outputs = graph.tensors, graph.output_names()
    names = {tensors[number].name: number for number in graph.inputs}
    stateful = any(tensor.variable for tensor in tensors)
    lock = threading.Lock()  # an interpreter holds one run's tensors

    def compute(feed: Mapping[str, Array]) -> dict[str, Array]:
        levels = {number: _levels(tensors[number], np.asarray(feed[name])) for name, number in names.items()}
        _resize(interpreter, levels, shapes)
        if stateful:
            interpreter.reset_all_variables()
        for number, array in levels.items():
            interpreter.set_tensor(number, array)
        interpreter.invoke()
        found = [_real(tensors[number], interpreter.get_tensor(number)) for number in graph.outputs]
        return dict(zip(outputs, found, strict=True))

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        if feed.keys() != names.keys():
            expected, given = (", ".join(map(repr, sorted(one))) or "none" for one in (names, feed))
            raise RuntimeFailure(f"{path}: expected the inputs {expected}, got {given}")
        with lock:
            return _told(f"LiteRT could not run {path}", lambda: compute(feed))

    return Program(inputs=_input_specs(graph), outputs=outputs, run=run)


def _opened(path: Path, threads: int, *, allocate: bool) -> Any:
    """Open a file; its tensors get memory here only where the shapes recorded in it are those of every run."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise MissingDependencyError(f'{path}: LiteRT is not installed: pip install "narrowgauge[litert]"') from None

    def opened() -> Any:
        interpreter = Interpreter(model_path=os.fspath(path), num_threads=threads)
        if allocate:
            interpreter.allocate_tensors()
        return interpreter

    with _quiet():
        return _told(f"LiteRT could not load {path}", opened)


def _told(what: str, act: Callable[[], Result]) -> Result:
    """Do something with LiteRT and tell its refusal in one line."""
    try:
        return act()
    except (ValueError, RuntimeError, TypeError) as error:
        raise RuntimeFailure(f"{what}: {' '.join(str(error).split())}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what LiteRT's own code prints (which delegate it made) away from the terminal; its errors are exceptions."""
    with _SILENCE:
        sys.stderr.flush()
        kept = os.dup(_STDERR)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, _STDERR)
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            os.close(nowhere)


def _resize(interpreter: Any, levels: Mapping[int, Array], shapes: dict[int, tuple[int, ...]]) -> None:
    """Give the inputs the shapes of a feed; LiteRT refuses to change an axis that the file fixes.

    Args:
        interpreter: LiteRT's.
        levels: the feed, by number of tensor.
        shapes: the shapes that memory is allocated for, kept up to date here; empty where none is.
    """
    wanted = {number: array.shape for number, array in levels.items()}
    if shapes == wanted:
        return
    shapes.clear()
    with _quiet():
        for number, shape in wanted.items():
            interpreter.resize_tensor_input(number, shape, strict=True)
        interpreter.allocate_tensors()
    shapes.update(wanted)


def _input_specs(graph: Graph) -> tuple[InputSpec, ...]:
    inputs = [graph.tensors[number] for number in graph.inputs]
    return tuple(
        InputSpec(name=one.name, shape=one.extents, dtype=np.dtype(np.float32) if one.encoding else one.dtype)
        for one in inputs
    )


def _levels(tensor: Tensor, values: Array) -> Array:
    """Round real numbers as LiteRT's QUANTIZE does by default, XNNPACK's: times the reciprocal, ties to even."""
    encoding = tensor.encoding
    if encoding is None:
        return values
    limits, zero_point = np.iinfo(tensor.dtype), int(encoding.zero_point[0])
    scaled = values.astype(np.float32) * (np.float32(1) / encoding.scale[0])
    bounded = np.clip(np.where(np.isnan(scaled), 0, scaled), limits.min - zero_point, limits.max - zero_point)
    return np.asarray(np.rint(bounded).astype(np.int64) + zero_point, dtype=tensor.dtype)


def _real(tensor: Tensor, levels: Array) -> Array:
    encoding = tensor.encoding
    if encoding is None:
        return levels
    steps = (levels.astype(np.int32) - np.int32(encoding.zero_point[0])).astype(np.float32)
    return np.asarray(steps * encoding.scale[0], dtype=np.float32)
