"""Columns of every dtype of pandas and Arrow, converted cell by cell as the table says."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal

import dask
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from builders import make_model, node, value
from conversion_cases import ELEMENTS, REFUSED, expected_number, same

import dask_onnx as dx
from dask_onnx.collections.column_arrays import convert_column
from dask_onnx.collections.column_dtypes import source_of_dtype
from dask_onnx.core.conversions import TARGETS, conversion
from dask_onnx.core.value_conversions import Unfit

MISSING = None


@pytest.fixture(autouse=True)
def in_this_thread():
    # Dask would make strings of objects, numbers and lists among them.
    with dask.config.set({"scheduler": "sync", "dataframe.convert-string": False}):
        yield


def converted(column, target):
    """Return the values that a column becomes, or `REFUSED`."""
    try:
        found = convert_column(column, ELEMENTS[target][1])
    except Unfit as fault:
        return REFUSED if fault.bad.shape == (len(column),) and fault.bad.any() else fault
    assert found.dtype == ELEMENTS[target][1] and found.shape == (len(column),)
    return list(found)


def arrow(kind):
    return pd.ArrowDtype(kind)


def series(*values, dtype):
    return pd.Series(list(values), dtype=dtype)


WHOLE = [0, 1, 3, 100, -1, 300, 2**53 + 1, 2**63]
REAL = [0.0, 1.0, 0.5, -2.0, 300.0, 1e39, math.inf]
FIXED = [Decimal(0), Decimal("0.5"), Decimal(-3), Decimal(9007199254740993)]
NUMBERS = {
    "int8": ([0, 1, -1, 100], "int8"),
    "int64": ([v for v in WHOLE if v < 2**63], "int64"),
    "uint64": ([v for v in WHOLE if v >= 0], "uint64"),
    "float32": ([v for v in REAL if v != 1e39], "float32"),
    "float64": (REAL, "float64"),
    "bool": ([False, True], "bool"),
    "boolean": ([False, True], "boolean"),
    "Int8": ([0, 1, -1, 100], "Int8"),
    "Int64": ([v for v in WHOLE if v < 2**63], "Int64"),
    "UInt64": ([0, 1, 300, 2**63], "UInt64"),
    "Float32": ([v for v in REAL if v != 1e39], "Float32"),
    "Float64": (REAL, "Float64"),
    "bool[pyarrow]": ([False, True], arrow(pa.bool_())),
    "int8[pyarrow]": ([0, 1, -1, 100], arrow(pa.int8())),
    "int64[pyarrow]": ([v for v in WHOLE if v < 2**63], arrow(pa.int64())),
    "uint64[pyarrow]": ([v for v in WHOLE if v >= 0], arrow(pa.uint64())),
    "halffloat[pyarrow]": ([0.0, 1.0, 0.5, 300.0], arrow(pa.float16())),
    "float[pyarrow]": ([v for v in REAL if v != 1e39], arrow(pa.float32())),
    "double[pyarrow]": (REAL, arrow(pa.float64())),
    "decimal128": (FIXED, arrow(pa.decimal128(38, 10))),
    "decimal256": (FIXED, arrow(pa.decimal256(50, 20))),
    "Sparse[int64]": ([0, 1, 300], pd.SparseDtype("int64")),
    "Sparse[float64]": ([0.0, 0.5, 1e39], pd.SparseDtype("float64")),
    "object": ([0, 0.5, True, Decimal("2.5"), 2**63, 10**30], object),
    "category of int64": ([v for v in WHOLE if v < 2**63], "category"),
    "category of float64": (REAL, "category"),
    "category of bool": ([False, True], "category"),
    "category of objects": ([Decimal("0.5"), 2**70, 1], "category"),
    "dictionary": ([0, 1, 300], arrow(pa.dictionary(pa.int8(), pa.int64()))),
}
"""Columns of numbers: their values, and their dtype."""
HAS_MISSING = [name for name in NUMBERS if name not in ("int8", "int64", "uint64", "bool")]
HAS_MISSING = [name for name in HAS_MISSING if name != "Sparse[int64]"]


@pytest.mark.parametrize("name", NUMBERS)
def test_columns_of_numbers_become_the_nearest_values_or_are_refused(name):
    values, dtype = NUMBERS[name]
    for target in TARGETS:
        wanted = [expected_number(number, target) for number in values]
        for number, outcome in zip(values, wanted, strict=True):
            found = converted(series(number, number, dtype=dtype), target)
            assert (found is REFUSED) == (outcome is REFUSED), (target, number, found)
            assert outcome is REFUSED or all(same(v, outcome) for v in found), (target, number)
        good = [v for v, outcome in zip(values, wanted, strict=True) if outcome is not REFUSED]
        if good:
            found = converted(series(*good, dtype=dtype), target)
            expected = [outcome for outcome in wanted if outcome is not REFUSED]
            assert all(map(same, found, expected)), (target, found)
        if name != "category of objects" and conversion(
            source_of_dtype(series(*values, dtype=dtype).dtype), target
        ).way in ("exact", "by value"):
            assert REFUSED not in wanted, target


@pytest.mark.parametrize("name", HAS_MISSING)
def test_a_missing_number_becomes_nan_or_makes_a_bad_row(name):
    values, dtype = NUMBERS[name]
    column = series(values[0], MISSING, values[1], dtype=dtype)
    assert column.isna().to_list() == [False, True, False]
    for target in TARGETS:
        outcome = expected_number(math.nan, target)
        numbers = [expected_number(number, target) for number in (values[0], values[1])]
        found = converted(column, target)
        if outcome is REFUSED or REFUSED in numbers:
            assert found is REFUSED, target
        else:
            assert all(map(same, found, [numbers[0], outcome, numbers[1]])), (target, found)
    with pytest.raises(Unfit) as caught:
        convert_column(column, np.dtype("i8"))
    if caught.value.fault == "is missing":
        assert caught.value.bad.tolist() == [False, True, False]


TEXT = {
    "str": (["a", "é"], "str"),
    "string": (["a", "é"], "string[python]"),
    "string[pyarrow]": (["a", "é"], arrow(pa.string())),
    "large_string": (["a", "é"], arrow(pa.large_string())),
    "binary": ([b"a", "é".encode()], arrow(pa.binary())),
    "large_binary": ([b"a", "é".encode()], arrow(pa.large_binary())),
    "fixed_size_binary": ([b"aa", "é".encode()], arrow(pa.binary(2))),
    "object": (["a", "é".encode()], object),
    "category": (["a", "é"], "category"),
    "category of bytes": ([b"a", "é".encode()], "category"),
    "dictionary": (["a", "é"], arrow(pa.dictionary(pa.int8(), pa.string()))),
}


@pytest.mark.parametrize("name", TEXT)
def test_columns_of_text_and_bytes_go_into_string_inputs_only(name):
    values, dtype = TEXT[name]
    column = series(*values, dtype=dtype)
    texts = [v.decode() if isinstance(v, bytes) else v for v in values]
    for target in TARGETS:
        wanted = texts if target == "string" else REFUSED
        assert converted(column, target) == wanted, target
    with pytest.raises(Unfit) as caught:
        convert_column(series(values[0], MISSING, dtype=dtype), np.dtype(object))
    assert caught.value.bad.tolist() == [False, True] and caught.value.fault == "is missing"


SECOND = 10**9
INSTANT = pd.Timestamp("1970-01-02 00:00:01")
AT = (86400 + 1) * SECOND
TIMES = {
    "datetime64[s]": (series(INSTANT, dtype="M8[s]"), AT),
    "datetime64[ns]": (series(INSTANT, dtype="M8[ns]"), AT),
    "zoned": (series(INSTANT.tz_localize("Europe/Paris"), dtype="M8[us, Europe/Paris]"), None),
    "timestamp": (series(INSTANT, dtype=arrow(pa.timestamp("us"))), AT),
    "timestamp UTC": (
        series(INSTANT.tz_localize("UTC"), dtype=arrow(pa.timestamp("us", "UTC"))),
        AT,
    ),
    "timestamp zoned": (
        series(INSTANT.tz_localize("Europe/Paris"), dtype=arrow(pa.timestamp("s", "Europe/Paris"))),
        AT - 3600 * SECOND,
    ),
    "date32": (series(datetime.date(1970, 1, 2), dtype=arrow(pa.date32())), 86400 * SECOND),
    "date64": (series(datetime.date(1970, 1, 2), dtype=arrow(pa.date64())), 86400 * SECOND),
    "timedelta64[ms]": (series(pd.Timedelta("2s"), dtype="m8[ms]"), 2 * SECOND),
    "duration": (series(pd.Timedelta("2s"), dtype=arrow(pa.duration("ms"))), 2 * SECOND),
    "time32": (series(datetime.time(0, 1), dtype=arrow(pa.time32("s"))), 60 * SECOND),
    "time64": (series(datetime.time(0, 1), dtype=arrow(pa.time64("ns"))), 60 * SECOND),
    "objects": (series(datetime.date(1970, 1, 2), dtype=object), 86400 * SECOND),
    "category": (series(INSTANT, dtype="category"), AT),
}
TIMES["zoned"] = (TIMES["zoned"][0], AT - 3600 * SECOND)


@pytest.mark.parametrize("name", TIMES)
def test_columns_of_times_become_nanoseconds_in_int64_only(name):
    column, nanoseconds = TIMES[name]
    assert len(column) == 1
    for target in TARGETS:
        wanted = [nanoseconds] if target == "int64" else REFUSED
        assert converted(column, target) == wanted, target
    pair = pd.concat([column, series(MISSING, dtype=column.dtype)], ignore_index=True)
    with pytest.raises(Unfit) as caught:
        convert_column(pair, np.dtype("i8"))
    assert caught.value.bad.tolist() == [False, True] and caught.value.fault == "is missing"


def test_times_beyond_nanoseconds_are_bad_rows():
    for column in (
        series(0, 10**11, dtype="M8[s]"),
        series(0, 10**11, dtype=arrow(pa.timestamp("s"))),
        series(datetime.date(1970, 1, 1), datetime.date(2500, 1, 1), dtype=arrow(pa.date32())),
        series(datetime.date(1970, 1, 1), datetime.date(2500, 1, 1), dtype=object),
    ):
        with pytest.raises(Unfit) as caught:
            convert_column(column, np.dtype("i8"))
        assert caught.value.bad.tolist() == [False, True]


REFUSED_DTYPES = {
    "period": pd.Series(pd.period_range("2020", periods=2, freq="M")),
    "interval": pd.Series(pd.interval_range(0, 2)),
    "struct": series({"a": 1}, dtype=arrow(pa.struct([("a", pa.int64())]))),
    "map": series([("a", 1)], dtype=arrow(pa.map_(pa.string(), pa.int64()))),
    "list": series([1], dtype=arrow(pa.list_(pa.int64()))),
    "fixed list": series([1], dtype=arrow(pa.list_(pa.int64(), 1))),
    "complex": series(1 + 0j, dtype="complex128"),
}


@pytest.mark.parametrize("name", REFUSED_DTYPES)
def test_columns_that_are_no_plain_values_are_refused_by_their_dtype(name):
    column = REFUSED_DTYPES[name]
    for target in TARGETS:
        if name == "complex" and target.startswith("complex"):
            continue
        assert conversion(source_of_dtype(column.dtype), target).is_refused
        assert converted(column, target) is REFUSED


def test_a_column_of_nothing_but_missing_values():
    column = series(None, None, dtype=arrow(pa.null()))
    assert all(map(math.isnan, converted(column, "float32")))
    assert converted(column, "int64") is REFUSED and converted(column, "string") is REFUSED


def test_only_categories_that_occur_must_fit():
    column = pd.Series(pd.Categorical([1, 2], categories=[1, 2, 10**30]))
    assert converted(column, "int8") == [1, 2]
    ordered = pd.Series(pd.Categorical([3, None, 1], categories=[1, 3], ordered=True))
    assert same(converted(ordered, "float32")[1], math.nan)
    with pytest.raises(Unfit) as caught:
        convert_column(
            pd.Series(pd.Categorical(pd.Series(["a", "\ud800"], dtype=object))), np.dtype(object)
        )
    assert caught.value.bad.tolist() == [False, True] and caught.value.places


def identity(target, shape=("N", 1), name="x"):
    element, _ = ELEMENTS[target]
    return dx.load(
        make_model(
            [node("Identity", name, "y")],
            [value(name, list(shape), element)],
            [value("y", list(shape), element)],
        )
    )


@pytest.mark.parametrize("unknown", [False, True])
def test_categories_that_dask_does_not_know_are_converted_in_the_task(unknown):
    table = pd.DataFrame({"v": [3, 1, None, 3]})
    ddf = dd.from_pandas(table, npartitions=2).astype("category")
    if not unknown:
        ddf = ddf.categorize()
    found = identity("float32").predict(ddf, columns="v").compute()["y"]
    np.testing.assert_array_equal(found, np.array([3, 1, np.nan, 3], "f4"))
    words = dd.from_pandas(pd.DataFrame({"v": ["a", "b"]}), npartitions=1).astype("category")
    assert identity("string").predict(words, columns="v").compute()["y"].tolist() == ["a", "b"]
    with pytest.raises(dx.InputError) as caught:
        identity("float32").predict(words, columns="v").compute()
    assert caught.value.column == "v"


TABLE = pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4]})
UNCLEAR = {
    "object": pd.Series([1, 2], dtype=object),
    "category": pd.Series([1, 2]).astype("category"),
    "dictionary": series(1, 2, dtype=arrow(pa.dictionary(pa.int8(), pa.int64()))),
    "list": series([1.0], [2.0], dtype=arrow(pa.list_(pa.float32()))),
    "null": series(None, None, dtype=arrow(pa.null())),
}


@pytest.mark.parametrize("name", UNCLEAR)
@pytest.mark.parametrize("lazily", [False, True])
def test_a_column_that_may_be_numbers_is_never_left_out_in_silence(name, lazily):
    table = TABLE.assign(c=UNCLEAR[name])
    given = dd.from_pandas(table, npartitions=1) if lazily else table
    model = identity("float32", ("N", "K"))
    for ask in (model.predict, model.check, model.meta_for):
        with pytest.raises(dx.InputError) as caught:
            ask(given)
        assert caught.value.option == "columns" and caught.value.column == "c"
        assert caught.value.suggestions[0].value == ["a", "b"]
    model.check(given, columns=["a", "b"])


def test_columns_that_an_input_never_takes_are_left_out():
    table = TABLE.assign(t=["x", "y"], when=pd.Timestamp("2020"), raw=pd.array([True, False]))
    found = identity("float32", ("N", 3)).predict(table)
    assert found.to_numpy().tolist() == [[1, 3, 1], [2, 4, 0]]
    with pytest.raises(dx.InputError) as caught:
        identity("float32", ("N", 4)).predict(table)
    assert "'t'" in caught.value.cause and caught.value.numbers["columns"] == 3
    with pytest.raises(dx.InputError) as caught:  # times are what an int64 input may take
        identity("int64", ("N", "K")).predict(table)
    assert caught.value.column == "when"


@pytest.mark.parametrize("lazily", [False, True])
def test_two_columns_of_one_name_are_refused(lazily):
    table = pd.DataFrame([[1.0, 2.0, 3.0]], columns=["x", "x", "y"])
    given = dd.from_pandas(table, npartitions=1) if lazily else table
    model = identity("float32", ("N", "K"))
    for options in ({}, {"columns": ["x", "y"]}, {"columns": "x"}, {"columns": {"x": ["x"]}}):
        for ask in (model.predict, model.check, model.meta_for):
            with pytest.raises(dx.InputError) as caught:
                ask(given, **options)
            assert caught.value.fields == {
                "option": "columns",
                "input": "x",
                "column": "x",
                "numbers": {"columns": 2, "expected_columns": 1},
            }
    with pytest.raises(dx.InputError) as caught:
        identity("float32", ("N", 1)).predict(given, columns="y", append=True)
    assert caught.value.option == "append"
    (found,) = dask.compute(identity("float32", ("N", 1)).predict(given, columns="y"))
    assert found["y"].tolist() == [3.0]


@pytest.mark.parametrize("shape", [("N",), ("N", 1), ("N", "K")])
@pytest.mark.parametrize("lazily", [False, True])
def test_objects_that_are_numbers_feed_inputs_of_rank_1_and_2(shape, lazily):
    table = pd.DataFrame({"v": pd.Series([Decimal("0.5"), None, 2], dtype=object)})
    given = dd.from_pandas(table, npartitions=1) if lazily else table
    (found,) = dask.compute(identity("float32", shape).predict(given, columns="v"))
    values = [v[0] if isinstance(v, list | np.ndarray) else v for v in found["y"]]
    assert same(values[1], math.nan) and [values[0], values[2]] == [0.5, 2.0]


def test_bad_values_of_a_column_are_bad_rows():
    table = pd.DataFrame({"v": pd.Series([1, "2", None, 3.5, 4], dtype=object)})
    for given in (table, dd.from_pandas(table, npartitions=1)):
        pair = identity("int64").predict_checked(given, columns="v", append=True)
        good, bad = dask.compute(*pair)
        assert good["y"].tolist() == [1, 4] and list(bad.index) == [1, 2, 3]
        assert good["v"].tolist() == [1, 4]
    found = identity("int64").predict(table, columns="v", on_error="null")
    assert found["y"].isna().tolist() == [False, True, True, True, False]


LISTS = {
    "nulls in Arrow": (series([1, None], [3, 4], dtype=arrow(pa.list_(pa.int64()))), "float32"),
    "decimals": (series([Decimal(1), None], [3, 4], dtype=object), "float32"),
    "nullable arrays": (series(pd.array([1, None]), [3, 4], dtype=object), "float32"),
    "large": (series([1.0, None], [3.0, 4.0], dtype=arrow(pa.large_list(pa.float64()))), "float32"),
    "fixed": (series([1.0, None], [3.0, 4.0], dtype=arrow(pa.list_(pa.float64(), 2))), "float32"),
}


@pytest.mark.parametrize("name", LISTS)
def test_elements_of_lists_are_converted_like_columns(name):
    column, target = LISTS[name]
    found = identity(target, ("N", 2)).predict(pd.DataFrame({"v": column}), columns="v")
    np.testing.assert_array_equal(found.to_numpy(), np.array([[1, np.nan], [3, 4]], "f4"))
    with pytest.raises(dx.InputError) as caught:
        identity("int64", ("N", 2)).predict(pd.DataFrame({"v": column}), columns="v")
    assert caught.value.column == "v" and caught.value.numbers["row"] == 0


@pytest.mark.parametrize("row", [3.0, "ab", {"a": 1}, [[1.0], [2.0]], None])
def test_a_row_that_is_no_list_is_a_bad_row(row):
    table = pd.DataFrame({"v": pd.Series([[1.0, 2.0], row], dtype=object)})
    good, bad = identity("float32", ("N", 2)).predict_checked(table, columns="v")
    assert list(good.index) == [0] and list(bad.index) == [1]


def test_optional_inputs_of_the_model_are_not_dropped_from_rows_of_a_bag():
    model = dx.load(
        make_model(
            [node("Mul", "x s", "y")],
            [value("x", ["N", 1]), value("s", [])],
            [value("y", ["N", 1])],
            {"s": np.array(2.0, "f4")},
        )
    )
    assert [spec.name for spec in model.defaults] == ["s"]
    rows = [{"x": [1.0], "id": 7}, {"x": [1.0], "s": 3.0}]
    found = model.predict(db.from_sequence(rows, npartitions=1), on_error="null").compute()
    assert found[0] == [2.0] and found[1] is None


VIEWS = [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)]
VIEWS += [pa.list_view(pa.int64()), pa.large_list_view(pa.int64())]


@pytest.mark.parametrize("kind", VIEWS, ids=str)
def test_lists_of_every_kind_of_arrow_feed_an_input(kind):
    column = pd.Series(pd.arrays.ArrowExtensionArray(pa.array([[0, 0], [1, 2], [3, 4]], kind)))
    model = identity("float32", ("N", 2))
    for rows in (slice(None), slice(1, None), slice(None, None, 2)):
        table = pd.DataFrame({"x": column}).iloc[rows]
        expected = np.array([[0, 0], [1, 2], [3, 4]], "f4")[rows]
        np.testing.assert_array_equal(model.predict(table).to_numpy(), expected)
        lazy = model.predict(dd.from_pandas(table, npartitions=1))
        np.testing.assert_array_equal(lazy.compute().to_numpy(), expected)


@pytest.mark.parametrize("target", ["float32", "string"])
def test_objects_of_dask_may_be_lists(target):
    rows = [["a", "b"], ["c", "d"]] if target == "string" else [[1, Decimal("0.5")], [None, 2]]
    column = pd.Series(rows, dtype=object)
    ddf = dd.from_pandas(pd.DataFrame({"x": column}), npartitions=1)
    found = identity(target, ("N", 2)).predict(ddf).compute().to_numpy(dtype=object)
    expected = rows if target == "string" else [[1.0, 0.5], [math.nan, 2.0]]
    assert all(map(same, found.ravel(), np.array(expected, object).ravel()))
    plain = dd.from_pandas(pd.DataFrame({"x": pd.Series([1, 2], dtype=object)}), npartitions=1)
    with pytest.raises(dx.InputError) as caught:
        identity(target, ("N", 2)).predict(plain).compute()
    assert caught.value.column == "x" and caught.value.numbers["bad_rows"] == 2


def test_a_series_names_its_column_whatever_its_dtype_is():
    model = identity("float32", ("N",))
    for column in (
        series(1, None, dtype=object),
        series(1, None, dtype="category"),
        series(1, None, dtype=arrow(pa.decimal128(5, 2))),
        series(1, None, dtype=arrow(pa.dictionary(pa.int8(), pa.int64()))),
    ):
        for given in (column, dd.from_pandas(column, npartitions=1)):
            (found,) = dask.compute(model.predict(given))
            np.testing.assert_array_equal(found["y"], np.array([1, np.nan], "f4"))
    with pytest.raises(dx.InputError) as caught:
        model.predict(series("a", dtype="str"))
    assert caught.value.reason == "text is no number"
