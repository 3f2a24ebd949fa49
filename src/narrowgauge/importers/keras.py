"""Read Keras networks: `.keras` and `.h5` files, and models in memory.

The network is run once by Keras' torch backend under torch.export and written by torch.onnx; TensorFlow is not needed.
Its inputs keep their names and layout. Every layer's output has the layer's name, weights are `layer/kernel`.

What is written is run beside Keras before it is handed on, so that an importer's mistake is an error and not a network
that computes something else. Files are not trusted (`keras_files.py`).
"""

from __future__ import annotations

import ast
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import onnx_ir as ir

from narrowgauge.data.samples import Samples
from narrowgauge.errors import ModelError
from narrowgauge.graph.constants import constant_tensor, lift_constants
from narrowgauge.graph.edits import is_operator, remove_unused
from narrowgauge.graph.engine import open_session
from narrowgauge.graph.shapes import infer_shapes
from narrowgauge.importers.imported import Converted
from narrowgauge.importers.keras_files import first_line, open_network, required
from narrowgauge.importers.layer_names import name_after_layers
from narrowgauge.importers.pytorch.silence import silence
from narrowgauge.passes.cast_like import cast_like
from narrowgauge.passes.fold_constants import fold_constants
from narrowgauge.passes.remove_no_ops import remove_no_ops
from narrowgauge.passes.split_sequences import split_sequences

OPSET = 21

_SAMPLES = 2
"""Size of the batch that is traced: of an axis of size 1 torch.export does not know whether it may be longer."""

_GUESSED_SIZES = (37, 41, 43, 47, 53, 59, 61, 67)
"""What axes of any size have in the tracing: long enough for windows and strides, and no two alike, since torch.export
takes axes of one size for the same. Larger ones are tried by no network; it is only traced, not run."""

_LARGEST_DIFFERENCE, _NOTED_DIFFERENCE = 2e-2, 1e-4
"""Of the largest number: float32 in another order differs by 1e-6, float16 by 1e-3."""

_LARGEST_SAMPLE = 1 << 28
"""Numbers in one input; a network of images of 16000 x 16000 pixels is damaged."""


def convert(source: Any, *, example: Any = None) -> Converted:
    """Make an ONNX network of a Keras network.

    Args:
        source: a `keras.Model`, or the path of a file that `model.save` wrote, `.keras` or HDF5, by Keras 2 or 3.
        example: arrays for the inputs of a model that does not say what its inputs are (a subclass of `keras.Model`
            that was not built from layers), or sizes of axes that it leaves open.

    Returns:
        The network with a dynamic batch axis where Keras has one. Input layout is Keras' (channels last).

    Raises:
        ModelError: no network is in the file, or a damaged or incomplete one, or one that carries code; or Keras'
            torch backend cannot run it.
        MissingDependencyError: Keras, h5py or torch is not installed.
    """
    keras = _keras()
    with silence():
        if isinstance(source, keras.Model):
            name, model, notes = f"the Keras model {source.name!r}", source, tuple[str, ...]()
        else:
            name = str(source)
            model, notes = open_network(keras, Path(source))
        with keras.device("cpu"):
            _check(model, name)
            traced, traced_notes = _traced(keras, model, name, example)
    return Converted(model=traced, notes=(*notes, *traced_notes))


def _keras() -> Any:
    """Import Keras with its torch backend.

    The backend is set in the environment only while Keras is imported: what the caller starts later is not ours.
    """
    required("torch")
    with mock.patch.dict(os.environ):
        if "keras" not in sys.modules:
            os.environ["KERAS_BACKEND"] = "torch"
        keras = required("keras")
    required("h5py")
    backend = keras.backend.backend()
    if backend != "torch":
        raise ModelError(
            f"Keras networks are read through Keras' torch backend, but Keras is imported with {backend!r}; set the "
            "environment variable KERAS_BACKEND=torch before keras is imported, or save the model and give narrowgauge "
            "the file in a process of its own"
        )
    return keras


# ----------------------------------------------------------------------------------------------------------- tracing


