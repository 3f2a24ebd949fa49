"""Cambricon's parameters beside the float network: each scale as a position and a factor.

    real = level * 2^position / factor
    position = floor(log2(absmax)) - (bits - 2)
    factor = 2^position * (2^(bits - 1) - 1) / absmax, about 1 to 2

(cnrt.h, cnrtCreateQuantizedParam and cnrtCreateQuantizedParamByChannel; Cambricon's public convolution samples, which
call the factor scale; absmax, real units, is what the highest level stands for). There are no zero points: the offset
is 0. Types are int8 and int16. The int31 of the samples is two int16 in a row and no type that a plan has.

A factor is a float32, so a scale comes back as 2^position / factor within two roundings of float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding, float32
from narrowgauge.core.granularity import Granularity, PerAxis, PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.exporters.encodings import check_read_back, in_type, read_text, static_encodings, write_text
from narrowgauge.exporters.formats import Export, Exported
from narrowgauge.exporters.onnx import write_onnx
from narrowgauge.graph.roles import activation_inputs, weight_inputs
from narrowgauge.graph.shapes import static_shape

MODEL, PARAMETERS = "model.onnx", "model.cambricon.json"
TITLE = "Cambricon parameters"
RULE = "real = level * 2^position / scale"
TOLERANCE = 2.0**-22  # two roundings of float32: the factor, and the quotient that makes a scale of it

_WIDTHS = (8, 16)
_FARTHEST = 200  # beyond float32's exponents whatever the width
_LEAST_FACTOR = 0.99  # 127/128, the least of int8


def write(export: Export, folder: Path) -> Exported:
    """Write the float network and its parameters, read these back and compare them.

    Raises:
        TargetError: an encoding has a zero point or another type, or one scale per channel in int16.
        OutputError: a file cannot be written or reads back as something else.
    """
    network = export.network
    encodings = {
        name: in_type(network, name, encoding, narrow=False, title=TITLE)
        for name, encoding in static_encodings(network, export.plan, title=TITLE).items()
    }
    for name, encoding in encodings.items():
        _check(name, encoding)
    tensors = {name: _record(network, name, encoding) for name, encoding in encodings.items()}
    record = {"version": 1, "rule": RULE, "tensors": tensors, "layers": _layers(export, tensors)}
    write_onnx(network, folder / MODEL)
    write_text(folder / PARAMETERS, json.dumps(record, indent=1) + "\n")
    check_read_back(folder / PARAMETERS, encodings, read_parameters, tolerance=TOLERANCE)
    return Exported(
        notes=(
            "model.onnx is the float network. model.cambricon.json: 'tensors' has the arguments of "
            "cnrtCreateQuantizedParam (position, scale, offset) and cnrtCreateQuantizedParamByChannel (poses, scales, "
            "offsets, dimValues, channelDim); 'layers' the fields of a Caffe prototxt",
        )
    )


def position_and_factor(encoding: Encoding) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Part scales into positions and factors, each of the scale's shape.

    Args:
        encoding: signed, zero point 0.
    """
    bits = encoding.type.bits
    highest = (1 << (bits - 1)) - 1
    absmax = encoding.scale.astype(np.float64) * highest  # exact: 24 and at most 15 bits
    exponent = np.frexp(absmax)[1].astype(np.int64) - 1  # floor(log2), without the rounding of a logarithm
    position = exponent - (bits - 2)
    factor = np.ldexp(1.0, position) * highest / absmax
    return position, float32(factor)


def _check(name: str, encoding: Encoding) -> None:
    kind = encoding.type
    if not kind.signed or kind.bits not in _WIDTHS or encoding.zero_point.any():
        raise TargetError(
            f"{TITLE} are of int8 or int16 with zero point 0, {name!r} is of {kind.name} with zero points "
            f"{encoding.zero_point.ravel()[:3]}: quantize it so"
        )
    if not isinstance(encoding.granularity, PerTensor | PerAxis) or (
        isinstance(encoding.granularity, PerAxis) and kind.bits != 8
    ):
        raise TargetError(
            f"{TITLE} have one scale a tensor, or of int8 one a channel; {name!r} is of {kind.name} with another "
            "granularity: take one scale a tensor"
        )


