"""Files for the Edge TPU and the Hexagon delegate: one sample, integers at the ends, notes on what stays on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from narrowgauge.calibration.collect import collect
from narrowgauge.core.plan import Plan
from narrowgauge.data.batches import Batch
from narrowgauge.exporters.formats import Export
from narrowgauge.exporters.tflite.chips import with_one_sample, write_edgetpu, write_hexagon
from narrowgauge.exporters.tflite.constraints import CHIPS, check
from narrowgauge.importers.onnx import load
from narrowgauge.importers.tflite import read_network
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.planning.choices import Choices
from narrowgauge.planning.fill import fill
from narrowgauge.planning.place import place
from narrowgauge.targets.registry import load_target
from tests.lowering.networks import photos
from tests.passes.networks import network, node, random

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert, which has the schema of .tflite, is not installed")


def planned(model, target: str, samples: np.ndarray) -> Export:
    chip, choices, name = load_target(target), Choices(mode="static"), model.graph.inputs[0].name
    statistics = collect(model, [Batch(feed={name: samples}, count=len(samples), names=("a",), labels=(None,))])
    plan: Plan = fill(model, place(model, chip, choices), statistics, chip, choices)
    simulated = lower_to_qdq(model, plan, QdqStyle(bias_bits=chip.bias_bits))
    return Export(network=model, plan=plan, target=chip, simulated=simulated)


def small(samples: int | str = "N", **attributes: object):
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1], **attributes), node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "m"), node("Flatten", "m", "f"), node("Gemm", "f v a", "y", transB=1),
    ]  # fmt: skip
    constants = {"w": random(8, 4, 3, 3), "b": random(8), "v": random(5, 8), "a": random(5)}
    return load(network(nodes, {"x": [samples, 4, 8, 8]}, ["y"], constants)).model


def test_the_edge_tpu_gets_constant_sizes(tmp_path: Path) -> None:
    exported = write_edgetpu(planned(small(), "tflite-edgetpu", random(2, 4, 8, 8)), tmp_path)
    graph = read_network(tmp_path / "model.tflite").main
    assert check(graph, CHIPS["tflite-edgetpu"]) == []
    assert [graph.tensors[number].type for number in (*graph.inputs, *graph.outputs)] == ["INT8", "INT8"]
    assert f"the Edge TPU runs all {len(graph.operators)} operators" in exported.notes
    assert "the file takes one sample at a time: the chip wants constant sizes" in exported.notes


def test_the_hexagon_delegate_may_take_any_number(tmp_path: Path) -> None:
    exported = write_hexagon(planned(small(), "tflite-hexagon", random(2, 4, 8, 8)), tmp_path)
    graph = read_network(tmp_path / "model.tflite").main
    assert graph.tensors[graph.inputs[0]].dynamic == (0,)
    assert exported.notes == (f"the Hexagon delegate runs all {len(graph.operators)} operators",)


def test_what_stays_on_the_cpu_is_noted(tmp_path: Path) -> None:
    exported = write_hexagon(planned(small(dilations=[2, 2]), "tflite-hexagon", random(2, 4, 8, 8)), tmp_path)
    assert any("dilations [2, 2]; expected 1" in note for note in exported.notes)
    assert "the CPU the others" in exported.notes[0]


def test_only_open_numbers_of_samples_are_fixed() -> None:
    model = small(3)
    assert with_one_sample(model) == (model, ())
    model = load(network([node("Add", "x z", "y")], {"x": ["N", 4], "z": ["N", "M"]}, ["y"])).model
    fixed, _ = with_one_sample(model)
    assert [tuple(map(str, value.shape)) for value in fixed.graph.inputs] == [("1", "4"), ("1", "M")]
    assert str(model.graph.inputs[0].shape[0]) == "N"


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v1_025/mobilenet_v1_0.25_224",
        pytest.param("mobilenet_v2/mobilenet_v2_1.0_224", marks=pytest.mark.slow),
    ],
)
def test_mobile_networks_run_wholly_on_both_chips(zoo: Path, tmp_path: Path, name: str) -> None:
    model = load(zoo / "models" / f"{name}.onnx").model
    for target, write in (("tflite-edgetpu", write_edgetpu), ("tflite-hexagon", write_hexagon)):
        write(planned(model, target, photos(zoo, 224, 1)), tmp_path)
        assert check(read_network(tmp_path / "model.tflite").main, CHIPS[target]) == []
