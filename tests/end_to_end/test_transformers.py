"""Transformers of every exporter: what they are made of is recognised, and planned right on every kind of target."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from torch import nn  # noqa: E402 - behind the skip

from narrowgauge.calibration.collect import collect  # noqa: E402
from narrowgauge.core.encoding import Encoding  # noqa: E402
from narrowgauge.core.granularity import PowerOfTwoFactor  # noqa: E402
from narrowgauge.core.plan import Plan  # noqa: E402
from narrowgauge.graph.roles import is_constant, weight_inputs  # noqa: E402
from narrowgauge.importers.opening import load  # noqa: E402
from narrowgauge.lowering.qdq import lower_to_qdq  # noqa: E402
from narrowgauge.planning.fill import fill  # noqa: E402
from narrowgauge.planning.place import Placement, place  # noqa: E402
from narrowgauge.targets.registry import load_target  # noqa: E402
from tests import transformers as zoo  # noqa: E402
from tests.calibration.networks import batches_of  # noqa: E402
from tests.planning.networks import choices, sqnr  # noqa: E402

Array = np.ndarray[Any, Any]

PARTS = {"Erf", "Tanh", "Einsum", "Attention", "Pow", "Sqrt", "Div", "Sub", "Reciprocal", "IsNaN", "ReduceMean"}
"""What is left of a block where it was not recognised; a pooled head has a ReduceMean of its own."""

VISION: dict[str, tuple[Callable[[], Any], dict[str, int]]] = {
    "fused attention": (zoo.VisionTransformer, {}),
    "packed attention": (lambda: zoo.VisionTransformer(lambda: zoo.PackedAttention(fused=False)), {}),
    "normalized queries": (
        lambda: zoo.VisionTransformer(lambda: zoo.PackedAttention(fused=True, qk_norm=True)),
        {"LayerNormalization": 9},
    ),
    "separate layers, tanh, pooled": (
        lambda: zoo.VisionTransformer(zoo.SeparateAttention, lambda: nn.GELU(approximate="tanh"), pool="avg"),
        {"ReduceMean": 1},
    ),
    "heads in the batch, power, scaled layers": (
        lambda: zoo.VisionTransformer(zoo.BatchedAttention, zoo.PowerGelu, layer_scale=True), {},
    ),
    "biased, cubic, own normalization": (
        lambda: zoo.VisionTransformer(zoo.BiasedAttention, zoo.CubicGelu, zoo.OwnNorm, pool="avg"), {"ReduceMean": 1},
    ),
    "einsum, two tokens": (lambda: zoo.VisionTransformer(zoo.EinsumAttention, distilled=True), {}),
    "PyTorch's layer, normalized behind": (lambda: zoo.VisionTransformer(zoo.TorchAttention, before=False), {}),
    "windows": (zoo.WindowTransformer, {"LayerNormalization": 9, "Gelu": 3, "Softmax": 3, "ReduceMean": 1}),
    "windows, fused, merged by reshapes": (
        lambda: zoo.WindowTransformer(fused=True, sliced=False),
        {"LayerNormalization": 9, "Gelu": 3, "Softmax": 3, "ReduceMean": 1, "Div": 1},  # how many windows there are
    ),
}  # fmt: skip
SCRIPT, DYNAMO, NEWEST = (False, 14), (True, 18), (True, 23)
QUICK = [*((name, SCRIPT) for name in VISION), ("separate layers, tanh, pooled", DYNAMO)]
SLOW = [
    (name, exporter)
    for name in VISION
    for exporter in (DYNAMO, NEWEST)
    if (name, exporter) not in QUICK and not name.startswith("windows, fused")  # torch.export refuses its rows // 4
]
ALL = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


def export_and_load(module: Any, example: tuple[Array, ...], exporter: tuple[bool, int]) -> ir.Model:
    with tempfile.TemporaryDirectory() as folder:
        dynamo, opset = exporter
        tensors = tuple(torch.from_numpy(each) for each in example)
        path = zoo.export(module, tensors, Path(folder) / "n.onnx", dynamo=dynamo, opset=opset)
        return load(ir.to_proto(ir.load(path))).model


@functools.cache
def network(name: str, exporter: tuple[bool, int]) -> tuple[Any, ir.Model]:
    module = zoo.spread(VISION[name][0]())
    return module, export_and_load(module, (zoo.pictures(2),), exporter)


def plan_of(model: ir.Model, target: str, samples: tuple[Array, ...], *, ranges: str = "mse") -> tuple[Plan, Placement]:
    asked, chosen = choices(model, ranges=ranges), load_target(target)
    placement = place(model, chosen, asked)
    feed = {str(value.name): each for value, each in zip(model.graph.inputs, samples, strict=True)}
    return fill(model, placement, collect(model, batches_of(model, feed)), chosen, asked), placement


def noise(model: ir.Model, plan: Plan, *inputs: Array) -> float:
    return sqnr(zoo.computed(model, *inputs), zoo.computed(lower_to_qdq(model, plan), *inputs))


@pytest.mark.parametrize(("name", "exporter"), ALL)
def test_blocks_are_recognised(name: str, exporter: tuple[bool, int]) -> None:
    module, model = network(name, exporter)
    expected = {"LayerNormalization": 5, "Gelu": 2, "Softmax": 2, **VISION[name][1]}
    found = zoo.operators(model)
    assert {operator: found[operator] for operator in expected} == expected
    assert not {operator for operator in PARTS - expected.keys() if found[operator]}
    for rows in (1, 3):
        pictures = zoo.pictures(rows, seed=rows)
        wanted = zoo.answers(module, pictures)
        assert np.abs(zoo.computed(model, pictures) - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(("name", "exporter"), ALL)
def test_a_target_of_integers_leaves_nothing_float(name: str, exporter: tuple[bool, int]) -> None:
    model = network(name, exporter)[1]
    plan, _ = plan_of(model, "integer-only", (zoo.pictures(48, seed=5),))
    assert not plan.float_nodes
    assert noise(model, plan, zoo.pictures(16, seed=9)) > 20
    streams = [one for one in plan.encodings.values() if isinstance(one, Encoding)]
    assert any(isinstance(one.granularity, PowerOfTwoFactor) for one in streams)


ENGINES = ("onnxruntime", "openvino", "tensorrt")
ON_ENGINES = [
    (name, target) for name in ("separate layers, tanh, pooled", "einsum, two tokens", "windows") for target in ENGINES
]


@pytest.mark.parametrize(("name", "target"), ON_ENGINES)
def test_engines_keep_all_but_products_in_float(name: str, target: str) -> None:
    model = network(name, SCRIPT)[1]
    plan, placement = plan_of(model, target, (zoo.pictures(48, seed=5),))
    for node in model.graph:
        if weight_inputs(node):
            assert node.name in placement.integer_nodes
        residual = node.op_type == "Add" and not any(map(is_constant, node.inputs))
        if node.op_type in {"LayerNormalization", "Softmax"} or residual:
            assert node.name not in placement.integer_nodes
        if node.op_type in {"LayerNormalization", "Softmax", "Gelu"} or residual:
            assert not {value.name for value in node.inputs} & plan.encodings.keys()
    assert noise(model, plan, zoo.pictures(16, seed=9)) > 25


def test_a_shifted_mask_costs_the_scores_no_levels() -> None:
    model = network("windows", SCRIPT)[1]
    plan, _ = plan_of(model, "integer-only", (zoo.pictures(48, seed=5),), ranges="max")
    scores = [plan.encodings[str(node.inputs[0].name)] for node in model.graph if node.op_type == "Softmax"]
    assert all(isinstance(one, Encoding) and float(one.minimum) > -50 for one in scores)


def before_normalizations(name: str) -> dict[str, set[str]]:
    """By the operator that writes it: how values before a normalization are rounded."""
    model = network(name, SCRIPT)[1]
    plan, _ = plan_of(model, "integer-only", (zoo.pictures(48, seed=5),))
    found: dict[str, set[str]] = {}
    for node in model.graph:
        if node.op_type == "LayerNormalization":
            value = node.inputs[0]
            encoding = plan.encodings[str(value.name)]
            assert isinstance(encoding, Encoding)
            kind = f"{encoding.type.name} {type(encoding.granularity).__name__}"
            found.setdefault(value.producer().op_type, set()).add(kind)
    return found


def test_factors_pass_windows_but_no_exchange_of_channels() -> None:
    # Windows and shifts move positions. Merging makes channels of four of them: by Concat, which has its own factors,
    # or by Reshape and Transpose, which can hand none on.
    assert all(kinds == {"uint8 PowerOfTwoFactor"} for kinds in before_normalizations("windows").values())
    by_reshape = before_normalizations("windows, fused, merged by reshapes")
    assert by_reshape["Add"] == {"uint8 PowerOfTwoFactor"}
    assert by_reshape["Reshape"] == {"uint8 PowerOfTwoFactor", "int16 PerTensor"}


@functools.cache
def text_network(lowest: float) -> tuple[Any, ir.Model]:
    module = zoo.spread(zoo.MaskedEncoder(lowest))
    return module, export_and_load(module, words(2), SCRIPT)


def words(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Numbers of words, and 1 where there is one."""
    generator = np.random.default_rng(seed)
    mask = (np.arange(12) < generator.integers(4, 13, count)[:, None]).astype(np.int64)
    return generator.integers(0, 50, (count, 12)), mask


