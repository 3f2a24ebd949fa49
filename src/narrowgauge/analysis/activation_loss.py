"""What rounding each activation loses, measured on the elements that samples give it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from narrowgauge.analysis.loss_sums import LossSums, element_sums, no_sums
from narrowgauge.analysis.probability_loss import probability_sums
from narrowgauge.analysis.roundings import RoundedEncoding, Rounding, roundings
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.errors import DataError
from narrowgauge.graph.engine import available_cores, open_session, run_session
from narrowgauge.graph.exposing import in_rounds, returning
from narrowgauge.graph.feeds import Batch, named, sample_rows
from narrowgauge.graph.roles import clip_bounds, clips_only

# Bytes of the values that leave the engine together; more is done in several rounds per batch.
_ROUND_BYTES = 128 * 2**20

# Batches that are under way at a time, at the most: each holds a round's values.
_MOST_WORKERS = 4


def activation_sums(
    model: ir.Model,
    plan: Plan,
    batches: Iterable[Batch],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, LossSums]:
    """Run samples through the float network and add up the loss of every activation that a plan rounds.

    Memory does not grow with the number of samples; sums of shards of them add up with `LossSums.merge`. A value is
    rounded as the float network has it: errors that come from before it are not its own.

    Args:
        model: the float network that the plan describes.
        plan: the encodings.
        batches: samples, as `data.batches` makes them.
        threads: of the engine; None for the cores that this process may use.
        progress: called with the number of samples after each batch.

    Returns:
        Sums by value name.

    Raises:
        DataError: if there is no sample, or a value holds NaN or infinity on one.
        RuntimeFailure: if the engine cannot run the network on a sample.
        PlanError: if a scale does not fit.
    """
    found = [one for one in roundings(model, plan) if one.kind == "activation"]
    if not found:
        return {}
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise DataError("no sample to measure the loss on: the data are empty")
    threads = threads or available_cores()
    workers = min(threads, _MOST_WORKERS)  # batches side by side use the cores better than one batch on all of them
    sizes = _sizes(model, first)
    groups = in_rounds(found, lambda one: _bytes(one.value, sizes), _ROUND_BYTES)
    rounds = [_open_round(model, group, threads=max(1, threads // workers)) for group in groups]
    sums = {one.name: no_sums(one.encoding.type.levels) for one in found}
    pending: deque[tuple[Future[dict[str, LossSums]], int]] = deque()

    def add_oldest() -> None:
        part, count = pending.popleft()
        for name, more in part.result().items():
            sums[name] = sums[name].merge(more)
        progress(count)

    with ThreadPoolExecutor(max_workers=workers) as pool:
        for batch in chain([first], batches):
            pending.append((pool.submit(_batch_sums, rounds, batch), batch.count))
            if len(pending) > workers:
                add_oldest()
        while pending:
            add_oldest()
    return sums


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    """Values that leave the engine together.

    Attributes:
        session: computes them.
        names: of those that are not fed.
        roundings: what is rounded.
    """

    session: onnxruntime.InferenceSession
    names: list[str]
    roundings: list[Rounding]


def _sizes(model: ir.Model, batch: Batch) -> dict[str, int]:
    """Lengths of the axes that the network leaves open, by their names, as a batch has them."""
    return {
        str(size.value): length
        for value in model.graph.inputs
        if value.name in batch.feed and value.shape is not None
        for size, length in zip(value.shape, batch.feed[str(value.name)].shape, strict=False)
        if isinstance(size, ir.SymbolicDim)
    }


def _bytes(value: ir.Value, sizes: Mapping[str, int]) -> int:
    """Bytes of a value as far as its size is known."""
    return 4 * math.prod(one if isinstance(one, int) else sizes.get(str(one.value), 1) for one in value.shape or ())


def _open_round(model: ir.Model, group: list[Rounding], *, threads: int) -> _Round:
    names = [one.name for one in group if one.node is not None]
    network = returning(model, names) if names else model  # else only inputs are looked at
    return _Round(session=open_session(network, threads=threads), names=names, roundings=group)


def _batch_sums(rounds: Sequence[_Round], batch: Batch) -> dict[str, LossSums]:
    sums = {}
    for round_ in rounds:
        values = _run(round_, batch)
        for one in round_.roundings:
            rows = sample_rows(values.pop(one.name), batch)
            if rows.size and not (np.isfinite(rows.min()) and np.isfinite(rows.max())):
                raise DataError(
                    f"value {one.name!r} holds NaN or infinity on {named(batch)}: leave the sample out, or mend the "
                    "network"
                )
            clipper = clips_only(one.value)
            if clipper is not None:
                rows = np.clip(rows, *np.array(clip_bounds(clipper), dtype=np.float32))
            sums[one.name] = _sums(rows, one.encoding)
    return sums


def _sums(rows: npt.NDArray[Any], encoding: RoundedEncoding) -> LossSums:
    if isinstance(encoding, Encoding):
        return element_sums(rows, encoding)
    return probability_sums(rows, encoding) if rows.size else no_sums(encoding.type.levels)


def _run(round_: _Round, batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """What is rounded of a batch: the engine's outputs, and what it was fed."""
    feed = dict(batch.feed)
    return feed | run_session(round_.session, round_.names, feed, what=f"the network on {named(batch)}")
