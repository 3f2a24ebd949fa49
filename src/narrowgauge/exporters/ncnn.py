"""ncnn's int8 table beside the float network: what ncnn2int8 takes to make integer layers of float ones.

One line a layer for its weights, `LAYER_param_0 s s s ...` with a number per output channel (per group of a convolution
in groups), and one for its data, `LAYER s`. The number is 127 / absmax, the reciprocal of the scale; levels are -127 to
127 (ncnn tools/quantize/ncnn2int8.cpp read_int8scale_table, quantize_convolution, quantize_convolutiondepthwise,
quantize_innerproduct; src/layer/quantize.cpp float2int8). Layers without lines stay float.

Layers have the names of their nodes, as onnx2ncnn calls them. pnnx numbers them by kind and order instead (conv_0,
convdw_0, linear_0, with the name of a fused activation function behind the kind, convclip_0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding, float32
from narrowgauge.core.granularity import PerAxis, PerTensor, granularity_words
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.exporters.encodings import check_read_back, counted, in_type, read_text, static_encodings, write_text
from narrowgauge.exporters.formats import Export, Exported
from narrowgauge.exporters.onnx import write_onnx
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import output_axis, weight_inputs
from narrowgauge.graph.shapes import static_shape

MODEL, TABLE = "model.onnx", "model.table"
TITLE = "ncnn's table"
TOLERANCE = 2.0**-22  # two roundings of float32: a reciprocal, and the reciprocal of that

_LAYERS = ("Conv", "Gemm", "MatMul")  # Convolution, ConvolutionDepthWise, InnerProduct
_TYPE = IntegerType(bits=8, signed=True, narrow=True)
_WEIGHTS = "_param_"  # what tells lines of weights from lines of data
_LONGEST_NAME = 240  # the tools read 255 characters of a line's name


def write(export: Export, folder: Path) -> Exported:
    """Write the float network and the table, read the table back and compare it.

    Raises:
        TargetError: an encoding of a layer has a zero point or another type, or a name cannot stand in the table.
        OutputError: a file cannot be written or reads back as something else.
    """
    table, notes = _table(export)
    write_onnx(export.network, folder / MODEL)
    write_text(folder / TABLE, "".join(f"{key} {_numbers(encoding)}\n" for key, encoding in table.items()))
    check_read_back(folder / TABLE, table, read_table, tolerance=TOLERANCE)
    how = (
        "model.onnx is the float network: make model.param and model.bin of it, then ncnn2int8 model.param model.bin "
        "model-int8.param model-int8.bin model.table. The table calls layers by their nodes' names, as onnx2ncnn does; "
        "pnnx numbers them by kind and order (conv_0, convdw_0, linear_0): there, put the names of its .param into the "
        "table. A matrix product that pnnx makes a Gemm is rounded by ncnn2int8 itself, at run time, without the table"
    )
    return Exported(notes=(how, *notes))


def _table(export: Export) -> tuple[dict[str, Encoding], list[str]]:
    """Make the lines, weights first: key -> encoding with a scale for each number; and say what has no line."""
    network, floats = export.network, {node.name for node in export.plan.float_nodes}
    encodings = static_encodings(network, export.plan, title=TITLE)
    weights: dict[str, Encoding] = {}
    data: dict[str, Encoding] = {}
    said: set[str] = set()
    notes = []
    for node in network.graph:
        if node.name in floats or not weight_inputs(node) or not is_operator(node, *_LAYERS):
            continue
        values = [str(value.name) for value in node.inputs[:2] if value is not None]
        if not all(name in encodings for name in values):
            continue
        said.update(values)
        reason = _no_layer(node, encodings[values[1]])
        if reason:
            notes.append(f"WARNING: ncnn computes {node.name!r} in float, which the plan rounds: {reason}")
            continue
        name = _checked_name(str(node.name))
        data[name], kernel = (_symmetric(network, value, encodings[value]) for value in values)
        weights[f"{name}{_WEIGHTS}0"] = _per_number(node, kernel)
    left = [name for name in encodings if name not in said]
    if left:
        notes.append(f"{counted(left)}: encodings that no layer of the table reads; ncnn does not round these values")
    return {**weights, **data}, notes


def _no_layer(node: ir.Node, encoding: Encoding) -> str:
    """Why ncnn has no integer layer for a node, "" if it has."""
    shape = _shape(node)
    if 0 in shape:
        return f"it has no weights, their shape is {shape}"
    if is_operator(node, "Conv") and len(shape) != 4:
        return f"its integer convolutions have two spatial axes, this one has {len(shape) - 2}"
    if is_operator(node, "MatMul") and len(shape) != 2:
        return f"its integer matrix products have one matrix of weights, this one a stack of shape {shape}"
    if is_operator(node, "Gemm") and (
        node.attributes.get_int("transA", 0) != 0
        or node.attributes.get_float("alpha", 1.0) != 1.0
        or node.attributes.get_float("beta", 1.0) != 1.0
    ):
        return "its integer matrix products have no transA, alpha or beta"
    granularity = encoding.granularity
    if isinstance(granularity, PerTensor):
        return ""
    if not isinstance(granularity, PerAxis) or granularity.axis != output_axis(node, 1):
        return f"it takes one scale per output channel, the plan has one per {granularity_words(granularity)}"
    per_group = encoding.scale.reshape(_groups(node), -1)
    if _groups(node) > 1 and (per_group != per_group[:, :1]).any():
        return "it takes one scale per group, the plan has several in one"
    return ""


def _per_number(node: ir.Node, encoding: Encoding) -> Encoding:
    """One scale for each number of a layer's line of weights: per group, or per output channel where there is one."""
    groups = _groups(node)
    count = groups if groups > 1 else _shape(node)[output_axis(node, 1)]
    scale = encoding.scale.reshape(groups, -1)[:, 0] if groups > 1 and encoding.scale.ndim else encoding.scale
    return _encoding(np.broadcast_to(scale, (count,)))


