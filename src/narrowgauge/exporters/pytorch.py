"""PyTorch's own file: the planned network as an exported program with `quantized_decomposed` operators (PT2E)."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.errors import ModelError, NarrowgaugeError, OutputError, TargetError
from narrowgauge.exporters.formats import Export, Exported
from narrowgauge.graph.edits import is_operator, remove_unused
from narrowgauge.lowering.pytorch.module import identifiers, to_module
from narrowgauge.lowering.pytorch.rounding import LEVELS, ROUNDING, Rounding, rounding_of

if TYPE_CHECKING:
    import torch

NAME = "model.pt2"
NAMES = "narrowgauge.json"
"""Record of the file with the network's names of inputs and outputs, which need not be identifiers of Python."""

_SIZES = (8, 32, 224, 3, 1)
"""Sizes tried for an axis of any size that is not the first: PyTorch traces the network with one of them."""

_TRACES = ("stack_trace", "source_fn_stack", "torch_fn", "from_node", "custom")
"""What PyTorch remembers of the code that a node was traced from, with places on this machine."""

_OPERATORS = ("quantize_per_tensor", "quantize_per_channel", "dequantize_per_tensor", "dequantize_per_channel")


def write(export: Export, folder: Path) -> Exported:
    """Write the planned network as an exported program; see `Write`.

    Its nodes are called like the network's values. A rounding is an operator `quantize_per_tensor` (or `_per_channel`)
    with its `dequantize`, weights are stored in their integers, and a bias in float: the numbers that its integers
    stand for. `torch.export.load` reads the file once `torch.ao.quantization.fx._decomposed` is imported, which makes
    the operators known. Read back, each scale, zero point, least and greatest level and type has to be the plan's.

    Raises:
        TargetError: PyTorch lacks an operator (the message names it and the node), or cannot trace the network.
        OutputError: the file cannot be written, or what is written differs from the plan.
        MissingDependencyError: PyTorch is not installed.
    """
    network = export.simulated.clone()
    declare_levels(network, export.plan)
    module = to_module(network)

    import torch

    from narrowgauge.importers.pytorch.archive import read_program
    from narrowgauge.importers.pytorch.silence import silence

    path = folder / NAME
    program, notes = _exported(module, network)
    outputs = [str(value.name) for value in network.graph.outputs]
    _name_nodes(program, module)
    _drop_traces(program)
    names = json.dumps({"inputs": list(module.input_names), "outputs": outputs})
    try:
        with silence():
            torch.export.save(program, path, extra_files={NAMES: names})
        back = read_program(path)
    except ModelError as error:
        raise OutputError(f"{path}: what was written does not read back: {error}") from None
    except Exception as error:  # PyTorch raises what it likes
        raise OutputError(f"{path}: PyTorch could not write the network: {_line(error)}") from None
    check(back, module, export.plan, path)
    return Exported(runnable=path, notes=(*notes, _SIMULATES))


_SIMULATES = (
    "model.pt2 is timed as it is, operator by operator, which simulates: torch.compile makes integer kernels of it"
)


def declare_levels(network: ir.Model, plan: Plan) -> None:
    """Give each QuantizeLinear and DequantizeLinear the levels of its encoding, in place.

    ONNX has no type of 7 bits: a Clip before the QuantizeLinear cuts there. PyTorch has `quant_min` and `quant_max`
    instead, so the Clip is left out.
    """
    for node in list(network.graph):
        name = _encoded(node)
        encoding = plan.encodings.get(name) if name else None
        if not isinstance(encoding, Encoding):
            continue
        node.meta[LEVELS] = (encoding.type.minimum, encoding.type.maximum)
        node.meta["encoding"] = name
        source = node.inputs[0] if is_operator(node, "QuantizeLinear") else None
        cut = source.producer() if source is not None else None
        if cut is not None and is_operator(cut, "Clip") and str(cut.name).startswith(f"{name}_saturate"):
            node.replace_input_with(0, cut.inputs[0])
    remove_unused(network)


def _encoded(node: ir.Node) -> str:
    """Name of the value whose levels a node of the Q/DQ form writes or reads, as that form calls it; "" if unknown."""
    if not is_operator(node, *ROUNDING):
        return ""
    levels = node.outputs[0] if is_operator(node, "QuantizeLinear") else node.inputs[0]
    name, mark, _ = str(levels.name if levels is not None else "").rpartition("_quantized")
    return name if mark else ""


