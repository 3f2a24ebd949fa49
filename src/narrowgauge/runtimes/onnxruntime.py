"""ONNX Runtime on the CPU: files of ONNX networks, run by name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from narrowgauge.data.inputs import input_specs
from narrowgauge.errors import RuntimeFailure
from narrowgauge.graph.edits import is_operator, sole_consumer
from narrowgauge.graph.engine import open_session, run_session, session_options
from narrowgauge.graph.exposing import returning
from narrowgauge.graph.roles import is_constant
from narrowgauge.importers.onnx import read
from narrowgauge.runtimes.inner import Inner, value_of
from narrowgauge.runtimes.program import Array, Program, Run

__all__ = ["Run", "open_inner", "open_program", "open_run", "open_steps", "rounds_channels"]

Steps = Callable[[Mapping[str, Array], Mapping[str, Array]], dict[str, Array]]

_GIVEN = "_given"
_UNSIGNED = "qdq_s8_to_u8_quant"
_WHAT = "the network with its inner values as outputs"


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
    run = open_run(path, threads=threads, simulate=rounds_channels(network))
    return Program(inputs=input_specs(network), outputs=outputs, run=run)


def rounds_channels(network: ir.Model) -> bool:
    """Whether an activation has a scale for each channel.

    ONNX Runtime (1.31) fuses the product behind such a DequantizeLinear, or before such a QuantizeLinear, into an
    operator that takes one scale, and fails in the first run.
    """
    for node in network.graph:
        if is_operator(node, "QuantizeLinear", "DequantizeLinear") and not node.attributes.get_int("block_size", 0):
            value, scale = node.inputs[:2]
            several = scale is not None and scale.shape is not None and scale.shape.rank() == 1
            if several and value is not None and not is_constant(value):
                return True
    return False


def open_inner(model: ir.Model | Path, *, threads: int | None = None) -> Inner:
    """Open a network of Q/DQ pairs or of integer operators so that a run gives its levels; see `Inner`.

    What an optimizer does depends on what is an output: between pairs of which one is, nothing is fused. So ONNX
    Runtime optimizes the network as it is, and then the levels that are left become outputs. The optimizations are the
    "extended" ones, which make the same integer operators as all of them together, but do not turn layouts.

    Args:
        model: the network, or the path of its file.
        threads: of one operator; None for the cores that this process may use.

    Raises:
        ModelError: it is no ONNX network.
        RuntimeFailure: ONNX Runtime refuses it or, later, a feed.
    """
    network = read(model)
    with _optimized(network) as fused:
        levels = _levels(network, fused)
        session = open_session(returning(fused, list(levels)), threads=threads, optimization="none")

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        found = run_session(session, list(levels), feed, what=_WHAT)
        return {levels[name]: array for name, array in found.items()}

    return Inner(inputs=input_specs(network), names=tuple(levels.values()), run=run)


def open_steps(model: ir.Model | Path, names: Sequence[str], *, threads: int | None = None) -> Steps:
    """Open a network so that each of some levels is computed from given ones.

    The network is cut behind them: what reads them reads the given ones. So where levels that come out differ from the
    given ones, the difference arose in the few operators between them.

    Args:
        model: the network, or the path of its file.
        names: values whose levels are cut at, of those that `open_inner` names.
        threads: of one operator; None for the cores that this process may use.

    Returns:
        A function of a feed and of levels by name to the levels that the network computes from them, by name.

    Raises:
        ModelError: it is no ONNX network.
        RuntimeFailure: ONNX Runtime refuses it or, later, a feed.
    """
    whole = read(model)
    with _optimized(whole) as fused:
        levels = {name: value for name, value in _levels(whole, fused).items() if value in set(names)}
        network = returning(fused, list(levels))
        outputs = list(network.graph.outputs)
        network.graph.outputs.clear()  # an output stays what it is, its readers do not
        for value in outputs:
            kind = value.type or ir.TensorType(ir.DataType.UINT8)  # of those that it made itself it does not say
            given = ir.Value(name=f"{value.name}{_GIVEN}", type=kind, shape=value.shape)
            value.replace_all_uses_with(given)
            network.graph.inputs.append(given)
        network.graph.outputs.extend(outputs)
        session = open_session(network, threads=threads, optimization="none")

    def run(feed: Mapping[str, Array], given: Mapping[str, Array]) -> dict[str, Array]:
        fed = {f"{name}{_GIVEN}": given[value] for name, value in levels.items()}
        found = run_session(session, list(levels), {**feed, **fed}, what=_WHAT)
        return {levels[name]: array for name, array in found.items()}

    return run


def _levels(network: ir.Model, fused: ir.Model) -> dict[str, str]:
    """List what holds levels in an optimized network, in the order in which it is computed: name there -> value.

    Levels keep their names, but for signed ones between Q/DQ pairs, which ONNX Runtime makes unsigned (its
    QDQS8ToU8Transformer) where signed ones are slow. These are known by the node that writes them, which keeps its.
    """
    written = {str(value.name): value_of(str(value.name)) for node in network.graph for value in node.outputs}
    nodes = {node.name: node for node in network.graph}
    found = {}
    for node in fused.graph:
        for number, value in enumerate(node.outputs):
            name = str(value.name)
            if name.startswith(_UNSIGNED) and node.name in nodes and number < len(nodes[node.name].outputs):
                found[name] = _rounded(nodes[node.name].outputs[number])
            else:
                found[name] = written.get(name, "")
    return {name: value for name, value in found.items() if value}


def _rounded(value: ir.Value) -> str:
    """Name what the levels stand for that a value is rounded to, behind a Relu or Clip; "" where it is not."""
    while not value_of(str(value.name)):
        reader = sole_consumer(value)
        if reader is None or not is_operator(reader, "QuantizeLinear", "Relu", "Clip"):
            return ""
        value = reader.outputs[0]
    return value_of(str(value.name))


@contextmanager
def _optimized(network: ir.Model) -> Iterator[ir.Model]:
    """Let ONNX Runtime optimize a network; weights of the one that comes may lie in a file that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="narrowgauge-") as folder:
        path, fused = Path(folder) / "model.onnx", Path(folder) / "optimized.onnx"
        ir.save(network.clone(), path, external_data="model.data")
        options = session_options(threads=1, optimization="extended")
        options.optimized_model_filepath = str(fused)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises bare classes of its own that share no base
            raise RuntimeFailure(f"ONNX Runtime could not load the network: {' '.join(str(error).split())}") from None
        yield ir.load(fused)
