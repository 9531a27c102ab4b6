"""Tasks that compute several chunks of a lazy array: equal results from fewer tasks."""

from __future__ import annotations

import math
import pickle

import dask
import dask.array as da
import numpy as np
import pytest
from builders import dense_model, make_model, node, value
from dask.task_spec import Task

import dask_onnx as dx
from dask_onnx.collections.grouped_chunks import GroupedChunks, JoinChunks
from dask_onnx.core.stage_tasks import hints_of

X = np.random.default_rng(0).standard_normal((23, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture
def model():
    return dx.load(dense_model())


def lazy(rows=2):
    return da.from_array(X, chunks=(rows, 8))


def predict(model, x, chunks):
    plan = model.plan("whole").with_chunks_per_task(chunks)
    return model.predict(x, plan=plan, batch_size=None)


def tasks_of(array):
    return dict(dask.optimize(array)[0].__dask_graph__())


def joins(array):
    return [
        task for task in tasks_of(array).values() if "JoinChunks" in repr(getattr(task, "args", ""))
    ]


@pytest.mark.parametrize(("chunks", "tasks"), [(2, 6), (5, 3), (12, 1), (100, 1)])
def test_groups_give_what_single_chunks_give(model, chunks, tasks):
    single, grouped = predict(model, lazy(), None), predict(model, lazy(), chunks)
    assert grouped.numblocks[0] == tasks == len(joins(grouped))
    assert grouped.shape == single.shape and grouped.dtype == single.dtype
    assert grouped.name != single.name
    np.testing.assert_array_equal(grouped.compute(), single.compute())
    np.testing.assert_array_equal(grouped[3:9].compute(), single[3:9].compute())
    np.testing.assert_array_equal(grouped.sum().compute(), predict(model, lazy(), chunks).sum())


def test_inputs_are_loaded_in_the_task_of_their_group(model):
    x = da.map_blocks(lambda block: block + 1, lazy())
    found = tasks_of(predict(model, x, 5))
    assert len(found) == 3
    assert not any(task.dependencies for task in found.values())


def test_an_input_that_several_groups_read_is_a_task_of_its_own(model):
    x = lazy().map_blocks(np.negative)
    mean = x.mean(axis=0, keepdims=True)
    single, grouped = predict(model, x - mean, None), predict(model, x - mean, 4)
    np.testing.assert_array_equal(grouped.compute(), single.compute())
    assert len(joins(grouped)) == 3


def test_the_graph_is_small_until_it_is_read(model):
    x = da.zeros((100_000, 8), chunks=(1, 8), dtype=np.float32)
    grouped = predict(model, x, 10)
    (layer,) = grouped.dask.layers.values()
    assert isinstance(layer, GroupedChunks) and not layer.is_materialized()
    assert len(layer.get_output_keys()) == 10_000
    assert len(pickle.dumps(grouped.dask)) < 10 * 100_000
    found = tasks_of(grouped[:10])
    assert sum(isinstance(task, Task) for task in found.values()) == 1
    assert not layer.is_materialized()


def test_groups_travel_as_they_are(model):
    grouped = predict(model, lazy(), 5)
    copy = pickle.loads(pickle.dumps(grouped))
    np.testing.assert_array_equal(copy.compute(), grouped.compute())


def test_hints_of_all_chunks_are_found(model):
    found = [list(hints_of(task)) for task in joins(predict(model, lazy(), 5))]
    assert sorted(map(len, found)) == [2, 5, 5]


def test_chunks_of_unknown_size_are_joined(model):
    x = lazy()[da.from_array(X[:, 0] > 0, chunks=2)]
    single, grouped = predict(model, x, None), predict(model, x, 5)
    assert all(map(math.isnan, grouped.chunks[0])) and grouped.numblocks[0] == 3
    np.testing.assert_array_equal(grouped.compute(), single.compute())


def test_rows_on_another_axis_are_joined_there():
    proto = make_model([node("Relu", "x", "y")], [value("x", [3, "N"])], [value("y", [3, "N"])], {})
    model = dx.load(proto, rows={"x": 1})
    x = da.from_array(X[:3], chunks=(3, 2))
    grouped = predict(model, x, 3)
    assert grouped.chunks == ((3,), (6, 2))
    np.testing.assert_array_equal(grouped.compute(), np.maximum(X[:3], 0))


def test_masks_keep_the_chunks_of_the_input(model):
    x = da.ma.masked_where(lazy() > 100, lazy())
    grouped = predict(model, x, 5)
    assert grouped.chunks[0] == x.chunks[0]
    assert isinstance(grouped.compute(), np.ma.MaskedArray)


def test_plans_of_several_stages_and_outputs_keep_a_task_for_each_chunk(model):
    plan = model.plan("per_node").with_chunks_per_task(5)
    assert model.predict(lazy(), plan=plan).numblocks[0] == 12
    nodes = [node("Relu", "x", "y"), node("Neg", "x", "z")]
    ends = [value("y", ["N", 8]), value("z", ["N", 8])]
    two = dx.load(make_model(nodes, [value("x", ["N", 8])], ends, {}))
    found = two.predict(lazy(), plan=two.plan("whole").with_chunks_per_task(5))
    assert [each.numblocks[0] for each in found.values()] == [12, 12]


def test_other_collections_ignore_groups(model):
    plan = model.plan("whole").with_chunks_per_task(5)
    np.testing.assert_allclose(model.predict(X, plan=plan), model.predict(X), rtol=1e-5)
    graph = plan.graph(lazy())
    assert not any("JoinChunks" in repr(task) for task in graph.values())


def test_checkpoints_keep_single_chunks(model, tmp_path):
    plan = model.plan("whole").with_chunks_per_task(5)
    found = model.predict(lazy(), plan=plan, batch_size=None, checkpoint=tmp_path / "kept")
    assert found.numblocks[0] == 12
    np.testing.assert_array_equal(found.compute(), predict(model, lazy(), None).compute())
    assert model.predict(lazy(), plan=plan).numblocks[0] == 3


@pytest.mark.parametrize("chunks", [0, -1, 2.5, True, "5"])
def test_a_number_of_chunks_is_a_whole_number_above_0(model, chunks):
    with pytest.raises(dx.PlanError) as caught:
        model.plan("whole").with_chunks_per_task(chunks)
    assert caught.value.option == "chunks"


def test_blocks_are_joined_along_their_rows():
    np.testing.assert_array_equal(JoinChunks(1)(X[:, :3], X[:, 3:]), X)
