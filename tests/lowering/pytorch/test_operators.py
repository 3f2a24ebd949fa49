"""Each row of the table computes what ONNX Runtime computes."""

import re

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.errors import TargetError
from narrowgauge.graph.engine import open_session
from narrowgauge.lowering.pytorch.module import identifiers, to_module
from narrowgauge.lowering.pytorch.table import LINEAR, OPERATORS
from tests.planning.networks import network, normal

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")

IMAGE = "float[2, 4, 9, 8] x"
WEIGHTS = {
    "w": normal(6, 4, 3, 3),
    "b": normal(6),
    "g": normal(6, 2, 3, 3),
    "d": normal(4, 1, 3, 3),
    "t": normal(4, 3, 3, 2),
    "tb": normal(3),
    "tg": normal(4, 3, 2, 2),
    "tgb": normal(6),
    "c": normal(4),
    "v": np.abs(normal(4)) + 1,
    "m": normal(8, 5),
    "mt": normal(5, 8),
    "mb": normal(5),
    "row": normal(1, 5),
    "slope": normal(4, 1, 1),
    "eight": normal(8),
    "wide": normal(9, 8),
    "one": np.float32([2]),
    "low": np.float32(-0.5),
    "high": np.float32(0.5),
    "two": np.float32(2),
    "half": np.float32(0.5),
    "batched": normal(2, 4, 8, 3),
    "table": normal(10, 3),
}
INTEGERS = {
    "shape": [2, -1, 8],
    "keep": [0, 0, -1],
    "axes": [2, 3],
    "axis": [1],
    "last": [-1],
    "parts": [1, 3],
    "starts": [1, -3],
    "ends": [3, 2**63 - 1],
    "steps": [1, 2],
    "back": [-1],
    "front": [-(2**63)],
    "minus": [-1],
    "pick": [2, 0, -1],
    "scalar": 1,
    "pads": [0, 0, 1, 2, 0, 0, 0, 1],
    "some": [1, 2, 0, 1],
    "big": [2, 1, 4, 9, 8],
    "repeats": [1, 2, 1, 1],
    "sizes": [2, 4, 18, 16],
    "odd": [2, 4, 13, 5],
    "k": [3],
    "nine": [9],
    "second": [2],
    "zero": 0,
    "all": [0, 1, 2],
    "ten": 10,
    "three": 3,
    "positions": [[1, 0], [-1, 2]],
    "extent": [3, 2],
    "element": [[[[0, 1, 2, -1, 0, 1, 2, 3]]] * 4] * 2,
}
SCALES = {"scales": np.float32([1, 1, 2, 2]), "uneven": np.float32([1, 1, 1.5, 0.7])}

