"""Samples from arrays: one array or one per input, in memory or memory-mapped.

How an array stands to an input of rank r (its own rank, batch axis included):

| rank of the array | what it holds | samples |
|---|---|---|
| r + 1 | one whole feed per entry of the first axis | its first extent |
| r | the batch is the first axis: one row per sample | its first extent |
| r, but the input's first axis is no batch axis | the whole input, the same for every sample | any |
| r - 1 | the whole input without its batch axis, the same for every sample | any |
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import BinaryIO, Final
from zipfile import BadZipFile

import numpy as np

from narrowgauge.data.inputs import (
    Array,
    InputSpec,
    cast,
    has_batch_axis,
    is_raw_pixels,
    layout_hint,
    shape_fits,
    shape_text,
)
from narrowgauge.data.preprocess import Preprocess
from narrowgauge.data.samples import Sample
from narrowgauge.errors import DataError

_NPY_START: Final = np.lib.format.MAGIC_PREFIX
_ZIP_START: Final = b"PK"

LABEL_NAMES: Final = ("label", "labels")
"""Names under which arrays and feeds may carry class indices, where no input of the network has that name."""


class Hold(Enum):
    """What the first axis of an array means."""

    FEEDS = auto()
    ROWS = auto()
    CONSTANT = auto()
    CONSTANT_ROW = auto()


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One array and the input that it feeds.

    Attributes:
        array: The values, of any type that `cast` converts to the input's.
        spec: The input.
        hold: What the first axis means.
        where: File or variable, for messages.
    """

    array: Array
    spec: InputSpec
    hold: Hold
    where: str

    @property
    def count(self) -> int | None:
        """How many samples the array holds; None where it is the same for all."""
        return None if self.hold in (Hold.CONSTANT, Hold.CONSTANT_ROW) else len(self.array)

    def entry(self, index: int) -> Array:
        """Return what feeds the input for one sample."""
        if self.hold is Hold.CONSTANT:
            part = self.array
        elif self.hold is Hold.CONSTANT_ROW:
            part = self.array[None]
        else:
            index = index if len(self.array) > 1 else 0
            part = self.array[index] if self.hold is Hold.FEEDS else self.array[index : index + 1]
        return cast(np.asarray(part), self.spec, self.where)


