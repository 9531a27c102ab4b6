"""One table of conversions for every kind of collection: each cell gives the same values."""

from __future__ import annotations

import datetime
import enum
import functools
from decimal import Decimal

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xarray as xr
from builders import make_model, node, value
from conversion_cases import ELEMENTS, REFUSED, expected_number, same
from onnx import helper

import dask_onnx as dx
from dask_onnx.core.conversions import conversion, source_of

TARGETS = ["bool", "int8", "int64", "uint8", "uint64", "float16", "bfloat16", "float32", "float64"]
TARGETS += ["float8_e4m3fn", "int4", "complex64", "string"]
NUMBERS = ["bool", "int8", "int64", "uint8", "uint64", "float16", "float32", "float64"]
NUMBERS += ["longdouble", "bfloat16", "float8_e5m2", "int4", "complex64"]
VALUES = [0, 1, 3, 100, 300, -1, 2**24 + 1, 2**63, 0.5, 1e39, float("nan")]


@pytest.fixture(autouse=True)
def in_this_thread():
    # Dask would make strings of objects, numbers and lists among them.
    with dask.config.set({"scheduler": "sync", "dataframe.convert-string": False}):
        yield


@functools.cache
def echo(target):
    """Return a model that returns its one-dimensional input."""
    element, _ = ELEMENTS[target]
    made = make_model(
        [node("Identity", "x", "y")],
        [value("x", ["N"], element)],
        [value("y", ["N"], element)],
        opset=25,
        ir_version=13,
    )
    return dx.load(made)


def frame(array):
    return pd.DataFrame({"x": pd.Series(array, dtype=array.dtype)})


FACES = {
    "numpy": lambda array: array,
    "read-only": lambda array: (
        np.frombuffer(array.tobytes(), array.dtype)
        if array.dtype.isbuiltin == 1 and array.dtype != object
        else array
    ),
    "strided": lambda array: np.repeat(array, 2)[::2],
    "other byte order": lambda array: array.astype(array.dtype.newbyteorder("S")),
    "list": lambda array: list(array),
    "Python list": lambda array: array.tolist(),
    "masked": lambda array: np.ma.array(array, mask=np.zeros(len(array), bool)),
    "dict": lambda array: {"x": array},
    "dask.array": lambda array: da.from_array(array, chunks=2),
    "dask masked": lambda array: da.ma.masked_array(
        da.from_array(array, chunks=2), np.zeros(len(array), bool)
    ),
    "Delayed": lambda array: dask.delayed(array),
    "Delayed list": lambda array: dask.delayed(array.tolist()),
    "bag": lambda array: db.from_sequence(list(array), npartitions=1),
    "bag of dicts": lambda array: db.from_sequence([{"x": v} for v in array], npartitions=1),
    "DataArray": lambda array: xr.DataArray(array, dims="x"),
    "DataFrame": frame,
    "dask DataFrame": lambda array: dd.from_pandas(frame(array), npartitions=1),
}
"""Kinds of collections, each with a function that makes one of an array."""
TABLES = {"DataFrame", "dask DataFrame"}
SLOW = {"dask.array", "dask masked", "Delayed", "Delayed list", "bag of dicts", *TABLES}
"""Faces that build a graph for each prediction; they are tried with fewer types."""
FEWER = {"bool", "int8", "uint64", "float16", "float64", "bfloat16", "complex64"}


def predicted(face, array, target):
    """Return the values that a face gives, in a list; `REFUSED` if they are an InputError."""
    try:
        (found,) = dask.compute(echo(target).predict(FACES[face](array)))
    except dx.InputError:
        return REFUSED
    if isinstance(found, pd.DataFrame):
        found = found["y"]
    return list(np.asarray(found, object) if not isinstance(found, list) else found)


