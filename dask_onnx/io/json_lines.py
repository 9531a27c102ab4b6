"""Files of JSON lines: one record in each line, as Arrow tables."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pyarrow import json as arrow_json

from dask_onnx.core.errors import InputError
from dask_onnx.io.table_files import TableFile
from dask_onnx.io.text_files import (
    BLOCK_BYTES,
    TextBlock,
    bom_bytes,
    open_text,
    read_block_bytes,
    read_exactly,
    read_line_blocks,
)


def sample_schema(file: TableFile, head: bytes) -> pa.Schema:
    """Return names and types of the fields in the first records of a file.

    Texts stay texts, also those that look like times.

    Parameters
    ----------
    file : TableFile
    head : bytes
        Its first lines; see `text_files.read_head`.

    Raises
    ------
    InputError
        They are no records of JSON, or a field has values of several types.
    UnicodeDecodeError
        The text is not UTF-8.
    """
    data = head[bom_bytes(head) :]
    data.decode()
    if data.lstrip().startswith(b"["):
        raise InputError(
            f"{file.path} is a JSON array",
            "write one record in each line: jq -c '.[]' file.json > file.jsonl",
            option="path",
        )
    if not data.strip():
        return pa.schema([])
    try:
        found = arrow_json.read_json(pa.BufferReader(data), _read_options(len(data)))
    except pa.ArrowInvalid as error:
        raise _not_records(file, error) from None
    return pa.schema([(each.name, _plain_type(each.type)) for each in found.schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return a type as the file has it: Arrow makes times of texts that look like them."""
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_date(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(each.name, _plain_type(each.type)) for each in kind])
    return kind


def _read_options(size: int) -> arrow_json.ReadOptions:
    return arrow_json.ReadOptions(use_threads=False, block_size=max(size, 1))


def _not_records(file: TableFile, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(
        f"{file.path} cannot be read as JSON lines: {reason[:300]}",
        "write one record in each line, with values of one type in each field; numbers and texts "
        "of one field can be written as texts",
        option="path",
        reason=reason,
    )


def parse_records(data: bytes, file: TableFile, schema: pa.Schema, *, only: bool) -> pa.Table:
    """Return records as a table; a field that a record lacks is missing.

    Parameters
    ----------
    data : bytes
        Whole lines.
    file : TableFile
    schema : pyarrow.Schema
        Fields to return.
    only : bool
        True if other fields are an error rather than left out.

    Raises
    ------
    InputError
        They are no records of JSON, or values are not of the schema's types.
    UnicodeDecodeError
        The text is not UTF-8.
    """
    data.decode()
    if not data.strip():
        return schema.empty_table()
    options = arrow_json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="error" if only else "ignore"
    )
    try:
        table = arrow_json.read_json(pa.BufferReader(data), _read_options(len(data)), options)
    except pa.ArrowInvalid as error:
        raise _not_records(file, error) from None
    return table.select(schema.names).cast(schema)


def read_records(block: TextBlock, schema: pa.Schema, *, only: bool) -> pa.Table:
    """Return the records of a block that is no stream; see `parse_records`."""
    return parse_records(read_block_bytes(block), block.file, schema, only=only)


def stream_records(block: TextBlock, schema: pa.Schema, *, only: bool) -> Iterator[pa.Table]:
    """Return the records of a file in tables of about `BLOCK_BYTES` of text; at least one table."""
    has_rows = False
    with open_text(block.file) as stream:
        read_exactly(stream, block.start)
        for data in read_line_blocks(stream, BLOCK_BYTES):
            has_rows = True
            yield parse_records(data, block.file, schema, only=only)
    if not has_rows:
        yield schema.empty_table()
