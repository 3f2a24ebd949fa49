"""What a chip can do, as data: the records that one TOML file per target fills, and their reader.

Every field says what the *target* computes; how a network is cut to fit it is planning's work. A new target is one
TOML file in this folder.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from narrowgauge.core.encoding import LogEncoding
from narrowgauge.core.integer_logarithm import Threshold
from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.core.plan import Mode
from narrowgauge.errors import PlanError, TargetError

RECURRENT = ("LSTM", "GRU", "RNN")

Scope = Literal["tensor", "channel", "block"]
Side = Literal["input", "output"]
Kind = Literal["compute", "join", "same"]
Output = Literal["quantized", "float"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRules:
    """What encodings the target takes for a kind of tensor.

    Attributes:
        types: number types it computes with, the preferred one first.
        symmetric: the zero point must be 0 (of an unsigned type of data without negative numbers, the lowest level).
        symmetric_types: types of which that holds even where `symmetric` is false (TFLite's int16 beside its int8).
        granularity: scopes of one scale, the preferred one first.
        output_types: types of the network's own outputs, the preferred one first; empty for any of `types`.
        headroom_bits: bits of 16-bit levels that lie above what calibration saw, so that other data do not saturate.
        power_of_two: scales must be powers of two.
        block_sizes: elements per scale where "block" is one of the scopes.
        source: where that is said.
    """

    types: tuple[IntegerType, ...]
    symmetric: bool
    granularity: tuple[Scope, ...]
    power_of_two: bool
    block_sizes: tuple[int, ...]
    source: str
    symmetric_types: tuple[IntegerType, ...] = ()
    output_types: tuple[IntegerType, ...] = ()
    headroom_bits: int = 0

    def is_symmetric(self, type: IntegerType) -> bool:
        """Whether the zero point of a tensor of this type must be 0."""
        return self.symmetric or type in self.symmetric_types


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedOutput:
    """An output whose encoding the target fixes (Softmax, Sigmoid, Tanh), per activation type."""

    type: IntegerType
    scale: float
    zero_point: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorRule:
    """How the target runs some operators in integers.

    Attributes:
        operators: ONNX operator names.
        kind: "compute": an integer kernel that is worth converting its inputs for (convolutions, matrix products).
            "join": an integer kernel that is used where every float input already arrives in integers (additions,
            pooling); "same": moves or selects levels, so that output and inputs share one encoding (Reshape, MaxPool).
        output: in what the kernel writes where no integer operator forces it.
        fuses: activation operators that the kernel applies itself before it rounds.
        modes: in which of the three ways of post-training quantization the target runs it.
        constant_weights: only products with constant weights run in integers, not those of two activations.
        shortest_sum: a convolution over more than one position that adds up fewer products per output stays float: the
            integer kernel is the slower one.
        fewest_channels: likewise a depthwise convolution of fewer channels.
        shares_inputs: all inputs (and the output) must have one encoding (Concat).
        fixed_output: output encodings that the target fixes; empty if it does not.
        types: activation types where they differ from the target's; empty for the target's.
        weight_types: likewise of weights.
        weight_granularity: likewise of weights.
        input_types: types in which it takes an input that nothing else reads, the preferred one first; empty for those
            of activations. A wider one is the sum that the operator before it holds anyway (Add behind a layer).
        power_of_two_factor: whether its inputs, or its outputs, may have a scale per channel of the last axis that is
            a power of two times one scale, and a zero point per channel.
        log_output: output encodings by logarithms, per activation type.
        normalized_output: activation types in which a product that alone reads the output takes exponentials, and
            divides by the sum of each row behind it (Softmax along the last axis).
        source: where that is said.
    """

    operators: tuple[str, ...]
    kind: Kind
    output: Output
    fuses: tuple[str, ...]
    modes: tuple[Mode, ...]
    constant_weights: bool
    shortest_sum: int
    fewest_channels: int
    shares_inputs: bool
    fixed_output: tuple[FixedOutput, ...]
    types: tuple[IntegerType, ...]
    weight_types: tuple[IntegerType, ...]
    weight_granularity: tuple[Scope, ...]
    source: str
    input_types: tuple[IntegerType, ...] = ()
    power_of_two_factor: tuple[Side, ...] = ()
    log_output: tuple[LogEncoding, ...] = ()
    normalized_output: tuple[IntegerType, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """How accumulators become levels again.

    Attributes:
        requantization: name of the rule, `unknown` where nobody outside says it.
        rounding: what happens to ties: half_even, half_away, half_up or unknown.
        bit_exact: whether the Q/DQ simulation equals the target's integers but for rounding ties.
        source: where that is said.
    """

    requantization: str
    rounding: str
    bit_exact: bool
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A chip or an engine: what it quantizes, to what, and how it rounds.

    Attributes:
        name: as given to `--target`.
        title: for people.
        version: of the engine that the rows were read from or measured on.
        formats: what its file is, the preferred one first; empty where this version writes none.
        runtime: name of the engine that can run the file here, "" if none.
        activations: rules of activations.
        weights: rules of weights.
        bias_bits: width of a bias, 0 where it stays float.
        all_integer: a node that stays float ends the part that the chip runs, so inputs and outputs are integers too.
        unrolled: recurrent layers without a kernel, which become steps of other operators before they are calibrated.
        arithmetic: how it rounds.
        operators: what it runs in integers; an operator that no rule names stays float.
        notes: what a person should know.
    """

    name: str
    title: str
    version: str
    formats: tuple[str, ...]
    runtime: str
    activations: TensorRules
    weights: TensorRules
    bias_bits: int
    arithmetic: Arithmetic
    operators: tuple[OperatorRule, ...]
    notes: tuple[str, ...]
    all_integer: bool = False
    unrolled: tuple[str, ...] = ()

    def rule(self, operator: str) -> OperatorRule | None:
        """Return the rule of an ONNX operator, None where it stays float."""
        return next((rule for rule in self.operators if operator in rule.operators), None)


def target_from_toml(text: str, *, source: str) -> Target:
    """Read a target.

    Args:
        text: the TOML text.
        source: file name for the error message.

    Raises:
        TargetError: if it is not TOML, a key is missing or unknown, or a value is not what it should be.
    """
    try:
        return _target(_Table(tomllib.loads(text), "the file"))
    except (tomllib.TOMLDecodeError, PlanError, TargetError) as error:
        raise TargetError(f"{source}: {error}") from None


_TOML_NAMES = {
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


class _Table:
    """A TOML table that remembers which of its keys were read."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.values = dict(values)
        self.place = place

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        if key not in self.values:
            if default is None:
                raise TargetError(f"{self.place}: key {key!r} is missing")
            return default
        value = self.values.pop(key)
        if isinstance(value, int) and kind is float and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TargetError(f"{self.place}: expected {key!r} to be {_TOML_NAMES[kind]}, got {value!r}")
        return value

    def text(self, key: str) -> str:
        value = cast(str, self.take(key, str))
        if not value.strip():
            raise TargetError(f"{self.place}: expected {key!r} to say something, got an empty text")
        return value

    def tables(self, key: str, default: list[Any] | None = None) -> list[_Table]:
        rows = self.take(key, list, default)
        for row in rows:
            if not isinstance(row, dict):
                raise TargetError(f"{self.place}: expected {key!r} to hold tables, got {row!r}")
        return [_Table(row, f"{key}, row {number}") for number, row in enumerate(rows, start=1)]

    def strings(self, key: str, allowed: tuple[str, ...] = (), default: list[str] | None = None) -> tuple[str, ...]:
        values = self.take(key, list, default)
        for value in values:
            if not isinstance(value, str) or (allowed and value not in allowed):
                raise TargetError(
                    f"{self.place}: expected {key!r} to hold {', '.join(allowed) or 'texts'}, got {value!r}"
                )
        return tuple(values)

    def choice(self, key: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        value = self.take(key, str, default)
        if value not in allowed:
            raise TargetError(f"{self.place}: expected {key!r} to be one of {', '.join(allowed)}, got {value!r}")
        return cast(str, value)

    def types(self, key: str, default: list[str] | None = None) -> tuple[IntegerType, ...]:
        try:
            return tuple(integer_type(name) for name in self.strings(key, default=default))
        except PlanError as error:
            raise TargetError(f"{self.place}: {key}: {error}") from None

    def end(self) -> None:
        if self.values:
            raise TargetError(f"{self.place}: unknown key {sorted(self.values)[0]!r}")


_SCOPES = ("tensor", "channel", "block")


def _target(table: _Table) -> Target:
    target = Target(
        name=table.text("name"),
        title=table.text("title"),
        version=table.take("version", str),
        formats=table.strings("formats"),
        runtime=table.take("runtime", str, ""),
        activations=_tensor_rules(table, "activations"),
        weights=_tensor_rules(table, "weights"),
        bias_bits=table.take("bias_bits", int),
        arithmetic=_arithmetic(_Table(table.take("arithmetic", dict), "arithmetic")),
        operators=tuple(_operator_rule(row) for row in table.tables("operators")),
        notes=table.strings("notes", default=[]),
        all_integer=table.take("all_integer", bool, False),
        unrolled=table.strings("unrolled", RECURRENT, []),
    )
    table.end()
    if not (target.bias_bits == 0 or 8 <= target.bias_bits <= 32):
        raise TargetError(f"the file: expected bias_bits 0 (float) or 8 to 32, got {target.bias_bits}")
    _check_once(target)
    return target


def _tensor_rules(parent: _Table, key: str) -> TensorRules:
    table = _Table(parent.take(key, dict), key)
    rules = TensorRules(
        types=table.types("types"),
        symmetric=table.take("symmetric", bool),
        granularity=cast("tuple[Scope, ...]", table.strings("granularity", _SCOPES)),
        power_of_two=table.take("power_of_two", bool, False),
        block_sizes=_block_sizes(table),
        source=table.text("source"),
        symmetric_types=table.types("symmetric_types", []),
        output_types=table.types("output_types", []),
        headroom_bits=table.take("headroom_bits", int, 0),
    )
    table.end()
    if not 0 <= rules.headroom_bits <= 8:
        raise TargetError(f"{key}: expected headroom_bits 0 to 8, got {rules.headroom_bits}")
    if not rules.types or not rules.granularity:
        raise TargetError(f"{key}: expected at least one type and one granularity")
    if ("block" in rules.granularity) != bool(rules.block_sizes):
        raise TargetError(f"{key}: expected block_sizes exactly where 'block' is one of granularity")
    return rules


def _block_sizes(table: _Table) -> tuple[int, ...]:
    sizes = table.take("block_sizes", list, [])
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise TargetError(f"{table.place}: expected 'block_sizes' to hold positive integers, got {size!r}")
    return tuple(sizes)


def _arithmetic(table: _Table) -> Arithmetic:
    arithmetic = Arithmetic(
        requantization=table.text("requantization"),
        rounding=table.choice("rounding", ("half_even", "half_away", "half_up", "unknown")),
        bit_exact=table.take("bit_exact", bool),
        source=table.text("source"),
    )
    table.end()
    return arithmetic


def _operator_rule(table: _Table) -> OperatorRule:
    rule = OperatorRule(
        operators=table.strings("operators"),
        kind=cast(Kind, table.choice("kind", ("compute", "join", "same"))),
        output=cast(Output, table.choice("output", ("quantized", "float"), "quantized")),
        fuses=table.strings("fuses", default=[]),
        modes=cast("tuple[Mode, ...]", table.strings("modes", ("static", "dynamic", "weight-only"), ["static"])),
        constant_weights=table.take("constant_weights", bool, False),
        shortest_sum=table.take("shortest_sum", int, 0),
        fewest_channels=table.take("fewest_channels", int, 0),
        shares_inputs=table.take("shares_inputs", bool, False),
        fixed_output=tuple(_fixed_output(row) for row in table.tables("fixed_output", [])),
        types=table.types("types", []),
        weight_types=table.types("weight_types", []),
        weight_granularity=cast("tuple[Scope, ...]", table.strings("weight_granularity", _SCOPES, [])),
        source=table.text("source"),
        input_types=table.types("input_types", []),
        power_of_two_factor=cast("tuple[Side, ...]", table.strings("power_of_two_factor", ("input", "output"), [])),
        log_output=tuple(_log_output(row) for row in table.tables("log_output", [])),
        normalized_output=table.types("normalized_output", []),
    )
    table.end()
    if not rule.operators:
        raise TargetError(f"{table.place}: expected at least one operator")
    return rule


def _fixed_output(table: _Table) -> FixedOutput:
    fixed = FixedOutput(
        type=integer_type(table.take("type", str)),
        scale=table.take("scale", float),
        zero_point=table.take("zero_point", int),
    )
    table.end()
    if not 0 < fixed.scale < float("inf"):
        raise TargetError(f"{table.place}: expected a positive finite scale, got {fixed.scale}")
    if not fixed.type.minimum <= fixed.zero_point <= fixed.type.maximum:
        raise TargetError(
            f"{table.place}: expected zero_point in {fixed.type.minimum} to {fixed.type.maximum} of {fixed.type.name}, "
            f"got {fixed.zero_point}"
        )
    return fixed


def _log_output(table: _Table) -> LogEncoding:
    encoding = LogEncoding(
        type=integer_type(table.take("type", str)),
        octave_bits=table.take("octave_bits", int, 0),
        threshold=cast(Threshold, table.choice("threshold", get_args(Threshold), "three_halves")),
        normalized=table.take("normalized", bool, False),
    )
    table.end()
    return encoding


def _check_once(target: Target) -> None:
    seen: set[str] = set()
    for rule in target.operators:
        twice = seen.intersection(rule.operators)
        if twice:
            raise TargetError(f"operators: {sorted(twice)[0]} stands in two rows")
        seen.update(rule.operators)
