"""The integers inside a library of TVM: the same kernels once more, compiled so that they are outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from narrowgauge.data.inputs import input_specs
from narrowgauge.errors import MissingDependencyError, RuntimeFailure
from narrowgauge.exporters.tvm import compile_module
from narrowgauge.exporters.tvm.network import network_module
from narrowgauge.exporters.tvm.preparing import in_integers
from narrowgauge.exporters.tvm.processor import this_processor
from narrowgauge.graph.exposing import returning
from narrowgauge.runtimes.inner import Inner, value_of
from narrowgauge.runtimes.program import Array
from narrowgauge.runtimes.tvm import describe, open_program


def open_inner(simulated: ir.Model, *, threads: int | None = None) -> Inner:
    """Compile a planned network so that a run gives its levels; see `runtimes.inner.Inner`.

    A library has no inner tensors, so this is another one than the exported: of the same kernels, whose results are
    outputs. What the compiler makes of what stays float may differ.

    Args:
        simulated: the network in Q/DQ form.
        threads: of one run; None for the cores that this process may use.

    Raises:
        TargetError: see `exporters.tvm.write`.
        OutputError: it could not be compiled.
        RuntimeFailure: the library cannot be run here, or nothing in the network is called as levels are.
        MissingDependencyError: TVM or a compiler is not installed.
    """
    try:
        import tvm
    except ImportError as error:
        raise MissingDependencyError(
            f'TVM would compile the network, but it cannot be imported ({error}): pip install "narrowgauge[tvm]"'
        ) from None
    network, _ = in_integers(simulated)
    names = [str(value.name) for node in network.graph for value in node.outputs if value_of(str(value.name))]
    if not names:
        raise RuntimeFailure("nothing in the network is called as levels are")
    exposed, processor = returning(network, names), this_processor()
    with tempfile.TemporaryDirectory(prefix="narrowgauge-") as folder:
        path = Path(folder) / "inner.tvm.so"
        compile_module(network_module(exposed, processor), processor, path)
        describe(
            path, inputs=input_specs(network), outputs=names, processor=processor.name, features=processor.features,
            tvm=str(tvm.__version__),
        )  # fmt: skip
        program = open_program(path, threads=threads)  # a library that is loaded needs its file no longer

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        return {value_of(name): levels for name, levels in program.run(feed).items()}

    note = "a library shows nothing inside: what was looked at is one of the same kernels, compiled for this"
    return Inner(inputs=program.inputs, names=tuple(map(value_of, names)), run=run, notes=(note,))
