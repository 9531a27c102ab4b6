"""Predictions for arrays in memory, against plain ONNX Runtime."""

from __future__ import annotations

import dask
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
from onnx import TensorProto, helper

import dask_onnx as dx
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.runtime.cores import available_cores
from dask_onnx.runtime.session_cache import SESSION_CACHE

X = np.random.default_rng(0).standard_normal((11, 8)).astype(np.float32)
B = X[:, :4].copy()
STRATEGIES = [("whole", {}), ("per_node", {}), ("fused", {"n_stages": 2})]


@pytest.mark.parametrize(("strategy", "options"), STRATEGIES)
@pytest.mark.parametrize("batch_size", [None, 1, 4, 100])
def test_numpy_in_numpy_out(strategy, options, batch_size):
    source = dense_model()
    model = dx.load(source)
    plan = model.plan(strategy, **options)
    y = model.predict(X, plan=plan, batch_size=batch_size)
    assert isinstance(y, np.ndarray)
    np.testing.assert_allclose(y, run_onnx(source, {"x": X})[0], rtol=1e-6)


def test_a_whole_plan_is_bitwise_equal_to_onnxruntime():
    source = dense_model(hidden=512)
    np.testing.assert_array_equal(dx.load(source).predict(X), run_onnx(source, {"x": X})[0])


@pytest.mark.parametrize("scheduler", ["threads", "sync", "processes"])
def test_the_scheduler_is_the_one_that_dask_chooses(scheduler):
    source = dense_model()
    with dask.config.set(scheduler=scheduler):
        y = dx.load(source).predict(X, batch_size=6)
    np.testing.assert_allclose(y, run_onnx(source, {"x": X})[0], rtol=1e-6)


def test_one_output_is_bare_and_several_are_a_dict_in_the_order_of_the_graph():
    model = dx.load(branching_model())
    both = model.predict(B)
    assert list(both) == ["y", "m"]
    assert list(model.predict(B, outputs=["m", "y"])) == ["m", "y"]
    assert list(model.predict(B, outputs=["y", "m"])) == ["y", "m"]
    assert isinstance(model.predict(B, outputs="m"), np.ndarray)
    assert list(model.predict(B, outputs=["m"])) == ["m"]
    np.testing.assert_array_equal(both["m"], np.abs(np.maximum(B, 0)))


@pytest.mark.parametrize(("strategy", "options"), STRATEGIES)
def test_intermediate_values_may_be_asked_for(strategy, options):
    model = dx.load(branching_model())
    plan = model.plan(strategy, **options)
    found = model.predict(B, outputs=["stem", "m"], plan=plan, batch_size=3)
    np.testing.assert_array_equal(found["stem"], np.maximum(B, 0))


def test_inputs_go_by_name_and_a_scalar_is_given_once():
    model = dx.load(scaled_model())
    x = B[:, :3].copy()
    for scale in (2.0, np.float32(2), np.array(2, np.float32)):
        np.testing.assert_array_equal(model.predict({"s": scale, "x": x}, batch_size=4), x * 2)


def test_a_graph_for_one_row_takes_any_number():
    source = single_row_model()
    y = dx.load(source).predict(B)
    rows = [run_onnx(source, {"x": row[None]})[0] for row in B]
    np.testing.assert_array_equal(y, np.concatenate(rows))


def test_no_rows_give_no_rows():
    model = dx.load(dense_model())
    assert model.predict(X[:0], batch_size=4).shape == (0, 4)


def test_strings_go_through():
    source = make_model(
        [node("Identity", "x", "y")],
        [value("x", ["N"], TensorProto.STRING)],
        [value("y", ["N"], TensorProto.STRING)],
    )
    words = np.array(["one", "two", "three"])
    assert dx.load(source).predict(words, batch_size=2).tolist() == words.tolist()


def test_a_sequence_may_be_an_output():
    source = make_model(
        [node("SequenceConstruct", "x x", "s"), node("Neg", "x", "y")],
        [value("x", ["N", 8])],
        [
            helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None),
            value("y", ["N", 8]),
        ],
    )
    model = dx.load(source)
    found = model.predict(X)
    assert len(found["s"]) == 2
    np.testing.assert_array_equal(found["s"][1], X)
    in_batches = model.predict(X, batch_size=2)
    assert all(np.array_equal(item, X) for item in in_batches["s"])
    np.testing.assert_array_equal(model.predict(X, batch_size=2, outputs="y"), -X)


def test_a_called_model_runs_in_the_calling_thread():
    model = dx.load(dense_model())

    def refuse(*_, **__):
        raise AssertionError("went to a scheduler")

    with dask.config.set(scheduler=refuse):
        assert model(X).shape == (11, 4)
        with pytest.raises(AssertionError, match="went to a scheduler"):
            model.predict(X)
    with pytest.raises(dx.InputError, match="not lazy collections"):
        model(dask.delayed(X))


def test_a_session_is_built_once_for_many_requests():
    model = dx.load(dense_model())
    model.predict(X)
    before = SESSION_CACHE.built
    for _ in range(3):
        model.predict(X)
    assert SESSION_CACHE.built == before


@pytest.mark.parametrize("batch_size", ["auto", None, 4])
def test_a_request_does_not_parse_the_model_again(monkeypatch, batch_size):
    model = dx.load(dense_model())
    plan = model.plan("fused", n_stages=2)
    wanted = [model.predict(X, plan=p, batch_size=batch_size) for p in (None, plan)]
    monkeypatch.setattr(OnnxModel, "parse", None)  # a forest's proto may have 200 MB
    for y, p in zip(wanted, (None, plan), strict=True):
        np.testing.assert_array_equal(model.predict(X, plan=p, batch_size=batch_size), y)


