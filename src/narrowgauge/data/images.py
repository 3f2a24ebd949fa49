"""Samples from image files: found, sorted, decoded ahead of their use by a few threads, a few at a time."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal
from zipfile import BadZipFile, ZipFile

from PIL import Image

from narrowgauge.data.inputs import Array, InputSpec
from narrowgauge.data.preprocess import Preprocess, apply, as_feed, fit_preprocess
from narrowgauge.data.samples import Sample
from narrowgauge.errors import DataError

IMAGE_SUFFIXES: Final = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm", ".pnm", ".jp2")
)
_THREADS: Final = min(4, os.cpu_count() or 1)
_AHEAD: Final = 2 * _THREADS
"""Samples decoded ahead: enough that no thread waits for the reader."""
_PARTS: Final = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"))
"""Names of folders that are parts of a data set, not classes."""
_LARGEST_MEMBER_BYTES: Final = 256 * 2**20
"""Largest file taken out of an archive: far above any photo, far below what exhausts memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """One image: its name (path below the folder, with /), how to decode it, and its class index where known."""

    name: str
    open: Callable[[], Image.Image]
    label: int | None = None


class ImageSource:
    """Samples by index from images, each decoded when its turn comes."""

    def __init__(
        self,
        files: Sequence[ImageFile],
        spec: InputSpec,
        *,
        preprocess: Preprocess | None,
        notes: Sequence[str] = (),
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        """Keep the files; nothing is decoded yet.

        Args:
            files: The images in order.
            spec: The input that they feed.
            preprocess: What to do with each; None takes it from the input, with a note.
            notes: Notes on how the files were found.
            on_error: Whether an image that cannot be read ends the reading or is left out, with a note.

        Raises:
            DataError: The input cannot be an image.
        """
        self.count = len(files)
        self.preprocess, assumed = fit_preprocess(preprocess, spec)
        self.notes = [*notes, *assumed]
        self._files = files
        self._spec = spec
        self._on_error = on_error

    def name_of(self, index: int) -> str:
        """Return the path of an image below its folder."""
        return self._files[index].name

    def read(self, start: int, stop: int | None) -> Iterator[Sample]:
        """Yield the samples of a range in order, decoding a few ahead.

        Raises:
            DataError: An image cannot be read or does not fit the network, or none of those asked can be read.
        """
        read, last_error = 0, None
        for sample in _ahead(self._sample, self._files[start:stop]):
            if isinstance(sample, DataError):
                if self._on_error == "raise":
                    raise sample
                last_error = sample
                self.notes.append(f"skipped {sample}")
                continue
            read += 1
            yield sample
        if last_error is not None and read == 0:
            raise last_error

    def _sample(self, file: ImageFile) -> Sample | DataError:
        try:
            pixels = self._pixels(file)
        except DataError as error:
            return error
        array, whole = as_feed(pixels, self._spec, file.name)
        return Sample(feed={self._spec.name: array}, names=(file.name,), labels=(file.label,), whole=whole)

    def _pixels(self, file: ImageFile) -> Array:
        try:
            with file.open() as image:
                return apply(image, self.preprocess, self._spec.dtype)
        except Exception as error:  # decoders of damaged files raise whatever their parsers stumble over
            raise DataError(
                f"{file.name}: expected an image, but it cannot be read: {error}; replace or remove it."
            ) from error


def _ahead(function: Callable[[ImageFile], Any], files: Sequence[ImageFile]) -> Iterator[Any]:
    """Map a function over files in threads, in order, at most `_AHEAD` results waiting."""
    pending: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="decode")
    try:
        for file in files:
            pending.append(pool.submit(function, file))
            if len(pending) > _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def folder_files(folder: Path) -> list[tuple[str, Path]]:
    """List the files of known types below a folder by their paths in it, sorted; hidden ones are left out."""
    found = ((path.relative_to(folder), path) for path in folder.rglob("*"))
    named = ((name.as_posix(), path) for name, path in found if not any(part.startswith(".") for part in name.parts))
    return sorted((name, path) for name, path in named if path.is_file())


