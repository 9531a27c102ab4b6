"""Task function that writes one partition of a table, with its bad rows, and records it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from dask_onnx.collections.text.text_columns import storable
from dask_onnx.io.block_journal import BlockJournal


def write_parts(
    tables: Sequence[pd.DataFrame],
    sinks: Sequence[Any],
    part: int | str,
    journal: BlockJournal,
    summed: Sequence[str] = (),
) -> list[int]:
    r"""Write one partition and its bad rows; return the rows of each.

    A named index becomes a column. Bytes of bad rows that are not text are written as ``\xe9``.

    Parameters
    ----------
    tables : sequence of DataFrame
    sinks : sequence of Sink
        One for each table.
    part : int or str
        Position of the partition, or the name of its place in the order of all.
    journal : BlockJournal
        Journal in which the part is recorded once all sinks have it.
    summed : sequence of str
        Columns of the first table, of integers, whose sums are returned behind the rows.
    """
    written: list[str] = []
    for table, sink in zip(tables, sinks, strict=True):
        named = table.reset_index() if table.index.name is not None else table
        written += sink.write_frame(part, storable(named))
    counts = [len(table) for table in tables] + [int(tables[0][name].sum()) for name in summed]
    journal.record(part, counts, written)
    return counts
