"""Bad input: one line that says what was expected, what came and where; nothing is written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from narrowgauge.recipe import PRESETS
from tests.cli import networks
from tests.cli.running import error_of, no_leftovers, record


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network and samples; errors leave nothing else in it."""
    monkeypatch.chdir(tmp_path)
    networks.convolution(tmp_path / "net.onnx")
    np.save("x.npy", networks.random(20, 3, 8, 8))
    return tmp_path


def save_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def fails(*options: str | Path | int, network: str | Path = "net.onnx", data: str | Path = "x.npy") -> str:
    before = {entry.name for entry in Path().iterdir()}
    said = error_of("quantize", network, "--data", data, "--out", "out", *options)
    no_leftovers(Path(), *before)
    return said


def test_a_missing_network(here: Path) -> None:
    assert "missing.onnx: no such file" in fails(network="missing.onnx")


def test_an_empty_network(here: Path) -> None:
    Path("empty.onnx").touch()
    assert "empty.onnx is empty" in fails(network="empty.onnx")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_network(here: Path, kept: float) -> None:
    whole = Path("net.onnx").read_bytes()
    Path("cut.onnx").write_bytes(whole[: int(kept * len(whole))])
    said = fails(network="cut.onnx")
    assert said.startswith("cut.onnx")


def test_a_jpeg_in_the_place_of_a_network(here: Path) -> None:
    Image.new("RGB", (8, 8)).save("photo.jpg")
    assert "photo.jpg: expected an ONNX network, but this is a JPEG image" in fails(network="photo.jpg")


def test_nan_in_the_weights(here: Path) -> None:
    weights = networks.random(8, 3, 3, 3)
    weights[1, 2, 0, 0] = np.nan
    said = fails(network=networks.convolution(Path("nan.onnx"), weights=weights))
    assert "'w1'" in said
    assert "NaN" in said


def test_nan_in_the_activations_names_the_tensor_and_the_sample(here: Path) -> None:
    samples = np.abs(networks.random(20, 4))
    samples[7] = -1
    np.save("roots.npy", samples)
    said = fails(network=networks.square_root(Path("root.onnx")), data="roots.npy")
    assert "'root'" in said
    assert "roots.npy[7]" in said


def test_an_operator_of_another_domain_is_named_with_its_node(here: Path) -> None:
    np.save("v.npy", networks.random(20, 4))
    said = fails(network=networks.foreign(Path("foreign.onnx")), data="v.npy")
    assert "swirl_node" in said
    assert "Swirl" in said
    assert "com.acme" in said


def test_an_operator_of_another_domain_is_left_alone_where_nothing_has_to_run(here: Path) -> None:
    network = networks.foreign(Path("foreign.onnx"))
    summary = record("quantize", network, "--recipe", "weight-only", "--out", "out")
    assert "Swirl" in {node["operator"] for node in summary["float_nodes"]}


def test_an_operator_that_the_target_lacks_stays_float_and_is_reported(here: Path) -> None:
    np.save("v.npy", networks.random(40, 4))
    summary = record("quantize", networks.unquantizable(Path("erf.onnx")), "--data", "v.npy", "--out", "out")
    assert {"name": "erf_node", "operator": "Erf", "reason": "onnxruntime has no integer Erf"} in summary["float_nodes"]


def test_a_quantized_network_is_no_plan_for_a_float_one(here: Path) -> None:
    assert "expected a plan or a quantized network, this one is float" in fails("--plan", "net.onnx")


def test_wrong_channels(here: Path) -> None:
    np.save("gray.npy", networks.random(20, 1, 8, 8))
    said = fails(data="gray.npy")
    assert "takes 3 channels, the array has 1" in said


def test_an_unreadable_image_is_named(here: Path) -> None:
    save_images(here / "images", 3)
    (here / "images" / "1.png").write_bytes(b"\x89PNG and nothing")
    assert "1.png" in fails(data="images")


def test_an_empty_folder(here: Path) -> None:
    (here / "images").mkdir()
    assert "an empty folder" in fails(data="images")


def test_data_that_are_not_there(here: Path) -> None:
    assert "nothing is there" in fails(data="nowhere")


def test_no_data_for_a_static_recipe(here: Path) -> None:
    said = error_of("quantize", "net.onnx", "--out", "out")
    assert "--data" in said
    assert "weight-only" in said


@pytest.mark.parametrize(
    ("lines", "expected"),
    [("other.png 1\n", "none of the 1 paths"), ("0.png one\n", "line 1"), ("", "expected lines of")],
)
def test_wrong_labels(here: Path, lines: str, expected: str) -> None:
    save_images(here / "images", 4)
    Path("labels.txt").write_text(lines)
    said = fails("--labels", "labels.txt", data="images")
    assert "labels.txt" in said
    assert expected in said


def test_missing_labels(here: Path) -> None:
    assert "missing.txt" in fails("--labels", "missing.txt")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--target", "tflit"), "did you mean tflite"),
        (("--recipe", "fancy"), ", ".join(PRESETS)),
        (("--weights", "int77"), "weights: expected a width of 2 to 16 bits"),
        (("--weights", "float8"), "weights: expected a number type"),
        (("--activations", "nibble"), "activations: expected a number type"),
        (("--granularity", "row"), "tensor, channel, block"),
        (("--metric", "nothing_of_that_name:here"), "nothing_of_that_name"),
        (("--metric", "nothing"), "module:callable"),
        (("--plan", "missing.json"), "missing.json"),
        (("--preprocess", "missing.toml"), "missing.toml"),
    ],
)
def test_unknown_names(here: Path, options: tuple[str, ...], expected: str) -> None:
    assert expected in fails(*options)


@pytest.mark.parametrize("option", ["--recipe", "--target", "--preprocess"])
@pytest.mark.parametrize("content", [b"a = [1,", b"colour = 3", b"\xff\xfe\x00"])
def test_bad_toml_is_named(here: Path, option: str, content: bytes) -> None:
    Path("bad.toml").write_bytes(content)
    assert "bad.toml" in fails(option, "bad.toml")


def test_an_existing_folder_without_force(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "precious.txt").write_text("keep me")
    assert "--force" in fails()
    assert (here / "out" / "precious.txt").read_text() == "keep me"


def test_an_empty_folder_is_taken(here: Path) -> None:
    (here / "out").mkdir()
    record("quantize", "net.onnx", "--data", "x.npy", "--out", "out")
    assert (here / "out" / "summary.json").exists()


def test_a_file_in_the_place_of_the_folder(here: Path) -> None:
    (here / "out").write_text("keep me")
    assert "there is a file" in fails("--force")
    assert (here / "out").read_text() == "keep me"


def test_a_parent_that_cannot_be_made(here: Path) -> None:
    said = error_of("quantize", "net.onnx", "--data", "x.npy", "--out", "net.onnx/out")
    assert "could not make the folder" in said


def test_a_parent_that_cannot_be_written(here: Path) -> None:
    said = error_of("quantize", "net.onnx", "--data", "x.npy", "--out", "/proc/narrowgauge/out")
    assert "/proc/narrowgauge/out: could not make the folder" in said


def test_a_single_image_calibrates_and_checks(here: Path) -> None:
    images = save_images(here / "images", 1)
    summary = record("quantize", "net.onnx", "--data", images / "0.png", "--out", "out")
    assert summary["checked_samples"] == 1
    assert "the one sample there is calibrates and checks: the check says little" in summary["notes"]
