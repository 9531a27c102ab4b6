"""Tables in files with a schema: Parquet, Arrow IPC (Feather) and ORC, read by their own blocks.

The schemas of all files are compared before any work.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import ipc, orc
from pyarrow import parquet as pq

from dask_onnx.core.content_kinds import HEAD_BYTES
from dask_onnx.core.errors import InputError
from dask_onnx.core.filesystems import open_seekable
from dask_onnx.io.foreign_content import foreign_content
from dask_onnx.io.table_files import TableFile
from dask_onnx.io.table_frames import is_text

BLOCK_BYTES = 64 * 2**20
"""Uncompressed bytes of a block, if the file's own pieces are smaller."""
_READERS = 16
"""Threads that read the beginnings of files at a time."""


@dataclass(frozen=True, slots=True)
class ArrowFile:
    """Schema and pieces of one file."""

    file: TableFile
    schema: pa.Schema
    pieces: tuple[tuple[int, int], ...]
    """Rows and uncompressed bytes of each row group, record batch or stripe; the rows are -1, or
    the bytes 0, where the format does not say."""
    nullable: frozenset[str]
    """Names of the columns that may have missing values."""


@dataclass(frozen=True, slots=True)
class ArrowBlock:
    """Pieces of a file that are read together."""

    file: TableFile
    pieces: tuple[int, ...]
    """Positions of the row groups, record batches or stripes."""
    first_row: int | None
    """Number of the first row in its file; None if the format does not say."""


def open_arrow_files(files: Sequence[TableFile]) -> list[ArrowFile]:
    """Read the schemas of files.

    Raises
    ------
    InputError
        A file cannot be read, or is of another format than its suffix says.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_open, files))


def _open(file: TableFile) -> ArrowFile:
    readers = {"parquet": _open_parquet, "ipc": _open_ipc, "orc": _open_orc}
    try:
        with open_seekable(file.path) as stream:
            return readers[file.format](file, stream)
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        if (foreign := _foreign(file)) is not None:
            raise foreign from error
        raise InputError(
            f"{file.path} cannot be opened as {file.format}: {reason[:300]}",
            "check that the file is complete, and of the format that its suffix says",
            option="path",
            reason=reason,
        ) from error


def _foreign(file: TableFile) -> InputError | None:
    """Return the error about a file of another kind than its name says, if it can be told."""
    try:
        with open_seekable(file.path) as stream:
            head = stream.read(HEAD_BYTES)
    except (OSError, EOFError):  # it is not there, or no file: the caller's error says so
        return None
    return foreign_content(head, file.format, file.path)


def _open_parquet(file: TableFile, stream: Any) -> ArrowFile:
    found = pq.ParquetFile(stream)
    metadata = found.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    schema = found.schema_arrow
    nullable: set[str] = set()
    for place, path in enumerate(column.path for column in metadata.schema):
        statistics = [group.column(place).statistics for group in groups]
        if not all(s is not None and s.has_null_count and s.null_count == 0 for s in statistics):
            nullable.update(_holders(path, schema.names))
    sizes = tuple((group.num_rows, group.total_byte_size) for group in groups)
    return ArrowFile(file, schema, sizes, frozenset(nullable))


def _holders(path: str, names: Sequence[str]) -> set[str]:
    """Return the columns that may hold a leaf: names have dots too, as paths of fields have.

    Parameters
    ----------
    path : str
        Path of the leaf, such as "address.street".
    names : sequence of str
        Names of the columns.
    """
    parts = path.split(".")
    prefixes = {".".join(parts[: count + 1]) for count in range(len(parts))}
    return prefixes & set(names)


def _open_ipc(file: TableFile, stream: Any) -> ArrowFile:
    try:
        found = ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        schema = ipc.open_stream(stream).schema
        # A stream has no list of its batches: it is one piece, which may be without any.
        return ArrowFile(file, schema, ((-1, 0),), frozenset(schema.names))
    schema = found.schema
    # The sizes of batches are known only when they are read.
    size = (file.size or 0) // max(found.num_record_batches, 1)
    return ArrowFile(
        file, schema, ((-1, size),) * found.num_record_batches, frozenset(schema.names)
    )


def _open_orc(file: TableFile, stream: Any) -> ArrowFile:
    found = orc.ORCFile(stream)
    size = (file.size or 0) // max(found.nstripes, 1)
    schema = found.schema
    return ArrowFile(file, schema, ((-1, size),) * found.nstripes, frozenset(schema.names))


def blocks_of(found: ArrowFile) -> list[ArrowBlock]:
    """Return the blocks of a file, of about `BLOCK_BYTES`; one without pieces if it has no rows."""
    blocks: list[ArrowBlock] = []
    pieces: list[int] = []
    size = rows = 0
    first: int | None = 0
    for place, (count, length) in enumerate(found.pieces):
        if pieces and size + length > BLOCK_BYTES:
            blocks.append(ArrowBlock(found.file, tuple(pieces), first))
            pieces, size = [], 0
            first = None if rows < 0 else rows
        pieces.append(place)
        size += length
        rows = -1 if rows < 0 or count < 0 else rows + count
    blocks.append(ArrowBlock(found.file, tuple(pieces), first))
    return blocks


def check_schemas(found: Sequence[ArrowFile], wanted: Sequence[str]) -> pa.Schema:
    """Return the type that each wanted column has in all files.

    Integers may differ in their width, floats too, and a column without any value fits all.

    Parameters
    ----------
    found : sequence of ArrowFile
    wanted : sequence of str
        Names of columns; those that no file has are left out.

    Raises
    ------
    InputError
        A file lacks a column that others have, or has it with another type.
    """
    fields = []
    # pyarrow makes a new list of the names each time.
    names = [frozenset(file.schema.names) for file in found]
    for name in wanted:
        holder = next((f for f, known in zip(found, names, strict=True) if name in known), None)
        if holder is None:
            continue
        kind = holder.schema.field(name).type
        for file, known in zip(found, names, strict=True):
            if name not in known:
                raise InputError(
                    f"{file.file.path} has no column {name!r}, which {holder.file.path} has",
                    "write the file again with this column, or name the other files with a glob",
                    option="path",
                    column=name,
                )
            other = file.schema.field(name).type
            common = _common_type(kind, other)
            if common is None:
                raise InputError(
                    f"column {name!r} is {kind} in {holder.file.path}, and {other} in "
                    f"{file.file.path}",
                    "write the files with one type",
                    option="path",
                    column=name,
                )
            kind = common
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


def _common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return the type that holds all values of both; None if there is none."""
    if pa.types.is_dictionary(a) or pa.types.is_dictionary(b):
        a, b = (t.value_type if pa.types.is_dictionary(t) else t for t in (a, b))
    if a == b:
        return a
    if pa.types.is_null(a) or pa.types.is_null(b):
        return b if pa.types.is_null(a) else a
    if is_text(a) and is_text(b):
        return pa.large_string()
    kinds = (pa.types.is_signed_integer, pa.types.is_unsigned_integer, pa.types.is_floating)
    for is_kind in kinds:
        if is_kind(a) and is_kind(b):
            return a if a.bit_width >= b.bit_width else b
    return None


