"""Predictions whose finished chunks are kept: only missing ones are computed, equal bit for bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from builders import branching_model, dense_model, layers_model

import dask_onnx as dx

X = np.random.default_rng(7).standard_normal((40, 8)).astype(np.float32)
CHUNKS, ROWS = 8, 5


@pytest.fixture(autouse=True)
def threads():
    with dask.config.set(scheduler="threads"):
        yield


@pytest.fixture
def model():
    return dx.load(dense_model())


@pytest.fixture
def loaded():
    """Loads of each chunk of `lazy`."""
    return Counter()


@pytest.fixture
def lazy(loaded):
    def load(block_info=None):
        place = block_info[None]["chunk-location"][0]
        loaded[place] += 1
        return X[place * ROWS : (place + 1) * ROWS]

    # The name stands for the content: a function of a test has no token of its own.
    return da.map_blocks(
        load,
        chunks=((ROWS,) * CHUNKS, (8,)),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
        name="loaded",
    )


def chunk_files(folder):
    return sorted(Path(folder).glob("chunks.*/*"))


def fail(*_, **__):
    raise AssertionError("a chunk that is kept was computed")


def test_only_missing_chunks_are_computed(model, lazy, loaded, tmp_path):
    expected = model.predict(lazy, batch_size=None).compute()
    loaded.clear()
    first = model.predict(lazy, batch_size=None, checkpoint=tmp_path / "kept")
    assert not loaded and not list(tmp_path.iterdir())  # building runs and writes nothing
    assert (first.chunks, first.dtype) == (((5,) * 8, (4,)), np.float32)
    np.testing.assert_array_equal(first[:15].compute(), expected[:15])
    assert loaded == {0: 1, 1: 1, 2: 1}
    second = model.predict(lazy, batch_size=None, checkpoint=tmp_path / "kept")
    np.testing.assert_array_equal(second.compute(), expected)
    assert loaded == dict.fromkeys(range(8), 1)
    with dask.config.set(scheduler=fail):
        third = model.predict(lazy, batch_size=None, checkpoint=tmp_path / "kept")
    assert set(third.dask.layers) == {third.name}  # nothing of the prediction is left
    np.testing.assert_array_equal(third.compute(), expected)
    assert loaded == dict.fromkeys(range(8), 1)


def test_a_graph_that_is_computed_again_reads_what_is_kept_since(model, lazy, tmp_path):
    first = model.predict(lazy, batch_size=None, checkpoint=tmp_path / "kept")
    expected = first.compute()
    stamps = [path.stat().st_mtime_ns for path in chunk_files(tmp_path / "kept")]
    np.testing.assert_array_equal(first.compute(), expected)
    assert [path.stat().st_mtime_ns for path in chunk_files(tmp_path / "kept")] == stamps


def test_damaged_chunks_are_computed_anew_and_mended(model, lazy, loaded, tmp_path):
    folder = tmp_path / "kept"
    expected = model.predict(lazy, batch_size=None, checkpoint=folder).compute()
    kept = model.predict(lazy, batch_size=None, checkpoint=folder)
    torn, flipped, gone = chunk_files(folder)[2:5]
    torn.write_bytes(torn.read_bytes()[:30])
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\xff")
    gone.unlink()
    loaded.clear()
    np.testing.assert_array_equal(kept.compute(), expected)
    assert loaded == {2: 1, 3: 1, 4: 1}
    loaded.clear()
    again = model.predict(lazy, batch_size=None, checkpoint=folder)
    np.testing.assert_array_equal(again.compute(), expected)
    assert not loaded


def test_a_chunk_whose_tasks_are_large_asks_for_another_call(model, tmp_path):
    whole = da.from_array(np.zeros((200_000,), np.float32), chunks=-1)
    lazy = da.map_blocks(
        lambda block, shared: block + shared.sum(),
        da.from_array(X, chunks=(ROWS, 8)),
        shared=whole.to_delayed()[0],
        dtype=np.float32,
        name="with shared",
    )
    folder = tmp_path / "kept"
    expected = model.predict(lazy, batch_size=None, checkpoint=folder).compute()
    kept = model.predict(lazy, batch_size=None, checkpoint=folder)
    chunk_files(folder)[1].unlink()
    with pytest.raises(dx.OutputError) as caught:
        kept.compute()
    assert caught.value.option == "checkpoint" and caught.value.reason.startswith("00-000001-")
    again = model.predict(lazy, batch_size=None, checkpoint=folder)
    np.testing.assert_array_equal(again.compute(), expected)


def test_every_output_is_kept(lazy, loaded, tmp_path):
    model = dx.load(dense_model())
    names = ["y", "h1"]
    expected = dask.compute(model.predict(lazy, outputs=names, batch_size=None))[0]
    found = model.predict(lazy, outputs=names, batch_size=None, checkpoint=tmp_path / "kept")
    assert list(found) == names
    found["y"][:10].compute()
    loaded.clear()
    for _ in range(2):
        found = model.predict(lazy, outputs=names, batch_size=None, checkpoint=tmp_path / "kept")
        for name, values in dask.compute(found)[0].items():
            np.testing.assert_array_equal(values, expected[name])
    assert loaded == dict.fromkeys(range(8), 1)  # "h1" was missing everywhere


@pytest.mark.parametrize("schedule", [None, "async", "sync"])
def test_a_plan_of_several_stages_keeps_its_last_values(lazy, loaded, tmp_path, schedule):
    model = dx.load(layers_model([16, 16], width=8))
    plan = model.plan("pipeline", n_stages=2)
    plan = plan if schedule is None else plan.with_schedule(schedule, in_flight=2)
    options = {"plan": plan, "batch_size": None}
    expected = model.predict(lazy, **options).compute()
    model.predict(lazy, **options, checkpoint=tmp_path / "kept")[10:30].compute()
    loaded.clear()
    found = model.predict(lazy, **options, checkpoint=tmp_path / "kept")
    chunk_files(tmp_path / "kept")[0].unlink()
    np.testing.assert_array_equal(found.compute(), expected)
    # The chunk that was removed after the graph was built is the third.
    assert loaded == {0: 1, 1: 1, 2: 1, 6: 1, 7: 1}


def test_branches_are_kept(tmp_path):
    model = dx.load(branching_model())
    plan = model.plan("branches")
    feeds = {s.name: da.from_array(X[:, : s.shape[1]], chunks=(10, -1)) for s in model.inputs}
    expected = dask.compute(model.predict(feeds, plan=plan, batch_size=None))[0]
    for _ in range(2):
        lazily = model.predict(feeds, plan=plan, batch_size=None, checkpoint=tmp_path / "kept")
        for name, values in dask.compute(lazily)[0].items():
            np.testing.assert_array_equal(values, expected[name])


CHANGES = {
    "model": lambda x: (dx.load(dense_model(hidden=5)), x, {}),
    "batch_size": lambda x: (dx.load(dense_model()), x, {"batch_size": 2}),
    "outputs": lambda x: (dx.load(dense_model()), x, {"outputs": ["y", "h1"]}),
    "division": lambda x: (dx.load(dense_model()), x.rechunk((10, 8)), {}),
    "input": lambda x: (dx.load(dense_model()), x + 1, {}),
    "plan": lambda x: (m := dx.load(dense_model()), x, {"plan": m.plan("per_node")}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_prediction_in_the_folder_is_refused(model, tmp_path, change):
    x = da.from_array(X, chunks=(ROWS, 8))
    model.predict(x, batch_size=None, checkpoint=tmp_path / "kept").compute()
    other, value, options = CHANGES[change](x)
    with pytest.raises(dx.InputError) as caught:
        other.predict(value, **{"batch_size": None, **options}, checkpoint=tmp_path / "kept")
    assert caught.value.option == "checkpoint"
    assert change in caught.value.reason


def test_arrays_in_memory_are_cut_and_kept(model, tmp_path, monkeypatch):
    rows = np.random.default_rng(1).standard_normal((1000, 8)).astype(np.float32)
    found = model.predict(rows, checkpoint=tmp_path / "kept")
    np.testing.assert_allclose(found, model.predict(rows), rtol=1e-5, atol=1e-6)
    files = chunk_files(tmp_path / "kept")
    assert len(files) > 1
    files[0].unlink()
    # The pieces are those of the first run, whatever the number of threads is now.
    monkeypatch.setattr("dask_onnx.collections.kept_predictions.available_cores", lambda: 64)
    stamps = {path: path.stat().st_mtime_ns for path in files[1:]}
    again = model.predict(rows, checkpoint=tmp_path / "kept")
    np.testing.assert_array_equal(again, found)
    assert chunk_files(tmp_path / "kept") == files
    assert {path: path.stat().st_mtime_ns for path in files[1:]} == stamps


def test_rows_that_run_together_are_one_chunk(model, tmp_path):
    found = model.predict(X, batch_size=None, checkpoint=tmp_path / "kept")
    np.testing.assert_array_equal(found, model.predict(X, batch_size=None))
    assert len(chunk_files(tmp_path / "kept")) == 1


def test_partitions_of_a_table_are_kept(model, tmp_path):
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    table = dd.from_pandas(frame, npartitions=4)
    options = {"append": ["a"], "batch_size": None}
    expected = model.predict(table, **options).compute()
    first = model.predict(table, **options, checkpoint=tmp_path / "kept")
    assert (first.divisions, first.npartitions) == (table.divisions, 4)
    first.partitions[1].compute()
    assert len(chunk_files(tmp_path / "kept")) == 1
    for _ in range(2):
        found = model.predict(table, **options, checkpoint=tmp_path / "kept")
        pd.testing.assert_frame_equal(found.compute(), expected)
    assert found["a"].sum().compute() == expected["a"].sum()
    with pytest.raises(dx.InputError) as caught:
        model.predict(table, batch_size=None, checkpoint=tmp_path / "kept")
    assert "append" in caught.value.reason


def test_columns_of_a_kept_table_may_have_any_name(model, tmp_path):
    names = ["key", "dask", "chunks", "name", "index", "columns", "mode", "x"]
    table = dd.from_pandas(pd.DataFrame(X, columns=names), npartitions=2)
    expected = model.predict(table, columns=names).compute()
    for _ in range(2):
        found = model.predict(table, columns=names, checkpoint=tmp_path / "kept")
        pd.testing.assert_frame_equal(found.compute(), expected, rtol=1e-5)


def test_partitions_of_a_bag_are_kept_at_a_url(model, tmp_path):
    rows = db.from_sequence(list(X), npartitions=4)
    folder = f"memory://{tmp_path.name}/kept"
    expected = model.predict(rows).compute()
    for _ in range(2):
        found = model.predict(rows, checkpoint=folder)
        np.testing.assert_array_equal(found.compute(), expected)
    assert len(found.dask) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: dask.delayed(X),
        lambda: pd.DataFrame(X, columns=list("abcdefgh")),
    ],
)
def test_collections_without_chunks_are_refused(model, tmp_path, make):
    with pytest.raises(dx.InputError) as caught:
        model.predict(make(), checkpoint=tmp_path / "kept")
    assert caught.value.option == "checkpoint"
    assert not list(tmp_path.iterdir())


def test_labelled_arrays_keep_their_coordinates(model, lazy, tmp_path):
    xarray = pytest.importorskip("xarray")
    x = xarray.DataArray(lazy, dims=("time", "band"), coords={"time": np.arange(40)})
    expected = model.predict(x, batch_size=None).compute()
    for _ in range(2):
        found = model.predict(x, batch_size=None, checkpoint=tmp_path / "kept")
        xarray.testing.assert_identical(found.compute(), expected)
    assert len(chunk_files(tmp_path / "kept")) == CHUNKS


def test_tables_of_other_libraries_are_refused(model, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({name: X[:, place] for place, name in enumerate("abcdefgh")})
    with pytest.raises(dx.InputError) as caught:
        model.predict(table, checkpoint=tmp_path / "kept")
    assert caught.value.option == "checkpoint"


def test_a_sharded_plan_takes_no_checkpoint(model, tmp_path):
    sharded = pytest.importorskip("dask_onnx.sharding.on_shards")
    with pytest.raises(dx.InputError) as caught:
        sharded.refuse_checkpoint(tmp_path / "kept")
    assert caught.value.option == "checkpoint"
    sharded.refuse_checkpoint(None)


def test_a_table_that_dask_divides_otherwise_is_computed_anew(model, tmp_path, monkeypatch):
    """Dask joins small files by settings that no token of a table covers."""
    table = dd.from_pandas(pd.DataFrame(X, columns=list("abcdefgh")), npartitions=8)
    folder = tmp_path / "kept"
    expected = model.predict(table, batch_size=5, checkpoint=folder).compute()
    optimise = dd.DataFrame.optimize
    with monkeypatch.context() as patch:
        patch.setattr(
            dd.DataFrame, "optimize", lambda self: optimise(self.repartition(npartitions=4))
        )
        found = model.predict(table, batch_size=5, checkpoint=folder)
        assert found.npartitions == 4
        pd.testing.assert_frame_equal(found.compute(), expected)
    assert len(chunk_files(folder)) == 12
