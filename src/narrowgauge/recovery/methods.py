"""The table of recovery methods: how each is applied to a state of the ladder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from narrowgauge.analysis.outliers import find_outliers
from narrowgauge.calibration.ranges import estimator
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.pieces import alive_bytes
from narrowgauge.graph.roles import activation_inputs
from narrowgauge.planning.bias_room import with_room_for_biases
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.planning.fill import fixed_values
from narrowgauge.planning.place import caps_are_integer
from narrowgauge.recovery.absorb import absorb_high_biases
from narrowgauge.recovery.bias_correction import correct_bias
from narrowgauge.recovery.cap_outliers import Cap, cap_outliers
from narrowgauge.recovery.equalize import drop_idle_caps, equalize
from narrowgauge.recovery.outliers import split_outliers
from narrowgauge.recovery.range_refinement import refine_ranges
from narrowgauge.recovery.rotate_streams import rotate_streams
from narrowgauge.recovery.sequential import optimize
from narrowgauge.recovery.smooth import smooth
from narrowgauge.recovery.widen_streams import widen_streams
from narrowgauge.recovery.workshop import State, Workshop

# Samples that ranges are refined on. Every value and a rounded twin of it are held for a batch of them.
_REFINING = 8
_REFINING_BATCH = 2

# Samples that weights are rounded on, and up to how many bits: with more, the nearest level is as good.
_OPTIMIZING = 256
_OPTIMIZING_BYTES = 3 * 2**28  # of activations that are alive between two layers, in both streams
_OPTIMIZING_BATCH = 8
_ROUND_BITS = 7

# Noise above which methods that cost something are tried without being asked for: 25 dB, 17 dB, and 15 dB.
_WIDEN_ABOVE = 0.003
_OPTIMIZE_ABOVE = 0.02
_CAP_ABOVE = 0.03

# Estimators that compete for the whole network.
_ESTIMATORS = ("max", "percentile:99.99", "percentile:99.999", "entropy")

# Samples that caps are compared on.
_SKETCHING = 32

Found = tuple[State, str] | None  # the new state and what was done, for a person; None where there is nothing to do


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One row of the table.

    Attributes:
        name: as recipes write it.
        apply: tries it; a new state and what was done, or None where there is nothing to do.
        meaning: one line for a person.
        structural: whether it changes the network's structure or statistics, so that its plan is made anew.
        of_activations: whether it is judged by the noise of the activations alone, because it chooses their ranges and
            later methods lower the noise of the weights.
        cost: about how long it takes, in calibrations of the network: what its gain is weighed against.
        worthwhile: whether a thrifty recipe tries it, from the state and the noise at the output; always what takes
            little time.
    """

    name: str
    apply: Callable[[Workshop, State], Found]
    meaning: str
    structural: bool = False
    of_activations: bool = False
    cost: float = 1.0
    worthwhile: Callable[[State, float], bool] = lambda state, noise: True


# --- structure ------------------------------------------------------------------------------------------------


def _migrate(workshop: Workshop, state: State) -> Found:
    """Take the outlier channels out of what integer products read."""
    network, statistics, asked = state.reference, state.statistics, state.choices
    integer = [node for node in network.graph if node.name in state.placement.integer_nodes]
    written = {str(value.name) for node in integer for value in node.outputs}
    rounded = written.difference(state.placement.float_outputs)
    between_floats = {
        str(node.name)
        for node in integer
        if (rule := workshop.target.rule(node.op_type)) and rule.output == "float"
        and not any(value.name in rounded for _, value in activation_inputs(node))
    }  # fmt: skip
    network, statistics, splits = split_outliers(network, statistics, layers=between_floats)
    said = [
        f"channel {', '.join(map(str, one.channels))} of {one.value!r} reaches {one.range_before:.3g}, the others "
        f"{one.range_after:.3g}: it is multiplied in float"
        for one in splits
    ]
    asked = replace(asked, nodes={**asked.nodes, **{
        name: NodeChoice(keep_float=f"outlier channels of {one.value} are multiplied in float")
        for one in splits for name in one.float_nodes
    }})  # fmt: skip
    network, statistics, done = smooth(
        network, statistics, layers=state.placement.integer_nodes, rounded=rounded, weight_bits=state.weight_bits
    )
    if done:
        worst = max(done, key=lambda migration: migration.factor)
        said.append(
            f"outlier channels of {_counted(len(done), 'value')} were scaled into the next weights, most of all "
            f"channel {worst.channel} of {worst.value!r}, by {worst.factor:.3g}"
        )
    return (workshop.planned(network, statistics, asked), "; ".join(said)) if said else None


