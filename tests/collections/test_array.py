"""Lazy predictions for dask arrays, against plain ONNX Runtime."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from builders import (
    branching_model,
    dense_model,
    make_model,
    node,
    run_onnx,
    scaled_model,
    single_row_model,
    value,
    weights,
)
from dask.utils import key_split
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.runtime.session_cache import SESSION_CACHE

X = np.random.default_rng(0).standard_normal((11, 8)).astype(np.float32)
B = X[:, :4].copy()
LAZY = da.from_array(X, chunks=(4, 8))
STRATEGIES = [("whole", {}), ("per_node", {}), ("fused", {"n_stages": 2})]


@pytest.fixture(autouse=True)
def threads():
    with dask.config.set(scheduler="sync"):
        yield


def raising(*_, **__):
    raise AssertionError("something was computed")


@pytest.mark.parametrize(("strategy", "options"), STRATEGIES)
@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
def test_a_lazy_array_gives_the_results_of_onnxruntime(strategy, options, batch_size):
    source = dense_model()
    model = dx.load(source)
    y = model.predict(LAZY, plan=model.plan(strategy, **options), batch_size=batch_size)
    assert isinstance(y, da.Array)
    np.testing.assert_allclose(y.compute(), run_onnx(source, {"x": X})[0], rtol=1e-6)


@pytest.mark.parametrize(("strategy", "options"), STRATEGIES)
def test_building_computes_nothing(strategy, options):
    model = dx.load(branching_model())
    before = SESSION_CACHE.built
    with dask.config.set(scheduler=raising):
        model.predict(LAZY[:, :4], plan=model.plan(strategy, **options), batch_size=2)
        model.analysis  # noqa: B018 - a property that might run something
    assert SESSION_CACHE.built == before


@pytest.mark.parametrize(("strategy", "options"), STRATEGIES)
def test_shape_chunks_dtype_and_meta_come_from_the_graph(strategy, options):
    model = dx.load(branching_model())
    found = model.predict(LAZY[:, :4], plan=model.plan(strategy, **options))
    for name, width in (("y", 12), ("m", 4)):
        lazy = found[name]
        assert lazy.shape == (11, width)
        assert lazy.chunks == ((4, 4, 3), (width,))
        assert lazy.dtype == lazy._meta.dtype == np.float32
        computed = lazy.compute()
        assert computed.shape == lazy.shape
        assert computed.dtype == lazy.dtype


@pytest.mark.parametrize(("strategy", "options"), STRATEGIES)
def test_each_stage_is_one_task_for_each_chunk(strategy, options):
    model = dx.load(dense_model())
    plan = model.plan(strategy, **options)
    (y,) = dask.optimize(model.predict(LAZY, plan=plan))
    prefixes = [key_split(key) for key in dict(y.__dask_graph__())]
    for stage in plan.stages:
        assert prefixes.count(stage.label) == 3


def test_a_whole_plan_is_fused_with_its_neighbours():
    model = dx.load(dense_model())
    (y,) = dask.optimize(model.predict(LAZY * 2).sum(axis=1) + 1)
    graph = dict(y.__dask_graph__())
    assert "dense" not in {key_split(key) for key in graph}
    assert len(graph) <= 6


def test_stages_are_not_fused_with_their_neighbours():
    source = dense_model()
    model = dx.load(source)
    plan = model.plan("fused", n_stages=2)
    (y,) = dask.optimize((model.predict(LAZY * 2, plan=plan) + 1).sum(axis=1))
    prefixes = [key_split(key) for key in dict(y.__dask_graph__())]
    assert [prefixes.count(stage.label) for stage in plan.stages] == [3, 3]
    expected = (run_onnx(source, {"x": X * 2})[0] + 1).sum(axis=1)
    np.testing.assert_allclose(y.compute(), expected, rtol=1e-5)


def test_the_graph_carries_no_weights():
    model = dx.load(dense_model(hidden=100_000))
    for plan in (model.plan(), model.plan("per_node")):
        graph = model.predict(da.zeros((40, 8), chunks=(4, 8), dtype="f4"), plan=plan)
        assert len(pickle.dumps(dict(graph.__dask_graph__()))) < 40_000


def test_equal_requests_have_equal_keys():
    model, again = dx.load(dense_model()), dx.load(dense_model())
    for plan in ("whole", "per_node"):
        first = model.predict(LAZY, plan=model.plan(plan))
        assert again.predict(LAZY, plan=again.plan(plan)).name == first.name
        assert model.predict(LAZY, plan=model.plan(plan), retries=7).name == first.name
        others = {
            model.predict(LAZY, plan=model.plan(plan), batch_size=2).name,
            model.predict(LAZY + 1, plan=model.plan(plan)).name,
            model.predict(LAZY, plan=model.plan(plan), outputs="h3").name,
            dx.load(dense_model(hidden=16)).predict(LAZY).name,
        }
        assert first.name not in others
        assert len(others) == 4


def test_inputs_of_different_chunks_are_aligned():
    source = make_model(
        [node("Add", "a b", "y")],
        [value("a", ["N", 4]), value("b", ["N", 4])],
        [value("y", ["N", 4])],
    )
    model = dx.load(source)
    a, b = da.from_array(B, chunks=(4, 4)), da.from_array(B, chunks=(3, 4))
    for feeds in ({"a": a, "b": b}, {"a": a, "b": B}):
        for plan in ("whole", "per_node"):
            y = model.predict(feeds, plan=model.plan(plan))
            np.testing.assert_array_equal(y.compute(), B + B)


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_inputs_without_rows_are_given_once(strategy):
    table = np.random.default_rng(1).standard_normal((4, 500)).astype("f4")
    source = make_model(
        [node("MatMul", "x table", "h"), node("Mul", "h s", "y")],
        [value("x", ["N", 4]), value("table", [4, 500]), value("s", [])],
        [value("y", ["N", 500])],
    )
    model = dx.load(source)
    feeds = {"x": da.from_array(B, chunks=(4, 4)), "table": table, "s": 3.0}
    y = model.predict(feeds, plan=model.plan(strategy), batch_size=2)
    np.testing.assert_allclose(y.compute(), B @ table * 3, rtol=1e-4, atol=1e-5)
    lazily = model.predict({**feeds, "table": da.from_array(table, chunks=-1)})
    np.testing.assert_allclose(lazily.compute(), y.compute(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_rows_on_another_axis_stay_on_it(strategy):
    source = make_model(
        [node("Relu", "x", "y"), node("Neg", "state", "h"), node("Relu", "h", "z")],
        [value("x", ["B", 4]), value("state", [2, "B", 3])],
        [value("y", ["B", 4]), value("z", [2, "B", 3])],
    )
    state = np.random.default_rng(1).standard_normal((2, 11, 3)).astype("f4")
    model = dx.load(source)
    feeds = {"x": da.from_array(B, chunks=(4, 4)), "state": da.from_array(state, chunks=(2, 4, 3))}
    found = model.predict(feeds, plan=model.plan(strategy), batch_size=3)
    assert found["z"].chunks == ((2,), (4, 4, 3), (3,))
    y, z = dask.compute(found["y"], found["z"])
    np.testing.assert_array_equal(z, np.maximum(-state, 0))
    np.testing.assert_array_equal(y, np.maximum(B, 0))


@pytest.mark.parametrize(("strategy", "options"), STRATEGIES)
def test_chunks_of_unknown_size_and_empty_chunks_run(strategy, options):
    source = dense_model()
    model = dx.load(source)
    few = LAZY[LAZY[:, 0] > 1.2]
    assert np.isnan(few.shape[0])
    y = model.predict(few, plan=model.plan(strategy, **options), batch_size=2)
    assert np.isnan(y.shape[0])
    expected = run_onnx(source, {"x": X[X[:, 0] > 1.2]})[0]
    assert 0 < len(expected) < 3  # so that some chunk is empty
    np.testing.assert_allclose(y.compute(), expected, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:the rows come in 3 chunks")
@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_sizes_that_depend_on_data_are_nan(strategy):
    source = make_model(
        [node("NonZero", "x", "t"), node("Transpose", "t", "y")],
        [value("x", ["N", 8])],
        [value("y", None, TensorProto.INT64)],
    )
    model = dx.load(source)
    y = model.predict(LAZY.rechunk(-1), plan=model.plan(strategy))
    assert np.isnan(y.shape[0])
    assert y.shape[1] == 2
    assert y.compute().shape == (11 * 8, 2)


def test_a_graph_for_one_row_runs_over_any_chunks():
    source = single_row_model()
    model = dx.load(source)
    for plan in ("whole", "per_node"):
        y = model.predict(da.from_array(B, chunks=(4, 4)), plan=model.plan(plan))
        assert y.chunks == ((4, 4, 3), (2,))
        np.testing.assert_allclose(y.compute(), model.predict(B), rtol=1e-6)


def test_array_expressions_take_whole_plans_and_refuse_others():
    code = """
