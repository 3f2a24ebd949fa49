"""Read PyTorch networks: modules, exported programs and `.pt2` files, float or quantized by PyTorch's own tools.

Input: the network and, for modules, an example of its inputs. Output: an ONNX network, of a quantized one in Q/DQ form.
A module is traced by torch.export and written by torch.onnx; nothing of a file is unpickled or run.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import onnx_ir as ir

from narrowgauge.errors import MissingDependencyError, ModelError
from narrowgauge.graph.edits import all_nodes
from narrowgauge.importers.imported import Converted
from narrowgauge.importers.pytorch.archive import read_program
from narrowgauge.importers.pytorch.examples import Call, example_call
from narrowgauge.importers.pytorch.exporting import evaluating, module_to_onnx, to_onnx
from narrowgauge.importers.pytorch.silence import silence
from narrowgauge.importers.pytorch.twins import (
    Watch,
    float_twin,
    is_quantized_module,
    note_difference,
)

__all__ = ["convert"]


def convert(source: Any, *, example: Any = None) -> Converted:
    """Read a PyTorch network.

    Args:
        source: A torch.nn.Module, a torch.export.ExportedProgram, or the path of a `.pt2` file.
        example: How a module is called, or data; see `examples.example_call`. Programs need none.

    Raises:
        ModelError: The network cannot be read; the message says why.
        MissingDependencyError: PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError(
            'PyTorch networks are read with PyTorch, which is not installed: pip install "narrowgauge[torch]"'
        )
    import torch

    if isinstance(source, str | os.PathLike):
        source = read_program(Path(source))
    if isinstance(source, torch.export.ExportedProgram):
        model = to_onnx(source)
        return Converted(model=model, target=_target(model))
    module = _unwrapped(source)
    call, notes = example_call(module, example), list[str]()
    if is_quantized_module(module):
        return _converted_quantized(module, call, notes)
    model = module_to_onnx(module, call, notes)
    return Converted(model=model, notes=tuple(notes), target=_target(model))


def _unwrapped(source: Any) -> Any:
    """Return the module that torch.compile or DataParallel stand around.

    Raises:
        ModelError: It is no module, or one of TorchScript, which has no Python to trace.
    """
    import torch

    if isinstance(source, torch.jit.ScriptModule):
        raise ModelError(
            "expected a torch.nn.Module in Python, got a TorchScript module; give the module that it was made of"
        )
    if not isinstance(source, torch.nn.Module):
        raise ModelError(f"expected a torch.nn.Module or an exported program, got {type(source).__name__}")
    if isinstance(source, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        return source.module
    return getattr(source, "_orig_mod", source)


def _converted_quantized(module: Any, call: Call, notes: list[str]) -> Converted:
    """Read a module of PyTorch's eager or FX quantization, whose arithmetic is that of the engine in use."""
    import torch

    watch = Watch()
    with silence():  # copying packed weights warns of their age
        twin = float_twin(module)
    model = module_to_onnx(twin, call, notes, watch)
    if watch.dynamic:
        notes.append("activations that PyTorch rounds by the range of each batch take 8 bits here, 7 on some engines")
    with evaluating(module), silence():
        notes.extend(note_difference(module, twin, call))
    target = "pytorch-qnnpack" if torch.backends.quantized.engine == "qnnpack" else "pytorch-fbgemm"
    return Converted(model=model, notes=tuple(notes), target=target)


def _target(model: ir.Model) -> str:
    """Tell from the activations' type which of PyTorch's engines a program was quantized for, "" if it was not."""
    rounding = ("QuantizeLinear", "DynamicQuantizeLinear")
    levels = {node.outputs[0].dtype for node in all_nodes(model) if node.op_type in rounding}
    if not levels:
        return ""
    return "pytorch-qnnpack" if ir.DataType.INT8 in levels else "pytorch-fbgemm"