def _record(network: ir.Model, name: str, encoding: Encoding) -> dict[str, Any]:
    position, factor = position_and_factor(encoding)
    dtype = f"DT_INT{encoding.type.bits}"
    if isinstance(encoding.granularity, PerTensor):
        return {"dtype": dtype, "position": int(position), "scale": float(factor), "offset": 0}
    return {
        "dtype": dtype,
        "poses": position.tolist(),
        "scales": factor.astype(np.float64).tolist(),
        "offsets": [0] * position.size,
        "dimValues": list(static_shape(network.graph.initializers[name]) or ()),
        "channelDim": encoding.granularity.axis,
    }


def _layers(export: Export, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a Caffe prototxt by node: the rounding of a layer's data and of its weights."""
    floats = {node.name for node in export.plan.float_nodes}
    found = {}
    for node in export.network.graph:
        weights = next((node.inputs[number] for number in weight_inputs(node)), None)
        data = next((value for _, value in activation_inputs(node)), None)
        if node.name in floats or weights is None or data is None:
            continue
        if weights.name in tensors and data.name in tensors:
            found[str(node.name)] = {
                "bottom_mlu_dtype": [_prototxt(tensors[str(data.name)])],
                "blobs_dtype": [_prototxt(tensors[str(weights.name)])],
            }
    return found


def _prototxt(tensor: Mapping[str, Any]) -> dict[str, Any]:
    """A BlobDataType of Caffe: position and scale are repeated fields."""
    if "position" in tensor:
        return {"type": tensor["dtype"], "position": [tensor["position"]], "scale": [tensor["scale"]]}
    return {"type": tensor["dtype"], "position": tensor["poses"], "scale": tensor["scales"]}


def read_parameters(path: Path) -> dict[str, Encoding]:
    """Read what `write` wrote: tensor -> encoding.

    Raises:
        PlanError: the file cannot be read or is none; the message names the tensor.
    """
    try:
        record = json.loads(read_text(path, f"{TITLE} in JSON"))
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path}: expected {TITLE} in JSON, got {error}") from None
    tensors = record.get("tensors") if isinstance(record, dict) else None
    if not isinstance(tensors, dict) or record.get("version") != 1 or record.get("rule") != RULE:
        raise PlanError(f"{path}: expected {TITLE} of version 1 with an object 'tensors'")
    found = {}
    for name, tensor in tensors.items():
        try:
            found[name] = _encoding(tensor)
        except PlanError as error:
            raise PlanError(f"{path}: {name!r}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise PlanError(f"{path}: {name!r}: {what}") from None
    return found


def _encoding(tensor: Mapping[str, Any]) -> Encoding:
    bits = {f"DT_INT{width}": width for width in _WIDTHS}.get(tensor["dtype"])
    if bits is None:
        raise PlanError(f"expected dtype DT_INT8 or DT_INT16, got {tensor['dtype']!r}")
    granularity: Granularity = PerTensor()
    position, factor, offset = (np.array(tensor[key]) for key in _keys(tensor))
    if "poses" in tensor:
        axis, sizes = tensor["channelDim"], tensor["dimValues"]
        if not isinstance(axis, int) or not 0 <= axis < len(sizes) or position.shape != (sizes[axis],):
            raise PlanError(f"expected {sizes} to have as many channels along axis {axis} as there are poses")
        granularity = PerAxis(axis)
    if position.dtype.kind != "i" or factor.dtype.kind not in "if" or position.shape != factor.shape:
        raise PlanError("expected whole positions and as many scales")
    if offset.shape != position.shape or offset.any() or (np.abs(position) > _FARTHEST).any():
        raise PlanError(f"expected offsets of 0 and positions from -{_FARTHEST} to {_FARTHEST}")
    if not ((factor >= _LEAST_FACTOR) & (factor <= 2)).all():
        raise PlanError(f"expected scales from {_LEAST_FACTOR} to 2")
    scale = float32(np.ldexp(1.0, position) / factor)
    zero = np.zeros(scale.shape, dtype=np.int32)
    return Encoding(type=IntegerType(bits=bits, signed=True), granularity=granularity, scale=scale, zero_point=zero)


def _keys(tensor: Mapping[str, Any]) -> tuple[str, str, str]:
    return ("poses", "scales", "offsets") if "poses" in tensor else ("position", "scale", "offset")
