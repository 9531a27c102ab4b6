"""Jobs over tables, which are read, predicted and written partition by partition."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.dataframe as dd
import numpy as np
from dask.base import compute
from dask.delayed import delayed
from distributed import Client

from dask_onnx.api.model import Model
from dask_onnx.api.text_model import TextModel
from dask_onnx.collections.run_options import BatchSize, Columns
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import FileSource
from dask_onnx.io.block_journal import BlockJournal
from dask_onnx.io.csv_files import SplitInQuotesError, cuts_cells
from dask_onnx.io.run_manifest import RunManifest, file_identities
from dask_onnx.io.sinks import Sink
from dask_onnx.io.table_files import find_table
from dask_onnx.io.table_sinks import CsvSink
from dask_onnx.io.text_files import TextBlock
from dask_onnx.jobs.block_graph import BlockGraph
from dask_onnx.jobs.block_window import BlockWork, compute_blocks
from dask_onnx.jobs.csv_text import UTF_8, check_encoding, undecodable
from dask_onnx.jobs.held_tables import held_table
from dask_onnx.jobs.job_manifests import job_manifest, request_options
from dask_onnx.jobs.job_progress import JobProgress
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.jobs.job_shards import Shard, has_breaks
from dask_onnx.jobs.opening_options import OpenOptions
from dask_onnx.jobs.part_writing import write_parts
from dask_onnx.jobs.resumable_run import ResumableRun
from dask_onnx.jobs.table_opening import inputs_of, open_table
from dask_onnx.jobs.table_request import TableRequest
from dask_onnx.jobs.table_source import TableBlock, TableReader, TableSource
from dask_onnx.jobs.watched_model import ModelWatch
from dask_onnx.jobs.worker_checks import check_workers, local_ends

VECTOR = "embedding"
"""Name of the column of a text's vectors."""
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
    whole_files: bool = False
    """True to read each file of CSV as a stream."""
    watch: ModelWatch | None = None
    """Model file that is looked at while the job runs; None for a model that stays as it is."""

    shard: Shard | None = None
    """The part of the table that is predicted; None for all of it."""

    def at(self, block: int) -> TableJob:
        """Return the job with the model of the blocks from one on."""
        return self if self.watch is None else replace(self, model=self.watch.at(block))

    def check(self) -> None:
        """Build the lazy result of one block, so that all is refused that can be before it runs.

        Raises
        ------
        InputError
            The table cannot be opened, or does not fit the model.
        """
        source = self.open()
        first = source.blocks[:1]
        if self.shard is not None:
            self._opened().check_shard(self.shard)
            # The blocks of other shards exist too: rows must not depend on each other.
            first *= min(2, self.shard.count)
        try:
            self.predicted(replace(source, blocks=first).to_dask(), source.fed)
        except InputError as error:
            if (found := source.explained(error)) is error:
                raise
            raise found from error

    @property
    def paths(self) -> Sequence[str]:
        """Absolute paths or URLs of the input's files."""
        return [file.path for file in find_table(self.path)]

    def manifest(self) -> RunManifest:
        """Return what decides the results, as far as it is known before the job runs."""
        options = {
            **request_options(self.request),
            "outputs": self.outputs,
            "batch_size": self.batch_size,
            "format": [type(sink).__name__ for sink in self.sinks],
        }
        files = [FileSource(f.path, f.size or 0, f.version) for f in find_table(self.path)]
        inputs = file_identities(files)
        return job_manifest("a table", self.model, options, inputs)

    def run(self, client: Client, progress: JobProgress, resumable: ResumableRun) -> FilePrediction:
        """Run the job and write its partitions.

        Raises
        ------
        InputError
            Bad rows, where these are an error; text that is not in the encoding; values that are
            not of the type of their column.
        StageError
            Workers died while they ran a partition.
        """
        if resumable.stored is not None and resumable.stored.layout.get("whole_files"):
            return self._as_stream()._run_once(client, progress, resumable)
        try:
            return self._run_once(client, progress, resumable)
        except SplitInQuotesError:
            pass
        except InputError:
            # It may come from a block after the one that ends inside quotes.
            if not self._cuts_cells():
                raise
        if self.shard is not None and self._opened().is_cut_by(self.shard):
            raise has_breaks(self.shard)
        progress.warn("cells have line breaks, so that each file is read as a stream")
        resumable.restart()
        return self._as_stream()._run_once(client, progress, resumable)

    def _as_stream(self) -> TableJob:
        return replace(self, whole_files=True)

    def _run_once(
        self, client: Client, progress: JobProgress, resumable: ResumableRun
    ) -> FilePrediction:
        with resumable.kept_on_failure(progress, but_for=SplitInQuotesError):
            try:
                return _run(self, client, progress, resumable)
            except UnicodeDecodeError as error:
                encoding = check_encoding(self.request.encoding or UTF_8)
                raise undecodable(self.open().files, encoding) or error from None

    def _cuts_cells(self) -> bool:
        """Return whether blocks of CSV begin or end inside quotes; for a job that has failed."""
        source = self.open()
        if self.whole_files or source.reader.dialect is None:
            return False
        return cuts_cells(
            block.place for block in source.blocks if isinstance(block.place, TextBlock)
        )

    def open(self) -> TableSource:
        """Open the files, choose the columns to read, and take the part of the shard.

        Raises
        ------
        InputError
            The table cannot be opened, lacks a column, or has fewer pieces than there are shards.
        """
        source = self._opened()
        return source if self.shard is None else source.of_shard(self.shard)

    def _opened(self) -> TableSource:
        return open_table(
            self.path,
            OpenOptions(
                request=self.request,
                inputs=inputs_of(self.model, self.outputs),
                is_verbatim=all(isinstance(sink, CsvSink) for sink in self.sinks),
                whole_files=self.whole_files,
            ),
        )

    @property
    def summed(self) -> Sequence[str]:
        """Columns of the output whose sums are recorded with each block."""
        return ()

    def lazy(self, source: TableSource, blocks: range) -> list[dd.DataFrame]:
        """Return the lazy results of consecutive blocks, a partition for each; see `predicted`."""
        part = source.blocks[blocks.start : blocks.stop]
        return self.predicted(replace(source, blocks=part).to_dask(), source.fed)

    def piece(
        self, table: dd.DataFrame, fed: Columns, number: int, first: int
    ) -> list[dd.DataFrame]:
        """Return the lazy results of one piece of a stream; see `predicted`.

        Parameters
        ----------
        table : dask DataFrame
            The piece, one partition.
        fed : str, list or mapping
            Columns that feed the model.
        number : int
            Position of the block that the piece is of.
        first : int
            Position of its first row among those of the block.
        """
        return self.predicted(table, fed)

    def predicted(self, table: dd.DataFrame, fed: Columns) -> list[dd.DataFrame]:
        """Return the lazy result of a lazy table and, with a quarantine, the lazy bad rows.

        Parameters
        ----------
        table : dask DataFrame
        fed : str, list or mapping
            Columns that feed the model.
        """
        request = self.request
        if request.text is None or request.append is True:
            return self._predicted(table, fed)
        if request.quarantine is None:
            table = table[list(dict.fromkeys([request.text, *request.kept]))]
        good, *bad = self._predicted(table, fed)
        return [good[[*request.kept, VECTOR]], *bad]

    def _predicted(self, table: dd.DataFrame, fed: Columns) -> list[dd.DataFrame]:
        request = self.request
        owner: Any = self.model
        options: dict[str, Any] = {"batch_size": self.batch_size, **request.row_options}
        if request.text is not None:
            owner = TextModel(
                self.model,
                request.tokenizer,
                pooling=request.pooling,
                normalize=request.normalize,
            )
            options |= {"column": request.text, "name": VECTOR}
        else:
            options |= {
                "outputs": self.outputs,
                "columns": fed,
                "append": request.append,
                "require_finite": request.require_finite,
                "length_buckets": request.length_buckets,
            }
        if request.quarantine is not None:
            return list(owner.predict_checked(table, **options))
        return [owner.predict(table, **options)]


