"""The table of engines: which of them runs a file, and how to open it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from narrowgauge.errors import MissingDependencyError, RuntimeFailure
from narrowgauge.importers.onnx import external_files
from narrowgauge.runtimes.program import Program


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """One runtime: `narrowgauge.runtimes.<module>` has `open_program(path, *, threads) -> Program`.

    An engine that shows the integers inside a network has `open_inner(path, *, threads) -> Inner`, too.

    Attributes:
        name: as given to `--runtime` and in targets.
        title: for people.
        module: of `narrowgauge.runtimes`; imported on use.
        package: that must be importable.
        install: the command that installs it.
        suffixes: of the files that it runs; the first engine that lists a file's suffix is the one that runs it where
            nothing else is said.
        arithmetic: name of the rules that it computes integers by, or of those next to them, as in targets'
            `arithmetic.requantization`; "" where none of ours comes near.
        deviation: why its integers may differ from those rules; "" where they are to be equal.
        runs_simulated: whether it computes Q/DQ pairs in kernels of its own, so that the simulated form of any target
            can be run in it.
    """

    name: str
    title: str
    module: str
    package: str
    install: str
    suffixes: tuple[str, ...]
    arithmetic: str = ""
    deviation: str = ""
    runs_simulated: bool = False

    @property
    def installed(self) -> bool:
        """Whether the package is here."""
        return importlib.util.find_spec(self.package) is not None


ENGINES: tuple[Engine, ...] = (
    Engine(
        name="onnxruntime", title="ONNX Runtime", module="onnxruntime", package="onnxruntime",
        install="pip install onnxruntime", suffixes=(".onnx", ".ort"), arithmetic="onnxruntime",
    ),
    Engine(
        name="litert", title="LiteRT", module="litert", package="ai_edge_litert",
        install='pip install "narrowgauge[litert]"', suffixes=(".tflite", ".lite"), arithmetic="xnnpack",
    ),
    Engine(
        name="litert-reference", title="LiteRT's reference kernels", module="litert_reference",
        package="ai_edge_litert", install='pip install "narrowgauge[litert]"', suffixes=(".tflite", ".lite"),
        arithmetic="tflite-reference",
    ),
    Engine(
        name="openvino", title="OpenVINO", module="openvino", package="openvino",
        install='pip install "narrowgauge[openvino]"', suffixes=(".xml", ".onnx", ".tflite"),
        arithmetic="openvino",
        deviation="it computes in float what adds to the result of a convolution before that is rounded, and sums of "
        "float32 depend on their order",
    ),
    Engine(
        name="torch", title="PyTorch", module="pytorch", package="torch",
        install='pip install "narrowgauge[torch]"', suffixes=(".pt2",),
    ),
    Engine(
        name="torch-fbgemm", title="PyTorch's engine FBGEMM", module="pytorch.fbgemm", package="torch",
        install='pip install "narrowgauge[torch]"', suffixes=(".onnx",), arithmetic="fbgemm", runs_simulated=True,
    ),
    Engine(
        name="torch-qnnpack", title="PyTorch's engine QNNPACK", module="pytorch.qnnpack", package="torch",
        install='pip install "narrowgauge[torch]"', suffixes=(".onnx",), arithmetic="qnnpack", runs_simulated=True,
    ),
    Engine(
        name="torch-onednn", title="PyTorch's engine oneDNN", module="pytorch.onednn", package="torch",
        install='pip install "narrowgauge[torch]"', suffixes=(".onnx",), arithmetic="onednn", runs_simulated=True,
    ),
    Engine(
        name="torch-x86", title="PyTorch's engine x86", module="pytorch.x86", package="torch",
        install='pip install "narrowgauge[torch]"', suffixes=(".onnx",), arithmetic="x86", runs_simulated=True,
    ),
    Engine(
        name="tvm", title="Apache TVM", module="tvm", package="tvm",
        install='pip install "narrowgauge[tvm]"', suffixes=(".tvm.so",), arithmetic="onnxruntime",
    ),
)  # fmt: skip


def file_bytes(path: Path) -> int:
    """Count the bytes of a network's file and of those that belong to it.

    These are the external data that an ONNX file names, and what lies beside a library or an IR by its name.

    Raises:
        ModelError: an ONNX file cannot be read.
    """
    if path.suffix.lower() == ".onnx":
        beside = external_files(path)
    else:
        stem = path.name.removesuffix(".so").removesuffix(".xml")
        names = () if stem == path.name else (f"{stem}.bin", f"{stem}.params", f"{stem}.json")
        beside = frozenset(path.with_name(name) for name in names)
    return sum(file.stat().st_size for file in {path, *beside} if file.exists())


def engine_named(name: str) -> Engine:
    """Find an engine by name.

    Raises:
        RuntimeFailure: there is none of that name.
    """
    for engine in ENGINES:
        if engine.name == name:
            return engine
    raise RuntimeFailure(f"expected a runtime, one of {', '.join(one.name for one in ENGINES)}, got {name!r}")


def engines_for(path: Path) -> Sequence[Engine]:
    """List the engines that run such a file, the usual one first, whether or not they are installed."""
    name = path.name.lower()
    return [engine for engine in ENGINES if name.endswith(engine.suffixes)]


def engine_for(path: Path, runtime: str = "") -> Engine:
    """Find the engine that is to run a file.

    Args:
        path: the file.
        runtime: name of an engine, "" for the usual one of such files.

    Raises:
        RuntimeFailure: no engine, or not this one, runs such a file.
    """
    fitting = engines_for(path)
    engine = engine_named(runtime) if runtime else next(iter(fitting), None)
    if engine is None or engine not in fitting:
        able = ENGINES if engine is None else (engine,)
        kinds = ", ".join(dict.fromkeys(suffix for one in able for suffix in one.suffixes))
        who = f"{runtime} does not run" if runtime else "no engine runs"
        raise RuntimeFailure(f"{path}: {who} such a file; expected one of {kinds}")
    return engine


def engine_module(path: Path, runtime: str = "") -> tuple[Engine, ModuleType]:
    """Find the engine that is to run a file, and import our module for it.

    Args:
        path: the file.
        runtime: name of an engine, "" for the usual one of such files.

    Raises:
        RuntimeFailure: no engine, or not this one, runs such a file.
        MissingDependencyError: the engine is not installed; the message has the command that installs it.
    """
    engine = engine_for(path, runtime)
    if not engine.installed:
        raise MissingDependencyError(f"{path}: {engine.title} would run it, but it is not installed: {engine.install}")
    return engine, importlib.import_module(f"narrowgauge.runtimes.{engine.module}")


def open_program(path: Path, *, runtime: str = "", threads: int | None = None) -> Program:
    """Open a network file in an engine.

    Args:
        path: the file.
        runtime: name of an engine, "" for the usual one of such files.
        threads: of one run; None for the cores that this process may use.

    Raises:
        RuntimeFailure: no engine runs such a file, or this one refuses it.
        MissingDependencyError: the engine is not installed; the message has the command that installs it.
    """
    _, module = engine_module(path, runtime)
    opened: Program = module.open_program(path, threads=threads)
    return opened
