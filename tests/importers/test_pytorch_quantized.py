"""Networks that PyTorch's own tools quantized: the same integers, scales and zero points, in Q/DQ form."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from torch import nn  # noqa: E402 - behind the skip
from torch.ao import quantization  # noqa: E402
from torch.ao.quantization import quantize_fx  # noqa: E402
from torch.nn import functional  # noqa: E402

from narrowgauge.errors import ModelError  # noqa: E402
from narrowgauge.importers.prequantized import take_apart  # noqa: E402
from narrowgauge.importers.pytorch import convert  # noqa: E402
from narrowgauge.importers.pytorch.operators import register  # noqa: E402
from narrowgauge.importers.pytorch.twins import Watch, float_twin, is_quantized_module, taking_over  # noqa: E402
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq  # noqa: E402
from tests.importers.test_pytorch import run  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch calls its older quantization deprecated

ENGINES = [engine for engine in ("x86", "fbgemm", "qnnpack") if engine in torch.backends.quantized.supported_engines]
if not ENGINES:
    pytest.skip("this build of PyTorch has no engine for quantized modules", allow_module_level=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Any:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    yield request.param
    torch.backends.quantized.engine = before


def images(rows: int, seed: int = 0) -> Any:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant = quantization.QuantStub()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.add = torch.ao.nn.quantized.FloatFunctional()
        self.cat = torch.ao.nn.quantized.FloatFunctional()
        self.fc = nn.Linear(16, 5)
        self.dequant = quantization.DeQuantStub()

    def forward(self, image: Any) -> Any:
        x = self.relu(self.bn(self.conv(self.quant(image))))
        x = self.cat.cat([self.add.add_relu(x, self.depthwise(x)), x], 1)
        return self.dequant(self.fc(functional.max_pool2d(x, 8).flatten(1)))


def eager(engine: str) -> Any:
    torch.manual_seed(0)
    module = quantization.fuse_modules(Convolutional().eval(), [["conv", "bn", "relu"]])
    module.qconfig = quantization.get_default_qconfig(engine)
    prepared = quantization.prepare(module)
    prepared(images(16))
    return quantization.convert(prepared)


def encodings(model: ir.Model) -> dict[str, tuple[list[float], list[int]]]:
    """Scale and zero point by the name of the levels."""
    found = {}
    for node in model.graph:
        if node.op_type == "DequantizeLinear":
            source, scale, zero_point = node.inputs
            assert source is not None and scale is not None and zero_point is not None  # noqa: PT018
            assert scale.const_value is not None and zero_point.const_value is not None  # noqa: PT018
            found[str(source.name).removesuffix("_quantized")] = (
                np.atleast_1d(scale.const_value.numpy()).tolist(),
                np.atleast_1d(zero_point.const_value.numpy()).tolist(),
            )
    return found


def single(scale: float, zero_point: int) -> tuple[list[float], list[int]]:
    return [float(np.float32(scale))], [zero_point]


def steps_apart(model: ir.Model, module: Any, inputs: Any, scale: float) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        expected = module(inputs).dequantize().numpy()
    (found,) = run(model, [inputs])
    return np.rint(np.abs(found - expected) / scale)


@pytest.mark.parametrize("engine", [ENGINES[0], pytest.param(ENGINES[-1], marks=pytest.mark.slow)], indirect=True)
def test_eager_networks_keep_integers_scales_and_names(engine: str) -> None:
    module = eager(engine)
    converted = convert(module, example=[(images(4), torch.tensor([0, 1, 2, 3]))])
    assert converted.target == ("pytorch-qnnpack" if engine == "qnnpack" else "pytorch-fbgemm")
    assert not converted.notes
    model = converted.model
    assert model.graph.inputs[0].name == "image"
    assert model.graph.inputs[0].shape == ir.Shape(["batch", 3, 8, 8])
    found = encodings(model)
    for name in ("conv", "depthwise", "fc"):
        layer = getattr(module, name)
        assert found[name] == single(layer.scale, layer.zero_point)
        weight = layer.weight() if callable(layer.weight) else layer.weight
        stored = model.graph.initializers[f"{name}.weight_quantized"].const_value
        assert stored is not None
        np.testing.assert_array_equal(stored.numpy(), weight.int_repr().numpy())
        if weight.qscheme() == torch.per_channel_affine:
            assert found[f"{name}.weight"][0] == weight.q_per_channel_scales().float().tolist()
        else:
            assert found[f"{name}.weight"] == single(weight.q_scale(), weight.q_zero_point())
        np.testing.assert_array_equal(
            model.graph.initializers[f"{name}.bias"].const_value.numpy(),  # type: ignore[union-attr]
            layer.bias().detach().numpy(),
        )
    assert found["image"] == single(float(module.quant.scale), int(module.quant.zero_point))
    apart = steps_apart(model, module, images(200, seed=1), module.fc.scale)
    assert (apart > 0).mean() <= 0.02
    assert (apart > 1).mean() <= 0.001
    parted = take_apart(model, target=converted.target)
    assert parted.plan.target == converted.target
    simulated = run(lower_to_qdq(parted.model, parted.plan, QdqStyle(bias_bits=0)), [images(20)])
    np.testing.assert_array_equal(simulated[0], run(model, [images(20)])[0])


class Traced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.act = nn.Hardswish()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Any) -> Any:
        x = functional.max_pool2d(functional.relu(self.up(self.act(self.conv(x)))), 16)
        x = x.reshape(x.size(0), -1)
        return torch.sigmoid(functional.linear(x, self.weight))


@pytest.mark.parametrize("engine", ENGINES[-1:], indirect=True)  # x86 itself gets transposed convolutions wrong
def test_fx_networks_keep_integers(engine: str) -> None:
    torch.manual_seed(0)
    mapping = quantization.get_default_qconfig_mapping(engine)
    prepared = quantize_fx.prepare_fx(Traced().eval(), mapping, (images(2),))
    prepared(images(16))
    module = quantize_fx.convert_fx(prepared)
    converted = convert(module, example=images(4))
    assert not converted.notes
    found = encodings(converted.model)
    assert found["conv"] == single(module.conv.scale, module.conv.zero_point)
    assert found["sigmoid"] == single(1 / 256, 0)
    apart = steps_apart(converted.model, module, images(200, seed=1), 1 / 256)
    assert (apart > 1).mean() <= 0.001
    assert (apart > 0).mean() <= 0.02


@pytest.mark.slow
def test_fx_reference_networks_are_the_same_float_computation() -> None:
    torch.manual_seed(0)
    prepared = quantize_fx.prepare_fx(Traced().eval(), quantization.get_default_qconfig_mapping("fbgemm"), (images(2),))
    prepared(images(16))
    module = quantize_fx.convert_to_reference_fx(prepared)
    converted = convert(module, example=images(4))
    assert not converted.notes
    assert "conv.weight_quantized" in converted.model.graph.initializers
    assert steps_apart(converted.model, module, images(50, seed=1), 1 / 256).max() == 0


@pytest.mark.slow
def test_static_lstm_networks_are_unrolled() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
            self.lstm = nn.LSTM(6, 4)

        def forward(self, x: Any) -> Any:
            return self.dequant(self.lstm(self.quant(x))[0])

    torch.manual_seed(0)
    module = Network().eval()
    module.qconfig = quantization.default_qconfig
    prepared = quantization.prepare(module)
    prepared(torch.randn(3, 5, 6))
    module = quantization.convert(prepared)
    inputs = torch.randn(3, 5, 6)
    converted = convert(module, example=inputs)
    assert ["batches as large" in note for note in converted.notes] == [True]
    step = module.lstm.layers[0].layer_fw.cell.ogate_cy.scale
    assert steps_apart(converted.model, module, inputs, step).max() <= 1


def quantized(tensor: Any, scale: float = 0.05, zero_point: int = 100, dtype: Any = torch.quint8) -> Any:
    return torch.quantize_per_tensor(tensor, scale, zero_point, dtype)


OPERATORS: dict[str, Callable[[Any], Any]] = {
    "add": lambda x: torch.ops.quantized.add(x, x, 0.11, 90),
    "add_relu": lambda x: torch.ops.quantized.add_relu(x, x, 0.11, 0),
    "add_scalar": lambda x: torch.ops.quantized.add_scalar(x, 0.37),
    "mul": lambda x: torch.ops.quantized.mul(x, x, 0.2, 5),
    "mul_scalar": lambda x: torch.ops.quantized.mul_scalar(x, 0.37),
    "mul_scalar, negative": lambda x: torch.ops.quantized.mul_scalar(x, -0.37),
    "matmul": lambda x: torch.ops.quantized.matmul(x, x.transpose(2, 3), 0.4, 20),
    "cat": lambda x: torch.ops.quantized.cat([x, x], dim=1, scale=0.07, zero_point=90),
    "torch.cat": lambda x: torch.cat([x, torch.quantize_per_tensor(x.dequantize() * 2, 0.1, 60, torch.quint8)], 1),
    "elu": lambda x: torch.ops.quantized.elu(x, 0.03, 40),
    "leaky_relu": lambda x: torch.ops.quantized.leaky_relu(x, 0.1, False, 0.04, 10),
    "hardswish": lambda x: torch.ops.quantized.hardswish(x, 0.04, 10),
    "softmax": lambda x: torch.ops.quantized.softmax(x, 3, 1 / 256, 0),
    "layer_norm": lambda x: torch.ops.quantized.layer_norm(x, [8], None, None, 1e-5, 0.03, 100),
    "group_norm": lambda x: torch.ops.quantized.group_norm(x, 1, None, None, 1e-5, 0.03, 100),
    "instance_norm": lambda x: torch.ops.quantized.instance_norm(x, None, None, 1e-5, 0.03, 100),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "average pool": lambda x: functional.avg_pool2d(x, 2),
    "adaptive pool": lambda x: functional.adaptive_avg_pool2d(x, 3),
    "max pool": lambda x: functional.max_pool2d(x, 3, 2, 1),
    "mean": lambda x: x.mean((2, 3)),
    "clamp": lambda x: x.clamp(-0.5, 1.0),
    "hardtanh": functional.hardtanh,
    "nearest": lambda x: functional.interpolate(x, scale_factor=2, mode="nearest"),
    "bilinear": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "moves": lambda x: x[:, :2].permute(0, 2, 3, 1).contiguous().reshape(x.size(0), -1),
    "chunks": lambda x: torch.cat(x.chunk(2, 3), 3),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_calls_taken_over_round_as_the_quantized_ones(name: str) -> None:
    """Each within a step of the engine, and with the scale and zero point that the engine's result has."""
    from narrowgauge.importers.pytorch.roundings import rounding_of

    register()
    source = images(4)
    expected = OPERATORS[name](quantized(source))
    with taking_over(Watch()):
        found = OPERATORS[name](quantized(source))
        rounding = rounding_of(found)
    assert rounding is not None
    assert rounding.scale == pytest.approx(expected.q_scale(), rel=1e-6)
    assert rounding.zero_point == expected.q_zero_point()
    apart = (found - expected.dequantize()).abs() / expected.q_scale()
    assert float(apart.max()) <= 1.01
    assert float((apart > 0.5).float().mean()) <= 0.1  # ties: an engine has its own order of rounding


