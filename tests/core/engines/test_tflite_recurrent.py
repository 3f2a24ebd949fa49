"""The integer LSTM against LiteRT's kernels, integer for integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.tflite_recurrent import Gate, IntegerLstm, Weights, cell_encoding, run
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.errors import PlanError
from tests.importers.tflite_networks import Op, T, constant, packed

BATCH, TIME = 2, 7
GATES = ("update", "forget", "candidate", "out")  # in the order of TensorFlow Lite's inputs


def encoding(kind: str, scale: float, zero_point: int = 0) -> Encoding:
    return Encoding(
        type=integer_type(kind), granularity=PerTensor(), scale=np.float32(scale), zero_point=np.int32(zero_point)
    )


def random_layer(
    seed: int,
    *,
    scales: str,
    cell_exponent: int = -12,
    input_gate: bool = True,
    peepholes: bool = False,
    cell_clip: float = 0.0,
    sizes: tuple[int, int] = (5, 6),
) -> IntegerLstm:
    """A layer whose sums meet ties ("tie"), many scales ("random"), or saturation ("large")."""
    rng = np.random.default_rng(seed)
    inputs, hidden = sizes

    def scale(low: int, high: int) -> np.float32:
        exponent = rng.integers(low, high)
        return np.float32(2.0**exponent if scales == "tie" else 2.0**exponent * rng.uniform(1, 2))

    def gate(*, peephole: bool = peepholes) -> Gate:
        high = 3 if scales == "large" else -4
        return Gate(
            input=Weights(levels=rng.integers(-127, 128, (hidden, inputs)).astype(np.int8), scale=scale(-9, high)),
            recurrence=Weights(levels=rng.integers(-127, 128, (hidden, hidden)).astype(np.int8), scale=scale(-9, high)),
            bias=rng.integers(-3000, 3000, hidden).astype(np.int32),
            peephole=Weights(levels=rng.integers(-32767, 32768, hidden).astype(np.int16), scale=scale(-16, -13))
            if peephole
            else None,
        )

    return IntegerLstm(
        input=encoding("int8", float(scale(-9, -5)), int(rng.integers(-128, 128))),
        output=encoding("int8", float(scale(-8, -6)), int(rng.integers(-20, 20))),
        cell=encoding("int16", 2.0**cell_exponent), cell_clip=cell_clip,
        forget=gate(), candidate=gate(peephole=False), out=gate(), update=gate() if input_gate else None,
    )  # fmt: skip


def one_scale(encoding: Encoding) -> dict[str, Any]:
    return {"scale": [float(encoding.scale)], "zero_point": [int(encoding.zero_point)]}


def written(layer: IntegerLstm, time: int = TIME) -> bytes:
    """The layer as a .tflite file whose output is the LSTM's."""
    from ai_edge_litert import schema_py_generated as schema

    gates = [getattr(layer, name) for name in GATES]
    weights = [*[gate and gate.input for gate in gates], *[gate and gate.recurrence for gate in gates]]
    weights += [gate and gate.peephole for gate in (layer.update, layer.forget, layer.out)]
    inputs: list[T | None] = [
        T(shape=(BATCH, time, layer.forget.input.levels.shape[1]), type="INT8", **one_scale(layer.input))
    ]
    inputs += [one and constant(one.levels, scale=[float(one.scale)]) for one in weights]
    inputs += [gate and constant(gate.bias) for gate in gates]
    state, cells = (BATCH, layer.hidden_size), (BATCH, layer.hidden_size)
    inputs += [
        None,
        None,
        T(shape=state, type="INT8", variable=True, **one_scale(layer.output)),
        T(shape=cells, type="INT16", variable=True, name="cells", **one_scale(layer.cell)),
    ]
    inputs += [None] * 4
    tensors = [tensor for tensor in inputs if tensor is not None]
    numbers = iter(range(len(tensors)))
    read = [-1 if tensor is None else next(numbers) for tensor in inputs]
    output, first = len(tensors), len(tensors) + 1
    tensors.append(T(shape=(BATCH, time, layer.hidden_size), type="INT8", **one_scale(layer.output)))
    tensors += [T(shape=(0,)) for _ in range(4)]
    tensors.append(T(shape=(0,), type="INT8", **one_scale(layer.output)))
    options = {"fusedActivationFunction": 4, "cellClip": layer.cell_clip, "projClip": 0.0, "timeMajor": False}
    operator = Op(name="UNIDIRECTIONAL_SEQUENCE_LSTM", inputs=read, outputs=[output], options=options)
    model = schema.ModelT.InitFromPackedBuf(packed(tensors, [operator], [0], [output]))
    model.subgraphs[0].operators[0].intermediates = list(range(first, first + 5))
    return packed_again(model)


