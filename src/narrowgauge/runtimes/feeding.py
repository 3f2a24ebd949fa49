"""Let a program take the feeds of another network: by other names, in another layout, in runs of a fixed size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from narrowgauge.data.inputs import InputSpec, cast, has_batch_axis, rows_per_run, shape_fits
from narrowgauge.errors import DataError
from narrowgauge.runtimes.program import Array, Program, Run

_IMAGES_RANK = 4

_KINDS = ("fV", "iu")
"""NumPy's kinds of types between which numbers keep their meaning; V is how it sees bfloat16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """How one input reaches a program.

    Attributes:
        taken: the program's input.
        axes: order of axes for `transpose`, None as they are.
    """

    taken: InputSpec
    axes: tuple[int, ...] | None

    @property
    def name(self) -> str:
        """What the program calls it."""
        return self.taken.name


def routes(program: Program, inputs: Sequence[InputSpec]) -> dict[str, Route]:
    """Pair the inputs of a network with those of a program, by name or, failing that, in order.

    Images pass between NCHW and NHWC where only one of the two layouts fits, numbers between types of one kind
    (float16 and float32, int32 and int64).

    Raises:
        DataError: the program takes other inputs.
    """
    by_name = {spec.name: spec for spec in program.inputs}
    if by_name.keys() == {spec.name for spec in inputs}:
        pairs = [(spec, by_name[spec.name]) for spec in inputs]
    elif len(inputs) == len(program.inputs):
        pairs = list(zip(inputs, program.inputs, strict=True))
    else:
        raise DataError(f"expected two networks with the same inputs, got {_text(inputs)} and {_text(program.inputs)}")
    return {one.name: _route(one, other) for one, other in pairs}


def taking(program: Program, inputs: Sequence[InputSpec], outputs: Sequence[str]) -> Run:
    """Return a run that takes the feeds of a network with these inputs and gives its outputs, in its order.

    Outputs are paired by name where both have the same, else in order. A program of a fixed number of rows takes more
    rows in several runs; the last one is filled up with its last row.

    Args:
        program: what runs.
        inputs: the inputs of the network that the feeds are for.
        outputs: names of that network's outputs.

    Raises:
        DataError: the program takes other inputs.
    """
    routed = routes(program, inputs)
    same_outputs = set(outputs) == set(program.outputs)
    fixed = rows_per_run(program.inputs) if has_batch_axis(program.inputs) and has_batch_axis(inputs) else None

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        given = rerouted(feed, routed)
        found = program.run(given) if fixed is None else _in_runs(program.run, given, fixed)
        if same_outputs:
            return {name: found[name] for name in outputs}
        # Outputs that the other network has not stay by their own names.
        names = itertools.chain(outputs, program.outputs[len(outputs) :])
        return dict(zip(names, (found[name] for name in program.outputs), strict=False))

    return run


def rerouted(feed: Mapping[str, Array], routed: Mapping[str, Route]) -> dict[str, Array]:
    """Name and turn the arrays of a feed for the network that the routes lead to, and convert them to its types.

    Raises:
        DataError: an integer does not fit the other network's type.
    """
    return {route.name: _turned(feed[name], route, name) for name, route in routed.items() if name in feed}


def _text(specs: Sequence[InputSpec]) -> str:
    return ", ".join(map(str, specs)) or "none"


def _route(one: InputSpec, other: InputSpec) -> Route:
    kinds = next((kinds for kinds in _KINDS if one.dtype.kind in kinds), one.dtype.kind)
    if other.dtype.kind not in kinds:
        raise DataError(
            f"expected two networks with the same inputs; the first takes {one}, the second {other}: export them with "
            f"one type, such as {one.dtype}"
        )
    return Route(taken=other, axes=_axes(one, other))


def _axes(one: InputSpec, other: InputSpec) -> tuple[int, ...] | None:
    """Return how to turn an array of the first input for the second; None where it fits as it is."""
    if _fits(one.shape, other.shape):
        return None
    if len(one.shape) == len(other.shape) == _IMAGES_RANK:
        for axes in ((0, 2, 3, 1), (0, 3, 1, 2)):
            if _fits([one.shape[axis] for axis in axes], other.shape):
                return axes
    raise DataError(
        f"expected two networks with the same inputs; the first takes {one}, the second {other}: export them with one "
        "shape"
    )


def _fits(shape: Sequence[int | None], expected: Sequence[int | None]) -> bool:
    """Whether shapes agree but for the number of rows and axes that one of them leaves open."""
    if len(shape) != len(expected):
        return False
    known = [wanted if have is None else have for have, wanted in zip(shape[1:], expected[1:], strict=True)]
    return shape_fits([0 if extent is None else extent for extent in known], expected[1:])


def _turned(array: Array, route: Route, name: str) -> Array:
    return cast(array if route.axes is None else array.transpose(route.axes), route.taken, f"input {name!r}")


def _in_runs(run: Run, feed: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """Run as many rows at a time as a program takes, and join the outputs."""
    count = next((array.shape[0] for array in feed.values() if array.ndim), rows)
    if count == rows:
        return run(feed)
    parts = []
    for start in range(0, count, rows):
        given = {name: array[start : start + rows] if array.ndim else array for name, array in feed.items()}
        missing = rows - min(rows, count - start)
        parts.append(run({name: _filled(array, missing) for name, array in given.items()}))
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def _filled(array: Array, missing: int) -> Array:
    if not missing or not array.ndim:
        return array
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
