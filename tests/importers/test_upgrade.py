"""Old operator forms, each against ONNX Runtime's own reading of them."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from narrowgauge.errors import ModelError
from narrowgauge.importers.onnx import load
from narrowgauge.importers.upgrade import OPSET, UPGRADES
from tests.passes.networks import assert_same, network, node, operators, random, run

X = {"x": [2, 3, 4, 6]}
INT = TensorProto.INT64


def form(  # one old form: opset, node, inputs, constants
    opset: int,
    operator: str,
    inputs: str = "x",
    outputs: str = "y",
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    shapes: Mapping[str, list[int | str]] | None = None,
    types: Mapping[str, int] | None = None,
    **attributes: object,
) -> onnx.ModelProto:
    kinds = {name: (types or {}).get(name, TensorProto.FLOAT) for name in outputs.split()}
    nodes = [node(operator, inputs, outputs, **attributes)]
    return network(nodes, shapes or X, kinds, constants, opset=opset)


def vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


BN = {"g": random(3), "b": random(3, seed=1), "m": random(3, seed=2), "v": np.abs(random(3)) + 0.1}
REDUCTIONS = ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
OLD_FORMS = {
    "ArgMax-11": form(11, "ArgMax", types={"y": INT}, axis=1),
    "AveragePool-7": form(7, "AveragePool", kernel_shape=[2, 2], pads=[1, 1, 1, 1], strides=[2, 2]),
    "BatchNormalization-7": form(7, "BatchNormalization", "x g b m v", constants=BN, spatial=1),
    "BatchNormalization-9": form(9, "BatchNormalization", "x g b m v", constants=BN),
    "BatchNormalization-7 of a matrix": form(
        7, "BatchNormalization", "x g b m v", constants=BN, shapes={"x": ["N", 3]}, spatial=0
    ),
    "Cast-6": form(7, "Cast", types={"y": INT}, to=INT),
    "Clip-6": form(7, "Clip", min=-0.5, max=0.5),
    "Clip-6 from below": form(10, "Clip", min=0.0),
    "Clip-6 from above": form(10, "Clip", max=0.1),
    "ConvTranspose-1": form(7, "ConvTranspose", "x w", constants={"w": random(3, 2, 3, 3)}, strides=[2, 2]),
    "Dropout-7": form(7, "Dropout", ratio=0.3),
    "Dropout-10": form(10, "Dropout", ratio=0.3),
    "Flatten-1": form(7, "Flatten", axis=2),
    "Gemm-7": form(
        7, "Gemm", "x w b", constants={"w": random(4, 3), "b": random(4)}, shapes={"x": [2, 3]}, transB=1, beta=2.0
    ),
    "GridSample-16": form(
        16, "GridSample", "x g", shapes={**X, "g": [2, 2, 2, 2]}, mode="bilinear", padding_mode="border"
    ),
    "GroupNormalization-18": form(
        18,
        "GroupNormalization",
        "x s b",
        constants={"s": random(2), "b": random(2, seed=1)},
        shapes={"x": [2, 6, 3]},
        num_groups=2,
    ),
    "Hardmax-1": form(7, "Hardmax", shapes={"x": [2, 3, 4]}),
    "LSTM-7": form(
        7,
        "LSTM",
        "x w r b",
        "y h c",
        {"w": random(1, 16, 3), "r": random(1, 16, 4), "b": random(1, 32)},
        shapes={"x": [5, 2, 3]},
        hidden_size=4,
    ),
    "MaxPool-8 with indices": form(8, "MaxPool", outputs="y i", types={"i": INT}, kernel_shape=[2, 2]),
    "PRelu-7": form(7, "PRelu", "x s", constants={"s": random(3, 1, 1)}),
    "Pad-2": form(7, "Pad", pads=[0, 0, 1, 2, 0, 0, 3, 1], value=0.5),
    "Pad-2 reflect": form(10, "Pad", pads=[0, 0, 1, 2, 0, 0, 3, 1], mode="reflect"),
    "ReduceMean-1 of all": form(9, "ReduceMean"),
    "ReduceSum-11 of all": form(12, "ReduceSum", keepdims=0),
    "Resize-10 nearest": form(10, "Resize", "x s", constants={"s": vector(1, 1, 1.5, 0.5)}, mode="nearest"),
    "Resize-10 linear": form(10, "Resize", "x s", constants={"s": vector(1, 1, 1.5, 0.5)}, mode="linear"),
    "Resize-11": form(
        11,
        "Resize",
        "x r s",
        constants={"r": vector(), "s": vector(1, 1, 1.5, 0.5)},
        mode="linear",
        coordinate_transformation_mode="align_corners",
    ),
    "RoiAlign-10": form(
        10,
        "RoiAlign",
        "x r i",
        constants={"r": np.array([[0, 0, 2, 3]], np.float32), "i": np.array([0])},
        output_height=2,
        output_width=2,
    ),
    "Scatter-9": form(
        9, "Scatter", "x i u", constants={"i": np.array([[1, 2]])}, shapes={"x": [3, 4], "u": [1, 2]}, axis=1
    ),
    "Slice-1": form(7, "Slice", starts=[1, -3], ends=[3, -1], axes=[2, 3]),
    "Slice-1 without axes": form(9, "Slice", starts=[1, 1], ends=[2, 9]),
    "Softmax-1 default": form(9, "Softmax", shapes={"x": [2, 3, 4]}),
    "Softmax-1 single pixel": form(9, "Softmax", shapes={"x": ["N", 5, 1, 1]}),
    "Softmax-11 negative": form(11, "Softmax", shapes={"x": [2, 3, 4, 5]}, axis=-2),
    "Softmax-11 dynamic": form(11, "Softmax", shapes={"x": ["a", "b", "c"]}),
    "LogSoftmax-11": form(12, "LogSoftmax", shapes={"x": [2, 3, 4]}),
    **{f"Softmax-1 axis {axis}": form(7, "Softmax", axis=axis) for axis in range(4)},
    "Split-2": form(11, "Split", outputs="y z", shapes={"x": [2, 6]}, axis=1, split=[2, 4]),
    "Split-2 equal": form(11, "Split", outputs="y z", shapes={"x": [2, 6]}, axis=1),
    "Split-13 equal": form(13, "Split", outputs="y z", shapes={"x": [2, 6]}, axis=1),
    "Squeeze-1": form(7, "Squeeze", shapes={"x": [1, 3, 1, 2]}, axes=[0, 2]),
    "Squeeze-1 all": form(11, "Squeeze", shapes={"x": [1, 3, 1, 2]}),
    "TopK-1": form(7, "TopK", outputs="y i", shapes={"x": [3, 7]}, types={"i": INT}, k=3, axis=1),
    "TopK-10": form(10, "TopK", "x k", "y i", {"k": np.array([3])}, shapes={"x": [3, 7]}, types={"i": INT}),
    "Unsqueeze-11": form(11, "Unsqueeze", shapes={"x": [3, 2]}, axes=[0, -1]),
    "Upsample-7": form(7, "Upsample", scales=[1.0, 1.0, 2.0, 3.0], mode="nearest"),
    "Upsample-7 linear": form(7, "Upsample", scales=[1.0, 1.0, 2.0, 2.0], mode="linear"),
    "Upsample-9": form(9, "Upsample", "x s", constants={"s": vector(1, 1, 1.6, 2.3)}, mode="nearest"),
    "Upsample-9 linear": form(9, "Upsample", "x s", constants={"s": vector(1, 1, 2, 2)}, mode="linear"),
    **{f"Reduce{kind}-11": form(11, f"Reduce{kind}", axes=[1, -1], keepdims=0) for kind in REDUCTIONS},
    **{f"Reduce{kind}-17": form(17, f"Reduce{kind}", axes=[2], keepdims=1) for kind in REDUCTIONS if kind != "Sum"},
}


@pytest.mark.parametrize("simplify", [False, True])
@pytest.mark.parametrize("name", sorted(OLD_FORMS))
def test_old_form_gives_the_same(name: str, simplify: bool) -> None:
    proto = OLD_FORMS[name]
    model = load(proto, simplify=simplify).model
    assert model.opset_imports[""] == OPSET
    if name != "GroupNormalization-18":  # ONNX infers no shape for it, and a network output needs one
        onnx.checker.check_model(ir.to_proto(model))
    assert_same(run(proto), run(model), tolerance=1e-5)


def test_softmax_along_one_axis_needs_no_flattening() -> None:
    assert operators(load(OLD_FORMS["Softmax-1 single pixel"], simplify=False).model) == {"Softmax": 1}
    assert operators(load(OLD_FORMS["Softmax-1 axis 3"], simplify=False).model) == {"Softmax": 1}


def test_every_operator_whose_form_changed_is_upgraded_or_known_to_be_compatible() -> None:
    """Compare the table with the schemas that `onnx` ships: a removed attribute or another default needs a rewrite."""
    changed = set()
    by_name: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            by_name.setdefault(schema.name, []).append(schema)
    for name, history in by_name.items():
        history.sort(key=lambda schema: schema.since_version)
        for old, new in pairwise(history):
            if 7 < new.since_version <= OPSET and (new.deprecated or _differs(old, new)):
                changed.add(name)
    assert changed
    assert changed - set(UPGRADES) == set()


def _differs(old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> bool:
    if set(old.attributes) - set(new.attributes):
        return True
    return any(
        str(old.attributes[name].default_value) != str(new.attributes[name].default_value) for name in old.attributes
    )


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (
            form(
                7,
                "BatchNormalization",
                "x g b m v",
                constants={name: np.abs(random(3, 4)) for name in "gbmv"},
                shapes={"x": [2, 3, 4]},
                spatial=0,
            ),
            "spatial=0",
        ),
        (form(10, "Dropout", outputs="y m", types={"m": TensorProto.BOOL}, ratio=0.5), "mask"),
    ],
)
def test_what_has_no_new_form_is_refused_with_the_node(proto: onnx.ModelProto, reason: str) -> None:
    with pytest.raises(ModelError, match=f"'node_y'.*{reason}"):
        load(proto)


def test_what_has_no_new_form_keeps_an_opset_that_is_new_enough() -> None:
    proto = form(18, "GroupNormalization", "x s b", shapes={"x": [2, 4, 3], "s": [2], "b": [2]}, num_groups=2)
    imported = load(proto)
    assert imported.model.opset_imports[""] == 18
    assert any("GroupNormalization" in note for note in imported.notes)
    assert_same(run(proto), run(imported.model))


@pytest.mark.parametrize("opset", [7, 9])
def test_whole_network_of_an_old_opset(opset: int) -> None:
    upsample = (
        node("Upsample", "p", "u", scales=[1.0, 1.0, 2.0, 2.0])
        if opset == 7
        else node("Upsample", "p scales", "u", mode="nearest")
    )
    spatial = {"spatial": 1} if opset == 7 else {}
    nodes = [
        node("Pad", "x", "padded", pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        node("Conv", "padded w", "c", strides=[2, 2]),
        node("BatchNormalization", "c g b m v", "n", **spatial),
        node("Clip", "n", "r", min=0.0, max=6.0),
        node("Dropout", "r", "p", ratio=0.5),
        upsample,
        node("Slice", "u", "s", axes=[2, 3], starts=[1, 0], ends=[4, 3]),
        node("ReduceMean", "s", "q", axes=[2, 3], keepdims=0),
        node("Unsqueeze", "q", "q1", axes=[0]),
        node("Squeeze", "q1", "q2", axes=[0]),
        node("Gemm", "q2 fc fb", "f", transB=1),
        node("Softmax", "f", "y", axis=1),
    ]
    constants = {"w": random(3, 2, 3, 3), **BN, "fc": random(5, 3), "fb": random(5), "scales": vector(1, 1, 2, 2)}
    if opset == 7:
        del constants["scales"]
    proto = network(nodes, {"x": ["N", 2, 6, 6]}, ["y"], constants, opset=opset, ir_version=3, constants_as_inputs=True)
    model = load(proto).model
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert operators(model)["BatchNormalization"] == operators(model)["Dropout"] == operators(model)["Pad"] == 0
    before = onnx.ModelProto.FromString(proto.SerializeToString())
    for value in list(before.graph.input)[1:]:
        before.graph.input.remove(value)
    before.ir_version = 4
    assert_same(run(before), run(model))
