"""Predictions for tables."""

from __future__ import annotations

import pickle

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import dense_model, make_model, node, run_onnx, value, weights
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.runtime.session_cache import SESSION_CACHE

ROWS = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
TABLE = pd.DataFrame(ROWS, columns=list("abcdefgh"), index=range(100, 110))
EXPECTED = run_onnx(dense_model(), {"x": ROWS})[0]


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


def raising(*_, **__):
    raise AssertionError("something was computed")


def identity_model(dtype: int, shape=("N", 1), name: str = "x"):
    return dx.load(
        make_model(
            [node("Identity", name, "y")],
            [value(name, shape, dtype)],
            [value("y", shape, dtype)],
        )
    )


def test_a_table_gives_a_table_with_its_index():
    found = dx.load(dense_model()).predict(TABLE)
    assert list(found.columns) == ["y_0", "y_1", "y_2", "y_3"]
    assert found.index.equals(TABLE.index) and (found.dtypes == np.float32).all()
    np.testing.assert_array_equal(found.to_numpy(), EXPECTED)


@pytest.mark.parametrize("npartitions", [1, 3])
def test_a_lazy_table_stays_lazy_and_knows_its_columns(npartitions):
    model = dx.load(dense_model())
    ddf = dd.from_pandas(TABLE, npartitions=npartitions)
    built = SESSION_CACHE.built
    with dask.config.set(scheduler=raising):
        lazy = model.predict(ddf)
        assert lazy.divisions == ddf.divisions
    assert SESSION_CACHE.built == built
    computed = lazy.compute()
    assert (lazy.dtypes == computed.dtypes).all()
    pd.testing.assert_frame_equal(computed, model.predict(TABLE))


def test_head_touches_one_partition():
    touched = []

    def note(part):
        touched.append(len(part))
        return part

    ddf = dd.from_pandas(TABLE, npartitions=5).map_partitions(note, meta=TABLE.iloc[:0])
    assert len(dx.load(dense_model()).predict(ddf).head(2)) == 2
    assert touched == [2]


def test_map_partitions_gives_the_same_table():
    model = dx.load(dense_model())
    ddf = dd.from_pandas(TABLE, npartitions=3)
    found = ddf.map_partitions(model, meta=model.meta_for(ddf)).compute()
    pd.testing.assert_frame_equal(found, model.predict(TABLE))
    assert len(pickle.dumps(model)) < 8192


def test_partitions_carry_no_weights():
    big = make_model(
        [node("MatMul", "x W", "y")],
        [value("x", ["N", 8])],
        [value("y", ["N", 20000])],
        {"W": weights(8, 20000)},
    )
    lazy = dx.load(big).predict(dd.from_pandas(TABLE, npartitions=5))
    assert lazy.dtypes.iloc[0] == pd.ArrowDtype(pa.list_(pa.float32(), 20000))
    assert len(pickle.dumps(lazy.optimize().__dask_graph__())) < 30_000


def test_append_keeps_the_callers_columns():
    model = dx.load(dense_model())
    found = model.predict(dd.from_pandas(TABLE, npartitions=2), append=True).compute()
    assert list(found.columns) == [*TABLE.columns, "y_0", "y_1", "y_2", "y_3"]
    pd.testing.assert_frame_equal(found[list(TABLE.columns)], TABLE)
    with pytest.raises(dx.InputError) as caught:
        model.predict(found, columns=list("abcdefgh"), append=True)
    assert (caught.value.option, caught.value.column) == ("append", "y_0")


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ([], {"input": "x", "numbers": {"expected_rank": 0}}),
        (["N"], {"input": "x", "column": "x"}),
        (["N", 2, 3], {"input": "x", "numbers": {"expected_rank": 3}}),
    ],
)
def test_an_input_of_a_rank_that_columns_cannot_have_is_refused(shape, fields):
    model = dx.load(make_model([node("Relu", "x", "y")], [value("x", shape)], [value("y", shape)]))
    lists = pd.ArrowDtype(pa.list_(pa.float32(), 6))
    table = pd.DataFrame({"x": pd.Series([[1.0] * 6] * 2, dtype=lists)})
    for given in (table, table.iloc[:0], dd.from_pandas(table, npartitions=1)):
        for ask in (model.predict, model.meta_for):
            with pytest.raises(dx.InputError) as caught:
                ask(given)
            assert caught.value.fields == fields