def _equalize(workshop: Workshop, state: State) -> Found:
    """Even out the channels of layers whose weights have one scale; with a scale for each channel it wins nothing."""
    single = {slot.node for slot in state.placement.weights.values() if slot.granularity == "tensor"}
    if not single:
        return None
    caps = caps_are_integer(workshop.target)
    network, rescaled, done = equalize(state.reference, state.statistics, layers=single, caps=caps)
    if not done or rescaled is None:
        return None
    # Without samples the exact extremes per channel, rescaled, have to do.
    seen = workshop.calibrate(network) if workshop.calibrate is not None else rescaled
    network, statistics, gone = drop_idle_caps(network, seen)
    capped = sum(len(one.capped) for one in done) - len(gone)
    said = f"the weights' channels of {_counted(len(done), 'pair')} of layers were equalized"
    if capped > 0:
        said += f", with a cap for each channel of {_counted(capped, 'value')}"
    return workshop.planned(network, statistics, state.choices), said


def _absorb_biases(workshop: Workshop, state: State) -> Found:
    """Move what channels never fall below into the biases of the layers behind them."""
    network, done = absorb_high_biases(state.reference, statistics=state.statistics)
    if not done or workshop.calibrate is None:
        return None
    said = f"what the channels of {_counted(len(done), 'layer')} never fall below was moved into the next biases"
    return workshop.planned(network, workshop.calibrate(network), state.choices), said


def _widen_streams(workshop: Workshop, state: State) -> Found:
    """Hold residual streams in more bits."""
    asked, values = widen_streams(state.reference, state.placement, workshop.target, state.choices)
    if not values:
        return None
    widened = workshop.planned(state.reference, state.statistics, asked)
    kind = widened.plan.encodings[values[0]].type.name
    return widened, f"the residual stream, {_counted(len(values), 'value')}, is held in {kind}"


def _rotate_streams(workshop: Workshop, state: State) -> Found:
    """Spread the outliers of residual streams over all channels; a stream that stays float needs none of it."""
    rounded = state.plan.encodings
    norms = [node for node in state.reference.graph if is_operator(node, "LayerNormalization")]
    if not any(node.inputs[0] is not None and node.inputs[0].name in rounded for node in norms):
        return None
    if workshop.calibrate is None or not workshop.measuring:  # it can lose: unmeasured it is not worth the risk
        return None
    network, statistics, done = rotate_streams(state.reference, state.statistics, calibrate=workshop.calibrate)
    if not done:
        return None
    streams = "the residual stream was" if len(done) == 1 else f"{len(done)} residual streams were"
    return workshop.planned(network, statistics, state.choices), f"{streams} rotated, which spreads its outliers"


def _cap_outliers(workshop: Workshop, state: State) -> Found:
    """Cut outliers off at the unit that they come from."""
    calibrate = workshop.calibrate
    found = find_outliers(state.reference, state.statistics)
    outliers = [one for one in found if one.value in state.plan.encodings]  # in float they do no harm
    if not outliers or not workshop.measuring or calibrate is None:
        return None
    network, statistics, caps = cap_outliers(
        state.reference, state.statistics, outliers, calibrate=calibrate,
        noise=lambda changed, seen: workshop.noise(workshop.planned(changed, seen, state.choices)).judged,
        sketch=lambda changed: calibrate(changed, _SKETCHING),
    )  # fmt: skip
    if not caps:
        return state, "no cap of an outlier was worth it"
    said = "; ".join(f"{cap.value!r} from {cap.reach:.3g} to {_bound(cap):.3g}" for cap in caps)
    return workshop.planned(network, statistics, state.choices), f"outliers were cut off where they arise: {said}"


def _bound(cap: Cap) -> float:
    return max(abs(bound) for bound in (cap.low, cap.high) if math.isfinite(bound))


# --- numbers of the plan --------------------------------------------------------------------------------------


def _choose_estimator(workshop: Workshop, state: State) -> Found:
    """Plan with each estimator of ranges and take the one with the least noise at the output."""
    if not workshop.measuring or state.network is not state.reference:  # weights that were chosen would be lost
        return None
    found = {
        name: workshop.planned(state.reference, state.statistics, replace(state.choices, estimator=estimator(name)))
        for name in _ESTIMATORS
    }
    noises = {name: workshop.noise(found[name], of_activations=True).judged for name in found}
    best = min(noises, key=noises.__getitem__)
    if math.isnan(noises[best]):
        return None
    return found[best], f"ranges by {best}, the best estimator for the whole network"


