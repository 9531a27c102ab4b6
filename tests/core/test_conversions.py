"""The table of conversions, held cell by cell against exact numbers."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from conversion_cases import (
    COMPLEX_NAMES,
    ELEMENTS,
    FLOAT_NAMES,
    INTEGER_NAMES,
    REFUSED,
    VALUES,
    expected_number,
    same,
    samples,
)
from conversion_page import PAGE, page

from dask_onnx.core.conversions import SOURCES, TARGETS, conversion, family_of, source_of
from dask_onnx.core.object_conversions import convert_array
from dask_onnx.core.value_conversions import Unfit

NUMBERS = ["bool", *INTEGER_NAMES, *FLOAT_NAMES]
"""Sources that are real numbers and have a target of the same name."""


def converted(array, target, missing=None):
    """Return the one value that an array of one element becomes, or `REFUSED`."""
    try:
        result = convert_array(array, ELEMENTS[target][1], missing)
    except Unfit as fault:
        is_complete = fault.rule and fault.fault and fault.next_step
        return REFUSED if is_complete and fault.bad.shape == array.shape else fault
    assert result.dtype == ELEMENTS[target][1] and result.shape == array.shape
    return result.reshape(-1)[0]


def objects(*values):
    return np.array([*values, None], object)[:-1]


def test_the_targets_are_the_types_of_onnx():
    assert set(TARGETS) == set(ELEMENTS)


def test_each_cell_says_what_is_refused_and_what_to_do():
    for source in SOURCES:
        for target in TARGETS:
            cell = conversion(source, target)
            if cell.is_refused:
                assert cell.rule and cell.next_step, (source, target)
            if cell.way in ("exact", "by value"):
                assert not cell.next_step, (source, target)


@pytest.mark.parametrize("source", NUMBERS)
def test_numbers_become_the_nearest_value_or_are_refused(source):
    dtype = ELEMENTS[source][1]
    pairs = samples(dtype)
    assert len(pairs) > 1
    for target in TARGETS:
        way = conversion(source, target).way
        outcomes = []
        for element, value in pairs:
            found, wanted = converted(element, target), expected_number(value, target)
            outcomes.append(wanted)
            assert (found is REFUSED) == (wanted is REFUSED), (source, target, value, found)
            assert wanted is REFUSED or same(found, wanted), (source, target, value, found)
        if way in ("exact", "by value"):
            assert REFUSED not in outcomes, (source, target)
            held = [
                same(number, complex(v) if isinstance(number, complex) else v)
                for (_, v), number in zip(pairs, outcomes, strict=True)
            ]
            assert all(held), (source, target)
        elif way == "refused":
            assert set(outcomes) == {REFUSED}, (source, target)


@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_of_either_byte_order_are_the_same(order):
    for source in ("int16", "int64", "uint32", "float16", "float32", "float64"):
        array = np.array([1, 2, 0], np.dtype(source).newbyteorder(order))
        for target in ("int8", "float32", "float64", "bool", "int64"):
            if target == "bool":
                array = np.array([1, 0, 1], array.dtype)
            found = convert_array(array, np.dtype(target))
            assert found.dtype == np.dtype(target) and found.dtype.isnative
            np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("make", [int, float, Decimal, Fraction, np.float64, np.longdouble])
def test_python_numbers_become_the_nearest_value_or_are_refused(make):
    for value in VALUES:
        try:
            given = make(value)
            is_exact = not math.isfinite(given) or Fraction(given) == Fraction(value)
        except (TypeError, ValueError, OverflowError):
            continue
        if not is_exact:
            continue
        for target in TARGETS:
            found, wanted = converted(objects(given), target), expected_number(value, target)
            assert (found is REFUSED) == (wanted is REFUSED), (make, target, value, found)
            assert wanted is REFUSED or same(found, wanted), (make, target, value, found)


def test_integers_of_any_length_go_where_they_fit():
    for value in (2**63 - 1, 2**63, 2**64, 10**40, -(10**40), 10**400):
        for target in ("int64", "uint64", "float32", "float64", "bool"):
            wanted = expected_number(value, target) if value < 10**300 or "int" in target else ""
            found = converted(objects(value), target)
            is_refused = wanted in ("", REFUSED) or (abs(value) > 3.4e38 and target == "float32")
            assert (found is REFUSED) == is_refused, (value, target, found)


@pytest.mark.parametrize("source", ["complex64", "complex128", "clongdouble"])
def test_complex_numbers_go_into_complex_inputs_only(source):
    array = np.array([1 - 2j], source)
    for target in TARGETS:
        found = converted(array, target)
        if target in COMPLEX_NAMES:
            assert complex(found) == 1 - 2j
        else:
            assert found is REFUSED
        assert (found is REFUSED) == (converted(objects(array[0]), target) is REFUSED)
    assert converted(np.array([1e300 + 0j]), "complex64") is REFUSED
    assert converted(np.array([0j]), "float32") is REFUSED, "whatever the value is"


TEXTS = ["", "a", "café", "日本", "a\x00", "\x00"]


def test_text_and_utf_8_go_into_string_inputs_only():
    for text in TEXTS:
        forms = [objects(text), objects(text.encode()), objects(bytearray(text.encode()))]
        forms += [np.array([text], np.dtypes.StringDType())]
        if not text.endswith("\x00"):
            forms += [np.array([text]), np.array([text.encode()])]
        for array in forms:
            for target in TARGETS:
                found = converted(array, target)
                assert found == (text if target == "string" else REFUSED), (array, target)


def test_what_is_no_unicode_is_refused_with_its_place():
    for bad in ("caf\udce9", b"caf\xe9", "\ud800"):
        with pytest.raises(Unfit) as caught:
            convert_array(objects("a", b"b", bad), np.dtype(object))
        assert caught.value.bad.tolist() == [False, False, True]
        assert set(caught.value.places) == {2}
    with pytest.raises(Unfit) as caught:
        convert_array(np.array([b"a", b"\xff"]), np.dtype(object))
    assert set(caught.value.places) == {1}


UNITS = {"W": 7 * 86400 * 10**9, "D": 86400 * 10**9, "h": 3600 * 10**9, "m": 60 * 10**9}
UNITS |= {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


@pytest.mark.parametrize("kind", ["M8", "m8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_times_become_nanoseconds_whatever_their_unit_is(kind, order):
    for unit, factor in UNITS.items():
        for count in (-3, 0, 7):
            array = np.array([count], f"{order}{kind}[{unit}]")
            for target in TARGETS:
                found = converted(array, target)
                wanted = count * factor if target == "int64" else REFUSED
                assert found == wanted, (unit, target)
        limit = (2**63 - 1) // factor
        for count in (limit, -limit):
            assert converted(np.array([count], f"{kind}[{unit}]"), "int64") == count * factor
        if factor > 1:
            beyond = np.array([limit + 1], f"{kind}[{unit}]")
            assert converted(beyond, "int64") is REFUSED
        assert converted(np.array(["NaT"], f"{kind}[{unit}]"), "int64") is REFUSED


def test_calendar_units_and_short_units_keep_their_value_or_are_refused():
    days = np.datetime64("2020-02-01", "D").astype(int)
    assert converted(np.array(["2020-02"], "M8[M]"), "int64") == days * UNITS["D"]
    assert converted(np.array(["2020"], "M8[Y]"), "int64") == (days - 31) * UNITS["D"]
    assert converted(np.array([10**9], "M8[Y]"), "int64") is REFUSED
    assert converted(np.array([2], "m8[Y]"), "int64") is REFUSED, "years differ in length"
    assert converted(np.array([2], "m8"), "int64") is REFUSED, "there is no unit"
    assert converted(np.array([25], "m8[10s]"), "int64") == 250 * 10**9
    assert converted(np.array([2000], "M8[ps]"), "int64") == 2
    assert converted(np.array([2001], "M8[ps]"), "int64") is REFUSED


PARIS = datetime.timezone(datetime.timedelta(hours=1))


@pytest.mark.parametrize(
    ("value", "nanoseconds"),
    [
        (datetime.datetime(1970, 1, 1, 0, 0, 1, 5), 10**9 + 5000),
        (datetime.datetime(1970, 1, 1, 1, 0, 1, tzinfo=PARIS), 10**9),
        (datetime.datetime(2500, 1, 1), REFUSED),
        (datetime.date(1970, 1, 2), 86400 * 10**9),
        (datetime.timedelta(seconds=-2, microseconds=1), -2 * 10**9 + 1000),
        (datetime.time(0, 1, 2, 3), 62 * 10**9 + 3000),
        (datetime.time(0, 1, tzinfo=PARIS), REFUSED),
        (np.datetime64("1970-01-01T00:00:01"), 10**9),
        (np.timedelta64(3, "ms"), 3 * 10**6),
        (np.timedelta64(3, "Y"), REFUSED),
    ],
)
def test_python_times_become_nanoseconds(value, nanoseconds):
    for target in TARGETS:
        wanted = nanoseconds if target == "int64" else REFUSED
        assert converted(objects(value), target) == wanted


@pytest.mark.parametrize(
    "value", [None, math.nan, np.nan, Decimal("NaN"), np.datetime64("NaT"), np.ma.masked]
)
def test_a_missing_object_becomes_nan_or_is_refused(value):
    array = np.empty(1, object)
    array[0] = value
    for target in TARGETS:
        found = converted(array, target)
        wanted = expected_number(math.nan, target)
        assert wanted is REFUSED if found is REFUSED else same(found, wanted), target


@pytest.mark.parametrize(
    "array",
    [np.array([7], np.int8), np.array([7.0]), np.array([True]), np.array(["a"]), np.array([b"a"])],
)
def test_what_lies_under_a_mask_is_never_read(array):
    for target in TARGETS:
        if conversion(source_of(array.dtype), target).is_refused:
            continue
        found = converted(array, target, np.array([True]))
        wanted = expected_number(math.nan, target)
        assert wanted is REFUSED if found is REFUSED else same(found, wanted), target


def test_masked_places_hide_values_that_do_not_fit():
    array = np.ma.array([1.0, 1e300, 3.0], mask=[False, True, False])
    found = convert_array(array.data, np.dtype("f4"), array.mask)
    np.testing.assert_array_equal(found, np.array([1, np.nan, 3], "f4"))
    assert array.data[1] == 1e300, "the caller's array is as it was"


@pytest.mark.parametrize(
    "value",
    [
        [1],
        (1,),
        {},
        np.zeros(1),
        pytest.param(object(), id="object"),
        np.zeros(1, "i4,i4")[0],
    ],
    ids=repr,
)
def test_an_object_that_is_no_value_is_refused_by_its_type(value):
    array = np.empty(1, object)
    array[0] = value
    for target in TARGETS:
        with pytest.raises(Unfit) as caught:
            convert_array(array, ELEMENTS[target][1])
        assert type(value).__qualname__ in caught.value.fault


def test_structured_arrays_are_refused():
    for target in TARGETS:
        assert converted(np.zeros(1, "i4,f4"), target) is REFUSED


def test_objects_of_several_types_are_each_converted_by_their_own():
    array = objects(1, 2.0, True, Decimal("0.5"), None, np.int8(3), ml_dtypes.bfloat16(4))
    found = convert_array(array.reshape(7, 1), np.dtype("f4"))
    np.testing.assert_array_equal(found[:, 0], np.array([1, 2, 1, 0.5, np.nan, 3, 4], "f4"))
    with pytest.raises(Unfit) as caught:
        convert_array(objects(1, "2", 3, b"4"), np.dtype("f4"))
    assert caught.value.bad.tolist() == [False, True, False, False]


def test_arrays_of_the_type_are_taken_as_they_are():
    for name, (_, dtype) in ELEMENTS.items():
        array = np.array(["a", "é"], object) if name == "string" else np.array([1, 1]).astype(dtype)
        assert convert_array(array, dtype) is array


def test_types_of_ml_dtypes_that_onnx_lacks_are_taken_by_value():
    array = np.array([1.5, -2.0]).astype(ml_dtypes.float8_e3m4)
    assert convert_array(array, np.dtype("f4")).tolist() == [1.5, -2.0]
    assert convert_array(np.array([1]).astype(ml_dtypes.uint1), np.dtype("i8")).tolist() == [1]


def test_every_dtype_of_numpy_has_a_row():
    dtypes = [np.dtype(t) for types in np.sctypeDict.values() for t in [types]]
    for dtype in dtypes:
        assert family_of(source_of(dtype))


def test_the_page_of_conversions_is_that_of_the_table():
    assert PAGE.read_text() == page(), "run `make conversions`"
