"""`open_samples`: from what the user calls data to `Samples`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from PIL import Image

from narrowgauge.data.arrays import ArraySource, is_class_indices, load_arrays, name_arrays, split_labels
from narrowgauge.data.feeds import (
    FeedSource,
    array_files,
    as_array,
    each_item,
    image_input,
    import_items,
    loader_count,
    loader_notes,
)
from narrowgauge.data.idx import is_idx, labels_beside, load_idx
from narrowgauge.data.images import (
    IMAGE_SUFFIXES,
    ImageFile,
    ImageSource,
    folder_files,
    folder_images,
    listed_image,
    zip_images,
)
from narrowgauge.data.inputs import Array, InputSpec
from narrowgauge.data.labels import attach_labels, read_labels
from narrowgauge.data.preprocess import Preprocess
from narrowgauge.data.samples import Samples, Source
from narrowgauge.errors import DataError

Data: TypeAlias = str | Path | Array | Mapping[str, Any] | Iterable[Any] | Callable[[], Iterable[Any]] | Samples
"""Everything that `open_samples` takes."""

ARRAY_SUFFIXES: Final = frozenset((".npy", ".npz"))
KNOWN: Final = (
    "a folder of images (flat, or a folder per class) or of arrays, an image, .npy, .npz, .zip of images, an MNIST "
    "idx file, a .txt list of paths, or module:callable"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """What all kinds of data are opened for.

    Attributes:
        inputs: The network's inputs.
        preprocess: What to do with images.
        on_error: What to do about images that cannot be read.
        labels: Whether labels were given apart from the data: by name, by position, or not at all.
    """

    inputs: Sequence[InputSpec]
    preprocess: Preprocess | None
    on_error: Literal["raise", "skip"]
    labels: Literal["named", "ordered", "none"]


def open_samples(
    data: Data,
    inputs: Sequence[InputSpec],
    *,
    preprocess: Preprocess | None = None,
    labels: str | Path | Sequence[int] | Array | Mapping[str, int] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> Samples:
    """Open data as samples for a network; little is read before the samples are.

    Args:
        data: A path to a folder of images (flat, or a folder per class: the folders in sorted order give the labels,
            and the samples take turns by class), an image, an .npy or .npz file (array names = input names), a .zip of
            images, an MNIST idx file, a .txt list of paths (relative to it, a class index may follow each); the name
            `module:callable` of a function that yields feeds; or the thing itself: an array, a dict of arrays, a
            function, an iterator or iterable of feeds (a data loader), images or paths. See `narrowgauge.data.arrays`
            on shapes and `narrowgauge.data.feeds` on feeds.
        inputs: The network's inputs, all of them to be fed.
        preprocess: What to do with images; None takes size and layout from the network's input, with a note. Arrays
            are taken as they are.
        labels: Path to a text file `relative-path label-index` per line (or an index per line, .npy, MNIST idx),
            indices in the order of the samples, or a dict by name. They replace those that the data bring along.
            `preprocess.label_offset` is added to every label, wherever it comes from.
        on_error: `skip` leaves images out that cannot be read, with a note each; `raise` ends with the first.

    Raises:
        DataError: Nothing is there, of a known kind or fits the network; the message says what does.
    """
    if isinstance(data, Samples):
        return data
    if not inputs:
        raise DataError("Expected a network with at least one input, got one that takes nothing.")
    table, origin = _label_table(labels)
    given: Literal["named", "ordered", "none"]
    given = "none" if table is None else "named" if isinstance(table, Mapping) else "ordered"
    request = _Request(inputs=tuple(inputs), preprocess=preprocess, on_error=on_error, labels=given)
    source = _open_path(data, request) if isinstance(data, str | Path) else _open_object(data, request)
    offset = preprocess.label_offset if preprocess is not None else 0
    return Samples(source=attach_labels(source, table, offset, origin))


def _label_table(
    labels: str | Path | Sequence[int] | Array | Mapping[str, int] | None,
) -> tuple[Mapping[str, int] | Array | None, str]:
    if labels is None or isinstance(labels, Mapping):
        return labels, "labels"
    if isinstance(labels, str | Path):
        path = Path(labels)
        return (load_idx(path) if is_idx(path) else read_labels(path)), str(path)
    return as_array(labels, "labels"), "labels"


def _open_path(data: str | Path, request: _Request) -> Source:
    path = Path(data)
    if path.is_dir():
        return _open_folder(path, request)
    if path.is_file():
        return _open_file(path, request)
    if isinstance(data, str) and _is_callable_name(data):
        return FeedSource(import_items(data), request.inputs, origin=data, preprocess=request.preprocess)
    raise DataError(f"Expected data at {data}, but nothing is there; give {KNOWN}.")


def _is_callable_name(text: str) -> bool:
    module, _, attribute = text.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def _open_file(path: Path, request: _Request) -> Source:
    if is_idx(path):
        return _open_idx(path, request)
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        return _open_arrays(load_arrays(path), request, path.name)
    if suffix == ".txt":
        return _open_list(path, request)
    if suffix == ".zip":
        files, notes = zip_images(path, deal=request.labels != "ordered")
        return _image_source(files, notes if request.labels == "none" else [], request, path)
    if suffix in IMAGE_SUFFIXES:
        return _image_source([listed_image(path.name, path, None)], [], request, path)
    raise DataError(f"Expected data of a known kind, got {path}; give {KNOWN}.")


def _open_folder(folder: Path, request: _Request) -> Source:
    files = folder_files(folder)
    images, notes = folder_images(files, folder, deal=request.labels != "ordered")
    arrays = [(name, path) for name, path in files if path.suffix.lower() in ARRAY_SUFFIXES]
    if arrays and not images:
        return FeedSource(array_files(arrays), request.inputs, origin=str(folder), preprocess=request.preprocess)
    archives = [path for _, path in files if is_idx(path)] if not images else []
    if archives:
        raise DataError(
            f"{folder}: expected images or arrays, got MNIST idx files; give the images' own: {archives[0]}."
        )
    if not images:
        suffixes = sorted({path.suffix or path.name for _, path in files})
        came = f"{len(files)} files of types {', '.join(suffixes)}" if files else "an empty folder"
        raise DataError(
            f"{folder}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) or arrays (.npy, .npz), got {came}."
        )
    return _image_source(images, notes if request.labels == "none" else [], request, folder)


def _image_source(files: Sequence[ImageFile], notes: Sequence[str], request: _Request, path: Path) -> ImageSource:
    if not files:
        raise DataError(f"{path}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), got none.")
    spec = image_input(request.inputs, str(path))
    return ImageSource(files, spec, preprocess=request.preprocess, notes=notes, on_error=request.on_error)


def _open_idx(path: Path, request: _Request) -> Source:
    pixels, beside = load_idx(path), labels_beside(path)
    labels = load_idx(beside) if beside is not None else None
    if pixels.ndim != 3 or (labels is not None and labels.shape != pixels.shape[:1]):
        shapes = f"{pixels.shape} with labels {None if labels is None else labels.shape}"
        raise DataError(f"{path}: expected count x height x width and one label each, got {shapes}.")
    files = [
        ImageFile(
            name=f"{path.name}[{index}]",
            open=_image_opener(pixels, index),
            label=None if labels is None else int(labels[index]),
        )
        for index in range(len(pixels))
    ]
    return _image_source(files, [], request, path)


def _image_opener(pixels: Array, index: int) -> Callable[[], Image.Image]:
    return lambda: Image.fromarray(pixels[index])


def _open_list(path: Path, request: _Request) -> Source:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file with one path per line, got: {error}.") from error
    entries = [_listed(line, path) for line in lines if line and not line.startswith("#")]
    return _open_listed(entries, request, path)


def _listed(line: str, path: Path) -> tuple[str, Path, int | None]:
    """Read `path` or `path class-index`; the path is relative to the list's folder."""
    file, label = path.parent / line, None
    if not file.is_file() and line.rpartition(" ")[2].isdecimal():
        line, _, index = line.rpartition(" ")
        line, label = line.strip(), int(index)
        file = path.parent / line
    if not file.is_file():
        raise DataError(
            f"{path}: expected a file at {file}, but none is there; paths are relative to the list's folder."
        )
    return line, file, label