def check(back: torch.export.ExportedProgram, module: torch.nn.Module, plan: Plan, path: Path) -> None:
    """Compare every rounding of an exported program with the plan.

    Args:
        back: the program as it was read back.
        module: of which it was made.
        plan: the encodings.
        path: of the file, for the message.

    Raises:
        OutputError: naming the value whose rounding is missing or differs, and both numbers.
    """
    nodes = {node.name: node for node in back.graph.nodes}
    expected = {}
    for key, part in module.operators.items():
        rounding = rounding_of(part.node) if part.node.op_type in ROUNDING else None
        if rounding is not None:
            expected[key] = _planned(rounding, plan.encodings.get(part.node.meta.get("encoding", "")))
    for key, rounding in expected.items():
        value = module.value_names[key][0]
        found = _read(back, nodes[key]) if key in nodes else None
        if found is None:
            raise OutputError(f"{path}: expected the rounding of {value!r}, what was written has none")
        _compare(value, rounding, found, path)
    more = [node.name for node in back.graph.nodes if _is_rounding(node) and node.name not in expected]
    if more:
        raise OutputError(f"{path}: what was written has a rounding that the plan has not: {more[0]!r}")


def _planned(rounding: Rounding, encoding: Any) -> Rounding:
    """The plan's own numbers where a rounding is of one of its encodings."""
    if not isinstance(encoding, Encoding):
        return rounding
    kind = encoding.type
    return Rounding(
        scale=encoding.scale.reshape(rounding.scale.shape),
        zero_point=encoding.zero_point.reshape(rounding.scale.shape),
        lowest=kind.minimum,
        highest=kind.maximum,
        stored=rounding.stored,
        axis=rounding.axis,
    )


def _is_rounding(node: Any) -> bool:
    target = str(node.target)
    return target.startswith("quantized_decomposed.") and target.endswith(".default") and _kind(node) in _OPERATORS


def _kind(node: Any) -> str:
    return str(node.target).split(".")[1]


def _read(program: Any, node: Any) -> Rounding | None:
    if not _is_rounding(node):
        return None
    if _kind(node).endswith("tensor"):
        scale, zero_point, lowest, highest, dtype = node.args[1:6]
        axis = None
    else:
        scale, zero_point, axis, lowest, highest, dtype = node.args[1:7]
        scale, zero_point = _numbers(program, scale), _numbers(program, zero_point)
    return Rounding(
        scale=np.asarray(scale, np.float32),
        zero_point=np.asarray(zero_point, np.int64),
        lowest=lowest,
        highest=highest,
        stored=ir.DataType[str(dtype).removeprefix("torch.").upper()],
        axis=axis,
    )


def _numbers(program: Any, node: Any) -> Any:
    """Numbers of a parameter, buffer or constant that a node of the program stands for."""
    signature = program.graph_signature
    for table, stored in (
        (signature.inputs_to_parameters, program.state_dict),
        (signature.inputs_to_buffers, program.state_dict),
        (signature.inputs_to_lifted_tensor_constants, program.constants),
    ):
        if node.name in table:
            name = table[node.name]
            return (stored[name] if name in stored else program.constants[name]).detach().numpy()
    raise TargetError(f"{node.name!r}: expected constant numbers")


def _compare(value: str, expected: Rounding, found: Rounding, path: Path) -> None:
    for what, wanted, got in (
        ("scale", expected.scale, found.scale),
        ("zero point", expected.zero_point, found.zero_point),
        ("least level", expected.lowest, found.lowest),
        ("greatest level", expected.highest, found.highest),
        ("type", expected.stored, found.stored),
        ("axis", expected.axis, found.axis),
    ):
        if not np.array_equal(np.asarray(wanted), np.asarray(got)):
            raise OutputError(
                f"{path}: {value!r}: expected the {what} {_some(wanted)} of the plan, what was written has {_some(got)}"
            )


def _some(numbers: Any) -> str:
    if not isinstance(numbers, np.ndarray) or numbers.size <= 3:
        return str(numbers)
    return f"{', '.join(map(str, numbers.reshape(-1)[:3]))}, ..."


def _exported(module: Any, network: ir.Model) -> tuple[Any, list[str]]:
    """Trace the module, with axes of any size wherever the network has them and PyTorch finds it so."""
    import torch
    import torch.fx.experimental._config as tracing

    from narrowgauge.importers.pytorch.silence import silence

    inputs = [value for value in network.graph.inputs if not value.is_initializer()]
    failure: Exception | None = None
    for size in _SIZES:
        examples = tuple(_example(torch, value, size) for value in inputs)
        shapes = tuple(_free_axes(torch, value) for value in inputs)
        try:
            with torch.no_grad(), silence(), tracing.patch(backed_size_oblivious=True):
                program = torch.export.export(module, examples, dynamic_shapes=(shapes,), strict=False)
        except NarrowgaugeError:
            raise
        except Exception as error:  # PyTorch raises what it likes
            failure = failure or error
        else:
            return program, list(_fixed(program, inputs, module))
    raise TargetError(f"PyTorch could not trace the network: {_line(failure)}")


