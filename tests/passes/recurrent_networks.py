"""Networks of one LSTM, GRU or RNN, and plans that round it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import AnyEncoding, DynamicEncoding, Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.graph.engine import open_session
from narrowgauge.graph.recurrent import GATES
from narrowgauge.graph.shapes import infer_shapes

STEPS, BATCH, INPUTS, HIDDEN = 4, 2, 3, 5


def recurrent(
    operator: str,
    *,
    direction: str = "forward",
    states: bool = False,
    peepholes: bool = False,
    bias: bool = True,
    steps: Any = STEPS,
    batch: Any = BATCH,
    hidden: int = HIDDEN,
    inputs: int = INPUTS,
    outputs: tuple[int, ...] = (0, 1, 2),
    seed: int = 0,
    **attributes: Any,
) -> ir.Model:
    """A network of one layer; its inputs are `x` and the initial states, its outputs those of the layer."""
    rng, count = np.random.default_rng(seed), 2 if direction == "bidirectional" else 1
    gates = GATES[operator] * hidden
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="main")

    def fed(name: str, shape: tuple[Any, ...]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        graph.inputs.append(value)
        return value

    def weights(name: str, *shape: int) -> ir.Value:
        tensor = ir.tensor((rng.normal(size=shape) / 2).astype(np.float32), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape))
        graph.register_initializer(value)
        return value

    read: list[ir.Value | None] = [
        fed("x", (steps, batch, inputs)), weights("W", count, gates, inputs), weights("R", count, gates, hidden),
        weights("B", count, 2 * gates) if bias else None, None, None, None, None,
    ]  # fmt: skip
    if states:
        read[5] = fed("h", (count, batch, hidden))
        read[6] = fed("c", (count, batch, hidden)) if operator == "LSTM" else None
    if peepholes:
        read[7] = weights("P", count, 3 * hidden)
    names = ["Y", "Y_h", "Y_c"] if operator == "LSTM" else ["Y", "Y_h"]
    node = ir.node(
        operator, inputs=read[: 8 if operator == "LSTM" else 6], num_outputs=len(names), name="layer",
        attributes={"hidden_size": hidden, "direction": direction, **attributes},
    )  # fmt: skip
    shapes = [(steps, count, batch, hidden), (count, batch, hidden), (count, batch, hidden)]
    for number, (output, name, shape) in enumerate(zip(node.outputs, names, shapes, strict=False)):
        output.name, output.type, output.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        if number in outputs:
            graph.outputs.append(output)
    graph.append(node)
    model = ir.Model(graph, ir_version=10)
    infer_shapes(model)
    return model


def plan_of(model: ir.Model, mode: str, *, per_channel: bool = False) -> Plan:
    """Weights of 8 bits, and activations rounded at run time or not at all."""
    encodings: dict[str, AnyEncoding] = {}
    for name in ("W", "R"):
        array = model.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
        reach = np.abs(array).max(axis=(0, 2)) if per_channel else np.abs(array).max()
        granularity = PerAxis(1) if per_channel else PerTensor()
        encodings[name] = encoding_from_range(-reach, reach, integer_type("int8_narrow"), granularity, symmetric=True)
    if mode == "dynamic":
        encodings["x"] = DynamicEncoding(type=integer_type("int8"))
    return Plan(target="tflite", mode=mode, encodings=encodings)  # type: ignore[arg-type]


def in_integers(model: ir.Model, *, same: bool = True) -> Plan:
    """Everything on levels of 8 bits."""
    plan = plan_of(model, "static")
    rng = np.random.default_rng(0)
    shapes = {
        str(value.name): [one if isinstance(one, int) else 1 for one in value.shape or ()]
        for value in model.graph.inputs
    }
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    names = [str(value.name) for value in model.graph.outputs]
    results = dict(zip(names, open_session(model, threads=1).run(names, feed), strict=True))
    encodings: dict[str, AnyEncoding] = {**plan.encodings, "x": spanning(feed["x"])}
    for name, array in results.items():
        encodings[name] = spanning(next(iter(results.values())) if same else array)
    return Plan(target="tflite", encodings=encodings)


def spanning(array: np.ndarray) -> Encoding:
    return encoding_from_range(float(array.min()), float(array.max()), integer_type("int8"), PerTensor())
