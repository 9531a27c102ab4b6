"""First lines of CSV files: headers, values without a header, and other delimiters."""

from __future__ import annotations

import numpy as np
import pytest

from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.jobs.opening_options import OpenOptions
from dask_onnx.jobs.table_opening import open_table
from dask_onnx.jobs.table_request import TableRequest


def opened(tmp_path, text, **options):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    inputs = (TensorSpec("x", np.dtype(np.float32), ("N", None)),)
    return open_table(str(path), OpenOptions(TableRequest(**options), inputs))


@pytest.mark.parametrize(
    "line",
    [
        "5.1,3.5,1.4",
        "1,0,7",
        "1,1,1",
        "5.1,5.1",
        "-1e3,2",
        "12.5",
        " 5.1 , 3.5 ",
        "0.5,nan",
        "5,,NA",
    ],
)
def test_a_first_line_of_values_is_not_taken_for_names(tmp_path, line):
    with pytest.raises(InputError) as raised:
        opened(tmp_path, f"{line}\n{line}\n")
    assert raised.value.option == "path"
    assert raised.value.numbers == {"columns": line.count(",") + 1}


def test_values_with_another_decimal_sign_are_not_taken_for_names(tmp_path):
    with pytest.raises(InputError) as raised:
        opened(tmp_path, "5,1;3,5\n4,9;3,0\n", delimiter=";", decimal=",")
    assert raised.value.option == "path"


@pytest.mark.parametrize("line", ["a,b,c", "0,1,2", "1,2,3", ",0,1", "a,5.1", "0", "x1,2019"])
def test_names_and_numbers_that_count_the_columns_are_a_header(tmp_path, line):
    source = opened(tmp_path, f"{line}\n" + ",".join("5" * (line.count(",") + 1)) + "\n")
    assert source.blocks


def test_a_caller_who_names_numbers_takes_them_for_a_header(tmp_path):
    source = opened(tmp_path, "2019,2020\n5.1,3.5\n", columns=["2019", "2020"])
    assert [column.name for column in source.reader.columns] == ["2019", "2020"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_is_told_by_the_header(tmp_path, delimiter):
    text = "\n".join(delimiter.join(row) for row in ("abc", "123")) + "\n"
    with pytest.raises(InputError) as raised:
        opened(tmp_path, text)
    (suggestion,) = raised.value.suggestions
    assert suggestion.option == raised.value.option == "delimiter"
    source = opened(tmp_path, text, delimiter=suggestion.value)
    assert len(source.reader.columns) == 3
    single = delimiter.join("abc")
    (column,) = opened(tmp_path, text, columns=[single]).reader.columns
    assert column.name == single


def test_a_cell_that_makes_a_column_text_is_told(tmp_path):
    source = opened(tmp_path, "a,b\n1,2\n3,six\n4,5\n")
    assert source.odd_cells == {"b": "six"}
    error = InputError("two numbers", "name them", option="columns")
    found = source.explained(error)
    assert found.column == "b" and "'six'" in found.cause and found.option == "columns"
    other = InputError("something else", option="path")
    assert source.explained(other) is other
    assert opened(tmp_path, "a,b\n1,two\n3,six\n").odd_cells == {}
    assert opened(tmp_path, "a,b\n1,NA\n3,4\n").odd_cells == {}
