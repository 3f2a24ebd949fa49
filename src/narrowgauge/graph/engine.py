"""ONNX Runtime as the embedded engine: a network in, a session out."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from narrowgauge.errors import RuntimeFailure
from narrowgauge.graph.edits import all_nodes

Optimization = Literal["none", "basic", "extended", "all"]

# Networks with more bytes of weights are handed over as a file: ONNX Runtime maps it, protobuf stops at 2 GB.
IN_MEMORY_BYTES = 256 * 2**20

_NOT_REGISTERED = re.compile(r"([\w.]+):(\w+)\(-?\d+\) is not a registered function/op")
"""How ONNX Runtime says that it has no such operator: `domain:operator(version)`."""

_LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def session_options(
    *, threads: int | None = None, optimization: Optimization = "all", simulate: bool = False, arena: bool = True
) -> onnxruntime.SessionOptions:
    """Options of a session; see `open_session`. Only errors are logged."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = _LEVELS[optimization]
    options.enable_cpu_mem_arena = arena
    if simulate:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def available_cores() -> int:
    """Cores that this process may run on (a container's share, not the whole machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def open_session(
    model: ir.Model | str | os.PathLike[str],
    *,
    threads: int | None = None,
    optimization: Optimization = "all",
    simulate: bool = False,
    arena: bool = True,
) -> onnxruntime.InferenceSession:
    """Open a network, or a file, in ONNX Runtime on the CPU.

    Args:
        model: the network, or the path of an ONNX file.
        threads: of one operator; None for the cores that this process may use.
        optimization: how far ONNX Runtime rewrites the graph.
        simulate: leave Q/DQ pairs as they are written, in float, instead of fusing them into integer kernels.
        arena: let the session keep the memory of its largest run; without, it gives back what a run took, for many
            sessions that are open together.

    Raises:
        RuntimeFailure: if ONNX Runtime refuses the network; the message is its own, on one line.
    """
    options = session_options(threads=threads, optimization=optimization, simulate=simulate, arena=arena)
    try:
        if not isinstance(model, ir.Model):
            return _session(os.fspath(model), options)
        if weight_bytes(model) < IN_MEMORY_BYTES and not _has_external_tensors(model):
            return _session(ir.to_proto(model).SerializeToString(), options)
        with tempfile.TemporaryDirectory(prefix="narrowgauge-") as folder:
            path = Path(folder) / "model.onnx"
            ir.save(model.clone(), path, external_data="model.data")
            return _session(str(path), options)
    except Exception as error:  # ONNX Runtime raises bare classes of its own that share no base
        message = " ".join(str(error).split())
        raise RuntimeFailure(
            _unknown_operator(model, message) or f"ONNX Runtime could not load the network: {message}"
        ) from None


def run_session(
    session: onnxruntime.InferenceSession,
    names: Sequence[str],
    feed: Mapping[str, npt.NDArray[Any]],
    *,
    what: str = "the network",
) -> dict[str, npt.NDArray[Any]]:
    """Run a session and return some of its outputs by name.

    Args:
        session: an open one.
        names: of the outputs; where there are none, nothing is run.
        feed: input name -> array.
        what: what is run, for the message.

    Raises:
        RuntimeFailure: if ONNX Runtime fails; the message is its own, on one line.
    """
    if not names:
        return {}
    try:
        return dict(zip(names, session.run(list(names), dict(feed)), strict=True))
    except Exception as error:  # ONNX Runtime raises bare classes of its own that share no base
        message = " ".join(str(error).split())
        raise RuntimeFailure(f"ONNX Runtime could not run {what}: {message}") from None


def _unknown_operator(model: ir.Model | str | os.PathLike[str], message: str) -> str:
    """Say which node ONNX Runtime does not know, if that is what it complains of, else ""."""
    found = _NOT_REGISTERED.search(message)
    if found is None:
        return ""
    domain, operator = found.groups()
    network = model if isinstance(model, ir.Model) else ir.load(model)
    node = next((node for node in all_nodes(network) if (node.op_type, node.domain) == (operator, domain)), None)
    return (
        f"node {node.name if node is not None else '?'!r} is a {operator} of the domain {domain!r}, which ONNX Runtime "
        "does not know, so the network cannot be run, calibrated or checked here; export it without that operator, or "
        "quantize it without samples (--recipe weight-only)"
    )


def _session(source: str | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers of the main graph."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _has_external_tensors(model: ir.Model) -> bool:
    """Whether a weight lies in a file that a network in memory could not point at."""
    return any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())
