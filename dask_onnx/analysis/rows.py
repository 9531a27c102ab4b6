"""What is done with the rows of a model, in words."""

from __future__ import annotations

from collections.abc import Sequence

from dask_onnx.analysis.axes import BatchFacts, ExportedRows

_NAMES_SHOWN = 3


def rows_in_words(batch: BatchFacts) -> str:
    """How many rows go into a run, what becomes of more and of fewer, and whether a row depends on
    those beside it."""
    exported = batch.exported
    if exported is not None and exported.is_proven:
        return _fixed(exported.rows)
    if exported is not None:
        return (
            f"exactly {exported.rows} on axis 0, as the graph was exported: nothing is cut or "
            "filled up, since it is not proven that these are rows which do not depend on each "
            f"other: {_reason(exported)}"
        )
    if all(axis is None for axis in batch.input_axes.values()):
        return "none: inputs are given once, as they are"
    if batch.dependent:
        return (
            "any number in a run; a row depends on the others of its run, because of "
            f"{_nodes(batch.dependent)}"
        )
    if batch.opaque:
        return (
            "any number in a run; all of a chunk run together, since it cannot be told where they "
            f"are behind {_nodes(batch.opaque)}"
        )
    return "any number in a run; no row depends on another"


def _fixed(rows: int) -> str:
    if rows == 1:
        return "runs of 1 row, as the graph was exported: more are run one after the other"
    return (
        f"runs of {rows} rows, as the graph was exported: more are cut into such runs, the last "
        "one is filled up with copies of its last row, which are cut off again; the graph proves "
        "that no row depends on another"
    )


def _reason(exported: ExportedRows) -> str:
    if exported.mixing:
        return f"{_nodes(exported.mixing)} may mix them"
    if exported.opaque:
        return f"it cannot be told where they are behind {_nodes(exported.opaque)}"
    return f"output {', '.join(map(repr, exported.lost))} does not grow with them"


def _nodes(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    shown = ", ".join(map(repr, names[:_NAMES_SHOWN]))
    return f"node{'s' if len(names) > 1 else ''} {shown}" + (
        f" and {more} more" if more > 0 else ""
    )
