"""Tables of polars and pyarrow: taken through Arrow, and given back by their own library."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr
from builders import make_model, node, value
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.collections.arrow_tables import is_arrow_data


@pytest.fixture(scope="module")
def doubles():
    return dx.load(
        make_model(
            [node("Mul", "x two", "y")],
            [value("x", ("N", 2))],
            [value("y", ("N", 2))],
            {"two": np.array(2, np.float32)},
        )
    )


@pytest.fixture(scope="module")
def texts():
    kind = TensorProto.STRING
    return dx.load(
        make_model(
            [node("Identity", "x", "y")], [value("x", ("N", 1), kind)], [value("y", (), kind)]
        )
    )


COLUMNS = {"a": [1.0, float("nan"), None, 4.0], "b": [1, 2, 3, None]}
EXPECTED = [[2, np.nan, np.nan, 8], [2, 4, 6, np.nan]]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (pl.DataFrame(COLUMNS), pl.DataFrame),
        (pa.table(COLUMNS), pa.Table),
        (pa.table(COLUMNS).to_batches()[0], pa.Table),
    ],
)
def test_a_table_of_another_library_comes_back_as_one(doubles, given, kind):
    for found in (doubles(given), doubles.predict(given), doubles.predict(given, batch_size=2)):
        assert type(found) is kind
        values = found.to_pandas()
        assert list(values) == ["y_0", "y_1"]
        np.testing.assert_array_equal(values.to_numpy().T, EXPECTED)
        nulls = found.null_count() if kind is pl.DataFrame else found["y_0"].null_count
        assert np.asarray(nulls).max() == 0  # what the model makes of NaN is NaN
    doubles.check(given)
    kept = doubles.predict(given, append=["b"])
    assert type(kept) is kind and list(kept.to_pandas()) == ["b", "y_0", "y_1"]
    good, bad = doubles.predict_checked(given, columns=["a", "b"])
    assert type(good) is kind and type(bad) is kind and len(bad) == 0
    with pytest.raises(dx.InputError) as caught:
        doubles.predict(given, columns=["a", "c"])
    assert caught.value.column == "c"


@pytest.mark.parametrize(
    "given", [pl.Series("t", ["é", "NA", ""]), pa.array(["é", "NA", ""], pa.string_view())]
)
def test_a_column_of_another_library_is_a_table_of_one_column(texts, given):
    found = texts.predict(given)
    assert found.to_pandas()["y"].tolist() == ["é", "NA", ""]
    assert texts.predict(given.slice(0, 1)).to_pandas()["y"].tolist() == ["é"]


def test_dtypes_of_polars_follow_the_table_of_conversions(doubles):
    frame = pl.DataFrame(
        {
            "dec": pl.Series(["1.50", None, "-3.25"]).cast(pl.Decimal(9, 2)),
            "bool": [True, False, None],
            "cat": pl.Series(["x", "y", "x"], dtype=pl.Categorical),
            "enum": pl.Series(["x", "y", "x"], dtype=pl.Enum(["y", "x"])),
            "int": pl.Series([1, 2, 3], dtype=pl.UInt8),
            "when": pl.Series([0, 1, None]).cast(pl.Datetime("us", "Europe/Paris")),
            "for": pl.Series([0, 1, 2]).cast(pl.Duration("ms")),
        }
    )
    found = doubles.predict(frame, columns=["dec", "bool"]).to_pandas().to_numpy()
    np.testing.assert_array_equal(found, [[3, 2], [np.nan, 0], [-6.5, np.nan]])
    assert doubles.predict(frame, columns=["int", "bool"])["y_0"].to_list() == [2, 4, 6]
    for column in ("cat", "enum", "when", "for"):
        with pytest.raises(dx.InputError) as caught:
            doubles.predict(frame, columns=["dec", column])
        assert caught.value.column == column


def test_queries_that_are_not_computed_are_refused_with_the_call(doubles, tmp_path):
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    pq.write_table(pa.table(COLUMNS), tmp_path / "part.parquet")
    for query, call in (
        (pl.DataFrame(COLUMNS).lazy(), ".collect()"),
        (ds.dataset(tmp_path), ".to_table()"),
    ):
        with pytest.raises(dx.InputError) as caught:
            doubles.predict(query)
        assert call in caught.value.next_step and caught.value.option == "x"


def test_types_that_arrow_lacks_are_refused(doubles):
    frame = pl.DataFrame({"a": pl.Series([1, 2], dtype=pl.Int128), "b": [1.0, 2.0]})
    with pytest.raises(dx.InputError) as caught:
        doubles.predict(frame)
    assert caught.value.option == "x" and "to_pandas" in caught.value.next_step


def test_tables_of_pandas_and_arrays_are_no_data_of_others():
    class Frame(pd.DataFrame):
        pass

    tables = [pd.DataFrame({"a": [1]}), Frame({"a": [1]}), pd.Series([1])]
    for given in (*tables, np.ones(3), [1], xr.DataArray(np.ones(3)), xr.Dataset()):
        assert not is_arrow_data(given)


def test_subclasses_of_a_data_frame_are_tables(doubles):
    class Frame(pd.DataFrame):
        @property
        def _constructor(self):
            return Frame

    found = doubles.predict(Frame({"a": [1.0], "b": [2.0]}))
    assert list(found.columns) == ["y_0", "y_1"] and found.to_numpy().tolist() == [[2, 4]]


def viewed(values, kind):
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([pa.array(values, kind)])))


@pytest.mark.parametrize("column", [["a", None, "c"], [b"a", None, b"c"]], ids=["text", "bytes"])
@pytest.mark.parametrize("library", ["polars", "pandas"])
def test_rows_are_selected_where_arrow_has_views(texts, column, library):
    table = pl.DataFrame({"x": column})
    if library == "pandas":
        kind = pa.string_view() if column[0] == "a" else pa.binary_view()
        table = pd.DataFrame({"x": viewed(column, kind)})
    with pytest.raises(dx.InputError) as raised:
        texts.predict(table)
    assert (raised.value.column, raised.value.numbers["row"]) == ("x", 1)
    good, bad = texts.predict_checked(table)
    assert list(good["y"]) == ["a", "c"]
    assert len(bad) == 1
    found = list(texts.predict(table, on_error="null")["y"])
    assert (found[0], found[2]) == ("a", "c")


def test_objects_of_polars_are_refused_rather_than_read_as_bytes(texts):
    objects = pl.Series("x", ["abc", "d"], dtype=pl.Object)
    for table in (objects, objects.to_frame()):
        with pytest.raises(dx.InputError) as raised:
            texts.predict(table)
        assert raised.value.column == "x"


def test_types_that_numpy_lacks_are_refused_in_a_dict(doubles):
    stored = pa.array([1, 5], pa.int8())
    true = pd.Series(
        pd.arrays.ArrowExtensionArray(
            pa.chunked_array([pa.ExtensionArray.from_storage(pa.bool8(), stored)])
        )
    )
    for column in (true, pl.Series("x", [1, 2]).cast(pl.Int128)):
        with pytest.raises(dx.InputError) as raised:
            doubles.predict({"x": column})
        assert raised.value.input == "x"
