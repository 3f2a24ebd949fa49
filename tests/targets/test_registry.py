from pathlib import Path

import pytest

from narrowgauge.errors import TargetError
from narrowgauge.targets.registry import load_target, target_names

NAMES = (
    "cambricon", "integer-only", "ncnn", "onnxruntime", "onnxruntime-arm", "openvino", "pytorch-fbgemm",
    "pytorch-qnnpack", "qnn", "snpe", "tensorrt", "tflite", "tflite-edgetpu", "tflite-hexagon", "tvm",
)  # fmt: skip


def test_every_promised_target_is_there() -> None:
    assert target_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_target_carries_the_name_of_its_file(name: str) -> None:
    assert load_target(name).name == name


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("tensort", "tensorrt"),
        ("TFLite", "tflite"),
        ("pytorch_fbgemm", "pytorch-fbgemm"),
        ("edgetpu", "tflite-edgetpu"),
    ],
)
def test_a_misspelt_target_is_answered_with_the_nearest_and_all(wrong: str, near: str) -> None:
    with pytest.raises(TargetError) as caught:
        load_target(wrong)
    message = str(caught.value)
    suggestion, known = message.split("Known are")
    assert repr(wrong) in suggestion
    assert near in suggestion
    assert all(name in known for name in NAMES)


def test_a_name_like_nothing_gets_the_list_and_no_guess() -> None:
    with pytest.raises(TargetError, match=r"'zzzzzz'; Known are cambricon, .* tvm\. .*ends in \.toml"):
        load_target("zzzzzz")


@pytest.mark.parametrize("as_text", [True, False])
def test_a_target_of_ones_own_is_read_from_its_file(tmp_path: Path, *, as_text: bool) -> None:
    source = Path(__file__).resolve().parents[2] / "src" / "narrowgauge" / "targets" / "tensorrt.toml"
    own = tmp_path / "my chip.toml"
    own.write_text(
        source.read_text(encoding="utf-8").replace('name = "tensorrt"', 'name = "my-chip"'), encoding="utf-8"
    )
    target = load_target(str(own) if as_text else own)
    assert target.name == "my-chip"
    assert target.operators == load_target("tensorrt").operators


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"nowhere\.toml: expected a target in TOML, could not read it"):
        load_target(tmp_path / "nowhere.toml")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TargetError, match=r"binary\.toml: expected a target in TOML"):
        load_target(tmp_path / "binary.toml")


def test_a_name_never_reaches_outside_the_folder() -> None:
    with pytest.raises(TargetError, match="expected a target"):
        load_target("../targets/tensorrt")
