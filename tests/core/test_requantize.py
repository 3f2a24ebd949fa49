"""The rules are those of the engines, integer for integer, ties included."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.requantize import REQUANTIZATIONS, add, quantize_by_inverse, requantize
from narrowgauge.errors import PlanError

UINT8 = integer_type("uint8")
Array = np.ndarray


def encoding(scale: Any, zero_point: Any, kind: str = "uint8") -> Encoding:
    return Encoding(
        type=integer_type(kind), granularity=PerTensor(), scale=np.float32(scale), zero_point=np.int32(zero_point)
    )


def scale_of(rng: np.random.Generator, *, ties: bool) -> np.float32:
    """Scales that are powers of two make ties as common as can be."""
    return np.float32(2.0 ** -int(rng.integers(3, 7)) if ties else rng.uniform(0.005, 0.05))


@pytest.fixture
def torch() -> Any:
    torch = pytest.importorskip("torch", reason="the engines are PyTorch's: pip install torch")
    before = torch.backends.quantized.engine
    yield torch
    torch.backends.quantized.engine = before


def use(torch: Any, engine: str) -> None:
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this PyTorch has no engine {engine}")
    torch.backends.quantized.engine = engine


def as_torch(torch: Any, levels: Array, scale: Any, zero_point: int = 0) -> Any:
    """A quantized tensor of these levels; one scale per index of the first axis where there are several."""
    tensor = torch.from_numpy(levels)
    if np.ndim(scale):
        scales, zeros = torch.from_numpy(np.float64(scale)), torch.zeros(len(scale), dtype=torch.int64)
        return torch._make_per_channel_quantized_tensor(tensor, scales, zeros, 0)
    return torch._make_per_tensor_quantized_tensor(tensor, float(scale), zero_point)


LAYERS = [
    ("fbgemm", "linear", "fbgemm"), ("fbgemm", "conv2d", "fbgemm"), ("x86", "linear", "fbgemm"),
    ("qnnpack", "linear", "qnnpack"), ("qnnpack", "conv2d", "qnnpack"), ("onednn", "linear", "onednn"),
    ("onednn", "conv2d", "onednn"), ("x86", "conv2d", "onednn"),
]  # fmt: skip
"""The engine x86 gives convolutions to oneDNN where the processor has VNNI, else to FBGEMM."""


def vnni() -> bool:
    processor = Path("/proc/cpuinfo")
    return processor.is_file() and "avx512_vnni" in processor.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ties", [False, True], ids=["any scale", "ties"])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("engine", "kind", "rule"), LAYERS)
def test_layers(torch: Any, engine: str, rule: str, kind: str, *, biased: bool, ties: bool) -> None:
    use(torch, engine)
    rng, wrong, count = np.random.default_rng(0), 0, 0
    for trial in range(8):
        inputs, outputs = int(rng.integers(4, 64)), int(rng.integers(3, 40))
        x_scale, zero = scale_of(rng, ties=ties), int(rng.integers(0, 128))
        out = encoding(scale_of(rng, ties=ties) * 4, int(rng.integers(0, 200)))
        w_scale = (
            np.array([scale_of(rng, ties=ties) for _ in range(outputs)]) if trial % 2 else scale_of(rng, ties=ties)
        )
        x = rng.integers(0, 128, (13, inputs)).astype(np.uint8)  # 7 bits: no sum of two products saturates
        w = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
        bias = rng.normal(0, 1, outputs).astype(np.float32) if biased else None
        held = None if bias is None else torch.from_numpy(bias)
        if kind == "linear":
            packed = torch.ops.quantized.linear_prepack(as_torch(torch, w, w_scale), held)
            found = torch.ops.quantized.linear(
                as_torch(torch, x, x_scale, zero), packed, float(out.scale), int(out.zero_point)
            )
            levels = found.int_repr().numpy()
        else:  # one row of pixels, a kernel of one
            packed = torch.ops.quantized.conv2d_prepack(
                as_torch(torch, w[:, :, None, None], w_scale), held, [1, 1], [0, 0], [1, 1], 1
            )
            image = np.ascontiguousarray(x.T[None, :, :, None])  # [1, inputs, 13, 1]
            found = torch.ops.quantized.conv2d(
                as_torch(torch, image, x_scale, zero), packed, float(out.scale), int(out.zero_point)
            )
            levels = found.int_repr().numpy()[0, :, :, 0].T
        accumulators = (x.astype(np.int64) - zero) @ w.astype(np.int64).T
        ours = requantize(accumulators, input_scale=x_scale, weight_scale=w_scale, output=out, bias=bias, rule=rule)
        wrong, count = wrong + int((ours != levels).sum()), count + levels.size
    assert count > 1000
    if engine == "x86" and wrong and not vnni():
        pytest.skip("the rule of a processor with VNNI")
    assert wrong == 0


@pytest.mark.parametrize("ties", [False, True], ids=["any scale", "ties"])
def test_matrix_products_of_onnx_runtime(*, ties: bool) -> None:
    import onnxruntime
    from onnx import TensorProto, helper

    rng, wrong = np.random.default_rng(0), 0
    names = ["a", "a_scale", "a_zero", "b", "b_scale", "b_zero", "y_scale", "y_zero"]
    kinds = [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.FLOAT,
             TensorProto.INT8, TensorProto.FLOAT, TensorProto.UINT8]  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("QLinearMatMul", names, ["y"])], "product",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for _ in range(30):
        a_scale, b_scale, zero = scale_of(rng, ties=ties), scale_of(rng, ties=ties), int(rng.integers(0, 128))
        out = encoding(scale_of(rng, ties=ties) * 4, int(rng.integers(0, 200)))
        a, b = rng.integers(0, 128, (13, 24)).astype(np.uint8), rng.integers(-127, 128, (24, 31)).astype(np.int8)
        values = [a, a_scale, np.uint8(zero), b, b_scale, np.int8(0), out.scale, np.uint8(out.zero_point)]
        (levels,) = session.run(None, {name: np.asarray(value) for name, value in zip(names, values, strict=True)})
        accumulators = (a.astype(np.int64) - zero) @ b.astype(np.int64)
        ours = requantize(accumulators, input_scale=a_scale, weight_scale=b_scale, output=out, rule="onnxruntime")
        wrong += int((ours != levels).sum())
    assert wrong == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ties", [False, True], ids=["any scale", "ties"])
@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_quantize_per_tensor(torch: Any, engine: str, *, ties: bool) -> None:
    use(torch, engine)
    rng = np.random.default_rng(0)
    for _ in range(20):
        held = encoding(scale_of(rng, ties=ties), int(rng.integers(0, 256)))
        # Halves of a step, and the numbers next to them, where a product with the inverse and a quotient differ.
        halves = (rng.integers(-600, 600, 1000) * np.float32(0.5) * held.scale).astype(np.float32)
        values = np.concatenate([halves, np.nextafter(halves, np.float32(9)), np.nextafter(halves, np.float32(-9))])
        found = torch.quantize_per_tensor(
            torch.from_numpy(values), float(held.scale), int(held.zero_point), torch.quint8
        )
        np.testing.assert_array_equal(
            quantize_by_inverse(values, held, zero_point_first=True), found.int_repr().numpy()
        )


def test_the_operators_of_exported_programs(torch: Any) -> None:
    import torch.ao.quantization.fx._decomposed

    rng, differing = np.random.default_rng(0), 0
    operators = torch.ops.quantized_decomposed
    for _ in range(20):
        held = encoding(scale_of(rng, ties=False), int(rng.integers(0, 256)))
        halves = (rng.integers(-600, 600, 1000) * np.float32(0.5) * held.scale).astype(np.float32)
        found = operators.quantize_per_tensor(
            torch.from_numpy(halves), float(held.scale), int(held.zero_point), 0, 255, torch.uint8
        ).numpy()
        np.testing.assert_array_equal(quantize_by_inverse(halves, held, zero_point_first=False), found)
        differing += int((quantize(halves, held) != found).sum())
    assert differing > 0, "beside ties the inverse and the quotient differ"


def test_fbgemms_own_example_of_the_inverse() -> None:
    """FBGEMM, QuantUtils.h: x / scale rounds to 127, x * (1 / scale) to 128."""
    held = encoding(0.00214854861, 0)
    assert quantize(np.float32(0.273939937), held) == 127
    assert quantize_by_inverse(np.float32(0.273939937), held, zero_point_first=True) == 128


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ties", [False, True], ids=["any scale", "ties"])
@pytest.mark.parametrize(("engine", "rule"), [("fbgemm", "fbgemm"), ("x86", "fbgemm"), ("qnnpack", "qnnpack")])
def test_add(torch: Any, engine: str, rule: str, *, ties: bool) -> None:
    use(torch, engine)
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(50):
        held = [encoding(scale_of(rng, ties=ties), int(rng.integers(0, 256))) for _ in range(3)]
        first, second = rng.integers(0, 256, (2, 960)).astype(np.uint8)  # whole vectors; see `add`
        found = torch.ops.quantized.add(
            as_torch(torch, first, held[0].scale, int(held[0].zero_point)),
            as_torch(torch, second, held[1].scale, int(held[1].zero_point)),
            float(held[2].scale), int(held[2].zero_point),
        )  # fmt: skip
        wrong += int((add(first, second, (held[0], held[1], held[2]), rule) != found.int_repr().numpy()).sum())
    assert wrong == 0


@given(st.integers(-(2**31), 2**31 - 1), st.sampled_from(list(REQUANTIZATIONS)), st.integers(-128, 127))
def test_levels_are_at_most_one_step_off_the_exact_quotient(accumulator: int, rule: str, zero_point: int) -> None:
    out = encoding(0.25, zero_point, "int8_narrow" if zero_point > -128 else "int8")
    found = requantize([accumulator], input_scale=0.01, weight_scale=0.02, output=out, rule=rule)
    exact = accumulator * float(np.float32(0.01)) * float(np.float32(0.02)) / 0.25 + zero_point
    assert found.dtype == np.int8
    assert out.type.minimum <= found[0] <= out.type.maximum
    assert abs(float(found[0]) - np.clip(exact, out.type.minimum, out.type.maximum)) <= 0.5 + 1e-3


def test_a_rule_or_an_output_that_does_not_fit_is_refused() -> None:
    out = encoding(0.1, 3)
    with pytest.raises(PlanError, match=r"onnxruntime, fbgemm, qnnpack, onednn, got 'other'"):
        requantize([1], input_scale=1, weight_scale=1, output=out, rule="other")
    several = Encoding(
        type=UINT8, granularity=PerAxis(0), scale=np.ones(2, np.float32), zero_point=np.zeros(2, np.int32)
    )
    with pytest.raises(PlanError, match="one scale of the output"):
        requantize([1, 2], input_scale=1, weight_scale=1, output=several, rule="fbgemm")
    with pytest.raises(PlanError, match="fbgemm or qnnpack, got 'onednn'"):
        add([1], [1], (out, out, out), "onednn")
