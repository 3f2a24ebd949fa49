"""Bring a network from its opset up to the one that everything behind the importer is written for.

One function per operator whose old form means something else, or is not valid, at the new opset; every other operator
only gained types and optional parts in between. The list follows the changelog of the ONNX operators,
https://github.com/onnx/onnx/blob/main/docs/Changelog.md, and a test compares it with the schemas that `onnx` ships.

Why not `onnx.version_converter`: over the operators of opsets 7 to 20 it silently changed the results of linear
Upsample and Resize (their coordinates), of nearest Upsample by fractions and of Hardmax, broke GroupNormalization,
and it drops metadata. `onnxscript.version_converter` begins at opset 18.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_array
from narrowgauge.graph.edits import all_nodes, graph_of, is_operator, new_node, take_place
from narrowgauge.graph.shapes import dimensions, rank

OPSET = 21
"""The opset behind the importer: the first with per-block QuantizeLinear and 16-bit and 4-bit types."""

OLDEST_OPSET = 7
"""Older networks follow other broadcasting rules; ONNX Runtime does not guarantee to run them either."""


class UpgradeError(Exception):
    """A node's old form has no equal at the new opset; the message says which and why."""


def upgrade_opset(model: ir.Model, *, version: int) -> None:
    """Rewrite, in place, the nodes of a model of opset `version` to opset 21; a newer model stays as it is.

    Nodes of other domains are left alone. Ranks, where known, make the result simpler, so infer shapes first.
    A model above 21 stays at its opset: what changed since (wider types, new operators) does not touch old meanings,
    while going back down could fail.

    Args:
        model: Its functions must be inlined, and its constants initializers.
        version: The opset of the standard domain, at least 7.

    Raises:
        UpgradeError: A node has a meaning that newer opsets cannot express. The model is then half upgraded.
    """
    if version >= OPSET:
        return
    for node in tuple(all_nodes(model)):
        since, upgrade = UPGRADES.get(node.op_type, (0, None))
        if upgrade is None or version >= since or not is_operator(node, node.op_type):
            continue
        try:
            upgrade(node)
        except UpgradeError as error:
            message = f"{node.op_type} {node.name!r}: {error}"
            raise UpgradeError(message) from error
    for node in all_nodes(model):
        node.version = None
    model.opset_imports[""] = OPSET
    for graph in model.graph.subgraphs():
        if "" in graph.opset_imports:
            graph.opset_imports[""] = OPSET


def _constant_input(node: ir.Node, index: int, role: str, array: np.ndarray) -> None:
    """Set an input to a new initializer named after the node's first output and the role."""
    constant = add_constant(graph_of(node), f"{node.outputs[0].name}_{role}", array)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, constant)


def _integers(values: Sequence[int]) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


def _attribute_to_input(node: ir.Node, attribute: str, index: int) -> None:
    """Move an attribute of integers to an input."""
    values = node.attributes.get_ints(attribute)
    node.attributes.pop(attribute, None)
    if values is not None:
        _constant_input(node, index, attribute, _integers(values))


def _element_type(node: ir.Node) -> np.dtype:
    value = node.inputs[0]
    if value is None or value.dtype is None:
        return np.dtype(np.float32)
    return np.dtype(value.dtype.numpy())


def _replace(node: ir.Node, new_nodes: Sequence[ir.Node]) -> None:
    """Put nodes in the place of one; the last one's output takes the place of its first."""
    graph = graph_of(node)
    graph.insert_before(node, new_nodes)
    take_place(new_nodes[-1].outputs[0], node.outputs[0])


def _axes_to_input(node: ir.Node) -> None:
    """Squeeze and Unsqueeze below 13, ReduceSum below 13, the other reductions below 18."""
    _attribute_to_input(node, "axes", 1)


def _batch_normalization(node: ir.Node) -> None:
    if node.attributes.get_int("spatial", 1) != 1 and rank(node.inputs[0]) not in {2, None}:
        message = "spatial=0 (statistics per position) was removed from ONNX in opset 9"
        raise UpgradeError(message)
    node.attributes.pop("spatial", None)
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        message = "it is in training mode (its mean and variance outputs are read); export the network for inference"
        raise UpgradeError(message)
    node.resize_outputs(1)


def _clip(node: ir.Node) -> None:
    for index, bound in ((1, "min"), (2, "max")):
        value = node.attributes.get_float(bound)
        node.attributes.pop(bound, None)
        if value is not None:
            _constant_input(node, index, bound, np.asarray(value, dtype=_element_type(node)))


def _dft(node: ir.Node) -> None:
    axis = node.attributes.get_int("axis", 1)
    node.attributes.pop("axis", None)
    _constant_input(node, 2, "axis", np.asarray(axis, dtype=np.int64))


def _dropout(node: ir.Node) -> None:
    """Without `training_mode` it is the identity; the ratio, now an input, has no effect."""
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        message = "its mask is read, which means training; export the network for inference"
        raise UpgradeError(message)
    node.resize_outputs(1)
    node.attributes.pop("ratio", None)


def _grid_sample(node: ir.Node) -> None:
    modes = {"bilinear": "linear", "bicubic": "cubic"}
    mode = node.attributes.get_string("mode", "bilinear")
    node.attributes["mode"] = ir.AttrString("mode", modes.get(mode, mode))


