"""Models as converters write them give the same on every collection as in ONNX Runtime."""

from __future__ import annotations

import json

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from builders import make_model, node, weights
from builders import value as value_of
from converter_models import INTEGERS, MODELS, STRINGS, X, catboost_classifier
from dask.delayed import delayed
from distributed import Client

import dask_onnx as dx
from dask_onnx import backend

# The label of LightGBM's models is declared as one row; that it is not is said once.
pytestmark = pytest.mark.filterwarnings("ignore:the model declares label")

TABLE = pd.DataFrame(X, columns=["a", "b", "c"])


def expected(proto):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, {"x": X}), strict=True))


def arrays_of(proto):
    """Return the arrays of each output: the input of ZipMap, the items of a sequence."""
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    sources = {n.output[0]: n.input[0] for n in proto.graph.node if n.op_type == "ZipMap"}
    for value in plain.graph.output:
        if value.name in sources:
            value.CopyFrom(onnx.ValueInfoProto(name=sources[value.name]))
    found = expected(plain).values()
    names = [value.name for value in proto.graph.output]
    return {
        name: value if isinstance(value, list) else [value]
        for name, value in zip(names, found, strict=True)
    }


def listed(value):
    return value if isinstance(value, list) else [value]


def by_name(model, found):
    return found if isinstance(found, dict) else {model.outputs[0].name: found}


@pytest.fixture(params=MODELS)
def proto(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("batch_size", ["auto", 4, None])
def test_numpy_gets_arrays(proto, batch_size):
    model = dx.load(proto)
    found = by_name(model, model.predict(X, batch_size=batch_size))
    for name, parts in arrays_of(proto).items():
        for result, wanted in zip(listed(found[name]), parts, strict=True):
            np.testing.assert_array_equal(result, wanted)
            assert result.dtype == wanted.dtype
    called = by_name(model, model(X))
    assert called.keys() == found.keys()


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
@pytest.mark.parametrize("chunks", [(4, -1), (11, -1)])
def test_a_dask_array_is_as_numpy(proto, strategy, chunks):
    model = dx.load(proto)
    plan = model.plan(strategy)
    lazy = by_name(model, model.predict(da.from_array(X, chunks=chunks), plan=plan))
    for name, parts in arrays_of(proto).items():
        for result, wanted in zip(listed(lazy[name]), parts, strict=True):
            assert (result.shape, result.dtype) == (wanted.shape, wanted.dtype)
            assert (result._meta.ndim, result._meta.dtype) == (wanted.ndim, wanted.dtype)
            np.testing.assert_array_equal(result.compute(), wanted)
            if wanted.dtype != object:
                again = (result * 2 + result[:1]).compute()
                np.testing.assert_array_equal(again, wanted * 2 + wanted[:1])


def columns_of(model, name, count):
    """Return the labels of the columns that an output of `count` numbers a row becomes."""
    if count == 1:
        return [name]
    return [f"{name}_{label}" for label in model.classes.get(name, range(count))]


@pytest.mark.parametrize("kind", ["pandas", "dask"])
def test_a_table_has_a_column_for_each_class(proto, kind):
    model = dx.load(proto)
    if kind == "pandas":
        found = model.predict(TABLE)
    else:
        lazy = model.predict(dd.from_pandas(TABLE, npartitions=3))
        found = lazy.compute()
        assert list(lazy.dtypes) == list(found.dtypes)
    names = []
    for name, parts in arrays_of(proto).items():
        for place, wanted in enumerate(parts):
            label = f"{name}_{place}" if len(parts) > 1 else name
            wide = wanted.reshape(len(X), -1)
            names += columns_of(model, label, wide.shape[1])
            np.testing.assert_array_equal(found[names[-wide.shape[1] :]].to_numpy(), wide)
    assert list(found.columns) == names


def test_rows_of_a_bag_get_maps(proto):
    model = dx.load(proto)
    bag = db.from_sequence(list(X), npartitions=3)
    rows = [by_name(model, row) for row in model.predict(bag).compute(scheduler="sync")]
    for name, value in expected(proto).items():
        for number, row in enumerate(rows):
            if isinstance(value, list) and isinstance(value[0], dict):
                assert row[name] == value[number]
            else:
                for result, wanted in zip(listed(row[name]), listed(value), strict=True):
                    np.testing.assert_array_equal(result, wanted[number])


@pytest.mark.parametrize("batch_size", ["auto", 4])
@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_delayed_gets_what_the_exported_model_gives(proto, strategy, batch_size):
    model = dx.load(proto)
    lazy = model.predict(delayed(X), plan=model.plan(strategy), batch_size=batch_size)
    found = by_name(model, dask.compute(lazy)[0])
    for name, value in expected(proto).items():
        if isinstance(value, list) and isinstance(value[0], dict):
            assert found[name] == value
        else:
            for result, wanted in zip(listed(found[name]), listed(value), strict=True):
                np.testing.assert_array_equal(result, wanted)


def test_the_backend_returns_onnx_types(proto):
    found = backend.run_model(proto, [X])
    for result, wanted in zip(found, expected(proto).values(), strict=True):
        if isinstance(wanted, list) and isinstance(wanted[0], dict):
            assert result == wanted
        else:
            for own, other in zip(listed(result), listed(wanted), strict=True):
                np.testing.assert_array_equal(own, other)


def test_no_rows_give_no_rows(proto):
    model = dx.load(proto)
    for value in by_name(model, model.predict(X[:0])).values():
        assert all(len(part) == 0 for part in listed(value))
    assert len(model.predict(TABLE.iloc[:0])) == 0


@pytest.mark.parametrize("labels", [STRINGS, INTEGERS])
def test_classes_are_those_of_the_columns(labels):
    model = dx.load(catboost_classifier(labels))
    assert dict(model.classes) == {"probabilities": labels}
    assert model.outputs[1].shape == (None, 3)


def test_classes_of_a_sequence_are_named_by_item():
    model = dx.load(MODELS["several targets"]())
    assert dict(model.classes) == {
        "probabilities_0": INTEGERS,
        "probabilities_1": INTEGERS[:2],
    }


def test_an_annotated_copy_has_its_maps_again():
    proto = catboost_classifier(STRINGS)
    written = dx.load(proto).plan("per_node").annotate()
    assert written.graph.output[1].type == proto.graph.output[1].type
    assert expected(written)["probabilities"] == expected(proto)["probabilities"]


def test_bad_rows_of_a_bag_leave_sequences_of_the_others():
    model = dx.load(MODELS["several targets"]())
    rows = [X[0], X[1, :2], X[2]]
    good, bad = model.predict_checked(db.from_sequence(rows, npartitions=1))
    found, errors = dask.compute(good, bad, scheduler="sync")
    assert [len(row["probabilities"]) for row in found] == [2, 2]
    assert len(errors) == 1


def test_an_xarray_has_the_classes_as_labels():
    xr = pytest.importorskip("xarray")
    model = dx.load(catboost_classifier(STRINGS))
    array = xr.DataArray(da.from_array(X, chunks=(4, -1)), dims=["row", "feature"])
    scores = model.predict(array)["probabilities"]
    assert scores.dims[0] == "row"
    assert list(scores.coords[scores.dims[1]].to_numpy()) == list(STRINGS)


def test_a_classifier_of_one_exported_row_runs_on_any_number():
    proto = catboost_classifier(STRINGS)
    many = dx.load(proto).predict(X)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    model = dx.load(proto)
    lazy = model.predict(da.from_array(X, chunks=(4, -1)))
    for found in (model.predict(X), dask.compute(lazy)[0]):
        assert list(found["label"]) == list(many["label"])
        np.testing.assert_allclose(found["probabilities"], many["probabilities"], rtol=1e-6)
    row = model.predict(db.from_sequence(list(X), npartitions=2)).compute(scheduler="sync")[0]
    assert list(row["probabilities"]) == list(STRINGS)


@pytest.fixture(scope="module")
def client():
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as own:
        yield own


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["catboost regressor", "lightgbm classifier, strings"])
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_tables_in_files_are_as_in_memory(client, tmp_path, name, ending):
    model = dx.load(MODELS[name]())
    source, target = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
    if ending == "csv":
        TABLE.to_csv(source, index=False)
    else:
        TABLE.to_parquet(source)
    dx.predict_files(model, source, target, scheduler=client)
    read = dd.read_csv(target / "*.csv") if ending == "csv" else dd.read_parquet(target)
    found = read.compute()
    wanted = model.predict(TABLE)
    assert list(found.columns) == list(wanted.columns)
    for column in wanted.columns:
        if wanted[column].dtype == np.float32:
            np.testing.assert_allclose(found[column], wanted[column], rtol=1e-6)
        else:
            assert list(found[column]) == list(wanted[column])


