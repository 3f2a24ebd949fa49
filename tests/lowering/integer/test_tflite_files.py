"""Files that others quantized, in integers, against LiteRT: every tensor inside, integer for integer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.importers.tflite.conversion import convert
from tests.lowering.integer.networks import encoding as encoding_of
from tests.lowering.integer.networks import levels_of, lowered, real

SMALL = [
    "mlperf_tiny/pretrainedResnet_quant", "mlperf_tiny/kws_ref_model", "mlperf_tiny/vww_96_int8",
    "mlperf_tiny/ad01_int8", "mlperf_tiny/str_ww_ref_model", "tflite_int8/vww", "tflite_int8/conv_fc_mnist_srq_a8w8",
]  # fmt: skip
LARGE = [
    "tflite_int8/mobilenet_v1_0.25_224_quant", "tflite_int8/mobilenet_v2_1.0_224_quant",
    "tflite_int8/mobilenet_v2_quantized_1x3x224x224",
]  # fmt: skip
FILES = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


def opened(path: Path, rule: str) -> Any:
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="compares with LiteRT")
    resolvers = litert.OpResolverType
    chosen = resolvers.BUILTIN_REF if rule == "tflite-reference" else resolvers.AUTO
    interpreter = litert.Interpreter(
        str(path), experimental_op_resolver_type=chosen, experimental_preserve_all_tensors=True, num_threads=1
    )
    interpreter.allocate_tensors()
    return interpreter


def sample(zoo: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A photo where the input has three channels, else a walk over all levels; of real numbers noise."""
    limits = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else None
    rng = np.random.default_rng(1)
    if limits is None:
        return rng.normal(size=shape).astype(dtype)
    if len(shape) == 4 and 3 in (shape[1], shape[3]):
        rows, columns = shape[1:3] if shape[3] == 3 else shape[2:]
        file = min((zoo / "images" / "nips17" / "images").iterdir())
        pixels = np.asarray(Image.open(file).convert("RGB").resize((columns, rows)), np.int64)
        pixels = pixels if shape[3] == 3 else pixels.transpose(2, 0, 1)
        return (pixels[None] + int(limits.min)).astype(dtype)
    return np.clip(np.cumsum(rng.integers(-20, 21, shape), axis=-1), limits.min, limits.max).astype(dtype)


@pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`")
@pytest.mark.parametrize("rule", ["xnnpack", "tflite-reference"])
@pytest.mark.parametrize("name", FILES)
def test_every_tensor_of_a_file_is_litert_s(zoo: Path, name: str, rule: str) -> None:
    path = zoo / "models" / f"{name}.tflite"
    interpreter = opened(path, rule)
    found = lowered(convert(path).model, KERNELS[rule])
    assert found.refusals == ()
    feed = {}
    for detail in interpreter.get_input_details():
        given = sample(zoo, tuple(detail["shape"]), detail["dtype"])
        interpreter.set_tensor(detail["index"], given)
        scale, zero_point = detail["quantization"]
        kind = encoding_of(given.dtype.name, scale, zero_point) if scale else None
        feed[detail["name"]] = given if kind is None else real(given, kind)
    interpreter.invoke()
    ours = levels_of(found.model, feed)
    compared = 0
    for detail in interpreter.get_tensor_details():
        levels = ours.get(f"{detail['name']}_quantized")
        if levels is None or detail["dtype"] not in (np.int8, np.uint8) or is_constant(found.model, detail["name"]):
            continue
        theirs = interpreter.get_tensor(detail["index"])
        levels = levels if levels.shape == theirs.shape else levels.transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(levels, theirs, err_msg=detail["name"])
        compared += 1
    assert compared >= 7


def is_constant(model: ir.Model, name: str) -> bool:
    return f"{name}_quantized" in model.graph.initializers
