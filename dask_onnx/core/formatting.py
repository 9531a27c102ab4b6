"""Text of numbers (bytes, FLOPs, seconds, shapes, counts), and names without control characters.

Names come out of models that somebody else made, and may hold escape sequences of terminals, marks
that reverse the direction of text, or line breaks. `printable` is what every text passes on its way
to a terminal, a page, a picture, a log or an exception.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from dask.utils import parse_bytes

__all__ = [
    "format_bytes",
    "format_count",
    "format_flops",
    "format_seconds",
    "format_shapes",
    "parse_bytes",
    "printable",
    "printable_lines",
]


def format_bytes(size: float) -> str:
    """Return bytes in binary units, such as ``1.5 MiB``; below 1 KiB without decimals."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def format_flops(flops: float) -> str:
    """Return floating-point operations in decimal units, such as ``4.1 GFLOP``."""
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"):
        if flops < 1000 or unit == "TFLOP":
            return f"{flops:.0f} {unit}" if unit == "FLOP" else f"{flops:.1f} {unit}"
        flops /= 1000
    raise AssertionError("unreachable")


def format_seconds(seconds: float) -> str:
    """Return a duration, such as ``250 us``, ``1.5 ms`` or ``2.00 s``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def printable(text: str) -> str:
    """Return a text on one line, with an escape in the place of each character that has no glyph.

    Parameters
    ----------
    text : str
        A name from a model or a file, or a sentence with such names in it.

    Returns
    -------
    str
        The text itself where `str.isprintable` holds. Otherwise control characters, marks of
        direction, characters of no width, separators of lines and lone surrogates are written as in
        Python's own literals, by which an escape (27) becomes the four characters of its literal.

    Examples
    --------
    >>> printable("conv" + chr(27) + "[2J") == "conv" + repr(chr(27))[1:-1] + "[2J"
    True
    """
    if text.isprintable():
        return str(text)
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def printable_lines(text: str) -> str:
    """Return a text of several lines, each as `printable` returns it.

    Parameters
    ----------
    text : str
        Lines that are separated by line feeds; other separators are escaped.
    """
    return "\n".join(map(printable, text.split("\n")))


def _escape(character: str) -> str:
    """Return a character as Python's `repr` writes it; spaces of any width as a space."""
    if unicodedata.category(character) == "Zs":
        return " "
    return repr(character)[1:-1]


def format_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return shapes by name, such as ``x=1x3x224x224, scale=scalar``."""
    texts = {name: "x".join(map(str, shape)) or "scalar" for name, shape in shapes.items()}
    return ", ".join(f"{printable(name)}={text}" for name, text in texts.items())


def format_count(count: int, noun: str, plural: str = "s") -> str:
    """Return a count with its noun, such as ``1 row`` or ``1,024 rows``.

    Parameters
    ----------
    plural : str
        Ending of the noun's plural.
    """
    return f"{count:,} {noun}{'' if count == 1 else plural}"
