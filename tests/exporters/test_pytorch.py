"""The exported program has the plan's numbers under the network's names, and computes what the simulation computes."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.encoding import Encoding
from narrowgauge.errors import OutputError, TargetError
from narrowgauge.exporters import pytorch as exporter
from narrowgauge.exporters.formats import Export, Exported
from narrowgauge.exporters.pytorch import check, declare_levels, write
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.pytorch.module import to_module
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.runtimes.pytorch import compile_program, open_program
from narrowgauge.targets.registry import load_target
from tests.exporters.making import export
from tests.lowering.networks import hand_plan, per_tensor, photos
from tests.planning.networks import network, normal, run

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")

IMAGES, ROWS = normal(8, 3, 8, 8), normal(8, 7, 16)


@pytest.fixture(scope="module")
def convolutions() -> ir.Model:
    return network(
        "float[n, 3, 8, 8] x", "float[n, 5] y",
        """c = Conv<pads = [1, 1, 1, 1]>(x, w, b)  r = Relu(c)  d = Conv<group = 4, pads = [1, 1, 1, 1]>(r, v)
           s = Add(r, d)  e = ConvTranspose<strides = [2, 2]>(s, e_w)  p = GlobalAveragePool(e)  f = Flatten(p)
           y = Gemm<transB = 1>(f, u, u_b)""",
        w=normal(4, 3, 3, 3), b=normal(4), v=normal(4, 1, 3, 3), e_w=normal(4, 6, 2, 2), u=normal(5, 6), u_b=normal(5),
    )  # fmt: skip


@pytest.fixture(scope="module")
def products() -> ir.Model:
    return network(
        "float[n, t, 16] x", "float[n, t, 24] y",
        "c = MatMul(x, w)  a = Add(c, b)  r = Gelu(a)  y = MatMul(r, v)",
        w=normal(16, 32), b=normal(32), v=normal(32, 24),
    )  # fmt: skip


@pytest.fixture(scope="module")
def quantized_products(products: ir.Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Export, Exported]:
    """A planned network and what was written of it."""
    made = export(products, ROWS, "pytorch-fbgemm")
    return made, write(made, tmp_path_factory.mktemp("products"))


def steps(made: Export, folder: Path, data: np.ndarray) -> np.ndarray:
    """How many levels the program's output is off the simulation's, each element."""
    written = write(made, folder)
    assert written.runnable == folder / "model.pt2"
    found, expected = open_program(written.runnable, threads=1).run({"x": data})["y"], run(made.simulated, data)
    encoding = made.plan.encodings.get("y")
    step = float(encoding.scale) if isinstance(encoding, Encoding) else float(np.abs(expected).max()) / 255
    return np.abs(found - expected) / step


@pytest.mark.parametrize(
    "asked",
    [{"granularity": "tensor"}, {"target": "pytorch-qnnpack", "activations": "int8"},
     {"target": "tflite", "activations": "int16"}, {"target": "openvino", "weights": "int4"}],
    ids=str,
)  # fmt: skip
def test_convolutions_compute_what_the_simulation_does(
    convolutions: ir.Model, tmp_path: Path, asked: dict[str, Any]
) -> None:
    off = steps(export(convolutions, IMAGES, **{"target": "pytorch-fbgemm", **asked}), tmp_path, IMAGES)
    assert (off < 1.01).mean() >= 0.8, "a number next to a tie may fall on the other side"


@pytest.mark.parametrize(
    "asked",
    [{"mode": "dynamic"}, {"target": "onnxruntime", "mode": "weight-only"},
     {"target": "openvino", "mode": "weight-only", "weights": "int4", "granularity": "block", "block_size": 32}],
    ids=str,
)  # fmt: skip
def test_matrix_products_compute_what_the_simulation_does(
    products: ir.Model, tmp_path: Path, asked: dict[str, Any]
) -> None:
    assert steps(export(products, ROWS, **{"target": "pytorch-fbgemm", **asked}), tmp_path, ROWS).max() < 1.01


def test_scales_that_are_powers_of_two_leave_nothing_to_rounding(tmp_path: Path) -> None:
    """Then the inverse of a scale and all sums are exact, and so are the simulation's, in any order."""
    rng = np.random.default_rng(0)
    model = network(
        "float[n, 3, 6, 6] x", "float[n, 5] y",
        "c = Conv<pads = [1, 1, 1, 1]>(x, w, b)  r = Relu(c)  p = MaxPool<kernel_shape = [6, 6]>(r)  f = Flatten(p)  "
        "y = Gemm(f, u)",
        w=rng.integers(-9, 10, (4, 3, 3, 3)).astype(np.float32) / 8, b=rng.integers(-9, 10, 4).astype(np.float32) / 64,
        u=rng.integers(-9, 10, (4, 5)).astype(np.float32) / 8,
    )  # fmt: skip
    encodings = {
        "x": per_tensor("uint8", 1 / 16, 128), "w": per_tensor("int8_narrow", 1 / 8), "u": per_tensor("int8", 1 / 8),
        "r": per_tensor("uint8", 1 / 8, 3), "p": per_tensor("uint8", 1 / 8, 3), "f": per_tensor("uint8", 1 / 8, 3),
        "y": per_tensor("int8", 1 / 2, -7),
    }  # fmt: skip
    plan = hand_plan(encodings)
    made = Export(network=model, plan=plan, target=load_target("pytorch-qnnpack"), simulated=lower_to_qdq(model, plan))
    data = (rng.integers(-90, 90, (64, 3, 6, 6)) / 32).astype(np.float32)
    assert steps(made, tmp_path, data).max() == 0