def folder_images(
    files: Sequence[tuple[str, Path]], folder: Path, *, deal: bool = True
) -> tuple[list[ImageFile], list[str]]:
    """Make images of the files that are such; of a folder per class, the folders in sorted order give the labels.

    Args:
        files: Names and paths, sorted.
        folder: Where they are, for notes.
        deal: Whether a folder per class is dealt out, see `dealt`.

    Returns:
        The images, and notes on their labels.
    """
    named = {name: path for name, path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    labels, notes = class_labels(list(named), str(folder))
    order = dealt(list(named), labels) if deal else list(named)
    return [ImageFile(name=name, open=_opener(named[name]), label=labels.get(name)) for name in order], notes


def zip_images(path: Path, *, deal: bool = True) -> tuple[list[ImageFile], list[str]]:
    """Make images of those in a .zip file; folders that all of them share are left out of their names.

    Args:
        path: The archive.
        deal: Whether a folder per class is dealt out, see `dealt`.

    Raises:
        DataError: The file is no zip archive.
    """
    try:
        archive = ZipFile(path)
    except (OSError, BadZipFile) as error:
        raise DataError(f"{path}: expected a zip archive of images, got: {error}.") from error
    members = sorted(
        name
        for name in archive.namelist()
        if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    )
    parts = [PurePosixPath(name).parent.parts for name in members]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))
    named = {"/".join(PurePosixPath(name).parts[shared:]): name for name in members}
    labels, notes = class_labels(list(named), str(path))
    order = dealt(list(named), labels) if deal else list(named)
    files = [ImageFile(name=name, open=_member_opener(archive, named[name]), label=labels.get(name)) for name in order]
    return files, notes


def dealt(names: Sequence[str], labels: Mapping[str, int]) -> list[str]:
    """Put the first of each class first, then the second of each, and so on: the first ones stand for all classes.

    In the order of the paths, the first few hundred of a folder per class would be of one class or two, a poor sample
    to calibrate with and to check with. Names without labels keep their order.
    """
    if not labels:
        return list(names)
    seen: Counter[int] = Counter()
    turn: dict[str, tuple[int, int]] = {}
    for name in names:
        turn[name] = seen[labels[name]], labels[name]
        seen[labels[name]] += 1
    return sorted(names, key=lambda name: turn[name])


def class_labels(names: Sequence[str], origin: str) -> tuple[dict[str, int], list[str]]:
    """Label images by the folder they stand in, where there are at least two and every image is in one.

    Args:
        names: Paths of the images below the data folder.
        origin: The data folder, for notes.

    Returns:
        Name -> index of its first folder among all of them sorted as text; and notes on what may surprise.
    """
    folders = {name: PurePosixPath(name).parts[0] for name in names if len(PurePosixPath(name).parts) > 1}
    classes = sorted(set(folders.values()))
    if not classes:
        return {}, []
    if len(folders) < len(names):
        return {}, [f"{origin}: images stand both beside and in folders, so the folders are not taken as classes"]
    if len(classes) == 1:
        return {}, [f"{origin}: all images are in the one folder '{classes[0]}', which is not taken as a class"]
    if {name.lower() for name in classes} <= _PARTS:
        parts = " and ".join(map(repr, classes))
        return {}, [f"{origin}: {parts} are taken for parts of a data set, not for classes; give one of them as data"]
    notes = [
        f"{origin}: labels from {len(classes)} folders in sorted order, '{classes[0]}' is 0 and '{classes[-1]}' is "
        f"{len(classes) - 1}; give --labels if the network counts otherwise"
    ]
    if all(name.isdecimal() for name in classes) and classes != sorted(classes, key=int):
        notes.append(
            f"{origin}: class folders are sorted as text, '{classes[0]}', '{classes[1]}', '{classes[2]}'...; "
            "give --labels if the network's classes are in order of number"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return {name: numbers[folder] for name, folder in folders.items()}, notes


def listed_image(name: str, path: Path, label: int | None) -> ImageFile:
    """Make an image of one file of a list."""
    return ImageFile(name=name, open=_opener(path), label=label)


def _opener(path: Path) -> Callable[[], Image.Image]:
    return lambda: Image.open(path)


def _member_opener(archive: ZipFile, member: str) -> Callable[[], Image.Image]:
    def opened() -> Image.Image:
        size = archive.getinfo(member).file_size
        if size > _LARGEST_MEMBER_BYTES:
            raise ValueError(f"{size} bytes unpacked are more than the {_LARGEST_MEMBER_BYTES} that are taken")
        return Image.open(BytesIO(archive.read(member)))

    return opened