@dataclass(frozen=True, kw_only=True, slots=True)
class _Input:
    """What a network reads.

    Attributes:
        name: the user's.
        shape: None for an axis of any size.
        dtype: Keras' name for it.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def _check(model: Any, source: str) -> None:
    """Refuse what cannot be traced, where there is more to say than what tracing says."""
    if not model.built:
        raise ModelError(
            f"{source} has no weights yet, since it does not know the shape of its input; begin it with "
            "keras.Input(shape=...), or call model.build(shape) or the model itself once"
        )
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None) is not None:
            raise ModelError(
                f"{source}: the layer {layer.name!r} was quantized by Keras ({layer.quantization_mode}); "
                "give the float network"
            )


def _traced(keras: Any, model: Any, source: str, example: Any) -> tuple[ir.Model, tuple[str, ...]]:
    """Trace the network, with every axis of any size where Keras lets it be, and compare what comes out with Keras."""
    inputs, structure = _inputs(keras, model, source, example)
    network, weights = _as_module(keras, model, structure)
    failure: _UntraceableError | None = None
    for open_inputs, note in _attempts(inputs, _given_shapes(keras, example, inputs)):
        try:
            program = _exported(keras, model, network, open_inputs)
            written = _written(program, weights, [one.name for one in inputs], _output_names(keras, model))
            difference = _difference(network, written, open_inputs)
        except _UntraceableError as error:
            failure = failure or error
            continue
        notes = [note] if note else []
        if difference > _NOTED_DIFFERENCE:
            notes.append(f"its results differ from Keras' by up to {difference:.2g} of the largest number")
        if any(getattr(layer, "stateful", False) for layer in model._flatten_layers()):
            notes.append("the state of its recurrent layers begins anew with every sample")
        notes += _repeated_borders(written)
        return written, tuple(notes)
    hint = ""
    if any(None in one.shape[1:] for one in inputs) and _example_arrays(keras, example) is None:
        hint = "; its input has axes of any size: build it with a fixed input shape, or give an example"
    raise ModelError(f"{source}: {failure}{hint}") from failure


class _UntraceableError(Exception):
    """The network cannot be traced like this; the message is the reason."""


def _attempts(inputs: Sequence[_Input], shapes: Sequence[tuple[int | None, ...]]) -> Iterator[tuple[list[_Input], str]]:
    """Yield what to try, from the most general on: the inputs with their open axes, and what to say of it.

    Where what Keras computes depends on a size that it leaves open, the size is fixed to the example's, and if that is
    not enough, the batch to one sample.
    """
    yield list(inputs), ""
    known = [replace(one, shape=(*one.shape[:1], *shape[1:])) for one, shape in zip(inputs, shapes, strict=True)]
    if any(None in one.shape[1:] for one in known):
        return
    if known != list(inputs):
        sizes = " and ".join(" x ".join(map(str, one.shape[1:])) for one in known)
        yield known, f"its input is fixed to {sizes}, as in the example: what Keras computes depends on the size"
    if any(None in one.shape[:1] for one in known):
        single = [replace(one, shape=(one.shape[0] or 1, *one.shape[1:])) if one.shape else one for one in known]
        yield single, "its batch is fixed to 1: what Keras computes depends on the size of the batch"


def _inputs(keras: Any, model: Any, source: str, example: Any) -> tuple[list[_Input], Any]:
    """Return what the network reads, and the structure that it wants them in (tensors in lists and dictionaries)."""
    structure = _structure(keras, model)
    if structure is None:
        structure = _example_arrays(keras, example)
        if structure is None:
            raise ModelError(
                f"{source} does not say what its inputs are, since it is a class of its own and not built from "
                "keras.Input; give data, or an example of its inputs"
            )
        arrays = keras.tree.flatten(structure)
        names = [f"input_{number}" for number in range(len(arrays))]
        if isinstance(structure, dict) and len(structure) == len(arrays):
            names = sorted(structure)  # the order in which Keras flattens
        shapes: list[tuple[int | None, ...]] = [(None, *array.shape[1:]) for array in arrays]
        types = [keras.backend.standardize_dtype(array.dtype) for array in arrays]
    else:
        tensors = keras.tree.flatten(structure)
        names = [_input_name(tensor) for tensor in tensors]
        shapes, types = [tuple(tensor.shape) for tensor in tensors], [str(tensor.dtype) for tensor in tensors]
    inputs = [
        _Input(name=name, shape=shape, dtype=dtype) for name, shape, dtype in zip(names, shapes, types, strict=True)
    ]
    for one in inputs:
        if one.dtype == "string":
            raise ModelError(f"{source}: its input {one.name!r} is text; give the network behind the text's numbers")
        if math.prod(size or 1 for size in one.shape) > _LARGEST_SAMPLE:
            raise ModelError(f"{source}: its input {one.name!r} of shape {one.shape} is too large; is it damaged?")
    return inputs, structure


def _structure(keras: Any, model: Any) -> Any:
    """Return the model's input tensors as it wants them, None for a model that does not know them."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0] if model.inputs else None
    try:
        return model.input
    except (AttributeError, ValueError):
        return None


