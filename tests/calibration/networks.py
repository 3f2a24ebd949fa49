"""Small networks with whole-number weights: on whole-number samples every float32 sum is exact in any order."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
from onnx import numpy_helper

from narrowgauge.calibration.statistics import Statistics, TensorStatistics
from narrowgauge.data import Batch, batches, input_specs, open_samples
from narrowgauge.importers.onnx import load

Array = npt.NDArray[np.float32]

CONVOLUTIONS = """
<ir_version: 10, opset_import: ["": 21]>
convolutions (float[n, 3, 24, 24] x) => (float[n, 5] y)
{
    c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)
    r1 = Relu(c1)
    c2 = Conv<pads = [1, 1, 1, 1], group = 12>(r1, w2)
    s = Add(r1, c2)
    p = GlobalMaxPool(s)
    f = Flatten(p)
    y = Gemm(f, w3)
}
"""
"""`c1` to `s` have 12 x 24 x 24 elements, more than calibration takes out of the engine whole."""

SEQUENCE = """
<ir_version: 10, opset_import: ["": 21]>
sequence (float[n, t, 4] x) => (float[t, n, 6] y, float[n] m)
{
    h = MatMul(x, w1)
    b = Relu(h)
    y = Transpose<perm = [1, 0, 2]>(b)
    z = Neg(y)
    axes = Constant<value_ints = [0, 2]>()
    m = ReduceSum<keepdims = 0>(z, axes)
}
"""
"""Any number of steps; the first axis of `z` is time, not the batch."""

BRANCHES = """
<ir_version: 10, opset_import: ["": 21]>
branches (float[n, 4] x) => (float[n, 6] y)
{
    axes = Constant<value_ints = [0, 1]>()
    total = ReduceSum<keepdims = 0>(x, axes)
    zero = Constant<value_float = 0.0>()
    positive = Greater(total, zero)
    h = If (positive) <
        then_branch = then_graph () => (float[n, 4] then_out) { then_out = Add(x, x) },
        else_branch = else_graph () => (float[n, 4] else_out) { inner = Neg(x) else_out = Relu(inner) }
    >
    y = MatMul(h, w1)
}
"""


def network(text: str, weights: dict[str, Array], *, batch: int | None = None) -> ir.Model:
    """Read a network and give it weights; `batch` fixes the number of rows of its inputs."""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    if batch is not None:
        for value in [*proto.graph.input, *proto.graph.output]:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    return load(proto, simplify=False).model


def whole(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(-4, 5, shape).astype(np.float32)


def convolutions(*, batch: int | None = None) -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {"w1": whole(rng, 12, 3, 3, 3), "w2": whole(rng, 12, 1, 3, 3), "w3": whole(rng, 12, 5)}
    return network(CONVOLUTIONS, weights, batch=batch)


def sequence() -> ir.Model:
    return network(SEQUENCE, {"w1": whole(np.random.default_rng(1), 4, 6)})


def branches() -> ir.Model:
    return network(BRANCHES, {"w1": whole(np.random.default_rng(2), 4, 6)})


def pictures(count: int, seed: int = 3) -> Array:
    return whole(np.random.default_rng(seed), count, 3, 24, 24)


def batches_of(model: ir.Model, data: Any, size: int = 8) -> Iterator[Batch]:
    specs = input_specs(model)
    return batches(open_samples(data, specs), size, specs)


def exposed(
    model: ir.Model, feeds: Sequence[dict[str, npt.NDArray[Any]]], names: Sequence[str]
) -> dict[str, list[Array]]:
    """Values of the network as ONNX Runtime computes them, run by run, without any rewriting."""
    proto = ir.to_proto(model)
    taken = {value.name for value in proto.graph.output}
    inputs = {value.name for value in proto.graph.input}
    wanted = [name for name in names if name not in inputs]
    for name in wanted:
        if name not in taken:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    runs = [session.run(wanted, feed) for feed in feeds]
    found: dict[str, list[Array]] = {name: [run[index] for run in runs] for index, name in enumerate(wanted)}
    return found | {name: [feed[name] for feed in feeds] for name in names if name in inputs}


def assert_same_tensor(first: TensorStatistics, second: TensorStatistics, *, name: str = "") -> None:
    assert (first.minimum, first.maximum) == (second.minimum, second.maximum), name
    np.testing.assert_array_equal(first.histogram.bins, second.histogram.bins, err_msg=name)
    np.testing.assert_array_equal(first.histogram.counts, second.histogram.counts, err_msg=name)
    bad = [(each.nan_count, each.infinity_count, each.first_bad, each.first_bad_index) for each in (first, second)]
    assert bad[0] == bad[1], name
    assert (first.channels is None) == (second.channels is None), name
    if first.channels is not None and second.channels is not None:
        assert (first.channels.axis, first.channels.count) == (second.channels.axis, second.channels.count), name
        np.testing.assert_array_equal(first.channels.minimum, second.channels.minimum, err_msg=name)
        np.testing.assert_array_equal(first.channels.maximum, second.channels.maximum, err_msg=name)
        np.testing.assert_allclose(first.channels.total, second.channels.total, rtol=1e-12, err_msg=name)


def assert_same_statistics(first: Statistics, second: Statistics) -> None:
    assert set(first.tensors) == set(second.tensors)
    for name, tensor in first.tensors.items():
        assert_same_tensor(tensor, second.tensors[name], name=name)
    assert dict(first.aliases) == dict(second.aliases)
    assert (first.samples, first.sampled, first.network) == (second.samples, second.sampled, second.network)
