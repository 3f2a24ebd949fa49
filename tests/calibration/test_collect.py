"""One pass over the samples, on real networks in ONNX Runtime."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.calibration import collect as collecting
from narrowgauge.calibration.collect import collect
from narrowgauge.calibration.histogram import histogram_of
from narrowgauge.calibration.statistics import Statistics, TensorStatistics
from narrowgauge.data import Batch, input_specs, load_preprocess, open_samples
from narrowgauge.data import batches as group
from narrowgauge.errors import DataError, RuntimeFailure, StatisticsError
from narrowgauge.importers.onnx import load
from tests.calibration.networks import (
    Array,
    assert_same_statistics,
    batches_of,
    branches,
    convolutions,
    exposed,
    network,
    pictures,
    sequence,
)


def check_extremes(found: TensorStatistics, values: list[Array], name: str) -> None:
    """Exact per tensor and per channel, over the finite values."""
    flat = np.concatenate([value.reshape(-1) for value in values])
    flat = flat[np.isfinite(flat)]
    assert (found.minimum, found.maximum) == (flat.min(), flat.max()), name
    if found.channels is not None:
        axis = found.channels.axis
        columns = np.concatenate([np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]) for value in values])
        finite = np.where(np.isfinite(columns), columns, np.nan)
        np.testing.assert_array_equal(found.channels.minimum, np.fmin.reduce(finite, initial=np.inf), err_msg=name)
        np.testing.assert_array_equal(found.channels.maximum, np.fmax.reduce(finite, initial=-np.inf), err_msg=name)


def check_counts(found: TensorStatistics, values: list[Array]) -> None:
    """The histogram is of all the values, and so are the channels' sums."""
    everything = histogram_of(np.concatenate([value.reshape(-1) for value in values]))
    np.testing.assert_array_equal(found.histogram.bins, everything.bins)
    np.testing.assert_array_equal(found.histogram.counts, everything.counts)
    if found.channels is not None:
        axis = found.channels.axis
        columns = np.concatenate([np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]) for value in values])
        slack = 1e-6 * np.abs(columns).sum(axis=0)
        assert (np.abs(found.channels.total - columns.sum(axis=0, dtype=np.float64)) <= slack).all()
        assert found.channels.count == len(columns)


# --- exactness ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [64, 4096, 10**6])
def test_convolutional_network(sampled: int) -> None:
    model, data = convolutions(), pictures(11)
    found = collect(model, batches_of(model, data, 4), sampled=sampled)
    values = exposed(model, [{"x": data}], list(found.tensors))
    assert set(found.tensors) == {"x", "r1", "c2", "s", "p", "f", "y"}
    assert found.of("c1") is found.tensors["r1"]
    assert found.samples == 11
    for name, tensor in found.tensors.items():
        assert tensor.channels is not None
        assert tensor.channels.axis == 1
        check_extremes(tensor, values[name], name)
        if values[name][0][0].size <= sampled:
            check_counts(tensor, values[name])
        else:
            assert tensor.histogram.total <= 11 * values[name][0][0].size
            assert tensor.histogram.total >= 11 * min(sampled, values[name][0].shape[1]) / 4


def test_the_counted_subset_looks_like_the_whole() -> None:
    model = convolutions()
    data = np.random.default_rng(5).normal(size=(16, 3, 24, 24)).astype(np.float32)
    subset = collect(model, batches_of(model, data), sampled=1024)
    everything = collect(model, batches_of(model, data), sampled=10**6)
    for name, tensor in everything.tensors.items():
        few = subset.tensors[name]
        assert few.channels is not None
        assert tensor.channels is not None
        spread = tensor.maximum - tensor.minimum
        np.testing.assert_allclose(few.channels.mean, tensor.channels.mean, atol=0.05 * spread, err_msg=name)
        np.testing.assert_allclose(few.channels.maximum, tensor.channels.maximum, atol=1e-4 * spread, err_msg=name)


def test_network_with_sequences_of_any_length() -> None:
    """`z` has time as its first axis: no batch size may cut it."""
    model = sequence()
    rng = np.random.default_rng(4)
    data = [{"x": rng.integers(-4, 5, (rows, steps, 4)).astype(np.float32)} for rows, steps in
            [(1, 7), (3, 20), (1, 1), (2, 5), (1, 7)]]  # fmt: skip
    found = collect(model, batches_of(model, data, 2))
    values = exposed(model, data, list(found.tensors))
    assert "z" in found.tensors
    for name, tensor in found.tensors.items():
        check_extremes(tensor, values[name], name)
        check_counts(tensor, values[name])


def test_network_with_branches() -> None:
    model = branches()
    data = [np.full((1, 4), value, np.float32) for value in (3.0, -2.0, 1.0, -7.0)]
    found = collect(model, batches_of(model, data, 1))
    values = exposed(model, [{"x": array} for array in data], list(found.tensors))
    assert {"x", "h", "y"} <= set(found.tensors)
    for name in ("x", "h", "y"):
        check_extremes(found.tensors[name], values[name], name)