def _input_name(tensor: Any) -> str:
    """Return the name of the layer that stands for an input; the tensor's own is counted up by Keras."""
    history = getattr(tensor, "_keras_history", None)
    return str(tensor.name if history is None else history.operation.name)


def _output_names(keras: Any, model: Any) -> tuple[str, ...]:
    """Return the names of the layers that make the outputs; () where a layer makes two, or where it is not known."""
    if isinstance(model, keras.Sequential):
        return (model.layers[-1].name,)
    names = tuple(getattr(model, "output_names", None) or ())
    return names if len(set(names)) == len(names) else ()


def _example_arrays(keras: Any, example: Any) -> Any:
    """Return an example of the inputs as arrays in lists and dictionaries, None if it is something else."""
    if isinstance(example, Samples):
        example = dict(next(iter(example)).feed)
    items = [] if example is None else keras.tree.flatten(example)
    return example if items and all(hasattr(item, "shape") and hasattr(item, "dtype") for item in items) else None


def _given_shapes(keras: Any, example: Any, inputs: Sequence[_Input]) -> list[tuple[int | None, ...]]:
    """Return the inputs' shapes, open sizes filled in from an example that has arrays with as many axes."""
    structure = _example_arrays(keras, example)
    arrays = [] if structure is None else keras.tree.flatten(structure)
    if len(arrays) != len(inputs) or any(len(a.shape) != len(one.shape) for a, one in zip(arrays, inputs, strict=True)):
        return [one.shape for one in inputs]
    return [
        tuple(int(given) if size is None else size for size, given in zip(one.shape, array.shape, strict=True))
        for one, array in zip(inputs, arrays, strict=True)
    ]


def _filled(inputs: Sequence[_Input], batch: int, longer: int = 0) -> list[tuple[int, ...]]:
    """Return shapes to run with: open batches of a size, and other open axes of guessed sizes."""
    guesses = itertools.cycle(_GUESSED_SIZES)
    return [
        tuple(
            size if size is not None else batch if axis == 0 else next(guesses) + longer
            for axis, size in enumerate(one.shape)
        )
        for one in inputs
    ]


def _exported(keras: Any, model: Any, network: Any, inputs: Sequence[_Input]) -> Any:
    """Run torch.export; every operator of its program is noted with the layer that it belongs to."""
    import torch

    arguments = tuple(
        torch.zeros(shape, dtype=_torch_type(one.dtype))
        for one, shape in zip(inputs, _filled(inputs, _SAMPLES), strict=True)
    )
    auto = torch.export.Dim.AUTO
    axes = tuple({axis: auto for axis, size in enumerate(one.shape) if size is None} for one in inputs)
    try:
        with torch.no_grad(), torch.fx.traceback.preserve_node_meta(), _traceable(keras, model):
            program = torch.export.export(network, arguments, dynamic_shapes=(axes,), strict=False)
    except Exception as error:
        raise _UntraceableError(f"Keras' torch backend cannot trace it: {first_line(error)}") from error
    for name, one in zip(program.graph_signature.user_inputs, inputs, strict=True):
        placeholder = next(node for node in program.graph.nodes if node.name == name)
        for axis, size in enumerate(placeholder.meta["val"].shape):
            if one.shape[axis] is None and _is_fixed(size):
                raise _UntraceableError(f"what Keras computes depends on the size of {one.name!r} along axis {axis}")
    for node in program.graph.nodes:
        path = (node.meta.get("custom") or {}).get(_LAYER, "")
        node.meta["nn_module_stack"] = {"": ("", "Model"), path: (path, "Layer")}
    return program