def threads_used() -> set[int]:
    return {spec.intra_op_num_threads for _, spec in SESSION_CACHE.sessions}


def test_one_request_takes_all_cores_and_a_task_takes_one_thread():
    model = dx.load(dense_model())
    model(X)
    assert threads_used() == {available_cores()}
    SESSION_CACHE.clear()
    with dask.config.set(scheduler="threads"):
        dask.delayed(lambda m, x: m(x))(model, X).compute()
        model.predict(X, batch_size=2)
    assert threads_used() == {1}


def test_inputs_of_different_rows_run_in_one_run():
    source = make_model(
        [node("MatMul", "q k", "y")],
        [value("q", ["Q", 4]), value("k", [4, "K"])],
        [value("y", ["Q", "K"])],
    )
    y = dx.load(source).predict({"q": B, "k": B.T[:, :5].copy()})
    assert y.shape == (11, 5)


AUTO = {"option": "batch_size", "suggestions": (dx.Suggestion("batch_size", "auto"),)}
REFUSED = [
    ({"z": X}, {}, {"input": "x"}),
    ({"x": X, "z": X}, {}, {"input": "z"}),
    (X.astype("c8"), {}, {"input": "x", "reason": "the imaginary part would be lost"}),
    (X, {"outputs": "yy"}, {"option": "outputs", "suggestions": (dx.Suggestion("outputs", "y"),)}),
    (X, {"outputs": []}, {"option": "outputs", "suggestions": (dx.Suggestion("outputs", ["y"]),)}),
    (X, {"batch_size": 0}, AUTO),
    (X, {"batch_size": 2.5}, AUTO),
]


@pytest.mark.parametrize(("x", "options", "fields"), REFUSED)
def test_invalid_requests_are_refused_before_any_work(x, options, fields):
    model = dx.load(dense_model())
    before = SESSION_CACHE.built
    with pytest.raises(dx.InputError) as caught:
        model.predict(x, **options)
    assert caught.value.fields == fields
    assert caught.value.next_step
    assert SESSION_CACHE.built == before


@pytest.mark.parametrize(("x", "numbers"), [(X[:, :5], {"size": 5}), (X[0], {"rank": 1})])
def test_a_misfit_shape_is_refused_before_any_work(x, numbers):
    with pytest.raises(dx.InputError) as caught:
        dx.load(dense_model()).predict(x)
    assert caught.value.input == "x"
    assert caught.value.numbers.items() >= numbers.items()


def test_inputs_that_differ_in_rows_are_refused():
    source = make_model(
        [node("Concat", "a b", "y", axis=1)],
        [value("a", ["N", 4]), value("b", ["M", 4])],
        [value("y", ["N", 8])],
    )
    with pytest.raises(dx.InputError, match=r"'a' has 11, 'b' has 5") as caught:
        dx.load(source).predict({"a": B, "b": B[:5]}, batch_size=2)
    assert caught.value.numbers == {"batch_size": 2}


def test_one_array_for_several_inputs_is_refused():
    with pytest.raises(dx.InputError) as caught:
        dx.load(scaled_model()).predict(B)
    assert caught.value.numbers == {"inputs": 2}


def test_another_batch_size_than_the_graph_fixes_is_refused():
    with pytest.raises(dx.InputError) as caught:
        dx.load(single_row_model()).predict(B, batch_size=4)
    assert (caught.value.option, caught.value.numbers) == ("batch_size", {"fixed_rows": 1})


def test_a_plan_of_another_model_is_refused():
    plan = dx.load(branching_model()).plan()
    with pytest.raises(dx.PlanError) as caught:
        dx.load(dense_model()).predict(X, plan=plan)
    assert caught.value.option == "plan"


def test_rows_that_the_graph_sums_are_not_split():
    source = make_model(
        [node("ReduceSum", "x", "y", keepdims=0)], [value("x", ["N", 4])], [value("y", [])]
    )
    model = dx.load(source)
    assert model.predict(B) == pytest.approx(B.sum(), rel=1e-5)
    with pytest.raises(dx.InputError, match="reduced at node") as caught:
        model.predict(B, batch_size=2)
    assert (caught.value.input, caught.value.axis, caught.value.node) == ("x", 0, "ReduceSum_0")


@pytest.mark.parametrize("batch_size", ["auto", None, 4])
def test_empty_batches_never_reach_a_kernel(batch_size):
    """ONNX Runtime ends the process where an LSTM gets no rows."""
    nodes = [
        node("Transpose", "b", "x", perm=[1, 0, 2]),
        node("LSTM", "x W R", "h", hidden_size=5),
        node("Squeeze", "h one", "y"),
        node("Transpose", "y", "c", perm=[1, 0, 2]),
    ]
    constants = {"W": weights(1, 20, 4), "R": weights(1, 20, 5), "one": np.array([1])}
    ends = [value("b", ["N", 3, 4])], [value("c", ["N", 3, 5])]
    model = dx.load(make_model(nodes, *ends, constants))
    for plan in (None, model.plan("per_node")):
        found = model.predict(np.zeros((0, 3, 4), np.float32), batch_size=batch_size, plan=plan)
        assert found.shape == (0, 3, 5) and found.dtype == np.float32
