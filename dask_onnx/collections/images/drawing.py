"""Drawings of results: boxes, names and masks over pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from dask_onnx.collections.images.image_results import ImageResult
from dask_onnx.core.errors import InputError

_COLORS = (
    (230, 25, 75),
    (0, 130, 200),
    (60, 180, 75),
    (245, 130, 48),
    (145, 30, 180),
    (0, 128, 128),
    (240, 50, 230),
    (128, 128, 0),
)
"""Colours of classes, in turn."""
_TINT = 0.5
"""Share of the tint over a masked pixel."""
_LEAST_TEXT, _TEXT_SHARE = 12, 40
"""Height of letters in pixels, at least, and the picture's shorter side over it."""
_SHOWN = 0.5
"""Least score of a key point that is drawn."""
_CLOSE_TO_ONE = 1.001
"""Largest value of a map of shares, with its rounding error."""


def drawn(image: Any, result: ImageResult) -> Any:
    """Return a picture with its result drawn over it.

    Parameters
    ----------
    image : PIL.Image
        The upright picture, of any mode.
    result : ImageResult

    Returns
    -------
    PIL.Image
        Of mode RGB.
    """
    canvas = image.convert("RGB")
    if result.mask is not None:
        canvas = _tinted(canvas, result.mask)
    if result.masks is not None and result.boxes is not None:
        size, numbers = result.geometry.picture, result.boxes.labels % len(_COLORS) + 1
        tints = np.zeros(size, np.uint8)
        # The best objects are drawn last, over the others.
        for mask, number in reversed(list(zip(result.masks, numbers, strict=True))):
            tints[mask.full(size)] = number
        canvas = _tinted(canvas, tints)
    if result.boxes is not None:
        _draw_boxes(canvas, result)
    elif result.text is not None:
        _write(canvas, (2, 2), result.text, _COLORS[0])
    elif result.labels is not None and result.scores is not None:
        names = result.names or tuple(map(str, result.labels.tolist()))
        lines = [f"{name} {s:.2f}" for name, s in zip(names, result.scores, strict=True)]
        _write(canvas, (2, 2), "\n".join(lines), _COLORS[0])
    return canvas


def _tinted(canvas: Any, mask: Any) -> Any:
    from PIL import Image  # optional: only pictures need it

    pixels = np.asarray(canvas, np.float32)
    if mask.dtype.kind == "f":
        low, high = float(np.nanmin(mask)), float(np.nanmax(mask))
        is_share = low >= 0 and high <= _CLOSE_TO_ONE
        share = mask if is_share else (mask - low) / max(high - low, 1e-9)
        tint, weight = np.array(_COLORS[0], np.float32), np.nan_to_num(share)[..., None] * _TINT
    else:
        table = np.array([(0, 0, 0), *_COLORS], np.float32)
        number = mask.astype(np.int64)
        tint = table[np.where(number > 0, (number - 1) % len(_COLORS) + 1, 0)]
        weight = (number > 0)[..., None] * _TINT
    mixed = pixels * (1 - weight) + tint * weight
    return Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))


def _draw_boxes(canvas: Any, result: ImageResult) -> None:
    from PIL import ImageDraw  # optional: only pictures need it

    assert result.boxes is not None
    draw = ImageDraw.Draw(canvas)
    width = max(2, min(canvas.size) // 200)
    boxes = result.boxes
    # The best boxes are drawn last, over the others.
    for place in reversed(range(len(boxes))):
        x0, y0, x1, y1 = boxes.boxes[place].tolist()
        label = int(boxes.labels[place])
        color = _COLORS[label % len(_COLORS)]
        if result.corners is not None:
            around = [tuple(corner) for corner in result.corners[place].tolist()]
            draw.polygon(around, outline=color, width=width)
        else:
            draw.rectangle((x0, y0, max(x1, x0), max(y1, y0)), outline=color, width=width)
        if result.points is not None:
            _draw_points(draw, result.points[place], 2 * width, color)
        name = result.names[place] if result.names else str(label)
        _write(canvas, (x0, y0), f"{name} {boxes.scores[place]:.2f}", color)


def _draw_points(draw: Any, points: Any, radius: int, color: tuple[int, ...]) -> None:
    """Draw key points; those that are hidden, by a score below one half, are left out."""
    for x, y, *score in points.tolist():
        if not score or score[0] >= _SHOWN:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _write(canvas: Any, place: tuple[float, float], text: str, color: tuple[int, ...]) -> None:
    """Write text on a filled background, inside of the picture."""
    from PIL import ImageDraw, ImageFont  # optional: only pictures need it

    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(_LEAST_TEXT, min(canvas.size) // _TEXT_SHARE))
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
    x = min(max(place[0], 0), max(canvas.size[0] - right, 0))
    y = place[1] - bottom if place[1] >= bottom else max(place[1], 0)
    draw.rectangle((x + left, y + top, x + right, y + bottom), fill=color)
    draw.multiline_text((x, y), text, fill="white", font=font)


def png_of_mask(mask: Any) -> bytes:
    """Return a mask as PNG: class numbers as they are, shares from 0 to 1 as 0 to 255.

    Raises
    ------
    InputError
        Values are neither, so that PNG cannot hold them.
    """
    from PIL import Image  # optional: only pictures need it

    if mask.dtype.kind == "f":
        low, high = float(mask.min()), float(mask.max())
        if not (low >= 1 - _CLOSE_TO_ONE and high <= _CLOSE_TO_ONE):  # also true for NaN
            raise InputError(
                f"the mask has values from {low:g} to {high:g}, and PNG takes shares from 0 to 1",
                "write .npy or .zarr",
                option="path",
                numbers={"lowest": low, "highest": high},
            )
        pixels = np.rint(np.clip(mask, 0, 1) * 255).astype(np.uint8)
    else:
        most = int(mask.max(initial=0))
        if int(mask.min(initial=0)) < 0 or most > np.iinfo(np.uint16).max:
            raise InputError(
                f"the mask has class numbers up to {most}, and PNG takes 0 to 65535",
                "write .npy or .zarr",
                option="path",
                numbers={"highest": most},
            )
        pixels = mask.astype(np.uint8 if most <= 255 else np.uint16)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def png_of(image: Any) -> bytes:
    """Return a picture as PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
