"""Our integers beside an engine's own, tensor by tensor: how many differ, by how much, and where it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.analysis.level_layouts import AS_SAID, Fit, as_type_of, best_fit
from narrowgauge.data.inputs import input_specs
from narrowgauge.errors import DataError
from narrowgauge.graph.feeds import Batch, sample_rows
from narrowgauge.lowering.integer.planned import in_planned_types
from narrowgauge.runtimes.inner import Inner
from narrowgauge.runtimes.onnxruntime import Steps, open_inner, open_steps

Array = npt.NDArray[Any]

_FAR = 10
"""Differences up to it are counted one by one."""

_SUMMARIZED = 10
"""Tensors that differ of which a summary tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """How far integers lie apart.

    Attributes:
        by: how many differ by 1, by 2, ..., by 10, and by more.
        largest: the largest difference.
    """

    by: tuple[int, ...] = (0,) * (_FAR + 1)
    largest: int = 0

    @property
    def different(self) -> int:
        """How many differ at all."""
        return sum(self.by)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorExactness:
    """How the levels of one value lie to the engine's, over all samples.

    Attributes:
        name: of the value in the float network.
        node: name of the node that writes it there; "" for an input.
        operator: of that node; "" for an input.
        elements: how many were compared; 0 where they could not be.
        differences: of both networks' own runs, in which what differs early differs on.
        own: what this step adds: our network computes it from the engine's own levels before it. None where nothing
            differs in any tensor, so that it was not looked at.
        remark: why it could not be compared, or what was done for it; "" if there is nothing to say.
    """

    name: str
    node: str
    operator: str
    elements: int
    differences: Differences
    own: Differences | None
    remark: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Exactness:
    """How an engine's integers lie to those that we compute for it.

    Attributes:
        tensors: those that both have, in the network's order.
        samples: how many were run.
        only_ours: values whose levels the engine does not show: it fused them into their readers, or computes them in
            float.
        only_runtime: values whose levels our network does not have.
        notes: what a person should know.
    """

    tensors: tuple[TensorExactness, ...]
    samples: int
    only_ours: tuple[str, ...]
    only_runtime: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def elements(self) -> int:
        """How many elements were compared."""
        return sum(one.elements for one in self.tensors)

    @property
    def differences(self) -> Differences:
        """Of all tensors together."""
        return total([one.differences for one in self.tensors])

    @property
    def own(self) -> Differences | None:
        """What all steps add by themselves; None where nothing differs."""
        found = [one.own for one in self.tensors if one.own is not None]
        return total(found) if found else None

    @property
    def first(self) -> TensorExactness | None:
        """The first tensor, in the network's order, that differs; None if none does."""
        return next((one for one in self.tensors if one.differences.different), None)


def total(differences: Sequence[Differences]) -> Differences:
    """Add up the differences of several tensors."""
    columns = zip(*(one.by for one in [Differences(), *differences]), strict=True)
    return Differences(by=tuple(map(sum, columns)), largest=max((one.largest for one in differences), default=0))


