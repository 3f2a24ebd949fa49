"""The formats: files written, read back, compared, and run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.errors import NarrowgaugeError, OutputError, TargetError
from narrowgauge.exporters.tflite import write, write_float
from narrowgauge.exporters.tflite.checking import check
from narrowgauge.exporters.tflite.conversion import convert
from narrowgauge.importers.tflite import read_network
from narrowgauge.targets.registry import load_target
from tests.exporters.tflite.networks import case
from tests.exporters.tflite.planning import everything_in_integers
from tests.exporters.tflite.running import exported, feed_of, in_litert, in_onnxruntime, operators, written
from tests.exporters.written import damaged, places
from tests.planning.networks import network, normal, planned, seen

pytest.importorskip("ai_edge_litert", reason="its schema writes and reads the files")


def layer_pair() -> network:
    return network(
        "float[n, 3, 8, 9] x", "float[n, 5] y",
        "c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v)",
        w=normal(8, 3, 3, 3), b=normal(8), v=normal(8, 5),
    )  # fmt: skip


@pytest.mark.parametrize("form", load_target("tflite").formats)
def test_every_format_of_the_target_runs(form: str, tmp_path: Path) -> None:
    model = layer_pair()
    feed = feed_of(model, rows=5)
    plan = planned(model, seen(model, feed["x"]), "tflite")
    done = written(model, tmp_path, plan, form)
    assert done.runnable == tmp_path / "model.tflite"
    found, expected = in_litert(done.runnable, model, feed)["y"], in_onnxruntime(model, feed)["y"]
    tolerance = 1e-5 if form == "tflite-float" else 0.05
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("mode", "weights", "tolerance"),
    [("dynamic", None, 0.03), ("weight-only", None, 1e-5), ("weight-only", "int4", 1e-5)],
)
def test_modes(mode: str, weights: str | None, tolerance: float, tmp_path: Path) -> None:
    model = layer_pair()
    feed = feed_of(model, rows=5)
    asked = {} if weights is None else {"weights": integer_type(weights)}
    plan = planned(model, None, "tflite", mode=mode, **asked)
    done = written(model, tmp_path, plan)
    assert done.runnable is not None
    assert ("DEQUANTIZE" in operators(done.runnable)) == (mode == "weight-only")
    expected = in_onnxruntime(exported(model, plan).simulated, feed)["y"]
    found = in_litert(done.runnable, model, feed)["y"]
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    model = layer_pair()
    plan = everything_in_integers(model, feed_of(model))
    first = written(model, tmp_path, plan).runnable.read_bytes()
    assert written(model, tmp_path, plan).runnable.read_bytes() == first


def test_equal_vectors_and_buffers_are_written_once(tmp_path: Path) -> None:
    channels = 512
    body = " ".join(f"a{n + 1} = Conv<group = {channels}>(a{n}, w)" for n in range(6))
    model = network(
        f"float[n, {channels}, 2, 3] a0", f"float[n, {channels}, 2, 3] a6", body, w=normal(channels, 1, 1, 1)
    )
    plan = everything_in_integers(model, feed_of(model))
    size = written(model, tmp_path, plan).runnable.stat().st_size
    # of each layer a bias (4 bytes a channel) and the scales of that (4); once weights, their scales, and zero points
    assert size < channels * (6 * (4 + 4) + 1 + 6 * 4 + 8) + 6000


def test_signature_and_metadata_say_the_networks_names(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    model = layer_pair()
    plan = everything_in_integers(model, feed_of(model))
    path = written(model, tmp_path, plan).runnable
    assert Interpreter(str(path)).get_signature_list() == {"serving_default": {"inputs": ["x"], "outputs": ["y"]}}
    file = schema.Model.GetRootAs(path.read_bytes())
    names = {file.Metadata(number).Name(): file.Metadata(number).Buffer() for number in range(file.MetadataLength())}
    assert set(names) == {b"min_runtime_version", b"narrowgauge"}
    content = bytes(file.Buffers(names[b"narrowgauge"]).DataAsNumpy())
    assert content == b'{"channels_last":["x_float","x","r","p"]}'


def test_weights_begin_where_kernels_can_read_them(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    path = written(layer_pair(), tmp_path).runnable
    data = path.read_bytes()
    file = schema.Model.GetRootAs(data)
    for number in range(file.BuffersLength()):
        buffer = file.Buffers(number)
        if buffer.DataLength():
            place = buffer._tab.Vector(buffer._tab.Offset(4))
            assert place % 16 == 0


def test_float_format_says_that_the_plan_is_not_in_it(tmp_path: Path) -> None:
    model = layer_pair()
    export = exported(model, everything_in_integers(model, feed_of(model)))
    assert any("the plan is not in it" in note for note in write_float(export, tmp_path).notes)


def test_file_that_differs_from_the_plan_is_refused(tmp_path: Path) -> None:
    model = layer_pair()
    plan = everything_in_integers(model, feed_of(model))
    export = exported(model, plan)
    path = write(export, tmp_path).runnable
    graph = convert(model, plan).graph
    for name in ("r", "w"):
        encoding = plan.encodings[name]
        assert isinstance(encoding, Encoding)
        other = replace(encoding, scale=encoding.scale * np.float32(1.5))
        changed = Plan(target="tflite", encodings={**plan.encodings, name: other})
        with pytest.raises(OutputError, match=repr(name)):
            check(path, graph, changed, exported(model, changed).simulated)


def test_damage_is_noticed(tmp_path: Path) -> None:
    model = layer_pair()
    plan = everything_in_integers(model, feed_of(model))
    path = write(exported(model, plan), tmp_path).runnable
    graph = convert(model, plan).graph
    for size in places(path, 8):
        with pytest.raises(NarrowgaugeError):
            check(damaged(path, size=size), graph, plan, None)


def test_per_channel_weights_beside_bytes_are_refused(tmp_path: Path) -> None:
    model = case("gemm")
    plan = everything_in_integers(model, feed_of(model), "uint8", "uint8")
    channels = everything_in_integers(model, feed_of(model)).encodings["w"]
    mixed = Plan(target="tflite", encodings={**plan.encodings, "w": channels})
    with pytest.raises(TargetError, match="8-bit weights with one scale"):
        write(exported(model, mixed), tmp_path)


def test_versions_are_those_that_the_types_need(tmp_path: Path) -> None:
    model = layer_pair()
    plan = everything_in_integers(model, feed_of(model))
    kinds = {"float": None, "int8": plan}
    found = {}
    for kind, one in kinds.items():
        graph = read_network(written(model, tmp_path, one).runnable).main
        found[kind] = {operator.name: operator.version for operator in graph.operators}
    assert found["float"] == {"CONV_2D": 1, "MEAN": 1, "RESHAPE": 1, "FULLY_CONNECTED": 6}
    assert found["int8"] == {
        "QUANTIZE": 1, "CONV_2D": 3, "MEAN": 2, "RESHAPE": 1, "FULLY_CONNECTED": 12, "DEQUANTIZE": 2
    }  # fmt: skip
