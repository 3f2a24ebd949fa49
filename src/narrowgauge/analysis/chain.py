"""A network as a chain of segments, so that a change is measured at the output by running what lies behind it only.

The network is cut where few values are alive. Every segment is one session, opened once for all changes. A change (a
tensor left float, another range, other weights) opens one small session of its own: from the first node that it
touches to the first cut behind the last one. Its results go on through the segments' sessions. So a change costs the
part of the network behind it, and no session holds more than a segment's weights.

The walk is by segments, outermost: values before a change are those of the segment's own run, so that beside one batch
for each thread only the values alive at one cut are held for all samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from narrowgauge.analysis.energies import energy, error_energy
from narrowgauge.core.encoding import AnyEncoding
from narrowgauge.core.plan import Plan
from narrowgauge.errors import DataError, ModelError
from narrowgauge.graph.engine import available_cores, open_session, run_session
from narrowgauge.graph.feeds import Batch, sample_rows
from narrowgauge.graph.pieces import alive_after, outer_inputs, piece, plan_for
from narrowgauge.graph.roles import is_constant, is_float
from narrowgauge.lowering.parameters import check_names
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq

Array = npt.NDArray[Any]
Values = Mapping[str, Array]
Edit = Callable[[ir.Graph], None]
Energies = npt.NDArray[np.float64]

# A segment has about so many nodes (a residual block or an attention), and a network at most so many segments.
_SEGMENT_NODES = 6
_MOST_SEGMENTS = 32

# Bytes that the values at a cut may take for all samples together; more samples are measured in groups.
_ALIVE_BYTES = 2**30

# How many changes are open together, and bytes of weights in their sessions. Each keeps memory for its inner values.
_MOST_OPEN = 4
_OPEN_BYTES = 2**28


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Something that is done to a network and its plan.

    Attributes:
        first: number of the first node of the main graph that it touches, in its order.
        last: number of the last one.
        encodings: value name -> its other encoding, None for none.
        edit: what is done to the float graph (or the part of it that has these nodes) before it is lowered.
    """

    first: int
    last: int
    encodings: Mapping[str, AnyEncoding | None] = field(default_factory=dict)
    edit: Edit | None = None

    def with_change(self, other: Change) -> Change:
        """Both changes at once, the other one after this one."""
        edits = [edit for edit in (self.edit, other.edit) if edit is not None]

        def edit(graph: ir.Graph) -> None:
            for one in edits:
                one(graph)

        return Change(
            first=min(self.first, other.first),
            last=max(self.last, other.last),
            encodings={**self.encodings, **other.encodings},
            edit=edit if edits else None,
        )


def changed_plan(plan: Plan, encodings: Mapping[str, AnyEncoding | None]) -> Plan:
    """Give values other encodings, None for none."""
    merged = {**plan.encodings, **encodings}
    return replace(plan, encodings={name: one for name, one in merged.items() if one is not None})


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Some nodes of a network, ready to run.

    Attributes:
        session: None where nothing behind them reads what they write.
        inputs: names of what they read.
        outputs: names of what they give.
    """

    session: onnxruntime.InferenceSession | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, values: Values) -> dict[str, Array]:
        """Run on one batch.

        Raises:
            RuntimeFailure: if the engine fails to.
        """
        if self.session is None:
            return {}
        feed = {name: values[name] for name in self.inputs}
        return run_session(self.session, self.outputs, feed, what="a part of the network")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """A network and a plan, cut into segments.

    Attributes:
        model: the float network.
        plan: how it is quantized; without encodings it runs in float.
        nodes: of its main graph.
        cuts: numbers of the nodes that the segments begin with, and the number of nodes at the end.
        alive: names of the values that are needed behind each node.
        parts: the segments.
    """

    model: ir.Model
    plan: Plan
    nodes: tuple[ir.Node, ...]
    cuts: tuple[int, ...]
    alive: tuple[frozenset[str], ...]
    parts: tuple[Part, ...]

    @classmethod
    def open(cls, model: ir.Model, plan: Plan) -> Chain:
        """Cut a network and open its segments.

        Raises:
            PlanError: if the plan does not fit the network.
            RuntimeFailure: if the engine refuses a segment.
        """
        nodes, alive = tuple(model.graph), tuple(frozenset(names) for names in alive_after(model))
        chain = cls(model=model, plan=plan, nodes=nodes, cuts=cuts(alive), alive=alive, parts=())
        return replace(chain, parts=tuple(chain.part(*ends) for ends in itertools.pairwise(chain.cuts)))

    def part(self, first: int, stop: int, also: Collection[str] = (), change: Change | None = None) -> Part:
        """Open the nodes from `first` to before `stop` as a session.

        Args:
            first: number of the first node.
            stop: number of the node behind the last one.
            also: values to return beside those that are needed behind them.
            change: what is done to them.
        """
        nodes = self.nodes[first:stop]
        wanted = self.alive[stop - 1] | set(also)
        outputs = [str(value.name) for node in nodes for value in node.outputs if value.name in wanted]
        if not outputs:
            return Part(session=None, inputs=(), outputs=())
        section = piece(self.model, nodes, outputs)
        plan = self.plan
        if change is not None:
            if change.edit is not None:
                change.edit(section.graph)
            plan = changed_plan(plan, change.encodings)
        lowered = lower_to_qdq(section, plan_for(section, plan), QdqStyle(spell_out_channels=True))
        return Part(
            session=open_session(lowered, threads=1, simulate=True, arena=False),
            inputs=tuple(str(value.name) for value in lowered.graph.inputs),
            outputs=tuple(outputs),
        )

    def finish(self, values: Values, segment: int) -> dict[str, Array]:
        """Run the segments from one on and return all that is then known, the network's outputs among it."""
        known = dict(values)
        for part in self.parts[segment:]:
            known |= part(known)
        return known

    def kept(self, values: Values, segment: int) -> dict[str, Array]:
        """Of some values those that are needed from a segment on."""
        needed = self.alive[self.cuts[segment] - 1] if segment else values.keys()
        return {name: array for name, array in values.items() if name in needed}

    def segment_of(self, node: int) -> int:
        """Number of the segment that holds a node."""
        return int(np.searchsorted(self.cuts, node, side="right")) - 1


