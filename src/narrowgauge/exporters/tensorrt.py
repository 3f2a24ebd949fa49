"""TensorRT's files: Q/DQ network, calibration cache and dynamic ranges.

- `model.onnx` is explicit quantization: it says where to round, and is what NVIDIA recommends. Its rules are checked
  here, one by one (NVIDIA TensorRT documentation, "Working with Quantized Types", "Explicit Quantization").
- `calibration.cache` is for implicit quantization (TensorRT 10 and older), with the float network. Its first line names
  the version and the calibrator; then each tensor's scale, the bytes of a float32 in hexadecimal digits, the highest
  first (NVIDIA's sampleINT8, "Calibration file": `prob: 3c010a14`).
- `dynamic_ranges.json` is the same for `ITensor.set_dynamic_range(-amax, amax)`: tensor -> amax = 127 * scale, real
  units.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding, float32
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.exporters.encodings import (
    activation_values,
    check_read_back,
    counted,
    in_type,
    read_text,
    static_encodings,
    write_text,
)
from narrowgauge.exporters.formats import Export, Exported
from narrowgauge.exporters.onnx import write_onnx
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import WEIGHT_ROLES, bias_input
from narrowgauge.graph.shapes import rank
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq

MODEL, CACHE, RANGES = "model.onnx", "calibration.cache", "dynamic_ranges.json"

CACHE_HEADER = "TRT-100300-EntropyCalibration2"
"""TensorRT 10.3 and the calibrator that it recommends for convolutions; it takes a cache of its own version only."""

RANGE_TOLERANCE = 2.0**-22
"""Of a scale that comes from 127 times itself: a product and a quotient, each rounded to float32."""

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TYPE, _ZERO = IntegerType(bits=8, signed=True), np.zeros((), dtype=np.int32)
_INT8, _INT4 = ir.DataType.INT8, ir.DataType.INT4
_HEADER = re.compile(r"TRT-\w+-(EntropyCalibration2?|MinMaxCalibration)")
_LINE = re.compile(r"(.+): ([0-9a-fA-F]{8})")


def write(export: Export, folder: Path) -> Exported:
    """Write the Q/DQ network, and for activations of int8 the calibration cache and the dynamic ranges.

    Raises:
        TargetError: the plan breaks a rule of explicit quantization, or is dynamic.
        OutputError: a file cannot be written or reads back as something else.
    """
    network, title = export.network, "a calibration cache of TensorRT"
    encodings = activation_values(network, static_encodings(network, export.plan, title=title))
    encodings = {name: in_type(network, name, one, narrow=False, title=title) for name, one in encodings.items()}
    model = lower_to_qdq(network, export.plan, QdqStyle(bias_bits=0))
    broken = check_explicit_rules(model)
    if broken:
        raise TargetError(f"TensorRT would refuse the Q/DQ network: {'; '.join(broken)}")
    write_onnx(model, folder / MODEL)
    notes = missed_fusions(model)
    if encodings:
        write_cache(encodings, folder / CACHE)
        check_read_back(folder / CACHE, encodings, read_cache)
        write_ranges(encodings, folder / RANGES)
        check_read_back(folder / RANGES, encodings, read_ranges, tolerance=RANGE_TOLERANCE)
        notes += [
            "build model.onnx with trtexec --onnx=model.onnx --int8. calibration.cache and dynamic_ranges.json are for "
            "TensorRT 10 and older, with float.onnx: trtexec --onnx=float.onnx --int8 --calib=calibration.cache. Its "
            f"first line is that of TensorRT 10.3 ({CACHE_HEADER}): put your version there, another is refused"
        ]
    return Exported(runnable=folder / MODEL, notes=tuple(notes))


# --- explicit quantization ------------------------------------------------------------------------------------------


def check_explicit_rules(model: ir.Model) -> list[str]:
    """Check the rules that TensorRT's explicit quantization has for Q/DQ networks.

    1. Scales are constants, positive and finite.
    2. Zero points are absent or 0.
    3. Levels are int8; int4 is for constants alone.
    4. An activation has one scale; a constant one, one per output channel of each layer that reads it, or of int4 one
       per block.
    5. A bias stays float.
    6. A layer with int8 weights reads int8 data.
    7. The levels that a QuantizeLinear writes are only dequantized.

    Sources: NVIDIA TensorRT documentation, "Explicit Quantization" (1 to 4: IQuantizeLayer, IDequantizeLayer; 7);
    ONNX-TensorRT, operators.md, QuantizeLinear and DequantizeLinear (1 to 4); "Q/DQ Layer-Placement Recommendations"
    (5, 6).

    Returns:
        What is broken, one sentence each with the node; empty if nothing is.
    """
    said: list[str] = []
    for node in model.graph.all_nodes():
        if is_operator(node, "QuantizeLinear", "DequantizeLinear"):
            said += [f"{node.name!r}: {what}" for what in _broken_by_pair(node)]
        if is_operator(node, "DynamicQuantizeLinear"):
            said.append(f"{node.name!r}: scales that are computed at run time")
        if is_operator(node, *_LAYERS):
            said += [f"{node.name!r}: {what}" for what in _broken_by_layer(node)]
    return said


def _broken_by_pair(node: ir.Node) -> list[str]:
    said = []
    scale = constant_array(node.inputs[1])
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    if scale is None or not (np.isfinite(scale).all() and (scale > 0).all()):
        said.append("expected positive finite constants as scales (1)")
    zeros = constant_array(zero_point)
    if zero_point is not None and (zeros is None or zeros.astype(np.int64).any()):
        said.append("expected zero points of 0 (2)")
    levels = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    constant = constant_array(levels) is not None
    if levels is None or levels.dtype not in ((_INT8, _INT4) if constant else (_INT8,)):
        said.append(f"expected levels of int8, or of int4 for constants, got {levels.dtype if levels else None} (3)")
    weights = constant and all(
        is_operator(reader, *_LAYERS) and number == 1 for reader, number in node.outputs[0].uses()
    )
    if not weights and scale is not None and scale.size > 1:
        said.append(f"expected one scale for what is no layer's weights, got {scale.size} (4)")
    readers = [reader for reader, _ in node.outputs[0].uses()] if node.op_type == "QuantizeLinear" else []
    if not all(is_operator(reader, "DequantizeLinear") for reader in readers):
        said.append("expected a DequantizeLinear behind it (7)")
    return said


def _broken_by_layer(node: ir.Node) -> list[str]:
    said = []
    number = bias_input(node)
    bias = node.inputs[number] if number is not None and number < len(node.inputs) else None
    if _dequantized(bias) is not None:
        said.append("expected a float bias (5)")
    weights = _dequantized(node.inputs[1])
    if weights is None or constant_array(weights.inputs[0]) is None:
        return said
    said += _broken_by_weights(node, weights)
    if weights.inputs[0] is not None and weights.inputs[0].dtype == _INT8 and _dequantized(node.inputs[0]) is None:
        said.append("expected int8 data beside int8 weights (6)")
    return said


def _broken_by_weights(node: ir.Node, weights: ir.Node) -> list[str]:
    scale, levels = constant_array(weights.inputs[1]), weights.inputs[0]
    if scale is None or (scale.size <= 1 and scale.ndim <= 1) or levels is None:
        return []
    if "block_size" in weights.attributes:
        return [] if levels.dtype == _INT4 else ["expected blocks for weights of int4 only (4)"]
    axes = rank(levels) or 0
    own = WEIGHT_ROLES[node.op_type].output_axis(node, axes)
    axis = weights.attributes.get_int("axis", 1) % max(axes, 1)
    return [] if axis == own else [f"expected a scale per output channel, axis {own}, got axis {axis} (4)"]


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that writes a value, None if another does."""
    producer = value.producer() if value is not None else None
    return producer if is_operator(producer, "DequantizeLinear") else None


