"""Tables of every format: columns, dtypes and rows, whatever the blocks are."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather, ipc, orc
from pyarrow import parquet as pq

from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.io.csv_files import SplitInQuotesError
from dask_onnx.jobs.opening_options import OpenOptions
from dask_onnx.jobs.table_opening import open_table
from dask_onnx.jobs.table_request import TableRequest

NUMBERS = (TensorSpec("x", np.dtype("f4"), ("N", None)),)
TEXT = (TensorSpec("zip", np.dtype(object), ("N", 1)),)
TEXTS = (TensorSpec("x", np.dtype(object), ("N", 2)),)
INTEGERS = (TensorSpec("x", np.dtype("i8"), ("N", 1)),)


def opened(path, inputs=NUMBERS, *, block_bytes=2**20, whole=False, verbatim=False, **options):
    request = TableRequest(**options)
    found = OpenOptions(request, inputs, verbatim, whole_files=whole, block_bytes=block_bytes)
    return open_table(str(path), found)


def read(path, inputs=NUMBERS, **options):
    """Return all rows, after a check that every block has the dtypes of the table."""
    source = opened(path, inputs, **options)
    frames = [frame for block in source.blocks for frame in source.reader.stream(block)]
    for frame in frames:
        assert frame.dtypes.to_dict() == source.reader.meta.dtypes.to_dict()
    return pd.concat(frames)


def written(folder, content, name="in.csv"):
    (folder / name).write_bytes(content)
    return folder / name


def cells(table, column):
    return [None if value is pd.NA or value != value else value for value in table[column]]


def test_inputs_of_strings_decide_that_a_column_is_text(tmp_path):
    path = written(tmp_path, b"zip,v\n01234,1\nNA,2\n,3\nnull,4\n")
    assert read(path, TEXT)["zip"].to_list() == ["01234", "NA", "", "null"]
    assert read(path, TEXT, na_values={"zip": "NA"})["zip"].isna().to_list() == [0, 1, 0, 0]
    found = read(path, TEXTS)
    assert found.to_numpy().tolist()[0] == ["01234", "1"]
    assert read(path, TEXTS, columns=["v", "zip"])["v"].to_list() == ["1", "2", "3", "4"]


def test_inputs_that_no_option_names_take_the_columns_of_their_names(tmp_path):
    inputs = (
        TensorSpec("zip", np.dtype(object), ("N", 1)),
        TensorSpec("b", np.dtype("f4"), ("N", 1)),
    )
    path = written(tmp_path, b"zip,v\n01234,1\n05,2\n")
    found = read(path, inputs, columns={"b": "v"})
    assert found["zip"].to_list() == ["01234", "05"] and found["v"].to_list() == [1, 2]


def test_kept_identifiers_are_written_as_they_were(tmp_path):
    path = written(tmp_path, b"a,zip,id,n\n1,01234,9007199254740993,7\n2,5,1,\n")
    found = read(path, columns=["a"], append=["zip", "id", "n"])
    assert found["zip"].to_list() == ["01234", "5"]
    assert cells(found, "id") == [2**53 + 1, 1] and cells(found, "n") == [7, None]
    found = read(path, columns=["a"], append=["zip", "id", "n"], verbatim=True)
    assert found["id"].to_list() == ["9007199254740993", "1"]
    assert found["n"].to_list() == ["7", ""]


def test_a_later_block_cannot_change_a_type(tmp_path):
    path = written(tmp_path, b"a,id\n" + b"1,2\n" * 100_000 + b"1.5,007\n")
    assert read(path, columns=["a"])["a"].iloc[-1] == 1.5
    with pytest.raises(InputError) as raised:
        read(path, columns=["a"], append=["id"])
    error = raised.value
    assert (error.column, error.option) == ("id", "dtype") and str(path) in error.cause
    assert error.suggestions[0].value == "id=float64"
    found = read(path, columns=["a"], append=["id"], dtype={"id": "string"})
    assert found["id"].iloc[-1] == "007"


def test_a_column_that_feeds_the_model_and_is_kept_needs_a_type_if_zeros_would_be_lost(tmp_path):
    path = written(tmp_path, b"hour\n09\n10\n")
    assert read(path)["hour"].to_list() == [9, 10]
    with pytest.raises(InputError) as raised:
        opened(path, append=True)
    assert raised.value.option == "dtype" and raised.value.suggestions[0].value == "hour=int64"
    assert cells(read(path, append=True, dtype={"hour": "int64"}), "hour") == [9, 10]


def test_integers_of_64_bits_are_exact_with_missing_ones_among_them(tmp_path):
    path = written(tmp_path, b"a\n9223372036854775807\nNA\n-9007199254740993\n")
    assert cells(read(path, INTEGERS), "a") == [2**63 - 1, None, -(2**53) - 1]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_byte_order_marks_line_ends_and_blank_lines_are_no_data(tmp_path, start, end):
    content = start.replace(b"\r\n", end) + b'a,"b b", c'.join([b"", end])
    content += end.join([b"1,2,3", b"", b"4,5,6", b"", b""])
    path = written(tmp_path, content)
    found = read(path, block_bytes=8)
    assert found.columns.to_list() == ["a", "b b", "c"]
    assert found.to_numpy().tolist() == [[1, 2, 3], [4, 5, 6]]


def test_dialects(tmp_path):
    path = written(tmp_path, "a;b\n1,5;é\n".encode("cp1252"))
    options = {"delimiter": ";", "decimal": ",", "encoding": "cp1252"}
    found = read(path, columns=["a"], append=["b"], **options)
    assert found.to_numpy().tolist() == [[1.5, "é"]]
    path = written(tmp_path, b"a\tb\n1\t2,5\n", "in.tsv")
    assert read(path, append=["b"], columns=["a"])["b"].to_list() == ["2,5"]
    assert read(written(tmp_path, b"a\tb\n1\t2\n"), delimiter="tab").shape == (1, 2)


def test_headers_with_equal_names_are_numbered_and_cannot_be_named(tmp_path):
    path = written(tmp_path, b"a,a, b ,,a.1\n1,2,3,4,5\n")
    found = read(path)
    assert found.columns.to_list() == ["a", "a.2", "b", "Unnamed: 3", "a.1"]
    assert found.to_numpy().tolist() == [[1, 2, 3, 4, 5]]
    with pytest.raises(InputError) as raised:
        opened(path, columns=["a"])
    assert raised.value.column == "a"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (b"1,2\n3\n", "Expected 2 columns, got 1"),
        (b"1,2\n3,4,5\n", "Expected 2 columns, got 3"),
        (b'1,2\n3,"4\n', "not closed"),
        (b'1,2\n3,"4\n5,6\n', "not closed"),
    ],
)
def test_rows_of_another_length_and_open_quotes_are_errors(tmp_path, rows, words):
    for content, name in (
        (b"a,b\n" + rows, "in.csv"),
        (gzip.compress(b"a,b\n" + rows), "z.csv.gz"),
    ):
        path = written(tmp_path, content, name)
        with pytest.raises(InputError) as raised:
            read(path)
        assert words in raised.value.cause and str(path) in raised.value.cause
    late = b"a,b\n" + b"1,2\n" * 100_000 + rows
    for content, name in ((late, "in.csv"), (gzip.compress(late), "z.csv.gz")):
        with pytest.raises(InputError) as raised:
            read(written(tmp_path, content, name))
        assert words in raised.value.cause


ROWS = st.lists(
    st.tuples(st.integers(-999, 999), st.text('ab,"\n\r é', max_size=6)), min_size=1, max_size=20
)


@settings(max_examples=60)
@given(
    rows=ROWS,
    block_bytes=st.integers(1, 200),
    end=st.sampled_from(["\n", "\r\n"]),
    quotes=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
)
def test_any_blocks_give_the_rows_of_the_file_or_find_that_they_cut_a_cell(
    tmp_path_factory, rows, block_bytes, end, quotes
):
    if quotes == csv.QUOTE_MINIMAL:
        # Without quotes, a carriage return ends a line.
        rows = [(number, text.replace("\r", "")) for number, text in rows]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, quoting=quotes)
    writer.writerows([("a", "t"), *rows])
    path = written(tmp_path_factory.mktemp("csv"), text.getvalue().encode())
    options = {"columns": ["a"], "append": ["t"], "dtype": {"t": "string"}}
    expected = [list(row) for row in rows]
    whole = read(path, whole=True, block_bytes=1, **options)
    assert whole.to_numpy().tolist() == expected
    try:
        found = read(path, block_bytes=block_bytes, **options)
    except SplitInQuotesError:
        assert '"' in text.getvalue()
    else:
        assert found.to_numpy().tolist() == expected


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda data: pa.Codec("zstd").compress(data).to_pybytes()),
        # Several streams, one after the other, are one file.
        (".gz", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    ],
)
def test_compressed_files_are_read_as_streams(tmp_path, suffix, compress):
    content = b"a,zip\n" + b"".join(b"%d,%05d\n" % (i, i) for i in range(30_000))
    path = written(tmp_path, compress(content), f"in.csv{suffix}")
    assert [block.is_stream for block in opened(path).blocks] == [True]
    found = read(path, columns=["a"], append=["zip"])
    assert found["a"].to_list() == list(range(30_000))
    assert found["zip"].to_list() == [f"{i:05d}" for i in range(30_000)]
    records = b"".join(b'{"a":%d,"zip":"%05d"}\n' % (i, i) for i in range(3000))
    path = written(tmp_path, compress(records), f"in.jsonl{suffix}")
    assert read(path, columns=["a"], append=["zip"])["zip"].iloc[-1] == "02999"
    cut = written(tmp_path, compress(content)[:-20], f"cut.csv{suffix}")
    with pytest.raises(InputError) as raised:
        read(cut)
    assert str(cut) in raised.value.cause


def test_a_stream_comes_in_pieces_that_are_bounded(tmp_path):
    content = b"a,t\n" + b'1,"' + b"x" * 99 + b'\n"\n' + (b"2," + b"y" * 98 + b"\n") * 700_000
    path = written(tmp_path, gzip.compress(content, 1), "in.csv.gz")
    source = opened(path, columns=["a"], append=["t"])
    sizes = [len(frame) for block in source.blocks for frame in source.reader.stream(block)]
    assert sum(sizes) == 700_001 and max(sizes) * 100 < 2 * 32 * 2**20 and len(sizes) > 1
    long = written(tmp_path, gzip.compress(b"a,t\n1," + b"x" * 2**24 + b"\n"), "long.csv.gz")
    with pytest.raises(InputError) as raised:
        read(long, columns=["a"], dtype={"a": "int64", "t": "string"})
    assert "long.csv.gz" in raised.value.cause


def test_files_of_one_table_may_differ_in_the_order_and_number_of_columns(tmp_path):
    written(tmp_path, b"a,b\n1,2\n", "1.csv")
    written(tmp_path, b"c,b,a\n9,4,3\n", "2.csv")
    assert read(tmp_path)[["a", "b"]].to_numpy().tolist() == [[1, 2], [3, 4]]
    written(tmp_path, b"a\n1\n", "3.csv")
    with pytest.raises(InputError) as raised:
        opened(tmp_path)
    assert raised.value.column == "b" and "3.csv" in raised.value.cause


def test_json_lines_keep_texts_and_integers(tmp_path):
    records = (
        b'{"a":1,"zip":"01234","d":"2020-01-01","l":[1.5]}\n{"a":null,"id":9007199254740993}\n'
    )
    path = written(tmp_path, records + b'{"a":2.5}', "in.jsonl")
    found = read(path, columns=["a"], append=["zip", "d", "id", "l"], block_bytes=4)
    assert found["zip"].to_list()[0] == "01234" and found["d"].to_list()[0] == "2020-01-01"
    assert cells(found, "id") == [None, 2**53 + 1, None]
    assert cells(found, "a") == [1, None, 2.5]
    found = read(path, TEXT, dtype={"id": "string"}, columns=["id"])
    assert found["id"].to_list()[1] == "9007199254740993"


@pytest.mark.parametrize(
    "content", [b"[1]", b"", b'{"a":1', b'{"a":1}\n{"a":"x"}', b'{"a":1,"a":2}', b"1\n"]
)
def test_what_is_no_json_lines_is_refused(tmp_path, content):
    with pytest.raises(InputError) as raised:
        opened(written(tmp_path, content, "in.jsonl"))
    assert "in.jsonl" in raised.value.cause and raised.value.next_step


def write_ipc_stream(table, path):
    with ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table, max_chunksize=1)


def write_ipc_file(table, path):
    with ipc.new_file(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=1)


WRITERS = {
    ".parquet": lambda table, path: pq.write_table(table, path, row_group_size=1),
    ".feather": feather.write_feather,
    ".arrow": write_ipc_file,
    ".ipc.arrow": write_ipc_stream,
    ".orc": orc.write_table,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_files_with_a_schema_give_its_types(tmp_path, suffix):
    table = pa.table(
        {
            "a": [1.5, None],
            "n": pa.array([None, 2**53 + 1], pa.int64()),
            "t": ["01", None],
            "b": [True, None],
        }
    )
    WRITERS[suffix](table, tmp_path / f"in{suffix}")
    found = read(tmp_path / f"in{suffix}", columns=["a"], append=True)
    assert [str(dtype) for dtype in found.dtypes] == ["float64", "Int64", "str", "boolean"]
    assert cells(found, "n") == [None, 2**53 + 1] and cells(found, "t") == ["01", None]
    assert read(tmp_path / f"in{suffix}", columns=["a"]).columns.to_list() == ["a"]


def test_row_groups_are_read_in_blocks_that_know_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("dask_onnx.io.arrow_files.BLOCK_BYTES", 500)
    table = pa.table({"a": np.arange(1000.0)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=100)
    source = opened(tmp_path / "in.parquet")
    assert len(source.blocks) == 10
    found = pd.concat([source.reader(block) for block in source.blocks])
    assert found.index.to_list() == list(range(1000)) == found["a"].to_list()


def folder_of(path, *tables):
    path.mkdir()
    for number, table in enumerate(tables):
        pq.write_table(pa.table(table), path / f"f{number}.parquet")
    return path


FULL = {"a": [1.0], "b": [2], "t": ["x"]}


@pytest.mark.parametrize(
    ("other", "column"),
    [
        ({"a": [1.0], "t": ["x"]}, "b"),
        ({**FULL, "b": ["x"]}, "b"),
        ({**FULL, "b": [1.5]}, "b"),
        ({**FULL, "t": [1]}, "t"),
    ],
)
def test_files_that_differ_are_named_with_the_column_before_work(tmp_path, other, column):
    for order in ((FULL, other), (other, FULL)):
        path = folder_of(tmp_path / f"in{len(list(tmp_path.iterdir()))}", *order)
        with pytest.raises(InputError) as raised:
            opened(path, columns=["a", "b"], append=["t"])
        assert raised.value.column == column and "f1.parquet" in raised.value.cause


def test_files_may_differ_in_widths_and_in_columns_that_are_not_read(tmp_path):
    other = {"z": [1], "t": pa.array(["y"], pa.large_string()), "b": pa.array([3], pa.int8())}
    path = folder_of(tmp_path / "in", FULL, {**other, "a": pa.array([None], pa.null())})
    found = read(path, columns=["b"], append=["t", "a"])
    assert found["b"].to_list() == [2, 3] and found["t"].to_list() == ["x", "y"]


def test_hive_partitions_are_columns_whose_texts_are_kept(tmp_path):
    for key in ("01234", "00005"):
        (tmp_path / f"zip={key}").mkdir()
        pq.write_table(pa.table({"a": [1.0, 2.0]}), tmp_path / f"zip={key}" / "f.parquet")
    found = read(tmp_path, columns=["a"], append=["zip"])
    assert found["zip"].to_list() == ["00005"] * 2 + ["01234"] * 2
    assert read(tmp_path, TEXT)["zip"].to_list() == ["00005"] * 2 + ["01234"] * 2


def test_an_index_of_pandas_is_restored_unless_it_is_named(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0]}, index=pd.Index(["x", "y"], name="id"))
    frame.to_parquet(tmp_path / "in.parquet")
    assert read(tmp_path / "in.parquet").index.to_list() == ["x", "y"]
    found = read(tmp_path / "in.parquet", append=["id"], columns=["a"])
    assert found["id"].to_list() == ["x", "y"]
    frame.rename_axis(None).to_parquet(tmp_path / "plain.parquet")
    assert read(tmp_path / "plain.parquet").columns.to_list() == ["a"]


@pytest.mark.parametrize(
    ("options", "option", "column"),
    [
        ({"columns": ["aa"]}, "columns", "aa"),
        ({"append": ["zib"]}, "append", "zib"),
        ({"dtype": {"zib": "string"}}, "dtype", "zib"),
        ({"na_values": {"zib": ["x"]}}, "na_values", "zib"),
        ({"dtype": {"zip": "strnig"}}, "dtype", "zip"),
        ({"na_values": "NA"}, "na_values", None),
        ({"delimiter": ""}, "delimiter", None),
        ({"delimiter": "ab"}, "delimiter", None),
        ({"delimiter": "5"}, "delimiter", None),
        ({"delimiter": '"'}, "delimiter", None),
        ({"decimal": ";"}, "decimal", None),
        ({"decimal": ","}, "decimal", None),
        ({"encoding": "klingon"}, "encoding", None),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, options, option, column):
    path = written(tmp_path, b"a,zip\n1,2\n")
    with pytest.raises(InputError) as raised:
        opened(path, **options)
    assert (raised.value.option, raised.value.column) == (option, column)


@pytest.mark.parametrize(
    "options",
    [{"encoding": "latin-1"}, {"delimiter": ";"}, {"decimal": ","}, {"na_values": ["x"]}],
)
def test_options_of_csv_are_refused_for_other_formats(tmp_path, options):
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "in.parquet")
    with pytest.raises(InputError) as raised:
        opened(tmp_path / "in.parquet", **options)
    assert raised.value.option == next(iter(options))


def test_the_delimiter_is_proposed_where_the_header_is_one_column(tmp_path):
    with pytest.raises(InputError) as raised:
        opened(written(tmp_path, b"a;b\n1;2\n"), columns=["b"])
    assert "';'" in raised.value.next_step


def test_two_columns_of_one_name_are_refused_where_an_input_takes_it(tmp_path):
    path = written(tmp_path, b"x,v,v\n1,2,3\n")
    with pytest.raises(InputError) as caught:
        opened(path, (TensorSpec("v", np.dtype("f4"), ("N", 1)),))
    assert (caught.value.column, caught.value.numbers) == ("v", {"columns": 2})
    assert [each.name for each in opened(path, columns=["x"]).reader.columns] == ["x"]
    others = (TensorSpec("y", np.dtype("f4"), ("N", None)),)
    assert read(path, others).shape == (1, 3)  # all columns, each under a name of its own
