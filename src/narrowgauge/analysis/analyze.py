"""Everything that can be said of a quantized network: where it loses its accuracy, and what would help."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import onnx_ir as ir

from narrowgauge.analysis.chain import Streams, open_streams
from narrowgauge.analysis.depth import cumulative_noise
from narrowgauge.analysis.distribution import distributions
from narrowgauge.analysis.loss import measured_loss
from narrowgauge.analysis.outliers import find_outliers
from narrowgauge.analysis.records import Analysis, TensorLoss
from narrowgauge.analysis.remedies import remedies as try_remedies
from narrowgauge.analysis.sensitivity import FIRST_SAMPLES, MOST_EXACT, quantized_tensors, sweep
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.plan import Plan
from narrowgauge.data.batches import Batch
from narrowgauge.graph.block_roles import block_roles
from narrowgauge.graph.roles import is_constant, is_float
from narrowgauge.targets.schema import Target

# Of the worst tensors, on how many remedies are tried.
WORST = 6

# Batches on which the positions of outliers are looked for.
_LOCATING = 4


class Progress(Protocol):
    """Whom the analysis tells how far it is."""

    @property
    def begin(self) -> Callable[[str, int | None], None]:
        """Called with the name of a part, and how many steps it will take (None if unknown)."""

    @property
    def advance(self) -> Callable[[int], None]:
        """Called with a number of steps."""


@dataclass(frozen=True, slots=True)
class _Silent:
    begin: Callable[[str, int | None], None] = lambda part, total: None
    advance: Callable[[int], None] = lambda count: None


def analyze(  # noqa: PLR0913 - both networks, plan, statistics, samples and target, each by name
    reference: ir.Model,
    network: ir.Model,
    plan: Plan,
    statistics: Statistics | None,
    batches: Sequence[Batch],
    *,
    target: Target,
    remedies: int = WORST,
    swept: int = FIRST_SAMPLES,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Analysis:
    """Split the loss of every tensor, measure what each costs at the output, and try remedies for the worst.

    Args:
        reference: the float network, with the nodes and values of `network` (where recovery changed the structure or
            rescaled channels: the float network with the same changes).
        network: the float network that the plan describes: weights and biases may be others.
        plan: its plan.
        statistics: of `network`, for pictures, outliers and other ranges; None leaves these out.
        batches: samples.
        target: what the chip can do.
        remedies: how many of the worst tensors remedies are tried on; 0 for none.
        swept: samples that every tensor's cost at the output is measured on, in whole batches; 0 leaves that
            out; where remedies are tried, those that cost most are measured on all.
        progress: whom to tell.
        threads: batches that run side by side; None for the cores that this process may use.

    Raises:
        ModelError: if the two networks have different nodes.
        DataError: if there is no sample.
        PlanError: if the plan does not fit the network.
        RuntimeFailure: if the engine cannot run a part of it.
    """
    parts = _Parts(progress or _Silent())
    samples = sum(batch.count for batch in batches)
    found = Analysis(samples=samples)
    if not plan.encodings:
        return replace(found, notes=("nothing is quantized: there is nothing to analyse",))
    with parts.timed("loss", samples):
        losses = measured_loss(
            network, plan, batches, reference=reference, threads=threads, progress=parts.progress.advance
        )
        found = replace(found, losses=losses, roles=_roles(network, losses))
    if statistics is not None:
        with parts.timed("distributions", None):
            names = [loss.name for loss in losses]
            found = replace(found, distributions=distributions(network, plan, statistics, names))
        with parts.timed("outliers", None):
            found = replace(found, outliers=find_outliers(network, statistics, batches[:_LOCATING], threads=threads))
    if not swept:
        found = replace(
            found, notes=("what a tensor costs at the output was not measured: analyze does, on more samples",)
        )
    elif any(is_float(value) and not is_constant(value) for value in network.graph.outputs):
        with parts.timed("open", None):
            streams = open_streams(reference, network, plan, batches, threads=threads)
        found = _at_the_output(found, streams, statistics, target, remedies, swept, parts)
    else:
        found = replace(found, notes=("no output holds floating-point numbers: what a tensor costs there is unknown",))
    return replace(found, seconds=parts.seconds)


def _roles(network: ir.Model, losses: Sequence[TensorLoss]) -> dict[str, str]:
    """What quantized tensors are where the network is a transformer, weights by what their layer writes."""
    found = block_roles(network)
    written = {str(node.name): str(node.outputs[0].name) for node in network.graph}
    values = {loss.name: loss.name if loss.kind == "activation" else written.get(loss.node, "") for loss in losses}
    return {name: found[value].words for name, value in values.items() if value in found}


def _at_the_output(
    found: Analysis, streams: Streams, statistics: Statistics | None, target: Target, worst: int, samples: int,
    parts: _Parts,
) -> Analysis:  # fmt: skip
    with parts.timed("sensitivity", None):
        swept = sweep(
            streams, first_samples=samples, most_exact=MOST_EXACT if worst else 0, progress=parts.progress.advance
        )
        found = replace(found, noise=swept.noise, sensitivities=swept.sensitivities)
    with parts.timed("depth", None):
        found = replace(found, depth=cumulative_noise(streams, samples=samples, progress=parts.progress.advance))
    if not worst:
        return found
    with parts.timed("remedies", None):
        tensors = {tensor.name: tensor for tensor in quantized_tensors(streams.quantized.model, streams.quantized.plan)}
        chosen = [tensors[one.name] for one in found.ranking()[:worst]]
        tried = try_remedies(streams, chosen, statistics, target=target, progress=parts.progress.advance)
    return replace(found, remedies=tried)


@dataclass(slots=True)
class _Parts:
    """Times the parts and tells of them."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, name: str, total: int | None) -> Iterator[None]:
        self.progress.begin(name, total)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 4)
