"""OpenVINO on the CPU: its own files (IR), ONNX and TFLite, run by name."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnx_ir as ir

from narrowgauge.core.arithmetic import dequantize, quantize
from narrowgauge.core.encoding import Encoding, float32
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.data.inputs import InputSpec, input_specs, shape_fits, shape_text
from narrowgauge.errors import MissingDependencyError, RuntimeFailure
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.engine import available_cores
from narrowgauge.importers.onnx import read
from narrowgauge.runtimes.inner import Inner, value_of
from narrowgauge.runtimes.program import Array, Program, Run

if TYPE_CHECKING:
    import openvino

Result = TypeVar("Result")

_PLACE = re.compile(r"Exception from \S+:\d+: ?|failed at \S+:\d+: ?")
_TFLITE = {".tflite", ".lite"}
_REAL = "_dequantized"
_LAYOUT = {"Transpose", "Reshape", "Convert", "Squeeze", "Unsqueeze"}
_INTEGERS = {"i8": IntegerType(bits=8, signed=True), "u8": IntegerType(bits=8, signed=False),
             "i16": IntegerType(bits=16, signed=True), "u16": IntegerType(bits=16, signed=False)}  # fmt: skip


def open_program(path: Path, *, threads: int | None = None) -> Program:
    """Open a network file; see `Program`.

    Names are the file's own. Nothing is cached on the disk; what the file computes in float is computed in float32.

    Args:
        path: `.xml` (with its `.bin` beside it), `.onnx` or `.tflite`.
        threads: of one run; None for the cores that this process may use.

    Raises:
        RuntimeFailure: OpenVINO refuses the file or, later, a feed.
        ModelError: an ONNX file is no ONNX network.
        MissingDependencyError: OpenVINO is not installed.
    """
    core, model, declared = _opened(path)
    ends = _ends(model) if path.suffix.lower() in _TFLITE else _Ends(inputs={}, outputs={})
    inputs = _inputs(model, declared, ends)
    if declared is None:
        outputs = tuple(_name(port) for port in model.outputs)
    else:
        outputs = tuple(str(value.name) for value in declared.graph.outputs)
    compiled = _compiled(core, model, threads, path)
    positions = _positions(compiled, [spec.name for spec in inputs], path)
    return Program(inputs=inputs, outputs=outputs, run=_runner(compiled, inputs, positions, outputs, ends))


def open_inner(path: Path, *, threads: int | None = None) -> Inner:
    """Open a network file so that a run gives its levels; see `Inner`.

    They become outputs before OpenVINO optimizes the network. That changes what it computes around an addition: a
    convolution before it is then rounded, which OpenVINO does not do otherwise (measured on 2026.4).

    Args:
        path: `.onnx` in Q/DQ form, or the IR of such a network (`.xml`), whose levels are taken for unsigned ones.
        threads: of one run; None for the cores that this process may use.

    Raises:
        RuntimeFailure: OpenVINO refuses the file or, later, a feed; or nothing in it is called as levels are.
        ModelError: an ONNX file is no ONNX network.
        MissingDependencyError: OpenVINO is not installed.
    """
    core, model, declared = _opened(path)
    inputs = _inputs(model, declared, _Ends(inputs={}, outputs={}))
    found = dict(_levels(model))
    if not found:
        raise RuntimeFailure(f"{path}: OpenVINO does not show which of its numbers are levels")
    ports = [port for port, _ in found.values()]
    before = len(model.outputs)
    _told(lambda: model.add_outputs(ports), f"{path}: OpenVINO could not show the network's inner values")
    compiled = _compiled(core, model, threads, path)
    positions = _positions(compiled, [spec.name for spec in inputs], path)
    names = [*(f"output {number}" for number in range(before)), *found]
    real = {before + number: encoding for number, (_, encoding) in enumerate(found.values()) if encoding is not None}
    run = _runner(compiled, inputs, positions, names, _Ends(inputs={}, outputs={}))

    def levels(feed: Mapping[str, Array]) -> dict[str, Array]:
        given = run(feed)
        return {name: _leveled(given[name], real.get(before + number)) for number, name in enumerate(found)}

    note = "OpenVINO rounds a convolution before an addition only where its result is looked at, as here"
    return Inner(inputs=inputs, names=tuple(found), run=levels, notes=(note,) if _adds(model) else ())


def _levels(model: openvino.Model) -> Iterator[tuple[str, tuple[Any, Encoding | None]]]:
    """List what holds a value's levels: name, port, and the encoding where the port holds the real numbers of them."""
    for node in model.get_ordered_ops():
        for port in node.outputs():
            for name in sorted(port.get_names()):
                if value_of(name) and node.get_type_name() != "Constant":
                    yield value_of(name), (port, None)
                elif name.endswith(_REAL) and node.get_type_name() == "FakeQuantize":
                    yield name.removesuffix(_REAL), (port, _encoding(node, _INTEGERS["u8"], real=(3, 4)))


