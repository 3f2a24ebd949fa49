"""PyTorch on the CPU: exported programs (`.pt2`), one operator after the other or compiled."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from narrowgauge.data.inputs import InputSpec, shape_fits, shape_text
from narrowgauge.errors import MissingDependencyError, RuntimeFailure
from narrowgauge.graph.engine import available_cores
from narrowgauge.runtimes.program import Array, Program, Run

if TYPE_CHECKING:
    import torch

_NAMES = "/extra/narrowgauge.json"
"""Record of our own files: the network's names of inputs and outputs. Others have those of the program."""

_LONGEST_RECORD = 2**20


def open_program(path: Path, *, threads: int | None = None) -> Program:
    """Open an exported program, ours or another's; see `Program`. It runs operator by operator, as it is written.

    Nothing of the file is run to read it (`importers.pytorch.archive`).

    Args:
        path: the file.
        threads: of one operator; None for the cores that this process may use.

    Raises:
        ModelError: it is no exported program, is damaged, or could run code.
        RuntimeFailure: PyTorch refuses it or, later, a feed.
        MissingDependencyError: PyTorch is not installed.
    """
    return _opened(path, threads, lambda module: module)


def compile_program(path: Path, *, threads: int | None = None) -> Program:
    """Open an exported program and compile it (torch.compile with inductor, constants frozen) in its first run.

    Convolutions and linear layers between roundings become integer kernels (oneDNN's) on x86-64, and a rounding next
    to them is a part of the kernel. It takes a C++ compiler and seconds to minutes, hence apart from `open_program`.
    Arguments, errors: as there.
    """

    def compiled(module: Any) -> Callable[..., Any]:
        import torch
        from torch.utils import _pytree as trees

        from narrowgauge.importers.pytorch.silence import silence

        with silence():
            import torch._inductor.config as settings

            # Without `dynamic`, PyTorch would compile the second shape for any shape, whose kernels are slower.
            fast = torch.compile(module, dynamic=False)
        known: set[tuple[Any, ...]] = set()

        def call(*arguments: Any, **named: Any) -> Any:
            shapes = tuple(tuple(tensor.shape) for tensor in trees.tree_leaves((arguments, named)))
            if shapes in known:
                return fast(*arguments, **named)
            with silence(), settings.patch(freezing=True):  # the compiler warns of its own code
                found = fast(*arguments, **named)
            known.add(shapes)
            return found

        return call

    return _opened(path, threads, compiled)


def _opened(path: Path, threads: int | None, prepared: Callable[[Any], Callable[..., Any]]) -> Program:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f'{path}: PyTorch would run it, but it cannot be imported ({error}): pip install "narrowgauge[torch]"'
        ) from None
    from narrowgauge.importers.pytorch.archive import read_program

    program = read_program(path)
    inputs, outputs = _specs(program, path), tuple(program.graph_signature.user_outputs)
    given, written = _names(path, len(inputs), len(outputs))
    if given and written:
        inputs = tuple(
            InputSpec(name=name, shape=spec.shape, dtype=spec.dtype) for name, spec in zip(given, inputs, strict=True)
        )
        outputs = written
    if not all(isinstance(name, str) for name in outputs):
        raise RuntimeFailure(f"{path}: expected a program that returns arrays, it returns {outputs!r}")
    call = prepared(program.module(check_guards=False))
    return Program(inputs=inputs, outputs=outputs, run=_runner(program, call, inputs, outputs, threads))


def _specs(program: torch.export.ExportedProgram, path: Path) -> tuple[InputSpec, ...]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for name in program.graph_signature.user_inputs:
        value = values.get(name) if isinstance(name, str) else None
        if value is None or not hasattr(value, "shape"):
            raise RuntimeFailure(f"{path}: expected inputs that are arrays, got {name!r}; export it with arrays only")
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        found.append(InputSpec(name=name, shape=shape, dtype=_dtype(value.dtype, path)))
    return tuple(found)


def _dtype(kind: Any, path: Path) -> np.dtype[Any]:
    import torch

    if kind == torch.bfloat16:
        return np.dtype(np.float32)  # numpy has no such type; values are cut on the way in
    try:
        found: np.dtype[Any] = torch.empty(0, dtype=kind).numpy().dtype
    except (TypeError, RuntimeError):
        raise RuntimeFailure(f"{path}: expected inputs of types that numpy has, got {kind}") from None
    return found


def _names(path: Path, inputs: int, outputs: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the network's own names; nothing where the file has none that fit."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next((one for one in archive.infolist() if one.filename.endswith(_NAMES)), None)
            if entry is None or entry.file_size > _LONGEST_RECORD:
                return (), ()
            record = json.loads(archive.read(entry))
    except (OSError, ValueError, zipfile.BadZipFile):
        return (), ()
    names = tuple(_strings(record, key, count) for key, count in (("inputs", inputs), ("outputs", outputs)))
    return (names[0], names[1]) if all(names) else ((), ())


def _strings(record: Any, key: str, count: int) -> tuple[str, ...]:
    """Read a list of so many texts; nothing where the record has none."""
    held = record.get(key) if isinstance(record, dict) else None
    fits = isinstance(held, list) and len(held) == count and all(isinstance(name, str) for name in held)
    return tuple(held) if fits and held is not None else ()


def _runner(
    program: Any, call: Callable[..., Any], inputs: tuple[InputSpec, ...], outputs: tuple[str, ...], threads: int | None
) -> Run:
    names = set(program.graph_signature.user_inputs)
    kinds = [node.meta["val"].dtype for node in program.graph.nodes if node.name in names]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        import torch
        from torch.utils import _pytree as trees

        for spec in inputs:
            got = feed.get(spec.name)
            if got is None or not shape_fits(got.shape, spec.shape):
                came = "nothing" if got is None else shape_text(got.shape)
                raise RuntimeFailure(f"PyTorch could not run the network: expected the input {spec}, got {came}")
        tensors = [
            torch.from_numpy(np.array(feed[spec.name], order="C")).to(kind)
            for spec, kind in zip(inputs, kinds, strict=True)
        ]
        try:
            arguments, named = trees.tree_unflatten(tensors, program.call_spec.in_spec)
            with torch.no_grad(), use_threads(threads or available_cores()):
                found = trees.tree_leaves(call(*arguments, **named))
        except Exception as error:  # PyTorch and its compiler raise what they like
            raise RuntimeFailure(f"PyTorch could not run the network: {line(error)}") from None
        return dict(zip(outputs, map(_array, found), strict=True))

    return run


@contextlib.contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many threads, and put back what it used before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _array(tensor: Any) -> Array:
    import torch

    return np.array((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy())


def line(error: Exception) -> str:
    """Put the message of an error on one line."""
    return " ".join(str(error).split())[:500] or type(error).__name__
