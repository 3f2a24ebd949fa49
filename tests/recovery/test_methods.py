"""The table of methods: each on a network that needs it, on one that does not, and on what stays float."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.numbers import integer_type
from narrowgauge.graph.digest import network_digest
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.recovery.ladder import WORTHWHILE
from narrowgauge.recovery.methods import METHODS
from narrowgauge.recovery.workshop import State, Workshop
from tests.analysis.test_outliers import samples as stream_samples
from tests.analysis.test_outliers import stream_network
from tests.planning.networks import network, normal, run, sqnr
from tests.recovery.benches import MEASURING, chain, state_of, total_noise, workshop_of
from tests.recovery.test_rotate_streams import FULL, WEIGHTS, D, T, of_body

INT4 = integer_type("int4")


def outlying() -> ir.Model:
    """One channel of what a product reads is 60 times larger, and its weights as much smaller."""
    scale, weights = np.ones(48, np.float32), normal(48, 16, seed=1) / 7
    scale[7], weights[7] = 60, weights[7] / 60
    return network(
        "float[n, 48] x", "float[n, 16] y", "h = Tanh(x)  g = Mul(h, s)  y = MatMul(g, w)", s=scale, w=weights
    )


def unequal() -> ir.Model:
    """Two convolutions whose channels reach from a hundredth to a hundred times as far."""
    reach = np.exp(normal(16, seed=3) * 1.5)
    return network(
        "float[n, 8, 6, 6] x", "float[n, 8, 6, 6] y", "a = Conv(x, w, b)  r = Relu(a)  y = Conv(r, v)",
        w=normal(16, 8, 1, 1) * reach[:, None, None, None], b=normal(16, seed=1) * reach,
        v=normal(8, 16, 1, 1, seed=2) / reach[:, None, None],
    )  # fmt: skip


def heavy(count: int) -> np.ndarray:
    """A few numbers reach far."""
    found = normal(count, 16, seed=9)
    found[::7, 3] *= 12
    return found


def cut() -> ir.Model:
    """What reaches far is cut off behind the product."""
    return network(
        "float[n, 16] x", "float[n, 16] y", "c = Gemm(x, w, b)  h = Clip(c, low, high)  y = Gemm(h, v)",
        w=np.eye(16, dtype=np.float32), b=np.zeros(16, np.float32), v=normal(16, 16, seed=1), low=np.float32(-2),
        high=np.float32(2),
    )  # fmt: skip


def lifted() -> ir.Model:
    """Biases so large that no number behind the Relu is ever near 0."""
    return network(
        "float[n, 16] x", "float[n, 8] y", "c = Gemm(x, w, b)  h = Relu(c)  y = Gemm(h, v, d)",
        w=normal(16, 16) / 4, b=np.full(16, 20, np.float32), v=normal(16, 8, seed=1), d=normal(8),
    )  # fmt: skip


def spiking() -> ir.Model:
    """A hidden unit fires on few tokens and writes into one channel of the residual stream."""
    into, bias, out_of = (WEIGHTS[name].copy() for name in ("w1", "b1", "w2"))
    into[:, 3] *= 20
    bias[3] = -10
    out_of[3] = 0
    out_of[3, 5] = 10
    return of_body(FULL, w1=into, b1=bias, w2=out_of)


def uneven() -> ir.Model:
    """One token's stream reaches sixty times as far as that of the token that is read."""
    table = WEIGHTS["p"].copy()
    table[:, -1] *= 60
    return of_body(FULL, p=table)


CASES = {
    "migrate": (outlying, lambda: normal(80, 48, seed=9), "onnxruntime", {}),
    "equalize": (unequal, lambda: normal(80, 8, 6, 6, seed=9), "tflite", {"granularity": "tensor"}),
    "absorb-biases": (lifted, lambda: normal(80, 16, seed=9), "tflite", {}),
    "widen-streams": (uneven, lambda: normal(60, T, D, seed=20), "integer-only", {}),
    "rotate-streams": (spiking, lambda: normal(60, T, D, seed=20), "tflite", {}),
    "cap-outliers": (stream_network, stream_samples, "tflite", {}),
    "choose-estimator": (cut, lambda: heavy(1500), "tflite", {}),
    "refine-ranges": (cut, lambda: heavy(1500), "tflite", {}),
    "correct-bias": (chain, lambda: np.abs(normal(80, 16, seed=9)), "onnxruntime", {"weights": INT4}),
    "optimize-weights": (chain, lambda: normal(120, 16, seed=9), "onnxruntime", {"weights": INT4}),
}