def test_nodes_and_numbers_are_called_like_the_networks_values(convolutions: ir.Model, tmp_path: Path) -> None:
    made = export(convolutions, IMAGES, "pytorch-fbgemm", activations="uint8")
    program = torch.export.load(write(made, tmp_path).runnable)
    names = {node.name: str(node.target) for node in program.graph.nodes}
    assert program.graph_signature.user_inputs == ("x",)
    assert program.graph_signature.user_outputs == ("y",)
    for name, encoding in made.plan.encodings.items():
        if name in made.network.graph.initializers:
            assert program.state_dict[f"numbers.{name}_quantized"].dtype == torch.int8
            continue
        assert names[f"{name}_quantized"] == "quantized_decomposed.quantize_per_tensor.default"
        node = next(node for node in program.graph.nodes if node.name == f"{name}_quantized")
        assert node.args[1:] == (float(encoding.scale), int(encoding.zero_point), 0, 255, torch.uint8)
    assert names["d"] == "aten.conv2d.default"
    assert names["y_before_rounding"] == "aten.linear.default"


def test_seven_bits_are_levels_of_the_operator_and_no_clip(convolutions: ir.Model, tmp_path: Path) -> None:
    made = export(convolutions, IMAGES, "pytorch-fbgemm", activations="uint7")
    program = torch.export.load(write(made, tmp_path).runnable)
    rounded = [node for node in program.graph.nodes if str(node.target).startswith("quantized_decomposed.quantize")]
    assert {node.args[3:5] for node in rounded} == {(0, 127)}
    assert "clamp" not in str(program.graph)


def test_names_that_are_no_identifiers_come_back(tmp_path: Path) -> None:
    model = network("float[n, 4] x, float[n, 4] k", "float[n, 4] y, float[n, 4] z", "y = Relu(x) z = Add(x, k)")
    for value, name in ((model.graph.inputs[0], "in/put:0"), (model.graph.inputs[1], "for"),
                        (model.graph.outputs[0], "out.put/0"), (model.graph.outputs[1], "x")):  # fmt: skip
        value.name = name
    plan = hand_plan({})
    written = write(
        Export(network=model, plan=plan, target=export(model, {}, mode="none").target, simulated=model), tmp_path
    )
    program = open_program(written.runnable)
    assert [spec.name for spec in program.inputs] == ["in/put:0", "for"]
    found = program.run({"in/put:0": -np.ones((3, 4), np.float32), "for": np.ones((3, 4), np.float32)})
    assert {name: float(array.max()) for name, array in found.items()} == {"out.put/0": 0.0, "x": 0.0}


def test_axes_that_the_network_leaves_open_stay_open(quantized_products: tuple[Export, Exported]) -> None:
    _, written = quantized_products
    program = open_program(written.runnable, threads=1)
    assert program.inputs[0].shape == (None, None, 16)
    assert len(written.notes) == 1  # on its speed, none on an axis
    for rows, length in ((1, 1), (1, 9), (2, 1), (5, 3)):
        assert program.run({"x": normal(rows, length, 16)})["y"].shape == (rows, length, 24)


def test_an_axis_that_pytorch_fixes_is_said(tmp_path: Path) -> None:
    model = network("float[n, t] x", "float[n, 4] y", "s = Reshape(x, shape) y = MatMul(s, w)",
                    shape=np.array([-1, 8], np.int64), w=normal(8, 4))  # fmt: skip
    written = write(export(model, normal(3, 8), "pytorch-fbgemm", mode="none"), tmp_path)
    fixed = [spec for spec in open_program(written.runnable).inputs[0].shape if spec is not None]
    assert len(written.notes) == 1 + len(fixed)


def a_shared_weight() -> ir.Model:
    return network("float[n, 8] x", "float[n, 8] y", "a = MatMul(x, w) r = Relu(a) y = MatMul(r, w)", w=normal(8, 8))


def no_sample_axis() -> ir.Model:
    return network("float[8] x", "float[4] y", "y = MatMul(x, w)", w=normal(8, 4))


@pytest.mark.parametrize("make", [a_shared_weight, no_sample_axis])
def test_other_networks(tmp_path: Path, make: Callable[[], ir.Model]) -> None:
    model = make()
    shape = [3 if size != 8 else 8 for size in model.graph.inputs[0].shape]
    data = normal(*shape)
    plan = hand_plan(
        {"x": per_tensor("uint8", 0.03, 128), "w": per_tensor("int8", 0.03), "y": per_tensor("uint8", 0.1, 99)}
    )
    made = Export(network=model, plan=plan, target=load_target("pytorch-fbgemm"), simulated=lower_to_qdq(model, plan))
    assert steps(made, tmp_path, data).max() < 1.01


