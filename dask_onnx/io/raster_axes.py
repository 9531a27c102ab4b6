"""Names and order of a raster's axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dask_onnx.core.errors import InputError

_AXIS_NAMES = {"S": "band", "C": "channel", "T": "time", "X": "x", "Y": "y", "Z": "z"}
"""Names of tifffile's axis letters; other letters are pages."""
_DIMS = {2: ("y", "x"), 3: ("band", "y", "x")}
"""Default names of the axes, by their number."""


def to_channels_first(array: Any, dims: Sequence[str]) -> Any:
    """Return the array with axes (..., band, y, x).

    Parameters
    ----------
    array : numpy.ndarray or dask.array.Array
    dims : sequence of str
        Names of its axes, with "y" and "x". Without "band", an axis of one band is added.

    Returns
    -------
    numpy.ndarray or dask.array.Array
        Other axes come first, in their order.

    Raises
    ------
    InputError
        The names do not fit the array.
    """
    names = checked_dims(array.shape, dims, "the array")
    if "band" not in names:
        array, names = array[..., None], (*names, "band")
    last = ("band", "y", "x")
    order = [names.index(name) for name in names if name not in last]
    return array.transpose(*order, *(names.index(name) for name in last))


def checked_dims(shape: tuple[int, ...], dims: Sequence[str] | None, what: str) -> tuple[str, ...]:
    """Return the names of an array's axes, by default ("y", "x") or ("band", "y", "x").

    Parameters
    ----------
    what : str
        Description of the array, for errors.

    Raises
    ------
    InputError
        Not one name for each axis, a repeated name, or no "y" or "x".
    """
    names = tuple(dims) if dims is not None else _DIMS.get(len(shape))
    if names is None or len(names) != len(shape) or len({"y", "x", *names}) != len(names):
        raise InputError(
            f"{what} has shape {shape}, and the names of its axes are {names}",
            "pass dims= with a name for each axis, including 'y' and 'x'",
            option="dims",
            numbers={"axes": len(shape)},
        )
    return names


def dims_of_letters(letters: str) -> tuple[str, ...]:
    """Return a name for each of tifffile's axis letters; repeated names end in ``_1``, ``_2``..."""
    names = [_AXIS_NAMES.get(letter, "page") for letter in letters]
    repeats = [names[:i].count(name) for i, name in enumerate(names)]
    return tuple(
        f"{name}_{count}" if count else name for name, count in zip(names, repeats, strict=True)
    )
