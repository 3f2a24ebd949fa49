"""What holds of every format that hands parameters to another tool: written, read back and equal to the plan."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerBlock
from narrowgauge.core.numbers import integer_type
from narrowgauge.demo import NETWORK_NAMES, digits
from narrowgauge.errors import OutputError, PlanError, TargetError
from narrowgauge.exporters import encodings, ncnn, tensorrt
from narrowgauge.exporters.cambricon import read_parameters
from narrowgauge.exporters.formats import FORMATS, Export
from narrowgauge.exporters.qualcomm import read_encodings
from narrowgauge.targets.registry import load_target
from tests.exporters.written import by_hand, damaged, demo_export, export_of, places
from tests.lowering.networks import per_channel, per_tensor
from tests.planning.networks import network, normal, planned, run, seen

Read = Callable[[Path, ir.Model], Mapping[str, Encoding]]

# format -> target, the file of parameters, its reader
FILES: dict[str, tuple[str, str, Read]] = {
    "encodings-0.6.1": ("snpe", "model.encodings", read_encodings),
    "encodings-1.0.0": ("qnn", "model.encodings", read_encodings),
    "encodings-2.0.0": ("qnn", "model.encodings", read_encodings),
    "tensorrt": ("tensorrt", "calibration.cache", lambda path, _: tensorrt.read_cache(path)),
    "cambricon": ("cambricon", "model.cambricon.json", lambda path, _: read_parameters(path)),
    "ncnn": ("ncnn", "model.table", lambda path, _: ncnn.read_table(path)),
}

each_format = pytest.mark.parametrize("form", FILES)
each_network = pytest.mark.parametrize("name", NETWORK_NAMES)


def keys(form: str, export: Export) -> dict[str, str]:
    """Where the file has the encodings of the plan: key -> tensor."""
    if form != "ncnn":
        return {name: name for name in export.plan.encodings}
    found = {}
    for node in export.network.graph:
        for value, key in zip(node.inputs[:2], (str(node.name), f"{node.name}_param_0"), strict=False):
            if node.op_type in {"Conv", "Gemm", "MatMul"} and value is not None and value.name in export.plan.encodings:
                found[key] = str(value.name)
    return found


@each_network
@each_format
def test_the_plan_comes_back(tmp_path: Path, form: str, name: str) -> None:
    target, file, read = FILES[form]
    export = demo_export(name, target)
    exported = FORMATS[form].write(export, tmp_path)
    assert exported.notes
    found = read(tmp_path / file, export.network)
    constants = export.network.graph.initializers
    for key, tensor in keys(form, export).items():
        if form == "tensorrt" and tensor in constants:
            continue
        planned_one = export.plan.encodings[tensor]
        assert isinstance(planned_one, Encoding)
        np.testing.assert_allclose(
            np.broadcast_to(planned_one.scale, found[key].scale.shape), found[key].scale, rtol=2e-7, atol=0
        )
        lowest = np.unique(planned_one.minimum / planned_one.scale)
        np.testing.assert_allclose(np.unique(found[key].minimum / found[key].scale), lowest, atol=1e-4)


@each_network
@each_format
def test_the_network_beside_it(tmp_path: Path, form: str, name: str) -> None:
    """It is the float one, value for value, but for TensorRT the one with Q/DQ."""
    export = demo_export(name, FILES[form][0])
    exported = FORMATS[form].write(export, tmp_path)
    images = digits().images[1200:1232]
    expected = export.simulated if form == "tensorrt" else export.network
    written = ir.load(tmp_path / "model.onnx")
    np.testing.assert_allclose(run(written, images), run(expected, images), atol=1e-5)
    assert exported.runnable == (tmp_path / "model.onnx" if form == "tensorrt" else None)


@each_format
def test_formats_of_targets_are_those_that_write_for_them(form: str) -> None:
    assert form in load_target(FILES[form][0]).formats


@each_format
def test_a_dynamic_plan_is_refused(tmp_path: Path, form: str) -> None:
    model = network("float[n, 3] x", "float[n, 4] y", "y = MatMul (x, w)", w=normal(3, 4))
    plan = planned(model, None, "onnxruntime", mode="dynamic")
    export = Export(network=model, plan=plan, target=load_target(FILES[form][0]), simulated=model)
    with pytest.raises(TargetError, match="run time"):
        FORMATS[form].write(export, tmp_path)


@each_format
def test_damage_is_one_clear_error(tmp_path: Path, form: str) -> None:
    target, file, read = FILES[form]
    export = demo_export("digits_conv", target)
    FORMATS[form].write(export, tmp_path)
    path = tmp_path / file
    for place in places(path, 25):
        for other in (damaged(path, size=place), damaged(path, byte=place)):
            said = refusal(read, other, export.network)
            assert said is None or (str(other) in said and "\n" not in said)


def refusal(read: Read, path: Path, model: ir.Model) -> str | None:
    try:
        read(path, model)
    except PlanError as error:
        return str(error)
    return None


@each_format
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"{}", b"null", b"7", b'"x"', b"\0" * 1000])
def test_foreign_files_are_refused(tmp_path: Path, form: str, content: bytes) -> None:
    _, file, read = FILES[form]
    (tmp_path / file).write_bytes(content)
    model = network("float[n, 3] x", "float[n, 4] y", "y = MatMul (x, w)", w=normal(3, 4))
    if form == "ncnn" and not content:
        assert read(tmp_path / file, model) == {}
        return
    with pytest.raises(PlanError, match=file):
        read(tmp_path / file, model)


@each_format
def test_missing_and_enormous_files_are_refused(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, file, read = FILES[form]
    model = network("float[n, 3] x", "float[n, 4] y", "y = MatMul (x, w)", w=normal(3, 4))
    with pytest.raises(PlanError, match="could not read it"):
        read(tmp_path / file, model)
    monkeypatch.setattr(encodings, "LARGEST_FILE_BYTES", 10)
    (tmp_path / file).write_text("x" * 11)
    with pytest.raises(PlanError, match="at most 10 bytes, it has 11"):
        read(tmp_path / file, model)


@each_format
def test_a_file_that_reads_back_otherwise_is_refused(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first digit that counts of the first scale becomes another one."""
    target, file, _ = FILES[form]
    pattern = {"tensorrt": r": [0-9a-f]{6}()", "ncnn": r" ()[1-9]"}.get(form, r'scale": \[?\s*[0.]*()[1-9]')
    module = importlib.import_module(f"narrowgauge.exporters.{FORMATS[form].module}")

    def spoilt(path: Path, text: str) -> None:
        match = re.search(pattern, text)
        if path.name == file and match is not None:
            digit = "3" if text[match.end(1)] == "2" else "2"
            text = text[: match.end(1)] + digit + text[match.end(1) + 1 :]
        encodings.write_text(path, text)

    monkeypatch.setattr(module, "write_text", spoilt)
    with pytest.raises(OutputError, match=file):
        FORMATS[form].write(demo_export("digits_conv", target), tmp_path)


