"""The loss of every tensor of whole networks: from statistics, measured, and beside the truth."""

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.analysis.loss import loss_from_statistics, measured_loss
from narrowgauge.analysis.records import TensorLoss
from narrowgauge.calibration.collect import collect
from narrowgauge.calibration.histogram import EMPTY
from narrowgauge.calibration.ranges import estimator
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerBlock
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.demo import NETWORK_NAMES, digits, network_path
from narrowgauge.errors import StatisticsError
from narrowgauge.graph.constants import set_constant
from narrowgauge.importers.onnx import load
from narrowgauge.planning.choices import Choices
from narrowgauge.planning.fill import fill
from narrowgauge.planning.place import place
from narrowgauge.targets.registry import load_target
from tests.calibration.networks import batches_of, convolutions, exposed, pictures
from tests.lowering.networks import hand_plan, per_tensor

SAMPLES = 64


def planned(name: str, ranges: str, target: str = "tflite") -> tuple[ir.Model, Plan, Statistics]:
    model = load(network_path(name)).model
    statistics = collect(model, batches_of(model, digits().images[:SAMPLES]), threads=1)
    chip, choices = load_target(target), Choices(estimator=estimator(ranges))
    return model, fill(model, place(model, chip, choices), statistics, chip, choices), statistics


@pytest.mark.parametrize("name", NETWORK_NAMES)
@pytest.mark.parametrize("ranges", ["max", "percentile:99"])
def test_the_split_adds_up_to_the_error_of_the_values(name: str, ranges: str) -> None:
    """Measured exactly; from statistics within 1 % where no numbers repeat (see `histogram_sums` for the others)."""
    model, plan, statistics = planned(name, ranges)
    images = digits().images[:SAMPLES]
    seen = loss_from_statistics(model, plan, statistics)
    measured = measured_loss(model, plan, batches_of(model, images), threads=1)
    assert [one.name for one in seen] == [one.name for one in measured]
    pairs = [(one, other) for one, other in zip(measured, seen, strict=True) if one.kind == "activation"]
    assert len(pairs) >= 15
    assert all(one == other for one, other in zip(measured, seen, strict=True) if one.kind == "weights")
    values = exposed(model, [{"image": images}], [one.name for one, _ in pairs])
    deviations = []
    for one, other in pairs:
        (value,), encoding = values[one.name], plan.encodings[one.name]
        assert isinstance(encoding, Encoding)
        error = float(((round_trip(value, encoding) - value).astype(np.float64) ** 2).mean())
        assert one.rounding + one.clipping == pytest.approx(error, rel=1e-4), one.name
        assert other.seen == pytest.approx(one.seen, rel=1e-5)
        if value[0].size > statistics.sampled:  # the histogram counted a part of the elements
            continue
        assert other.entropy_bits == pytest.approx(one.entropy_bits, abs=0.2), one.name
        _, repeats = np.unique(value[value != 0], return_counts=True)
        chance = 0.9 * math.sqrt(float((repeats**2).sum())) / repeats.sum()
        deviations.append(abs(other.error / error - 1))
        assert deviations[-1] < max(0.01, 4 * chance), one.name
    assert np.median(deviations) < 0.004
    assert np.mean(np.array(deviations) < 0.01) >= 0.7


def losses_of(plan: Plan, model: ir.Model | None = None, **more: object) -> dict[str, TensorLoss]:
    model = model or convolutions()
    statistics = collect(model, batches_of(model, pictures(6)), threads=1)
    return {one.name: one for one in loss_from_statistics(model, plan, statistics, **more)}  # type: ignore[arg-type]


def test_a_loss_names_its_tensor_and_its_encoding() -> None:
    model = convolutions()
    plan = hand_plan({"r1": per_tensor("uint8", 0.5, 3), "w1": per_tensor("int4", 0.75, -1)})
    found = losses_of(plan, model)
    conv, relu = (next(node for node in model.graph if node.op_type == each) for each in ("Conv", "Relu"))
    activation, weights = found["r1"], found["w1"]
    assert (activation.node, activation.operator, activation.depth) == (relu.name, "Relu", 1)
    assert (weights.node, weights.operator, weights.depth) == (conv.name, "Conv", 0)
    assert (activation.shape, weights.shape) == ("?x12x24x24", "12x3x3x3")
    assert (activation.type, weights.type, weights.granularity) == ("uint8", "int4", "tensor")
    assert activation.range == (-1.5, 126.0)
    assert weights.range == (-7 * 0.75, 8 * 0.75)
    assert (weights.levels, weights.scales) == (16, (0.75, 0.75))
    assert weights.seen == (-4.0, 4.0)
    assert weights.levels_used == len(np.unique(np.rint(np.arange(-4, 5) / 0.75)))
    assert (activation.measured, weights.measured) == (False, True)
    assert weights.wasted_bits == pytest.approx(4 - weights.entropy_bits)


def test_blocks_are_said() -> None:
    encoding = Encoding(
        type=integer_type("int8"),
        granularity=PerBlock(1, 2),
        scale=np.full((12, 2, 3, 3), 0.25, np.float32),
        zero_point=np.zeros((12, 2, 3, 3), np.int32),
    )
    assert losses_of(hand_plan({"w1": encoding}))["w1"].granularity == "axis 1, blocks of 2"


def test_rounded_weights_are_measured_against_the_reference() -> None:
    reference = convolutions()
    wanted = reference.graph.initializers["w1"].const_value.numpy()
    encoding = per_tensor("int4", 0.75)
    chosen = round_trip(wanted + np.float32(0.3), encoding)  # optimised rounding: not the nearest level
    model = convolutions()
    set_constant(model.graph.initializers["w1"], chosen)
    plan = hand_plan({"w1": encoding})
    found = losses_of(plan, model, reference=reference)["w1"]
    assert found.error == pytest.approx(float(((chosen - wanted).astype(np.float64) ** 2).mean()), rel=1e-6)
    assert found.signal == pytest.approx(float((wanted.astype(np.float64) ** 2).mean()))
    assert losses_of(plan, model)["w1"].error == 0.0
    (measured,) = measured_loss(model, plan, [], reference=reference)
    assert measured == found


def test_a_finer_scale_trades_rounding_for_clipping() -> None:
    """Half the step: a quarter of s^2 / 12, and half the range."""
    coarse, fine = (losses_of(hand_plan({"s": per_tensor("uint8", scale, 128)}))["s"] for scale in (8.0, 0.5))
    assert coarse.clipping == 0.0
    assert fine.clipping > 0.0
    assert fine.clipped_share > 0.01
    assert fine.rounding < coarse.rounding


def test_activations_without_statistics_are_refused_and_without_a_histogram_left_out() -> None:
    model = convolutions()
    statistics = collect(model, batches_of(model, pictures(2)), threads=1)
    plan = hand_plan({"r1": per_tensor("uint8", 0.5), "s": per_tensor("uint8", 0.5)})
    bare = replace(statistics.tensors["r1"], histogram=EMPTY)
    some = replace(statistics, tensors=dict(statistics.tensors) | {"r1": bare})
    assert [one.name for one in loss_from_statistics(model, plan, some)] == ["s"]
    none = replace(statistics, tensors={"r1": bare})
    with pytest.raises(StatisticsError, match="'s'"):
        loss_from_statistics(model, plan, none)
