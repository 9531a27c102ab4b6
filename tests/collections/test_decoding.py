"""Decoding of pictures in all modes, orientations and states of damage."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import dask_onnx as dx
from dask_onnx.collections.images.decoding import Decoder

RGB = Decoder("RGB", 10**6)
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels_of(source, decoder=RGB):
    return np.asarray(decoder(source))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_the_pixels(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(Image.fromarray(PIXELS), kind, **options)
    np.testing.assert_array_equal(pixels_of(content), PIXELS)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(mode):
    image = Image.fromarray(PIXELS).convert(mode)
    kind = "PNG" if mode in ("L", "LA", "RGBA", "P", "1") else "TIFF"
    np.testing.assert_array_equal(pixels_of(encoded(image, kind)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_are_turned_upright(orientation):
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(PIXELS)
    if orientation > 1:
        stored = stored.transpose(turn[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, exif=exif)
    np.testing.assert_array_equal(pixels_of(content), PIXELS)
    np.testing.assert_array_equal(pixels_of(encoded(stored, "TIFF", exif=exif)), PIXELS)


def test_sixteen_bits_are_scaled_rather_than_cut_off():
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    image = Image.fromarray(values)
    for kind in ("PNG", "TIFF"):
        found = pixels_of(encoded(image, kind), Decoder("gray", 100))
        np.testing.assert_array_equal(found, [[0, 0, 1, 1, 128, 255]])


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels_of(content)[0, 0].tolist() == [255, 0, 0]


def test_gray_follows_the_luma_of_pillow():
    image = Image.fromarray(PIXELS)
    found = pixels_of(encoded(image), Decoder("gray", 1000))
    np.testing.assert_array_equal(found, np.asarray(image.convert("L")))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (PIXELS, PIXELS),
        (PIXELS[..., 0], np.repeat(PIXELS[..., :1], 3, axis=2)),
        (PIXELS[..., :1], np.repeat(PIXELS[..., :1], 3, axis=2)),
        (PIXELS[..., 0] > 127, np.where(PIXELS[..., :1] > 127, 255, 0).repeat(3, axis=2)),
        (PIXELS.astype(np.uint16) * 257, PIXELS),
    ],
)
def test_arrays_are_pictures(array, expected):
    np.testing.assert_array_equal(pixels_of(array), expected)


@pytest.mark.parametrize(
    "array",
    [
        PIXELS.astype(np.float32),
        PIXELS.astype(np.int64),
        PIXELS[None],
        PIXELS[..., :2],
        np.empty((0, 5, 3), np.uint8),
        np.array(3, np.uint8),
    ],
)
def test_arrays_of_other_dtypes_and_shapes_are_refused(array):
    with pytest.raises(dx.InputError):
        RGB(array)


def damaged():
    whole = encoded(Image.fromarray(PIXELS.repeat(30, 0).repeat(30, 1)), "JPEG")
    return {
        "empty": b"",
        "text": b"no picture at all",
        "truncated": whole[: len(whole) // 2],
        "header": whole[:30],
        "float": encoded(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF"),
        "wide": encoded(Image.fromarray(PIXELS[..., 0].astype(np.int32) * 99999), "TIFF"),
    }


@pytest.mark.parametrize("name", damaged())
def test_damaged_files_and_unknown_ranges_are_input_errors(name):
    with pytest.raises(dx.InputError) as caught:
        RGB(damaged()[name])
    assert caught.value.next_step


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded():
    content = encoded(Image.new("1", (2000, 1000)))
    with pytest.raises(dx.InputError) as caught:
        RGB(content)
    assert caught.value.option == "max_pixels"
    assert caught.value.numbers == {"pixels": 2_000_000, "max_pixels": 1_000_000}


def test_a_decompression_bomb_is_an_input_error():
    # A PNG whose header claims 60000 x 60000 pixels.
    content = bytearray(encoded(Image.new("1", (8, 8))))
    content[16:24] = (60000).to_bytes(4, "big") * 2
    content[29:33] = __import__("zlib").crc32(bytes(content[12:29])).to_bytes(4, "big")
    with pytest.raises(dx.InputError) as caught:
        Decoder("RGB", 178_000_000)(bytes(content))
    assert caught.value.option == "max_pixels"


def test_missing_files_and_folders_are_input_errors(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(dx.InputError):
            RGB(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_masked_pixels_are_refused(dtype):
    pixels = np.ma.masked_array(PIXELS[..., 0].astype(dtype), mask=False)
    assert pixels_of(pixels).shape == (12, 17, 3)
    pixels[3, 4] = np.ma.masked
    with pytest.raises(dx.InputError) as raised:
        RGB(pixels)
    assert raised.value.numbers["bad_values"] == 1
