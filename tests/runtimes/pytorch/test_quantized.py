"""PyTorch's engines run Q/DQ networks in their integer kernels, and give the levels of our integer networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.granularity import PerAxis
from narrowgauge.errors import RuntimeFailure
from narrowgauge.runtimes.engines import open_program
from narrowgauge.runtimes.pytorch import quantized
from narrowgauge.runtimes.pytorch.kernels import Engine
from tests.core.engines.torch_engines import vnni
from tests.lowering.integer.networks import encoding, levels_of, lowered, simulated

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")

ENGINES: list[Engine] = ["fbgemm", "qnnpack", "onednn", "x86"]
Array = np.ndarray
node = helper.make_node


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(*shape: int, axis: int | None = 0) -> tuple[Array, Encoding]:
    """Random weights and their encoding, one scale a channel or one."""
    array = normal(*shape, seed=sum(shape))
    if axis is None:
        return array, encoding("int8", np.abs(array).max() / 127)
    rest = tuple(place for place in range(array.ndim) if place != axis)
    return array, encoding("int8", np.abs(array).max(axis=rest) / 127)


def check(
    qdq: ir.Model, feed: Mapping[str, Array], engine: Engine, *, float_operators: Sequence[str] = (), least: int = 1
) -> dict[str, Array]:
    """Run a network in PyTorch and as ours in integers; all levels that both have are equal."""
    if engine == "x86" and not vnni():
        pytest.skip("the rule of a processor with VNNI")
    inner = quantized.open_inner(qdq, engine=engine, threads=1)
    assert [note.partition(" ")[0] for note in inner.notes] == list(float_operators)
    found = inner.run(feed)
    assert tuple(found) == inner.names
    ours = levels_of(lowered(qdq, KERNELS[engine]).model, feed)
    shared = [name for name in found if f"{name}_quantized" in ours]
    assert len(shared) >= least
    for name in shared:
        np.testing.assert_array_equal(found[name], ours[f"{name}_quantized"], name)
    program = quantized.open_program(qdq, engine=engine, threads=1)
    results = program.run(feed)
    assert tuple(results) == program.outputs
    return results


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((2, 6, 11), (8, 6, 3), {"strides": [2], "pads": [1, 1]}),
    "2-D": ((2, 6, 9, 7), (8, 6, 3, 3), {"strides": [2, 1], "pads": [1, 0, 1, 0]}),
    "3-D": ((1, 4, 5, 4, 6), (8, 4, 2, 3, 2), {}),
    "padded on one side": ((2, 6, 9, 7), (8, 6, 3, 3), {"pads": [0, 1, 2, 0]}),
    "same, upper": ((2, 6, 9, 8), (8, 6, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same, lower": ((2, 6, 9, 8), (8, 6, 2, 4), {"auto_pad": "SAME_LOWER"}),
    "valid": ((2, 6, 9, 8), (8, 6, 2, 4), {"auto_pad": "VALID"}),
    "holes": ((2, 6, 9, 9), (8, 6, 3, 3), {"dilations": [2, 3]}),
    "groups": ((2, 8, 6, 6), (12, 4, 3, 3), {"group": 2}),
    "depthwise": ((2, 8, 6, 6), (8, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}),
    "depthwise, more channels": ((2, 8, 6, 6), (16, 1, 3, 3), {"group": 8}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_convolutions(engine: Engine, name: str) -> None:
    shape, window, attributes = CONVOLUTIONS[name]
    array, held = weights(*window)
    encodings = {"x": encoding("uint7", 0.05, 60), "w": held, "y": encoding("uint7", 0.2, 11)}
    constants = {"w": array, "b": normal(window[0], seed=3)}
    free = ["n", *shape[1:]]
    qdq = simulated([node("Conv", ["x", "w", "b"], ["y"], **attributes)], {"x": free}, encodings, constants)
    check(qdq, {"x": normal(*shape, seed=1)}, engine)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("per_channel", [True, False], ids=["channel", "tensor"])
@pytest.mark.parametrize("engine", ENGINES)
def test_layers_with_an_activation_function_behind(engine: Engine, *, per_channel: bool, bias: bool) -> None:
    array, held = weights(8, 6, 3, 3, axis=0 if per_channel else None)
    encodings = {"x": encoding("uint8", 0.05, 60), "w": held, "y": encoding("uint8", 0.05, 11)}
    nodes = [node("Conv", ["x", "w", "b"] if bias else ["x", "w"], ["c"]), node("Clip", ["c", "low", "high"], ["y"])]
    constants = {"w": array, "b": normal(8, seed=3), "low": np.float32(0), "high": np.float32(6)}
    qdq = simulated(nodes, {"x": ["n", 6, 9, 9]}, encodings, constants)
    check(qdq, {"x": normal(3, 6, 9, 9, seed=1)}, engine)


PRODUCTS: dict[str, tuple[list[onnx.NodeProto], tuple[int, ...], int]] = {
    "Gemm": ([node("Gemm", ["x", "w", "b"], ["y"])], (16, 10), 1),
    "Gemm, turned": ([node("Gemm", ["x", "w", "b"], ["y"], transB=1)], (10, 16), 0),
    "Gemm without bias": ([node("Gemm", ["x", "w"], ["y"])], (16, 10), 1),
    "MatMul": ([node("MatMul", ["x", "w"], ["y"])], (16, 10), 1),
    "MatMul and Add": ([node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"])], (16, 10), 1),
    "Add and MatMul": ([node("MatMul", ["x", "w"], ["m"]), node("Add", ["b", "m"], ["y"])], (16, 10), 1),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_matrix_products(engine: Engine, name: str) -> None:
    nodes, window, axis = PRODUCTS[name]
    array, held = weights(*window, axis=axis)
    held = replace(held, granularity=PerAxis(axis))
    encodings = {"x": encoding("uint8", 0.05, 60), "w": held, "y": encoding("uint8", 0.1, 111)}
    constants = {"w": array, "b": normal(10, seed=3)}
    shape = ["n", 16] if name.startswith("Gemm") else ["n", 3, 16]
    qdq = simulated(nodes, {"x": shape}, encodings, constants)
    check(qdq, {"x": normal(*(4 if size == "n" else size for size in shape), seed=1)}, engine)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack", "onednn"])
def test_transposed_convolutions(engine: Engine, padding: int) -> None:
    array, held = weights(6, 6, 3, 3, axis=None)
    encodings = {"x": encoding("uint8", 0.05, 60), "w": held, "y": encoding("uint8", 0.2, 111)}
    attributes = {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [padding, 0]}
    qdq = simulated(
        [node("ConvTranspose", ["x", "w", "b"], ["y"], **attributes)], {"x": ["n", 6, 5, 7]}, encodings,
        {"w": array, "b": normal(6, seed=3)},
    )  # fmt: skip
    lacks = engine == "onednn" and padding > 0
    check(qdq, {"x": normal(2, 6, 5, 7, seed=1)}, engine, float_operators=["ConvTranspose"] if lacks else [])


@pytest.mark.parametrize("engine", ENGINES)
def test_transposed_convolutions_that_pytorch_computes_wrong_stay_float(engine: Engine) -> None:
    """With oneDNN those of unequal channels, with QNNPACK those of three dimensions: measured on 2.13."""
    for window in ((6, 4, 3, 3), (6, 6, 2, 2, 2)):
        array, held = weights(*window, axis=None)
        encodings = {"x": encoding("uint8", 0.05, 60), "w": held, "y": encoding("uint8", 0.2, 111)}
        shape = ["n", 6, *(4 for _ in window[2:])]
        qdq = simulated([node("ConvTranspose", ["x", "w"], ["y"])], {"x": shape}, encodings, {"w": array})
        inner = quantized.open_inner(qdq, engine=engine, threads=1)
        wrong = (engine in ("onednn", "x86") and len(window) == 4) or (engine == "qnnpack" and len(window) == 5)
        assert any("wrong numbers" in note for note in inner.notes) == wrong
        feed = {"x": normal(2, 6, *(4 for _ in window[2:]), seed=1)}
        real = open_onnx(qdq, feed)
        found = quantized.open_program(qdq, engine=engine, threads=1).run(feed)["y"]
        assert np.abs(found - real).max() <= 0.2 * 1.01


def open_onnx(qdq: ir.Model, feed: Mapping[str, Array]) -> Array:
    from narrowgauge.graph.engine import open_session

    return open_session(qdq, threads=1, simulate=True).run(None, dict(feed))[0]


X, Z, Y = encoding("uint8", 0.05, 60), encoding("uint8", 0.03, 99), encoding("uint8", 0.08, 111)
ONE = {"x": ["n", 64, 4, 4]}
TWO = {"x": ["n", 64, 4, 4], "z": ["n", 64, 4, 4]}
OPERATORS: dict[str, tuple[list[onnx.NodeProto], Mapping[str, Sequence[int | str]], Mapping[str, Encoding]]] = {
    "Add": ([node("Add", ["x", "z"], ["y"])], TWO, {"x": X, "z": Z, "y": Y}),
    "Add and Relu": ([node("Add", ["x", "z"], ["a"]), node("Relu", ["a"], ["y"])], TWO, {"x": X, "z": Z, "y": Y}),
    "Add of itself": ([node("Add", ["x", "x"], ["y"])], ONE, {"x": X, "y": Y}),
    "Add, broadcast": (
        [node("Add", ["x", "z"], ["y"])], {"x": ONE["x"], "z": ["n", 64, 1, 1]}, {"x": X, "z": Z, "y": Y},
    ),
    "Mul": ([node("Mul", ["x", "z"], ["y"])], TWO, {"x": X, "z": Z, "y": Y}),
    "Mul, broadcast": ([node("Mul", ["x", "z"], ["y"])], {"x": ONE["x"], "z": [64, 1, 1]}, {"x": X, "z": Z, "y": Y}),
    "Sigmoid": ([node("Sigmoid", ["x"], ["y"])], ONE, {"x": X, "y": encoding("uint8", 1 / 256, 0)}),
    "Tanh": ([node("Tanh", ["x"], ["y"])], ONE, {"x": X, "y": encoding("uint8", 2 / 256, 128)}),
    "HardSwish": ([node("HardSwish", ["x"], ["y"])], ONE, {"x": X, "y": Y}),
    "LeakyRelu": ([node("LeakyRelu", ["x"], ["y"], alpha=0.1)], ONE, {"x": X, "y": Y}),
    "Elu": ([node("Elu", ["x"], ["y"], alpha=0.5)], ONE, {"x": X, "y": Y}),
    "Relu": ([node("Relu", ["x"], ["y"])], ONE, {"x": X, "y": X}),
    "Concat": ([node("Concat", ["x", "z"], ["y"], axis=1)], TWO, {"x": X, "z": Z, "y": Y}),
    "GlobalAveragePool": ([node("GlobalAveragePool", ["x"], ["y"])], ONE, {"x": X, "y": X}),
    "AveragePool": (
        [node("AveragePool", ["x"], ["y"], kernel_shape=[3, 2], strides=[1, 2], pads=[1, 0, 1, 0],
              count_include_pad=1)], ONE, {"x": X, "y": X},
    ),
    "AveragePool, 1-D": (
        [node("AveragePool", ["x"], ["y"], kernel_shape=[3])], {"x": ["n", 64, 16]}, {"x": X, "y": X},
    ),
    "MaxPool": ([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])], ONE, {"x": X, "y": X}),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_operators(engine: Engine, name: str) -> None:
    nodes, inputs, encodings = OPERATORS[name]
    qdq = simulated(nodes, inputs, encodings)
    feed = {
        key: normal(*(2 if size == "n" else int(size) for size in shape), seed=place) * 3
        for place, (key, shape) in enumerate(inputs.items())
    }
    check(qdq, feed, engine)


@pytest.mark.parametrize("axes", [[2, 3], [-1], [1, 3]])
@pytest.mark.parametrize("keep", [0, 1])
def test_means_over_any_axes(axes: list[int], keep: int) -> None:
    qdq = simulated(
        [node("ReduceMean", ["x", "axes"], ["y"], keepdims=keep)], ONE, {"x": X, "y": X}, {"axes": np.array(axes)}
    )
    feed = {"x": normal(2, 64, 4, 4) * 3}
    found = check(qdq, feed, "fbgemm")["y"]
    assert found.shape == feed["x"].mean(axis=tuple(axes), keepdims=bool(keep)).shape


def test_what_stays_float_is_said_and_the_rest_is_not() -> None:
    """A Softmax, float between levels, and a Transpose that only moves them."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]), node("Softmax", ["t"], ["s"]),
        node("Add", ["s", "s"], ["y"]),
    ]  # fmt: skip
    soft = encoding("uint8", 1 / 256, 0)
    qdq = simulated(nodes, ONE, {"x": X, "t": X, "s": soft, "y": Y})
    inner = quantized.open_inner(qdq, engine="fbgemm", threads=1)
    assert len(inner.notes) == 1
    assert inner.notes[0].startswith("Softmax '")
    assert "computed in float" in inner.notes[0]
    assert inner.names == ("x", "t", "s", "y")
    feed = {"x": normal(2, 64, 4, 4) * 3}
    found = inner.run(feed)
    np.testing.assert_array_equal(found["t"], found["x"].transpose(0, 2, 3, 1))
    exact = np.exp(0.05 * (found["t"].astype(np.float64) - 60))
    near = exact / exact.sum(axis=-1, keepdims=True) * 256
    assert np.abs(found["s"] - np.clip(near, 0, 255)).max() <= 0.51


