"""Parquet and Arrow files: columns that may lack values, and files without batches."""

from __future__ import annotations

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from dask_onnx.io.arrow_files import blocks_of, open_arrow_files, read_pieces
from dask_onnx.io.table_files import find_table


def test_a_name_with_a_dot_is_not_taken_for_a_field_of_another_column(tmp_path):
    columns = {
        "x.y": pa.array([1, None], pa.int64()),
        "x": pa.array([1, 2], pa.int64()),
        "s": pa.array([{"t": 1}, {"t": None}]),
    }
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    (found,) = open_arrow_files(find_table(str(tmp_path / "rows.parquet")))
    # A field "y" of "x" would have the same path, so that both are taken for such columns.
    assert found.nullable == {"x.y", "x", "s"}
    parquet.write_table(pa.table({"x.y": [1, 2], "z.y": [1, None]}), tmp_path / "plain.parquet")
    (found,) = open_arrow_files(find_table(str(tmp_path / "plain.parquet")))
    assert found.nullable == {"z.y"}


@pytest.mark.parametrize("write", [ipc.new_stream, ipc.new_file])
@pytest.mark.parametrize("rows", [0, 3])
def test_files_with_and_without_batches_have_the_columns_of_their_schema(tmp_path, write, rows):
    schema = pa.schema([("a", pa.float32()), ("b", pa.int64())])
    path = tmp_path / "rows.arrow"
    with pa.OSFile(str(path), "wb") as file, write(file, schema) as writer:
        if rows:
            writer.write_table(pa.table({"a": [1.0] * rows, "b": [2] * rows}, schema))
    (found,) = open_arrow_files(find_table(str(path)))
    wanted = pa.schema([schema.field("b")])
    tables = [read_pieces(block, wanted) for block in blocks_of(found)]
    assert sum(table.num_rows for table in tables) == rows
    assert all(table.schema.equals(wanted) for table in tables)
