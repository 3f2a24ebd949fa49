"""What each tensor loses when it is rounded: the error within the range and the error beyond it.

See `loss_sums` for the two errors, `activation_loss` and `histogram_loss` for where the sums come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from narrowgauge.analysis.activation_loss import activation_sums
from narrowgauge.analysis.encoding_words import representable, scale_words, steps, type_words
from narrowgauge.analysis.histogram_loss import histogram_sums
from narrowgauge.analysis.loss_sums import FloatArray, LossSums, element_sums, entropy_bits
from narrowgauge.analysis.records import TensorLoss
from narrowgauge.analysis.roundings import Rounding, roundings
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.graph.feeds import Batch
from narrowgauge.graph.shapes import dimensions


def loss_from_statistics(
    model: ir.Model, plan: Plan, statistics: Statistics, *, reference: ir.Model | None = None
) -> tuple[TensorLoss, ...]:
    """Split the loss of every tensor that a plan rounds: activations by their histograms, weights exactly.

    How near a histogram comes is said in `histogram_sums`. Left out are activations whose statistics hold no histogram
    (those that recovery rescaled), what is rounded to logarithms or shares (a histogram does not tell rows apart), and
    tensors without elements. What the Relu or Clip that alone reads a value cuts off is no loss.

    Args:
        model: the float network that the plan describes.
        plan: the encodings.
        statistics: of this network.
        reference: network whose weights the rounded ones stand for, under the same names and of the same shapes, where
            optimised rounding has changed them since; None for `model`.

    Returns:
        Losses in the network's order.

    Raises:
        StatisticsError: if a rounded activation was not observed.
        PlanError: if a scale does not fit.
    """
    sums: dict[str, LossSums] = {}
    found = roundings(model, plan)
    for one in found:
        if one.kind == "weights":
            sums[one.name] = _weight_sums(one, reference)
        elif isinstance(one.encoding, Encoding):
            sums[one.name] = histogram_sums(statistics.of(one.name), one.encoding)
    return _losses(found, sums, measured=False)


def measured_loss(
    model: ir.Model,
    plan: Plan,
    batches: Iterable[Batch],
    *,
    reference: ir.Model | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[TensorLoss, ...]:
    """Split the loss of every tensor that a plan rounds, on its elements: exact on the samples that are given.

    Args:
        model: the float network that the plan describes.
        plan: the encodings.
        batches: samples, see `activation_loss.activation_sums`.
        reference: see `loss_from_statistics`.
        threads: of the engine; None for the cores that this process may use.
        progress: called with the number of samples after each batch.

    Returns:
        Losses in the network's order.

    Raises:
        DataError: if there is no sample to round an activation of, or a value holds NaN or infinity on one.
        RuntimeFailure: if the engine cannot run the network on a sample.
        PlanError: if a scale does not fit.
    """
    found = roundings(model, plan)
    sums = {one.name: _weight_sums(one, reference) for one in found if one.kind == "weights"}
    sums |= activation_sums(model, plan, batches, threads=threads, progress=progress)
    return _losses(found, sums, measured=True)


def _losses(found: Sequence[Rounding], sums: Mapping[str, LossSums], *, measured: bool) -> tuple[TensorLoss, ...]:
    return tuple(
        _loss(one, sums[one.name], measured=measured or one.kind == "weights")
        for one in found
        if one.name in sums and sums[one.name].elements
    )


def _loss(one: Rounding, sums: LossSums, *, measured: bool) -> TensorLoss:
    kind = one.encoding.type
    entropy, sizes = entropy_bits(sums.levels), dimensions(one.value)
    return TensorLoss(
        name=one.name,
        kind=one.kind,
        node=str(one.node.name) if one.node is not None else "",
        operator=one.node.op_type if one.node is not None else "",
        depth=one.depth,
        type=type_words(one.encoding),
        granularity=scale_words(one.encoding),
        shape=_shape(one.value),
        range=representable(one.encoding),
        seen=(sums.minimum, sums.maximum),
        scales=steps(one.encoding, sizes[-1] if sizes else None),
        signal=sums.signal / sums.elements,
        rounding=sums.rounding / sums.elements,
        clipping=sums.clipping / sums.elements,
        clipped_share=sums.clipped / sums.elements,
        levels=kind.levels,
        levels_used=round(float((1.0 - np.exp(sums.free)).sum())),
        entropy_bits=entropy,
        wasted_bits=kind.bits - entropy,
        measured=measured,
    )


def _shape(value: ir.Value) -> str:
    sizes = dimensions(value)
    if sizes is None:
        return "?"
    return "x".join("?" if size is None else str(size) for size in sizes) or "scalar"


def _weight_sums(one: Rounding, reference: ir.Model | None) -> LossSums:
    assert isinstance(one.encoding, Encoding)  # constants have no other
    own = _constant(one.value)
    value = reference.graph.initializers.get(one.name) if reference is not None else None
    wanted = _constant(value) if value is not None and value.const_value is not None else None
    return element_sums(own, one.encoding, wanted=wanted if wanted is not None and wanted.shape == own.shape else None)


def _constant(value: ir.Value) -> FloatArray:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float32, copy=False)
