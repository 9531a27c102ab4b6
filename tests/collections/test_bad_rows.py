"""Rows that do not fit a model, or on which its kernels fail."""

from __future__ import annotations

import pickle

import dask
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from builders import dense_model, make_model, node, value
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.collections.bad_rows import RowsError, run_rows
from dask_onnx.core.errors import RunError

COUNT = 10_000
BAD = [17, 5_000, 9_999]


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


def lookup_model():
    """Return a model that looks up rows of a table of ten; its kernel fails on larger indices."""
    return dx.load(
        make_model(
            [node("Gather", "table x", "v", axis=0), node("Cast", "v", "y", to=TensorProto.INT32)],
            [value("x", ["N"], TensorProto.INT64)],
            [value("y", ["N"], TensorProto.INT32), value("v", ["N"])],
            {"table": np.arange(10, dtype="f4") * 2},
        )
    )


def lookups(**bad):
    x = np.arange(COUNT) % 10
    x[BAD] = 99
    return pd.DataFrame({"x": x, "id": [f"r{i}" for i in range(COUNT)]}, index=range(5, 5 + COUNT))


LOOKUPS = lookups()
GOOD = np.setdiff1d(np.arange(COUNT), BAD)


def test_the_first_bad_row_is_named():
    model = lookup_model()
    with pytest.raises(
        dx.StageError, match=r"^row 17 of 10,000, with index 22: .*Gather"
    ) as caught:
        model.predict(LOOKUPS, columns="x")
    assert caught.value.numbers == {"row": 17, "rows": COUNT} and caught.value.reason
    table = dd.from_pandas(LOOKUPS, npartitions=4)
    lazy = model.predict(table, columns="x")
    with pytest.raises(dx.StageError, match=r"^partition 0, row 17 of 2,500, with index 22: "):
        lazy.partitions[0].compute()
    last = LOOKUPS.assign(x=np.where(np.arange(COUNT) == COUNT - 1, 99, 0))
    with pytest.raises(dx.StageError, match=r"^partition 3, row 2,499 of 2,500, .* 10004: "):
        model.predict(dd.from_pandas(last, npartitions=4), columns="x").compute()


@pytest.mark.parametrize("npartitions", [None, 1, 4])
def test_bad_rows_become_missing_values(npartitions):
    table = LOOKUPS if npartitions is None else dd.from_pandas(LOOKUPS, npartitions=npartitions)
    lazy = lookup_model().predict(table, columns="x", on_error="null")
    (found,) = dask.compute(lazy)
    assert found.index.equals(LOOKUPS.index)
    assert (lazy.dtypes == found.dtypes).all()
    assert found.dtypes.to_list() == [pd.Int32Dtype(), np.float32]
    assert list(np.flatnonzero(found["y"].isna())) == BAD == list(np.flatnonzero(found["v"].isna()))
    np.testing.assert_array_equal(found["y"].iloc[GOOD], LOOKUPS["x"].iloc[GOOD] * 2)


@pytest.mark.parametrize("npartitions", [None, 1, 4])
@pytest.mark.parametrize("append", [False, True])
def test_bad_rows_are_split_off_with_their_errors(npartitions, append):
    table = LOOKUPS if npartitions is None else dd.from_pandas(LOOKUPS, npartitions=npartitions)
    lazy = lookup_model().predict_checked(table, columns="x", append=append)
    good, bad = dask.compute(*lazy)
    for collection, computed in zip(lazy, (good, bad), strict=True):
        assert (collection.dtypes == computed.dtypes).all()
    assert list(good.columns) == [*(["x", "id"] if append else []), "y", "v"]
    assert good.index.equals(LOOKUPS.index[GOOD])
    assert good["y"].dtype == np.int32
    np.testing.assert_array_equal(good["y"], LOOKUPS["x"].iloc[GOOD] * 2)
    assert bad.index.to_list() == [place + 5 for place in BAD]
    assert bad["id"].to_list() == [f"r{place}" for place in BAD]
    assert bad["error"].str.contains("Gather").all()


