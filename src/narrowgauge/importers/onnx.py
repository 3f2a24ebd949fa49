"""Read an ONNX network: check the file, bring it to one opset, infer shapes, simplify.

What comes out is what everything behind works on: `ImportedModel.model`, one static graph at opset 21 (or, for a newer
file, the lowest opset that means exactly the same), functions inlined, all weights initializers and no graph input,
every node named, shapes inferred where ONNX can infer them. Operators nobody knows pass through untouched.
"""

import os
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from google.protobuf.message import DecodeError

from narrowgauge.errors import ModelError
from narrowgauge.graph.constants import lift_constants
from narrowgauge.graph.edits import all_nodes, is_operator, name_everything, remove_unused
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import infer_shapes
from narrowgauge.importers.imported import ImportedModel
from narrowgauge.importers.upgrade import OLDEST_OPSET, OPSET, UpgradeError, upgrade_opset
from narrowgauge.importers.weights import check_stored_sizes, check_weights, map_external, stored_tensors
from narrowgauge.passes import simplify as simplify_model
from narrowgauge.passes.fold_constants import fold_constants
from narrowgauge.passes.fold_shapes import fold_shapes

__all__ = ["check_weights", "external_files", "load", "read"]

_PER_CHANNEL_OPSET = 13
"""The first opset whose QuantizeLinear has an axis: an older network that cannot be upgraded is of no use."""

_ALONG_ONE_AXIS_OPSET = 13
"""The first opset whose Softmax works along one axis."""

_PROTOBUF_LIMIT_BYTES = 2**31
"""Protocol buffers hold less than 2 GiB in one message (https://protobuf.dev/programming-guides/encoding/)."""

_SIGNATURES = (
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"GIF8", "a GIF image"),
    (4, b"TFL3", "a TFLite network; import it as one"),
    (0, b"\x89HDF", "an HDF5 file, perhaps a Keras network; export it to ONNX first"),
    (0, b"PK\x03\x04", "a zip archive, perhaps a PyTorch or Keras network; export it to ONNX first"),
    (0, b"\x80\x02", "a Python pickle, perhaps a PyTorch network; export it to ONNX first"),
    (0, b"\x1f\x8b", "gzip-compressed; decompress it first"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
)
"""(offset, bytes there, what such a file is)."""

_SIGNATURE_BYTES = 64


def load(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model, *, simplify: bool = True, name: str = ""
) -> ImportedModel:
    """Read an ONNX network of opset 7 or newer.

    Weights stay where they are (memory-mapped external data) until something reads them. The given object is not
    changed. A network that cannot be brought to opset 21 is kept at its own if that is 13 or more, and not simplified.

    Args:
        model: A path, or a network in memory.
        simplify: Whether to run `passes.simplify`; without, only the form is normalised.
        name: What to call the network in messages, "" for its own path or name.

    Raises:
        ModelError: There is no such file, or it is not ONNX, damaged, older than opset 7, without its external data,
            not a valid graph, or has NaN or infinity in its weights.
    """
    source, original = _read(model)
    source = name or source
    version = _opset(original, source)
    notes: list[str] = []
    normalised = _normalised(original, source, notes)
    try:
        _to_opset(normalised, version, notes)
    except UpgradeError as error:
        if version < _PER_CHANNEL_OPSET:
            message = (
                f"{source} is of opset {version} and cannot be brought to opset {OPSET}, which narrowgauge works on: "
                f"{error}; export the network again at opset {OPSET}"
            )
            raise ModelError(message) from error
        normalised = _normalised(original, source, notes)
        notes.append(f"kept at opset {version} and not simplified: {error}")
        simplify = False
    check_weights(normalised)
    infer_shapes(normalised)
    refusals: tuple[Refusal, ...] = ()
    if simplify:
        refusals = simplify_model(normalised)
    name_everything(normalised)
    return ImportedModel(model=normalised, original=original, notes=tuple(dict.fromkeys(notes)), refusals=refusals)


