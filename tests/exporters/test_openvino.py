"""The IR has the plan's numbers, computes what the simulation computes, and what differs is named."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.plan import Plan
from narrowgauge.errors import OutputError, TargetError
from narrowgauge.exporters.formats import Export
from narrowgauge.exporters.openvino import check, write
from narrowgauge.graph.constants import set_constant
from narrowgauge.runtimes.openvino import open_program
from narrowgauge.targets.registry import load_target
from tests.exporters.making import export
from tests.planning.networks import network, normal, run

openvino = pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")

IMAGES, ROWS = normal(8, 3, 8, 8), normal(8, 7, 64)


@pytest.fixture(scope="module")
def convolutions() -> ir.Model:
    return network(
        "float[n, 3, 8, 8] x", "float[n, 5] y",
        """c = Conv<pads = [1, 1, 1, 1]>(x, w, b)  r = Relu(c)  d = Conv<group = 4, pads = [1, 1, 1, 1]>(r, v)
           e = ConvTranspose<strides = [2, 2]>(d, e_w)  p = GlobalAveragePool(e)  f = Flatten(p)
           y = Gemm<transB = 1>(f, u, u_b)""",
        w=normal(4, 3, 3, 3), b=normal(4), v=normal(4, 1, 3, 3), e_w=normal(4, 6, 2, 2), u=normal(5, 6), u_b=normal(5),
    )  # fmt: skip


@pytest.fixture(scope="module")
def products() -> ir.Model:
    return network(
        "float[n, 7, 64] x", "float[n, 7, 96] y, float[n, 7, 7] s",
        "c = MatMul(x, w)  r = Gelu(c)  y = MatMul(r, v)  t = Transpose<perm = [0, 2, 1]>(r)  s = MatMul(r, t)",
        w=normal(64, 32), v=normal(32, 96),
    )  # fmt: skip


def differences(made: Export, folder: Path, data: np.ndarray) -> float:
    """Largest difference between the written file and the simulation, of the largest output."""
    written = write(made, folder)
    assert written.runnable == folder / "model.xml"
    transposed = ["t"] if "t" in made.plan.encodings else []  # OpenVINO makes a transpose a part of the product
    assert [note.split("'")[1] for note in written.notes] == [f"{name}_dequantized" for name in transposed]
    found, expected = open_program(written.runnable, threads=1).run({"x": data})["y"], run(made.simulated, data)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    "asked",
    [{}, {"weights": "int7"}, {"weights": "int4"},
     {"mode": "weight-only"}, {"mode": "weight-only", "weights": "int4"}, {"target": "tflite"}],
    ids=str,
)  # fmt: skip
def test_convolutions_compute_what_the_simulation_does(
    convolutions: ir.Model, tmp_path: Path, asked: dict[str, Any]
) -> None:
    assert differences(export(convolutions, IMAGES, **asked), tmp_path, IMAGES) < 1e-5


@pytest.mark.parametrize(
    "asked",
    [{}, {"mode": "weight-only"}, {"mode": "weight-only", "weights": "int4", "granularity": "block", "block_size": 32},
     {"target": "onnxruntime", "mode": "dynamic"}, {"target": "onnxruntime"}],
    ids=str,
)  # fmt: skip
def test_matrix_products_compute_what_the_simulation_does(
    products: ir.Model, tmp_path: Path, asked: dict[str, Any]
) -> None:
    assert differences(export(products, ROWS, **asked), tmp_path, ROWS) < 1e-5


def test_weights_are_written_in_their_integers(convolutions: ir.Model, tmp_path: Path) -> None:
    write(export(convolutions, IMAGES), tmp_path)
    weights = 4 * 3 * 9 + 4 * 9 + 4 * 6 * 4 + 5 * 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    constants = [
        node for node in openvino.Core().read_model(tmp_path / "model.xml").get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == "i8"
    ]  # fmt: skip
    assert sum(node.data.size for node in constants) == weights


def changed(made: Export, name: str, by: float) -> ir.Model:
    """Return the simulation with one initializer's numbers changed in their last element."""
    other = made.simulated.clone()
    value = other.graph.initializers[name]
    array = value.const_value.numpy().copy()
    array.reshape(-1)[-1:] = (array.reshape(-1)[-1:] * by if by != 1 else array.reshape(-1)[-1:] + 1).astype(
        array.dtype
    )
    set_constant(value, array)
    return other


@pytest.mark.parametrize(
    ("name", "by", "what"),
    [("x_scale", 1.001, "scale"), ("x_zero_point", 1, "zero point"), ("w_scale", 1.001, "scale"),
     ("w_quantized", 1, "levels"), ("u_scale", 0.999, "scale")],
)  # fmt: skip
def test_a_number_that_differs_is_named(
    convolutions: ir.Model, tmp_path: Path, name: str, by: float, what: str
) -> None:
    made = export(convolutions, IMAGES)
    write(made, tmp_path)
    back = openvino.Core().read_model(tmp_path / "model.xml")
    assert check(back, made.simulated, tmp_path / "model.xml") == []
    with pytest.raises(OutputError, match=f"{name.split('_', maxsplit=1)[0]}_.*{what}"):
        check(back, changed(made, name, by), tmp_path / "model.xml")


def test_an_input_or_output_that_is_gone_is_named(products: ir.Model, tmp_path: Path) -> None:
    made = export(products, ROWS)
    write(made, tmp_path)
    back, other = openvino.Core().read_model(tmp_path / "model.xml"), made.simulated.clone()
    other.graph.outputs[1].name = "other"
    with pytest.raises(OutputError, match="output 'other'"):
        check(back, other, tmp_path / "model.xml")


def test_an_operator_that_openvino_does_not_know_is_an_error(tmp_path: Path) -> None:
    model = network("float[n, 4] x", "float[n, 4] y", "y = Relu(x)")
    model.graph[0].op_type, model.graph[0].domain = "Nonsense", "my.domain"
    model.opset_imports["my.domain"] = 1
    plan = Plan(target="openvino", encodings={})
    with pytest.raises(TargetError, match=r"OpenVINO does not take the network: .*Nonsense"):
        write(Export(network=model, plan=plan, target=load_target("openvino"), simulated=model), tmp_path)
    assert list(tmp_path.iterdir()) == []