def _group_normalization(node: ir.Node) -> None:
    """Scale and bias per group (18 to 20) became per channel (21)."""
    sizes = dimensions(node.inputs[0])
    channels = sizes[1] if sizes is not None and len(sizes) > 1 else None
    groups = node.attributes.get_int("num_groups", 1)
    if channels is None:
        message = "its number of channels is unknown, so its scale per group cannot become one per channel"
        raise UpgradeError(message)
    for index, role in ((1, "scale"), (2, "bias")):
        array = constant_array(node.inputs[index])
        if array is None:
            message = f"its {role} is no constant"
            raise UpgradeError(message)
        _constant_input(node, index, role, np.repeat(array, channels // groups))


def _pad(node: ir.Node) -> None:
    value = node.attributes.get_float("value", 0.0)
    node.attributes.pop("value", None)
    _attribute_to_input(node, "pads", 1)
    if value != 0.0:
        _constant_input(node, 2, "value", np.asarray(value, dtype=_element_type(node)))


def _resize(node: ir.Node) -> None:
    """Upsample, and Resize of opset 10: x_original = x_resized / scale, nearest rounds down."""
    if node.op_type == "Upsample" and "scales" in node.attributes:
        scales = np.asarray(node.attributes.get_floats("scales"), dtype=np.float32)
        node.attributes.pop("scales")
        _constant_input(node, 1, "scales", scales)
    mode = node.attributes.get_string("mode", "nearest")
    attributes = {
        "mode": "linear" if mode == "bilinear" else mode,
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    inputs = [node.inputs[0], None, node.inputs[1]]
    name = node.name or f"{node.outputs[0].name}_resize"
    _replace(node, [new_node("Resize", inputs, attributes, name=name)])


def _roi_align(node: ir.Node) -> None:
    if "coordinate_transformation_mode" not in node.attributes:
        mode = ir.AttrString("coordinate_transformation_mode", "output_half_pixel")
        node.attributes["coordinate_transformation_mode"] = mode


def _scan(node: ir.Node) -> None:
    """Scan of opset 8 had a batch axis and sequence lengths; 9 has neither."""
    message = f"{node.op_type} of opset 8 (with a batch axis) was replaced in opset 9; export the network anew"
    raise UpgradeError(message)


def _scatter(node: ir.Node) -> None:
    node.op_type = "ScatterElements"


def _slice(node: ir.Node) -> None:
    starts, ends = node.attributes.get_ints("starts", ()), node.attributes.get_ints("ends", ())
    axes = node.attributes.get_ints("axes", tuple(range(len(starts))))
    for index, (role, values) in enumerate((("starts", starts), ("ends", ends), ("axes", axes)), start=1):
        node.attributes.pop(role, None)
        _constant_input(node, index, role, _integers(values))


def _softmax(node: ir.Node) -> None:
    """Before 13 Softmax, LogSoftmax and Hardmax saw a matrix: the axes from `axis` on were one."""
    axis = node.attributes.get_int("axis", 1)
    source = node.inputs[0]
    sizes = dimensions(source)
    if sizes is not None and -len(sizes) <= axis < len(sizes):
        longer = [index for index in range(axis % len(sizes), len(sizes)) if sizes[index] != 1]
        if len(longer) <= 1:
            single = longer[0] if longer else len(sizes) - 1
            node.attributes["axis"] = ir.AttrInt64("axis", single)
            return
    result = node.outputs[0]
    shape = new_node("Shape", [source], name=f"{result.name}_shape")
    flat = new_node("Flatten", [source], {"axis": axis}, name=f"{result.name}_flat")
    name = node.name or f"{result.name}_{node.op_type.lower()}"
    flat_name = f"{result.name}_flat_{node.op_type.lower()}"
    function = new_node(node.op_type, flat.outputs, {"axis": -1}, name=name, output=flat_name)
    reshape = new_node("Reshape", [function.outputs[0], shape.outputs[0]], name=f"{result.name}_reshape")
    _replace(node, [shape, flat, function, reshape])


def _split(node: ir.Node) -> None:
    if "split" in node.attributes:
        _attribute_to_input(node, "split", 1)
    elif len(node.inputs) == 1 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _top_k(node: ir.Node) -> None:
    if "k" in node.attributes:
        count = node.attributes.get_int("k")
        node.attributes.pop("k")
        _constant_input(node, 1, "k", _integers([count]))


_OTHER_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)

UPGRADES: dict[str, tuple[int, Callable[[ir.Node], None]]] = {
    "BatchNormalization": (14, _batch_normalization),
    "Clip": (11, _clip),
    "DFT": (20, _dft),
    "Dropout": (12, _dropout),
    "GridSample": (20, _grid_sample),
    "GroupNormalization": (21, _group_normalization),
    "Hardmax": (13, _softmax),
    "LogSoftmax": (13, _softmax),
    "Pad": (11, _pad),
    "ReduceSum": (13, _axes_to_input),
    **dict.fromkeys(_OTHER_REDUCTIONS, (18, _axes_to_input)),
    "Resize": (11, _resize),
    "RoiAlign": (16, _roi_align),
    "Scan": (9, _scan),
    "Scatter": (11, _scatter),
    "Slice": (10, _slice),
    "Softmax": (13, _softmax),
    "Split": (18, _split),
    "Squeeze": (13, _axes_to_input),
    "TopK": (10, _top_k),
    "Unsqueeze": (13, _axes_to_input),
    "Upsample": (10, _resize),
}
"""Operator -> (the first opset that has the new form, the rewrite of a node in an older form)."""