def test_computed_together_the_model_runs_once():
    ran = []

    def note(part):
        ran.append(len(part))
        return part

    ddf = dd.from_pandas(LOOKUPS, npartitions=4).map_partitions(note, meta=LOOKUPS.iloc[:0])
    good, bad = lookup_model().predict_checked(ddf, columns="x")
    assert ran == []
    dask.compute(good, bad)
    assert sum(ran) == COUNT
    ran.clear()
    assert len(good.head(3)) == 3
    assert ran == [COUNT // 4]


def test_each_bad_row_has_its_own_error():
    table = pd.DataFrame(
        {
            "x": pd.array([1, None, 300, 4, 5], dtype="Int64"),
            "f": [1.0, 2.0, 3.0, np.inf, 5.0],
        },
        index=list("abcde"),
    )
    model = dx.load(
        make_model(
            [node("Cast", "x", "c", to=TensorProto.FLOAT), node("Add", "c f", "y")],
            [value("x", ["N"], TensorProto.INT8), value("f", ["N"])],
            [value("y", ["N"])],
        )
    )
    good, bad = model.predict_checked(table, require_finite=True)
    assert good["y"].to_list() == [2, 10]
    assert bad["error"].to_dict() == {
        "b": "input 'x' takes int8, which has no NaN; column 'x' is missing",
        "c": "input 'x' takes int8, -128 to 127; column 'x' does not fit",
        "d": "input 'f' must be finite; column 'f' has a NaN or an infinity",
    }
    assert model.predict(table, on_error="null")["y"].to_list()[3] == np.inf
    with pytest.raises(dx.InputError, match=r"^row 1 of 5, with index 'b': ") as caught:
        model.predict(table)
    assert caught.value.fields == {
        "input": "x",
        "column": "x",
        "numbers": {"row": 1, "rows": 5, "bad_rows": 1},
    }


def test_the_first_bad_row_is_found_in_any_column():
    table = pd.DataFrame({"a": [1.0, 2, 3, np.nan], "b": [1.0, np.inf, 3, 4]})
    model = dx.load(
        make_model([node("Add", "a b", "y")], [value(n, ["N"]) for n in "ab"], [value("y", ["N"])])
    )
    with pytest.raises(dx.InputError) as caught:
        model.predict(table, require_finite=True)
    assert (caught.value.column, caught.value.numbers["row"]) == ("b", 1)


def test_partitions_of_bad_rows_only():
    table = LOOKUPS.assign(x=99).iloc[:8]
    model = lookup_model()
    found = model.predict(dd.from_pandas(table, npartitions=2), columns="x", on_error="null")
    assert found.compute()["y"].isna().all()
    good, bad = dask.compute(*model.predict_checked(dd.from_pandas(table, npartitions=2)))
    assert len(good) == 0 and len(bad) == 8
    good, bad = model.predict_checked(table.iloc[:0])
    assert len(good) == len(bad) == 0 and good["y"].dtype == np.int32


@pytest.mark.parametrize(
    ("elem_type", "dtype"),
    [
        (TensorProto.BOOL, "boolean"),
        (TensorProto.UINT8, "UInt8"),
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.STRING, pd.ArrowDtype(pa.string())),
    ],
)
def test_each_kind_of_output_can_be_missing(elem_type, dtype):
    model = dx.load(
        make_model(
            [node("Cast", "x", "c", to=elem_type), node("Identity", "c", "y")],
            [value("x", ["N"])],
            [value("y", ["N"], elem_type)],
        )
    )
    table = dd.from_pandas(pd.DataFrame({"x": [1.0, np.nan]}), npartitions=1)
    lazy = model.predict(table, on_error="null", require_finite=True)
    found = lazy.compute()["y"]
    assert lazy["y"].dtype == found.dtype == dtype
    assert found.isna().to_list() == [False, True]


