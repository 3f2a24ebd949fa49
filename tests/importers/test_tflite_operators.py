"""Every row of the operator table against LiteRT: networks of one operator, over the operator's attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ai_edge_litert", reason="LiteRT is the reference")

from narrowgauge.graph.engine import open_session
from narrowgauge.importers.tflite import convert
from narrowgauge.importers.tflite.operators import OPERATORS
from tests.importers.tflite_networks import Op, T, constant, one_operator, packed, run_litert

X = T(shape=(2, 7, 6, 4))
FLAT = T(shape=(3, 5))
INT = T(shape=(2, 3, 4), type="INT32")
WEIGHTS = np.random.default_rng(1).normal(size=(6, 3, 2, 4)).astype(np.float32)
REAL = np.random.default_rng(2).normal(size=(512,)).astype(np.float32)
LOGICAL = T(shape=(2, 3), type="BOOL")


def real(*shape: int) -> T:
    """A constant of that shape."""
    return constant(REAL[: int(np.prod(shape))].reshape(shape))


def shape(*numbers: Any) -> T:
    """A constant of 32-bit integers."""
    return constant(list(numbers), np.int32)


CASES: list[tuple[str, list[T | None], list[str], dict[str, Any]]] = []


def case(name: str, *inputs: T | None, to: str = "FLOAT32", outputs: int = 1, **options: Any) -> None:
    """Add a case."""
    CASES.append((name, list(inputs), [to] * outputs, options))


for padding in (0, 1):
    for stride, dilation in ((1, 1), (2, 1), (1, 2), (3, 1)):
        convolves = {
            "padding": padding, "strideH": stride, "strideW": max(stride - 1, 1), "dilationHFactor": dilation,
            "dilationWFactor": dilation,
        }  # fmt: skip
        case("CONV_2D", X, constant(WEIGHTS), real(6), **convolves)
    case("CONV_2D", X, constant(WEIGHTS[..., :2]), real(6), padding=padding, strideH=1, strideW=1)  # two groups
    for stride, multiplier in ((1, 1), (2, 2)):
        depthwise = {"padding": padding, "strideH": stride, "strideW": stride, "depthMultiplier": multiplier}
        case("DEPTHWISE_CONV_2D", X, real(1, 3, 2, 4 * multiplier), real(4 * multiplier), **depthwise)
    for name in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        case(name, X, padding=padding, strideH=2, strideW=1, filterHeight=3, filterWidth=2)
case("DEPTHWISE_CONV_2D", X, real(1, 2, 2, 4), real(4), padding=0, strideH=1, strideW=1, depthMultiplier=1,
     dilationHFactor=2, dilationWFactor=2)  # fmt: skip
for out, padding, stride in (
    ((2, 14, 12, 6), 0, 2),
    ((2, 13, 11, 6), 0, 2),
    ((2, 15, 12, 6), 1, 2),
    ((2, 7, 6, 6), 0, 1),
):
    case("TRANSPOSE_CONV", shape(*out), constant(WEIGHTS), X, padding=padding, strideH=stride, strideW=stride)
case("TRANSPOSE_CONV", shape(2, 14, 12, 6), constant(WEIGHTS), X, real(6), padding=0, strideH=2, strideW=2,
     fusedActivationFunction=1)  # fmt: skip
for activation in (0, 1, 2, 3):
    case("CONV_2D", X, constant(WEIGHTS), real(6), padding=0, strideH=1, strideW=1, fusedActivationFunction=activation)
    case("FULLY_CONNECTED", FLAT, real(4, 5), real(4), fusedActivationFunction=activation)
    case("ADD", X, X, fusedActivationFunction=activation)
case("FULLY_CONNECTED", X, real(5, 4), real(5), keepNumDims=True)
case("FULLY_CONNECTED", X, real(5, 4), None, keepNumDims=True)
case("FULLY_CONNECTED", X, real(5, 8), real(5))
case("FULLY_CONNECTED", FLAT, real(4, 5), None)
case("FULLY_CONNECTED", FLAT, T(shape=(4, 5)), real(4))
for left, right in ((False, False), (True, False), (False, True), (True, True)):
    pair = ((2, 4, 3) if left else (2, 3, 4)), ((5, 4) if right else (4, 5))
    case("BATCH_MATMUL", T(shape=pair[0]), T(shape=(2, *pair[1])), adjX=left, adjY=right)
    case("BATCH_MATMUL", T(shape=pair[0]), real(*pair[1]), adjX=left, adjY=right)
for name in ("SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"):
    case(name, X, real(4))
    case(name, real(7, 1, 4), X)
    case(name, X, T(shape=(1, 6, 1)))
for name in ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "FLOOR_DIV", "FLOOR_MOD"):
    case(name, INT, shape(3, -2, 7, 5), to="INT32")
case("POW", constant(np.abs(REAL[:6])), T(shape=(6,)))
case("FLOOR_DIV", FLAT, real(5))
case("FLOOR_MOD", FLAT, real(5))
case("ADD_N", FLAT, FLAT, FLAT)
for name in ("ABS", "NEG", "SIGN", "EXP", "SIN", "COS", "FLOOR", "CEIL", "ROUND", "SQUARE", "RELU", "RELU6",
             "RELU_N1_TO_1", "RELU_0_TO_1", "ELU", "HARD_SWISH", "LOGISTIC", "TANH", "ZEROS_LIKE"):  # fmt: skip
    case(name, X)
case("LOG_SOFTMAX", FLAT)
case("LOG_SOFTMAX", X)
case("LEAKY_RELU", X, alpha=0.3)
case("PRELU", X, real(1, 1, 4))
case("PRELU", X, real(7, 6, 4))
case("GELU", X, approximate=True)
case("GELU", X, approximate=False)
case("SOFTMAX", FLAT, beta=1.0)
case("SOFTMAX", X, beta=0.5)
for source in ("FLOAT32", "INT32", "INT64", "BOOL"):
    for target in ("FLOAT32", "INT32", "INT64", "BOOL", "UINT8"):
        if source != target and (source, target) != ("FLOAT32", "UINT8"):  # a negative number in uint8 is undefined
            case("CAST", T(shape=(2, 3), type=source), to=target)
for name in ("EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"):
    case(name, INT, shape(1, 0, 2, -1), to="BOOL")
    case(name, FLAT, real(5), to="BOOL")
for name in ("LOGICAL_AND", "LOGICAL_OR"):
    case(name, LOGICAL, LOGICAL, to="BOOL")
case("LOGICAL_NOT", LOGICAL, to="BOOL")
case("SELECT", LOGICAL, T(shape=(2, 3)), T(shape=(2, 3)))
case("SELECT", T(shape=(3,), type="BOOL"), FLAT, FLAT)
case("SELECT_V2", T(shape=(3, 1), type="BOOL"), FLAT, real(5))
case("RESHAPE", X, shape(2, -1, 8), newShape=[2, -1, 8])
case("RESHAPE", X, newShape=[4, 84])
case("TRANSPOSE", X, shape(3, 1, 0, 2))
case("SQUEEZE", T(shape=(1, 3, 1, 2)), squeezeDims=[0, -2])
case("SQUEEZE", T(shape=(1, 3, 1, 2)))
case("SQUEEZE", FLAT, squeezeDims=[])
for axis in (0, 2, -1):
    case("EXPAND_DIMS", FLAT, shape(axis))
    case("CONCATENATION", X, real(*X.shape), axis=axis)
    case("PACK", FLAT, FLAT, axis=axis, valuesCount=2)
    case("CUMSUM", INT, constant(axis, np.int32), to="INT32", exclusive=axis == 0, reverse=axis == 2)
    case("ARG_MAX", X, constant(axis, np.int32), to="INT64", outputType=4)
    case("ARG_MIN", X, constant(axis, np.int32), to="INT32", outputType=2)
    case("REVERSE_V2", X, shape(axis % 4))
case("CONCATENATION", X, X, axis=3, fusedActivationFunction=0)
case("SPLIT", constant(-1, np.int32), X, outputs=2, numSplits=2)
case("SPLIT_V", X, shape(1, -1, 2), constant(1, np.int32), outputs=3, numSplits=3)
case("UNPACK", X, outputs=6, num=6, axis=-2)
case("SLICE", X, shape(0, 1, 2, 0), shape(-1, 3, -1, 2))
case("STRIDED_SLICE", X, shape(0, 5, 1, -1), shape(2, 1, 6, -3), shape(1, -2, 3, -1))
case(
    "STRIDED_SLICE",
    X,
    shape(0, -2, 0, 1),
    shape(0, -1, 0, 2),
    shape(1, 1, 2, 1),
    beginMask=5,
    endMask=5,
    shrinkAxisMask=2,
)
case("STRIDED_SLICE", X, shape(0, -1), shape(0, 0), shape(1, 1), ellipsisMask=1, shrinkAxisMask=2)
case("STRIDED_SLICE", FLAT, shape(0, 0, 1), shape(0, 3, 4), shape(1, 2, 1), newAxisMask=1)
case("STRIDED_SLICE", X, shape(1, 0, 0), shape(2, 0, 2), shape(1, 1, 1), shrinkAxisMask=1, ellipsisMask=2)
case("STRIDED_SLICE", FLAT, shape(1, 0), shape(1, 2), shape(1, 1), offset=True)
case("STRIDED_SLICE", FLAT, shape(0, 4), shape(3, 0), shape(2, -1), endMask=2)
case("GATHER", X, shape(2, 0), axis=1)
case("GATHER", X, constant([[1, 0], [3, 2]], np.int64), axis=-1)
case("GATHER", X, constant([[1, 0, 2], [3, 2, 2]], np.int32), axis=1, batchDims=1)
case("GATHER_ND", X, constant([[[1, 0], [0, 2]]], np.int32))
case("EMBEDDING_LOOKUP", shape(2, 0, 2), FLAT)
case("SCATTER_ND", shape([2], [0], [2]), T(shape=(3, 4)), shape(5, 4))
case("WHERE", LOGICAL, to="INT64")
case("PAD", X, constant([[0, 0], [1, 2], [0, 1], [0, 0]], np.int32))
case("PADV2", X, constant([[0, 1], [1, 2], [0, 1], [3, 0]], np.int32), constant(1.5, np.float32))
case("MIRROR_PAD", X, constant([[0, 0], [1, 2], [0, 1], [3, 0]], np.int32), mode=0)
case("MIRROR_PAD", X, constant([[0, 0], [1, 2], [0, 6], [3, 0]], np.int32), mode=1)
case("TILE", FLAT, shape(2, 3))
case("BROADCAST_TO", T(shape=(3, 1)), shape(2, 3, 4))
case("FILL", shape(2, 3), constant(1.5, np.float32))
case("SHAPE", X, to="INT32", outType=2)
case("SHAPE", X, to="INT64", outType=4)
case("RANK", X, to="INT32")
case("RANGE", constant(1, np.int32), constant(9, np.int32), constant(3, np.int32), to="INT32")
case("ONE_HOT", shape(1, 0, 3), constant(4, np.int32), constant(2.0, np.float32), constant(-1.0, np.float32), axis=-1)
case("ONE_HOT", shape(1, 0, 3), constant(4, np.int32), constant(2.0, np.float32), constant(-1.0, np.float32), axis=0)
case("DEPTH_TO_SPACE", T(shape=(2, 3, 2, 12)), blockSize=2)
case("SPACE_TO_DEPTH", T(shape=(2, 6, 4, 3)), blockSize=2)
case("SPACE_TO_BATCH_ND", X, shape(2, 3), constant([[1, 0], [0, 3]], np.int32))
case("SPACE_TO_BATCH_ND", T(shape=(2, 6, 3)), shape(2), constant([[1, 1]], np.int32))
case("BATCH_TO_SPACE_ND", T(shape=(6, 3, 2, 4)), shape(2, 3), constant([[1, 0], [0, 2]], np.int32))
for corners, centers in ((False, False), (True, False), (False, True)):
    for size in ((14, 3), (5, 9), (1, 1)):
        how = {"alignCorners": corners, "halfPixelCenters": centers}
        case("RESIZE_BILINEAR", X, shape(*size), **how)
        case("RESIZE_NEAREST_NEIGHBOR", X, shape(*size), **how)
for name in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"):
    for axes, keep in (((1, 2), True), ((1, 2), False), ((-1,), False), ((0, 3), True)):
        case(name, X, shape(*axes), keepDims=keep)
case("REDUCE_ANY", LOGICAL, shape(1), to="BOOL", keepDims=False)
case("REDUCE_ALL", LOGICAL, shape(0), to="BOOL", keepDims=True)
case("L2_NORMALIZATION", X)
case("LOCAL_RESPONSE_NORMALIZATION", X, radius=2, bias=1.5, alpha=0.3, beta=0.75)

CASES.append(("TOPK_V2", [X, constant(3, np.int32)], ["FLOAT32", "INT32"], {}))

POSITIVE = {"LOG", "SQRT", "RSQRT"}
for name in sorted(POSITIVE):
    case(name, X)

VERSIONS = {"BROADCAST_TO": 2, "FULLY_CONNECTED": 5, "MAX_POOL_2D": 2}
"""Versions that LiteRT needs: it knows no older one, or ignores an option."""


RESULTS = {"SLICE": (2, 3, 4, 2)}
"""Shapes that LiteRT wants to find in the file."""


def numbers(rng: np.random.Generator, tensor: T, *, positive: bool) -> np.ndarray:
    """Random numbers for an input."""
    if tensor.type == "BOOL":
        return rng.integers(0, 2, tensor.shape).astype(np.bool_)
    if tensor.type.startswith("INT"):
        return rng.integers(-4, 5, tensor.shape).astype(tensor.type.lower())
    values = rng.normal(size=tensor.shape).astype(np.float32) * 3
    return np.abs(values) if positive else values


def outputs_of(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run the imported network."""
    return open_session(convert(path).model, threads=1, simulate=True).run(None, feed)


