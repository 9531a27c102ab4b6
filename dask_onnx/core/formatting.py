"""Text of numbers: bytes, FLOPs, seconds, shapes and counts."""

from __future__ import annotations

from collections.abc import Mapping

from dask.utils import parse_bytes

__all__ = [
    "format_bytes",
    "format_count",
    "format_flops",
    "format_seconds",
    "format_shapes",
    "parse_bytes",
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


def format_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return shapes by name, such as ``x=1x3x224x224, scale=scalar``."""
    return ", ".join(f"{name}={'x'.join(map(str, s)) or 'scalar'}" for name, s in shapes.items())


def format_count(count: int, noun: str, plural: str = "s") -> str:
    """Return a count with its noun, such as ``1 row`` or ``1,024 rows``.

    Parameters
    ----------
    plural : str
        Ending of the noun's plural.
    """
    return f"{count:,} {noun}{'' if count == 1 else plural}"
