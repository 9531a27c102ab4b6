"""Tables of any format, opened: their blocks, the columns that are read, and a lazy table of both.

Opening reads the beginnings of the files only. What travels to the workers is a reader, the same
for all blocks, and the blocks' places.
"""

from __future__ import annotations

import contextlib
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dask.config
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa

from dask_onnx.collections.run_options import Columns
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.core.meters import metered
from dask_onnx.core.stage_tasks import digest
from dask_onnx.io.arrow_files import ArrowBlock, read_pieces
from dask_onnx.io.csv_files import CsvDialect, cuts_cells, read_cells, stream_cells
from dask_onnx.io.json_lines import read_records, stream_records
from dask_onnx.io.table_files import TableFile
from dask_onnx.io.table_frames import (
    PYTHON_TEXT,
    decoded,
    dtype_of,
    empty_frame,
    frame_of,
    is_text,
    series_of,
)
from dask_onnx.io.text_cells import CellError, CellRules, convert_cells
from dask_onnx.io.text_files import TextBlock
from dask_onnx.jobs.job_shards import Shard, has_breaks
from dask_onnx.jobs.table_columns import ReadColumn


@dataclass(frozen=True, slots=True)
class TableBlock:
    """A part of a table that one task reads."""

    place: TextBlock | ArrowBlock
    names: tuple[str, ...] = ()
    """Names of the columns of a CSV file, in its own order."""

    @property
    def is_stream(self) -> bool:
        """True if the block is a whole file that is read as a stream."""
        return isinstance(self.place, TextBlock) and self.place.is_stream

    def __dask_tokenize__(self) -> str:
        return digest(self)