def identify(one: Any) -> str:
    return one if isinstance(one, str) else ""


@pytest.mark.parametrize(("name", "inputs", "types", "options"), CASES, ids=identify)
def test_an_operator_computes_what_litert_computes(
    tmp_path: Path, name: str, inputs: list[T | None], types: list[str], options: dict[str, Any]
) -> None:
    tensors = [one for one in inputs if one is not None]
    if all(one.data is not None for one in tensors):  # LiteRT folds an operator of constants away
        tensors[0] = T(shape=tensors[0].shape, type=tensors[0].type)
    rng, feed = np.random.default_rng(3), {}
    for number, (tensor, wanted) in enumerate(zip(tensors, [one for one in inputs if one is not None], strict=True)):
        if tensor.data is None:
            random = numbers(rng, tensor, positive=name in POSITIVE)
            feed[f"t{number}"] = random if wanted.data is None else wanted.data
    rest = iter(tensors)
    path = tmp_path / "one.tflite"
    written = [T(shape=RESULTS.get(name, (1,)), type=one) for one in types]
    expected = one_operator(
        path, name, [None if one is None else next(rest) for one in inputs], written, feed,
        version=VERSIONS.get(name, 1), **options,
    )  # fmt: skip
    found = outputs_of(path, feed)
    assert len(found) == len(expected) == len(types)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