def _run(
    job: TableJob, client: Client, progress: JobProgress, resumable: ResumableRun
) -> FilePrediction:
    source, sinks = job.open(), job.sinks
    check_workers(client, local_ends([file.path for file in source.files]), sinks)
    began = time.perf_counter()
    counts = np.zeros(len(sinks) + len(job.summed), int)
    made = np.zeros_like(counts)

    def collect(rows: Sequence[int]) -> None:
        counts[:] += rows
        made[:] += rows
        for name, total in zip(job.summed, made[len(sinks) :], strict=True):
            progress.produced(int(total), name)

    def prepare() -> None:
        for sink in sinks:
            sink.prepare(0, 0, ())

    work = BlockWork(
        count=len(source.blocks),
        # Built after the client is there: the weights that its workers lack travel with the graph.
        submit=lambda part: BlockGraph.of(
            _writes(job.at(part.start), source, resumable, part), part.start
        ).submit(client),
        units_of=lambda _: 1,
        unit="files" if source.is_stream else "parts",
        is_done=resumable.is_done,
        collect=collect,
        suggestions=_LESS_MEMORY,
    )
    resumable.start(
        replace(
            resumable.manifest,
            blocks=len(source.blocks),
            layout={"whole_files": job.whole_files},
        ),
        prepare,
    )
    counts[:] += resumable.totals(len(counts))
    computed = compute_blocks(client, work, progress)
    resumable.finish()
    if not counts.any():
        progress.warn(f"{job.path} has no rows, and neither has the output")
    return FilePrediction(
        files=tuple(sink.target for sink in sinks),
        rows=int(counts[0]),
        bad_rows=int(counts[1]) if len(sinks) > 1 else None,
        tokens=int(counts[-1]) if job.summed else None,
        seconds=time.perf_counter() - began,
        workers=len(client.scheduler_info(n_workers=-1)["workers"]),
        blocks=len(source.blocks),
        resumed_blocks=len(source.blocks) - computed,
        swaps=() if job.watch is None else tuple(job.watch.swaps),
    )


