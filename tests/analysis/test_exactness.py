"""Integers beside an engine's: counted, put into one layout, and traced to the step where they part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge import demo, quantize
from narrowgauge.analysis.exactness import Differences, Exactness, check_exactness, to_json, to_summary, total
from narrowgauge.core.plan import load_plan
from narrowgauge.data.batches import Batch
from narrowgauge.errors import DataError
from narrowgauge.graph.constants import constant_array, set_constant
from narrowgauge.importers.onnx import read
from narrowgauge.runtimes.inner import Inner
from narrowgauge.runtimes.onnxruntime import open_inner

Levels = dict[str, np.ndarray]
IMAGES = demo.digits().images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional network for ONNX Runtime."""
    out = tmp_path_factory.mktemp("exactness") / "int8"
    quantize(demo.network_path("digits_conv"), {"image": IMAGES[:48]}, recipe="plain", samples=24, out=out)
    return out


@pytest.fixture(scope="module")
def network(folder: Path) -> ir.Model:
    return read(folder / "float.onnx")


@pytest.fixture(scope="module")
def integer(folder: Path) -> ir.Model:
    return read(folder / "integer.onnx")


def batches(count: int = 2, rows: int = 3) -> list[Batch]:
    return [
        Batch(feed={"image": IMAGES[rows * n : rows * (n + 1)]}, count=rows, names=("",) * rows, labels=(None,) * rows)
        for n in range(count)
    ]


def check(integer: ir.Model, inner: Inner, network: ir.Model) -> Exactness:
    return check_exactness(integer, inner, batches(), network=network, threads=1)


def changed(inner: Inner, change: Callable[[Levels], Levels]) -> Inner:
    """An engine that gives something else."""

    def run(feed: Mapping[str, np.ndarray]) -> Levels:
        return change(inner.run(feed))

    return replace(inner, run=run)


def test_onnx_runtime_s_own_fused_integers_are_ours(folder: Path, integer: ir.Model, network: ir.Model) -> None:
    found = check(integer, open_inner(folder / "model.onnx", threads=1), network)
    plan = load_plan(folder / "plan.json")
    assert {one.name for one in found.tensors} <= set(plan.encodings)
    assert len(found.tensors) > 4
    assert found.elements > 10_000
    assert found.differences == Differences()
    assert (found.first, found.own, found.only_ours, found.only_runtime) == (None, None, (), ())
    assert found.samples == 6


def test_tensors_stand_in_the_network_s_order_with_the_nodes_that_write_them(
    folder: Path, integer: ir.Model, network: ir.Model
) -> None:
    found = check(integer, open_inner(folder / "model.onnx", threads=1), network)
    written = [str(value.name) for node in network.graph for value in node.outputs]
    inner = [one for one in found.tensors if one.node]
    assert [one.name for one in inner] == [name for name in written if name in {one.name for one in inner}]
    nodes = {str(node.name): node for node in network.graph}
    for one in inner:
        assert one.name in {value.name for value in nodes[one.node].outputs}
        assert one.operator == nodes[one.node].op_type


def test_the_histogram_counts_by_how_much_integers_differ(integer: ir.Model, network: ir.Model) -> None:
    inner = open_inner(integer, threads=1)
    name = inner.names[2]

    def change(levels: Levels) -> Levels:
        flat = np.full(levels[name].size, 100, dtype=np.uint8)
        flat[:6] = [101, 99, 98, 110, 111, 0]
        return {**levels, name: flat.reshape(levels[name].shape)}

    def ours(levels: Levels) -> Levels:
        return {**levels, name: np.full_like(levels[name], 100)}

    # Both are changed, so that what our network really computes there does not matter.
    found = check_pair(changed(inner, ours), changed(inner, change), name)
    assert found == Differences(by=(4, 2, 0, 0, 0, 0, 0, 0, 0, 2, 4), largest=100)


def check_pair(one: Inner, other: Inner, name: str) -> Differences:
    """What `check_exactness` counts of one tensor where both engines are given."""
    from narrowgauge.analysis.exactness import _Pair

    pair = _Pair()
    for batch in batches():
        pair.add(one.run(batch.feed)[name], other.run(batch.feed)[name], batch)
    return pair.whole.differences()


def test_a_step_that_computes_something_else_is_told_from_those_behind_it(integer: ir.Model, network: ir.Model) -> None:
    """One layer of ours has another bias: all tensors behind it differ, but only it does by itself."""
    other = integer.clone()
    layer = [node for node in other.graph if node.op_type == "QLinearConv"][1]
    bias = layer.inputs[8]
    levels = constant_array(bias)
    assert bias is not None
    assert levels is not None
    set_constant(bias, levels + 4000)
    found = check(other, open_inner(integer, threads=1), network)
    assert found.first is not None
    assert f"{found.first.name}_quantized" == layer.outputs[0].name
    differing = [one.name for one in found.tensors if one.differences.different]
    assert len(differing) > 2
    alone = [one.name for one in found.tensors if one.own is not None and one.own.different]
    assert alone == [found.first.name]
    assert found.own == found.first.own
    assert found.first.own is not None
    assert found.first.own.different == found.first.differences.different


