"""Pictures of attention: the patches' grid, the sample's own picture, which heads have room, what a file may hold."""

from __future__ import annotations

import base64
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.analysis.attention_pictures import AttentionPictures, HeadMaps, draw, patch_grid, pictured
from narrowgauge.analysis.records import AttentionHead
from narrowgauge.analysis.records_json import pictures_from_json, pictures_to_json
from narrowgauge.errors import ReportError
from tests.planning.networks import normal

Array = np.ndarray


def head(number: int, queries: int, keys: int, *, moved: float = 0.1, window: int | None = None) -> HeadMaps:
    both = np.abs(normal(2, queries, keys, seed=number))
    record = AttentionHead(
        node="n", value="p", depth=0, attention=number // 4, block=None, head=number % 4, moved=moved
    )
    return HeadMaps.of(record, window, both / both.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize(
    ("keys", "size", "grid"),
    [
        (197, (224, 224), (1, 14, 14)), (198, (224, 224), (2, 14, 14)), (196, (224, 224), (0, 14, 14)),
        (261, (224, 224), (5, 16, 16)), (50, (224, 224), (1, 7, 7)), (577, (384, 384), (1, 24, 24)),
        (193, (256, 128), None), (129, (256, 128), (1, 16, 8)), (17, (32, 32), (1, 4, 4)), (49, (112, 112), (0, 7, 7)),
        (10, (224, 224), None), (77, (224, 224), None), (1, (8, 8), (0, 1, 1)),
    ],
)  # fmt: skip
def test_the_grid_follows_from_the_number_of_tokens(
    keys: int, size: tuple[int, int], grid: tuple[int, int, int] | None
) -> None:
    found = patch_grid(keys, *size)
    assert (found and (found.extra, found.rows, found.columns)) == grid


@given(st.integers(1, 20), st.integers(1, 20), st.integers(2, 16))
def test_patches_without_other_tokens_are_always_found(rows: int, columns: int, patch: int) -> None:
    found = patch_grid(rows * columns, rows * patch, columns * patch)
    assert found is not None
    assert (found.extra, found.rows, found.columns) == (0, rows, columns)


def test_all_heads_lie_over_the_image_before_matrices_take_the_room() -> None:
    heads = [head(number, 197, 197, moved=number / 100) for number in range(36)]
    found = draw(heads, "dog.png", {"x": normal(1, 3, 224, 224)}).pictures
    over = [one for one in found if one.shown == "class token"]
    assert [4 * one.attention + one.head for one in over] == list(range(35, -1, -1))
    matrices = [one for one in found if one.shown == "matrix"]
    assert 3 < len(matrices) < 12
    assert [4 * one.attention + one.head for one in matrices] == list(range(35, 35 - len(matrices), -1))
    assert pictured(found) == 36


def test_of_many_heads_those_that_change_most_have_a_picture() -> None:
    heads = [head(number, 128, 128, moved=number % 7 + number / 1000) for number in range(60)]
    found = draw(heads, "text", {"ids": np.zeros((1, 128), np.int64)})
    assert sum(one.rows * one.columns for one in found.pictures) < 600_000
    wanted = sorted(range(60), key=lambda number: -heads[number].record.moved)[: len(found.pictures)]
    assert [4 * one.attention + one.head for one in found.pictures] == wanted
    assert (found.rows, found.columns, found.pixels) == (0, 0, "")


@pytest.mark.parametrize("queries", [1, 2])
def test_the_first_tokens_alone_need_no_matrix(queries: int) -> None:
    (picture,) = draw([head(0, queries, 18)], "dog.png", {"x": normal(1, 3, 32, 32)}).pictures
    assert (picture.shown, picture.rows, picture.columns) == ("class token", 4, 4)


def test_fewer_keys_than_queries_lie_over_the_image() -> None:
    both = draw([head(0, 64, 16)], "dog.png", {"x": normal(1, 3, 32, 32)}).pictures
    assert [(one.shown, one.rows, one.columns) for one in both] == [("mean of the queries", 4, 4), ("matrix", 64, 16)]


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_samples_picture_keeps_its_brightness_whatever_it_is_fed_as(layout: str, channels: int) -> None:
    ramp = np.broadcast_to(np.linspace(-2, 2, 400, dtype=np.float32), (300, 400))
    image = np.repeat(ramp[np.newaxis], channels, axis=0)
    fed = image[np.newaxis] if layout == "channels first" else np.moveaxis(image, 0, -1)[np.newaxis]
    found = draw([], "ramp", {"x": fed})
    assert (found.rows, found.columns) == (75, 100)
    pixels = np.frombuffer(base64.b64decode(found.pixels), np.uint8).reshape(75, 100, 3)
    assert (pixels == pixels[:1, :, :1]).all()
    np.testing.assert_allclose(pixels[0, :, 0], np.linspace(0, 255, 100), atol=3)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (1, 16, 32, 32), (1, 128), (1, 3, 8, 32, 32)])
def test_what_is_no_image_has_no_picture(shape: tuple[int, ...]) -> None:
    assert draw([], "other", {"x": np.zeros(shape, np.float32)}) == AttentionPictures(sample="other")


def test_an_image_of_one_colour_is_drawn() -> None:
    found = draw([], "grey", {"x": np.full((1, 3, 16, 16), np.nan, np.float32)})
    assert len(base64.b64decode(found.pixels)) == 3 * 16 * 16


def test_pictures_survive_a_file() -> None:
    heads = [head(0, 17, 17), head(1, 6, 6, window=3)]
    found = draw(heads, "dog.png", {"x": normal(1, 3, 32, 32)})
    assert pictures_from_json(pictures_to_json(found)) == found


@pytest.mark.parametrize("change", [{"weights": "AAAA"}, {"changes": "%"}, {"rows": -1}, {"shown": "else"}])
def test_a_file_that_does_not_hold_what_it_says_is_refused(change: dict[str, object]) -> None:
    found = draw([head(0, 17, 17)], "dog.png", {"x": normal(1, 3, 32, 32)})
    record = json.loads(pictures_to_json(found))
    record["pictures"][0] |= change
    with pytest.raises(ReportError, match=r"attention.json: expected pictures of attention in JSON"):
        pictures_from_json(json.dumps(record), source="attention.json")
    with pytest.raises(ReportError, match="base64"):
        dataclasses.replace(found, rows=7)