def _is_fixed(size: Any) -> bool:
    """Tell whether torch.export knows a size, perhaps only from what it met later."""
    return isinstance(size, int) or size.node.maybe_as_int() is not None


def _difference(network: Any, written: ir.Model, inputs: Sequence[_Input]) -> float:
    """Return how far the written network is from Keras' own on random numbers, relative to the largest number.

    Raises:
        _UntraceableError: it cannot run, gives other shapes or other numbers; most often since Keras' code took a size
            of the traced batch for one that never changes.
    """
    generator = np.random.default_rng(0)
    samples = [
        _random(generator, shape, one.dtype)
        for one, shape in zip(inputs, _filled(inputs, _SAMPLES + 1, longer=2), strict=True)
    ]
    import torch

    try:
        with torch.no_grad():
            expected = [output.numpy() for output in network(*map(torch.from_numpy, samples))]
        session = open_session(written, optimization="basic")
        names = [value.name for value in session.get_inputs()]
        results = session.run(None, dict(zip(names, samples, strict=True)))
    except Exception as error:
        raise _UntraceableError(f"it was traced, but the result cannot run: {first_line(error)}") from error
    worst = 0.0
    for one, other in zip(expected, map(np.asarray, results), strict=True):
        if one.shape != other.shape:
            raise _UntraceableError(f"it was traced, but gives {other.shape} where Keras gives {one.shape}")
        old, new = one.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(old)
        if (finite != np.isfinite(new)).any():
            raise _UntraceableError("it was traced, but gives NaN or infinity where Keras does not")
        largest = np.abs(old[finite]).max(initial=0.0) or 1.0
        worst = max(worst, float(np.abs(new[finite] - old[finite]).max(initial=0.0) / largest))
    if worst > _LARGEST_DIFFERENCE:
        raise _UntraceableError(f"it was traced, but its results differ from Keras' by {worst:.2g} of the largest")
    return worst