def test_lists_can_be_missing():
    model = dx.load(dense_model())
    rows = np.ones((3, 8), np.float32)
    rows[1, 2] = np.nan
    table = pd.DataFrame({"v": list(rows)})
    with dask.config.set({"dataframe.convert-string": False}):
        lazy = model.predict(
            dd.from_pandas(table, npartitions=1),
            columns="v",
            on_error="null",
            max_columns=2,
            require_finite=True,
        )
        found = lazy.compute()["y"]
    assert found.dtype == pd.ArrowDtype(pa.list_(pa.float32(), 4)) == lazy["y"].dtype
    assert found.isna().to_list() == [False, True, False]


def test_lists_of_a_wrong_length_are_bad_rows():
    model = dx.load(dense_model())
    table = pd.DataFrame({"v": [[1.0] * 7, *[[1.0] * 8] * 3, [1.0] * 8 + ["no"], None]})
    good, bad = model.predict_checked(table.iloc[:4], columns="v")
    assert (len(good), list(bad.index)) == (3, [0])
    assert "takes 8 numbers a row; column 'v' has another length (7 the first)" in bad["error"][0]
    good, bad = model.predict_checked(table.iloc[1:], columns="v")
    assert (list(good.index), list(bad.index)) == ([1, 2, 3], [4, 5])


def test_a_bag_has_bad_rows_too():
    rows = [np.ones(8, "f4"), np.ones(7, "f4"), np.ones(8, "c8"), np.full(8, np.nan, "f4")]
    model = dx.load(dense_model())
    bag = db.from_sequence(rows, npartitions=2)
    with pytest.raises(dx.InputError, match=r"^row 1 of the 4 of its partition: ") as caught:
        model.predict(bag.repartition(npartitions=1)).compute()
    assert caught.value.input == "x"
    assert caught.value.numbers == {"row": 1, "rows": 4, "rank": 1, "expected_rank": 1}
    found = model.predict(bag, on_error="null", require_finite=True).compute()
    assert [row is None for row in found] == [False, True, True, True]
    good, bad = dask.compute(*model.predict_checked(bag, require_finite=True))
    assert len(good) == 1 and [item["row"] is not None for item in bad] == [True] * 3
    assert "dtype complex64" in bad[1]["error"]
    gather = lookup_model().predict(db.from_sequence([3, 99, 4]), outputs="v", on_error="null")
    assert gather.compute() == [6, None, 8]


def text_model():
    """Return a model that returns its text, and whether that is "café"."""
    return dx.load(
        make_model(
            [node("Identity", "x", "y"), node("Equal", "x cafe", "is_cafe")],
            [value("x", ["N"], TensorProto.STRING)],
            [value("y", ["N"], TensorProto.STRING), value("is_cafe", ["N"], TensorProto.BOOL)],
            {"cafe": np.array(["café"], dtype=object)},
            opset=19,
        )
    )


UNDECODABLE = ["ok", "caf\udce9", "café", b"caf\xe9", "café".encode(), "lone \ud800"]
FAULTS = [
    "byte 0xe9 at character 3 of 'caf\\xe9'",
    "byte 0xe9 at byte 3 of 'caf\\xe9'",
    "lone surrogate U+D800 at character 5 of 'lone \\ud800'",
]


def as_arrow(texts):
    """Return a column of Arrow strings whose bytes have not been validated."""
    content = pa.array([text.encode(errors="surrogateescape") for text in texts], pa.binary())
    unchecked = pa.StringArray.from_buffers(len(texts), content.buffers()[1], content.buffers()[2])
    return pd.Series(pd.arrays.ArrowExtensionArray(unchecked))


