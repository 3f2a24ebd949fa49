"""A layer evened out with its neighbours: the whole network equalized, calibrated and planned says the same."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.analysis.chain import Change, changed_plan
from narrowgauge.analysis.equalized import equalized
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.granularity import PerAxis
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.graph.constants import set_constant
from narrowgauge.recovery.equalize import equalize
from narrowgauge.targets.registry import load_target
from tests.analysis.exact import batched, noise
from tests.planning.networks import network, normal, planned, seen, weights_of

TARGET = load_target("snpe")
UNEQUAL = np.geomspace(0.1, 8, 8).astype(np.float32)
IMAGES = normal(16, 8, 6, 6, seed=9)


def columns(*shape: int, seed: int) -> np.ndarray:
    """Weights whose output channels, along the first axis, differ widely."""
    return normal(*shape, seed=seed) * UNEQUAL.reshape(-1, *[1] * (len(shape) - 1))


NETWORKS = {
    "depthwise": network(
        "float[n, 8, 6, 6] x", "float[n, 4, 6, 6] y",
        "a = Conv(x, w1, b1) ra = Relu(a) d = Conv<group = 8, pads = [1, 1, 1, 1]>(ra, w, b2) rd = Relu(d)"
        "y = Conv(rd, w3, b3)",
        w1=columns(8, 8, 1, 1, seed=1), b1=normal(8, seed=2), w=columns(8, 1, 3, 3, seed=3), b2=normal(8, seed=4),
        w3=normal(4, 8, 1, 1, seed=5), b3=normal(4, seed=6),
    ),
    "a clip that never cuts, and a pool": network(
        "float[n, 8, 6, 6] x", "float[n, 4, 3, 3] y",
        "a = Conv(x, w, b1) c = Clip(a, zero, high) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)"
        "y = Conv(p, w2)",
        w=columns(8, 8, 1, 1, seed=1), b1=normal(8, seed=2), zero=np.float32(0), high=np.float32(1000),
        w2=normal(4, 8, 1, 1, seed=3),
    ),
    "matrix products": network(
        "float[n, 8, 6, 6] x", "float[n, 4] y",
        """
        t = ConvTranspose<group = 2>(x, w1, b1)
        g = GlobalAveragePool(t)
        f = Flatten(g)
        m = MatMul(f, w)
        h = Add(m, b2)
        r = Relu(h)
        y = Gemm<beta = 0.5, transB = 1>(r, w3, b3)
        """,
        w1=columns(8, 4, 1, 1, seed=1), b1=normal(8, seed=2), w=columns(8, 8, seed=3).T.copy(), b2=normal(8, seed=4),
        w3=normal(4, 8, seed=5), b3=normal(4, seed=6),
    ),
    "a branch beside": network(
        "float[n, 8, 6, 6] x", "float[n, 4, 6, 6] y",
        "a = Conv(x, w) s = Conv(x, v) ra = Relu(a) q = Relu(s) c = Conv(ra, w2) y = Add(c, q)",
        w=columns(8, 8, 1, 1, seed=1), v=normal(4, 8, 1, 1, seed=2), w2=normal(4, 8, 1, 1, seed=3),
    ),
}  # fmt: skip


def reader(model: ir.Model, weights: str) -> ir.Node:
    return next(node for node in model.graph if weights in {value.name for value in node.inputs if value is not None})


def change_of(model: ir.Model, plan: Plan, statistics: Statistics | None, weights: str = "w") -> Change | None:
    return equalized(model, plan, statistics, reader(model, weights), TARGET)


def applied(model: ir.Model, plan: Plan, change: Change) -> tuple[ir.Model, Plan]:
    other = model.clone()
    assert change.edit is not None
    change.edit(other.graph)
    return other, changed_plan(plan, change.encodings)


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_is_what_the_equalized_network_planned_anew_is(kind: str) -> None:
    model = NETWORKS[kind]
    statistics = seen(model, IMAGES)
    plan = planned(model, statistics, "snpe", granularity="tensor")
    change = change_of(model, plan, statistics)
    assert change is not None
    other, rescaled = applied(model, plan, change)
    whole, its_statistics, done = equalize(model, statistics, caps=False)
    anew = planned(whole, its_statistics, "snpe", granularity="tensor")
    assert done
    assert anew.encodings.keys() == rescaled.encodings.keys()
    for name, encoding in anew.encodings.items():
        np.testing.assert_allclose(rescaled.encodings[name].scale, encoding.scale, rtol=1e-5)
        np.testing.assert_array_equal(rescaled.encodings[name].zero_point, encoding.zero_point)
    for name, value in whole.graph.initializers.items():
        np.testing.assert_array_equal(weights_of(other, name), value.const_value.numpy())
    batches = batched(model, {"x": IMAGES}, 8)
    float_plan = replace(plan, encodings={})
    assert noise(model, other, float_plan, batches) < 1e-10
    assert noise(model, other, rescaled, batches) < noise(model, model, plan, batches)


def test_a_range_that_was_cut_off_stays_so() -> None:
    model = NETWORKS["depthwise"]
    statistics = seen(model, IMAGES)
    plan = planned(model, statistics, "snpe", granularity="tensor")
    halves = {
        name: replace(one, scale=one.scale / 2) if name in {"ra", "w"} else one for name, one in plan.encodings.items()
    }
    whole = change_of(model, plan, statistics)
    half = change_of(model, replace(plan, encodings=halves), statistics)
    assert whole is not None
    assert half is not None
    for name in whole.encodings:
        share = half.encodings[name].scale / whole.encodings[name].scale
        np.testing.assert_allclose(share, 0.5 if name in {"ra", "w"} else 1, rtol=1e-5)


def test_what_has_no_link_is_left() -> None:
    bodies = {
        "a cap is needed": "a = Conv(x, w) c = Clip(a, zero, one) y = Conv(c, v)",
        "an addition": "a = Conv(x, w) s = Add(a, x) y = Conv(s, v)",
        "shared weights": "a = Conv(x, w) r = Relu(a) y = Conv(r, w)",
        "an output": "a = Conv(x, w) y = Relu(a)",
        "a body": (
            "a = Conv(x, w) y = If(flag) <then_branch = t () => (float[n, 8, 6, 6] u) { u = Conv(a, v) },"
            " else_branch = e () => (float[n, 8, 6, 6] z) { z = Relu(a) }>"
        ),
        "equal channels": "a = Conv(x, same) r = Relu(a) y = Conv(r, same2)",
    }
    constants = {
        "w": columns(8, 8, 1, 1, seed=1), "v": normal(8, 8, 1, 1, seed=2), "zero": np.float32(0), "one": np.float32(1),
        "flag": np.array(True), "same": np.ones((8, 8, 1, 1), np.float32), "same2": np.ones((8, 8, 1, 1), np.float32),
    }  # fmt: skip
    for kind, body in bodies.items():
        used = {name: array for name, array in constants.items() if name in re.findall(r"\w+", body)}
        model = network("float[n, 8, 6, 6] x", "float[n, 8, 6, 6] y", body, **used)
        statistics = seen(model, IMAGES)
        plan = planned(model, statistics, "snpe", granularity="tensor")
        assert change_of(model, plan, statistics, "same" if "same" in used else "w") is None, kind


def test_ranges_that_are_not_known() -> None:
    model = NETWORKS["depthwise"]
    statistics = seen(model, IMAGES)
    plan = planned(model, statistics, "snpe", granularity="tensor")
    assert change_of(model, plan, None) is None
    blind = {name: replace(one, channels=None) for name, one in statistics.tensors.items()}
    assert change_of(model, plan, replace(statistics, tensors=blind)) is None
    channels = statistics.of("ra").channels
    odd = encoding_from_range(channels.minimum, channels.maximum, plan.encodings["ra"].type, PerAxis(1))
    assert change_of(model, replace(plan, encodings={**plan.encodings, "ra": odd}), statistics) is None


def test_weights_alone_need_no_statistics() -> None:
    model = NETWORKS["depthwise"]
    plan = planned(model, None, "onnxruntime", mode="weight-only", granularity="tensor")
    change = change_of(model, plan, None)
    assert change is not None
    assert change.encodings.keys() == plan.encodings.keys()
    other, rescaled = applied(model, plan, change)
    batches = batched(model, {"x": IMAGES}, 8)
    assert noise(model, other, rescaled, batches) < noise(model, model, plan, batches)


def test_a_neighbour_in_float_and_large_biases() -> None:
    model = NETWORKS["depthwise"].clone()
    set_constant(model.graph.initializers["b3"], np.full(4, 1e7, np.float32))
    statistics = seen(model, IMAGES)
    plan = planned(model, statistics, "onnxruntime", granularity="tensor")
    change = change_of(model, plan, statistics)
    assert change is not None
    assert change.encodings["w3"].scale * change.encodings["rd"].scale * 2.0**31 >= 1e7
    float_first = {name: one for name, one in plan.encodings.items() if name not in {"w1", "x"}}
    change = change_of(model, replace(plan, encodings=float_first), statistics)
    assert change is not None
    assert "w1" not in change.encodings
