"""What a tensor costs at the output equals what running the whole network with and without it says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from narrowgauge.analysis.chain import open_streams
from narrowgauge.analysis.records import Analysis, Sensitivity
from narrowgauge.analysis.sensitivity import QuantizedTensor, quantized_layers, quantized_tensors, sweep
from narrowgauge.core.encoding import DynamicEncoding
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan, plan_from_json, plan_to_json
from narrowgauge.data import Batch
from narrowgauge.demo import digits, network_path
from narrowgauge.errors import DataError, ModelError, PlanError
from narrowgauge.graph.constants import set_constant
from narrowgauge.importers.onnx import load
from tests.analysis.exact import batched, exact_plan, noise, only, without
from tests.analysis.switches import Switched
from tests.calibration.networks import batches_of, branches, convolutions, exposed, pictures, sequence, whole
from tests.lowering.networks import hand_plan, per_tensor
from tests.planning.networks import name_of, network, normal, planned, seen


def swept(
    reference: ir.Model, model: ir.Model, plan: Plan, batches: Sequence[Batch], **asked: int
) -> list[Sensitivity]:
    return list(sweep(open_streams(reference, model, plan, batches, threads=2), **asked).sensitivities)


def tensors_of(model: ir.Model, plan: Plan) -> dict[str, QuantizedTensor]:
    return {tensor.name: tensor for tensor in quantized_tensors(model, plan)}


def with_layers_of(network: ir.Model, source: ir.Model, nodes: Sequence[str]) -> ir.Model:
    """A copy with the constants of some nodes taken from another network of the same names."""
    copy = network.clone()
    for node in copy.graph:
        for value in node.inputs if node.name in nodes else ():
            if value is not None and value.is_initializer():
                set_constant(value, source.graph.initializers[str(value.name)].const_value.numpy())
    return copy


def check_all(reference: ir.Model, model: ir.Model, plan: Plan, batches: Sequence[Batch]) -> None:
    """Every figure of the sweep against two runs of the whole network."""
    tensors = tensors_of(model, plan)
    total = noise(reference, model, plan, batches)
    layers = {layer.node: layer.tensors for layer in quantized_layers(model, plan, list(tensors.values()))}
    rows = swept(reference, model, plan, batches)
    assert {row.name for row in rows if row.kind != "layer"} == set(tensors)
    for row in rows:
        held = layers[row.name] if row.kind == "layer" else (tensors[row.name],)
        members = [name for tensor in held for name in tensor.members]
        changed = [node for tensor in held for node in tensor.layers]
        alone = noise(reference, with_layers_of(reference, model, changed), only(plan, members), batches)
        left = noise(reference, with_layers_of(model, reference, changed), without(plan, members), batches)
        np.testing.assert_allclose([row.alone, row.without], [alone, left], rtol=1e-9, err_msg=row.name)
        np.testing.assert_allclose(row.gain, total - left, rtol=1e-6, atol=1e-12)


BRANCHING = network(
    "float[n, 3, 8, 8] x", "float[n, 6, 4, 4] y, float[n, 4] z",
    """
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    ra = Relu(a)
    c = Conv<pads = [1, 1, 1, 1], group = 6>(ra, w2)
    m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)
    n2 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(ra)
    s = Add(m, n2)
    d = Conv(s, w3, b3)
    y = Add(d, m)
    axes = Constant<value_ints = [2, 3]>()
    p = ReduceMax<keepdims = 0>(s, axes)
    q = MatMul(p, w4)
    z = Add(q, b4)
    """,
    w1=whole(np.random.default_rng(1), 6, 3, 3, 3), b1=whole(np.random.default_rng(2), 6),
    w2=whole(np.random.default_rng(3), 6, 1, 3, 3), w3=whole(np.random.default_rng(4), 6, 6, 1, 1),
    b3=whole(np.random.default_rng(5), 6), w4=whole(np.random.default_rng(6), 6, 4),
    b4=whole(np.random.default_rng(7), 4),
)  # fmt: skip
"""Two outputs, a value that is read again behind other nodes, weights in groups, a bias in an addition."""


def test_branches_outputs_and_shared_values_cost_what_whole_runs_say() -> None:
    batches = batched(BRANCHING, {"x": whole(np.random.default_rng(8), 10, 3, 8, 8)})
    check_all(BRANCHING, BRANCHING, exact_plan(BRANCHING, skip=("a", "q")), batches)


def test_weights_and_biases_that_recovery_changed_are_left_float_as_they_were() -> None:
    changed = BRANCHING.clone()
    for number, name in enumerate(("w1", "b1", "w2", "w3", "b4")):
        array = BRANCHING.graph.initializers[name].const_value.numpy()
        set_constant(changed.graph.initializers[name], array + whole(np.random.default_rng(20 + number), *array.shape))
    batches = batched(BRANCHING, {"x": whole(np.random.default_rng(8), 6, 3, 8, 8)})
    plan = exact_plan(BRANCHING, skip=("a", "q"))
    tensors = tensors_of(changed, plan)
    rows = {row.name: row for row in swept(BRANCHING, changed, plan, batches)}
    for name, constants in (("w1", ("w1", "b1")), ("w2", ("w2",)), ("w3", ("w3", "b3")), ("w4", ("w4", "b4"))):
        mixed, alone = changed.clone(), BRANCHING.clone()
        for constant in constants:
            set_constant(mixed.graph.initializers[constant], BRANCHING.graph.initializers[constant].const_value.numpy())
            set_constant(alone.graph.initializers[constant], changed.graph.initializers[constant].const_value.numpy())
        members = tensors[name].members
        np.testing.assert_allclose(rows[name].without, noise(BRANCHING, mixed, without(plan, members), batches))
        np.testing.assert_allclose(rows[name].alone, noise(BRANCHING, alone, only(plan, members), batches))


def test_a_bias_that_recovery_added_is_left_out_with_its_weights() -> None:
    body = "h = Conv(x, w1{}) y = Conv(h, w2)"
    rng = np.random.default_rng(0)
    weights = {"w1": whole(rng, 4, 3, 1, 1), "w2": whole(rng, 2, 4, 1, 1)}
    plain = network("float[n, 3, 4, 4] x", "float[n, 2, 4, 4] y", body.format(""), **weights)
    biased = network("float[n, 3, 4, 4] x", "float[n, 2, 4, 4] y", body.format(", b"), b=whole(rng, 4), **weights)
    for one in (plain, biased):
        for number, node in enumerate(one.graph):
            node.name = f"node{number}"
    batches = batched(plain, {"x": whole(rng, 5, 3, 4, 4)})
    plan = exact_plan(plain)
    for reference, model in ((plain, biased), (biased, plain)):
        rows = {row.name: row for row in swept(reference, model, plan, batches)}
        np.testing.assert_allclose(rows["w1"].without, noise(reference, reference, without(plan, ["w1"]), batches))
        np.testing.assert_allclose(rows["w1"].alone, noise(reference, model, only(plan, ["w1"]), batches))


@pytest.mark.parametrize("build", [convolutions, sequence, branches])
def test_convolutions_sequences_and_bodies_of_if(build) -> None:
    model = build()
    rng = np.random.default_rng(5)
    feeds = {
        "convolutions": {"x": pictures(4)},
        "sequence": {"x": whole(rng, 4, 5, 4)},
        "branches": {"x": whole(rng, 4, 4)},
    }
    batches = batched(model, feeds[build.__name__], 1 if build is branches else 2)
    check_all(model, model, exact_plan(model), batches)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[ir.Model, Plan, int]:
    """A random network of convolutions, additions, pools and concatenations on five channels, and a plan with holes."""
    body, names, weights = [], ["x"], {}
    for number in range(draw(st.integers(2, 14))):
        sources = [draw(st.sampled_from(names)) for _ in range(2)]
        operator = draw(st.sampled_from(["Conv", "Add", "Relu", "MaxPool", "Neg", "Shared"]))
        name = f"v{number}"
        if operator in ("Conv", "Shared"):
            key = "shared" if operator == "Shared" else f"w{number}"
            weights[key] = whole(np.random.default_rng(number), 5, 5, 1, 1)
            body.append(f"{name} = Conv({sources[0]}, {key})")
        elif operator == "MaxPool":
            body.append(f"{name} = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>({sources[0]})")
        else:
            body.append(f"{name} = {operator}({', '.join(sources if operator == 'Add' else sources[:1])})")
        names.append(name)
    shape = "float[n, 5, 3, 3]"
    ends = f"{shape} {names[-1]}" + (f", {shape} v0" if draw(st.booleans()) else "")
    model = network(f"{shape} x", ends, "\n".join(body), **weights)
    plan = exact_plan(model, step=2.0 ** draw(st.integers(1, 4)))
    keep = [name for name in plan.encodings if draw(st.integers(0, 3))]
    nodes = [str(node.name) for node in model.graph if not draw(st.integers(0, 4))]
    return model, hand_plan({name: plan.encodings[name] for name in keep}, float_nodes=nodes), draw(st.integers(1, 3))


@settings(max_examples=25)
@given(graphs())
def test_random_networks_cost_what_whole_runs_say(drawn: tuple[ir.Model, Plan, int]) -> None:
    model, plan, size = drawn
    # Values grow with depth: whole numbers of float32 are exact below 2**24, so the input is small.
    sample = np.sign(whole(np.random.default_rng(0), 3, 5, 3, 3))
    if max(float(np.abs(one).max()) for one in _values(model, sample)) > 2**20:
        return
    batches = batched(model, {"x": sample}, size)
    assume(np.isfinite(noise(model, model, plan, batches)))  # an error over an output of zeros is no share
    check_all(model, model, plan, batches)


def _values(model: ir.Model, sample: np.ndarray) -> list[np.ndarray]:
    names = [str(value.name) for node in model.graph for value in node.outputs]
    return [array for arrays in exposed(model, [{"x": sample}], names).values() for array in arrays]


# --- which tensors ---


def test_values_with_one_encoding_are_one_tensor_also_when_the_plan_comes_from_a_file() -> None:
    model = network(
        "float[n, 4, 8, 8] x", "float[n, 8, 16] y",
        """
        a = Conv(x, w1)
        b = Conv(x, w2)
        c = Concat<axis = 1>(a, b)
        m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)
        shape = Constant<value_ints = [0, 8, 16]>()
        r = Reshape(m, shape)
        y = Neg(r)
        """,
        w1=normal(4, 4, 1, 1), w2=normal(4, 4, 1, 1),
    )  # fmt: skip
    plan = planned(model, seen(model, normal(8, 4, 8, 8)), "qnn")
    for one in (plan, plan_from_json(plan_to_json(plan))):
        found = tensors_of(model, one)
        assert set(found["a"].members) == {"a", "b", "c", "m", "r"}
        assert {name: tensor.kind for name, tensor in found.items() if tensor.kind == "weights"} == {
            "w1": "weights", "w2": "weights",
        }  # fmt: skip
        assert (found["a"].node, found["w2"].node) == (name_of(model, "a"), name_of(model, "b"))
        assert (found["a"].first, found["a"].last) == (0, 5)


def test_weights_that_two_layers_read_are_one_tensor() -> None:
    model = network(
        "float[n, 4] x", "float[n, 4] y", "h = MatMul(x, w) r = Relu(h) y = MatMul(r, w)",
        w=whole(np.random.default_rng(0), 4, 4),
    )  # fmt: skip
    plan = exact_plan(model, skip=("h",))
    assert tensors_of(model, plan)["w"].layers == (name_of(model, "h"), name_of(model, "y"))
    check_all(model, model, plan, batched(model, {"x": whole(np.random.default_rng(1), 6, 4)}))


def test_a_layer_is_its_weights_and_what_its_activation_function_writes() -> None:
    plan = exact_plan(BRANCHING, skip=("a", "q"))
    layers = {layer.node: [one.name for one in layer.tensors] for layer in
              quantized_layers(BRANCHING, plan, quantized_tensors(BRANCHING, plan))}  # fmt: skip
    assert layers == {
        name_of(BRANCHING, "a"): ["w1", "ra"], name_of(BRANCHING, "c"): ["w2", "c"],
        name_of(BRANCHING, "d"): ["w3", "d"], name_of(BRANCHING, "q"): ["w4", "z"],
    }  # fmt: skip


def test_ranges_of_run_time_are_measured_too() -> None:
    model = network("float[n, 8] x", "float[n, 3] y", "h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2)",
                    w1=normal(8, 6), w2=normal(6, 3))  # fmt: skip
    dynamic = DynamicEncoding(type=integer_type("uint8"))
    plan = hand_plan({"x": dynamic, "r": dynamic, "w1": per_tensor("int8", 0.03)}, mode="dynamic")
    batches = batched(model, {"x": normal(8, 8)})
    rows = {row.name: row for row in swept(model, model, plan, batches)}
    assert set(rows) == {"x", "r", "w1", name_of(model, "h")}
    for name in ("x", "r", "w1"):
        np.testing.assert_allclose(rows[name].alone, noise(model, model, only(plan, [name]), batches), rtol=1e-3)
        np.testing.assert_allclose(rows[name].without, noise(model, model, without(plan, [name]), batches), rtol=1e-3)


# --- samples, order ---


def test_all_are_measured_on_the_first_samples_and_the_worst_on_all() -> None:
    batches = batched(BRANCHING, {"x": whole(np.random.default_rng(8), 12, 3, 8, 8)}, 2)
    plan = exact_plan(BRANCHING, skip=("a", "q"))
    rows = swept(BRANCHING, BRANCHING, plan, batches, first_samples=4, most_exact=3)
    assert sorted({row.samples for row in rows}) == [4, 12]
    assert sum(row.samples == 12 for row in rows) == 3
    tensors = tensors_of(BRANCHING, plan)
    for row in rows:
        if row.kind != "layer":
            few = batches[: row.samples // 2]
            expected = noise(BRANCHING, BRANCHING, only(plan, tensors[row.name].members), few)
            np.testing.assert_allclose(row.alone, expected, rtol=1e-9)


def test_rows_that_only_fill_a_fixed_batch_do_not_count() -> None:
    fixed, free = (
        network(f"float[{size}, 4] x", f"float[{size}, 4] y", "h = MatMul(x, w) y = Neg(h)",
                w=whole(np.random.default_rng(0), 4, 4)) for size in (4, "n")
    )  # fmt: skip
    data = whole(np.random.default_rng(1), 6, 4)
    rows = [swept(model, model, exact_plan(model), list(batches_of(model, {"x": data}, 1))) for model in (fixed, free)]
    assert [row.alone for row in rows[0]] == pytest.approx([row.alone for row in rows[1]])
    assert {row.samples for row in rows[0]} == {6}


def test_networks_that_differ_unknown_names_and_no_samples_are_refused() -> None:
    other = network("float[n, 4] x", "float[n, 4] y", "y = Neg(x)")
    model = network("float[n, 4] x", "float[n, 4] y", "h = Relu(x) y = Neg(h)")
    with pytest.raises(ModelError, match="nodes of the one that the plan describes"):
        open_streams(other, model, hand_plan({}), batched(model, {"x": normal(2, 4)}))
    with pytest.raises(PlanError, match="names value 'gone'"):
        open_streams(model, model, hand_plan({"gone": per_tensor("int8", 1)}), batched(model, {"x": normal(2, 4)}))
    with pytest.raises(DataError, match="no sample"):
        open_streams(model, model, hand_plan({}), [])


def test_demo_networks_agree_with_whole_runs() -> None:
    """Rounding errors are chaotic: a last bit of a float sum moves other roundings, so only `alone` is compared."""
    model = load(network_path("digits_conv")).model
    images = digits().images
    plan = planned(model, seen(model, images[:64]), "tflite")
    batches = list(batches_of(model, images[100:108], 8))
    for row in swept(model, model, plan, batches)[::5]:
        if row.kind != "layer":
            expected = noise(model, model, only(plan, tensors_of(model, plan)[row.name].members), batches)
            np.testing.assert_allclose(row.alone, expected, rtol=0.05, err_msg=row.name)


# --- ranking ---


def small_network(seed: int) -> tuple[ir.Model, np.ndarray]:
    """Thirteen tensors to round, with channels of different sizes; samples of different sizes."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        spread = np.exp(rng.standard_normal((shape[0], *[1] * (len(shape) - 1))) * rng.uniform(0, 1.2))
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) * spread).astype(np.float32)

    model = network(
        "float[n, 3, 12, 12] x", "float[n, 10] y",
        """
        a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
        ra = Relu(a)
        b = Conv<pads = [1, 1, 1, 1], group = 8>(ra, w2)
        rb = Clip(b, low, high)
        c = Conv(rb, w3)
        s = Add(c, ra)
        d = Conv<strides = [2, 2]>(s, w4, b4)
        rd = Relu(d)
        p = GlobalAveragePool(rd)
        f = Flatten(p)
        y = Gemm<transB = 1>(f, w5)
        """,
        w1=weights(8, 3, 3, 3), b1=weights(8, 1)[:, 0], w2=weights(8, 1, 3, 3), w3=weights(8, 8, 1, 1),
        w4=weights(16, 8, 3, 3), b4=weights(16, 1)[:, 0], w5=weights(10, 16),
        low=np.float32(0), high=np.float32(6),
    )  # fmt: skip
    sizes = np.exp(rng.standard_normal((64, 1, 1, 1)) / 2)
    return model, (rng.standard_normal((64, 3, 12, 12)) * sizes).astype(np.float32)


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_the_first_five_recover_nearly_what_any_five_could(weights: str) -> None:
    model, data = small_network(seed=3)
    plan = planned(model, seen(model, data[:48]), "snpe", weights=integer_type(weights))
    tensors = tensors_of(model, plan)
    assert len(tensors) == 13
    rows = swept(model, model, plan, list(batches_of(model, {"x": data[48:]}, 4)))
    first = [row.name for row in Analysis(sensitivities=tuple(rows)).ranking()[:5]]
    switched = Switched(model, plan, {name: one.members for name, one in tensors.items()}, {"x": data[48:]})
    whole_noise = switched.noise(())
    best = min(switched.noise(five) for five in itertools.combinations(tensors, 5))
    assert whole_noise - switched.noise(first) >= 0.8 * (whole_noise - best)


def test_layers_are_not_ranked() -> None:
    row = Sensitivity(name="w", kind="weights", node="c", depth=0, alone=1.0, without=0.0, gain=1.0)
    rows = (row, replace(row, name="c", kind="layer"), replace(row, name="v", kind="activation", alone=2.0))
    assert [one.name for one in Analysis(sensitivities=rows).ranking()] == ["v", "w"]
