"""Inputs to trace a module with: given as such, or the first ones of the user's data."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from narrowgauge.data.arrays import LABEL_NAMES, load_arrays
from narrowgauge.data.feeds import import_items
from narrowgauge.data.samples import Samples
from narrowgauge.errors import ModelError

_HOW = (
    "PyTorch reads a module by running it: give example inputs as forward takes them, "
    "example_inputs=torch.randn(1, 3, 224, 224), a tuple for several, or a dict by the names of forward's parameters"
)

_ROWS = 2
"""Rows of an example that is cut: one would look to PyTorch like a size that never changes, more cost time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """How a module is called once.

    Attributes:
        positional: arguments by position.
        named: arguments by name.
    """

    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parameters:
    """What a module's forward takes.

    Attributes:
        names: of the parameters that may be given by position.
        required: how many of these must be given.
        any_number: whether it takes any number of them.
        named: all parameters that may be given by name.
        any_name: whether it takes others by name, too.
    """

    names: tuple[str, ...]
    required: int
    any_number: bool
    named: frozenset[str]
    any_name: bool


def example_call(module: Any, example: Any) -> Call:
    """Find out how to call a module.

    Args:
        module: A torch.nn.Module.
        example: A tensor or array, a tuple of arguments, a dict by parameter, or data: an iterable of such or of
            (inputs, labels), a path to .npy or .npz, `module:callable`. Only the first item of data is read, and
            iterators, which could not be read again, are refused.

    Raises:
        ModelError: There is none, or it does not fit what the module takes.
    """
    from torch.utils import _pytree as pytree

    parameters = _parameters(module)
    if example is None:
        raise ModelError(f"{type(module).__name__}: expected example inputs, got none. {_HOW}")
    item, from_data = _item(example, parameters)
    call = _call(item, parameters, from_data=from_data)
    if call is None or not any(map(_is_array, pytree.tree_leaves((call.positional, dict(call.named))))):
        names = ", ".join(parameters.names) or "any arguments"
        raise ModelError(
            f"{type(module).__name__}: expected an example that its forward({names}) takes, got {_described(item)}. "
            f"{_HOW}"
        )
    return Call(
        positional=tuple(_tensors(value, module) for value in call.positional),
        named={name: _tensors(value, module) for name, value in call.named.items()},
    )


def with_rows(call: Call) -> Call | None:
    """Cut or repeat the first axis of all tensors to two rows.

    Returns:
        The call, None if the tensors have no first axis of the same extent in common.
    """
    import torch
    from torch.utils import _pytree as pytree

    leaves = [leaf for leaf in pytree.tree_leaves((call.positional, call.named)) if isinstance(leaf, torch.Tensor)]
    extents = {len(leaf) for leaf in leaves if leaf.ndim}
    if len(extents) != 1 or 0 in extents:
        return None

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.ndim:
            return leaf
        return torch.cat([leaf, leaf]) if len(leaf) < _ROWS else leaf[:_ROWS].clone()

    return Call(positional=pytree.tree_map(cut, call.positional), named=pytree.tree_map(cut, dict(call.named)))


def _parameters(module: Any) -> _Parameters:
    kinds = inspect.Parameter
    taken = list(inspect.signature(module.forward).parameters.values())
    places = [one for one in taken if one.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    return _Parameters(
        names=tuple(one.name for one in places),
        required=sum(one.default is kinds.empty for one in places),
        any_number=any(one.kind is kinds.VAR_POSITIONAL for one in taken),
        named=frozenset(one.name for one in taken if one.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)),
        any_name=any(one.kind is kinds.VAR_KEYWORD for one in taken),
    )


def _item(example: Any, parameters: _Parameters) -> tuple[Any, bool]:
    """Return what a module may be called with, and whether it is an item of data, which may have labels beside it."""
    if isinstance(example, Samples):
        return dict(_first(example, "the samples").feed), False
    if isinstance(example, str | os.PathLike):
        return _from_path(example, parameters)
    if isinstance(example, Mapping) or _is_array(example):
        return example, False
    if isinstance(example, tuple) and _call(example, parameters, from_data=False) is not None:
        return example, False
    if isinstance(example, Iterator):
        raise ModelError(
            "expected example inputs beside data that can be read only once (an iterator), since looking at its first "
            f"item would take it away. {_HOW}"
        )
    if callable(example) and not isinstance(example, Iterable) and not hasattr(example, "__getitem__"):
        return _first(example(), "data"), True
    item = _first(example, "data")
    if _has_single_samples(example):
        item = _batch_of_one(item)
    whole = isinstance(example, Sequence) and _call(item, parameters, from_data=True) is None
    return (tuple(example), False) if whole else (item, True)


def _from_path(example: str | os.PathLike[str], parameters: _Parameters) -> tuple[Any, bool]:
    path = Path(example)
    if path.is_file() and path.suffix.lower() in (".npy", ".npz"):
        return load_arrays(path), False
    if isinstance(example, str) and not path.exists() and ":" in example:
        return _first(import_items(example)(), example), True
    names = ", ".join(parameters.names)
    raise ModelError(
        f"expected example inputs for forward({names}), whose shapes do not follow from the data {example}. {_HOW}"
    )


