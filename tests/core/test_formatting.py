"""Text of numbers."""

from __future__ import annotations

import pytest

from dask_onnx.core.formatting import (
    format_bytes,
    format_count,
    format_flops,
    format_seconds,
    format_shapes,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(1023), "1023 B"),
        (format_bytes(1536), "1.5 KiB"),
        (format_bytes(5000 * 2**30), "5000.0 GiB"),
        (format_flops(999), "999 FLOP"),
        (format_flops(4.1e9), "4.1 GFLOP"),
        (format_seconds(0.00025), "250 us"),
        (format_seconds(0.0015), "1.5 ms"),
        (format_seconds(2), "2.00 s"),
        (format_shapes({"x": (1, 3, 224), "s": ()}), "x=1x3x224, s=scalar"),
        (format_count(1, "row"), "1 row"),
        (format_count(1024, "batch", "es"), "1,024 batches"),
    ],
)
def test_numbers_have_units(text, expected):
    assert text == expected