def held(source):
    """Return the numbers of `VALUES` that a dtype holds exactly."""
    dtype = np.dtype(getattr(np, source, None) or getattr(ml_dtypes, source))
    with np.errstate(all="ignore"):
        for number in VALUES:
            if "int" in source and (number != number or number % 1 or abs(number) >= 2**64):
                continue
            if source == "bool" and number not in (0, 1):
                continue
            if "int" in source and expected_number(number, source) is REFUSED:
                continue
            element = np.array([number]).astype(dtype)
            back = element.astype(np.clongdouble)[0]
            if back == number or (number != number and np.isnan(back)):
                yield element, number


def wanted(source, number, target):
    if source.startswith("complex"):
        return complex(number) if target == "complex64" else REFUSED
    return expected_number(number, target)


def holds(face, dtype):
    """Return whether a kind of collection can hold elements of a dtype."""
    if face in TABLES:
        return dtype.isbuiltin == 1 and dtype != np.longdouble
    if face == "DataArray":
        return dtype.kind != "T"
    return face != "other byte order" or (dtype.isbuiltin == 1 and dtype.kind != "T")


def is_tried(face, source):
    dtype = np.dtype(getattr(np, source, None) or getattr(ml_dtypes, source))
    return holds(face, dtype) and (face not in SLOW or source in FEWER)


@pytest.mark.parametrize(
    ("face", "source"), [(f, s) for f in FACES for s in NUMBERS if is_tried(f, s)]
)
def test_every_face_converts_numbers_alike(face, source):
    pairs = list(held(source))
    for target in TARGETS:
        outcomes = [wanted(source, number, target) for _, number in pairs]
        good = [
            element for (element, _), o in zip(pairs, outcomes, strict=True) if o is not REFUSED
        ]
        expected = [o for o in outcomes if o is not REFUSED]
        if good:
            found = predicted(face, np.concatenate(good), target)
            assert found is not REFUSED, target
            assert all(map(same, found, expected)) and len(found) == len(good), (target, found)
        for (element, number), outcome in zip(pairs, outcomes, strict=True):
            if outcome is REFUSED:
                array = np.concatenate([*good[:2], element])
                assert predicted(face, array, target) is REFUSED, (target, number)
                break