class ArraySource:
    """Samples by index from one array per input."""

    def __init__(
        self,
        arrays: Mapping[str, Array],
        inputs: Sequence[InputSpec],
        *,
        origin: str,
        labels: Array | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        """Check that the arrays fit the inputs and each other.

        Args:
            arrays: Input name -> array, see the table of this file.
            inputs: The network's inputs.
            origin: File or variable that the arrays come from, for names and messages.
            labels: Class index per sample.
            preprocess: How images would become inputs; arrays are taken as they are.

        Raises:
            DataError: A missing input, a shape or type that does not fit, different numbers of samples, or none.
        """
        self.notes = _ignored(arrays, inputs, origin)
        self.preprocess = preprocess
        self._origin = origin
        _check_names(arrays, inputs, origin)
        self._columns = [_column(arrays[spec.name], spec, inputs, origin) for spec in inputs]
        self.count = _common_count(self._columns, origin)
        self._batched = has_batch_axis(inputs)
        self._labels = labels
        if labels is not None and len(labels) != self.count:
            raise DataError(f"{origin}: expected {self.count} labels, one per sample, got {len(labels)}.")
        self.notes += [
            f"{origin}: {column.array.dtype} values feed float input '{column.spec.name}' as they are; arrays are not "
            "scaled"
            for column in self._columns
            if is_raw_pixels(column.array.dtype, column.spec)
        ]

    def name_of(self, index: int) -> str:
        """Return `origin[index]`."""
        return f"{self._origin}[{index}]"

    def read(self, start: int, stop: int | None) -> Iterator[Sample]:
        """Yield one sample per index."""
        for index in range(start, min(self.count, self.count if stop is None else stop)):
            yield self.sample(index)

    def sample(self, index: int) -> Sample:
        """Return one sample: one row, or one whole feed."""
        feed = {column.spec.name: column.entry(index) for column in self._columns}
        whole = any(column.hold is Hold.FEEDS and column.spec.shape for column in self._columns)
        rows = next((len(array) for array in feed.values() if array.ndim), 1) if whole and self._batched else 1
        label = None if self._labels is None else int(self._labels[index])
        return Sample(
            feed=feed,
            names=(self.name_of(index),) * rows,
            labels=(label,) * rows,
            whole=whole or not self._batched,
        )


def load_arrays(path: Path) -> Array | dict[str, Array]:
    """Read an .npy file (memory-mapped) or an .npz file (array name -> array); no pickle is ever loaded.

    Raises:
        DataError: The file cannot be read, is no such file, or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_NPY_START))
            file.seek(0)
            if start.startswith(_ZIP_START):
                with np.load(file, allow_pickle=False) as archive:
                    return {name: archive[name] for name in archive.files}
            if start != _NPY_START:
                raise ValueError(f"a file that starts with {start!r}")
            empty = 0 in _npy_shape(file)
        array: Array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: expected NumPy arrays of numbers (np.save, np.savez), got: {error}; save them again."
        ) from error
    return array


def _npy_shape(file: BinaryIO) -> tuple[int, ...]:
    """Read the shape from a header: an array of no entries cannot be memory-mapped."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, _ = read(file)
    return shape


def name_arrays(data: Array | Mapping[str, Array], inputs: Sequence[InputSpec], origin: str) -> Mapping[str, Array]:
    """Give an array without a name the name of the network's only input.

    Raises:
        DataError: The network has several inputs.
    """
    if isinstance(data, Mapping):
        return data
    if len(inputs) != 1:
        raise DataError(
            f"{origin}: expected arrays for inputs {', '.join(map(str, inputs))}, got one array without a name; give "
            "an .npz file or a dict with the input names."
        )
    return {inputs[0].name: data}


def split_labels(arrays: Mapping[str, Array], inputs: Sequence[InputSpec]) -> tuple[Mapping[str, Array], Array | None]:
    """Take class indices that stand among the arrays as `label` or `labels` apart from them."""
    taken = {spec.name for spec in inputs}
    for name in LABEL_NAMES:
        if name in arrays and name not in taken and is_class_indices(arrays[name]):
            return {key: array for key, array in arrays.items() if key != name}, np.atleast_1d(arrays[name])
    return arrays, None


def is_class_indices(array: Array) -> bool:
    """Tell whether an array can be class indices: integers, one per row or one at all."""
    return array.dtype.kind in "iu" and array.ndim <= 1


def _check_names(arrays: Mapping[str, Array], inputs: Sequence[InputSpec], origin: str) -> None:
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if not missing:
        return
    raise DataError(
        f"{origin}: expected arrays named like the network's inputs, {', '.join(map(str, inputs))}; got "
        f"{', '.join(map(repr, arrays)) or 'none'}; missing {', '.join(map(repr, missing))}. "
        f"Name them, for example np.savez(path, **{{{missing[0]!r}: array}})."
    )


def _ignored(arrays: Mapping[str, Array], inputs: Sequence[InputSpec], origin: str) -> list[str]:
    extra = [name for name in arrays if name not in {spec.name for spec in inputs}]
    return [f"{origin}: ignored {', '.join(map(repr, extra))}, no inputs of the network"] if extra else []


def _column(array: Array, spec: InputSpec, inputs: Sequence[InputSpec], origin: str) -> Column:
    where = f"{origin}, array '{spec.name}'" if len(inputs) > 1 else origin
    column = Column(array=array, spec=spec, hold=_hold(array, spec, inputs, where), where=where)
    if column.count == 0:
        raise DataError(f"{where}: expected at least one sample, got an array of shape {shape_text(array.shape)}.")
    cast(array[:0] if array.ndim else array, spec, where)  # types that never go together are refused before reading
    shape = array.shape[1:] if column.hold is Hold.FEEDS else array.shape
    expected = spec.shape
    if column.hold in (Hold.ROWS, Hold.CONSTANT_ROW):
        shape, expected = (shape[1:] if column.hold is Hold.ROWS else shape), spec.shape[1:]
    if not shape_fits(shape, expected):
        raise DataError(
            f"{where}: expected arrays of {shape_text(spec.shape)} for input {spec}, got {shape_text(array.shape)}."
            f"{layout_hint(shape, expected)}"
        )
    return column


def _hold(array: Array, spec: InputSpec, inputs: Sequence[InputSpec], where: str) -> Hold:
    rank = len(spec.shape)
    if array.ndim == rank + 1:
        return Hold.FEEDS
    if array.ndim == rank:
        return Hold.ROWS if rank and (has_batch_axis(inputs) or spec.shape[0] in (None, 1)) else Hold.CONSTANT
    if array.ndim == rank - 1:
        return Hold.CONSTANT_ROW
    raise DataError(
        f"{where}: expected {rank} axes (the first one the batch) or {rank + 1} (one whole feed per entry) for input "
        f"{spec}, got an array of shape {shape_text(array.shape)}."
    )


def _common_count(columns: Sequence[Column], origin: str) -> int:
    counts = {column.spec.name: column.count for column in columns if column.count is not None}
    count = max(counts.values(), default=1)
    if set(counts.values()) - {1, count}:
        text = ", ".join(f"'{name}' holds {number}" for name, number in counts.items())
        raise DataError(f"{origin}: expected arrays of equally many samples, or of one that serves all; {text}.")
    return count
