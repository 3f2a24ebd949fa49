from itertools import product

import numpy as np
import pytest

from narrowgauge.importers.onnx import load
from narrowgauge.passes.split_sequences import split_sequences
from tests.passes.networks import network, node, operators, rewrite

SPLITS = {
    "parts": (np.array([2, 1, 3]), 3),
    "size": (np.array(2), 3),
    "size with a rest": (np.array(4), 2),
    "single": (None, 6),
}


# With sizes ONNX ignores `keepdims`; ONNX Runtime fails where it is then 0.
CASES = [case for case in product(SPLITS, (1, -1), (0, 1)) if case[0] == "single" or case[2] == 1]


@pytest.mark.parametrize(("kind", "axis", "keep"), CASES)
def test_parts_that_are_taken_by_number(kind: str, axis: int, keep: int) -> None:
    sizes, count = SPLITS[kind]
    nodes = [node("SplitToSequence", "x" if sizes is None else "x s", "q", axis=axis, keepdims=keep)]
    nodes += [node("SequenceAt", "q first", "a"), node("SequenceAt", "q last", "b"), node("Relu", "b", "c")]
    constants = {"first": np.array(0), "last": np.array(-1)} | ({} if sizes is None else {"s": sizes})
    shape = ["N", 6] if axis == 1 else ["N", 2, 6]
    model, _ = rewrite(network(nodes, {"x": shape}, ["a", "c"], constants), split_sequences)
    assert operators(model)["Split"] == 1
    assert not {"SplitToSequence", "SequenceAt"} & set(operators(model))
    assert len(model.graph[0].outputs) == count


def test_a_part_that_is_taken_twice() -> None:
    nodes = [
        node("SplitToSequence", "x s", "q", axis=1), node("SequenceAt", "q one", "a"), node("SequenceAt", "q one", "b"),
        node("Mul", "a b", "y"),
    ]  # fmt: skip
    constants = {"s": np.array(3), "one": np.array(1)}
    model, _ = rewrite(network(nodes, {"x": [2, 6]}, ["y"], constants), split_sequences)
    assert operators(model) == {"Split": 1, "Mul": 1}


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("SequenceLength", "q", "n"), node("SequenceAt", "q n", "y")], [2, 6]),
        ([node("SequenceAt", "q zero", "y")], ["N", 6]),  # nobody knows how many parts there are
        ([node("SequenceAt", "q seven", "y")], [2, 6]),
    ],
)
def test_a_sequence_that_cannot_be_parted_stays(nodes: list, shape: list) -> None:
    constants = {"s": np.array(1), "zero": np.array(0), "seven": np.array(7)}
    read = {"s", *(name for each in nodes for name in each.input)}
    proto = network(
        [node("SplitToSequence", "x s", "q", axis=0), *nodes], {"x": shape}, ["y"],
        {name: array for name, array in constants.items() if name in read},
    )  # fmt: skip
    model = load(proto, simplify=False).model
    before = operators(model)
    assert split_sequences(model) == ()
    assert operators(model) == before
