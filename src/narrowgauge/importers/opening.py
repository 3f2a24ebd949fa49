"""Read a network of any framework: the table of importers, and what they have in common."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from narrowgauge.errors import ModelError
from narrowgauge.graph.quantized import is_quantized
from narrowgauge.importers import onnx as onnx_importer
from narrowgauge.importers.imported import Converted, ImportedModel
from narrowgauge.importers.prequantized import take_apart
from narrowgauge.importers.widening import NOTE, is_narrow, widen_to_float32

Convert = Callable[..., Converted]
"""`convert(source, *, example)`: `source` is a path or an object, `example` what is known of its inputs: the user's
data or example inputs, None if there are none. Only frameworks whose networks must be run to be read look at it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Framework:
    """One importer.

    Attributes:
        name: of the framework, for people.
        module: of `narrowgauge.importers` that has `convert`; imported on use.
        suffixes: of its files.
        signature: offset and bytes there that its files have whatever their suffix; None where other files have them.
        classes: `package.Class` of its networks in memory.
    """

    name: str
    module: str
    suffixes: tuple[str, ...] = ()
    signature: tuple[int, bytes] | None = None
    classes: tuple[str, ...] = ()


FRAMEWORKS: tuple[Framework, ...] = (
    # Before PyTorch: on its torch backend a Keras model is a torch.nn.Module, too.
    Framework(
        name="Keras", module="keras", suffixes=(".keras", ".h5", ".hdf5"), classes=("keras.src.models.model.Model",)
    ),
    Framework(
        name="PyTorch", module="pytorch", suffixes=(".pt2", ".pt", ".pth", ".safetensors"),
        classes=("torch.nn.modules.module.Module", "torch.export.exported_program.ExportedProgram"),
    ),
    Framework(name="TFLite", module="tflite", suffixes=(".tflite", ".lite"), signature=(4, b"TFL3")),
    Framework(name="MXNet", module="mxnet", suffixes=(".json", ".params")),
)  # fmt: skip

KNOWN_FILES = (".onnx", *(suffix for framework in FRAMEWORKS for suffix in framework.suffixes))


def load(model: Any, *, simplify: bool = True, example: Any = None) -> ImportedModel:
    """Read a network of any framework, float or quantized.

    Args:
        model: a path, or a network in memory: onnx.ModelProto, onnx_ir.Model, torch.nn.Module,
            torch.export.ExportedProgram, keras.Model; what was read already comes back as it is.
        simplify: whether to simplify the float network.
        example: what is known of the inputs of a network that must be run to be read (torch.nn.Module): example inputs,
            or the user's data.

    Raises:
        ModelError: no importer reads it, or the one that should cannot.
        MissingDependencyError: the framework's package is needed and not installed.
    """
    if isinstance(model, ImportedModel):
        return model
    return _imported(model, _given(model, example), simplify=simplify)


def read_and_load(model: Any) -> tuple[ir.Model, ImportedModel]:
    """Do what `read` and `load` do, and convert the network of another framework only once.

    Raises:
        ModelError: see `load`.
        MissingDependencyError: see `load`.
    """
    given = _given(model, None)
    return given.model, _imported(model, given, simplify=True)


def read(model: Any) -> ir.Model:
    """Read a network of any framework as it is, in ONNX: float, or quantized (an ONNX file's own form, else Q/DQ).

    Raises:
        ModelError: see `load`.
        MissingDependencyError: see `load`.
    """
    if isinstance(model, ImportedModel):
        return model.original
    return _given(model, None).model


def framework_of(model: Any) -> Framework | None:
    """Tell whose network this is; None for ONNX, and for what nobody knows, which ONNX's importer refuses best."""
    if isinstance(model, onnx.ModelProto | ir.Model):
        return None
    if not isinstance(model, str | os.PathLike):
        names = {f"{base.__module__}.{base.__qualname__}" for base in type(model).__mro__}
        found = next((one for one in FRAMEWORKS if names.intersection(one.classes)), None)
        if found is None:
            raise ModelError(
                "expected a path, an ONNX network, a torch.nn.Module, a torch.export.ExportedProgram or a Keras model, "
                f"got {type(model).__name__}"
            )
        return found
    path = Path(model)
    for framework in FRAMEWORKS:
        if framework.signature is not None and path.is_file():
            offset, expected = framework.signature
            with path.open("rb") as file:
                if file.read(offset + len(expected))[offset:] == expected:
                    return framework
    return next((one for one in FRAMEWORKS if path.name.lower().endswith(one.suffixes)), None)


def _given(model: Any, example: Any) -> Converted:
    """Return a network as it is, in ONNX."""
    framework = framework_of(model)
    if framework is None:
        return Converted(model=onnx_importer.read(model))
    if isinstance(model, str | os.PathLike) and not Path(model).exists():  # said before a missing package is
        raise ModelError(f"{model}: no such file; give the path of a network")
    convert: Convert = importlib.import_module(f"narrowgauge.importers.{framework.module}").convert
    return convert(model, example=example)


def _imported(model: Any, converted: Converted, *, simplify: bool) -> ImportedModel:
    """Make of a network in ONNX the float one to work on, and the plan that it came with."""
    framework = framework_of(model)
    given, notes, plan = converted.model, converted.notes, None
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    file = path if framework is None else None
    parted = take_apart(given, target=converted.target) if is_quantized(given) else None
    if parted is not None and parted.plan.encodings:
        given, file, notes, plan = parted.model, None, (*notes, *parted.notes), parted.plan
    elif parted is None and is_narrow(given):
        given, file, notes = given.clone(), None, (*notes, NOTE)
        widen_to_float32(given)
    found = onnx_importer.load(given, simplify=simplify, name=str(path or ""))
    return replace(
        found, notes=tuple(dict.fromkeys((*notes, *found.notes))), file=file, plan=plan, name=_name(model),
        framework=framework.name if framework is not None else "ONNX",
    )  # fmt: skip


def _name(model: Any) -> str:
    """What to call a network: its path, its graph's name, or the name of its class."""
    if isinstance(model, str | os.PathLike):
        return str(Path(model))
    if isinstance(model, onnx.ModelProto | ir.Model):
        return str(model.graph.name or "network")
    return type(model).__name__
