"""Apache TVM on the CPU: libraries that `exporters/tvm` compiled, with a description beside them.

A library is machine code: opening it runs it. Open none whose origin you do not trust. The description guards against
damage and against the wrong processor, not against malice.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from narrowgauge.data.inputs import InputSpec, shape_text
from narrowgauge.errors import MissingDependencyError, OutputError, RuntimeFailure
from narrowgauge.graph.engine import available_cores
from narrowgauge.runtimes.program import Array, Program, Run

VERSION = 1
LARGEST_DESCRIPTION = 1 << 20
"""Bytes; a description has a line for each input and output."""

_TYPES = (
    "float32", "float64", "float16", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
_LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64")
_FLAGS = {
    "sse4.2": "sse4_2", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi2": "bmi2", "gfni": "gfni",
    "vaes": "vaes", "avxvnni": "avx_vnni", "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512cd": "avx512cd",
    "avx512dq": "avx512dq", "avx512vl": "avx512vl", "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16",
    "avx512vbmi": "avx512vbmi", "avx512vbmi2": "avx512_vbmi2", "avx512ifma": "avx512ifma",
    "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq", "avx512fp16": "avx512_fp16",
    "amx-int8": "amx_int8",
}  # fmt: skip
"""Feature of LLVM -> flag of /proc/cpuinfo."""

_FAST_CORES = 1  # the mode of TVM's thread pool that takes the fast cores first

_POOL = threading.local()  # of TVM: one for each thread of the operating system


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What a library does not say of itself.

    Attributes:
        inputs: name, shape and type of each.
        outputs: names.
        processor: that it was compiled for.
        features: of a processor that it may use.
        bytes: size of the library.
        sha256: digest of the library.
        tvm: version of TVM that compiled it.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    processor: str
    features: tuple[str, ...]
    bytes: int
    sha256: str
    tvm: str


def description_path(library: Path) -> Path:
    """Return where a library's description lies: `model.tvm.json` of `model.tvm.so`."""
    return library.with_suffix(".json")


def describe(
    library: Path, *, inputs: Sequence[InputSpec], outputs: Sequence[str], processor: str, features: Sequence[str],
    tvm: str,
) -> Description:  # fmt: skip
    """Write the description of a library beside it.

    Raises:
        OutputError: if it cannot be written.
    """
    description = Description(
        inputs=tuple(inputs), outputs=tuple(outputs), processor=processor, features=tuple(features),
        bytes=library.stat().st_size, sha256=_digest(library), tvm=tvm,
    )  # fmt: skip
    record = {
        "version": VERSION,
        "tvm": description.tvm,
        "processor": description.processor,
        "features": list(description.features),
        "inputs": [{"name": one.name, "shape": list(one.shape), "type": str(one.dtype)} for one in description.inputs],
        "outputs": list(description.outputs),
        "bytes": description.bytes,
        "sha256": description.sha256,
    }
    path = description_path(library)
    try:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: could not write the description of the library: {error.strerror}") from None
    return description


def read_description(library: Path) -> Description:
    """Read the description of a library, and check that the library is the one described.

    Raises:
        RuntimeFailure: either is missing or damaged, or they do not belong together.
    """
    path = description_path(library)
    advice = "write both again with `narrowgauge quantize --target tvm`"
    try:
        if path.stat().st_size > LARGEST_DESCRIPTION:
            raise RuntimeFailure(f"{path}: expected a description of {library.name}, got a file of another kind")
        record = json.loads(path.read_text(encoding="utf-8"))
        size, digest = library.stat().st_size, _digest(library)
    except OSError as error:
        raise RuntimeFailure(
            f"{error.filename}: a TVM library is {library.name} with {path.name} beside it, and this one could not be "
            f"read: {error.strerror}; {advice}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RuntimeFailure(f"{path}: expected JSON, could not read it: {error}; {advice}") from None
    try:
        description = _description(record)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise RuntimeFailure(f"{path}: expected the description of a TVM library: {what}; {advice}") from None
    if (description.bytes, description.sha256) != (size, digest):
        raise RuntimeFailure(
            f"{library}: expected the library that {path.name} describes, {description.bytes} bytes with the digest "
            f"{description.sha256[:12]}, got {size} bytes with {digest[:12]}: it is damaged, or another one; {advice}"
        )
    return description


def _description(record: Any) -> Description:
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise ValueError(f"expected an object of version {VERSION}")
    return Description(
        inputs=tuple(_input(one) for one in _list(record, "inputs", dict)),
        outputs=tuple(_list(record, "outputs", str)),
        processor=_of(record, "processor", str),
        features=tuple(_list(record, "features", str)),
        bytes=_of(record, "bytes", int),
        sha256=_of(record, "sha256", str),
        tvm=_of(record, "tvm", str),
    )


def _input(record: Mapping[str, Any]) -> InputSpec:
    kind, shape = _of(record, "type", str), _list(record, "shape", int)
    if kind not in _TYPES or any(isinstance(extent, bool) or extent < 0 for extent in shape):
        raise ValueError(f"expected a type and a shape of an input, got {kind!r} and {shape!r}")
    return InputSpec(name=_of(record, "name", str), shape=tuple(shape), dtype=np.dtype(kind))


def _of(record: Mapping[str, Any], key: str, kind: type) -> Any:
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"expected {key!r} to be of type {kind.__name__}, got {value!r}")
    return value