def again(made: Export) -> Any:
    """The module that the writer made its program of."""
    network_ = made.simulated.clone()
    declare_levels(network_, made.plan)
    return to_module(network_)


@pytest.mark.parametrize(
    ("change", "what"),
    [({"scale": np.float32(0.5)}, "scale 0.5"), ({"zero_point": np.int32(3)}, "zero point 3")],
)  # fmt: skip
def test_a_number_that_differs_is_named(
    quantized_products: tuple[Export, Exported], change: dict[str, Any], what: str
) -> None:
    made, written = quantized_products
    encodings = dict(made.plan.encodings)
    encodings["x"] = replace(encodings["x"], **change)
    back, path = torch.export.load(written.runnable), written.runnable
    check(back, again(made), made.plan, path)
    with pytest.raises(OutputError, match=f"model.pt2: 'x_quantized': expected the {what} of the plan"):
        check(back, again(made), replace(made.plan, encodings=encodings), path)


def test_a_rounding_that_is_gone_or_added_is_named(quantized_products: tuple[Export, Exported]) -> None:
    made, written = quantized_products
    module, path = again(made), written.runnable
    back = torch.export.load(path)
    part = module.operators.pop("x_quantized")
    with pytest.raises(OutputError, match="a rounding that the plan has not: 'x_quantized'"):
        check(back, module, made.plan, path)
    module.operators["x_quantized"], module.operators["other"] = part, part
    module.value_names["other"] = ("other",)
    with pytest.raises(OutputError, match="expected the rounding of 'other'"):
        check(back, module, made.plan, path)


def test_an_operator_that_pytorch_lacks_is_named(tmp_path: Path) -> None:
    model = network("float[n, 4] x", "float[n, 4] y", "y = Hardmax(x)")
    with pytest.raises(TargetError, match="'node': Hardmax"):
        write(export(model, normal(3, 4), "pytorch-fbgemm", mode="none"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    model = network("float[n, 4] x", "float[n, 4] y", "y = Relu(x)")
    with pytest.raises(OutputError, match=r"model\.pt2"):
        write(export(model, normal(3, 4), "pytorch-fbgemm", mode="none"), tmp_path / "none")


def test_the_names_of_the_network_lie_in_the_file(quantized_products: tuple[Export, Exported]) -> None:
    with zipfile.ZipFile(quantized_products[1].runnable) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(exporter.NAMES)]
        assert json.loads(archive.read(name)) == {"inputs": ["x"], "outputs": ["y"]}


def test_the_file_says_nothing_of_the_machine_that_wrote_it(quantized_products: tuple[Export, Exported]) -> None:
    with zipfile.ZipFile(quantized_products[1].runnable) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    here = str(Path(exporter.__file__).resolve().parents[2]).encode()
    assert not [word for word in (here, b".py", b"site-packages", b"narrowgauge.lowering") if word in content]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["pytorch-fbgemm", "pytorch-qnnpack"])
def test_a_whole_network_is_within_a_step(zoo: Path, tmp_path: Path, target: str) -> None:
    model, data = load(zoo / "models" / "cifar_resnet" / "resnet20.onnx").model, photos(zoo, 32, 24)
    made = export(model, data[:8], target)
    written = write(made, tmp_path)
    name = str(model.graph.outputs[0].name)
    feed = {str(model.graph.inputs[0].name): data[8:]}
    found, expected = open_program(written.runnable).run(feed)[name], run(made.simulated, feed)
    off = np.abs(found - expected) / float(made.plan.encodings[name].scale)
    assert (off < 1.5).mean() >= 0.9, "in twenty layers a number next to a tie moves others"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_inductor_computes_in_integers(tmp_path: Path) -> None:
    from torch._inductor.utils import run_and_get_code

    model = network(
        "float[n, 16, 8, 8] x", "float[n, 5] y",
        """c = Conv<pads = [1, 1, 1, 1]>(x, w, b)  r = Relu(c)  d = Conv<pads = [1, 1, 1, 1]>(r, v)
           p = GlobalAveragePool(d)  f = Flatten(p)  y = Gemm<transB = 1>(f, u, u_b)""",
        w=normal(32, 16, 3, 3), b=normal(32), v=normal(32, 32, 3, 3), u=normal(5, 32), u_b=normal(5),
    )  # fmt: skip
    data = normal(4, 16, 8, 8)
    made = export(model, data, "pytorch-fbgemm", activations="uint8")
    program = compile_program(write(made, tmp_path).runnable, threads=1)
    found, code = run_and_get_code(program.run, {"x": data})
    text = "\n".join(code)
    assert text.count("torch.ops.onednn.qconv_pointwise") >= 2
    assert "torch.ops.onednn.qlinear_pointwise" in text
    off = np.abs(found["y"] - run(made.simulated, data)) / float(made.plan.encodings["y"].scale)
    assert (off < 1.5).mean() >= 0.8
