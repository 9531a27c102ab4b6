"""Jobs that write after a column of prompts, from table to table, by blocks of few rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import dask.dataframe as dd
import pandas as pd

from dask_onnx.api.generator import Generator
from dask_onnx.collections.run_options import Columns
from dask_onnx.core.errors import InputError
from dask_onnx.generation.prompt_tables import PromptPlace, generate_table
from dask_onnx.io.arrow_files import ArrowBlock, open_arrow_files
from dask_onnx.io.run_manifest import RunManifest, plain
from dask_onnx.io.table_sinks import CsvSink
from dask_onnx.jobs.opening_options import OpenOptions
from dask_onnx.jobs.table_job import TableJob
from dask_onnx.jobs.table_opening import open_table
from dask_onnx.jobs.table_source import TableBlock, TableReader, TableSource

BLOCK_PROMPTS = 64
"""Prompts of a block, where the format tells how many rows it has."""
_TEXT_BYTES = 2**14
"""Bytes of a block of text formats, which do not tell."""
_MOST_ROWS = 2**32
"""Bound on the rows of a block, where rows are numbered by block and place."""


@dataclass(frozen=True, slots=True)
class PromptBlock(TableBlock):
    """A block of prompts: a range of rows of a part of a file."""

    start: int | None = None
    """First row of the range in the part; None for all of its rows."""
    stop: int | None = None
    """Row after the last one."""
    first_number: int = 0
    """Number of the first row, which keys what is drawn."""


@dataclass(frozen=True, slots=True)
class PromptReader(TableReader):
    """Task function that reads blocks of prompts."""

    def __call__(self, block: TableBlock) -> pd.DataFrame:
        """Return the rows of a block; see `TableReader.__call__`."""
        frame = TableReader.__call__(self, block)
        if not isinstance(block, PromptBlock) or block.start is None:
            return frame
        return frame.iloc[block.start : block.stop]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJob(TableJob):
    """A generation over a table, checked but not started."""

    generator: Generator
    """Decoder with its tokenizer."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Options of `Generator.generate`."""
    prefix: str = ""
    """Beginning of the names of the new columns."""

    @property
    def summed(self) -> Sequence[str]:
        """The column of the numbers of new tokens."""
        return (f"{self.prefix}new_tokens",)

    def manifest(self) -> RunManifest:
        """Return what decides the results, as far as it is known before the job runs."""
        found = TableJob.manifest(self)
        generator = self.generator
        options = {
            **found.options,
            "generation": plain(dict(self.generation)),
            "prefix": self.prefix,
            "context": generator.context,
            "eos": list(generator.eos),
            "form": generator.form.describe(),
            "source": plain(generator.source),
            "later": generator.later,
        }
        return replace(found, kind="a generation", options=options)

    def open(self) -> TableSource:
        """Open the files, and cut them into blocks of few prompts.

        Raises
        ------
        InputError
            The table cannot be opened, or lacks a column.
        """
        options = OpenOptions(
            request=self.request,
            inputs=(),
            is_verbatim=all(isinstance(sink, CsvSink) for sink in self.sinks),
            whole_files=self.whole_files,
            block_bytes=_TEXT_BYTES,
        )
        try:
            source = open_table(self.path, options)
        except InputError as error:
            if error.option == "text":  # the name of the option in `predict_files`
                error.option = "column"
            raise
        kept = {each.name: getattr(source.reader, each.name) for each in fields(TableReader)}
        return replace(source, reader=PromptReader(**kept), blocks=tuple(_blocks_of(source)))

    def lazy(self, source: TableSource, blocks: range) -> list[dd.DataFrame]:
        """Return the lazy results of some consecutive blocks, a partition for each."""
        part = source.blocks[blocks.start : blocks.stop]
        firsts = [each.first_number for each in part if isinstance(each, PromptBlock)]
        return self._written(replace(source, blocks=part).to_dask(), firsts)

    def piece(
        self, table: dd.DataFrame, fed: Columns, number: int, first: int
    ) -> list[dd.DataFrame]:
        """Return the lazy results of one piece of a stream."""
        return self._written(table, [number * _MOST_ROWS + first])

    def predicted(self, table: dd.DataFrame, fed: Columns) -> list[dd.DataFrame]:
        """Return the lazy results of a lazy table whose rows are all that there are."""
        return self._written(table, None)

    def _written(self, table: dd.DataFrame, firsts: Sequence[int] | None) -> list[dd.DataFrame]:
        on_error = self.request.on_error
        request = self.generator.request(on_error=on_error, **self.generation)
        column = self.request.text
        place = PromptPlace(column, self.prefix, on_error == "null")
        if self.request.append is not True:
            table = table[list(dict.fromkeys([column, *self.request.kept]))]
        found = generate_table(request, table, place, firsts)
        if self.request.append is True:
            return [found]
        return [found[[*self.request.kept, *place.names]]]


def _blocks_of(source: TableSource) -> Iterator[PromptBlock]:
    """Yield the blocks of a table, cut and numbered."""
    if not any(isinstance(block.place, ArrowBlock) for block in source.blocks):
        for number, block in enumerate(source.blocks):
            yield PromptBlock(block.place, block.names, first_number=number * _MOST_ROWS)
        return
    first, number = 0, 0
    for file in open_arrow_files(source.files):
        rows = 0
        for place, (count, _) in enumerate(file.pieces):
            known = count >= 0 and first >= 0
            piece = ArrowBlock(file.file, (place,), rows if known else None)
            if not known:  # this format does not tell its rows
                first = -1
                yield PromptBlock(piece, first_number=number * _MOST_ROWS)
                number += 1
                continue
            for start in range(0, count, BLOCK_PROMPTS):
                stop = min(start + BLOCK_PROMPTS, count)
                yield PromptBlock(piece, (), start, stop, first)
                first, number = first + stop - start, number + 1
            rows += count
        if not file.pieces:
            yield PromptBlock(ArrowBlock(file.file, (), 0), first_number=max(first, 0))
            number += 1
