"""Plans, feeds and comparisons for the tests of lowering."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from PIL import Image

from narrowgauge.calibration.collect import collect
from narrowgauge.calibration.ranges import estimator
from narrowgauge.core.encoding import AnyEncoding, Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import FloatNode, Mode, Plan
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.data.batches import Batch
from narrowgauge.graph.engine import Optimization, open_session, session_options
from narrowgauge.planning.choices import Choices, NodeChoice
from narrowgauge.planning.fill import fill
from narrowgauge.planning.place import place
from narrowgauge.targets.registry import load_target

Feed = Mapping[str, np.ndarray]


def photos(zoo: Path, size: int, count: int) -> np.ndarray:
    """Return the first photos, `[count, 3, size, size]`, about zero mean and one deviation."""
    files = sorted((zoo / "images" / "nips17" / "images").iterdir())[:count]
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((size, size)), np.float32) for file in files]
    return np.ascontiguousarray((np.stack(pixels) / 127.5 - 1).transpose(0, 3, 1, 2))


def calibrated_plan(
    model: ir.Model,
    feeds: Sequence[Feed],
    *,
    mode: Mode = "static",
    activations: str | None = None,
    weights: str | None = None,
    granularity: str | None = None,
    block_size: int = 0,
) -> Plan:
    """Plan a network for ONNX Runtime with ranges that clip nothing."""
    everywhere = NodeChoice(
        weights=None if weights is None else integer_type(weights),
        activations=None if activations is None else integer_type(activations),
        granularity=granularity,
    )
    choices = Choices(mode=mode, everywhere=everywhere, estimator=estimator("max"), block_size=block_size)
    target = load_target("onnxruntime")
    statistics = None
    if mode == "static":
        batches = [Batch(feed=feed, count=1, names=(str(n),), labels=(None,)) for n, feed in enumerate(feeds)]
        statistics = collect(model, batches)
    return fill(model, place(model, target, choices), statistics, target, choices)


MOVING = {"Flatten", "Reshape", "Slice", "Pad", "MaxPool"}


def integer_plan(
    model: ir.Model, feed: Feed, *, activations: str = "uint8", weights: str = "int8", channels: bool = True
) -> Plan:
    """Plan every operator of a convolutional network in integers, each value with the range that one feed gives it."""
    everything = model.clone()
    everything.graph.outputs[:] = [value for each in everything.graph for value in each.outputs]
    seen = {**run(everything, feed), **feed}
    kind = integer_type(activations)
    encodings: dict[str, AnyEncoding] = {}
    for name in (str(value.name) for value in model.graph.inputs):
        encodings[name] = encoding_from_range(seen[name].min(), seen[name].max(), kind, PerTensor())
    for each in model.graph:
        output = str(each.outputs[0].name)
        follower = next(iter(each.outputs[0].consumers()), None)
        if each.op_type in {"Conv", "Gemm"} and each.inputs[1] is not None:
            array = each.inputs[1].const_value.numpy()
            axis = 0 if each.op_type == "Conv" or each.attributes.get_int("transB", 0) else 1
            encodings[str(each.inputs[1].name)] = (
                per_channel(weights, array, axis)
                if channels
                else encoding_from_range(array.min(), array.max(), integer_type(weights), PerTensor(), symmetric=True)
            )
        if each.op_type in MOVING:
            encodings[output] = encodings[str(each.inputs[0].name)]
        elif not each.outputs[0].is_graph_output() and follower is not None and follower.op_type in {"Relu", "Clip"}:
            continue
        else:
            encodings[output] = encoding_from_range(seen[output].min(), seen[output].max(), kind, PerTensor())
    return hand_plan(encodings)


def hand_plan(encodings: Mapping[str, AnyEncoding], *, mode: Mode = "static", float_nodes: Sequence[str] = ()) -> Plan:
    nodes = tuple(FloatNode(name=name, operator="", reason="by hand") for name in float_nodes)
    return Plan(target="by hand", mode=mode, encodings=encodings, float_nodes=nodes)


def per_tensor(kind: str, scale: float, zero_point: int = 0) -> Encoding:
    return Encoding(
        type=integer_type(kind), granularity=PerTensor(), scale=np.float32(scale), zero_point=np.int32(zero_point)
    )


def per_channel(kind: str, weights: np.ndarray, axis: int) -> Encoding:
    """Encode weights symmetrically, one scale per index of an axis."""
    reach = np.abs(weights).max(axis=tuple(i for i in range(weights.ndim) if i != axis))
    return encoding_from_range(-reach, reach, integer_type(kind), PerAxis(axis), symmetric=True)


def run(model: ir.Model, feed: Feed, optimization: Optimization = "none") -> dict[str, np.ndarray]:
    session = open_session(model, threads=1, optimization=optimization)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def optimised(model: ir.Model, folder: Path, optimization: Optimization = "extended") -> Counter[str]:
    """Count the operators of the graph that ONNX Runtime makes of a network when it loads it."""
    import onnx
    import onnxruntime

    options = session_options(threads=1, optimization=optimization)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def products(model: ir.Model, *operators: str) -> int:
    """Count the operators that multiply with constant weights."""
    return sum(each.op_type in operators and each.inputs[1].const_value is not None for each in model.graph)


def sqnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to quantization noise ratio, dB."""
    noise = np.square(reference.astype(np.float64) - other).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-30)))