def test_signed_levels_stay_float_since_the_kernels_take_none() -> None:
    held = encoding("int8", 0.05, 3)
    qdq = simulated([node("Add", ["x", "z"], ["y"])], TWO, {"x": held, "z": held, "y": held})
    feed = {"x": normal(2, 64, 4, 4), "z": normal(2, 64, 4, 4, seed=1)}
    inner = quantized.open_inner(qdq, engine="qnnpack", threads=1)
    assert "uint8" in inner.notes[0]
    found = inner.run(feed)
    assert found["y"].dtype == np.int8
    program = quantized.open_program(qdq, engine="qnnpack", threads=1)
    np.testing.assert_allclose(program.run(feed)["y"], open_onnx(qdq, feed), atol=0.051)


def test_depthwise_products_that_saturate_are_said() -> None:
    array = np.full((8, 1, 3, 3), 1.0, np.float32)
    held = encoding("int8", np.full(8, 1 / 127))

    def notes(kind: str, engine: Engine) -> tuple[str, ...]:
        encodings = {"x": encoding(kind, 0.05, 60), "w": held, "y": encoding("uint8", 0.2, 11)}
        qdq = simulated([node("Conv", ["x", "w"], ["y"], group=8)], {"x": ["n", 8, 6, 6]}, encodings, {"w": array})
        return quantized.open_inner(qdq, engine=engine, threads=1).notes

    assert "saturate" in notes("uint8", "fbgemm")[0]
    assert notes("uint7", "fbgemm") == ()
    assert notes("uint8", "x86") == ()  # up to 100 groups are oneDNN's
    assert notes("uint8", "qnnpack") == ()


