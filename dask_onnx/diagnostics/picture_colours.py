"""Colours of worker groups, and mixtures of colours."""

from __future__ import annotations

_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#999999",
)
"""Palette of Okabe and Ito (2008), which readers with colour vision deficiency can tell apart."""


def colour(worker_group: int) -> str:
    """Return the colour of a worker group, as ``#rrggbb``."""
    return _COLOURS[worker_group % len(_COLOURS)]


def tint(worker_group: int) -> str:
    """Return a light shade of the worker group's colour, on which black text can be read."""
    return mix("#ffffff", colour(worker_group), 0.45)


def mix(light: str, heavy: str, share: float) -> str:
    """Return a colour between two, all as ``#rrggbb``: `share` 0 is the first, 1 the second."""
    channels = [
        round(int(light[i : i + 2], 16) * (1 - share) + int(heavy[i : i + 2], 16) * share)
        for i in (1, 3, 5)
    ]
    return "#" + "".join(f"{channel:02x}" for channel in channels)