def _open_listed(entries: Sequence[tuple[str, Path, int | None]], request: _Request, path: Path) -> Source:
    if not entries:
        raise DataError(f"{path}: expected paths of images or arrays, got none.")
    suffixes = {file.suffix.lower() for _, file, _ in entries}
    if suffixes <= IMAGE_SUFFIXES:
        files = [listed_image(name, file, label) for name, file, label in entries]
        return _image_source(files, [], request, path)
    if suffixes <= ARRAY_SUFFIXES:
        files_of_arrays = [(name, file) for name, file, _ in entries]
        return FeedSource(array_files(files_of_arrays), request.inputs, origin=path.name, preprocess=request.preprocess)
    raise DataError(
        f"{path}: expected only images ({', '.join(sorted(IMAGE_SUFFIXES))}) or only arrays (.npy, .npz), got types "
        f"{', '.join(sorted(suffixes))}."
    )


def _open_arrays(data: Array | Mapping[str, Array], request: _Request, origin: str) -> Source:
    arrays, labels = split_labels(name_arrays(data, request.inputs, origin), request.inputs)
    return ArraySource(arrays, request.inputs, origin=origin, labels=labels, preprocess=request.preprocess)


def _is_arrays_and_labels(data: Any, inputs: Sequence[InputSpec]) -> bool:
    """Tell `(x, y)`, whole arrays and the class index of each of their rows, from a tuple of feeds."""
    if not isinstance(data, tuple) or len(data) != len(inputs) + 1:
        return False
    if not all(hasattr(item, "__array__") and not isinstance(item, Image.Image) for item in data):
        return False
    labels = as_array(data[-1], "data")
    return is_class_indices(labels) and labels.ndim == 1 and all(len(item) == len(labels) for item in data[:-1])


