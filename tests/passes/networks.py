"""Small networks for the tests of passes and importers, and the check that a rewrite changed no result."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import infer_shapes
from narrowgauge.importers.onnx import load

Size = int | str
Shape = Sequence[Size] | None

DYNAMIC_SIZE = 2
"""What a named axis is when a network is run here."""

RELATIVE_TOLERANCE = 1e-4
"""Of the largest output: folding moves float32 roundings about, which may cancel worse by a few decimals."""


def network(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str] | Mapping[str, int],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 21,
    ir_version: int | None = None,
    constants_as_inputs: bool = False,
    input_types: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Build a network; outputs are float32, or of the type given for each."""
    arrays, types = dict(constants or {}), dict(input_types or {})
    infos = [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape) for name, shape in inputs.items()
    ]
    if constants_as_inputs:
        infos += [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in arrays.items()
        ]
    output_types = outputs if isinstance(outputs, Mapping) else dict.fromkeys(outputs, TensorProto.FLOAT)
    graph = helper.make_graph(
        list(nodes),
        "network",
        infos,
        [helper.make_tensor_value_info(name, kind, None) for name, kind in output_types.items()],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    if any(node.domain for node in nodes):
        opsets += [helper.make_opsetid(domain, 1) for domain in {node.domain for node in nodes} if domain]
    version = ir_version or max(4, helper.find_min_ir_version_for(opsets[:1]))
    return helper.make_model(graph, opset_imports=opsets, ir_version=version)


def node(operator: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """Build a node; names are separated by blanks, `-` is a missing input."""
    names = ["" if name == "-" else name for name in inputs.split()]
    made = outputs.split()
    return helper.make_node(operator, names, made, name=f"node_{made[0]}", **attributes)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def statistics(channels: int, prefix: str = "") -> dict[str, np.ndarray]:
    """Make the four constants of a BatchNormalization, far from the identity."""
    generator = np.random.default_rng(channels)
    return {
        f"{prefix}gamma": generator.uniform(-2, 2, channels).astype(np.float32),
        f"{prefix}beta": generator.normal(size=channels).astype(np.float32),
        f"{prefix}mean": generator.normal(size=channels).astype(np.float32),
        f"{prefix}variance": generator.uniform(0.01, 4, channels).astype(np.float32),
    }


def run(model: onnx.ModelProto | ir.Model | str, seed: int = 0, size: int = DYNAMIC_SIZE) -> list[np.ndarray]:
    """Run in ONNX Runtime, without its own rewrites, on random inputs that depend on seed and shapes only."""
    source = model
    if isinstance(model, ir.Model):
        source = ir.to_proto(model).SerializeToString()
    elif isinstance(model, onnx.ModelProto):
        source = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(seed)
    feeds = {}
    for value in session.get_inputs():
        shape = [axis if isinstance(axis, int) else size for axis in value.shape]
        numbers = generator.standard_normal(shape)
        feeds[value.name] = numbers.astype(np.int64 if value.type == "tensor(int64)" else np.float32)
    return [np.asarray(output) for output in session.run(None, feeds)]


def assert_same(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], tolerance: float = RELATIVE_TOLERANCE
) -> None:
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert old.shape == new.shape
        assert old.dtype == new.dtype
        scale = float(np.abs(old).max()) if old.size else 0.0
        np.testing.assert_allclose(new, old, rtol=0, atol=tolerance * max(scale, 1e-6))


def rewrite(
    proto: onnx.ModelProto, *passes: Callable[[ir.Model], tuple[Refusal, ...]]
) -> tuple[ir.Model, tuple[Refusal, ...]]:
    """Import a network, run passes on it, and check that it is valid and gives the results it gave before."""
    before = run(proto)
    names = [value.name for value in proto.graph.output]
    model = load(proto, simplify=False).model
    refusals: list[Refusal] = []
    for one in passes:
        refusals += one(model)
    infer_shapes(model)
    onnx.checker.check_model(ir.to_proto(model))
    assert [value.name for value in model.graph.outputs] == names
    node_names = [each.name for each in model.graph]
    assert all(node_names)
    assert len(set(node_names)) == len(node_names)
    assert_same(before, run(model))
    return model, tuple(refusals)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(each.op_type for each in model.graph)
