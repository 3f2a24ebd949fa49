"""What helps against outliers of one origin: changes of the plan or the network, each tried by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from narrowgauge.analysis.records import Outlier
from narrowgauge.calibration.statistics import Statistics, TensorStatistics
from narrowgauge.core.encoding import AnyEncoding, Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import StatisticsError
from narrowgauge.graph.roles import activation_inputs
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.planning.factors import readers
from narrowgauge.recovery.cap_outliers import cap_outliers
from narrowgauge.recovery.methods import METHODS as RECOVERY
from narrowgauge.recovery.outliers import split_outliers
from narrowgauge.recovery.smooth import smooth
from narrowgauge.recovery.workshop import State, Workshop
from narrowgauge.targets.schema import Target

# Samples that caps are compared on.
_SKETCHING = 32

FLOAT = "float"
_PER_CHANNEL = "scale and zero point per channel"

METHODS = ("cap at the source", "migration", "rotation", _PER_CHANNEL, "16 bits", FLOAT)
"""What is tried, the cheapest first: saturation costs nothing, scaled channels next to nothing, 16 bits memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One possible cause.

    Attributes:
        workshop: the means to plan and to measure.
        planned: the network before recovery.
        state: the same with one scale for each value that the outliers stretch; `planned` itself where it is like that.
        outliers: of one origin.
        values: what they stretch and the plan rounds.
        flat: gives the stretched values of a plan one scale each.
    """

    workshop: Workshop
    planned: State
    state: State
    outliers: tuple[Outlier, ...]
    values: tuple[str, ...]
    flat: Callable[[State], State]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One remedy, applied.

    Attributes:
        method: one of `METHODS`.
        state: the network with it.
        detail: what it did, for a person.
        allowed: whether the target can do it.
    """

    method: str
    state: State
    detail: str = ""
    allowed: bool = True


# --- remedies -------------------------------------------------------------------------------------------------


def left_floats(case: Case) -> Iterator[Trial]:
    """Leave the values float: what there is to win."""
    encodings = dict.fromkeys(_together(case.state, case.values))
    detail = _counted(case.values)
    state = with_encodings(case.state, encodings)
    yield Trial(method=FLOAT, state=state, detail=detail, allowed=not case.workshop.target.all_integer)


def _caps(case: Case) -> Iterator[Trial]:
    workshop, state, calibrate = case.workshop, case.state, case.workshop.calibrate
    if calibrate is None:
        return

    def planned(network: ir.Model, statistics: Statistics) -> State:
        return case.flat(workshop.planned(network, statistics, state.choices))

    network, statistics, caps = cap_outliers(
        state.reference, state.statistics, case.outliers, calibrate=calibrate,
        noise=lambda network, statistics: workshop.noise(planned(network, statistics)).judged,
        sketch=lambda network: calibrate(network, _SKETCHING),
    )  # fmt: skip
    if caps:
        said = "; ".join(_cap_words(cap.value, cap.low, cap.high, cap.reach) for cap in caps)
        yield Trial(method="cap at the source", state=planned(network, statistics), detail=said)


def _cap_words(value: str, low: float, high: float, reach: float) -> str:
    ends = [f">= {low:.3g}"] if math.isfinite(low) else []
    ends += [f"<= {high:.3g}"] if math.isfinite(high) else []
    return f"{value} {' and '.join(ends)}, it reached {reach:.3g}"


def _migration(case: Case) -> Iterator[Trial]:
    """Scale the channels into the weights of the products that read the values, or split these off."""
    state, workshop = case.state, case.workshop
    integer = [node for node in state.reference.graph if node.name in state.placement.integer_nodes]
    written = {str(value.name) for node in integer for value in node.outputs}
    reading = [node for node in integer if any(value.name in case.values for _, value in activation_inputs(node))]
    between_floats = [
        str(node.name)
        for node in reading
        if _writes_float(node, workshop.target)
        and not any(value.name in written for _, value in activation_inputs(node))
    ]
    network, statistics, splits = split_outliers(state.reference, state.statistics, layers=between_floats)
    network, statistics, done = smooth(
        network,
        statistics,
        layers=[str(node.name) for node in reading],
        rounded=written.difference(state.placement.float_outputs),
        weight_bits=state.weight_bits,
    )
    said = [f"channel {', '.join(map(str, one.channels))} of {one.value} is multiplied in float" for one in splits]
    said += [
        f"channel {one.channel} of {one.value} divided by {one.factor:.3g}, its weights multiplied" for one in done
    ]
    if said:
        reason = "outlier channels are multiplied in float"
        floats = {name: NodeChoice(keep_float=reason) for one in splits for name in one.float_nodes}
        asked = replace(state.choices, nodes={**state.choices.nodes, **floats})
        planned = case.flat(workshop.planned(network, statistics, asked))
        yield Trial(method="migration", state=planned, detail="; ".join(said))


def _rotation(case: Case) -> Iterator[Trial]:
    """Rotate the residual stream, which spreads what stands out over all channels."""
    found = RECOVERY["rotate-streams"].apply(case.workshop, case.planned)
    if found is not None:
        state, detail = found
        yield Trial(method="rotation", state=case.flat(state), detail=detail)


def _writes_float(node: ir.Node, target: Target) -> bool:
    rule = target.rule(node.op_type)
    return rule is not None and rule.output == "float"


def as_planned(case: Case) -> Iterator[Trial]:
    """The plan's own scales for each channel, where it has some."""
    factors = [
        name
        for name in _together(case.planned, case.values)
        if isinstance(encoding := case.planned.plan.encodings.get(name), Encoding) and encoding.scale.size > 1
    ]
    if factors:
        yield Trial(method=_PER_CHANNEL, state=case.planned, detail=f"powers of two, as planned: {_counted(factors)}")