def _list(record: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    values = _of(record, key, list)
    for value in values:
        if not isinstance(value, kind):
            raise ValueError(f"expected {key!r} to hold values of type {kind.__name__}, got {value!r}")
    return list(values)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_program(path: Path, *, threads: int | None = None) -> Program:
    """Open a library; see `Program`. This runs the machine code in it.

    Args:
        path: `<name>.tvm.so`, with `<name>.tvm.json` beside it.
        threads: of one run; None for the cores that this process may use.

    Raises:
        RuntimeFailure: it is damaged, for another processor, or TVM refuses it or, later, a feed.
        MissingDependencyError: TVM is not installed.
    """
    description = read_description(path)
    try:
        import tvm
        from tvm import relax
    except ImportError as error:
        raise MissingDependencyError(
            f'{path}: TVM would run it, but it cannot be imported ({error}): pip install "narrowgauge[tvm]"'
        ) from None
    _check_processor(path, description)
    try:
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
        main = machine["main"]
    except Exception as error:  # TVM raises classes of its own that share no base
        raise RuntimeFailure(
            f"{path}: TVM {tvm.__version__} could not load the library, compiled with {description.tvm}: {_line(error)}"
        ) from None
    run = _runner(main, description, threads or available_cores())
    return Program(inputs=description.inputs, outputs=description.outputs, run=run)


def this_processor() -> tuple[str, frozenset[str]]:
    """Return what LLVM calls the processor that this runs on, and the features that LLVM may use of it.

    LLVM goes by the model of a processor. A virtual machine may hide some of its instructions; then it is the nearest
    of the common levels that has nothing hidden.
    """
    from tvm.target import Target
    from tvm.target.codegen import llvm_get_cpu_features, llvm_get_system_cpu

    told = _told_flags()
    for name in (str(llvm_get_system_cpu()), *_LEVELS):
        target = Target({"kind": "llvm", "mcpu": name})
        features = frozenset(str(feature) for feature in llvm_get_cpu_features(target))
        if told is None or all(flag in told for feature, flag in _FLAGS.items() if feature in features):
            break
    return name, features


def _told_flags() -> frozenset[str] | None:
    """Return the instructions that Linux on x86 says the processor has; None elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = [line.partition(":")[2] for line in text.splitlines() if line.startswith("flags")]
    return frozenset(lines[0].split()) if lines else None


def _check_processor(path: Path, description: Description) -> None:
    """Refuse a library with instructions that this processor does not have: running it would end the process."""
    name, here = this_processor()
    missing = sorted(set(description.features) - here)
    if missing:
        raise RuntimeFailure(
            f"{path}: it was compiled for the processor {description.processor}, this one ({name}) lacks "
            f"{', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}: quantize again on this machine"
        )


def _runner(main: Any, description: Description, threads: int) -> Run:
    import tvm

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        arrays = [_fitting(feed, spec) for spec in description.inputs]
        _take_threads(threads)
        try:
            found = main(*(tvm.runtime.tensor(array) for array in arrays))
            return {name: one.numpy() for name, one in zip(description.outputs, found, strict=True)}
        except Exception as error:  # TVM raises classes of its own that share no base
            raise RuntimeFailure(f"TVM could not run the network: {_line(error)}") from None

    return run


def _fitting(feed: Mapping[str, Array], spec: InputSpec) -> Array:
    """Return the array of an input, contiguous and of its type."""
    if spec.name not in feed:
        raise RuntimeFailure(f"TVM could not run the network: the input {spec} is missing")
    array = np.asarray(feed[spec.name])
    if array.shape != spec.shape:
        raise RuntimeFailure(f"TVM could not run the network: expected the input {spec}, got {shape_text(array.shape)}")
    if array.dtype != spec.dtype:
        raise RuntimeFailure(f"TVM could not run the network: expected the input {spec}, got {array.dtype}")
    return np.ascontiguousarray(array)


def _take_threads(threads: int) -> None:
    """Let TVM use so many threads for what the calling thread runs.

    Its pool belongs to the thread that calls. It reads two variables of the environment: whether each of its threads is
    tied to a core, when it is made or changed - that would tie the caller to one core for good, so it is switched off;
    and how many threads there may be (else half the cores), in every parallel loop. Where that one is not set, TVM asks
    the system each time, which takes longer than a small layer (ResNet20: 0.30 ms instead of 0.13). So it stays set.
    """
    import tvm

    if getattr(_POOL, "threads", None) == threads:
        return
    os.environ["TVM_NUM_THREADS"] = str(max(threads, available_cores()))
    tied = os.environ.get("TVM_BIND_THREADS")
    os.environ["TVM_BIND_THREADS"] = "0"
    try:
        tvm.get_global_func("runtime.config_threadpool")(_FAST_CORES, threads)
    finally:
        if tied is None:
            del os.environ["TVM_BIND_THREADS"]
        else:
            os.environ["TVM_BIND_THREADS"] = tied
    _POOL.threads = threads


def _line(error: BaseException) -> str:
    """Return the last line of a message of TVM, which has a stack trace before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
