"""Outputs whose type no rule infers: found by running one node on made-up inputs."""

from __future__ import annotations

import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from builders import dense_model, make_model, node, value
from onnx import TensorProto, helper, numpy_helper
from onnx.reference.op_run import OpRun

import dask_onnx as dx
from dask_onnx.collections import observed_types

pytestmark = pytest.mark.filterwarnings("ignore:the model declares")

X = np.arange(44, dtype=np.float32).reshape(11, 4)
CALLS = []


class Total(OpRun):
    """Sum of each row, as a column of integers."""

    op_domain = "mine"
    axes = (0,)

    def _run(self, x):
        CALLS.append(x.shape)
        return (x.sum(axis=1, keepdims=True).astype(np.int64),)


class Fails(OpRun):
    op_domain = "mine"

    def _run(self, x):
        if not x.any():
            raise ValueError("zeros are not accepted")
        return (x[:, :1],)


def model_of(declared, elem_type=TensorProto.FLOAT, *, op="Total", behind=()):
    last = "y" if not behind else "t"
    return make_model(
        [node("Neg", "x", "n"), node(op, "n", last, domain="mine"), *behind],
        [value("x", ["N", 4])],
        [value("y", declared, elem_type)],
        domains={"mine": 1},
    )


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


@pytest.mark.parametrize("declared", [["N"], [1], ["N", 3], ["N", 1, 1], None])
@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT, TensorProto.INT64])
@pytest.mark.parametrize("behind", [(), (node("Abs", "t", "y"),)], ids=["last", "followed"])
def test_every_collection_has_the_type_that_the_kernel_gives(declared, elem_type, behind):
    source = model_of(declared, elem_type, behind=behind)
    model = dx.load(source, custom_ops=[Total])
    sums = (-X).sum(axis=1, keepdims=True).astype(np.int64)
    expected = abs(sums) if behind else sums
    lazy = model.predict(da.from_array(X, chunks=(4, 4)))
    assert (lazy.shape, lazy.dtype, lazy.chunks) == ((11, 1), np.int64, ((4, 4, 3), (1,)))
    assert lazy._meta.dtype == np.int64
    assert np.array_equal(lazy.compute(), expected)
    assert np.array_equal((lazy[:, 0] + lazy.sum()).compute(), expected[:, 0] + expected.sum())
    per_node = model.predict(da.from_array(X, chunks=(4, 4)), plan=model.plan("per_node"))
    assert (per_node.shape, per_node.dtype) == ((11, 1), np.int64)
    assert np.array_equal(per_node.compute(), expected)
    assert np.array_equal(model.predict(X), expected)
    table = pd.DataFrame(X)
    frame = model.predict(dd.from_pandas(table, npartitions=3))
    assert frame.dtypes["y"] == frame.compute().dtypes["y"] == np.int64
    assert np.array_equal(frame.compute()["y"], expected[:, 0])
    assert np.array_equal(model.predict(table)["y"], expected[:, 0])
    rows = model.predict(db.from_sequence(list(X), npartitions=3)).compute(scheduler="sync")
    assert np.array_equal(np.stack(rows), expected)


def test_the_node_runs_once_for_each_model_and_on_few_rows():
    model = dx.load(model_of(["N"]), custom_ops=[Total])
    array = da.from_array(X, chunks=(4, 4))
    model.predict(array)
    assert CALLS
    assert max(rows for rows, _ in CALLS) <= 3
    CALLS.clear()
    model.predict(array, outputs=["y"])
    model.predict(dd.from_pandas(pd.DataFrame(X), npartitions=2))
    assert not CALLS


def test_nothing_runs_where_rules_infer_all_types(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("ran a node")

    monkeypatch.setattr(observed_types, "_observed", refuse)
    model = dx.load(dense_model())
    assert model.predict(da.ones((6, 8), chunks=(3, 8), dtype="f4")).shape == (6, 4)
    foreign = dx.load(model_of(["N"]), custom_ops=[Total])
    assert foreign.predict(da.from_array(X, chunks=-1), outputs="n").shape == (11, 4)
    with pytest.raises(AssertionError, match="ran a node"):
        foreign.predict(da.from_array(X, chunks=-1))


def test_a_node_that_fails_on_made_up_inputs_keeps_its_declared_type():
    model = dx.load(model_of(["N", 1], op="Fails"), custom_ops=[Fails])
    lazy = model.predict(da.from_array(X + 1, chunks=-1))
    assert lazy.ndim == 2
    assert np.array_equal(lazy.compute(), -X[:, :1] - 1)


@pytest.mark.parametrize(
    ("declared", "elem_type"), [(["N"], TensorProto.FLOAT), (["N", 1], TensorProto.INT64)]
)
def test_a_block_that_is_not_as_the_array_says_is_an_error(declared, elem_type):
    model = dx.load(model_of(declared, elem_type, op="Fails"), custom_ops=[Fails])
    lazy = model.predict(da.from_array(X + 1, chunks=-1))
    with pytest.raises(dx.StageError, match="was built for that") as caught:
        lazy.compute(scheduler="sync")
    assert caught.value.numbers["rank"] == 2
    assert caught.value.numbers["expected_rank"] == len(declared)


def test_a_loop_that_does_not_end_on_made_up_inputs_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(observed_types, "_MAX_RUN_SECONDS", 0.2)
    body = helper.make_graph(
        [
            node("ReduceMax", "state", "largest", keepdims=0),
            node("Less", "largest limit", "goes_on"),
            node("Add", "state state", "doubled"),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("state", None)],
        [value("goes_on", [], TensorProto.BOOL), value("doubled", None)],
        [numpy_helper.from_array(np.float32(100), "limit")],
    )
    nodes = [node("Loop", "- yes x", "y", "until", body=body)]
    yes = {"yes": np.array(True)}
    model = dx.load(make_model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], yes))
    lazy = model.predict(da.from_array(X + 1, chunks=-1))  # zeros never reach the limit
    assert lazy.shape == (11, 4)
    assert np.array_equal(lazy.compute(scheduler="sync"), 8 * (X + 1))
