"""Numbers as text: bytes, FLOPs, seconds, shapes and counts."""

from __future__ import annotations

from collections.abc import Mapping

from dask.utils import parse_bytes

__all__ = [
    "as_number",
    "format_bytes",
    "format_flops",
    "format_seconds",
    "format_shapes",
    "parse_bytes",
]


def format_bytes(size: float) -> str:
    """``1.5 MiB``; bytes below 1 KiB as they are."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def format_flops(flops: float) -> str:
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"):
        if flops < 1000 or unit == "TFLOP":
            return f"{flops:.0f} {unit}" if unit == "FLOP" else f"{flops:.1f} {unit}"
        flops /= 1000
    raise AssertionError("unreachable")


def format_seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def format_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name}={'x'.join(map(str, s)) or 'scalar'}" for name, s in shapes.items())


def as_number(count: int, noun: str, plural: str = "s") -> str:
    return f"{count:,} {noun}{'' if count == 1 else plural}"
