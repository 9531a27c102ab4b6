"""Estimates of the width of text, and shortening to a width, without reading a font."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_EM = 0.6
"""Width of a character divided by the font size: an upper bound but for a few capitals."""
_SHORT = 9
"""Characters of a name below which its rest is not recognisable."""
_PARTS = re.compile(r"[^._/@+]*[._/@+]+|[^._/@+]+$")
"""Components of a name, each with the separators behind it."""
_PLACE = re.compile(r"@[^+@]*?(?=\.\.|\+|$)")
"""Place of a node in its model, which stands behind the node's name in a label: "Conv@body"."""


def text_width(text: str, size: float) -> float:
    """Return the estimated width of a text in pixels.

    Characters that Unicode classes as wide (East Asian) take a whole em.

    Parameters
    ----------
    text : str
    size : float
        Font size in pixels.
    """
    ems = sum(1.0 if unicodedata.east_asian_width(c) in "WF" else _EM for c in text)
    return ems * size


def shorten(text: str, room: float, size: float) -> str:
    """Return the start of a text that fits into `room` pixels, with an ellipsis if it is cut."""
    if text_width(text, size) <= room:
        return text
    while text and text_width(f"{text}…", size) > room:
        text = text[:-1]
    return f"{text}…"


def as_many(parts: Sequence[str], room: float, size: float) -> str:
    """Join as many of the first parts as fit into `room` pixels, at least one."""
    for count in range(len(parts), 1, -1):
        text = ", ".join(parts[:count])
        if text_width(text, size) <= room:
            return text
    return parts[0]


def shorten_label(label: str, room: float, size: float) -> str:
    """Shorten a stage's label, which is a node's name or two of them joined by "..".

    The place of a node in the model, behind an "@", is left out first; then the middle of
    each name, whole components of it where possible: names of one model begin alike, and differ
    most at their ends. Where there is little room, only the end of the last name is kept.
    """
    if text_width(label, size) <= room:
        return label
    label = _PLACE.sub("", label)
    if text_width(label, size) <= room:
        return label
    first, separator, last = label.partition("..")
    half = (room - text_width("..", size)) / 2
    if not separator or half < _SHORT * size * _EM:
        return shorten_middle(last or label, room, size)
    first = shorten_middle(first, half, size)
    rest = room - text_width(f"{first}..", size)
    return f"{first}..{shorten_middle(last, rest, size)}"


def shorten_middle(name: str, room: float, size: float) -> str:
    """Return a name without its middle, so that it fits into `room` pixels.

    Components, which end at a dot, a slash or an underscore, are left out whole, as long as the
    first and the last one fit.
    """
    if text_width(name, size) <= room:
        return name
    parts = _PARTS.findall(name)
    front, back = 1, 1
    while front + back < len(parts):
        is_wider = [
            text_width(_without_middle(parts, *counts), size) <= room
            for counts in ((front, back + 1), (front + 1, back))
        ]
        if is_wider[0] and back <= front + 1:
            back += 1
        elif is_wider[1]:
            front += 1
        elif is_wider[0]:
            back += 1
        else:
            break
    found = _without_middle(parts, front, back)
    if len(parts) > 2 and text_width(found, size) <= room:
        return found
    return _cut_middle(name, room, size)


def _without_middle(parts: Sequence[str], front: int, back: int) -> str:
    return "".join(parts[:front]) + "…" + "".join(parts[len(parts) - back :])


def _cut_middle(name: str, room: float, size: float) -> str:
    """Return the first third and the last two thirds of what fits."""
    count = len(name)
    while count:
        front = count // 3
        found = f"{name[:front]}…{name[len(name) - (count - front) :]}"
        if text_width(found, size) <= room:
            return found
        count -= 1
    return "…"
