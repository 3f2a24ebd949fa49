"""Compiled TVM libraries: a planned network in, machine code that computes in integers out.

TVM's own importer makes float convolutions of a Q/DQ network. So layers that the plan has in integers become kernels of
this package (`convolution.py`, `elementwise.py`, `pooling.py`), written in TVM's own language; what stays float goes
through TVM's importer, and TVM compiles both. It never changes the network or the plan.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from narrowgauge.data.inputs import input_specs
from narrowgauge.errors import MissingDependencyError, OutputError
from narrowgauge.exporters.formats import Export, Exported
from narrowgauge.exporters.tvm.checking import compare
from narrowgauge.exporters.tvm.network import network_module
from narrowgauge.exporters.tvm.preparing import in_integers
from narrowgauge.exporters.tvm.processor import Processor, this_processor
from narrowgauge.exporters.tvm.silence import silence
from narrowgauge.runtimes.tvm import describe

LIBRARY = "model.tvm.so"


def write(export: Export, folder: Path) -> Exported:
    """Compile a planned network for this machine's processor; see `exporters.formats.Write`.

    The library has the weights in it; `model.tvm.json` beside it says what it takes and gives. Shapes are fixed: where
    the network leaves the number of samples open, the library takes one at a time. Linking takes a C++ compiler.

    Raises:
        TargetError: the network has operators that TVM does not know, or open shapes; it names them.
        OutputError: it could not be compiled or written, or what was written computes something else.
        MissingDependencyError: TVM or a compiler is not installed.
    """
    try:
        import tvm
    except ImportError as error:
        raise MissingDependencyError(
            f"a library for TVM takes the package tvm, which cannot be imported ({error}): "
            'pip install "narrowgauge[tvm]"'
        ) from None
    processor = this_processor()
    network, notes = in_integers(export.simulated)
    module = network_module(network, processor)
    path = folder / LIBRARY
    compile_module(module, processor, path)
    inputs, outputs = input_specs(network), [str(value.name) for value in network.graph.outputs]
    describe(
        path, inputs=inputs, outputs=outputs, processor=processor.name, features=processor.features,
        tvm=str(tvm.__version__),
    )  # fmt: skip
    said = compare(path, network, export)
    samples = _samples(network)
    return Exported(
        runnable=path,
        notes=(f"{LIBRARY} is compiled for the processor {processor.name} and takes {samples} at a time", *notes, said),
    )


def _samples(network: ir.Model) -> str:
    counts = {spec.shape[0] for spec in input_specs(network) if spec.shape}
    count = counts.pop() if len(counts) == 1 else 1
    return "one sample" if count == 1 else f"{count} samples"


def compile_module(module: Any, processor: Processor, path: Path) -> None:
    """Compile a module and link it into a library.

    Raises:
        OutputError: it could not be compiled or written.
        MissingDependencyError: there is no compiler.
    """
    import tvm
    from tvm import relax
    from tvm.support import cc

    try:
        compiler = cc.get_cc()
    except Exception:  # what it raises where there is none differs between versions
        compiler = None
    if not compiler:
        raise MissingDependencyError(
            "linking a library for TVM takes a C++ compiler, and none was found: install gcc or clang"
        )
    try:
        with silence():
            compiled = tvm.compile(relax.get_pipeline("zero")(module), target=processor.target)
            compiled.export_library(str(path), options=["-s"])  # without symbols and notes for debuggers
    except Exception as error:  # TVM raises classes of its own that share no base
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise OutputError(
            f"{path}: TVM could not compile the network: {(lines or [type(error).__name__])[-1][:300]}"
        ) from None
