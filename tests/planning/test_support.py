"""What of a plan a target cannot run is said, and nothing else."""

import pytest

from narrowgauge.core.numbers import integer_type
from narrowgauge.demo import digits, network_path
from narrowgauge.importers.onnx import load
from narrowgauge.planning.support import unsupported
from narrowgauge.targets.registry import load_target, target_names
from tests.planning.networks import planned, seen


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