IMAGE = T(shape=(2, 7, 6, 4), name="x")
BETWEEN: list[tuple[str, list[T], dict[str, Any], int]] = [
    ("ADD", [real(4)], {}, 4),
    ("MUL", [real(1, 1, 4)], {"fusedActivationFunction": 3}, 4),
    ("SUB", [constant(0.5, np.float32)], {}, 4),
    ("MAXIMUM", [real(7, 1, 1)], {}, 4),
    ("DIV", [real(2, 7, 6, 4)], {}, 4),
    ("SQUARED_DIFFERENCE", [real(6, 4)], {}, 4),
    ("PRELU", [real(1, 1, 4)], {}, 4),
    ("RELU6", [], {}, 4),
    ("HARD_SWISH", [], {}, 4),
    ("GELU", [], {"approximate": False}, 4),
    ("SQUARE", [], {}, 4),
    ("CONCATENATION", [real(2, 7, 6, 4)], {"axis": 2}, 4),
    ("CONCATENATION", [real(2, 7, 6, 3)], {"axis": -1}, 7),
    ("PAD", [constant([[0, 0], [1, 2], [0, 1], [0, 3]], np.int32)], {}, 7),
    ("MEAN", [shape(1, 2)], {"keepDims": True}, 4),
    ("REDUCE_MAX", [shape(3)], {"keepDims": True}, 1),
    ("RESIZE_NEAREST_NEIGHBOR", [shape(14, 12)], {}, 4),
    ("DEPTH_TO_SPACE", [], {"blockSize": 2}, 1),
]


