"""What a finished graph does not need."""

from __future__ import annotations

from collections import Counter

from narrowgauge.core.plan import Plan
from narrowgauge.exporters.tflite.conversion import convert
from narrowgauge.exporters.tflite.tidying import tidied
from narrowgauge.importers.tflite.network import Graph, Operator, Tensor
from tests.exporters.tflite.networks import case

FLOAT = Plan(target="tflite", encodings={})


def graph(shapes: list[tuple[int, ...]], operators: list[tuple[str, int, int]], output: int) -> Graph:
    """Operators of one input and one output; tensor 0 is the input."""
    return Graph(
        tensors=tuple(Tensor(name=f"t{n}", type="FLOAT32", shape=shape) for n, shape in enumerate(shapes)),
        inputs=(0,), outputs=(output,),
        operators=tuple(
            Operator(index=n, name=name, version=1, inputs=(first,), outputs=(second,), options={}, kind="")
            for n, (name, first, second) in enumerate(operators)
        ),
    )  # fmt: skip


def test_reshape_back_is_left_out() -> None:
    there = graph([(1, 2, 3), (1, 6), (1, 2, 3), (1, 2, 3)], [("RESHAPE", 0, 1), ("RESHAPE", 1, 2), ("ABS", 2, 3)], 3)
    found, numbers = tidied(there)
    assert [(one.name, one.inputs, one.outputs) for one in found.operators] == [("ABS", (0,), (1,))]
    assert [one.name for one in found.tensors] == ["t0", "t3"]
    assert numbers == {0: 0, 3: 1}


def test_reshape_of_a_reshape_reads_the_first_tensor() -> None:
    there = graph([(1, 2, 3), (1, 6), (3, 2)], [("RESHAPE", 0, 1), ("RESHAPE", 1, 2)], 2)
    assert [one.inputs for one in tidied(there)[0].operators] == [(0,)]


def test_reshape_that_an_output_needs_stays() -> None:
    there = graph([(1, 6), (6,), (1, 6)], [("RESHAPE", 0, 1), ("RESHAPE", 1, 2)], 2)
    assert len(tidied(there)[0].operators) == 1


def test_what_nothing_reads_is_left_out_and_inputs_stay() -> None:
    there = graph([(2,), (2,), (2,)], [("ABS", 0, 1), ("EXP", 0, 2)], 2)
    found, _ = tidied(there)
    assert [one.name for one in found.operators] == ["EXP"]
    assert tidied(graph([(2,), (2,)], [("ABS", 0, 1)], 0))[0].operators == ()


def test_convolutions_of_one_axis_hand_planes_on() -> None:
    names = Counter(operator.name for operator in convert(case("conv_1d_twice"), FLOAT).graph.operators)
    assert names == {"TRANSPOSE": 2, "RESHAPE": 2, "CONV_2D": 2}
