"""Jobs over tables: Parquet and CSV are read, predicted and written partition by partition."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.delayed import delayed
from distributed import Client, Future, futures_of

from dask_onnx.api.model import Model
from dask_onnx.api.text_model import TextModel
from dask_onnx.collections.run_options import BatchSize
from dask_onnx.collections.text.text_columns import storable
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.io.sinks import Sink
from dask_onnx.jobs.csv_text import UTF_8, check_encoding, other_types, read_csv, undecodable
from dask_onnx.jobs.job_progress import JobProgress, wait_for
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.jobs.table_request import TableRequest

VECTOR = "embedding"
"""Name of the column of a text's vectors."""
_COLUMNS_SHOWN = 20
_REASON_LENGTH = 300
"""Characters of a reader's message that are shown: it may list a schema of hundreds of columns."""
_LESS_MEMORY = (Suggestion("batch_size"), Suggestion("worker_memory_limit"))


@dataclass(frozen=True, slots=True)
class TableJob:
    """A prediction over a table, checked but not started."""

    model: Model
    path: str
    request: TableRequest
    outputs: Sequence[str] | None
    """Names of the outputs; None for those of the model."""
    batch_size: BatchSize
    sinks: Sequence[Sink]
    """The output and, with a quarantine, the output of bad rows."""

    def check(self) -> None:
        """Build the lazy result once, so that everything is refused that can be before it runs.

        Raises
        ------
        InputError
            The table cannot be opened, or does not fit the model.
        """
        self.lazy_tables()

    def run(self, client: Client, progress: JobProgress) -> FilePrediction:
        """Run the job and write its partitions.

        Raises
        ------
        InputError
            Bad rows, where these are an error; text that is not in the encoding; columns whose type
            changes after the first rows.
        StageError
            Workers died while they ran a partition.
        """
        try:
            return _run(self, client, progress)
        except UnicodeDecodeError as error:
            encoding = check_encoding(self.request.encoding or UTF_8)
            raise undecodable(self.path, encoding) or error from None
        except ValueError as error:
            if (other := other_types(self.path, error)) is not None:
                raise other from None
            raise

    def lazy_tables(self) -> list[dd.DataFrame]:
        """Return the lazy result and, with a quarantine, the lazy bad rows.

        Raises
        ------
        InputError
            The table cannot be opened, lacks a column, or does not fit the model.
        """
        table, request = open_table(self.path, self.request), self.request
        named = [*request.kept, *filter(None, [request.text])]
        missing = [name for name in named if name not in table.columns]
        if missing:
            raise InputError(
                f"the table has no column {missing[0]!r}",
                f"its columns are {', '.join(map(str, table.columns[:_COLUMNS_SHOWN]))}",
                column=missing[0],
            )
        if request.text is None or request.append is True:
            return self._predicted(table)
        if request.quarantine is None:
            table = table[list(dict.fromkeys([request.text, *request.kept]))]
        good, *bad = self._predicted(table)
        return [good[[*request.kept, VECTOR]], *bad]

    def _predicted(self, table: dd.DataFrame) -> list[dd.DataFrame]:
        request = self.request
        owner: Any = self.model
        options: dict[str, Any] = {"batch_size": self.batch_size, **request.row_options}
        if request.text is not None:
            owner = TextModel(self.model, request.tokenizer, pooling=request.pooling)
            options |= {"column": request.text, "name": VECTOR}
        else:
            options |= {
                "outputs": self.outputs,
                "columns": request.columns,
                "append": request.append,
                "require_finite": request.require_finite,
                "length_buckets": request.length_buckets,
            }
        if request.quarantine is not None:
            return list(owner.predict_checked(table, **options))
        return [owner.predict(table, **options)]


def open_table(path: str, request: TableRequest) -> dd.DataFrame:
    """Return a lazy table of Parquet or CSV files.

    Raises
    ------
    InputError
        It cannot be opened; it is CSV in another encoding, as far as its first rows show.
    """
    is_csv = Path(path.rstrip("/")).suffix == ".csv"
    if request.encoding is not None and not is_csv:
        raise InputError(
            f"an encoding is for .csv, and {path} is another format",
            "leave it out: text in Parquet is UTF-8",
            option="encoding",
        )
    encoding = check_encoding(request.encoding or UTF_8)
    try:
        table: dd.DataFrame = (
            read_csv(path, encoding, keeps_bad_rows=request.keeps_bad_rows)
            if is_csv
            else dd.read_parquet(path)
        )
    except UnicodeDecodeError as error:
        raise undecodable(path, encoding) or error from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:_REASON_LENGTH]
        raise InputError(
            f"the table {path} cannot be opened: {reason}",
            "check the path; a folder of Parquet files ends in .parquet",
            reason=reason,
        ) from None
    return table


def _run(job: TableJob, client: Client, progress: JobProgress) -> FilePrediction:
    # Built after the client is there: the weights that its workers lack travel with the graph.
    tables, sinks = job.lazy_tables(), job.sinks
    began = time.perf_counter()
    for sink in sinks:
        sink.prepare(0, 0, ())
    futures: list[Future] = []
    try:
        parts = zip(*(table.to_delayed() for table in tables), strict=True)
        writes = [
            delayed(write_parts, pure=False)(list(part), sinks, number)
            for number, part in enumerate(parts)
        ]
        futures = futures_of(client.persist(writes))
        sizes = {future.key: 1 for future in futures}
        wait_for(futures, sizes, "parts", progress, _LESS_MEMORY)
        counts = np.sum(client.gather(futures), axis=0, dtype=int)
        for sink in sinks:
            sink.finish()
    except BaseException:
        # Also on Ctrl-C: an incomplete output must not look like a result.
        progress.stopping()
        client.cancel(futures, force=True)
        for sink in sinks:
            sink.discard()
        raise
    return FilePrediction(
        files=tuple(sink.target for sink in sinks),
        rows=int(counts[0]),
        bad_rows=int(counts[1]) if len(counts) > 1 else None,
        seconds=time.perf_counter() - began,
        workers=len(client.scheduler_info(n_workers=-1)["workers"]),
        blocks=len(futures),
    )


def write_parts(tables: Sequence[pd.DataFrame], sinks: Sequence[Any], number: int) -> list[int]:
    r"""Write one partition and its bad rows; return the rows of each.

    A named index becomes a column. Bytes of bad rows that are not text are written as ``\xe9``.

    Parameters
    ----------
    tables : sequence of DataFrame
    sinks : sequence of Sink
        One for each table.
    number : int
        Position of the partition.
    """
    for table, sink in zip(tables, sinks, strict=True):
        named = table.reset_index() if table.index.name is not None else table
        sink.write_frame(number, storable(named))
    return [len(table) for table in tables]