@each_format
def test_weights_of_two_layers(tmp_path: Path, form: str) -> None:
    target, file, read = FILES[form]
    model = network(
        "float[n, 4] x", "float[n, 4] z", "h = Gemm (x, w, b) y = Relu (h) z = Gemm (y, w)", w=normal(4, 4), b=normal(4)
    )
    export = export_of(model, planned(model, seen(model, normal(8, 4)), target), target)
    FORMATS[form].write(export, tmp_path)
    assert read(tmp_path / file, model)


@each_format
def test_networks_with_branches_and_empty_weights(tmp_path: Path, form: str) -> None:
    """A body of If reads an outer value, and a layer has no channel at all."""
    target = FILES[form][0]
    model = network(
        "float[n, 4] x, bool c", "float[n, 4] z, float[n, 0] e",
        "h = MatMul (x, w) e = MatMul (x, none) "
        "z = If (c) <then_branch = g1 () => (float[n, 4] a) { a = Relu (h) }, "
        "else_branch = g2 () => (float[n, 4] a) { a = Neg (h) }>",
        w=normal(4, 4), none=normal(4, 0),
    )  # fmt: skip
    kind = "uint8" if target in {"snpe", "qnn"} else load_target(target).activations.types[0].name
    weights = load_target(target).weights.types[-1].name if target != "tensorrt" else "int8"
    empty = replace(per_channel(weights, normal(4, 1), 1), scale=np.zeros(0), zero_point=np.zeros(0, np.int32))
    scales = {"x": per_tensor(kind, 0.02), "w": per_tensor(weights, 0.01), "none": empty}
    export = by_hand(model, target, scales)
    FORMATS[form].write(export, tmp_path)