BODIES = [
    "Conv<pads=[1, 1, 1, 1]>(x, w, b)",
    "Conv<strides=[2, 1], dilations=[1, 2]>(x, w)",
    "Conv<group=2>(x, g, b)",
    "Conv<pads=[0, 1, 2, 3]>(x, w, b)",
    'Conv<auto_pad="SAME_UPPER", strides=[2, 2]>(x, w)',
    'Conv<auto_pad="SAME_LOWER", strides=[2, 2]>(x, w)',
    'Conv<auto_pad="VALID">(x, w)',
    "Conv<group=4, pads=[1, 1, 1, 1]>(x, d, c)",
    "ConvTranspose(x, t, tb)",
    "ConvTranspose<strides=[2, 3], pads=[1, 0, 1, 0], output_padding=[1, 0]>(x, t, tb)",
    "ConvTranspose<strides=[2, 2], pads=[0, 1, 1, 0], output_padding=[1, 1]>(x, t, tb)",
    "ConvTranspose<group=2, dilations=[2, 1]>(x, tg, tgb)",
    'ConvTranspose<strides=[2, 2], auto_pad="SAME_UPPER">(x, t)',
    'ConvTranspose<strides=[2, 2], auto_pad="SAME_LOWER">(x, t)',
    "ConvTranspose<strides=[2, 2], output_shape=[18, 15]>(x, t)",
    "MatMul(x, m)",
    "MatMul(x, batched)",
    "MatMul(m, mt)",
    'Einsum<equation="nchw, wk -> nchk">(x, m)',
    "MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x)",
    "MaxPool<kernel_shape=[3, 2], pads=[1, 0, 0, 1]>(x)",
    "MaxPool<kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1>(x)",
    "MaxPool<kernel_shape=[2, 2], dilations=[2, 1]>(x)",
    "AveragePool<kernel_shape=[2, 2], strides=[2, 2]>(x)",
    "AveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x)",
    "AveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1>(x)",
    "AveragePool<kernel_shape=[3, 2], pads=[1, 0, 0, 1]>(x)",
    "AveragePool<kernel_shape=[3, 2], pads=[1, 0, 0, 1], count_include_pad=1>(x)",
    "GlobalAveragePool(x)",
    "GlobalMaxPool(x)",
    "BatchNormalization<epsilon=0.1>(x, c, c, c, v)",
    "LayerNormalization(x, eight, eight)",
    "LayerNormalization<axis=2, epsilon=0.1>(x, wide)",
    "InstanceNormalization(x, c, c)",
    "GroupNormalization<num_groups=2>(x, c, c)",
    "LpNormalization<axis=1>(x)",
    "LpNormalization<axis=1, p=1>(x)",
    "Clip(x, low, high)",
    "Clip(x, low)",
    "Clip(x, , high)",
    "Clip(x)",
    "Gelu(x)",
    'Gelu<approximate="tanh">(x)',
    "HardSigmoid(x)",
    "HardSigmoid<alpha=0.16666667, beta=0.5>(x)",
    "HardSwish(x)",
    "LeakyRelu<alpha=0.2>(x)",
    "Elu(x)",
    "Celu<alpha=2.0>(x)",
    "Selu(x)",
    "Mish(x)",
    "Relu(x)",
    "Sigmoid(x)",
    "Softplus(x)",
    "Softsign(x)",
    "Tanh(x)",
    "PRelu(x, slope)",
    "ThresholdedRelu<alpha=0.5>(x)",
    "Softmax(x)",
    "Softmax<axis=1>(x)",
    "LogSoftmax<axis=1>(x)",
    "Abs(x)",
    "Ceil(x)",
    "Floor(x)",
    "Round(x)",
    "Sign(x)",
    "Exp(x)",
    "Erf(x)",
    "Sin(x)",
    "Cos(x)",
    "Neg(x)",
    "Reciprocal(x)",
    "Add(x, eight)",
    "Sub(eight, x)",
    "Mul(x, slope)",
    "Div(x, slope)",
    "Pow(x, two)",
    "Max(x, eight, low)",
    "Min(x, high)",
    "Sum(x, eight, x)",
    "Mean(x, eight)",
    "Mod<fmod=1>(x, slope)",
    "Reshape(x, shape)",
    "Reshape(x, keep)",
    "Flatten(x)",
    "Flatten<axis=2>(x)",
    "Flatten<axis=0>(x)",
    "Flatten<axis=-1>(x)",
    "Transpose<perm=[0, 2, 3, 1]>(x)",
    "Transpose(x)",
    "Concat<axis=1>(x, x)",
    "Concat<axis=-1>(x, x, x)",
    "Slice(x, starts, ends, axes, steps)",
    "Slice(x, back, front, last, minus)",
    "Gather<axis=1>(x, pick)",
    "Gather<axis=2>(x, scalar)",
    "Gather(table, positions)",
    "Gather<axis=-1>(x, positions)",
    "GatherElements<axis=2>(x, element)",
    "Unsqueeze(x, axis)",
    "Unsqueeze(x, axes)",
    "Pad(x, pads)",
    "Pad(x, pads, low)",
    'Pad<mode="reflect">(x, pads)',
    'Pad<mode="edge">(x, pads)',
    "Pad(x, some, , axes)",
    "Expand(x, big)",
    "Tile(x, repeats)",
    "DepthToSpace<blocksize=2>(x)",
    'DepthToSpace<blocksize=2, mode="CRD">(x)',
    'Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , scales)',
    'Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , uneven)',
    'Resize<mode="nearest">(x, , scales)',
    'Resize<mode="nearest">(x, , , sizes)',
    'Resize<mode="linear">(x, , scales)',
    'Resize<mode="linear">(x, , , odd)',
    'Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , odd)',
    'Resize<mode="cubic">(x, , , odd)',
    "Dropout(x)",
    "Identity(x)",
    "Trilu(x)",
    "Trilu<upper=0>(x, scalar)",
    "ReduceMean(x, axes)",
    "ReduceMean<keepdims=0>(x, axes)",
    "ReduceMean(x)",
    "ReduceMean<noop_with_empty_axes=1>(x)",
    "ReduceSum(x, axes)",
    "ReduceMax(x, last)",
    "ReduceMin(x, axis)",
    "ReduceProd<keepdims=0>(x, axes)",
    "ReduceL1(x, axes)",
    "ReduceL2(x, axes)",
    "ReduceSumSquare(x, axes)",
    "ReduceLogSumExp(x, axes)",
    "CumSum(x, scalar)",
]
NEWER = ["RMSNormalization<axis=-1>(x, eight)", "Swish<alpha=2.0>(x)"]
"""Of opset 24."""
LONGER = {
    "Gemm": "f = Flatten<axis=3>(x) y = Gemm(f, m, mb)",
    "Gemm transposed": "f = Flatten<axis=3>(x) y = Gemm<transB=1>(f, mt, mb)",
    "Gemm scaled": "f = Flatten<axis=3>(x) y = Gemm<alpha=0.5, beta=2.0>(f, m, mb)",
    "Gemm of a row": "f = Flatten<axis=3>(x) y = Gemm(f, m, row)",
    "Gemm turned": "f = Flatten<axis=3>(x) z = Transpose(f) y = Gemm<transA=1>(z, m)",
    "MatMul and bias": "z = MatMul(x, m) y = Add(mb, z)",
    "MatMul read twice": "z = MatMul(x, m) a = Add(z, mb) y = Mul(a, z)",
    "Split": "a, z = Split<axis=1>(x, parts) y = Neg(z)",
    "Split evenly": "a, z = Split<axis=2, num_outputs=2>(x) y = Neg(z)",
    "TopK": "a, z = TopK<axis=2>(x, k) z2 = Cast<to=1>(z) y = Add(a, z2)",
    "ArgMax": "z = ArgMax<axis=1>(x) y = Cast<to=1>(z)",
    "ArgMin": "z = ArgMin<axis=-1, keepdims=0>(x) y = Cast<to=1>(z)",
    "Squeeze": "z = ReduceMean(x, axes) y = Squeeze(z, axes)",
    "Squeeze all": "z = ReduceMean(x, axes) y = Squeeze(z)",
    "SpaceToDepth": "z = Slice(x, axis, nine, second) y = SpaceToDepth<blocksize=2>(z)",
    "Sqrt and Log": "a = Abs(x) s = Sqrt(a) y = Log(s)",
    "Pow": "a = Abs(x) y = Pow(a, half)",
    "Where": """a = Greater(x, low) b1 = Less(x, high) n = And(a, b1) o = Not(n) p = Or(o, n) q = Xor(p, n)
        y = Where(q, x, eight)""",
    "comparisons": "a = GreaterOrEqual(x, low) c1 = LessOrEqual(x, high) e = Equal(a, c1) y = Cast<to=1>(e)",
    "IsNaN": "l = Log(x) a = IsNaN(l) d1 = Div(x, zerof) i = IsInf(d1) o = Or(a, i) y = Cast<to=1>(o)",
    "integers": "i = Cast<to=7>(x) d1 = Div(i, three) r = Mod(i, three) s = Add(d1, r) y = CastLike(s, x)",
    "shapes": """s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, zero) r = Concat<axis=0>(u, minus)
        y = Reshape(x, r)""",
    "shape arithmetic": """s = Shape<start=2>(x) p = ReduceProd<keepdims=1>(s) n = Shape<end=2>(x)
        r = Concat<axis=0>(n, p)
        y = Reshape(x, r)""",
    "Range": "r = Range(zero, ten, three) f = Cast<to=1>(r) y = Identity(f)",
    "ConstantOfShape": "s = Shape(x) c1 = ConstantOfShape<value = float[1] {2.5}>(s) y = Add(c1, x)",
    "Size": "s = Size(x) f = Cast<to=1>(s) y = Div(x, f)",
    "Constant": "c1 = Constant<value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>() y = Add(x, c1)",
    "indices of the input": "f = Slice(x, starts, ends, axes) a = Abs(f) i = Cast<to=7>(a) y = Gather(table, i)",
}
TESTED_ELSEWHERE = {"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear", LINEAR}


