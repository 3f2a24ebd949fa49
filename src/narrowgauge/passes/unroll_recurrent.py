"""LSTM, GRU and RNN as steps of elementary operators, for engines that have no such layer or not this variant.

One product of the whole sequence with the weights; then, for every step, one product of the state with the recurrent
ones, the gates, and the new state. A state of zeros takes no product. The equations are those of ONNX's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant
from narrowgauge.graph.edits import remove_unused, take_place
from narrowgauge.graph.recurrent import Activation, Direction, Recurrent, is_recurrent, recurrent_layer
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import infer_shapes

LONGEST = 512
"""Steps beyond which a layer is not unrolled: every step adds 8 to 15 operators."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unrolled:
    """A layer that was unrolled.

    Attributes:
        node: its name.
        weights: initializer of the layer -> for each direction, the initializer that holds the same numbers, axes
            swapped: `[inputs, gates * hidden]`. A GRU that resets before the product has two of its recurrence.
        nodes: names of the nodes that stand for it.
    """

    node: str
    weights: dict[str, tuple[tuple[str, ...], ...]]
    nodes: tuple[str, ...]


def unroll_recurrent(
    model: ir.Model, *, keep: Callable[[Recurrent], bool] = lambda layer: False
) -> tuple[tuple[Unrolled, ...], tuple[Refusal, ...]]:
    """Unroll the recurrent layers of a network, in place; the names of their outputs stay.

    Args:
        model: the network; shapes inferred.
        keep: which layers stay as they are.

    Returns:
        What was unrolled, and what was not although it should.
    """
    unrolled, refusals = [], []
    for node in list(model.graph):
        if not is_recurrent(node):
            continue
        layer = recurrent_layer(node)
        if isinstance(layer, Refusal):
            refusals.append(layer)
        elif not keep(layer):
            reason = _too_long(layer)
            if reason:
                refusals.append(Refusal(node=str(node.name), operator=node.op_type, reason=reason))
            else:
                unrolled.append(_unroll(model.graph, layer))
    if unrolled:
        remove_unused(model)
        infer_shapes(model)
    return tuple(unrolled), tuple(refusals)


def _too_long(layer: Recurrent) -> str:
    if layer.steps is None:
        return "the length of its sequences is known only at run time, so that it cannot be unrolled: fix it"
    if layer.steps == 0 or layer.steps > LONGEST:
        return f"its sequences have {layer.steps} steps; 1 to {LONGEST} are unrolled"
    return ""


def _unroll(graph: ir.Graph, layer: Recurrent) -> Unrolled:
    builder = _Builder(graph=graph, layer=layer, prefix=str(layer.node.name))
    ends = [_direction(builder, direction, number) for number, direction in enumerate(layer.directions)]
    outputs: list[Sequence[ir.Value]] = [
        [builder.add("Unsqueeze", builder.joined(end.outputs, 0), builder.integers([1])) for end in ends],
        [end.state for end in ends],
        [end.cells for end in ends if end.cells is not None],
    ]
    for number, parts in enumerate(outputs):
        value = layer.output(number)
        if value is not None:
            take_place(builder.joined(parts, 1 if number == 0 else 0), value)
    return Unrolled(node=str(layer.node.name), weights=builder.weights, nodes=tuple(builder.nodes))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ends:
    """Of one direction: the state after each step, in the order of the steps, and what is left at its end."""

    outputs: list[ir.Value]
    state: ir.Value
    cells: ir.Value | None