KERNEL, MATRIX = normal(2, 3, 2, 2), normal(4, 4)
BLOCKS = Encoding(
    type=integer_type("int8"), granularity=PerBlock(0, 2), scale=np.abs(normal(2, 4)) + 0.1,
    zero_point=np.zeros((2, 4), np.int32),
)  # fmt: skip

# network, encodings, formats that write it, ncnn with a note that it computes in float; every other one refuses it and
# names a tensor or node
UNUSUAL: dict[str, tuple[ir.Model, Mapping[str, Encoding], set[str]]] = {
    "transposed kernel": (
        network("float[n, 2, 4, 4] x", "float y", "y = ConvTranspose (x, w)", w=KERNEL),
        {"x": per_tensor("int8", 0.5), "w": per_channel("int8", KERNEL, 1)},
        set(FILES),
    ),
    "constant on the left": (
        network("float[4, n] x", "float y", "y = MatMul (w, x)", w=MATRIX),
        {"x": per_tensor("int8", 0.5), "w": per_tensor("int8", 0.5)},
        set(FILES),
    ),
    "constant on the left, a scale a row": (
        network("float[4, n] x", "float y", "y = MatMul (w, x)", w=MATRIX),
        {"x": per_tensor("int8", 0.5), "w": per_channel("int8", MATRIX, 0)},
        {"encodings-2.0.0", "cambricon", "ncnn"},
    ),
    "16 bits": (
        network("float[n, 4] x", "float y", "y = MatMul (x, w)", w=MATRIX),
        {"x": per_tensor("int16", 1e-4), "w": per_tensor("int8", 0.5)},
        {"encodings-0.6.1", "encodings-1.0.0", "encodings-2.0.0", "cambricon"},
    ),
    "unsigned": (
        network("float[n, 4] x", "float y", "y = MatMul (x, w)", w=MATRIX),
        {"x": per_tensor("uint8", 0.1, 12), "w": per_tensor("uint8", 0.5, 128)},
        {"encodings-0.6.1", "encodings-1.0.0", "encodings-2.0.0"},
    ),
    "blocks": (
        network("float[n, 4] x", "float y", "y = MatMul (x, w)", w=MATRIX),
        {"x": per_tensor("int8", 0.5), "w": BLOCKS},
        {"encodings-2.0.0", "ncnn"},
    ),
}


@each_format
@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_plans_are_written_or_refused(tmp_path: Path, form: str, case: str) -> None:
    target, file, read = FILES[form]
    model, scales, written = UNUSUAL[case]
    if form == "ncnn":  # its levels end at -127
        scales = {
            name: replace(one, type=integer_type("int8_narrow")) if one.type.name == "int8" else one
            for name, one in scales.items()
        }
    if form in written:
        FORMATS[form].write(by_hand(model, target, scales), tmp_path)
        read(tmp_path / file, model)
    else:
        with pytest.raises(TargetError, match=r"'[wx]|'node"):
            FORMATS[form].write(by_hand(model, target, scales), tmp_path)


def returning(found: Mapping[str, Encoding]) -> Callable[[Path], Mapping[str, Encoding]]:
    return lambda path: found


def test_a_tensor_that_is_missing_or_too_many_is_named(tmp_path: Path) -> None:
    one = {"a": per_tensor("int8", 0.5)}
    for planned_one, found in ((one, {}), ({}, one)):
        with pytest.raises(OutputError, match="'a' is not in the"):
            encodings.check_read_back(tmp_path, planned_one, returning(found))
    for other, said in (
        (per_tensor("int4", 0.5), "levels of int4, not int8"),
        (per_tensor("int8", 0.25), "scale 0.25 at 0, not 0.5"),
        (per_tensor("int8", 0.5, 3), "another zero point"),
        (per_channel("int8", normal(3, 2), 0), "per axis 0, not per tensor"),
    ):
        with pytest.raises(OutputError, match=f"'a' reads back with .*{said}"):
            encodings.check_read_back(tmp_path, one, returning({"a": other}))
    encodings.check_read_back(tmp_path, one, returning({"a": per_tensor("uint8", 0.5, 128)}))
