"""Sizes to which pictures are brought: rules, their text forms, and the placement of a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dask_onnx.collections.images.input_layout import Size
from dask_onnx.core.errors import InputError, Suggestion

How = Literal["none", "stretch", "shorter", "longer", "letterbox", "multiple", "height"]
"""Rule by which a picture is resized."""

GREY = 114.0
"""Pixel value around a letterboxed picture, as YOLO's authors chose it."""
MOST_SIDE = 1 << 16
"""Largest side of a resized picture, in pixels; a mistyped size would take all memory."""
_FORMS = (
    "none, 640, 640x480 (width x height), shorter=256, longer=1024, letterbox=640, multiple=32 or "
    "height=48"
)
_OPTIONS = {
    "shorter": {"max"},
    "longer": set[str](),
    "letterbox": {"fill"},
    "multiple": {"min", "max"},
    "height": {"width", "min"},
    "stretch": set[str](),
}
"""Rule to the further options of its text form."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Size of a resized picture, and its place in the tensor."""

    size: Size
    """Height and width to which the picture is resized."""
    canvas: Size
    """Height and width of the tensor."""
    top: int = 0
    """Rows of the tensor above the picture; negative where the picture is cropped."""
    left: int = 0
    """Columns of the tensor left of the picture; negative where the picture is cropped."""


@dataclass(frozen=True, slots=True)
class Resize:
    """A rule that brings pictures to sizes that a model takes.

    Attributes
    ----------
    how : str
        - "none": the picture's own size.
        - "stretch": `height` x `width`, whatever the shape of the picture.
        - "shorter": the shorter side becomes `height`, as torchvision's ``Resize(256)``; the longer
          one at most `longest`.
        - "longer": the longer side becomes `height`.
        - "letterbox": as large as fits into `height` x `width`, centred, with `fill` around it.
        - "multiple": both sides to the nearest multiple of `multiple`, after the picture has been
          shrunk to `longest` or enlarged to `shortest`, as in PaddleOCR.
        - "height": `height` pixels high, and as wide as that makes it, up to `width`; padded on the
          right up to `width`, or at least `shortest`, as in PaddleOCR's recognition.
    height, width : int, optional
        Pixels.
    multiple : int
        Pixels of which both sides become multiples.
    longest, shortest : int, optional
        Limits in pixels.
    fill : float, optional
        Pixel value of padding, 0 to 255; None for zeros in the tensor, after normalisation.
    """

    how: How
    height: int | None = None
    """Pixels; the side for "shorter" and "longer"."""
    width: int | None = None
    """Pixels."""
    multiple: int = 1
    """Pixels of which both sides become multiples, for "multiple"."""
    longest: int | None = None
    """Largest longer side in pixels, for "shorter" and "multiple"."""
    shortest: int | None = None
    """Smallest shorter side in pixels, for "multiple"; smallest width for "height"."""
    fill: float | None = GREY
    """Pixel value of padding, 0 to 255; None for zeros in the tensor, after normalisation."""

    def place(self, size: Size) -> Placement:
        """Return the size of a resized picture, and its place in the tensor.

        Parameters
        ----------
        size : (int, int)
            Height and width of the picture.
        """
        if self.how == "letterbox":
            return self._letterbox(size)
        if self.how == "height":
            return self._by_height(size)
        found = size
        if self.how == "stretch":
            found = (self.height or size[0], self.width or size[1])
        elif self.how == "shorter":
            found = self._by_shorter(size)
        elif self.how == "longer":
            factor = (self.height or max(size)) / max(size)
            found = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
        elif self.how == "multiple":
            found = self._to_multiple(size)
        return Placement(found, found)

    def _letterbox(self, size: Size) -> Placement:
        """Place as ultralytics' LetterBox does, with its rounding."""
        height, width = self.height or size[0], self.width or size[1]
        factor = min(height / size[0], width / size[1])
        inner = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
        top = round((height - inner[0]) / 2 - 0.1)
        left = round((width - inner[1]) / 2 - 0.1)
        return Placement(inner, (height, width), top, left)

    def _by_shorter(self, size: Size) -> Size:
        """Resize as torchvision does; with a limit as DETR's processor does."""
        side, short, long = self.height or min(size), min(size), max(size)
        exact = float(side)
        if self.longest is not None and long / short * side > self.longest:
            exact = self.longest * short / long
            side = max(1, round(exact))
        other = max(1, int(exact * long / short))
        return (side, other) if size[0] <= size[1] else (other, side)

    def _to_multiple(self, size: Size) -> Size:
        """Resize as PaddleOCR's DetResizeForTest does."""
        factor = 1.0
        if self.longest is not None and max(size) > self.longest:
            factor = self.longest / max(size)
        elif self.shortest is not None and min(size) < self.shortest:
            factor = self.shortest / min(size)
        step = self.multiple
        height, width = (max(round(int(side * factor) / step) * step, step) for side in size)
        return height, width

    def _by_height(self, size: Size) -> Placement:
        height = self.height or size[0]
        ratio = size[1] / size[0]
        canvas = self.width or max(self.shortest or 1, int(height * ratio), 1)
        inner = max(1, min(math.ceil(height * ratio), canvas))
        return Placement((height, inner), (height, canvas))

    def __str__(self) -> str:
        """Return the rule in words, such as "letterboxed to 640 x 640 (height x width)"."""
        pixels = f"{self.height} x {self.width}"
        limits = "".join(
            f", {name} {value}"
            for name, value in (("at most", self.longest), ("at least", self.shortest))
            if value is not None
        )
        return {
            "none": "not resized",
            "stretch": f"stretched to {pixels} (height x width)",
            "shorter": f"resized to a shorter side of {self.height}{limits}",
            "longer": f"resized to a longer side of {self.height}",
            "letterbox": f"letterboxed to {pixels} (height x width)",
            "multiple": f"resized to multiples of {self.multiple}{limits}",
            "height": f"resized to a height of {self.height}"
            + (f", padded to a width of {self.width}" if self.width else limits),
        }[self.how]


