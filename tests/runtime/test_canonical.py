"""Equal stages share a session; stages that differ do not."""

from __future__ import annotations

import numpy as np
import pytest
from builders import make_model, node, value, weights

import dask_onnx as dx
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.runtime.canonical import canonical_form, with_original_names
from dask_onnx.runtime.session_cache import SESSION_CACHE
from dask_onnx.runtime.session_runs import run_session
from dask_onnx.runtime.stage_sessions import stage_session

X = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)


def layered(*ops: str, **more) -> dx.Model:
    """A chain of nodes."""
    names = ["x", *(f"h{i}" for i in range(len(ops)))]
    nodes = [
        node(op.partition(" ")[0], f"{before} {op.partition(' ')[2]}", after)
        for op, before, after in zip(ops, names, names[1:], strict=False)
    ]
    made = make_model(nodes, [value("x", ["N", 8])], [value(names[-1], ["N", 8])], **more)
    return dx.load(made)


def test_equal_nodes_share_a_session():
    model = layered("Relu", "Neg", "Relu", "Neg", "Relu")
    plan = model.plan("per_node")
    np.testing.assert_array_equal(model.predict(X, plan=plan), model.predict(X))
    per_node = [key for key in SESSION_CACHE.sessions if key in SESSION_CACHE.aliases.values()]
    assert len(plan.stages) == 5 and len(per_node) == 3  # Relu, Neg, the whole


def test_nodes_with_other_weights_do_not_share_a_session():
    model = layered(
        "MatMul A", "MatMul B", "MatMul A", weights={n: weights(8, 8, seed=ord(n)) for n in "AB"}
    )
    plan = model.plan("per_node")
    found = model.predict(X, plan=plan)
    built = SESSION_CACHE.built
    np.testing.assert_allclose(found, model.predict(X), rtol=1e-5)
    assert len(plan.stages) == 3 and len(SESSION_CACHE.sessions) == 3  # A, B, the whole
    assert SESSION_CACHE.built == built + 1


@pytest.mark.parametrize("alpha", [0.5, None])
def test_attributes_and_order_of_inputs_make_another_form(alpha):
    attributes = {} if alpha is None else {"alpha": alpha}
    one = make_model(
        [node("LeakyRelu", "x", "h", **attributes), node("Sub", "h x", "y")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
    )
    two = make_model(
        [node("LeakyRelu", "a", "b", **attributes), node("Sub", "a b", "c")],
        [value("a", ["M", 8])],
        [value("c", ["M", 8])],
    )
    three = make_model(
        [node("LeakyRelu", "a", "b", **attributes), node("Sub", "b a", "c")],
        [value("a", ["M", 8])],
        [value("c", ["M", 8])],
        name="other",
    )
    forms = [
        canonical_form(model).SerializeToString(deterministic=True) for model in (one, two, three)
    ]
    assert forms[0] != forms[1] and forms[0] == forms[2]


def test_errors_name_the_values_of_the_model():
    model = layered("Add b", weights={"b": weights(8)})
    plan = model.plan("per_node")
    stage = stage_ref(model._published().ref, plan.stages[0])
    session = stage_session(stage, dx.SessionSpec())
    with pytest.raises(dx.RunError, match=r" x \(2, 7\)") as caught:
        run_session(session, [X[:, :7]], "s", ["x"])
    assert caught.value.stage == "s"


def test_messages_about_the_canonical_form_get_the_model_s_names():
    stage = make_model(
        [node("MatMul", "left right", "product", "multiply"), node("Add", "product b", "y", "add")],
        [value("left", ["N", 4]), value("right", [4, 5])],
        [value("y", ["N", 5])],
        {"b": np.ones(5, np.float32)},
    )
    canonical = canonical_form(stage)
    names = [canonical.graph.node[1].name, *canonical.graph.node[0].input]
    text = f"Name:'{names[0]}' ({names[1]} by {names[2]}) in /lib/v1/n0.cc, n99 v1x 1.v2"
    expected = "Name:'add' (left by right) in /lib/v1/n0.cc, n99 v1x 1.v2"
    assert with_original_names(text, stage) == expected


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_errors_of_a_run_name_the_model_s_nodes(strategy):
    model = make_model(
        [node("MatMul", "left right", "y", "multiply")],
        [value("left", ["a", "b"]), value("right", ["c", "d"])],
        [value("y", None)],
    )
    loaded = dx.load(model)
    feeds = {"left": np.ones((2, 3), np.float32), "right": np.ones((4, 5), np.float32)}
    with pytest.raises(dx.StageError) as raised:
        loaded.predict(feeds, plan=loaded.plan(strategy))
    assert "'multiply'" in raised.value.reason
    assert "n0" not in raised.value.reason
