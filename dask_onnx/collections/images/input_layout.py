"""Layout of a model's input that takes images: axes, channels, size and dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, slots=True)
class InputLayout:
    """Layout of the model's input that takes images."""

    name: str
    """Name of the input."""
    dtype: np.dtype[Any]
    is_batch: bool
    """True if the first axis is the batch axis; otherwise the input is one image."""
    is_channels_first: bool
    """True if channels are before height and width, rather than behind them."""
    channels: int | None
    """Number of channels; None if the model leaves it open."""
    height: int | None
    """Pixels; None if the model leaves it open."""
    width: int | None
    """Pixels; None if the model leaves it open."""

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of one image, without the batch axis."""
        sides = (self.height, self.width)
        return (self.channels, *sides) if self.is_channels_first else (*sides, self.channels)

    def takes(self, shape: Sequence[int]) -> bool:
        """Return whether an image of some shape, without the batch axis, fits."""
        return len(shape) == 3 and all(
            dim in (None, size) for dim, size in zip(self.shape, shape, strict=True)
        )

    @property
    def row_axes(self) -> tuple[int, int]:
        """Axes of height and width, counted from the last."""
        return (-2, -1) if self.is_channels_first else (-3, -2)


def input_layout(spec: TensorSpec, *, is_channels_first: bool | None = None) -> InputLayout:
    """Return the layout of an input that takes images, from its declared shape.

    Parameters
    ----------
    spec : TensorSpec
    is_channels_first : bool, optional
        True if the channels are the first axis of an image, rather than the last. By default the
        one of the two whose size is declared, or the smaller one.

    Raises
    ------
    InputError
        The input does not have three axes, or four with the batch axis.
    """
    if spec.dtype is None or spec.shape is None or len(spec.shape) not in (3, 4):
        raise InputError(
            f"input {spec} does not take images: these have 3 axes, or 4 with the batch axis",
            "pass the model's other inputs as feeds=, or declare the input's shape in the model",
            option="feeds",
            input=spec.name,
        )
    dims = [dim if isinstance(dim, int) else None for dim in spec.shape[-3:]]
    first, last = (math.inf if dim is None else dim for dim in (dims[0], dims[2]))
    is_first = first <= last if is_channels_first is None else is_channels_first
    channels, height, width = dims if is_first else (dims[2], dims[0], dims[1])
    return InputLayout(
        spec.name, spec.dtype, len(spec.shape) == 4, is_first, channels, height, width
    )
