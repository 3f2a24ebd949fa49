"""The loss of activations, measured in ONNX Runtime, beside the reference arithmetic on the values themselves."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from narrowgauge.analysis import activation_loss
from narrowgauge.analysis.activation_loss import activation_sums
from narrowgauge.analysis.loss_sums import LossSums, no_sums
from narrowgauge.analysis.roundings import roundings
from narrowgauge.core.arithmetic import quantize, round_trip
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.data import Batch
from narrowgauge.errors import DataError
from tests.calibration.networks import batches_of, branches, convolutions, exposed, pictures, sequence, whole
from tests.lowering.networks import hand_plan, per_tensor

Array = npt.NDArray[np.float32]


def assert_measured(model: ir.Model, plan: Plan, feeds: Sequence[dict[str, Array]], found: dict[str, LossSums]) -> None:
    """Each value's sums are those of the reference arithmetic on what the network computes."""
    listed = [one for one in roundings(model, plan) if one.kind == "activation"]
    assert [one.name for one in listed] == list(found)
    values = exposed(model, feeds, list(found))
    for one in listed:
        real = [value.reshape(-1) if one.encoding.scale.ndim == 0 else value for value in values[one.name]]
        errors = [(round_trip(value, one.encoding) - value).astype(np.float64) ** 2 for value in real]
        levels = np.concatenate([quantize(value, one.encoding).reshape(-1) for value in real]).astype(int)
        sums, kind = found[one.name], one.encoding.type
        assert sums.elements == levels.size, one.name
        assert sums.rounding + sums.clipping == pytest.approx(sum(map(np.sum, errors)), rel=1e-4, abs=1e-9), one.name
        counts = np.bincount(levels - kind.minimum, minlength=kind.levels)
        assert np.abs(sums.levels - counts).sum() <= 1e-3 * levels.size, one.name


def convolution_plan() -> Plan:
    names = ["x", "r1", "c2", "s", "f", "y"]
    plain = {name: per_tensor("uint8", 0.37 * (place + 1), 9) for place, name in enumerate(names)}
    axis = encoding_from_range(np.full(12, -20), np.arange(1, 13) * 9.0, integer_type("int8"), PerAxis(1))
    return hand_plan(plain | {"s": axis})


def test_the_sums_are_those_of_the_values_that_the_float_network_has() -> None:
    model, plan, data = convolutions(), convolution_plan(), pictures(10)
    found = activation_sums(model, plan, batches_of(model, data, 4), threads=2)
    assert_measured(model, plan, [{"x": data}], found)
    assert found["s"].clipped > 0


def test_values_that_do_not_fit_together_are_measured_in_several_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan, data = convolutions(), convolution_plan(), pictures(6)
    found = activation_sums(model, plan, batches_of(model, data, 3), threads=1)
    opened = []
    original = activation_loss.open_session
    monkeypatch.setattr(activation_loss, "open_session", lambda *a, **k: opened.append(1) or original(*a, **k))
    # A batch of three: x 20736 bytes, r1, c2 and s 82944 each, f and y 204 together.
    monkeypatch.setattr(activation_loss, "_ROUND_BYTES", 2 * 82944 + 204)
    again = activation_sums(model, plan, batches_of(model, data, 3), threads=1)
    assert len(opened) == 2
    assert list(found) == list(again)
    for name, sums in found.items():
        assert sums.rounding == pytest.approx(again[name].rounding, rel=1e-6)
        assert sums.clipping == pytest.approx(again[name].clipping, rel=1e-6)


def test_shards_add_up_whatever_the_batches() -> None:
    model, plan, data = convolutions(), convolution_plan(), pictures(9)
    counted: list[int] = []
    all_of_them = activation_sums(model, plan, batches_of(model, data, 2), threads=2, progress=counted.append)
    first = activation_sums(model, plan, batches_of(model, data[:5], 5), threads=1)
    second = activation_sums(model, plan, batches_of(model, data[5:], 1), threads=1)
    assert sum(counted) == 9
    for name, sums in all_of_them.items():  # whole numbers: every order of summing gives the same levels
        added = second[name].merge(first[name])
        np.testing.assert_array_equal(added.levels, sums.levels)
        assert added.rounding == pytest.approx(sums.rounding, rel=1e-9)
        assert (added.minimum, added.maximum, added.elements) == (sums.minimum, sums.maximum, sums.elements)


