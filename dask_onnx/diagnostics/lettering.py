"""Estimates of the width of text, and shortening to a width, without reading a font."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_EM = 0.6
"""Width of a character divided by the font size: an upper bound but for a few capitals."""
_SHORT = 9
"""Characters of a name below which its rest is not recognisable."""


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

    The ends of both names are kept, since they differ most between stages; where there is little
    room, only the end of the last name.
    """
    if text_width(label, size) <= room:
        return label
    first, separator, last = label.partition("..")
    half = (room - text_width("..", size)) / 2
    if not separator or half < _SHORT * size * _EM:
        return _end(label, room, size)
    first = _end(first, half, size)
    rest = room - text_width(f"{first}..", size)
    if text_width(last, size) <= rest:
        return f"{first}..{last}"
    return first + _end(last, room - text_width(first, size), size)


def _end(name: str, room: float, size: float) -> str:
    return name if text_width(name, size) <= room else f"…{shorten(name[::-1], room, size)[-2::-1]}"