def opened(name: str) -> tuple[Workshop, State]:
    model, feed, target, asked = CASES[name]
    workshop = workshop_of(model(), feed(), target)
    return workshop, state_of(workshop, **asked)


def test_every_method_has_a_case_here() -> None:
    assert set(CASES) == set(METHODS)
    assert all(name == method.name for name, method in METHODS.items())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_helps_where_it_is_needed(name: str) -> None:
    method = METHODS[name]
    workshop, state = opened(name)
    given = network_digest(workshop.given), network_digest(state.network)
    found = method.apply(workshop, state)
    assert found is not None
    after, said = found
    assert said
    noises = [total_noise(workshop, one, of_activations=method.of_activations) for one in (state, after)]
    assert noises[1] < WORTHWHILE * noises[0]
    assert (network_digest(workshop.given), network_digest(state.network)) == given  # neither is changed in place
    if method.structural:
        assert after.network is after.reference
        assert after.statistics.network == network_digest(after.reference)
        assert set(after.choices.nodes) >= set(state.choices.nodes)
    else:
        assert (after.reference, after.statistics) == (state.reference, state.statistics)


@pytest.mark.parametrize("name", ["migrate", "equalize", "absorb-biases", "rotate-streams"])
def test_a_change_of_structure_leaves_the_float_network_what_it_was(name: str) -> None:
    workshop, state = opened(name)
    found = METHODS[name].apply(workshop, state)
    assert found is not None
    feed = CASES[name][1]()[:-MEASURING]  # what calibrated: a channel may fall lower on other samples
    assert sqnr(run(state.reference, feed), run(found[0].reference, feed)) > 90


@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_a_float_network_as_it_is(name: str) -> None:
    model, feed, target, _ = CASES[name]
    workshop = workshop_of(model(), feed(), target)
    state = state_of(workshop, keep_float="kept float by a test")
    assert not state.plan.encodings
    found = METHODS[name].apply(workshop, state)
    if found is not None:
        assert total_noise(workshop, found[0]) < 1e-4
        assert not found[0].plan.encodings


@pytest.mark.parametrize("name", ["cap-outliers", "choose-estimator", "refine-ranges", "optimize-weights"])
def test_without_samples_of_their_own_methods_that_need_them_do_nothing(name: str) -> None:
    model, feed, target, asked = CASES[name]
    workshop = dataclasses.replace(
        workshop_of(model(), feed(), target, measuring=0), samples=lambda number, rows: [], measuring=()
    )
    assert METHODS[name].apply(workshop, state_of(workshop, **asked)) is None
    assert bool(workshop.notes) == (name == "refine-ranges")


def test_what_was_asked_for_single_nodes_outlives_a_change_of_structure() -> None:
    model, feed, target, _ = CASES["migrate"]
    workshop = workshop_of(model(), feed(), target)
    state = state_of(workshop, nodes={"y": NodeChoice(weights=INT4)})
    found = METHODS["migrate"].apply(workshop, state)
    assert found is not None
    assert found[0].weight_bits == 4


@pytest.mark.parametrize(("noise", "tried"), [(1e-4, False), (0.05, True), (1.0, True), (math.inf, True)])
def test_costly_methods_are_worth_their_time_where_there_is_much_noise(noise: float, tried: bool) -> None:
    _, state = opened("migrate")
    assert METHODS["optimize-weights"].worthwhile(state, noise) == tried
    assert METHODS["migrate"].worthwhile(state, noise)
    few_bits = opened("optimize-weights")[1]
    assert METHODS["optimize-weights"].worthwhile(few_bits, noise)
