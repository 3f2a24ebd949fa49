"""Checks of a network's stored tensors: sizes before anything is allocated, numbers before anything is computed."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from narrowgauge.errors import ModelError
from narrowgauge.graph.edits import all_nodes, is_operator

_CHUNK_ELEMENTS = 1 << 22
"""How many numbers are looked at in one go: 16 MiB of float32."""

_WEIGHTED_OPERATORS = (
    "BatchNormalization",
    "Conv",
    "ConvTranspose",
    "GRU",
    "Gemm",
    "GroupNormalization",
    "InstanceNormalization",
    "LSTM",
    "LayerNormalization",
    "MatMul",
    "PRelu",
    "RNN",
)
"""Operators whose constant operands must be finite. Elsewhere infinity has its uses, as in an attention mask."""


def check_weights(model: ir.Model) -> None:
    """Refuse NaN in any constant, and infinity in a constant operand of a layer.

    Raises:
        ModelError: Names the tensor, how many of its numbers are not finite, and who reads it.
    """
    for value in _initializers(model):
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        try:
            array = tensor.numpy()
        except Exception as error:
            message = f"the weight {value.name!r} of shape {tuple(tensor.shape)} cannot be read: {error}"
            raise ModelError(message) from error
        nans, infinities = _count_not_finite(array)
        if nans or (infinities and _is_weight(value)):
            _raise_not_finite(value, array.size, nans, infinities)


def check_stored_sizes(model: ir.Model, source: str) -> None:
    """Refuse external data that is missing, too short, or outside the network's folder.

    Args:
        model: As deserialised, the base folder of external data set.
        source: What to call the network in messages.

    Raises:
        ModelError: Names the tensor and the file.
    """
    for tensor in stored_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(tensor, source)


def map_external(model: ir.Model) -> None:
    """Let tensors in external files be plain tensors over memory maps of them, in place.

    Nothing is read; but serialising the model then writes the numbers, not the name of a file to be found beside it.

    Raises:
        ModelError: A file cannot be mapped, or has a second hard link, which could lead anywhere.
    """
    for value in _initializers(model):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        try:
            array = tensor.numpy()
        except (OSError, ValueError) as error:
            message = f"the weight {value.name!r} cannot be read from {tensor.path}: {error}; copy that file anew"
            raise ModelError(message) from error
        value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def stored_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """List the constants of a network: initializers, and those that are attributes of nodes."""
    for value in _initializers(model):
        if value.const_value is not None:
            yield value.const_value
    for node in all_nodes(model):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield attribute.as_tensor()


def _check_external(tensor: ir.ExternalTensor, source: str) -> None:
    location, folder = os.fspath(tensor.location), Path(tensor.base_dir)
    if not os.fspath(tensor.base_dir):
        message = (
            f"{source}: the weight {tensor.name!r} lies in the file {location!r}, but in which folder is not known; "
            "give the network's path instead of the network, or load its external data first"
        )
        raise ModelError(message)
    path = (folder / location).resolve()
    if Path(location).is_absolute() or not path.is_relative_to(folder.resolve()):
        message = (
            f"{source}: the weight {tensor.name!r} lies in {location!r}, outside the network's folder; "
            "only files in that folder are read: copy it there (a link does not do)"
        )
        raise ModelError(message)
    if not path.is_file():
        message = f"{source}: the weight {tensor.name!r} lies in {path}, which is missing; put it beside the network"
        raise ModelError(message)
    offset, available = tensor.offset or 0, path.stat().st_size
    stored = tensor.nbytes if tensor.length is None else tensor.length
    if offset < 0 or stored != tensor.nbytes or offset + stored > available:
        message = (
            f"{source}: the weight {tensor.name!r} of shape {tuple(tensor.shape)} and type {tensor.dtype.name} needs "
            f"{tensor.nbytes} bytes, but is declared as {stored} bytes from byte {offset} on of {path}, which has "
            f"{available}; the file is truncated or damaged, copy or export it again"
        )
        raise ModelError(message)


def _count_not_finite(array: np.ndarray) -> tuple[int, int]:
    flat = array.reshape(-1)
    nans = infinities = 0
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        chunk = flat[start : start + _CHUNK_ELEMENTS]
        finite = np.isfinite(chunk)
        if not finite.all():
            chunk_nans = int(np.isnan(chunk).sum())
            nans += chunk_nans
            infinities += int(chunk.size - finite.sum()) - chunk_nans
    return nans, infinities


def _is_weight(value: ir.Value) -> bool:
    return any(is_operator(use.node, *_WEIGHTED_OPERATORS) for use in value.uses())


def _raise_not_finite(value: ir.Value, size: int, nans: int, infinities: int) -> None:
    found = " and ".join(f"{count} {kind}" for count, kind in ((nans, "NaN"), (infinities, "infinity")) if count)
    readers = ", ".join(f"{use.node.op_type} {use.node.name!r}" for use in value.uses()) or "nothing"
    message = (
        f"the weight {value.name!r}, read by {readers}, has {found} among its {size} numbers; expected finite numbers "
        "only; the training diverged or the export is damaged"
    )
    raise ModelError(message)
