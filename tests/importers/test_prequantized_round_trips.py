"""What we, and ONNX Runtime's own quantizer, write to a file comes back from it: the same plan, the same numbers."""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime.quantization as ort_quantization
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType

from narrowgauge.calibration.collect import collect
from narrowgauge.calibration.ranges import estimator
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.encoding import AnyEncoding, DynamicEncoding, Encoding, same_encoding
from narrowgauge.core.granularity import PerAxis
from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.data.batches import Batch
from narrowgauge.demo import digits, network_path
from narrowgauge.exporters.forms import forms_for
from narrowgauge.graph.digest import network_digest
from narrowgauge.graph.engine import open_session
from narrowgauge.graph.quantized import is_quantized
from narrowgauge.importers.imported import ImportedModel
from narrowgauge.importers.onnx import load as load_onnx
from narrowgauge.importers.opening import load
from narrowgauge.lowering.parameters import fills_container
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.lowering.qoperator import lower_to_qoperator
from narrowgauge.planning.choices import Choices, NodeChoice
from narrowgauge.planning.fill import fill
from narrowgauge.planning.place import place
from narrowgauge.planning.support import unsupported
from narrowgauge.targets.registry import load_target, target_names

NETWORKS = ("digits_conv", "digits_vit")
IMAGES = digits().images[:16]


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[ir.Model, Statistics]]:
    batch = Batch(feed={"image": IMAGES}, count=len(IMAGES), names=("",) * len(IMAGES), labels=(None,) * len(IMAGES))
    models = {name: load_onnx(network_path(name)).model for name in NETWORKS}
    return {name: (model, collect(model, [batch])) for name, model in models.items()}


def run(model: ir.Model | Path, images: np.ndarray = IMAGES) -> np.ndarray:
    session = open_session(model, threads=1, optimization="none", simulate=True)
    return np.asarray(session.run(None, {"image": images})[0])


def as_stored(encoding: AnyEncoding) -> AnyEncoding:
    """What a Q/DQ file says of weights: levels of fewer bits, or without the lowest one, stand in 8 bits or 16."""
    if isinstance(encoding, DynamicEncoding):
        return DynamicEncoding(type=integer_type("uint8"))
    if fills_container(encoding.type):
        return encoding
    bits = next(bits for bits in (8, 16) if bits >= encoding.type.bits)
    return replace(encoding, type=IntegerType(bits=bits, signed=encoding.type.signed))


def assert_same_plan(found: Plan | None, plan: Plan, model: ir.Model) -> None:
    """Encoding for encoding; a value between two equal roundings whose Clip saturation replaced is not in the file."""
    assert found is not None
    assert found.mode == plan.mode
    assert set(found.encodings) <= set(plan.encodings)
    sources = {str(node.outputs[0].name): node.inputs[0].name for node in model.graph if node.op_type == "Clip"}
    for name, encoding in plan.encodings.items():
        if name not in found.encodings:
            assert same_encoding(plan.encodings[str(sources[name])], encoding)
            continue
        constant = name in model.graph.initializers
        expected = as_stored(encoding) if constant or isinstance(encoding, DynamicEncoding) else encoding
        assert same_encoding(found.encodings[name], expected), name


RECIPES = {
    "static": Choices(mode="static", estimator=estimator("max")),
    "static with weights of 4 bits": Choices(
        mode="static", estimator=estimator("max"), everywhere=NodeChoice(weights=integer_type("int4"))
    ),
    "dynamic": Choices(mode="dynamic", estimator=estimator("max")),
    "weight-only": Choices(mode="weight-only", estimator=estimator("max")),
    "weight-only in blocks of 4 bits": Choices(
        mode="weight-only", estimator=estimator("max"), block_size=16,
        everywhere=NodeChoice(weights=integer_type("int4"), granularity="block"),
    ),
}  # fmt: skip


def cases() -> list[object]:
    """Every target and recipe; the quick run has every target once, and every recipe once."""
    return [
        pytest.param(target, recipe, marks=() if recipe == "static" or target == "onnxruntime" else pytest.mark.slow)
        for target in target_names()
        for recipe in RECIPES
    ]


@pytest.mark.parametrize(("target_name", "recipe"), cases())
def test_our_files_come_back(
    target_name: str, recipe: str, networks: dict[str, tuple[ir.Model, Statistics]], tmp_path: Path
) -> None:
    target, choices = load_target(target_name), RECIPES[recipe]
    name = "digits_vit" if target_name == "tvm" else "digits_conv"
    model, statistics = networks[name]
    plan = fill(model, place(model, target, choices), statistics if choices.mode == "static" else None, target, choices)
    if not plan.encodings:
        pytest.skip(f"{target_name} has nothing to quantize in this way")
    style = QdqStyle(bias_bits=target.bias_bits)
    forms = {"simulated": lower_to_qdq(model, plan, style)}
    signed = recipe == "dynamic" and target_name == "onnxruntime-arm"  # ONNX rounds at run time to uint8 only
    if target.runtime == "onnxruntime" and not signed and not unsupported(model, plan, target):
        written = forms_for(target, model, plan)
        known = written.exported is not None and "integer" not in target.formats  # which takes more than a layer's form
        forms |= {"exported": written.exported, "integer": written.integer} if known else {}
    for form, given in forms.items():
        if given is None:
            continue
        file = tmp_path / f"{form}.onnx"
        ir.save(given, file)
        imported = load(file)
        assert imported.plan is not None
        if choices.mode == "dynamic" and form != "simulated":
            assert_same_scales(imported.plan, plan)
        else:
            assert_same_plan(imported.plan, plan, model)
        assert imported.plan.network == network_digest(imported.original)
        assert not is_quantized(imported.model)
        again = lower_to_qdq(imported.original, imported.plan, style)
        if form == "integer" or (choices.mode == "dynamic" and form == "exported"):
            np.testing.assert_allclose(run(again), run(file), atol=0.1)  # kernels round ties in their own way
        else:
            np.testing.assert_array_equal(run(again), run(file))


