"""A module to an exported program, and an exported program to ONNX."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir

from narrowgauge.errors import ModelError
from narrowgauge.graph.edits import all_nodes, remove_unused
from narrowgauge.importers.pytorch.examples import Call, with_rows
from narrowgauge.importers.pytorch.names import name_after_modules, name_inputs_and_outputs
from narrowgauge.importers.pytorch.operators import translations
from narrowgauge.importers.pytorch.silence import silence
from narrowgauge.importers.pytorch.twins import Watch, taking_over
from narrowgauge.importers.upgrade import OPSET


def module_to_onnx(module: Any, call: Call, notes: list[str], watch: Watch | None = None) -> ir.Model:
    """Trace a module in evaluation mode, for any number of rows if it allows that, and write it in ONNX.

    Args:
        module: A torch.nn.Module; it is as it was afterwards.
        call: How it is called.
        notes: Take what was changed.
        watch: Takes notice of what a twin does; None of a module that is none.

    Raises:
        ModelError: The module cannot be traced, or not be written.
    """
    module = _on_processor(module, notes)
    rows = with_rows(call)
    program = _traced_for_any_rows(module, rows, watch) if rows is not None else None
    if program is not None:
        return to_onnx(program)
    try:
        program = _trace_either(module, call, watch)
    except Exception as error:  # what the user's own code raises while it is traced
        _raise_own(error)
        raise ModelError(
            f"{type(module).__name__}: expected a module that torch.export can trace with the example inputs, but it "
            f"failed: {_reason(error)}; {_remedy(call)}"
        ) from error
    model = to_onnx(program)
    if rows is not None:
        notes.append("the network takes only batches as large as the example's: PyTorch cannot export it for any size")
    return model


def _remedy(call: Call) -> str:
    """Say what to do about a module that failed."""
    given = call.positional[0] if len(call.positional) == 1 and not call.named else None
    if isinstance(given, Mapping):
        keys = ", ".join(repr(key) for key in given)
        return (
            f"it was given the dict of {keys} itself, since these are no parameters of its forward; name them after "
            "the parameters"
        )
    return "export it yourself with torch.export.export and give the program"


def _takes_any_rows(program: Any) -> bool:
    """Tell whether the first axis of all inputs is dynamic."""
    import torch

    names = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    sizes = [value.shape for value in values if isinstance(value, torch.Tensor) and value.ndim]
    # A symbol that turned out to have one value only is written as that value.
    return bool(sizes) and not any(str(size[0]).isdecimal() for size in sizes)


def to_onnx(program: Any) -> ir.Model:
    """Write an exported program in ONNX, values named after modules, weights as in the state dict.

    Raises:
        ModelError: An operator has no ONNX form; the message names it.
    """
    import torch

    try:
        with silence():
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, optimize=True, opset_version=OPSET,
                custom_translation_table=translations(program),
            )  # fmt: skip
    except Exception as error:  # the exporter raises its own and any of what it calls
        _raise_own(error)
        raise ModelError(
            f"expected a network that torch.onnx.export can write, but it failed: {_reason(error)}; replace that "
            "operation by standard ones"
        ) from error
    model: ir.Model = exported.model
    _copy_weights(model)
    _declare_levels(model)
    _drop_zero_states(model)
    name_after_modules(model, program)
    name_inputs_and_outputs(model, program)
    for graph in model.graphs():
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()  # stack traces and paths of the user's machine
    return model


@contextlib.contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Put a module in evaluation mode, without gradients, and each of its parts back as it was."""
    import torch

    before = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in before:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, training in before:
            part.training = training


def _traced_for_any_rows(module: Any, rows: Call, watch: Watch | None) -> Any:
    """Trace with the number of rows left open; None where that does not work.

    A failure is not final: a network that takes only its own number of rows fails with two. Where Python makes a number
    of the batch's size, `int(rows / windows)`, the size stays open only if bytecode is followed.
    """
    for strict in (False, True):
        with contextlib.suppress(Exception):
            program = _trace(module, rows, watch, any_rows=True, strict=strict)
            if _takes_any_rows(program):
                return program
    return None


def _trace_either(module: Any, call: Call, watch: Watch | None) -> Any:
    """Trace for the example's own sizes, in the first way that works; the first way's failure says most."""
    try:
        return _trace(module, call, watch, any_rows=False, strict=False)
    except Exception:
        with contextlib.suppress(Exception):
            return _trace(module, call, watch, any_rows=False, strict=True)
        raise