@pytest.mark.parametrize("npartitions", [None, 2])
def test_invalid_utf_8_is_a_bad_row_with_its_location(npartitions):
    frame = pd.DataFrame({"x": pd.Series(UNDECODABLE, dtype=object), "id": range(6)})
    with dask.config.set({"dataframe.convert-string": False}):
        table = frame if npartitions is None else dd.from_pandas(frame, npartitions=npartitions)
        model = text_model()
        good, bad = dask.compute(*model.predict_checked(table, columns="x"))
        assert good["y"].to_list() == ["ok", "café", "café"]
        assert good["is_cafe"].to_list() == [False, True, True]
        assert bad["id"].to_list() == [1, 3, 5]
        rule = "input 'x' takes text; column 'x' is not UTF-8: "
        assert bad["error"].to_list() == [rule + fault for fault in FAULTS]
        (found,) = dask.compute(model.predict(table, columns="x", on_error="null"))
        assert found["y"].isna().to_list() == [False, True, False, True, False, True]
        with pytest.raises(dx.InputError, match=r"row \d of \d, with index [13]: .*byte 0xe9"):
            dask.compute(model.predict(table, columns="x"))


@pytest.mark.parametrize("kind", [pd.ArrowDtype(pa.string()), "str", "category", "list"])
def test_invalid_utf_8_is_found_in_columns_of_every_dtype(kind):
    column = as_arrow(["ok", "caf\udce9", "café"])
    model = text_model()
    if kind == "list":
        lists = [[text] for text in UNDECODABLE[:3]]
        column = pd.Series(lists, dtype=object)
        model = dx.load(
            make_model(
                [node("Identity", "x", "y")],
                [value("x", ["N", 1], TensorProto.STRING)],
                [value("y", ["N", 1], TensorProto.STRING)],
            )
        )
    elif kind == "str":
        texts = pa.chunked_array([column.array.__arrow_array__()]).cast(pa.binary())
        large = texts.cast(pa.large_binary()).combine_chunks().view(pa.large_string())
        dtype = pd.StringDtype("pyarrow", na_value=np.nan)
        column = pd.Series(pd.arrays.ArrowStringArray(large, dtype=dtype))
    elif kind == "category":
        index = pd.Index(UNDECODABLE[:3], dtype=object)
        column = pd.Series(pd.Categorical.from_codes([0, 1, 2], index))
    good, bad = model.predict_checked(column.to_frame("x"), columns="x")
    assert good["y"].to_list() == ["ok", "café"]
    assert list(bad.index) == [1]
    assert "is not UTF-8" in bad["error"][1]


def test_kept_text_must_be_utf_8():
    model = lookup_model()
    table = pd.DataFrame(
        {"x": [1, 2, 3], "name": pd.Series(["a", "b\udce9", b"\xe9"], dtype=object)}
    )
    assert model.predict(table, columns="x")["y"].to_list() == [2, 4, 6]
    good, bad = model.predict_checked(table, columns="x", append=True)
    assert good["y"].to_list() == [2, 6], "bytes that are kept are data"
    assert bad["error"].to_list() == [
        "column 'name', which is kept, is not UTF-8: byte 0xe9 at character 1 of 'b\\xe9'"
    ]
    with pytest.raises(dx.InputError, match="column 'name', which is kept") as caught:
        model.predict(table, columns="x", append=True)
    assert caught.value.fields == {
        "option": "append",
        "numbers": {"row": 1, "rows": 3, "bad_rows": 1},
    }
    found = model.predict(table, columns="x", append=True, on_error="null")
    assert found["y"].isna().to_list() == [False, True, False]
    assert model.predict(table, columns="x", append=["x"])["y"].to_list() == [2, 4, 6]


def test_invalid_utf_8_in_a_bag_is_a_bad_row():
    bag = db.from_sequence(UNDECODABLE, npartitions=2)
    model = text_model()
    good, bad = dask.compute(*model.predict_checked(bag, outputs="y"))
    assert [str(text) for text in good] == ["ok", "café", "café"]
    rule = "input 'x' takes text; it is not UTF-8: "
    assert [item["error"] for item in bad] == [rule + fault for fault in FAULTS]
    with pytest.raises(dx.InputError, match=r"row [01] of the 3 of its partition: .*byte 0xe9"):
        model.predict(bag, outputs="y").compute()


