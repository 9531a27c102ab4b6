"""Opening of tables: files are found, headers and schemas compared, and columns chosen.

Everything that differs between the files of a table is told here, before any work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from dask_onnx.api.model import Model
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.io.arrow_files import ArrowFile, blocks_of, check_schemas, open_arrow_files
from dask_onnx.io.json_lines import sample_schema
from dask_onnx.io.table_files import TableFile, find_table
from dask_onnx.io.table_frames import is_text
from dask_onnx.io.text_files import bom_bytes, cut_blocks
from dask_onnx.jobs.csv_opening import open_csv
from dask_onnx.jobs.csv_text import UTF_8, undecodable
from dask_onnx.jobs.opening_options import OpenOptions, heads_of, key_type, keys_of
from dask_onnx.jobs.table_columns import (
    Choice,
    ReadColumn,
    ReadColumns,
    check_names,
    choose_columns,
    named_columns,
)
from dask_onnx.jobs.table_request import TableRequest
from dask_onnx.jobs.table_source import (
    TableBlock,
    TableReader,
    TableSource,
    read_dtypes,
)

_CSV_OPTIONS = ("encoding", "na_values", "delimiter", "decimal")


def open_table(path: str, options: OpenOptions) -> TableSource:
    """Open a table.

    Parameters
    ----------
    path : str
        Path or URL of a file or folder, or a glob.
    options : OpenOptions

    Raises
    ------
    InputError
        Nothing is there; a file cannot be read, lacks a column that others have, or has it with
        another type; an option is not for this format; a column that an option names is missing.
    """
    files = find_table(path)
    kind = files[0].format
    _check_options(options.request, path, kind)
    if kind == "csv":
        return open_csv(path, files, options)
    if kind == "jsonl":
        return _open_json(path, files, options)
    return _open_arrow(path, files, options)


def inputs_of(model: Model, outputs: Sequence[str] | None) -> tuple[TensorSpec, ...]:
    """Return the inputs that some outputs need; all of them for outputs that do not exist.

    Parameters
    ----------
    model : Model
    outputs : sequence of str or None
        Names; None for the outputs of the model.
    """
    names = tuple(outputs or (spec.name for spec in model.outputs))
    if not all(model.facts.is_known(name) for name in names):
        return model.inputs
    return tuple(model._facts.inputs_of(names))


def _check_options(request: TableRequest, path: str, kind: str) -> None:
    for name in _CSV_OPTIONS:
        if getattr(request, name) is not None and kind != "csv":
            step = {
                "encoding": "leave it out: text in other formats is UTF-8",
            }.get(name, "leave it out: this format has types and missing values of its own")
            what = {"encoding": "an encoding", "na_values": "na_values"}.get(name, f"a {name}")
            raise InputError(f"{what} is for .csv, and {path} is another format", step, option=name)


def _open_json(path: str, files: tuple[TableFile, ...], options: OpenOptions) -> TableSource:
    request = options.request
    heads = heads_of(files)
    try:
        schemas = [sample_schema(f, head) for f, head in zip(files, heads, strict=True)]
    except UnicodeDecodeError as error:
        raise undecodable(files, UTF_8) or error from None
    try:
        schema = (
            pa.unify_schemas([each for each in schemas if each.names], promote_options="permissive")
            if any(each.names for each in schemas)
            else pa.schema([])
        )
    except pa.ArrowException as error:
        raise InputError(
            f"the files of {path} have fields of different types: {error}",
            "write each field with values of one type in all files",
            option="path",
            reason=str(error),
        ) from error
    keys = keys_of(files)
    names = (*schema.names, *(key for key in keys if key not in schema.names))
    if not names:
        raise InputError(f"{path} has no records", "write one record in each line", option="path")

    def infer(name: str, exact: bool) -> pa.DataType:
        if name in keys:
            return key_type(keys[name])
        found = schema.field(name).type
        return pa.string() if pa.types.is_null(found) else found

    choice = _typed_choice(names, infer, options, tuple(keys))
    read = _as_numbers(choose_columns(choice), options)
    reader = TableReader(
        columns=read.columns,
        dtypes=read_dtypes(read.columns, {}, tolerant=False),
        keys=tuple(keys),
        only_known=request.append is True,
    )
    blocks = tuple(
        TableBlock(place)
        for file, head in zip(files, heads, strict=True)
        for place in cut_blocks(file, bom_bytes(head), options.block_bytes, whole=False)
    )
    return TableSource(path, files, reader, blocks, read.fed)


def _as_numbers(read: ReadColumns, options: OpenOptions) -> ReadColumns:
    """Read integers that only feed float inputs as float64: later records may have decimals."""
    request = options.request
    written = read.names if request.append is True else request.kept
    floats = {
        spec.name for spec in options.inputs if spec.dtype is not None and spec.dtype.kind == "f"
    }
    if not isinstance(read.fed, dict) or not set(read.fed) <= floats:
        return read
    fed = {name for group in read.fed.values() for name in group}
    free = fed - set(written) - set(request.dtypes)
    return ReadColumns(
        tuple(
            ReadColumn(each.name, pa.float64())
            if each.name in free and pa.types.is_integer(each.type)
            else each
            for each in read.columns
        ),
        read.fed,
    )


def _typed_choice(
    names: tuple[str, ...], infer: Any, options: OpenOptions, keys: tuple[str, ...]
) -> Choice:
    return Choice(
        names=names,
        inputs=options.inputs,
        request=options.request,
        infer=infer,
        nullable=lambda _: True,
        is_typed=True,
        keys=keys,
    )


def _open_arrow(path: str, files: tuple[TableFile, ...], options: OpenOptions) -> TableSource:
    found, keys = open_arrow_files(files), keys_of(files)
    first, request = found[0].schema, options.request
    duplicates = {name for name, count in Counter(first.names).items() if count > 1}
    if duplicates:
        raise InputError(
            f"{files[0].path} has several columns {min(duplicates)!r}",
            "write the file with different names",
            option="path",
            column=min(duplicates),
        )
    index = _index_names(first)
    hidden = [name for name in index if name not in named_columns(request)]
    stored = [name for name in first.names if name not in hidden and name not in keys]
    # A column that only other files have may be named: the first file is then the one at fault.
    holders: dict[str, ArrowFile] = {}
    for file in found:
        for name in file.schema.names:
            holders.setdefault(name, file)
    named = [name for name in named_columns(request) if name in holders and name not in stored]
    names = (*stored, *named, *keys)
    check_names(names, named_columns(request))
    nullable = frozenset().union(*(file.nullable for file in found))
    kinds = {name: _plain(holders[name].schema.field(name).type) for name in (*stored, *named)}

    def infer(name: str, exact: bool) -> pa.DataType:
        return key_type(keys[name]) if name in keys else kinds[name]

    choice = _typed_choice(names, infer, options, tuple(keys))
    read = choose_columns(replace(choice, nullable=lambda name: name in nullable or name in keys))
    wanted = [name for name in read.names if name not in keys]
    schema = check_schemas(found, [*wanted, *_kept_index(hidden)])
    columns = []
    for column in read.columns:
        if column.name not in keys:
            kind = _plain(schema.field(column.name).type)
            is_cast = column.stored_as is not None
            column = ReadColumn(
                column.name,
                column.type if is_cast else kind,
                stored_as=kind if is_cast else None,
            )
        columns.append(column)
    row_index = next(iter(_kept_index(hidden)), None)
    if row_index is not None:
        columns.append(ReadColumn(row_index, _plain(schema.field(row_index).type)))
    reader = TableReader(
        columns=tuple(columns),
        dtypes=read_dtypes(
            columns, {c.name: c.name in nullable or c.name in keys for c in columns}, tolerant=False
        ),
        keys=tuple(keys),
        index=row_index,
    )
    blocks = tuple(TableBlock(block) for file in found for block in blocks_of(file))
    return TableSource(path, files, reader, blocks, read.fed)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of values of a dictionary; of texts always the same."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return pa.large_string() if is_text(kind) else kind


def _index_names(schema: pa.Schema) -> list[str]:
    """Return the columns that hold the index of the table that pandas wrote."""
    found = (schema.pandas_metadata or {}).get("index_columns", [])
    return [name for name in found if isinstance(name, str) and name in schema.names]


def _kept_index(hidden: Sequence[str]) -> list[str]:
    """Return the index that is restored: one column with a name that the caller gave."""
    named = [name for name in hidden if not name.startswith("__index_level_")]
    return named if len(hidden) == 1 else []