@pytest.mark.parametrize("layout", ["last", "flat", "signed"])
def test_other_layouts_are_put_into_ours(integer: ir.Model, network: ir.Model, layout: str) -> None:
    inner = open_inner(integer, threads=1)

    def change(levels: Levels) -> Levels:
        if layout == "last":
            return {name: np.moveaxis(one, 1, -1) if one.ndim > 2 else one for name, one in levels.items()}
        if layout == "flat":
            return {name: one[..., None] for name, one in levels.items()}
        return {name: (one.astype(np.int16) - 128).astype(np.int8) for name, one in levels.items()}

    found = check(integer, changed(inner, change), network)
    assert found.elements == check(integer, inner, network).elements
    assert found.differences.different == 0
    if layout == "last":
        assert any("axes are taken in the order 0, 3, 1, 2" in one.remark for one in found.tensors)


def test_the_layout_of_a_file_that_says_it_is_not_guessed(integer: ir.Model, network: ir.Model) -> None:
    """A guess would put right what the file says wrongly."""
    from narrowgauge.analysis.exactness import AS_SAID, _Pair

    one = np.arange(64, dtype=np.uint8).reshape(1, 4, 4, 4)
    (batch,) = batches(1, 1)
    assert not _Pair().add(one, np.moveaxis(one, 1, -1), batch)
    assert _Pair(fit=AS_SAID).add(one, np.moveaxis(one, 1, -1), batch)

    plain = open_inner(integer, threads=1)
    turned = changed(plain, lambda levels: {name: np.moveaxis(one, 1, -1) for name, one in levels.items()})
    found = check(integer, replace(turned, laid_out=True), network)
    assert any("ours has the shape" in one.remark for one in found.tensors)
    assert check(integer, replace(plain, laid_out=True), network).differences.different == 0


def test_what_cannot_be_compared_is_said_and_not_counted(integer: ir.Model, network: ir.Model) -> None:
    inner = open_inner(integer, threads=1)
    short, wide = inner.names[1], inner.names[2]

    def change(levels: Levels) -> Levels:
        return {**levels, short: levels[short][:, :1, :1], wide: levels[wide].astype(np.int32)}

    found = check(integer, changed(inner, change), network)
    rows = {one.name: one for one in found.tensors}
    assert rows[short].elements == rows[wide].elements == 0
    assert "the shape" in rows[short].remark
    assert "the engine's int32" in rows[wide].remark
    assert found.differences.different == 0
    assert to_summary(found)["not_compared"] == 2


def test_values_of_one_side_alone_are_named(integer: ir.Model, network: ir.Model) -> None:
    inner = open_inner(integer, threads=1)
    less = replace(inner, names=(*inner.names[1:], "other"))
    less = changed(less, lambda levels: {**levels, "other": next(iter(levels.values()))})
    found = check(integer, less, network)
    assert found.only_ours == (inner.names[0],)
    assert found.only_runtime == ("other",)


def test_without_samples_there_is_nothing_to_say(integer: ir.Model, network: ir.Model) -> None:
    with pytest.raises(DataError, match="got none"):
        check_exactness(integer, open_inner(integer, threads=1), [], network=network)


def test_rows_that_fill_a_batch_are_not_counted(integer: ir.Model, network: ir.Model) -> None:
    images = np.concatenate([IMAGES[:2], IMAGES[1:2], IMAGES[1:2]])
    filled = Batch(feed={"image": images}, count=2, names=("", ""), labels=(None, None))
    inner = open_inner(integer, threads=1)
    both = check_exactness(integer, inner, [filled], network=network)
    plain = Batch(feed={"image": IMAGES[:2]}, count=2, names=("", ""), labels=(None, None))
    assert both.elements == check_exactness(integer, inner, [plain], network=network).elements


def test_json_has_sums_and_rows(integer: ir.Model, network: ir.Model) -> None:
    inner = open_inner(integer, threads=1)
    name = inner.names[-1]
    found = check(integer, changed(inner, lambda levels: {**levels, name: levels[name] ^ 1}), network)
    record = to_json(found)
    assert record["first_different_tensor"] == name
    assert record["different"] == record["off_by"]["1"] == record["own"]["different"]
    assert record["max"] == 1
    assert [row["name"] for row in record["tensors"]] == [one.name for one in found.tensors]
    summary = to_summary(found, ["because"])
    assert summary["first_different_tensors"] == [row for row in record["tensors"] if row["different"]]
    assert summary["reasons"] == ["because"]
    assert (summary["elements"], summary["different"], summary["max"]) == (found.elements, record["different"], 1)


def test_differences_add_up() -> None:
    one = Differences(by=(3, *[0] * 9, 1), largest=12)
    other = Differences(by=(1, 2, *[0] * 9), largest=2)
    assert total([one, other]) == Differences(by=(4, 2, *[0] * 8, 1), largest=12)
    assert total([]).different == 0