def _groups(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1) if is_operator(node, "Conv") else 1


def _shape(node: ir.Node) -> tuple[int, ...]:
    return static_shape(node.inputs[1]) or ()


def _symmetric(network: ir.Model, name: str, encoding: Encoding) -> Encoding:
    """Check that an encoding is of ncnn's kind.

    Raises:
        TargetError: it has a zero point, another width, or a scale without a float32 reciprocal.
    """
    encoding = in_type(network, name, encoding, narrow=True, title=TITLE)
    if encoding.type != _TYPE or encoding.zero_point.any():
        raise TargetError(
            f"{TITLE} is of {_TYPE.name} with zero point 0, {name!r} is of {encoding.type.name} with zero points "
            f"{encoding.zero_point.ravel()[:3]}: quantize it so"
        )
    if not np.isfinite(_reciprocal(encoding)).all():
        raise TargetError(f"{TITLE} has reciprocals of scales, those of {name!r} are too small: {encoding.scale.min()}")
    return encoding


def _checked_name(name: str) -> str:
    if not name or name.split() != [name] or _WEIGHTS in name or len(name) > _LONGEST_NAME:
        raise TargetError(
            f"{TITLE} parts names from numbers by spaces and knows weights by {_WEIGHTS!r}: a layer cannot be called "
            f"{name!r}; rename the node"
        )
    return name


def _reciprocal(encoding: Encoding) -> npt.NDArray[np.float32]:
    return float32(1 / encoding.scale.astype(np.float64))


def _numbers(encoding: Encoding) -> str:
    """The numbers of a line, each the shortest decimal of its float32."""
    return " ".join(str(number) for number in _reciprocal(encoding).ravel())


def read_table(path: Path) -> dict[str, Encoding]:
    """Read a table of ncnn.

    Returns:
        `LAYER_param_N` -> encoding of weights, axis 0 along its numbers; `LAYER` -> encoding of the layer's data.

    Raises:
        PlanError: the file cannot be read or is none; the message has the line.
    """
    found: dict[str, Encoding] = {}
    for number, line in enumerate(read_text(path, "a table of ncnn").splitlines(), start=1):
        words = line.split(" ")
        key, where = words[0], f"{path}, line {number}"
        if len(words) < 2 or not key:
            raise PlanError(f"{where}: expected 'LAYER number ...', got {line[:80]!r}")
        if key in found:
            raise PlanError(f"{where}: {key!r} stands twice")
        try:
            reciprocals = float32([float(word) for word in words[1:] if word])
            found[key] = _encoding(_inverse(reciprocals if _WEIGHTS in key else reciprocals.reshape(())))
        except (PlanError, ValueError) as error:
            raise PlanError(f"{where}: expected positive numbers, one for data: {error}") from None
    return found


def _inverse(reciprocals: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if not (np.isfinite(reciprocals) & (reciprocals > 0)).all():
        raise PlanError(f"got {reciprocals.min()} to {reciprocals.max()}")
    return float32(1 / reciprocals.astype(np.float64))


def _encoding(scale: npt.NDArray[np.float32]) -> Encoding:
    zero_point = np.zeros(scale.shape, dtype=np.int32)
    granularity = PerAxis(0) if scale.ndim else PerTensor()
    return Encoding(type=_TYPE, granularity=granularity, scale=scale, zero_point=zero_point)
