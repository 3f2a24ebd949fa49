"""What the methods share: a plan is made anew, noise is measured on samples of its own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from narrowgauge.core.numbers import integer_type
from narrowgauge.graph.constants import set_constant
from narrowgauge.graph.digest import network_digest
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.planning.choices import NodeChoice
from tests.planning.networks import normal, run, sqnr, weights_of
from tests.recovery.benches import MEASURING, chain, state_of, total_noise, workshop_of

FEED = normal(64, 16, seed=9)


def test_a_planned_network_is_placed_and_filled_and_otherwise_as_it_was() -> None:
    workshop = workshop_of(chain(), FEED)
    state = state_of(workshop)
    assert state.reference is state.network is workshop.given
    assert state.statistics.network == network_digest(workshop.given)
    assert set(state.placement.weights) == {"w0", "w1", "w2", "w3"}
    assert set(state.placement.weights) < set(state.plan.encodings)


def test_the_fewest_bits_of_a_layer_count() -> None:
    workshop = workshop_of(chain(), FEED)
    assert state_of(workshop).weight_bits == 8
    assert state_of(workshop, nodes={"g1": NodeChoice(weights=integer_type("int4"))}).weight_bits == 4
    assert (
        state_of(workshop, nodes={f"g{n}": NodeChoice(keep_float="t") for n in range(3)}, keep_float="t").weight_bits
        == 8
    )


def test_noise_is_that_of_the_simulated_network_on_the_measuring_samples() -> None:
    workshop = workshop_of(chain(), FEED)
    state = state_of(workshop)
    held = FEED[-MEASURING:]
    expected = sqnr(run(workshop.given, held), run(lower_to_qdq(state.network, state.plan), held))
    assert -10 * math.log10(total_noise(workshop, state)) == pytest.approx(expected, abs=0.01)


def test_noise_of_the_activations_alone_leaves_the_weights_float() -> None:
    workshop = workshop_of(chain(), FEED)
    coarse = state_of(workshop, weights=integer_type("int2"))
    fine = state_of(workshop)
    assert total_noise(workshop, coarse) > 10 * total_noise(workshop, fine)
    of_activations = [total_noise(workshop, state, of_activations=True) for state in (coarse, fine)]
    assert of_activations[0] == pytest.approx(of_activations[1])
    assert 0 < of_activations[0] < total_noise(workshop, fine)


def test_weights_that_recovery_chose_do_not_count_among_the_activations() -> None:
    workshop = workshop_of(chain(), FEED)
    state = state_of(workshop)
    other = replace(state, network=workshop.given.clone())
    set_constant(other.network.graph.initializers["w0"], 3 * weights_of(other.network, "w0"))
    assert total_noise(workshop, other) > 10 * total_noise(workshop, state)
    assert total_noise(workshop, other, of_activations=True) == pytest.approx(
        total_noise(workshop, state, of_activations=True)
    )


def test_without_samples_nothing_is_measured() -> None:
    workshop = workshop_of(chain(), FEED, measuring=0)
    assert math.isnan(total_noise(workshop, state_of(workshop)))
