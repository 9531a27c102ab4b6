"""Decoding of pictures in any form to upright 8-bit pixels.

Colour profiles (ICC) and gamma are ignored, and transparency is dropped, as by the loaders that
models are trained with. Of an animation the first frame counts. Pixels of 16 bits are reduced to 8.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dask_onnx.core.array_values import without_mask
from dask_onnx.core.errors import InputError
from dask_onnx.core.files import is_url, read_file
from dask_onnx.core.meters import metered

Color = Literal["RGB", "BGR", "gray", "RGBA"]
"""Order of the channels of a model's input."""
Pixels = npt.NDArray[np.uint8]
MODES: dict[str, str] = {"RGB": "RGB", "BGR": "RGB", "gray": "L", "RGBA": "RGBA"}
"""Order of channels to Pillow's mode that is decoded for it."""
CHANNELS: dict[str, int] = {"RGB": 3, "BGR": 3, "gray": 1, "RGBA": 4}
"""Order of channels to their number."""
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_NEXT_STEP = "convert it to PNG or JPEG, or leave it out"


@dataclass(frozen=True, slots=True)
class Decoder:
    """Reader of pictures, which tasks call."""

    color: Color
    """Order of the channels."""
    max_pixels: int
    """Pixels above which a picture is refused before it is decoded."""

    @metered("read")
    def __call__(self, source: Any) -> Any:
        """Return a picture as an upright ``PIL.Image`` of the mode in `MODES`.

        Parameters
        ----------
        source : path, URL, bytes, PIL.Image, or array
            An array has shape (height, width), (height, width, channels) with 1, 3 (RGB) or 4
            (RGBA) channels, and dtype uint8, uint16 or bool.

        Raises
        ------
        InputError
            It is missing, no picture, truncated, empty, too large, or of a kind whose range of
            values is unknown.
        """
        from PIL import Image  # optional: only pictures need it

        if source is None or (isinstance(source, float) and source != source):
            raise InputError("the picture is missing", "drop the row, or on_error='null'")
        if isinstance(source, Image.Image):
            return _guarded(lambda: self._converted(source))
        if isinstance(source, bytes | bytearray | memoryview):
            return _guarded(lambda: self._decoded(bytes(source)))
        if isinstance(source, str | os.PathLike):
            return _guarded(lambda: self._decoded(_content(os.fspath(source))))
        return self._converted(_of_array(source))

    def _decoded(self, content: bytes) -> Any:
        from PIL import Image  # optional: only pictures need it

        if not content:
            raise InputError("the file is empty: it has 0 bytes", _NEXT_STEP)
        with Image.open(io.BytesIO(content)) as image:
            return self._converted(image)

    def _converted(self, image: Any) -> Any:
        """Return an image upright and in the mode that the model needs."""
        from PIL import ImageOps  # optional: only pictures need it

        width, height = image.size
        if not width or not height:
            raise InputError(f"the picture has {width} x {height} pixels", "leave it out")
        if width * height > self.max_pixels:
            raise InputError(
                f"the picture has {width} x {height} = {width * height:,} pixels; at most "
                f"{self.max_pixels:,} are decoded at a time",
                "raise max_pixels if the workers have 4 bytes of memory for each, or run it in "
                "tiles: predict_tiled",
                option="max_pixels",
                numbers={"pixels": width * height, "max_pixels": self.max_pixels},
            )
        upright = ImageOps.exif_transpose(image)
        mode = MODES[self.color]
        if upright.mode in _SIXTEEN_BITS or (upright.mode == "I" and image.format == "PNG"):
            upright = _eight_bits(upright)
        if upright.mode in ("I", "F"):
            raise InputError(
                f"the picture has mode {upright.mode!r}, whose range of values is unknown",
                "convert it to 8 or 16 bits, or pass an array of uint8",
                reason=f"mode {upright.mode}",
            )
        if upright.mode in ("LAB", "HSV") and mode != "RGB":
            upright = upright.convert("RGB")
        return upright if upright.mode == mode else upright.convert(mode)


def _guarded(decode: Callable[[], Any]) -> Any:
    """Return the result of a function of Pillow; its errors become those of this library."""
    from PIL import Image, UnidentifiedImageError  # optional: only pictures need it

    try:
        return decode()
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            "it is not a picture of a format that Pillow reads", _NEXT_STEP, reason=str(error)
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"the picture is too large to be decoded: {error}",
            "save it as a tiled TIFF, and run it in tiles: predict_tiled",
            option="max_pixels",
            reason=str(error),
        ) from None
    except FileNotFoundError as error:
        raise InputError(
            "the file does not exist", "check the path, on the workers too", reason=str(error)
        ) from None
    except IsADirectoryError as error:
        raise InputError(
            "it is a folder", "pass its files: 'folder/*.png'", reason=str(error)
        ) from None
    # Pillow's plugins raise errors of many types on damaged files; SyntaxError is one of them.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"the picture cannot be decoded: {text}", _NEXT_STEP, reason=text
        ) from None


def _content(path: str) -> bytes:
    if not is_url(path):
        return Path(path).expanduser().read_bytes()
    return read_file(path)[0]


def _eight_bits(image: Any) -> Any:
    """Return an image of 16 bits with 8; Pillow's own conversion cuts values off at 255."""
    from PIL import Image  # optional: only pictures need it

    values = np.asarray(image).astype(np.uint32)
    if values.max(initial=0) > np.iinfo(np.uint16).max:
        raise InputError(
            f"the picture has values up to {values.max():,}, more than 16 bits",
            "convert it to 8 or 16 bits, or pass an array of uint8",
        )
    return Image.fromarray(_from_sixteen(values))


def _from_sixteen(values: Any) -> Pixels:
    """Return values from 0 to 65535 as values from 0 to 255, rounded."""
    found: Pixels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return found


def _of_array(given: Any) -> Any:
    """Return an array of pixels as an image."""
    from PIL import Image  # optional: only pictures need it

    array = without_mask(given, "the picture")
    is_flat = array.ndim == 2
    if not (is_flat or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise InputError(
            f"an array of shape {array.shape} is no picture",
            "pass (height, width) or (height, width, channels) with 1, 3 or 4 channels; several "
            "pictures as a list",
            numbers={"axes": array.ndim},
        )
    if 0 in array.shape:
        raise InputError(f"the picture has shape {array.shape}", "leave it out")
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        array = _from_sixteen(array)
    elif array.dtype != np.uint8:
        raise InputError(
            f"the picture is an array of {array.dtype}, whose range of values is unknown",
            "pass uint8 (0 to 255) or uint16; values from 0 to 1 as (x * 255).astype('uint8')",
            reason=f"dtype {array.dtype}",
        )
    flat = array[..., 0] if not is_flat and array.shape[2] == 1 else array
    return Image.fromarray(np.ascontiguousarray(flat))