def _refine_ranges(workshop: Workshop, state: State) -> Found:
    """Choose ranges by their error behind the next layers."""
    activations = workshop.target.activations
    few = workshop.samples(_REFINING, _REFINING_BATCH)
    if not few:
        workshop.notes.append(f"ranges were not refined: that takes {_REFINING} samples or more that can be read twice")
        return None
    plan, done = refine_ranges(
        state.reference, state.plan, state.statistics, few, symmetric=activations.is_symmetric,
        power_of_two=activations.power_of_two, fixed=fixed_values(state.placement), threads=workshop.threads,
    )  # fmt: skip
    if not done:
        return None
    plan = with_room_for_biases(
        state.network, plan, bits=workshop.target.bias_bits, power_of_two=workshop.target.weights.power_of_two
    )
    said = f"the ranges of {_counted(len(done), 'value')} were chosen by the error behind the next layers"
    return replace(state, plan=plan), said


def _correct_bias(workshop: Workshop, state: State) -> Found:
    """Take the mean error of rounded weights out of the biases."""
    network, plan = correct_bias(state.network, state.plan, state.statistics)
    return replace(state, network=network, plan=plan), "the mean error of rounded weights was taken out of the biases"


def _optimize_weights(workshop: Workshop, state: State) -> Found:
    """Round weights and correct biases layer by layer, by what they do to the layers' outputs."""
    most = max(_OPTIMIZING_BATCH, min(_OPTIMIZING, _OPTIMIZING_BYTES // max(2 * alive_bytes(state.network), 1)))
    samples = workshop.samples(most, _OPTIMIZING_BATCH)
    if not samples:
        return None
    network, plan, done = optimize(
        state.network, state.plan, samples, reference=state.reference, round_bits=_ROUND_BITS,
        bias_bits=workshop.target.bias_bits, power_of_two=workshop.target.weights.power_of_two,
        threads=workshop.threads,
    )  # fmt: skip
    if not done:
        return None
    rounded = sum(one.rounded for one in done)
    said = f"the biases of {_counted(len(done), 'layer')} were corrected in sequence"
    if rounded:
        said = f"the weights of {_counted(rounded, 'layer')} were rounded by what that does to the outputs, and {said}"
    return replace(state, network=network, plan=plan), said


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="migrate", apply=_migrate, cost=0.2, structural=True,
            meaning="scale outlier channels of products into the next weights, or multiply them in float",
        ),
        Method(
            name="equalize", apply=_equalize, structural=True,
            meaning="even out the channels of neighbouring layers whose weights have one scale",
        ),
        Method(
            name="absorb-biases", apply=_absorb_biases, structural=True,
            meaning="move what channels never fall below into the biases of the next layers",
        ),
        Method(
            name="widen-streams", apply=_widen_streams, cost=0.1, structural=True,
            worthwhile=lambda state, noise: noise > _WIDEN_ABOVE,
            meaning="hold residual streams in more bits, where the target's additions and normalizations take them",
        ),
        Method(
            name="rotate-streams", apply=_rotate_streams, structural=True,
            worthwhile=lambda state, noise: noise > _CAP_ABOVE,
            meaning="rotate residual streams, which spreads their outliers over all channels",
        ),
        Method(
            name="cap-outliers", apply=_cap_outliers, cost=5.0, structural=True,
            worthwhile=lambda state, noise: noise > _CAP_ABOVE,
            meaning="cut outliers off at the unit that they come from, and calibrate anew",
        ),
        Method(
            name="choose-estimator", apply=_choose_estimator, cost=0.5, of_activations=True,
            worthwhile=lambda state, noise: noise > _OPTIMIZE_ABOVE,
            meaning="take the estimator of ranges that is best for the whole network",
        ),
        Method(
            name="refine-ranges", apply=_refine_ranges, cost=0.5, of_activations=True,
            meaning="choose each activation's range by its error behind the next layers",
        ),
        Method(
            name="correct-bias", apply=_correct_bias, cost=0.1,
            meaning="take the mean error of rounded weights out of the biases",
        ),
        Method(
            name="optimize-weights", apply=_optimize_weights, cost=5.0,
            worthwhile=lambda state, noise: noise > _OPTIMIZE_ABOVE or state.weight_bits < 8,
            meaning="round weights and correct biases layer by layer, by the error of the layers' outputs",
        ),
    )
}  # fmt: skip
