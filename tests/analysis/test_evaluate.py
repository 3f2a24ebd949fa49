"""Accuracy, agreement and noise of two networks, against numpy."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.analysis.evaluate import Comparison, compare_runs, load_metric
from narrowgauge.data.batches import Batch
from narrowgauge.errors import DataError, RecipeError

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def table(scores: np.ndarray) -> Run:
    """A network that looks its output up: it is fed row numbers."""
    return lambda feed: {"scores": scores[feed["row"]]}


def batches(count: int, size: int, labels: Sequence[int | None] | None = None) -> Iterator[Batch]:
    known = labels or [None] * count
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        names = tuple(map(str, rows))
        yield Batch(feed={"row": rows}, count=len(rows), names=names, labels=tuple(known[row] for row in rows))


def pair(count: int, classes: int, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    one = generator.standard_normal((count, classes)).astype(np.float32)
    return one, (one + noise * generator.standard_normal((count, classes))).astype(np.float32)


@given(st.integers(1, 40), st.integers(2, 30), st.integers(1, 9), st.floats(0.01, 3), st.integers(0, 99), st.data())
def test_everything_against_numpy(
    count: int, classes: int, size: int, noise: float, seed: int, data: st.DataObject
) -> None:
    one, other = pair(count, classes, noise, seed)
    labels = data.draw(st.lists(st.none() | st.integers(0, classes - 1), min_size=count, max_size=count))
    found = compare_runs(table(one), table(other), batches(count, size, labels))
    assert found.samples == count
    assert found.agreement_top1 == pytest.approx(100 * np.mean(one.argmax(1) == other.argmax(1)))
    ratio = np.square(one, dtype=np.float64).sum() / np.square(one.astype(np.float64) - other).sum()
    assert found.sqnr_db == pytest.approx(10 * np.log10(ratio))
    known = [row for row, label in enumerate(labels) if label is not None]
    assert found.labelled == len(known)
    if not known:
        assert found.reference == found.candidate == {}
        return
    truth = np.array([labels[row] for row in known])
    for scores, metrics in ((one[known], found.reference), (other[known], found.candidate)):
        assert metrics["top1"] == pytest.approx(100 * np.mean(scores.argmax(1) == truth))
        best = np.argsort(-scores, axis=1)[:, :5]
        assert ("top5" in metrics) == (classes > 10)
        if classes > 10:
            assert metrics["top5"] == pytest.approx(100 * np.mean((best == truth[:, None]).any(1)))


def test_equal_networks_have_no_noise() -> None:
    one, _ = pair(10, 4)
    found = compare_runs(table(one), table(one), batches(10, 3))
    assert (found.sqnr_db, found.agreement_top1) == (math.inf, 100.0)


@pytest.mark.parametrize("size", [1, 3, 10])
def test_batches_do_not_matter(size: int) -> None:
    one, other = pair(10, 12)
    labels = [3] * 10
    first = compare_runs(table(one), table(other), batches(10, 10, labels))
    again = compare_runs(table(one), table(other), batches(10, size, labels))
    assert (again.reference, again.candidate, again.agreement_top1) == (
        first.reference, first.candidate, first.agreement_top1,
    )  # fmt: skip
    assert again.sqnr_db == pytest.approx(first.sqnr_db, rel=1e-12)


def test_rows_that_fill_a_fixed_batch_are_not_counted() -> None:
    one, other = pair(6, 4)
    rows = np.array([0, 1, 2, 2, 2])
    filled = [Batch(feed={"row": rows}, count=3, names=("0", "1", "2"), labels=(0, 1, 2))]
    assert compare_runs(table(one), table(other), filled) == compare_runs(
        table(one), table(other), batches(3, 3, [0, 1, 2])
    )


def test_outputs_whose_first_axis_is_no_batch_count_whole() -> None:
    one, other = pair(8, 4)
    found = compare_runs(
        lambda feed: {"series": one}, lambda feed: {"series": other},
        [Batch(feed={"x": np.arange(8)}, count=1, names=("a",), labels=(None,))],
    )  # fmt: skip
    expected = compare_runs(table(one), table(other), batches(8, 8))
    assert found.sqnr_db == pytest.approx(expected.sqnr_db)
    assert found.agreement_top1 == expected.agreement_top1


def test_several_outputs_and_integers() -> None:
    one, other = pair(6, 4)
    big, other_big = 10 * one.reshape(2, 3, 4), 10 * other.reshape(2, 3, 4)
    runs = [
        lambda feed: {"scores": one, "big": big, "index": np.zeros(6, np.int64)},
        lambda feed: {"renamed": other, "other": other_big, "index": np.ones(6, np.int64)},
    ]
    found = compare_runs(*runs, [Batch(feed={"x": np.zeros(6)}, count=6, names=tuple("abcdef"), labels=(None,) * 6)])
    signal, noise = (np.square(a.astype(np.float64)).sum() for a in (one, one - other))
    assert found.sqnr_db == pytest.approx(10 * np.log10(signal / noise), rel=1e-5)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_outputs_that_are_no_scores_have_no_agreement(shape: tuple[int, ...]) -> None:
    one, other = (each[:, 0].reshape(shape) for each in pair(6, 4))
    found = compare_runs(table(one), table(other), batches(6, 2, [0] * 6))
    assert found.agreement_top1 is None
    assert (found.labelled, found.reference) == (0, {})


# --- numbers that are not finite ------------------------------------------------------------------------------


def test_a_network_that_breaks_is_infinitely_noisy() -> None:
    one, _ = pair(4, 3)
    other = one.copy()
    other[2, 1] = np.nan
    assert compare_runs(table(one), table(other), batches(4, 2)).sqnr_db == -math.inf


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_both_hold_is_no_noise(number: float) -> None:
    one, other = pair(4, 3)
    expected = compare_runs(table(np.delete(one, 2, 0)), table(np.delete(other, 2, 0)), batches(3, 3)).sqnr_db
    one[2], other[2] = number, number
    assert compare_runs(table(one), table(other), batches(4, 2)).sqnr_db == pytest.approx(expected)


# --- the user's own metric ------------------------------------------------------------------------------------


def largest(outputs: Mapping[str, np.ndarray], labels: Sequence[int | None]) -> float:
    return float(outputs["scores"].max(1).mean())


def largest_each(outputs: Mapping[str, np.ndarray], labels: Sequence[int | None]) -> np.ndarray:
    return outputs["scores"].max(1)


class LargestOfAll:
    """No mean over batches."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def update(self, outputs: Mapping[str, np.ndarray], labels: Sequence[int | None]) -> None:
        assert len(labels) == len(outputs["scores"])
        self.seen.append(float(outputs["scores"].max()))

    def compute(self) -> float:
        return max(self.seen)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        (largest, lambda scores: scores.max(1).mean()),
        (largest_each, lambda scores: scores.max(1).mean()),
        (LargestOfAll, lambda scores: scores.max()),
    ],
)
def test_a_metric_of_ones_own(metric: Callable[..., object], value: Callable[[np.ndarray], float]) -> None:
    one, other = pair(7, 4)
    found = compare_runs(table(one), table(other), batches(7, 3), metric=metric)
    assert found.reference == {metric.__name__: pytest.approx(value(one))}
    assert found.candidate == {metric.__name__: pytest.approx(value(other))}