def check_exactness(
    integer: ir.Model,
    inner: Inner,
    batches: Iterable[Batch],
    *,
    network: ir.Model,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Exactness:
    """Run our integer network and an engine on the same samples and compare every integer that both have.

    Both compute from the same inputs. Where a batch differs, our network runs on it once more, and each step takes the
    engine's levels: so it shows which operators differ by themselves. Only counts are kept, so that memory does not
    grow with the number of samples.

    Args:
        integer: our network in integer operators, of the float network's inputs; levels of a value x are called
            `x_quantized`.
        inner: the engine with the file that it runs.
        batches: samples; feeds are for `network`.
        network: the float network, in whose order and with whose nodes tensors are told.
        threads: of one operator of our network.
        progress: called with the number of samples of each run.

    Raises:
        DataError: the engine's file takes other inputs than the network, or there is no sample.
        RuntimeFailure: one of the two cannot be run.
    """
    integer = in_planned_types(integer)  # `x_quantized` in the plan's type, read by all that need it
    ours, theirs = open_inner(integer, threads=threads), inner.taking(input_specs(network))
    fit = AS_SAID if inner.laid_out else None
    pairs = {name: _Pair(fit=fit) for name in ours.names if name in set(inner.names)}
    steps: Steps | None = None
    cut: list[str] = []
    samples = 0
    for batch in batches:
        found, given = ours.run(batch.feed), theirs(batch.feed)
        differing = [name for name, pair in pairs.items() if pair.add(found[name], given[name], batch)]
        if differing:
            fitting = {name: pair.fitting for name, pair in pairs.items() if pair.fitting is not None}
            if steps is None or cut != list(fitting):
                cut = list(fitting)
                steps = open_steps(integer, cut, threads=threads)
            for name, levels in steps(batch.feed, fitting).items():
                pairs[name].own.add(sample_rows(levels, batch), sample_rows(fitting[name], batch))
        samples += batch.count
        progress(batch.count)
    if not samples:
        raise DataError("expected samples to compare integers on, got none")
    return Exactness(
        tensors=_rows(network, pairs, stepped=steps is not None),
        samples=samples,
        only_ours=tuple(name for name in ours.names if name not in pairs),
        only_runtime=tuple(name for name in inner.names if name not in pairs),
        notes=inner.notes,
    )


def to_json(found: Exactness) -> dict[str, Any]:
    """Put what was found into JSON values: sums, the first tensor that differs, then every tensor."""
    return {
        "samples": found.samples,
        "elements": found.elements,
        **_differences_to_json(found.differences),
        "own": None if found.own is None else _differences_to_json(found.own),
        "first_different_tensor": None if found.first is None else found.first.name,
        "only_ours": list(found.only_ours),
        "only_runtime": list(found.only_runtime),
        "notes": list(found.notes),
        "tensors": [_tensor_to_json(one) for one in found.tensors],
    }


def to_summary(found: Exactness, reasons: Sequence[str] = ()) -> dict[str, Any]:
    """Put what a person wants to know of it into JSON values: sums, and the first tensors that differ.

    Args:
        found: what was found.
        reasons: why integers differ, a sentence each.
    """
    differing = [one for one in found.tensors if one.differences.different]
    return {
        "elements": found.elements,
        **_differences_to_json(found.differences),
        "tensors": sum(one.elements > 0 for one in found.tensors),
        "tensors_different": len(differing),
        "not_compared": len(found.only_ours) + len(found.only_runtime) + sum(not one.elements for one in found.tensors),
        "samples": found.samples,
        "first_different_tensors": [_tensor_to_json(one) for one in differing[:_SUMMARIZED]],
        "reasons": list(reasons),
    }


def _tensor_to_json(found: TensorExactness) -> dict[str, Any]:
    return {
        "name": found.name, "node": found.node, "operator": found.operator, "elements": found.elements,
        **_differences_to_json(found.differences),
        "own": None if found.own is None else _differences_to_json(found.own),
        "remark": found.remark,
    }  # fmt: skip


def _differences_to_json(found: Differences) -> dict[str, Any]:
    """The number of elements that differ, the largest difference, and distance -> elements ("more" for above 10)."""
    names = [*map(str, range(1, _FAR + 1)), "more"]
    histogram = {name: count for name, count in zip(names, found.by, strict=True) if count}
    return {"different": found.different, "max": found.largest, "off_by": histogram}


# --- over all samples -------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class _Tally:
    """Counts of differences."""

    by: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_FAR + 1, dtype=np.int64))
    largest: int = 0

    def add(self, one: Array, other: Array) -> bool:
        """Count; tell whether any differ."""
        unlike = one != other
        if not unlike.any():
            return False
        distances = np.abs(one[unlike].astype(np.int64) - other[unlike].astype(np.int64))
        self.by += np.bincount(np.minimum(distances, _FAR + 1), minlength=_FAR + 2)[1:]
        self.largest = max(self.largest, int(distances.max()))
        return True

    def differences(self) -> Differences:
        return Differences(by=tuple(map(int, self.by)), largest=self.largest)


@dataclass(kw_only=True, slots=True)
class _Pair:
    """One tensor of both, over all samples.

    Attributes:
        fit: the engine's layout; None until it is decided, on the first batch.
        fitting: the engine's array of the latest batch in our layout; None where it cannot be compared.
        refused: why not.
        elements: how many were compared.
        whole: of both networks' own runs.
        own: of this step alone.
    """

    fit: Fit | None = None
    fitting: Array | None = None
    refused: str = ""
    elements: int = 0
    whole: _Tally = field(default_factory=_Tally)
    own: _Tally = field(default_factory=_Tally)

    def add(self, one: Array, other: Array, batch: Batch) -> bool:
        """Compare the arrays of a batch, ours and the engine's; tell whether they differ."""
        self.fitting = None if self.refused else self.fitted(one, other)
        if self.fitting is None:
            return False
        one = sample_rows(one, batch)
        self.elements += one.size
        return self.whole.add(one, sample_rows(self.fitting, batch))

    def fitted(self, one: Array, other: Array) -> Array | None:
        other = as_type_of(other, one.dtype)
        if one.dtype != other.dtype:
            self.refused = f"not compared: ours is {one.dtype}, the engine's {other.dtype}"
            return None
        self.fit = self.fit or best_fit(one, other)
        fitting = None if self.fit is None else self.fit.of(other, one.shape)
        if fitting is None:
            self.refused = f"not compared: ours has the shape {list(one.shape)}, the engine's {list(other.shape)}"
        return fitting

    def remark(self) -> str:
        if self.refused or self.fit is None or self.fit.axes is None:
            return self.refused
        return f"the engine's axes are taken in the order {', '.join(map(str, self.fit.axes))}"


def _rows(network: ir.Model, pairs: Mapping[str, _Pair], *, stepped: bool) -> tuple[TensorExactness, ...]:
    """Put the counts in the network's order, each with the node that writes the value."""
    writers: dict[str, ir.Node | None] = {str(value.name): None for value in network.graph.inputs}
    writers |= {str(value.name): node for node in network.graph for value in node.outputs}
    order = {name: number for number, name in enumerate(writers)}
    rows = []
    for name, pair in sorted(pairs.items(), key=lambda item: order.get(item[0], len(order))):
        node = writers.get(name)
        rows.append(
            TensorExactness(
                name=name,
                node="" if node is None else str(node.name),
                operator="" if node is None else node.op_type,
                elements=pair.elements,
                differences=pair.whole.differences(),
                own=pair.own.differences() if stepped else None,
                remark=pair.remark(),
            )
        )
    return tuple(rows)
