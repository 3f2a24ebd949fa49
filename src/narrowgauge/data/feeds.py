"""Samples from Python: lists, generators, data loaders, functions.

Each item is one feed: a dict of arrays by input name, an array (networks of one input), a tuple of arrays in the order
of the inputs, or any of these with class indices behind it as `(x, y)`. Arrays stand to inputs as in
`narrowgauge.data.arrays`, with one difference: a feed of several rows stays together, since an item is what the user
wants to be run together. Pillow images are preprocessed.
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from narrowgauge.data.arrays import (
    ArraySource,
    is_class_indices,
    load_arrays,
    name_arrays,
    split_labels,
)
from narrowgauge.data.inputs import Array, InputSpec, cast, has_batch_axis, shape_fits
from narrowgauge.data.preprocess import Preprocess, apply, as_feed, fit_preprocess
from narrowgauge.data.samples import Sample, cut
from narrowgauge.errors import DataError


class FeedSource:
    """Samples of what a function yields, read anew each time, or of an iterator, read once."""

    def __init__(
        self,
        items: Callable[[], Iterable[Any]] | Iterator[Any],
        inputs: Sequence[InputSpec],
        *,
        origin: str,
        preprocess: Preprocess | None = None,
        count: int | None = None,
    ) -> None:
        """Keep the items; nothing is read yet.

        Args:
            items: A function that starts the items anew, or an iterator that can be read once.
            inputs: The network's inputs.
            origin: What the user called the data, for names and messages.
            preprocess: For items that are images.
            count: How many samples there are; None where only reading tells.
        """
        self.notes: list[str] = []
        self.count = count
        self._inputs = inputs
        self._origin = origin
        self.preprocess = preprocess
        self._restart = items if not isinstance(items, Iterator) else None
        self._rest = None if not isinstance(items, Iterator) else self._samples(items)
        self._position = 0
        self._held: Sample | None = None

    def name_of(self, index: int) -> str:
        """Return `origin[index]`."""
        return f"{self._origin}[{index}]"

    def read(self, start: int, stop: int | None) -> Iterator[Sample]:
        """Yield the samples of a range; feeds of several rows are cut at its ends.

        Raises:
            DataError: An iterator that can be read once has passed `start`, or an item does not fit the network.
        """
        if self._restart is not None:
            return self._read_anew(self._restart, start, stop)
        if start < self._position:
            raise DataError(
                f"{self._origin}: samples from {start} were asked, but the iterator can be read only once and has "
                f"passed {self._position}; give a list, or a function that starts anew."
            )
        return self._read_on(start, stop)

    def _read_anew(self, restart: Callable[[], Iterable[Any]], start: int, stop: int | None) -> Iterator[Sample]:
        """Read from the first item on, and let go of the iterator at once: a loader stops its workers then."""
        reader = FeedSource(iter(restart()), self._inputs, origin=self._origin, preprocess=self.preprocess)
        reader.notes = self.notes
        try:
            yield from reader._read_on(start, stop)
        finally:
            reader._rest = None  # it refers to the reader, so that only Python's collector would find them

    def _read_on(self, start: int, stop: int | None) -> Iterator[Sample]:
        """Read on from where the iterator stands, dropping what comes before `start`."""
        while stop is None or self._position < stop:
            sample = self._held or next(self._rest or iter(()), None)
            self._held = None
            if sample is None:
                return
            first = max(0, min(start - self._position, sample.size))
            last = sample.size if stop is None else min(stop - self._position, sample.size)
            if last < sample.size:
                self._held = cut(sample, last, sample.rows)
            self._position += last
            if first < last:
                yield sample if sample.whole else cut(sample, first, last)

    def _samples(self, items: Iterator[Any]) -> Iterator[Sample]:
        position = 0
        for item in items:
            value, name = (item.value, item.name) if isinstance(item, NamedItem) else (item, None)
            for sample in self._item_samples(value, position, name or self.name_of(position)):
                yield sample if name is None else _renamed(sample, name)
                position += sample.size
        if position == 0:
            raise DataError(f"{self._origin}: expected at least one feed, got none.")

    def _item_samples(self, item: Any, position: int, where: str) -> Iterator[Sample]:
        value, target = _split_pair(item, len(self._inputs))
        if isinstance(value, Image.Image):
            yield self._image_sample(value, _class_indices(target), where)
            return
        arrays, labels = split_labels(self._named(value, where), self._inputs)
        if target is not None:
            labels = _class_indices(target)
            if labels is None:
                self._note(f"{self._origin}: targets are no class indices (integers, one per row) and were ignored")
        feed = self._own_feed(arrays, where)
        if feed is not None:
            yield self._sample(feed, labels, position)
            return
        source = ArraySource(arrays, self._inputs, origin=where, labels=labels)
        for note in source.notes:
            self._note(note.replace(where, self._origin))
        for index, sample in enumerate(source.read(0, None)):
            yield replace(sample, names=(self.name_of(position + index),) * sample.rows)

    def _own_feed(self, arrays: Mapping[str, Array], where: str) -> dict[str, Array] | None:
        """Return the arrays as one feed where each has its input's own shape and all have equally many rows."""
        shapes = [arrays[spec.name].shape if spec.name in arrays else (-1,) for spec in self._inputs]
        if has_batch_axis(self._inputs):
            fits = all(shape_fits(shape[1:], spec.shape[1:]) for shape, spec in zip(shapes, self._inputs, strict=True))
            ranks = all(len(shape) == len(spec.shape) for shape, spec in zip(shapes, self._inputs, strict=True))
            rows = [shape[0] for shape, spec in zip(shapes, self._inputs, strict=True) if spec.shape and shape]
            if not (fits and ranks and all(a == b for a, b in pairwise(rows)) and rows[0] > 0):
                return None
        elif not all(shape_fits(shape, spec.shape) for shape, spec in zip(shapes, self._inputs, strict=True)):
            return None
        if len(arrays) > len(self._inputs):
            extra = ", ".join(repr(name) for name in arrays if name not in {spec.name for spec in self._inputs})
            self._note(f"{self._origin}: ignored {extra}, no inputs of the network")
        return {spec.name: cast(arrays[spec.name], spec, where) for spec in self._inputs}

    def _sample(self, feed: dict[str, Array], labels: Array | None, position: int) -> Sample:
        whole = not has_batch_axis(self._inputs)
        rows = 1 if whole else next(len(array) for array in feed.values() if array.ndim)
        if labels is not None and len(labels) != rows:
            raise DataError(
                f"{self.name_of(position)}: expected {rows} labels, one per row of the feed, got {len(labels)}."
            )
        return Sample(
            feed=feed,
            names=tuple(self.name_of(position + row) for row in range(rows)),
            labels=(None,) * rows if labels is None else tuple(int(label) for label in labels),
            whole=whole,
        )

    def _image_sample(self, image: Image.Image, labels: Array | None, where: str) -> Sample:
        spec = image_input(self._inputs, self._origin)
        preprocess, notes = fit_preprocess(self.preprocess, spec)
        for note in notes:
            self._note(note)
        array, whole = as_feed(apply(image, preprocess, spec.dtype), spec, where)
        label = int(labels[0]) if labels is not None and len(labels) == 1 else None
        return Sample(feed={spec.name: array}, names=(where,), labels=(label,), whole=whole)

    def _named(self, value: Any, where: str) -> Mapping[str, Array]:
        if isinstance(value, Mapping):
            return {str(name): as_array(array, where) for name, array in value.items()}
        if isinstance(value, tuple | list) and len(value) == len(self._inputs) and all(map(_is_array, value)):
            pairs = zip(self._inputs, value, strict=True)
            return {spec.name: as_array(array, where) for spec, array in pairs}
        return name_arrays(as_array(value, where), self._inputs, where)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def image_input(inputs: Sequence[InputSpec], origin: str) -> InputSpec:
    """Return the only input of a network that images can feed.

    Raises:
        DataError: The network has several inputs.
    """
    if len(inputs) != 1:
        raise DataError(
            f"{origin}: expected a network of one input for images, got inputs {', '.join(map(str, inputs))}; give an "
            ".npz file or module:callable that feeds all of them."
        )
    return inputs[0]