def missed_fusions(model: ir.Model) -> list[str]:
    """Name additions that TensorRT computes apart from the layer before them; results are the same, speed is not.

    It fuses an addition into a layer of integers where the other summand comes from a DequantizeLinear ("Q/DQ
    Layer-Placement Recommendations": quantize the residual input of an elementwise addition).
    """
    apart = [str(node.name) for node in model.graph if is_operator(node, "Add") and _adds_in_float(node)]
    if not apart:
        return []
    return [
        "TensorRT fuses an addition into the layer before it only where the other summand is rounded, which it is not "
        f"for {counted(apart, 'nodes')}: these are computed apart, in float"
    ]


def _adds_in_float(node: ir.Node) -> bool:
    """Whether a layer of integers is added to a value that is not rounded."""
    layers = [value.producer() for value in node.inputs if value is not None]
    after_layer = any(is_operator(one, *_LAYERS) and one is not None and _dequantized(one.inputs[1]) for one in layers)
    constant = any(constant_array(value) is not None for value in node.inputs)
    return after_layer and not constant and not any(_dequantized(value) for value in node.inputs)


# --- implicit quantization ------------------------------------------------------------------------------------------


def write_cache(encodings: Mapping[str, Encoding], path: Path) -> None:
    """Write a calibration cache.

    Args:
        encodings: of activations, int8 with zero point 0.
        path: the file.

    Raises:
        TargetError: an encoding is another one, or a name cannot stand in a line.
    """
    lines = [CACHE_HEADER]
    for name, encoding in encodings.items():
        _check_symmetric(name, encoding)
        if "\n" in name or "\r" in name or not name.strip():
            raise TargetError(f"a calibration cache has one line a tensor, {name!r} cannot stand in one: rename it")
        lines.append(f"{name}: {struct.pack('>f', encoding.scale).hex()}")
    write_text(path, "\n".join(lines) + "\n")