def test_rows_that_fill_a_fixed_batch_do_not_count() -> None:
    plan, data = convolution_plan(), pictures(5)
    fixed, open_ = convolutions(batch=4), convolutions()
    found = activation_sums(fixed, plan, batches_of(fixed, data), threads=1)
    wanted = activation_sums(open_, plan, batches_of(open_, data), threads=1)
    for name, sums in found.items():
        assert sums.elements == wanted[name].elements
        np.testing.assert_array_equal(sums.levels, wanted[name].levels)


def test_networks_with_open_axes_and_branches_are_measured() -> None:
    rng = np.random.default_rng(0)
    steps = [{"x": whole(rng, 1, length, 4)} for length in (2, 5, 3)]
    model, plan = sequence(), hand_plan(dict.fromkeys(["x", "y"], per_tensor("uint8", 0.3, 100)))
    batches = [Batch(feed=feed, count=1, names=("a",), labels=(None,)) for feed in steps]
    assert_measured(model, plan, steps, activation_sums(model, plan, batches, threads=2))
    model, data = branches(), whole(rng, 6, 4)
    plan = hand_plan(dict.fromkeys(["x", "h", "y"], per_tensor("int8", 0.3)))
    found = activation_sums(model, plan, batches_of(model, data, 3), threads=1)
    assert_measured(model, plan, [{"x": data[:3]}, {"x": data[3:]}], found)


def test_what_the_relu_behind_cuts_off_is_no_loss() -> None:
    model, data = convolutions(), pictures(4)
    encoding = per_tensor("uint8", 0.5)
    found = activation_sums(model, hand_plan({"c1": encoding}), batches_of(model, data), threads=1)["c1"]
    (values,) = exposed(model, [{"x": data}], ["r1"])["r1"]
    errors = round_trip(values, encoding) - values
    assert found.minimum == 0.0
    assert found.rounding + found.clipping == pytest.approx(float((errors.astype(np.float64) ** 2).sum()), rel=1e-5)


def test_no_sample_and_bad_numbers_are_refused_by_name() -> None:
    model, data = convolutions(), pictures(4)
    plan = hand_plan({"r1": per_tensor("uint8", 0.5)})
    with pytest.raises(DataError, match="no sample"):
        activation_sums(model, plan, [])
    data[2, 0, 3, 3] = np.nan
    with pytest.raises(DataError, match=r"value 'r1' holds NaN or infinity on samples .* to "):
        activation_sums(model, plan, batches_of(model, data), threads=2)


def test_a_plan_without_activations_reads_no_sample() -> None:
    assert activation_sums(convolutions(), hand_plan({"w1": per_tensor("int8", 0.5)}), []) == {}


def test_no_elements_give_empty_sums() -> None:
    model, plan = sequence(), hand_plan({"y": per_tensor("uint8", 0.3)})
    batch = Batch(feed={"x": np.zeros((1, 0, 4), np.float32)}, count=1, names=("a",), labels=(None,))
    found = activation_sums(model, plan, [batch], threads=1)["y"]
    assert (found.elements, found.minimum) == (no_sums(2).elements, math.inf)


def test_a_real_network_is_measured_exactly(zoo: Path) -> None:
    from narrowgauge.importers.onnx import load
    from tests.lowering.networks import calibrated_plan, photos

    model = load(zoo / "models" / "mobilenet_v1_025" / "mobilenet_v1_0.25_224.onnx").model
    name = str(model.graph.inputs[0].name)
    images = photos(zoo, 224, 3)
    if model.graph.inputs[0].shape is not None and model.graph.inputs[0].shape[-1] == 3:
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    feeds = [{name: image[None]} for image in images]
    plan = calibrated_plan(model, feeds[:1])  # of one image: the others clip
    found = activation_sums(model, plan, batches_of(model, images, 2), threads=2)
    assert len(found) > 20
    assert all(isinstance(plan.encodings[each], Encoding) for each in found)
    assert_measured(model, plan, feeds, found)