@pytest.mark.parametrize("npartitions", [None, 2])
def test_append_keeps_the_columns_that_are_named(npartitions):
    model = dx.load(dense_model())
    frame = TABLE.assign(id=range(len(TABLE)), y_0=0)
    table = frame if npartitions is None else dd.from_pandas(frame, npartitions=npartitions)
    options = {"columns": list("abcdefgh"), "append": ["id", "a"]}
    lazy = model.predict(table, **options)
    (found,) = dask.compute(lazy)
    assert list(found.columns) == ["id", "a", "y_0", "y_1", "y_2", "y_3"]
    assert (found.dtypes == lazy.dtypes).all() and (
        found.dtypes == model.meta_for(table, **options).dtypes
    ).all()
    pd.testing.assert_frame_equal(found[["id", "a"]], frame[["id", "a"]])
    with pytest.raises(dx.InputError) as caught:
        model.predict(table, columns=list("abcdefgh"), append=["none"])
    assert caught.value.fields == {"option": "append", "column": "none"}


def test_empty_partitions_give_no_rows():
    model = dx.load(dense_model())
    ddf = dd.from_pandas(TABLE, npartitions=5)
    lazy = model.predict(ddf[ddf.a > ddf.a.max()])
    empty = lazy.compute()
    assert len(empty) == 0 and (empty.dtypes == lazy.dtypes).all()
    assert len(model.predict(TABLE.iloc[:0])) == 0


@pytest.mark.parametrize("batch_size", ["auto", None, 3, 1])
def test_batches_do_not_follow_partitions(batch_size):
    lazy = dx.load(dense_model()).predict(
        dd.from_pandas(TABLE, npartitions=2), batch_size=batch_size
    )
    np.testing.assert_allclose(lazy.compute().to_numpy(), EXPECTED, rtol=1e-5)


def test_only_the_columns_that_are_used_are_read(tmp_path):
    wide = TABLE.assign(text="t", other=1.0)
    wide.to_parquet(tmp_path / "wide.parquet")
    lazy = dx.load(dense_model()).predict(
        dd.read_parquet(tmp_path / "wide.parquet"), columns=list("abcdefgh")
    )
    read = list(lazy.optimize(fuse=False).expr.walk())[-1]
    assert sorted(read.columns) == list("abcdefgh"), read
    np.testing.assert_array_equal(lazy.compute().to_numpy(), EXPECTED)


@pytest.mark.parametrize("columns", [list("hgfedcba"), {"x": list("hgfedcba")}])
def test_columns_are_taken_in_the_order_that_is_given(columns):
    found = dx.load(dense_model()).predict(TABLE, columns=columns)
    np.testing.assert_allclose(
        found.to_numpy(), run_onnx(dense_model(), {"x": ROWS[:, ::-1].copy()})[0], rtol=1e-5
    )


def test_several_inputs_take_the_columns_of_their_names():
    model = dx.load(
        make_model(
            [node("Add", "a b", "s"), node("Concat", "s c", "y", axis=1)],
            [value(name, ["N", 1]) for name in "abc"],
            [value("y", ["N", 2])],
        )
    )
    found = model.predict(TABLE)
    np.testing.assert_allclose(found["y_0"], TABLE.a + TABLE.b, rtol=1e-6)
    np.testing.assert_array_equal(found["y_1"], TABLE.c)
    other = model.predict(TABLE, columns={"a": "b", "b": "b", "c": "h"})
    np.testing.assert_allclose(other["y_0"], 2 * TABLE.b, rtol=1e-6)
    some = model.predict(TABLE, columns={"a": "b"})  # the others have columns of their names
    np.testing.assert_allclose(some["y_0"], 2 * TABLE.b, rtol=1e-6)
    with pytest.raises(dx.InputError) as caught:
        model.predict(TABLE[["a", "b"]])
    assert (caught.value.option, caught.value.input) == ("columns", "c")


def test_a_series_is_a_table_of_one_column():
    model = identity_model(TensorProto.FLOAT, name="a")
    for series in (TABLE["a"], dd.from_pandas(TABLE, npartitions=2)["a"]):
        found = dask.compute(model.predict(series))[0]
        np.testing.assert_array_equal(found["y"], TABLE["a"])