def read_cache(path: Path) -> dict[str, Encoding]:
    """Read a calibration cache of TensorRT.

    Returns:
        Tensor -> encoding: int8, one scale, zero point 0.

    Raises:
        PlanError: the file cannot be read or is none; the message has the line.
    """
    lines = read_text(path, "a calibration cache of TensorRT").removesuffix("\n").split("\n")
    if _HEADER.fullmatch(lines[0]) is None:
        raise PlanError(f"{path}: expected a first line like {CACHE_HEADER}, got {lines[0][:80]!r}")
    found: dict[str, Encoding] = {}
    for number, line in enumerate(lines[1:], start=2):
        match = _LINE.fullmatch(line)
        if match is None:
            raise PlanError(f"{path}, line {number}: expected 'tensor: 8 hexadecimal digits', got {line[:80]!r}")
        name, digits = match.groups()
        _add(found, name, struct.unpack(">f", bytes.fromhex(digits))[0], f"{path}, line {number}")
    return found


def write_ranges(encodings: Mapping[str, Encoding], path: Path) -> None:
    """Write dynamic ranges.

    Raises:
        TargetError: an encoding is not int8 with zero point 0.
    """
    for name, encoding in encodings.items():
        _check_symmetric(name, encoding)
    ranges = {name: float(encoding.scale) * encoding.type.maximum for name, encoding in encodings.items()}
    write_text(path, json.dumps(ranges, indent=1) + "\n")


def read_ranges(path: Path) -> dict[str, Encoding]:
    """Read dynamic ranges as TensorRT takes them: the scale is amax / 127 in float32.

    Raises:
        PlanError: the file cannot be read or is none.
    """
    try:
        record = json.loads(read_text(path, "dynamic ranges in JSON"))
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path}: expected dynamic ranges in JSON, got {error}") from None
    if not isinstance(record, dict):
        raise PlanError(f"{path}: expected an object of tensors and ranges, got {type(record).__name__}")
    found: dict[str, Encoding] = {}
    for name, amax in record.items():
        if not isinstance(amax, int | float) or isinstance(amax, bool):
            raise PlanError(f"{path}: range of {name!r}: expected a number, got {str(amax)[:40]}")
        _add(found, name, float(float32(amax) / np.float32(127)), str(path))
    return found


def _check_symmetric(name: str, encoding: Encoding) -> None:
    if encoding.type != _TYPE or encoding.zero_point.any():
        raise TargetError(
            f"TensorRT's activations are int8 with zero point 0, {name!r} is {encoding.type.name} with zero point "
            f"{encoding.zero_point}: quantize it so"
        )


def _add(found: dict[str, Encoding], name: str, scale: float, where: str) -> None:
    if name in found:
        raise PlanError(f"{where}: {name!r} stands twice")
    try:
        found[name] = Encoding(
            type=IntegerType(bits=8, signed=True),
            granularity=PerTensor(),
            scale=float32(scale),
            zero_point=np.zeros((), np.int32),
        )
    except PlanError as error:
        raise PlanError(f"{where}: scale of {name!r}: {error}") from None
