"""Fusion of plans of one stage with other layers by Dask, and the names of the fused tasks."""

from __future__ import annotations

from collections import Counter

import dask
import dask.array as da
import numpy as np
import pytest
from builders import branching_model, dense_model, make_model, node, run_onnx, value, weights
from dask.utils import key_split

import dask_onnx as dx
from dask_onnx.collections import blocks
from dask_onnx.core.stage_tasks import hints_of

X = np.random.default_rng(0).standard_normal((11, 8)).astype(np.float32)
PICTURES = np.random.default_rng(1).standard_normal((6, 3, 5, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture
def names_kept(monkeypatch):
    """Treat every model as one that takes long."""
    monkeypatch.setattr(blocks, "_OWN_NAME_SECONDS", 0.0)


class Rows:
    """Array that is read by slices, like one in a file."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim

    def __getitem__(self, index):
        return self.array[index]

    def __dask_tokenize__(self):
        return dask.base.tokenize(self.array)


def read(block_info=None, array=X):
    start, stop = block_info[None]["array-location"][0]
    return array[start:stop]


def mapped(array, chunk):
    """Return an array that `map_blocks` loads: all its axes are new."""
    rows = da.core.normalize_chunks((chunk, *array.shape[1:]), array.shape)
    return da.map_blocks(
        read, chunks=rows, dtype=array.dtype, meta=np.empty((0,) * array.ndim, "f4"), array=array
    )


def from_slices(array, chunk):
    return da.from_array(Rows(array), chunks=(chunk, *array.shape[1:]), inline_array=True)


def tasks_of(lazy):
    """Return the number of tasks of each name after fusion."""
    return Counter(key_split(key) for key in dask.optimize(lazy)[0].__dask_graph__())


LOADERS = [mapped, from_slices]


@pytest.mark.parametrize("load", LOADERS)
def test_loading_a_chunk_is_fused_into_the_task_of_the_model(load):
    source = dense_model()
    y = dx.load(source).predict(load(X, 4))
    assert tasks_of(y) == {"dense": 3}
    np.testing.assert_allclose(y.compute(), run_onnx(source, {"x": X})[0], rtol=1e-6)


@pytest.mark.parametrize("load", LOADERS)
def test_layers_after_a_short_model_are_fused_with_it(load):
    source = dense_model()
    model = dx.load(source)
    y = model.predict(load(X, 4)) * 2
    assert tasks_of(y) == {"mul": 3}
    np.testing.assert_allclose(y.compute(), run_onnx(source, {"x": X})[0] * 2, rtol=1e-6)


@pytest.mark.parametrize("load", LOADERS)
def test_a_long_model_keeps_its_name(load, names_kept):
    source = dense_model()
    y = dx.load(source).predict(load(X, 4))
    assert tasks_of(y) == {"dense": 3}
    assert tasks_of(y * 2) == {"dense-mul": 3, "mul": 3}
    np.testing.assert_allclose((y * 2).compute(), run_onnx(source, {"x": X})[0] * 2, rtol=1e-6)


def test_a_model_is_long_by_its_predicted_seconds_for_a_chunk(monkeypatch):
    model = dx.load(dense_model())
    one_row = model.plan().stage_graph.seconds
    monkeypatch.setattr(blocks, "_OWN_NAME_SECONDS", 3 * one_row)
    names = [set(tasks_of(model.predict(mapped(X, chunk)) * 2)) for chunk in (1, 4)]
    assert names == [{"mul"}, {"dense-mul", "mul"}]


@pytest.mark.parametrize("load", LOADERS)
def test_axes_that_the_output_lacks_do_not_prevent_fusion(load):
    """Return a model of images with a vector and a number for each."""
    pool = [node("GlobalAveragePool", "x", "p"), node("Flatten", "p", "y")]
    best = [node("Flatten", "x", "f"), node("ReduceMax", "f", "y", axes=[1], keepdims=0)]
    for nodes, shape in ((pool, ["N", 3]), (best, ["N"])):
        source = make_model(nodes, [value("x", ["N", 3, 5, 4])], [value("y", shape)])
        y = dx.load(source).predict(load(PICTURES, 2))
        assert tasks_of(y) == {"made": 3}
        (expected,) = run_onnx(source, {"x": PICTURES})
        assert y.chunks == ((2, 2, 2), *((size,) for size in expected.shape[1:]))
        np.testing.assert_allclose(y.compute(), expected, rtol=1e-5)
        np.testing.assert_allclose((y + 1)[1:4].compute(), expected[1:4] + 1, rtol=1e-5)


def test_axes_that_only_the_output_has_are_added():
    source = make_model(
        [node("Unsqueeze", "x axes", "y")],
        [value("x", ["N", 8])],
        [value("y", ["N", 1, 8, 1])],
        {"axes": np.array([1, 3])},
    )
    y = dx.load(source).predict(mapped(X, 4))
    assert tasks_of(y + 1) == {"add": 3}
    np.testing.assert_array_equal((y + 1).compute(), X[:, None, :, None] + 1)


def test_layers_that_swap_axes_of_one_block_are_fused():
    """The two axes get the same index."""
    source = make_model(
        [node("GlobalAveragePool", "x", "p"), node("Flatten", "p", "y")],
        [value("x", ["N", 4, 5, 3])],
        [value("y", ["N", 4])],
    )
    swapped = mapped(PICTURES, 2).transpose(0, 3, 2, 1)
    y = dx.load(source).predict(swapped + 1)
    assert tasks_of(y) == {"made": 3}
    expected = PICTURES.mean(axis=(1, 2)) + 1
    np.testing.assert_allclose(y.compute(), expected, rtol=1e-5, atol=1e-6)


def test_an_input_that_is_computed_for_all_chunks_is_computed_once():
    calls = []

    def table(block_info=None):
        calls.append(block_info)
        return weights(8, 4)

    source = make_model(
        [node("MatMul", "x table", "y")],
        [value("x", ["N", 8]), value("table", [8, 4])],
        [value("y", ["N", 4])],
    )
    lazy = da.map_blocks(table, chunks=((8,), (4,)), dtype="f4", meta=np.empty((0, 0), "f4"))
    y = dx.load(source).predict({"x": mapped(X, 4), "table": lazy})
    np.testing.assert_allclose(y.compute(), X @ weights(8, 4), rtol=1e-5, atol=1e-6)
    assert len(calls) == 1


def test_a_chunk_with_several_consumers_is_loaded_once():
    calls = []

    def counted(block):
        calls.append(len(block))
        return block

    x = mapped(X, 4).map_blocks(counted, dtype="f4", meta=X[:0])
    model = dx.load(dense_model())
    dask.compute(model.predict(x), x.sum())
    assert len(calls) == 3


def test_outputs_share_one_run_into_which_the_loader_is_fused():
    source = branching_model()
    found = dx.load(source).predict(mapped(X[:, :4].copy(), 4))
    graph = dask.optimize(*found.values())[0].__dask_graph__()
    names = Counter(key_split(key) for key in graph)
    assert not [name for name in names if "read" in name]
    computed = dask.compute(found)[0]
    expected = run_onnx(source, {"x": X[:, :4].copy()})
    for got, wanted in zip(computed.values(), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("follow", [lambda y: y, lambda y: y + 1, lambda y: y[:, :2].sum()])
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_the_scheduler_finds_the_hints_of_fused_tasks(follow, seconds, monkeypatch):
    monkeypatch.setattr(blocks, "_OWN_NAME_SECONDS", seconds)
    y = follow(dx.load(dense_model()).predict(mapped(X, 4), retries=5))
    graph = dask.optimize(y)[0].__dask_graph__()
    found = [hint for task in dict(graph).values() for hint in hints_of(task)]
    assert [hint.retries for hint in found] == [5, 5, 5]