def read_pieces(block: ArrowBlock, schema: pa.Schema) -> pa.Table:
    """Return the rows of a block.

    Parameters
    ----------
    block : ArrowBlock
    schema : pyarrow.Schema
        Columns to return, with their types.

    Raises
    ------
    InputError
        The file cannot be read, or has changed since it was opened.
    """
    try:
        with open_seekable(block.file.path) as stream:
            table = _read(block, stream, schema.names)
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, OSError, EOFError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{block.file.path} cannot be read: {reason[:300]}",
            "check that the file is complete, and that nobody changes it meanwhile",
            option="path",
            reason=reason,
        ) from error


def _read(block: ArrowBlock, stream: Any, names: list[str]) -> pa.Table:
    pieces = list(block.pieces)
    if block.file.format == "parquet":
        return pq.ParquetFile(stream).read_row_groups(pieces, columns=names, use_threads=False)
    if block.file.format == "orc":
        found = orc.ORCFile(stream)
        if not pieces:
            return found.read(columns=names)
        return pa.Table.from_batches([found.read_stripe(piece, columns=names) for piece in pieces])
    return _read_ipc(stream, pieces, names)


def _read_ipc(stream: Any, pieces: Sequence[int], names: list[str]) -> pa.Table:
    """Return record batches of a file; of a stream, which cannot be cut, all that there are."""
    try:
        found = ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        reader = ipc.open_stream(stream)
        batches, schema = [batch.select(names) for batch in reader], reader.schema
    else:
        batches, schema = [found.get_batch(each).select(names) for each in pieces], found.schema
    # Without a batch, the types come from the schema alone.
    return pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in names]))
