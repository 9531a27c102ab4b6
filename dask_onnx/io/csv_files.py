"""CSV files: header, types of columns from a sample, and rows as Arrow tables.

The rows are parsed by Arrow as bytes. `text_cells` makes values of them.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.io.table_files import TableFile
from dask_onnx.io.text_files import (
    BLOCK_BYTES,
    TextBlock,
    Utf8Stream,
    bom_bytes,
    open_text,
    read_block_bytes,
    read_exactly,
    to_utf8,
)

_MOST_BYTES = 2**31 - 1
"""Most bytes that Arrow parses at once."""
_STREAM_BYTES = 2**22
"""Bytes that Arrow parses at once in a stream, the longest row. It reads 32 times as much ahead."""
_LOOK_BACK_BYTES = 2**16
"""Bytes at the end of a sample among which a line end outside quotes is searched for."""
_LINE_END = ord("\n")


class SplitInQuotesError(Exception):
    """A block begins or ends inside a quoted cell: the file has to be read as a stream."""


@dataclass(frozen=True, slots=True)
class CsvDialect:
    """Form of a CSV file."""

    delimiter: str = ","
    encoding: str = "utf-8"
    """Python's name of the encoding."""
    tolerant: bool = False
    """True to keep bytes that are not in the encoding, whose rows are bad ones."""


@dataclass(frozen=True, slots=True)
class CsvHead:
    """Beginning of one CSV file."""

    file: TableFile
    cells: tuple[str, ...]
    """Cells of the header as they are written."""
    names: tuple[str, ...]
    """Names of the columns; those that occur again have a number: "a", "a.1"."""
    duplicates: tuple[str, ...]
    """Names in the header that occur more than once."""
    offset: int
    """Bytes before the first row."""
    has_breaks: bool
    """True if cells of the sample have line breaks, or the lines end in bare carriage returns."""
    sample: pa.Table
    """First rows, as bytes."""


def read_header(file: TableFile, head: bytes, dialect: CsvDialect) -> CsvHead:
    """Return the names of the columns and the first rows of a file.

    Parameters
    ----------
    file : TableFile
    head : bytes
        Its first lines; see `text_files.read_head`.
    dialect : CsvDialect

    Raises
    ------
    InputError
        There is no header; the first rows are not as long as it.
    UnicodeDecodeError
        The text is not in the encoding.
    """
    skipped = bom_bytes(head)
    errors = "surrogateescape" if dialect.tolerant else "strict"
    text = head[skipped:].decode(dialect.encoding, errors)
    lines = _Lines(text)
    rows = csv.reader(lines, delimiter=dialect.delimiter)
    cells = next((row for row in rows if row), None)
    if cells is None:
        raise InputError(
            f"{file.path} has no header",
            "give the file a first line with the names of its columns",
            option="path",
        )
    names, duplicates = _unique_names(cells)
    header = text[: lines.used].encode(dialect.encoding, errors)
    rest = text[lines.used :].encode("utf-8", "surrogatepass" if dialect.tolerant else "strict")
    if dialect.tolerant and dialect.encoding == "utf-8":
        rest = head[skipped + len(header) :]
    sample = _sample(rest, names, dialect, file, lines.count)
    return CsvHead(
        file=file,
        cells=tuple(cells),
        names=names,
        duplicates=duplicates,
        offset=skipped + len(header),
        has_breaks=(bool(lines.used) and not header.endswith(b"\n")) or _has_breaks(sample),
        sample=sample,
    )


class _Lines:
    """Lines of a text, with the characters that were used so far."""

    def __init__(self, text: str) -> None:
        self._lines = io.StringIO(text, newline="")
        self.used = self.count = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._lines.readline()
        if not line:
            raise StopIteration
        self.used += len(line)
        self.count += 1
        return line


