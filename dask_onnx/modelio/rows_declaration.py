"""The caller's statement about the axes that carry rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec

RowsDeclaration = Literal["independent", "none"] | Mapping[str, int] | None
"""The caller's statement about rows, as `OnnxModel.rows`."""


def rows_of_inputs(rows: RowsDeclaration, inputs: Sequence[TensorSpec]) -> RowsDeclaration:
    """Return a declaration of rows restricted to some inputs."""
    if isinstance(rows, str | None):
        return rows
    names = {spec.name for spec in inputs}
    return {name: axis for name, axis in rows.items() if name in names}


def check_rows(rows: RowsDeclaration, inputs: Sequence[TensorSpec]) -> None:
    """Check a declaration of rows against the model's inputs.

    Raises
    ------
    InputError
        Neither "independent" nor "none", or an input or axis that the model does not have.
    """
    if rows is None or rows in ("independent", "none"):
        return
    if not isinstance(rows, Mapping) or not rows:
        raise InputError(
            f"rows is {rows!r}",
            'pass "independent", "none", or a mapping such as {"x": 0}',
            option="rows",
        )
    specs = {spec.name: spec for spec in inputs}
    for name, axis in rows.items():
        if name not in specs:
            raise InputError(
                f"rows names input {name!r}, which the model does not have",
                f"use one of its inputs: {', '.join(map(repr, specs))}",
                option="rows",
                input=name,
            )
        rank = specs[name].rank
        if isinstance(axis, bool) or not isinstance(axis, int) or axis < 0:
            raise InputError(
                f"rows[{name!r}] is {axis!r}, not an axis",
                "pass an axis number, counted from 0",
                option="rows",
                input=name,
            )
        if rank is not None and axis >= rank:
            raise InputError(
                f"rows[{name!r}] is {axis}; input {name!r} has {rank} axes, {specs[name]}",
                f"pass an axis from 0 to {rank - 1}",
                option="rows",
                input=name,
                axis=axis,
                numbers={"rank": rank},
            )