def packed_again(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def in_litert(content: bytes, levels: np.ndarray, resolver: str) -> tuple[np.ndarray, np.ndarray]:
    """Run a file on levels; return its output and the cells after the last step."""
    interpreter_module = pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT is the reference")
    kind = getattr(interpreter_module.OpResolverType, resolver)
    interpreter = interpreter_module.Interpreter(
        model_content=content, num_threads=1, experimental_op_resolver_type=kind
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], levels)
    interpreter.invoke()
    (cells,) = [one["index"] for one in interpreter.get_tensor_details() if one["name"] == "cells"]
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), interpreter.get_tensor(cells)


def compare(layer: IntegerLstm, seed: int, resolver: str = "BUILTIN_REF") -> None:
    levels = np.random.default_rng(seed).integers(-128, 128, (BATCH, TIME, layer.forget.input.levels.shape[1]))
    expected, cells = in_litert(written(layer), levels.astype(np.int8), resolver)
    found, found_cells = run(layer, levels.astype(np.int8))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found_cells[:, -1], cells)


RESOLVERS = ["AUTO", "BUILTIN_REF", "BUILTIN_WITHOUT_DEFAULT_DELEGATES"]


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("scales", ["random", "tie", "large"])
def test_the_kernels_levels(scales: str, resolver: str) -> None:
    for seed in range(8):
        compare(random_layer(seed, scales=scales, sizes=(17, 19) if seed % 2 else (5, 6)), seed, resolver)


@pytest.mark.parametrize("cell_exponent", range(-15, -8))
def test_every_scale_of_the_cells(cell_exponent: int) -> None:
    compare(random_layer(3, scales="random", cell_exponent=cell_exponent), 4)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    scales=st.sampled_from(["random", "tie", "large"]),
    cell_exponent=st.integers(-15, -9),
    input_gate=st.booleans(),
    cell_clip=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_variants(seed: int, scales: str, cell_exponent: int, input_gate: bool, cell_clip: float) -> None:
    layer = random_layer(seed, scales=scales, cell_exponent=cell_exponent, input_gate=input_gate, cell_clip=cell_clip)
    compare(layer, seed)


@pytest.mark.parametrize("scales", ["random", "tie"])
@pytest.mark.parametrize("input_gate", [True, False])
def test_peepholes(input_gate: bool, scales: str) -> None:
    for seed in range(4):
        compare(random_layer(seed, scales=scales, peepholes=True, input_gate=input_gate), seed)


def test_the_last_step_comes_first_in_reverse() -> None:
    layer = random_layer(0, scales="random")
    levels = np.random.default_rng(1).integers(-128, 128, (BATCH, TIME, 5)).astype(np.int8)
    backward, _ = run(layer, levels, reverse=True)
    forward, _ = run(layer, levels[:, ::-1])
    np.testing.assert_array_equal(backward, forward[:, ::-1])


@pytest.mark.parametrize(
    ("greatest", "scale"), [(0.0, 2.0**-15), (0.9, 2.0**-15), (1.0, 2.0**-15), (7.9, 2.0**-12), (1e6, 2.0**-9)]
)
def test_cells_get_a_power_of_two(greatest: float, scale: float) -> None:
    assert cell_encoding(greatest).scale == np.float32(scale)


def test_encodings_that_the_kernel_cannot_have() -> None:
    with pytest.raises(PlanError, match=r"cells as int16.*power of two.*got int16.*0\.001"):
        IntegerLstm(**_fields(random_layer(0, scales="tie")) | {"cell": encoding("int16", 0.001)})
    with pytest.raises(PlanError, match="input as int8 with one scale, got uint8"):
        IntegerLstm(**_fields(random_layer(0, scales="tie")) | {"input": encoding("uint8", 0.001)})
    layer = random_layer(0, scales="tie", peepholes=True)
    with pytest.raises(PlanError, match="no peepholes"):
        IntegerLstm(**_fields(layer) | {"candidate": layer.forget})


def _fields(layer: IntegerLstm) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in IntegerLstm.__slots__}
