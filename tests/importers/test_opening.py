"""What every importer shares: which one reads a network, what it is called, how often it is converted."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from narrowgauge.demo import network_path
from narrowgauge.errors import ModelError
from narrowgauge.importers import mxnet
from narrowgauge.importers.imported import Converted
from narrowgauge.importers.opening import framework_of, load, read, read_and_load

NETWORK = network_path("digits_conv")


def test_a_network_has_a_name() -> None:
    assert load(NETWORK).name == str(NETWORK)
    assert load(str(NETWORK)).name == str(NETWORK)
    graph = ir.load(NETWORK)
    assert load(graph).name == graph.graph.name
    graph.graph.name = ""
    assert load(graph).name == "network"
    assert load(onnx.load(NETWORK)).name == onnx.load(NETWORK).graph.name


def test_what_was_read_comes_back_as_it_is() -> None:
    imported = load(NETWORK)
    assert load(imported) is imported
    assert read(imported) is imported.original


def test_only_the_file_of_a_float_onnx_network_stands_for_it(tmp_path: Path) -> None:
    assert load(NETWORK).file == Path(NETWORK)
    assert load(ir.load(NETWORK)).file is None


def test_another_frameworks_network_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def convert(source: object, *, example: object) -> Converted:
        seen.append(source)
        return Converted(model=ir.load(NETWORK), notes=("converted",))

    monkeypatch.setattr(mxnet, "convert", convert)
    path = tmp_path / "net-symbol.json"
    path.touch()
    given, imported = read_and_load(path)
    assert seen == [path]
    assert given is imported.original
    assert (imported.framework, imported.name, imported.notes[0]) == ("MXNet", str(path), "converted")
    assert imported.file is None


@pytest.mark.parametrize(
    ("name", "framework"),
    [("a.onnx", None), ("a.KERAS", "Keras"), ("a.pt2", "PyTorch"), ("a.tflite", "TFLite"), ("a.params", "MXNet")],
)
def test_a_files_framework(name: str, framework: str | None) -> None:
    found = framework_of(Path(name))
    assert (found.name if found else None) == framework


def test_what_nobody_reads_is_refused() -> None:
    with pytest.raises(ModelError, match=r"expected a path, an ONNX network, .* got dict"):
        load({})


@pytest.mark.parametrize("name", ["gone.keras", "gone.pt2", "gone.tflite", "gone-symbol.json"])
def test_a_missing_file_is_said_before_a_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for package in ("keras", "torch", "ai_edge_litert"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=r"gone.*: no such file"):
        load(tmp_path / name)
