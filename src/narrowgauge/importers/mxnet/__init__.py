"""Read an MXNet network: the graph in a symbol's JSON, the trained arrays in the .params file beside it.

MXNet is not needed: both files are plain to read, and each operator has a row that says what it is in ONNX. Input: a
path of either file. Output: an ONNX network at opset 21 whose values are called as MXNet calls them (`<node>_output`)
and whose weights keep their names. Never runs anything that the files bring along.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from narrowgauge.errors import ModelError
from narrowgauge.importers.imported import Converted
from narrowgauge.importers.mxnet.inputs import shapes_of
from narrowgauge.importers.mxnet.ndarrays import read_parameters
from narrowgauge.importers.mxnet.symbol import read_symbol
from narrowgauge.importers.mxnet.translate import inputs_of, translate

__all__ = ["convert"]

_EPOCH = re.compile(r"(.*)-(\d+)\.params")
"""Name and epoch in a file's name."""


def convert(source: str | os.PathLike[str], *, example: Any = None) -> Converted:
    """Read an MXNet network, float or quantized by `mxnet.contrib.quantization`.

    Args:
        source: path of `NAME-symbol.json`, beside which the `NAME-EPOCH.params` of the highest epoch is read, or of a
            `NAME-EPOCH.params`, beside which `NAME-symbol.json` is.
        example: what is known of the inputs' shapes, see `inputs.shapes_of`; without it they are derived from the
            layers that read them, and axes that these leave open may have any length.

    Raises:
        ModelError: a file is missing, truncated or damaged, an operator or what it is asked for is not supported, or
            nothing says how many axes an input has.
    """
    symbol_path = _symbol_beside(Path(source))
    symbol = read_symbol(symbol_path)
    parameters_path = _parameters_beside(Path(source))
    parameters = read_parameters(parameters_path)
    named, in_order = shapes_of(example)
    names = inputs_of(symbol, parameters)
    if in_order and len(in_order) == len(names):
        named = dict(zip(names, in_order, strict=True))
    try:
        model, notes = translate(symbol, parameters, named, str(symbol_path))
    except ModelError as error:
        if str(error).startswith(str(symbol_path)):
            raise
        raise ModelError(f"{symbol_path}: {error}") from error
    return Converted(model=model, notes=(f"trained parameters: {parameters_path.name}", *notes))


def _is_parameters(path: Path) -> bool:
    return path.name.lower().endswith(".params")


def _symbol_beside(path: Path) -> Path:
    """Return the symbol's file: the one that is given, or the one beside the parameters that are given."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of a NAME-symbol.json or NAME-EPOCH.params")
    if not _is_parameters(path):
        return path
    numbered = _EPOCH.fullmatch(path.name)
    name = path.name[: -len(".params")] if numbered is None else numbered[1]
    wanted = [path.with_name(f"{name}-symbol.json"), path.with_name(f"{name}.json")]
    found = next((one for one in wanted if one.is_file()), None)
    if found is None:
        raise ModelError(f"{path}: expected the network's graph beside it, {wanted[0].name}; copy it there")
    return found


def _parameters_beside(path: Path) -> Path:
    """Return the parameters' file: the one that is given, or that of the highest epoch beside the symbol's."""
    if _is_parameters(path):
        return path
    name = path.name.removesuffix(".json").removesuffix("-symbol")
    matches = [(_EPOCH.fullmatch(one.name), one) for one in path.parent.iterdir() if one.is_file()]
    epochs = {int(match[2]): one for match, one in matches if match is not None and match[1] == name}
    if epochs:
        return epochs[max(epochs)]
    plain = path.with_name(f"{name}.params")
    if plain.is_file():
        return plain
    raise ModelError(f"{path}: expected the trained parameters beside it, {name}-0000.params; copy them there")
