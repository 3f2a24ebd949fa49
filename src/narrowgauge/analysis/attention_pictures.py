"""Attention of one sample as pictures: over the image's patches where it has some, as whole matrices where they fit."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from narrowgauge.analysis.records import AttentionHead
from narrowgauge.errors import ReportError
from narrowgauge.graph.feeds import Array

FloatArray = npt.NDArray[np.float32]

Shown = Literal["class token", "mean of the queries", "matrix"]
"""Whose row lies over the patches, or the whole matrix: queries from top to bottom, keys from left to right."""

# Tokens of a matrix that are shown, the first; bytes of all pictures (a third more in a page); heads with one.
_MOST_TOKENS = 256
_MOST_BYTES = 600_000
_MOST_HEADS = 24 * 16

# Tokens that are no patch, at the most: a class token, a distillation token, registers.
_MOST_EXTRA = 9

# Pixels of the sample's longer side, and the shares of its numbers that are drawn black and white.
_PIXELS = 128
_BLACK, _WHITE = 0.5, 99.5
_FEWEST_PIXELS = 8
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionPicture:
    """One head's attention.

    Attributes:
        attention: number of the attention in the network's order, from 0.
        head: number of the head, from 0.
        shown: what of it.
        window: which window, from 0, where the network has several: the one that changes most; None where it has none.
        rows: of the picture.
        columns: of the picture.
        highest: greatest weight.
        weights: the float network's weights p, row by row, as bytes `255 sqrt(p / highest)` in base64.
        furthest: greatest magnitude of a change.
        changes: weights of the quantized network less those of the float one, as signed bytes `127 change / furthest`
            in base64.
    """

    attention: int
    head: int
    shown: Shown
    window: int | None
    rows: int
    columns: int
    highest: float
    weights: str
    furthest: float
    changes: str

    def __post_init__(self) -> None:
        _check_bytes(self.weights, self.rows * self.columns)
        _check_bytes(self.changes, self.rows * self.columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionPictures:
    """Pictures of one sample.

    Attributes:
        sample: its name.
        rows: of the sample's own picture; 0 where it is no image.
        columns: likewise.
        pixels: red, green and blue of each pixel, row by row, as bytes in base64.
        pictures: those of the heads that change most first.
    """

    sample: str
    rows: int = 0
    columns: int = 0
    pixels: str = ""
    pictures: tuple[AttentionPicture, ...] = ()

    def __post_init__(self) -> None:
        _check_bytes(self.pixels, 3 * self.rows * self.columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadMaps:
    """One head in both networks.

    Attributes:
        record: which, and how far it has moved.
        window: the one of several windows that changes most, which is shown; None where there is one only.
        queries: how many there are.
        keys: how many there are.
        first: weights of the first query in the float and the quantized network, `(2, keys)`.
        mean: means over all queries, likewise.
        matrices: weights of the first tokens in both, `(2, queries, keys)`.
    """

    record: AttentionHead
    window: int | None
    queries: int
    keys: int
    first: FloatArray
    mean: FloatArray
    matrices: FloatArray

    @classmethod
    def of(cls, record: AttentionHead, window: int | None, both: FloatArray) -> HeadMaps:
        """Keep what can be shown of the weights in both networks, `(2, queries, keys)`."""
        return cls(
            record=record, window=window, queries=both.shape[1], keys=both.shape[2], first=both[:, 0].copy(),
            mean=both.mean(axis=1), matrices=both[:, :_MOST_TOKENS, :_MOST_TOKENS].copy(),
        )  # fmt: skip


def draw(heads: Iterable[HeadMaps], sample: str, feed: Mapping[str, Array]) -> AttentionPictures:
    """Draw the heads that change most: first all over patches, then matrices as far as there is room.

    Args:
        heads: in any order.
        sample: name of the sample.
        feed: what the networks were fed with.
    """
    image = _image(feed)
    ordered = sorted(heads, key=lambda one: -one.record.moved)[:_MOST_HEADS]
    grids = [(one, _grid_of(one, image)) for one in ordered]
    wanted = [
        *((one, grid) for one, grid in grids if grid is not None),
        *((one, None) for one, grid in grids if grid is None or one.queries > grid.extra),
    ]
    pictures, room = [], _MOST_BYTES
    for one, grid in wanted:
        picture = _picture(one, "matrix", one.matrices) if grid is None else _over_patches(one, grid)
        room -= 2 * picture.rows * picture.columns
        if room < 0:
            break
        pictures.append(picture)
    if image is None:
        return AttentionPictures(sample=sample, pictures=tuple(pictures))
    pixels = _pixels(image)
    return AttentionPictures(
        sample=sample, rows=pixels.shape[0], columns=pixels.shape[1], pixels=_text(pixels), pictures=tuple(pictures)
    )


# --- over the patches -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grid:
    """Keys behind the first `extra` ones lie on a grid over the image."""

    extra: int
    rows: int
    columns: int


def patch_grid(keys: int, height: int, width: int) -> Grid | None:
    """Find the grid of an image's patches from the number of tokens: 197 = 1 + 14 x 14, 198 = 2 + 14 x 14.

    A patch has the image's proportions. Where some tokens are none, patches also cover whole pixels.

    Args:
        keys: how many tokens there are.
        height: of the image, pixels.
        width: of the image, pixels.
    """
    for extra in range(min(_MOST_EXTRA, keys - 1) + 1):
        patches = keys - extra
        rows = math.isqrt(patches * height // width)
        columns = patches // rows if rows else 0
        fits = rows * columns == patches and rows * width == columns * height
        if fits and (not extra or (patches > extra and height % rows == 0)):
            return Grid(extra, rows, columns)
    return None


def _grid_of(one: HeadMaps, image: Array | None) -> Grid | None:
    if image is None or one.window is not None:
        return None
    return patch_grid(one.keys, *image.shape[:2])


def _over_patches(one: HeadMaps, grid: Grid) -> AttentionPicture:
    # Behind the last block only its first tokens may be read, and be queries: the class token is the first of them.
    from_class = grid.extra > 0 and (one.queries == one.keys or one.queries <= grid.extra)
    maps = (one.first if from_class else one.mean)[:, grid.extra :].reshape(2, grid.rows, grid.columns)
    return _picture(one, "class token" if from_class else "mean of the queries", maps)


def _picture(one: HeadMaps, shown: Shown, maps: FloatArray) -> AttentionPicture:
    first, changes = maps[0], maps[1] - maps[0]
    highest, furthest = (float(np.abs(values).max(initial=0)) for values in (first, changes))
    return AttentionPicture(
        attention=one.record.attention,
        head=one.record.head,
        shown=shown,
        window=one.window,
        rows=first.shape[0],
        columns=first.shape[1],
        highest=highest,
        weights=_text(np.rint(255 * np.sqrt(np.clip(first, 0, None) / (highest or 1))).astype(np.uint8)),
        furthest=furthest,
        changes=_text(np.rint(127 * changes / (furthest or 1)).astype(np.int8)),
    )


# --- the sample -------------------------------------------------------------------------------------------------------


def _image(feed: Mapping[str, Array]) -> Array | None:
    """The first image that is fed, `(height, width, channels)`; None where nothing looks like one."""
    for array in feed.values():
        if array.ndim != 4 or array.dtype.kind not in "fiu":
            continue
        first: Array = array[0]
        if first.shape[0] in _CHANNELS and min(first.shape[1:]) >= _FEWEST_PIXELS:
            return first.transpose(1, 2, 0)
        if first.shape[2] in _CHANNELS and min(first.shape[:2]) >= _FEWEST_PIXELS:
            return first
    return None


def _pixels(image: Array) -> npt.NDArray[np.uint8]:
    """A small picture, `(rows, columns, 3)`: means of squares of pixels, stretched from black to white.

    What the network is fed is scaled and shifted for it, so that the picture's colours are close to the image's only.
    """
    step = -(-max(image.shape[:2]) // _PIXELS)
    rows, columns = (size // step for size in image.shape[:2])
    colours = image[: rows * step, : columns * step, :3].astype(np.float64)
    small = np.nan_to_num(colours.reshape(rows, step, columns, step, -1).mean(axis=(1, 3)))
    black, white = np.percentile(small, [_BLACK, _WHITE])
    levels = np.clip(np.rint(255 * (small - black) / ((white - black) or 1)), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels, (rows, columns, 3)))


def _text(values: npt.NDArray[np.integer]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _check_bytes(text: str, count: int) -> None:
    try:
        found = len(base64.b64decode(text, validate=True))
    except ValueError:
        found = -1
    if found != count or count < 0:
        raise ReportError(f"expected {count} bytes in base64, got a text of {len(text)} characters")


def pictured(pictures: Sequence[AttentionPicture]) -> int:
    """Count the heads that have a picture."""
    return len({(one.attention, one.head) for one in pictures})
