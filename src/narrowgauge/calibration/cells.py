"""What the cells of LSTMs reach: no value of an ONNX network holds them step by step, so they are computed from others.

With the states that go out, the gates of all steps are known at once; only the cells themselves are added up in turn.
A kernel that keeps cells in 16 bits (TensorFlow Lite's) needs their range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.engines.tflite_recurrent import cell_encoding
from narrowgauge.graph.edits import unique_name
from narrowgauge.graph.engine import open_session
from narrowgauge.graph.recurrent import CELL_SCALE, Direction, Recurrent, is_recurrent, recurrent_layer

Array = npt.NDArray[np.float32]

_USUAL = ("Sigmoid", "Tanh", "Tanh")


def cell_magnitudes(
    model: ir.Model, feeds: Iterable[Mapping[str, Array]], *, threads: int | None = None
) -> dict[str, float]:
    """Return the greatest magnitude that the cells of each LSTM have on some samples, by the node's name.

    Args:
        model: the float network; it is not changed.
        feeds: inputs of runs.
        threads: of the engine; None for the cores that this process may use.

    Returns:
        Real units. LSTMs with other activation functions than the usual ones, with clipped or coupled gates or with a
        state that is given are left out: no kernel keeps their cells in 16 bits.
    """
    copy = model.clone()
    layers = [layer for layer in map(_readable, copy.graph) if layer is not None]
    if not layers:
        return {}
    read = [layer.node.inputs[0] for layer in layers]
    states = [layer.node.outputs[0] for layer in layers]
    for layer, state in zip(layers, states, strict=True):
        state.name = state.name or unique_name(copy.graph, f"{layer.node.name}_states")
        state.type = ir.TensorType(ir.DataType.FLOAT)
    wanted = [value for value in dict.fromkeys([*read, *states]) if value is not None and not value.is_graph_input()]
    copy.graph.outputs[:] = wanted
    names = [str(value.name) for value in wanted]
    session = open_session(copy, threads=threads)
    found = {str(layer.node.name): 0.0 for layer in layers}
    for feed in feeds:
        values = {**feed, **dict(zip(names, session.run(names, dict(feed)), strict=True))}
        for layer, sequences, state in zip(layers, read, states, strict=True):
            assert sequences is not None
            reached = _reached(layer, values[str(sequences.name)], values[str(state.name)])
            name = str(layer.node.name)
            found[name] = max(found[name], reached)
    return found


def keep_cells(model: ir.Model, magnitudes: Mapping[str, float]) -> None:
    """Note in the metadata of LSTMs, in place, the scale at which their cells are kept in 16 bits."""
    for node in model.graph:
        if str(node.name) in magnitudes:
            node.metadata_props[CELL_SCALE] = repr(float(cell_encoding(magnitudes[str(node.name)]).scale))


def _readable(node: ir.Node) -> Recurrent | None:
    layer = recurrent_layer(node) if is_recurrent(node) else None
    if not isinstance(layer, Recurrent) or layer.operator != "LSTM" or layer.clip or layer.coupled:
        return None
    if any(state is not None for state in layer.states):
        return None
    usual = all(tuple(one.operator for one in each.activations) == _USUAL for each in layer.directions)
    return layer if usual else None


def _reached(layer: Recurrent, sequences: Array, states: Array) -> float:
    """Return the greatest magnitude of the cells; sequences [steps, batch, inputs], states [steps, directions, ...]."""
    ends = (
        _cells(direction, sequences, states[:, number]) for number, direction in enumerate(layer.directions)
    )  # fmt: skip
    return max(float(np.abs(cells).max(initial=0.0)) for cells in ends)


def _cells(direction: Direction, sequences: Array, states: Array) -> Array:
    """Compute the cells of one direction after every step, [steps, batch, hidden], in its own order of steps."""
    if direction.reverse:
        sequences, states = sequences[::-1], states[::-1]
    before = np.concatenate([np.zeros_like(states[:1]), states[:-1]])
    total = sequences @ direction.weights.T + before @ direction.recurrence.T
    total = total + direction.input_bias + direction.recurrence_bias
    update, _, forget, candidate = np.split(total, 4, axis=-1)
    peepholes = np.zeros((3, states.shape[-1]), np.float32) if direction.peepholes is None else direction.peepholes
    added, cells = np.tanh(candidate), np.zeros_like(states)
    held = np.zeros_like(states[0]) if len(states) else np.zeros(0, np.float32)
    for step in range(len(states)):
        kept = _sigmoid(forget[step] + peepholes[2] * held) * held
        held = kept + _sigmoid(update[step] + peepholes[0] * held) * added[step]
        cells[step] = held
    return cells


def _sigmoid(values: Array) -> Array:
    found: Array = 0.5 * (1.0 + np.tanh(0.5 * values))
    return found