def test_rows_that_fill_a_fixed_batch_are_not_counted() -> None:
    data = pictures(6)
    fixed, free = convolutions(batch=4), convolutions()
    padded = collect(fixed, batches_of(fixed, data))
    plain = collect(free, batches_of(free, data))
    assert padded.samples == 6
    for name in ("x", "y"):
        assert padded.tensors[name].histogram.total == plain.tensors[name].histogram.total
        check_counts(padded.tensors[name], exposed(free, [{"x": data}], [name])[name])


def test_rows_of_an_input_without_a_batch_axis_are_no_filling() -> None:
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    g (float[3, 5] x) => (float[3, 5] y) { y = Relu(x) }
    """
    whole_input = np.arange(15, dtype=np.float32).reshape(3, 5)
    batch = Batch(feed={"x": whole_input}, count=1, names=("one",), labels=(None,))
    found = collect(network(text, {}), [batch])
    assert found.samples == 1
    assert (found.tensors["y"].maximum, found.tensors["y"].histogram.total) == (14.0, 15)


def test_values_without_elements_are_empty_and_harmless() -> None:
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    g (float[n, t, 4] x) => (float[n, t, 4] y) { y = Relu(x) }
    """
    model = network(text, {})
    data = [{"x": np.ones((1, steps, 4), np.float32)} for steps in (2, 0, 3)]
    found = collect(model, batches_of(model, data))
    assert found.samples == 3
    assert found.tensors["y"].histogram.total == 20
    assert found.tensors["y"].channels is not None
    nothing = collect(model, batches_of(model, data[1:2]))
    assert nothing.tensors["y"].is_empty


def test_no_sample_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="no sample"):
        collect(convolutions(), iter(()))


def test_progress_counts_samples() -> None:
    model, told = convolutions(), []
    collect(model, batches_of(model, pictures(7), 3), progress=told.append)
    assert told == [3, 3, 1]


# --- shards ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_pass() -> Statistics:
    model = convolutions()
    return collect(model, batches_of(model, pictures(9), 9))


@settings(max_examples=12)
@given(
    cuts=st.sets(st.integers(0, 9), max_size=3),
    sizes=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    order=st.permutations(range(4)),
)
def test_shards_in_any_order_and_batches_add_up_to_one_pass(
    whole_pass: Statistics, cuts: set[int], sizes: list[int], order: list[int]
) -> None:
    model, data = convolutions(), pictures(9)
    edges = [0, *sorted(cuts), 9]
    shards = [data[start:stop] for start, stop in itertools.pairwise(edges) if stop > start]
    parts = [collect(model, batches_of(model, shard, size)) for shard, size in zip(shards, sizes, strict=False)]
    turns = [index for index in order if index < len(parts)]
    merged = parts[turns[0]]
    for index in turns[1:]:
        merged = merged.merge(parts[index])
    assert_same_statistics(merged, whole_pass)


def test_rounds_add_up_to_one_pass(whole_pass: Statistics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values too large to leave the engine together leave it in several runs of the same batch."""
    monkeypatch.setattr(collecting, "_ROUND_BYTES", 100)
    model = convolutions()
    assert_same_statistics(collect(model, batches_of(model, pictures(9), 4)), whole_pass)


def test_the_network_is_not_changed() -> None:
    model = convolutions()
    before = ir.to_proto(model).SerializeToString()
    collect(model, batches_of(model, pictures(2)))
    assert ir.to_proto(model).SerializeToString() == before


# --- NaN and infinity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rounds", [1, 100])
def test_bad_numbers_are_counted_with_tensor_and_sample(
    bad: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample is in the middle of a batch of eight, behind a batch that is sound."""
    if rounds > 1:
        monkeypatch.setattr(collecting, "_ROUND_BYTES", 100)
    model, data = convolutions(), pictures(16)
    data[12, 1, 5, 7] = bad
    found = collect(model, batches_of(model, data))
    first = found.tensors["x"]
    name = list(batches_of(model, data))[1].names[4]
    assert (first.nan_count, first.infinity_count) == ((1, 0) if np.isnan(bad) else (0, 1))
    assert (first.first_bad, first.first_bad_index) == (name, 12)
    values = exposed(model, [{"x": data}], list(found.tensors))
    for value, tensor in found.tensors.items():
        assert tensor.nan_count == np.isnan(values[value][0]).sum(), value
        assert tensor.infinity_count == np.isinf(values[value][0]).sum(), value
        check_extremes(tensor, values[value], value)
        assert tensor.first_bad_index in (-1, 12)


def test_the_first_bad_sample_is_the_first_of_all_shards() -> None:
    model, data = convolutions(), pictures(4)
    data[[1, 3], 0, 0, 0] = np.nan
    sound = collect(model, batches_of(model, data[:1]))
    both = collect(model, batches_of(model, data[1:]), start=sound)
    assert both.tensors["x"].first_bad_index == 1
    assert both.tensors["x"].nan_count == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_channel_of_weights_shows_in_its_layer(bad: float) -> None:
    model = convolutions()
    weights = model.graph.initializers["w2"]
    assert weights.const_value is not None
    array = weights.const_value.numpy().copy()
    array[4] = bad
    weights.const_value = ir.tensor(array, name="w2")
    found = collect(model, batches_of(model, pictures(3)))
    assert found.tensors["c2"].nan_count + found.tensors["c2"].infinity_count > 0
    assert found.tensors["r1"].nan_count + found.tensors["r1"].infinity_count == 0


# --- interruption ---------------------------------------------------------------------------------------------


def interrupted(batches: Iterator[Batch], after: int) -> Iterator[Batch]:
    for number, batch in enumerate(batches):
        if number == after:
            raise KeyboardInterrupt
        yield batch


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path: Path, whole_pass: Statistics, after: int) -> None:
    model, data, path = convolutions(), pictures(9), tmp_path / "statistics.npz"
    with pytest.raises(KeyboardInterrupt):
        collect(model, interrupted(batches_of(model, data, 4), after), save_to=path)
    start = Statistics.load(path)
    assert start.samples == 4 * after
    rest = collect(model, batches_of(model, data[start.samples :], 4), start=start)
    assert_same_statistics(rest, whole_pass)


