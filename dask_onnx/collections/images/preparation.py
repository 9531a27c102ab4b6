"""From a decoded picture to a model's input tensor, with its geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_onnx.collections.images.decoding import CHANNELS, Color, Decoder, Pixels
from dask_onnx.collections.images.geometry import Geometry
from dask_onnx.collections.images.input_layout import InputLayout, Size
from dask_onnx.collections.images.resampling import Interpolation, resample
from dask_onnx.collections.images.resize import Placement, Resize
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import is_floating

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Preparation:
    """Complete preparation of pictures for one model: nothing is left open.

    A pixel value v, 0 to 255, becomes ``(v * scale - mean) / std`` in float32.
    """

    layout: InputLayout
    """Layout of the model's input."""
    resize: Resize
    """Rule for the size."""
    crop: Size | None
    """Height and width of the part in the middle that is kept after resizing; None keeps all."""
    color: Color
    """Order of the channels."""
    scale: float
    """Factor of pixel values."""
    mean: tuple[float, ...]
    """Value that is subtracted from each channel, in the tensor's order of channels."""
    std: tuple[float, ...]
    """Value that each channel is divided by."""
    interpolation: Interpolation
    """Way to interpolate."""
    max_pixels: int
    """Pixels above which a picture is refused before it is decoded."""
    floors_crop: bool = False
    """True if an odd number of pixels to crop is halved downwards, as in Hugging Face's processors,
    rather than to the even number, as in torchvision."""
    multiple: int | None = None
    """Pixels of which the model accepts multiples only, for errors; None where unknown."""

    @property
    def decoder(self) -> Decoder:
        """Reader of pictures."""
        return Decoder(self.color, self.max_pixels)

    @property
    def is_raw(self) -> bool:
        """True if pixel values are not changed."""
        return self.scale == 1 and not any(self.mean) and all(each == 1 for each in self.std)

    def __call__(
        self, source: Any, check: Callable[[Geometry], None] | None = None
    ) -> tuple[Array, Geometry]:
        """Return the tensor of a picture, without a batch axis, and its geometry.

        Parameters
        ----------
        source : path, URL, bytes, PIL.Image, or array
            As for `Decoder`.
        check : callable, optional
            Called with the geometry before the tensor is made, to refuse one that is too large.

        Raises
        ------
        InputError
            The picture cannot be decoded, or comes to a size that the model does not take.
        """
        image = self.decoder(source)
        width, height = image.size
        placed = self.place((height, width))
        self.check_canvas(placed.canvas, (height, width))
        geometry = Geometry((height, width), placed.size, (placed.top, placed.left), placed.canvas)
        if check is not None:
            check(geometry)
        pixels = resample(image, placed.size, self.interpolation)
        return self._tensor(pixels, placed), geometry

    def values(self, pixels: Array) -> Array:
        """Return the tensor's values of pixels that keep their places, such as those of a tile.

        Parameters
        ----------
        pixels : uint8 array, shape (channels, height, width)
            Red, green, blue and perhaps opacity; or brightness alone.
        """
        height, width = pixels.shape[1:]
        placed = Placement((height, width), (height, width), 0, 0)
        tensor = self._tensor(np.moveaxis(pixels, 0, -1), placed)
        return tensor if self.layout.is_channels_first else np.moveaxis(tensor, -1, 0)

    def place(self, size: Size) -> Placement:
        """Return the size and place in the tensor of a picture of some height and width."""
        placed = self.resize.place(size)
        if self.crop is None:
            return placed
        tops = [
            _crop_start(own, wanted, floors=self.floors_crop)
            for own, wanted in zip(placed.canvas, self.crop, strict=True)
        ]
        return Placement(placed.size, self.crop, placed.top - tops[0], placed.left - tops[1])

    def check_canvas(self, canvas: Size, picture: Size | None = None) -> None:
        """Check that the model takes tensors of some height and width.

        Parameters
        ----------
        canvas : (int, int)
            Height and width of the tensor.
        picture : (int, int), optional
            Height and width of the picture, for errors; None for pictures of any size.

        Raises
        ------
        InputError
            It does not.
        """
        what = "pictures become"
        if picture is not None:
            what = f"the picture, {picture[0]} x {picture[1]} (height x width), becomes"
        wanted = (self.layout.height, self.layout.width)
        if any(side not in (None, own) for side, own in zip(wanted, canvas, strict=True)):
            text = " x ".join(str(side or "any") for side in wanted)
            raise InputError(
                f"{what} {canvas[0]} x {canvas[1]}; input {self.layout.name!r} takes {text}",
                f"resize it to that: resize='{_text_of(wanted)}' stretches, "
                f"resize='letterbox={_text_of(wanted)}' keeps its shape",
                option="resize",
                input=self.layout.name,
                numbers={"height_pixels": canvas[0], "width_pixels": canvas[1]},
                suggestions=[
                    Suggestion("resize", f"letterbox={_text_of(wanted)}"),
                    Suggestion("resize", _text_of(wanted)),
                ],
            )
        step = self.multiple
        if step is not None and any(side % step for side in canvas):
            raise InputError(
                f"{what} {canvas[0]} x {canvas[1]}; the model takes multiples of {step} pixels",
                f"round sizes to that: resize='multiple={step}'",
                option="resize",
                input=self.layout.name,
                numbers={
                    "height_pixels": canvas[0],
                    "width_pixels": canvas[1],
                    "multiple_pixels": step,
                },
                suggestions=[Suggestion("resize", f"multiple={step}")],
            )

    def _tensor(self, pixels: Pixels, placed: Placement) -> Array:
        """Return a resized picture on its canvas, as the tensor, channel by channel."""
        table = self._table()
        channels, (height, width) = CHANNELS[self.color], placed.canvas
        is_first = self.layout.is_channels_first
        shape = (channels, height, width) if is_first else (height, width, channels)
        tensor = np.empty(shape, table.dtype)
        by_channel = tensor if is_first else np.moveaxis(tensor, -1, 0)
        rows = _overlap(placed.top, placed.size[0], height)
        columns = _overlap(placed.left, placed.size[1], width)
        is_full = (rows[0], columns[0]) == (slice(0, height), slice(0, width))
        fill = self._fill(table)
        for number, channel in enumerate(by_channel):
            if not is_full:
                channel[...] = fill[number]
            own = pixels[..., channels - 1 - number if self.color == "BGR" else number]
            channel[rows[0], columns[0]] = table[:, number][own[rows[1], columns[1]]]
        return tensor

    def _fill(self, table: Array) -> Any:
        """Return the value of padding, for each channel."""
        fill = self.resize.fill if self.resize.how in ("letterbox", "height") else 0.0
        if fill is None:
            return np.zeros(table.shape[1], table.dtype)
        if float(fill).is_integer():
            return table[int(fill)]
        return self._normalised(np.full((1, table.shape[1]), fill, np.float32))[0]

    def _table(self) -> Array:
        """Return the value in the tensor of each pixel value and channel, shape (256, channels)."""
        channels = CHANNELS[self.color]
        values = np.repeat(np.arange(256)[:, None], channels, axis=1)
        if self.is_raw and self.layout.dtype != np.int8:
            return values.astype(self.layout.dtype)
        return self._normalised(values)

    def _normalised(self, values: Array) -> Array:
        found = values.astype(np.float32)
        divisor = round(1 / self.scale) if self.scale else 0
        if divisor > 1 and abs(divisor * self.scale - 1) < 1e-6:
            found = found / np.float32(divisor)  # as x / 255, which rounds better than a product
        else:
            found = found * np.float32(self.scale)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        found = (found - mean) / std
        if is_floating(self.layout.dtype):
            return found.astype(self.layout.dtype)
        whole = np.rint(found)
        limits = np.iinfo(self.layout.dtype)
        if whole.min() < limits.min or whole.max() > limits.max:
            raise InputError(
                f"pixel values come to {whole.min():g} to {whole.max():g}; input "
                f"{self.layout.name!r} takes {self.layout.dtype}, {limits.min} to {limits.max}",
                "choose scale= and mean= so that they fit",
                option="scale",
                input=self.layout.name,
                numbers={"lowest": float(whole.min()), "highest": float(whole.max())},
            )
        return whole.astype(self.layout.dtype)

    def describe(self) -> str:
        """Return the preparation in one line of words."""
        parts = [str(self.resize)]
        if self.crop is not None:
            parts.append(f"centre crop of {self.crop[0]} x {self.crop[1]}")
        if self.resize.how != "none":
            parts.append(self.interpolation)
        parts.append(self.color)
        if self.is_raw:
            parts.append("pixel values 0 to 255")
        else:
            divisor = 1 / self.scale if self.scale else 0
            text = f"/ {divisor:g}" if 0 < self.scale < 1 else f"x {self.scale:g}"
            parts.append(f"values {text}, mean {_numbers(self.mean)}, std {_numbers(self.std)}")
        order = "NCHW" if self.layout.is_channels_first else "NHWC"
        parts.append(f"{order[1:] if not self.layout.is_batch else order} {self.layout.dtype}")
        return "; ".join(parts)


def _crop_start(own: int, wanted: int, *, floors: bool) -> int:
    """Return the first row or column of a crop; negative where the picture is smaller.

    These are torchvision's: half of what is removed, rounded to even; half of what is added,
    rounded down.
    """
    if own < wanted:
        return -((wanted - own) // 2)
    return (own - wanted) // 2 if floors else round((own - wanted) / 2)


def _overlap(start: int, own: int, whole: int) -> tuple[slice, slice]:
    """Return the part of the canvas that a picture covers, and the part of the picture there."""
    first, last = max(start, 0), min(start + own, whole)
    return slice(first, last), slice(first - start, last - start)


def _text_of(size: tuple[int | None, int | None]) -> str:
    height, width = size
    return f"{width or height}x{height or width}"


def _numbers(values: tuple[float, ...]) -> str:
    shown = values[:1] if len(set(values)) == 1 else values
    return " ".join(f"{value:g}" for value in shown)