SECOND = 10**9
OTHERS = {
    "U": (np.array(["a", "é"]), "string", ["a", "é"]),
    "S": (np.array([b"a", "é".encode()]), "string", ["a", "é"]),
    "StringDType": (np.array(["a", "é"], np.dtypes.StringDType()), "string", ["a", "é"]),
    "objects of text": (np.array(["a", b"b\x00"], object), "string", ["a", "b\x00"]),
    "datetime64": (np.array([1, 2], "M8[s]"), "int64", [SECOND, 2 * SECOND]),
    "timedelta64": (np.array([1, 2], "m8[ms]"), "int64", [SECOND // 1000, SECOND // 500]),
    "decimals": (np.array([Decimal("0.5"), 2], object), "float32", [0.5, 2.0]),
    "missing": (np.array([None, 2], object), "float32", [float("nan"), 2.0]),
    "dates": (
        np.array([datetime.date(1970, 1, 2), datetime.datetime(1970, 1, 1)], object),
        "int64",
        [86400 * SECOND, 0],
    ),
}


@pytest.mark.parametrize(
    ("face", "source"),
    [(f, s) for f in FACES for s in OTHERS if f in TABLES or holds(f, OTHERS[s][0].dtype)],
)
def test_every_face_converts_text_times_and_objects_alike(face, source):
    array, target, expected = OTHERS[source]
    if face in TABLES and array.dtype.kind in "UST":
        array = array.astype(object)
    for each in TARGETS:
        if each != target and array.dtype.kind == "O":
            continue
        found = predicted(face, array, each)
        if each == target:
            assert found is not REFUSED
            assert all(map(same, found, expected)) and len(found) == 2, found
        else:
            assert conversion(source_of(array.dtype), each).is_refused
            assert found is REFUSED, each


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("array", "target"),
    [
        (np.array([b"a", b"caf\xe9"]), "string"),
        (np.array([b"a", "\ud800".encode(errors="surrogatepass")], object), "string"),
        (np.array(["a", None], object), "string"),
        (np.array(["a", 1], object), "string"),
        (np.array([1, None], object), "int64"),
        (np.array([1, "2"], object), "float32"),
        (np.array([1, {}], object), "float32"),
        (np.array(["2500-01-01", "1970-01-01"], "M8[s]"), "int64"),
        (np.array(["NaT", "1970-01-01"], "M8[s]"), "int64"),
    ],
    ids=str,
)
def test_every_face_refuses_what_does_not_fit(face, array, target):
    if face in TABLES and array.dtype.kind == "S":
        array = array.astype(object)
    assert predicted(face, array, target) is REFUSED


TABLE = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
MASKED = np.ma.array([1.5, -9999.0, 3.0], mask=[False, True, False])


@pytest.mark.parametrize(
    "make",
    [
        lambda m: m,
        lambda m: {"x": m},
        list,
        lambda m: da.from_array(m, chunks=2, asarray=False),
        lambda m: da.ma.masked_array(da.from_array(m.data, chunks=2), m.mask),
        dask.delayed,
        lambda m: db.from_sequence([np.ma.array(v) for v in m.tolist()], npartitions=1),
        lambda m: xr.DataArray(da.from_array(m, chunks=2, asarray=False), dims="x"),
    ],
)
def test_a_mask_is_a_missing_value_on_every_face(make):
    (found,) = dask.compute(echo("float32").predict(make(MASKED)))
    np.testing.assert_array_equal(np.asarray(found, "f4"), np.array([1.5, np.nan, 3], "f4"))
    whole = np.ma.array([1, -9999, 0], mask=[False, True, False])
    for target in ("int64", "bool"):
        with pytest.raises(dx.InputError) as caught:
            dask.compute(echo(target).predict(make(whole)))
        assert caught.value.input == "x"
        assert caught.value.reason == "is missing" or "is missing" in caught.value.cause


def test_an_error_of_values_has_their_number_and_the_first_place():
    x = np.ma.array([1, -9999, 3, 4], mask=[False, True, False, True])
    with pytest.raises(dx.InputError) as caught:
        echo("int64").predict(x)
    assert caught.value.numbers == {"bad_values": 2, "values": 4, "first_row": 1}
    with pytest.raises(dx.InputError) as caught:
        echo("float32").predict(np.array([0, 1e39, -1e39]))
    assert caught.value.numbers == {"bad_values": 2, "values": 3, "first_row": 1}


def test_rows_of_masked_arrays_keep_their_masks():
    rows = [np.ma.array([1.0, 2], mask=[0, 1]), np.ma.array([3.0, 4], mask=[1, 0])]
    element, _ = ELEMENTS["float32"]
    model = dx.load(
        make_model(
            [node("Identity", "x", "y")],
            [value("x", ["N", 2], element)],
            [value("y", ["N", 2], element)],
        )
    )
    expected = np.array([[1, np.nan], [np.nan, 4]], "f4")
    np.testing.assert_array_equal(model.predict(rows), expected)
    table = pd.DataFrame({"x": pd.Series(rows, dtype=object)})
    for given in (table, dd.from_pandas(table, npartitions=1)):
        (found,) = dask.compute(model.predict(given))
        np.testing.assert_array_equal(found.to_numpy(), expected)
    found = model.predict(db.from_sequence(rows, npartitions=1)).compute()
    np.testing.assert_array_equal(np.stack(found), expected)


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ([1, "a"], "float32"),
        ([1, "a"], "string"),
        (["a", b"\xff"], "string"),
        ([[1.0], [1.0, 2.0]], "float32"),
        ([2**63, -1], "uint64"),
        ([2**53 + 1, 2**63, -1], "int64"),
        ([[1.0], np.ma.array([1.0, 2.0], mask=[0, 1])], "float32"),
        ("abc", "float32"),
        (b"abc", "uint8"),
        ({1, 2}, "float32"),
        pytest.param(object(), "float32", id="object"),
        (np.zeros(2, "f4,i4"), "float32"),
    ],
    ids=str,
)
def test_values_that_numpy_would_change_are_refused(given, target):
    with pytest.raises(dx.InputError) as caught:
        echo(target).predict({"x": given})
    assert caught.value.input == "x" and caught.value.next_step