def _adds(model: openvino.Model) -> bool:
    """Whether two computed values are added somewhere, not only a bias to one."""
    computed: set[str] = set()
    for node in model.get_ordered_ops():
        sources = [value.get_node().get_name() in computed for value in node.input_values()]
        if node.get_type_name() == "Parameter" or any(sources):
            computed.add(node.get_name())
        if node.get_type_name() == "Add" and all(sources):
            return True
    return False


def _leveled(array: Array, encoding: Encoding | None) -> Array:
    return array if encoding is None else quantize(array, encoding)


def _opened(path: Path) -> tuple[openvino.Core, openvino.Model, ir.Model | None]:
    """Read a file; of an ONNX file also what it declares itself."""
    try:
        core = the_core()
    except ImportError as error:
        raise MissingDependencyError(
            f'{path}: OpenVINO would run it, but it cannot be imported ({error}): pip install "narrowgauge[openvino]"'
        ) from None
    declared = read(path) if path.suffix.lower() == ".onnx" else None
    wide = next((node for node in declared.graph if _computes_wide(node)), None) if declared is not None else None
    if wide is not None:
        raise RuntimeFailure(
            f"{path}: OpenVINO computes int64 in int32 on the CPU, and this is a network in integers with numbers of "
            f"64 bits ({wide.op_type} {wide.name}): its results would be wrong; run it in ONNX Runtime"
        )
    if not path.is_file():
        raise RuntimeFailure(f"{path}: expected a network file, there is none")
    return core, _told(lambda: core.read_model(path), f"{path}: OpenVINO could not read the network"), declared


def _computes_wide(node: ir.Node) -> bool:
    """Whether a node is the end of a rescale in 64 bits (https://github.com/openvinotoolkit/openvino/issues/35823)."""
    return is_operator(node, "BitShift") and node.outputs[0].dtype in (ir.DataType.UINT64, ir.DataType.INT64)


def _inputs(model: openvino.Model, declared: ir.Model | None, ends: _Ends) -> tuple[InputSpec, ...]:
    if declared is not None:
        return input_specs(declared)
    return tuple(
        InputSpec(name=_name(port), shape=_shape(port), dtype=_dtype(port, encoded=number in ends.inputs))
        for number, port in enumerate(model.inputs)
    )


def _compiled(core: openvino.Core, model: openvino.Model, threads: int | None, path: Path) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads or available_cores(),
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # it would round the inputs of a float layer whose weights are integers
    }
    return _told(lambda: core.compile_model(model, "CPU", settings), f"{path}: OpenVINO could not load the network")


