import copy
import functools
import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from torch.utils import _pytree as pytree  # noqa: E402 - behind the skip

from narrowgauge.errors import MissingDependencyError, ModelError  # noqa: E402
from narrowgauge.importers import opening  # noqa: E402
from narrowgauge.importers.imported import ImportedModel  # noqa: E402
from narrowgauge.importers.pytorch import convert  # noqa: E402
from tests.importers import pytorch_networks as networks  # noqa: E402

TOLERANCE = 1e-5
"""Of the largest element: float32 sums in another order."""


def run(model: ir.Model, inputs: list[Any]) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), inputs, strict=True)}
    return list(session.run(None, feed))


def assert_equal(model: ir.Model, module: Any, call: tuple[Any, ...]) -> None:
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in pytree.tree_leaves(module(*call))]
    found = run(model, pytree.tree_leaves(call))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= TOLERANCE * np.abs(other).max()


def operators(imported: ImportedModel) -> Counter[str]:
    return Counter(node.op_type for node in imported.model.graph)


PICTURE = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SEQUENCE = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("build", "example", "expected"),
    [
        (networks.Residual, PICTURE, {"Conv": 5, "Relu": 4, "Add": 2, "GlobalAveragePool": 1, "Reshape": 1, "Gemm": 1}),
        pytest.param(
            networks.Mobile, PICTURE,
            {"Conv": 3, "Clip": 1, "HardSwish": 1, "GlobalAveragePool": 1, "Gemm": 1, "Softmax": 1},
            marks=pytest.mark.slow,
        ),
        (networks.Transformer, PICTURE, {"LayerNormalization": 3, "Gelu": 1, "Softmax": 1, "Shape": 1, "Conv": 0}),
        pytest.param(networks.Recurrent, SEQUENCE, {"LSTM": 1, "GRU": 1, "Expand": 0}, marks=pytest.mark.slow),
        pytest.param(networks.Functional, PICTURE[..., :8, :8], {"Conv": 1, "ConvTranspose": 1, "Pad": 0},
                     marks=pytest.mark.slow),
        pytest.param(networks.Branch, ROWS, {"If": 1}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_outputs_equal_for_any_number_of_rows_and_nothing_is_left_over(
    build: Callable[[], Any], example: Any, expected: dict[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    if build is networks.Transformer:
        module, imported = transformer()
    else:
        module = networks.seeded(build)
        imported = opening.load(module, example=example)
    assert imported.framework == "PyTorch"
    assert imported.plan is None
    assert not imported.notes
    shape = imported.model.graph.inputs[0].shape
    assert shape is not None
    assert shape[0] == ir.SymbolicDim("batch")
    for rows in (1, 2, 5):
        inputs = torch.cat([example, example])[:rows]
        assert_equal(imported.model, module, (inputs,))
        assert_equal(imported.original, module, (inputs,))
    found = operators(imported)
    assert {name: found[name] for name in expected} == expected
    if sum(expected.values()) > 8:
        assert found.total() == sum(expected.values())
    assert capfd.readouterr() == ("", "")


@functools.cache
def transformer() -> tuple[Any, ImportedModel]:
    module = networks.seeded(networks.Transformer)
    return module, opening.load(module, example=PICTURE)


@functools.cache
def residual() -> tuple[Any, ir.Model]:
    """A network whose module was in another mode while it was read."""
    module = networks.seeded(networks.Residual)
    module.train()
    module.layer1[0].bn1.eval()
    return module, convert(module, example=PICTURE).model


def test_names_are_those_of_modules_and_of_the_state_dict() -> None:
    module, model = residual()
    assert [value.name for value in model.graph.inputs] == ["image"]
    assert [value.name for value in model.graph.outputs] == ["fc"]
    values = [output.name for node in model.graph for output in node.outputs]
    assert values[:6] == ["stem", "layer1.0.bn1", "layer1.0.act", "layer1.0.conv2", "layer1.0.add", "layer1.0.act_1"]
    layers = [node.name for node in model.graph if node.op_type in ("Conv", "Gemm")]
    assert layers == ["stem", *(f"layer1.{block}.conv{number}" for block in (0, 1) for number in (1, 2)), "fc"]
    assert len({node.name for node in model.graph}) == len(model.graph)
    stored = {name for name in module.state_dict() if "bn1" not in name}
    assert stored <= set(model.graph.initializers)
    assert not model.graph.metadata_props
    assert not any(node.metadata_props for node in model.graph)


def test_operators_of_one_forward_are_counted_without_gaps() -> None:
    class Plain(torch.nn.Module):
        def forward(self, relu_1: Any) -> Any:
            x = torch.relu(torch.relu(relu_1 - 1) * 2 - 0.5)
            return torch.relu(x - 0.25) * x

    model = convert(Plain(), example=ROWS).model
    assert_equal(model, Plain(), (ROWS,))
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    assert [name for name in names if "relu" in str(name)] == ["relu", "relu_2", "relu_3"]
    assert model.graph.inputs[0].name == "relu_1"


def test_transposed_weights_keep_their_names() -> None:
    module, imported = transformer()
    model = imported.original
    weight = model.graph.initializers["blocks.0.qkv.weight"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), module.blocks[0].qkv.weight.detach().numpy().T)
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    assert softmax.outputs[0].name == "blocks.0.softmax"


def test_new_networks_keep_a_name_for_each_of_their_equal_weights() -> None:
    layers = [torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)]
    shared = torch.nn.LayerNorm(4)
    module = torch.nn.Sequential(*layers, shared, torch.nn.ReLU(), shared).eval()
    model = convert(module, example=ROWS).model
    found = {name for name in model.graph.initializers if "weight" in name}
    assert found == {"0.weight", "1.weight", "2.weight", "3.weight", "4.weight"}
    assert_equal(model, module, (ROWS,))


def test_the_module_is_as_it_was_and_the_network_is_its_own() -> None:
    module, model = residual()
    assert [part.training for part in module.modules()].count(False) == 1
    assert not module.layer1[0].bn1.training
    before = copy.deepcopy(module.state_dict())
    fresh = networks.seeded(networks.Residual).state_dict()
    assert all(torch.equal(fresh[name], value) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    with torch.no_grad():
        module.fc.weight.add_(1)
    stored = model.graph.initializers["fc.weight"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), before["fc.weight"].numpy())


def test_several_inputs_and_outputs_in_a_dict() -> None:
    module = networks.seeded(networks.TwoInputs)
    ids, dense = torch.tensor([[1, 2], [3, 4], [5, 6]]), ROWS
    model = convert(module, example={"ids": ids.numpy(), "dense": dense.numpy().astype(np.float64)}).model
    assert [value.name for value in model.graph.inputs] == ["ids", "dense"]
    assert [value.name for value in model.graph.outputs] == ["total", "bounded"]
    assert [value.dtype for value in model.graph.inputs] == [ir.DataType.INT64, ir.DataType.FLOAT]
    assert_equal(model, module, (ids, dense))
    assert list(model.graph.initializers).count("shared.weight") == 1


def test_a_module_that_takes_a_dict_has_the_keys_as_inputs() -> None:
    module = networks.seeded(networks.TakesDict)
    batch = {"image": ROWS, "weight": torch.rand(3, 4)}
    model = convert(module, example=[(batch, torch.tensor([0, 1, 2]))]).model
    assert [value.name for value in model.graph.inputs] == ["image", "weight"]
    assert_equal(model, module, (batch,))


@pytest.mark.parametrize(
    ("build", "example"), [(networks.FixedRows, torch.ones(4, 2, 3)), (networks.Unrolled, torch.ones(3, 4))]
)
def test_a_network_of_one_batch_size_keeps_it_with_a_note(build: Callable[[], Any], example: Any) -> None:
    module = networks.seeded(build)
    converted = convert(module, example=example)
    assert ["batches as large as the example's" in note for note in converted.notes] == [True]
    assert converted.model.graph.inputs[0].shape == ir.Shape(example.shape)
    assert_equal(converted.model, module, (torch.randn_like(example),))


def test_a_call_by_name_leaves_the_rows_open_beside_parameters_that_are_left_out() -> None:
    class Named(torch.nn.Module):
        def forward(self, ids: Any, mask: Any = None, kinds: Any = None) -> Any:
            return ids * mask if kinds is None else ids * kinds

    converted = convert(Named(), example={"ids": ROWS, "mask": ROWS})
    assert converted.notes == ()
    assert [value.shape for value in converted.model.graph.inputs] == [ir.Shape(["batch", ROWS.shape[1]])] * 2


def test_rows_stay_open_where_python_makes_a_number_of_them() -> None:
    class Windows(torch.nn.Module):
        def forward(self, images: Any) -> Any:
            windows = images.reshape(-1, 4, 4)  # two of each image
            return windows.softmax(-1).reshape(int(windows.shape[0] / (8 * 4 / 4 / 4)), 8, 4)

    module = Windows()
    converted = convert(module, example=torch.randn(3, 8, 4))
    assert converted.notes == ()
    assert_equal(converted.model, module, (torch.randn(7, 8, 4),))


def test_a_dict_whose_keys_are_no_parameters_says_so() -> None:
    with pytest.raises(ModelError, match=r"the dict of 'image' itself, since these are no parameters"):
        convert(torch.nn.Linear(4, 2), example=[{"image": ROWS, "label": torch.tensor([0, 1, 2])}])


def test_a_module_without_weights_says_so() -> None:
    with pytest.raises(ModelError, match="device 'meta'"):
        convert(torch.nn.Linear(4, 2, device="meta"), example=ROWS)


def test_numbers_of_16_bits_become_32_in_a_copy() -> None:
    module = torch.nn.Linear(4, 2).to(torch.bfloat16)
    converted = convert(module, example=ROWS)
    assert module.weight.dtype == torch.bfloat16
    assert any("bfloat16" in note for note in converted.notes)
    assert_equal(converted.model, copy.deepcopy(module).float(), (ROWS,))


def test_exported_programs_and_their_files_give_the_same(tmp_path: Path) -> None:
    module = networks.seeded(networks.TwoInputs)
    call = (torch.tensor([[1, 2], [3, 4]]), ROWS[:2])
    auto = {0: torch.export.Dim.AUTO}
    program = torch.export.export(module, call, dynamic_shapes=(auto, auto))
    path = tmp_path / "two_inputs.pt2"
    torch.export.save(program, path)
    one, other = convert(program).model, opening.load(path).model
    assert {value.name for value in one.graph.inputs} == {value.name for value in other.graph.inputs}
    for rows in (call, (torch.tensor([[7, 8]] * 5), torch.randn(5, 4))):
        assert_equal(one, module, rows)
        assert_equal(other, module, rows)


def test_what_cannot_be_traced_or_written_is_one_message() -> None:
    class Untraceable(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x if float(x.sum()) > 0 else json.loads(str(x))

    with pytest.raises(ModelError, match=r"Untraceable: expected a module that torch\.export can trace") as caught:
        convert(Untraceable(), example=ROWS)
    assert "\n" not in str(caught.value)

    class NotInOnnx(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.eigvalsh(x @ x.mT)

    with pytest.raises(ModelError, match="linalg") as caught:
        convert(NotInOnnx(), example=torch.randn(2, 4, 4))
    assert "\n" not in str(caught.value)


def test_wrappers_are_taken_off() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 2)).eval()
    for wrapped in (torch.compile(module, backend="eager"), torch.nn.DataParallel(module)):
        model = convert(wrapped, example=ROWS).model
        assert "0.weight" in model.graph.initializers
        assert_equal(model, module, (ROWS,))


@pytest.mark.filterwarnings("ignore")  # PyTorch calls TorchScript deprecated
def test_other_objects_are_refused() -> None:
    with pytest.raises(ModelError, match="TorchScript"):
        convert(torch.jit.script(torch.nn.Linear(4, 2)), example=ROWS)
    with pytest.raises(ModelError, match=r"expected a torch\.nn\.Module or an exported program, got int"):
        convert(3, example=ROWS)


def test_without_pytorch_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install \"narrowgauge\[torch\]\""):
        convert("network.pt2")


@pytest.mark.slow
def test_a_state_dict_of_the_zoo_gives_the_network_that_was_exported_from_it(zoo: Path) -> None:
    folder = zoo / "models" / "cifar_resnet"
    module = networks.CifarResNet20()
    module.load_state_dict(torch.load(folder / "resnet20.pt", weights_only=True))
    imported = opening.load(module, example=torch.zeros(1, 3, 32, 32))
    reference = opening.load(folder / "resnet20.onnx")
    assert operators(imported).total() <= operators(reference).total()
    assert operators(imported)["Conv"] == operators(reference)["Conv"] == 19
    assert {"layer1.0.conv1.weight", "linear.bias"} <= set(imported.model.graph.initializers)
    inputs = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (found,), (expected,) = run(imported.model, [inputs]), run(reference.original, [inputs])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())
