from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Resampling

from narrowgauge.data.preprocess import (
    Color,
    Layout,
    Preprocess,
    apply,
    default_preprocess,
    fit_preprocess,
    load_preprocess,
    preprocess_toml,
    resized_size,
)
from narrowgauge.errors import DataError
from tests.data.networks import SPEECH, image_input

COLORS = np.random.default_rng(0).integers(0, 256, size=(6, 6, 3), dtype=np.uint8)


def ramp(width: int, height: int) -> Image.Image:
    """An image whose red channel tells the column and whose green channel tells the row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8))


def written(folder: Path, text: str) -> Path:
    path = folder / "network.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key_is_read(tmp_path: Path) -> None:
    text = """
        resize = 256
        crop = [192, 224]
        interpolation = "bicubic"
        mean = [0.1, 0.2, 0.3]
        std = 0.5
        color = "bgr"
        layout = "nhwc"
        label_offset = 1
    """
    assert load_preprocess(written(tmp_path, text)) == Preprocess(
        resize=256,
        crop=(192, 224),
        interpolation=Resampling.BICUBIC,
        mean=(0.1, 0.2, 0.3),
        std=(0.5,),
        color=Color.BGR,
        layout=Layout.NHWC,
        label_offset=1,
    )


def test_written_and_read_again_it_is_the_same(tmp_path: Path) -> None:
    for preprocess in (
        Preprocess(),
        Preprocess(resize=(3, 4), crop=5, scale=(1 / 3,), offset=(-1e-9, 0.0, 2.0), color=Color.RGB),
        Preprocess(mean=(0.485,), interpolation=Resampling.NEAREST, layout=Layout.NCHW, label_offset=-1),
    ):
        assert load_preprocess(written(tmp_path, preprocess_toml(preprocess))) == preprocess


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resise = 256", "unknown preprocessing keys resise; allowed are resize, crop, interpolation, mean"),
        ("resize = '256'", r"expected an integer \(shorter side\) or \[height, width\] for 'resize', got '256'"),
        ("crop = [1, 2, 3]", "'crop'"),
        ("crop = 0", "at least 1 pixel"),
        ("interpolation = 'cubic'", r"expected one of .*bicubic, bilinear.* for 'interpolation', got 'cubic'"),
        ("color = 'yuv'", "expected one of rgb, bgr, gray for 'color', got 'yuv'"),
        ("mean = [0.5, nan, 0.5]", "finite"),
        ("mean = []", "'mean'"),
        ("std = [0.5, 0.5]", "Expected 1 or 3 values of std"),
        ("std = 0", "above 0"),
        ("mean = 0.5\noffset = 0", "mean/std or scale/offset"),
        ("color = 'gray'\nmean = [1, 2, 3]", "Expected 1 values"),
        ("resize = ", "TOML"),
    ],
)
def test_what_means_nothing_is_refused_with_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        load_preprocess(path)
    assert str(path) in str(caught.value)


def test_default_stands_beside_the_model(tmp_path: Path) -> None:
    assert default_preprocess(tmp_path / "network.onnx") is None
    written(tmp_path, "resize = 7")
    assert default_preprocess(tmp_path / "network.onnx") == Preprocess(resize=7)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 300))
def test_resize_scales_the_shorter_side_and_truncates_the_longer(width: int, height: int, shorter: int) -> None:
    new_width, new_height = resized_size(width, height, shorter)
    assert min(new_width, new_height) == shorter
    longer = max(new_width, new_height)
    assert longer <= shorter * max(width, height) / min(width, height) < longer + 1


@pytest.mark.parametrize(
    # torchvision.transforms.CenterCrop: int(round((size - crop) / 2)), Python rounding halves to even
    ("size", "crop", "first"),
    [((9, 9), 4, 2), ((11, 11), 4, 4), ((8, 8), 8, 0), ((10, 13), 3, None)],
)
def test_crop_takes_the_centre(size: tuple[int, int], crop: int, first: int | None) -> None:
    pixels = apply(ramp(*size), Preprocess(crop=crop, scale=(1.0,)))
    assert pixels.shape == (3, crop, crop)
    left, top = (first, first) if first is not None else (round((size[0] - crop) / 2), round((size[1] - crop) / 2))
    np.testing.assert_array_equal(pixels[0, 0], np.arange(left, left + crop))
    np.testing.assert_array_equal(pixels[1, :, 0], np.arange(top, top + crop))


def test_crop_of_a_smaller_image_is_filled_with_black() -> None:
    white = Image.new("RGB", (3, 6), "white")
    pixels = apply(white, Preprocess(crop=6))
    np.testing.assert_array_equal(pixels[0], np.tile(np.array([0, 1, 1, 1, 0, 0], np.float32), (6, 1)))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40))
def test_resize_and_crop_give_the_size_that_was_asked(width: int, height: int, resize: int, crop: int) -> None:
    pixels = apply(Image.new("L", (width, height)), Preprocess(resize=resize, crop=crop, color=Color.GRAY))
    assert pixels.shape == (1, crop, crop)
    assert apply(Image.new("L", (width, height)), Preprocess(resize=(resize, crop))).shape == (3, resize, crop)


def test_values_follow_their_formulas() -> None:
    image = Image.fromarray(COLORS)
    real = COLORS.transpose(2, 0, 1).astype(np.float64)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = apply(image, Preprocess(mean=tuple(mean), std=tuple(std)))
    assert normalised.dtype == np.float32
    np.testing.assert_array_equal(
        normalised, ((real / 255 - mean[:, None, None]) / std[:, None, None]).astype(np.float32)
    )
    np.testing.assert_array_equal(
        apply(image, Preprocess(scale=(2.0,), offset=(-3.0,))), (real * 2 - 3).astype(np.float32)
    )
    np.testing.assert_array_equal(apply(image, Preprocess()), (real / 255).astype(np.float32))


def test_integer_inputs_get_integers() -> None:
    image = Image.fromarray(COLORS)
    unsigned = apply(image, Preprocess(layout=Layout.NHWC), np.uint8)
    assert unsigned.dtype == np.uint8
    np.testing.assert_array_equal(unsigned, COLORS)
    signed = apply(image, Preprocess(layout=Layout.NHWC, offset=(-128.0,)), np.int8)
    np.testing.assert_array_equal(signed, COLORS.astype(np.int16) - 128)
    np.testing.assert_array_equal(
        apply(image, Preprocess(layout=Layout.NHWC, scale=(2.0,)), np.uint8), np.minimum(COLORS.astype(int) * 2, 255)
    )


def test_bgr_and_gray_and_layouts() -> None:
    image = Image.fromarray(COLORS)
    rgb = apply(image, Preprocess())
    np.testing.assert_array_equal(apply(image, Preprocess(color=Color.BGR)), rgb[::-1])
    np.testing.assert_array_equal(apply(image, Preprocess(layout=Layout.NHWC)), rgb.transpose(1, 2, 0))
    gray = apply(image, Preprocess(color=Color.GRAY, scale=(1.0,)))
    luma = COLORS @ np.array([0.299, 0.587, 0.114])
    assert gray.shape == (1, 6, 6)
    np.testing.assert_allclose(gray[0], luma, atol=0.51)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((None, 3, 32, 32), Preprocess(resize=32, crop=32, color=Color.RGB, layout=Layout.NCHW)),
        ((1, 96, 96, 1), Preprocess(resize=96, crop=96, color=Color.GRAY, layout=Layout.NHWC)),
        ((1, 3, 240, 320), Preprocess(resize=(240, 320), color=Color.RGB, layout=Layout.NCHW)),
        ((None, None, None, 3), Preprocess(color=Color.RGB, layout=Layout.NHWC)),
    ],
)
def test_without_preprocessing_the_network_tells(shape: tuple[int | None, ...], expected: Preprocess) -> None:
    preprocess, notes = fit_preprocess(None, image_input(*shape)[0])
    assert preprocess == expected
    assert len(notes) == 1
    assert "no preprocessing was given" in notes[0]


def test_preprocessing_that_contradicts_the_network_is_refused() -> None:
    with pytest.raises(DataError, match="Expected 1 channels for color 'gray' and layout 'nchw', got input 'input'"):
        fit_preprocess(Preprocess(color=Color.GRAY), image_input(None, 3, 8, 8)[0])
    with pytest.raises(DataError, match="rank 4"):
        fit_preprocess(None, SPEECH[0])
