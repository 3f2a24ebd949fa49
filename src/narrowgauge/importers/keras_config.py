"""Check what a Keras file says of its network before Keras reads it, and repair what Keras 3 no longer accepts.

A configuration names classes, and Keras makes them. So each class must be one of Keras' own, or one that the caller
registered; and none may be one that carries code or reads other files. Keras checks this too (`safe_mode`); here it is
checked first, for all formats alike.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from narrowgauge.errors import ModelError

LARGEST_CONFIG_BYTES = 1 << 28
"""A configuration of more bytes is refused: that of a network of a thousand layers has a megabyte."""

_KERAS_PACKAGES = frozenset({"builtins", "keras"})

_CARRIES_CODE = frozenset({"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"})

_NEEDS_TENSORFLOW = frozenset(
    {"FeatureSpace", "Hashing", "HashedCrossing", "IntegerLookup", "StringLookup", "TextVectorization"}
)

_FUNCTIONS_OF_TENSORFLOW = frozenset({"ClassMethod", "InstanceMethod", "SlicingOpLambda", "TFOpLambda"})


def checked_config(text: str | bytes, source: str, *, registered: Collection[str] = ()) -> dict[str, Any]:
    """Parse a network's configuration and refuse what is not to be made from a file.

    Args:
        text: JSON, as Keras writes it.
        source: what to call the file in messages.
        registered: names of the caller's classes that may be made, as `package>name`.

    Raises:
        ModelError: it is not JSON, or not the configuration of a network; or a class in it carries code, is not
            Keras', or needs TensorFlow.
    """
    if len(text) > LARGEST_CONFIG_BYTES:
        raise ModelError(f"{source}: its configuration has {len(text)} bytes; expected at most {LARGEST_CONFIG_BYTES}")
    try:
        config = json.loads(text)
        objects = list(_objects(config))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{source} is damaged: its configuration is not JSON ({error}); copy it again") from error
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict | list) or not objects:
        raise ModelError(f"{source} is damaged: its configuration describes no network; save the network again")
    for item in objects:
        _check_object(item, source, frozenset(registered))
    return config


def repaired_config(config: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Take out of a configuration of Keras 2 what Keras 3 refuses although it changes nothing.

    That is `groups` of 1 of a DepthwiseConv2D and of a Conv2DTranspose or Conv3DTranspose: Keras 2 wrote the setting
    of their base class, which these layers never looked at.

    Returns:
        The configuration, the same object, and what was changed, one sentence for each kind of layer.
    """
    changed: dict[str, int] = {}
    for item in _objects(config):
        settings = item.get("config")
        if item["class_name"] in _WITHOUT_GROUPS and isinstance(settings, dict) and settings.get("groups") == 1:
            del settings["groups"]
            changed[item["class_name"]] = changed.get(item["class_name"], 0) + 1
    notes = (
        f"left out the setting `groups` of {count} {name}, which Keras 3 has not" for name, count in changed.items()
    )
    return config, tuple(notes)


_WITHOUT_GROUPS = frozenset(
    {"Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", "DepthwiseConv1D", "DepthwiseConv2D"}
    | {"SeparableConv1D", "SeparableConv2D"}
)


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every description of an object, the outer before the inner."""
    waiting = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if isinstance(item.get("class_name"), str):
                yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _check_object(item: Mapping[str, Any], source: str, registered: Collection[str]) -> None:
    name, settings = item["class_name"], item.get("config")
    own = settings.get("name") if isinstance(settings, dict) else None
    what = f"{source}: the layer {own!r} is a {name}" if isinstance(own, str) else f"{source} holds a {name}"
    if item.get("registered_name") in registered or name in registered:
        return
    if name in _CARRIES_CODE:
        raise ModelError(
            f"{what}, which runs code from the file; expected a network of Keras' own layers: "
            "replace it by one of them (Rescaling, Activation, an operation of keras.ops) and save the network again"
        )
    if name in _NEEDS_TENSORFLOW:
        raise ModelError(f"{what}, which works on text or tables by TensorFlow; give the network behind it")
    if name in _FUNCTIONS_OF_TENSORFLOW:
        function = settings.get("function") if isinstance(settings, dict) else None
        raise ModelError(
            f"{what}, a call of TensorFlow's {function!r}, which Keras 3 cannot make; "
            "build the network with layers or keras.ops instead, and load its weights"
        )
    module = item.get("module")
    full_name = item.get("registered_name") or name
    if module is None and isinstance(full_name, str) and ">" in full_name:
        module = full_name.split(">")[0]
    if isinstance(module, str) and module.split(".")[0] not in _KERAS_PACKAGES:
        raise ModelError(
            f"{what} of {module!r}, whose code is not in the file; load the network where it is registered "
            "(`keras.saving.register_keras_serializable`) and hand over the model itself"
        )