def test_lists_of_python_keep_each_value():
    assert echo("int64").predict([2**53 + 1, True, -1]).tolist() == [2**53 + 1, 1, -1]
    assert echo("uint64").predict([2**64 - 1, 0]).tolist() == [2**64 - 1, 0]
    assert echo("string").predict(["a\x00", b"b\x00"]).tolist() == ["a\x00", "b\x00"]
    assert echo("float32").predict([1, 2.5, None, Decimal("0.5")])[1:].tolist()[0] == 2.5


@pytest.mark.parametrize("face", FACES)
def test_check_and_predict_agree(face):
    for array, target in (
        (np.array([1.0, 2.0]), "float32"),
        (np.array([1, 2]), "float32"),
        (np.array([1j, 2j]), "float32"),
        (np.array([1.0, 2.0]), "string"),
    ):
        is_refused = conversion(source_of(array.dtype), target).is_refused
        given = FACES[face](array)
        if is_refused and not face.startswith(("bag", "Delayed")):
            with pytest.raises(dx.InputError):
                echo(target).check(given)
        else:
            echo(target).check(given)


@pytest.mark.parametrize("make", [dd.from_pandas, lambda t: xr.Dataset.from_dataframe(t).chunk()])
def test_no_input_in_a_dict_is_computed_behind_the_back(make):
    table = pd.DataFrame({"x": [1.0, 2.0]})
    lazy = make(table)["x"]

    def raising(*_, **__):
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=raising):
        if isinstance(lazy, xr.DataArray):
            assert isinstance(echo("float32").predict({"x": lazy}), da.Array)
        else:
            with pytest.raises(dx.InputError) as caught:
                echo("float32").predict({"x": lazy})
            assert caught.value.input == "x"


def test_elements_of_sequences_and_optionals_are_converted_too():
    kind = helper.make_tensor_type_proto(ELEMENTS["float32"][0], None)
    made = make_model(
        [node("SequenceAt", "s i", "y")],
        [
            helper.make_value_info("s", helper.make_sequence_type_proto(kind)),
            value("i", [], ELEMENTS["int64"][0]),
        ],
        [value("y", None)],
    )
    model = dx.load(made)
    for given in ([np.array([1, 2])], [[1.0, 2.0]], [np.ma.array([1, 2])]):
        for lazily in (False, True):
            feeds = {"s": dask.delayed(given) if lazily else given, "i": 0}
            (found,) = dask.compute(model.predict(feeds))
            assert found.dtype == np.float32 and found.tolist() == [1, 2]
    with pytest.raises(dx.InputError) as caught:
        model.predict({"s": [np.array(["a"])], "i": 0})
    assert caught.value.input == "s"


def test_an_optional_float32_takes_float64_as_an_array_does():
    tensor = helper.make_tensor_type_proto(ELEMENTS["float32"][0], ["N"])
    optional = helper.make_value_info("x", helper.make_optional_type_proto(tensor))
    model = dx.load(
        make_model(
            [node("OptionalHasElement", "x", "y")],
            [optional],
            [value("y", [], ELEMENTS["bool"][0])],
            opset=18,
        )
    )
    for given in (np.ones(3), np.ones(3, np.float32), [1.0, 2.0], None):
        for lazily in (False, True):
            feeds = {"x": dask.delayed(given) if lazily else given}
            (found,) = dask.compute(model.predict(feeds))
            assert bool(found) is (given is not None)
    with pytest.raises(dx.InputError) as caught:
        model.predict({"x": np.array([1e39])})
    assert caught.value.numbers["bad_values"] == 1


class Town(str, enum.Enum):  # noqa: UP042 - str() of a StrEnum is its value
    """Texts whose ``str()`` is another text."""

    ULM = "Ulm"


