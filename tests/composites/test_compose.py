"""Composites of models on every kind of collection, as one graph and apart."""

from __future__ import annotations

import pickle

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from builders import captured_model, dense_model, make_model, node, value, weights

import dask_onnx as dx
from dask_onnx.collections import prediction_progress
from dask_onnx.core.stage_runs import recorded_runs

X = np.random.default_rng(3).standard_normal((6, 8)).astype(np.float32)
COLUMNS = list("abcdefgh")


def expected(models, x=X):
    return {f"{name}/y": model.predict(x) for name, model in models.items()}


def assert_results(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def two_inputs(names="x z", seed=0):
    """Return x (N, 8) and z (N, 8) -> y (N, 4)."""
    first, second = names.split()
    return make_model(
        [
            node("Add", f"{first} {second}", "s", "sum"),
            node("MatMul", "s W", "y", "product"),
        ],
        [value(first, ["N", 8]), value(second, ["N", 8])],
        [value("y", ["N", 4])],
        {"W": weights(8, 4, seed=seed)},
    )


def backbone_model(head_seed):
    """Return x (N, 8) -> y (N, 4): two layers that are equal for all seeds, and a head."""
    return make_model(
        [
            node("MatMul", "x A", "h", "first"),
            node("Tanh", "h", "t", "squash"),
            node("MatMul", "t B", "u", "second"),
            node("MatMul", "u H", "y", "head"),
        ],
        [value("x", ["N", 8])],
        [value("y", ["N", 4])],
        {"A": weights(8, 8), "B": weights(8, 8, seed=1), "H": weights(8, 4, seed=head_seed)},
    )


@pytest.fixture(params=[True, False], ids=["one_graph", "apart"])
def composite(request, models):
    return dx.compose(models, merge=request.param)


def test_inputs_are_shared_and_outputs_are_named_by_model(composite):
    assert [spec.name for spec in composite.inputs] == ["x"]
    assert [spec.name for spec in composite.outputs] == ["a/y", "b/y", "c/y"]


def test_arrays_in_memory_give_what_each_model_gives(composite, models):
    assert_results(composite.predict(X), expected(models))
    assert_results(composite.predict({"x": X}), expected(models))
    assert_results(composite.predict(X.tolist()), expected(models))
    assert_results(composite(X), expected(models))


def test_dask_arrays_stay_lazy_and_chunked(composite, models):
    found = composite.predict(da.from_array(X, chunks=(2, 8)))
    assert all(array.chunks == ((2, 2, 2), (4,)) for array in found.values())
    assert_results(dask.compute(found)[0], expected(models))


@pytest.mark.parametrize("kind", ["array", "numpy", "bag", "table"])
def test_finished_chunks_of_all_models_are_taken_up_again(composite, models, tmp_path, kind):
    folder = tmp_path / "kept"
    given = {
        "array": da.from_array(X, chunks=(2, 8)),
        "numpy": X,
        "bag": db.from_sequence(list(X), npartitions=2),
        "table": dd.from_pandas(pd.DataFrame(X, columns=COLUMNS), npartitions=2),
    }[kind]

    def found():
        return dask.compute(composite.predict(given, checkpoint=folder), scheduler="sync")[0]

    first = found()
    ran = sum(each.runs for each in recorded_runs())
    again = found()
    assert sum(each.runs for each in recorded_runs()) == ran
    for one, other in zip(_values(first), _values(again), strict=True):
        np.testing.assert_array_equal(one, other)
    # Another input is another prediction.
    with pytest.raises(dx.InputError) as caught:
        composite.predict(da.ones((6, 8), chunks=(2, 8), dtype="f4"), checkpoint=folder)
    assert caught.value.option == "checkpoint"


def _values(found):
    if isinstance(found, list):
        return [value for row in found for value in row.values()]
    return list(found.values()) if isinstance(found, dict) else [found.to_numpy()]


def test_progress_counts_the_rows_of_all_models(composite, monkeypatch):
    shown = []

    class Display:
        def show(self, done, total):
            shown.append((done, total))

        def close(self):
            shown.append("closed")

    monkeypatch.setattr(prediction_progress, "_display", lambda name: Display())
    composite.predict(X, progress=True)
    runs = 1 if composite.merging.is_merged else 3
    assert shown[-2:] == [(6 * runs, 6 * runs), "closed"]


def test_delayed_gives_delayed(composite, models):
    assert_results(dask.compute(composite.predict(dask.delayed(X)))[0], expected(models))


@pytest.mark.parametrize("partitions", [0, 2])
def test_tables_get_columns_named_by_model_and_keep_a_repeated_index(composite, models, partitions):
    frame = pd.DataFrame(X, columns=COLUMNS, index=[1, 1, 2, 2, 3, 3])
    given = dd.from_pandas(frame, npartitions=partitions) if partitions else frame
    found = composite.predict(given, append=["a"])
    if partitions:
        assert list(found._meta.columns) == list(found.columns)
        found = found.compute()
    names = [f"{name}_{place}" for name in expected(models) for place in range(4)]
    assert list(found.columns) == ["a", *names]
    assert list(found.index) == [1, 1, 2, 2, 3, 3]
    wanted = np.concatenate(list(expected(models).values()), axis=1)
    np.testing.assert_allclose(found[names].to_numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_bags_get_a_mapping_for_each_row(composite, models):
    rows = composite.predict(db.from_sequence(list(X), npartitions=2)).compute(scheduler="sync")
    for place, row in enumerate(rows):
        assert_results(row, {n: a[place] for n, a in expected(models).items()})


def test_a_bad_row_of_a_bag_is_bad_for_all_models(composite):
    bag = db.from_sequence([X[0], X[1, :3], X[2]], npartitions=1)
    rows = composite.predict(bag, on_error="null").compute(scheduler="sync")
    assert [row is None for row in rows] == [False, True, False]


@pytest.fixture(scope="module")
def codes():
    """Models of x (N, 8) and k (N,) whose codes end at different sizes: rows are bad for some."""

    def look_up(size, seed):
        return make_model(
            [
                node("Gather", "T k", "g", "look_up"),
                node("Add", "x g", "y", "sum"),
                node("Identity", "k", "k_out", "keep"),
            ],
            [value("x", ["N", 8]), value("k", ["N"], 7)],
            [value("y", ["N", 8]), value("k_out", ["N"], 7)],
            {"T": weights(size, 8, seed=seed)},
        )

    return {"p": dx.load(look_up(3, 1)), "q": dx.load(look_up(5, 2))}


@pytest.mark.parametrize("partitions", [0, 2])
def test_a_bad_row_of_a_table_is_missing_for_all_models_however_they_run(codes, partitions):
    frame = pd.DataFrame(X, columns=COLUMNS, index=[1, 1, 2, 2, 3, 3]).assign(k=[0, 4, 2, 9, 1, 3])
    given = dd.from_pandas(frame, npartitions=partitions) if partitions else frame
    columns = {"x": COLUMNS, "k": "k"}
    found = []
    for merge in (True, False):
        composite = dx.compose(codes, merge=merge)
        table = composite.predict(given, columns=columns, append=["a", "k"], on_error="null")
        if partitions:
            assert table._meta.dtypes.equals(table.compute().dtypes)
            table = table.compute()
        found.append(table)
    pd.testing.assert_frame_equal(*found, rtol=1e-5)
    assert list(found[0]["k"]) == list(frame["k"])
    assert list(found[0]["q/k_out"].isna()) == [False, True, False, True, False, True]
    assert found[0]["q/k_out"].dtype == "Int64"


def test_rows_that_depend_on_one_another_run_without_those_that_other_models_find_bad(codes):
    centred = make_model(
        [
            node("ReduceMean", "x", "m", "mean", axes=[0], keepdims=1),
            node("Sub", "x m", "y", "centre"),
        ],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
    )
    frame = pd.DataFrame(X, columns=COLUMNS).assign(k=[0, 4, 2, 9, 1, 3])
    composite = dx.compose(p=codes["p"], centred=dx.load(centred), merge=False)
    columns = {"x": COLUMNS, "k": "k"}
    found = composite.predict(frame, columns=columns, on_error="null", outputs=["p", "centred"])
    good = X[[0, 2, 4]]
    own = [name for name in found.columns if name.startswith("centred")]
    np.testing.assert_allclose(found[own].dropna(), good - good.mean(0), rtol=1e-5, atol=1e-6)


def test_labelled_arrays_keep_their_dimensions(composite):
    xarray = pytest.importorskip("xarray")
    found = composite.predict(xarray.DataArray(X, dims=("sample", "feature")))
    assert {name: array.dims[0] for name, array in found.items()} == {
        f"{name}/y": "sample" for name in "abc"
    }


def test_a_column_called_error_may_stay_beside_missing_rows(composite):
    frame = pd.DataFrame(X, columns=COLUMNS).assign(error="old")
    found = composite.predict(frame, columns=COLUMNS, append=["error"], on_error="null")
    assert list(found["error"]) == ["old"] * len(X)


def test_arrow_tables_stay_arrow_tables(composite):
    table = pa.Table.from_pandas(pd.DataFrame(X, columns=COLUMNS))
    found = composite.predict(table)
    assert isinstance(found, pa.Table)
    assert found.num_rows == len(X)


def test_outputs_select_models_and_single_outputs(composite, models):
    wanted = expected(models)
    np.testing.assert_allclose(composite.predict(X, outputs="b"), wanted["b/y"], rtol=1e-5)
    chosen = composite.predict(X, outputs=["c", "a/y"])
    assert_results(chosen, {name: wanted[name] for name in ("c/y", "a/y")})


def test_plans_run_and_explain_says_how(composite, models):
    plan = composite.plan("pipeline", n_stages=2)
    assert_results(composite.predict(X, plan=plan), expected(models))
    assert "apart" in composite.explain() or composite.merging.is_merged
    assert isinstance(plan, dx.Plan) is composite.merging.is_merged


def test_a_composite_survives_pickling(composite, models):
    again = pickle.loads(pickle.dumps(composite))
    assert again.token == composite.token
    assert_results(again.predict(X), expected(models))


def test_equal_prefixes_run_once_and_results_stay_equal():
    models = {f"m{seed}": dx.load(backbone_model(seed)) for seed in (2, 3, 4)}
    composite = dx.compose(models)
    assert composite.merging.is_merged
    assert composite.merging.shared_nodes == 6
    assert len(composite.runs[0].facts.nodes) == 6
    assert_results(composite.predict(X), expected(models))


def test_models_that_differ_in_one_weight_share_nothing_behind_it():
    other = backbone_model(2)
    other.graph.initializer[0].raw_data = weights(8, 8, seed=9).tobytes()
    models = {"a": dx.load(backbone_model(2)), "b": dx.load(other)}
    composite = dx.compose(models, merge=True)
    assert composite.merging.shared_nodes == 0
    assert_results(composite.predict(X), expected(models))


def test_bodies_of_control_flow_keep_the_values_that_they_capture():
    model = dx.load(captured_model())
    shapes = {s.name: [d if isinstance(d, int) else 2 for d in s.shape] for s in model.inputs}
    feeds = {s.name: np.ones(shapes[s.name], s.dtype) for s in model.inputs}
    wanted = model.predict(feeds, outputs=[spec.name for spec in model.outputs])
    for merge in (True, False):
        found = dx.compose(p=model, q=model, merge=merge).predict(feeds)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[f"p/{name}"], array)
            np.testing.assert_array_equal(found[f"q/{name}"], array)


def test_random_nodes_of_two_models_are_not_run_as_one():
    noisy = make_model(
        [node("RandomNormalLike", "x", "n", "noise"), node("Add", "x n", "y", "add")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
    )
    composite = dx.compose(p=dx.load(noisy), q=dx.load(noisy))
    assert not composite.merging.is_merged
    found = composite.predict(X)
    assert not np.array_equal(found["p/y"], found["q/y"])
    with pytest.raises(dx.PlanError) as caught:
        dx.compose(p=dx.load(noisy), q=dx.load(noisy), merge=True).predict(X)
    assert caught.value.option == "merge"


def test_models_of_other_opsets_run_apart():
    new = dense_model()
    new.opset_import[0].version = 18
    models = {"a": dx.load(dense_model()), "b": dx.load(new)}
    composite = dx.compose(models)
    assert not composite.merging.is_merged
    assert_results(composite.predict(X), expected(models))


@pytest.mark.parametrize("merge", [True, False])
def test_inputs_of_other_names_are_apart_and_rename_joins_them(merge):
    models = {"p": dx.load(two_inputs("x z")), "q": dx.load(two_inputs("x w", seed=1))}
    z, w = X + 1, X - 1
    apart = dx.compose(models, merge=merge)
    assert [spec.name for spec in apart.inputs] == ["x", "z", "w"]
    wanted = {
        "p/y": models["p"].predict({"x": X, "z": z}),
        "q/y": models["q"].predict({"x": X, "w": w}),
    }
    assert_results(apart.predict({"x": X, "z": z, "w": w}), wanted)
    rows = [{"x": a, "z": b, "w": c} for a, b, c in zip(X, z, w, strict=True)]
    found = apart.predict(db.from_sequence(rows, npartitions=2)).compute(scheduler="sync")
    np.testing.assert_allclose(found[4]["q/y"], wanted["q/y"][4], rtol=1e-5, atol=1e-6)
    joined = dx.compose(models, rename={"q": {"w": "z"}}, merge=merge)
    assert [spec.name for spec in joined.inputs] == ["x", "z"]
    wanted["q/y"] = models["q"].predict({"x": X, "w": z})
    assert_results(joined.predict({"x": X, "z": z}), wanted)


@pytest.mark.parametrize("merge", [True, False])
def test_missing_and_unknown_inputs_are_named(merge):
    models = {"p": dx.load(two_inputs("x z")), "q": dx.load(two_inputs("x w"))}
    composite = dx.compose(models, merge=merge)
    for x, name in (({"x": X, "z": X}, "w"), ({"x": X, "z": X, "w": X, "v": X}, "v")):
        with pytest.raises(dx.InputError) as caught:
            composite.predict(x)
        assert caught.value.input == name
    with pytest.raises(dx.InputError):
        composite.predict(X)


def test_models_whose_shared_input_disagrees_are_refused():
    narrow = make_model(
        [node("Relu", "x", "y", "relu")], [value("x", ["N", 7])], [value("y", ["N", 7])]
    )
    double = make_model(
        [node("Relu", "x", "y", "relu")], [value("x", ["N", 8], 11)], [value("y", ["N", 8], 11)]
    )
    flat = make_model([node("Relu", "x", "y", "relu")], [value("x", ["N"])], [value("y", ["N"])])
    for other in (narrow, double, flat):
        with pytest.raises(dx.InputError) as caught:
            dx.compose(a=dx.load(dense_model()), b=dx.load(other))
        assert (caught.value.input, caught.value.option) == ("x", "rename")


def test_wrong_names_of_models_outputs_and_options_are_refused(models):
    composite = dx.compose(models)
    model = models["a"]
    for call, option in (
        (lambda: dx.compose(), "models"),
        (lambda: dx.compose({"a/b": model}), "models"),
        (lambda: dx.compose({"a": model}, a=model), "a"),
        (lambda: dx.compose(a="model.onnx"), "a"),
        (lambda: dx.compose(a=model, merge="maybe"), "merge"),
        (lambda: dx.compose(a=model, rename={"q": {}}), "rename"),
        (lambda: dx.compose(a=model, rename={"a": {"q": "x"}}), "rename"),
        (lambda: composite.predict(X, outputs="d"), "outputs"),
        (lambda: composite.predict(X, outputs=[]), "outputs"),
        (lambda: composite.swap(d=model), "d"),
        (lambda: composite.swap(a=dx.load(two_inputs())), "a"),
        (lambda: composite.stream([X], wait="some"), "wait"),
    ):
        with pytest.raises(dx.InputError) as caught:
            call()
        assert caught.value.option == option


def test_swap_replaces_one_model_and_changes_the_token(composite, models):
    new = dx.load(dense_model(hidden=8))
    swapped = composite.swap(b=new)
    assert swapped.token != composite.token
    assert_results(swapped.predict(X), expected({**models, "b": new}))
    assert_results(composite.predict(X), expected(models))


@pytest.mark.parametrize("merge", [True, False])
def test_nested_bodies_of_a_real_model_keep_their_results(asset, merge):
    model = dx.load(asset("silero_vad.onnx"))
    sizes = {s.name: [d if isinstance(d, int) else 1 for d in s.shape] for s in model.inputs}
    feeds = {s.name: np.zeros(sizes[s.name], s.dtype) for s in model.inputs}
    feeds["input"] = np.random.default_rng(0).standard_normal((1, 576)).astype(np.float32) / 10
    feeds["sr"] = np.array(16000, np.int64)
    found = dx.compose(p=model, q=model, merge=merge).predict(feeds)
    for name, array in model.predict(feeds).items():
        np.testing.assert_array_equal(found[f"p/{name}"], array)
        np.testing.assert_array_equal(found[f"q/{name}"], array)
