"""Say in plain words what a target can do: data for the command line's tables, no printing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.plan import Mode
from narrowgauge.targets.registry import load_target, target_names
from narrowgauge.targets.schema import Arithmetic, FixedOutput, Kind, OperatorRule, Scope, Target, TensorRules

UNREAD = "[recalled]"
"""Ends the source of a row that is known from memory: nobody read the source again when the row was written."""

FORMATS = {
    "qdq": "qdq: ONNX, float operators between QuantizeLinear and DequantizeLinear",
    "qoperator": "qoperator: ONNX, integer operators (QLinearConv, QLinearMatMul, ...)",
    "integer": "integer: ONNX, the arithmetic itself in integer operators (MatMulInteger, Mul, BitShift, ...)",
}
KINDS: dict[Kind, str] = {
    "compute": "computes in integers; its inputs are converted for it",
    "join": "computes in integers where all its inputs already are",
    "same": "passes levels through: one encoding for input and output",
}
MODES: dict[Mode, str] = {"static": "static", "dynamic": "dynamic", "weight-only": "weights only"}
SCOPES: dict[Scope, str] = {"tensor": "a tensor", "channel": "a channel", "block": "a block"}
ROUNDINGS = {
    "half_even": "half to even",
    "half_away": "half away from zero",
    "half_up": "half up (towards plus infinity)",
    "unknown": "unknown",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetSummary:
    """One line of the table of targets.

    Attributes:
        name: as given to `--target`.
        title: for people.
        version: of the engine that the rows were read from or measured on.
        activations: number types, the preferred one first, and the zero point.
        weights: number types, and what one scale covers.
        operators: how many ONNX operators run in integers.
        formats: what its file is; empty where this version writes none.
        rounding: what happens to ties, in words.
        bit_exact: whether the simulation equals the target's integers but for rounding ties.
    """

    name: str
    title: str
    version: str
    activations: str
    weights: str
    operators: int
    formats: tuple[str, ...]
    rounding: str
    bit_exact: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A headed part of a description: sentences, then a table (each row as long as the header; both may be empty)."""

    title: str
    sentences: tuple[str, ...]
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def summary_rows() -> list[TargetSummary]:
    """Summarize every target that the package brings along, in the order of their names."""
    return [summarize(load_target(name)) for name in target_names()]


def summarize(target: Target) -> TargetSummary:
    """Summarize a target in one line."""
    return TargetSummary(
        name=target.name,
        title=target.title,
        version=target.version,
        activations=f"{_names(target.activations.types)}, {_zero_point(target.activations)}",
        weights=f"{_names(target.weights.types)}, one scale {_scopes(target.weights.granularity)}",
        operators=sum(len(rule.operators) for rule in target.operators),
        formats=target.formats,
        rounding=ROUNDINGS[target.arithmetic.rounding],
        bit_exact=target.arithmetic.bit_exact,
    )


def explain(target: Target) -> list[Section]:
    """Describe a target in full: what it quantizes, its operators with their sources, rounding, files and notes."""
    sections = [
        Section(title="What it quantizes", sentences=_tensors(target)),
        Section(
            title="Operators",
            sentences=(_rest(target), *_unread(target)),
            header=("operators", "how", "particulars", "source"),
            rows=tuple(_operator_row(rule) for rule in target.operators),
        ),
        Section(title="Rounding", sentences=_rounding(target.arithmetic)),
        Section(title="Files", sentences=_files(target)),
    ]
    if target.notes:
        sections.append(Section(title="Notes", sentences=target.notes))
    return sections


def _tensors(target: Target) -> tuple[str, ...]:
    bias = f"int{target.bias_bits}" if target.bias_bits else "stays float"
    return (
        f"Activations: {_tensor_rules(target.activations)} Source: {target.activations.source}.",
        f"Weights: {_tensor_rules(target.weights)} Source: {target.weights.source}.",
        f"Bias: {bias}.",
    )