def test_a_residual_network_with_shared_weights_and_two_outputs(tmp_path: Path) -> None:
    first, held = weights(8, 8, 3, 3)
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], **same), node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "w", "b"], ["d"], **same), node("Add", ["d", "r"], ["s"]), node("Relu", ["s"], ["t"]),
        node("MaxPool", ["t"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["m"], ["g"]), node("Flatten", ["g"], ["f"]), node("Gemm", ["f", "v", "a"], ["y"]),
    ]  # fmt: skip
    second, other = weights(8, 5, axis=None)
    encodings = {
        "x": encoding("uint7", 0.05, 60), "w": held, "r": encoding("uint7", 0.2, 0), "d": encoding("uint7", 0.4, 64),
        "t": encoding("uint7", 0.3, 0), "m": encoding("uint7", 0.3, 0), "g": encoding("uint7", 0.3, 0),
        "f": encoding("uint7", 0.3, 0), "v": other, "y": encoding("uint7", 0.5, 64),
    }  # fmt: skip
    constants = {"w": first, "b": normal(8, seed=3), "v": second, "a": normal(5, seed=4)}
    qdq = simulated(nodes, {"x": ["n", 8, 8, 8]}, encodings, constants, outputs=["y", "m"])
    feed = {"x": normal(3, 8, 8, 8, seed=1)}
    for engine in ENGINES:
        results = check(qdq, feed, engine, least=6)
        assert results["y"].shape == (3, 5)
        assert results["m"].shape == (3, 8, 4, 4)
    path = tmp_path / "network.onnx"
    ir.save(qdq, path)
    program = open_program(path, runtime="torch-x86", threads=1)
    assert [spec.name for spec in program.inputs] == ["x"]
    np.testing.assert_array_equal(program.run(feed)["y"], results["y"])
    with pytest.raises(RuntimeFailure, match=r"expected the input 'x' .* got nothing"):
        program.run({})
    with pytest.raises(RuntimeFailure, match="got 3 x 8 x 8"):
        program.run({"x": feed["x"][:, 0]})


