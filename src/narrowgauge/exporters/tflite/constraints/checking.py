"""What a chip asks of a TFLite graph, as records, and the check of one against the other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from narrowgauge.importers.tflite.network import Graph, Operator

Condition = Callable[[Graph, Operator], str]
"""`condition(graph, operator)`: what was found and what the chip takes instead; "" where it takes the operator."""

_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]")
"""Names of tensors and lists of numbers in a problem: problems that differ in nothing else are told together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a chip asks of one kind of operator.

    Attributes:
        newest: the newest version of the operator that its software knows.
        conditions: of this kind, beside those of every operator.
        oldest: the oldest version.
    """

    newest: int
    conditions: tuple[Condition, ...] = ()
    oldest: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """A chip that runs part of a TFLite graph; its CPU runs the rest.

    Attributes:
        title: for people.
        operators: TFLite operator -> what the chip asks of it; it runs no other.
        every: conditions of every operator.
        graph: what is wrong with the graph as a whole, one sentence each: the chip's software then refuses the file.
        part: (graph, operators that break a condition) -> those that run on the chip.
        rest: why operators that break no condition run on the CPU all the same, where some do.
        advice: (graph) -> what slows the chip down, one sentence each.
    """

    title: str
    operators: Mapping[str, Limits]
    every: tuple[Condition, ...]
    graph: Callable[[Graph], list[str]]
    part: Callable[[Graph, frozenset[int]], frozenset[int]]
    rest: str
    advice: Callable[[Graph], list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """A condition that a graph breaks.

    Attributes:
        operator: the operator that breaks it; None where the graph as a whole does.
        tensor: name of the operator's first output, "" of the graph as a whole.
        problem: what was found, and what the chip takes.
    """

    operator: Operator | None
    tensor: str
    problem: str

    def __str__(self) -> str:
        """Say it in one sentence."""
        if self.operator is None:
            return self.problem
        return f"{self.operator}, which writes {self.tensor!r}: {self.problem}"


def check(graph: Graph, chip: Chip) -> list[Violation]:
    """Say which conditions of a chip a graph breaks: those of the graph as a whole, then operator by operator.

    Raises:
        ModelError: numbers of a constant that a condition looks at (axes, sizes) cannot be read.
    """
    violations = [Violation(operator=None, tensor="", problem=problem) for problem in chip.graph(graph)]
    for operator in graph.operators:
        name = graph.tensors[operator.outputs[0]].name if operator.outputs else ""
        problems = _problems(graph, operator, chip)
        violations += [Violation(operator=operator, tensor=name, problem=problem) for problem in problems]
    return violations


def _problems(graph: Graph, operator: Operator, chip: Chip) -> list[str]:
    limits = chip.operators.get(operator.name)
    if limits is None:
        return [f"{chip.title} has no such operator"]
    if not operator.outputs:
        return ["it writes nothing; the file is damaged"]
    problems = [condition(graph, operator) for condition in (*chip.every, *limits.conditions)]
    if not limits.oldest <= operator.version <= limits.newest:
        problems.insert(0, f"version {operator.version}; expected {_versions(limits)}")
    return [problem for problem in problems if problem]


def _versions(limits: Limits) -> str:
    return f"{limits.newest}" if limits.oldest == limits.newest else f"{limits.oldest} to {limits.newest}"


def on_chip(graph: Graph, chip: Chip, violations: list[Violation]) -> frozenset[int]:
    """Return the operators that run on the chip, by number; none where its software refuses the file."""
    if any(violation.operator is None for violation in violations):
        return frozenset()
    refused = frozenset(violation.operator.index for violation in violations if violation.operator is not None)
    return chip.part(graph, refused)


def describe(graph: Graph, chip: Chip) -> tuple[str, ...]:
    """Say for people how much of a graph a chip runs, and why not more: each problem once, with how many share it.

    Raises:
        ModelError: see `check`.
    """
    violations = check(graph, chip)
    run = on_chip(graph, chip, violations)
    return (_share(graph, chip, violations, run), *_grouped(violations), *chip.advice(graph))


def _share(graph: Graph, chip: Chip, violations: list[Violation], run: frozenset[int]) -> str:
    if any(violation.operator is None for violation in violations):
        return f"the software of {chip.title} refuses this file"
    left = [operator for operator in graph.operators if operator.index not in run]
    if not left:
        return f"{chip.title} runs all {len(graph.operators)} operators"
    name = graph.tensors[left[0].outputs[0]].name if left[0].outputs else ""
    refused = {violation.operator.index for violation in violations if violation.operator is not None}
    rest = "" if all(operator.index in refused for operator in left) else f"; {chip.rest}"
    return (
        f"{chip.title} runs {len(run)} of {len(graph.operators)} operators, the CPU the others; the first of those is "
        f"{left[0]}, which writes {name!r}{rest}"
    )


def _grouped(violations: list[Violation]) -> list[str]:
    groups: dict[str, list[Violation]] = {}
    for violation in violations:
        groups.setdefault(_PARTICULARS.sub("", violation.problem), []).append(violation)
    return [f"{group[0]}{_others(group[1:])}" for group in groups.values()]


def _others(violations: list[Violation]) -> str:
    if not violations:
        return ""
    kinds = Counter(violation.operator.name for violation in violations if violation.operator is not None)
    return f"; so in {len(violations)} more: {', '.join(f'{kind} {count}' for kind, count in kinds.items())}"