def _trace(module: Any, call: Call, watch: Watch | None, *, any_rows: bool, strict: bool) -> Any:
    """Trace with torch.export, which follows either Python (`strict=False`) or its bytecode."""
    with evaluating(module), silence(), taking_over(watch) if watch is not None else contextlib.nullcontext():
        return _exported(module, call, any_rows=any_rows, strict=strict)


def _exported(module: Any, call: Call, *, any_rows: bool, strict: bool) -> Any:
    import torch
    from torch.utils import _pytree as pytree

    def dynamic(leaf: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(leaf, torch.Tensor) and leaf.ndim else None

    shapes: Any = None
    if any_rows:
        shapes = tuple(pytree.tree_map(dynamic, value) for value in call.positional)
        if call.named:
            shapes = _by_parameter(module, call, shapes, dynamic)
    return torch.export.export(module, call.positional, dict(call.named), dynamic_shapes=shapes, strict=strict)


def _by_parameter(module: Any, call: Call, shapes: tuple[Any, ...], dynamic: Any) -> dict[str, Any]:
    """Name the shapes of all arguments, as torch.export wants them where some are given by name."""
    import inspect

    from torch.utils import _pytree as pytree

    bound = inspect.signature(module.forward).bind_partial(*shapes)
    named = {name: pytree.tree_map(dynamic, value) for name, value in call.named.items()}
    return {**bound.arguments, **named}


def _on_processor(module: Any, notes: list[str]) -> Any:
    """Return the module with its numbers on the processor, a copy where they are elsewhere or of too few bits."""
    import torch

    numbers = [*module.parameters(), *module.buffers()]
    if any(one.is_meta for one in numbers):
        raise ModelError(
            f"{type(module).__name__}: expected weights, got tensors on the device 'meta', which have none; load the "
            "state dict with load_state_dict(..., assign=True) first"
        )
    elsewhere = any(one.device.type != "cpu" for one in numbers)
    narrow = {one.dtype for one in numbers} & {torch.bfloat16, torch.float16}
    if not elsewhere and not narrow:
        return module
    moved = copy.deepcopy(module).to("cpu")
    if narrow:
        kinds = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in narrow))
        notes.append(f"numbers of {kinds} became float32, in which the network is computed here")
        moved = moved.float()
    return moved


def _copy_weights(model: ir.Model) -> None:
    """Take the weights out of the module's memory, so that training it on changes nothing here."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                stored = value.const_value
                value.const_value = ir.Tensor(stored.numpy().copy(), dtype=stored.dtype, name=value.name)


def _declare_levels(model: ir.Model) -> None:
    """Give levels and what they depend on the types of ONNX, where PyTorch had others for the same values."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.dtype = value.const_value.dtype
    for node in all_nodes(model):
        if node.op_type == "QuantizeLinear":
            zero_point = node.inputs[2]
            assert zero_point is not None
            node.outputs[0].dtype = zero_point.dtype or ir.DataType.UINT8
        elif node.op_type == "DynamicQuantizeLinear":
            for value, kind in zip(
                node.outputs, (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8), strict=True
            ):
                value.dtype = kind
            for value in node.outputs[1:]:
                value.shape = ir.Shape([])


def _drop_zero_states(model: ir.Model) -> None:
    """Leave out initial states of zeros, which an absent one means, with all that gives them the batch size."""
    for node in all_nodes(model):
        if node.op_type in ("LSTM", "GRU", "RNN"):
            for number in range(5, min(7, len(node.inputs))):
                value = node.inputs[number]
                if value is not None and _is_zero(value):
                    node.replace_input_with(number, None)
    remove_unused(model)


def _is_zero(value: ir.Value) -> bool:
    """Tell whether a value is zeros that were expanded or cut."""
    producer = value.producer()
    while producer is not None and producer.op_type in ("Expand", "Slice", "Reshape", "Unsqueeze", "Squeeze"):
        source = producer.inputs[0]
        if source is None:
            return False
        value, producer = source, source.producer()
    return producer is None and value.const_value is not None and not value.const_value.numpy().any()


def _raise_own(error: BaseException) -> None:
    """Raise the message of narrowgauge's own that an error of PyTorch is wrapped around, if it is."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ModelError):
            raise ModelError(str(inner)) from error
        inner = inner.__cause__


def _reason(error: BaseException) -> str:
    """Take the first line of the innermost error, which says what happened; outer ones say where in the exporter."""
    inner = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    text = str(inner).strip() or str(error).strip()
    return text.partition("\n")[0][:400] or type(inner).__name__
