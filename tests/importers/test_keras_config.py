import json
from typing import Any

import pytest

from narrowgauge.errors import ModelError
from narrowgauge.importers.keras_config import checked_config, repaired_config

INPUT = {"class_name": "InputLayer", "config": {"name": "x", "batch_input_shape": [None, 4]}}


def sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": "net", "layers": [INPUT, *layers]}}


def test_what_is_keras_own_passes() -> None:
    config = sequential(
        {"class_name": "Dense", "config": {"name": "d", "units": 3}},
        {"module": "keras.layers", "class_name": "ReLU", "config": {"name": "r"}, "registered_name": None},
        {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "function"},
    )
    assert checked_config(json.dumps(config), "f.keras") == config


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"class_name": "Lambda", "config": {"name": "trick"}}, "'trick' is a Lambda, which runs code from the file"),
        ({"class_name": "Dense", "config": {"activation": {"class_name": "__lambda__", "config": {}}}}, "runs code"),
        ({"class_name": "TorchModuleWrapper", "config": {"name": "m", "module": "gAJ="}}, "runs code"),
        ({"class_name": "TextVectorization", "config": {"name": "words"}}, "TensorFlow"),
        ({"class_name": "TFOpLambda", "config": {"name": "t", "function": "math.add"}}, "'math.add'"),
        ({"class_name": "system", "module": "os", "config": "ls"}, "of 'os', whose code is not in the file"),
        ({"class_name": "Own", "module": "mine.layers", "config": {"name": "o"}}, "register_keras_serializable"),
        ({"class_name": "Own", "module": None, "registered_name": "pack>Own", "config": {}}, "of 'pack'"),
        ({"class_name": "Own", "module": "kerasx.layers", "config": {}}, "of 'kerasx"),
    ],
)
def test_what_carries_code_is_refused(layer: dict[str, Any], message: str) -> None:
    inner = {"class_name": "Functional", "config": {"layers": [layer]}}
    for config in (sequential(layer), sequential(inner)):
        with pytest.raises(ModelError, match=message):
            checked_config(json.dumps(config), "f.keras")


def test_classes_that_the_caller_registered_may_be_made() -> None:
    layer = {"class_name": "Own", "module": "mine", "registered_name": "pack>Own", "config": {}}
    checked_config(json.dumps(sequential(layer)), "f.keras", registered={"pack>Own"})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"config": {}}', '{"class_name": "Dense"}', b"\xff\xfe{}", "[" * 9999]
)
def test_what_is_no_configuration_is_refused(text: str | bytes) -> None:
    with pytest.raises(ModelError, match="damaged"):
        checked_config(text, "f.keras")


def test_settings_that_never_meant_anything_are_left_out() -> None:
    depthwise = {"class_name": "DepthwiseConv2D", "config": {"name": "d", "groups": 1, "kernel_size": [3, 3]}}
    grouped = {"class_name": "Conv2D", "config": {"name": "c", "groups": 1}}
    config, notes = repaired_config(sequential(depthwise, grouped))
    assert config["config"]["layers"][1]["config"] == {"name": "d", "kernel_size": [3, 3]}
    assert config["config"]["layers"][2]["config"]["groups"] == 1
    assert notes == ("left out the setting `groups` of 1 DepthwiseConv2D, which Keras 3 has not",)
