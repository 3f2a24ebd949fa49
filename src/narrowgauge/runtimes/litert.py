"""LiteRT on the CPU: .tflite files, run by tensor names.

LiteRT picks the kernels, as it does by default: its XNNPACK delegate takes the operators that it knows, LiteRT's own
optimized kernels the others. Its reference kernels, without any delegate, are an engine of their own
(`litert_reference`). A network with variables (the state of an LSTM) begins every run with a state of zeros.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from narrowgauge.core.arithmetic import round_half_away
from narrowgauge.data.inputs import InputSpec
from narrowgauge.errors import MissingDependencyError, RuntimeFailure
from narrowgauge.graph.engine import available_cores
from narrowgauge.importers.tflite import read_network
from narrowgauge.importers.tflite.network import Graph, Tensor
from narrowgauge.runtimes.inner import Inner
from narrowgauge.runtimes.program import Array, Program

Result = TypeVar("Result")

_STDERR = 2
"""File descriptor that LiteRT's own code writes to."""

_SILENCE = threading.Lock()
"""Held while that descriptor leads nowhere: it is the whole process's, and must be put back as it was."""


METADATA = "narrowgauge"
"""Name of the metadata in which a file says how its tensors lie to the float network's values, as JSON: the list
`channels_last` of those whose axis 1 is at the end; the object `orders` says of others which axis of the value each
axis is; `flattened`, of values of two axes, the channels and spatial extents that their columns are of where the
channels are the innermost."""

Compute = Callable[[Mapping[str, Array], Iterable[int]], dict[int, Array]]
"""Runs a feed and returns some tensors by number, as the file has them."""


def open_program(path: Path, *, threads: int | None = None, reference: bool = False) -> Program:
    """Open a .tflite file; inputs and outputs have the names that the importer gives them.

    Only axes that the file says may change take other extents.

    Args:
        path: the file.
        threads: of one operator; None for the cores that this process may use.
        reference: run the reference kernels instead of those that LiteRT picks.

    Raises:
        ModelError: it is no TFLite network.
        RuntimeFailure: LiteRT refuses it, or, later, a feed.
        MissingDependencyError: ai-edge-litert is not installed.
    """
    graph, compute = _loaded(path, threads, reference=reference)
    outputs = graph.output_names()

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        found = compute(feed, graph.outputs)
        pairs = zip(outputs, graph.outputs, strict=True)
        return {name: _real(graph.tensors[number], found[number]) for name, number in pairs}

    return Program(inputs=_input_specs(graph), outputs=outputs, run=run)


def open_inner(path: Path, *, threads: int | None = None, reference: bool = False) -> Inner:
    """Open a .tflite file so that a run gives the levels of all tensors that its operators write; see `Inner`.

    LiteRT keeps every tensor on request, which changes none of them (measured on 2.3, with and without XNNPACK). A file
    of ours says which tensors have their channels last (`METADATA`); those are turned, and nobody need guess. Others'
    files do not tell.

    Args:
        path: the file.
        threads: of one operator; None for the cores that this process may use.
        reference: run the reference kernels instead of those that LiteRT picks.

    Raises:
        ModelError: it is no TFLite network.
        RuntimeFailure: LiteRT refuses it, or, later, a feed.
        MissingDependencyError: ai-edge-litert is not installed.
    """
    graph, compute = _loaded(path, threads, reference=reference, preserve=True)
    read = {number for operator in graph.operators for number in operator.inputs} | set(graph.outputs)
    # A delegate leaves out what nobody reads.
    written = dict.fromkeys(number for operator in graph.operators for number in operator.outputs if number in read)
    levels = {graph.tensors[number].name: number for number in written if _has_levels(graph.tensors[number])}
    metadata = _metadata(path)
    layouts = _layouts(path, metadata)

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        found = compute(feed, levels.values())
        what = f"{path}: the metadata {METADATA!r} does not fit the tensors"
        return {
            name: _told(what, functools.partial(_restored, found[number], layouts.get(name)))
            for name, number in levels.items()
        }

    return Inner(inputs=_input_specs(graph), names=tuple(levels), run=run, laid_out=bool(metadata))


def _has_levels(tensor: Tensor) -> bool:
    return tensor.encoding is not None and tensor.data is None and not tensor.variable


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """How a tensor lies to the value of its name; see `METADATA`.

    Attributes:
        order: which axis of the value each axis is; () for channels last.
        flattened: channels and spatial extents of the columns; () where they lie alike.
    """

    order: tuple[int, ...] = ()
    flattened: tuple[int, ...] = ()


def _restored(array: Array, layout: _Layout | None) -> Array:
    """Put a tensor into the layout of its value."""
    if layout is None:
        return array
    if layout.flattened:
        channels, *extents = layout.flattened
        inner = array.reshape(array.shape[0], *extents, channels)  # samples x space x channels
        return np.moveaxis(inner, -1, 1).reshape(array.shape)
    if not layout.order:
        return np.moveaxis(array, -1, 1)
    if sorted(layout.order) != list(range(array.ndim)):
        raise ValueError(f"{list(layout.order)} is no order of {array.ndim} axes")
    return array.transpose(np.argsort(layout.order))


