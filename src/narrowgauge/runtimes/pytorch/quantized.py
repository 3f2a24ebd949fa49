"""Q/DQ networks in PyTorch's integer kernels: what `torch.ao.quantization` makes of a network and eager PyTorch runs.

What stands between DequantizeLinear and QuantizeLinear and has a row in `layers` or `operators` is computed on
quantized tensors. All else, and what a row refuses, stays float: PyTorch dequantizes and quantizes around it, and ONNX
Runtime computes it. That is exact for operators that only move or select numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from narrowgauge.data.inputs import InputSpec, input_specs, shape_fits, shape_text
from narrowgauge.errors import MissingDependencyError, RuntimeFailure
from narrowgauge.graph.engine import available_cores
from narrowgauge.importers.onnx import read
from narrowgauge.runtimes.inner import Inner, value_of
from narrowgauge.runtimes.program import Array, Program
from narrowgauge.runtimes.pytorch.kernels import Engine
from narrowgauge.runtimes.pytorch.programs import line, use_threads
from narrowgauge.runtimes.pytorch.steps import Step, Values, array_of, steps_of

_NO_VNNI = "without AVX512-VNNI the engine x86 computes as FBGEMM does, and products of 8-bit levels saturate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A network ready to run in one of PyTorch's engines.

    Attributes:
        inputs: what it takes.
        outputs: names of what it gives.
        steps: in their order.
        engine: of PyTorch.
        threads: of one operator.
        notes: which operators stayed float, and what the numbers of others depend on.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    engine: Engine
    threads: int
    notes: tuple[str, ...]

    def run(self, feed: Mapping[str, Array], wanted: Collection[str]) -> Values:
        """Run the network and return the values of these names.

        Raises:
            RuntimeFailure: the feed does not fit, or an engine fails.
        """
        for spec in self.inputs:
            got = feed.get(spec.name)
            if got is None or not shape_fits(got.shape, spec.shape):
                came = "nothing" if got is None else shape_text(got.shape)
                raise RuntimeFailure(f"PyTorch could not run the network: expected the input {spec}, got {came}")
        values: Values = {spec.name: np.asarray(feed[spec.name], spec.dtype) for spec in self.inputs}
        last = {name: number for number, step in enumerate(self.steps) for name in step.reads}
        try:
            with _engine(self.engine, self.threads):
                for number, step in enumerate(self.steps):
                    step.run(values)
                    for name in step.reads:
                        if last[name] == number and name not in wanted:
                            values.pop(name, None)
        except RuntimeFailure:
            raise
        except Exception as error:  # PyTorch raises what it likes
            raise RuntimeFailure(f"PyTorch could not run the network: {line(error)}") from None
        return {name: values[name] for name in wanted}


def open_program(model: ir.Model | Path, *, engine: Engine, threads: int | None = None) -> Program:
    """Open a Q/DQ network in one of PyTorch's engines; see `Program`.

    Args:
        model: the network, or the path of its file.
        engine: "fbgemm", "qnnpack", "onednn" or "x86".
        threads: of one operator; None for the cores that this process may use.

    Raises:
        ModelError: it is no ONNX network.
        RuntimeFailure: PyTorch lacks the engine, or a part that stays float cannot be loaded.
        MissingDependencyError: PyTorch is not installed.
    """
    opened = open_quantized(model, engine=engine, threads=threads)

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        found = opened.run(feed, opened.outputs)
        return {name: array_of(found[name]) for name in opened.outputs}

    return Program(inputs=opened.inputs, outputs=opened.outputs, run=run)


def open_inner(model: ir.Model | Path, *, engine: Engine, threads: int | None = None) -> Inner:
    """Open a Q/DQ network in one of PyTorch's engines so that a run gives its levels; see `Inner`.

    Arguments, errors: as `open_program`.
    """
    opened = open_quantized(model, engine=engine, threads=threads)
    levels = [step.levels for step in opened.steps if value_of(step.levels)]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        found = opened.run(feed, levels)
        return {value_of(name): array_of(found[name]) for name in levels}

    return Inner(inputs=opened.inputs, names=tuple(map(value_of, levels)), run=run, notes=opened.notes)


def open_quantized(model: ir.Model | Path, *, engine: Engine, threads: int | None = None) -> Opened:
    """Find a kernel of PyTorch for every operator between levels, and pack its weights.

    Arguments, errors: as `open_program`.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f'PyTorch would run the network, but it cannot be imported ({error}): pip install "narrowgauge[torch]"'
        ) from None
    if engine not in torch.backends.quantized.supported_engines:
        known = ", ".join(name for name in torch.backends.quantized.supported_engines if name != "none")
        raise RuntimeFailure(f"expected an engine that this PyTorch has, one of {known}, got {engine!r}")
    network = read(model)
    count = threads or available_cores()
    try:
        with _engine(engine, count):
            steps, notes = steps_of(network, engine, count)
    except RuntimeFailure:
        raise
    except Exception as error:  # PyTorch raises what it likes
        raise RuntimeFailure(f"PyTorch could not load the network: {line(error)}") from None
    if engine in ("fbgemm", "x86") and not torch.cpu.get_capabilities().get("avx512_vnni", False):
        notes.append(_NO_VNNI)
    return Opened(
        inputs=input_specs(network),
        outputs=tuple(str(value.name) for value in network.graph.outputs),
        steps=tuple(steps), engine=engine, threads=count, notes=tuple(dict.fromkeys(notes)),
    )  # fmt: skip


@contextlib.contextmanager
def _engine(name: Engine, threads: int) -> Iterator[None]:
    """Let PyTorch use an engine and so many threads, quietly, and put back what it used before."""
    import torch

    from narrowgauge.importers.pytorch.silence import silence

    before = torch.backends.quantized.engine
    with silence(), use_threads(threads), torch.no_grad():
        torch.backends.quantized.engine = name
        try:
            yield
        finally:
            torch.backends.quantized.engine = before
