"""Keras networks against Keras itself, and for the zoo's against TFLite and numpy."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.errors import ModelError
from narrowgauge.graph.constants import set_constant
from narrowgauge.importers.onnx import load
from narrowgauge.importers.opening import load as load_any
from tests.passes.networks import operators

pytest.importorskip("torch", reason="Keras networks are read through torch")
pytest.importorskip("h5py", reason="old Keras files are HDF5")
if "keras" not in sys.modules:
    os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="needs Keras")
if keras.backend.backend() != "torch":
    pytest.skip("Keras was imported with another backend than torch", allow_module_level=True)

from narrowgauge.importers import keras as importer  # noqa: E402 - it would import Keras with whatever backend is set
from narrowgauge.importers.keras import convert  # noqa: E402

layers = keras.layers

TOLERANCE = 1e-4
"""Of the largest number of an output, as the task states it."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(0)


def scattered(model: Any) -> Any:
    """Give biases and statistics numbers that matter; Keras begins with zeros and ones."""
    generator = np.random.default_rng(1)
    for variable in model.variables:
        if variable.name in {"beta", "bias", "moving_mean"}:
            variable.assign(0.3 * generator.standard_normal(variable.shape))
        elif variable.name in {"gamma", "moving_variance"}:
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    return model


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return [np.asarray(one) for one in session.run(None, feeds)]


