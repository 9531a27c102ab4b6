"""Shapes of inputs apart from their rows: comparison, size of a row, sizes for the axis algebra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dask_onnx.core.specs import Dim

_SEVERAL = 7
"""Assumed number of positions on an axis that is cut, where it would be 1."""


def without_rows(
    shapes: Mapping[str, tuple[Dim, ...]], row_axes: Mapping[str, int | None]
) -> tuple[object, ...]:
    """Return a key that is equal for input shapes that differ in their number of rows only.

    Inputs with different numbers of rows have the complete shapes in their key.

    Parameters
    ----------
    shapes : mapping of str to tuple of int, str or None
        Shapes by input name.
    row_axes : mapping of str to int or None
        Axis of each input that likely carries rows.
    """
    row_counts = {
        shape[axis]
        for name, shape in shapes.items()
        if (axis := row_axes.get(name)) is not None and axis < len(shape)
    }
    others = tuple(
        (name, tuple(None if i == row_axes.get(name) else dim for i, dim in enumerate(shape)))
        for name, shape in shapes.items()
    )
    have_equal_rows = len(row_counts - {None}) <= 1
    return others if have_equal_rows else (others, tuple(shapes.items()))


def row_scale(
    shapes: Mapping[str, tuple[Dim, ...]],
    planned: Mapping[str, tuple[int, ...]],
    row_axes: Mapping[str, int | None],
) -> float:
    """Return the elements of a row as a multiple of those of a planned row, at least 1.

    Parameters
    ----------
    shapes : mapping of str to tuple of int, str or None
        Shapes by input name. Inputs with an unknown size on an axis other than 0 are left out.
    planned : mapping of str to tuple of int
        Shapes that the plan was made for.
    row_axes : mapping of str to int or None
        Axis of each input that carries rows.
    """

    def elements_per_row(of: Mapping[str, Sequence[Dim]]) -> int:
        return sum(
            math.prod(
                size
                for axis, size in enumerate(of[name])
                if isinstance(size, int) and axis != row_axes.get(name)
            )
            for name in shapes
            if name in of and None not in shapes[name][1:]
        )

    expected = elements_per_row(planned)
    return max(elements_per_row(shapes) / expected, 1.0) if expected else 1.0


def with_several_positions(
    shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Return shapes in which given axes have several positions where they had one.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Shapes by input name.
    axes : mapping of str to int
        Axis of inputs by name.
    """
    return {
        name: tuple(
            _SEVERAL if size == 1 and axis == axes.get(name) else size
            for axis, size in enumerate(shape)
        )
        for name, shape in shapes.items()
    }
