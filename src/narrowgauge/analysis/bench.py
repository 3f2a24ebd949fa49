"""How fast network files are beside each other, on made-up or real inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.analysis.latency import Latency, measure_latency
from narrowgauge.analysis.subjects import subject
from narrowgauge.data import InputSpec, batches, default_preprocess, open_samples
from narrowgauge.data.inputs import has_batch_axis
from narrowgauge.errors import DataError, ModelError, RuntimeFailure
from narrowgauge.runtimes.engines import engine_named, engines_for
from narrowgauge.runtimes.program import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """How fast one network is in one engine."""

    model: Path
    runtime: str
    latency: Latency


Feed = Mapping[str, npt.NDArray[Any]]

# What stands in where a network leaves an axis other than the batch open.
_IMAGE_SIDE = 224
_LENGTH = 16


def bench(
    models: Sequence[Path],
    *,
    runtimes: Sequence[str] = (),
    data: str | None = None,
    batch: int = 1,
    threads: int = 1,
    seconds: float = 2.0,
) -> list[Timed]:
    """Time networks in turn, one run each.

    Args:
        models: files that an engine runs or an importer reads, float or quantized.
        runtimes: names of engines that each network is timed in, if they run its file; none for its usual one.
        data: samples to feed the first `batch` of, see `data.open_samples`; None makes inputs up: normally distributed
            numbers, zeros and ones for integers; open axes are 224 for images, else 16.
        batch: samples per run, where the network leaves that open.
        threads: of the engine.
        seconds: about how long to go on for each network.

    Returns:
        Times, in the order of `models`, and of `runtimes` for each.

    Raises:
        NarrowgaugeError: a network or the data cannot be read, or a network does not run on the inputs.
    """
    timed: list[tuple[Path, str]] = []
    runs = {}
    for path, runtime in _in_engines(models, runtimes):
        one = subject(path, runtime=runtime)
        feed = _random_feed(one.inputs, batch) if data is None else _first_feed(data, one.inputs, batch, path)
        run = one.open(threads).run
        _try(path, run, feed, made_up=data is None)
        runs[str(len(timed))] = lambda run=run, feed=feed: run(feed)
        timed.append((path, one.runtime))
    latencies = measure_latency(runs, seconds=seconds * len(runs)).values()
    return [
        Timed(model=path, runtime=runtime, latency=latency)
        for (path, runtime), latency in zip(timed, latencies, strict=True)
    ]


def _in_engines(models: Sequence[Path], runtimes: Sequence[str]) -> Iterator[tuple[Path, str]]:
    for path in models:
        fitting = [name for name in runtimes if engine_named(name) in engines_for(path)]
        if runtimes and not fitting and engines_for(path):
            raise RuntimeFailure(f"{path}: {' and '.join(runtimes)} cannot run such a file")
        yield from ((path, name) for name in fitting or [""])


def _try(path: Path, run: Run, feed: Feed, *, made_up: bool) -> None:
    try:
        run(feed)
    except RuntimeFailure as error:
        hint = "; the inputs were made up: give samples with --data" if made_up else ""
        raise RuntimeFailure(f"{path}: {error}{hint}") from None


def _random_feed(inputs: Sequence[InputSpec], batch: int) -> Feed:
    generator = np.random.default_rng(0)
    return {spec.name: _random(spec, batch, generator) for spec in inputs}


def _random(spec: InputSpec, batch: int, generator: np.random.Generator) -> npt.NDArray[Any]:
    beyond = _IMAGE_SIDE if len(spec.shape) == 4 else _LENGTH
    shape = [extent or (beyond if axis else batch) for axis, extent in enumerate(spec.shape)]
    if spec.dtype.kind == "f":
        return generator.standard_normal(shape).astype(spec.dtype)
    if spec.dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(spec.dtype)
    raise ModelError(f"no inputs can be made up for {spec}: give samples with --data")


def _first_feed(data: str, inputs: Sequence[InputSpec], batch: int, path: Path) -> Feed:
    samples = open_samples(data, inputs, preprocess=default_preprocess(path))
    first = next(iter(batches(samples.take(batch), batch if has_batch_axis(inputs) else 1, inputs)), None)
    if first is None:
        raise DataError(f"{data}: expected at least one sample, got none")
    return first.feed