def _unique_names(cells: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names that differ, as pandas makes them, and those that occur more than once."""
    stripped = [cell.strip() for cell in cells]
    plain = [name or f"Unnamed: {place}" for place, name in enumerate(stripped)]
    counts = Counter(plain)
    names: dict[str, None] = {}
    for name in plain:
        unique, number = name, 0
        while unique in names or (number and unique in counts):
            number += 1
            unique = f"{name}.{number}"
        names[unique] = None
    return tuple(names), tuple(sorted(name for name, count in counts.items() if count > 1))


def _sample(
    data: bytes, names: Sequence[str], dialect: CsvDialect, file: TableFile, header_lines: int
) -> pa.Table:
    """Return the rows of a sample, whose end may be inside quotes."""
    cut = data.rfind(b"\n", 0, max(len(data) - _LOOK_BACK_BYTES, 0)) + 1
    for end in range(len(data), cut, -1) if data.count(b'"') % 2 else ():
        if data[end - 1] == _LINE_END and not data.count(b'"', 0, end) % 2:
            data = data[:end]
            break
    is_open = bool(data.count(b'"') % 2)
    return _parse(data, names, names, dialect, file, header_lines, is_open=is_open)


def _has_breaks(table: pa.Table) -> bool:
    return any(b"\n" in (value or b"") for column in table.columns for value in column.to_pylist())


def _parse(
    data: bytes,
    names: Sequence[str],
    wanted: Sequence[str],
    dialect: CsvDialect,
    file: TableFile,
    header_lines: int | None,
    *,
    is_open: bool = False,
) -> pa.Table:
    """Return the cells of whole rows as bytes; without rows that do not fit if `is_open`."""
    if not data.strip(b"\r\n"):
        return pa.table({name: pa.array([], pa.binary()) for name in wanted})
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=_read_options(names, min(max(len(data), 1), _MOST_BYTES)),
            parse_options=_parse_options(dialect, (lambda _: "skip") if is_open else None),
            # The last column shows whether the text ends inside quotes.
            convert_options=_convert_options({*wanted, names[-1]}),
        )
    except pa.ArrowInvalid as error:
        raise bad_row(file, error, header_lines) from None
    last = table.column(names[-1])[-1].as_py() if len(table) else b""
    if not is_open and b"\n" in last and not data.rstrip(b"\r\n").endswith(b'"'):
        raise _open_quote(file)
    return table.select(list(wanted))


def _read_options(names: Sequence[str], block_bytes: int) -> Any:
    return arrow_csv.ReadOptions(
        column_names=list(names), use_threads=False, block_size=block_bytes
    )


def _parse_options(dialect: CsvDialect, invalid_rows: Any = None) -> Any:
    return arrow_csv.ParseOptions(
        delimiter=dialect.delimiter, newlines_in_values=True, invalid_row_handler=invalid_rows
    )


def _convert_options(wanted: Any) -> Any:
    return arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(wanted, pa.binary()),
        include_columns=list(wanted),
        strings_can_be_null=False,
        check_utf8=False,
    )


def bad_row(file: TableFile, error: Exception, header_lines: int | None = None) -> InputError:
    """Return the error about a row with too many or too few cells."""
    reason = " ".join(str(error).split())
    place = "" if header_lines is None else f" (rows are counted after line {header_lines})"
    return InputError(
        f"{file.path} has a row that cannot be read{place}: {reason[:300]}",
        "fix the row: each needs as many cells as the header, with quotes around cells that hold "
        "the delimiter",
        option="path",
        reason=reason,
    )


def _open_quote(file: TableFile) -> InputError:
    return InputError(
        f"{file.path} has a quoted cell that is not closed before the end of the file",
        "close the quote, or write quotes inside cells twice",
        option="path",
    )


def read_cells(
    block: TextBlock, names: Sequence[str], wanted: Sequence[str], dialect: CsvDialect
) -> pa.Table:
    """Return the cells of a block that is no stream, as bytes.

    Parameters
    ----------
    block : TextBlock
    names : sequence of str
        Names of the file's columns.
    wanted : sequence of str
        Columns to return.
    dialect : CsvDialect

    Raises
    ------
    SplitInQuotesError
        The block begins or ends inside quotes.
    InputError
        A row has too many or too few cells.
    UnicodeDecodeError
        The text is not in the encoding.
    """
    data = to_utf8(read_block_bytes(block), dialect.encoding, tolerant=dialect.tolerant)
    # The first block that ends inside quotes has an odd number of them.
    if not block.is_whole and data.count(b'"') % 2:
        raise SplitInQuotesError(block.file.path)
    return _parse(data, names, wanted, dialect, block.file, None)


def cuts_cells(blocks: Iterable[TextBlock]) -> bool:
    """Return whether one of the blocks of some files begins or ends inside quotes.

    A block after it, with both ends inside quotes, cannot know: its rows are wrong, or an error.

    Raises
    ------
    InputError, OSError
        A file cannot be read.
    """
    return any(
        read_block_bytes(block).count(b'"') % 2
        for block in blocks
        if not block.is_stream and not block.is_whole
    )


def stream_cells(
    block: TextBlock, names: Sequence[str], wanted: Sequence[str], dialect: CsvDialect
) -> Iterator[pa.Table]:
    """Return the cells of a file in tables of about `BLOCK_BYTES` of text; at least one table.

    Raises
    ------
    InputError, UnicodeDecodeError
        As for `read_cells`.
    """
    empty = pa.table({name: pa.array([], pa.binary()) for name in wanted})
    with open_text(block.file) as raw:
        read_exactly(raw, block.start)
        text = Utf8Stream(raw, dialect.encoding, tolerant=dialect.tolerant)
        # The last rows are held back until it is known that the file does not end inside quotes.
        held: list[pa.RecordBatch] = []
        try:
            reader = arrow_csv.open_csv(
                pa.PythonFile(io.BufferedReader(text), "r"),
                read_options=_read_options(names, _STREAM_BYTES),
                parse_options=_parse_options(dialect),
                convert_options=_convert_options({*wanted, names[-1]}),
            )
            for batch in reader:
                if sum(each.nbytes for each in held) > BLOCK_BYTES:
                    yield pa.Table.from_batches(held).select(list(wanted))
                    held = []
                if len(batch):
                    held.append(batch)
        except pa.ArrowInvalid as error:
            if "straddling" in str(error):
                raise _long_row(block.file) from None
            if "Empty CSV file" not in str(error):
                raise bad_row(block.file, error) from None
        last = held[-1].column(names[-1])[-1].as_py() if held else b""
        if b"\n" in last and text.tail != b'"':
            raise _open_quote(block.file)
        yield pa.Table.from_batches(held).select(list(wanted)) if held else empty


def _long_row(file: TableFile) -> InputError:
    return InputError(
        f"{file.path} has a row of more than {_STREAM_BYTES:,} bytes, and is read as a stream",
        "close a quote that is open, or write the table as Parquet or without compression",
        option="path",
        numbers={"most_bytes": _STREAM_BYTES},
    )


def check_delimiter(delimiter: str) -> str:
    r"""Return the character that separates columns; "tab" and "\\t" mean a tab.

    Raises
    ------
    InputError
        It is not one ASCII character that cannot be a part of a number.
    """
    found = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
    is_one = (len(found) == 1 and found.isascii() and found.isprintable()) or found == "\t"
    if not is_one or found.isalnum() or found in "\"'.+-\\":
        raise InputError(
            f"the delimiter is {delimiter!r}",
            "give one character, such as ',', ';', '|' or tab",
            option="delimiter",
            suggestions=[Suggestion("delimiter", each) for each in (";", "tab")],
        )
    return found
