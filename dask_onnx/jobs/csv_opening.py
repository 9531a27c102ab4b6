"""Opening of CSV files: dialect, headers, and the types of columns by their first rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.io.csv_files import CsvDialect, CsvHead, check_delimiter, read_header
from dask_onnx.io.table_files import TableFile
from dask_onnx.io.text_cells import CellRules, infer_type, odd_cell
from dask_onnx.io.text_files import cut_blocks
from dask_onnx.jobs.csv_text import UTF_8, check_encoding, undecodable
from dask_onnx.jobs.opening_options import OpenOptions, heads_of, key_type, keys_of
from dask_onnx.jobs.table_columns import Choice, choose_columns, named_columns
from dask_onnx.jobs.table_request import TableRequest
from dask_onnx.jobs.table_source import TableBlock, TableReader, TableSource, read_dtypes

_SAMPLED_FILES = 8
"""Files whose first rows show the types of the columns."""
_DELIMITERS = ";\t|,"
"""Characters that usually separate columns."""
_SHOWN = 5
"""Names of columns that an error lists."""


def _dialect(request: TableRequest, files: Sequence[TableFile]) -> CsvDialect:
    default = "\t" if files[0].is_tab_separated else ","
    delimiter = default if request.delimiter is None else check_delimiter(request.delimiter)
    if request.decimal == delimiter:
        raise InputError(
            f"{delimiter!r} is both the delimiter and the decimal sign",
            "give the delimiter too, such as ';'",
            option="decimal",
        )
    encoding = check_encoding(request.encoding or UTF_8)
    return CsvDialect(delimiter, encoding, tolerant=request.keeps_bad_rows)


def open_csv(path: str, files: tuple[TableFile, ...], options: OpenOptions) -> TableSource:
    """Open a table of CSV files; see `table_opening.open_table`."""
    request = options.request
    dialect, rules = _dialect(request, files), _rules(request)
    has_encoding = dialect.encoding != UTF_8
    try:
        heads = [
            read_header(file, head, dialect)
            for file, head in zip(files, heads_of(files, has_encoding=has_encoding), strict=True)
        ]
    except UnicodeDecodeError as error:
        raise undecodable(files, dialect.encoding) or error from None
    keys = keys_of(files)
    _check_first_line(heads[0], options)
    _check_headers(heads, keys)
    names = (*heads[0].names, *(key for key in keys if key not in heads[0].names))
    _refuse_duplicates(heads[0], options)
    sample = _Sample.of(heads, rules)

    def infer(name: str, exact: bool) -> pa.DataType:
        return key_type(keys[name]) if name in keys else sample.type_of(name, exact=exact)

    choice = Choice(
        names=names,
        inputs=options.inputs,
        request=request,
        infer=infer,
        nullable=lambda _: True,
        is_verbatim=options.is_verbatim,
        keys=tuple(keys),
    )
    read = choose_columns(choice)
    reader = TableReader(
        columns=read.columns,
        dtypes=read_dtypes(read.columns, {}, tolerant=dialect.tolerant),
        dialect=dialect,
        rules=rules,
        keys=tuple(keys),
    )
    blocks = tuple(
        TableBlock(place, head.names)
        for head in heads
        for place in cut_blocks(
            head.file,
            head.offset,
            options.block_bytes,
            whole=options.whole_files or head.has_breaks,
        )
    )
    stated = {*keys, *request.dtypes}
    odd = sample.odd_cells(name for name in heads[0].names if name not in stated)
    return TableSource(path, files, reader, blocks, read.fed, odd)


@dataclass(frozen=True, slots=True)
class _Sample:
    """First rows of some files of a table, which show the types of its columns."""

    heads: tuple[CsvHead, ...]
    rules: CellRules

    @classmethod
    def of(cls, heads: Sequence[CsvHead], rules: CellRules) -> _Sample:
        """Return the sample of a table, of whose files the first and the last are a part."""
        step = max(1, -(-len(heads) // _SAMPLED_FILES))
        return cls(tuple({id(head): head for head in (*heads[::step], heads[-1])}.values()), rules)

    def texts_of(self, name: str) -> pa.Array:
        """Return the cells of a column as text; bytes that are none are replaced."""
        cells = [chunk for head in self.heads for chunk in head.sample.column(name).chunks]
        texts = [v.decode(errors="replace") for chunk in cells for v in chunk.to_pylist()]
        return pa.array(texts, pa.string())

    def type_of(self, name: str, *, exact: bool) -> pa.DataType:
        """Return the type of a column; see `text_cells.infer_type`."""
        marks = self.rules.marks(name, is_text=False)
        return infer_type(self.texts_of(name), marks, exact=exact, decimal=self.rules.decimal)

    def odd_cells(self, names: Iterable[str]) -> dict[str, str]:
        """Return the cells for which columns are text; see `text_cells.odd_cell`."""
        found = {name: odd_cell(self.texts_of(name), self.rules, name) for name in names}
        return {name: cell for name, cell in found.items() if cell is not None}


def _rules(request: TableRequest) -> CellRules:
    missing, by_column = request.na_values or (), {}
    if isinstance(missing, Mapping):
        by_column = {
            name: (texts,) if isinstance(texts, str) else tuple(map(str, texts))
            for name, texts in missing.items()
        }
        missing = ()
    return CellRules(tuple(map(str, missing)), by_column, request.decimal or ".")


def _check_first_line(head: CsvHead, options: OpenOptions) -> None:
    """Refuse a first line that is no header, or one of columns with another delimiter.

    A caller who names a column as the line has it knows that it is the header.

    Raises
    ------
    InputError
        All of its cells are numbers that do not count the columns; or it is one cell with a
        character that usually separates columns.
    """
    request, names = options.request, head.names
    if any(name in names for name in named_columns(request)):
        return
    if len(names) == 1 and request.delimiter is None:
        found = next((each for each in _DELIMITERS if each in names[0]), None)
        if found is not None:
            text = "tab" if found == "\t" else found
            raise InputError(
                f"{head.file.path} has the one column {names[0]!r}: {found!r} is between its names",
                f"pass delimiter={text!r}, or name the column if there is only one",
                option="delimiter",
                suggestions=[Suggestion("delimiter", text)],
            )
    if _are_values(head.cells, _rules(request)):
        shown = ", ".join(head.cells[:_SHOWN])
        raise InputError(
            f"the first line of {head.file.path} has numbers and no names of columns: {shown}"
            f"{', ...' if len(names) > _SHOWN else ''}",
            "give the file a first line with the names of its columns; if these are the names, "
            f"name those that feed the model: columns={list(names[:_SHOWN])}",
            option="path",
            numbers={"columns": len(names)},
        )


def _are_values(cells: Sequence[str], rules: CellRules) -> bool:
    """Return whether a header is a row of values: numbers that do not count the columns.

    Tables without names of their own are often written with the numbers of their columns.
    """
    texts = tuple(cell.strip() for cell in cells)
    texts = texts[1:] if not texts[0] else texts  # the name of an index that pandas wrote
    if texts in {tuple(map(str, range(first, first + len(texts)))) for first in (0, 1)}:
        return False
    marks = rules.marks("", is_text=False)
    if not texts or all(text in marks for text in texts):
        return False
    kind = infer_type(pa.array(texts, pa.string()), marks, exact=False, decimal=rules.decimal)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _check_headers(heads: Sequence[CsvHead], keys: dict[str, Any]) -> None:
    """Compare the headers of the files with that of the first."""
    first = heads[0]
    wanted = set(first.names) - set(keys)
    for head in heads[1:]:
        if missing := [name for name in first.names if name in wanted - set(head.names)]:
            raise InputError(
                f"{head.file.path} has no column {missing[0]!r}, which {first.file.path} has",
                "give all files the same header, or name those that have it with a glob",
                option="path",
                column=missing[0],
            )


def _refuse_duplicates(head: CsvHead, options: OpenOptions) -> None:
    """Refuse columns of one name where an option, or an input by its own name, takes one of them.

    Raises
    ------
    InputError
        There are such columns.
    """
    request = options.request
    has_own = not (request.columns or request.text)
    by_input = {spec.name: "columns" for spec in options.inputs} if has_own else {}
    for name, option in (by_input | named_columns(request)).items():
        if name in head.duplicates:
            count = sum(each == name or each.startswith(f"{name}.") for each in head.names)
            what = "an option" if name in named_columns(request) else "the model's input"
            raise InputError(
                f"{head.file.path} has {count} columns {name!r}, and {what} names one of them",
                "give the columns different names in the header",
                option=option,
                column=name,
                numbers={"columns": count},
            )