class Unknown(Convolutional):
    def forward(self, image: Any) -> Any:
        return self.dequant(self.quant(image).cumsum(1))


def test_unknown_calls_name_themselves() -> None:
    register()
    module = Unknown().eval()
    module.qconfig = quantization.get_default_qconfig("fbgemm")
    prepared = quantization.prepare(module)
    prepared.quant(images(2))
    with pytest.raises(ModelError, match=r"^the function 'cumsum' on quantized tensors is not known; quantize"):
        convert(quantization.convert(prepared), example=images(2))
    with taking_over(Watch()), pytest.raises(ModelError, match="the function 'cumsum' on quantized tensors"):
        quantized(images(1)).cumsum(1)
    with taking_over(Watch()), pytest.raises(ModelError, match="quantized::embedding_4bit"):
        torch.ops.quantized.embedding_4bit(images(1), images(1))
    with taking_over(Watch()), pytest.raises(ModelError, match=r"quint8 or qint8, got torch\.qint32"):
        quantized(images(1), dtype=torch.qint32)


def test_float_modules_are_told_from_quantized_ones() -> None:
    assert not is_quantized_module(Convolutional())
    assert not is_quantized_module(nn.Sequential(torch.ao.nn.quantized.FloatFunctional()))
    module = eager(ENGINES[0])
    assert is_quantized_module(module)
    assert not any(isinstance(value, torch.ScriptObject) for value in vars(float_twin(module).conv).values())
    assert is_quantized_module(module), "the module itself is left alone"