@pytest.mark.parametrize("lowest", [-10000.0, float(np.finfo(np.float32).min)])
def test_a_mask_that_is_computed_keeps_the_scores(lowest: float) -> None:
    module, model = text_network(lowest)
    assert np.allclose(zoo.computed(model, *words(5, 1)), zoo.answers(module, *words(5, 1)), atol=1e-4)
    samples = words(64, 5)  # measured on themselves: three outputs of few samples have no range that holds for others
    assert noise(model, plan_of(model, "integer-only", samples, ranges="max")[0], *samples) > 20


def hugging_face(kind: str) -> Any:
    hf = pytest.importorskip("transformers", reason="needs Hugging Face's transformers")
    size: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    picture = {"image_size": 32, "patch_size": 8, "num_labels": 10}
    if kind.startswith("bert"):
        given = hf.BertConfig(
            **size, vocab_size=50, max_position_embeddings=16, num_labels=3, attn_implementation=kind[5:]
        )
        return hf.BertForSequenceClassification(given)
    if kind == "vit":
        return hf.ViTForImageClassification(hf.ViTConfig(**size, **picture))
    if kind == "deit":
        return hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**size, **picture))
    given = hf.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4)
    return hf.SwinForImageClassification(given)


class Logits(nn.Module):
    """The tensor alone of what Hugging Face's classes return."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, first: Any, mask: Any = None) -> Any:
        return (self.inner(first) if mask is None else self.inner(first, attention_mask=mask)).logits


@pytest.mark.slow
@pytest.mark.parametrize("exporter", [SCRIPT, NEWEST])
@pytest.mark.parametrize("kind", ["vit", "deit", "swin", "bert eager", "bert sdpa"])
def test_hugging_face(kind: str, exporter: tuple[bool, int]) -> None:
    with zoo.quiet():
        module = Logits(zoo.spread(hugging_face(kind))).eval()
    if kind == "swin" and exporter == NEWEST:
        module.inner.set_attn_implementation("eager")  # torch.export refuses the rows // windows of the other
    inputs = words if kind.startswith("bert") else lambda count, seed=0: (zoo.pictures(count, seed=seed),)
    model = export_and_load(module, inputs(2), exporter)
    found = zoo.operators(model)
    blocks = 3 if kind == "swin" else 2
    assert (found["Gelu"], found["Softmax"]) == (blocks, blocks)
    assert found["LayerNormalization"] == (9 if kind == "swin" else 5)
    assert not {operator for operator in PARTS - {"Tanh", "Div"} if found[operator]}
    wanted = zoo.answers(module, *inputs(3, 1))
    assert np.abs(zoo.computed(model, *inputs(3, 1)) - wanted).max() <= 1e-4 * np.abs(wanted).max()
    plan, _ = plan_of(model, "integer-only", inputs(64, 5))
    # A mask is chosen by numbers that were never rounded.
    assert {node.operator for node in plan.float_nodes} <= ({"Where", "Slice"} if kind.startswith("bert") else set())
    assert noise(model, plan, *inputs(16, 9)) > 20
    assert noise(model, plan_of(model, "onnxruntime", inputs(64, 5))[0], *inputs(16, 9)) > 24


@pytest.mark.slow
@pytest.mark.parametrize("approximate", [False, True])
def test_keras(approximate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="needs Keras")
    layers = keras.layers
    first = keras.Input((32, 32, 3))
    x = layers.Reshape((16, 32))(layers.Conv2D(32, 8, 8)(first))
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 16)(y, y)])
        y = layers.Dense(64)(layers.LayerNormalization(epsilon=1e-6)(x))
        y = layers.Activation(lambda z: keras.activations.gelu(z, approximate=approximate))(y)
        x = layers.Add()([x, layers.Dense(32)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    module = keras.Model(first, layers.Dense(10)(x))
    pictures = zoo.pictures(64).transpose(0, 2, 3, 1).copy()
    with zoo.quiet():  # Keras and NumPy disagree about copies
        model = load(module).model
        wanted = module.predict(pictures[:3], verbose=0)
    found = zoo.operators(model)
    assert (found["LayerNormalization"], found["Gelu"], found["Softmax"]) == (5, 2, 2)
    assert not {operator for operator in PARTS - {"ReduceMean"} if found[operator]}
    assert np.abs(zoo.computed(model, pictures[:3]) - wanted).max() <= 1e-4 * np.abs(wanted).max()
    plan, _ = plan_of(model, "integer-only", (pictures,))
    assert not plan.float_nodes
    assert noise(model, plan, pictures[:16]) > 20
