"""Qualcomm's encodings beside the float network, which the converters of SNPE and QNN take as overrides.

Three versions of the same JSON, as AIMET (aimet-onnx 2.42) writes and reads them:

- 0.6.1: two objects, of activations and of parameters; each tensor has a list with one entry per channel.
- 1.0.0: two lists of entries that carry their name; scales and offsets are lists.
- 2.0.0: one list; names and signs as in ONNX's QuantizeLinear, real = y_scale * (level - y_zero_point).

In the first two, levels count from 0 whatever the type, and the offset is added: real = scale * (level + offset), so it
is minus the zero point (Qualcomm SNPE Reference Guide, "Quantized vs Non-Quantized Models"; AIMET, encoding
specification). They do not say the axis of scales per channel: it is that of the operator's output channels.

Like AIMET, only 2.0.0 lists biases; with the others the converter makes them, in the width that it is told.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding, float32
from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor, scale_shape
from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.exporters.encodings import (
    channel_axis,
    check_axis,
    check_read_back,
    counted,
    float_readers,
    in_type,
    number_readers,
    read_text,
    static_encodings,
    write_text,
)
from narrowgauge.exporters.formats import Export, Exported
from narrowgauge.exporters.onnx import write_onnx
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import LAYOUT_OPERATORS, bias_input
from narrowgauge.graph.shapes import static_shape

MODEL, ENCODINGS = "model.onnx", "model.encodings"
VERSIONS = ("0.6.1", "1.0.0", "2.0.0")

Encodings = Mapping[str, Encoding]
Numbers = npt.NDArray[np.float64]


def write_0_6_1(export: Export, folder: Path) -> Exported:
    """Write the float network and encodings of version 0.6.1."""
    return _write(export, folder, "0.6.1", _record_0_6_1)


def write_1_0_0(export: Export, folder: Path) -> Exported:
    """Write the float network and encodings of version 1.0.0."""
    return _write(export, folder, "1.0.0", _record_1_0_0)


def write_2_0_0(export: Export, folder: Path) -> Exported:
    """Write the float network and encodings of version 2.0.0."""
    return _write(export, folder, "2.0.0", _record_2_0_0)


def _write(
    export: Export, folder: Path, version: str, record: Callable[[Export, Encodings], dict[str, Any]]
) -> Exported:
    """Write network and encodings, read the encodings back and compare them.

    Raises:
        TargetError: this version cannot say something of the plan.
        OutputError: a file cannot be written or reads back as something else.
    """
    title, network = f"encodings {version}", export.network
    encodings = {
        name: in_type(network, name, encoding, narrow=False, title=title)
        for name, encoding in static_encodings(network, export.plan, title=title).items()
    }
    encodings |= _moved_back(network, encodings)
    for name, encoding in encodings.items():
        if version != "2.0.0":
            instead = "take encodings-2.0.0, or a scale a tensor"
            check_axis(network, name, encoding.granularity, title=title, instead=instead)
        _check_blocks(network, name, encoding, title=title)
    notes = _notes(export, encodings, version)
    if version == "2.0.0":
        biases, mixed = _biases(export)
        encodings |= biases
        notes += [f"{counted(mixed)}: a bias of layers with several scales, left to the converter"] if mixed else []
    write_onnx(network, folder / MODEL)
    path = folder / ENCODINGS
    write_text(path, json.dumps(record(export, encodings), indent=1) + "\n")
    check_read_back(path, encodings, lambda written: read_encodings(written, network))
    return Exported(notes=tuple(notes))


# --- what is written ------------------------------------------------------------------------------------------------


def _record_0_6_1(export: Export, encodings: Encodings) -> dict[str, Any]:
    activations, parameters = _parted(export.network, encodings)
    return {
        "version": "0.6.1",
        "activation_encodings": {name: _entries_0_6_1(one) for name, one in activations.items()},
        "param_encodings": {name: _entries_0_6_1(one) for name, one in parameters.items()},
        "quantizer_args": _arguments(activations, parameters) | {
            "is_symmetric": str(_all_symmetric(parameters)), "per_channel_quantization": str(_per_channel(parameters)),
        },
    }  # fmt: skip


def _entries_0_6_1(encoding: Encoding) -> list[dict[str, Any]]:
    bits, offsets = encoding.type.bits, _offsets(encoding).ravel()
    return [
        {
            "bitwidth": bits,
            "dtype": "int",
            "is_symmetric": str(_symmetric(encoding)),
            "max": float(scale) * (int(offset) + (1 << bits) - 1),
            "min": float(scale) * int(offset),
            "offset": int(offset),
            "scale": float(scale),
        }
        for scale, offset in zip(encoding.scale.ravel(), offsets, strict=True)
    ]


def _record_1_0_0(export: Export, encodings: Encodings) -> dict[str, Any]:
    activations, parameters = _parted(export.network, encodings)
    return {
        "version": "1.0.0",
        "activation_encodings": [_entry_1_0_0(name, one) for name, one in activations.items()],
        "param_encodings": [_entry_1_0_0(name, one) for name, one in parameters.items()],
        "excluded_layers": _float_layers(export, encodings),
        "quantizer_args": _arguments(activations, parameters) | {
            "is_symmetric": _all_symmetric(parameters), "per_channel_quantization": _per_channel(parameters),
        },
    }  # fmt: skip


def _entry_1_0_0(name: str, encoding: Encoding) -> dict[str, Any]:
    return {
        "name": name,
        "enc_type": "PER_TENSOR" if isinstance(encoding.granularity, PerTensor) else "PER_CHANNEL",
        "dtype": "INT",
        "bw": encoding.type.bits,
        "is_sym": _symmetric(encoding),
        "scale": encoding.scale.astype(np.float64).ravel().tolist(),
        "offset": _offsets(encoding).ravel().tolist(),
    }


def _record_2_0_0(export: Export, encodings: Encodings) -> dict[str, Any]:
    return {"version": "2.0.0", "encodings": [_entry_2_0_0(name, one) for name, one in encodings.items()]}


def _entry_2_0_0(name: str, encoding: Encoding) -> dict[str, Any]:
    entry = {
        "name": name,
        "output_dtype": encoding.type.name,
        "y_scale": encoding.scale.astype(np.float64).tolist(),
    }
    if encoding.zero_point.any():
        entry["y_zero_point"] = encoding.zero_point.tolist()
    if not isinstance(encoding.granularity, PerTensor):
        entry["axis"] = encoding.granularity.axis
    if isinstance(encoding.granularity, PerBlock):
        entry["block_size"] = encoding.granularity.size
    return entry


def _offsets(encoding: Encoding) -> npt.NDArray[np.int64]:
    """Minus the zero points, of levels that count from 0."""
    return encoding.type.minimum - encoding.zero_point.astype(np.int64)


def _symmetric(encoding: Encoding) -> bool:
    """Whether readers may take the levels for signed ones whose 0 is real 0: only then they do as AIMET."""
    return encoding.type.signed and not encoding.zero_point.any()


def _parted(network: ir.Model, encodings: Encodings) -> tuple[dict[str, Encoding], dict[str, Encoding]]:
    """Part encodings into those of activations and of constants."""
    constants = network.graph.initializers
    activations = {name: encoding for name, encoding in encodings.items() if name not in constants}
    return activations, {name: encoding for name, encoding in encodings.items() if name in constants}


def _arguments(activations: Encodings, parameters: Encodings) -> dict[str, Any]:
    """What converters take for tensors that the file does not name: the commonest widths."""
    return {
        "activation_bitwidth": _commonest_bits(activations),
        "dtype": "int",
        "param_bitwidth": _commonest_bits(parameters),
        "quant_scheme": "min_max",
    }


def _commonest_bits(encodings: Encodings) -> int:
    counts = Counter(encoding.type.bits for encoding in encodings.values())
    return counts.most_common(1)[0][0] if counts else 8


def _all_symmetric(parameters: Encodings) -> bool:
    return all(_symmetric(encoding) for encoding in parameters.values())


def _per_channel(parameters: Encodings) -> bool:
    return any(isinstance(encoding.granularity, PerAxis) for encoding in parameters.values())


def _moved_back(network: ir.Model, encodings: Encodings) -> dict[str, Encoding]:
    """Encodings of values that are only moved before they are rounded: rounding them first gives the same.

    The plan rounds behind the last move, where the first integer operator reads. The converters, and AIMET, want the
    encoding where the values come from, and one on every value between.
    """
    found: dict[str, Encoding] = {}
    for node in reversed(network.graph):
        source = node.inputs[0] if node.inputs else None
        if not is_operator(node, *LAYOUT_OPERATORS) or source is None or len(node.outputs) != 1:
            continue
        name, moved = str(source.name), str(node.outputs[0].name)
        encoding = found.get(moved, encodings.get(moved))
        alone = len(number_readers(source)) == 1 and not source.is_graph_output() and not source.is_initializer()
        if encoding is not None and alone and name not in encodings:
            found[name] = encoding
    return found


def _float_layers(export: Export, encodings: Encodings) -> list[str]:
    """Name the nodes that compute in float: those of the plan without the ones that move levels now."""
    moves = {
        str(node.name)
        for node in export.network.graph
        if is_operator(node, *LAYOUT_OPERATORS) and all(value.name in encodings for value in node.outputs)
    }
    return [node.name for node in export.plan.float_nodes if node.name not in moves]


def _check_blocks(network: ir.Model, name: str, encoding: Encoding, *, title: str) -> None:
    """Refuse blocks that AIMET and the converters do not know: short ones, and of kernels wider than one position.

    Raises:
        TargetError: the weights have such blocks.
    """
    if not isinstance(encoding.granularity, PerBlock):
        return
    axis, size = encoding.granularity.axis, encoding.granularity.size
    shape = static_shape(network.graph.initializers[name]) or ()
    if shape[axis] % size or any(length != 1 for length in shape[2:]):
        raise TargetError(
            f"{title} has blocks of matrices and 1x1 kernels that fill the axis, but {name!r} of shape {shape} has "
            f"blocks of {size} along axis {axis}: take another block size or one scale a channel"
        )


def _biases(export: Export) -> tuple[dict[str, Encoding], list[str]]:
    """Take the encodings of integer biases from the simulation; name those that two layers would give two."""
    found: dict[str, Encoding] = {}
    mixed: dict[str, None] = {}
    layers = {str(node.name): node for node in export.network.graph}
    for node in export.simulated.graph:
        number, layer = bias_input(node), layers.get(str(node.name))
        rounded = node.inputs[number] if number is not None and number < len(node.inputs) else None
        dequantize = rounded.producer() if rounded is not None else None
        if number is None or layer is None or dequantize is None or not is_operator(dequantize, "DequantizeLinear"):
            continue
        bias, scale = layer.inputs[number], constant_array(dequantize.inputs[1])
        if bias is None or scale is None or not scale.size:
            continue
        encoding = Encoding(
            type=IntegerType(bits=32, signed=True),
            granularity=PerAxis(0) if scale.ndim else PerTensor(),
            scale=scale,
            zero_point=np.zeros(scale.shape, dtype=np.int32),
        )
        if not found.setdefault(str(bias.name), encoding).same_as(encoding):
            mixed[str(bias.name)] = None
    return {name: encoding for name, encoding in found.items() if name not in mixed}, list(mixed)


def _notes(export: Export, encodings: Encodings, version: str) -> list[str]:
    """What a person should know before calling a converter."""
    floats = _float_layers(export, encodings)
    bias = " --bias_bitwidth 32" if version != "2.0.0" else ""
    fallback = " --float_fallback" if floats or export.plan.float_outputs else ""
    convert = "--input_network model.onnx --quantization_overrides model.encodings"
    notes = [
        f"model.onnx is the float network. QNN: qnn-onnx-converter {convert}{bias}{fallback}; SNPE: snpe-onnx-to-dlc "
        f"{convert}, then snpe-dlc-quantize --override_params{bias}. What the file does not name stays float, or is "
        "chosen by the converter where it is given an --input_list"
    ]
    turned = [
        name
        for name, encoding in encodings.items()
        if isinstance(encoding.granularity, PerAxis) and encoding.granularity.axis != 0
    ]
    if turned and version != "2.0.0":
        notes.append(
            f"encodings {version} cannot say that the scales of {counted(turned)} are not along axis 0: AIMET takes "
            "the axis of the output channels, as the plan does; take encodings-2.0.0 for a reader that does not"
        )
    partly = float_readers(export.network, floats, encodings)
    if partly:
        notes.append(
            f"{counted(partly)}: rounded for integer nodes only in the simulation, for every reader where the "
            "encodings are applied"
        )
    return notes


# --- what is read ---------------------------------------------------------------------------------------------------


def read_encodings(path: Path, network: ir.Model) -> dict[str, Encoding]:
    """Read a file of encodings, of any of the three versions.

    Entries of floating-point types are left out.

    Args:
        path: the file.
        network: the float network that it belongs to: it tells the axis of scales per channel, and the shape of blocks.

    Returns:
        Encodings by tensor. In versions 0.6.1 and 1.0.0 symmetric ones are of signed types, all others of unsigned.

    Raises:
        PlanError: the file cannot be read or is no such file; the message names the entry.
    """
    text = read_text(path, "encodings in JSON")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path}: expected encodings in JSON, got {error}") from None
    version = record.get("version") if isinstance(record, dict) else None
    if version not in VERSIONS:
        raise PlanError(
            f"{path}: expected encodings with a 'version', one of {', '.join(VERSIONS)}, got {str(version)[:40]!r}"
        )
    found: dict[str, Encoding] = {}
    for name, entry in _named_entries(record, version, path):
        try:
            parts = _READERS[version](name, entry, network)
            encoding = None if parts is None else _encoding(parts, name, network)
        except PlanError as error:
            raise PlanError(f"{path}: encoding of {name!r}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            what = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise PlanError(f"{path}: encoding of {name!r}: expected an entry of version {version}, {what}") from None
        if name in found:
            raise PlanError(f"{path}: the encoding of {name!r} stands twice")
        if encoding is not None:
            found[name] = encoding
    return found


def _named_entries(record: Mapping[str, Any], version: str, path: Path) -> Iterator[tuple[str, Any]]:
    """List (tensor, entry) of a file.

    Raises:
        PlanError: a part is missing or is no collection of entries.
    """
    parts = ("encodings",) if version == "2.0.0" else ("activation_encodings", "param_encodings")
    for part in parts:
        entries = record.get(part)
        if version == "0.6.1" and isinstance(entries, dict):
            yield from entries.items()
        elif version != "0.6.1" and isinstance(entries, list):
            yield from _with_names(entries, part, path)
        else:
            kind = "an object" if version == "0.6.1" else "a list"
            raise PlanError(f"{path}: expected {part!r} to be {kind}, got {type(entries).__name__}")


def _with_names(entries: Iterable[Any], part: str, path: Path) -> Iterator[tuple[str, Any]]:
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise PlanError(f"{path}: expected {part!r} to hold objects with a 'name', got {str(entry)[:80]}")
        yield entry["name"], entry


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """An entry as it was read: scale and zero point in float64, the latter in levels of the type."""

    type: IntegerType
    granularity: Granularity
    scale: Numbers
    zero_point: Numbers


def _read_0_6_1(name: str, entry: Any, network: ir.Model) -> _Parts | None:
    if not isinstance(entry, list) or not entry:
        raise PlanError("expected a list of entries, one per channel")
    first = entry[0]
    if first["dtype"] == "float":
        return None
    same = ("bitwidth", "dtype", "is_symmetric")
    if any(other[key] != first[key] for other in entry for key in same):
        raise PlanError(f"expected {', '.join(same)} to be the same of every channel")
    if first["is_symmetric"] not in {"True", "False"}:
        raise PlanError(f"expected is_symmetric 'True' or 'False', got {first['is_symmetric']!r}")
    kind = _type(first["bitwidth"], signed=first["is_symmetric"] == "True")
    granularity = _granularity(len(entry) > 1, name, network)
    columns = {key: _numbers([other[key] for other in entry], granularity) for key in ("scale", "offset", "min", "max")}
    scale, offset = columns["scale"], columns["offset"]
    for key, end in (("min", offset), ("max", offset + kind.levels - 1)):
        if not np.allclose(columns[key], scale * end, rtol=1e-5, atol=0):
            raise PlanError(f"{key!r} is not what scale and offset say")
    return _Parts(type=kind, granularity=granularity, scale=scale, zero_point=kind.minimum - offset)


def _read_1_0_0(name: str, entry: Any, network: ir.Model) -> _Parts | None:
    if entry["dtype"] == "FLOAT":
        return None
    if entry["enc_type"] not in {"PER_TENSOR", "PER_CHANNEL"}:
        raise PlanError(f"expected enc_type PER_TENSOR or PER_CHANNEL, got {entry['enc_type']!r}")
    if not isinstance(entry["is_sym"], bool):
        raise PlanError(f"expected is_sym true or false, got {entry['is_sym']!r}")
    kind = _type(entry["bw"], signed=entry["is_sym"])
    granularity = _granularity(entry["enc_type"] == "PER_CHANNEL", name, network)
    scale, offset = _numbers(entry["scale"], granularity), _numbers(entry["offset"], granularity)
    return _Parts(type=kind, granularity=granularity, scale=scale, zero_point=kind.minimum - offset)


def _read_2_0_0(name: str, entry: Any, network: ir.Model) -> _Parts | None:
    if "int" not in entry["output_dtype"]:
        return None
    if "per_block_int_scale" in entry:
        raise PlanError("expected scales in y_scale, got those of LPBQ in two parts")
    granularity: Granularity = PerTensor()
    if "block_size" in entry:
        granularity = PerBlock(_integer(entry["axis"]), _integer(entry["block_size"]))
    elif "axis" in entry:
        granularity = PerAxis(_integer(entry["axis"]))
    scale = np.array(entry["y_scale"], dtype=np.float64)
    zero_point = np.array(entry["y_zero_point"], dtype=np.float64) if "y_zero_point" in entry else np.zeros_like(scale)
    return _Parts(type=integer_type(entry["output_dtype"]), granularity=granularity, scale=scale, zero_point=zero_point)


_READERS: dict[str, Callable[[str, Any, ir.Model], _Parts | None]] = {
    "0.6.1": _read_0_6_1,
    "1.0.0": _read_1_0_0,
    "2.0.0": _read_2_0_0,
}


def _encoding(parts: _Parts, name: str, network: ir.Model) -> Encoding:
    """Check the parts of an entry and put them together."""
    whole = np.rint(parts.zero_point)
    if not (np.equal(whole, parts.zero_point) & (np.abs(whole) < 2**31)).all():
        raise PlanError(f"expected levels as zero points, got {parts.zero_point.ravel()[:3]}")
    shape = static_shape(network.graph.initializers.get(name))
    scales = parts.scale.shape
    if not isinstance(parts.granularity, PerTensor) and (
        shape is None or scale_shape(parts.granularity, shape) != scales
    ):
        raise PlanError(f"expected scales that fit a constant of shape {shape}, got shape {scales}")
    return Encoding(
        type=parts.type, granularity=parts.granularity, scale=float32(parts.scale), zero_point=whole.astype(np.int32)
    )


def _type(bits: Any, *, signed: bool) -> IntegerType:
    return IntegerType(bits=_integer(bits), signed=signed)


def _granularity(several: bool, name: str, network: ir.Model) -> Granularity:
    """Axis of scales that the file does not name."""
    axis = channel_axis(network, name) if several else None
    if several and axis is None:
        raise PlanError("expected one scale: no layer reads it as weights, so that its channels are not known")
    return PerTensor() if axis is None else PerAxis(axis)


def _numbers(values: Any, granularity: Granularity) -> Numbers:
    numbers = np.array(values, dtype=np.float64)
    return numbers.reshape(()) if isinstance(granularity, PerTensor) else numbers.reshape(-1)


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanError(f"expected an integer, got {str(value)[:40]}")
    return value