class Decomposed(nn.Module):
    """What convert_pt2e writes, its variants side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.randint(-127, 127, (8, 3, 3, 3), dtype=torch.int8))
        self.register_buffer("scales", 0.01 * torch.rand(8) + 0.001)
        self.register_buffer("zeros", torch.zeros(8, dtype=torch.int64))
        self.register_buffer("step", torch.tensor(0.0213))
        self.register_buffer("zero", torch.tensor(3))
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        known = torch.ops.quantized_decomposed
        first = (0.03, 5, -128, 127, torch.int8)
        x = known.dequantize_per_tensor(known.quantize_per_tensor(x, *first), *first)
        frozen = known.dequantize_per_channel(self.frozen, self.scales, self.zeros, 0, -127, 127, torch.int8)
        x = functional.conv2d(x, frozen, self.conv.bias)
        seven_bits = (0.05, 60, 0, 127, torch.uint8)
        x = known.dequantize_per_tensor(known.quantize_per_tensor(x, *seven_bits), *seven_bits).amax((2, 3))
        held = (self.step, self.zero, -128, 127, torch.int8)
        x = known.dequantize_per_tensor.tensor(known.quantize_per_tensor.tensor(x, *held), *held)
        narrow = (0.1, 0, -7, 7, torch.int8)
        weight = known.dequantize_per_tensor(known.quantize_per_tensor(self.fc.weight, *narrow), *narrow)
        return functional.linear(x, weight, self.fc.bias)


def test_decomposed_operators_become_pairs() -> None:
    register()
    torch.manual_seed(0)
    module = Decomposed().eval()
    program = torch.export.export(module, (images(2),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    converted = convert(program)
    model = converted.model
    assert converted.target == "pytorch-qnnpack"
    levels = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert [node.outputs[0].dtype for node in levels] == [ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT8]
    (clip,) = (node for node in model.graph if node.op_type == "Clip")
    bounds = [value.const_value.numpy() for value in clip.inputs[1:] if value is not None and value.const_value]
    np.testing.assert_array_equal(bounds, np.float32([-60 * np.float32(0.05), 67 * np.float32(0.05)]))
    stored = {
        node.inputs[0].const_value.numpy().tobytes(): node.inputs[0].dtype  # type: ignore[union-attr]
        for node in model.graph
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].const_value is not None
    }
    assert stored[module.frozen.numpy().tobytes()] == ir.DataType.INT8
    narrow = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT4]
    (weight,) = (value for value in narrow if value.shape == ir.Shape([4, 8]))
    expected = torch.ops.quantized_decomposed.quantize_per_tensor(module.fc.weight, 0.1, 0, -7, 7, torch.int8)
    assert weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy().astype(np.int8), expected.numpy())
    inputs = images(9, seed=2)
    with torch.no_grad():
        expected = module(inputs).numpy()
    np.testing.assert_allclose(run(model, [inputs])[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_dynamic_linear_layers_round_by_each_batch() -> None:
    module = quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), {nn.Linear}
    )
    converted = convert(module, example=torch.randn(4, 6))
    assert any("range of each batch" in note for note in converted.notes)
    operators = [node.op_type for node in converted.model.graph]
    assert operators.count("DynamicQuantizeLinear") == 2
    assert operators.count("Gemm") == 2
    inputs = torch.randn(7, 6)
    (found,) = run(converted.model, [inputs])
    assert np.abs(found - module(inputs).detach().numpy()).max() < 0.05


@pytest.mark.slow
def test_pt2e_programs_keep_integers_and_names() -> None:
    pytest.importorskip("torchao", reason="needs torchao, which quantizes exported programs")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    torch.manual_seed(0)
    module = Traced().eval()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    dynamic = ({0: torch.export.Dim.AUTO},)
    prepared = prepare_pt2e(torch.export.export(module, (images(2),), dynamic_shapes=dynamic).module(), quantizer)
    prepared(images(16))
    quantized_module = convert_pt2e(prepared)
    program = torch.export.export(quantized_module, (images(2),), dynamic_shapes=dynamic)
    converted = convert(program)
    assert converted.target == "pytorch-fbgemm"
    assert "conv.weight_quantized" in converted.model.graph.initializers
    inputs = images(20, seed=1)
    with torch.no_grad():
        expected = quantized_module(inputs).numpy()
    np.testing.assert_allclose(run(converted.model, [inputs])[0], expected, atol=1e-5)