def each_item(data: Any) -> Callable[[], Iterator[Any]]:
    """Return a function that reads the items of an iterable, or of a data set that has a length and items by index.

    A data set need not raise IndexError behind its last item, which Python's own reading by index waits for.
    """
    if isinstance(data, Iterable) or not hasattr(data, "__len__"):
        return lambda: iter(data)
    return lambda: (data[index] for index in range(len(data)))


def loader_count(data: Any, inputs: Sequence[InputSpec]) -> int | None:
    """Tell how many samples a data loader gives, as PyTorch's tell it; None where only reading does.

    Args:
        data: The loader: it has a sampler of known length, and batches of one size or none.
        inputs: The network's inputs: where they have no common batch axis, a batch is one sample.
    """
    size = getattr(data, "batch_size", None)
    try:
        rows, runs = len(data.sampler), len(data)
    except (AttributeError, TypeError, NotImplementedError):  # no loader, or one that streams
        return None
    if not isinstance(size, int) or runs not in (rows // size, -(-rows // size)):
        return None
    return min(rows, runs * size) if has_batch_axis(inputs) else runs


def loader_notes(data: Any, origin: str) -> list[str]:
    """Say of a data loader that gives another order each time what that means for the parts that data are cut into."""
    if "Random" not in type(getattr(data, "sampler", None)).__name__:
        return []
    return [
        f"{origin}: the loader shuffles, so that samples which calibrate may also check; build it with shuffle=False"
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedItem:
    """An item of its own name, which its samples take."""

    name: str
    value: Any


def array_files(files: Sequence[tuple[str, Path]]) -> Callable[[], Iterator[NamedItem]]:
    """Return a function that reads .npy and .npz files one after the other, each as one item of the file's name."""
    return lambda: (NamedItem(name=name, value=load_arrays(path)) for name, path in files)


def import_items(name: str) -> Callable[[], Iterator[Any]]:
    """Find `module:callable`, looking in the current folder too.

    Returns:
        A function that calls it and yields its items; a failure inside names the callable.

    Raises:
        DataError: There is no such module, or nothing callable of that name in it.
    """
    module_name, _, attribute = name.partition(":")
    found: Any = _import_module(module_name, name)
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise DataError(f"Expected {name} to name a function that yields {{input: array}}, got {type(found).__name__}.")
    return lambda: _guarded(found, name)


def _import_module(module_name: str, name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.invalidate_caches()
        return importlib.import_module(module_name)
    except Exception as error:  # the user's module may fail in any way
        raise DataError(
            f"Expected a module {module_name} for data {name}, in {Path.cwd()} or installed, got: "
            f"{type(error).__name__}: {error}."
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))


def _guarded(function: Callable[[], Iterable[Any]], name: str) -> Iterator[Any]:
    """Yield what the user's function yields; name it where it fails."""
    read = 0
    try:
        for item in function():
            yield item
            read += 1
    except Exception as error:  # the user's function may fail in any way
        raise DataError(
            f"Expected feeds from {name}, but after {read} of them it failed: {type(error).__name__}: {error}."
        ) from error


def as_array(value: Any, where: str) -> Array:
    """Read anything that NumPy understands, tensors included, as an array of numbers.

    Raises:
        DataError: It cannot be read, or is no array of numbers.
    """
    try:
        array = np.asarray(value)
    except Exception as error:  # tensors that need gradients or live on a device raise what they like
        raise DataError(
            f"{where}: expected an array of numbers, got {type(value).__name__}: {error} "
            "(of a tensor, give .detach().cpu())."
        ) from error
    if array.dtype.kind not in "iufbV" or array.dtype.fields is not None:
        raise DataError(f"{where}: expected an array of numbers, got {type(value).__name__} of type {array.dtype}.")
    return array


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, Image.Image)


def _split_pair(item: Any, inputs: int) -> tuple[Any, Any]:
    """Take `y` off `(x, y)`: a dict or image with a target, or one array more than the network has inputs."""
    if not isinstance(item, tuple | list):
        return item, None
    head = item[0] if item else None
    if isinstance(head, Mapping | Image.Image) and len(item) in (1, 2):
        return head, item[1] if len(item) > 1 else None
    if len(item) == inputs + 1 and all(map(_is_array, item[:-1])):
        return (item[0] if inputs == 1 else item[:-1]), item[-1]
    if inputs == 1 and len(item) == 1 and _is_array(head):
        return head, None
    return item, None


def _class_indices(target: Any) -> Array | None:
    if target is None:
        return None
    array = np.asarray(target)
    return np.atleast_1d(array) if is_class_indices(array) else None


def _renamed(sample: Sample, name: str) -> Sample:
    return replace(sample, names=(name,) * sample.rows)
