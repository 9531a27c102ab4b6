"""Layout of a prediction for a table: columns that go into a model, and columns that come out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dask_onnx.analysis.batch_facts import BatchFacts
from dask_onnx.analysis.labels import class_labels
from dask_onnx.collections.bad_rows import ERROR
from dask_onnx.collections.column_values import to_arrays
from dask_onnx.collections.columns import ColumnInput, resolve_columns
from dask_onnx.collections.frames import OutputColumns, empty_frame, output_columns
from dask_onnx.collections.kinds import Placeholder, with_rows_first, with_rows_in_place
from dask_onnx.collections.output_forms import labelled_values
from dask_onnx.collections.ragged import check_lengths
from dask_onnx.collections.row_checks import check_rows_feed, unproven
from dask_onnx.collections.run_options import RowOptions, TableOptions
from dask_onnx.collections.text.text_columns import check_kept
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import Dim
from dask_onnx.facts.model_facts import ModelFacts

_LENGTHS = (13, 29)
"""Two unusual list lengths: an output axis that has both, in turn, is as long as its input."""


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Columns that go into a model, and columns that come out."""

    inputs: tuple[ColumnInput, ...]
    """Inputs, and the columns that feed them."""
    outputs: tuple[OutputColumns, ...]
    """Outputs, and the columns that they become."""
    kept: tuple[Any, ...]
    """Labels of the caller's columns that the result keeps, before those of the model."""
    rows: RowOptions
    """Treatment of bad rows."""
    length_buckets: tuple[int, ...] = ()
    """Lengths that lists are padded to, ascending; empty if all lists have one length."""
    is_independent: bool = True
    """False if rows are not proven to be independent, so that those of a partition run together."""

    @property
    def used(self) -> list[Any]:
        """Columns that the model reads."""
        return list(dict.fromkeys(name for target in self.inputs for name in target.columns))

    @property
    def values(self) -> list[str]:
        """Values of the graph that the outputs need."""
        return list(dict.fromkeys(output.value for output in self.outputs))

    @property
    def is_ragged(self) -> bool:
        """True if lists may differ in length."""
        return any(target.is_ragged for target in self.inputs)

    def meta(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the result for a table of these columns, without rows."""
        return self.join(table.iloc[:0], empty_frame(self.outputs, table.index))

    def join(self, table: pd.DataFrame, result: pd.DataFrame) -> pd.DataFrame:
        """Return the kept columns of a table and the columns of its result.

        Raises
        ------
        InputError
            A column of both has the same name.
        """
        if not self.kept:
            return result
        shared = [name for name in result.columns if name in self.kept]
        if shared:
            raise InputError(
                f"append keeps the table's column {shared[0]!r}, and the model makes one too",
                "rename it, or choose outputs by other names",
                option="append",
                column=str(shared[0]),
            )
        return pd.concat([self.kept_columns(table), result], axis=1)

    def kept_columns(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the columns of a table that the result keeps."""
        return table if self.kept == tuple(table.columns) else table[list(self.kept)]

    def arrays(self, table: pd.DataFrame) -> dict[str, Any]:
        """Return the model's inputs from a table.

        Raises
        ------
        RowsError
            Some rows do not fit the model, or hold text that no file can hold.
        """
        found = to_arrays(table, self.inputs, require_finite=self.rows.require_finite)
        check_lengths(found, self.length_buckets)
        if self.kept:
            check_kept(self.kept_columns(table), _text_columns(self.inputs))
        return found


def plan_layout(
    facts: ModelFacts,
    meta: pd.DataFrame,
    wanted: Sequence[str],
    options: TableOptions,
    rows: RowOptions,
) -> FrameLayout:
    """Return the columns that go in and that come out, from the table's columns and dtypes.

    Raises
    ------
    InputError
        The columns do not fit the model, or an output cannot become columns.
    """
    if rows.on_error == "split" and ERROR in meta.columns:
        raise InputError(
            f"the table has a column {ERROR!r}, the name of the column of errors of bad rows",
            "rename that column",
            column=ERROR,
        )
    values = labelled_values(facts, wanted)
    names = tuple(dict.fromkeys(values.values()))
    axes, _ = facts.input_axes
    needed = [with_rows_first(spec, axes[spec.name]) for spec in facts.inputs_of(names)]
    buckets = tuple(options.length_buckets or ())
    inputs = resolve_columns(meta, needed, options.columns, ragged=bool(buckets))
    shapes = with_rows_in_place({t.spec.name: _dims(placeholder(t)) for t in inputs}, axes)
    batch = facts.batch_at(names, shapes, first_axis_only=True)
    if buckets and not batch.is_proven:
        raise unproven(batch, "length_buckets runs rows of one length together")
    check_rows_feed(batch, [target.spec for target in inputs], "a column")
    ragged = _as_long_as_inputs(facts, names, inputs, axes)
    outputs = [
        output_columns(
            name,
            value,
            facts.typed_spec(value).dtype or np.dtype(object),
            _rows_first(facts, batch, name, value),
            class_labels(facts.graph, value),
            options.max_columns,
            is_nullable=rows.on_error == "null",
            is_ragged=value in ragged,
        )
        for name, value in values.items()
    ]
    kept = options.kept(meta.columns)
    return FrameLayout(inputs, tuple(outputs), kept, rows, buckets, batch.is_proven)


def _rows_first(
    facts: ModelFacts, batch: BatchFacts, name: str, value: str
) -> tuple[int | float, ...] | None:
    """Return the sizes of a value with its batch axis first, as partitions have it."""
    axis = batch.output_axes[value]
    kind = facts.typed_spec(value).kind
    if kind is not None:
        raise InputError(
            f"output {name!r} is {kind}, so it cannot be columns of a table",
            "name other outputs, or the tensors that it is made of: outputs=[...]",
            option="outputs",
        )
    if axis is None:
        raise InputError(
            f"output {name!r} has no rows, so it cannot be columns of a table",
            "name other outputs: outputs=[...]",
            option="outputs",
        )
    sizes = batch.sizes[value]
    return None if sizes is None else (sizes[axis], *sizes[:axis], *sizes[axis + 1 :])


def _as_long_as_inputs(
    facts: ModelFacts,
    names: tuple[str, ...],
    inputs: Sequence[ColumnInput],
    axes: Mapping[str, int | None],
) -> set[str]:
    """Return the values whose axis 1 is as long as the ragged inputs.

    Sizes are inferred for two lengths; an axis that follows both is taken to follow all.
    """
    if not any(target.is_ragged for target in inputs):
        return set()

    def sizes(length: int) -> BatchFacts:
        return facts.batch_at(
            names,
            with_rows_in_place(
                {
                    t.spec.name: (None, length) if t.is_ragged else _dims(placeholder(t))
                    for t in inputs
                },
                axes,
            ),
            first_axis_only=True,
        )

    short, long = (sizes(length).sizes for length in _LENGTHS)
    return {
        name
        for name in names
        if len(short[name] or ()) > 1
        and len(long[name] or ()) > 1
        and ((short[name] or ())[1], (long[name] or ())[1]) == _LENGTHS
    }


def _text_columns(inputs: Sequence[ColumnInput]) -> list[Any]:
    """Return the columns whose text is checked when it becomes an input."""
    return [name for target in inputs if target.takes_text for name in target.columns]


def placeholder(target: ColumnInput) -> Placeholder:
    """Return the dtype and shape of an input of which partitions will be made."""
    assert target.spec.dtype is not None
    if target.spec.rank == 1:
        return Placeholder(target.spec.dtype, (math.nan,))
    width = target.row_width
    return Placeholder(target.spec.dtype, (math.nan, math.nan if width is None else width))


def _dims(placeholder: Placeholder) -> tuple[Dim, ...]:
    return tuple(None if math.isnan(size) else int(size) for size in placeholder.shape)