@dataclass(frozen=True, slots=True)
class TableReader:
    """Task function that reads the blocks of a table."""

    columns: tuple[ReadColumn, ...]
    dtypes: tuple[tuple[str, Any], ...]
    """Names and pandas dtypes of the columns, which all blocks have."""
    dialect: CsvDialect | None = None
    """Form of CSV files; None for other formats."""
    rules: CellRules = field(default_factory=CellRules)
    keys: tuple[str, ...] = ()
    """Those of the columns that are Hive partitions."""
    index: str | None = None
    """Name of the column that becomes the index of the table."""
    only_known: bool = False
    """True if fields of JSON beyond `columns` are an error."""

    @property
    def meta(self) -> pd.DataFrame:
        """The table without rows."""
        return self._with_index(empty_frame(dict(self.dtypes)))

    @metered("read")
    def __call__(self, block: TableBlock) -> pd.DataFrame:
        """Return the rows of a block that is no stream.

        Raises
        ------
        InputError
            The file cannot be read, or a value is not of the type of its column.
        SplitInQuotesError
            A block of CSV begins or ends inside quotes.
        UnicodeDecodeError
            The text is not in the encoding.
        """
        with explained(block.place.file):
            return self._frame(self._read(block), block)

    def stream(self, block: TableBlock) -> Iterator[pd.DataFrame]:
        """Return the rows of a block piece by piece; see `__call__`."""
        if not block.is_stream:
            yield self(block)
            return
        with explained(block.place.file):
            for table in self._pieces(block):
                yield self._frame(table, block)

    def _stored(self) -> list[ReadColumn]:
        return [column for column in self.columns if column.name not in self.keys]

    def _schema(self) -> pa.Schema:
        return pa.schema([(each.name, each.stored_as or each.type) for each in self._stored()])

    def _read(self, block: TableBlock) -> pa.Table:
        place = block.place
        if isinstance(place, ArrowBlock):
            return read_pieces(place, self._schema())
        if self.dialect is None:
            return read_records(place, self._schema(), only=self.only_known)
        names = [column.name for column in self._stored()]
        return read_cells(place, block.names, names, self.dialect)

    def _pieces(self, block: TableBlock) -> Iterator[pa.Table]:
        assert isinstance(block.place, TextBlock)
        if self.dialect is None:
            yield from stream_records(block.place, self._schema(), only=self.only_known)
        else:
            names = [column.name for column in self._stored()]
            yield from stream_cells(block.place, block.names, names, self.dialect)

    def _frame(self, table: pa.Table, block: TableBlock) -> pd.DataFrame:
        texts = dict(block.place.file.keys)
        dtypes, rows = dict(self.dtypes), table.num_rows
        found: dict[str, pd.Series] = {}
        for column in self.columns:
            if column.name in self.keys:
                values = key_values([texts[column.name]], column, rows)
            elif self.dialect is not None:
                values = self._cells(table.column(column.name), column, block)
            else:
                values = _cast(table.column(column.name), column, block.place.file)
            is_series = isinstance(values, pd.Series)
            dtype = dtypes[column.name]
            found[column.name] = values if is_series else series_of(values, dtype)
        first = block.place.first_row if isinstance(block.place, ArrowBlock) else None
        return self._with_index(frame_of(found, rows, first))

    def _cells(self, cells: pa.ChunkedArray, column: ReadColumn, block: TableBlock) -> Any:
        assert self.dialect is not None
        texts = decoded(cells, self.dialect.encoding)
        if isinstance(texts, pd.Series):
            marks = self.rules.marks(column.name, is_text=True)
            if is_text(column.type):
                return texts.mask(texts.isin(marks)) if marks else texts
            escaped = [text.encode(errors="backslashreplace").decode() for text in texts]
            texts = pa.chunked_array([pa.array(escaped, pa.string())])
        try:
            values = convert_cells(texts, column.name, column.type, self.rules, exact=column.exact)
        except CellError as error:
            raise _other_type(error, block.place.file, column) from None
        return values

    def __dask_tokenize__(self) -> str:
        return digest(self)

    def _with_index(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame if self.index is None else frame.set_index(self.index)


def _cast(values: pa.ChunkedArray, column: ReadColumn, file: TableFile) -> pa.ChunkedArray:
    """Return a column in the type that the caller has stated for it."""
    if column.stored_as is None:
        return values
    try:
        return values.cast(column.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"column {column.name!r} of {file.path} is {values.type}, and cannot be "
            f"{_named(str(column.type))}: {error}",
            "leave out its dtype, or fix the values",
            option="dtype",
            column=column.name,
            reason=str(error),
        ) from error


def key_values(texts: Sequence[str | None], column: ReadColumn, rows: int) -> pa.ChunkedArray:
    """Return the values of a Hive partition for a number of rows."""
    values = pa.chunked_array([pa.array(texts, pa.string())])
    rules = CellRules()
    values = convert_cells(values, column.name, column.type, rules, exact=False)
    return pa.chunked_array([pa.repeat(values[0], rows)], column.type)


_NAMES = {"double": "float64", "float": "float32", "timestamp[ns]": "datetime"}
"""Names of types, as `dtype` takes them, by Arrow's."""


def _named(kind: str) -> str:
    return _NAMES.get(kind, kind)


def _other_type(error: CellError, file: TableFile, column: ReadColumn) -> InputError:
    types = ["string"]
    if pa.types.is_integer(column.type):
        with contextlib.suppress(ValueError):
            float(error.text)
            types = ["float64", "string"]
    why = (
        ", and cannot be written from a number"
        if column.exact and error.kind in ("int64", "uint64", "double")
        else ""
    )
    return InputError(
        f"column {error.column!r} of {file.path} is read as {_named(error.kind)}, and has "
        f"{error.text!r}{why}",
        f"state its type: dtype={{{error.column!r}: {types[0]!r}}}; or fix these rows",
        option="dtype",
        column=error.column,
        reason=f"{error.text!r} is no {error.kind}",
        suggestions=[Suggestion("dtype", f"{error.column}={each}") for each in types],
    )


_OWN = ("builtins", "dask_onnx", "pandas", "numpy", "dask", "pyarrow")
"""Packages whose errors are not about reading a URL."""


@contextlib.contextmanager
def explained(file: TableFile) -> Iterator[None]:
    """Turn errors of the file system and of decompression into an InputError with the file."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, OSError | EOFError | zlib.error | lzma.LZMAError)
        # The file systems behind URLs raise errors of their own.
        is_remote = is_url(file.path) and type(error).__module__.split(".")[0] not in _OWN
        if not known and not is_remote:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        what = "decompressed" if file.compression is not None else "read"
        raise InputError(
            f"{file.path} cannot be {what}: {reason[:300]}",
            "check that the file is there and complete",
            option="path",
            reason=reason,
        ) from error


@dataclass(frozen=True, slots=True)
class TableSource:
    """A table that was opened and not read."""

    path: str
    """Path, URL or glob, as the caller gave it."""
    files: tuple[TableFile, ...]
    reader: TableReader
    blocks: tuple[TableBlock, ...]
    fed: Columns
    """Columns that feed the model, as `Model.predict` takes them."""
    odd_cells: Mapping[str, str] = field(default_factory=dict)
    """First cell that is no number, of columns that are text although most cells are numbers."""

    def explained(self, error: InputError) -> InputError:
        """Return an error about columns, with the cells for which some of them are text.

        Parameters
        ----------
        error : InputError
            Returned itself if it is about something else, or there are no such cells.
        """
        names = [error.column] if error.column is not None else list(self.odd_cells)
        found = [name for name in names if name in self.odd_cells]
        if not found or (error.column is None and error.option != "columns"):
            return error
        name = found[0]
        cell = self.odd_cells[name]
        return InputError(
            f"{error.cause}; column {name!r} is read as text, since {cell!r} is no number",
            f"fix these cells, or say that they are missing values: na_values=[{cell!r}]; or name "
            "other columns: columns=[...]",
            **{**error.fields, "column": name, "suggestions": ()},
        )

    def of_shard(self, shard: Shard) -> TableSource:
        """Return the part of the table that one shard takes.

        It has whole files where there are enough of them, and otherwise blocks.

        Raises
        ------
        InputError
            There are more shards than blocks; the shard begins inside a quoted cell of CSV.
        """
        paths = list(dict.fromkeys(block.place.file.path for block in self.blocks))
        if len(paths) >= shard.count:
            part = shard.part(len(paths), "files")
            own = set(paths[part.start : part.stop])
            blocks = [block for block in self.blocks if block.place.file.path in own]
        else:
            part = shard.part(
                len(self.blocks), f"blocks in {len(paths):,} files", {"files": len(paths)}
            )
            blocks = list(self.blocks[part.start : part.stop])
        return replace(self, blocks=tuple(blocks))

    def check_shard(self, shard: Shard) -> None:
        """Raise an error if a shard of CSV begins inside a quoted cell.

        A block that begins and ends inside quotes cannot tell, so that the text before it is read.

        Raises
        ------
        InputError
            It does, or there are more shards than blocks.
        """
        if self.reader.dialect is None or not self.is_cut_by(shard):
            return
        first = self.of_shard(shard).blocks[0]
        before = [each.place for each in self.blocks[: self.blocks.index(first)]]
        own = [place for place in before if place.file.path == first.place.file.path]
        if cuts_cells(place for place in own if isinstance(place, TextBlock)):
            raise has_breaks(shard)

    def is_cut_by(self, shard: Shard) -> bool:
        """Return whether shards divide files rather than take whole ones."""
        return len({block.place.file.path for block in self.blocks}) < shard.count

    @property
    def is_stream(self) -> bool:
        """True if a file is read as a stream by one task."""
        return any(block.is_stream for block in self.blocks)

    def to_dask(self) -> dd.DataFrame:
        """Return a lazy table with one partition for each block, read in the tasks."""
        # Dask would convert text to Arrow strings, which cannot hold surrogates.
        with dask.config.set({"dataframe.convert-string": False}):
            found: dd.DataFrame = dd.from_map(
                self.reader,
                list(self.blocks),
                meta=self.reader.meta,
                label="read-table",
                enforce_metadata=False,
            )
        return found


def read_dtypes(
    columns: Sequence[ReadColumn], nullable: Mapping[str, bool], *, tolerant: bool
) -> tuple[tuple[str, Any], ...]:
    """Return the pandas dtypes of columns.

    Parameters
    ----------
    columns : sequence of ReadColumn
    nullable : mapping of str to bool
        True if values of a column may be missing, by name.
    tolerant : bool
        True if texts may hold lone surrogates, which stand for bytes that are no text.
    """
    return tuple(
        (
            column.name,
            PYTHON_TEXT
            if tolerant and is_text(column.type)
            else dtype_of(column.type, nullable=nullable.get(column.name, True)),
        )
        for column in columns
    )