def predicted(model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    packed = keras.tree.pack_sequence_as(structure, list(feeds.values()))
    return [np.asarray(one.detach()) for one in keras.tree.flatten(model(packed, training=False))]


def assert_equals_keras(model: Any, rows: int = 3, size: int = 9) -> ir.Model:
    """Import a model and compare it, before and after it is simplified, with Keras; return the simplified network."""
    converted = convert(model)
    imported = load(converted.model)
    generator = np.random.default_rng(0)
    feeds = {}
    for value in converted.model.graph.inputs:
        shape = [axis if isinstance(axis, int) else size if place else rows for place, axis in enumerate(value.shape)]
        numbers = (
            generator.standard_normal(shape) if value.dtype.is_floating_point() else generator.integers(0, 4, shape)
        )
        feeds[value.name] = numbers.astype(value.dtype.numpy())
    expected = predicted(model, feeds)
    for network in (converted.model, imported.model):
        for ours, theirs in zip(run(network, feeds), expected, strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())
    return imported.model


def small() -> Any:
    return scattered(
        keras.Sequential(
            [
                keras.Input((8, 8, 3), name="image"),
                layers.Conv2D(4, 3, padding="same", use_bias=False, name="first"),
                layers.BatchNormalization(name="norm"),
                layers.ReLU(name="active"),
                layers.Conv2D(5, 3, name="second"),
                layers.Flatten(name="flat"),
                layers.Dense(3, activation="softmax", name="answer"),
            ]
        )
    )


# ------------------------------------------------------------------------------------------------------------- names


def test_conversions_that_change_nothing_are_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras converts everything an operation reads; two of three operators were conversions and checks of them."""
    programs = []

    def kept(*arguments: Any) -> Any:
        programs.append(exported(*arguments))
        return programs[-1]

    exported = importer._exported
    monkeypatch.setattr(importer, "_exported", kept)
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()])
    convert(model)
    traced = [str(node.target) for node in programs[0].graph.nodes if node.op == "call_function"]
    assert "aten.conv2d.default" in traced
    assert not [name for name in traced if name.startswith(("aten.to.", "aten._assert_tensor_metadata"))]


def test_names_are_those_of_the_layers() -> None:
    model = assert_equals_keras(small())
    graph = model.graph
    assert [value.name for value in graph.inputs] == ["image"]
    assert [value.name for value in graph.outputs] == ["answer"]
    assert [value.name for node in graph for value in node.outputs][1:4] == ["norm", "active", "second"]
    assert {"first/kernel", "first/bias", "second/kernel", "second/bias", "answer/kernel", "answer/bias"} <= set(
        graph.initializers
    )
    assert graph.inputs[0].shape is not None
    assert list(graph.inputs[0].shape)[1:] == [8, 8, 3]  # channels last, as Keras has it
    assert operators(model) == {"Transpose": 1, "Conv": 2, "Relu": 1, "Reshape": 1, "Gemm": 1, "Softmax": 1}


def test_the_model_stays_as_it_was_and_nothing_else_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="answer")])
    before = [variable.value.detach().clone() for variable in model.variables]
    call = keras.Operation.__call__
    network = convert(model).model
    assert capfd.readouterr() == ("", "")
    assert keras.Operation.__call__ is call
    for old, variable in zip(before, model.variables, strict=True):
        assert (old == variable.value).all()
    stored = network.graph.initializers["answer/kernel"].const_value
    assert stored is not None
    kernel = np.array(stored.numpy())
    model.get_layer("answer").kernel.assign(np.zeros((4, 3), dtype=np.float32))
    np.testing.assert_array_equal(stored.numpy(), kernel)  # no memory is shared
    assert b"site-packages" not in ir.to_proto(network).SerializeToString()  # nor are paths of this machine told


# ------------------------------------------------------------------------------------------------------------ layers


def several() -> Any:
    first, second = keras.Input((4,), name="first"), keras.Input((5,), name="second")
    shared = layers.Dense(6, activation="relu", name="shared")
    both = layers.Concatenate(name="both")([shared(first), shared(layers.Dense(4)(second))])
    return keras.Model(
        {"first": first, "second": second}, [layers.Dense(3, name="one")(both), layers.Dense(2, name="two")(first)]
    )


def nested() -> Any:
    inside = keras.Input((6, 6, 4))
    block = keras.Sequential([layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm")], name="block")
    inner = keras.Model(inside, layers.Conv2D(2, 1, name="conv")(inside), name="inner")
    return keras.Sequential([keras.Input((8, 8, 3)), block, inner, layers.GlobalAveragePooling2D()])


def attention() -> Any:
    tokens = keras.Input((5, 8))
    attended = layers.MultiHeadAttention(2, 4)(tokens, tokens)
    return keras.Model(tokens, layers.LayerNormalization()(layers.Dense(8, activation="gelu")(tokens + attended)))


MODELS: dict[str, Callable[[], Any]] = {
    "nested": nested,
    "attention": attention,
    "recurrent": lambda: keras.Sequential(
        [
            keras.Input((5, 4)),
            layers.GRU(4, return_sequences=True, go_backwards=True, reset_after=False),
            layers.Bidirectional(layers.LSTM(3, use_bias=False, return_sequences=True)),
            layers.Bidirectional(layers.GRU(2)),
        ]
    ),
    "recurrent by step": lambda: keras.Sequential(
        [keras.Input((3, 4)), layers.SimpleRNN(3, return_sequences=True), layers.LSTM(2, activation="relu")]
    ),
    "embedding": lambda: keras.Sequential(
        [keras.Input((7,), dtype="int32"), layers.Embedding(10, 6), layers.Conv1D(4, 3, padding="causal"),
         layers.GlobalMaxPooling1D(), layers.Dropout(0.5), layers.Dense(2)]
    ),
    "preprocessing": lambda: keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Rescaling(1 / 127.5, -1), layers.RandomFlip(), layers.GaussianNoise(0.1),
         layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1, 2, 3]), layers.Conv2D(4, 3), layers.CenterCrop(4, 4)]
    ),
    "upsampling": lambda: keras.Sequential(
        [keras.Input((6, 6, 3)), layers.UpSampling2D(2), layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
         layers.UpSampling2D(2, interpolation="bilinear"), layers.Cropping2D(1), layers.LeakyReLU()]
    ),
    "depthwise": lambda: keras.Sequential(
        [keras.Input((9, 9, 4)), layers.SeparableConv2D(4, 3, padding="same"), layers.BatchNormalization(),
         layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2), layers.PReLU(shared_axes=[1, 2]),
         layers.Conv2D(6, 3, groups=2, dilation_rate=2, padding="same"), layers.GlobalMaxPooling2D()]
    ),
    "pools": lambda: keras.Sequential(
        [keras.Input((9, 10, 2)), layers.MaxPooling2D(3, 2, padding="same"), layers.Conv2D(3, 1, activation="relu6"),
         layers.AveragePooling2D(2, padding="same"), layers.ZeroPadding2D(1), layers.MaxPooling2D(2), layers.Flatten()]
    ),
    "channels first": lambda: keras.Sequential(
        [keras.Input((3, 8, 8)), layers.Conv2D(4, 3, data_format="channels_first"), layers.BatchNormalization(axis=1),
         layers.Activation("swish"), layers.MaxPooling2D(data_format="channels_first"), layers.Flatten()]
    ),
    "volumes": lambda: keras.Sequential(
        [keras.Input((6, 6, 6, 2)), layers.Conv3D(3, 3), layers.AveragePooling3D(2), layers.Flatten(), layers.Dense(2)]
    ),
    "any size": lambda: keras.Sequential(
        [keras.Input((None, None, 3)), layers.Conv2D(4, 3), layers.ReLU(), layers.GlobalAveragePooling2D()]
    ),
}  # fmt: skip
SLOW = {
    "recurrent",
    "recurrent by step",
    "upsampling",
    "any size",
    "volumes",
    "pools",
    "channels first",
    "preprocessing",
    "nested",
    "embedding",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS]
)
def test_a_network_computes_what_keras_computes(name: str) -> None:
    model = assert_equals_keras(scattered(MODELS[name]()))
    assert model.graph.inputs[0].shape is not None
    assert not isinstance(model.graph.inputs[0].shape[0], int)


def test_several_inputs_and_outputs_and_a_layer_used_twice() -> None:
    graph = assert_equals_keras(scattered(several())).graph
    names = {value.name for node in graph for value in node.outputs}
    assert {"shared", "shared_1", "one", "two"} <= names
    assert [value.name for value in graph.inputs] == ["first", "second"]
    assert [value.name for value in graph.outputs] == ["one", "two"]


def test_lstm_and_gru_are_operators() -> None:
    recurrent = [layers.LSTM(3, return_sequences=True, name="state"), layers.GRU(2, return_sequences=True)]
    both_ways = layers.Bidirectional(layers.GRU(2, use_bias=False, reset_after=False))
    model = assert_equals_keras(scattered(keras.Sequential([keras.Input((5, 4)), *recurrent, both_ways])))
    assert operators(model)["LSTM"] == 1
    assert operators(model)["GRU"] == 3
    assert {"state/kernel", "state/recurrent_kernel", "state/bias"} <= set(model.graph.initializers)


@pytest.mark.slow
def test_preprocessing_goes_into_the_first_convolution() -> None:
    model = assert_equals_keras(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Rescaling(1 / 127.5, -1),
                layers.Conv2D(4, 3),
                layers.GlobalAveragePooling2D(),
            ]
        )
    )
    assert operators(model) == {"Transpose": 1, "Conv": 1, "GlobalAveragePool": 1, "Flatten": 1}


def test_a_batch_size_that_keras_computes_with_is_fixed_and_said() -> None:
    class Rows(layers.Layer):  # type: ignore[misc]
        def call(self, inputs: Any) -> Any:
            return keras.ops.reshape(inputs, (int(inputs.shape[0]), -1))

    converted = convert(keras.Sequential([keras.Input((2, 3)), Rows()]))
    assert list(converted.model.graph.inputs[0].shape or ()) == [1, 2, 3]
    assert "its batch is fixed to 1" in converted.notes[0]


@pytest.mark.slow
def test_a_size_that_keras_computes_with_comes_from_the_example() -> None:
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3, strides=2, padding="same")])
    with pytest.raises(ModelError, match="give an example"):
        convert(model)
    converted = convert(model, example=np.zeros((1, 9, 7, 3), dtype=np.float32))
    assert list(converted.model.graph.inputs[0].shape or ())[1:] == [9, 7, 3]
    assert "fixed to 9 x 7 x 3" in converted.notes[0]


def test_a_model_that_is_a_class_of_its_own_needs_an_example() -> None:
    class Own(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(3, name="dense")

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs) * 2.0

    model = Own()
    example = np.ones((1, 4), dtype=np.float32)
    model(example)
    with pytest.raises(ModelError, match="does not say what its inputs are"):
        convert(model)
    network = convert(model, example=example).model
    rows = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(run(network, {"input_0": rows})[0], np.asarray(model(rows).detach()), rtol=1e-5)


def test_a_network_that_computes_something_else_is_never_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> ir.Model:
        model = written(*arguments)
        kernel = model.graph.initializers["dense/kernel"]
        set_constant(kernel, np.asarray(kernel.const_value) * 1.1)
        return model

    written = importer._written
    monkeypatch.setattr(importer, "_written", wrong)
    with pytest.raises(ModelError, match="differ from Keras'"):
        convert(keras.Sequential([keras.Input((4,)), layers.Dense(3, name="dense")]))


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(ModelError, match=r"keras\.Input"):
        convert(keras.Sequential([layers.Dense(3)]))


def test_another_backend_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(ModelError, match="KERAS_BACKEND=torch"):
        convert("network.keras")


# ------------------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write one small network in both formats."""
    folder = tmp_path_factory.mktemp("keras")
    model = scattered(keras.Sequential([keras.Input((4,), name="x"), layers.Dense(3, name="d"), layers.Dense(2)]))
    found = {"keras": folder / "network.keras", "h5": folder / "network.h5"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in found.values():
            model.save(path)
    return found


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_files_of_both_formats_are_read(files: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """... whichever of the suffixes they have."""
    path = tmp_path / "network.h5"
    path.write_bytes(files[kind].read_bytes())
    imported = load_any(path)
    assert imported.framework == "Keras"
    assert operators(imported.model) == {"Gemm": 2}
    rows = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    expected = np.asarray(keras.saving.load_model(files[kind], compile=False)(rows).detach())
    np.testing.assert_allclose(run(imported.model, {"x": rows})[0], expected, rtol=0, atol=1e-5)


def damaged(data: bytes) -> Iterator[bytes]:
    for length in (0, 1, 7, len(data) // 3, len(data) // 2, len(data) - 40, len(data) - 1):
        yield data[:length]
    generator = np.random.default_rng(0)
    for _ in range(12):
        broken = bytearray(data)
        for place in generator.integers(0, len(data), 20):
            broken[place] ^= 0xFF
        yield bytes(broken)


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_damaged_files_give_one_error(files: dict[str, Path], kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"network.{kind}"
    for data in damaged(files[kind].read_bytes()):
        path.write_bytes(data)
        messages = []
        try:
            convert(path)
        except ModelError as error:
            messages.append(str(error))
        # A flipped bit among the weights shows nowhere: NaN and infinity are refused where weights are checked.
        assert all(str(path) in message and "\n" not in message for message in messages)
        assert messages or data[:4] in (b"PK\x03\x04", b"\x89HDF")


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, data, expected in (
        ("a.keras", b"GIF89a", "expected a Keras file"),
        ("b.h5", b"", "expected a Keras file"),
        ("c.keras", None, "no such file"),
    ):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ModelError, match=expected):
            convert(path)
    with pytest.raises(ModelError, match="a folder"):
        convert(tmp_path)


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a file with its configuration changed."""
    import h5py

    if source.suffix == ".h5":
        target.write_bytes(source.read_bytes())
        with h5py.File(target, "a") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        return target
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            data = old.read(member)
            if member == "config.json":
                config = json.loads(data)
                change(config)
                data = json.dumps(config).encode()
            new.writestr(member, data)
    return target


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_code_in_a_file_is_refused(files: dict[str, Path], kind: str, tmp_path: Path) -> None:
    def to_lambda(config: dict[str, Any]) -> None:
        config["config"]["layers"][1] = {
            "class_name": "Lambda",
            "config": {"name": "trick", "function": ["4wEA", None]},
        }

    path = rewritten(files[kind], tmp_path / f"network.{kind}", to_lambda)
    with pytest.raises(ModelError, match=r"'trick' is a Lambda, which runs code"):
        convert(path)


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_a_huge_layer_is_refused_before_it_is_allocated(files: dict[str, Path], kind: str, tmp_path: Path) -> None:
    def grow(config: dict[str, Any]) -> None:
        config["config"]["layers"][-1]["config"]["units"] = 10**13

    path = rewritten(files[kind], tmp_path / f"network.{kind}", grow)
    with pytest.raises(ModelError, match="10000000000000"):
        convert(path)


def test_a_bomb_is_refused_before_it_is_unpacked(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "network.keras"
    with zipfile.ZipFile(files["keras"]) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("config.json", old.read("config.json"))
        with new.open("model.weights.h5", "w") as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
    with pytest.raises(ModelError, match="made to fill the memory"):
        convert(path)


def test_hdf5_that_points_to_other_files_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "network.h5"
    path.write_bytes(files["h5"].read_bytes())
    with h5py.File(path, "a") as file:
        file["model_weights"]["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(ModelError, match="points elsewhere"):
        convert(path)


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file["dense/kernel"] = np.zeros((2, 3))
    with pytest.raises(ModelError, match="save the whole model"):
        convert(path)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.keras"
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("readme.txt", "hello")
    path.write_bytes(data.getvalue())
    with pytest.raises(ModelError, match=r"config\.json"):
        convert(path)


# --------------------------------------------------------------------------------------------------------------- zoo


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tflite", "count"),
    [("pretrainedResnet", "pretrainedResnet", 24), ("vww_96", "vww_96_float", 59), ("str_ww_ref_model", None, 16)],
)
def test_old_files_compute_what_their_tflite_computes(zoo: Path, name: str, tflite: str | None, count: int) -> None:
    folder = zoo / "models" / "mlperf_tiny"
    if not (folder / f"{name}.h5").is_file():
        pytest.skip("the zoo has no such file")
    imported = load_any(folder / f"{name}.h5")
    assert len(imported.model.graph) == count
    if tflite is None:
        return
    interpreters = pytest.importorskip("ai_edge_litert.interpreter", reason="runs the TFLite twin")
    interpreter = interpreters.Interpreter(model_path=str(folder / f"{tflite}.tflite"))
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    numbers = np.random.default_rng(0).random(source["shape"]).astype(np.float32)
    interpreter.set_tensor(source["index"], numbers)
    interpreter.invoke()
    ours = run(imported.model, {"input_1": numbers})[0]
    np.testing.assert_allclose(ours, interpreter.get_tensor(result["index"]), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_old_autoencoder_computes_what_its_arrays_say(zoo: Path) -> None:
    """In numpy, not against ad01_fp32.tflite: whoever converted that left the biases of the layers out."""
    import h5py

    path = zoo / "models" / "mlperf_tiny" / "ad01.h5"
    if not path.is_file():
        pytest.skip("the zoo has no such file")
    rows = np.random.default_rng(0).standard_normal((4, 640))
    value = rows
    with h5py.File(path) as file:
        weights = file["model_weights"]
        for number in range(10):
            suffix = f"_{number}" if number else ""
            dense = weights[f"dense{suffix}/dense{suffix}"]
            value = value @ dense["kernel:0"][()] + dense["bias:0"][()]
            if number < 9:
                norm = weights[f"batch_normalization{suffix}/batch_normalization{suffix}"]
                scale = norm["gamma:0"][()] / np.sqrt(norm["moving_variance:0"][()] + 1e-3)
                value = np.maximum((value - norm["moving_mean:0"][()]) * scale + norm["beta:0"][()], 0)
    imported = load_any(path)
    assert operators(imported.model) == {"Gemm": 10, "Relu": 9}
    ours = run(imported.model, {"input_1": rows.astype(np.float32)})[0]
    np.testing.assert_allclose(ours, value, rtol=0, atol=TOLERANCE * np.abs(value).max())


# ------------------------------------------------------------------------------------------------- keras.applications


def resnet50(torch: Any) -> Any:
    """Write the PyTorch twin of keras.applications.ResNet50, which reads images as Keras does, channels last."""
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, entry: int, width: int, stride: int, projects: bool) -> None:
            super().__init__()
            self.main = nn.Sequential(
                nn.Conv2d(entry, width, 1, stride), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, 4 * width, 1), nn.BatchNorm2d(4 * width),
            )  # fmt: skip
            shortcut = nn.Sequential(nn.Conv2d(entry, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))
            self.shortcut = shortcut if projects else nn.Identity()

        def forward(self, x: Any) -> Any:
            return torch.relu(self.main(x) + self.shortcut(x))

    blocks, entry = [], 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(depth):
            blocks.append(Block(entry, width, 1 if number else stride, number == 0))
            entry = 4 * width
    stem = [nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def mobilenet_v2(torch: Any) -> Any:
    """Write the PyTorch twin of keras.applications.MobileNetV2, which reads images as Keras does, channels last."""
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, entry: int, exit_width: int, stride: int, factor: int) -> None:
            super().__init__()
            width = entry * factor
            expand = [nn.Conv2d(entry, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()]
            self.main = nn.Sequential(
                *(expand if factor > 1 else []),
                nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
                nn.Conv2d(width, exit_width, 1, bias=False), nn.BatchNorm2d(exit_width),
            )  # fmt: skip
            self.adds = stride == 1 and entry == exit_width

        def forward(self, x: Any) -> Any:
            return x + self.main(x) if self.adds else self.main(x)

    blocks, entry = [], 32
    plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for factor, width, depth, stride in plan:
        for number in range(depth):
            blocks.append(Block(entry, width, 1 if number else stride, factor))
            entry = width
    stem = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    head = [nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()]
    return nn.Sequential(*stem, *blocks, *head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


TWINS = {"MobileNetV2": (mobilenet_v2, 96), "ResNet50": (resnet50, 64)}


@pytest.mark.slow
@pytest.mark.parametrize("top", ["softmax", None])
@pytest.mark.parametrize("name", sorted(TWINS))
def test_known_networks_have_no_more_operators_than_their_twins(name: str, top: str | None, tmp_path: Path) -> None:
    import torch

    from narrowgauge.importers.pytorch.silence import silence

    make, size = TWINS[name]
    model = scattered(
        getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classifier_activation=top)
    )
    network = assert_equals_keras(model, rows=2)
    path = tmp_path / "network.keras"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)
    assert operators(load_any(path).model) == operators(network)

    class Twin(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = make(torch)

        def forward(self, images: Any) -> Any:
            results = self.network(images.permute(0, 3, 1, 2))
            return results.softmax(-1) if top else results

    with silence():
        twin = torch.onnx.export(Twin().eval(), (torch.zeros(1, size, size, 3),), dynamo=True, verbose=False)
    assert len(network.graph) <= len(twin.model.graph)