def parse_resize(given: Any) -> Resize:
    """Return the rule that a caller describes.

    Parameters
    ----------
    given : Resize, int, (int, int), or str
        An int is both sides, a pair is (height, width), to which pictures are stretched. A text is
        ``none``, ``640``, ``640x480`` (width x height, as picture sizes are written),
        ``shorter=256``, ``shorter=800,max=1333``, ``longer=1024``, ``letterbox=640``,
        ``letterbox=640x480,fill=0``, ``multiple=32``, ``multiple=32,max=960`` or
        ``height=48,width=192``.

    Raises
    ------
    InputError
        None of these, or a size that is not positive.
    """
    if isinstance(given, Resize):
        return given
    if isinstance(given, str):
        return _of_text(given)
    height, width = parse_size(given, "resize")
    return Resize("stretch", height, width)


def parse_size(given: Any, option: str) -> Size:
    """Return height and width in pixels.

    Parameters
    ----------
    given : int, (int, int), or str
        A text is ``640`` or ``640x480`` (width x height); a pair is (height, width).
    option : str
        Name of the option, for errors.

    Raises
    ------
    InputError
        None of these, or a size that is not positive.
    """
    sides: Sequence[Any] = ()
    if isinstance(given, str):
        found = re.fullmatch(r"\s*(\d+)\s*(?:[xX]\s*(\d+)\s*)?", given)
        sides = () if found is None else (int(found[2] or found[1]), int(found[1]))
    elif isinstance(given, Sequence):
        sides = given
    else:
        sides = (given, given)
    whole = [int(side) for side in sides if is_side(side)]
    if len(sides) != 2 or len(whole) != 2:
        raise InputError(
            f"{option} is {given!r}, which is no size from 1 to {MOST_SIDE} pixels",
            "give 640, (480, 640) as height and width, or '640x480' as width and height",
            option=option,
            numbers={"most_pixels": MOST_SIDE},
        )
    return whole[0], whole[1]


def is_side(side: Any) -> bool:
    """Return whether a value is a number of pixels that a side of a picture may have."""
    is_whole = not isinstance(side, bool) and hasattr(side, "__index__")
    return is_whole and 1 <= int(side) <= MOST_SIDE


def _of_text(text: str) -> Resize:
    if text.strip() == "none":
        return Resize("none")
    head, *others = (part.strip() for part in text.split(","))
    how, equals, value = head.partition("=")
    if not equals:
        if others:
            raise _malformed(text)
        height, width = parse_size(head, "resize")
        return Resize("stretch", height, width)
    if how not in _OPTIONS:
        raise _malformed(text)
    pairs = [other.partition("=") for other in others]
    named = {name.strip(): value.strip() for name, _, value in pairs}
    if set(named) - _OPTIONS[how] or len(named) < len(others):
        raise _malformed(text)
    fill = _fill_of(named.pop("fill", None), text)
    limits = {name: parse_size(value, "resize")[0] for name, value in named.items()}
    height, width = parse_size(value, "resize")
    if how not in ("stretch", "letterbox") and height != width:
        raise _malformed(text)
    return _made(how, (height, width), limits, fill)


def _made(how: str, size: Size, limits: dict[str, int], fill: float) -> Resize:
    height, width = size
    longest, shortest = limits.get("max"), limits.get("min")
    if how == "multiple":
        return Resize("multiple", multiple=height, longest=longest, shortest=shortest)
    if how == "height":
        return Resize("height", height, limits.get("width"), shortest=shortest or 1, fill=None)
    if how == "letterbox":
        return Resize("letterbox", height, width, fill=fill)
    if how == "stretch":
        return Resize("stretch", height, width)
    return Resize("shorter" if how == "shorter" else "longer", height, longest=longest)


def _fill_of(text: str | None, whole: str) -> float:
    if text is None:
        return GREY
    try:
        value = float(text)
    except ValueError:
        raise _malformed(whole) from None
    if not 0 <= value <= 255:
        raise _malformed(whole)
    return value


def _malformed(text: str) -> InputError:
    return InputError(
        f"resize is {text!r}, which is no rule for a size",
        f"give {_FORMS}",
        option="resize",
        suggestions=[Suggestion("resize", each) for each in ("letterbox=640", "shorter=256")],
    )
