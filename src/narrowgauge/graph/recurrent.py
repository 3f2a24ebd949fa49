"""What an LSTM, GRU or RNN node says: weights by direction, states, activation functions, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.errors import ModelError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.refusals import Refusal

FloatArray = npt.NDArray[np.float32]

Read = Callable[[ir.Value | None], npt.NDArray[np.generic] | None]
"""Finds the numbers of a constant, None where it is none."""

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Operator -> how many gates its weights hold, in ONNX's order: LSTM input, output, forget, cell; GRU update, reset,
hidden."""

_DEFAULT_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}

_PARAMETERS: dict[str, tuple[tuple[str, float], ...]] = {
    "Sigmoid": (), "Tanh": (), "Relu": (), "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "LeakyRelu": (("alpha", 0.01),), "Elu": (("alpha", 1.0),), "Softsign": (), "Softplus": (),
}  # fmt: skip
"""Activation function -> its attributes and their defaults; the others of ONNX are no operators."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Activation:
    """An activation function: an ONNX operator and its attributes."""

    operator: str
    attributes: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Direction:
    """One direction of a layer.

    Attributes:
        weights: of the input, shape [gates * hidden, inputs].
        recurrence: of the state, shape [gates * hidden, hidden].
        input_bias: shape [gates * hidden].
        recurrence_bias: the same.
        peepholes: of an LSTM, shape [3, hidden]: input, output, forget; None for none.
        activations: in ONNX's order.
        reverse: from the last step to the first.
    """

    weights: FloatArray
    recurrence: FloatArray
    input_bias: FloatArray
    recurrence_bias: FloatArray
    peepholes: FloatArray | None
    activations: tuple[Activation, ...]
    reverse: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Recurrent:
    """A layer.

    Attributes:
        node: whose record this is.
        hidden: how many numbers a state has.
        directions: one or two.
        steps: length of its sequences; None where it is known only at run time.
        states: initial states, shape [directions, batch, hidden]: of what goes out and, of an LSTM, of the cells;
            None for zeros.
        clip: magnitude that the gates keep to before their activation functions; 0 for none.
        coupled: the forget gate of an LSTM is one minus the input gate.
        reset_late: the reset gate of a GRU is applied behind the product (`linear_before_reset`).
    """

    node: ir.Node
    hidden: int
    directions: tuple[Direction, ...]
    steps: int | None
    states: tuple[ir.Value | None, ...]
    clip: float
    coupled: bool
    reset_late: bool

    @property
    def operator(self) -> str:
        """LSTM, GRU or RNN."""
        return self.node.op_type

    def output(self, number: int) -> ir.Value | None:
        """Return an output that something reads, None for one that nothing does."""
        outputs = self.node.outputs
        value = outputs[number] if number < len(outputs) else None
        return value if value is not None and (value.uses() or value.is_graph_output()) else None


def recurrent_layer(node: ir.Node, read: Read = constant_array) -> Recurrent | Refusal:
    """Read a node that is an LSTM, a GRU or an RNN; a refusal says what of it is not known before run time.

    Args:
        node: the layer.
        read: finds its weights and biases, floating-point arrays.
    """
    try:
        return _layer(node, read)
    except _UnknownError as error:
        return Refusal(node=str(node.name), operator=node.op_type, reason=str(error))


def is_recurrent(node: ir.Node) -> bool:
    """Whether a node is an LSTM, a GRU or an RNN."""
    return is_operator(node, *GATES)


class _UnknownError(Exception):
    """What a record cannot say."""


def _layer(node: ir.Node, read: Read) -> Recurrent:
    attributes, sequences = node.attributes, node.inputs[0]
    if attributes.get_int("layout", 0):
        raise _UnknownError("its batch comes before its steps (layout = 1)")
    shape = None if sequences is None else sequences.shape
    steps = shape[0] if shape is not None and shape.rank() == 3 and isinstance(shape[0], int) else None
    lengths = constant_array(_given(node, 4))
    if _given(node, 4) is not None and (lengths is None or steps is None or (lengths != steps).any()):
        raise _UnknownError("its sequences have lengths of their own")
    weights, recurrence = (_constant(node, number, what, read) for number, what in ((1, "weights"), (2, "recurrence")))
    hidden, gates, count = recurrence.shape[-1], GATES[node.op_type], len(weights)
    wide = gates * hidden
    bias = np.zeros((count, 2 * wide), np.float32) if _given(node, 3) is None else _constant(node, 3, "bias", read)
    peepholes = None if node.op_type != "LSTM" or _given(node, 7) is None else _constant(node, 7, "peepholes", read)
    if weights.shape[:2] != (count, wide) or recurrence.shape[:2] != (count, wide) or bias.shape != (count, 2 * wide):
        raise _UnknownError(f"its weights {weights.shape}, {recurrence.shape} and {bias.shape} do not fit together")
    backward = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    reverse = backward.get(attributes.get_string("direction", "forward") or "", ())
    if len(reverse) != count:
        raise _UnknownError(f"its weights are of {count} directions, it has {len(reverse)}")
    activations = _activations(node, count)
    return Recurrent(
        node=node, hidden=hidden, steps=steps, clip=attributes.get_float("clip", 0.0) or 0.0,
        coupled=bool(attributes.get_int("input_forget", 0)),
        reset_late=bool(attributes.get_int("linear_before_reset", 0)),
        states=tuple(_given(node, number) for number in ((5, 6) if node.op_type == "LSTM" else (5,))),
        directions=tuple(
            Direction(
                weights=weights[number], recurrence=recurrence[number], input_bias=bias[number, :wide],
                recurrence_bias=bias[number, wide:], reverse=backwards, activations=activations[number],
                peepholes=None if peepholes is None else peepholes[number].reshape(3, hidden),
            )
            for number, backwards in enumerate(reverse)
        ),
    )  # fmt: skip


def _activations(node: ir.Node, directions: int) -> list[tuple[Activation, ...]]:
    usual = _DEFAULT_ACTIVATIONS[node.op_type]
    asked = list(node.attributes.get_strings("activations", ()) or usual * directions)
    known = {name.lower(): name for name in _PARAMETERS}
    unknown = [name for name in asked if name.lower() not in known]
    if unknown or len(asked) != len(usual) * directions:
        raise _UnknownError(f"its activation functions are {', '.join(asked)}; known are {', '.join(_PARAMETERS)}")
    numbers = {
        name: iter(node.attributes.get_floats(f"activation_{name}", ())) for name in ("alpha", "beta")
    }  # fmt: skip
    every = [_activation(known[name.lower()], numbers) for name in asked]
    return [tuple(every[start : start + len(usual)]) for start in range(0, len(every), len(usual))]


def _activation(name: str, numbers: dict[str, Iterator[float]]) -> Activation:
    """ONNX hands out alphas and betas in the order of the functions that take them."""
    attributes = tuple((key, float(next(numbers[key], default))) for key, default in _PARAMETERS[name])
    return Activation(operator=name, attributes=attributes)


def _given(node: ir.Node, number: int) -> ir.Value | None:
    return node.inputs[number] if number < len(node.inputs) else None


def _constant(node: ir.Node, number: int, what: str, read: Read) -> FloatArray:
    array = read(_given(node, number))
    if array is None or array.dtype not in (np.float32, np.float64) or array.ndim < 2:
        raise _UnknownError(f"its {what} are no constant of float32")
    return array  # type: ignore[return-value]  # float64 where the reader says so


# --- cells in 16 bits: what an LSTM's node has no attribute for ---

CELL_SCALE = "narrowgauge.cell_scale"
"""Key of a node's metadata: the scale at which an LSTM's cells are kept; a file's own, where it had one."""

CELL_CLIP = "narrowgauge.cell_clip"
"""Key of a node's metadata: magnitude that an LSTM's cells keep to, real units; ONNX's `clip` is another one."""

COUPLED_INPUT = "narrowgauge.coupled_input_gate"
"""Key of a node's metadata: the input gate is one minus the forget gate, whatever its weights."""

_LONGEST = 16
"""Magnitude that cells are taken to keep to where nothing says what they reach."""


def cell_number(node: ir.Node, key: str) -> float | None:
    """Return what the metadata of an LSTM says of its cells, None where it says nothing.

    Raises:
        ModelError: it is no positive number.
    """
    text = node.metadata_props.get(key)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ModelError(f"node {node.name!r}: expected its metadata {key!r} to be a positive number, got {text!r}")
    return number


def cell_magnitude(layer: Recurrent) -> float:
    """Return what an LSTM's cells can reach from a state of zeros: each step adds a product of numbers below 1.

    16 at most: cells beyond that, of longer sequences, saturate where they are kept in 16 bits.
    """
    return float(min(layer.steps or _LONGEST, _LONGEST))