import dask, numpy as np
dask.config.set({'array.query-planning': True})
import dask.array as da, dask_onnx as dx
from builders import branching_model
model = dx.load(branching_model())
x = np.linspace(-1, 1, 44, dtype='f4').reshape(11, 4)
found = model.predict(da.from_array(x, chunks=(4, 4)), batch_size=2)
eager = model.predict(x)
for name in found:
    np.testing.assert_allclose(found[name].compute(), eager[name], rtol=1e-6)
try:
    model.predict(da.from_array(x, chunks=(4, 4)), plan=model.plan('per_node'))
except dx.InputError as error:
    print(error)
"""
    here = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert "cannot become a dask.array" in done.stdout, done.stderr


REFUSED = [
    (da.from_array(X, chunks=(4, 3)), {}, {"input": "x", "axis": 1, "numbers": {"chunks": 3}}),
    (LAZY.astype("c8"), {}, {"input": "x", "reason": "the imaginary part would be lost"}),
    (LAZY[:, LAZY[0] > 0], {}, {"input": "x", "axis": 1}),
    ({"x": LAZY, "z": LAZY}, {}, {"input": "z"}),
    (LAZY, {"outputs": "nothing"}, {"option": "outputs"}),
    (LAZY, {"batch_size": -1}, {"option": "batch_size"}),
]


@pytest.mark.parametrize(("x", "options", "fields"), REFUSED)
def test_invalid_requests_are_refused_while_building(x, options, fields):
    with dask.config.set(scheduler=raising), pytest.raises(dx.InputError) as caught:
        dx.load(dense_model()).predict(x, **options)
    found = caught.value.fields
    found.pop("suggestions", None)
    assert found == fields
    assert caught.value.next_step


@pytest.mark.parametrize(("x", "numbers"), [(LAZY[:, :5], {"size": 5}), (LAZY[0], {"rank": 1})])
def test_a_misfit_shape_is_refused_while_building(x, numbers):
    with dask.config.set(scheduler=raising), pytest.raises(dx.InputError) as caught:
        dx.load(dense_model()).predict(x)
    assert caught.value.input == "x"
    assert caught.value.numbers.items() >= numbers.items()


def test_unknown_sizes_of_several_inputs_that_cannot_be_matched_are_refused():
    source = make_model(
        [node("Add", "a b", "y")],
        [value("a", ["N", 8]), value("b", ["N", 8])],
        [value("y", ["N", 8])],
    )
    few = LAZY[LAZY[:, 0] > 0]
    model = dx.load(source)
    with pytest.raises(dx.InputError) as caught:
        model.predict({"a": few, "b": LAZY.rechunk((2, 8))})
    assert caught.value.axis == 0
    numbers = caught.value.numbers
    assert {numbers["chunks"], numbers["expected_chunks"]} == {few.numblocks[0], 6}
    with pytest.raises(dx.InputError) as caught:
        model.predict({"a": few, "b": X})
    assert (caught.value.input, caught.value.axis) == ("b", 0)
    np.testing.assert_array_equal(model.predict({"a": few, "b": few}).compute(), 2 * X[X[:, 0] > 0])


def test_an_output_without_rows_needs_a_single_chunk():
    source = make_model(
        [node("ReduceSum", "x", "y", keepdims=0)], [value("x", ["N", 8])], [value("y", [])]
    )
    model = dx.load(source)
    with pytest.raises(
        dx.InputError, match=r"3 chunks on axis 0, .* is reduced at node 'ReduceSum_0'"
    ):
        model.predict(LAZY)
    total = model.predict(LAZY.rechunk(-1))
    assert total.shape == ()
    assert total.compute() == pytest.approx(X.sum(), rel=1e-4)


def test_a_model_may_be_mapped_over_blocks_by_hand():
    source = dense_model()
    y = LAZY.map_blocks(dx.load(source), chunks=((4, 4, 3), (4,)), dtype="f4", meta=X[:0, :4])
    np.testing.assert_allclose(y.compute(), run_onnx(source, {"x": X})[0], rtol=1e-6)


def test_scaled_by_a_scalar_input():
    model = dx.load(scaled_model())
    y = model.predict({"x": da.from_array(B[:, :3].copy(), chunks=(4, 3)), "s": np.float32(2)})
    np.testing.assert_array_equal(y.compute(), B[:, :3] * 2)


def quantising_model(name: str = "quantising"):
    """Return a model that scales by the largest value of all rows."""
    return make_model(
        [
            node("DynamicQuantizeLinear", "x", "q s z", "quantise"),
            node("DequantizeLinear", "q s z", "y"),
        ],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        name=name,
    )


def test_splitting_coupled_rows_warns_once():
    model = dx.load(quantising_model())
    with pytest.warns(UserWarning, match="3 chunks.* node 'quantise' quantises by a statistic"):
        model.predict(LAZY)
    model.predict(LAZY)
    model.predict(X, batch_size=4)
    again = dx.load(quantising_model("eager"))
    with pytest.warns(UserWarning, match="runs of 4 rows"):
        again.predict(X, batch_size=4)


def test_coupled_rows_in_one_chunk_do_not_warn():
    model = dx.load(quantising_model("together"))
    expected = run_onnx(quantising_model("together"), {"x": X})[0]
    np.testing.assert_array_equal(model.predict(X), expected)
    np.testing.assert_array_equal(model.predict(da.from_array(X, chunks=-1)).compute(), expected)


def test_rows_that_are_not_proven_independent_are_refused_in_chunks_and_run_in_one():
    source = make_model(
        [
            node("NonZero", "x", "at"),
            node("Transpose", "at", "rows", perm=[1, 0]),
            node("GatherND", "x rows", "picked"),
            node("ReduceMean", "picked", "mean", keepdims=0),
            node("Sub", "x mean", "y"),
        ],
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
    )
    model = dx.load(source)
    x = np.eye(6, 4, dtype=np.float32)
    with pytest.raises(dx.InputError) as caught:
        model.predict(da.from_array(x, chunks=(2, 4)))
    assert (caught.value.option, caught.value.numbers) == ("rows", {"chunks": 3})
    assert dx.Suggestion("rows", "independent") in caught.value.suggestions
    expected = run_onnx(source, {"x": x})[0]
    whole = model.predict(da.from_array(x, chunks=-1))
    assert whole.shape == (6, 4)
    np.testing.assert_array_equal(whole.compute(), expected)
    np.testing.assert_array_equal(model.predict(x), expected)


def test_rows_declared_independent_are_split():
    source = make_model(
        [node("CumSum", "x zero", "y", "sum")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        {"zero": np.array(0)},
    )
    believed = dx.load(source, rows="independent").predict(LAZY)
    assert believed.chunks[0] == LAZY.chunks[0]
    starts = np.cumsum((0, *LAZY.chunks[0]))
    pieces = [np.cumsum(X[a:b], axis=0) for a, b in itertools.pairwise(starts)]
    np.testing.assert_allclose(believed.compute(), np.concatenate(pieces), rtol=1e-5)
    with pytest.raises(dx.InputError) as caught:
        dx.load(source).predict(LAZY)
    assert (caught.value.input, caught.value.axis, caught.value.node) == ("x", 0, "sum")


def test_rows_may_lie_on_another_axis_than_the_first():
    """Sequence first: the recurrence goes along axis 0, and rows are on axis 1."""
    shapes = {"W": (1, 12, 3), "R": (1, 12, 3)}
    source = make_model(
        [node("LSTM", "x W R", "y", "recur", hidden_size=3)],
        [value("x", ["T", "B", 3])],
        [value("y", ["T", 1, "B", 3])],
        {name: weights(*shape) for name, shape in shapes.items()},
    )
    x = weights(5, 8, 3, seed=4)
    expected = run_onnx(source, {"x": x})[0]
    model = dx.load(source)
    assert model.analysis.batch.input_axes == {"x": 1}
    lazy = model.predict(da.from_array(x, chunks=(5, 3, 3)))
    assert lazy.chunks == ((5,), (1,), (3, 3, 2), (3,))
    np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-5)
    np.testing.assert_allclose(model.predict(x, batch_size=2), expected, rtol=1e-5)
    with pytest.raises(dx.InputError) as caught:
        model.predict(da.from_array(x, chunks=(2, 8, 3)))
    assert caught.value.axis == 0


def test_an_input_of_other_rows_is_given_once():
    """A U-Net's time step of size 1 beside a batch of 2."""
    source = make_model(
        [node("MatMul", "t w", "e"), node("Add", "x e", "y")],
        [value("x", ["batch", 8]), value("t", ["steps", 4])],
        [value("y", ["batch", 8])],
        {"w": weights(4, 8)},
    )
    model = dx.load(source)
    t = weights(1, 4, seed=2)
    expected = run_onnx(source, {"x": X, "t": t})[0]
    np.testing.assert_allclose(model.predict({"x": LAZY, "t": t}).compute(), expected, rtol=1e-6)
    np.testing.assert_allclose(model.predict({"x": X, "t": t}, batch_size=2), expected, rtol=1e-6)
    many = weights(len(X), 4, seed=2)
    np.testing.assert_allclose(
        model.predict({"x": X, "t": many}, batch_size=2),
        run_onnx(source, {"x": X, "t": many})[0],
        rtol=1e-6,
    )