def _writes(
    job: TableJob, source: TableSource, resumable: ResumableRun, blocks: range
) -> list[Any]:
    """Return a lazy task for each of some consecutive partitions that predicts and writes it."""
    part, journal = source.blocks[blocks.start : blocks.stop], resumable.journal
    if source.is_stream:
        write = delayed(predict_stream, pure=False, traverse=False)
        # One record for all tasks, rather than a copy in each.
        shared = delayed(Shared(job, source.reader, source.fed, journal), traverse=False)
        return [
            write(shared, block, number, resumable.pieces_of(number))
            for number, block in zip(blocks, part, strict=True)
        ]
    tables = job.lazy(source, blocks)
    parts = zip(*(table.to_delayed() for table in tables), strict=True)
    write = delayed(write_parts, pure=False)
    return [
        write(list(each), job.sinks, number, journal, job.summed)
        for number, each in zip(blocks, parts, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Shared:
    """Values that the tasks of all streams share."""

    job: TableJob
    reader: TableReader
    fed: Columns
    journal: BlockJournal


def predict_stream(
    shared: Shared, block: TableBlock, number: int, done: Mapping[int, Sequence[int]]
) -> list[int]:
    """Read a file piece by piece; predict and write each piece, so that memory stays bounded.

    Parameters
    ----------
    shared : Shared
    block : TableBlock
        A file, or a block of one that can be cut.
    number : int
        Position of the block.
    done : mapping of int to sequence of int
        Rows of the pieces that an earlier run has written, by their positions.

    Returns
    -------
    list of int
        Rows of each sink.
    """
    job, counts = shared.job, [0] * (len(shared.job.sinks) + len(shared.job.summed))
    first = 0
    for place, frame in enumerate(shared.reader.stream(block)):
        written = done.get(place)
        if written is None:
            table = held_table(frame, shared.reader.meta)
            # Inside a task, the model runs in the task's own thread.
            lazy = job.piece(table, shared.fed, number, first)
            found = compute(*lazy, scheduler="sync")
            name = f"{number:06d}-{place:06d}"
            written = write_parts(found, job.sinks, name, shared.journal, job.summed)
        first += len(frame)
        counts = [a + b for a, b in zip(counts, written, strict=True)]
    shared.journal.record(number, counts)
    return counts