def _first(items: Iterable[Any], where: str) -> Any:
    """Read one item, and leave PyTorch's random numbers, by which a loader may shuffle, as they were."""
    import torch

    if not isinstance(items, Iterable) and not hasattr(items, "__getitem__"):
        raise ModelError(f"expected example inputs, got {type(items).__name__}. {_HOW}")
    with torch.random.fork_rng(devices=[]):
        for item in iter(items):
            return item
    raise ModelError(f"expected at least one item in {where} to call the module with, got none. {_HOW}")


def _call(item: Any, parameters: _Parameters, *, from_data: bool) -> Call | None:
    """Tell which arguments an item gives; None if it does not fit. Labels stand behind the inputs."""
    if isinstance(item, Mapping):
        return _call_by_name(item, parameters, from_data=from_data)
    if _is_array(item):
        return Call(positional=(item,), named={}) if _fits(1, parameters) else None
    if not isinstance(item, tuple | list) or not item:
        return None
    values = list(item)
    pair = len(values) == 2 and not _is_number(values[0])
    if pair and isinstance(values[0], Mapping | tuple | list) and (from_data or not _fits(2, parameters)):
        return _call(values[0], parameters, from_data=False)
    count = len(values)
    if from_data and count > 1 and _is_label(values[-1]) and _fits(count - 1, parameters):
        single = _is_single(values[-1])
        return Call(positional=tuple(_batch(value, single=single) for value in values[:-1]), named={})
    if _fits(count, parameters):
        return Call(positional=tuple(values), named={})
    if count > 1 and _fits(count - 1, parameters):
        return Call(positional=tuple(values[:-1]), named={})
    return None


def _call_by_name(item: Mapping[Any, Any], parameters: _Parameters, *, from_data: bool) -> Call | None:
    single = from_data and any(_is_single(value) for name, value in item.items() if name in LABEL_NAMES)
    given = {name: _batch(value, single=single) for name, value in item.items()}
    named = {
        str(name): value
        for name, value in given.items()
        if name in parameters.named or (parameters.any_name and name not in LABEL_NAMES)
    }
    if named and set(parameters.names[: parameters.required]) <= set(named):
        return Call(named=named)
    inputs = {name: value for name, value in given.items() if name not in LABEL_NAMES}
    return Call(positional=(inputs,), named={}) if _fits(1, parameters) else None  # forward takes the dict itself


def _fits(count: int, parameters: _Parameters) -> bool:
    return parameters.required <= count and (count <= len(parameters.names) or parameters.any_number)


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and hasattr(value, "shape")


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.generic)


def _is_label(value: Any) -> bool:
    """Tell class indices: integers, one for each row or one at all."""
    if isinstance(value, int):
        return True
    kind = str(getattr(value, "dtype", ""))
    return _is_array(value) and "int" in kind and len(value.shape) <= 1


def _is_single(label: Any) -> bool:
    """Tell the label of one sample without a batch axis."""
    return isinstance(label, int | np.integer) or (_is_array(label) and len(label.shape) == 0)


def _has_single_samples(example: Any) -> bool:
    """Tell whether data are one of PyTorch's data sets by index, which loaders make batches of."""
    import torch

    data = torch.utils.data
    return isinstance(example, data.Dataset) and not isinstance(example, data.IterableDataset)


def _batch_of_one(item: Any) -> Any:
    """Put a batch axis before all arrays of one sample; where there is a single label, that is done beside it."""
    if _is_array(item):
        return _batch(item, single=True)
    values = list(item.values()) if isinstance(item, Mapping) else list(item) if isinstance(item, tuple | list) else []
    if not values or any(map(_is_single, values)):
        return item
    batches = [_batch(value, single=True) for value in values]
    return dict(zip(item, batches, strict=True)) if isinstance(item, Mapping) else tuple(batches)


def _batch(value: Any, *, single: bool) -> Any:
    """Put a batch axis before a single sample, as it comes from a data set whose label is one number."""
    return value[None] if single and _is_array(value) else value


def _tensors(value: Any, module: Any) -> Any:
    """Turn arrays into tensors; real numbers are of 64 bits where the module's are, else of 32."""
    import torch

    if isinstance(value, Mapping):
        return {name: _tensors(item, module) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([_tensors(item, module) for item in value]) if type(value) in (tuple, list) else value
    if not _is_array(value):
        return value
    try:
        tensor = value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    except TypeError as error:
        raise ModelError(f"expected arrays of numbers as example inputs, got {_described(value)}: {error}") from error
    tensor = tensor.to("cpu").dequantize() if tensor.is_quantized else tensor.to("cpu")
    if not tensor.is_floating_point():
        return tensor
    own = next((one.dtype for one in module.parameters() if one.is_floating_point()), torch.float32)
    return tensor.to(torch.float64 if own == torch.float64 else torch.float32)


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(repr, value))}"
    if isinstance(value, tuple | list):
        return f"{len(value)} values ({', '.join(type(item).__name__ for item in value)})"
    return f"{type(value).__name__} of shape {tuple(value.shape)}" if _is_array(value) else type(value).__name__