def built(body: str) -> ir.Model:
    held = {**WEIGHTS, **SCALES, **{name: np.array(numbers, np.int64) for name, numbers in INTEGERS.items()}}
    held["zerof"] = np.zeros((), np.float32)
    used = {name: array for name, array in held.items() if re.search(rf"\b{name}\b", body)}
    model = network(IMAGE, "float[a, b, c, d] y", body if re.search(r"\by =", body) else f"y = {body}", **used)
    model.graph.outputs[0].shape = None  # the text form cannot leave it open
    return model


def check(model: ir.Model) -> None:
    data = normal(2, 4, 9, 8, seed=1)
    (reference,) = open_session(model, threads=1, optimization="none").run(None, {"x": data})
    with torch.no_grad():
        (found,) = to_module(model)(torch.from_numpy(data))
    assert tuple(found.shape) == reference.shape
    np.testing.assert_allclose(found.numpy(), reference, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("body", BODIES)
def test_an_operator(body: str) -> None:
    check(built(body))


@pytest.mark.parametrize("name", LONGER)
def test_operators_together(name: str) -> None:
    check(built(LONGER[name]))


@pytest.mark.parametrize("body", NEWER)
def test_an_operator_of_a_newer_opset(body: str) -> None:
    text = body.replace("RMSNormalization<axis=-1>(x, eight)", "Add(x, eight)").replace("Swish<alpha=2.0>", "Relu")
    model = built(text)
    model.graph[0].op_type, attributes = (
        body.split("<", maxsplit=1)[0],
        {"axis": -1} if "axis" in body else {"alpha": 2.0},
    )
    model.graph[0].attributes.update({key: ir.convenience.convert_attribute(key, at) for key, at in attributes.items()})
    model.opset_imports[""] = 24
    check(model)


RECURRENT = {
    "LSTM": "y, h, c = LSTM<hidden_size=3>(x, w, r, b)",
    "LSTM backwards": 'y, h, c = LSTM<hidden_size=3, direction="reverse">(x, w, r, b)',
    "LSTM both ways": 'y, h, c = LSTM<hidden_size=3, direction="bidirectional">(x, w, r, b)',
    "LSTM with states": "y, h, c = LSTM<hidden_size=3>(x, w, r, b, , s, t)",
    "LSTM without bias": "y, h, c = LSTM<hidden_size=3>(x, w, r)",
    "GRU": "y, h = GRU<hidden_size=3, linear_before_reset=1>(x, w, r, b)",
    "GRU both ways": 'y, h = GRU<hidden_size=3, linear_before_reset=1, direction="bidirectional">(x, w, r, b)',
    "RNN": "y, h = RNN<hidden_size=3>(x, w, r, b)",
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name: str) -> None:
    body = RECURRENT[name]
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[name.partition(" ")[0]]
    ways, outputs = 2 if "both" in name else 1, ["y", "h", "c"][: 3 if "LSTM" in name else 2]
    held = {
        "w": normal(ways, 3 * gates, 4), "r": normal(ways, 3 * gates, 3, seed=1), "b": normal(ways, 6 * gates, seed=2),
        "s": normal(ways, 2, 3, seed=3), "t": normal(ways, 2, 3, seed=4),
    }  # fmt: skip
    used = {key: array for key, array in held.items() if re.search(rf"[ (]{key}[,)]", body.partition("=")[2])}
    shapes = ", ".join(f"float[d{number}] {output}" for number, output in enumerate(outputs))
    model = network("float[5, 2, 4] x", shapes, body, **used)
    for value in model.graph.outputs:
        value.shape = None
    data = normal(5, 2, 4, seed=5)
    expected = open_session(model, threads=1, optimization="none").run(None, {"x": data})
    with torch.no_grad():
        found = to_module(model)(torch.from_numpy(data))
    for ours, theirs in zip(found, expected, strict=True):
        assert tuple(ours.shape) == theirs.shape
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [("y = GRU<hidden_size=3>(x, w, r)", "linear_before_reset"),
     ('y = LSTM<hidden_size=3, activations=["Sigmoid", "Relu", "Tanh"]>(x, w, r)', "activation functions"),
     ("y = LSTM<hidden_size=3, clip=1.0>(x, w, r)", "no clipping"),
     ("y = LSTM<hidden_size=3>(x, w, r, , lengths)", "one length")],
)  # fmt: skip
def test_recurrent_layers_that_pytorch_has_not_are_refused(body: str, reason: str) -> None:
    gates = 3 if "GRU" in body else 4
    lengths = {"lengths": np.array([5, 3], np.int32)} if "lengths" in body else {}
    weights = {"w": normal(1, 3 * gates, 4), "r": normal(1, 3 * gates, 3)}
    model = network("float[5, 2, 4] x", "float[5, 1, 2, 3] y", body, **weights, **lengths)
    with pytest.raises(TargetError, match=reason):
        to_module(model)(torch.zeros(5, 2, 4))


