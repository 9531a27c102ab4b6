"""Opening of CSV files: dialect, headers, and the types of columns by their first rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dask_onnx.core.errors import InputError
from dask_onnx.io.csv_files import CsvDialect, CsvHead, check_delimiter, read_header
from dask_onnx.io.table_files import TableFile
from dask_onnx.io.text_cells import CellRules, infer_type
from dask_onnx.io.text_files import cut_blocks
from dask_onnx.jobs.csv_text import UTF_8, check_encoding, undecodable
from dask_onnx.jobs.opening_options import OpenOptions, heads_of, key_type, keys_of
from dask_onnx.jobs.table_columns import Choice, choose_columns, named_columns
from dask_onnx.jobs.table_request import TableRequest
from dask_onnx.jobs.table_source import TableBlock, TableReader, TableSource, read_dtypes

_SAMPLED_FILES = 8
"""Files whose first rows show the types of the columns."""


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
    try:
        heads = [
            read_header(file, head, dialect)
            for file, head in zip(files, heads_of(files), strict=True)
        ]
    except UnicodeDecodeError as error:
        raise undecodable(files, dialect.encoding) or error from None
    keys = keys_of(files)
    _check_headers(heads, keys)
    names = (*heads[0].names, *(key for key in keys if key not in heads[0].names))
    _refuse_duplicates(heads[0], options)
    # The first rows of some files, the first and the last among them.
    step = max(1, -(-len(heads) // _SAMPLED_FILES))
    sampled = {id(head): head for head in (*heads[::step], heads[-1])}.values()

    def infer(name: str, exact: bool) -> pa.DataType:
        if name in keys:
            return key_type(keys[name])
        cells = [chunk for head in sampled for chunk in head.sample.column(name).chunks]
        texts = [v.decode(errors="replace") for chunk in cells for v in chunk.to_pylist()]
        marks = rules.marks(name, is_text=False)
        return infer_type(pa.array(texts, pa.string()), marks, exact=exact, decimal=rules.decimal)

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
    return TableSource(path, files, reader, blocks, read.fed)


def _rules(request: TableRequest) -> CellRules:
    missing, by_column = request.na_values or (), {}
    if not isinstance(missing, Sequence):
        by_column = {
            name: (texts,) if isinstance(texts, str) else tuple(map(str, texts))
            for name, texts in missing.items()
        }
        missing = ()
    return CellRules(tuple(map(str, missing)), by_column, request.decimal or ".")


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