def the_core() -> openvino.Core:
    """Return OpenVINO's core, one for the process, never closed.

    OpenVINO 2026.4's CPU plugin gives the thread a stack for its signals, and back the one before when it is closed. Of
    two cores that are closed in the order in which they were opened, the second gives back the first one's, which is
    gone: the next signal, such as Ctrl-C, would end the process without any cleaning up.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    import openvino

    return _made_once(openvino.Core)


@functools.cache
def _made_once(make: Callable[[], openvino.Core]) -> openvino.Core:
    return make()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ends:
    """Encodings of inputs and outputs that a quantized TFLite network has in integers, by position."""

    inputs: Mapping[int, Encoding]
    outputs: Mapping[int, Encoding]


def _ends(model: openvino.Model) -> _Ends:
    """Find the encodings of a network's ends.

    OpenVINO writes them as a FakeQuantize between the integers and the real numbers behind the input or before the
    output: its bounds are the least and greatest integer on one side, what these stand for on the other.
    """
    inputs, outputs = {}, {}
    for number, port in enumerate(model.inputs):
        kind = _INTEGERS.get(port.get_element_type().get_type_name())
        found = _follow(port.get_node()) if kind else None
        if kind and found is not None:
            inputs[number] = _encoding(found, kind, real=(3, 4))
    for number, port in enumerate(model.outputs):
        kind = _INTEGERS.get(port.get_element_type().get_type_name())
        found = _behind(port.get_node()) if kind else None
        if kind and found is not None:
            outputs[number] = _encoding(found, kind, real=(1, 2))
    return _Ends(inputs=inputs, outputs=outputs)


def _follow(node: openvino.Node) -> openvino.Node | None:
    """Find the FakeQuantize that reads a node, through what only turns and converts."""
    readers = [port.get_node() for port in node.output(0).get_target_inputs()]
    while len(readers) == 1 and readers[0].get_type_name() in _LAYOUT:
        readers = [port.get_node() for port in readers[0].output(0).get_target_inputs()]
    fakes = [reader for reader in readers if reader.get_type_name() == "FakeQuantize"]
    return fakes[0] if len(fakes) == len(readers) == 1 else None


def _behind(node: openvino.Node) -> openvino.Node | None:
    """Find the FakeQuantize that writes what reaches a result."""
    while node.get_type_name() in _LAYOUT | {"Result"}:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "FakeQuantize" else None


def _encoding(fake: openvino.Node, kind: IntegerType, *, real: tuple[int, int]) -> Encoding:
    """Read an encoding from a FakeQuantize between integers and real numbers; `real`: inputs with the real bounds."""
    low, high = (np.float64(fake.input_value(number).get_node().data.reshape(-1)[0]) for number in real)
    scale = (high - low) / (kind.levels - 1)
    zero_point = np.clip(np.rint(kind.minimum - low / scale), kind.minimum, kind.maximum)
    return Encoding(type=kind, granularity=PerTensor(), scale=float32(scale), zero_point=zero_point.astype(np.int32))


def _name(port: Any) -> str:
    """Name of an input or output: the tensor's, else that of the node, which every node has."""
    names = sorted(port.get_names())
    friendly = port.get_node().get_friendly_name()
    return friendly if friendly in names or not names else str(names[0])


def _shape(port: Any) -> tuple[int | None, ...]:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise RuntimeFailure(f"input {_name(port)!r}: expected a known number of axes; declare a shape when converting")
    return tuple(None if size.is_dynamic else size.get_length() for size in shape)


def _dtype(port: Any, *, encoded: bool) -> np.dtype[Any]:
    return np.dtype(np.float32) if encoded else np.dtype(port.get_element_type().to_dtype())


def _positions(compiled: Any, names: Sequence[str], path: Path) -> dict[str, int]:
    """Number each input by name; by order where OpenVINO calls them something else."""
    known = {name: number for number, port in enumerate(compiled.inputs) for name in port.get_names()}
    known |= {_name(port): number for number, port in enumerate(compiled.inputs)}
    if all(name in known for name in names):
        return {name: known[name] for name in names}
    if len(names) != len(compiled.inputs):
        raise RuntimeFailure(
            f"{path}: expected the inputs {', '.join(names)}, OpenVINO has {len(compiled.inputs)} inputs: "
            f"{', '.join(map(_name, compiled.inputs))}"
        )
    return {name: number for number, name in enumerate(names)}


def _runner(
    compiled: Any, inputs: Sequence[InputSpec], positions: Mapping[str, int], outputs: Sequence[str], ends: _Ends
) -> Run:
    request = compiled.create_infer_request()

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        for spec in inputs:  # OpenVINO itself takes arrays of other shapes and computes something
            got = feed.get(spec.name)
            if got is None or not shape_fits(got.shape, spec.shape):
                came = "nothing" if got is None else shape_text(got.shape)
                raise RuntimeFailure(f"OpenVINO could not run the network: expected the input {spec}, got {came}")
        given = {number: _given(feed[name], ends.inputs.get(number)) for name, number in positions.items()}
        _told(lambda: request.infer(given), "OpenVINO could not run the network")
        found = [np.array(request.get_output_tensor(number).data) for number in range(len(outputs))]
        return {
            name: dequantize(array, ends.outputs[number]) if number in ends.outputs else array
            for number, (name, array) in enumerate(zip(outputs, found, strict=True))
        }

    return run


def _given(array: Array, encoding: Encoding | None) -> Array:
    if encoding is None:
        return np.asarray(array, order="C")
    return quantize(array, encoding, rounding="half_away")  # as TFLite rounds its inputs


def _told(act: Callable[[], Result], what: str) -> Result:
    """Do something that OpenVINO may refuse, with bare RuntimeErrors of several lines."""
    try:
        return act()
    except Exception as error:
        raise RuntimeFailure(f"{what}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Put OpenVINO's message on one line, without the places in its sources."""
    line = " ".join(str(error).split())
    return _PLACE.sub("", line).strip() or line