@pytest.mark.parametrize(("name", "others", "options", "channels"), BETWEEN, ids=identify)
def test_operators_between_convolutions_need_no_transposes(
    tmp_path: Path, name: str, others: list[T], options: dict[str, Any], channels: int
) -> None:
    path = tmp_path / "between.tflite"
    last = real(4, 1, 1, channels)
    tensors = [IMAGE, real(4, 1, 1, 4), real(4), T(shape=(2, 7, 6, 4)), T(shape=(1, 1, 1, channels)), last,
               T(shape=(1, 1, 1, 4)), *others]  # fmt: skip
    convolves = {"padding": 1, "strideH": 1, "strideW": 1}
    operators = [
        Op(name="CONV_2D", inputs=[0, 1, 2], outputs=[3], options=convolves),
        Op(name=name, inputs=[3, *range(7, len(tensors))], outputs=[4], options=options),
        Op(name="CONV_2D", inputs=[4, 5, 2], outputs=[6], options=convolves),
    ]
    x = np.random.default_rng(4).normal(size=IMAGE.shape).astype(np.float32)
    path.write_bytes(packed(tensors, operators, [0], [6]))
    (expected,) = run_litert(path, {"x": x})
    tensors[6] = T(shape=expected.shape)
    path.write_bytes(packed(tensors, operators, [0], [6]))
    model = convert(path).model
    assert [node.op_type for node in model.graph].count("Transpose") == 2
    np.testing.assert_allclose(open_session(model, threads=1).run(None, {"x": x})[0], expected, rtol=2e-5, atol=2e-6)