def _layouts(path: Path, text: str) -> dict[str, _Layout]:
    """Read from a file's metadata which tensors lie otherwise than their values; "" says nothing of any.

    Raises:
        RuntimeFailure: the metadata is none that we write.
    """
    try:
        found = json.loads(text or "{}")
        last, orders, flattened = found.get("channels_last", []), found.get("orders", {}), found.get("flattened", {})
        layouts = {str(name): _Layout() for name in last}
        layouts |= {str(name): _Layout(order=tuple(map(int, order))) for name, order in orders.items()}
        layouts |= {str(name): _Layout(flattened=tuple(map(int, shape))) for name, shape in flattened.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RuntimeFailure(
            f"{path}: expected the metadata {METADATA!r} to say how tensors lie, could not read it: {error}; write the "
            "file again"
        ) from None
    return layouts


def _metadata(path: Path) -> str:
    """Text of our metadata in a file, "" where there is none."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(path.read_bytes())
    for number in range(model.MetadataLength()):
        record = model.Metadata(number)
        buffer = model.Buffers(record.Buffer())
        if record.Name() == METADATA.encode() and buffer.DataLength():
            return str(buffer.DataAsNumpy().tobytes().decode("utf-8", "replace"))
    return ""


def _loaded(path: Path, threads: int | None, *, reference: bool, preserve: bool = False) -> tuple[Graph, Compute]:
    """Open a file: its tensors and operators, and what runs it, one run at a time."""
    graph = read_network(path).main
    fixed = not any(graph.tensors[number].dynamic for number in graph.inputs)
    interpreter = _opened(path, threads or available_cores(), allocate=fixed, reference=reference, preserve=preserve)
    shapes = {number: graph.tensors[number].shape for number in graph.inputs} if fixed else {}
    tensors = graph.tensors
    names = {tensors[number].name: number for number in graph.inputs}
    stateful = any(tensor.variable for tensor in tensors)
    rounded = _levels_half_away if reference else _levels
    lock = threading.Lock()  # an interpreter holds one run's tensors

    def compute(feed: Mapping[str, Array], wanted: Iterable[int]) -> dict[int, Array]:
        levels = {number: rounded(tensors[number], np.asarray(feed[name])) for name, number in names.items()}
        _resize(interpreter, levels, shapes)
        if stateful:
            interpreter.reset_all_variables()
        for number, array in levels.items():
            interpreter.set_tensor(number, array)
        interpreter.invoke()
        return {number: interpreter.get_tensor(number) for number in wanted}

    def run(feed: Mapping[str, Array], wanted: Iterable[int]) -> dict[int, Array]:
        if feed.keys() != names.keys():
            expected, given = (", ".join(map(repr, sorted(one))) or "none" for one in (names, feed))
            raise RuntimeFailure(f"{path}: expected the inputs {expected}, got {given}")
        with lock:
            return _told(f"LiteRT could not run {path}", lambda: compute(feed, wanted))

    return graph, run


def _opened(path: Path, threads: int, *, allocate: bool, reference: bool, preserve: bool) -> Any:
    """Open a file; its tensors get memory here only where the shapes recorded in it are those of every run."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        raise MissingDependencyError(f'{path}: LiteRT is not installed: pip install "narrowgauge[litert]"') from None

    def opened() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that keeping all tensors takes memory
            interpreter = Interpreter(
                model_path=os.fspath(path),
                num_threads=threads,
                experimental_op_resolver_type=OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO,
                experimental_preserve_all_tensors=preserve,
            )
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
    return _rounded(tensor, values, lambda real, scale: np.rint(real * (np.float32(1) / scale)))


def _levels_half_away(tensor: Tensor, values: Array) -> Array:
    """Round real numbers as the reference QUANTIZE does: divided by the scale, ties away from zero."""
    return _rounded(tensor, values, lambda real, scale: round_half_away(real / scale))


def _rounded(tensor: Tensor, values: Array, rounding: Callable[[Array, Any], Array]) -> Array:
    encoding = tensor.encoding
    if encoding is None:
        return values
    limits, zero_point = np.iinfo(tensor.dtype), int(encoding.zero_point[0])
    rounded = rounding(values.astype(np.float32), encoding.scale[0])
    bounded = np.clip(np.where(np.isnan(rounded), 0, rounded), limits.min - zero_point, limits.max - zero_point)
    return np.asarray(bounded.astype(np.int64) + zero_point, dtype=tensor.dtype)


def _real(tensor: Tensor, levels: Array) -> Array:
    encoding = tensor.encoding
    if encoding is None:
        return levels
    steps = (levels.astype(np.int32) - np.int32(encoding.zero_point[0])).astype(np.float32)
    return np.asarray(steps * encoding.scale[0], dtype=np.float32)
