"""Labels: a text file `relative-path label-index` per line, or one index per sample in order."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from narrowgauge.data.inputs import Array
from narrowgauge.data.preprocess import Preprocess
from narrowgauge.data.samples import Sample, Source
from narrowgauge.errors import DataError

_SHOWN_NAMES: Final = 3
"""Names listed in a note before it only counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSource:
    """A source whose samples take their labels from a table and get an offset added.

    Attributes:
        source: Where the samples come from.
        labels: Sample name -> class index, samples that are not in it having none; or class indices in the order of the
            samples; or None, which keeps the samples' own labels.
        offset: Added to every label.
        notes: Those of the source.
    """

    source: Source
    labels: Mapping[str, int] | Array | None
    offset: int
    notes: list[str]

    @property
    def count(self) -> int | None:
        """How many samples the source has."""
        return self.source.count

    @property
    def preprocess(self) -> Preprocess | None:
        """How the source makes inputs of images."""
        return self.source.preprocess

    def name_of(self, index: int) -> str:
        """Return the source's name of a sample."""
        return self.source.name_of(index)

    def read(self, start: int, stop: int | None) -> Iterator[Sample]:
        """Yield the source's samples with their labels.

        Raises:
            DataError: There are more samples than labels in order.
        """
        position = start
        for sample in self.source.read(start, stop):
            labels = self._of(sample, position)
            yield replace(sample, labels=tuple(None if label is None else label + self.offset for label in labels))
            position += sample.size

    def _of(self, sample: Sample, position: int) -> Sequence[int | None]:
        if self.labels is None:
            return sample.labels
        if isinstance(self.labels, Mapping):
            return [self.labels.get(name) for name in sample.names]
        if position + sample.size > len(self.labels):
            raise DataError(f"Expected one label per sample, got {len(self.labels)} labels and more samples.")
        if sample.whole:
            return [int(self.labels[position])] * sample.rows
        return [int(label) for label in self.labels[position : position + sample.rows]]


def read_labels(path: Path) -> dict[str, int] | Array:
    """Read labels from a text file or an .npy file.

    Lines are `relative-path label-index` (the path may hold spaces), or only `label-index`, in the order of the
    samples. Blank lines and lines that start with # are passed over.

    Returns:
        Name -> class index, or the indices in order.

    Raises:
        DataError: The file cannot be read, a line has no label, or a name stands there twice with different labels.
    """
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"Expected a file of labels at {path}, got: {error}.") from error
    entries = [
        (number, line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not entries:
        raise DataError(f"{path}: expected lines of `relative-path label-index`, got none.")
    if all(text.isdecimal() for _, text in entries):
        return np.array([int(text) for _, text in entries], dtype=np.int64)
    labels: dict[str, int] = {}
    for number, text in entries:
        name, label = _split_line(text, f"{path}, line {number}")
        if labels.setdefault(name, label) != label:
            raise DataError(f"{path}, line {number}: '{name}' has label {label} here and {labels[name]} above.")
    return labels


def _split_line(text: str, where: str) -> tuple[str, int]:
    parts = text.rsplit(maxsplit=1)
    if len(parts) < 2 or not parts[1].isdecimal():
        raise DataError(f"{where}: expected `relative-path label-index`, got '{text}'.")
    return parts[0].removeprefix("./").replace("\\", "/"), int(parts[1])


def attach_labels(source: Source, labels: Mapping[str, int] | Array | None, offset: int, origin: str) -> Source:
    """Give samples the labels of a table by name, or of an array by position.

    A name that is none of a sample's is taken by its last part, the file's own name, where only one sample and one
    label have it: labels are often written relative to another folder than the one that is given as data.

    Args:
        source: The samples.
        labels: Name -> class index, or indices in order; None keeps the samples' own.
        offset: Added to every label.
        origin: Where the labels come from, for messages.

    Raises:
        DataError: No name is that of a sample, the number of indices is not that of the samples, or they are no
            integers.
    """
    if labels is None and offset == 0:
        return source
    if isinstance(labels, Mapping):
        labels = _by_name(source, labels, origin)
    elif labels is not None:
        labels = _by_position(source, labels, origin)
    return LabelledSource(source=source, labels=labels, offset=offset, notes=source.notes)


def _by_position(source: Source, labels: Array, origin: str) -> Mapping[str, int] | Array:
    """Turn labels in order into labels by name where the names are known: a skipped image must not move the others."""
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{origin}: expected one integer label per sample, got {labels.dtype} of shape {labels.shape}.")
    if source.count not in (None, len(labels)):
        raise DataError(f"{origin}: expected {source.count} labels, one per sample, got {len(labels)}.")
    if source.count is None:
        return labels
    return {source.name_of(index): int(label) for index, label in enumerate(labels)}


def _by_name(source: Source, labels: Mapping[str, int], origin: str) -> Mapping[str, int]:
    """Return the labels under the names of the samples, and note what does not fit."""
    if source.count is None:
        return labels
    names = [source.name_of(index) for index in range(source.count)]
    known = set(names)
    found = {name: label for name, label in labels.items() if name in known}
    by_file = _by_file_name([name for name in names if name not in found], labels.keys() - found.keys())
    if not found and not by_file:
        raise DataError(
            f"{origin}: expected paths of samples such as '{names[0]}', but none of the {len(labels)} paths, such as "
            f"'{min(labels)}', is one, nor has a file name that belongs to one sample alone; give paths relative to "
            "the data folder."
        )
    if by_file:
        source.notes.append(
            f"{origin}: {len(by_file)} labels were given by file name: '{next(iter(by_file.values()))}' is "
            f"'{next(iter(by_file))}'"
        )
    unknown = sorted(labels.keys() - found.keys() - set(by_file.values()))
    found |= {name: labels[key] for name, key in by_file.items()}
    without = sorted(known - found.keys())
    if unknown:
        source.notes.append(f"{origin}: {len(unknown)} labels are of no sample: {_some(unknown)}")
    if without:
        source.notes.append(f"{origin}: {len(without)} of {len(names)} samples have no label: {_some(without)}")
    return found


def _by_file_name(names: Sequence[str], keys: Iterable[str]) -> dict[str, str]:
    """Pair samples with labels whose file name is theirs and no other's: sample name -> name in the table."""
    of_key = _unique_file_names(keys)
    return {name: of_key[file] for file, name in _unique_file_names(names).items() if file in of_key}


def _unique_file_names(paths: Iterable[str]) -> dict[str, str]:
    files = {path: PurePosixPath(path).name for path in paths}
    count = Counter(files.values())
    return {file: path for path, file in files.items() if count[file] == 1}


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
