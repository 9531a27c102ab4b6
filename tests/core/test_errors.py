"""Errors: fields, pickling and suggestions."""

from __future__ import annotations

import pickle

import pytest

import dask_onnx as dx
from dask_onnx.core.errors import DaskOnnxError, Suggestion


def subclasses(kind):
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


@pytest.mark.parametrize("kind", [DaskOnnxError, *subclasses(DaskOnnxError)])
def test_fields_survive_pickling(kind):
    error = kind(
        "stage Conv_0 needs 5.1 GiB, the worker has 4.0 GiB",
        "raise n_stages above 4",
        stage="Conv_0",
        option="n_stages",
        numbers={"needed_bytes": 5.1 * 2**30},
        suggestions=[Suggestion("n_stages", 5)],
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind and str(copy) == str(error)
    assert copy.fields == error.fields
    assert copy.suggestions == (Suggestion("n_stages", 5),)


def test_omitted_fields_are_none_or_empty():
    error = dx.InputError("x has 3 columns, the model takes 4")
    assert error.fields == {} and error.input is None and error.suggestions == ()


def test_a_suggestion_reads_as_a_keyword_argument():
    assert str(Suggestion("n_stages", 5)) == "n_stages=5"
    assert str(Suggestion("batch_size")) == "batch_size"