def test_a_float_network_runs_as_it_is() -> None:
    qdq = simulated([node("Exp", ["x"], ["y"])], {"x": ["n", 3]}, {})
    inner = quantized.open_inner(qdq, engine="fbgemm", threads=1)
    assert inner.names == ()
    found = quantized.open_program(qdq, engine="fbgemm", threads=1).run({"x": np.zeros((2, 3), np.float32)})
    np.testing.assert_array_equal(found["y"], np.ones((2, 3)))


def test_the_engine_of_before_is_put_back() -> None:
    before = torch.backends.quantized.engine
    qdq = simulated([node("Add", ["x", "x"], ["y"])], ONE, {"x": X, "y": Y})
    quantized.open_program(qdq, engine="qnnpack", threads=1).run({"x": normal(1, 64, 4, 4)})
    assert torch.backends.quantized.engine == before


def test_a_processor_that_computes_otherwise_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    qdq = simulated([node("Add", ["x", "x"], ["y"])], ONE, {"x": X, "y": Y})
    assert "without AVX512-VNNI" in quantized.open_inner(qdq, engine="x86", threads=1).notes[0]
    assert quantized.open_inner(qdq, engine="onednn", threads=1).notes == ()


def test_an_engine_that_pytorch_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", property(lambda self: ["none", "onednn"]))
    qdq = simulated([node("Add", ["x", "x"], ["y"])], ONE, {"x": X, "y": Y})
    with pytest.raises(RuntimeFailure, match="one of onednn, got 'fbgemm'"):
        quantized.open_program(qdq, engine="fbgemm")