@dataclass(kw_only=True, slots=True)
class _Builder:
    """Adds nodes before a layer's; values are [1, batch, numbers] unless said otherwise."""

    graph: ir.Graph
    layer: Recurrent
    prefix: str
    weights: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    known: dict[tuple[int, ...], ir.Value] = field(default_factory=dict)
    taken: set[str] = field(init=False)

    def __post_init__(self) -> None:
        values = [*self.graph.initializers, *(str(value.name) for value in self.graph.inputs)]
        values += [str(value.name) for node in self.graph for value in node.outputs]
        self.taken = {*values, *(str(node.name) for node in self.graph)}

    def name(self, wanted: str) -> str:
        name = f"{self.prefix}_{wanted}"
        while name in self.taken:
            self.numbers[wanted] = self.numbers.get(wanted, -1) + 1
            name = f"{self.prefix}_{wanted}_{self.numbers[wanted]}"
        self.taken.add(name)
        return name

    def several(self, operator: str, *inputs: ir.Value | None, count: int, **attributes: int | float) -> list[ir.Value]:
        node = ir.node(
            operator, inputs=inputs, attributes=attributes, num_outputs=count, name=self.name(operator.lower())
        )  # fmt: skip
        for output in node.outputs:
            output.name = self.name(f"{operator.lower()}_value")
            output.type = ir.TensorType(ir.DataType.FLOAT)
        self.layer.node.prepend(node)
        self.nodes.append(str(node.name))
        return list(node.outputs)

    def add(self, operator: str, *inputs: ir.Value | None, **attributes: int | float) -> ir.Value:
        return self.several(operator, *inputs, count=1, **attributes)[0]

    def constant(self, array: npt.NDArray[np.generic], wanted: str) -> ir.Value:
        value = add_constant(self.graph, self.name(wanted), np.array(array, order="C"))
        self.taken.add(str(value.name))
        return value

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        key = tuple(numbers)
        if key not in self.known:
            self.known[key] = self.constant(np.array(numbers, np.int64), "integers")
        return self.known[key]

    def joined(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        return values[0] if len(values) == 1 else self.add("Concat", *values, axis=axis)

    def split(self, value: ir.Value, sizes: Sequence[int], axis: int = 2) -> list[ir.Value]:
        if len(sizes) == 1:
            return [value]
        parts = self.several("Split", value, self.integers(sizes), count=len(sizes), axis=axis)
        # ONNX's own inference leaves long lists of sizes out, as it does weights.
        for part, size in zip(parts, sizes, strict=True):
            part.shape = _with(value.shape, axis, size)
        return parts

    def activated(self, value: ir.Value, activation: Activation) -> ir.Value:
        if self.layer.clip:
            bounds = [
                self.constant(np.array(bound, np.float32), "bound") for bound in (-self.layer.clip, self.layer.clip)
            ]
            value = self.add("Clip", value, *bounds)
        return self.add(activation.operator, value, **dict(activation.attributes))

    def matrix(self, input_number: int, direction: int, array: npt.NDArray[np.float32], wanted: str) -> ir.Value:
        """Add weights with their axes swapped, and note which initializer they come from."""
        source = self.layer.node.inputs[input_number]
        made = self.constant(array.T, wanted)
        parts = list(self.weights.get(str(source.name) if source is not None else "", ()))
        parts += [()] * (direction + 1 - len(parts))
        parts[direction] = (*parts[direction], str(made.name))
        self.weights[str(source.name) if source is not None else ""] = tuple(parts)
        return made

    def bias(self, numbers: npt.NDArray[np.float32]) -> ir.Value | None:
        return self.constant(numbers, "bias") if numbers.any() else None

    def product(self, value: ir.Value, weights: ir.Value, bias: ir.Value | None) -> ir.Value:
        product = self.add("MatMul", value, weights)
        product.shape = None if weights.shape is None else _with(value.shape, 2, weights.shape[1])
        if bias is None:
            return product
        total = self.add("Add", product, bias)
        total.shape = product.shape
        return total

    def initial(self, state: int, direction: int) -> ir.Value | None:
        value = self.layer.states[state]
        if value is None or len(self.layer.directions) == 1:
            return value
        return self.split(value, [1, 1], axis=0)[direction]


def _with(shape: ir.Shape | None, axis: int, size: int | ir.SymbolicDim) -> ir.Shape | None:
    """Return a shape with another extent of an axis."""
    if shape is None or shape.rank() <= axis:
        return None
    return ir.Shape([size if number == axis else extent for number, extent in enumerate(shape)])


def _direction(builder: _Builder, direction: Direction, number: int) -> _Ends:
    layer = builder.layer
    assert layer.steps is not None
    step = _STEPS[layer.operator](builder, direction, number)
    sequences = layer.node.inputs[0]
    assert sequences is not None
    weights = builder.matrix(1, number, direction.weights, "weights")
    inputs = builder.product(sequences, weights, builder.bias(step.input_bias))
    parts = builder.split(inputs, [1] * layer.steps, axis=0)
    state = builder.initial(0, number)
    cells = builder.initial(1, number) if layer.operator == "LSTM" else None
    outputs = []
    for part in reversed(parts) if direction.reverse else parts:
        state, cells = step.run(part, state, cells)
        outputs.append(state)
    assert state is not None
    return _Ends(outputs=outputs[::-1] if direction.reverse else outputs, state=state, cells=cells)


Step = Callable[[ir.Value, ir.Value | None, ir.Value | None], tuple[ir.Value, ir.Value | None]]
"""(what comes from the input, state, cells) -> (new state, new cells); None for a state of zeros."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Steps:
    """How a direction steps, and which biases the product of the whole sequence adds."""

    input_bias: npt.NDArray[np.float32]
    run: Step


def _rnn(builder: _Builder, direction: Direction, number: int) -> _Steps:
    """`H = f(X W + H R + b)`."""
    recurrence = builder.matrix(2, number, direction.recurrence, "recurrence")

    def run(part: ir.Value, state: ir.Value | None, cells: ir.Value | None) -> tuple[ir.Value, None]:
        total = part if state is None else builder.add("Add", part, builder.add("MatMul", state, recurrence))
        return builder.activated(total, direction.activations[0]), None

    return _Steps(input_bias=direction.input_bias + direction.recurrence_bias, run=run)


def _lstm(builder: _Builder, direction: Direction, number: int) -> _Steps:
    """`C = f C + i c`, `H = o h(C)`; the gates i, o, f of one sigmoid where no peephole tells them apart."""
    layer, hidden = builder.layer, builder.layer.hidden
    recurrence = builder.matrix(2, number, direction.recurrence, "recurrence")
    gate, candidate, squash = direction.activations
    peepholes = None
    if direction.peepholes is not None:
        peepholes = [builder.constant(row, "peephole") for row in direction.peepholes]

    def looking(value: ir.Value, cells: ir.Value | None, row: int) -> ir.Value:
        if peepholes is None or cells is None:
            return value
        return builder.add("Add", value, builder.add("Mul", cells, peepholes[row]))

    def run(part: ir.Value, state: ir.Value | None, cells: ir.Value | None) -> tuple[ir.Value, ir.Value]:
        total = part if state is None else builder.add("Add", part, builder.add("MatMul", state, recurrence))
        if peepholes is None:
            gates, new = builder.split(total, [3 * hidden, hidden])
            update, out, forget = builder.split(builder.activated(gates, gate), [hidden] * 3)
        else:
            first, out, third, new = builder.split(total, [hidden] * 4)
            update = builder.activated(looking(first, cells, 0), gate)
            forget = builder.activated(looking(third, cells, 2), gate)
        added = builder.add("Mul", update, builder.activated(new, candidate))
        if cells is not None:
            if layer.coupled:
                forget = builder.add("Sub", builder.constant(np.ones(1, np.float32), "one"), update)
            added = builder.add("Add", builder.add("Mul", forget, cells), added)
        if peepholes is not None:
            out = builder.activated(looking(out, added, 1), gate)
        # ONNX clips what goes into every activation function but this one.
        squashed = builder.add(squash.operator, added, **dict(squash.attributes))
        return builder.add("Mul", out, squashed), added

    return _Steps(input_bias=direction.input_bias + direction.recurrence_bias, run=run)


def _gru(builder: _Builder, direction: Direction, number: int) -> _Steps:
    """`H = h + z (H - h)`: `h` sees the state times the reset gate, before or behind the product."""
    hidden, late = builder.layer.hidden, builder.layer.reset_late
    gate, candidate = direction.activations
    early = 2 * hidden  # the update and the reset gate
    bias = direction.recurrence_bias
    if late:
        recurrence = [builder.matrix(2, number, direction.recurrence, "recurrence")]
        input_bias = direction.input_bias + np.concatenate([bias[:early], np.zeros(hidden, np.float32)])
        hidden_bias = np.concatenate([np.zeros(early, np.float32), bias[early:]])
    else:
        parts = (direction.recurrence[:early], direction.recurrence[early:])
        recurrence = [builder.matrix(2, number, part, "recurrence") for part in parts]
        input_bias, hidden_bias = direction.input_bias + bias, np.zeros(3 * hidden, np.float32)
    state_bias, first_bias = builder.bias(hidden_bias), builder.bias(hidden_bias[early:])

    def run(part: ir.Value, state: ir.Value | None, cells: ir.Value | None) -> tuple[ir.Value, None]:
        gates, new = builder.split(part, [early, hidden])
        seen = None
        if state is not None:
            if late:
                product = builder.product(state, recurrence[0], state_bias)
                seen_gates, seen = builder.split(product, [early, hidden])
            else:
                seen_gates = builder.add("MatMul", state, recurrence[0])
            gates = builder.add("Add", gates, seen_gates)
        update, reset = builder.split(builder.activated(gates, gate), [hidden] * 2)
        if late:
            seen = first_bias if state is None else seen
            seen = None if seen is None else builder.add("Mul", reset, seen)
        elif state is not None:
            seen = builder.add("MatMul", builder.add("Mul", reset, state), recurrence[1])
        new = builder.activated(new if seen is None else builder.add("Add", new, seen), candidate)
        if state is None:
            return builder.add("Sub", new, builder.add("Mul", update, new)), None
        return builder.add("Add", new, builder.add("Mul", update, builder.add("Sub", state, new))), None

    return _Steps(input_bias=input_bias, run=run)


_STEPS: dict[str, Callable[[_Builder, Direction, int], _Steps]] = {"RNN": _rnn, "LSTM": _lstm, "GRU": _gru}
