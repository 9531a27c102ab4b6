"""Cells of text files: types from a sample, and exact values."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_onnx.io.text_cells import MISSING, CellError, CellRules, convert_cells, infer_type

RULES = CellRules()


def inferred(texts, *, exact, decimal="."):
    marks = RULES.marks("a", is_text=False)
    return infer_type(pa.array(texts, pa.string()), marks, exact=exact, decimal=decimal)


def converted(texts, kind, rules=RULES, *, exact=False):
    return convert_cells(pa.chunked_array([texts]), "a", kind, rules, exact=exact).to_pylist()


@pytest.mark.parametrize(
    ("texts", "fed", "kept"),
    [
        (["1", "-2", "NA"], "int64", "int64"),
        (["01234", "5"], "int64", "string"),
        (["+5"], "int64", "string"),
        (["-0"], "int64", "string"),
        ([" 5"], "int64", "string"),
        (["9223372036854775808"], "uint64", "uint64"),
        (["18446744073709551616"], "double", "string"),
        (["1.5", "2"], "double", "double"),
        (["1.5", "9007199254740993"], "double", "string"),
        (["1.5", "01"], "double", "string"),
        (["1e5"], "double", "string"),
        (["inf", "1"], "double", "double"),
        (["true", "False"], "bool", "bool"),
        (["", "null"], "double", "string"),
        (["0x10"], "string", "string"),
        (["1_000"], "string", "string"),
        (["a", "1"], "string", "string"),
        ([], "double", "string"),
    ],
)
def test_types_follow_from_the_texts(texts, fed, kept):
    assert str(inferred(texts, exact=False)) == fed
    assert str(inferred(texts, exact=True)) == kept


def test_a_decimal_comma_is_a_point():
    assert inferred(["1,5"], exact=False, decimal=",") == pa.float64()
    assert converted(["1,5", "2"], pa.float64(), CellRules(decimal=",")) == [1.5, 2.0]
    with pytest.raises(CellError):
        converted(["1.500"], pa.float64(), CellRules(decimal=","))


def test_missing_values_of_numbers_are_the_usual_marks_and_of_texts_only_the_named_ones():
    marks = sorted(MISSING)
    assert converted(marks, pa.float64()) == [None] * len(marks)
    assert converted(marks, pa.int64()) == [None] * len(marks)
    assert converted(marks, pa.string()) == marks
    assert converted(["-", "NA"], pa.string(), CellRules(("-",))) == [None, "NA"]
    assert converted(["-", "NA"], pa.string(), CellRules((), {"a": ("NA",)})) == ["-", None]
    assert converted(["-", "1"], pa.int64(), CellRules((), {"b": ("-",), "a": ("-",)})) == [None, 1]


@given(st.floats(allow_nan=False))
def test_numbers_are_read_exactly(number):
    assert converted([repr(number)], pa.float64()) == [number]


@given(st.integers(-(2**63), 2**64 - 1))
def test_integers_are_read_exactly_in_the_type_that_they_need(number):
    kind = inferred([str(number)], exact=True)
    assert converted([str(number)], kind, exact=True) == [number]


@pytest.mark.parametrize(
    ("texts", "kind", "bad"),
    [
        (["1", "three"], pa.float64(), "three"),
        (["1", "1.5"], pa.int64(), "1.5"),
        (["1", "0x10"], pa.int64(), "0x10"),
        (["1", "300"], pa.int8(), "300"),
        (["1", "9223372036854775808"], pa.int64(), "9223372036854775808"),
        (["true", "1"], pa.bool_(), "1"),
        (["2024-01-01", "soon"], pa.timestamp("ns"), "soon"),
    ],
)
def test_a_text_of_another_type_is_named(texts, kind, bad):
    with pytest.raises(CellError) as raised:
        converted(texts, kind)
    assert (raised.value.column, raised.value.text) == ("a", bad)


def test_a_kept_number_must_be_written_as_it_is():
    assert converted(["01"], pa.int64()) == [1]
    with pytest.raises(CellError):
        converted(["01"], pa.int64(), exact=True)
    with pytest.raises(CellError):
        converted(["1.5", "01"], pa.float64(), exact=True)
