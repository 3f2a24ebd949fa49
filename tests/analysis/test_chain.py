"""A network in segments computes what it computes whole."""

from __future__ import annotations

import numpy as np
import pytest

import narrowgauge.analysis.chain as chain_module
from narrowgauge.analysis.chain import Case, Chain, Change, cuts, errors, first_cases, open_streams
from narrowgauge.core.plan import Plan
from narrowgauge.demo import digits, network_path
from narrowgauge.errors import ModelError, RuntimeFailure
from narrowgauge.importers.onnx import load
from tests.analysis.exact import batched, exact_plan, outputs
from tests.calibration.networks import batches_of
from tests.lowering.networks import hand_plan
from tests.planning.networks import network, normal

FLOAT = Plan(target="", encodings={})


@pytest.mark.parametrize("name", ["digits_conv", "digits_vit"])
def test_segments_one_after_the_other_are_the_network(name: str) -> None:
    model = load(network_path(name)).model
    batch = next(iter(batches_of(model, digits().images[:4])))
    chain = Chain.open(model, FLOAT)
    assert len(chain.parts) > 3
    expected = outputs(model, [batch])[0]
    np.testing.assert_allclose(chain.finish(batch.feed, 0)["logits"], expected["logits"], rtol=1e-3, atol=1e-4)


def test_a_network_is_cut_where_few_values_are_alive() -> None:
    alive = [{"a", "b"}] * 40
    alive[5] = alive[13] = alive[19] = alive[25] = {"a"}
    found = cuts(alive)
    assert (found[0], found[-1]) == (0, 40)
    assert {6, 14, 20, 26} <= set(found)
    assert max(np.diff(found)) <= 9
    assert cuts([]) == (0,)
    assert cuts([{"y"}]) == (0, 1)


def test_few_changes_and_samples_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(network_path("digits_conv")).model
    plan = exact_plan(model, step=0.125)
    streams = open_streams(model, model, plan, list(batches_of(model, digits().images[:4], 1)), threads=2)
    changes = [Change(first=n, last=n + 1) for n in range(0, len(streams.quantized.nodes) - 1, 4)]
    whole = errors(streams.quantized, changes, streams.cases, threads=2)
    monkeypatch.setattr(chain_module, "_MOST_OPEN", 1)
    monkeypatch.setattr(chain_module, "_ALIVE_BYTES", 1)
    pieces = errors(streams.quantized, changes, streams.cases, threads=1)
    assert whole.shape == (len(changes), 4, 1)
    np.testing.assert_allclose(pieces, whole, rtol=0.05)


def test_two_changes_are_made_one_after_the_other() -> None:
    log: list[int] = []
    first = Change(first=3, last=4, encodings={"a": None}, edit=lambda graph: log.append(1))
    both = first.with_change(Change(first=1, last=2, encodings={"b": None}, edit=lambda graph: log.append(2)))
    assert (both.first, both.last, set(both.encodings)) == (1, 4, {"a", "b"})
    assert both.edit is not None
    both.edit(network("float[n] x", "float[n] y", "y = Neg(x)").graph)
    assert log == [1, 2]
    assert first.with_change(Change(first=0, last=0)).edit is not None


def test_masks_count_nothing_and_a_lost_number_everything() -> None:
    reference = np.array([[1.0, -np.inf], [2.0, 3.0]], np.float32)
    case = Case(feed={}, count=2, outputs={"y": reference})
    assert case.signals() == 14
    assert case.errors({"y": np.array([[2.0, -1e30], [2.0, 3.0]], np.float32)}) == 1
    assert case.errors({"y": np.array([[np.nan, 0.0], [2.0, 3.0]], np.float32)}) == np.inf
    with pytest.raises(ModelError, match="expected shape"):
        case.errors({"y": np.zeros((2, 3), np.float32)})


def test_whole_batches_hold_the_first_samples() -> None:
    cases = [Case(feed={}, count=count, outputs={}) for count in (4, 4, 4, 1)]
    assert [first_cases(cases, samples) for samples in (1, 4, 5, 12, 100)] == [1, 1, 2, 3, 4]


def test_inputs_constants_and_integers_as_outputs() -> None:
    model = network("float[n, 4] x", "float[n, 4] y, float[n, 4] x2, int64[n] i",
                    "y = Relu(x) x2 = Identity(x) i = ArgMax<axis = 1, keepdims = 0>(x)")  # fmt: skip
    streams = open_streams(model, model, hand_plan({}), batched(model, {"x": normal(3, 4)}), threads=1)
    assert list(streams.cases[0].outputs) == ["y", "x2"]
    whole = network("float[n, 4] x", "int64[n] i", "i = ArgMax<axis = 1, keepdims = 0>(x)")
    with pytest.raises(ModelError, match="floating-point"):
        open_streams(whole, whole, hand_plan({}), batched(whole, {"x": normal(3, 4)}))


def test_a_failing_run_says_so() -> None:
    model = network("float[n, m] x", "float[n, k] y", "shape = Constant<value_ints = [2, 3]>() y = Reshape(x, shape)")
    with pytest.raises(RuntimeFailure, match="could not run"):
        open_streams(model, model, hand_plan({}), batched(model, {"x": normal(2, 4)}))
