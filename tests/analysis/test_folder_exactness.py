"""A folder's integers beside an engine's: what is compared, what cannot be, and what is said of differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge import demo, quantize
from narrowgauge.analysis import folder_exactness as folder_exactness_module
from narrowgauge.analysis.exactness import Differences, Exactness, TensorExactness
from narrowgauge.analysis.folder_exactness import explain, float_before, folder_exactness
from narrowgauge.core.plan import load_plan
from narrowgauge.data import input_specs, open_samples
from narrowgauge.exporters.onnx import write_onnx
from narrowgauge.graph.refusals import REFUSAL
from narrowgauge.importers.onnx import load, read
from narrowgauge.runtimes import inner
from narrowgauge.runtimes.engines import engine_named
from narrowgauge.runtimes.inner import Inner
from narrowgauge.targets.registry import load_target
from tests.passes.networks import network as built
from tests.passes.networks import node

IMAGES = demo.digits().images


def written(folder: Path, target: str) -> Path:
    quantize(
        demo.network_path("digits_conv"), {"image": IMAGES[:40]}, recipe="plain", samples=24, target=target,
        out=folder / target,
    )  # fmt: skip
    return folder / target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("exactness"), "onnxruntime")


def looked_into(
    folder: Path, runtime: str, file: str = "model.onnx", **plan: Any
) -> tuple[Exactness | None, tuple[str, ...]]:
    samples = open_samples({"image": IMAGES[40:46]}, input_specs(read(folder / "float.onnx")))
    found = load_plan(folder / "plan.json")
    return folder_exactness(
        folder / file, samples, engine=engine_named(runtime), plan=replace(found, **plan),
        target=load_target(found.target), threads=1,
    )  # fmt: skip


def test_onnx_runtime_computes_what_we_compute(folder: Path) -> None:
    found, reasons = looked_into(folder, "onnxruntime")
    assert found is not None
    assert (found.samples, found.differences.different, reasons) == (6, 0, ())
    assert found.elements > 10_000


def test_signed_levels_that_onnx_runtime_makes_unsigned_are_found(tmp_path: Path) -> None:
    """On x86-64; elsewhere it leaves them signed."""
    found, reasons = looked_into(written(tmp_path, "onnxruntime-arm"), "onnxruntime")
    assert found is not None, reasons
    assert len(found.tensors) > 4
    assert (found.differences.different, found.only_ours, found.only_runtime) == (0, (), ())


@pytest.mark.parametrize("runtime", ["litert", "litert-reference"])
def test_litert_computes_what_we_compute(tmp_path_factory: pytest.TempPathFactory, runtime: str) -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is the engine")
    out = written(tmp_path_factory.mktemp(runtime), "tflite")
    found, reasons = looked_into(out, runtime, "model.tflite")
    assert found is not None, reasons
    assert found.differences.different == 0, reasons
    assert found.elements > 10_000


def test_without_the_folders_integer_network_one_is_made(folder: Path, tmp_path: Path) -> None:
    for name in ("float.onnx", "plan.json", "model.onnx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    found, _ = looked_into(tmp_path, "onnxruntime")
    assert found is not None
    assert found.differences.different == 0
    assert found.elements == looked_into(folder, "onnxruntime")[0].elements  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("runtime", "plan", "said"),
    [
        ("onnxruntime", {"mode": "dynamic"}, "a dynamic plan has no activations of known scales"),
        ("onnxruntime", {"mode": "weight-only"}, "a weight-only plan"),
        ("torch", {}, "the arithmetic of PyTorch is not one of ours"),
        ("litert", {}, "litert does not run such a file"),
    ],
)
def test_what_cannot_be_compared_is_said(folder: Path, runtime: str, plan: dict[str, str], said: str) -> None:
    found, reasons = looked_into(folder, runtime, **plan)
    assert found is None
    assert len(reasons) == 1
    assert reasons[0].startswith("the integers inside were not compared: ")
    assert said in reasons[0]


def differing(*names: str) -> Exactness:
    two = Differences(by=(2, *[0] * 10), largest=1)
    rows = tuple(
        TensorExactness(
            name=name, node=f"{name}_node", operator="Conv", elements=10, differences=two, own=two, remark=""
        )
        for name in names
    )
    return Exactness(tensors=rows, samples=1, only_ours=(), only_runtime=(), notes=())


@pytest.fixture(scope="module")
def island() -> tuple[ir.Model, ir.Model]:
    """A float network, and levels, a Softmax in float between them, levels."""
    weights = {"w": np.ones((1, 1, 1, 1), np.float32)}
    convolutions = [node("Conv", "x w", "c"), node("Softmax", "c", "s"), node("Conv", "s w", "y")]
    network = load(built(convolutions, {"x": [1, 1, 4, 4]}, ["y"], weights), simplify=False).model
    constants = {
        "q": np.ones((1, 1, 1, 1), np.int8), "one": np.float32(1), "zero": np.uint8(0), "none": np.int8(0),
    }  # fmt: skip
    nodes = [
        node("Mul", "x one", "scaled"),
        node("QuantizeLinear", "scaled one zero", "x_quantized"),
        node("QLinearConv", "x_quantized one zero q one none one zero", "c_quantized"),
        node("DequantizeLinear", "c_quantized one zero", "c_real"),
        node("Softmax", "c_real", "s"),
        node("QuantizeLinear", "s one zero", "s_quantized"),
        node("DequantizeLinear", "s_quantized one zero", "y_"),
    ]
    return network, load(built(nodes, {"x": [1, 1, 4, 4]}, ["y_"], constants), simplify=False).model


def test_operators_in_float_before_a_rounding_are_found(island: tuple[ir.Model, ir.Model]) -> None:
    network, integer = island
    nodes = {str(node.name) for node in network.graph}
    found = float_before(integer, ["x", "c", "s", "unknown"], nodes)
    operators = {name: [node.op_type for node in island] for name, island in found.items()}
    assert operators == {"x": [], "c": [], "s": ["Softmax"], "unknown": []}


def test_differences_are_explained(island: tuple[ir.Model, ir.Model]) -> None:
    network, integer = island
    target, engine = load_target("onnxruntime"), engine_named("onnxruntime")
    said = list(explain(differing("c", "s"), network, integer, engine=engine, target=target))
    assert said[0].startswith("WARNING: 4 of 20 integers inside ONNX Runtime differ from those that we compute (0.2)")
    assert "the first is in 'c' (Conv c_node)" in said[0]
    assert "float" in said[1]
    assert "s (behind Softmax)" in said[1]
    assert said[2].endswith("from equal integers before them: c")
    assert len(said) == 3


def test_the_order_of_sums_explains_no_more_than_one_level(island: tuple[ir.Model, ir.Model], tmp_path: Path) -> None:
    network, integer = island
    target, engine = load_target("onnxruntime"), engine_named("onnxruntime")
    far = differing("s")
    (row,) = far.tensors
    far = replace(far, tensors=(replace(row, own=Differences(by=(0,) * 10 + (2,), largest=234)),))
    said = list(explain(far, network, integer, engine=engine, target=target))
    assert said[1] == "s differs by more than the order of sums in float explains; the reason is not known"
    refused = integer.clone()
    next(node for node in refused.graph if node.op_type == "Softmax").metadata_props[REFUSAL] = "it is not known"
    write_onnx(refused, tmp_path / "integer.onnx")
    said = list(explain(far, network, read(tmp_path / "integer.onnx"), engine=engine, target=target))
    assert said[1] == (
        "s is rounded behind what we compute in real numbers, and the engine may not: Softmax node_s (it is not known)"
    )
    assert len(said) == 2


def test_a_network_without_levels_is_not_compared(folder: Path, tmp_path: Path) -> None:
    """Every node stays float, so that no plan has an activation."""
    for name in ("float.onnx", "plan.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.onnx").write_bytes((folder / "float.onnx").read_bytes())
    found, reasons = looked_into(tmp_path, "onnxruntime", encodings={}, float_nodes=())
    assert found is None
    assert reasons == ("the integers inside were not compared: nothing in the network is rounded to levels",)


def test_values_of_other_names_and_shapes_are_not_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = inner.open_inner

    def nameless(path: Path, **options: Any) -> Inner:
        return replace(honest(path, **options), names=())

    monkeypatch.setattr(folder_exactness_module, "open_inner", nameless)
    assert "none of them has the same name in model.onnx" in looked_into(folder, "onnxruntime")[1][0]

    def cut(path: Path, **options: Any) -> Inner:
        opened = honest(path, **options)
        return replace(opened, run=lambda feed: {name: one[:, :1] for name, one in opened.run(feed).items()})

    monkeypatch.setattr(folder_exactness_module, "open_inner", cut)
    assert "was not compared: ours has the shape" in looked_into(folder, "onnxruntime")[1][0]


def test_an_engine_known_to_differ_brings_no_warning(island: tuple[ir.Model, ir.Model]) -> None:
    network, integer = island
    target, engine = load_target("onnxruntime"), engine_named("openvino")
    said = list(explain(differing("c"), network, integer, engine=engine, target=target))
    assert not any(line.startswith("WARNING") for line in said)
    assert said[1] == f"OpenVINO: {engine.deviation}"


def test_equal_integers_need_no_words(island: tuple[ir.Model, ir.Model]) -> None:
    network, integer = island
    target, engine = load_target("onnxruntime"), engine_named("onnxruntime")
    same = replace(differing("c").tensors[0], differences=Differences(), own=None)
    found = replace(differing("c"), tensors=(same,))
    assert list(explain(found, network, integer, engine=engine, target=target)) == []