def _tensor_rules(rules: TensorRules) -> str:
    sizes = f" (blocks of {_list(rules.block_sizes)})" if rules.block_sizes else ""
    powers = " Scales are powers of two." if rules.power_of_two else ""
    outputs = f" Of the network's outputs: {_names(rules.output_types)}." if rules.output_types else ""
    room = f" 16-bit levels leave {rules.headroom_bits} bit above what was seen." if rules.headroom_bits else ""
    kinds = f"{_names(rules.types)}; {_zero_point(rules)}; one scale {_scopes(rules.granularity)}{sizes}."
    return f"{kinds}{powers}{outputs}{room}"


def _zero_point(rules: TensorRules) -> str:
    if rules.symmetric:
        return "zero point 0"
    if rules.symmetric_types:
        return f"any zero point (0 for {_names(rules.symmetric_types)})"
    return "any zero point"


def _rest(target: Target) -> str:
    if target.all_integer:
        return "A node of any other operator ends the part that the chip runs; it and all after it stay float."
    return "A node of any other operator stays float."


def _unread(target: Target) -> tuple[str, ...]:
    sources = [target.activations.source, target.weights.source, target.arithmetic.source]
    sources += [rule.source for rule in target.operators]
    if any(source.endswith(UNREAD) for source in sources):
        return (f"A source that ends in {UNREAD} could not be read again: check what it says before relying on it.",)
    return ()


def _operator_row(rule: OperatorRule) -> tuple[str, ...]:
    return ", ".join(rule.operators), KINDS[rule.kind], "; ".join(_particulars(rule)), rule.source


def _particulars(rule: OperatorRule) -> list[str]:
    found = [
        (rule.modes != ("static",), f"modes: {', '.join(MODES[mode] for mode in rule.modes)}"),
        (rule.output == "float", "may write float"),
        (bool(rule.fuses), f"applies {', '.join(rule.fuses)} itself"),
        (rule.constant_weights, "constant weights only"),
        (rule.shortest_sum > 0, f"float where fewer than {rule.shortest_sum} products make an output"),
        (rule.fewest_channels > 0, f"float where depthwise with fewer than {rule.fewest_channels} channels"),
        (rule.shares_inputs, "inputs and output share one encoding"),
        (bool(rule.types), f"activations {_names(rule.types)}"),
        (bool(rule.weight_types), f"weights {_names(rule.weight_types)}"),
        (bool(rule.weight_granularity), f"weights: one scale {_scopes(rule.weight_granularity)}"),
        *((True, _fixed(fixed)) for fixed in rule.fixed_output),
    ]
    return [text for holds, text in found if holds]


def _fixed(fixed: FixedOutput) -> str:
    return f"{fixed.type.name} output fixed to scale {_fraction(fixed.scale)}, zero point {fixed.zero_point}"


def _fraction(scale: float) -> str:
    """Write 0.00390625 as 1/256, and other numbers as they are."""
    parts = round(1 / scale)
    return f"1/{parts}" if parts > 1 and abs(scale * parts - 1) < 1e-9 else f"{scale:g}"


def _rounding(arithmetic: Arithmetic) -> tuple[str, ...]:
    exact = (
        "The simulation equals the target's integers but for rounding ties."
        if arithmetic.bit_exact
        else "The simulation is not bit-exact: expect single steps of difference."
    )
    return (
        f"Rule of requantization: {arithmetic.requantization}. Ties: {ROUNDINGS[arithmetic.rounding]}.",
        exact,
        f"Source: {arithmetic.source}.",
    )


def _files(target: Target) -> tuple[str, ...]:
    if not target.formats:
        return ("None in this version: it plans for the target, simulates it and writes the plan.",)
    formats = tuple(FORMATS.get(name, name) for name in target.formats)
    return (*formats, f"Runs here in: {target.runtime}.") if target.runtime else formats


def _names(types: Sequence[IntegerType]) -> str:
    return _list([type.name for type in types])


def _scopes(scopes: Sequence[Scope]) -> str:
    return _list([SCOPES[scope] for scope in scopes])


def _list(items: Sequence[object]) -> str:
    """Join with commas and a last `or`: the first is the preferred one."""
    texts = [str(item) for item in items]
    return " or ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else "".join(texts)
