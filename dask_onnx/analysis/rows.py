"""Descriptions in words of how the rows of a model are run."""

from __future__ import annotations

from collections.abc import Sequence

from dask_onnx.analysis.batch_facts import BatchFacts, ExportedRows

_NAMES_SHOWN = 3
"""Largest number of node names in a description."""


def rows_in_words(batch: BatchFacts) -> str:
    """Return how many rows one run takes, how others are run, and whether rows are independent."""
    exported = batch.exported
    if exported is not None and exported.is_proven:
        return _fixed(exported.rows)
    if exported is not None:
        return (
            f"exactly {exported.rows} on axis 0, as the graph was exported: nothing is cut or "
            "padded, since the graph does not prove that these are independent rows: "
            f"{_reason(exported)}"
        )
    if all(axis is None for axis in batch.input_axes.values()):
        return "none: every run gets the inputs unchanged"
    if batch.is_declared:
        return "any number in a run, as declared when the model was loaded"
    if batch.blockers:
        return f"all together in one run: {batch.blockers[0]}"
    if batch.coupled:
        return (
            f"any number in a run; {_nodes(batch.coupled)} quantizes by a statistic over all rows "
            "of a run, so that results depend slightly on how rows are cut"
        )
    return "any number in a run; proven: no row depends on another"


def _fixed(rows: int) -> str:
    if rows == 1:
        return "runs of 1 row, as the graph was exported: more are run one after the other"
    return (
        f"runs of {rows} rows, as the graph was exported: more are cut into such runs, and the "
        "last one is padded with copies of its last row, whose results are dropped; the graph "
        "proves that no row depends on another"
    )


def _reason(exported: ExportedRows) -> str:
    if exported.mixing:
        return f"{_nodes(exported.mixing)} may mix them"
    if exported.opaque:
        return f"their position is unknown behind {_nodes(exported.opaque)}"
    return f"output {', '.join(map(repr, exported.lost))} does not grow with them"


def _nodes(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    shown = ", ".join(map(repr, names[:_NAMES_SHOWN]))
    return f"node{'s' if len(names) > 1 else ''} {shown}" + (
        f" and {more} more" if more > 0 else ""
    )
