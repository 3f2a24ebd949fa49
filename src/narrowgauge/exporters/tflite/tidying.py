"""What a finished graph does not need: reshapes of reshapes, operators and tensors that nothing reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from narrowgauge.importers.tflite.network import Graph, Operator, Tensor


def tidied(graph: Graph) -> tuple[Graph, dict[int, int]]:
    """Return a graph that computes the same outputs with no more than it needs.

    A RESHAPE of a RESHAPE reads what that one reads, and is left out where it brings back its shape. Then operators
    that no output needs are left out, and tensors that no operator has. Inputs stay.

    Returns:
        The graph, and the number that each of its tensors had before -> the number that it has.
    """
    operators = _without_unread(_without_repeated_reshapes(graph), graph.outputs)
    kept = sorted({*graph.inputs, *graph.outputs, *(number for one in operators for number in _tensors(one))})
    numbers = {old: new for new, old in enumerate(kept)}
    return (
        Graph(
            tensors=tuple(graph.tensors[number] for number in kept),
            inputs=tuple(numbers[number] for number in graph.inputs),
            outputs=tuple(numbers[number] for number in graph.outputs),
            operators=tuple(_renumbered(one, index, numbers) for index, one in enumerate(operators)),
        ),
        numbers,
    )


def _without_repeated_reshapes(graph: Graph) -> list[Operator]:
    found: list[Operator] = []
    sources: dict[int, int] = {}  # what a RESHAPE writes -> what it reads
    stands: dict[int, int] = {}  # tensor -> one of the same shape and the same numbers
    for operator in graph.operators:
        inputs = tuple(None if number is None else stands.get(number, number) for number in operator.inputs)
        if operator.name == "RESHAPE" and inputs[0] is not None:
            source, result = sources.get(inputs[0], inputs[0]), operator.outputs[0]
            if _alike(graph.tensors[source], graph.tensors[result]) and result not in graph.outputs:
                stands[result] = source
                continue
            sources[result] = source
            inputs = (source, *inputs[1:])
        found.append(replace(operator, inputs=inputs))
    return found


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether a RESHAPE from one to the other changes nothing that is known."""
    return one.extents == other.extents and list(one.extents).count(None) < 2


def _without_unread(operators: Sequence[Operator], outputs: Sequence[int]) -> list[Operator]:
    needed, kept = set(outputs), []
    for operator in reversed(operators):
        if needed.intersection(operator.outputs):
            kept.append(operator)
            needed.update(number for number in operator.inputs if number is not None)
    return kept[::-1]


def _tensors(operator: Operator) -> list[int]:
    return [
        *(number for number in operator.inputs if number is not None), *operator.outputs, *operator.intermediates
    ]  # fmt: skip


def _renumbered(operator: Operator, index: int, numbers: dict[int, int]) -> Operator:
    return replace(
        operator, index=index,
        inputs=tuple(None if number is None else numbers[number] for number in operator.inputs),
        outputs=tuple(numbers[number] for number in operator.outputs),
        intermediates=tuple(numbers[number] for number in operator.intermediates),
    )  # fmt: skip