def _random(generator: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Make numbers that any network takes: normal ones, or 0 and 1 where indices may be meant."""
    if dtype.startswith("float"):
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype({"uint16": "int32", "uint32": "int64"}.get(dtype, dtype))


_LAYER = "keras_layer"


def _torch_type(dtype: str) -> Any:
    import torch

    types = {
        "bool": torch.bool, "float16": torch.float16, "float32": torch.float32,
        "float64": torch.float64, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64,
        "int8": torch.int8, "uint8": torch.uint8, "uint16": torch.int32, "uint32": torch.int64,
    }  # fmt: skip
    if dtype not in types:
        raise ModelError(f"an input of type {dtype} cannot be imported; expected one of {', '.join(types)}")
    return types[dtype]


def _as_module(keras: Any, model: Any, structure: Any) -> tuple[Any, dict[str, str]]:
    """Wrap a model as a torch module whose parameters are the model's variables, so that they stay weights.

    Left to itself, tracing would copy them into the graph as nameless constants.
    """
    import torch

    variables = list(model.variables)

    class Network(torch.nn.Module):  # type: ignore[misc,unused-ignore]  # with and without torch
        def __init__(self) -> None:
            super().__init__()
            for number, variable in enumerate(variables):
                self.register_buffer(f"variable_{number}", variable.value.detach().cpu().clone())

        def forward(self, *tensors: Any) -> Any:
            state = [(variable, getattr(self, f"variable_{number}")) for number, variable in enumerate(variables)]
            with keras.StatelessScope(state_mapping=state):
                outputs = model(keras.tree.pack_sequence_as(structure, list(tensors)), training=False)
            return tuple(keras.tree.flatten(outputs))

    names = {f"variable_{number}": str(variable.path).rpartition("/")[2] for number, variable in enumerate(variables)}
    return Network(), names


@contextmanager
def _traceable(keras: Any, model: Any) -> Iterator[None]:
    """Let Keras note on every traced operator which layer it belongs to, and write LSTM and GRU whole.

    Keras' layers are torch modules but do not call each other as such, so torch.export does not see them by itself.
    """
    import torch

    call: Callable[..., Any] = keras.Operation.__call__
    path: list[str] = []
    calls: dict[str, int] = {}
    within: list[Any] = [model]

    def noted(operation: Any, *arguments: Any, **settings: Any) -> Any:
        named = isinstance(operation, keras.Layer) or isinstance(within[-1], keras.Model)
        if operation is model or not named:  # an operation that a layer calls is part of it
            return call(operation, *arguments, **settings)
        name = "/".join((*path, operation.name))
        number = calls[name] = calls.get(name, -1) + 1
        path.append(f"{operation.name}_{number}" if number else operation.name)  # a layer that is called again
        within.append(operation)
        try:
            with torch.fx.traceback.annotate({_LAYER: "/".join(path)}):
                return call(operation, *arguments, **settings)
        finally:
            path.pop()
            within.pop()

    with (
        _without_conversions(),
        mock.patch.object(keras.Operation, "__call__", noted),
        mock.patch.object(keras.layers.RNN, "inner_loop", _unrolled(keras.layers.RNN.inner_loop)),
        mock.patch.object(keras.layers.LSTM, "inner_loop", _whole(keras.layers.LSTM.inner_loop)),
        mock.patch.object(keras.layers.GRU, "inner_loop", _whole(keras.layers.GRU.inner_loop)),
    ):
        yield


def _without_conversions() -> Any:
    """Return a context in which a tensor that is converted to the type and device it has stays untraced.

    PyTorch hands such a tensor on as it is, but torch.export writes the call and a check of the tensor beside it. Keras
    converts whatever an operation reads, so that they are two of three operators of its programs and of the time.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class _Conversions(TorchFunctionMode):  # type: ignore[misc,unused-ignore]  # with and without torch
        def __torch_function__(
            self, function: Any, types: Any, arguments: tuple[Any, ...] = (), settings: dict[str, Any] | None = None
        ) -> Any:
            settings = settings or {}
            if function is torch.Tensor.to and settings.keys() <= {"dtype", "device"}:
                tensor, *asked = (*arguments, *settings.values())
                if all(_has(tensor, one) for one in asked):
                    return tensor
            return function(*arguments, **settings)

    return _Conversions()


def _has(tensor: Any, asked: Any) -> bool:
    """Tell whether a tensor has the type, or is on the device, that it is to be converted to."""
    import torch

    if isinstance(asked, torch.dtype):
        return bool(tensor.dtype == asked)
    return asked is None or (isinstance(asked, str | torch.device) and tensor.device == torch.device(asked))


_Loop = Callable[..., tuple[Any, Any, list[Any]]]


def _whole(loop: _Loop) -> _Loop:
    """Write a recurrent layer as ONNX's own operator, where it computes the same.

    Keras' loop would be traced step by step. It stays where there is a mask, or functions are not the usual ones.
    """

    def inner_loop(layer: Any, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        import torch

        states = list(initial_state) if isinstance(initial_state, list | tuple) else [initial_state]
        kinds = {tensor.dtype for tensor in (sequences, layer.cell.kernel.value, *states)}
        if mask is not None or not _is_usual(layer) or kinds != {torch.float32}:
            return loop(layer, sequences, initial_state, mask, training)
        return _recurrent(layer, sequences, states)

    return inner_loop


def _unrolled(loop: _Loop) -> _Loop:
    """Let a loop over steps stack its results; otherwise Keras goes through them sample by sample, a fixed number."""

    def inner_loop(layer: Any, *arguments: Any, **settings: Any) -> Any:
        with mock.patch.object(layer, "unroll", True):
            return loop(layer, *arguments, **settings)

    return inner_loop


def _is_usual(layer: Any) -> bool:
    names = (layer.activation.__name__, layer.recurrent_activation.__name__)
    return names == ("tanh", "sigmoid")


def _recurrent(layer: Any, sequences: Any, states: Sequence[Any]) -> tuple[Any, Any, list[Any]]:
    """Trace ONNX's LSTM or GRU; return the last output, all outputs [N, T, H] as they were computed, and the states.

    ONNX orders the gates of an LSTM input, output, forget, cell; Keras input, forget, cell, output. Those of a GRU both
    order update, reset, new. Weights are [directions, gates H, I] there, [I, gates H] here.
    """
    import torch

    cell, hidden = layer.cell, layer.units
    is_lstm = len(states) == 2

    def ordered(weights: Any) -> Any:
        if not is_lstm:
            return weights.unsqueeze(0)
        entry, forget, new, exit_gate = weights.chunk(4, 0)
        return torch.cat([entry, exit_gate, forget, new]).unsqueeze(0)

    weights = [ordered(cell.kernel.value.t()), ordered(cell.recurrent_kernel.value.t())]
    bias = None
    if cell.use_bias:
        values = cell.bias.value
        ours, theirs = (values[0], values[1]) if values.ndim == 2 else (values, torch.zeros_like(values))
        bias = torch.cat([ordered(ours), ordered(theirs)], 1)
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": "reverse" if layer.go_backwards else "forward"}
    if not is_lstm:
        attributes["linear_before_reset"] = int(cell.reset_after)
    length, rows = sequences.shape[1], sequences.shape[0]
    made = torch.onnx.ops.symbolic_multi_out(
        "LSTM" if is_lstm else "GRU",
        [sequences.transpose(0, 1), *weights, bias, None, *(state.unsqueeze(0) for state in states)],
        attributes,
        dtypes=[torch.float32] * (1 + len(states)),
        shapes=[[length, 1, rows, hidden], *([1, rows, hidden] for _ in states)],
    )
    outputs, last = made[0].squeeze(1).transpose(0, 1), [state.squeeze(0) for state in made[1:]]
    if layer.go_backwards and layer.return_sequences:
        outputs = outputs.flip(1)
    return last[0], outputs, last


# ----------------------------------------------------------------------------------------------------------- writing


def _written(program: Any, weights: Mapping[str, str], inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """Let torch.onnx write the traced program, and give everything the names that the user knows."""
    import torch

    try:
        written = torch.onnx.export(
            program, dynamo=True, verbose=False, optimize=False, opset_version=OPSET, input_names=list(inputs)
        )
    except Exception as error:
        raise _UntraceableError(f"torch.onnx cannot write it: {first_line(error)}") from error
    model = cast(ir.Model, written.model)
    lift_constants(model)
    cast_like(model)
    remove_no_ops(model)
    split_sequences(model)
    layers = {node: _layer_of(node) for node in model.graph}
    stored = model.graph.initializers
    known = {stored[name]: label for name, label in weights.items() if name in stored}
    name_after_layers(model, layers, known, outputs)
    _without_notes(model)
    _name_axes(model)
    infer_shapes(model)
    fold_constants(model)
    _drop_zero_biases(model, known)
    remove_unused(model)
    infer_shapes(model)
    return model


def _layer_of(node: ir.Node) -> str:
    """Return the path of the layer that torch.onnx noted: the names of modules from the outermost to the operator."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    layer = str(scopes[-2]) if len(scopes) > 1 else ""
    return "" if layer.startswith(_NO_LAYER) else layer


_NO_LAYER = "_empty_nn_module_stack"
"""What torch writes for operators that it made itself."""


def _without_notes(model: ir.Model) -> None:
    """Remove what torch notes for its own developers: traces of the stack with paths of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def _name_axes(model: ir.Model) -> None:
    """Call the batch axis `batch`, other axes of any size after their input; sizes in between are inferred anew."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                names.setdefault(size.value, f"{value.name}_{axis}" if axis else "batch")
    for value in dict.fromkeys((*model.graph.inputs, *model.graph.outputs)):
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else names.get(str(size.value)) for size in value.shape]
            value.shape = ir.Shape(sizes)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _repeated_borders(model: ir.Model) -> list[str]:
    """Return a note on each average pool whose padding Keras' torch backend fills otherwise than TensorFlow."""
    return [
        f"{pool.name}: Keras' torch backend repeats the border where TensorFlow leaves it out of the mean; a network "
        "that was trained there gives other numbers here"
        for pool in model.graph
        if is_operator(pool, "AveragePool")
        and (pad := pool.inputs[0].producer() if pool.inputs[0] is not None else None) is not None
        and is_operator(pad, "Pad")
        and pad.attributes.get_string("mode", "constant") == "edge"
    ]


def _drop_zero_biases(model: ir.Model, weights: Mapping[ir.Value, str]) -> None:
    """Remove the bias of zeros that torch.onnx gives a convolution without a bias."""
    for node in model.graph:
        if is_operator(node, "Conv", "ConvTranspose") and len(node.inputs) > 2 and node.inputs[2] not in weights:
            tensor = constant_tensor(node.inputs[2])
            if tensor is not None and not tensor.numpy().any():
                node.resize_inputs(2)