def assert_same_scales(found: Plan, plan: Plan) -> None:
    """Integer products take the transposed weights of a Gemm, so the axis may be the other one."""
    assert set(found.encodings) == set(plan.encodings)
    for name, encoding in plan.encodings.items():
        other = found.encodings[name]
        if not isinstance(encoding, Encoding):
            assert isinstance(other, DynamicEncoding)
            continue
        assert isinstance(other, Encoding)
        assert isinstance(other.granularity, type(encoding.granularity))
        np.testing.assert_array_equal(other.scale, encoding.scale)
        np.testing.assert_array_equal(other.zero_point, encoding.zero_point)


# --- ONNX Runtime's own quantizer -----------------------------------------------------------------------------------


class _Reader(ort_quantization.CalibrationDataReader):
    def __init__(self) -> None:
        self.feeds: Iterator[dict[str, np.ndarray]] = iter([{"image": IMAGES}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def quantized_by_onnxruntime(model: ir.Model, folder: Path, **options: object) -> Path:
    given, written = folder / "float.onnx", folder / "quantized.onnx"
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # it transposes weights and believes the shapes that stand here
    onnx.save(proto, given)
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if options.pop("dynamic", False):
                ort_quantization.quantize_dynamic(given, written, **options)
            else:
                ort_quantization.quantize_static(given, written, _Reader(), **options)
    finally:
        logging.disable(logging.NOTSET)
    return written


def written_parameters(file: Path) -> set[tuple[tuple[float, ...], tuple[int, ...]]]:
    """Scales and zero points that the nodes of a file read, but those of biases."""
    graph = onnx.load(file).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = set()
    for node in graph.node:
        for scale, zero in zip(node.input, node.input[1:], strict=False):
            is_pair = scale.endswith("_scale") and zero.endswith("_zero_point")
            if is_pair and scale in arrays and zero in arrays and arrays[zero].dtype != np.int32:
                found.add((tuple(np.ravel(arrays[scale]).tolist()), tuple(np.ravel(arrays[zero]).tolist())))
    return found


def assert_nothing_lost(imported: ImportedModel, file: Path) -> None:
    assert imported.plan is not None
    kept = {
        (tuple(np.ravel(one.scale).tolist()), tuple(np.ravel(one.zero_point).tolist()))
        for one in imported.plan.encodings.values()
        if isinstance(one, Encoding)
    }
    assert written_parameters(file) == kept


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("per_channel", "activations", "weights"),
    [
        (True, QuantType.QUInt8, QuantType.QInt8),
        (False, QuantType.QInt8, QuantType.QInt8),
        (True, QuantType.QUInt8, QuantType.QUInt8),
        (True, QuantType.QUInt16, QuantType.QInt4),
    ],
)
def test_what_onnxruntime_quantized(
    form: QuantFormat, per_channel: bool, activations: QuantType, weights: QuantType,
    networks: dict[str, tuple[ir.Model, Statistics]], tmp_path: Path,
) -> None:  # fmt: skip
    if form == QuantFormat.QOperator and activations == QuantType.QUInt16:
        pytest.skip("operators of integers have 8 bits")
    file = quantized_by_onnxruntime(
        networks["digits_conv"][0], tmp_path, quant_format=form, per_channel=per_channel, activation_type=activations,
        weight_type=weights,
    )  # fmt: skip
    imported = load(file)
    assert imported.plan is not None
    assert_nothing_lost(imported, file)
    before = run(file)
    after = run(lower_to_qdq(imported.original, imported.plan))
    np.testing.assert_allclose(after, before, atol=0.05 if form == QuantFormat.QOperator else 1e-3)
    np.testing.assert_array_equal(run(imported.model).argmax(axis=1), before.argmax(axis=1))


@pytest.mark.parametrize("network", NETWORKS)
def test_what_onnxruntime_quantized_dynamically(
    network: str, networks: dict[str, tuple[ir.Model, Statistics]], tmp_path: Path
) -> None:
    file = quantized_by_onnxruntime(networks[network][0], tmp_path, dynamic=True, per_channel=True)
    imported = load(file)
    assert imported.plan is not None
    assert imported.plan.mode == "dynamic"
    assert any(isinstance(one, DynamicEncoding) for one in imported.plan.encodings.values())
    assert any(isinstance(one, Encoding) and one.granularity == PerAxis(1) for one in imported.plan.encodings.values())
    after = run(lower_to_qdq(imported.original, imported.plan))
    np.testing.assert_allclose(after, run(file), atol=0.1)


# --- the zoo --------------------------------------------------------------------------------------------------------


def test_operators_of_integers_of_the_zoo(zoo: Path) -> None:
    """Integers again from the parts, and the same output bit for bit: nothing was lost.

    The simulation rounds ties of float32 sums in its own way, and late layers of this network multiply such steps.
    """
    file = zoo / "models/onnx_int8/mobilenet_v2_quant.onnx"
    imported = load(file)
    assert imported.plan is not None
    assert_nothing_lost(imported, file)
    integer = lower_to_qoperator(lower_to_qdq(imported.original, imported.plan))
    x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    results = [open_session(model, threads=1).run(None, {"input": x})[0] for model in (file, integer)]
    np.testing.assert_array_equal(*results)
