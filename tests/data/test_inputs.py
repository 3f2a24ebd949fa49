from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from narrowgauge.data import InputSpec, input_specs
from narrowgauge.data.inputs import has_batch_axis, rows_per_run
from narrowgauge.errors import DataError
from tests.data.networks import PICTURE, SPEECH, TEXT, image_input


def test_inputs_of_a_model_leave_out_initializers() -> None:
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[N, 4] x, int64[2, M] ids, float16 s, float[4] w) => (float[N, 4] y)
        <float[4] w = {1, 2, 3, 4}>
        { y = Mul(x, w) }
        """
    )
    assert input_specs(ir.from_proto(proto)) == (
        InputSpec(name="x", shape=(None, 4), dtype=np.dtype(np.float32)),
        InputSpec(name="ids", shape=(2, None), dtype=np.dtype(np.int64)),
        InputSpec(name="s", shape=(), dtype=np.dtype(np.float16)),
    )


def test_input_without_shape_is_refused() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "graph",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    with pytest.raises(DataError, match="input 'x'"):
        input_specs(ir.from_proto(onnx.helper.make_model(graph)))


def test_batch_axis() -> None:
    assert [has_batch_axis(inputs) for inputs in (PICTURE, TEXT, SPEECH, image_input(4, 3))] == [
        True,
        True,
        False,
        True,
    ]
    assert [rows_per_run(inputs) for inputs in (PICTURE, TEXT, SPEECH, image_input(4, 3))] == [None, None, 1, 4]


@pytest.mark.parametrize(
    "path",
    ["mobilenet_v2/mobilenet_v2_1.0_224.onnx", "onnx_other/silero_vad_16k_op15.onnx", "dtln/model_1.onnx"],
)
def test_inputs_of_real_networks_are_those_of_the_engine(zoo: Path, path: str) -> None:
    session = onnxruntime.InferenceSession(zoo / "models" / path, providers=["CPUExecutionProvider"])
    expected = [
        (entry.name, tuple(extent if isinstance(extent, int) else None for extent in entry.shape))
        for entry in session.get_inputs()
    ]
    assert [(spec.name, spec.shape) for spec in input_specs(ir.load(zoo / "models" / path))] == expected
