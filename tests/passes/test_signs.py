import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.importers.onnx import load
from narrowgauge.passes.signs import is_nonnegative
from tests.passes.networks import network, node, run

CONSTANTS = {
    "zero": np.float32(0), "one": np.float32(1), "minus": np.float32(-1), "positive": np.array([1, 0, 2], np.float32),
    "negative": np.array([1, 0, -2], np.float32), "pads": np.array([0, 1, 0, 1]),
}  # fmt: skip
STEPS = (
    "Relu {}", "Sigmoid {}", "Abs {}", "Neg {}", "Tanh {}", "Mul {} {}", "Clip {} zero one", "Clip {} minus one",
    "Clip {} - one", "Clip {} zero minus", "Clip {} zero", "Mul {} positive", "Mul {} negative", "Add {} positive",
    "Add {} negative", "Sub {} positive", "Max {} zero", "Max {} minus", "Min {} one", "Min {} minus", "Identity {}",
    "Transpose {}", "Concat {} {}", "Pad {} pads", "Pad {} pads one", "Pad {} pads minus", "Softmax {}",
)  # fmt: skip


@settings(max_examples=80)
@given(steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=4))
def test_what_is_said_to_be_nonnegative_is(steps: list[str]) -> None:
    nodes, value = [], "x"
    for number, step in enumerate(steps):
        operator, *operands = step.format(value, value).split()
        attributes = {"axis": 1} if operator == "Concat" else {}
        nodes.append(node(operator, " ".join(operands), f"v{number}", **attributes))
        value = f"v{number}"
    read = {name for each in nodes for name in each.input}
    proto = network(
        nodes, {"x": [3, 3]}, [value], {name: np.asarray(CONSTANTS[name]) for name in CONSTANTS if name in read}
    )
    try:
        lowest = run(proto)[0].min()
    except Exception:  # shapes that do not fit behind a Concat or Pad
        return
    model = load(proto, simplify=False).model
    if is_nonnegative(model.graph.outputs[0]):
        assert lowest >= 0


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["Relu x"], True),
        (["Sub x one"], False),
        (["Clip x zero one", "MaxPool"], True),
        (["Mul x x", "Add v0 positive"], True),
        (["Sigmoid x", "Pad v0 pads"], True),
        (["Clip x minus one"], False),
        (["Clip x zero minus"], False),
    ],
)
def test_known_cases(steps: list[str], expected: bool) -> None:
    steps = [step for step in steps if step != "MaxPool"]
    nodes = [node(*_parts(step), f"v{number}") for number, step in enumerate(steps)]
    read = {name for each in nodes for name in each.input}
    constants = {name: np.asarray(array) for name, array in CONSTANTS.items() if name in read}
    model = load(network(nodes, {"x": [3, 3]}, [f"v{len(steps) - 1}"], constants), simplify=False).model
    assert is_nonnegative(model.graph.outputs[0]) is expected


def _parts(step: str) -> tuple[str, str]:
    operator, _, operands = step.partition(" ")
    return operator, operands