def test_every_row_is_tried() -> None:
    text = " ".join([*BODIES, *LONGER.values(), *NEWER, *RECURRENT.values()])
    assert {name for name in OPERATORS if not re.search(rf"\b{name}[<(]", text)} == TESTED_ELSEWHERE


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("Hardmax(x)", "node 'node'.*Hardmax cannot be written"),
        ('Resize<mode="nearest">(x, , uneven)', "Resize.*whole factors"),
        ("AveragePool<kernel_shape=[2, 2], dilations=[2, 2]>(x)", "AveragePool without dilations"),
        ("ConvTranspose<output_shape=[20, 17]>(x, t)", "extent of at most 11"),
        (
            "s = Abs(x) i = Cast<to=7>(s) r = ReduceMax<keepdims=0>(i, all) y = Expand(x, r)",
            "computed from the network",
        ),
    ],
)
def test_what_the_table_lacks_is_refused_with_its_node(body: str, reason: str) -> None:
    with pytest.raises(TargetError, match=reason):
        to_module(built(body))(torch.zeros(2, 4, 9, 8))


def test_a_foreign_operator_is_refused_with_its_domain() -> None:
    model = built("Relu(x)")
    model.graph[0].domain = "com.example"
    with pytest.raises(TargetError, match=r"Relu of the domain 'com\.example'"):
        to_module(model)