def test_members_of_enumerations_of_text_are_their_values():
    objects = np.array([Town.ULM, "Bern"], object)
    table = pd.DataFrame({"x": pd.Series(objects, dtype=object)})
    model = echo("string")
    for given in (objects, [Town.ULM, "Bern"], dask.delayed(objects), db.from_sequence(objects)):
        (found,) = dask.compute(model.predict(given))
        assert [type(text) for text in found] == [str, str] and list(found) == ["Ulm", "Bern"]
    assert list(model.predict(table).iloc[:, 0]) == ["Ulm", "Bern"]


@pytest.fixture(scope="module")
def vectorizer():
    tensor = helper.make_tensor_type_proto(ELEMENTS["float32"][0], [])
    pairs = helper.make_map_type_proto(ELEMENTS["string"][0], tensor)
    vectorize = node("DictVectorizer", "x", "y", domain="ai.onnx.ml", string_vocabulary=["a", "b"])
    made = make_model(
        [vectorize],
        [helper.make_value_info("x", pairs)],
        [value("y", [1, 2])],
        domains={"ai.onnx.ml": 3},
    )
    return dx.load(made)


@pytest.mark.parametrize("lazily", [False, True])
def test_maps_are_converted_by_the_table(vectorizer, lazily):
    def predict(pairs):
        (found,) = dask.compute(vectorizer.predict({"x": dask.delayed(pairs) if lazily else pairs}))
        return found

    np.testing.assert_array_equal(predict({"a": 1, "b": np.float64(2.5)}), [[1, 2.5]])
    np.testing.assert_array_equal(predict({b"a": Decimal("0.5"), "b": None}), [[0.5, np.nan]])
    for bad, where in (({"a": 1, "b": 1e39}, "'b'"), ({"a": "1"}, "'a'"), ({"a": [1, 2]}, "")):
        with pytest.raises(dx.InputError) as caught:
            predict(bad)
        assert caught.value.input == "x" and where in str(caught.value)
    with pytest.raises(dx.InputError) as caught:
        predict({"a": 1, b"a": 2})
    assert caught.value.numbers == {"keys": 2, "different_keys": 1}


def test_arrow_and_pandas_values_in_a_dict_are_converted_like_arrays():
    for given in (
        pd.Series([1, None], dtype="Int64"),
        pd.Series([1, None], dtype="int8[pyarrow]"),
        pd.Series([1, None]).astype("category"),
        pa.array([1, None]),
        pd.array([1, None]),
    ):
        found = echo("float32").predict({"x": given})
        np.testing.assert_array_equal(found, np.array([1, np.nan], "f4"))
        with pytest.raises(dx.InputError):
            echo("int64").predict({"x": given})


STRANGE = [3.0, None, "a.png", b"a", {1}, object(), [[1.0, 2.0]], [np.zeros(2, "f4")], [1.0, 2.0]]
STRANGE += [["a"], [[1], [1, 2]], [None, [1.0, 2.0]], ((1.0, 2.0),), [], np.zeros((0, 2)), TABLE]


@pytest.mark.parametrize("shape", [["N", 2], ["N"], [1, 2], None, []])
@pytest.mark.parametrize("target", ["float32", "string"])
def test_whatever_comes_in_is_taken_or_refused_by_an_input_error(shape, target):
    element, _ = ELEMENTS[target]
    model = dx.load(
        make_model(
            [node("Identity", "x", "y")],
            [value("x", shape, element)],
            [value("y", shape, element)],
        )
    )
    for given in STRANGE:
        for form in (given, {"x": given}):
            outcomes = []
            for ask in (model.check, model.predict, model):
                try:
                    ask(form)
                except dx.InputError:
                    outcomes.append("refused")
                else:
                    outcomes.append("taken")
            is_object_array = target == "string" and outcomes[0] == "taken"
            assert outcomes[1] == outcomes[2], given
            assert outcomes[0] == outcomes[1] or is_object_array, (given, outcomes)