def first_cases(cases: Sequence[Case], samples: int) -> int:
    """How many batches hold the first samples."""
    counts = np.cumsum([case.count for case in cases])
    return min(len(cases), int(np.searchsorted(counts, samples)) + 1)


def cuts(alive: Sequence[Collection[str]]) -> tuple[int, ...]:
    """Choose where a network is cut: about evenly, each time where the fewest values are alive nearby.

    Args:
        alive: what is needed behind each node.

    Returns:
        Numbers of the first nodes of the segments, ascending from 0, and the number of nodes.
    """
    count = len(alive)
    length = max(_SEGMENT_NODES, math.ceil(count / _MOST_SEGMENTS))
    found = [0]
    while count - found[-1] > length + length // 2:
        ideal = found[-1] + length
        near = range(ideal - length // 2, ideal + length // 2 + 1)
        found.append(min(near, key=lambda cut: (len(alive[cut - 1]), abs(cut - ideal))))
    return (*found, count) if count else (0,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One batch and what the float network makes of it.

    Attributes:
        feed: input name -> array.
        count: how many of the rows are samples.
        outputs: the float network's float outputs, by name, samples only.
    """

    feed: Values
    count: int
    outputs: Values

    def signals(self) -> Energies:
        """Energy of each output, `(outputs,)`: the sum of squares of its finite numbers."""
        return np.array([energy(one) for one in self.outputs.values()])

    def errors(self, values: Values) -> Energies:
        """Energy of the error of each output, `(outputs,)`, over the elements that are finite in the float network."""
        return np.array([_error(name, one, values[name]) for name, one in self.outputs.items()])


def _error(name: str, reference: Array, other: Array) -> float:
    other = other[: len(reference)] if reference.ndim else other  # rows that fill a batch are cut off
    if other.shape != reference.shape:
        raise ModelError(f"output {name!r}: expected shape {reference.shape} again, got {other.shape}")
    return error_energy(reference, other)


@dataclass(frozen=True, kw_only=True, slots=True)
class Streams:
    """The float network and the quantized one, cut alike, and the samples that they are run on.

    Attributes:
        reference: the float network.
        quantized: the quantized one.
        cases: the samples.
        threads: batches that run side by side, each on one thread.
    """

    reference: Chain
    quantized: Chain
    cases: tuple[Case, ...]
    threads: int


def open_streams(
    reference: ir.Model,
    network: ir.Model,
    plan: Plan,
    batches: Sequence[Batch],
    *,
    threads: int | None = None,
) -> Streams:
    """Open both networks and run the float one.

    Args:
        reference: the float network.
        network: the one that the plan describes: the same nodes and values, other constants perhaps.
        plan: its plan.
        batches: samples.
        threads: batches that run side by side; None for the cores that this process may use.

    Raises:
        ModelError: if the two have different nodes, or no output holds floating-point numbers.
        DataError: if there is no sample.
        PlanError: if the plan names what the network does not have, or does not fit it.
        RuntimeFailure: if the engine refuses a part.
    """
    _check_alike(reference, network)
    check_names(network.graph, plan)
    if not batches:
        raise DataError("no sample to measure with: the data are empty")
    outputs = [str(value.name) for value in reference.graph.outputs if is_float(value) and not is_constant(value)]
    if not outputs:
        raise ModelError("no output of the network holds floating-point numbers: there is no error to measure")
    chain = Chain.open(reference, replace(plan, encodings={}))
    workers = threads or available_cores()
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda batch: chain.finish(batch.feed, 0), batches))
    cases = tuple(
        Case(feed=batch.feed, count=batch.count, outputs={name: sample_rows(values[name], batch) for name in outputs})
        for batch, values in zip(batches, results, strict=True)
    )
    return Streams(reference=chain, quantized=Chain.open(network, plan), cases=cases, threads=workers)


def _check_alike(reference: ir.Model, network: ir.Model) -> None:
    for one, other in itertools.zip_longest(reference.graph, network.graph):
        if one is None or other is None or (one.name, one.op_type) != (other.name, other.op_type):
            raise ModelError(
                f"expected the float network to have the nodes of the one that the plan describes, got {_said(one)} "
                f"where that has {_said(other)}: give the float network with the same changes of structure"
            )


def _said(node: ir.Node | None) -> str:
    return "no node" if node is None else f"{node.op_type} {node.name!r}"


def errors(
    chain: Chain,
    changes: Sequence[Change],
    cases: Sequence[Case],
    *,
    threads: int,
    progress: Callable[[int], None] = lambda count: None,
) -> Energies:
    """Measure changes, each by itself, at the network's outputs.

    Args:
        chain: the network that is changed.
        changes: what is done to it.
        cases: samples.
        threads: batches that run side by side.
        progress: called with the number of changes after some of them.

    Returns:
        Error energies, `(changes, cases, outputs)`.

    Raises:
        RuntimeFailure: if the engine refuses a changed part.
        PlanError: if a change does not fit the network.
    """
    found = np.zeros((len(changes), len(cases), len(cases[0].outputs) if cases else 0))
    order: dict[int, list[int]] = {}
    for number, change in enumerate(changes):
        order.setdefault(chain.segment_of(change.first), []).append(number)
    size = _cases_together(chain, cases)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(cases), size):
            group = cases[start : start + size]
            states = [dict(case.feed) for case in group]
            for segment in range(max(order, default=-1) + 1):
                for numbers in _together(chain, changes, order.get(segment, [])):
                    trials = _Trials(chain, segment, [changes[number] for number in numbers])
                    for number, rows in enumerate(pool.map(trials, group, states), start):
                        found[numbers, number] = rows
                    progress(len(numbers))
                states = list(pool.map(_Advance(chain, segment), states))
    return found


def base_errors(chain: Chain, cases: Sequence[Case], *, threads: int) -> Energies:
    """Measure the network as it is; error energies, `(cases, outputs)`."""
    with ThreadPoolExecutor(threads) as pool:
        return np.array(list(pool.map(lambda case: case.errors(chain.finish(case.feed, 0)), cases)))


@dataclass(frozen=True, slots=True)
class _Advance:
    chain: Chain
    segment: int

    def __call__(self, state: dict[str, Array]) -> dict[str, Array]:
        return self.chain.kept({**state, **self.chain.parts[self.segment](state)}, self.segment + 1)


class _Trials:
    """Changes that begin in one segment, their sessions open."""

    def __init__(self, chain: Chain, segment: int, changes: Sequence[Change]) -> None:
        self.chain = chain
        self.parts: list[tuple[Part, int]] = []
        for change in changes:
            behind = chain.segment_of(change.last) + 1
            self.parts.append((chain.part(change.first, chain.cuts[behind], change=change), behind))
        first, stop = chain.cuts[segment : segment + 2]
        self.before = chain.part(first, stop, also={name for part, _ in self.parts for name in part.inputs})

    def __call__(self, case: Case, state: Values) -> list[Energies]:
        known = {**state, **self.before(state)}
        return [case.errors(self.chain.finish({**known, **part(known)}, behind)) for part, behind in self.parts]


def _together(chain: Chain, changes: Sequence[Change], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Group changes so that the weights of their sessions fit into memory."""
    sizes = {number: _weights_within(chain, changes[number]) for number in numbers}
    group: list[int] = []
    for number in numbers:
        full = len(group) == _MOST_OPEN or sum(sizes[one] for one in group) + sizes[number] > _OPEN_BYTES
        if group and full:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _weights_within(chain: Chain, change: Change) -> int:
    nodes = chain.nodes[change.first : chain.cuts[chain.segment_of(change.last) + 1]]
    values = {value for node in nodes for value in outer_inputs(node)}
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _cases_together(chain: Chain, cases: Sequence[Case]) -> int:
    """How many batches may be on their way together, by the bytes that the first one has alive at the cuts."""
    if len(cases) < 2:
        return 1
    state, most = dict(cases[0].feed), 1
    for segment in range(len(chain.parts)):
        most = max(most, sum(array.nbytes for array in state.values()))
        state = _Advance(chain, segment)(state)
    return max(1, _ALIVE_BYTES // most)


def inner_values(chain: Chain, change: Change, value: str, cases: Sequence[Case]) -> list[Array]:
    """Compute a value that the nodes of a change write, with the change made, for each case."""
    segment = chain.segment_of(change.first)
    changed = chain.part(change.first, change.last + 1, also={value}, change=change)
    before = chain.part(chain.cuts[segment], chain.cuts[segment + 1], also=changed.inputs)
    found = []
    for case in cases:
        state = dict(case.feed)
        for number in range(segment):
            state = _Advance(chain, number)(state)
        found.append(changed({**state, **before(state)})[value])
    return found
