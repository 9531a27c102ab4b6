"""How wide text is, and text that fits: without a font at hand."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_EM = 0.6
"""Width of a character over the size of its font, at most but for the odd capital."""
_SHORT = 9
"""Characters of a name that still tell something."""


def text_width(text: str, size: float) -> float:
    """About how many pixels a text takes; East Asian characters are twice as wide."""
    ems = sum(1.0 if unicodedata.east_asian_width(c) in "WF" else _EM for c in text)
    return ems * size


def shorten(text: str, room: float, size: float) -> str:
    """What of its beginning fits into so many pixels."""
    if text_width(text, size) <= room:
        return text
    while text and text_width(f"{text}…", size) > room:
        text = text[:-1]
    return f"{text}…"


def as_many(parts: Sequence[str], room: float, size: float) -> str:
    """The first of the parts, as many as fit, but one at least."""
    for count in range(len(parts), 1, -1):
        text = ", ".join(parts[:count])
        if text_width(text, size) <= room:
            return text
    return parts[0]


def shorten_label(label: str, room: float, size: float) -> str:
    """The ends of the first and of the last node's name, which tell most; where there is little
    room, of the last alone."""
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
