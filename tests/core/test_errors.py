"""Errors: fields, suggestions, and all of them after a way through other processes."""

from __future__ import annotations

import importlib
import pickle
import pkgutil

import cloudpickle
import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.core import clean_exception, error_message

import dask_onnx as dx
from dask_onnx.collections.bad_rows import RowsError
from dask_onnx.core.errors import DaskOnnxError, Suggestion


def all_kinds():
    """Return all exceptions that modules of the package define."""
    found = {}
    for module in pkgutil.walk_packages(dx.__path__, "dask_onnx."):
        if module.name.endswith("__main__"):
            continue
        for each in vars(importlib.import_module(module.name)).values():
            is_error = isinstance(each, type) and issubclass(each, BaseException)
            if is_error and each.__module__ == module.name:
                found[each.__qualname__] = each
    return list(found.values())


KINDS = all_kinds()
OWN = [kind for kind in KINDS if issubclass(kind, DaskOnnxError)]
FIELDS = {
    "option": "n_stages",
    "input": "x",
    "column": "age",
    "stage": "Conv_0",
    "node": "Conv_0+Relu_1",
    "axis": 0,
    "reason": "word for word",
    "numbers": {"needed_bytes": 5.1 * 2**30, "rows": 3},
    "suggestions": (Suggestion("n_stages", 5), Suggestion("memory_limit")),
}


class UnpicklableError(Exception):
    def __reduce__(self):
        raise TypeError("not to be pickled")


class NotRebuiltError(Exception):
    """An error that pickles, but cannot be made of its arguments again."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def make(kind):
    """Return an error of a kind with all fields and more, whatever its parameters are."""
    error = kind.__new__(kind)
    DaskOnnxError.__init__(error, "it failed", "do this", **FIELDS)
    error.more = {"rows": [1, 2]}
    error.add_note("a note")
    return error


def by_pickle(error):
    return pickle.loads(pickle.dumps(error))


def by_cloudpickle(error):
    return cloudpickle.loads(cloudpickle.dumps(error))


def by_distributed(error):
    """Return what a client raises for an error of a task."""
    message = error_message(error)
    message["exception"] = message["exception"].data
    message["traceback"] = None
    return clean_exception(**message)[1]


WAYS = [by_pickle, by_cloudpickle, by_distributed]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", OWN)
def test_all_attributes_survive(kind, way):
    error = make(kind)
    assert set(error.fields) == set(FIELDS)
    copy = way(error)
    assert type(copy) is kind and str(copy) == str(error) and copy.args == error.args
    assert vars(copy) == vars(error)
    assert copy.__notes__ == ["a note"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    "behind",
    [OSError(28, "full"), UnpicklableError("u"), NotRebuiltError(1, 2), make(dx.StoreError)],
)
def test_the_error_behind_survives(behind, hidden, way):
    try:
        try:
            raise behind
        except Exception as cause:
            raise make(dx.StageError) from None if hidden else cause
    except dx.StageError as error:
        copy = way(error)
    assert type(copy) is dx.StageError and copy.fields == FIELDS
    assert copy.__suppress_context__
    if hidden:
        assert copy.__cause__ is None
    else:
        assert str(behind) in str(copy.__cause__)
        kinds = [type(behind)]
        if isinstance(behind, UnpicklableError | NotRebuiltError):
            kinds.append(RuntimeError)  # distributed has ways to pickle some of these
        assert type(copy.__cause__) in kinds
    if isinstance(behind, DaskOnnxError) and not hidden:
        assert copy.__cause__.fields == FIELDS


@pytest.mark.parametrize("way", WAYS)
def test_rows_and_their_causes_survive(way):
    mask = np.array([True, False, True])
    error = RowsError("2 rows are bad", "fix them", mask, "a row is bad", {2: "no"}, column="age")
    copy = way(error)
    np.testing.assert_array_equal(copy.mask, mask)
    assert copy.numbers == {"bad_rows": 2, "rows": 3} and copy.column == "age"
    assert str(copy.of_row(0)) == str(error.of_row(0))
    assert copy.of_row(2).cause == "no" and copy.of_row(2).column == "age"


@pytest.mark.parametrize("way", WAYS)
def test_a_very_long_message_keeps_its_fields_and_both_ends(way):
    copy = way(dx.InputError("first " + "x" * 100_000 + " last", "y" * 100_000, **FIELDS))
    assert copy.fields == FIELDS
    assert copy.cause.startswith("first") and copy.cause.endswith("last")


def fail():
    try:
        raise UnpicklableError("as onnxruntime's own")
    except UnpicklableError as error:
        raise make(dx.RunError) from error


@pytest.mark.cluster
def test_a_client_catches_what_a_task_raised(store_directory):
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        with pytest.raises(dx.RunError) as caught:
            client.submit(fail).result(timeout=60)
        assert caught.value.fields == FIELDS
        with pytest.raises(dx.RunError) as caught:
            dask.delayed(fail)().compute(scheduler="processes", num_workers=1)
        assert caught.value.fields == FIELDS


def test_omitted_fields_are_none_or_empty():
    error = dx.InputError("x has 3 columns, the model takes 4")
    assert error.fields == {} and error.input is None and error.suggestions == ()


def test_a_suggestion_reads_as_a_keyword_argument():
    assert str(Suggestion("n_stages", 5)) == "n_stages=5"
    assert str(Suggestion("batch_size")) == "batch_size"