def test_a_pass_that_is_interrupted_at_once_saves_nothing(tmp_path: Path) -> None:
    model, path = convolutions(), tmp_path / "statistics.npz"
    with pytest.raises(KeyboardInterrupt):
        collect(model, interrupted(batches_of(model, pictures(3)), 0), save_to=path)
    assert not path.exists()


def test_resuming_with_nothing_left_changes_nothing(whole_pass: Statistics) -> None:
    assert_same_statistics(collect(convolutions(), iter(()), start=whole_pass), whole_pass)


def test_resuming_with_another_network_is_refused(whole_pass: Statistics) -> None:
    model = sequence()
    with pytest.raises(StatisticsError, match="network"):
        collect(model, batches_of(model, [{"x": np.ones((1, 2, 4), np.float32)}]), start=whole_pass)


def test_a_sample_that_the_engine_refuses_is_named_and_the_others_are_saved(tmp_path: Path) -> None:
    """The product of the reshaped sequence exists for even lengths only."""
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    g (float[n, t] x) => (float[n, a, 2] y) { shape = Constant<value_ints = [0, -1, 2]>() y = Reshape(x, shape) }
    """
    model, path = network(text, {}), tmp_path / "statistics.npz"
    data = [{"x": np.ones((1, steps), np.float32)} for steps in (4, 6, 3, 8)]
    with pytest.raises(RuntimeFailure, match=re.escape(list(batches_of(model, data))[2].names[0])):
        collect(model, batches_of(model, data), save_to=path)
    saved = Statistics.load(path)
    assert saved.samples == 2
    assert saved.tensors["x"].histogram.total == 10


# --- networks of the zoo --------------------------------------------------------------------------------------


def test_network_of_the_zoo_with_branches_state_and_recurrence(zoo: Path) -> None:
    """silero-vad: no common batch axis, and a state whose first axis is 2."""
    model = load(next((zoo / "models/onnx_other").glob("*vad*.onnx"))).model
    rng = np.random.default_rng(0)
    feeds: list[dict[str, npt.NDArray[np.generic]]] = [
        {
            "input": rng.normal(0, 0.1, (1, 512)).astype(np.float32),
            "state": rng.normal(0, 0.1, (2, 1, 128)).astype(np.float32),
            "sr": np.array(16000, np.int64),
        }
        for _ in range(3)
    ]
    found = collect(model, batches_of(model, feeds, 8))
    assert found.samples == 3
    check_counts(found.tensors["state"], [feed["state"] for feed in feeds])  # type: ignore[misc]


def test_network_of_the_zoo_has_the_extremes_of_its_exposed_values(zoo: Path) -> None:
    folder = zoo / "models/mobilenet_v1_025"
    path = next(folder.glob("*.onnx"))
    model = load(path).model
    specs = input_specs(model)
    samples = open_samples(zoo / "images/nips17", specs, preprocess=load_preprocess(path.with_suffix(".toml"))).take(3)
    runs = list(group(samples, 3, specs))
    found = collect(model, runs)
    values = exposed(model, [dict(batch.feed) for batch in runs], list(found.tensors))
    for name, tensor in found.tensors.items():
        whole = np.concatenate([value.reshape(-1) for value in values[name]])
        slack = 1e-4 * np.abs(whole).max()  # another order of summation
        assert abs(tensor.minimum - whole.min()) <= slack, name
        assert abs(tensor.maximum - whole.max()) <= slack, name


def test_an_outlier_at_the_same_place_of_every_sample_is_counted_as_often_as_it_is_there() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 21]> test (float[n, 50, 192] x) => (float[n, 50, 192] y) { y = Tanh(x) }'
    )
    model = network(text, {})
    values = np.random.default_rng(0).uniform(-1, 1, size=(400, 50, 192)).astype(np.float32)
    values[:, :4, 41] = 100.0
    histogram = collect(model, batches_of(model, {"x": values}), sampled=512).of("x").histogram
    outlier = histogram_of(np.array([100.0], np.float32)).bins
    share = histogram.counts[np.isin(histogram.bins, outlier)].sum() / histogram.total
    assert 0.5 < share / (4 / (50 * 192)) < 2
