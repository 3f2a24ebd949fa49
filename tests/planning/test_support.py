"""What of a plan a target cannot run is said, and nothing else."""

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.numbers import integer_type
from narrowgauge.demo import digits, network_path
from narrowgauge.importers.onnx import load
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.planning.support import unsupported, without_effect
from narrowgauge.targets.registry import load_target, target_names
from tests.planning.networks import choices, name_of, network, normal, planned, seen


@pytest.mark.parametrize("name", ["digits_conv", "digits_vit"])
def test_every_target_can_run_its_own_plans(name: str) -> None:
    model = load(network_path(name)).model
    statistics = seen(model, digits().images[:8])
    for target in target_names():
        plan = planned(model, statistics, target)
        assert unsupported(model, plan, load_target(target)) == [], target


def test_zero_points_where_it_takes_none_are_said() -> None:
    model = load(network_path("digits_conv")).model
    plan = planned(model, seen(model, digits().images[:8]), "tflite")
    assert any(
        "with a zero point (it takes none)" in said for said in unsupported(model, plan, load_target("tensorrt"))
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"weights": integer_type("int3")}, "weights of int3"),
        ({"activations": integer_type("uint4")}, "activations of uint4"),
        ({"granularity": "block"}, "weights with a scale per block"),
    ],
)
def test_what_it_cannot_run_is_said(asked: dict[str, object], said: str) -> None:
    model = load(network_path("digits_conv")).model
    target = "onnxruntime" if "block" not in asked.values() else "tflite"
    plan = planned(model, seen(model, digits().images[:8]), target, **asked)
    found = unsupported(model, plan, load_target(target))
    assert [line for line in found if line.startswith(said)], found


def attention() -> ir.Model:
    """A table of words that a normalization reads itself, and one attention behind it."""
    body = (
        "e = Gather(t, i)  k = LayerNormalization<axis = -1>(e, g, o)  q = MatMul(k, w)"
        "  s = Transpose<perm = [0, 2, 1]>(k)  l = MatMul(q, s)  a = Softmax<axis = -1>(l)  v = MatMul(a, k)"
        "  y = MatMul(v, w)"
    )
    weights = {"t": 1 + normal(20, 8), "g": normal(8, seed=1), "o": normal(8, seed=2), "w": normal(8, 8, seed=3)}
    return network("int64[n, 5] i", "float[n, 5, 8] y", body, **weights)


WORDS = np.random.default_rng(4).integers(0, 20, (12, 5))


def test_a_table_whose_levels_are_moved_is_no_layer_s_weights() -> None:
    model = attention()
    plan = planned(model, seen(model, WORDS), "integer-only")
    assert plan.encodings["t"].zero_point.any()  # as an activation, which takes a zero point
    assert unsupported(model, plan, load_target("integer-only")) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"activations": integer_type("uint4")}, "activations of uint4 (it takes uint8, int16), first 't'"),
        ({"weights": integer_type("uint4")}, "weights of uint4 (it takes int8_narrow, int4), first 'w'"),
        (
            {"nodes": {"a": NodeChoice(activations=integer_type("uint3"))}},
            "activations of uint3 (it takes uint8, int16, and here uint4), first 'a'",
        ),
        (
            {"nodes": {"k": NodeChoice(activations=integer_type("uint4"))}},
            "activations of uint4 (it takes uint8, int16), first 'k'",
        ),
    ],
)
def test_the_tensor_and_what_its_operator_takes_are_named(asked: dict[str, object], said: str) -> None:
    model = attention()
    plan = planned(model, seen(model, WORDS), "integer-only", **asked)
    assert unsupported(model, plan, load_target("integer-only")) == [said]


def test_logarithms_of_4_bits_are_taken_where_softmax_writes_them() -> None:
    model = attention()
    plan = planned(
        model, seen(model, WORDS), "integer-only", nodes={"a": NodeChoice(activations=integer_type("uint4"))}
    )
    assert unsupported(model, plan, load_target("integer-only")) == []


def test_types_asked_for_operators_that_stay_float_are_said_to_have_no_effect() -> None:
    model = attention()
    asked = {"a": NodeChoice(activations=integer_type("uint4"))}
    statistics = seen(model, WORDS)
    assert without_effect(
        model, planned(model, statistics, "onnxruntime", nodes=asked), choices(model, nodes=asked)
    ) == [f"uint4 has no effect on Softmax: onnxruntime has no integer Softmax ({name_of(model, 'a')})"]
    wanted = choices(model, nodes=asked)
    assert without_effect(model, planned(model, statistics, "integer-only", nodes=asked), wanted) == []
    assert without_effect(model, planned(model, statistics, "onnxruntime"), choices(model)) == []
