"""The whole analysis of demo networks."""

from __future__ import annotations

import pytest

from narrowgauge.analysis.analyze import analyze
from narrowgauge.demo import digits, network_path
from narrowgauge.importers.onnx import load
from narrowgauge.targets.registry import load_target
from tests.analysis.exact import batched
from tests.calibration.networks import batches_of
from tests.lowering.networks import hand_plan, per_tensor
from tests.planning.networks import network, normal, planned, seen


def test_every_rounded_tensor_has_a_loss_and_a_cost() -> None:
    model = load(network_path("digits_conv")).model
    images = digits().images
    statistics = seen(model, images[:64])
    plan = planned(model, statistics, "snpe")
    begun: list[str] = []

    class Told:
        begin = staticmethod(lambda part, total: begun.append(part))
        advance = staticmethod(lambda count: None)

    batches = list(batches_of(model, images[:16], 8))
    found = analyze(
        model, model, plan, statistics, batches, target=load_target("snpe"), remedies=2, progress=Told(), threads=2
    )
    assert found.samples == 16
    assert 0 < found.noise < 0.01
    costs = {one.name: one for one in found.sensitivities if one.kind != "layer"}
    losses = {one.name: one for one in found.losses}
    assert set(costs) <= set(losses)
    assert {(one.name, one.kind, one.node, one.depth) for one in costs.values()} <= {
        (one.name, one.kind, one.node, one.depth) for one in losses.values()
    }
    assert set(found.distributions) == set(losses)
    assert {one.tensor for one in found.remedies} == {one.name for one in found.ranking()[:2]}
    assert found.depth[-1].name == "logits"
    assert begun == list(found.seconds)


def test_what_cannot_be_measured_is_said() -> None:
    target = load_target("snpe")
    whole = network("float[n, 4] x", "int64[n] i", "h = MatMul(x, w) i = ArgMax<axis = 1, keepdims = 0>(h)",
                    w=normal(4, 4))  # fmt: skip
    batches = batched(whole, {"x": normal(8, 4)})
    found = analyze(whole, whole, hand_plan({"w": per_tensor("int8", 0.1)}), None, batches, target=target)
    assert [one.name for one in found.losses] == ["w"]
    assert found.sensitivities == ()
    assert "unknown" in found.notes[0]
    nothing = analyze(whole, whole, hand_plan({}), None, batches, target=target)
    assert nothing.notes == ("nothing is quantized: there is nothing to analyse",)


@pytest.mark.slow
def test_an_image_network_within_a_minute(zoo) -> None:
    path = next((zoo / "models" / "mobilenet_v1_025").glob("*.onnx"))
    model = load(path).model
    images = normal(16, *[int(size) for size in model.graph.inputs[0].shape[1:]])
    statistics = seen(model, images)
    plan = planned(model, statistics, "snpe")
    found = analyze(
        model, model, plan, statistics, list(batches_of(model, images, 4)), target=load_target("snpe"), threads=2
    )
    assert len(found.ranking()) > 50
    assert found.remedies
