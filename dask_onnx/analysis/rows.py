"""Describes in words what is done with the rows of a model."""

from __future__ import annotations

from collections.abc import Sequence

from dask_onnx.analysis.batch import BatchFacts, ExportedRows

_NAMES_SHOWN = 3


def rows_in_words(batch: BatchFacts) -> str:
    """Return how many rows go into a run, what becomes of more and of fewer, and whether they are
    proven to be independent."""
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
    if batch.is_declared:
        return "any number in a run, as was declared when the model was loaded"
    if batch.blockers:
        return f"all together in one run: {batch.blockers[0]}"
    if batch.coupled:
        return (
            f"any number in a run; {_nodes(batch.coupled)} quantises by a statistic over all rows "
            "of a run, so that results depend slightly on how rows are cut"
        )
    return "any number in a run; proven: no row depends on another"


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