LISTS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(list(LISTS)),
        pd.Series([row.tolist() for row in LISTS]),
        pd.Series(LISTS.tolist(), dtype=pd.ArrowDtype(pa.list_(pa.float32()))),
        pd.Series(LISTS.tolist(), dtype=pd.ArrowDtype(pa.list_(pa.float64(), 3))),
        pd.Series(LISTS.tolist(), dtype=pd.ArrowDtype(pa.list_(pa.float32(), 3)))[[0, 1, 2, 3]],
    ],
    ids=["arrays", "lists", "arrow", "fixed", "taken"],
)
@pytest.mark.parametrize("width", [3, "K"])
def test_a_column_of_lists_is_an_input_of_rows(column, width):
    model = identity_model(TensorProto.FLOAT, ("N", width))
    found = model.predict(pd.DataFrame({"v": column}), columns="v")
    # Lists of a fixed size determine the number of columns if the model does not.
    rows = np.stack(found["y"].to_numpy()) if "y" in found else found.to_numpy()
    np.testing.assert_array_equal(rows.astype("f4"), LISTS)


def test_lists_of_another_length_are_counted():
    table = pd.DataFrame({"v": [[1.0, 2, 3], [1.0, 2], [1.0, 2, 3], [1.0]]}, index=list("pqrs"))
    with pytest.raises(
        dx.InputError, match=r"takes 3 numbers a row; column 'v' .* in 2 of 4 rows, the first .*'q'"
    ):
        identity_model(TensorProto.FLOAT, ("N", 3)).predict(table, columns="v")


@pytest.mark.parametrize(
    ("elem_type", "column", "expected"),
    [
        (TensorProto.FLOAT, pd.Series([1, 2, 3]), [1, 2, 3]),
        (TensorProto.FLOAT, pd.Series([1.5, None, 3], dtype="Float64"), [1.5, np.nan, 3]),
        (TensorProto.DOUBLE, pd.Series([1, None], dtype="Int64"), [1, np.nan]),
        (TensorProto.FLOAT, pd.Series([True, False]), [1, 0]),
        (TensorProto.FLOAT, pd.Series([1.5, 2], dtype="double[pyarrow]"), [1.5, 2]),
        (TensorProto.INT64, pd.Series([1, 2], dtype="int8"), [1, 2]),
        (TensorProto.INT32, pd.Series([1, 2], dtype="Int64"), [1, 2]),
        (TensorProto.INT64, pd.Series([5, 6], dtype="int32[pyarrow]"), [5, 6]),
        (TensorProto.INT64, pd.Series([3, 4]).astype("category"), [3, 4]),
        (TensorProto.INT64, pd.to_datetime(pd.Series(["1970-01-01 00:00:01"])), [10**9]),
        (
            TensorProto.INT64,
            pd.to_datetime(pd.Series(["1970-01-01 01:00:01"])).dt.tz_localize("Europe/Paris"),
            [10**9],
        ),
        (TensorProto.INT64, pd.Series([pd.Timedelta(seconds=2)]), [2 * 10**9]),
        (TensorProto.BOOL, pd.Series([True, False], dtype="boolean"), [True, False]),
        (TensorProto.STRING, pd.Series(["a", "b"]), ["a", "b"]),
        (TensorProto.STRING, pd.Series(["a", "b"], dtype="string[pyarrow]"), ["a", "b"]),
        (TensorProto.STRING, pd.Series(["a", "b"]).astype("category"), ["a", "b"]),
        (TensorProto.STRING, pd.Series(["a", "b"], dtype=object), ["a", "b"]),
    ],
)
def test_kinds_of_columns_become_the_inputs_dtype(elem_type, column, expected):
    model = identity_model(elem_type)
    found = model.predict(pd.DataFrame({"v": column}), columns="v")
    assert found["y"].to_list() == pytest.approx(expected, nan_ok=True)
    lazy = model.predict(dd.from_pandas(pd.DataFrame({"v": column}), npartitions=1), columns="v")
    computed = lazy.compute()
    assert (lazy.dtypes == computed.dtypes).all()
    pd.testing.assert_frame_equal(computed, found)


@pytest.mark.parametrize(
    ("elem_type", "column", "row", "bad_rows"),
    [
        (TensorProto.INT64, pd.Series([1, None, None], dtype="Int64"), 1, 2),
        (TensorProto.STRING, pd.Series(["a", None]), 1, 1),
        (TensorProto.INT8, pd.Series([1, 300]), 1, 1),
    ],
)
def test_values_that_do_not_fit_are_counted(elem_type, column, row, bad_rows):
    with pytest.raises(dx.InputError) as caught:
        identity_model(elem_type).predict(pd.DataFrame({"v": column}), columns="v")
    assert caught.value.fields == {
        "input": "x",
        "column": "v",
        "numbers": {"rows": len(column), "row": row, "bad_rows": bad_rows},
    }


