"""What holds for the project as a whole: light to import, and demo networks that do what is said of them."""

import json
import subprocess
import sys
from importlib import resources
from importlib.metadata import entry_points

import numpy as np
import onnx
import onnxruntime
import pytest

from narrowgauge import demo
from narrowgauge.errors import MissingDependencyError, ModelError

HEAVY = {"torch", "ray", "matplotlib", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "scipy", "sklearn", "sympy"}
HELD_OUT_ACCURACY = {"digits_conv": 0.98, "digits_vit": 0.97}
OPERATORS = {
    "digits_conv": {"BatchNormalization", "Clip", "Conv"},
    "digits_vit": {"LayerNormalization", "MatMul", "Softmax"},
}


def modules_after(statement: str) -> set[str]:
    """Name the top-level modules that a fresh interpreter holds after the statement."""
    script = f"{statement}; import json, sys; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert HEAVY & modules_after("import narrowgauge") == set()


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="narrowgauge")
    assert command.value == "narrowgauge.cli:main"


@pytest.mark.parametrize("name", demo.NETWORK_NAMES)
def test_demo_network_is_as_accurate_as_documented(name: str) -> None:
    images, labels, train_count = demo.digits()
    session = onnxruntime.InferenceSession(demo.network_path(name), providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": images[train_count:]})[0]
    assert logits.shape == (len(labels) - train_count, 10)
    assert np.mean(np.argmax(logits, axis=1) == labels[train_count:]) >= HELD_OUT_ACCURACY[name]


@pytest.mark.parametrize("name", demo.NETWORK_NAMES)
def test_demo_network_takes_any_batch_and_scores_each_image_alone(name: str) -> None:
    images = demo.digits().images[:5]
    session = onnxruntime.InferenceSession(demo.network_path(name), providers=["CPUExecutionProvider"])
    together = session.run(["logits"], {"image": images})[0]
    alone = np.concatenate([session.run(["logits"], {"image": image[np.newaxis]})[0] for image in images])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", demo.NETWORK_NAMES)
def test_demo_network_still_has_what_the_importer_is_to_simplify(name: str) -> None:
    model = onnx.load(demo.network_path(name))
    onnx.checker.check_model(model, full_check=True)
    assert OPERATORS[name] <= {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("name", demo.NETWORK_NAMES)
def test_demo_network_holds_no_trace_of_the_machine_that_made_it(name: str) -> None:
    content = demo.network_path(name).read_bytes()
    assert not [word for word in (b"/home/", b"/tmp/", b".py", b"site-packages") if word in content]


def test_demo_networks_stay_small_enough_to_commit() -> None:
    files = [entry for entry in resources.files(demo).iterdir() if entry.name.endswith(".onnx")]
    assert {entry.name for entry in files} == {f"{name}.onnx" for name in demo.NETWORK_NAMES}
    assert sum(len(entry.read_bytes()) for entry in files) < 1_000_000


def test_unknown_demo_network_names_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"digits_conv, digits_vit.*'resnet'"):
        demo.network_path("resnet")


def test_digits_are_split_without_overlap_and_scaled_to_one() -> None:
    images, labels, train_count = demo.digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert train_count == 1200
    assert set(labels[:train_count]) == set(labels[train_count:]) == set(range(10))


def test_digits_without_scikit_learn_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # Python's own way to mark a module as absent
    with pytest.raises(MissingDependencyError, match=r'pip install "narrowgauge\[demo\]"'):
        demo.digits()
