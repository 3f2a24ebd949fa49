"""Layers left float: the costly ones for their work first, and all else stays as recovery chose it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from narrowgauge.core.encoding import Encoding, same_encoding
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.graph.constants import set_constant
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.recovery.bias_correction import subtract_from_bias
from narrowgauge.recovery.partial_float import REASON, costliest_layers, leave_float
from narrowgauge.recovery.workshop import State, Workshop
from tests.planning.networks import name_of, network, normal, run, weights_of
from tests.recovery.benches import chain, state_of, total_noise, workshop_of

FEED = normal(64, 16, seed=9)


def opened(**asked: object) -> tuple[Workshop, State]:
    workshop = workshop_of(chain(), FEED)
    return workshop, state_of(workshop, weights=integer_type("int4"), **asked)


def recovered(state: State) -> State:
    """As if recovery had chosen other weights, biases and ranges."""
    other = state.network.clone()
    for name in ("w0", "w1", "b1", "b2"):
        set_constant(other.graph.initializers[name], weights_of(other, name) * np.float32(1.01))
    ranges = {
        name: replace(one, scale=one.scale * np.float32(0.9))
        for name, one in state.plan.encodings.items()
        if isinstance(one, Encoding)
    }
    return replace(state, network=other, plan=replace(state.plan, encodings=ranges))


def test_the_layer_that_costs_most_comes_first() -> None:
    """Only one layer has 4 bits; the noise of the others is nothing beside it."""
    workshop = workshop_of(chain(), FEED)
    state = state_of(workshop, nodes={"g2": NodeChoice(weights=integer_type("int4"))})
    order = costliest_layers(workshop, state)
    assert order[0] == name_of(state.network, "g2")
    assert len(set(order)) == len(order)
    alone = leave_float(workshop, state, order[:1])
    assert total_noise(workshop, alone) < total_noise(workshop, state) / 4


def test_of_two_equal_gains_the_layer_of_less_work_comes_first() -> None:
    small, large = normal(4, 64, seed=1) / 4, normal(64, 64, seed=2) / 8
    model = network(
        "float[n, 4] x", "float[n, 64] y", "a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, v)", w=small, v=large
    )
    workshop = workshop_of(model, normal(64, 4, seed=9))
    state = state_of(workshop, weights=integer_type("int4"), granularity="tensor")
    assert costliest_layers(workshop, state)[0] == name_of(model, "a")


def test_everything_else_stays_as_recovery_chose_it() -> None:
    workshop, planned = opened()
    state = recovered(planned)
    layer = name_of(state.network, "g1")
    found = leave_float(workshop, state, {layer})
    assert [(node.name, node.reason) for node in found.plan.float_nodes if node.reason == REASON] == [(layer, REASON)]
    assert "w1" not in found.plan.encodings
    for name in set(found.plan.encodings) & set(state.plan.encodings):
        assert same_encoding(found.plan.encodings[name], state.plan.encodings[name]), name
    for name in ("w0", "b2", "w3"):
        np.testing.assert_array_equal(weights_of(found.network, name), weights_of(state.network, name))
    for name in ("w1", "b1"):  # those of the layer are the float network's again
        np.testing.assert_array_equal(weights_of(found.network, name), weights_of(state.reference, name))
    assert found.reference is state.reference
    np.testing.assert_array_equal(weights_of(state.network, "b1"), np.float32(1.01) * weights_of(planned.network, "b1"))


def test_no_layer_changes_nothing_and_all_leave_the_float_network() -> None:
    workshop, planned = opened()
    state = recovered(planned)
    same = leave_float(workshop, state, ())
    assert same.plan.same_as(state.plan)
    np.testing.assert_array_equal(run(same.network, FEED), run(state.network, FEED))
    whole = leave_float(workshop, state, [name_of(state.network, f"g{number}") for number in range(3)] + [
        name_of(state.network, "y")
    ])  # fmt: skip
    assert not set(whole.placement.weights)
    np.testing.assert_array_equal(run(whole.network, FEED), run(workshop.given, FEED))
    assert total_noise(workshop, whole) == 0


def test_a_bias_of_its_own_node_is_the_float_networks_again() -> None:
    model = network(
        "float[n, 16] x", "float[n, 16] y", "a = MatMul(x, w)  b = Add(a, c)  r = Relu(b)  y = MatMul(r, v)",
        w=normal(16, 16), c=normal(16, seed=1), v=normal(16, 16, seed=2),
    )  # fmt: skip
    workshop = workshop_of(model, FEED)
    state = state_of(workshop)
    changed = state.network.clone()
    set_constant(changed.graph.initializers["c"], weights_of(changed, "c") + 1)
    found = leave_float(workshop, replace(state, network=changed), {name_of(model, "a")})
    addition = next(node for node in found.network.graph if node.op_type == "Add")
    np.testing.assert_array_equal(addition.inputs[1].const_value.numpy(), normal(16, seed=1))


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_encodings_of_another_type_are_not_taken_over(kind: str) -> None:
    workshop, state = opened()
    other = Plan(
        target=state.plan.target,
        encodings={**state.plan.encodings, "w0": state_of(workshop, weights=integer_type("int8")).plan.encodings["w0"]},
    )
    found = leave_float(workshop, replace(state, plan=other), {name_of(state.network, "g1")})
    assert isinstance(found.plan.encodings["w0"], Encoding)
    assert found.plan.encodings["w0"].type == integer_type("int4")
    assert found.plan.encodings["w3"].type == integer_type(kind) or kind == "int8"


@pytest.mark.parametrize("bias", ["", ', ""'])
def test_a_bias_that_recovery_gave_a_layer_goes_with_it(bias: str) -> None:
    model = network(
        "float[n, 16] x", "float[n, 16] y", f"a = Gemm(x, w{bias})  r = Relu(a)  y = Gemm(r, v)",
        w=normal(16, 16), v=normal(16, 16, seed=2),
    )  # fmt: skip
    workshop = workshop_of(model, FEED)
    state = state_of(workshop)
    changed = state.network.clone()
    subtract_from_bias(changed.graph, next(iter(changed.graph)), np.ones(16))
    found = leave_float(workshop, replace(state, network=changed), {name_of(model, "a"), name_of(model, "y")})
    np.testing.assert_array_equal(run(found.network, FEED), run(model, FEED))


def test_without_a_float_output_nothing_tells_which_layer_costs_most() -> None:
    model = network(
        "float[n, 16] x", "int64[n] y", "a = MatMul(x, w)  y = ArgMax<axis=1, keepdims=0>(a)", w=normal(16, 16)
    )
    workshop = workshop_of(model, FEED)
    assert costliest_layers(workshop, state_of(workshop)) == ()
