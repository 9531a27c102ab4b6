"""Candidate batch axes of a model's inputs, before anything is proven."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel

Candidate = Mapping[str, int]
"""Input to the axis that may carry rows; every run gets the other inputs unchanged."""


def declared_rows(model: OnnxModel) -> Candidate | None:
    """Return the declared batch axes, {} for no rows; None if the caller declared nothing."""
    if model.rows == "none":
        return {}
    return None if model.rows is None or isinstance(model.rows, str) else dict(model.rows)


def open_first(model: OnnxModel) -> list[TensorSpec]:
    """Return the inputs whose axis 0 is open."""
    return [spec for spec in model.inputs if spec.shape and not isinstance(spec.shape[0], int)]


def first_size(spec: TensorSpec) -> int | None:
    """Return the fixed size of axis 0; None if it is open, or for a vector of one element."""
    size = spec.shape[0] if spec.shape else None
    return size if isinstance(size, int) and (size > 1 or len(spec.shape or ()) > 1) else None


def open_groups(model: OnnxModel, first: bool) -> list[dict[str, int]]:
    """Return the open input axes, grouped by symbol.

    Axes 0 without a name count as one symbol; any other axis without a name is its own group.

    Parameters
    ----------
    model : OnnxModel
    first : bool
        True to return the symbols that some axis 0 has; False for the others.

    Returns
    -------
    list of dict of input to axis
    """
    tensors = [spec for spec in model.inputs if spec.kind is None]
    leading = {
        (spec.shape[0] or "") if spec.shape else ""
        for spec in tensors
        if spec.shape is None or (spec.shape and not isinstance(spec.shape[0], int))
    }
    found: dict[object, dict[str, int]] = {}
    for spec in tensors:
        for axis, dim in enumerate((None,) if spec.shape is None else spec.shape):
            if isinstance(dim, int):
                continue
            symbol: object = dim or ("" if axis == 0 else (spec.name, axis))
            if (symbol in leading) == first:
                found.setdefault(symbol, {}).setdefault(spec.name, axis)
    return list(found.values())


def _by_size(group: dict[str, int], shapes: Mapping[str, tuple[Dim, ...]]) -> list[dict[str, int]]:
    """Return the axes of one symbol apart by their sizes, which exporters do not always keep equal.

    Axes of unknown size stay with the first.
    """
    parts: dict[int, dict[str, int]] = {}
    unknown: dict[str, int] = {}
    for name, axis in group.items():
        shape = shapes.get(name, ())
        size = shape[axis] if axis < len(shape) else None
        (parts.setdefault(size, {}) if isinstance(size, int) else unknown)[name] = axis
    if len(parts) <= 1:
        return [group]
    first, *others = parts.values()
    return [{**first, **unknown}, *others]


def first_axis_candidates(
    model: OnnxModel, shapes: Mapping[str, tuple[Dim, ...]] | None
) -> Iterator[dict[str, int]]:
    """Yield all open first axes together, if they can have the same size; then each symbol alone.

    Parameters
    ----------
    model : OnnxModel
    shapes : mapping of input to shape, optional
        Sizes that the caller gave, by which axes may turn out to be of different lengths.
    """
    groups = [
        part for group in open_groups(model, first=True) for part in _by_size(group, shapes or {})
    ]
    union: dict[str, int] = {}
    for group in groups:
        for name, axis in group.items():
            union.setdefault(name, axis)
    sizes = {
        shape[axis]
        for name, axis in union.items()
        if (shape := (shapes or {}).get(name)) is not None
        if axis < len(shape) and isinstance(shape[axis], int)
    }
    if len(groups) == 1 or (groups and len(sizes) <= 1):
        yield union
    if len(groups) > 1:
        yield from groups
    # Recurrent states may have an unnamed batch axis: (2, ?, 128) beside (?, 512).
    unnamed = {
        spec.name: spec.shape.index(None)
        for spec in model.inputs
        if spec.name not in union and spec.kind is None and spec.shape and None in spec.shape
    }
    if unnamed and groups:
        yield {**union, **unnamed}