def test_errors_that_no_row_causes_are_always_raised():
    def broken(_):
        raise dx.StoreError("the store is gone")

    with pytest.raises(dx.StoreError):
        run_rows(4, lambda _: {"x": np.arange(4)}, broken, stops=False)


def test_a_bad_row_about_doubles_the_work():
    ran = []

    def run(arrays):
        ran.append(len(arrays["x"]))
        if (arrays["x"] == 700).any():
            raise RunError("no")
        return {"y": arrays["x"] * 2}

    found = run_rows(1024, lambda _: {"x": np.arange(1024)}, run, stops=False)
    assert list(found.errors) == [700] and len(found.good) == 1023
    np.testing.assert_array_equal(found.values["y"], found.good * 2)
    assert sum(ran) <= 3 * 1024


def test_rows_are_bisected_if_a_conversion_does_not_name_bad_rows():
    x = np.array([1, 2, 3, 4])

    def convert(positions):
        chosen = x if positions is None else x[positions]
        if (chosen == 3).any():
            raise ValueError("three")
        return {"x": chosen}

    found = run_rows(4, convert, dict, stops=False)
    assert list(found.good) == [0, 1, 3] and found.messages() == ["three"]


def test_a_rows_error_survives_pickling_with_its_fields():
    error = RowsError("a", "b", np.array([False, True]), "of one", {1: "c"}, column="v")
    found = pickle.loads(pickle.dumps(error))
    assert str(found) == "a\nb"
    assert found.fields == {"column": "v", "numbers": {"bad_rows": 1, "rows": 2}}
    np.testing.assert_array_equal(found.mask, error.mask)
    assert found.of_row(0).cause == "of one" and found.of_row(1).cause == "c"
    assert found.of_row(1).fields == {"column": "v"}


@pytest.mark.parametrize("options", [{"on_error": "skip"}, {"length_buckets": []}])
def test_invalid_options_are_refused(options):
    with pytest.raises(dx.InputError) as caught:
        lookup_model().predict(LOOKUPS, **options)
    assert [caught.value.option] == list(options)


def test_options_of_rows_are_for_tables_and_bags():
    for options in ({"on_error": "null"}, {"require_finite": True}):
        with pytest.raises(dx.InputError) as caught:
            lookup_model().predict(np.arange(3), **options)
        assert [caught.value.option] == list(options)
    with pytest.raises(dx.InputError):
        lookup_model().predict_checked(np.arange(3))


def test_the_column_of_errors_must_be_free():
    with pytest.raises(dx.InputError) as caught:
        lookup_model().predict_checked(LOOKUPS.assign(error=1), columns="x")
    assert caught.value.column == "error"


@pytest.fixture(scope="module")
def dropping():
    """Return a model that leaves out some rows, so that results cannot be told apart."""
    kind = TensorProto.STRING
    normalize = node("StringNormalizer", "x", "y", stopwords=["the"], case_change_action="LOWER")
    return dx.load(make_model([normalize], [value("x", ["N"], kind)], [value("y", ["M"], kind)]))


@pytest.mark.parametrize("on_error", ["raise", "null"])
def test_an_output_with_other_rows_than_the_input_is_refused(dropping, on_error):
    texts = ["A", "the", "B"]
    table = pd.DataFrame({"x": texts})
    for given in (
        table,
        dd.from_pandas(table, npartitions=1),
        db.from_sequence(texts, npartitions=1),
    ):
        with pytest.raises(dx.InputError) as raised:
            dask.compute(dropping.predict(given, on_error=on_error))
        assert raised.value.option == "outputs"
        assert raised.value.numbers["output_rows"] < raised.value.numbers["rows"]
    assert dropping.predict(np.array(texts)).tolist() == ["a", "b"]