@settings(max_examples=25)
@given(
    extents=st.tuples(st.integers(5, 14), st.integers(5, 14)), kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)), dilation=st.integers(1, 2), padding=st.integers(0, 1),
)  # fmt: skip
def test_padding_is_that_of_litert(
    tmp_path_factory: pytest.TempPathFactory, extents: Any, kernel: Any, strides: Any, dilation: int, padding: int
) -> None:
    folder = tmp_path_factory.mktemp("padding")
    x = np.random.default_rng(5).normal(size=(1, *extents, 2)).astype(np.float32)
    convolves = {"padding": padding, "strideH": strides[0], "strideW": strides[1]}
    dilates = {"dilationHFactor": dilation, "dilationWFactor": dilation}
    if padding == 1 and any((size - 1) * dilation >= extent for size, extent in zip(kernel, extents, strict=True)):
        kernel = (1, 1)
    pools = {"filterHeight": kernel[0], "filterWidth": kernel[1]}
    wide = [
        (extent - 1) * stride + (size if padding else 1)
        for extent, stride, size in zip(extents, strides, kernel, strict=True)
    ]
    cases: list[tuple[str, list[T], str, dict[str, Any]]] = [
        ("CONV_2D", [T(shape=x.shape), real(3, *kernel, 2), real(3)], "t0", convolves | dilates),
        ("AVERAGE_POOL_2D", [T(shape=x.shape)], "t0", convolves | pools),
        ("TRANSPOSE_CONV", [shape(1, *wide, 3), real(3, *kernel, 2), T(shape=x.shape)], "t2", convolves),
    ]
    for name, inputs, fed, options in cases:
        (expected,) = one_operator(folder / "one.tflite", name, inputs, [T(shape=(1,))], {fed: x}, **options)
        (found,) = outputs_of(folder / "one.tflite", {fed: x})
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_every_row_has_a_case() -> None:
    elsewhere = {"QUANTIZE", "DEQUANTIZE", "UNIDIRECTIONAL_SEQUENCE_LSTM"}
    assert {name for name, *_ in CASES} | elsewhere == set(OPERATORS)