def read(model: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> ir.Model:
    """Read a network as it is, float or quantized, any opset: checked, but not changed.

    Raises:
        ModelError: There is no such file, or it is not ONNX, damaged, without its external data, or not a valid graph.
    """
    return _read(model)[1]


def external_files(path: Path) -> frozenset[Path]:
    """List the files that a network's weights lie in, beside its own.

    Raises:
        ModelError: There is no such file, or it is not ONNX, damaged, or without its external data.
    """
    model = _opened(path)
    check_stored_sizes(model, str(path))
    return frozenset(Path(tensor.path) for tensor in stored_tensors(model) if isinstance(tensor, ir.ExternalTensor))


def _read(model: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> tuple[str, ir.Model]:
    """Return what to call the network in messages, and the network."""
    if isinstance(model, ir.Model):
        source = f"the network {model.graph.name!r}"
        check_stored_sizes(model, source)
        _check_structure(model, source)
        return source, model
    if isinstance(model, onnx.ModelProto):
        source = f"the network {model.graph.name!r}"
        return source, _checked(_deserialised(model, source), source)
    if not isinstance(model, str | os.PathLike):
        message = f"expected a path, an onnx.ModelProto or an onnx_ir.Model, got {type(model).__name__}"
        raise ModelError(message)
    path = Path(model)
    return str(path), _checked(_opened(path), str(path))


def _opened(path: Path) -> ir.Model:
    """Deserialise a file; its external data are known by where they lie."""
    loaded = _deserialised(_parsed(path), str(path))
    ir.external_data.set_base_dir(loaded.graph, path.absolute().parent)
    return loaded


def _checked(model: ir.Model, source: str) -> ir.Model:
    """Check a model just deserialised, put its nodes in order, and map its external data."""
    check_stored_sizes(model, source)
    _check_structure(model, source)
    try:
        common_passes.TopologicalSortPass()(model)
    except Exception as error:
        message = f"{source}: its nodes form a cycle, so they cannot be run in any order; export it again"
        raise ModelError(message) from error
    map_external(model)
    return model


def _parsed(path: Path) -> onnx.ModelProto:
    """Parse the file, without its external data."""
    if not path.exists():
        message = f"{path}: no such file; give the path of an .onnx file"
        raise ModelError(message)
    if path.is_dir():
        message = f"{path} is a folder; give the path of the .onnx file in it"
        raise ModelError(message)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_SIGNATURE_BYTES)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise ModelError(message) from error
    _refuse_foreign(path, size, head)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        message = f"{path} is not a valid ONNX file ({size} bytes): it is {_kind_of_damage(head)}"
        raise ModelError(message) from error
    if not proto.HasField("graph") or proto.ir_version == 0:
        message = f"{path} holds no network ({size} bytes): it is {_kind_of_damage(head)}"
        raise ModelError(message)
    return proto


def _refuse_foreign(path: Path, size: int, head: bytes) -> None:
    if size == 0:
        message = f"{path} is empty; expected an ONNX network"
        raise ModelError(message)
    if size >= _PROTOBUF_LIMIT_BYTES:
        message = (
            f"{path} has {size} bytes, but an .onnx file holds less than {_PROTOBUF_LIMIT_BYTES}; "
            "save the network with its weights as external data"
        )
        raise ModelError(message)
    for offset, signature, kind in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            message = f"{path}: expected an ONNX network, but this is {kind}"
            raise ModelError(message)


def _kind_of_damage(head: bytes) -> str:
    """Say what a file that does not parse seems to be; 8 is the tag of `ir_version`, with which ONNX files begin."""
    if head[:1] == b"\x08":
        return "truncated or damaged; copy or export it again"
    if _is_text(head):
        return "a text file, not ONNX"
    return "not ONNX, or damaged from its first byte on"


def _is_text(head: bytes) -> bool:
    try:
        text = head[: _SIGNATURE_BYTES - 4].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\r\n\t" for character in text)


def _deserialised(proto: onnx.ModelProto, source: str) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except Exception as error:
        message = f"{source} is malformed: {_first_line(error)}"
        raise ModelError(message) from error


def _opset(model: ir.Model, source: str) -> int:
    """Return the version of the standard operators."""
    versions = {model.opset_imports[domain] for domain in ("", "ai.onnx") if domain in model.opset_imports}
    if not versions:
        if not model.opset_imports or any(is_operator(node, node.op_type) for node in all_nodes(model)):
            message = f"{source} does not say which opset it follows; it is damaged or incomplete, export it again"
            raise ModelError(message)
        return OPSET
    version = max(versions)
    newest = onnx.defs.onnx_opset_version()
    if len(versions) > 1 or version < OLDEST_OPSET or version > newest:
        found = " and ".join(map(str, sorted(versions)))
        message = f"{source} is of opset {found}; expected one from {OLDEST_OPSET} to {newest}; export it again"
        raise ModelError(message)
    return version


def _normalised(original: ir.Model, source: str, notes: list[str]) -> ir.Model:
    """Return a copy with functions inlined, no weight among the inputs, no Constant node, everything named."""
    try:
        model = original.clone()
    except Exception as error:
        message = f"{source}: its nodes are not in an order in which they can run; call `model.graph.sort()` first"
        raise ModelError(message) from error
    if model.functions:
        notes.append(f"inlined {len(model.functions)} function(s)")
        _inline(model, source)
    model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx", OPSET))
    common_passes.RemoveInitializersFromInputsPass()(model)
    lift_constants(model)
    map_external(model)
    name_everything(model)
    _forget_shapes(model)
    return model


def _inline(model: ir.Model, source: str) -> None:
    version = model.opset_imports.get("", OPSET)
    for function in model.functions.values():
        if function.opset_imports.get("", version) != version:
            message = (
                f"{source}: the function {function.name!r} follows opset {function.opset_imports['']}, the network "
                f"{version}; expected the same; export the network again"
            )
            raise ModelError(message)
    try:
        common_passes.InlinePass()(model)
    except Exception as error:
        message = f"{source}: its functions cannot be inlined: {_first_line(error)}"
        raise ModelError(message) from error


def _check_structure(model: ir.Model, source: str) -> None:
    """Refuse a graph with no outputs or with nodes that read what nothing makes."""
    if not model.graph.outputs:
        message = f"{source}: the network has no outputs"
        raise ModelError(message)
    _check_damage(model, source)
    known = {value for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values())}
    for node in all_nodes(model):
        for value in node.inputs:
            if value is not None and value.producer() is None and value not in known:
                message = f"{source}: the node {node.op_type} {node.name!r} reads {value.name!r}, which nothing makes"
                raise ModelError(message)
    for value in model.graph.outputs:
        if value.producer() is None and value not in known:
            message = f"{source}: no node makes the output {value.name!r}"
            raise ModelError(message)