def _open_object(data: Any, request: _Request) -> Source:
    if isinstance(data, Mapping):
        arrays = {str(name): as_array(array, f"data, array '{name}'") for name, array in data.items()}
        return _open_arrays(arrays, request, "data")
    if hasattr(data, "__array__"):
        return _open_arrays(as_array(data, "data"), request, "data")
    if _is_arrays_and_labels(data, request.inputs):
        *rows, labels = (as_array(item, "data") for item in data)
        named = {spec.name: array for spec, array in zip(request.inputs, rows, strict=True)}
        return ArraySource(named, request.inputs, origin="data", labels=labels, preprocess=request.preprocess)
    if isinstance(data, Sequence) and data and all(isinstance(item, str | Path) for item in data):
        entries = [_listed(str(item), Path("data")) for item in data]
        return _open_listed(entries, request, Path("data"))
    if isinstance(data, Iterator):
        return FeedSource(data, request.inputs, origin="data", preprocess=request.preprocess)
    if isinstance(data, Iterable) or hasattr(data, "__getitem__"):
        count = loader_count(data, request.inputs)
        source = FeedSource(each_item(data), request.inputs, origin="data", preprocess=request.preprocess, count=count)
        source.notes += loader_notes(data, "data")
        return source
    if callable(data):
        return FeedSource(data, request.inputs, origin=getattr(data, "__name__", "data"), preprocess=request.preprocess)
    raise DataError(
        f"Expected data, got {type(data).__name__}; give {KNOWN}, or an array, a dict, an iterable of feeds."
    )
