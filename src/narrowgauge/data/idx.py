"""Arrays in the IDX format of MNIST: big-endian header, then unsigned bytes; gzip-compressed or not.

Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", section "the IDX file format".
"""

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Final

import numpy as np

from narrowgauge.data.inputs import Array
from narrowgauge.errors import DataError

_MAGIC_BYTES: Final = 4
_UNSIGNED_BYTE: Final = 0x08
_LARGEST_BYTES: Final = 2**31
"""Largest array read into memory: the largest published set (EMNIST) has under 0.7 GB."""
_NAME: Final = re.compile(r"idx[13]-ubyte(\.gz)?$")


def is_idx(path: Path) -> bool:
    """Tell by its name whether a file is one of MNIST's kind."""
    return _NAME.search(path.name) is not None


def labels_beside(path: Path) -> Path | None:
    """Return the file of labels beside a file of images, where the usual name is there."""
    labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    return labels if labels != path and labels.is_file() else None


def load_idx(path: Path) -> Array:
    """Read an array of unsigned bytes.

    Returns:
        Images (count x height x width) or labels (count), uint8.

    Raises:
        DataError: The file cannot be read, or its header and its size do not agree.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(_MAGIC_BYTES)
            if len(magic) < _MAGIC_BYTES or magic[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
                raise DataError(f"{path}: expected an IDX file of unsigned bytes, got one that starts with {magic!r}.")
            shape = tuple(int(extent) for extent in np.frombuffer(file.read(4 * magic[3]), dtype=">u4"))
            wanted = math.prod(shape)
            if wanted > _LARGEST_BYTES:
                raise DataError(f"{path}: expected at most {_LARGEST_BYTES} bytes, the header announces {wanted}.")
            content = file.read(wanted)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: expected an IDX file, got: {error}.") from error
    if len(content) != wanted or len(shape) != magic[3]:
        raise DataError(
            f"{path}: expected {wanted} bytes for shape {shape}, got {len(content)}: the file is truncated."
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