@pytest.mark.parametrize(
    ("elem_type", "column", "dtypes"),
    [
        (TensorProto.INT64, pd.Series([1.5 + 0j]), ("complex128", "int64")),
        (TensorProto.FLOAT, pd.Series(["a"]), ("str", "float32")),
        (TensorProto.STRING, pd.Series([1]), ("int64", "string")),
        (TensorProto.FLOAT, pd.to_datetime(pd.Series(["1970-01-01"])), ("datetime64", "float32")),
    ],
)
def test_a_column_of_another_dtype_is_refused(elem_type, column, dtypes):
    for table in (pd.DataFrame({"v": column}), dd.from_pandas(pd.DataFrame({"v": column}))):
        with pytest.raises(dx.InputError) as caught:
            identity_model(elem_type).predict(table, columns="v")
        fields = {**caught.value.fields}
        assert fields.pop("reason")
        assert fields == {"input": "x", "column": "v"}
        assert all(dtype in caught.value.cause for dtype in dtypes[1:])


@pytest.mark.parametrize(
    ("columns", "fields"),
    [
        (["a", "b"], {"input": "x", "numbers": {"columns": 2, "expected_columns": 8}}),
        ("nothing", {"input": "x", "column": "nothing"}),
        ({"z": "a"}, {"input": "z"}),
    ],
)
def test_columns_that_do_not_fit_are_refused_before_any_work(columns, fields):
    ddf = dd.from_pandas(TABLE, npartitions=2)
    with dask.config.set(scheduler=raising), pytest.raises(dx.InputError) as caught:
        dx.load(dense_model()).predict(ddf, columns=columns)
    assert caught.value.fields == {"option": "columns", **fields}


def test_long_outputs_become_a_column_of_lists():
    model = dx.load(dense_model())
    found = model.predict(TABLE, max_columns=3)
    assert found.dtypes.to_dict() == {"y": pd.ArrowDtype(pa.list_(pa.float32(), 4))}
    np.testing.assert_array_equal(np.stack(found["y"].to_numpy()), EXPECTED)


def test_lists_survive_parquet(tmp_path):
    lazy = dx.load(dense_model()).predict(dd.from_pandas(TABLE, npartitions=2), max_columns=3)
    lazy.to_parquet(tmp_path / "lists")
    for found in (
        pd.read_parquet(tmp_path / "lists", dtype_backend="pyarrow"),
        dd.read_parquet(tmp_path / "lists", dtype_backend="pyarrow").compute(),
        pq.read_table(tmp_path / "lists", columns=["y"]).to_pandas(ignore_metadata=True),
        pl.read_parquet(f"{tmp_path}/lists/*.parquet").to_pandas(),
    ):
        np.testing.assert_array_equal(np.stack(found["y"].to_numpy()), EXPECTED)


def test_outputs_of_several_axes_are_nested_lists():
    model = dx.load(
        make_model(
            [node("Reshape", "x s", "y")],
            [value("x", ["N", 8])],
            [value("y", ["N", 2, 4])],
            {"s": np.array([-1, 2, 4])},
        )
    )
    lazy = model.predict(dd.from_pandas(TABLE, npartitions=2))
    found = lazy.compute()
    assert (lazy.dtypes == found.dtypes).all()
    np.testing.assert_array_equal(np.array(found["y"].to_list(), "f4"), ROWS.reshape(10, 2, 4))


def test_a_plan_of_several_stages_is_refused():
    model = dx.load(dense_model())
    with pytest.raises(dx.InputError) as caught:
        model.predict(TABLE, plan=model.plan("per_node"))
    assert caught.value.option == "plan"


def test_table_options_are_for_tables():
    with pytest.raises(dx.InputError) as caught:
        dx.load(dense_model()).predict(ROWS, append=True)
    assert caught.value.option == "append"


def test_an_output_without_rows_is_refused():
    model = dx.load(
        make_model(
            [node("ReduceSum", "x", "y", keepdims=0)], [value("x", ["N", 8])], [value("y", [])]
        )
    )
    with pytest.raises(dx.InputError) as caught:
        model.predict(TABLE)
    assert caught.value.option == "outputs"


@pytest.mark.parametrize("table", [pd.DataFrame({"a": [1]}), pd.DataFrame()], ids=["one", "none"])
def test_a_model_without_inputs_takes_no_table(table):
    model = dx.load(make_model([], [], [value("c", [2])], {"c": np.ones(2, np.float32)}))
    assert model.predict({}).tolist() == [1, 1]
    with pytest.raises(dx.InputError) as raised:
        model.predict(table)
    assert raised.value.option == "x"