@pytest.mark.cluster
@pytest.mark.parametrize("name", MODELS)
def test_arrays_in_files_are_as_in_memory(client, tmp_path, name):
    model = dx.load(MODELS[name]())
    np.save(tmp_path / "in.npy", X)
    for output, value in by_name(model, model.predict(X)).items():
        if isinstance(value, list) or value.dtype == object:
            continue  # a file holds one array, and no strings without pickling
        target = tmp_path / f"{output}.npy"
        dx.predict_files(model, tmp_path / "in.npy", target, outputs=output, scheduler=client)
        np.testing.assert_array_equal(np.load(target), value)


@pytest.mark.cluster
def test_lists_in_csv_are_complete_and_can_be_read_again(client, tmp_path):
    wide = make_model(
        [node("MatMul", "x w", "m"), node("Reshape", "m s", "y")],
        [value_of("x", ["N", 3])],
        [value_of("y", ["N", 2, 600])],
        {"w": weights(3, 1200), "s": np.array([-1, 2, 600])},
    )
    model = dx.load(wide)
    TABLE.to_csv(tmp_path / "in.csv", index=False)
    dx.predict_files(model, tmp_path / "in.csv", tmp_path / "out.csv", scheduler=client)
    cells = dd.read_csv(tmp_path / "out.csv" / "*.csv").compute()["y"]
    found = np.array([json.loads(cell) for cell in cells])
    np.testing.assert_allclose(found, model.predict(X), rtol=1e-6)


@pytest.mark.cluster
def test_labels_and_scores_of_arrays_go_to_one_table(client, tmp_path):
    model = dx.load(catboost_classifier(STRINGS))
    np.save(tmp_path / "in.npy", X)
    dx.predict_files(model, tmp_path / "in.npy", tmp_path / "out.parquet", scheduler=client)
    found = dd.read_parquet(tmp_path / "out.parquet").compute()
    wanted = model.predict(X)
    assert list(found["label"]) == list(wanted["label"])
    np.testing.assert_array_equal(np.stack(found["probabilities"]), wanted["probabilities"])
