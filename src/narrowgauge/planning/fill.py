"""From a placement and statistics to a plan: every encoding's numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.calibration.ranges import Range
from narrowgauge.calibration.statistics import Statistics, TensorStatistics
from narrowgauge.calibration.weights import weight_range
from narrowgauge.core.encoding import AnyEncoding, DynamicEncoding, Encoding
from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import PlanError, StatisticsError
from narrowgauge.graph.digest import network_digest
from narrowgauge.planning.bias_room import with_room_for_biases
from narrowgauge.planning.choices import Choices
from narrowgauge.planning.place import ActivationSlot, Placement, WeightSlot
from narrowgauge.targets.schema import FixedOutput, Target


def fill(
    model: ir.Model, placement: Placement, statistics: Statistics | None, target: Target, choices: Choices
) -> Plan:
    """Choose the scale and zero point of every tensor that a placement gives an encoding.

    Args:
        model: the float network that was placed.
        placement: what `place` decided.
        statistics: of this network; None where no activation has a static range (weight-only, dynamic).
        target: what the chip can do.
        choices: which estimators.

    Raises:
        StatisticsError: if a value's statistics are missing, empty, or hold NaN or infinity: the tensor and the
            sample are named.
        PlanError: if a weight holds NaN or infinity.
    """
    activations = _activations(model, placement, statistics, target, choices)
    weights = {slot.value: _weight_encoding(model, slot, target, choices) for slot in placement.weights.values()}
    plan = Plan(
        target=target.name,
        mode=placement.mode,
        encodings={**activations, **weights},
        float_nodes=tuple(placement.float_nodes),
        float_outputs=tuple(placement.float_outputs),
        notes=tuple(placement.refusals),
        network=network_digest(model),
    )
    return with_room_for_biases(model, plan, bits=target.bias_bits, power_of_two=target.weights.power_of_two)


def fixed_values(placement: Placement) -> frozenset[str]:
    """Names of the values whose encoding the target fixes (outputs of Softmax, Sigmoid, ...)."""
    return frozenset(slot.value for slot in placement.activations.values() if _fixed_output(slot) is not None)


# --- activations ----------------------------------------------------------------------------------------------


def _activations(
    model: ir.Model, placement: Placement, statistics: Statistics | None, target: Target, choices: Choices
) -> dict[str, AnyEncoding]:
    if placement.mode == "weight-only":
        return {}
    if placement.mode == "dynamic":
        return {
            slot.value: DynamicEncoding(type=slot.type, symmetric=target.activations.is_symmetric(slot.type))
            for slot in placement.activations.values()
        }
    if statistics is None:
        raise StatisticsError("static quantization needs statistics: calibrate the network on samples first")
    groups: dict[str, list[ActivationSlot]] = {}
    for slot in placement.activations.values():
        groups.setdefault(placement.root(slot.value), []).append(slot)
    encodings = {
        root: _group_encoding(_Ranges(model, statistics, choices), slots, target) for root, slots in groups.items()
    }
    members = {value: placement.root(value) for value in [*placement.activations, *placement.shared]}
    return {value: encodings[root] for value, root in members.items() if root in encodings}


@dataclass(frozen=True, slots=True)
class _Ranges:
    model: ir.Model
    statistics: Statistics
    choices: Choices

    def of(self, slot: ActivationSlot, *, symmetric: bool) -> Range:
        constant = self.model.graph.initializers.get(slot.value)
        if constant is not None and constant.const_value is not None:
            numbers = constant.const_value.numpy()
            return Range(minimum=float(numbers.min()), maximum=float(numbers.max()))
        tensor = self.statistics.of(slot.value)
        check_finite(slot.value, tensor)
        return self.choices.range_estimator(slot.writer)(tensor, slot.type, symmetric=symmetric)


def check_finite(value: str, tensor: TensorStatistics) -> None:
    """Refuse statistics that no range can be taken from.

    Raises:
        StatisticsError: if NaN or infinity was seen, or no number at all.
    """
    if tensor.nan_count or tensor.infinity_count:
        counts = ((tensor.nan_count, "NaN"), (tensor.infinity_count, "infinite"))
        kinds = [f"{count} {name}" for count, name in counts if count]
        raise StatisticsError(
            f"value {value!r} held {' and '.join(kinds)} elements, first in sample {tensor.first_bad!r}: "
            "a range needs finite numbers; mend the sample or the network, or keep the nodes around it float"
        )
    if tensor.is_empty:
        raise StatisticsError(f"value {value!r} was empty in every sample: it has no range")


def _group_encoding(ranges: _Ranges, slots: list[ActivationSlot], target: Target) -> Encoding:
    """One encoding for values that share it: the fixed one, else the union of their ranges."""
    kind = slots[0].type
    fixed = [_fixed_output(slot) for slot in slots]
    if len(slots) == 1 and fixed[0] is not None:
        return Encoding(
            type=kind,
            granularity=PerTensor(),
            scale=np.array(fixed[0].scale, dtype=np.float32),
            zero_point=np.array(fixed[0].zero_point, dtype=np.int32),
        )
    symmetric = target.activations.is_symmetric(kind)
    found = [ranges.of(slot, symmetric=symmetric) for slot in slots]
    return encoding_from_range(
        min(one.minimum for one in found),
        max(one.maximum for one in found),
        kind,
        PerTensor(),
        symmetric=symmetric,
        power_of_two=target.activations.power_of_two,
    )


def _fixed_output(slot: ActivationSlot) -> FixedOutput | None:
    if slot.rule is None:
        return None
    return next((fixed for fixed in slot.rule.fixed_output if fixed.type == slot.type), None)


# --- weights --------------------------------------------------------------------------------------------------


def _weight_encoding(model: ir.Model, slot: WeightSlot, target: Target, choices: Choices) -> Encoding:
    tensor = model.graph.initializers[slot.value].const_value
    assert tensor is not None
    weights = tensor.numpy().astype(np.float32, copy=False)
    if not np.isfinite(weights).all():
        raise PlanError(f"weights {slot.value!r} hold NaN or infinity: a range needs finite numbers")
    granularity = weight_granularity(slot, weights.shape, target, choices)
    low, high = weight_range(
        weights, granularity, slot.type, symmetric=slot.symmetric, estimator=choices.weight_estimator
    )
    low, high = _filled(low, high)
    return encoding_from_range(
        low, high, slot.type, granularity, symmetric=slot.symmetric, power_of_two=target.weights.power_of_two
    )


def weight_granularity(slot: WeightSlot, shape: tuple[int, ...], target: Target, choices: Choices) -> Granularity:
    """Turn a scope into axis and block of a weight of that shape; blocks run along the axis that is summed over."""
    if slot.granularity == "tensor" or len(shape) < 2:
        return PerTensor()
    if slot.granularity == "channel":
        return PerAxis(slot.axis)
    size = choices.block_size or (target.weights.block_sizes or (32,))[0]
    return PerBlock(slot.summed_axis, size)


def _filled(
    low: npt.NDArray[np.float32], high: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Give channels that are all zero the widest channel's range: any does, and theirs keeps a bias in bounds."""
    reach = np.maximum(np.abs(low), np.abs(high))
    widest = float(reach.max(initial=0.0)) or 1.0
    return np.where(reach > 0, low, -widest).astype(np.float32), np.where(reach > 0, high, widest).astype(np.float32)
