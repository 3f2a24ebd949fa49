"""From a placement and statistics to a plan: every encoding's numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.calibration.ranges import Range
from narrowgauge.calibration.statistics import ChannelStatistics, Statistics, TensorStatistics
from narrowgauge.calibration.weights import weight_range
from narrowgauge.core.encoding import AnyEncoding, DynamicEncoding, Encoding, LogEncoding, NormalizedEncoding
from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor, PowerOfTwoFactor
from narrowgauge.core.plan import Plan
from narrowgauge.core.power_of_two_factor import choose_factor
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import PlanError, StatisticsError
from narrowgauge.graph.digest import network_digest
from narrowgauge.graph.shapes import dimensions
from narrowgauge.planning.bias_room import with_room_for_biases
from narrowgauge.planning.choices import Choices
from narrowgauge.planning.masked_scores import Floor, above, score_floors
from narrowgauge.planning.place import ActivationSlot, Placement, WeightSlot
from narrowgauge.targets.schema import FixedOutput, Target

Extremes = npt.NDArray[np.float32]

# Of fewer channels than these none can be told from the rest.
_FEWEST_CHANNELS = 2

# Numbers of a channel whose extremes are as good as seen, and as few as its extremes are moved for at the most.
_ENOUGH = 100_000
_FEWEST_COUNTED = 32


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
    return frozenset(
        slot.value
        for slot in placement.activations.values()
        if _fixed_output(slot) is not None or _probabilities(slot) is not None
    )


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
    ranges = _Ranges(model, statistics, choices, score_floors(model, statistics))
    encodings = {root: _group_encoding(ranges, slots, target) for root, slots in groups.items()}
    members = {value: placement.root(value) for value in [*placement.activations, *placement.shared]}
    shared = {value: encodings[root] for value, root in members.items() if root in encodings}
    apart = {
        slot.value: fixed
        for root, slots in groups.items()
        for slot in slots
        if isinstance(encodings[root], Encoding) and (fixed := _fixed_encoding(slot)) is not None
    }
    return {**shared, **apart}


@dataclass(frozen=True, slots=True)
class _Ranges:
    model: ir.Model
    statistics: Statistics
    choices: Choices
    floors: Mapping[str, Floor]

    def channels(self, slot: ActivationSlot) -> tuple[Extremes, Extremes] | None:
        """Least and greatest value of each channel along the last axis, None where these are not known."""
        constant = self.model.graph.initializers.get(slot.value)
        if constant is not None:
            return None
        tensor = self.statistics.of(slot.value)
        check_finite(slot.value, tensor)
        value = next((one for node in self.model.graph for one in node.outputs if one.name == slot.value), None)
        sizes = dimensions(value)
        if tensor.channels is None or not sizes or tensor.channels.axis not in (-1, len(sizes) - 1):
            return None
        if tensor.channels.minimum.size != sizes[-1] or sizes[-1] < _FEWEST_CHANNELS:
            return None
        return _widened(tensor.channels)

    def of(self, slot: ActivationSlot, *, symmetric: bool) -> Range:
        constant, floor = self.model.graph.initializers.get(slot.value), self.floors.get(slot.value)
        if constant is not None and constant.const_value is not None:
            numbers = constant.const_value.numpy()
            least = float(numbers.min()) if floor is None else floor.lowest
            return Range(minimum=least, maximum=max(float(numbers.max()), least))
        tensor = self.statistics.of(slot.value)
        check_finite(slot.value, tensor)
        if floor is not None:
            found = self.choices.range_estimator(slot.writer)(above(tensor, floor.read), slot.type, symmetric=symmetric)
            return replace(found, minimum=floor.lowest)
        return self.choices.range_estimator(slot.writer)(tensor, slot.type, symmetric=symmetric)


def _widened(channels: ChannelStatistics) -> tuple[Extremes, Extremes]:
    """Move each channel's extremes away from its mean to where those of `_ENOUGH` numbers would lie.

    The extremes of n normal numbers lie about `sqrt(2 ln n)` deviations out: a channel of a tensor that has few
    positions was seen a few hundred times only.
    """
    factor = math.sqrt(max(math.log(_ENOUGH) / math.log(max(channels.count, _FEWEST_COUNTED)), 1.0))
    mean = channels.mean
    low, high = (mean + factor * (end - mean) for end in (channels.minimum, channels.maximum))
    return low.astype(np.float32), high.astype(np.float32)


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


def _group_encoding(ranges: _Ranges, slots: list[ActivationSlot], target: Target) -> AnyEncoding:
    """One encoding for values that share it: the fixed one where it fits all, else one that covers all ranges."""
    kind = slots[0].type
    probabilities = _probabilities(slots[0]) if len(slots) == 1 else None
    if probabilities is not None:
        return probabilities
    symmetric = target.activations.is_symmetric(kind)
    fixed = [encoding for slot in slots if (encoding := _fixed_encoding(slot)) is not None]
    others = [ranges.of(slot, symmetric=symmetric) for slot in slots if fixed and _fixed_output(slot) is None]
    if fixed and all(one.same_as(fixed[0]) for one in fixed) and all(_reaches(fixed[0], one) for one in others):
        return fixed[0]
    factor = _factor(ranges, slots)
    if factor is not None:
        return factor
    found = [ranges.of(slot, symmetric=symmetric) for slot in slots]
    room = 2.0**target.activations.headroom_bits if kind.bits >= 16 else 1.0
    return encoding_from_range(
        room * min(one.minimum for one in found),
        room * max(one.maximum for one in found),
        kind,
        PerTensor(),
        symmetric=symmetric,
        power_of_two=target.activations.power_of_two,
    )


def _fixed_encoding(slot: ActivationSlot) -> Encoding | None:
    """The only encoding that the target writes a value in; it keeps that where the rest of its group has another."""
    fixed = _fixed_output(slot)
    if fixed is None:
        return None
    return Encoding(
        type=slot.type,
        granularity=PerTensor(),
        scale=np.array(fixed.scale, dtype=np.float32),
        zero_point=np.array(fixed.zero_point, dtype=np.int32),
    )


def _reaches(encoding: Encoding, found: Range) -> bool:
    """Whether levels reach to both ends of a range, but for the half step that rounding may take."""
    half = float(encoding.scale) / 2
    return float(encoding.minimum) - half <= found.minimum and found.maximum <= float(encoding.maximum) + half


def _factor(ranges: _Ranges, slots: list[ActivationSlot]) -> Encoding | None:
    """A power-of-two factor that covers every channel of all values; None where one of them takes none."""
    if not all(slot.factor for slot in slots):
        return None
    seen = [ranges.channels(slot) for slot in slots]
    known = [extremes for extremes in seen if extremes is not None]
    if len(known) < len(seen) or len({low.size for low, _ in known}) != 1:
        return None
    low = np.min([low for low, _ in known], axis=0)
    high = np.max([high for _, high in known], axis=0)
    found = choose_factor(low, high, slots[0].type).encoding(slots[0].type, -1)
    return replace(found, granularity=PowerOfTwoFactor(-1))


def _probabilities(slot: ActivationSlot) -> LogEncoding | NormalizedEncoding | None:
    """Encoding of what a Softmax writes where it is not affine."""
    if slot.rule is None:
        return None
    found = next((one for one in slot.rule.log_output if one.type == slot.type), None)
    if found is not None:
        return replace(found, normalized=slot.normalized)
    return NormalizedEncoding(type=slot.type) if slot.normalized else None


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
