import json
import math
from dataclasses import replace

import numpy as np
import pytest

from narrowgauge.analysis.records import Analysis, Distribution
from narrowgauge.core.encoding import Encoding, LogEncoding, NormalizedEncoding
from narrowgauge.core.granularity import PerTensor, PowerOfTwoFactor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.report.pictures import PICTURES, pictures
from narrowgauge.report.tensors import tensors
from tests.report.example import Example, example


def drawn(shown: Example, analysis: Analysis) -> dict:
    found = pictures(shown.plan, analysis, tensors(shown.plan, analysis))
    return json.loads(json.dumps(found, allow_nan=False))


def of(found: dict, name: str) -> dict:
    return next(tensor for tensor in found["tensors"] if tensor["name"] == name)


@pytest.fixture(scope="module")
def shown() -> Example:
    return example(4)


def test_activations_that_no_layer_writes_are_drawn_beside_the_layers(shown: Example) -> None:
    first = shown.analysis.sensitivities[0]
    between = replace(
        first, name="gelu", kind="activation", node="gelu_node", depth=99, alone=0.4 * shown.analysis.noise
    )
    held = replace(between, name="held", node="addition")
    layer = replace(first, name="fc", kind="layer", node="fc", depth=98, tensors=("held", "w"))
    given = replace(shown.analysis, sensitivities=(between, held, layer))
    drawn_layers = drawn(shown, given)["layers"]
    assert [(one["name"], one["depth"]) for one in drawn_layers] == [("fc", 98), ("gelu", 99)]
    assert drawn_layers[1]["cost"] == pytest.approx(0.4)


def test_a_density_is_drawn_as_it_was_to_a_few_percent(shown: Example) -> None:
    given = shown.analysis.distributions["0.weight"]
    picture = of(drawn(shown, shown.analysis), "0.weight")["distribution"]
    density = [0 if value == 1 else 10 ** (value / 100) for value in picture["density"]]
    np.testing.assert_allclose(density, given.density, rtol=0.02)
    np.testing.assert_allclose(np.linspace(*picture["edges"], len(density) + 1), given.edges, rtol=0.01, atol=1e-3)


def test_edges_that_are_not_equally_spaced_are_all_kept(shown: Example) -> None:
    given = Distribution(name="0.weight", edges=(0.0, 1.0, 10.0), density=(0.25, 0.75))
    picture = of(drawn(shown, replace(shown.analysis, distributions={"0.weight": given})), "0.weight")
    assert picture["distribution"] == {"edges": [0, 1, 10], "density": [-60, -12]}
    assert picture["channels"] is None


@pytest.mark.parametrize(
    ("edges", "density"), [((0.0, 1.0), (0.0,)), ((0.0, math.inf), (1.0,)), ((math.nan, 1.0), (1.0,)), ((), ())]
)
def test_what_cannot_be_drawn_is_left_out(shown: Example, edges: tuple[float, ...], density: tuple[float, ...]) -> None:
    given = Distribution(name="0.weight", edges=edges, density=density)
    assert (
        of(drawn(shown, replace(shown.analysis, distributions={"0.weight": given})), "0.weight")["distribution"] is None
    )


def test_a_range_that_all_channels_share_is_written_once(shown: Example) -> None:
    found = drawn(shown, shown.analysis)
    assert len(of(found, "hardtanh_0")["channels"]["rangeHigh"]) == 1
    assert len(of(found, "0.weight")["channels"]["rangeHigh"]) == 64


def test_only_a_single_step_can_be_drawn(shown: Example) -> None:
    found = drawn(shown, shown.analysis)
    scale = shown.plan.encodings["hardtanh_0"].scale  # type: ignore[union-attr]
    assert of(found, "hardtanh_0")["step"] == pytest.approx(float(scale), rel=1e-3)
    assert of(found, "0.weight")["step"] is None


def test_layers_and_values_follow_the_network(shown: Example) -> None:
    found = drawn(shown, shown.analysis)
    assert [layer["name"] for layer in found["layers"]] == [f"conv_{place}" for place in range(4)]
    assert {layer["operator"] for layer in found["layers"]} == {"Conv"}
    assert [value["depth"] for value in found["values"]] == list(range(8))
    assert found["values"][0]["sqnr"] is None  # infinite
    assert found["values"][0]["text"] == "∞ dB"
    assert [value["node"] for value in found["values"] if value["reason"]] == ["relu_0", "relu_2"]


def test_tensors_stand_in_where_no_layer_was_measured(shown: Example) -> None:
    few = tuple(one for one in shown.analysis.sensitivities if one.kind != "layer")
    found = drawn(shown, replace(shown.analysis, sensitivities=few))
    assert len(found["layers"]) == 8


def test_the_front_is_drawn_from_small_to_large(shown: Example) -> None:
    front = drawn(shown, shown.analysis)["front"]
    assert [choice["cost"] for choice in front] == sorted(choice["cost"] for choice in front)
    assert [choice["layers"] for choice in front if choice["chosen"]] == ["1 layer 4 bits, 3 layers 8 bits"]
    assert front[0]["costText"] == "1.8 MB"


def test_pictures_are_limited_to_the_most_costly() -> None:
    names = [f"w{place}" for place in range(PICTURES + 1)]
    analysis = Analysis(distributions={n: Distribution(name=n, edges=(0.0, 1.0), density=(1.0,)) for n in names})
    encoding = example(2).plan.encodings["0.weight"]
    plan = Plan(target="t", encodings=dict.fromkeys(names, encoding))
    found = pictures(plan, analysis, tensors(plan, analysis))
    assert [tensor["distribution"] is None for tensor in found["tensors"]] == [False] * PICTURES + [True]


def test_levels_that_are_no_equal_steps_are_told() -> None:
    encodings = {
        "fixed": LogEncoding(type=integer_type("uint3")),
        "row": LogEncoding(type=integer_type("uint8"), octave_bits=4, threshold="square_root_of_two", normalized=True),
        "shares": NormalizedEncoding(type=integer_type("uint8")),
        "even": Encoding(type=integer_type("uint8"), granularity=PerTensor(), scale=0.5, zero_point=4),  # type: ignore[arg-type]
    }
    plan = Plan(target="t", encodings=encodings)
    found = pictures(plan, None, tensors(plan, None))
    assert of(found, "fixed")["places"] == [0, *(pytest.approx(2.0**-place, rel=1e-3) for place in range(6, -1, -1))]
    assert of(found, "fixed")["unequal"] == "Levels are the powers of two below 1, and 0."
    assert of(found, "row")["places"] is None
    parted = "Levels are the powers of two parted into 16 below the greatest number of each row, and 0."
    assert of(found, "row")["unequal"] == parted
    assert of(found, "shares")["unequal"].startswith("Levels are equal steps in each row")
    assert (of(found, "even")["places"], of(found, "even")["unequal"]) == (None, "")


def test_channels_are_counted_by_their_shift() -> None:
    scale, zero = np.float32([0.5, 2, 0.5, 4, 0.5]), np.zeros(5, np.int32)
    shifted = Encoding(type=integer_type("uint8"), granularity=PowerOfTwoFactor(-1), scale=scale, zero_point=zero)
    plan = Plan(target="t", encodings={"r": shifted})
    facts = of(pictures(plan, None, tensors(plan, None)), "r")["facts"][0][1]
    assert ["Channels with each shift", "0: 3, 2: 1, 3: 1"] in facts