def _example(torch: Any, value: ir.Value, size: int) -> Any:
    if value.shape is None or value.dtype is None:
        raise TargetError(f"input {value.name!r}: expected a type and a shape; declare them when exporting the network")
    sizes = [extent if isinstance(extent, int) else 2 if axis == 0 else size for axis, extent in enumerate(value.shape)]
    return torch.from_numpy(np.zeros(sizes, value.dtype.numpy()))


def _free_axes(torch: Any, value: ir.Value) -> dict[int, Any]:
    shape = value.shape if value.shape is not None else ()
    return {axis: torch.export.Dim.AUTO for axis, extent in enumerate(shape) if not isinstance(extent, int)}


def _fixed(program: Any, inputs: Sequence[ir.Value], module: Any) -> Iterator[str]:
    """Say which axes are of any size in the network, and of one in the program."""
    for value, name in zip(inputs, program.graph_signature.user_inputs, strict=True):
        node = next(node for node in program.graph.nodes if node.name == name)
        for axis, extent in enumerate(value.shape or ()):
            if not isinstance(extent, int) and isinstance(node.meta["val"].shape[axis], int):
                yield (
                    f"PyTorch fixed axis {axis} of input {value.name!r} to {node.meta['val'].shape[axis]}, which the "
                    "network leaves open"
                )


def _name_nodes(program: Any, module: Any) -> None:
    """Call the program's nodes like the values of the network that they write, its inputs like the network's."""
    nodes = list(program.graph.nodes)
    user_inputs = set(program.graph_signature.user_inputs)
    numbers = {node.name for node in nodes if node.op in ("placeholder", "output") and node.name not in user_inputs}
    groups: dict[str, list[Any]] = {}
    for node in nodes:
        if _part(node) in module.value_names:
            groups.setdefault(_part(node), []).append(node)
    wanted = {node: name for key, group in groups.items() for name, node in _results(key, group).items()}
    taken = numbers | set(wanted.values())
    inputs = [node for node in nodes if node.name in user_inputs]
    wanted |= dict(zip(inputs, identifiers(module.input_names, taken).values(), strict=True))
    others = [node for node in nodes if node not in wanted and node.op == "call_function"]
    for node in others:  # where an operator of the network is several of PyTorch's
        name = f"{_part(node) or 'node'}_{str(getattr(node.target, '__name__', 'operator')).partition('.')[0]}"
        wanted[node] = identifiers([name], taken | set(wanted.values()))[name]
    _rename(program, wanted)


def _results(key: str, nodes: Sequence[Any]) -> dict[str, Any]:
    """Pick the nodes of a part that hold what it writes: its last one, or the items of a tuple."""
    items = {node.args[1]: node for node in nodes if node.target is operator.getitem}
    if not items:
        return {key: nodes[-1]}
    return {key if position == 0 else f"{key}_item_{position}": node for position, node in items.items()}


def _drop_traces(program: Any) -> None:
    """Leave out where nodes were traced; of the modules only the network's names stay, which importers go by."""
    for node in program.graph.nodes:
        name = _part(node)
        for key in (*_TRACES, "nn_module_stack"):
            node.meta.pop(key, None)
        if name:
            kind = "torch.nn.Module"
            node.meta["nn_module_stack"] = {"L__self__": ("", kind), f"L__self___{name}": (name, kind)}


def _rename(program: Any, wanted: dict[Any, str]) -> None:
    """Give nodes other names, everywhere where a program has them."""
    changed = {node.name: name for node, name in wanted.items()}
    for node, name in wanted.items():
        node.name = name
    signature = program.graph_signature
    calls = [entry.signature for entry in program.module_call_graph if entry.signature is not None]
    arguments = [spec.arg for spec in (*signature.input_specs, *signature.output_specs)]
    for argument in (*arguments, *(each for call in calls for each in (*call.inputs, *call.outputs))):
        if getattr(argument, "name", None) in changed:  # a constant has no name
            argument.name = changed[argument.name]
    for call in calls:
        call.forward_arg_names = list(signature.user_inputs)


def _part(node: Any) -> str:
    """Which submodule of `operators` a node was traced in; "" if none."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.rpartition("operators.")[2] if "operators." in path else ""


def _line(error: Exception | None) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