def test_names_become_identifiers_that_differ() -> None:
    names = ["a/b:0", "a.b:0", "a_b_0", "0", "for", "", "forward", "é"]
    found = identifiers(names, {"forward"})
    assert list(found) == names
    assert len(set(found.values())) == len(names)
    assert all(name.isidentifier() and name.isascii() for name in found.values())
    assert found["forward"] != "forward"


def test_outputs_that_nobody_reads_need_no_name() -> None:
    model = network(
        "float[5, 2, 4] x", "float[a, b, c] y",
        "h1, y1 = RNN<hidden_size=3>(x, w, r) h2, y2 = RNN<hidden_size=3>(x, w, r) y = Add(y1, y2)",
        w=normal(1, 3, 4), r=normal(1, 3, 3),
    )  # fmt: skip
    for node in list(model.graph)[:2]:
        node.outputs[0].name = ""
    assert [tuple(value.shape) for value in to_module(model)(torch.zeros(5, 2, 4))] == [(1, 2, 3)]


def test_parameters_and_submodules_carry_the_names_of_the_network() -> None:
    module = to_module(built("z = Conv(x, w, b) y = Relu(z)"))
    assert sorted(name for name, _ in module.named_parameters()) == ["numbers.b", "numbers.w"]
    assert list(module.operators) == ["z", "y"]
    assert module.input_names == ["x"]


def test_weights_that_two_layers_read_are_one_parameter() -> None:
    module = to_module(built("z = MatMul(x, m) t1 = MatMul(x, m) y = Add(z, t1)"))
    assert [tuple(value.shape) for value in module.parameters()] == [(5, 8)]