def _check_damage(model: ir.Model, source: str) -> None:
    """Refuse names that are no text, attributes of no type, and stored numbers that their shape does not fit."""
    for node in all_nodes(model):
        untyped = [name for name, attribute in node.attributes.items() if attribute.type == ir.AttributeType.UNDEFINED]
        if untyped:
            message = (
                f"{source}: the attribute {untyped[0]!r} of the node {node.name!r} has no type; the file is damaged"
            )
            raise ModelError(message)
        if not isinstance(node.op_type, str) or not isinstance(node.domain, str):
            message = f"{source}: the node {node.name!r} has an operator whose name is no text; the file is damaged"
            raise ModelError(message)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.TensorProtoTensor):
                _check_numbers(value.const_value, source)


def _check_numbers(tensor: ir.TensorProtoTensor, source: str) -> None:
    try:
        tensor.numpy()
    except Exception as error:
        shape = tuple(tensor.shape)
        message = (
            f"{source}: the numbers of the constant {tensor.name!r} do not fit its shape {shape} of "
            f"{tensor.dtype.name}: {_first_line(error)}; the file is damaged, copy or export it again"
        )
        raise ModelError(message) from error


def _forget_shapes(model: ir.Model) -> None:
    """Drop the recorded shapes of intermediate values, which tools that edit a file's inputs leave stale.

    What operators of other domains make keeps its shape, because nothing could infer it again.
    """
    for node in all_nodes(model):
        if is_operator(node, node.op_type):
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None


def _to_opset(model: ir.Model, version: int, notes: list[str]) -> None:
    """Bring the model to opset 21, or, if it is newer, to the lowest that gives every node the same definition."""
    remove_unused(model)
    if version < OPSET:
        infer_shapes(model)
        if version < _ALONG_ONE_AXIS_OPSET:
            fold_shapes(model)  # before 13 Softmax flattened: where its rank gets known, the new form is the simple one
            fold_constants(model)
            infer_shapes(model)
        upgrade_opset(model, version=version)
        remove_unused(model)
        notes.append(f"converted from opset {version} to {OPSET}")
    elif version > OPSET:
        needed = max((_since(node, version) for node in all_nodes(model)), default=OPSET)
        model.opset_imports[""] = max(OPSET, needed)
    opsets = [onnx.helper.make_opsetid("", model.opset_imports[""])]
    model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(opsets))


def _since(node: ir.Node, version: int) -> int:
    """Return the opset in which the node's definition appeared; 0 for a node that ONNX does not define."""
    if not is_operator(node, node.op_type) or not onnx.defs.has(node.op_type):
        return 0
    return int(onnx.defs.get_schema(node.op_type, version).since_version)


def _first_line(error: BaseException) -> str:
    """Return the innermost cause's message in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