def _per_channel(case: Case) -> Iterator[Trial]:
    """What a scale of its own for each channel would do, where the plan has one for all."""
    state, workshop = case.state, case.workshop
    if case.state is not case.planned:
        return
    rules = workshop.target.activations
    encodings: dict[str, AnyEncoding | None] = {}
    for name in _together(state, case.values):
        seen, encoding = _seen(state.statistics, [name]), state.plan.encodings[name]
        if seen and seen[0].channels is not None and isinstance(encoding, Encoding):
            channels = seen[0].channels
            encodings[name] = encoding_from_range(
                channels.minimum, channels.maximum, encoding.type, PerAxis(channels.axis),
                symmetric=rules.is_symmetric(encoding.type), power_of_two=rules.power_of_two,
            )  # fmt: skip
    if encodings:
        yield Trial(
            method=_PER_CHANNEL, state=with_encodings(state, encodings),
            detail=_counted(list(encodings)), allowed="channel" in rules.granularity,
        )  # fmt: skip


def _sixteen_bits(case: Case) -> Iterator[Trial]:
    """Ask for 16 bits where all that read a value take them, else say what they would win."""
    state, workshop = case.state, case.workshop
    kinds = [kind for kind in workshop.target.activations.types if kind.bits == 16]
    kind = kinds[0] if kinds else IntegerType(bits=16, signed=True)
    together = _together(state, case.values)
    narrow = [name for name in together if state.plan.encodings[name].type.bits < 16]
    written = {str(value.name): value for node in state.reference.graph for value in node.outputs}
    able = [name for name in narrow if kinds and name in written and _takes(written[name], kind, workshop.target)]
    nodes = dict(state.choices.nodes)
    for name in able:
        slot = state.placement.activations.get(state.placement.root(name))
        if slot is not None and slot.writer is not None:
            nodes[slot.writer] = replace(nodes.get(slot.writer, NodeChoice()), activations=kind)
    planned = (
        workshop.planned(state.reference, state.statistics, replace(state.choices, nodes=nodes)) if able else state
    )
    wide = [name for name in able if (one := planned.plan.encodings.get(name)) is not None and one.type.bits == 16]
    if wide:
        yield Trial(method="16 bits", state=case.flat(planned), detail=f"{kind.name}, {_counted(wide)}")
    elif narrow:
        rules = workshop.target.activations
        encodings = _ranges(state, narrow, kind, symmetric=rules.is_symmetric(kind), power_of_two=rules.power_of_two)
        changed = with_encodings(state, encodings)
        yield Trial(method="16 bits", state=changed, detail=_counted(list(encodings)), allowed=False)


def _takes(value: ir.Value, kind: IntegerType, target: Target) -> bool:
    rules = [target.rule(node.op_type) if node.domain == "" else None for node in readers(value, target)]
    return bool(rules) and all(rule is not None and kind in rule.input_types for rule in rules)


TRIALS: tuple[Callable[[Case], Iterator[Trial]], ...] = (_caps, _migration, _rotation, _per_channel, _sixteen_bits)
"""What is tried beside what the plan has and leaving the values float; nothing comes of one that does not apply."""


# --- plans ----------------------------------------------------------------------------------------------------


def with_encodings(state: State, encodings: Mapping[str, AnyEncoding | None]) -> State:
    """Give values of a plan other encodings, None for none."""
    merged = {**state.plan.encodings, **encodings}
    return replace(state, plan=replace(state.plan, encodings={n: one for n, one in merged.items() if one is not None}))


def _together(state: State, values: Iterable[str]) -> list[str]:
    """The values and all that share an encoding with one of them: levels that are moved must stay equal."""
    own = {state.placement.root(name) for name in values}
    return [name for name in state.plan.encodings if state.placement.root(name) in own]


def flat_encodings(state: State, values: Sequence[str], target: Target) -> dict[str, AnyEncoding | None]:
    """One scale for values that have one for each channel."""
    found: dict[str, AnyEncoding | None] = {}
    rules = target.activations
    for name in _together(state, values):
        encoding = state.plan.encodings[name]
        if isinstance(encoding, Encoding) and encoding.scale.size > 1:
            symmetric = rules.is_symmetric(encoding.type)
            found |= _ranges(state, [name], encoding.type, symmetric=symmetric, power_of_two=rules.power_of_two)
    return found


def _ranges(
    state: State, values: Sequence[str], kind: IntegerType, *, symmetric: bool, power_of_two: bool
) -> dict[str, AnyEncoding | None]:
    """Encodings that cover all that was seen; one for all values that share one now."""
    found: dict[str, AnyEncoding | None] = {}
    for name in values:
        together = [one for one in values if state.placement.root(one) == state.placement.root(name)]
        seen = _seen(state.statistics, together)
        if seen and name not in found:
            encoding = encoding_from_range(
                min(one.minimum for one in seen), max(one.maximum for one in seen), kind, PerTensor(),
                symmetric=symmetric, power_of_two=power_of_two,
            )  # fmt: skip
            found |= dict.fromkeys(together, encoding)
    return found


def _seen(statistics: Statistics, values: Iterable[str]) -> list[TensorStatistics]:
    found = []
    for name in values:
        try:
            found.append(statistics.of(name))
        except StatisticsError:
            continue
    return [one for one in found if not (one.is_empty or one.nan_count or one.infinity_count)]


def _counted(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{len(values)} values"