def test_a_metric_is_loaded_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metric.py").write_text("number = 3\ndef score(outputs, labels):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_metric("own_metric:score")({}, []) == 0.5
    for name in ("own_metric", "own_metric:", ":score", "own_metric:none", "no_such_module:x", "own_metric:number"):
        with pytest.raises(RecipeError, match="metric"):
            load_metric(name)


# --- refusals -------------------------------------------------------------------------------------------------


def compare(one: np.ndarray, other: np.ndarray, labels: Sequence[int | None] | None = None) -> Comparison:
    return compare_runs(table(one), table(other), batches(len(one), 2, labels))


def test_outputs_of_different_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"'scores' has shape \(2, 4\) in the one network, \(2, 5\) in the other"):
        compare(pair(4, 4)[0], pair(4, 5)[0])


def test_labels_beyond_the_classes_are_refused() -> None:
    with pytest.raises(DataError, match=r"labels from 0 to 3.*got 4.*label_offset"):
        compare(*pair(4, 4), labels=[1, 2, 3, 4])


def test_no_sample_is_refused() -> None:
    with pytest.raises(DataError, match="no sample"):
        compare_runs(table(np.zeros((1, 2))), table(np.zeros((1, 2))), [])


def test_progress_counts_samples() -> None:
    told: list[int] = []
    compare_runs(table(pair(7, 4)[0]), table(pair(7, 4)[1]), batches(7, 3), progress=told.append)
    assert told == [3, 3, 1]


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_of_no_score_is_named_with_its_sample(label: int) -> None:
    one, other = pair(6, 4)
    with pytest.raises(DataError, match=rf"from 0 to 3, .* got {label} for '5'"):
        compare_runs(table(one), table(other), batches(6, 4, [0, 1, 2, None, 3, label]))
